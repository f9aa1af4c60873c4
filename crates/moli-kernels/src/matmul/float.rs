//! The product with unquantised weights, with AVX2: 16 virtual lanes are two registers.

#![allow(unsafe_code)]

use std::arch::x86_64::*;
use std::ops::Range;

use moli_format::TensorType;

use super::{Job, MatmulFn, Panel, scalar};

/// An unquantised type of `BYTES` bytes.
trait Float {
    const BYTES: usize;
    /// The 8 elements at `from`, exactly.
    ///
    /// # Safety
    /// AVX2 and F16C; 8 elements can be read.
    unsafe fn load(from: *const u8) -> __m256;
}

struct F32;
struct F16;
struct Bf16;

impl Float for F32 {
    const BYTES: usize = 4;
    #[inline(always)]
    unsafe fn load(from: *const u8) -> __m256 {
        // SAFETY: the caller's promise.
        unsafe { _mm256_loadu_ps(from.cast()) }
    }
}

impl Float for F16 {
    const BYTES: usize = 2;
    #[inline(always)]
    unsafe fn load(from: *const u8) -> __m256 {
        // SAFETY: the caller's promise.
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(from.cast())) }
    }
}

impl Float for Bf16 {
    const BYTES: usize = 2;
    #[inline(always)]
    unsafe fn load(from: *const u8) -> __m256 {
        // SAFETY: the caller's promise.
        unsafe {
            let wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast()));
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(wide))
        }
    }
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
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn run<F: Float>(job: &Job<'_>, rows: Range<usize>, _: &mut Panel) {
    let mut row = rows.start;
    // SAFETY: the caller's promise; R rows from `row` are inside the range.
    unsafe {
        if job.input.rows == 1 {
            while rows.end - row >= 4 {
                tokens_of::<F, 4, 1>(job, row);
                row += 4;
            }
        } else {
            while rows.end - row >= 2 {
                tokens_of::<F, 2, 3>(job, row);
                row += 2;
            }
        }
        while row < rows.end {
            tokens_of::<F, 1, 3>(job, row);
            row += 1;
        }
    }
}

/// `R` rows of weights, all tokens, `T` at a time.
///
/// # Safety
/// As [`run`]; the rows are inside the job.
#[inline(always)]
unsafe fn tokens_of<F: Float, const R: usize, const T: usize>(job: &Job<'_>, row: usize) {
    let mut token = 0;
    // SAFETY: the caller's promise.
    unsafe {
        while job.input.rows - token >= T {
            some::<F, R, T>(job, row, token);
            token += T;
        }
        while token < job.input.rows {
            some::<F, R, 1>(job, row, token);
            token += 1;
        }
    }
}

/// `R` rows of weights by `T` tokens.
///
/// # Safety
/// As [`run`]; the rows and tokens are inside the job.
#[inline(always)]
#[allow(clippy::needless_range_loop)] // The indices of three loops meet in `lanes`.
unsafe fn some<F: Float, const R: usize, const T: usize>(job: &Job<'_>, row: usize, token: usize) {
    let cols = job.input.cols;
    let whole = cols / 16 * 16;
    // SAFETY: the caller's promise: each row of weights is `cols * F::BYTES` long, each token `cols`, and nothing is read
    // beyond. The outputs are no one else's.
    unsafe {
        let w: [*const u8; R] = std::array::from_fn(|r| job.weights.as_ptr().add((row + r) * job.row_bytes));
        let x: [*const f32; T] = std::array::from_fn(|t| job.input.x.as_ptr().add((token + t) * cols));
        let mut lanes = [[[_mm256_setzero_ps(); 2]; T]; R];
        for k in (0..whole).step_by(16) {
            for h in 0..2 {
                let x: [__m256; T] = std::array::from_fn(|t| _mm256_loadu_ps(x[t].add(k + 8 * h)));
                for r in 0..R {
                    let w = F::load(w[r].add((k + 8 * h) * F::BYTES));
                    for t in 0..T {
                        lanes[r][t][h] = _mm256_fmadd_ps(w, x[t], lanes[r][t][h]);
                    }
                }
            }
        }
        let rest = cols - whole;
        for t in 0..T {
            let mut sums = [0.0; R];
            for r in 0..R {
                let mut all = [0f32; 16];
                _mm256_storeu_ps(all.as_mut_ptr(), lanes[r][t][0]);
                _mm256_storeu_ps(all.as_mut_ptr().add(8), lanes[r][t][1]);
                if rest > 0 {
                    let mut tail = [0u8; 64];
                    let from = w[r].add(whole * F::BYTES);
                    std::ptr::copy_nonoverlapping(from, tail.as_mut_ptr(), rest * F::BYTES);
                    let mut values = [0f32; 16];
                    _mm256_storeu_ps(values.as_mut_ptr(), F::load(tail.as_ptr()));
                    _mm256_storeu_ps(values.as_mut_ptr().add(8), F::load(tail.as_ptr().add(8 * F::BYTES)));
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
