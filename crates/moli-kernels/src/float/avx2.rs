//! The float operations with AVX2, FMA and F16C.
//!
//! Reductions, half-precision conversion and attention's inner loops are written with intrinsics; the elementwise
//! operations are the scalar text compiled again with these instructions, so that they agree by construction.
//!
//! AVX-512 machines use these forms too: the operations here are bound by memory or small beside the matrix products.

use super::attention::{Form, PAGE_TOKENS};
use super::scalar;
use half::f16;
use std::arch::x86_64::*;

/// Makes a plain function of a function that needs AVX2, FMA and F16C.
///
/// The macro's users are private to this module's table, and [`super::FloatOps::new`] hands that table out only for an
/// instruction set that has been found on this processor.
macro_rules! plain {
    ($(fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? $body:block)*) => {$(
        pub(super) fn $name($($arg: $ty),*) $(-> $ret)? {
            #[target_feature(enable = "avx2,fma,f16c")]
            fn with_avx2($($arg: $ty),*) $(-> $ret)? $body
            // SAFETY: this table is chosen only where the processor has AVX2, FMA and F16C.
            unsafe { with_avx2($($arg),*) }
        }
    )*};
}

plain! {
    fn rms_norm(x: &mut [f32], gain: &[f32], eps: f32) {
        for row in x.chunks_exact_mut(gain.len().max(1)) {
            let scale = scalar::rms_scale(sum_of_squares(row), row.len(), eps);
            scalar::mul_gain(row, gain, scale);
        }
    }

    fn add(x: &mut [f32], y: &[f32]) {
        scalar::add(x, y);
    }

    fn scale(x: &mut [f32], s: f32) {
        scalar::scale(x, s);
    }

    fn soft_cap(x: &mut [f32], cap: f32) {
        scalar::soft_cap(x, cap);
    }

    fn swiglu(gate: &mut [f32], up: &[f32]) {
        scalar::swiglu(gate, up);
    }

    fn geglu(gate: &mut [f32], up: &[f32]) {
        scalar::geglu(gate, up);
    }

    fn rope_halves(row: &mut [f32], head_dim: usize, cos: &[f32], sin: &[f32]) {
        scalar::rope_halves(row, head_dim, cos, sin);
    }

    fn rope_interleaved(row: &mut [f32], head_dim: usize, cos: &[f32], sin: &[f32]) {
        scalar::rope_interleaved(row, head_dim, cos, sin);
    }

    fn max(x: &[f32]) -> f32 {
        scalar::max(x)
    }

    fn sum_exp(x: &[f32], max: f32) -> f64 {
        scalar::sum_exp(x, max)
    }

    fn to_f16(x: &[f32], out: &mut [f16]) {
        let (x8, x_rest) = x.as_chunks::<8>();
        let (out8, out_rest) = out.as_chunks_mut::<8>();
        for (o, x) in out8.iter_mut().zip(x8) {
            // SAFETY: x is 8 floats, read without alignment.
            let v = unsafe { _mm256_loadu_ps(x.as_ptr()) };
            let h = _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(v);
            // SAFETY: o is 8 halves, 16 bytes, written without alignment; f16 is a transparent u16.
            unsafe { _mm_storeu_si128(o.as_mut_ptr().cast(), h) };
        }
        scalar::to_f16(x_rest, out_rest);
    }

    fn to_f32(x: &[f16], out: &mut [f32]) {
        let (x8, x_rest) = x.as_chunks::<8>();
        let (out8, out_rest) = out.as_chunks_mut::<8>();
        for (o, x) in out8.iter_mut().zip(x8) {
            // SAFETY: x is 8 halves, 16 bytes, read without alignment; f16 is a transparent u16.
            let h = unsafe { _mm_loadu_si128(x.as_ptr().cast()) };
            // SAFETY: o is 8 floats, written without alignment.
            unsafe { _mm256_storeu_ps(o.as_mut_ptr(), _mm256_cvtph_ps(h)) };
        }
        scalar::to_f32(x_rest, out_rest);
    }

    fn softmax_page(s: &mut [f32; PAGE_TOKENS], low: usize, high: usize, running: &mut (f32, f32)) -> f32 {
        scalar::softmax_page(s, low, high, running)
    }

    fn attention_scores(q: &[f32], keys: &[f32], scores: &mut [f32; PAGE_TOKENS]) {
        let dim = q.len();
        assert!(dim.is_multiple_of(16) && keys.len() >= PAGE_TOKENS * dim);
        for (group, out) in scores.as_chunks_mut::<8>().0.iter_mut().enumerate() {
            let keys = &keys[group * 8 * dim..];
            let mut sums = [_mm256_setzero_ps(); 8];
            for (quad, sums) in sums.as_chunks_mut::<4>().0.iter_mut().enumerate() {
                let keys = &keys[quad * 4 * dim..(quad + 1) * 4 * dim];
                let mut low = [_mm256_setzero_ps(); 4];
                let mut high = low;
                for d in (0..dim).step_by(16) {
                    // SAFETY: q has `dim` elements, `dim` is a multiple of 16 and d + 16 is at most `dim`.
                    let (q0, q1) = unsafe { (_mm256_loadu_ps(q.as_ptr().add(d)), _mm256_loadu_ps(q.as_ptr().add(d + 8))) };
                    for key in 0..4 {
                        // SAFETY: `keys` has 4 rows of `dim` elements, and d + 16 is at most `dim`.
                        let (k0, k1) = unsafe {
                            let k = keys.as_ptr().add(key * dim + d);
                            (_mm256_loadu_ps(k), _mm256_loadu_ps(k.add(8)))
                        };
                        low[key] = _mm256_fmadd_ps(q0, k0, low[key]);
                        high[key] = _mm256_fmadd_ps(q1, k1, high[key]);
                    }
                }
                for key in 0..4 {
                    // Lanes 8+8.
                    sums[key] = _mm256_add_ps(low[key], high[key]);
                }
            }
            // SAFETY: `out` is 8 floats, written without alignment.
            unsafe { _mm256_storeu_ps(out.as_mut_ptr(), tree_of_eight(sums)) };
        }
    }

    fn attention_values(
        weights: &[f32; PAGE_TOKENS],
        low: usize,
        high: usize,
        values: &[f32],
        rescale: f32,
        sums: &mut [f32],
    ) {
        let dim = sums.len();
        assert!(low <= high && high <= PAGE_TOKENS && dim.is_multiple_of(16) && values.len() >= PAGE_TOKENS * dim);
        let mut d = 0;
        while dim - d >= 64 {
            // SAFETY: the assertion, and d + 64 is at most `dim`.
            unsafe { value_columns::<8>(weights, low, high, values, dim, d, rescale, sums) };
            d += 64;
        }
        if dim - d >= 32 {
            // SAFETY: as above, with 32 columns.
            unsafe { value_columns::<4>(weights, low, high, values, dim, d, rescale, sums) };
            d += 32;
        }
        if dim - d >= 16 {
            // SAFETY: as above, with 16 columns.
            unsafe { value_columns::<2>(weights, low, high, values, dim, d, rescale, sums) };
        }
    }
}

