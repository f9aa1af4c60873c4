//! Every form against the scalar one bit for bit, and the scalar one against plain f64.

use super::*;
use crate::Isa;

/// A small generator (xorshift) so that the data is the same everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// About normal with the standard deviation 1.
    fn float(&mut self) -> f32 {
        (0..4).map(|_| (self.next() >> 40) as f32 / (1 << 23) as f32 - 1.0).sum::<f32>() * 0.87
    }

    fn floats(&mut self, n: usize, scale: f32) -> Vec<f32> {
        (0..n).map(|_| self.float() * scale).collect()
    }

    fn halves(&mut self, n: usize) -> Vec<f16> {
        (0..n).map(|_| f16::from_f32(self.float())).collect()
    }
}

fn kernels() -> (Kernels, Vec<Kernels>) {
    let make = |isa| Kernels::new(isa).expect("an available instruction set");
    (make(Isa::Scalar), Isa::available().into_iter().filter(|isa| *isa != Isa::Scalar).map(make).collect())
}

/// Equal bits, but that any NaN equals any other.
#[track_caller]
fn assert_same(a: &[f32], b: &[f32], what: &str) {
    assert_eq!(a.len(), b.len());
    for (i, (a, b)) in a.iter().zip(b).enumerate() {
        assert!(
            a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan()),
            "{what}: element {i}: {a:?} and {b:?}"
        );
    }
}

fn lengths() -> impl Iterator<Item = usize> {
    (1..=40).chain([63, 64, 65, 127, 128, 129, 576, 1000])
}

#[test]
fn row_operations_agree_between_instruction_sets() {
    let (plain, others) = kernels();
    let pool = Pool::new(1);
    let mut random = Random(7);
    for n in lengths() {
        let mut x = random.floats(3 * n, 4.0);
        let y = random.floats(3 * n, 1.0);
        let gain = random.floats(n, 1.0);
        let run = |k: &Kernels, x: &[f32]| {
            let copy = |f: &dyn Fn(&mut [f32])| {
                let mut x = x.to_vec();
                f(&mut x);
                x
            };
            let mut norm = vec![0.0; 3 * n];
            k.rms_norm(&pool, x, &gain, 1e-5, &mut norm);
            let mut halves = vec![f16::ZERO; 3 * n];
            (k.float.to_f16)(x, &mut halves);
            vec![
                norm,
                copy(&|x| k.rms_norm_in_place(&pool, x, &gain, 1e-5)),
                copy(&|x| k.add(&pool, x, &y)),
                copy(&|x| k.scale(&pool, x, 0.3)),
                copy(&|x| k.soft_cap(&pool, x, 5.0)),
                copy(&|x| k.swiglu(&pool, x, &y)),
                copy(&|x| k.geglu(&pool, x, &y)),
                halves.iter().map(|h| h.to_f32()).collect(),
                vec![k.log_sum_exp(x).max, k.log_sum_exp(x).log_sum as f32],
            ]
        };
        for special in [None, Some(f32::NAN), Some(f32::INFINITY), Some(-200.0), Some(1e30), Some(-0.0)] {
            if let Some(value) = special {
                x[n / 2] = value;
            }
            let want = run(&plain, &x);
            assert_same(&want[0], &want[1], "norm in place");
            for k in &others {
                for (op, (want, got)) in want.iter().zip(run(k, &x)).enumerate() {
                    assert_same(want, &got, &format!("operation {op}, n {n}, {special:?}, {:?}", k.isa()));
                }
            }
        }
    }
}

#[test]
fn rms_norm_is_near_f64() {
    let (plain, _) = kernels();
    let mut random = Random(3);
    for n in lengths() {
        let (x, gain) = (random.floats(n, 3.0), random.floats(n, 1.0));
        let mut out = vec![0.0; n];
        plain.rms_norm(&Pool::new(1), &x, &gain, 1e-6, &mut out);
        let mean = x.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>() / n as f64;
        for i in 0..n {
            let want = f64::from(x[i]) / (mean + 1e-6).sqrt() * f64::from(gain[i]);
            // n / 16 roundings in a lane, 4 in the tree, 5 after it.
            let bound = (n as f64 / 16.0 + 10.0) * f64::from(f32::EPSILON) * want.abs();
            assert!((f64::from(out[i]) - want).abs() <= bound, "n {n}, element {i}");
        }
    }
}

