//! The vector form of the quantised product.
//!
//! A stretch of the columns of 16 rows of weights, a *tile*, is unpacked into a panel that fits the first-level cache, with
//! rows as lanes, and multiplied with all tokens, a few at a time; then comes the next stretch. With many tokens two tiles
//! are multiplied together, so that an activation is read once for both.
//!
//! With rows as lanes every lane performs the scalar form's sequence of operations, so the bits agree by construction,
//! and nothing depends on how many tokens there are.
//!
//! A few tokens have [`few`] on x86-64 where there are no sub-scales, and need no panel. All of it is written once, over [`Simd`] and [`Dwords`]; unquantised
//! weights have [`float`].

#![allow(unsafe_code)]

use std::ops::Range;

use moli_format::TensorType;

use super::few::{self, by_tokens};
use super::float::{self, Bf16, F16, F32, Float};
use super::simd::Simd;
use super::unpack::{Dwords, LINE, Lanes, QUAD, Rows};
use super::{FEW, Input, Job, MatmulFn, TILE};
use crate::quant::by_type;
use crate::quant::unpack::*;

/// Columns of a panel: two tiles of one and the activations that pass by share the first-level cache.
pub(super) const COLS: usize = 512;
/// Columns that are unpacked at a time for few tokens, of blocks of 32: what was unpacked is used at once.
const COLS_FEW: usize = 320;
/// Tokens for which a panel is used before the next.
const TOKENS: usize = 512;
/// Tiles that a panel holds.
const TILES: usize = 2;

/// [`TILES`] tiles by [`COLS`] columns of weights, and the outputs so far of [`TOKENS`] tokens.
#[repr(C, align(64))]
pub(crate) struct Panel {
    pub(super) tiles: [Tile; TILES],
    /// `[token][tile][row]`
    pub(super) acc: [[[f32; TILE]; TILES]; TOKENS],
    #[cfg(target_arch = "x86_64")]
    pub(super) extra: super::amx::Extra,
}

/// 16 rows, unpacked.
#[repr(C, align(64))]
pub(super) struct Tile {
    /// `[quad][row][4]`
    pub(super) quants: [u8; COLS / 4 * QUAD],
    /// `[scaled][row]`
    pub(super) d: [[f32; TILE]; COLS / 16],
    /// `[block][row]`
    pub(super) m: [[f32; TILE]; COLS / 32],
    /// `[block][sub][row]`; see [`Lanes`].
    pub(super) scales: [[i32; TILE]; COLS / 16],
    /// `[block][pair of subs][row]`; see [`Lanes`].
    pub(super) sums: [[i32; TILE]; COLS / 32],
}

/// Where the parts of a tile begin.
#[derive(Clone, Copy)]
pub(super) struct Places {
    quants: *mut u8,
    d: *mut f32,
    m: *mut f32,
    scales: *mut i32,
    sums: *mut i32,
}

impl Places {
    /// Those of a tile, which need not have been written.
    ///
    /// # Safety
    /// There is a tile at this address.
    #[inline(always)]
    pub(super) unsafe fn of(tile: *mut Tile) -> Self {
        // SAFETY: the caller's promise; nothing is read.
        unsafe {
            Self {
                quants: (&raw mut (*tile).quants).cast(),
                d: (&raw mut (*tile).d).cast(),
                m: (&raw mut (*tile).m).cast(),
                scales: (&raw mut (*tile).scales).cast(),
                sums: (&raw mut (*tile).sums).cast(),
            }
        }
    }

