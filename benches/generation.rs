//! Prefill and decode of the default model, Moli beside candle's own implementation on the same file, in one run.
//!
//! Both compute the logits of the last token and nothing else: no sampling, no text. Throughput is tokens per second.

#![allow(clippy::expect_used, reason = "a bench has nobody to return an error to")]

mod common;

use std::time::{Duration, Instant};

use common::peer::{Candle, Moli, Peer};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

const MODEL: &str = "smollm2-135m-instruct";
/// Tokens of a prompt in the prefill bench.
const PROMPT: usize = 128;
/// Tokens before the first one that the decode bench measures.
const DEPTH: usize = 32;

fn generation(criterion: &mut Criterion) {
    let path = moli_testkit::real_model(MODEL).expect("the bench needs its model");
    let mut moli = Moli::load(&path, moli_kernels::default_threads(), 4096).expect("moli loads the model");
    let mut candle = Candle::load(&path).expect("candle loads the model");
    let ids: Vec<u32> = (0..PROMPT as u32).map(|i| 1000 + i * 37 % 20000).collect();
    let mut peers: [(&str, &mut dyn Peer); 2] = [("moli", &mut moli), ("candle", &mut candle)];

    let mut group = criterion.benchmark_group("prefill 128");
    group
        .sample_size(10)
        .measurement_time(Duration::from_secs(8))
        .throughput(Throughput::Elements(PROMPT as u64));
    for (name, peer) in &mut peers {
        group.bench_function(*name, |bench| bench.iter(|| peer.prefill(&ids).expect("prefill")));
    }
    group.finish();

    let mut group = criterion.benchmark_group("decode");
    group.sample_size(10).measurement_time(Duration::from_secs(8)).throughput(Throughput::Elements(1));
    for (name, peer) in &mut peers {
        group.bench_function(*name, |bench| {
            bench.iter_custom(|steps| {
                let mut spent = Duration::ZERO;
                let mut position = usize::MAX;
                for step in 0..steps {
                    if position > DEPTH + 64 {
                        peer.prefill(&ids[..DEPTH]).expect("prefill");
                        position = DEPTH;
                    }
                    let start = Instant::now();
                    peer.step(&[ids[step as usize % PROMPT]], position).expect("decode");
                    spent += start.elapsed();
                    position += 1;
                }
                spent
            });
        });
    }
    group.finish();
}

criterion_group!(benches, generation);
criterion_main!(benches);
