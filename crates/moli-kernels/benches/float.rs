//! The pool's overhead and the float operations at the sizes of small models.
//!
//! `cargo bench -p moli-kernels --bench float`

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use half::f16;
use moli_kernels::{AttentionArgs, DeltaShape, Isa, KV_BLOCK, Kernels, KvPages, PAGE_TOKENS, Pool, StateRun};
use std::hint::black_box;
use std::time::Duration;

/// Pages of a sequence in the attention benches: 1024 positions.
const PAGES: usize = 32;

fn pools() -> Vec<Pool> {
    vec![Pool::new(1), Pool::new(2)]
}

fn floats(n: usize) -> Vec<f32> {
    (0..n).map(|i| ((i * 37 % 1009) as f32 / 1009.0 - 0.5) * 4.0).collect()
}

fn pool(c: &mut Criterion) {
    let mut group = c.benchmark_group("pool");
    for pool in pools() {
        let threads = pool.threads();
        group.bench_function(BenchmarkId::new("empty", threads), |b| {
            b.iter(|| {
                pool.run(8, &|task, _| {
                    black_box(task);
                });
            });
        });
        // 8 tasks of about 5 µs, as in a step of decoding: twice as fast on two threads, but for the overhead.
        let x = floats(1 << 13);
        group.bench_function(BenchmarkId::new("40us", threads), |b| {
            b.iter(|| {
                pool.run(8, &|_, _| {
                    black_box(x.iter().fold(0.0, |a, v| a + v));
                });
            });
        });
    }
}

fn rows(c: &mut Criterion) {
    let mut group = c.benchmark_group("rows");
    for isa in Isa::available() {
        let Ok(kernels) = Kernels::new(isa) else { continue };
        for pool in pools() {
            for rows in [1, 512] {
                let n = 576;
                let (x, gain, mut out) = (floats(rows * n), floats(n), vec![0.0; rows * n]);
                let name = format!("{isa:?}/{} threads/{rows}x{n}", pool.threads());
                group.throughput(Throughput::Elements((rows * n) as u64));
                group.bench_function(BenchmarkId::new("rms_norm", &name), |b| {
                    b.iter(|| kernels.rms_norm(&pool, black_box(&x), &gain, 1e-5, &mut out));
                });
                group.bench_function(BenchmarkId::new("swiglu", &name), |b| {
                    b.iter(|| {
                        out.copy_from_slice(&x);
                        kernels.swiglu(&pool, &mut out, &x);
                    });
                });
            }
        }
    }
}

fn attention(c: &mut Criterion) {
    let mut group = c.benchmark_group("attention");
    for (model, heads, kv_heads, head_dim) in [("smollm2-135m", 9, 3, 64), ("gemma-3-270m", 4, 1, 256)] {
        let elements = PAGES * kv_heads * PAGE_TOKENS * head_dim;
        let halves: Vec<f16> = floats(elements).into_iter().map(f16::from_f32).collect();
        let quants: Vec<i8> = floats(elements).into_iter().map(|x| (x * 63.0) as i8).collect();
        let scales = vec![f16::from_f32(1.0 / 63.0); elements / KV_BLOCK];
        let kinds =
            [("f16", KvPages::F16(&halves)), ("q8_0", KvPages::Q8_0 { quants: &quants, scales: &scales })];
        let table: Vec<u32> = (0..PAGES as u32).rev().collect();
        for isa in Isa::available() {
            let Ok(kernels) = Kernels::new(isa) else { continue };
            for pool in pools() {
                for (what, positions) in [
                    ("prompt of 512", 0..512u32),
                    ("decode at 511", 511..512),
                    ("decode at 1023", 1023..1024),
                ] {
                    let positions: Vec<u32> = positions.collect();
                    let sequences = vec![0; positions.len()];
                    let q = floats(positions.len() * heads * head_dim);
                    let mut out = vec![0.0; q.len()];
                    let keys: usize = positions.iter().map(|p| *p as usize + 1).sum();
                    group.throughput(Throughput::Elements((keys * heads * head_dim * 2) as u64));
                    for (kind, pages) in kinds {
                        let args = AttentionArgs {
                            q: &q,
                            k_pages: pages,
                            v_pages: pages,
                            tables: &[&table],
                            sequences: &sequences,
                            positions: &positions,
                            lengths: None,
                            heads,
                            kv_heads,
                            head_dim,
                            scale: 1.0 / (head_dim as f32).sqrt(),
                            soft_cap: None,
                            window: None,
                            sinks: None,
                        };
                        let name = format!("{model}/{kind}/{isa:?}/{} threads", pool.threads());
                        group.bench_function(BenchmarkId::new(what, name), |b| {
                            b.iter(|| kernels.attention(&pool, black_box(&args), &mut out));
                        });
                    }
                }
            }
        }
    }
}

