//! Matrix products: gigabytes of weights per second for one token, billions of multiply-adds per second for many.
//!
//! `cargo bench -p moli-kernels --bench matmul`. The shapes are those of small models; a product of one token reads another
//! matrix every time, so that the weights come from memory as they do in a model, and a plain read of as many bytes is
//! measured beside it. Only numbers of one run can be compared.

use std::hint::black_box;
use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use moli_format::{Bytes, TensorType};
use moli_kernels::{Activations, Isa, Kernels, Matrix, Pool, SUPPORTED, Scratch, default_threads};

/// Rows and columns.
const SHAPES: [(usize, usize); 4] = [(1536, 576), (576, 1536), (2048, 640), (4864, 896)];
/// Bytes of the matrices that products of one token go around: more than the last cache.
const WORKING_SET: usize = 160 << 20;

/// A matrix with small scales and bytes of no meaning.
fn matrix(ttype: TensorType, rows: usize, cols: usize, seed: usize) -> Option<Matrix> {
    let mut state = seed as u64 + 1;
    let bytes = (0..rows * ttype.row_bytes(cols)?).map(|_| {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        // Without the two highest bits of an exponent no half-precision number is large.
        (state >> 56) as u8 & 0x3f
    });
    Matrix::new(ttype, rows, cols, Bytes::from_vec(bytes.collect())).ok()
}

fn threads() -> usize {
    std::env::var("MOLI_THREADS").ok().and_then(|n| n.parse().ok()).unwrap_or_else(default_threads)
}

struct Bench {
    kernels: Kernels,
    pool: Pool,
    scratch: Scratch,
}

impl Bench {
    fn new() -> Option<Self> {
        let pool = Pool::new(threads());
        let scratch = Scratch::new(pool.threads());
        Some(Self { kernels: Kernels::new(Isa::detect()).ok()?, pool, scratch })
    }

    fn activations(&self, tokens: usize, w: &Matrix) -> Option<Activations> {
        let x: Vec<f32> = (0..tokens * w.cols()).map(|k| (k % 37) as f32 / 37.0 - 0.5).collect();
        let mut act = Activations::new(tokens, w.cols()).ok()?;
        act.set(&self.kernels, &self.pool, &x, (tokens, w.cols()), [w.ttype()]).ok()?;
        Some(act)
    }
}

/// One token (and a few), weights from memory.
fn vectors(c: &mut Criterion) {
    let Some(bench) = Bench::new() else { return };
    let mut group = c.benchmark_group(format!("read/{} threads", bench.pool.threads()));
    let data = vec![1u8; WORKING_SET];
    let chunk = WORKING_SET / 64;
    group.throughput(Throughput::Bytes(WORKING_SET as u64));
    group.bench_function("plain", |b| {
        b.iter(|| {
            bench.pool.run(64, &|task, _| {
                let words = data[task * chunk..(task + 1) * chunk].as_chunks::<64>().0;
                black_box(words.iter().fold([0u64; 8], |mut sums, word| {
                    for (sum, word) in sums.iter_mut().zip(word.as_chunks::<8>().0) {
                        *sum ^= u64::from_le_bytes(*word);
                    }
                    sums
                }));
            });
        });
    });
    group.finish();

    for tokens in [1, 2, 4, 8] {
        let mut group = c.benchmark_group(format!(
            "vector/{tokens} tokens, {}, {} threads",
            bench.kernels.isa(),
            bench.pool.threads()
        ));
        for ttype in SUPPORTED {
            for (rows, cols) in SHAPES {
                if tokens > 1 && (rows, cols) != SHAPES[3] && (rows, cols) != SHAPES[2] {
                    continue;
                }
                let cols = if ttype.block_len() == 256 { cols.next_multiple_of(256) } else { cols };
                let Some(first) = matrix(ttype, rows, cols, 0) else { continue };
                let count = WORKING_SET.div_ceil(first.bytes());
                let all: Vec<_> = (0..count).filter_map(|seed| matrix(ttype, rows, cols, seed)).collect();
                let Some(act) = bench.activations(tokens, &first) else { continue };
                let mut out = vec![0.0; tokens * rows];
                let mut next = 0;
                group.throughput(Throughput::Bytes(first.bytes() as u64));
                group.bench_function(format!("{ttype} {rows}x{cols}"), |b| {
                    b.iter(|| {
                        next = (next + 1) % count;
                        bench.kernels.matmul(
                            &bench.pool,
                            &all[next],
                            &act,
                            &bench.scratch,
                            black_box(&mut out),
                        )
                    });
                });
            }
        }
        group.finish();
    }
}

/// Many tokens.
fn matrices(c: &mut Criterion) {
    let Some(bench) = Bench::new() else { return };
    for tokens in [32, 512] {
        let mut group = c.benchmark_group(format!(
            "matrix/{tokens} tokens, {}, {} threads",
            bench.kernels.isa(),
            bench.pool.threads()
        ));
        for ttype in SUPPORTED {
            for (rows, cols) in SHAPES {
                let cols = if ttype.block_len() == 256 { cols.next_multiple_of(256) } else { cols };
                let Some(w) = matrix(ttype, rows, cols, 0) else { continue };
                let Some(act) = bench.activations(tokens, &w) else { continue };
                let mut out = vec![0.0; tokens * rows];
                // Elements: multiply-adds.
                group.throughput(Throughput::Elements((tokens * rows * cols) as u64));
                group.bench_function(format!("{ttype} {rows}x{cols}"), |b| {
                    b.iter(|| {
                        bench.kernels.matmul(&bench.pool, &w, &act, &bench.scratch, black_box(&mut out))
                    });
                });
            }
        }
        group.finish();
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(100))
        .measurement_time(Duration::from_millis(400));
    targets = vectors, matrices
}
criterion_main!(benches);
