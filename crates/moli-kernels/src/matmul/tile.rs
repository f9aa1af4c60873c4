//! The vector form of the quantised product.
//!
//! A task takes 16 rows of weights at a time. A stretch of their columns is unpacked into a panel that fits the
//! first-level cache, with rows as lanes, and multiplied with all tokens, a few at a time; then comes the next stretch.
//! With rows as lanes every lane performs the scalar form's sequence of operations, so the bits agree by construction,
//! and nothing depends on how many tokens there are.
//!
//! The multiplication is written once over [`Simd`], a few operations on 16 lanes.

#![allow(unsafe_code)]

use std::arch::x86_64::*;
use std::ops::Range;

use moli_format::TensorType;

use super::simd::{Avx2, Avx512, Simd, Zmm};
use super::unpack::{Lanes, QUAD, Rows};
use super::{Job, MatmulFn, TILE, float};
use crate::quant::unpack::*;

/// Columns of a panel.
const COLS: usize = 1024;
/// Columns that are unpacked at a time for few tokens: what was unpacked is used at once.
const COLS_FEW: usize = 256;
/// Tokens that count as few.
const FEW: usize = 8;
/// Tokens for which a panel is used before the next.
const TOKENS: usize = 512;

/// 16 rows by [`COLS`] columns of weights, and the outputs so far of [`TOKENS`] tokens.
#[repr(C, align(64))]
pub(crate) struct Panel {
    /// `[quad][row][4]`
    quants: [u8; COLS / 4 * QUAD],
    /// `[block][row]`
    d: [[f32; TILE]; COLS / 32],
    /// `[block][row]`
    m: [[f32; TILE]; COLS / 32],
    /// `[block][sub][row]`; see [`Lanes`].
    scales: [[i32; TILE]; COLS / 16],
    /// `[block][pair of subs][row]`; see [`Lanes`].
    sums: [[i32; TILE]; COLS / 32],
    /// `[token][row]`
    acc: [[f32; TILE]; TOKENS],
}

impl Default for Panel {
    fn default() -> Self {
        Self {
            quants: [0; COLS / 4 * QUAD],
            d: [[0.0; TILE]; COLS / 32],
            m: [[0.0; TILE]; COLS / 32],
            scales: [[0; TILE]; COLS / 16],
            sums: [[0; TILE]; COLS / 32],
            acc: [[0.0; TILE]; TOKENS],
        }
    }
}

impl std::fmt::Debug for Panel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Panel").finish_non_exhaustive()
    }
}

/// A function for each type that has kernels.
macro_rules! quantized {
    ($ttype:expr, $run:ident) => {
        match $ttype {
            TensorType::Q4_0 => $run::<Q4_0>,
            TensorType::Q4_1 => $run::<Q4_1>,
            TensorType::Q5_0 => $run::<Q5_0>,
            TensorType::Q5_1 => $run::<Q5_1>,
            TensorType::Q8_0 => $run::<Q8_0>,
            TensorType::Q2K => $run::<Q2K>,
            TensorType::Q3K => $run::<Q3K>,
            TensorType::Q4K => $run::<Q4K>,
            TensorType::Q5K => $run::<Q5K>,
            TensorType::Q6K => $run::<Q6K>,
            other => float::product(other),
        }
    };
}
#[cfg(test)]
pub(super) use quantized;

/// The products with AVX2, for a type that has kernels.
pub(super) fn avx2(ttype: TensorType) -> MatmulFn {
    /// # Safety
    /// As [`MatmulFn`]; AVX2, FMA and F16C.
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn run<F: Rows>(job: &Job<'_>, rows: Range<usize>, panel: &mut Box<Panel>) {
        // SAFETY: the caller's promise.
        unsafe { product::<Avx2, F, 3>(job, rows, panel) }
    }
    quantized!(ttype, run)
}

/// The products with AVX-512-VNNI, for a type that has kernels.
pub(super) fn avx512(ttype: TensorType) -> MatmulFn {
    /// # Safety
    /// As [`MatmulFn`]; AVX-512 F, BW, VL and VNNI, AVX2, FMA and F16C.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma,f16c")]
    unsafe fn run<F: Rows>(job: &Job<'_>, rows: Range<usize>, panel: &mut Box<Panel>) {
        // SAFETY: the caller's promise.
        unsafe { product::<Avx512<Zmm>, F, 6>(job, rows, panel) }
    }
    quantized!(ttype, run)
}