    /// Where block number `b` of the rows from number `lane` of the tile goes. `ahead`: what is asked for while it is unpacked, if anything.
    ///
    /// # Safety
    /// The tile has room for the block.
    #[inline(always)]
    pub(super) unsafe fn lanes<S: Simd, F: Rows>(
        self,
        b: usize,
        lane: usize,
        ahead: Option<*const u8>,
        one_tile: bool,
    ) -> Lanes {
        // SAFETY: the caller's promise.
        unsafe {
            Lanes {
                quants: self.quants.add(b * F::LEN / 4 * QUAD + 4 * lane),
                d: self.d.add(b * F::LEN / F::SCALED * TILE + lane),
                m: self.m.add(b * TILE + lane),
                scales: self.scales.add(b * F::LEN / F::SUB * TILE + lane),
                sums: self.sums.add(b * F::LEN / F::SUB / 2 * TILE + lane),
                ahead: ahead.unwrap_or_default(),
                ahead_step: ahead.map_or(0, |_| S::Rows::ROWS * F::BYTES / (F::LEN / 4)),
                one_tile,
            }
        }
    }
}

impl Tile {
    const fn new() -> Self {
        Self {
            quants: [0; COLS / 4 * QUAD],
            d: [[0.0; TILE]; COLS / 16],
            m: [[0.0; TILE]; COLS / 32],
            scales: [[0; TILE]; COLS / 16],
            sums: [[0; TILE]; COLS / 32],
        }
    }
}

impl Default for Panel {
    fn default() -> Self {
        Self {
            tiles: [const { Tile::new() }; TILES],
            acc: [[[0.0; TILE]; TILES]; TOKENS],
            #[cfg(target_arch = "x86_64")]
            extra: super::amx::Extra::new(),
        }
    }
}

impl std::fmt::Debug for Panel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Panel").finish_non_exhaustive()
    }
}

