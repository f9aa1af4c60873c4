//! What a model really takes stays below what was planned, and not far below.
//!
//! The model runs in a process of its own, which this test starts: what the test needs to make it is not measured.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use std::path::Path;
use std::process::Command;

use moli_engine::{
    CancelToken, Engine, EngineOptions, GenerateParams, MemoryPlan, PlanOptions, ReadMode, SamplerParams,
    Scheduling, resident_bytes,
};
use moli_format::Gguf;
use moli_testkit::TinyModel;

/// How the model is opened and its file, for the process that runs it.
const MODEL: &str = "MOLI_TEST_MEMORY_MODEL";
const CONTEXT: usize = 1500;
/// Tokens of the context that are an answer's.
const ANSWER: usize = 100;

fn read_mode(name: &str) -> ReadMode {
    if name == "read" { ReadMode::Read } else { ReadMode::Map }
}

/// Fills the context and prints the peak.
fn run(path: &Path, read_mode: ReadMode) {
    let options = EngineOptions {
        threads: Some(2),
        context: Some(CONTEXT),
        prefill_chunk: 256,
        read_mode,
        scheduling: Scheduling { max_batch: 1, ..Scheduling::default() },
        ..EngineOptions::default()
    };
    let engine = Engine::load(path, &options).unwrap();
    let prompt: Vec<u32> = (0..(CONTEXT - ANSWER) as u32).map(|i| i * 7 % 256).collect();
    let params =
        GenerateParams { ignore_eos: true, sampling: SamplerParams::greedy(), ..GenerateParams::default() };
    let mut session = engine.session();
    let answer = session.generate(&prompt, &params, &CancelToken::new()).unwrap();
    let chunks: Vec<_> = answer.collect::<Result<_, _>>().unwrap();
    assert!(chunks.len() >= ANSWER, "{} tokens", chunks.len());
    println!("peak {}", resident_bytes().unwrap().peak);
}

#[test]
fn a_running_model_stays_below_its_plan() {
    if let Some(model) = std::env::var_os(MODEL) {
        let (mode, path) = model.to_str().unwrap().split_once(':').unwrap();
        return run(path.as_ref(), read_mode(mode));
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    let model =
        TinyModel { layers: 16, hidden: 768, heads: 12, kv_heads: 6, ffn: 2560, ..TinyModel::new("llama") };
    model.write(&path).unwrap();
    let gguf = Gguf::open(&path, ReadMode::Map).unwrap();
    for mode in ["map", "read"] {
        let options = PlanOptions {
            threads: Some(2),
            context: Some(CONTEXT),
            prefill_chunk: 256,
            prefix_cache_bytes: Some(0),
            read_mode: read_mode(mode),
            max_batch: 1,
            ..PlanOptions::default()
        };
        let plan = MemoryPlan::unlimited(&gguf, &options).unwrap();
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "a_running_model_stays_below_its_plan", "--nocapture"])
            .env(MODEL, format!("{mode}:{}", path.display()))
            .output()
            .unwrap();
        let output = String::from_utf8_lossy(&child.stdout);
        assert!(child.status.success(), "{output}{}", String::from_utf8_lossy(&child.stderr));
        let peak =
            output.split_once("peak ").and_then(|(_, peak)| peak.lines().next()).expect("it prints the peak");
        let peak: u64 = peak.parse().unwrap();
        println!("{mode}: {peak} of {}", plan.total_bytes);
        assert!(peak <= plan.total_bytes, "{mode}: {peak} bytes at the peak\n{plan}");
        assert!(plan.total_bytes <= peak + peak / 10, "{mode}: {peak} bytes at the peak\n{plan}");
    }
}