/// The outputs `rows` for all tokens, `T` at a time.
///
/// # Safety
/// As [`MatmulFn`], with the instructions that `S` needs and AVX2 and F16C; the job has at least [`TILE`] rows.
#[inline(always)]
pub(super) unsafe fn product<S: Simd, F: Rows, const T: usize>(
    job: &Job<'_>,
    rows: Range<usize>,
    panel: &mut Panel,
) {
    let cols = job.input.cols;
    for first in (0..job.input.rows).step_by(TOKENS) {
        let tokens = TOKENS.min(job.input.rows - first);
        let step = if tokens <= FEW { COLS_FEW } else { COLS };
        for row in rows.clone().step_by(TILE) {
            // The last tile begins earlier instead of ending later, and computes some rows again.
            let start = row.min(job.rows - TILE);
            for acc in panel.acc.iter_mut().take(tokens) {
                *acc = [0.0; TILE];
            }
            for col in (0..cols).step_by(step) {
                let blocks = step.min(cols - col) / F::LEN;
                let tokens = Tokens { first, tokens, block: first * (cols / F::LEN) + col / F::LEN };
                // SAFETY: the tile's rows and columns are inside the matrix, the tokens inside the input.
                unsafe {
                    unpack::<F>(job, start, col / F::LEN, blocks, panel);
                    multiply::<S, F, T>(job, blocks, &tokens, panel);
                }
            }
            for (t, acc) in panel.acc.iter().enumerate().take(tokens) {
                // SAFETY: no one else writes these rows, and `row..` are the ones that this tile is for.
                unsafe { job.out.write(first + t, row, &acc[row - start..]) };
            }
        }
    }
}

/// Which tokens a panel is multiplied with.
struct Tokens {
    first: usize,
    tokens: usize,
    /// The first token's block of activations at the panel's first column.
    block: usize,
}

/// Unpacks `blocks` blocks of 16 rows.
///
/// # Safety
/// AVX2 and F16C; the rows and blocks are inside the job's weights, and the panel has room.
#[inline(always)]
unsafe fn unpack<F: Rows>(job: &Job<'_>, row: usize, block: usize, blocks: usize, panel: &mut Panel) {
    // SAFETY: the caller's promise. Prefetching reads nothing, whatever the address.
    unsafe {
        let from = job.weights.as_ptr().add(row * job.row_bytes + block * F::BYTES);
        // A tile is one range of the file: the next one is fetched a piece at a time, each line once.
        let tile_bytes = TILE * job.row_bytes;
        let ahead =
            job.weights.as_ptr().wrapping_add(row * job.row_bytes + tile_bytes + TILE * block * F::BYTES);
        for line in (0..TILE * blocks * F::BYTES).step_by(64) {
            _mm_prefetch::<_MM_HINT_T0>(ahead.wrapping_add(line).cast());
        }
        for b in 0..blocks {
            for half in 0..2 {
                let lanes = Lanes {
                    quants: panel.quants.as_mut_ptr().add(b * F::LEN / 4 * QUAD + half * QUAD / 2),
                    d: panel.d.as_mut_ptr().add(b).cast::<f32>().add(8 * half),
                    m: panel.m.as_mut_ptr().add(b).cast::<f32>().add(8 * half),
                    scales: panel.scales.as_mut_ptr().add(b * F::LEN / F::SUB).cast::<i32>().add(8 * half),
                    sums: panel.sums.as_mut_ptr().add(b * F::LEN / F::SUB / 2).cast::<i32>().add(8 * half),
                };
                F::unpack8(from.add(b * F::BYTES + 8 * half * job.row_bytes), job.row_bytes, lanes);
            }
        }
    }
}