/// The products of an instruction set: the text below, compiled with its features.
macro_rules! forms {
    ($($(#[$doc:meta])*
        $name:ident = $simd:ty, and $registers:literal of $vector:ty, with $features:literal on $arch:literal;)*) => {$(
        $(#[$doc])*
        #[cfg(target_arch = $arch)]
        pub(super) fn $name(ttype: TensorType) -> MatmulFn {
            /// # Safety
            /// As [`MatmulFn`], with these features.
            #[target_feature(enable = $features)]
            unsafe fn run<F: Rows>(job: &Job<'_>, rows: Range<usize>, panel: &mut Box<Panel>) {
                // SAFETY: the caller's promise.
                unsafe {
                    by_tokens!($simd, F, at_once(job, rows), otherwise {
                        product::<$simd, Vectors<$simd>, F>(job, rows, panel);
                    });
                }
            }
            /// # Safety
            /// As [`MatmulFn`], with these features.
            #[target_feature(enable = $features)]
            #[inline(never)]
            unsafe fn at_once<F: Rows, const T: usize>(job: &Job<'_>, rows: Range<usize>) {
                // SAFETY: the caller's promise.
                unsafe { few::product::<$simd, F, T>(job, rows) }
            }
            /// # Safety
            /// As [`MatmulFn`], with these features.
            #[target_feature(enable = $features)]
            unsafe fn floats<F: Float>(job: &Job<'_>, rows: Range<usize>, _: &mut Box<Panel>) {
                // SAFETY: the caller's promise.
                unsafe { float::product::<$vector, F, $registers>(job, rows) }
            }
            by_type!(ttype, run, floats::<F32>, floats::<F16>, floats::<Bf16>)
        }
    )*};
}

forms! {
    /// The products with AVX2, for a type that has kernels.
    avx2 = super::x86::Avx2, and 2 of std::arch::x86_64::__m256, with "avx2,fma,f16c" on "x86_64";
    /// The products with AVX-512-VNNI, for a type that has kernels.
    avx512 = super::x86::Avx512<super::x86::Zmm>, and 1 of std::arch::x86_64::__m512,
        with "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma,f16c" on "x86_64";
    /// The products with NEON, for a type that has kernels.
    neon = super::neon::Neon<super::neon::Widening>, and 4 of std::arch::aarch64::float32x4_t,
        with "neon" on "aarch64";
    /// The products with NEON's dot products, for a type that has kernels.
    neon_dot = super::neon::Neon<super::neon::Dot>, and 4 of std::arch::aarch64::float32x4_t,
        with "neon,dotprod" on "aarch64";
    /// The products with NEON's dot and matrix products, for a type that has kernels.
    neon_i8mm = super::neon::Neon<super::neon::Matrix>, and 4 of std::arch::aarch64::float32x4_t,
        with "neon,dotprod,i8mm" on "aarch64";
}

/// How a panel is multiplied.
pub(super) trait Multiply {
    /// Quantised values with a sign count 128 too many.
    const UNSIGNED: bool;

    /// Multiplies `blocks` blocks of the first `G` tiles of a panel with these tokens. The quantised values are not needed
    /// afterwards.
    ///
    /// # Safety
    /// The processor has what this needs; the panel holds `blocks` blocks, and the tokens are inside the input.
    unsafe fn multiply<F: Rows, const G: usize>(
        job: &Job<'_>,
        blocks: usize,
        tokens: &Tokens,
        panel: &mut Panel,
    );
}

/// [`Multiply`] with vectors.
pub(super) struct Vectors<S>(std::marker::PhantomData<S>);

impl<S: Simd> Multiply for Vectors<S> {
    const UNSIGNED: bool = S::UNSIGNED;

    #[inline(always)]
    unsafe fn multiply<F: Rows, const G: usize>(
        job: &Job<'_>,
        blocks: usize,
        tokens: &Tokens,
        panel: &mut Panel,
    ) {
        // SAFETY: the caller's promise.
        unsafe { multiply::<S, F, G>(job, blocks, tokens, panel) }
    }
}

/// The outputs `rows` for all tokens, by way of a panel.
///
/// # Safety
/// As [`MatmulFn`], with the instructions that `S` and `M` need; the job has at least [`TILE`] rows.
#[inline(always)]
pub(super) unsafe fn product<S: Simd, M: Multiply, F: Rows>(
    job: &Job<'_>,
    rows: Range<usize>,
    panel: &mut Panel,
) {
    // SAFETY: the caller's promise.
    unsafe {
        let mut row = rows.start;
        if job.input.rows > FEW && S::TILES == 2 {
            while rows.end - row >= 2 * TILE {
                tiles::<S, M, F, 2>(job, row, panel);
                row += 2 * TILE;
            }
        }
        while row < rows.end {
            tiles::<S, M, F, 1>(job, row, panel);
            row += TILE;
        }
    }
}

/// The outputs of `G` tiles from `row` for all tokens.
///
/// # Safety
/// As [`product`].
#[inline(always)]
unsafe fn tiles<S: Simd, M: Multiply, F: Rows, const G: usize>(job: &Job<'_>, row: usize, panel: &mut Panel) {
    let cols = job.input.cols;
    // The last tile begins earlier instead of ending later, and computes some rows again.
    let start = row.min(job.rows - G * TILE);
    for first in (0..job.input.rows).step_by(TOKENS) {
        let tokens = TOKENS.min(job.input.rows - first);
        let most = if tokens <= FEW { COLS_FEW } else { COLS };
        // Stretches of one length, since each costs something of its own.
        // No block is left alone but a row's last.
        let whole = if F::PAIRED { 2 * F::LEN } else { F::LEN };
        let step = cols.div_ceil(cols.div_ceil(most).max(1)).max(1).next_multiple_of(whole);
        for (t, acc) in panel.acc.iter_mut().enumerate().take(tokens) {
            for (g, acc) in acc.iter_mut().enumerate().take(G) {
                *acc = [0.0; TILE];
                // With many tokens it would be gone before it is written.
                if tokens <= FEW {
                    job.out.ask_for(first + t, row + g * TILE);
                }
            }
        }
        for col in (0..cols).step_by(step) {
            let blocks = step.min(cols - col) / F::LEN;
            let block = col / F::LEN;
            let tokens = Tokens { first, tokens, block: (first * cols + col) / F::ACTIVATIONS };
            // SAFETY: the tiles' rows and columns are inside the matrix, the tokens inside the input.
            unsafe {
                for g in 0..G {
                    unpack::<S, M, F, G>(job, start + g * TILE, block, blocks, &mut panel.tiles[g]);
                }
                M::multiply::<F, G>(job, blocks, &tokens, panel);
            }
        }
        for (t, acc) in panel.acc.iter().enumerate().take(tokens) {
            let acc = acc.as_flattened();
            // SAFETY: no one else writes these rows, and `row..` are the ones that these tiles are for.
            unsafe { job.out.write(first + t, row, &acc[row - start..G * TILE]) };
        }
    }
}

/// Which tokens a panel is multiplied with.
pub(super) struct Tokens {
    first: usize,
    pub(super) tokens: usize,
    /// The first token's block of activations at the panel's first column.
    block: usize,
}

impl Tokens {
    /// The block of activations of a token, counted from the first, that is `block` blocks behind the panel's first column.
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    pub(super) fn block_of<F: Rows>(&self, job: &Job<'_>, token: usize, block: usize) -> usize {
        self.block + token * (job.input.cols / F::ACTIVATIONS) + block
    }
}

/// Unpacks `blocks` blocks of 16 rows, and asks for as many bytes of the next tile.
///
/// # Safety
/// The instructions of `S`; the rows and blocks are inside the job's weights, and the tile has room.
#[inline(always)]
unsafe fn unpack<S: Simd, M: Multiply, F: Rows, const G: usize>(
    job: &Job<'_>,
    row: usize,
    block: usize,
    blocks: usize,
    tile: &mut Tile,
) {
    // SAFETY: the caller's promise.
    unsafe {
        // Opaque, so that what is computed from it belongs to this loop: kept through all of the product, the places of 16 rows
        // would take the registers of the products' loop.
        let stride = std::hint::black_box(job.row_bytes);
        let from = job.weights.as_ptr().add(row * job.row_bytes + block * F::BYTES);
        // All rows of a tile are read at once, each from its own place. The next tile is one range of the file, so it is
        // fetched as such.
        let next = from.wrapping_add(G * TILE * job.row_bytes - block * F::BYTES + TILE * block * F::BYTES);
        let places = Places::of(tile);
        let mut b = 0;
        while b < blocks {
            let (from, ahead) = (from.add(b * F::BYTES), next.wrapping_add(TILE * b * F::BYTES));
            if F::PAIRED && b + 1 < blocks {
                unpack_blocks::<S, M, F, 2>(from, stride, places, b, Some(ahead), G == 1);
                b += 2;
            } else {
                unpack_blocks::<S, M, F, 1>(from, stride, places, b, Some(ahead), G == 1);
                b += 1;
            }
        }
    }
}

/// Unpacks `N` blocks of 16 rows, one or two, to block number `b` of a tile. `ahead`: what is asked for in passing, if anything.
///
/// # Safety
/// The instructions of `S`; each row has so many blocks, and the tile has room for them.
#[inline(always)]
pub(super) unsafe fn unpack_blocks<S: Simd, M: Multiply, F: Rows, const N: usize>(
    from: *const u8,
    stride: usize,
    tile: Places,
    b: usize,
    ahead: Option<*const u8>,
    one_tile: bool,
) {
    for lane in (0..TILE).step_by(S::Rows::ROWS) {
        // SAFETY: the caller's promise.
        unsafe {
            let lanes = |i: usize| {
                let ahead = ahead.map(|ahead| ahead.wrapping_add((TILE * i + lane) * F::BYTES));
                tile.lanes::<S, F>(b + i, lane, ahead, one_tile)
            };
            let rows = from.add(lane * stride);
            match (N, M::UNSIGNED) {
                (1, true) => F::unpack_rows::<S::Rows, true>(rows, stride, lanes(0)),
                (1, false) => F::unpack_rows::<S::Rows, false>(rows, stride, lanes(0)),
                (_, true) => F::unpack_two::<S::Rows, true>(rows, stride, [lanes(0), lanes(1)]),
                (_, false) => F::unpack_two::<S::Rows, false>(rows, stride, [lanes(0), lanes(1)]),
            }
        }
    }
}

/// Multiplies a panel with its tokens.
///
/// # Safety
/// The instructions of `S`; the panel holds `blocks` blocks, and the tokens are inside the input.
#[inline(always)]
unsafe fn multiply<S: Simd, F: Rows, const G: usize>(
    job: &Job<'_>,
    blocks: usize,
    tokens: &Tokens,
    panel: &mut Panel,
) {
    // SAFETY: the caller's promise.
    unsafe {
        // One tile leaves registers for two more tokens.
        if S::TOKENS == 6 && G == 1 && tokens.tokens == FEW {
            multiply_some::<S, F, G, FEW>(job, blocks, tokens, 0, panel);
        } else if tokens.tokens > FEW {
            S::multiply_many::<F, G>(job, blocks, tokens, panel);
        } else {
            multiply_any::<S, F, G>(job, blocks, tokens, panel);
        }
    }
}

/// [`multiply`] for any number of tokens.
///
/// # Safety
/// As [`multiply`].
#[inline(always)]
pub(super) unsafe fn multiply_any<S: Simd, F: Rows, const G: usize>(
    job: &Job<'_>,
    blocks: usize,
    tokens: &Tokens,
    panel: &mut Panel,
) {
    let mut token = 0;
    // SAFETY: the caller's promise.
    unsafe {
        while S::TOKENS == 6 && tokens.tokens - token >= 6 {
            multiply_some::<S, F, G, 6>(job, blocks, tokens, token, panel);
            token += 6;
        }
        while tokens.tokens - token >= 3 {
            multiply_some::<S, F, G, 3>(job, blocks, tokens, token, panel);
            token += 3;
        }
        if tokens.tokens - token == 2 {
            multiply_some::<S, F, G, 2>(job, blocks, tokens, token, panel);
        } else if tokens.tokens - token == 1 {
            multiply_some::<S, F, G, 1>(job, blocks, tokens, token, panel);
        }
    }
}

/// Multiplies a panel with `T` tokens.
///
/// # Safety
/// As [`multiply`].
#[inline(always)]
#[allow(clippy::needless_range_loop)] // The indices of tiles and tokens meet in several arrays.
unsafe fn multiply_some<S: Simd, F: Rows, const G: usize, const T: usize>(
    job: &Job<'_>,
    blocks: usize,
    tokens: &Tokens,
    token: usize,
    panel: &mut Panel,
) {
    let input = &job.input;
    // Each token's first block of activations.
    let per_row = input.cols / F::ACTIVATIONS;
    let first: [usize; T] = std::array::from_fn(|t| tokens.block + (token + t) * per_row);
    debug_assert!(tokens.first + token < input.rows);
    // SAFETY: the caller's promise: the activations from block `first[t]` are inside the input for all `blocks`, and so are
    // the tiles' arrays.
    unsafe {
        let tiles: [Places; G] = std::array::from_fn(|g| Places::of(&raw mut panel.tiles[g]));
        let acc_at = panel.acc.as_mut_ptr().add(token).cast::<f32>();
        let acc_of = |g: usize, t: usize| acc_at.add((t * TILES + g) * TILE);
        let load = || std::array::from_fn(|g| std::array::from_fn(|t| S::load(acc_of(g, t))));
        let mut acc: [[S::Float; T]; G] = load();
        for b in 0..blocks * (F::LEN / F::SCALED) {
            accumulate::<S, F, G, T>(input, &first, b, &tiles, b, &mut acc, None);
        }
        for g in 0..G {
            for t in 0..T {
                S::store(acc_of(g, t), acc[g][t]);
            }
        }
    }
}

/// Adds the products of one stretch of columns that shares a float scale to `T` outputs of each of `G` tiles.
///
/// `first`: each token's block of activations at column 0 of a stretch that this is number `b` of. `tiles`: where the
/// unpacked stretch is number `at`. `ahead`: what is asked for in passing, if anything, as many bytes for each stretch
/// as 16 rows of it have, from number 0 on.
///
/// # Safety
/// The instructions of `S`; the activations are inside the input, and the stretch has been unpacked.
#[inline(always)]
#[allow(clippy::needless_range_loop)] // The indices of tiles and tokens meet in several arrays.
pub(super) unsafe fn accumulate<S: Simd, F: Rows, const G: usize, const T: usize>(
    input: &Input<'_>,
    first: &[usize; T],
    b: usize,
    tiles: &[Places; G],
    at: usize,
    acc: &mut [[S::Float; T]; G],
    ahead: Option<*const u8>,
) {
    debug_assert!(first[T - 1] * F::ACTIVATIONS + (b + 1) * F::SCALED <= input.q.len());
    // Powers of two that the quantised values count too many.
    let excess = match F::OFFSET {
        0 if F::SIGNED && S::UNSIGNED => Some(7),
        0 => None,
        offset => Some(offset.trailing_zeros() as i32),
    };
    // SAFETY: the caller's promise.
    unsafe {
        let subs = F::SCALED / F::SUB;
        let a = |t: usize, sub: usize| {
            input.q.as_ptr().add(first[t] * F::ACTIVATIONS + b * F::SCALED + sub * F::SUB)
        };
        let pair = |t: usize, i: usize| {
            let all = if F::SUB == 16 { input.sums16 } else { input.sums32 };
            all.as_ptr()
                .add(first[t] * (F::ACTIVATIONS / F::SUB) + b * subs + 2 * i)
                .cast::<i32>()
                .read_unaligned()
        };
        let sums = |g: usize| tiles[g].sums.add(at * subs / 2 * TILE).cast_const();

        let mut products = [[S::zero(); T]; G];
        if F::SUB_SCALES && excess.is_some() {
            for i in 0..subs / 2 {
                for t in 0..T {
                    for g in 0..G {
                        products[g][t] = S::add_pairs(sums(g).add(i * TILE), pair(t, i), products[g][t]);
                    }
                }
            }
        }
        for sub in 0..subs {
            let w = |g: usize| tiles[g].quants.add((at * F::SCALED + sub * F::SUB) / 4 * QUAD).cast_const();
            let scales = |g: usize| tiles[g].scales.add((at * subs + sub) * TILE).cast_const();
            S::dot::<F, G, T>(
                std::array::from_fn(w),
                std::array::from_fn(|t| a(t, sub)),
                std::array::from_fn(scales),
                &mut products,
            );
        }
        if let Some(ahead) = ahead {
            let bytes = TILE * F::BYTES * F::SCALED / F::LEN;
            for line in (0..bytes).step_by(LINE) {
                products[0][0] = S::ask(products[0][0], ahead.wrapping_add(at * bytes + line));
            }
        }
        for g in 0..G {
            let d = tiles[g].d.add(at * TILE);
            let m = tiles[g].m.add(at * TILE);
            for t in 0..T {
                let block = first[t] + b * F::SCALED / F::ACTIVATIONS;
                let mut sum = products[g][t];
                if let Some(bits) = excess.filter(|_| !F::SUB_SCALES) {
                    let sum_of = if F::SCALED == F::ACTIVATIONS {
                        *input.sums.get_unchecked(block)
                    } else {
                        (0..F::SCALED).map(|k| i32::from(*a(t, 0).add(k))).sum()
                    };
                    sum = S::sub(sum, S::splat_shifted(sum_of, bits));
                }
                let scale = *input.d.get_unchecked(block);
                let mut out = acc[g][t];
                out = S::fma(S::to_float(sum), S::scaled(d, scale), out);
                if F::MIN && !F::SUB_SCALES {
                    out = S::fma_splat(m, *input.ds.get_unchecked(block), out);
                } else if F::MIN {
                    let mut mins = S::zero();
                    for i in 0..subs / 2 {
                        mins = S::add_pairs(sums(g).add(i * TILE), pair(t, i), mins);
                    }
                    out = S::fma(S::to_float(mins), S::scaled(m, scale), out);
                }
                acc[g][t] = out;
            }
        }
    }
}