/// The sum of squares of `x` in the order of [`scalar::sum_of_squares`].
#[target_feature(enable = "avx2,fma,f16c")]
fn sum_of_squares(x: &[f32]) -> f32 {
    let (blocks, rest) = x.as_chunks::<16>();
    let mut low = _mm256_setzero_ps();
    let mut high = _mm256_setzero_ps();
    for block in blocks {
        // SAFETY: a block is 16 floats, read as two halves without alignment.
        let (a, b) = unsafe { (_mm256_loadu_ps(block.as_ptr()), _mm256_loadu_ps(block.as_ptr().add(8))) };
        low = _mm256_fmadd_ps(a, a, low);
        high = _mm256_fmadd_ps(b, b, high);
    }
    let mut lanes = [0.0; 16];
    // SAFETY: `lanes` is 16 floats, written as two halves without alignment.
    unsafe {
        _mm256_storeu_ps(lanes.as_mut_ptr(), low);
        _mm256_storeu_ps(lanes.as_mut_ptr().add(8), high);
    }
    for (lane, v) in lanes.iter_mut().zip(rest) {
        *lane = v.mul_add(*v, *lane);
    }
    scalar::tree(lanes)
}

/// Sums the 8 lanes of each of 8 vectors in the fixed order (4+4, 2+2, 1+1); element `i` is the sum of `v[i]`.
#[target_feature(enable = "avx2,fma,f16c")]
fn tree_of_eight(v: [__m256; 8]) -> __m256 {
    let mut four = [_mm256_setzero_ps(); 4];
    for i in 0..4 {
        // The low half belongs to v[i], the high half to v[i + 4].
        let low = _mm256_permute2f128_ps::<0x20>(v[i], v[i + 4]);
        let high = _mm256_permute2f128_ps::<0x31>(v[i], v[i + 4]);
        four[i] = _mm256_add_ps(low, high);
    }
    let pair = |a, b| _mm256_add_ps(_mm256_shuffle_ps::<0x44>(a, b), _mm256_shuffle_ps::<0xee>(a, b));
    let (a, b) = (pair(four[0], four[1]), pair(four[2], four[3]));
    _mm256_add_ps(_mm256_shuffle_ps::<0x88>(a, b), _mm256_shuffle_ps::<0xdd>(a, b))
}

