//! The vector operations of the quantised product, on 16 lanes: one for each row of a tile.

#![allow(unsafe_code)]

use super::Job;
use super::tile::{Panel, Tokens, multiply_any};
use super::unpack::{Dwords, Rows};

/// Quads of a sub-block that can be multiplied and added up in i16s, each of which takes `products` products of a quad.
pub(super) const fn safe_quads<F: Rows>(products: i32) -> usize {
    let mut n = F::SUB / 4;
    // Activations are at most 127 in magnitude.
    while n as i32 * products * F::MAX * 127 > i16::MAX as i32 {
        n /= 2;
    }
    n
}

/// Operations on 16 lanes, one for each row of a tile, and the product that is made of them.
///
/// # Safety of all methods
/// The processor has the instructions, and 16 elements can be read or written at each pointer to lanes.
pub(super) trait Simd {
    /// What unpacks rows into the lanes.
    type Rows: Dwords;
    /// 16 i32.
    type Int: Copy;
    /// 16 f32.
    type Float: Copy;
    /// Tokens that are multiplied with one tile at a time, when there are many.
    const TOKENS: usize;
    /// Tiles that are multiplied at a time with several tokens: a token's activations are read once for all of them.
    const TILES: usize;
    /// Tokens up to which blocks without sub-scales are multiplied as soon as they are unpacked, without a panel.
    const AT_ONCE: usize;
    /// Quantised values with a sign count 128 too many.
    const UNSIGNED: bool;

    unsafe fn zero() -> Self::Int;
    unsafe fn sub(a: Self::Int, b: Self::Int) -> Self::Int;
    /// The same number in all lanes, times 2^`bits`.
    unsafe fn splat_shifted(v: i32, bits: i32) -> Self::Int;
    unsafe fn to_float(v: Self::Int) -> Self::Float;
    unsafe fn load(from: *const f32) -> Self::Float;
    unsafe fn store(to: *mut f32, v: Self::Float);
    /// lanes * s
    unsafe fn scaled(lanes: *const f32, s: f32) -> Self::Float;
    /// a * b + c, rounded once
    unsafe fn fma(a: Self::Float, b: Self::Float, c: Self::Float) -> Self::Float;
    /// lanes * s + c, rounded once
    unsafe fn fma_splat(lanes: *const f32, s: f32, c: Self::Float) -> Self::Float;
    /// acc + the sum of the products of two i16 in each lane with the two in `pair`.
    unsafe fn add_pairs(lanes: *const i32, pair: i32, acc: Self::Int) -> Self::Int;

    /// The lanes as they are; asks for a line as [`Dwords::prefetch`] does. On x86-64, after these lanes have been computed and before
    /// they are used: compilers move requests that are tied to nothing to one place, where they wait for each other.
    #[inline(always)]
    unsafe fn ask(lanes: Self::Int, line: *const u8) -> Self::Int {
        // SAFETY: the caller's promise.
        unsafe { Self::Rows::prefetch(line) }
        lanes
    }

    /// acc + the products of one sub-block with each token, times the sub-scale if there are any; for `G` tiles.
    ///
    /// `w`: `F::SUB / 4` quads of [`QUAD`](super::unpack::QUAD) bytes. `a`: `F::SUB` bytes for each token. `scales`: lanes,
    /// read where there are sub-scales only.
    unsafe fn dot<F: Rows, const G: usize, const T: usize>(
        w: [*const u8; G],
        a: [*const i8; T],
        scales: [*const i32; G],
        acc: &mut [[Self::Int; T]; G],
    );

    /// Multiplies a panel with more than a few tokens.
    ///
    /// # Safety
    /// As [`Multiply::multiply`](super::tile::Multiply::multiply).
    #[inline(always)]
    unsafe fn multiply_many<F: Rows, const G: usize>(
        job: &Job<'_>,
        blocks: usize,
        tokens: &Tokens,
        panel: &mut Panel,
    ) where
        Self: Sized,
    {
        // SAFETY: the caller's promise.
        unsafe { multiply_any::<Self, F, G>(job, blocks, tokens, panel) }
    }
}