#[test]
fn log_sum_exp_is_near_f64_and_shows_nan() {
    let (plain, _) = kernels();
    let mut random = Random(5);
    for n in lengths() {
        let x = random.floats(n, 6.0);
        let got = plain.log_sum_exp(&x);
        assert_eq!(got.max, x.iter().copied().fold(f32::MIN, f32::max));
        let want = x.iter().map(|v| f64::from(*v - got.max).exp()).sum::<f64>().ln();
        assert!((got.log_sum - want).abs() <= 2e-7, "n {n}");
    }
    assert!(plain.log_sum_exp(&[1.0, f32::NAN, 2.0]).log_sum.is_nan());
    assert!(plain.log_sum_exp(&[1.0, f32::INFINITY]).log_sum.is_nan());
    assert_eq!(plain.log_sum_exp(&[1.0, f32::NEG_INFINITY]).log_sum, 0.0);
    assert_eq!(plain.log_sum_exp(&[]).max, f32::NEG_INFINITY);
}

#[test]
fn rope_turns_pairs_and_agrees() {
    let (plain, others) = kernels();
    let mut random = Random(11);
    for (head_dim, rot_dims) in [(64, 64), (80, 32), (96, 96), (128, 64), (10, 6), (256, 256), (7, 5)] {
        let (heads, positions) = (3, [0u32, 1, 31, 32, 4095]);
        let factors: Vec<f32> = (0..rot_dims / 2).map(|i| 1.0 + i as f32).collect();
        for factors in [None, Some(&factors[..])] {
            let mut angles = RopeAngles::new(rot_dims, 10_000.0, factors);
            angles.set(&positions);
            assert_eq!(angles.rows(), positions.len());
            let x = random.floats(positions.len() * heads * head_dim, 1.0);
            for style in [RopeStyle::Interleaved, RopeStyle::Halves] {
                let mut got = x.clone();
                plain.rope(&Pool::new(1), &mut got, heads, head_dim, &angles, style);
                for (i, (old, new)) in x.iter().zip(&got).enumerate() {
                    let (row, d, half) = (i / head_dim / heads, i % head_dim, angles.half());
                    if d >= 2 * half {
                        assert_eq!(old, new);
                        continue;
                    }
                    let (pair, other, first) = match style {
                        RopeStyle::Interleaved if d % 2 == 0 => (d / 2, i + 1, true),
                        RopeStyle::Interleaved => (d / 2, i - 1, false),
                        RopeStyle::Halves if d < half => (d, i + half, true),
                        RopeStyle::Halves => (d - half, i - half, false),
                    };
                    let factor = factors.map_or(1.0, |f| f64::from(f[pair]));
                    let frequency = 10_000f64.powf(-2.0 * pair as f64 / (2 * half) as f64) / factor;
                    let angle = f64::from(positions[row]) * frequency;
                    let (a, b) = (f64::from(*old), f64::from(x[other]));
                    let want = if first {
                        a * angle.cos() - b * angle.sin()
                    } else {
                        b * angle.sin() + a * angle.cos()
                    };
                    // The frequency's rounding (2^-25) grows with the position.
                    assert!(
                        (f64::from(*new) - want).abs() < 1e-6 + 4095.0 * 1.3e-7,
                        "{style:?} {head_dim} {i}"
                    );
                }
                for k in &others {
                    let mut same = x.clone();
                    k.rope(&Pool::new(1), &mut same, heads, head_dim, &angles, style);
                    assert_same(&got, &same, "rope");
                }
            }
        }
    }
}

/// A little model of a cache: sequences with shuffled pages.
struct Cache {
    k: Vec<f16>,
    v: Vec<f16>,
    tables: Vec<Vec<u32>>,
}

/// Three spans and a bit.
const SEQUENCE_PAGES: usize = 34;

impl Cache {
    fn new(random: &mut Random, sequences: usize, kv_heads: usize, head_dim: usize) -> Cache {
        let pages = sequences * SEQUENCE_PAGES + 1;
        let n = pages * kv_heads * PAGE_TOKENS * head_dim;
        let mut order: Vec<u32> = (0..pages as u32).collect();
        for i in (1..pages).rev() {
            order.swap(i, random.next() as usize % (i + 1));
        }
        let tables = order.chunks_exact(SEQUENCE_PAGES).take(sequences).map(<[u32]>::to_vec).collect();
        Cache { k: random.halves(n), v: random.halves(n), tables }
    }
}

#[derive(Clone, Copy, Debug)]
struct Shape {
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    soft_cap: Option<f32>,
    window: Option<usize>,
}

