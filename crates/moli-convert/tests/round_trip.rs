//! A folder of each architecture becomes a GGUF and a folder again, and its logits stay the same bits.
//!
//! The folders are those of `tests/fixtures/architectures`.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use moli_convert::{Dtype, Options, Output, Report, to_folder, to_gguf};
use moli_format::{Gguf, ReadMode, TensorType};
use moli_model::{BackendKind, Batch, KvType, LoadOptions, load, pages_of};
use serde_json::Value;

/// Folders whose architecture is not computed yet.
const NOT_YET: &[&str] = &["lfm2", "qwen3_next"];

fn fixtures() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/architectures");
    let folders = std::fs::read_dir(root).unwrap().map(|entry| entry.unwrap().path());
    let computed = |folder: &PathBuf| !NOT_YET.iter().any(|name| folder.ends_with(name));
    let mut folders: Vec<PathBuf> = folders.filter(computed).collect();
    folders.sort();
    folders
}

fn open(path: &Path) -> Gguf {
    Gguf::open(path, ReadMode::Map).unwrap()
}

fn to(
    convert: fn(
        &Gguf,
        &Output,
        &Options,
        Arc<moli_convert::Watch>,
    ) -> Result<Report, moli_convert::ConvertError>,
    model: &Path,
    path: &Path,
    dtype: Option<Dtype>,
) -> Report {
    let output = Output::new(path, &[model], false).unwrap();
    convert(&open(model), &output, &Options { dtype, tokenizer: true }, Arc::new(|_| true)).unwrap()
}

/// The bits of the logits of some tokens at every position, with keys and values in f32.
fn logits(gguf: &Gguf, context: usize) -> Vec<u32> {
    let tokens: Vec<u32> = (0..14).map(|i| i * 37 % 96).collect();
    let options = LoadOptions { threads: 1, isa: None, context, max_rows: 32, kv_type: KvType::F32 };
    let mut runtime = load(gguf, BackendKind::Cpu, &options).unwrap();
    let rows: Vec<u32> = (0..tokens.len() as u32).collect();
    let pages: Vec<u32> = (0..pages_of(tokens.len()) as u32).collect();
    let batch = Batch {
        tokens: &tokens,
        positions: &rows,
        sequences: &vec![0; tokens.len()],
        tables: &[&pages],
        outputs: &rows,
        states: &[],
    };
    runtime.forward(&batch).unwrap().logits.iter().map(|logit| logit.to_bits()).collect()
}

/// The model's type as the folder says it.
fn model_type(folder: &Path) -> String {
    let config = std::fs::read(folder.join("config.json")).unwrap();
    let config: Value = serde_json::from_slice(&config).unwrap();
    config["model_type"].as_str().unwrap().to_owned()
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
        to(to_folder, &file, &back, None);
        assert_eq!(model_type(&back), model_type(&source), "{name}");
        assert!(wanted == logits(&open(&back), context), "{name}: back in a folder");
        // And once more: the same file.
        let again = folder.path().join(format!("{name}.again.gguf"));
        to(to_gguf, &back, &again, None);
        assert!(wanted == logits(&open(&again), context), "{name}: as GGUF again");
        types.insert(model_type(&back));
    }
    assert!(types.len() >= 26, "{types:?}");
}
