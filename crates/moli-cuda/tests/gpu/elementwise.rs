//! Norms, activations, rotary embedding and sums beside plain arithmetic in f64.

use moli_cuda::{Angles, Buffer, Function, Gpu};
use moli_kernels::{RopeAngles, RopeStyle};

use crate::common::{Random, bits, buffer, empty, gpu_for, read};

/// Around a warp, a block of threads, and several of them.
const WIDTHS: [usize; 6] = [1, 31, 32, 256, 257, 1000];
/// The most that a result may be off, relative to the numbers that it is made of: some roundings, and the device's exponential
/// and hyperbolic functions, which err by two units in the last place at most.
const TOLERANCE: f64 = 1e-6;

/// Compares numbers; `sizes`: the magnitude of what each is made of.
fn near(what: &str, found: &[f32], expected: &[f64], sizes: impl Fn(usize) -> f64) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (at, (&found, &expected)) in found.iter().zip(expected).enumerate() {
        let (off, allowed) = ((f64::from(found) - expected).abs(), TOLERANCE * sizes(at).max(expected.abs()));
        assert!(
            off <= allowed,
            "{what}: element {at} is {found} for {expected}, off by {off}, allowed {allowed}"
        );
    }
}

fn wide(x: &[f32]) -> Vec<f64> {
    x.iter().map(|&x| f64::from(x)).collect()
}

#[test]
fn rms_norm() {
    let mut random = Random::new(20);
    for cols in WIDTHS {
        let mut gpu = gpu_for(6, cols);
        let (values, gain, eps) = (random.floats(3 * cols), random.floats(cols), 1e-3);
        let expected: Vec<f64> = values
            .chunks(cols)
            .flat_map(|row| {
                let mean = row.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / cols as f64;
                let factor = 1.0 / (mean + f64::from(eps)).sqrt();
                row.iter()
                    .zip(&gain)
                    .map(move |(&x, &gain)| f64::from(x) * factor * f64::from(gain))
                    .collect::<Vec<_>>()
            })
            .collect();
        let on_device = gpu.vector(&gain).unwrap();
        let (x, mut out) = (buffer(&mut gpu, 3, &values), empty(&gpu));
        gpu.rms_norm(&x, &on_device, eps, &mut out).unwrap();
        let found = read(&gpu, &out);
        near("rms_norm", &found, &expected, |_| 0.0);
        // The same pieces, as parts of one row and of others.
        for rows in [1, 3] {
            let mut x = buffer(&mut gpu, rows, &values);
            gpu.rms_norm_pieces(&mut x, &on_device, eps).unwrap();
            assert_eq!(bits(&read(&gpu, &x)), bits(&found), "pieces of {cols} in {rows} rows");
        }
    }
}

#[test]
fn layer_norm() {
    let mut random = Random::new(21);
    for cols in WIDTHS {
        let mut gpu = gpu_for(3, cols);
        let (values, gain, bias, eps) =
            (random.floats(3 * cols), random.floats(cols), random.floats(cols), 1e-3);
        for with_bias in [false, true] {
            let bias: Vec<f32> = if with_bias { bias.clone() } else { vec![0.0; cols] };
            let expected: Vec<f64> = values
                .chunks(cols)
                .flat_map(|row| {
                    let mean = row.iter().map(|&x| f64::from(x)).sum::<f64>() / cols as f64;
                    let variance =
                        row.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>() / cols as f64;
                    let factor = 1.0 / (variance + f64::from(eps)).sqrt();
                    let normed = |(&x, (&gain, &bias)): (&f32, (&f32, &f32))| {
                        (f64::from(x) - mean) * factor * f64::from(gain) + f64::from(bias)
                    };
                    row.iter().zip(gain.iter().zip(&bias)).map(normed).collect::<Vec<_>>()
                })
                .collect();
            let (gain, bias) = (gpu.vector(&gain).unwrap(), gpu.vector(&bias).unwrap());
            let (x, mut out) = (buffer(&mut gpu, 3, &values), empty(&gpu));
            gpu.layer_norm(&x, &gain, with_bias.then_some(&bias), eps, &mut out).unwrap();
            // x - mean and the sum with the bias may cancel what they are made of.
            near("layer_norm", &read(&gpu, &out), &expected, |_| 4.0);
        }
    }
}

