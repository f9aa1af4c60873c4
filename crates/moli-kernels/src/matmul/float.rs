//! The product with unquantised weights, written once over [`Vector`]: 16 virtual lanes are 2 or 4 registers.

#![allow(unsafe_code)]

use std::ops::Range;

use moli_format::TensorType;

use super::{Job, MatmulFn, Panel, scalar};

/// A register of f32.
///
/// # Safety of all methods
/// The processor has the instructions; [`LANES`](Self::LANES) elements can be read or written at each pointer.
pub(super) trait Vector: Copy {
    /// How many.
    const LANES: usize;

    unsafe fn zero() -> Self;
    unsafe fn load(from: *const f32) -> Self;
    /// Half-precision numbers, exactly.
    unsafe fn load_f16(from: *const u8) -> Self;
    /// bfloat16 numbers, exactly.
    unsafe fn load_bf16(from: *const u8) -> Self;
    /// a * b + c, rounded once
    unsafe fn fma(a: Self, b: Self, c: Self) -> Self;
    unsafe fn store(self, to: *mut f32);
}

/// An unquantised type of `BYTES` bytes.
trait Float {
    const BYTES: usize;
    /// The elements at `from`, exactly.
    ///
    /// # Safety
    /// As [`Vector`].
    unsafe fn load<V: Vector>(from: *const u8) -> V;
}

macro_rules! types {
    ($($name:ident of $bytes:literal bytes: $from:ident => $load:expr;)*) => {$(
        struct $name;

        impl Float for $name {
            const BYTES: usize = $bytes;
            #[inline(always)]
            unsafe fn load<V: Vector>($from: *const u8) -> V {
                // SAFETY: the caller's promise.
                unsafe { $load }
            }
        }
    )*};
}

types! {
    F32 of 4 bytes: from => V::load(from.cast());
    F16 of 2 bytes: from => V::load_f16(from);
    Bf16 of 2 bytes: from => V::load_bf16(from);
}

/// The product for an unquantised type.
pub(super) fn product(ttype: TensorType) -> MatmulFn {
    match ttype {
        TensorType::F16 => run::<F16>,
        TensorType::BF16 => run::<Bf16>,
        _ => run::<F32>,
    }
}

/// # Safety
/// As [`MatmulFn`]; AVX2, FMA and F16C.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn run<F: Float>(job: &Job<'_>, rows: Range<usize>, _: &mut Panel) {
    // SAFETY: the caller's promise.
    unsafe { rows_of::<std::arch::x86_64::__m256, F, 2>(job, rows) }
}

/// # Safety
/// As [`MatmulFn`]; NEON.
#[cfg(target_arch = "aarch64")]
#[target_feature(enable = "neon")]
unsafe fn run<F: Float>(job: &Job<'_>, rows: Range<usize>, _: &mut Panel) {
    // SAFETY: the caller's promise.
    unsafe { rows_of::<std::arch::aarch64::float32x4_t, F, 4>(job, rows) }
}

/// The outputs `rows` for all tokens, with 16 lanes in `P` registers.
///
/// # Safety
/// As [`MatmulFn`], with the instructions of `V`.
#[inline(always)]
unsafe fn rows_of<V: Vector, F: Float, const P: usize>(job: &Job<'_>, rows: Range<usize>) {
    const { assert!(P * V::LANES == 16) }
    let mut row = rows.start;
    // SAFETY: the caller's promise; R rows from `row` are inside the range.
    unsafe {
        if job.input.rows == 1 {
            while rows.end - row >= 4 {
                tokens_of::<V, F, P, 4, 1>(job, row);
                row += 4;
            }
        } else {
            while rows.end - row >= 2 {
                tokens_of::<V, F, P, 2, 3>(job, row);
                row += 2;
            }
        }
        while row < rows.end {
            tokens_of::<V, F, P, 1, 3>(job, row);
            row += 1;
        }
    }
}

/// `R` rows of weights, all tokens, `T` at a time.
///
/// # Safety
/// As [`rows_of`]; the rows are inside the job.
#[inline(always)]
unsafe fn tokens_of<V: Vector, F: Float, const P: usize, const R: usize, const T: usize>(
    job: &Job<'_>,
    row: usize,
) {
    let mut token = 0;
    // SAFETY: the caller's promise.
    unsafe {
        while job.input.rows - token >= T {
            some::<V, F, P, R, T>(job, row, token);
            token += T;
        }
        while token < job.input.rows {
            some::<V, F, P, R, 1>(job, row, token);
            token += 1;
        }
    }
}

/// `R` rows of weights by `T` tokens.
///
/// # Safety
/// As [`rows_of`]; the rows and tokens are inside the job.
#[inline(always)]
#[allow(clippy::needless_range_loop)] // The indices of three loops meet in `lanes`.
unsafe fn some<V: Vector, F: Float, const P: usize, const R: usize, const T: usize>(
    job: &Job<'_>,
    row: usize,
    token: usize,
) {
    let cols = job.input.cols;
    let whole = cols / 16 * 16;
    // SAFETY: the caller's promise: each row of weights is `cols * F::BYTES` long, each token `cols`, and nothing is read
    // beyond. The outputs are no one else's.
    unsafe {
        let w: [*const u8; R] = std::array::from_fn(|r| job.weights.as_ptr().add((row + r) * job.row_bytes));
        let x: [*const f32; T] = std::array::from_fn(|t| job.input.x.as_ptr().add((token + t) * cols));
        let mut lanes = [[[V::zero(); P]; T]; R];
        for k in (0..whole).step_by(16) {
            for p in 0..P {
                let x: [V; T] = std::array::from_fn(|t| V::load(x[t].add(k + V::LANES * p)));
                for r in 0..R {
                    let w = F::load(w[r].add((k + V::LANES * p) * F::BYTES));
                    for t in 0..T {
                        lanes[r][t][p] = V::fma(w, x[t], lanes[r][t][p]);
                    }
                }
            }
        }
        let rest = cols - whole;
        for t in 0..T {
            let mut sums = [0.0; R];
            for r in 0..R {
                let mut all = [0f32; 16];
                for p in 0..P {
                    lanes[r][t][p].store(all.as_mut_ptr().add(V::LANES * p));
                }
                if rest > 0 {
                    let mut tail = [0u8; 64];
                    let from = w[r].add(whole * F::BYTES);
                    std::ptr::copy_nonoverlapping(from, tail.as_mut_ptr(), rest * F::BYTES);
                    let mut values = [0f32; 16];
                    for p in 0..P {
                        let value: V = F::load(tail.as_ptr().add(V::LANES * p * F::BYTES));
                        value.store(values.as_mut_ptr().add(V::LANES * p));
                    }
                    for (k, lane) in all.iter_mut().enumerate().take(rest) {
                        *lane = values[k].mul_add(*x[t].add(whole + k), *lane);
                    }
                }
                sums[r] = scalar::tree(all);
            }
            job.out.write(token + t, row, &sums);
        }
    }
}
