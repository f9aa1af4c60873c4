//! Adapters give the logits that `peft` gives, each sequence of a batch its own, and what does not fit is refused by name.
//!
//! The adapters and their logits are made by `tests/fixtures/adapters.py`.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use moli_format::{Adapter, Bytes, Gguf, GgufWriter, ReadMode, Tensor};
use moli_model::{
    Adapted, BackendKind, Batch, KvType, LoadOptions, ModelError, Runtime, load_adapted, pages_of,
};
use serde_json::Value;

/// Greatest difference, relative to a position's largest logit. Sums in another order make less than 1e-6.
const BOUND: f32 = 5e-6;

fn fixtures(folder: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures").join(folder)
}

fn folder(name: &str) -> Gguf {
    Gguf::open(&fixtures("architectures").join(name), ReadMode::Map).unwrap()
}

/// What peft gives for some choices of adapters.
struct Expected {
    ids: Vec<u32>,
    /// The scales by name, and `[ids, vocab]`.
    choices: Vec<(BTreeMap<String, f32>, Vec<f32>)>,
}

fn expected(name: &str) -> Expected {
    let json = std::fs::read(fixtures("adapters").join(name).join("expected.json")).unwrap();
    let json: Value = serde_json::from_slice(&json).unwrap();
    let choice = |choice: &Value| {
        let rows: Vec<Vec<f32>> = serde_json::from_value(choice["logits"].clone()).unwrap();
        (serde_json::from_value(choice["scales"].clone()).unwrap(), rows.concat())
    };
    let choices = json["choices"].as_array().unwrap().iter().map(choice).collect();
    Expected { ids: serde_json::from_value(json["ids"].clone()).unwrap(), choices }
}

fn open(base: &Gguf, model: &str, adapter: &str) -> Adapter {
    Adapter::open(&fixtures("adapters").join(model).join(adapter), base, ReadMode::Map).unwrap()
}

fn runtime(base: &Gguf, adapters: &[Adapter], threads: usize) -> Box<dyn Runtime> {
    let options = LoadOptions { threads, isa: None, context: 256, max_rows: 80, kv_type: KvType::F32 };
    load_adapted(base, adapters, BackendKind::Cpu, &options).unwrap()
}

/// The logits of several sequences of the same tokens with adapters of their own, in batches of so many tokens of each.
fn together(runtime: &mut dyn Runtime, ids: &[u32], adapters: &[&[Adapted]], chunk: usize) -> Vec<Vec<f32>> {
    let each = pages_of(ids.len()) as u32;
    let pages: Vec<Vec<u32>> =
        (0..adapters.len() as u32).map(|i| (i * each..(i + 1) * each).collect()).collect();
    let tables: Vec<&[u32]> = pages.iter().map(Vec::as_slice).collect();
    let mut logits = vec![Vec::new(); adapters.len()];
    for start in (0..ids.len()).step_by(chunk) {
        let places = start..ids.len().min(start + chunk);
        // Rows of different sequences beside each other.
        let rows: Vec<(u32, u32)> =
            places.flat_map(|place| (0..adapters.len() as u32).map(move |s| (place as u32, s))).collect();
        for some in rows.chunks(60) {
            let positions: Vec<u32> = some.iter().map(|row| row.0).collect();
            let sequences: Vec<u32> = some.iter().map(|row| row.1).collect();
            let batch = Batch {
                tokens: &positions.iter().map(|&place| ids[place as usize]).collect::<Vec<_>>(),
                positions: &positions,
                sequences: &sequences,
                types: &[],
                tables: &tables,
                adapters: if adapters.iter().all(|list| list.is_empty()) { &[] } else { adapters },
                recurrent: &[],
                outputs: &(0..some.len() as u32).collect::<Vec<_>>(),
                states: &[],
            };
            let vocab = runtime.config().vocab;
            let computed = runtime.forward(&batch).unwrap();
            for (row, &sequence) in computed.logits.chunks(vocab).zip(&sequences) {
                logits[sequence as usize].extend_from_slice(row);
            }
        }
    }
    logits
}

