//! The product of many tokens by a matrix unit: Intel's AMX, which multiplies whole tiles of bytes.
//!
//! What it takes as weights lies in memory as [`Panel`] has it, and what it gives, `[token][row]` of i32, is what the vector form has
//! in its registers before it goes on to floats. Both are exact integers, so the bits are the same.
//!
//! Leaving the unit is dear: its sums go through memory. Blocks with sub-scales therefore multiply the weights by these first,
//! which takes 16 bits: a panel of low bytes and one of high bytes, each added up over the whole block.

#![allow(unsafe_code)]

use std::ops::Range;

use moli_format::TensorType;

use super::tile::{self, Multiply, Panel, Tile, Tokens};
use super::unpack::{QUAD, Rows};
use super::x86::{Avx512, Wide, Zmm};
use super::{Job, MatmulFn, TILE};
use crate::quant::by_type;
use crate::quant::unpack::*;

/// Tokens that the unit multiplies with two panels at a time, if there are as many.
pub(super) const TOKENS: usize = 32;

/// Tokens from which on the unit is faster than vectors: with 32 both take as long, with 48 the unit works for 64.
const MANY: usize = 2 * TOKENS;

/// The sums of a block: `[token][panel][row]`.
pub(super) type Sums = [[[i32; TILE]; 2]; TOKENS];

/// What [`Matrix`] needs of a panel beside the tiles.
#[repr(C, align(64))]
pub(super) struct Extra {
    /// Of two products, one after the other.
    sums: [Sums; 2],
    /// `[quad][row][4]`: the high bytes of weights times sub-scales; the low ones take the place of the weights.
    high: [u8; tile::COLS / 4 * QUAD],
}

impl Extra {
    pub(super) const fn new() -> Self {
        Self { sums: [[[[0; TILE]; 2]; TOKENS]; 2], high: [0; tile::COLS / 4 * QUAD] }
    }
}

/// Activations and the two panels that they are multiplied with.
#[derive(Clone, Copy)]
pub(super) struct Operands {
    /// `[token][column]`, signed.
    pub(super) a: *const i8,
    /// Bytes from a token to the next.
    pub(super) stride: usize,
    /// Tokens, 1 to [`TOKENS`].
    pub(super) tokens: usize,
    /// `[quad][row][4]`, signed; but the first is unsigned in [`Unit::wide`].
    pub(super) panels: [*const u8; 2],
}

/// A matrix unit. It keeps the sums of a product until the next one: to ask for them at once would mean to wait.
///
/// # Safety of all methods
/// The processor has it and lets this process use it. At each of the operands' pointers the columns that a method names can be
/// read, of each token or row. Between `begin` and `end` the thread uses the unit for nothing else.
pub(super) trait Unit {
    /// Prepares the calling thread for products of so many tokens with `K` columns at a time.
    unsafe fn begin<const K: usize>(tokens: usize);
    /// Writes the sums that are kept, and multiplies 256 columns, after `begin::<64>`.
    unsafe fn wide(operands: Operands, before: &mut Sums);
    /// Writes the sums that are kept, and multiplies 32 columns, after `begin::<32>`.
    unsafe fn narrow(operands: Operands, before: &mut Sums);
    /// Writes the sums that are kept, of so many tokens, and gives the unit's registers back: while they are in use a switch of
    /// threads saves 8 KB.
    unsafe fn end(tokens: usize, before: &mut Sums);
}

/// [`Multiply`] by `U`, and by the registers `W` where its sums become floats.
pub(super) struct Matrix<W, U>(std::marker::PhantomData<(W, U)>);

// SAFETY (for the whole block): by the trait's contract; the caller promises `U` as well.
#[allow(clippy::undocumented_unsafe_blocks)]
impl<W: Wide, U: Unit> Multiply for Matrix<W, U> {
    const UNSIGNED: bool = false;

    #[inline(always)]
    unsafe fn multiply<F: Rows, const G: usize>(
        job: &Job<'_>,
        blocks: usize,
        tokens: &Tokens,
        panel: &mut Panel,
    ) {
        unsafe {
            if F::SCALED == 32 {
                one_scale::<W, U, F, G>(job, blocks, tokens, panel);
            } else {
                sub_scales::<W, U, F, G>(job, blocks, tokens, panel);
            }
        }
    }
}

