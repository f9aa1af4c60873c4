//! A merged model gives the logits that its adapters give.
//!
//! The adapters and their logits are made by `tests/fixtures/adapters.py`, with `peft`.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use moli_convert::{ConvertError, Merged, Output, merge};
use moli_format::{Adapter, Bytes, Gguf, GgufWriter, ReadMode, Tensor, TensorType};
use moli_model::{Adapted, BackendKind, Batch, KvType, LoadOptions, load_adapted, pages_of};
use moli_testkit::TinyModel;
use serde_json::Value;

fn fixtures(folder: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures").join(folder)
}

/// A model as a file, in memory, with these tensors.
fn with_tensors(gguf: &Gguf, tensors: impl IntoIterator<Item = Tensor>) -> Gguf {
    let mut writer = GgufWriter::new();
    let of_folder = |key: &str| key.starts_with("tokenizer.huggingface.");
    for (key, value) in gguf.metadata().iter().filter(|(key, _)| !of_folder(key)) {
        writer.meta(key, value.clone());
    }
    for tensor in tensors {
        writer.tensor(&tensor.name, tensor.ttype, tensor.dims.as_slice(), tensor.data.to_vec());
    }
    let mut file = Vec::new();
    writer.write(&mut file).unwrap();
    Gguf::from_bytes(&Bytes::from_vec(file)).unwrap()
}

fn folder(name: &str) -> Gguf {
    Gguf::open(&fixtures("architectures").join(name), ReadMode::Map).unwrap()
}

/// A model of the fixtures as a file.
fn file(name: &str) -> Gguf {
    let folder = folder(name);
    with_tensors(&folder, folder.tensors().cloned())
}

fn adapter(base: &Gguf, model: &str, name: &str) -> Adapter {
    Adapter::open(&fixtures("adapters").join(model).join(name), base, ReadMode::Map).unwrap()
}

/// An adapter in GGUF of one matrix.
fn handmade(base: &Gguf, name: &str, [cols, rank, rows]: [u64; 3]) -> Adapter {
    let mut writer = GgufWriter::new();
    writer.meta("general.type", "adapter").meta("adapter.type", "lora");
    writer.meta("general.architecture", base.metadata().architecture().unwrap());
    writer.meta("adapter.lora.alpha", 1.0_f32);
    for (end, dims) in [("lora_a", [cols, rank]), ("lora_b", [rank, rows])] {
        let values = (0..dims[0] * dims[1]).map(|i| (i % 13) as f32 / 13.0 - 0.5);
        let data: Vec<u8> = values.flat_map(f32::to_le_bytes).collect();
        writer.tensor(format!("{name}.{end}"), TensorType::F32, dims, data);
    }
    let mut file = Vec::new();
    writer.write(&mut file).unwrap();
    Adapter::from_gguf(&Gguf::from_bytes(&Bytes::from_vec(file)).unwrap(), base).unwrap()
}

/// Merges, and opens what was written.
fn merged(base: &Gguf, adapters: &[(Adapter, f32)]) -> (Gguf, Merged) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("merged.gguf");
    let merged = merge(base, adapters, &Output::new(&path, &[], false).unwrap()).unwrap();
    (Gguf::open(&path, ReadMode::Read).unwrap(), merged)
}

/// The logits at every position.
fn logits(gguf: &Gguf, adapters: &[Adapter], ids: &[u32]) -> Vec<f32> {
    let options = LoadOptions { threads: 1, isa: None, context: 64, max_rows: 64, kv_type: KvType::F32 };
    let mut runtime = load_adapted(gguf, adapters, BackendKind::Cpu, &options).unwrap();
    let rows: Vec<u32> = (0..ids.len() as u32).collect();
    let pages: Vec<u32> = (0..pages_of(ids.len()) as u32).collect();
    let adapters = adapters.iter().zip(0..).map(|(_, adapter)| Adapted { adapter, scale: 1.0 });
    let batch = Batch {
        tokens: ids,
        positions: &rows,
        sequences: &vec![0; ids.len()],
        tables: &[&pages],
        adapters: &[&adapters.collect::<Vec<_>>()],
        recurrent: &[],
        types: &[],
        outputs: &rows,
        states: &[],
    };
    runtime.forward(&batch).unwrap().logits.to_vec()
}

