//! Every form of the product against the scalar one, bit for bit, and the scalar one against plain arithmetic.

use std::sync::OnceLock;

use moli_format::{Bytes, TensorType};

use super::{Activations, Matrix, Product, Scratch};
use crate::quant::{QUANTIZABLE, SUPPORTED};
use crate::{Isa, KernelError, Kernels, Pool, dequantize, quantize};

/// A fixed sequence of numbers that look random (Marsaglia's xorshift).
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// In -1..1.
    pub(crate) fn float(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1 << 23) as f32 - 1.0
    }

    pub(crate) fn floats(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.float()).collect()
    }

    pub(crate) fn bytes(&mut self, n: usize) -> Vec<u8> {
        (0..n).map(|_| (self.next() >> 32) as u8).collect()
    }
}

/// A matrix of random values; for types without a quantiser, of random blocks.
fn matrix(ttype: TensorType, rows: usize, cols: usize, random: &mut Random) -> Matrix {
    let mut bytes = Vec::new();
    if QUANTIZABLE.contains(&ttype) {
        quantize(ttype, &random.floats(rows * cols), &mut bytes).unwrap();
    } else {
        bytes = random.bytes(rows * ttype.row_bytes(cols).unwrap());
        with_finite_scales(ttype, &mut bytes);
    }
    Matrix::new(ttype, rows, cols, Bytes::from_vec(bytes)).unwrap()
}

/// The instruction sets that can be tested here: those of this processor, and AVX-512 in a substitute.
fn forms() -> Vec<(String, Kernels)> {
    let forms = Isa::available().into_iter().map(|isa| (isa.to_string(), Kernels::new(isa).unwrap()));
    #[cfg(target_arch = "x86_64")]
    type Table = fn(TensorType) -> super::MatmulFn;
    #[cfg(target_arch = "x86_64")]
    let substitutes: [(&str, Table); 2] =
        [("avx512vnni", super::substitute::product), ("avx512amx", super::substitute::matrix_product)];
    #[cfg(target_arch = "x86_64")]
    let forms = forms.chain(substitutes.into_iter().filter(|_| Isa::Avx2.is_available()).map(
        |(name, substitute)| {
            let mut kernels = Kernels::new(Isa::Avx2).unwrap();
            kernels.matmul.products = SUPPORTED.map(substitute);
            (format!("substitute for {name}"), kernels)
        },
    ));
    forms.collect()
}

/// A pool of 1 to 4 threads, the same for all tests: an emulator keeps some memory of each thread that there ever was.
fn pool_of(threads: usize) -> &'static Pool {
    static POOLS: [OnceLock<Pool>; 4] = [const { OnceLock::new() }; 4];
    POOLS[threads - 1].get_or_init(|| Pool::new(threads))
}

/// The product of `x` with `w`.
fn product(kernels: &Kernels, threads: usize, w: &Matrix, x: &[f32], tokens: usize) -> Vec<f32> {
    let pool = pool_of(threads);
    let scratch = Scratch::new(pool.threads());
    let mut act = Activations::new(tokens, w.cols()).unwrap();
    act.set(kernels, pool, x, (tokens, w.cols()), [w.ttype()]).unwrap();
    let mut out = vec![f32::MAX; tokens * w.rows()];
    kernels.matmul(pool, w, &act, &scratch, &mut out).unwrap();
    out
}

fn same(a: &[f32], b: &[f32]) -> bool {
    a.len() == b.len()
        && a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan()))
}

/// Asserts that all forms and thread counts give the scalar form's bits for this product.
fn assert_same_bits(w: &Matrix, x: &[f32], tokens: usize) {
    let forms = forms();
    let expected = product(&forms[0].1, 1, w, x, tokens);
    for (name, kernels) in &forms {
        for threads in [1, 2, 4] {
            let actual = product(kernels, threads, w, x, tokens);
            assert!(
                same(&expected, &actual),
                "{} {}x{} by {tokens}, {name}, {threads} threads",
                w.ttype(),
                w.rows(),
                w.cols()
            );
        }
    }
}

#[test]
fn every_form_gives_the_same_bits_at_every_edge() {
    let mut random = Random::new(1);
    for ttype in SUPPORTED {
        let block = ttype.block_len();
        // Floats: the edges of the 16 lanes.
        let cols: Vec<usize> = match block {
            1 => vec![1, 2, 7, 8, 9, 15, 16, 17, 31, 33, 48, 100],
            _ => [1, 2, 3, 9].map(|n| n * block).to_vec(),
        };
        for &cols in &cols {
            for rows in [0, 1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 49] {
                let w = matrix(ttype, rows, cols, &mut random);
                let x = random.floats(5 * cols);
                for tokens in [1, 5] {
                    assert_same_bits(&w, &x[..tokens * cols], tokens);
                }
            }
        }
        let cols = cols[2];
        let w = matrix(ttype, 35, cols, &mut random);
        for tokens in [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 13, 16, 17, 33, 64, 65, 79, 96] {
            assert_same_bits(&w, &random.floats(tokens * cols), tokens);
        }
    }
}