/// The outputs `rows` for all tokens; `otherwise` computes what is not worth the unit's trouble.
///
/// # Safety
/// As [`MatmulFn`], with the instructions of `W`, `W::Rows`, `U` and `otherwise`; the job has at least [`TILE`] rows.
#[inline(always)]
pub(super) unsafe fn product<W: Wide, U: Unit, F: Rows>(
    job: &Job<'_>,
    rows: Range<usize>,
    panel: &mut Box<Panel>,
    otherwise: MatmulFn,
) {
    // SAFETY: the caller's promise.
    unsafe {
        // Fewer tokens are not worth the unit's way through memory; nor are 16 values to a float scale (NVFP4).
        if job.input.rows >= MANY && F::SCALED >= 32 {
            tile::product::<Avx512<W>, Matrix<W, U>, F>(job, rows, panel);
        } else {
            otherwise(job, rows, panel);
        }
    }
}

/// Groups of at most [`TOKENS`] tokens: the first of each, and how many of them have been in the group before. The last group
/// begins earlier instead of being shorter.
fn groups(tokens: usize) -> impl Iterator<Item = (usize, usize)> {
    let last = tokens.saturating_sub(TOKENS);
    (0..tokens).step_by(TOKENS).map(move |first| (first.min(last), first - first.min(last)))
}

/// What is multiplied at a time: a block, counted from the panel's first column, and a group of tokens from `first`.
#[derive(Clone)]
struct Part {
    block: usize,
    first: usize,
    /// Those of the group that have not been in another one.
    new: Range<usize>,
}

/// Multiplies all parts of a panel. What was multiplied two parts ago is added to the outputs while the unit works.
///
/// A macro, since closures are not always compiled with the instructions of the function that they are in.
macro_rules! all_parts {
    (
        $blocks:ident, $tokens:expr, $sums:expr,
        multiply |$part:ident, $before:ident| $multiply:block
        end |$last:ident| $end:block
        add |$added:ident, $read:ident| $add:block
    ) => {{
        let [mut even, mut odd] = $sums.each_mut();
        let (mut last, mut last_but_one): (Option<Part>, Option<Part>) = (None, None);
        for (first, done) in groups($tokens) {
            for block in 0..$blocks {
                let $part = Part { block, first, new: done..TOKENS.min($tokens) };
                let $before = &mut *even;
                $multiply
                if let Some($added) = last_but_one {
                    let $read = &*odd;
                    $add
                }
                (last_but_one, last) = (last, Some($part));
                (even, odd) = (odd, even);
            }
        }
        let $last = &mut *even;
        $end
        for (part, $read) in [(last_but_one, &*odd), (last, &*even)] {
            if let Some($added) = part {
                $add
            }
        }
    }};
}

/// [`Multiply::multiply`] for blocks of 32 with a float scale each.
///
/// # Safety
/// As [`product`] and [`Multiply::multiply`].
#[inline(always)]
unsafe fn one_scale<W: Wide, U: Unit, F: Rows, const G: usize>(
    job: &Job<'_>,
    blocks: usize,
    tokens: &Tokens,
    panel: &mut Panel,
) {
    let Panel { tiles, acc, extra } = panel;
    if F::OFFSET != 0 {
        for tile in tiles.iter_mut().take(G) {
            for value in tile.quants.iter_mut().take(blocks * 8 * QUAD) {
                *value = value.wrapping_sub(F::OFFSET as u8);
            }
        }
    }
    let at_once = TOKENS.min(tokens.tokens);
    let quants = |g: usize, block: usize| tiles[g].quants.as_ptr().wrapping_add(block * 8 * QUAD);
    // SAFETY: the caller's promise: the tokens are inside the input, the blocks inside the panel.
    unsafe {
        U::begin::<32>(at_once);
        all_parts!(
            blocks, tokens.tokens, extra.sums,
            multiply |part, before| {
                let operands = Operands {
                    a: job.input.q.as_ptr().add(tokens.block_of::<F>(job, part.first, part.block) * 32),
                    stride: job.input.cols,
                    tokens: at_once,
                    panels: [quants(0, part.block), quants(G - 1, part.block)],
                };
                U::narrow(operands, before);
            }
            end |before| { U::end(at_once, before); }
            add |part, sums| {
                let d: [_; G] = std::array::from_fn(|g| W::load(tiles[g].d[part.block].as_ptr()));
                let m: [_; G] = std::array::from_fn(|g| W::load(tiles[g].m[part.block].as_ptr()));
                for token in part.new {
                    let at = tokens.block_of::<F>(job, part.first + token, part.block);
                    let scale = W::splat_float(*job.input.d.get_unchecked(at));
                    for g in 0..G {
                        let output = acc.get_unchecked_mut(part.first + token)[g].as_mut_ptr();
                        let sum = W::to_float(W::load_int(sums.get_unchecked(token)[g].as_ptr()));
                        let mut out = W::fma(sum, W::mul_float(d[g], scale), W::load(output));
                        if F::MIN {
                            let ds = *job.input.ds.get_unchecked(at);
                            out = W::fma(m[g], W::splat_float(ds), out);
                        }
                        W::store(output, out);
                    }
                }
            }
        );
    }
}