/// The greatest difference, relative to the largest logit.
fn difference(found: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(found.len(), expected.len());
    let largest = expected.iter().fold(0.0_f32, |largest, logit| largest.max(logit.abs()));
    found.iter().zip(expected).fold(0.0_f32, |worst, (a, b)| worst.max((a - b).abs())) / largest
}

const IDS: [u32; 12] = [3, 50, 7, 91, 20, 21, 3, 64, 65, 8, 30, 77];

#[test]
fn merged_models_give_the_logits_of_peft() {
    for name in ["llama", "gemma3", "phi3"] {
        let base = file(name);
        let json = std::fs::read(fixtures("adapters").join(name).join("expected.json")).unwrap();
        let json: Value = serde_json::from_slice(&json).unwrap();
        let ids: Vec<u32> = serde_json::from_value(json["ids"].clone()).unwrap();
        for choice in json["choices"].as_array().unwrap() {
            let scales: BTreeMap<String, f32> = serde_json::from_value(choice["scales"].clone()).unwrap();
            let rows: Vec<Vec<f32>> = serde_json::from_value(choice["logits"].clone()).unwrap();
            let adapters: Vec<(Adapter, f32)> =
                scales.iter().map(|(adapter, &scale)| (self::adapter(&base, name, adapter), scale)).collect();
            let (merged, told) = merged(&base, &adapters);
            assert!(told.requantized.is_empty() && !told.untied);
            assert_eq!(told.changed == 0, scales.is_empty(), "{name} {scales:?}: {told:?}");
            let worst = difference(&logits(&merged, &[], &ids), &rows.concat());
            println!("{name} {scales:?}: {} tensors, {worst:.1e}", told.changed);
            assert!(worst < 5e-6, "{name} {scales:?}: off by {worst:e}");
        }
    }
}

#[test]
fn a_head_that_is_the_embeddings_becomes_a_tensor_of_its_own() {
    let base = file("gemma3");
    assert!(base.tensor("output.weight").is_none());
    let embeddings = base.tensor("token_embd.weight").unwrap();
    let adapter = handmade(&base, "output.weight", [embeddings.dims[0], 2, embeddings.dims[1]]);
    let (merged, told) = merged(&base, &[(adapter.clone(), 1.0)]);
    assert!(told.untied && told.changed == 1);
    assert_eq!(merged.tensor("token_embd.weight").unwrap().data, embeddings.data);
    let expected = logits(&base, &[adapter], &IDS);
    assert!(difference(&logits(&base, &[], &IDS), &expected) > 1e-3);
    assert!(difference(&logits(&merged, &[], &IDS), &expected) < 5e-6);
}

#[test]
fn experts_in_one_tensor_are_merged_each() {
    let singly = file("mixtral");
    let experts = singly.metadata().u32("llama.expert_count").unwrap();
    let name = |expert| format!("blk.0.ffn_up.{expert}.weight");
    let matrix = |gguf: &Gguf, expert| gguf.tensor(&name(expert)).unwrap().clone();
    let first = matrix(&singly, 0);
    let (cols, rows) = (first.dims[0], first.dims[1]);
    // The same model with these matrices in one tensor.
    let all = |gguf: &Gguf| (0..experts).flat_map(|e| matrix(gguf, e).data.to_vec()).collect::<Vec<u8>>();
    let stack = Tensor {
        name: "blk.0.ffn_up_exps.weight".to_owned(),
        dims: vec![cols, rows, u64::from(experts)],
        data: Bytes::from_vec(all(&singly)),
        ..first.clone()
    };
    let others = singly.tensors().filter(|tensor| !tensor.name.starts_with("blk.0.ffn_up.")).cloned();
    let stacked = with_tensors(&singly, others.chain([stack]));
    let adapters = |base: &Gguf| {
        let of = |expert, scale| (handmade(base, &name(expert), [cols, 2, rows]), scale);
        [of(0, 1.0), of(experts - 1, 0.5), of(0, 0.25)]
    };
    let (one_by_one, told) = merged(&singly, &adapters(&singly));
    assert_eq!(told.changed, 2);
    let (in_one, told) = merged(&stacked, &adapters(&stacked));
    assert_eq!(told.changed, 1);
    assert_eq!(in_one.tensor("blk.0.ffn_up_exps.weight").unwrap().data.to_vec(), all(&one_by_one));
    assert_ne!(matrix(&one_by_one, 0).data, first.data);
    assert_eq!(matrix(&one_by_one, 1).data, matrix(&singly, 1).data);
}