#[test]
fn long_rows_and_many_tokens_cross_the_edges_of_a_panel() {
    let mut random = Random::new(2);
    for ttype in SUPPORTED {
        let block = ttype.block_len().max(32);
        let cols = 1024 + 1024 + block;
        let w = matrix(ttype, 18, cols, &mut random);
        let x = random.floats(67 * cols);
        assert_same_bits(&w, &x, 67);
        assert_same_bits(&w, &x[..12 * cols], 12);
        assert_same_bits(&w, &x[..cols], 1);
    }
    // More tokens than a panel keeps, by 1 and by some.
    for (ttype, tokens) in [(TensorType::Q4_0, 520), (TensorType::Q4K, 513), (TensorType::Q4K, 545)] {
        let cols = ttype.block_len();
        let w = matrix(ttype, 17, cols, &mut random);
        assert_same_bits(&w, &random.floats(tokens * cols), tokens);
    }
    // And of unquantised weights, whose rows end anywhere.
    for (ttype, tokens, cols) in [
        (TensorType::F16, 200, 1031),
        (TensorType::BF16, 193, 2049),
        (TensorType::F16, 24, 15),
        (TensorType::BF16, 25, 16),
    ] {
        let w = matrix(ttype, 39, cols, &mut random);
        assert_same_bits(&w, &random.floats(tokens * cols), tokens);
    }
}

#[test]
fn a_token_has_the_same_bits_in_every_batch() {
    let mut random = Random::new(3);
    for ttype in SUPPORTED {
        let cols = 512;
        let w = matrix(ttype, 40, cols, &mut random);
        let x = random.floats(70 * cols);
        for (name, kernels) in forms() {
            let all = product(&kernels, 2, &w, &x, 70);
            for batch in [1, 2, 7, 16, 66] {
                for first in (0..=70 - batch).step_by(4) {
                    let part = product(&kernels, 1, &w, &x[first * cols..(first + batch) * cols], batch);
                    assert!(
                        same(&part, &all[first * 40..(first + batch) * 40]),
                        "{ttype} {name} {first} {batch}"
                    );
                }
            }
        }
    }
}

#[test]
fn products_that_are_computed_together_are_the_same_and_get_their_bias() {
    let mut random = Random::new(9);
    let pool = Pool::new(3);
    let types = [TensorType::Q4_1, TensorType::Q8_0, TensorType::F16, TensorType::Q4_1, TensorType::Q6K];
    let shapes = [5, 16, 40, 100, 33];
    let all: Vec<_> = types.iter().zip(shapes).map(|(t, rows)| matrix(*t, rows, 256, &mut random)).collect();
    for tokens in [1, 9] {
        let x = random.floats(tokens * 256);
        for (name, kernels) in forms() {
            let mut act = Activations::new(tokens, 256).unwrap();
            act.set(&kernels, &pool, &x, (tokens, 256), types).unwrap();
            let biases = shapes.map(|rows| random.floats(rows));
            let mut outs = shapes.map(|rows| vec![0.0; tokens * rows]);
            // The second has no bias, and there are more than are computed in one run.
            let products =
                all.iter().zip(&biases).zip(&mut outs).enumerate().map(|(i, ((weights, bias), out))| {
                    Product { weights, bias: (i != 1).then_some(bias.as_slice()), out }
                });
            kernels.matmul_all(&pool, products, &act, &Scratch::new(3)).unwrap();
            for (i, ((w, bias), out)) in all.iter().zip(&biases).zip(&outs).enumerate() {
                let mut expected = product(&kernels, 1, w, &x, tokens);
                if i != 1 {
                    expected
                        .chunks_mut(w.rows())
                        .flat_map(|row| row.iter_mut().zip(bias))
                        .for_each(|(v, b)| *v += b);
                }
                assert!(same(&expected, out), "{name}, {tokens} tokens, product {i}");
            }
        }
    }
}

