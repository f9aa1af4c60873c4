//! The quantised product with a token, or a few.
//!
//! For blocks without sub-scales: what is unpacked is multiplied at once, a block or two at a time, with the sums of a tile's outputs in
//! registers all along. The processor then computes the products of some blocks while it reads and unpacks the next: unpacking is
//! mostly shuffles, and multiplying mostly multiply-adds, which different units do. By way of a [panel](super::tile), one stands idle
//! while the other works. With more tokens the sums alone would fill the registers, and a panel serves them all; a block of 256
//! with sub-scales is more than a processor looks ahead.

#![allow(unsafe_code)]

use std::mem::MaybeUninit;
use std::ops::Range;

use super::simd::Simd;
use super::tile::{Places, Tile, Vectors, accumulate, unpack_blocks};
use super::unpack::Rows;
use super::{Job, TILE};

/// The most tokens that [`product`] is for; more are faster by way of a panel.
pub(super) const fn most<S: Simd, F: Rows>() -> usize {
    // As many as `by_tokens` has.
    const { assert!(S::AT_ONCE <= 8) };
    if F::SUB_SCALES { 0 } else { S::AT_ONCE }
}

/// Computes the outputs `$rows` of a job by `$at_once::<$format, T>`, a function around [`product`], if it has `T` tokens and these
/// are no more than [`most`], and otherwise as `$otherwise` does.
///
/// Each number of tokens has a function of its own: compiled as one, they got in each other's way for registers.
macro_rules! by_tokens {
    ($simd:ty, $format:ty, $at_once:ident($job:expr, $rows:expr), otherwise $otherwise:expr) => {
        by_tokens!(@ 1 2 3 4 5 6 7 8; $simd, $format, $at_once, $job, $rows, $otherwise)
    };
    (@ $($tokens:literal)*; $simd:ty, $format:ty, $at_once:ident, $job:expr, $rows:expr, $otherwise:expr) => {
        match $job.input.rows {
            $($tokens if const { $tokens <= few::most::<$simd, $format>() } => $at_once::<$format, $tokens>($job, $rows),)*
            _ => $otherwise,
        }
    };
}
pub(super) use by_tokens;

/// The outputs `rows` for all tokens, which are `T`.
///
/// # Safety
/// As [`MatmulFn`](super::MatmulFn), with the instructions of `S`; the job has at least [`TILE`] rows.
#[inline(always)]
pub(super) unsafe fn product<S: Simd, F: Rows, const T: usize>(job: &Job<'_>, rows: Range<usize>) {
    for row in rows.step_by(TILE) {
        // SAFETY: the caller's promise.
        unsafe { tile::<S, F, T>(job, row) }
    }
}

/// The outputs of a tile from `row` for `T` tokens, which are all.
///
/// # Safety
/// As [`product`].
#[inline(always)]
unsafe fn tile<S: Simd, F: Rows, const T: usize>(job: &Job<'_>, row: usize) {
    // The last tile begins earlier instead of ending later, and computes some rows again.
    let start = row.min(job.rows - TILE);
    let blocks = job.input.cols / F::LEN;
    // Of a block; each has a scale.
    let stretches = const {
        assert!(F::LEN <= if F::PAIRED { 2 } else { 4 } * F::SCALED);
        F::LEN / F::SCALED
    };
    let first: [usize; T] = std::array::from_fn(|t| t * (job.input.cols / F::ACTIVATIONS));
    // Where this stays in memory, it is the same few lines of it for every block.
    let mut tile = MaybeUninit::<Tile>::uninit();
    // SAFETY: the caller's promise: the tile's rows are inside the matrix, the tokens inside the input, and no one else writes
    // these outputs, `row..` being those that the tile is for. A tile has room for two blocks.
    unsafe {
        let from = job.weights.as_ptr().add(start * job.row_bytes);
        // All rows of a tile are read at once, each from its own place. The next tile is one range of the file, so it is
        // fetched as such.
        let next = from.wrapping_add(TILE * job.row_bytes);
        let tile = Places::of(tile.as_mut_ptr());
        for t in 0..T {
            job.out.ask_for(t, row);
        }
        let mut acc = [[S::to_float(S::zero()); T]];
        let mut b = 0;
        while b < blocks {
            let (from, ahead) = (from.add(b * F::BYTES), next.wrapping_add(TILE * b * F::BYTES));
            // Blocks and stretches are written out, so that every place in the tile is a constant, and a register where there are
            // enough.
            macro_rules! blocks {
                ($n:literal: $($at:literal)*) => {
                    unpack_blocks::<S, Vectors<S>, F, $n>(from, job.row_bytes, tile, 0, None, true);
                    $(if $at < $n * stretches {
                        let b = b * stretches + $at;
                        accumulate::<S, F, 1, T>(&job.input, &first, b, &[tile], $at, &mut acc, Some(ahead));
                    })*
                    b += $n;
                };
            }
            if F::PAIRED && b + 1 < blocks {
                blocks!(2: 0 1 2 3);
            } else {
                blocks!(1: 0 1 2 3);
            }
        }
        let [acc] = acc;
        for (t, acc) in acc.into_iter().enumerate() {
            let mut out = [0.0; TILE];
            S::store(out.as_mut_ptr(), acc);
            job.out.write(t, row, &out[row - start..]);
        }
    }
}