#[test]
fn quantised_tensors_are_rounded_again_and_said() {
    let model = TinyModel::new("llama");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    model.write(&path).unwrap();
    let base = Gguf::open(&path, ReadMode::Read).unwrap();
    let adapter = handmade(&base, "blk.0.ffn_up.weight", [256, 4, 512]);
    let (merged, told) = merged(&base, &[(adapter.clone(), 1.0)]);
    assert_eq!((told.changed, told.requantized), (1, BTreeMap::from([(TensorType::Q8_0.name(), 1)])));
    for tensor in base.tensors() {
        let new = merged.tensor(&tensor.name).unwrap();
        assert_eq!(new.data == tensor.data, tensor.name != "blk.0.ffn_up.weight", "{}", tensor.name);
        assert_eq!((new.ttype, &new.dims), (tensor.ttype, &tensor.dims));
    }
    let expected = logits(&base, &[adapter], &IDS);
    let plain = difference(&logits(&base, &[], &IDS), &expected);
    let rounded = difference(&logits(&merged, &[], &IDS), &expected);
    assert!(rounded < plain / 5.0, "{rounded} beside {plain}");
}

#[test]
fn what_cannot_be_merged_writes_nothing() {
    let base = file("llama");
    let place = tempfile::tempdir().unwrap();
    let output = Output::new(&place.path().join("merged.gguf"), &[], false).unwrap();
    for scale in [-1.0, f32::NAN, f32::INFINITY] {
        let error = merge(&base, &[(adapter(&base, "llama", "wide"), scale)], &output).unwrap_err();
        assert!(matches!(error, ConvertError::Scale { .. }), "{error}");
    }
    // A type with a codebook, which is only read.
    let queries = "blk.0.attn_q.weight";
    let coded = Tensor {
        name: queries.to_owned(),
        ttype: TensorType::IQ3S,
        dims: vec![256, 60],
        data: Bytes::from_vec(vec![0; TensorType::IQ3S.row_bytes(256).unwrap() * 60]),
    };
    let others = base.tensors().filter(|tensor| tensor.name != queries).cloned();
    let odd = with_tensors(&base, others.chain([coded]));
    let error = merge(&odd, &[(handmade(&odd, queries, [256, 2, 60]), 1.0)], &output).unwrap_err();
    assert!(matches!(&error, ConvertError::NoQuantizer { tensor, .. } if tensor == queries), "{error}");
    assert_eq!(place.path().read_dir().unwrap().count(), 0);
}

/// A folder as the model, and files and folders as what is made: the same logits, and nothing else beside them.
#[test]
fn folders_are_merged_into_and_made() {
    let place = tempfile::tempdir().unwrap();
    for name in ["llama", "gemma3", "qwen3_moe"] {
        for (base, end) in [(folder(name), ""), (folder(name), ".gguf"), (file(name), "-of-file")] {
            let own = match name {
                "qwen3_moe" => handmade(&base, "blk.0.ffn_gate.1.weight", [40, 2, 20]),
                _ => adapter(&base, name, "wide"),
            };
            let path = place.path().join(format!("{name}{end}"));
            let output = Output::new(&path, &[], false).unwrap();
            let told = merge(&base, &[(own.clone(), 1.0)], &output).unwrap();
            assert!(told.changed > 0, "{name}: {told:?}");
            let expected = logits(&base, std::slice::from_ref(&own), &IDS);
            let made = Gguf::open(&path, ReadMode::Read).unwrap();
            let worst = difference(&logits(&made, &[], &IDS), &expected);
            let plain = difference(&logits(&base, &[], &IDS), &expected);
            assert!(worst < 5e-6 && plain > 1e-3, "{name}{end}: off by {worst:e}, without by {plain:e}");
        }
    }
    assert_eq!(place.path().read_dir().unwrap().count(), 9);
}