/// Attention of a token behind 4,095 others in all layers of a model: keys and values come from memory, as they do in a model.
fn token(c: &mut Criterion) {
    let mut group = c.benchmark_group("token");
    let Ok(kernels) = Kernels::new(Isa::detect()) else { return };
    let pages = 4096 / PAGE_TOKENS;
    let table: Vec<u32> = (0..pages as u32).collect();
    for (model, layers, heads, kv_heads, head_dim) in
        [("qwen2.5-0.5b", 24, 14, 2, 64), ("llama-3.2-1b", 16, 32, 8, 64)]
    {
        let layer = pages * kv_heads * PAGE_TOKENS * head_dim;
        let halves: Vec<f16> = floats(2 * layers * layer).into_iter().map(f16::from_f32).collect();
        let quants = vec![1i8; 2 * layers * layer];
        let scales = vec![f16::from_f32(1.0 / 63.0); quants.len() / KV_BLOCK];
        let q = floats(heads * head_dim);
        let mut out = vec![0.0; q.len()];
        for pool in pools() {
            for kind in ["f16", "q8_0"] {
                let part = |at: usize| match kind {
                    "f16" => KvPages::F16(&halves[at * layer..][..layer]),
                    _ => KvPages::Q8_0 {
                        quants: &quants[at * layer..][..layer],
                        scales: &scales[at * layer / KV_BLOCK..][..layer / KV_BLOCK],
                    },
                };
                group.throughput(Throughput::Elements((layers * 4096 * heads * head_dim * 2) as u64));
                group.bench_function(
                    BenchmarkId::new(kind, format!("{model}/{} threads", pool.threads())),
                    |b| {
                        b.iter(|| {
                            (0..layers).try_for_each(|layer| {
                                let args = AttentionArgs {
                                    q: &q,
                                    k_pages: part(2 * layer),
                                    v_pages: part(2 * layer + 1),
                                    tables: &[&table],
                                    sequences: &[0],
                                    positions: &[4095],
                                    lengths: None,
                                    heads,
                                    kv_heads,
                                    head_dim,
                                    scale: 0.125,
                                    soft_cap: None,
                                    window: None,
                                    sinks: None,
                                };
                                kernels.attention(&pool, black_box(&args), &mut out)
                            })
                        });
                    },
                );
            }
        }
    }
}

/// The layers of LFM2 1.2B and of Qwen3.5 0.8B that carry a state, in multiply-adds a second.
fn recurrent(c: &mut Criterion) {
    let mut group = c.benchmark_group("recurrent");
    let (channels, taps) = (2048, floats(3 * 2048));
    let shape = DeltaShape { key_heads: 16, value_heads: 16, key_dim: 128, value_dim: 128, tiled: true };
    let slope = vec![-0.1; shape.value_heads];
    for isa in Isa::available() {
        let Ok(kernels) = Kernels::new(isa) else { continue };
        for pool in pools() {
            for rows in [1, 512] {
                let name = format!("{isa:?}/{} threads/{rows} rows", pool.threads());
                let runs = [StateRun { first: 0, rows, from: Some(0), to: 1 }];
                let (x, mut out) = (floats(rows * channels), vec![0.0; rows * channels]);
                let mut states = vec![0.0; 2 * 2 * channels];
                group.throughput(Throughput::Elements((3 * rows * channels) as u64));
                group.bench_function(BenchmarkId::new("short_conv", &name), |b| {
                    b.iter(|| {
                        kernels.short_conv(
                            &pool,
                            black_box(&x),
                            (&taps, channels),
                            &mut states,
                            &runs,
                            &mut out,
                        )
                    });
                });
                let (mixed, gates) = (floats(rows * shape.mixed()), floats(rows * shape.value_heads));
                let (mut m, mut a, mut b2) = (mixed.clone(), gates.clone(), gates.clone());
                let mut states = vec![0.0; 2 * shape.state()];
                // Three passes over the state for each token.
                group.throughput(Throughput::Elements((3 * rows * shape.state()) as u64));
                group.bench_function(BenchmarkId::new("delta_rule", &name), |b| {
                    b.iter(|| {
                        m.copy_from_slice(&mixed);
                        a.copy_from_slice(&gates);
                        b2.copy_from_slice(&gates);
                        kernels.delta_rule(
                            &pool,
                            &shape,
                            black_box(&mut m),
                            (&mut a, &mut b2),
                            (&slope, &slope),
                            &mut states,
                            &runs,
                            &mut out,
                        )
                    });
                });
            }
        }
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(20).warm_up_time(Duration::from_millis(200)).measurement_time(Duration::from_millis(600));
    targets = pool, rows, attention, token, recurrent
}
criterion_main!(benches);