/// [`Multiply::multiply`] for blocks of 256 with sub-scales.
///
/// # Safety
/// As [`product`] and [`Multiply::multiply`].
#[inline(always)]
unsafe fn sub_scales<W: Wide, U: Unit, F: Rows, const G: usize>(
    job: &Job<'_>,
    blocks: usize,
    tokens: &Tokens,
    panel: &mut Panel,
) {
    let Panel { tiles, acc, extra: Extra { sums, high } } = panel;
    let at_once = TOKENS.min(tokens.tokens);
    let sums_of_a = if F::SUB == 16 { job.input.sums16 } else { job.input.sums32 };
    let pairs = 256 / F::SUB / 2;
    for (g, tile) in tiles.iter_mut().enumerate().take(G) {
        weigh::<F>(blocks, tile, high);
        let tile = &*tile;
        // SAFETY: the caller's promise: the tokens are inside the input, the blocks inside the panel.
        unsafe {
            U::begin::<64>(at_once);
            all_parts!(
                blocks, tokens.tokens, sums,
                multiply |part, before| {
                    let operands = Operands {
                        a: job.input.q.as_ptr().add(tokens.block_of::<F>(job, part.first, part.block) * 256),
                        stride: job.input.cols,
                        tokens: at_once,
                        panels: [&tile.quants, &*high].map(|bytes| bytes.as_ptr().add(part.block * 64 * QUAD)),
                    };
                    U::wide(operands, before);
                }
                end |before| { U::end(at_once, before); }
                add |part, sums| {
                    let d = W::load(tile.d[part.block].as_ptr());
                    let m = W::load(tile.m[part.block].as_ptr());
                    let mins: [_; 8] = std::array::from_fn(|i| {
                        W::load_int(tile.sums[part.block * pairs + i.min(pairs - 1)].as_ptr())
                    });
                    for token in part.new {
                        let at = tokens.block_of::<F>(job, part.first + token, part.block);
                        let scale = W::splat_float(*job.input.d.get_unchecked(at));
                        let [low, high] =
                            sums.get_unchecked(token).each_ref().map(|sums| W::load_int(sums.as_ptr()));
                        let sum = W::to_float(W::add(low, W::shift_left(high, 8)));
                        let output = acc.get_unchecked_mut(part.first + token)[g].as_mut_ptr();
                        let mut out = W::fma(sum, W::mul_float(d, scale), W::load(output));
                        if F::MIN {
                            let sums_of_a = sums_of_a.as_ptr().add(at * 2 * pairs).cast::<i32>();
                            let mut sum = W::splat(0);
                            for (i, mins) in mins.into_iter().enumerate().take(pairs) {
                                sum = W::dpwssd(sum, mins, W::splat(sums_of_a.add(i).read_unaligned()));
                            }
                            out = W::fma(W::to_float(sum), W::mul_float(m, scale), out);
                        }
                        W::store(output, out);
                    }
                }
            );
        }
    }
}

