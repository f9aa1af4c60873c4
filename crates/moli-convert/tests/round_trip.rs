//! A folder of each architecture becomes a GGUF and a folder again, and its logits stay the same bits.
//!
//! The folders are those of `tests/fixtures/architectures`.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use moli_convert::{ConvertError, Dtype, Options, Output, Portable, Report, Watch, to_folder, to_gguf};
use moli_format::{
    Bytes, FormatError, Gguf, GgufWriter, HuggingFaceError, HuggingFaceFolder, ReadMode, TensorType,
};
use moli_model::{BackendKind, Batch, KvType, LoadOptions, load, pages_of};
use serde_json::Value;

/// Folders of a model that sees, to which there is no way back.
const ONE_WAY: &[&str] = &["qwen2_5_vl"];

fn fixtures() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/architectures");
    let folders = std::fs::read_dir(root).unwrap().map(|entry| entry.unwrap().path());
    let mut folders: Vec<PathBuf> = folders.collect();
    folders.sort();
    folders
}

fn open(path: &Path) -> Gguf {
    Gguf::open(path, ReadMode::Map).unwrap()
}

fn to(
    convert: fn(&Gguf, &Output, &Options, Arc<Watch>) -> Result<Report, ConvertError>,
    model: &Path,
    path: &Path,
    dtype: Option<Dtype>,
) -> Report {
    let output = Output::new(path, &[model], false).unwrap();
    convert(&open(model), &output, &Options { dtype, tokenizer: true }, Arc::new(|_| true)).unwrap()
}

/// The bits of the logits of some tokens at every position, with keys and values in f32.
fn logits(gguf: &Gguf, context: usize) -> Vec<u32> {
    let vocab = gguf.tensor("token_embd.weight").unwrap().rows().min(96) as u32;
    let tokens: Vec<u32> = (0..14).map(|i| i * 37 % vocab).collect();
    let options = LoadOptions { threads: 1, isa: None, context, max_rows: 32, kv_type: KvType::F32 };
    let mut runtime = load(gguf, BackendKind::Cpu, &options).unwrap();
    let rows: Vec<u32> = (0..tokens.len() as u32).collect();
    let pages: Vec<u32> = (0..pages_of(tokens.len()) as u32).collect();
    let batch = Batch {
        tokens: &tokens,
        positions: &rows,
        sequences: &vec![0; tokens.len()],
        tables: &[&pages],
        types: &[],
        adapters: &[],
        recurrent: &[],
        outputs: &rows,
        states: &[],
    };
    runtime.forward(&batch).unwrap().logits.iter().map(|logit| logit.to_bits()).collect()
}

/// The model's type as the folder says it; of one that also sees, that of its language model.
fn model_type(folder: &Path) -> String {
    let config = std::fs::read(folder.join("config.json")).unwrap();
    let config: Value = serde_json::from_slice(&config).unwrap();
    config.get("text_config").unwrap_or(&config)["model_type"].as_str().unwrap().to_owned()
}

#[test]
fn every_architecture_keeps_its_logits_to_gguf_and_back() {
    let folder = tempfile::tempdir().unwrap();
    let mut types = BTreeSet::new();
    for source in fixtures() {
        let name = source.file_name().unwrap().to_str().unwrap();
        let expected = std::fs::read(source.join("expected.json")).unwrap();
        let expected: Value = serde_json::from_slice(&expected).unwrap();
        let context = expected.get("context").map_or(14, |tokens| tokens.as_u64().unwrap() as usize).max(14);
        let (file, back) = (folder.path().join(format!("{name}.gguf")), folder.path().join(name));
        let report = to(to_gguf, &source, &file, None);
        assert_eq!(report.bytes, file.metadata().unwrap().len(), "{name}");
        let gguf = open(&file);
        // What only a folder has is gone.
        assert!(gguf.metadata().get("moli.rope.halves").is_none(), "{name}");
        for tensor in gguf.tensors().filter(|tensor| tensor.dims.len() == 1) {
            assert_eq!(tensor.ttype, TensorType::F32, "{name}: {}", tensor.name);
        }
        let wanted = logits(&open(&source), context);
        assert!(wanted == logits(&gguf, context), "{name}: as GGUF");
        if ONE_WAY.contains(&name) {
            let error = HuggingFaceFolder::of(&gguf).unwrap_err();
            let known = matches!(&error, FormatError::HuggingFace(HuggingFaceError::NoModelType { architecture, .. })
                if gguf.metadata().architecture().is_ok_and(|of| of == architecture));
            assert!(known, "{name}: {error}");
            continue;
        }
        if name == "glm4_odd" {
            // No field says the factors that an odd number of turned elements makes.
            let error = HuggingFaceFolder::of(&gguf).unwrap_err();
            let named = matches!(&error, FormatError::HuggingFace(HuggingFaceError::NoName { tensor })
                if tensor == "rope_freqs.weight");
            assert!(named, "{error}");
            continue;
        }
        to(to_folder, &file, &back, None);
        assert_eq!(model_type(&back), model_type(&source), "{name}");
        assert!(wanted == logits(&open(&back), context), "{name}: back in a folder");
        // And once more: the same file.
        let again = folder.path().join(format!("{name}.again.gguf"));
        to(to_gguf, &back, &again, None);
        assert!(wanted == logits(&open(&again), context), "{name}: as GGUF again");
        types.insert(model_type(&back));
    }
    assert!(types.len() >= 29, "{types:?}");
}

