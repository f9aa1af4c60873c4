//! What weights are multiplied with, against transformers.
//!
//! `tests/fixtures/squares.json` is made by `tests/fixtures/squares.py`.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::path::PathBuf;

use moli_engine::{EngineError, KvType, observe};
use moli_format::{Gguf, ReadMode};
use moli_model::{LoadOptions, Squares};
use serde_json::Value;

fn fixtures() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures")
}

fn folder(name: &str) -> Gguf {
    Gguf::open(&fixtures().join("architectures").join(name), ReadMode::Map).unwrap()
}

fn options(context: usize, max_rows: usize) -> LoadOptions {
    LoadOptions { threads: 2, isa: None, context, max_rows, kv_type: KvType::F32 }
}

fn squares(gguf: &Gguf, ids: &[u32], options: &LoadOptions) -> BTreeMap<String, Squares> {
    let (squares, pieces) = observe(gguf, ids, None, options, |_, _| true).unwrap();
    assert_eq!(pieces, ids.len() / options.context);
    squares.get().into_iter().map(|squares| (squares.name.clone(), squares)).collect()
}

fn ids(model: &Value) -> Vec<u32> {
    serde_json::from_value(model["ids"].clone()).unwrap()
}

#[test]
fn the_sums_are_those_of_transformers() {
    let text = std::fs::read_to_string(fixtures().join("squares.json")).unwrap();
    let models: BTreeMap<String, Value> = serde_json::from_str(&text).unwrap();
    assert_eq!(models.len(), 3);
    for (name, expected) in models {
        let ids = ids(&expected);
        let gguf = folder(&name);
        let sums: BTreeMap<String, Vec<f64>> = serde_json::from_value(expected["sums"].clone()).unwrap();
        // In one batch, and in pieces of one text.
        for rows in [ids.len(), 5] {
            let found = squares(&gguf, &ids, &options(ids.len(), rows));
            assert!(found.keys().eq(sums.keys()), "{name}: {:?}", found.keys());
            for (tensor, expected) in &sums {
                let found = &found[tensor];
                assert_eq!(found.rows, [ids.len() as u64], "{name} {tensor}");
                assert_eq!(found.sums.len(), expected.len());
                let most = expected.iter().copied().fold(0.0, f64::max);
                for (found, expected) in found.sums.iter().zip(expected) {
                    assert!((found - expected).abs() < 1e-5 * most, "{name} {tensor}: {found} {expected}");
                }
            }
        }
    }
}

#[test]
fn every_expert_has_sums_of_its_own() {
    let gguf = folder("qwen3_moe");
    let ids: Vec<u32> = (0..48).map(|i| i * 5 % 61).collect();
    let used = gguf.metadata().u64_opt("qwen3moe.expert_used_count").unwrap().unwrap();
    let found = squares(&gguf, &ids, &options(16, 16));
    let mut layers = 0;
    for (name, experts) in found.iter().filter(|(name, _)| name.ends_with("ffn_gate_exps.weight")) {
        let router = &found[&name.replace("ffn_gate_exps", "ffn_gate_inp")];
        assert_eq!(router.rows, [48]);
        assert!(experts.rows.len() > 1);
        assert_eq!(experts.rows.iter().sum::<u64>(), 48 * used, "{name}");
        // Each input of the router goes to so many experts.
        let cols = router.sums.len();
        for (col, sum) in router.sums.iter().enumerate() {
            let all: f64 = experts.sums.iter().skip(col).step_by(cols).sum();
            assert!((all / (sum * used as f64) - 1.0).abs() < 1e-9, "{name} {col}");
        }
        // An expert that no token chose has nothing.
        for (rows, sums) in experts.rows.iter().zip(experts.sums.chunks_exact(cols)) {
            assert_eq!(*rows == 0, sums.iter().all(|&sum| sum == 0.0), "{name}");
        }
        layers += 1;
    }
    assert!(layers > 0);
}

#[test]
fn less_than_a_piece_is_refused_and_the_end_can_be_early() {
    let gguf = folder("llama");
    let error = observe(&gguf, &[1; 15], None, &options(16, 16), |_, _| true).unwrap_err();
    assert!(matches!(error, EngineError::TextTooShort { tokens: 15, needed: 16 }), "{error}");
    let (squares, pieces) = observe(&gguf, &[1; 48], None, &options(16, 16), |done, _| done < 2).unwrap();
    assert_eq!(pieces, 2);
    assert!(squares.get().iter().all(|squares| squares.rows == [32]));
}
