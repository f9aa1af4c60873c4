//! What a LoRA adapter costs: one model alone, with an adapter loaded that nobody uses, and with sequences that go through it.
//!
//! All three take turns, a few tokens at a time, and each is compared with the model alone in the same round: what disturbs a
//! machine for longer than that hits all of them alike. All are loaded several times, and the median of the loadings counts. `cargo bench --bench adapters -- [SECONDS]`; each workload takes so long.
//! It fails where an adapter that nobody uses takes a hundredth of the speed or more.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a bench has nobody to return an error to")]

use std::time::{Duration, Instant};

use moli_bench::report::Test;
use moli_bench::run::Direct;
use moli_engine::CancelToken;
use moli_format::{Adapter, Bytes, Gguf, GgufWriter, ReadMode, TensorType};
use moli_model::{Adapted, BackendKind, KvType, LoadOptions, load_adapted};

const MODEL: &str = "smollm2-135m-instruct";
const RANK: u64 = 16;
const UNUSED: &str = "loaded, not used";
const NAMES: [&str; 3] = ["alone", UNUSED, "used"];
/// What is adapted: all matrices of a layer, the most that training libraries offer.
const MATRICES: [&str; 7] = ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"];
/// A few tokens behind some others, and a prompt.
const WORKLOADS: [Test; 2] =
    [Test::Decode { tokens: 8, depth: 64, batch: 1 }, Test::Prefill { tokens: 128, depth: 0 }];
const SECONDS: f64 = 90.0;
/// Where memory happens to lie makes one loading some per cent faster than the next: so many, in orders that differ.
const LOADINGS: usize = 9;
/// The time of a model beside an adapter that is not used, to its time alone: below this.
const MOST_UNUSED: f64 = 1.01;

/// An adapter of random numbers, as small as trained ones are.
fn adapter(base: &Gguf) -> Adapter {
    let mut writer = GgufWriter::new();
    writer.meta("general.type", "adapter").meta("adapter.type", "lora");
    writer.meta("general.architecture", base.metadata().architecture().expect("an architecture"));
    writer.meta("adapter.lora.alpha", RANK as f32);
    let mut state = 1_u32;
    let mut random = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        ((state >> 8) as f32 / (1 << 24) as f32 - 0.5) * 0.02
    };
    for tensor in base.tensors() {
        let stem = tensor.name.strip_suffix(".weight").and_then(|name| name.rsplit('.').next());
        if tensor.name.starts_with("blk.") && stem.is_some_and(|stem| MATRICES.contains(&stem)) {
            let (cols, rows) = (tensor.cols() as u64, tensor.rows() as u64);
            for (end, dims) in [("lora_a", [cols, RANK]), ("lora_b", [RANK, rows])] {
                let data: Vec<u8> = (0..dims[0] * dims[1]).flat_map(|_| random().to_le_bytes()).collect();
                writer.tensor(format!("{}.{end}", tensor.name), TensorType::F32, dims, data);
            }
        }
    }
    let mut file = Vec::new();
    writer.write(&mut file).expect("memory");
    Adapter::from_gguf(&Gguf::from_bytes(&Bytes::from_vec(file)).expect("a file"), base).expect("an adapter")
}

/// The time of each contender in each round, for so many seconds.
fn rounds(workload: &Test, seconds: f64, contenders: &mut [Direct; 3]) -> Vec<[f64; 3]> {
    let once = |contender: &mut Direct| {
        let seconds = contender.repetition(workload, &CancelToken::new()).expect("the model computes");
        seconds.expect("nobody calls it off")
    };
    for contender in &mut *contenders {
        once(contender);
    }
    let mut rounds: Vec<[f64; 3]> = Vec::new();
    let start = Instant::now();
    while rounds.is_empty() || start.elapsed() < Duration::from_secs_f64(seconds) {
        let mut times = [0.0; 3];
        // Each is the first as often as the others, and follows each of them.
        let turn = rounds.len();
        for place in 0..3 {
            let index =
                if turn.is_multiple_of(2) { (place + turn / 2) % 3 } else { (2 + turn / 2 - place) % 3 };
            times[index] = once(&mut contenders[index]);
        }
        rounds.push(times);
    }
    rounds
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn main() {
    let seconds = std::env::args().filter_map(|argument| argument.parse().ok()).next().unwrap_or(SECONDS);
    let path = moli_testkit::real_model(MODEL).expect("the bench needs its model");
    let gguf = Gguf::open(&path, ReadMode::Map).expect("the model opens");
    let adapters = [adapter(&gguf)];
    let threads = moli_kernels::default_threads();
    let load = |adapters: &[Adapter], used: &[Adapted]| {
        let options = LoadOptions { threads, isa: None, context: 512, max_rows: 512, kv_type: KvType::F16 };
        let runtime = load_adapted(&gguf, adapters, BackendKind::Cpu, &options).expect("the model loads");
        Direct::adapted(runtime, used.to_vec())
    };
    let all = [Adapted { adapter: 0, scale: 1.0 }];
    let mut missed = false;
    println!("{MODEL}, rank {RANK} for {} matrices of each layer, {threads} threads", MATRICES.len());
    for workload in WORKLOADS {
        let tokens = match workload {
            Test::Prefill { tokens, .. } | Test::Decode { tokens, .. } => tokens,
            Test::EndToEnd { .. } => continue,
        };
        // Of each loading the medians of the times and of their ratios to those of the model alone.
        let (mut times, mut ratios) = ([const { Vec::new() }; 3], [const { Vec::new() }; 3]);
        for loading in 0..LOADINGS {
            let mut contenders: [Option<Direct>; 3] = [const { None }; 3];
            for place in 0..3 {
                let index = (place + loading) % 3;
                contenders[index] = Some(match index {
                    0 => load(&[], &[]),
                    1 => load(&adapters, &[]),
                    _ => load(&adapters, &all),
                });
            }
            let rounds = rounds(&workload, seconds / LOADINGS as f64, &mut contenders.map(Option::unwrap));
            for index in 0..3 {
                times[index].push(median(rounds.iter().map(|round| round[index]).collect()));
                ratios[index].push(median(rounds.iter().map(|round| round[index] / round[0]).collect()));
            }
        }
        println!("{workload}, {LOADINGS} loadings");
        for (index, name) in NAMES.into_iter().enumerate() {
            let extreme = |of: fn(f64, f64) -> f64| ratios[index].iter().copied().reduce(of).unwrap_or(1.0);
            let (ratio, time) = (median(ratios[index].clone()), median(times[index].clone()));
            println!(
                "  {name:18} {:8.1} tokens/s, time {ratio:.4} of the model alone ({:.4} to {:.4})",
                tokens as f64 / time,
                extreme(f64::min),
                extreme(f64::max),
            );
            missed |= name == UNUSED && ratio >= MOST_UNUSED;
        }
    }
    if missed {
        println!("MISSED: {UNUSED}, below {MOST_UNUSED}");
        std::process::exit(1);
    }
}
