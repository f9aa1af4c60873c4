//! The float operations with NEON.
//!
//! Every aarch64 has it, so the compiler makes vectors of the scalar text by itself. Written here is what it leaves
//! alone: a sum in 16 lanes, half precision, and attention's loops.

use super::attention::{Ahead, Element, Form, Scores};
use super::heads;
use super::scalar;
use crate::vector::Vector;
use half::f16;
use std::arch::aarch64::*;
use std::arch::asm;
use std::ops::Range;

/// As [`scalar::rms_norm`].
pub(super) fn rms_norm(x: &mut [f32], gain: &[f32], eps: f32) {
    for row in x.chunks_exact_mut(gain.len().max(1)) {
        let scale = scalar::rms_scale(sum_of_squares(row), row.len(), eps);
        scalar::mul_gain(row, gain, scale);
    }
}

/// As [`scalar::to_f16`].
pub(super) fn to_f16(x: &[f32], out: &mut [f16]) {
    let (x4, x_rest) = x.as_chunks::<4>();
    let (out4, out_rest) = out.as_chunks_mut::<4>();
    for (o, x) in out4.iter_mut().zip(x4) {
        // SAFETY: x is 4 floats, o is 4 halves, both of any alignment; f16 is a transparent u16. `std` has the conversion
        // in an unstable function only. It rounds as the processor is set: to the nearest, ties to even.
        unsafe {
            let halves: uint16x4_t;
            asm!("fcvtn {halves:v}.4h, {x:v}.4s", halves = lateout(vreg) halves, x = in(vreg) vld1q_f32(x.as_ptr()),
                options(pure, nomem, nostack));
            vst1_u16(o.as_mut_ptr().cast(), halves);
        }
    }
    scalar::to_f16(x_rest, out_rest);
}

/// The sum of squares of `x` in the order of [`scalar::sum_of_squares`].
fn sum_of_squares(x: &[f32]) -> f32 {
    let (blocks, rest) = x.as_chunks::<16>();
    let mut lanes = [0.0; 16];
    // SAFETY: every aarch64 has NEON; a block and `lanes` are 16 floats, taken 4 at a time and of any alignment.
    unsafe {
        let mut sums = [vdupq_n_f32(0.0); 4];
        for block in blocks {
            for (i, sum) in sums.iter_mut().enumerate() {
                let v = vld1q_f32(block.as_ptr().add(4 * i));
                *sum = vfmaq_f32(*sum, v, v);
            }
        }
        for (i, sum) in sums.into_iter().enumerate() {
            vst1q_f32(lanes.as_mut_ptr().add(4 * i), sum);
        }
    }
    for (lane, v) in lanes.iter_mut().zip(rest) {
        *lane = v.mul_add(*v, *lane);
    }
    scalar::tree(lanes)
}

/// As [`scalar::to_f32`].
fn to_f32(x: &[f16], out: &mut [f32]) {
    let (x4, x_rest) = x.as_chunks::<4>();
    let (out4, out_rest) = out.as_chunks_mut::<4>();
    for (o, x) in out4.iter_mut().zip(x4) {
        // SAFETY: as in `to_f16`, the other way round.
        unsafe { float32x4_t::load_f16(x.as_ptr().cast()).store(o.as_mut_ptr()) };
    }
    scalar::to_f32(x_rest, out_rest);
}

/// The NEON form of attention's inner steps.
pub(super) struct Neon;

impl Form for Neon {
    const FEW: usize = 3;

    fn to_f32(x: &[f16], out: &mut [f32]) {
        to_f32(x, out);
    }

    fn q8_keys(quants: &[i8], scales: &[f16], keys: &mut [f32]) {
        // SAFETY: every aarch64 has NEON.
        unsafe { heads::q8_keys::<float32x4_t>(quants, scales, keys) }
    }

    fn q8_row(quants: &[i8], scales: &[f16], out: &mut [f32]) {
        // SAFETY: every aarch64 has NEON.
        unsafe { heads::q8_row::<float32x4_t>(quants, scales, out) }
    }

    fn scores<E: Element>(q: &[f32], dim: usize, keys: &[E], ahead: Ahead, scores: &mut [Scores]) {
        // SAFETY: every aarch64 has NEON.
        unsafe { heads::scores::<float32x4_t, E>(q, dim, keys, ahead, scores) }
    }

    fn soft_cap(scores: &mut Scores, cap: f32) {
        scalar::soft_cap(scores, cap);
    }

    fn softmax_page(
        scores: &mut [Scores],
        low: usize,
        high: usize,
        running: &mut [(f32, f32)],
        rescale: &mut [f32],
    ) {
        scalar::softmax_page(scores, low, high, running, rescale);
    }

    fn values<E: Element>(
        weights: &[Scores],
        keys: Range<usize>,
        values: &[E],
        ahead: Ahead,
        rescale: &[f32],
        sums: &mut [f32],
    ) {
        // SAFETY: every aarch64 has NEON.
        unsafe { heads::values::<float32x4_t, E>(weights, keys, values, ahead, rescale, sums) }
    }

    fn merge(total: (&mut (f32, f32), &mut [f32]), part: (&(f32, f32), &[f32])) {
        scalar::merge(total, part);
    }
}