/// The greatest difference, relative to the largest logit of its position.
fn difference(found: &[f32], expected: &[f32], vocab: usize) -> f32 {
    assert_eq!(found.len(), expected.len());
    let rows = found.chunks(vocab).zip(expected.chunks(vocab)).map(|(found, expected)| {
        let largest = expected.iter().fold(0.0_f32, |largest, logit| largest.max(logit.abs()));
        found.iter().zip(expected).fold(0.0_f32, |worst, (a, b)| worst.max((a - b).abs())) / largest
    });
    rows.fold(0.0, f32::max)
}

/// The adapters of a model's fixtures, and each choice of them by their numbers.
fn choices(name: &str, expected: &Expected) -> (Vec<String>, Vec<Vec<Adapted>>) {
    let mut names: Vec<String> =
        expected.choices.iter().flat_map(|(scales, _)| scales.keys().cloned()).collect();
    names.sort();
    names.dedup();
    assert!(!names.is_empty(), "{name}");
    let number = |name: &String| names.iter().position(|known| known == name).unwrap() as u32;
    let lists = expected.choices.iter().map(|(scales, _)| {
        scales.iter().map(|(name, &scale)| Adapted { adapter: number(name), scale }).collect()
    });
    (names.clone(), lists.collect())
}

/// Checks that a base model with these adapters gives what peft gives.
fn check(name: &str, what: &str, base: &Gguf, open: impl Fn(&str) -> Adapter) {
    let expected = expected(name);
    let (names, lists) = choices(name, &expected);
    let adapters: Vec<Adapter> = names.iter().map(|name| open(name)).collect();
    let lists: Vec<&[Adapted]> = lists.iter().map(Vec::as_slice).collect();
    let mut one = runtime(base, &adapters, 1);
    let vocab = one.config().vocab;
    // With the others, in one batch.
    let all = together(&mut *one, &expected.ids, &lists, expected.ids.len());
    for ((scales, logits), (found, list)) in expected.choices.iter().zip(all.iter().zip(&lists)) {
        let worst = difference(found, logits, vocab);
        println!("{name}, {what}, {scales:?}: {worst:.1e}");
        assert!(worst < BOUND, "{name}, {what}, {scales:?}: off by {worst:e}");
        // Alone, in other chunks and with other threads: the same bits.
        for (threads, chunk) in [(1, expected.ids.len()), (2, 1), (2, 5)] {
            let alone = together(&mut *runtime(base, &adapters, threads), &expected.ids, &[list], chunk);
            assert!(alone[0] == *found, "{name}, {what}, {scales:?}, {threads} threads, chunks of {chunk}");
        }
    }
    // Nobody has one: as if there were none.
    let nobody = together(&mut *one, &expected.ids, &[&[]], 7);
    assert!(nobody == together(&mut *runtime(base, &[], 1), &expected.ids, &[&[]], 7), "{name}, {what}");
}

#[test]
fn adapters_give_the_logits_of_peft() {
    for name in ["llama", "gemma3", "phi3"] {
        let base = folder(name);
        check(name, "a folder", &base, |adapter| open(&base, name, adapter));
    }
}

/// A model with other tensors, as a file.
fn file(gguf: &Gguf, keep: impl Fn(&str) -> bool, tensors: impl IntoIterator<Item = Tensor>) -> Gguf {
    let mut writer = GgufWriter::new();
    for (key, value) in gguf.metadata().iter().filter(|(key, _)| keep(key)) {
        writer.meta(key, value.clone());
    }
    for tensor in tensors {
        writer.tensor(&tensor.name, tensor.ttype, tensor.dims.as_slice(), tensor.data.to_vec());
    }
    written(&writer)
}

fn written(writer: &GgufWriter) -> Gguf {
    let mut file = Vec::new();
    writer.write(&mut file).unwrap();
    Gguf::from_bytes(&Bytes::from_vec(file)).unwrap()
}

/// The rows of each head, pairs of halves made neighbours.
fn interleaved(tensor: &Tensor, heads: usize) -> Tensor {
    let row = tensor.data.len() / tensor.rows();
    let half = tensor.rows() / heads / 2;
    let order = (0..heads).flat_map(|head| {
        (0..half).flat_map(move |i| [0, 1].map(|second| head * 2 * half + second * half + i))
    });
    let data = order.flat_map(|from| tensor.data[from * row..(from + 1) * row].to_vec()).collect();
    Tensor { data: Bytes::from_vec(data), ..tensor.clone() }
}

