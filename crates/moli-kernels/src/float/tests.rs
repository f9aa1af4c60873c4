//! Every form against the scalar one bit for bit, and the scalar one against plain f64.

mod attention;
mod recurrent;

use super::*;
use crate::Isa;
use half::f16;

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
            let mut layer_norm = vec![0.0; 3 * n];
            k.layer_norm(&pool, x, (&gain, &y[..n]), 1e-5, &mut layer_norm);
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
                copy(&|x| k.swiglu_clamped(&pool, x, &y)),
                copy(&|x| k.silu(&pool, x)),
                copy(&|x| k.gelu(&pool, x)),
                copy(&|x| k.relu(&pool, x)),
                copy(&|x| k.relu_squared(&pool, x)),
                copy(&|x| k.xielu(&pool, x, [0.8, 0.7, 0.5, -1e-6])),
                copy(&|x| k.geglu_erf(&pool, x, &y)),
                copy(&|x| k.gelu_erf(&pool, x)),
                copy(&|x| k.add_scaled(x, &y, 0.7)),
                copy(&|x| k.multiply(&pool, x, &y)),
                copy(&|x| k.gate_sigmoid(&pool, x, &y)),
                copy(&|x| (k.float.unit)(x, 1e-6, 0.5)),
                layer_norm,
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
fn columns_are_added_to_rows() {
    let (plain, others) = kernels();
    let k = others.first().unwrap_or(&plain);
    let mut random = Random(17);
    // Rows that end within a register, and as many as threads share.
    for (rows, cols, rank) in [(1, 1, 1), (3, 67, 2), (40, 577, 16), (512, 64, 5)] {
        let (to, columns) = (random.floats(rows * cols, 2.0), random.floats(rank * cols, 2.0));
        let (low, factors) = (random.floats(rows * rank, 1.0), random.floats(rows, 1.0));
        let mut want = to.clone();
        for ((to, low), factor) in want.chunks_mut(cols).zip(low.chunks(rank)).zip(&factors) {
            for (low, column) in low.iter().zip(columns.chunks(cols)) {
                plain.add_scaled(to, column, factor * low);
            }
        }
        for threads in [1, 3] {
            let mut got = to.clone();
            k.add_columns(&Pool::new(threads), &mut got, &low, &columns, &factors);
            assert_same(&want, &got, &format!("{rows} rows of {cols}, {threads} threads"));
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
fn layer_norm_is_near_f64() {
    let (plain, _) = kernels();
    let mut random = Random(4);
    for n in lengths() {
        let (x, gain, bias) = (random.floats(n, 3.0), random.floats(n, 1.0), random.floats(n, 1.0));
        let mut out = vec![0.0; n];
        plain.layer_norm(&Pool::new(1), &x, (&gain, &bias), 1e-5, &mut out);
        let mean = x.iter().map(|v| f64::from(*v)).sum::<f64>() / n as f64;
        let variance = x.iter().map(|v| (f64::from(*v) - mean).powi(2)).sum::<f64>() / n as f64;
        for i in 0..n {
            let want =
                (f64::from(x[i]) - mean) / (variance + 1e-5).sqrt() * f64::from(gain[i]) + f64::from(bias[i]);
            // Differences from the mean are below 16, some tens of roundings of 6e-8 each, magnified where the variance is small.
            let bound = (n as f64 / 16.0 + 20.0) * 1e-6 / (variance + 1e-5).sqrt().min(1.0);
            assert!((f64::from(out[i]) - want).abs() <= bound, "n {n}, element {i}: {} {want}", out[i]);
        }
    }
}

#[test]
fn the_clamped_gate_is_near_f64() {
    let (plain, _) = kernels();
    let mut random = Random(8);
    let (gate, up) = (random.floats(1000, 6.0), random.floats(1000, 6.0));
    let mut out = gate.clone();
    plain.swiglu_clamped(&Pool::new(1), &mut out, &up);
    for ((gate, up), out) in gate.iter().zip(&up).zip(out) {
        let (gate, up) = (f64::from(*gate).min(7.0), f64::from(*up).clamp(-7.0, 7.0));
        let want = gate / (1.0 + (-1.702 * gate).exp()) * (up + 1.0);
        assert!((f64::from(out) - want).abs() < 2e-5, "{gate} {up}: {out} {want}");
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
                        _ => (d - half, i - half, false),
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
            // The same bits, whichever order the pairs come in.
            let half = angles.half();
            let mut neighbours = x.clone();
            for (from, to) in x.chunks(head_dim).zip(neighbours.chunks_mut(head_dim)) {
                (0..half).for_each(|i| (to[2 * i], to[2 * i + 1]) = (from[i], from[half + i]));
            }
            let (mut got, pool) = (x.clone(), Pool::new(1));
            plain.rope(&pool, &mut neighbours, heads, head_dim, &angles, RopeStyle::Interleaved);
            plain.rope(&pool, &mut got, heads, head_dim, &angles, RopeStyle::HalvesToInterleaved);
            assert_same(&got, &neighbours, "rope in another order");
        }
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