/// Multiplies the weights of a tile by their sub-scales: the low bytes stay in the tile, the high ones go to `high`.
///
/// Two weights at a time, in the halves of 16 bits, which with a sign hold every format's product.
#[inline(always)]
fn weigh<F: Rows>(blocks: usize, tile: &mut Tile, high: &mut [u8; tile::COLS / 4 * QUAD]) {
    let less = if F::SIGNED { 0 } else { F::OFFSET };
    let quads = tile.quants.as_chunks_mut::<QUAD>().0.iter_mut().zip(high.as_chunks_mut::<QUAD>().0);
    for (quad, (low, high)) in quads.enumerate().take(blocks * F::LEN / 4) {
        // Each scale is in both halves of its lane.
        let scales = tile.scales[quad * 4 / F::SUB].map(i32::to_ne_bytes);
        let scales = scales.as_flattened().as_chunks::<2>().0;
        let (low, high) = (low.as_chunks_mut::<2>().0, high.as_chunks_mut::<2>().0);
        for ((low, high), scale) in low.iter_mut().zip(high).zip(scales) {
            let (two, scale) = (i16::from_le_bytes(*low), i16::from_ne_bytes(*scale));
            let (first, second) =
                if F::SIGNED { (two << 8 >> 8, two >> 8) } else { (two & 0xff, two >> 8 & 0xff) };
            let first = (first - less).wrapping_mul(scale);
            let second = (second - less).wrapping_mul(scale);
            *low = (first & 0xff | second << 8).to_le_bytes();
            *high = (first >> 8 & 0xff | second & !0xff).to_le_bytes();
        }
    }
}

/// How tokens are shared out to two tiles: the rows of each, and the second one's first token. A single token is in both.
fn halves(tokens: usize) -> ([usize; 2], usize) {
    let rows = [tokens.div_ceil(2), (tokens / 2).max(1)];
    (rows, tokens - rows[1])
}

/// The processor's own unit: tiles 0 to 3 are sums, 4 and 5 activations, 6 and 7 weights.
pub(super) struct Amx;

/// What `ldtilecfg` takes.
#[repr(C, align(64))]
struct Config {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    /// Bytes of each tile's rows.
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

/// Writes the sums of before, and multiplies `$columns` columns and as many `$more` times.
macro_rules! multiply {
    ($first:literal, $columns:literal, $more:literal, $operands:ident, $before:ident) => {{
        let Operands { a, stride, tokens, panels } = $operands;
        let (_, second) = halves(tokens);
        std::arch::asm!(
            "tileloadd tmm4, [{a} + {stride}]",
            "tileloadd tmm6, [{w} + {row}]",
            "tileloadd tmm7, [{w1} + {row}]",
            "tileloadd tmm5, [{a1} + {stride}]",
            "tilestored [{sums} + {sums_row}], tmm0",
            "tilezero tmm0",
            concat!($first, " tmm0, tmm4, tmm6"),
            "tilestored [{sums} + {sums_row} + 64], tmm1",
            "tilezero tmm1",
            "tdpbssd tmm1, tmm4, tmm7",
            "tilestored [{sums1} + {sums_row}], tmm2",
            "tilezero tmm2",
            concat!($first, " tmm2, tmm5, tmm6"),
            "tilestored [{sums1} + {sums_row} + 64], tmm3",
            "tilezero tmm3",
            "tdpbssd tmm3, tmm5, tmm7",
            ".rept {more}",
            "add {a}, {columns}",
            "add {a1}, {columns}",
            "add {w}, {columns} * 16",
            "add {w1}, {columns} * 16",
            "tileloadd tmm4, [{a} + {stride}]",
            "tileloadd tmm6, [{w} + {row}]",
            "tileloadd tmm7, [{w1} + {row}]",
            "tileloadd tmm5, [{a1} + {stride}]",
            concat!($first, " tmm0, tmm4, tmm6"),
            "tdpbssd tmm1, tmm4, tmm7",
            concat!($first, " tmm2, tmm5, tmm6"),
            "tdpbssd tmm3, tmm5, tmm7",
            ".endr",
            a = inout(reg) a => _,
            a1 = inout(reg) a.add(second * stride) => _,
            w = inout(reg) panels[0] => _,
            w1 = inout(reg) panels[1] => _,
            sums = in(reg) $before.as_mut_ptr(),
            sums1 = in(reg) $before.as_mut_ptr().add(second),
            stride = in(reg) stride,
            row = in(reg) QUAD,
            sums_row = in(reg) size_of::<[[i32; TILE]; 2]>(),
            columns = const $columns,
            more = const $more,
            options(nostack),
        );
    }};
}

// SAFETY (for the whole block): by the trait's contract. The compiler has no use for tiles in functions that are not compiled for
// AMX, so what is in them stays from one piece of assembly to the next.
#[allow(clippy::undocumented_unsafe_blocks)]
impl Unit for Amx {
    #[inline(always)]
    unsafe fn begin<const K: usize>(tokens: usize) {
        let ([first, second], _) = halves(tokens);
        let mut config =
            Config { palette: 1, start_row: 0, reserved: [0; 14], row_bytes: [0; 16], rows: [0; 16] };
        let (sums, weights) = (4 * TILE, QUAD);
        let tiles = [
            (first, sums),
            (first, sums),
            (second, sums),
            (second, sums),
            (first, K),
            (second, K),
            (K / 4, weights),
            (K / 4, weights),
        ];
        for ((tile, row_bytes), (rows, bytes)) in config.rows.iter_mut().zip(&mut config.row_bytes).zip(tiles)
        {
            (*tile, *row_bytes) = (rows as u8, bytes as u16);
        }
        unsafe { std::arch::asm!("ldtilecfg [{}]", in(reg) &raw const config, options(nostack, readonly)) };
    }