/// Rows `(sequence, position)` with queries `q`.
fn attend(k: &Kernels, pool: &Pool, cache: &Cache, shape: Shape, rows: &[(u32, u32)], q: &[f32]) -> Vec<f32> {
    let tables: Vec<&[u32]> = cache.tables.iter().map(Vec::as_slice).collect();
    let (sequences, positions): (Vec<u32>, Vec<u32>) = rows.iter().copied().unzip();
    let args = AttentionArgs {
        q,
        k_pages: &cache.k,
        v_pages: &cache.v,
        tables: &tables,
        sequences: &sequences,
        positions: &positions,
        heads: shape.heads,
        kv_heads: shape.kv_heads,
        head_dim: shape.head_dim,
        scale: 1.0 / (shape.head_dim as f32).sqrt(),
        soft_cap: shape.soft_cap,
        window: shape.window,
    };
    let mut out = vec![f32::MAX; q.len()];
    k.attention(pool, &args, &mut out).expect("the arguments fit");
    out
}

/// One row by the definition, in f64.
fn reference(cache: &Cache, shape: Shape, (sequence, position): (u32, u32), q: &[f32]) -> Vec<f64> {
    let Shape { heads, kv_heads, head_dim: dim, soft_cap, window } = shape;
    let end = position as usize + 1;
    let start = window.map_or(0, |w| end.saturating_sub(w));
    let mut out = Vec::new();
    for head in 0..heads {
        let page = |key: usize| {
            let page = cache.tables[sequence as usize][key / PAGE_TOKENS] as usize;
            (page * kv_heads + head / (heads / kv_heads)) * PAGE_TOKENS * dim
        };
        let q = &q[head * dim..(head + 1) * dim];
        let score = |key: usize| {
            let k = cache.k[page(key) + key % PAGE_TOKENS..].iter().step_by(PAGE_TOKENS);
            let dot: f64 = q.iter().zip(k).map(|(q, k)| f64::from(*q) * k.to_f64()).sum();
            let score = dot / (dim as f64).sqrt();
            soft_cap.map_or(score, |c| f64::from(c) * (score / f64::from(c)).tanh())
        };
        let scores: Vec<f64> = (start..end).map(score).collect();
        let max = scores.iter().copied().fold(f64::MIN, f64::max);
        let total: f64 = scores.iter().map(|s| (s - max).exp()).sum();
        for d in 0..dim {
            let sum: f64 = (start..end)
                .zip(&scores)
                .map(|(key, s)| (s - max).exp() * cache.v[page(key) + key % PAGE_TOKENS * dim + d].to_f64())
                .sum();
            out.push(sum / total);
        }
    }
    out
}

fn shapes() -> Vec<Shape> {
    let base = Shape { heads: 9, kv_heads: 3, head_dim: 64, soft_cap: None, window: None };
    let mut shapes = vec![base];
    shapes.extend([80, 96, 128, 256, 40, 5].map(|head_dim| Shape {
        heads: 4,
        kv_heads: 2,
        head_dim,
        ..base
    }));
    shapes.extend([1, 31, 32, 33, 1000].map(|w| Shape { heads: 2, kv_heads: 1, window: Some(w), ..base }));
    shapes.push(Shape { heads: 4, kv_heads: 1, head_dim: 256, soft_cap: Some(2.0), window: Some(40) });
    shapes.push(Shape { heads: 2, kv_heads: 2, soft_cap: Some(30.0), ..base });
    shapes
}

/// Positions around the edges of pages and spans, of two sequences.
fn edge_rows() -> Vec<(u32, u32)> {
    let positions = [0, 1, 2, 30, 31, 32, 33, 63, 64, 95, 96, 127, 510, 511, 512, 513, 1023, 1024, 1087];
    [1, 0].into_iter().flat_map(|s| positions.map(|p| (s, p))).collect()
}

#[test]
fn attention_is_near_f64_and_agrees_between_instruction_sets() {
    let (plain, others) = kernels();
    let mut random = Random(17);
    for shape in shapes() {
        let cache = Cache::new(&mut random, 2, shape.kv_heads, shape.head_dim);
        let rows = edge_rows();
        let row_len = shape.heads * shape.head_dim;
        let q = random.floats(rows.len() * row_len, 2.0);
        let got = attend(&plain, &Pool::new(1), &cache, shape, &rows, &q);
        for (r, row) in rows.iter().enumerate() {
            let columns = r * row_len..(r + 1) * row_len;
            let want = reference(&cache, shape, *row, &q[columns.clone()]);
            for (got, want) in got[columns].iter().zip(want) {
                // Scores of a size up to 10 in f32, values below 4: a few roundings of 6e-8 each.
                assert!((f64::from(*got) - want).abs() < 1e-5, "{shape:?} {row:?}: {got} {want}");
            }
        }
        for k in &others {
            assert_same(&got, &attend(k, &Pool::new(1), &cache, shape, &rows, &q), &format!("{shape:?}"));
        }
    }
}

