//! Two thousand requests of mixed lengths under a budget: what is resident stays below the plan at all times, and comes near
//! to it.
//!
//! The engine runs in a process of its own, which this test starts: what the test needs to make the model is not measured.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::VecDeque;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use std::{env, thread};

use moli_engine::{
    Answer, CancelToken, Engine, EngineOptions, GenerateParams, MemoryBudget, MemoryPlan, PlanOptions,
    ReadMode, SamplerParams, Scheduling, resident_bytes,
};
use moli_format::Gguf;
use moli_testkit::TinyModel;
use rand_chacha::rand_core::{Rng, SeedableRng};

const MODEL: &str = "MOLI_TEST_SOAK_MODEL";
const REQUESTS: usize = 2000;
const SESSIONS: usize = 4;
const CONTEXT: usize = 1024;
const BATCH: usize = 8;

/// Answers the requests and prints the plan, the peak and how often the plan was exceeded.
fn run(path: &Path, budget: u64) {
    let options = EngineOptions {
        threads: Some(2),
        context: Some(CONTEXT),
        sessions: SESSIONS,
        prefill_chunk: 128,
        memory_budget: Some(MemoryBudget::Bytes(budget)),
        scheduling: Scheduling { max_batch: BATCH, ..Scheduling::default() },
        ..EngineOptions::default()
    };
    let engine = Engine::load(path, &options).unwrap();
    let plan = engine.plan().unwrap();
    assert!(!plan.changes.is_empty(), "the budget is no limit");
    let (total, done) = (plan.total_bytes, AtomicBool::new(false));
    let (mut peak, mut exceeded) = (0, 0);
    thread::scope(|scope| {
        let watched = scope.spawn(|| {
            let (mut peak, mut exceeded) = (0, 0);
            while !done.load(Ordering::Relaxed) {
                let now = resident_bytes().unwrap().bytes;
                peak = peak.max(now);
                exceeded += usize::from(now > total);
                thread::sleep(Duration::from_millis(5));
            }
            (peak, exceeded)
        });
        requests(&engine);
        done.store(true, Ordering::Relaxed);
        (peak, exceeded) = watched.join().unwrap();
    });
    let counters = engine.counters();
    assert_eq!(counters.completed + counters.cancelled, REQUESTS as u64);
    assert!(counters.pages_free + counters.pages_cached >= counters.pages, "{counters:?}");
    println!("soak {total} {} {exceeded}", peak.max(resident_bytes().unwrap().peak));
}

fn requests(engine: &Engine) {
    let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(1);
    let mut below = |n: u32| random.next_u32() % n;
    let mut open: VecDeque<Answer> = VecDeque::new();
    for request in 0..REQUESTS {
        // Now and then one that fills a context; some share their beginning.
        let length = if request % 100 == 0 { 900 } else { 1 + below(30) };
        let family = below(50);
        let prompt: Vec<u32> = (0..length).map(|i| (family * 31 + i * 7 + below(3) / 2) % 256).collect();
        let params = GenerateParams {
            max_tokens: Some(1 + below(8) as usize),
            sampling: SamplerParams { seed: Some(request as u64), ..SamplerParams::default() },
            ignore_eos: true,
            choices: 1,
            ..GenerateParams::default()
        };
        let answer = engine.submit(&prompt, &params, &CancelToken::new()).unwrap();
        if request % 37 == 0 {
            answer.cancel();
        }
        open.push_back(answer);
        if open.len() > 2 * BATCH {
            open.pop_front().unwrap().for_each(|chunk| drop(chunk.unwrap()));
        }
    }
    open.into_iter().flatten().for_each(|chunk| drop(chunk.unwrap()));
    while engine.counters().running > 0 {
        thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn two_thousand_requests_stay_below_the_plan() {
    if let Some(model) = env::var_os(MODEL) {
        let (budget, path) = model.to_str().unwrap().split_once(':').unwrap();
        return run(path.as_ref(), budget.parse().unwrap());
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    let model =
        TinyModel { layers: 12, hidden: 768, heads: 12, kv_heads: 6, ffn: 2560, ..TinyModel::new("llama") };
    model.write(&path).unwrap();
    let wish = PlanOptions {
        threads: Some(2),
        context: Some(CONTEXT),
        sessions: SESSIONS,
        prefill_chunk: 128,
        max_batch: BATCH,
        ..PlanOptions::default()
    };
    let wish = MemoryPlan::unlimited(&Gguf::open(&path, ReadMode::Map).unwrap(), &wish).unwrap();
    // A part of the prefix cache is too much.
    let budget = wish.total_bytes - wish.prefix_cache_bytes / 2;
    let child = Command::new(env::current_exe().unwrap())
        .args(["--exact", "two_thousand_requests_stay_below_the_plan", "--nocapture"])
        .env(MODEL, format!("{budget}:{}", path.display()))
        .output()
        .unwrap();
    let output = String::from_utf8_lossy(&child.stdout);
    assert!(child.status.success(), "{output}{}", String::from_utf8_lossy(&child.stderr));
    let line = output.lines().find_map(|line| line.split_once("soak ").map(|(_, numbers)| numbers)).unwrap();
    let numbers: Vec<u64> = line.split_whitespace().map(|number| number.parse().unwrap()).collect();
    let [total, peak, exceeded] = numbers[..] else { panic!("{line}") };
    println!("budget {budget}, plan {total}, peak {peak}");
    assert!(total <= budget);
    assert_eq!(exceeded, 0, "the plan of {total} bytes was exceeded: {peak}");
    assert!(peak <= total, "{peak} of {total}");
    assert!(peak as f64 >= 0.9 * total as f64, "the peak of {peak} is far below the plan of {total}");
}
