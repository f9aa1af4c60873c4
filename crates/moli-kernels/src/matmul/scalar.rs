//! The matrix product in its plainest form: what every other form must equal bit for bit.

#![allow(unsafe_code)]

use std::ops::Range;

use half::{bf16, f16};
use moli_format::TensorType;

use super::{Job, MatmulFn, Panel};
use crate::float::tree;
use crate::quant::by_type;
use crate::quant::unpack::*;

/// Tokens for which a block is taken apart once.
const TOKENS: usize = 16;

/// The product for a type that has kernels.
pub(super) fn product(ttype: TensorType) -> MatmulFn {
    by_type!(ttype, quantized, float::<4, F32>, float::<2, F16>, float::<2, Bf16>)
}

/// # Safety
/// No other thread computes these rows of the job.
unsafe fn quantized<F: Format>(job: &Job<'_>, rows: Range<usize>, _: &mut Panel) {
    let mut block = Unpacked::new();
    let tokens = job.input.rows;
    let blocks = job.input.cols / F::LEN;
    for row in rows {
        let bytes = &job.weights[row * job.row_bytes..(row + 1) * job.row_bytes];
        for first in (0..tokens).step_by(TOKENS) {
            let n = TOKENS.min(tokens - first);
            let mut acc = [0.0; TOKENS];
            for (b, bytes) in bytes.chunks_exact(F::BYTES).enumerate() {
                F::unpack(bytes, &mut block);
                for (t, acc) in acc.iter_mut().enumerate().take(n) {
                    *acc = add_block::<F>(job, &block, (first + t) * blocks + b, *acc);
                }
            }
            for (t, acc) in acc.iter().enumerate().take(n) {
                // SAFETY: no one else writes this row's outputs.
                unsafe { job.out.write(first + t, row, std::slice::from_ref(acc)) };
            }
        }
    }
}

/// acc + block · (block number `b` of the activations).
fn add_block<F: Format>(job: &Job<'_>, block: &Unpacked, b: usize, mut acc: f32) -> f32 {
    let input = &job.input;
    let all = &input.q[b * F::LEN..(b + 1) * F::LEN];
    for (i, (q, a)) in block.q.chunks(F::SCALED).zip(all.chunks(F::SCALED)).enumerate() {
        // The block of activations that these are in.
        let b = (b * F::LEN + i * F::SCALED) / F::ACTIVATIONS;
        let mut products = 0;
        for (sub, (q, a)) in q.chunks(F::SUB).zip(a.chunks(F::SUB)).enumerate() {
            let product = |(q, a): (&i8, &i8)| i32::from(i16::from(*q) - F::OFFSET) * i32::from(*a);
            products += i32::from(block.scales[sub]) * q.iter().zip(a).map(product).sum::<i32>();
        }
        acc = (products as f32).mul_add(block.d[i] * input.d[b], acc);
        if F::MIN && F::SUB_SCALES {
            let sums = a.chunks(F::SUB).map(|a| a.iter().map(|a| i32::from(*a)).sum::<i32>());
            let mins: i32 = sums.zip(&block.mins).map(|(sum, min)| i32::from(*min) * sum).sum();
            acc = (mins as f32).mul_add(block.m * input.d[b], acc);
        } else if F::MIN {
            acc = block.m.mul_add(input.ds[b], acc);
        }
    }
    acc
}

/// An unquantised type of `N` bytes.
trait Float<const N: usize> {
    fn read(bytes: [u8; N]) -> f32;
}

struct F32;
struct F16;
struct Bf16;

impl Float<4> for F32 {
    fn read(bytes: [u8; 4]) -> f32 {
        f32::from_le_bytes(bytes)
    }
}

impl Float<2> for F16 {
    fn read(bytes: [u8; 2]) -> f32 {
        f16::from_le_bytes(bytes).to_f32()
    }
}

impl Float<2> for Bf16 {
    fn read(bytes: [u8; 2]) -> f32 {
        bf16::from_le_bytes(bytes).to_f32()
    }
}

/// # Safety
/// No other thread computes these rows of the job.
unsafe fn float<const N: usize, F: Float<N>>(job: &Job<'_>, rows: Range<usize>, _: &mut Panel) {
    let cols = job.input.cols;
    for row in rows {
        let w = job.weights[row * job.row_bytes..(row + 1) * job.row_bytes].as_chunks::<N>().0;
        for token in 0..job.input.rows {
            let x = &job.input.x[token * cols..(token + 1) * cols];
            let mut lanes = [0.0; 16];
            for (k, (w, x)) in w.iter().zip(x).enumerate() {
                lanes[k % 16] = F::read(*w).mul_add(*x, lanes[k % 16]);
            }
            // SAFETY: no one else writes this row's outputs.
            unsafe { job.out.write(token, row, &[tree(lanes)]) };
        }
    }
}