#[test]
fn a_norm_keeps_what_is_no_number_in_its_row() {
    let mut random = Random::new(22);
    let cols = 300;
    let mut gpu = gpu_for(3, cols);
    let gain = gpu.vector(&random.floats(cols)).unwrap();
    let clean = random.floats(3 * cols);
    let mut dirty = clean.clone();
    dirty[cols + 299] = f32::NAN;
    for layer in [false, true] {
        let [expected, found] = [&clean, &dirty].map(|values| {
            let (x, mut out) = (buffer(&mut gpu, 3, values), empty(&gpu));
            if layer {
                gpu.layer_norm(&x, &gain, None, 1e-5, &mut out).unwrap();
            } else {
                gpu.rms_norm(&x, &gain, 1e-5, &mut out).unwrap();
            }
            read(&gpu, &out)
        });
        assert!(found[cols..2 * cols].iter().all(|x| x.is_nan()));
        for row in [0, 2] {
            let row = row * cols..(row + 1) * cols;
            assert_eq!(found[row.clone()], expected[row]);
        }
    }
}

#[test]
fn rope() {
    let mut random = Random::new(23);
    let positions = [0, 1, 77, 100_000];
    for (heads, dim, rotated) in [(1, 2, 2), (3, 64, 64), (2, 80, 32), (1, 600, 600), (5, 20, 6), (2, 16, 0)]
    {
        let mut angles = RopeAngles::new(rotated, 10_000.0, None).with_magnitude(1.25);
        angles.set(&positions);
        let mut gpu = gpu_for(4, heads * dim);
        let mut on_device = Angles::new(&gpu).unwrap();
        gpu.angles(&angles, &mut on_device).unwrap();
        let values = random.floats(4 * heads * dim);
        let half = rotated / 2;
        for style in [RopeStyle::Interleaved, RopeStyle::Halves, RopeStyle::HalvesToInterleaved] {
            let mut expected = wide(&values);
            for (at, head) in expected.chunks_mut(dim).enumerate() {
                let (old, row) = (head.to_vec(), at / heads);
                for pair in 0..half {
                    let (c, s) = (
                        f64::from(angles.cos()[row * half + pair]),
                        f64::from(angles.sin()[row * half + pair]),
                    );
                    let (near, far) = ([2 * pair, 2 * pair + 1], [pair, pair + half]);
                    let (from, to) = match style {
                        RopeStyle::Interleaved => (near, near),
                        RopeStyle::Halves => (far, far),
                        RopeStyle::HalvesToInterleaved => (far, near),
                    };
                    let (a, b) = (old[from[0]], old[from[1]]);
                    (head[to[0]], head[to[1]]) = (a * c - b * s, a * s + b * c);
                }
            }
            let mut x = buffer(&mut gpu, 4, &values);
            gpu.rope(&mut x, &on_device, style, dim).unwrap();
            near(&format!("{style:?} of {rotated} in {dim}"), &read(&gpu, &x), &expected, |_| 1.5);
        }
    }
}