/// Heads of a matrix whose rows a converter reorders: those of the fixture.
fn heads(name: &str) -> Option<usize> {
    match name.rsplit_once("attn_")?.1.split('.').next()? {
        "q" => Some(5),
        "k" => Some(1),
        _ => None,
    }
}

/// The llama of the fixtures as llama.cpp's converter writes it.
fn converted(base: &Gguf) -> Gguf {
    let tensors = base.tensors().map(|tensor| match heads(&tensor.name) {
        Some(heads) => interleaved(tensor, heads),
        None => tensor.clone(),
    });
    file(base, |key| key != "moli.rope.halves", tensors.collect::<Vec<_>>())
}

/// An adapter of the fixtures as llama.cpp's converter writes it: one alpha, so that `factor` must be the same everywhere.
fn converted_adapter(base: &Gguf, adapter: &Adapter) -> Gguf {
    let architecture = base.metadata().architecture().unwrap();
    let mut writer = GgufWriter::new();
    writer.meta("general.type", "adapter").meta("adapter.type", "lora");
    writer.meta("general.architecture", architecture);
    let first = adapter.products().next().unwrap();
    writer.meta("adapter.lora.alpha", first.factor * first.rank() as f32);
    for product in adapter.products() {
        assert_eq!((product.factor, product.rank()), (first.factor, first.rank()));
        let b =
            heads(&product.name).map_or_else(|| product.b.clone(), |heads| interleaved(&product.b, heads));
        for (tensor, end) in [(&product.a, "lora_a"), (&b, "lora_b")] {
            let name = format!("{}.{end}", product.name);
            writer.tensor(name, tensor.ttype, tensor.dims.as_slice(), tensor.data.to_vec());
        }
    }
    written(&writer)
}

/// The four combinations of a model and an adapter, as folders and as files, of an architecture whose rows are reordered.
#[test]
fn rows_of_q_and_k_are_put_in_the_order_of_the_model() {
    let folder = folder("llama");
    let file = converted(&folder);
    check("llama", "a file", &file, |adapter| open(&file, "llama", adapter));
    let expected = expected("llama");
    let (_, logits) = expected.choices.iter().find(|(scales, _)| scales.keys().eq(["wide"])).unwrap();
    let adapter = converted_adapter(&folder, &open(&folder, "llama", "wide"));
    for base in [&folder, &file] {
        let adapter = Adapter::from_gguf(&adapter, base).unwrap();
        let list = [Adapted { adapter: 0, scale: 1.0 }];
        let mut runtime = runtime(base, &[adapter], 1);
        let found = together(&mut *runtime, &expected.ids, &[&list], 4);
        let worst = difference(&found[0], logits, runtime.config().vocab);
        assert!(worst < BOUND, "off by {worst:e}");
    }
}