/// `8 * N` columns from column `d`: sums = sums * rescale, then + weight * value for each key in ascending order.
///
/// # Safety
/// `values` has [`PAGE_TOKENS`] rows of `dim` elements, `sums` has `dim`, `d + 8 * N <= dim`, `high <= PAGE_TOKENS`.
#[target_feature(enable = "avx2,fma,f16c")]
#[allow(clippy::too_many_arguments)]
unsafe fn value_columns<const N: usize>(
    weights: &[f32; PAGE_TOKENS],
    low: usize,
    high: usize,
    values: &[f32],
    dim: usize,
    d: usize,
    rescale: f32,
    sums: &mut [f32],
) {
    let rescale = _mm256_set1_ps(rescale);
    let mut acc = [_mm256_setzero_ps(); N];
    for (i, acc) in acc.iter_mut().enumerate() {
        // SAFETY: d + 8 * N is at most `dim`, the length of `sums`.
        *acc = unsafe { _mm256_mul_ps(_mm256_loadu_ps(sums.as_ptr().add(d + 8 * i)), rescale) };
    }
    for (key, weight) in weights.iter().enumerate().take(high).skip(low) {
        let weight = _mm256_set1_ps(*weight);
        for (i, acc) in acc.iter_mut().enumerate() {
            // SAFETY: `key` is below PAGE_TOKENS and d + 8 * N is at most `dim`.
            let v = unsafe { _mm256_loadu_ps(values.as_ptr().add(key * dim + d + 8 * i)) };
            *acc = _mm256_fmadd_ps(weight, v, *acc);
        }
    }
    for (i, acc) in acc.iter().enumerate() {
        // SAFETY: as for the loads of `sums`.
        unsafe { _mm256_storeu_ps(sums.as_mut_ptr().add(d + 8 * i), *acc) };
    }
}

/// The AVX2 form of attention's inner steps.
pub(super) struct Avx2;

impl Form for Avx2 {
    fn to_f32(x: &[f16], out: &mut [f32]) {
        to_f32(x, out);
    }

    fn scores(q: &[f32], keys: &[f32], scores: &mut [f32; PAGE_TOKENS]) {
        attention_scores(q, keys, scores);
    }

    fn soft_cap(scores: &mut [f32; PAGE_TOKENS], cap: f32) {
        soft_cap(scores, cap);
    }

    fn softmax_page(s: &mut [f32; PAGE_TOKENS], low: usize, high: usize, running: &mut (f32, f32)) -> f32 {
        softmax_page(s, low, high, running)
    }

    fn values(
        weights: &[f32; PAGE_TOKENS],
        low: usize,
        high: usize,
        values: &[f32],
        rescale: f32,
        sums: &mut [f32],
    ) {
        attention_values(weights, low, high, values, rescale, sums);
    }
}
