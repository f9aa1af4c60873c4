//! Prefill and decode of the default model, Moli beside candle's own implementation on the same file, in one run.
//!
//! Both compute the logits of the last token and nothing else: no sampling, no text. Throughput is tokens per second.

#![allow(clippy::expect_used, reason = "a bench has nobody to return an error to")]

use std::hint::black_box;
use std::path::Path;
use std::time::{Duration, Instant};

use candle_core::quantized::gguf_file;
use candle_core::{Device, Tensor};
use candle_transformers::models::quantized_llama;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use moli_format::{Gguf, ReadMode};
use moli_model::{BackendKind, Batch, LoadOptions, PageTable, Runtime};

const MODEL: &str = "smollm2-135m-instruct";
/// Tokens of a prompt in the prefill bench.
const PROMPT: usize = 128;
/// Tokens before the first one that the decode bench measures.
const DEPTH: usize = 32;

type Error = Box<dyn std::error::Error>;

/// A model that reads tokens at a position and keeps their keys and values.
trait Peer {
    /// Forgets everything, then reads `ids`.
    fn prefill(&mut self, ids: &[u32]);
    /// Reads one token at `position`.
    fn decode(&mut self, id: u32, position: usize);
}

struct Moli {
    runtime: Box<dyn Runtime>,
    table: PageTable,
}

impl Moli {
    fn load(path: &Path) -> Result<Self, Error> {
        let gguf = Gguf::open(path, ReadMode::Map)?;
        let options =
            LoadOptions { threads: moli_kernels::default_threads(), isa: None, context: 4096, max_rows: 512 };
        let runtime = moli_model::load(&gguf, BackendKind::Cpu, &options)?;
        Ok(Self { runtime, table: PageTable::new() })
    }

    fn forward(&mut self, ids: &[u32], first: usize) -> Result<(), Error> {
        self.runtime.reserve(&mut self.table, first + ids.len())?;
        let positions: Vec<u32> = (first..first + ids.len()).map(|position| position as u32).collect();
        let batch = Batch {
            tokens: ids,
            positions: &positions,
            sequences: &vec![0; ids.len()],
            tables: &[&self.table],
            outputs: &[ids.len() as u32 - 1],
        };
        black_box(self.runtime.forward(&batch)?);
        Ok(())
    }
}

impl Peer for Moli {
    fn prefill(&mut self, ids: &[u32]) {
        self.forward(ids, 0).expect("prefill");
    }

    fn decode(&mut self, id: u32, position: usize) {
        self.forward(&[id], position).expect("decode");
    }
}

struct Candle(quantized_llama::ModelWeights);

impl Candle {
    fn load(path: &Path) -> Result<Self, Error> {
        let mut file = std::fs::File::open(path)?;
        let content = gguf_file::Content::read(&mut file)?;
        Ok(Self(quantized_llama::ModelWeights::from_gguf(content, &mut file, &Device::Cpu)?))
    }

    fn forward(&mut self, ids: &[u32], first: usize) -> Result<(), Error> {
        let input = Tensor::new(ids, &Device::Cpu)?.unsqueeze(0)?;
        black_box(self.0.forward(&input, first)?);
        Ok(())
    }
}

impl Peer for Candle {
    fn prefill(&mut self, ids: &[u32]) {
        self.forward(ids, 0).expect("prefill");
    }

    fn decode(&mut self, id: u32, position: usize) {
        self.forward(&[id], position).expect("decode");
    }
}

fn generation(criterion: &mut Criterion) {
    let path = moli_testkit::real_model(MODEL).expect("the bench needs its model");
    let mut moli = Moli::load(&path).expect("moli loads the model");
    let mut candle = Candle::load(&path).expect("candle loads the model");
    let ids: Vec<u32> = (0..PROMPT as u32).map(|i| 1000 + i * 37 % 20000).collect();
    let mut peers: [(&str, &mut dyn Peer); 2] = [("moli", &mut moli), ("candle", &mut candle)];

    let mut group = criterion.benchmark_group("prefill 128");
    group
        .sample_size(10)
        .measurement_time(Duration::from_secs(8))
        .throughput(Throughput::Elements(PROMPT as u64));
    for (name, peer) in &mut peers {
        group.bench_function(*name, |bench| bench.iter(|| peer.prefill(&ids)));
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
                        peer.prefill(&ids[..DEPTH]);
                        position = DEPTH;
                    }
                    let start = Instant::now();
                    peer.decode(ids[step as usize % PROMPT], position);
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