/// Multiplies a panel with its tokens.
///
/// # Safety
/// The instructions of `S`; the panel holds `blocks` blocks, and the tokens are inside the input.
#[inline(always)]
unsafe fn multiply<S: Simd, F: Rows, const T: usize>(
    job: &Job<'_>,
    blocks: usize,
    tokens: &Tokens,
    panel: &mut Panel,
) {
    let mut token = 0;
    // SAFETY: the caller's promise.
    unsafe {
        while tokens.tokens - token >= T {
            multiply_some::<S, F, T>(job, blocks, tokens, token, panel);
            token += T;
        }
        while tokens.tokens - token >= 2 {
            multiply_some::<S, F, 2>(job, blocks, tokens, token, panel);
            token += 2;
        }
        while token < tokens.tokens {
            multiply_some::<S, F, 1>(job, blocks, tokens, token, panel);
            token += 1;
        }
    }
}

/// Multiplies a panel with `T` tokens.
///
/// # Safety
/// As [`multiply`].
#[inline(always)]
unsafe fn multiply_some<S: Simd, F: Rows, const T: usize>(
    job: &Job<'_>,
    blocks: usize,
    tokens: &Tokens,
    token: usize,
    panel: &mut Panel,
) {
    let input = &job.input;
    let per_row = input.cols / F::LEN;
    let first: [usize; T] = std::array::from_fn(|t| tokens.block + (token + t) * per_row);
    debug_assert!((first[T - 1] + blocks) * F::LEN <= input.q.len() && tokens.first + token < input.rows);
    // SAFETY: the caller's promise: block number `first[t] + b` is inside the input for each b below `blocks`, and so are
    // the panel's arrays.
    unsafe {
        let acc_at = panel.acc.as_mut_ptr().add(token).cast::<f32>();
        let mut acc: [S::Float; T] = std::array::from_fn(|t| S::load(acc_at.add(t * TILE)));
        for b in 0..blocks {
            let subs = F::LEN / F::SUB;
            let w = panel.quants.as_ptr().add(b * F::LEN / 4 * QUAD);
            let scales = panel.scales.as_ptr().add(b * subs);
            let sums = panel.sums.as_ptr().add(b * subs / 2);
            let (d, m) = (panel.d.as_ptr().add(b).cast::<f32>(), panel.m.as_ptr().add(b).cast::<f32>());
            let pair = |t: usize, i: usize| {
                let all = if F::SUB == 16 { input.sums16 } else { input.sums32 };
                all.as_ptr().add((first[t] + b) * subs + 2 * i).cast::<i32>().read_unaligned()
            };

            let mut products = [S::zero(); T];
            if F::LEN == 256 && F::OFFSET != 0 {
                for i in 0..subs / 2 {
                    for (t, products) in products.iter_mut().enumerate() {
                        *products = S::add_pairs(sums.add(i).cast(), pair(t, i), *products);
                    }
                }
            }
            for sub in 0..subs {
                let a = std::array::from_fn(|t| input.q.as_ptr().add((first[t] + b) * F::LEN + sub * F::SUB));
                S::dot::<F, T>(w.add(sub * F::SUB / 4 * QUAD), a, scales.add(sub).cast(), &mut products);
            }
            let offset_bits = match F::TYPE {
                TensorType::Q8_0 => S::SIGNED_OFFSET_BITS,
                _ if F::LEN == 32 && F::OFFSET != 0 => Some(F::OFFSET.trailing_zeros() as i32),
                _ => None,
            };
            for (t, acc) in acc.iter_mut().enumerate() {
                let block = first[t] + b;
                let mut sum = products[t];
                if let Some(bits) = offset_bits {
                    sum = S::sub(sum, S::splat_shifted(*input.sums.get_unchecked(block), bits));
                }
                let scale = *input.d.get_unchecked(block);
                *acc = S::fma(S::to_float(sum), S::scaled(d, scale), *acc);
                if F::MIN && F::LEN == 32 {
                    *acc = S::fma_splat(m, *input.ds.get_unchecked(block), *acc);
                } else if F::MIN {
                    let mut mins = S::zero();
                    for i in 0..subs / 2 {
                        mins = S::add_pairs(sums.add(i).cast(), pair(t, i), mins);
                    }
                    *acc = S::fma(S::to_float(mins), S::scaled(m, scale), *acc);
                }
            }
        }
        for (t, acc) in acc.iter().enumerate() {
            S::store(acc_at.add(t * TILE), *acc);
        }
    }
}