#[test]
fn attention_has_the_same_bits_in_any_batch_and_on_any_threads() {
    let (plain, others) = kernels();
    let k = others.first().unwrap_or(&plain);
    let pools = [1, 2, 3, 4].map(Pool::new);
    let mut random = Random(19);
    for shape in shapes() {
        let cache = Cache::new(&mut random, 2, shape.kv_heads, shape.head_dim);
        let positions = || (0..40).chain(504..520).chain(1020..1030);
        let rows: Vec<(u32, u32)> = (0..2).flat_map(|s| positions().map(move |p| (s, p))).collect();
        let row_len = shape.heads * shape.head_dim;
        let q = random.floats(rows.len() * row_len, 2.0);
        let want = attend(k, &pools[0], &cache, shape, &rows, &q);
        for (threads, chunk) in [(2, 132), (3, 132), (1, 1), (2, 1), (4, 2), (2, 7), (3, 32), (2, 100)] {
            let mut got = Vec::new();
            for (rows, q) in rows.chunks(chunk).zip(q.chunks(chunk * row_len)) {
                got.extend(attend(k, &pools[threads - 1], &cache, shape, rows, q));
            }
            assert_same(&want, &got, &format!("{shape:?}, {threads} threads, {chunk} rows at once"));
        }
    }
}

#[test]
fn attention_shows_nan_where_it_is_seen_and_only_there() {
    let (plain, others) = kernels();
    let shape = Shape { heads: 2, kv_heads: 1, head_dim: 64, soft_cap: None, window: None };
    for k in others.iter().chain([&plain]) {
        for soft_cap in [None, Some(5.0)] {
            let shape = Shape { soft_cap, ..shape };
            let mut random = Random(23);
            let mut cache = Cache::new(&mut random, 1, 1, 64);
            let rows: Vec<(u32, u32)> = (0..70).map(|p| (0, p)).collect();
            let mut q = random.floats(70 * 128, 1.0);
            // A key at position 40 and a value at position 50, the page's remainder as a freed page may leave it.
            let page = |position: usize| cache.tables[0][position / 32] as usize * 32 * 64;
            let (key, value) = (page(40) + 3 * 32 + 40 % 32, page(50) + 50 % 32 * 64 + 5);
            cache.k[key] = f16::NAN;
            cache.v[value] = f16::INFINITY;
            q[20 * 128 + 7] = f32::NAN;
            let out = attend(k, &Pool::new(2), &cache, shape, &rows, &q);
            for (p, row) in out.chunks_exact(128).enumerate() {
                for head in 0..2 {
                    let nan = row[head * 64..][..64].iter().all(|v| v.is_nan());
                    let finite = row[head * 64..][..64].iter().all(|v| v.is_finite());
                    assert!(
                        if p >= 40 || (p == 20 && head == 0) { nan } else { finite },
                        "position {p}, head {head}"
                    );
                }
            }
        }
    }
}

#[test]
fn attention_refuses_what_does_not_fit() {
    let (plain, _) = kernels();
    let mut random = Random(29);
    let cache = Cache::new(&mut random, 1, 1, 16);
    let pool = Pool::new(1);
    let q = vec![0.0; 32];
    let (table, short, bad) = ([0u32, 1, 2], [0u32], [0u32, 99]);
    let args = AttentionArgs {
        q: &q,
        k_pages: &cache.k,
        v_pages: &cache.v,
        tables: &[&table],
        sequences: &[0, 0],
        positions: &[0, 40],
        heads: 1,
        kv_heads: 1,
        head_dim: 16,
        scale: 1.0,
        soft_cap: None,
        window: None,
    };
    let mut out = vec![0.0; 32];
    let mut what = |args: AttentionArgs<'_>| match plain.attention(&pool, &args, &mut out) {
        Ok(()) => "fits",
        Err(KernelError::Length { what, .. }) => what,
        #[allow(unreachable_patterns)]
        Err(_) => "another error",
    };
    assert_eq!(what(args), "fits");
    assert_eq!(what(AttentionArgs { tables: &[&short], ..args }), "attention page table");
    assert_eq!(what(AttentionArgs { tables: &[&bad], ..args }), "attention page");
    assert_eq!(what(AttentionArgs { positions: &[0, u32::MAX], ..args }), "attention page table");
    assert_eq!(what(AttentionArgs { sequences: &[0, 1], ..args }), "attention sequence");
    assert_eq!(what(AttentionArgs { sequences: &[0], ..args }), "attention sequences");
    assert_eq!(what(AttentionArgs { q: &q[1..], ..args }), "attention queries");
    assert_eq!(what(AttentionArgs { v_pages: &cache.v[1..], ..args }), "attention values");
    assert_eq!(what(AttentionArgs { window: Some(0), ..args }), "attention heads");
    assert_eq!(what(AttentionArgs { kv_heads: 0, ..args }), "attention heads");
    assert_eq!(what(AttentionArgs { head_dim: usize::MAX, heads: 2, ..args }), "attention rows");
    // A page before the window may be gone.
    let gone = [99u32, 1];
    assert_eq!(
        what(AttentionArgs { tables: &[&gone], positions: &[40, 41], window: Some(9), ..args }),
        "fits"
    );
}

