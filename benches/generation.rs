//! Prefill and decode of the default model, Moli beside candle's own implementation on the same file, in one run.
//!
//! Both compute the logits of the last token and nothing else: no sampling, no text. Throughput is tokens per second.

#![allow(clippy::expect_used, reason = "a bench has nobody to return an error to")]

mod common;

use std::time::Duration;

use common::peer::{Candle, Moli};
use common::workload::{Contender, InProcess, Workload};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

const MODEL: &str = "smollm2-135m-instruct";
/// What is timed: a prompt, and what is generated behind one.
const WORKLOADS: [Workload; 2] =
    [Workload::Prefill { tokens: 128 }, Workload::Decode { steps: 64, depth: 32 }];

fn generation(criterion: &mut Criterion) {
    let path = moli_testkit::real_model(MODEL).expect("the bench needs its model");
    let moli = Moli::load(&path, moli_kernels::default_threads(), 4096).expect("moli loads the model");
    let candle = Candle::load(&path).expect("candle loads the model");
    let mut contenders: [Box<dyn Contender>; 2] =
        [Box::new(InProcess::new("moli", moli)), Box::new(InProcess::new("candle", candle))];
    for workload in WORKLOADS {
        let mut group = criterion.benchmark_group(workload.to_string());
        group
            .sample_size(10)
            .measurement_time(Duration::from_secs(8))
            .throughput(Throughput::Elements(workload.tokens() as u64));
        for contender in &mut contenders {
            group.bench_function(contender.name().to_owned(), |bench| {
                bench.iter_custom(|count| {
                    let seconds = |_| contender.seconds(workload).expect("a measurement");
                    Duration::from_secs_f64((0..count).map(seconds).sum())
                });
            });
        }
        group.finish();
    }
}

criterion_group!(benches, generation);
criterion_main!(benches);