    #[inline(always)]
    unsafe fn wide(operands: Operands, before: &mut Sums) {
        unsafe { multiply!("tdpbsud", 64, 3, operands, before) }
    }

    #[inline(always)]
    unsafe fn narrow(operands: Operands, before: &mut Sums) {
        unsafe { multiply!("tdpbssd", 32, 0, operands, before) }
    }

    #[inline(always)]
    unsafe fn end(tokens: usize, before: &mut Sums) {
        let (_, second) = halves(tokens);
        unsafe {
            std::arch::asm!(
                "tilestored [{sums} + {sums_row}], tmm0",
                "tilestored [{sums} + {sums_row} + 64], tmm1",
                "tilestored [{sums1} + {sums_row}], tmm2",
                "tilestored [{sums1} + {sums_row} + 64], tmm3",
                "tilerelease",
                sums = in(reg) before.as_mut_ptr(),
                sums1 = in(reg) before.as_mut_ptr().add(second),
                sums_row = in(reg) size_of::<[[i32; TILE]; 2]>(),
                options(nostack, preserves_flags),
            );
        }
    }
}

/// `rounds` times four products of whole tiles that wait for nothing: what the unit can do at most.
///
/// # Safety
/// The processor has AMX for bytes, and the process may use it.
pub(crate) unsafe fn full_speed(rounds: usize) {
    // SAFETY: the caller's promise; tiles that `begin` has set are zeros.
    unsafe {
        Amx::begin::<64>(TOKENS);
        std::arch::asm!(
            "2:",
            "tdpbssd tmm0, tmm4, tmm6",
            "tdpbssd tmm1, tmm4, tmm7",
            "tdpbssd tmm2, tmm5, tmm6",
            "tdpbssd tmm3, tmm5, tmm7",
            "dec {rounds}",
            "jnz 2b",
            "tilerelease",
            rounds = inout(reg) rounds => _,
            options(nostack, nomem),
        );
    }
}

/// The products with AMX, for a type that has kernels.
pub(super) fn table(ttype: TensorType) -> MatmulFn {
    /// # Safety
    /// As [`MatmulFn`], with these features and AMX for bytes.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma,f16c")]
    unsafe fn run<F: Rows>(job: &Job<'_>, rows: Range<usize>, panel: &mut Box<Panel>) {
        // SAFETY: the caller's promise.
        unsafe { product::<Zmm, Amx, F>(job, rows, panel, tile::avx512(F::TYPE)) }
    }
    let floats = tile::avx512(ttype);
    by_type!(ttype, run, floats, floats, floats)
}