/// Replaces the float scales of each block by numbers around 1, so that extreme bytes stay finite.
fn with_finite_scales(ttype: TensorType, bytes: &mut [u8]) {
    let at: &[usize] = match ttype {
        TensorType::Q4_0 | TensorType::Q5_0 | TensorType::Q8_0 | TensorType::IQ4NL | TensorType::IQ4XS => {
            &[0]
        }
        TensorType::IQ1S | TensorType::IQ2XXS | TensorType::IQ2XS | TensorType::IQ2S => &[0],
        TensorType::IQ3XXS | TensorType::IQ3S => &[0],
        TensorType::Q4_1 | TensorType::Q5_1 | TensorType::Q4K | TensorType::Q5K => &[0, 2],
        TensorType::Q2K => &[80, 82],
        TensorType::Q3K => &[108],
        TensorType::Q6K => &[208],
        TensorType::TQ1_0 => &[52],
        TensorType::TQ2_0 => &[64],
        _ => &[],
    };
    for block in bytes.chunks_exact_mut(ttype.block_bytes()) {
        for &at in at {
            block[at..at + 2].copy_from_slice(&half::f16::ONE.to_le_bytes());
        }
        match ttype {
            TensorType::MXFP4 => block[0] = 126 + block[0] % 4,
            TensorType::NVFP4 => block[..4].iter_mut().for_each(|scale| *scale = 0x28 + *scale % 32),
            // 1 is 0x3c00, of which each 16 bits have four.
            TensorType::IQ1M => {
                for (byte, nibble) in [(49, 0x00), (51, 0x00), (53, 0xc0), (55, 0x30)] {
                    block[byte] = block[byte] & 15 | nibble;
                }
            }
            _ => {}
        }
    }
}

#[test]
fn extreme_bytes_do_not_saturate() {
    for ttype in SUPPORTED.into_iter().filter(|t| t.block_len() > 1) {
        let cols = 768;
        let rows = 17;
        for byte in [0x00, 0x01, 0x7f, 0x80, 0x81, 0xff, 0x0f, 0xf0] {
            let mut bytes = vec![byte; rows * ttype.row_bytes(cols).unwrap()];
            with_finite_scales(ttype, &mut bytes);
            let w = Matrix::new(ttype, rows, cols, Bytes::from_vec(bytes)).unwrap();
            for value in [1.0, -1.0] {
                let x = vec![value; 4 * cols];
                assert_same_bits(&w, &x, 4);
                // 127 * (1 / 127) is 1 to within two roundings, so this is the plain sum of the row.
                let mut row = vec![0.0; cols];
                w.dequantize_row(0, &mut row).unwrap();
                let sum: f64 = row.iter().map(|w| f64::from(*w) * f64::from(value)).sum();
                let size: f64 = row.iter().map(|w| f64::from(w.abs())).sum();
                let actual = f64::from(product(&Kernels::new(Isa::detect()).unwrap(), 1, &w, &x, 4)[0]);
                // Minima cancel products: the error is relative to what was added, not to the sum.
                assert!(
                    (actual - sum).abs() <= 1e-5 * size.max(1e6),
                    "{ttype} {byte:x} {value}: {actual}, {sum}"
                );
            }
        }
    }
}

#[test]
fn random_bytes_never_panic_and_agree() {
    let mut random = Random::new(4);
    for ttype in SUPPORTED {
        let cols = 512;
        for rows in [16, 19] {
            let bytes = random.bytes(rows * ttype.row_bytes(cols).unwrap());
            let w = Matrix::new(ttype, rows, cols, Bytes::from_vec(bytes)).unwrap();
            assert_same_bits(&w, &random.floats(7 * cols), 7);
        }
    }
}

#[test]
fn weights_may_lie_at_any_address() {
    let mut random = Random::new(5);
    for ttype in SUPPORTED {
        let w = matrix(ttype, 16, 256, &mut random);
        let x = random.floats(256);
        let expected = product(&Kernels::new(Isa::Scalar).unwrap(), 1, &w, &x, 1);
        for shift in 1..4 {
            let mut bytes = vec![0xff; shift];
            bytes.extend_from_slice(&w.data);
            let data = Bytes::from_vec(bytes).slice(shift..shift + w.bytes()).unwrap();
            let shifted = Matrix::new(ttype, 16, 256, data).unwrap();
            for (name, kernels) in forms() {
                assert!(same(&expected, &product(&kernels, 1, &shifted, &x, 1)), "{ttype} {name}");
            }
        }
    }
}

