//! Many answers on a GPU: their bits don't depend on company, and what they take of its memory is within the plan. On the mock
//! driver where there is no GPU.

#![cfg(feature = "cuda")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;

use moli_engine::{
    BackendKind, CancelToken, Engine, EngineOptions, GenerateParams, KvType, SamplerParams, Scheduling,
};
use moli_testkit::{TinyModel, mock_cuda};

fn engine(path: &Path, kv_type: KvType) -> Engine {
    let options = EngineOptions {
        backend: BackendKind::Cuda(0),
        threads: Some(1),
        context: Some(512),
        sessions: 4,
        prefill_chunk: 64,
        kv_type: Some(kv_type),
        scheduling: Scheduling { max_batch: 8, ..Scheduling::default() },
        ..EngineOptions::default()
    };
    Engine::load(path, &options).unwrap()
}

fn free() -> u64 {
    moli_model::usable(0).unwrap().free_bytes
}

/// The tokens of answers that are asked for at once.
fn answers(engine: &Engine, prompts: &[Vec<u32>]) -> Vec<Vec<u32>> {
    let submit = |(i, prompt): (usize, &Vec<u32>)| {
        let params = GenerateParams {
            max_tokens: Some(10),
            ignore_eos: true,
            sampling: SamplerParams { seed: Some(prompt[0].into()), ..SamplerParams::default() },
            priority: i as i32 % 2,
            ..GenerateParams::default()
        };
        engine.submit(prompt, &params, &CancelToken::new()).unwrap()
    };
    let all: Vec<_> = prompts.iter().enumerate().map(submit).collect();
    let ids = |answer: moli_engine::Answer| answer.map(|chunk| chunk.unwrap().token.unwrap().id).collect();
    all.into_iter().map(ids).collect()
}

#[test]
fn answers_are_those_of_one_alone_and_memory_is_within_the_plan() {
    mock_cuda().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    for (architecture, kv_type) in
        [("llama", KvType::F16), ("gemma3", KvType::Q8_0), ("qwen3moe", KvType::F16)]
    {
        TinyModel::new(architecture).write(&path).unwrap();
        let before = free();
        let shared = engine(&path, kv_type);
        // Of lengths around pages, chunks and the few rows that have a kernel of their own.
        let prompts: Vec<Vec<u32>> = [1u32, 7, 32, 33, 64, 100]
            .iter()
            .map(|&len| (0..len).map(|i| (len + i * 89 + i * i * 7) % 256).collect())
            .collect();
        let together = answers(&shared, &prompts);
        let (taken, planned) = (before - free(), shared.plan().unwrap().total_bytes);
        assert!(taken <= planned, "{architecture}: {taken} bytes taken, {planned} planned");
        // The plan counts what may come, and that a device with a large cache unpacks up to 36 MB of weights at a time.
        assert!(planned < 2 * taken + (36 << 20), "{architecture}: {taken} bytes taken, {planned} planned");
        drop(shared);
        assert_eq!(free(), before, "{architecture}: memory that is not given back");
        for (prompt, expected) in prompts.iter().zip(&together) {
            let alone = answers(&engine(&path, kv_type), std::slice::from_ref(prompt));
            assert_eq!(&alone[0], expected, "{architecture} {} tokens", prompt.len());
        }
    }
}
