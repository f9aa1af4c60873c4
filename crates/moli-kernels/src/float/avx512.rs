//! Attention's inner steps with AVX-512.

use super::attention::{Ahead, Element, Form, Scores};
use super::heads;
use super::scalar;
use half::f16;
use std::arch::x86_64::*;
use std::ops::Range;

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2,fma,f16c")]
fn q8_keys(quants: &[i8], scales: &[f16], keys: &mut [f32]) {
    // SAFETY: AVX-512 is here.
    unsafe { heads::q8_keys::<__m512>(quants, scales, keys) }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2,fma,f16c")]
fn q8_row(quants: &[i8], scales: &[f16], out: &mut [f32]) {
    // SAFETY: AVX-512 is here.
    unsafe { heads::q8_row::<__m512>(quants, scales, out) }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2,fma,f16c")]
fn scores<E: Element>(q: &[f32], dim: usize, keys: &[E], ahead: Ahead, scores: &mut [Scores]) {
    // SAFETY: AVX-512 is here.
    unsafe { heads::scores::<__m512, E>(q, dim, keys, ahead, scores) }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2,fma,f16c")]
fn values<E: Element>(
    weights: &[Scores],
    keys: Range<usize>,
    values: &[E],
    ahead: Ahead,
    rescale: &[f32],
    sums: &mut [f32],
) {
    // SAFETY: AVX-512 is here.
    unsafe { heads::values::<__m512, E>(weights, keys, values, ahead, rescale, sums) }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2,fma,f16c")]
fn softmax_page(
    scores: &mut [Scores],
    low: usize,
    high: usize,
    running: &mut [(f32, f32)],
    rescale: &mut [f32],
) {
    scalar::softmax_page(scores, low, high, running, rescale);
}

/// The AVX-512 form of attention's inner steps. [`super::FloatOps::new`] picks it only where the processor has AVX-512.
pub(super) struct Avx512;

impl Form for Avx512 {
    const FEW: usize = 8;

    fn to_f32(x: &[f16], out: &mut [f32]) {
        super::avx2::to_f32(x, out);
    }

    fn q8_keys(quants: &[i8], scales: &[f16], keys: &mut [f32]) {
        // SAFETY: see the type.
        unsafe { q8_keys(quants, scales, keys) }
    }

    fn q8_row(quants: &[i8], scales: &[f16], out: &mut [f32]) {
        // SAFETY: see the type.
        unsafe { q8_row(quants, scales, out) }
    }

    fn scores<E: Element>(q: &[f32], dim: usize, keys: &[E], ahead: Ahead, out: &mut [Scores]) {
        // SAFETY: see the type.
        unsafe { scores(q, dim, keys, ahead, out) }
    }

    fn soft_cap(scores: &mut Scores, cap: f32) {
        super::avx2::soft_cap(scores, cap);
    }

    fn softmax_page(
        scores: &mut [Scores],
        low: usize,
        high: usize,
        running: &mut [(f32, f32)],
        rescale: &mut [f32],
    ) {
        // SAFETY: see the type.
        unsafe { softmax_page(scores, low, high, running, rescale) };
    }

    fn values<E: Element>(
        weights: &[Scores],
        keys: Range<usize>,
        v: &[E],
        ahead: Ahead,
        rescale: &[f32],
        sums: &mut [f32],
    ) {
        // SAFETY: see the type.
        unsafe { values(weights, keys, v, ahead, rescale, sums) }
    }

    fn merge(total: (&mut (f32, f32), &mut [f32]), part: (&(f32, f32), &[f32])) {
        super::avx2::merge(total, part);
    }
}