#[test]
fn keys_and_values_go_to_their_slots() {
    let (plain, others) = kernels();
    for k in others.iter().chain([&plain]) {
        let (kv_heads, dim, pages) = (2, 24, 3);
        let zeros = vec![f16::ZERO; pages * kv_heads * PAGE_TOKENS * dim];
        let (mut k_pages, mut v_pages) = (zeros.clone(), zeros);
        let (mut keys, mut values) =
            (Random(31).floats(2 * kv_heads * dim, 1.0), Random(41).floats(2 * kv_heads * dim, 1.0));
        for x in [&mut keys, &mut values] {
            x[0] = 1e9;
            x[1] = 1.0 + 0.75 / 1024.0;
        }
        let slots = [KvSlot { page: 2, token: 31 }, KvSlot { page: 0, token: 0 }];
        k.store_kv((&keys, &values), kv_heads, dim, &slots, (&mut k_pages, &mut v_pages))
            .expect("the slots exist");
        for (row, slot) in slots.iter().enumerate() {
            for head in 0..kv_heads {
                let page = (slot.page as usize * kv_heads + head) * PAGE_TOKENS * dim;
                let token = slot.token as usize;
                for d in 0..dim {
                    let from = (row * kv_heads + head) * dim + d;
                    assert_eq!(k_pages[page + d * PAGE_TOKENS + token], f16::from_f32(keys[from]));
                    assert_eq!(v_pages[page + token * dim + d], f16::from_f32(values[from]));
                }
            }
        }
        for pages in [&k_pages, &v_pages] {
            assert_eq!(pages.iter().filter(|h| **h != f16::ZERO).count(), 2 * kv_heads * dim);
        }
        let mut refused = |keys: &[f32], values: &[f32], slots: &[KvSlot]| {
            k.store_kv((keys, values), kv_heads, dim, slots, (&mut k_pages, &mut v_pages)).is_err()
        };
        for slot in [KvSlot { page: 3, token: 0 }, KvSlot { page: 0, token: 32 }] {
            assert!(refused(&keys[..kv_heads * dim], &values[..kv_heads * dim], &[slot]));
        }
        assert!(refused(&keys[1..], &values, &slots));
        assert!(refused(&keys, &values[1..], &slots));
    }
}

#[test]
fn large_operations_have_the_same_bits_on_any_threads() {
    let (plain, others) = kernels();
    let k = others.first().unwrap_or(&plain);
    let (rows, n) = (37, 1000);
    let mut random = Random(37);
    let (x, y, gain) = (random.floats(rows * n, 2.0), random.floats(rows * n, 1.0), random.floats(n, 1.0));
    let mut angles = RopeAngles::new(100, 10_000.0, None);
    angles.set(&(0..rows as u32).collect::<Vec<_>>());
    let run = |pool: &Pool| {
        let mut out = vec![0.0; rows * n];
        k.rms_norm(pool, &x, &gain, 1e-6, &mut out);
        k.swiglu(pool, &mut out, &y);
        k.geglu(pool, &mut out, &y);
        k.rope(pool, &mut out, 10, 100, &angles, RopeStyle::Halves);
        k.add(pool, &mut out, &x);
        k.rope(pool, &mut out, 10, 100, &angles, RopeStyle::Interleaved);
        k.scale(pool, &mut out, 1.7);
        k.soft_cap(pool, &mut out, 3.0);
        k.rms_norm_in_place(pool, &mut out, &gain, 1e-6);
        out
    };
    let want = run(&Pool::new(1));
    for threads in [2, 3, 5] {
        assert_same(&want, &run(&Pool::new(threads)), "threads");
    }
}