/// The scalar product against the dequantised weights in f64.
///
/// The bound: an activation is off by at most half a step, m / 254 with m the greatest of its block (at most 1 here), so a
/// product by at most `|w| / 254`; the roundings of f32 are far below. For float weights it is those alone.
#[test]
fn the_scalar_form_is_near_the_plain_product() {
    let mut random = Random::new(6);
    for ttype in SUPPORTED {
        let (rows, cols, tokens) = (9, 1024, 3);
        let w = matrix(ttype, rows, cols, &mut random);
        let x = random.floats(tokens * cols);
        let out = product(&Kernels::new(Isa::Scalar).unwrap(), 1, &w, &x, tokens);
        let mut row = vec![0.0; cols];
        for r in 0..rows {
            w.dequantize_row(r, &mut row).unwrap();
            for t in 0..tokens {
                let x = &x[t * cols..(t + 1) * cols];
                let expected: f64 = row.iter().zip(x).map(|(w, x)| f64::from(*w) * f64::from(*x)).sum();
                let size: f64 = row.iter().map(|w| f64::from(w.abs())).sum();
                let bound = if ttype.block_len() == 1 { 1e-6 * size } else { size / 254.0 + 1e-5 * size };
                let error = (f64::from(out[t * rows + r]) - expected).abs();
                assert!(error <= bound, "{ttype}: {error} > {bound}");
                // And it is not near the bound: errors of half a step in each element cancel.
                assert!(error <= bound * 0.1 || ttype.block_len() == 1, "{ttype}: {error} is suspicious");
            }
        }
    }
}

#[test]
fn activations_are_quantized_alike_and_as_defined() {
    let pool = Pool::new(2);
    let mut random = Random::new(7);
    let (rows, cols) = (70, 512);
    let mut x = random.floats(rows * cols);
    // Ties, zeros, a constant block, tiny and huge values, and values that are not finite.
    x[..32]
        .copy_from_slice(&std::array::from_fn::<f32, 32, _>(|k| if k == 0 { 127.0 } else { k as f32 / 2.0 }));
    x[32..64].fill(0.0);
    x[64..96].fill(-3.25);
    x[96..128].fill(1e-38);
    x[128..160].fill(3e38);
    x[1024] = f32::NAN;
    x[1600] = f32::NEG_INFINITY;
    for ttype in [TensorType::Q8_0, TensorType::Q4K] {
        let block = ttype.block_len();
        let mut act = Activations::new(rows, cols).unwrap();
        let mut first: Option<(Vec<i8>, Vec<u32>)> = None;
        for isa in Isa::available() {
            let kernels = Kernels::new(isa).unwrap();
            act.set(&kernels, &pool, &x, (rows, cols), [ttype]).unwrap();
            let input = act.input(ttype).unwrap();
            let now = (input.q.to_vec(), input.d.iter().map(|d| d.to_bits()).collect());
            for (b, (x, q)) in x.chunks(block).zip(input.q.chunks(block)).enumerate() {
                let d = input.d[b];
                if x.iter().any(|x| !x.is_finite()) {
                    assert!(d.is_nan() && q.iter().all(|q| *q == 0));
                    continue;
                }
                assert!(q.iter().all(|q| *q > -128));
                for (x, q) in x.iter().zip(q) {
                    assert!((x - f32::from(*q) * d).abs() <= d * 0.50001 + 1e-37, "{x} {q} {d}");
                }
                if block == 32 {
                    let sum: i32 = q.iter().map(|q| i32::from(*q)).sum();
                    assert_eq!(input.sums[b], sum);
                    assert!(same(&[input.ds[b]], &[d * sum as f32]));
                } else {
                    for (i, q) in q.chunks(16).enumerate() {
                        assert_eq!(input.sums16[b * 16 + i], q.iter().map(|q| i16::from(*q)).sum::<i16>());
                    }
                    for (i, q) in q.chunks(32).enumerate() {
                        assert_eq!(input.sums32[b * 8 + i], q.iter().map(|q| i16::from(*q)).sum::<i16>());
                    }
                }
            }
            if block == 32 {
                // Ties go to even.
                let ties: Vec<i8> = (1..32).map(|k| (f64::from(k) / 2.0).round_ties_even() as i8).collect();
                assert_eq!(input.q[1..32], ties);
                assert_eq!((input.d[1], input.d[3]), (0.0, 0.0));
            }
            assert_eq!(*first.get_or_insert(now.clone()), now, "{isa}");
        }
    }
}

#[test]
fn a_nan_or_an_infinity_shows_in_its_token_alone() {
    let mut random = Random::new(8);
    for ttype in SUPPORTED {
        let w = matrix(ttype, 20, 512, &mut random);
        for bad in [f32::NAN, f32::INFINITY] {
            let mut x = random.floats(3 * 512);
            x[512 + 300] = bad;
            for (name, kernels) in forms() {
                let out = product(&kernels, 1, &w, &x, 3);
                assert!(out[20..40].iter().all(|v| !v.is_finite()), "{ttype} {name}");
                assert!(out[..20].iter().chain(&out[40..]).all(|v| v.is_finite()), "{ttype} {name}");
            }
        }
    }
}

