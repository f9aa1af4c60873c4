//! A Hugging Face folder of each architecture gives the logits that transformers gives.
//!
//! The folders and their logits are made by `tests/fixtures/architectures.py`.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};

use moli_format::{FormatError, Gguf, HuggingFaceError, ReadMode};
use moli_model::{BackendKind, Batch, KvType, LoadOptions, ModelError, Runtime, load, pages_of};
use serde_json::Value;

/// Folders whose architecture, or something that their configuration asks for, is not computed yet, and what the error names.
/// One that is computed must not be here.
const NOT_YET: &[(&str, &str)] = &[];

/// Greatest difference, relative to a position's largest logit. Sums in another order make less than 1e-6.
const BOUND: f32 = 5e-6;

/// What a folder must give.
struct Expected {
    ids: Vec<u32>,
    /// `[ids, vocab]`
    logits: Vec<Vec<f32>>,
    /// Tokens that the model is opened for.
    context: usize,
}

impl Expected {
    fn of(folder: &Path) -> Self {
        let json: Value =
            serde_json::from_slice(&std::fs::read(folder.join("expected.json")).unwrap()).unwrap();
        let ids: Vec<u32> = serde_json::from_value(json["ids"].clone()).unwrap();
        let logits: Vec<Vec<f32>> = serde_json::from_value(json["logits"].clone()).unwrap();
        assert!(ids.len() > 10 && logits.len() == ids.len(), "{folder:?}");
        let context = json.get("context").map_or(ids.len(), |tokens| tokens.as_u64().unwrap() as usize);
        Self { ids, logits, context }
    }
}

/// What came of a folder, when it isn't logits that are right.
enum Failure {
    /// The error says that this name is not supported.
    Unsupported(String),
    Wrong(String),
}

impl From<FormatError> for Failure {
    fn from(error: FormatError) -> Self {
        match error {
            FormatError::HuggingFace(HuggingFaceError::UnknownModelType { model_type: name, .. })
            | FormatError::HuggingFace(HuggingFaceError::Unsupported { field: name, .. }) => {
                Self::Unsupported(name)
            }
            error => Self::Wrong(error.to_string()),
        }
    }
}

impl From<ModelError> for Failure {
    fn from(error: ModelError) -> Self {
        match error {
            ModelError::UnsupportedArchitecture { found: name, .. }
            | ModelError::UnsupportedFeature { key: name, .. } => Self::Unsupported(name),
            error => Self::Wrong(error.to_string()),
        }
    }
}

fn runtime(folder: &Path, context: usize) -> Result<Box<dyn Runtime>, Failure> {
    let gguf = Gguf::open(folder, ReadMode::Map)?;
    let options = LoadOptions { threads: 2, isa: None, context, max_rows: 32, kv_type: KvType::F32 };
    Ok(load(&gguf, BackendKind::Cpu, &options)?)
}

/// The logits after each token, the text read in chunks.
fn logits(runtime: &mut dyn Runtime, ids: &[u32], chunk: usize) -> Result<Vec<Vec<f32>>, ModelError> {
    let pages: Vec<u32> = (0..pages_of(ids.len()) as u32).collect();
    let vocab = runtime.config().vocab;
    let mut rows = Vec::new();
    for (index, tokens) in ids.chunks(chunk).enumerate() {
        let outputs: Vec<u32> = (0..tokens.len() as u32).collect();
        let positions: Vec<u32> = outputs.iter().map(|row| (index * chunk) as u32 + row).collect();
        let batch = Batch {
            tokens,
            positions: &positions,
            sequences: &vec![0; tokens.len()],
            types: &[],
            tables: &[&pages],
            adapters: &[],
            recurrent: &[],
            outputs: &outputs,
            states: &[],
        };
        rows.extend(runtime.forward(&batch)?.logits.chunks(vocab).map(<[f32]>::to_vec));
    }
    Ok(rows)
}

/// The greatest difference at each position, relative to its largest logit.
fn differences(found: &[Vec<f32>], expected: &[Vec<f32>]) -> Vec<f32> {
    let size = |found: &[f32], expected: &[f32]| {
        assert_eq!(found.len(), expected.len(), "logits of a position");
        let largest = expected.iter().fold(0.0_f32, |largest, logit| largest.max(logit.abs()));
        found.iter().zip(expected).fold(0.0_f32, |worst, (a, b)| worst.max((a - b).abs())) / largest
    };
    assert_eq!(found.len(), expected.len(), "positions");
    found.iter().zip(expected).map(|(found, expected)| size(found, expected)).collect()
}

fn greatest(differences: &[f32]) -> f32 {
    differences.iter().copied().fold(0.0, f32::max)
}

/// The greatest difference of a folder's logits.
fn compare(folder: &Path) -> Result<f32, Failure> {
    let expected = Expected::of(folder);
    let together = logits(runtime(folder, expected.context)?.as_mut(), &expected.ids, expected.ids.len())?;
    let singly = logits(runtime(folder, expected.context)?.as_mut(), &expected.ids, 1)?;
    if together != singly {
        return Err(Failure::Wrong("token by token is not what all at once is".to_owned()));
    }
    let worst = differences(&together, &expected.logits);
    if greatest(&worst) > BOUND {
        let worst: Vec<String> = worst.iter().map(|difference| format!("{difference:.0e}")).collect();
        return Err(Failure::Wrong(format!("off by {}", worst.join(" "))));
    }
    Ok(greatest(&worst))
}

fn folders() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/architectures");
    let mut folders: Vec<PathBuf> =
        std::fs::read_dir(root).unwrap().map(|entry| entry.unwrap().path()).collect();
    folders.sort();
    assert!(folders.len() >= 40, "{folders:?}");
    folders
}

#[test]
fn every_architecture_gives_the_logits_of_transformers() {
    let mut not_yet = Vec::new();
    let mut wrong = Vec::new();
    for folder in folders() {
        let name = folder.file_name().unwrap().to_str().unwrap().to_owned();
        match compare(&folder) {
            Ok(worst) => println!("{name}: {worst:.1e}"),
            Err(Failure::Unsupported(what)) => not_yet.push((name, what)),
            Err(Failure::Wrong(reason)) => wrong.push(format!("{name}: {reason}")),
        }
    }
    let declared: Vec<(String, String)> =
        NOT_YET.iter().map(|(name, what)| ((*name).to_owned(), (*what).to_owned())).collect();
    let unlike = |a: &[(String, String)], b: &[(String, String)]| -> Vec<(String, String)> {
        a.iter().filter(|entry| !b.contains(entry)).cloned().collect()
    };
    let (undeclared, computed) = (unlike(&not_yet, &declared), unlike(&declared, &not_yet));
    assert!(
        wrong.is_empty() && undeclared.is_empty() && computed.is_empty(),
        "wrong: {wrong:#?}\nnot supported, and not in NOT_YET: {undeclared:?}\nin NOT_YET without reason: {computed:?}"
    );
}
