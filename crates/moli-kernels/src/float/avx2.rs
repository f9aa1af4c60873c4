//! The float operations with AVX2, FMA and F16C.
//!
//! Reductions, half-precision conversion and attention's inner loops are written with intrinsics; the elementwise
//! operations are the scalar text compiled again with these instructions, so that they agree by construction.
//!
//! AVX-512 machines use these forms too, but for attention's inner steps (see [`super::avx512`]): the operations here are bound
//! by memory or small beside the matrix products.

use super::attention::{Ahead, Element, Form, Scores};
use super::heads;
use super::recurrent::{self, DeltaHead};
use super::scalar;
use crate::quant::eight_bits;
use half::f16;
use std::arch::x86_64::*;
use std::ops::Range;

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

    fn layer_norm(x: &mut [f32], gain: &[f32], bias: &[f32], eps: f32) {
        scalar::layer_norm(x, gain, bias, eps);
    }

    fn add_scaled(to: &mut [f32], from: &[f32], factor: f32) {
        scalar::add_scaled(to, from, factor);
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

    fn swiglu_clamped(gate: &mut [f32], up: &[f32]) {
        scalar::swiglu_clamped(gate, up);
    }

    fn silu(x: &mut [f32]) {
        scalar::silu(x);
    }

    fn relu(x: &mut [f32]) {
        scalar::relu(x);
    }

    fn relu_squared(x: &mut [f32]) {
        scalar::relu_squared(x);
    }

    fn xielu(x: &mut [f32], numbers: [f32; 4]) {
        scalar::xielu(x, numbers);
    }

    fn gelu(x: &mut [f32]) {
        scalar::gelu(x);
    }

    fn geglu_erf(gate: &mut [f32], up: &[f32]) {
        scalar::geglu_erf(gate, up);
    }

    fn gelu_erf(x: &mut [f32]) {
        scalar::gelu_erf(x);
    }

    fn multiply(x: &mut [f32], y: &[f32]) {
        scalar::multiply(x, y);
    }

    fn multiply_add(out: &mut [f32], x: &[f32], y: &[f32]) {
        scalar::multiply_add(out, x, y);
    }

    fn gate_sigmoid(x: &mut [f32], gate: &[f32]) {
        scalar::gate_sigmoid(x, gate);
    }

    fn unit(x: &mut [f32], eps: f32, factor: f32) {
        scalar::unit(x, eps, factor);
    }

    fn delta_head(head: DeltaHead<'_>) {
        recurrent::delta_head(head);
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

    fn to_q8(x: &[f32], q: &mut [i8]) -> f16 {
        eight_bits(x, q)
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

    fn softmax_page(s: &mut [Scores], low: usize, high: usize, running: &mut [(f32, f32)], rescale: &mut [f32]) {
        scalar::softmax_page(s, low, high, running, rescale);
    }

    fn merge(total: (&mut (f32, f32), &mut [f32]), part: (&(f32, f32), &[f32])) {
        scalar::merge(total, part);
    }

    fn q8_keys(quants: &[i8], scales: &[f16], keys: &mut [f32]) {
        // SAFETY: AVX2 and F16C are here.
        unsafe { heads::q8_keys::<__m256>(quants, scales, keys) }
    }

    fn q8_row(quants: &[i8], scales: &[f16], out: &mut [f32]) {
        // SAFETY: AVX2 and F16C are here.
        unsafe { heads::q8_row::<__m256>(quants, scales, out) }
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
fn scores<E: Element>(q: &[f32], dim: usize, keys: &[E], ahead: Ahead, scores: &mut [Scores]) {
    // SAFETY: AVX2 and FMA are here.
    unsafe { heads::scores::<__m256, E>(q, dim, keys, ahead, scores) }
}

#[target_feature(enable = "avx2,fma,f16c")]
fn values<E: Element>(
    weights: &[Scores],
    keys: Range<usize>,
    values: &[E],
    ahead: Ahead,
    rescale: &[f32],
    sums: &mut [f32],
) {
    // SAFETY: AVX2 and FMA are here.
    unsafe { heads::values::<__m256, E>(weights, keys, values, ahead, rescale, sums) }
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

/// The AVX2 form of attention's inner steps, picked as the table is.
pub(super) struct Avx2;

impl Form for Avx2 {
    const FEW: usize = 3;

    fn to_f32(x: &[f16], out: &mut [f32]) {
        to_f32(x, out);
    }

    fn q8_keys(quants: &[i8], scales: &[f16], keys: &mut [f32]) {
        q8_keys(quants, scales, keys);
    }

    fn q8_row(quants: &[i8], scales: &[f16], out: &mut [f32]) {
        q8_row(quants, scales, out);
    }

    fn scores<E: Element>(q: &[f32], dim: usize, keys: &[E], ahead: Ahead, scores: &mut [Scores]) {
        // SAFETY: see the type.
        unsafe { self::scores(q, dim, keys, ahead, scores) }
    }

    fn soft_cap(scores: &mut Scores, cap: f32) {
        soft_cap(scores, cap);
    }

    fn softmax_page(
        scores: &mut [Scores],
        low: usize,
        high: usize,
        running: &mut [(f32, f32)],
        rescale: &mut [f32],
    ) {
        softmax_page(scores, low, high, running, rescale);
    }

    fn values<E: Element>(
        weights: &[Scores],
        keys: Range<usize>,
        values: &[E],
        ahead: Ahead,
        rescale: &[f32],
        sums: &mut [f32],
    ) {
        // SAFETY: see the type.
        unsafe { self::values(weights, keys, values, ahead, rescale, sums) }
    }

    fn merge(total: (&mut (f32, f32), &mut [f32]), part: (&(f32, f32), &[f32])) {
        merge(total, part);
    }
}