#[test]
fn wrong_shapes_are_errors() {
    let kernels = Kernels::new(Isa::detect()).unwrap();
    let pool = Pool::new(2);
    let bytes = |n| Bytes::from_vec(vec![0; n]);
    use TensorType::{Q4_0, Q4K, Q8_0};
    let new = |t, r, c, n| Matrix::new(t, r, c, bytes(n)).map(|_| ());
    assert_eq!(new(Q4_0, 2, 48, 36), Err(KernelError::PartialBlock { ttype: Q4_0, block: 32, cols: 48 }));
    let length = |what, expected, actual| Err(KernelError::Length { what, expected, actual });
    assert_eq!(new(Q4_0, 2, 32, 35), length("bytes of a matrix", 36, 35));
    let cols = usize::MAX / 32 * 32;
    assert_eq!(new(Q8_0, 1, cols, 0), Err(KernelError::TooLarge { rows: 1, cols }));
    assert_eq!(new(Q8_0, usize::MAX, 32, 0), Err(KernelError::TooLarge { rows: usize::MAX, cols: 32 }));
    let ttype = TensorType::Q8_1;
    assert_eq!(new(ttype, 1, 256, 288), Err(KernelError::UnsupportedType { ttype }));

    let w = Matrix::new(Q4_0, 16, 64, bytes(16 * 36)).unwrap();
    let mut act = Activations::new(2, 64).unwrap();
    let limit = |what, limit, actual| Err(KernelError::Limit { what, limit, actual });
    let set = |act: &mut Activations, x: &[f32], shape, ttype| act.set(&kernels, &pool, x, shape, [ttype]);
    assert_eq!(set(&mut act, &[0.0; 192], (3, 64), Q8_0), limit("rows of activations", 2, 3));
    assert_eq!(set(&mut act, &[0.0; 256], (2, 128), Q8_0), limit("columns of activations", 64, 128));
    assert_eq!(set(&mut act, &[0.0; 127], (2, 64), Q8_0), length("activations", 128, 127));
    let scratch = Scratch::new(2);
    let mut out = [0.0; 32];
    let product =
        |act: &Activations, scratch: &Scratch, out: &mut [f32]| kernels.matmul(&pool, &w, act, scratch, out);
    assert_eq!(set(&mut act, &[0.0; 128], (2, 64), ttype), Err(KernelError::UnsupportedType { ttype }));
    let partial = KernelError::PartialBlock { ttype: Q4K, block: 256, cols: 64 };
    assert_eq!(set(&mut act, &[0.0; 128], (2, 64), Q4K), Err(partial));
    assert_eq!(product(&act, &scratch, &mut out), Err(KernelError::NotPrepared { ttype: Q4_0 }));
    set(&mut act, &[0.0; 128], (2, 64), TensorType::F32).unwrap();
    assert_eq!(product(&act, &scratch, &mut out), Err(KernelError::NotPrepared { ttype: Q4_0 }));
    set(&mut act, &[0.0; 128], (2, 64), Q8_0).unwrap();
    assert_eq!(product(&act, &scratch, &mut out), Ok(()));
    assert_eq!(product(&act, &scratch, &mut out[..31]), length("outputs", 32, 31));
    assert_eq!(product(&act, &Scratch::new(1), &mut out), limit("threads", 1, 2));
    let short = Product { weights: &w, bias: Some(&[0.0; 15]), out: &mut out };
    assert_eq!(kernels.matmul_all(&pool, [short], &act, &scratch), length("biases", 16, 15));
    set(&mut act, &[0.0; 64], (2, 32), Q8_0).unwrap();
    assert_eq!(product(&act, &scratch, &mut out), length("columns of activations", 64, 32));

    assert_eq!(w.dequantize_row(16, &mut [0.0; 64]), limit("row of a matrix", 16, 16));
    assert_eq!(w.dequantize_row(15, &mut [0.0; 63]), length("row of a matrix", 64, 63));
    assert_eq!(dequantize(Q8_0, &[0; 33], &mut [0.0; 32]), length("bytes of blocks", 34, 33));
    assert_eq!(
        Activations::new(usize::MAX, 2).map(|_| ()),
        Err(KernelError::TooLarge { rows: usize::MAX, cols: 2 })
    );
}