/// Experts one by one and in one tensor, in the model and in the adapter.
#[test]
fn experts_are_adapted_in_every_form() {
    let singly = folder("mixtral");
    let experts = singly.metadata().u32("llama.expert_count").unwrap();
    let of = |stem: &str, end: &str, cols: u64, rows: u64, expert: u32| Tensor {
        name: format!("{stem}.{expert}.weight.{end}"),
        ttype: moli_format::TensorType::F32,
        dims: vec![cols, rows],
        data: Bytes::from_vec(
            (0..cols * rows)
                .flat_map(|i| (((i * 7 + u64::from(expert) * 3) % 11) as f32 / 40.0 - 0.1).to_le_bytes())
                .collect(),
        ),
    };
    // Half of the experts' matrices and the router.
    let mut pairs = Vec::new();
    for (stem, cols, rows) in [("blk.0.ffn_gate", 0, 1), ("blk.1.ffn_down", 0, 1)] {
        let tensor = singly.tensor(&format!("{stem}.0.weight")).unwrap();
        let dims = [tensor.dims[cols], tensor.dims[rows]];
        pairs.push((stem, dims));
    }
    let stacked = |tensors: Vec<Tensor>, name: String| Tensor {
        name,
        ttype: tensors[0].ttype,
        dims: [tensors[0].dims.as_slice(), &[tensors.len() as u64]].concat(),
        data: Bytes::from_vec(tensors.iter().flat_map(|tensor| tensor.data.to_vec()).collect()),
    };
    let adapter = |stack: bool| {
        let mut writer = GgufWriter::new();
        writer.meta("general.type", "adapter").meta("adapter.type", "lora");
        writer.meta("general.architecture", "llama").meta("adapter.lora.alpha", 4.0_f32);
        let mut add = |tensor: Tensor| {
            writer.tensor(&tensor.name, tensor.ttype, tensor.dims.as_slice(), tensor.data.to_vec());
        };
        for &(stem, [cols, rows]) in &pairs {
            let all = |end: &str, cols, rows| {
                (0..experts).map(|i| of(stem, end, cols, rows, i)).collect::<Vec<_>>()
            };
            for (end, tensors) in [("lora_a", all("lora_a", cols, 2)), ("lora_b", all("lora_b", 2, rows))] {
                if stack {
                    add(stacked(tensors, format!("{stem}_exps.weight.{end}")));
                } else {
                    tensors.into_iter().for_each(&mut add);
                }
            }
        }
        let router = singly.tensor("blk.0.ffn_gate_inp.weight").unwrap();
        for (end, cols, rows) in [("lora_a", router.dims[0], 2), ("lora_b", 2, router.dims[1])] {
            add(Tensor { name: format!("blk.0.ffn_gate_inp.weight.{end}"), ..of("", "", cols, rows, 0) });
        }
        written(&writer)
    };
    // The model with its experts in one tensor.
    // `blk.0.ffn_up.3.weight`
    let is_one = |name: &str| name.split('.').count() == 5;
    let mut tensors: Vec<Tensor> = singly.tensors().filter(|tensor| !is_one(&tensor.name)).cloned().collect();
    for layer in 0..singly.metadata().u32("llama.block_count").unwrap() {
        for stem in ["ffn_gate", "ffn_up", "ffn_down"] {
            let name = |expert| format!("blk.{layer}.{stem}.{expert}.weight");
            let all = (0..experts).map(|expert| singly.tensor(&name(expert)).unwrap().clone()).collect();
            tensors.push(stacked(all, format!("blk.{layer}.{stem}_exps.weight")));
        }
    }
    let in_one = file(&singly, |_| true, tensors);

    let ids: Vec<u32> = (0..20).map(|i| i * 37 % 96).collect();
    let list = [Adapted { adapter: 0, scale: 0.5 }];
    let mut all = Vec::new();
    for base in [&singly, &in_one] {
        for stack in [false, true] {
            let adapter = Adapter::from_gguf(&adapter(stack), base).unwrap();
            let mut runtime = runtime(base, &[adapter], 2);
            let both = together(&mut *runtime, &ids, &[&list, &[]], 6);
            assert_ne!(both[0], both[1]);
            assert!(together(&mut *runtime, &ids, &[&list], 20)[0] == both[0]);
            all.push(both);
        }
    }
    assert!(all.iter().all(|logits| *logits == all[0]));
}

#[test]
fn a_batch_with_adapters_that_make_no_sense_is_refused() {
    let base = folder("llama");
    let mut runtime = runtime(&base, &[open(&base, "llama", "wide")], 1);
    let mut refusal = |adapters: &[&[Adapted]]| {
        let batch = Batch {
            tokens: &[1],
            positions: &[0],
            sequences: &[0],
            tables: &[&[0]],
            adapters,
            recurrent: &[],
            types: &[],
            outputs: &[0],
            states: &[],
        };
        runtime.forward(&batch).map(|_| ()).unwrap_err()
    };
    let of = |adapter, scale| Adapted { adapter, scale };
    let error = refusal(&[&[of(1, 1.0)]]);
    assert!(matches!(error, ModelError::Batch { what: "adapter", actual: 1, .. }), "{error}");
    let error = refusal(&[&[of(0, 1.0), of(0, 0.5)]]);
    assert!(matches!(error, ModelError::Batch { what: "adapter", actual: 0, .. }), "{error}");
    let error = refusal(&[&[], &[]]);
    assert!(matches!(error, ModelError::Batch { what: "adapters", actual: 2, .. }), "{error}");
    for scale in [-1.0, f32::NAN, f32::INFINITY] {
        let error = refusal(&[&[of(0, scale)]]);
        assert!(matches!(error, ModelError::AdapterScale { adapter: 0, .. }), "{error}");
    }
}