/// What GPTQ and AWQ have packed is in a GGUF what it is unpacked to, and computes the same.
#[test]
fn packed_weights_become_blocks() {
    let folder = tempfile::tempdir().unwrap();
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/packed");
    for (name, ttype) in
        [("gptq", TensorType::Q4_0), ("gptq_v2", TensorType::Q5_0), ("gptq_8", TensorType::Q8_0)]
    {
        let file = folder.path().join(format!("{name}.gguf"));
        to(to_gguf, &root.join(name), &file, None);
        let gguf = open(&file);
        assert!(gguf.metadata().get("moli.unpacked").is_none(), "{name}");
        assert_eq!(gguf.tensor("blk.0.ffn_down.weight").unwrap().ttype, ttype, "{name}");
        assert!(logits(&open(&root.join(name)), 32) == logits(&gguf, 32), "{name}");
    }
}

/// Another type is what rounding makes of the elements, both ways, and vectors stay in single precision in a GGUF.
#[test]
fn matrices_in_another_type() {
    let folder = tempfile::tempdir().unwrap();
    let source = fixtures().into_iter().find(|folder| folder.ends_with("gpt_oss")).unwrap();
    for (dtype, ttype) in [(Dtype::F16, TensorType::F16), (Dtype::BF16, TensorType::BF16)] {
        let (file, back) =
            (folder.path().join(ttype.name()), folder.path().join(format!("{}-folder", ttype.name())));
        to(to_gguf, &source, &file.with_extension("gguf"), Some(dtype));
        let gguf = open(&file.with_extension("gguf"));
        for tensor in gguf.tensors() {
            let single = tensor.dims.len() == 1 || tensor.name.ends_with(".bias");
            assert_eq!(tensor.ttype, if single { TensorType::F32 } else { ttype }, "{}", tensor.name);
        }
        to(to_folder, &file.with_extension("gguf"), &back, Some(dtype));
        let again = open(&back);
        for tensor in gguf.tensors().filter(|tensor| tensor.ttype == ttype) {
            let other = again.tensor(&tensor.name);
            // Experts are stacked in both.
            assert_eq!(other.map(|other| &other.data), Some(&tensor.data), "{}", tensor.name);
        }
    }
}

#[test]
fn work_that_is_called_off_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let source = &fixtures()[0];
    for convert in [to_gguf, to_folder] {
        let output = Output::new(&folder.path().join("out"), &[source], false).unwrap();
        let error = convert(&open(source), &output, &Options::default(), Arc::new(|_| false)).unwrap_err();
        assert!(matches!(error, ConvertError::Cancelled), "{error}");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}

#[test]
fn an_element_beyond_half_precision_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let (path, out) = (folder.path().join("model.gguf"), folder.path().join("half.gguf"));
    let data: Vec<u8> = [1.0_f32, 70_000.0].iter().flat_map(|value| value.to_le_bytes()).collect();
    GgufWriter::new()
        .meta("general.architecture", "llama")
        .meta("tokenizer.ggml.model", "none")
        .tensor("token_embd.weight", TensorType::F32, [1, 2], data)
        .write_file(&path)
        .unwrap();
    let output = Output::new(&out, &[&path], false).unwrap();
    let options = Options { dtype: Some(Dtype::F16), tokenizer: true };
    let error = to_gguf(&open(&path), &output, &options, Arc::new(|_| true)).unwrap_err();
    assert!(
        matches!(&error, ConvertError::BeyondHalf { tensor, value: 70_000.0 } if tensor == "token_embd.weight"),
        "{error}"
    );
    assert!(!out.exists());
}

#[test]
fn experts_that_do_not_belong_together() {
    let folder = tempfile::tempdir().unwrap();
    for missing in [0, 1] {
        let path = folder.path().join(format!("{missing}.gguf"));
        let mut file = GgufWriter::new();
        file.meta("general.architecture", "llama");
        for expert in (0..3).filter(|expert| *expert != missing) {
            let name = format!("blk.0.ffn_up.{expert}.weight");
            file.tensor(name, TensorType::F32, [1, 1], &[0; 4]);
        }
        file.write_file(&path).unwrap();
        let error = Portable::without_tokenizer(&open(&path)).unwrap_err();
        assert!(
            matches!(&error, ConvertError::Experts { tensor } if tensor == &format!("blk.0.ffn_up.{}.weight", missing + 1)),
            "{error}"
        );
    }
}

#[test]
fn what_a_folder_cannot_say_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("source.gguf");
    let llama = fixtures().into_iter().find(|folder| folder.ends_with("llama_llama3")).unwrap();
    to(to_gguf, &llama, &source, None);
    let model = open(&source);
    let refused = |without: &str, rename: Option<(&str, &str)>| {
        let mut file = GgufWriter::new();
        model.metadata().iter().filter(|(key, _)| *key != without).for_each(|(key, value)| {
            file.meta(key, value.clone());
        });
        for tensor in model.tensors() {
            let name = rename.filter(|(old, _)| *old == tensor.name).map_or(&*tensor.name, |(_, new)| new);
            file.tensor(name, tensor.ttype, tensor.dims.as_slice(), &tensor.data);
        }
        let mut bytes = Vec::new();
        file.write(&mut bytes).unwrap();
        match HuggingFaceFolder::of(&Gguf::from_bytes(&Bytes::from_vec(bytes)).unwrap()) {
            Err(FormatError::HuggingFace(error)) => error,
            other => panic!("{other:?}"),
        }
    };
    // Factors on the rotary wavelengths that no published numbers give.
    let error = refused("moli.rope.llama3", None);
    assert!(
        matches!(&error, HuggingFaceError::NoName { tensor } if tensor == "rope_freqs.weight"),
        "{error}"
    );
    let error = refused("", Some(("blk.0.ffn_up.weight", "blk.0.ffn_sub_norm.weight")));
    assert!(
        matches!(&error, HuggingFaceError::NoName { tensor } if tensor == "blk.0.ffn_sub_norm.weight"),
        "{error}"
    );
}