/// Numbers where functions bend, and many between.
fn arguments(random: &mut Random, count: usize) -> Vec<f32> {
    let special = [0.0, -0.0, 1e-30, -1e-30, 7.0, 7.5, -7.0, -7.5, 20.0, -20.0, 88.0, -88.0, 1e4, -1e4];
    let count = count.saturating_sub(special.len());
    special.into_iter().chain((0..count).map(|_| 8.0 * random.float())).collect()
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// A function of one number, in f64 (the error function: of f32, which is all that there is).
fn plain(function: Function, x: f32) -> f64 {
    let wide = f64::from(x);
    match function {
        Function::Silu => wide * sigmoid(wide),
        Function::GeluTanh => {
            let inner = (2.0 / std::f64::consts::PI).sqrt() * (wide + 0.044715 * wide.powi(3));
            0.5 * wide * (1.0 + inner.tanh())
        }
        Function::GeluErf => f64::from(moli_kernels::gelu_erf(x)),
        Function::Relu => wide.max(0.0),
        Function::ReluSquared => wide.max(0.0).powi(2),
        Function::SwigluClamped => wide.min(7.0) * sigmoid(1.702 * wide.min(7.0)),
    }
}

#[test]
fn activations() {
    let mut random = Random::new(24);
    for count in [32, 257, 1000] {
        let mut gpu = gpu_for(1, count);
        let (gates, ups) = (arguments(&mut random, count), arguments(&mut random, count));
        let ups: Vec<f32> = ups.into_iter().rev().collect();
        let up = buffer(&mut gpu, 1, &ups);
        use Function::{GeluErf, GeluTanh, Relu, ReluSquared, Silu, SwigluClamped};
        for function in [Silu, GeluTanh, GeluErf, SwigluClamped, Relu, ReluSquared] {
            let partner = |up: f32| match function {
                Function::SwigluClamped => f64::from(up).clamp(-7.0, 7.0) + 1.0,
                _ => f64::from(up),
            };
            let expected: Vec<f64> =
                gates.iter().zip(&ups).map(|(&g, &u)| plain(function, g) * partner(u)).collect();
            let mut x = buffer(&mut gpu, 1, &gates);
            gpu.gated(&mut x, &up, function).unwrap();
            // GELU of negative numbers is a difference of numbers near 1.
            let size = |at: usize| f64::from(gates[at].abs().min(8.0)) * partner(ups[at]).abs();
            near(&format!("{function:?}, gated"), &read(&gpu, &x), &expected, size);
            if function == Function::SwigluClamped {
                continue;
            }
            let expected: Vec<f64> = gates.iter().map(|&g| plain(function, g)).collect();
            let mut x = buffer(&mut gpu, 1, &gates);
            gpu.activate(&mut x, function).unwrap();
            near(&format!("{function:?}"), &read(&gpu, &x), &expected, |at| {
                f64::from(gates[at].abs().min(8.0))
            });
        }
    }
}

/// What an operation makes of these rows.
fn apply(gpu: &mut Gpu, rows: usize, values: &[f32], run: impl FnOnce(&mut Gpu, &mut Buffer)) -> Vec<f32> {
    let mut x = buffer(gpu, rows, values);
    run(gpu, &mut x);
    read(gpu, &x)
}

#[test]
fn sums_and_factors() {
    let mut random = Random::new(25);
    for cols in WIDTHS {
        let mut gpu = gpu_for(2, cols);
        let (a, b) = (random.floats(2 * cols), random.floats(2 * cols));
        let y = buffer(&mut gpu, 2, &b);
        let found = apply(&mut gpu, 2, &a, |gpu, x| gpu.add(x, &y).unwrap());
        assert_eq!(found, a.iter().zip(&b).map(|(a, b)| a + b).collect::<Vec<_>>());
        let found = apply(&mut gpu, 2, &a, |gpu, x| gpu.scale(x, 0.37).unwrap());
        assert_eq!(found, a.iter().map(|a| a * 0.37).collect::<Vec<_>>());
        for cap in [0.1, 30.0] {
            let found = apply(&mut gpu, 2, &a, |gpu, x| gpu.soft_cap(x, cap).unwrap());
            let capped = |&x: &f32| f64::from(cap) * (f64::from(x) / f64::from(cap)).tanh();
            near("soft_cap", &found, &a.iter().map(capped).collect::<Vec<_>>(), |_| 0.0);
        }
    }
}

#[test]
fn what_is_no_number_passes_through() {
    let mut random = Random::new(26);
    let mut gpu = gpu_for(1, 300);
    let clean = random.floats(300);
    let mut dirty = clean.clone();
    dirty[257] = f32::NAN;
    let y = buffer(&mut gpu, 1, &clean);
    let odd = buffer(&mut gpu, 1, &dirty);
    let mut check = |what: &str, run: &dyn Fn(&Gpu, &mut Buffer)| {
        let expected = apply(&mut gpu, 1, &clean, |gpu, x| run(gpu, x));
        let found = apply(&mut gpu, 1, &dirty, |gpu, x| run(gpu, x));
        for (at, (found, expected)) in found.iter().zip(&expected).enumerate() {
            assert!(
                found.is_nan() == (at == 257) && (found.is_nan() || found == expected),
                "{what}: {found} at {at}"
            );
        }
    };
    for function in [Function::Silu, Function::GeluTanh, Function::GeluErf, Function::SwigluClamped] {
        check("gated", &|gpu, x| gpu.gated(x, &y, function).unwrap());
        if function != Function::SwigluClamped {
            check("activate", &|gpu, x| gpu.activate(x, function).unwrap());
        }
    }
    check("add", &|gpu, x| gpu.add(x, &y).unwrap());
    check("scale", &|gpu, x| gpu.scale(x, 0.0).unwrap());
    check("soft_cap", &|gpu, x| gpu.soft_cap(x, 50.0).unwrap());
    // A partner that is no number.
    for function in [Function::Silu, Function::SwigluClamped] {
        let found = apply(&mut gpu, 1, &clean, |gpu, x| gpu.gated(x, &odd, function).unwrap());
        assert!(found.iter().enumerate().all(|(at, x)| x.is_nan() == (at == 257)), "{function:?}");
    }
}

#[test]
fn zeros_and_copies() {
    let mut random = Random::new(27);
    let mut gpu = gpu_for(7, 300);
    let values = random.floats(7 * 300);
    let from = buffer(&mut gpu, 7, &values);

    // Fewer rows than before, then more than there was room for.
    let mut x = buffer(&mut gpu, 7, &values);
    for (rows, cols) in [(2, 300), (0, 300), (9, 300), (3, 257)] {
        gpu.zero(&mut x, rows, cols).unwrap();
        assert_eq!((x.rows(), x.cols()), (rows, cols));
        assert_eq!(bits(&read(&gpu, &x)), vec![0; rows * cols]);
    }

    let other = random.floats(7 * 257);
    for (from_start, to_start, count) in [(0, 0, 257), (43, 0, 257), (1, 100, 32), (299, 256, 1), (5, 5, 0)] {
        let found = apply(&mut gpu, 7, &other, |gpu, to| {
            gpu.copy_columns(&from, from_start, to, to_start, count).unwrap()
        });
        let mut expected = other.clone();
        for (to, from) in expected.chunks_mut(257).zip(values.chunks(300)) {
            to[to_start..to_start + count].copy_from_slice(&from[from_start..from_start + count]);
        }
        assert_eq!(found, expected, "{count} from {from_start} to {to_start}");
    }
}

#[test]
fn rows_are_selected_and_added() {
    let mut random = Random::new(28);
    for cols in WIDTHS {
        let mut gpu = gpu_for(9, cols);
        let values = random.floats(5 * cols);
        let x = buffer(&mut gpu, 5, &values);
        let mut out = empty(&gpu);
        for rows in [vec![4, 0, 0, 3, 4, 1, 2, 2, 0], vec![3], vec![]] {
            gpu.select(&x, &rows, &mut out).unwrap();
            let expected: Vec<f32> =
                rows.iter().flat_map(|&row| &values[row as usize * cols..][..cols]).copied().collect();
            assert_eq!((out.rows(), out.cols(), read(&gpu, &out)), (rows.len(), cols, expected));
        }

        let (to, weights) = (random.floats(9 * cols), random.floats(6));
        let rows = [8, 0, 3, 7, 2];
        let mut on_device = gpu.vector(&[]).unwrap();
        gpu.write(&mut on_device, &weights).unwrap();
        let found = apply(&mut gpu, 9, &to, |gpu, to| gpu.scatter_add(&x, &rows, &on_device, to).unwrap());
        let mut expected = to.clone();
        for ((&row, weight), from) in rows.iter().zip(&weights).zip(values.chunks(cols)) {
            for (to, from) in expected[row as usize * cols..].iter_mut().zip(from) {
                *to += weight * from;
            }
        }
        assert_eq!(found, expected);
    }
}
