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

use super::tile::{self, Multiply, Panel, Tile, Tokens, Vectors};
use super::unpack::{QUAD, Rows};
use super::x86::{Avx512, Wide, Zmm};
use super::{FEW, Job, MatmulFn, TILE};
use crate::quant::by_type;
use crate::quant::unpack::*;

/// Tokens that the unit multiplies with two panels at a time, if there are as many.
pub(super) const TOKENS: usize = 32;
/// Blocks with a float scale whose sums are kept at a time.
const BLOCKS: usize = 4;

/// The sums of a block: `[token][panel][row]`.
pub(super) type Sums = [[[i32; TILE]; 2]; TOKENS];

/// What [`Matrix`] needs of a panel beside the tiles.
#[repr(C, align(64))]
pub(super) struct Extra {
    sums: [Sums; BLOCKS],
    /// `[quad][row][4]`: the high bytes of weights times sub-scales; the low ones take the place of the weights.
    high: [u8; tile::COLS / 4 * QUAD],
}

impl Extra {
    pub(super) const fn new() -> Self {
        Self { sums: [[[[0; TILE]; 2]; TOKENS]; BLOCKS], high: [0; tile::COLS / 4 * QUAD] }
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

/// A matrix unit.
///
/// # Safety of all methods
/// The processor has it and lets this process use it. At each of the operands' pointers the columns that a method names can be
/// read, of each token or row, and its sums can be written.
pub(super) trait Unit {
    /// Prepares the calling thread for products of so many tokens with `K` columns at a time.
    unsafe fn begin<const K: usize>(tokens: usize);
    /// The sums of the products of 256 columns at a time, after `begin::<64>`; of `blocks` of them.
    unsafe fn wide(operands: Operands, blocks: usize, sums: *mut Sums);
    /// The sums of the products of 32 columns at a time, after `begin::<32>`; of `blocks` of them.
    unsafe fn narrow(operands: Operands, blocks: usize, sums: *mut Sums);
    /// Gives the unit's registers back: while they are in use a switch of threads saves 8 KB.
    unsafe fn end();
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

/// The outputs `rows` for all tokens.
///
/// # Safety
/// As [`MatmulFn`], with the instructions of `W`, `W::Rows` and `U`; the job has at least [`TILE`] rows.
#[inline(always)]
pub(super) unsafe fn product<W: Wide, U: Unit, F: Rows>(job: &Job<'_>, rows: Range<usize>, panel: &mut Panel) {
    // SAFETY: the caller's promise.
    unsafe {
        // Few tokens are bound by reading and unpacking, and 16 values to a float scale (NVFP4) are too few.
        if job.input.rows > FEW && F::SCALED >= 32 {
            tile::product::<Avx512<W>, Matrix<W, U>, F>(job, rows, panel);
        } else {
            tile::product::<Avx512<W>, Vectors<Avx512<W>>, F>(job, rows, panel);
        }
    }
}

/// Groups of at most [`TOKENS`] tokens: the first of each, and how many of them have been in the group before. The last group
/// begins earlier instead of being shorter.
fn groups(tokens: usize) -> impl Iterator<Item = (usize, usize)> {
    let last = tokens.saturating_sub(TOKENS);
    (0..tokens).step_by(TOKENS).map(move |first| (first.min(last), first - first.min(last)))
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
    if F::OFFSET != 0 {
        for tile in panel.tiles.iter_mut().take(G) {
            for value in tile.quants.iter_mut().take(blocks * 8 * QUAD) {
                *value = value.wrapping_sub(F::OFFSET as u8);
            }
        }
    }
    let at_once = TOKENS.min(tokens.tokens);
    // SAFETY: the caller's promise: the tokens are inside the input, the blocks inside the panel.
    unsafe {
        U::begin::<32>(at_once);
        for (first, done) in groups(tokens.tokens) {
            for block in (0..blocks).step_by(BLOCKS) {
                let some = BLOCKS.min(blocks - block);
                let quants = |g: usize| panel.tiles[g].quants.as_ptr().add(block * 8 * QUAD);
                let operands = Operands {
                    a: job.input.q.as_ptr().add(tokens.block_of::<F>(job, first, block) * 32),
                    stride: job.input.cols,
                    tokens: at_once,
                    panels: [quants(0), quants(G - 1)],
                };
                U::narrow(operands, some, panel.extra.sums.as_mut_ptr());
                let group = (first, done..at_once);
                if some == BLOCKS {
                    add_one_scale::<W, F, G, BLOCKS>(job, block, 0, tokens, group, panel);
                } else {
                    for i in 0..some {
                        add_one_scale::<W, F, G, 1>(job, block + i, i, tokens, group.clone(), panel);
                    }
                }
            }
        }
        U::end();
    }
}

/// Adds the sums of `N` blocks from `block`, which are kept from number `kept` on, to the outputs of a group's tokens: those
/// that are in `group.1`, counted from `group.0`.
///
/// # Safety
/// As [`one_scale`].
#[inline(always)]
unsafe fn add_one_scale<W: Wide, F: Rows, const G: usize, const N: usize>(
    job: &Job<'_>,
    block: usize,
    kept: usize,
    tokens: &Tokens,
    group: (usize, Range<usize>),
    panel: &mut Panel,
) {
    let Panel { tiles, acc, extra } = panel;
    // SAFETY: the caller's promise.
    unsafe {
        let lanes = |from: &[[f32; TILE]]| -> [W::Float; N] {
            std::array::from_fn(|i| W::load(from.as_ptr().add(block + i).cast()))
        };
        let d: [_; G] = std::array::from_fn(|g| lanes(&tiles[g].d));
        let m: [_; G] = std::array::from_fn(|g| lanes(&tiles[g].m));
        for token in group.1 {
            let at = tokens.block_of::<F>(job, group.0 + token, block);
            let outputs = acc.as_mut_ptr().add(group.0 + token).cast::<[f32; TILE]>();
            let scale: [_; N] = std::array::from_fn(|i| W::splat_float(*job.input.d.get_unchecked(at + i)));
            for g in 0..G {
                let output = outputs.add(g).cast::<f32>();
                let mut out = W::load(output);
                for i in 0..N {
                    let sums = extra.sums.as_ptr().add(kept + i).cast::<[i32; TILE]>().add(token * 2 + g);
                    let sum = W::to_float(W::load_int(sums.cast()));
                    out = W::fma(sum, W::mul_float(d[g][i], scale[i]), out);
                    if F::MIN {
                        let ds = *job.input.ds.get_unchecked(at + i);
                        out = W::fma(m[g][i], W::splat_float(ds), out);
                    }
                }
                W::store(output, out);
            }
        }
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
    let at_once = TOKENS.min(tokens.tokens);
    // SAFETY: the caller's promise: the tokens are inside the input, the blocks inside the panel.
    unsafe {
        U::begin::<64>(at_once);
        for g in 0..G {
            weigh::<F>(blocks, &mut panel.tiles[g], &mut panel.extra.high);
            for (first, done) in groups(tokens.tokens) {
                let operands = Operands {
                    a: job.input.q.as_ptr().add(tokens.block_of::<F>(job, first, 0) * 256),
                    stride: job.input.cols,
                    tokens: at_once,
                    panels: [panel.tiles[g].quants.as_ptr(), panel.extra.high.as_ptr()],
                };
                U::wide(operands, blocks, panel.extra.sums.as_mut_ptr());
                for block in 0..blocks {
                    add_sub_scales::<W, F>(job, block, g, tokens, (first, done..at_once), panel);
                }
            }
        }
        U::end();
    }
}

/// Multiplies the weights of a tile by their sub-scales: the low bytes stay in the tile, the high ones go to `high`.
#[inline(always)]
fn weigh<F: Rows>(blocks: usize, tile: &mut Tile, high: &mut [u8; tile::COLS / 4 * QUAD]) {
    let less = if F::SIGNED { 0 } else { F::OFFSET };
    let quads = tile.quants.as_chunks_mut::<QUAD>().0.iter_mut().zip(high.as_chunks_mut::<QUAD>().0);
    for (quad, (low, high)) in quads.enumerate().take(blocks * F::LEN / 4) {
        // Twice in each lane.
        let scales = &tile.scales[quad * 4 / F::SUB];
        for lane in 0..TILE {
            let scale = (scales[lane] >> 16) as i16;
            for i in 4 * lane..4 * lane + 4 {
                let value = if F::SIGNED { i16::from(low[i].cast_signed()) } else { i16::from(low[i]) };
                // 15 bits and a sign hold every format's product.
                let product = (value - less).wrapping_mul(scale);
                low[i] = product as u8;
                high[i] = (product >> 8) as u8;
            }
        }
    }
}

/// Adds the sums of a block to the outputs of tile `g` for a group's tokens, as [`add_one_scale`] has them.
///
/// # Safety
/// As [`sub_scales`].
#[inline(always)]
unsafe fn add_sub_scales<W: Wide, F: Rows>(
    job: &Job<'_>,
    block: usize,
    g: usize,
    tokens: &Tokens,
    group: (usize, Range<usize>),
    panel: &mut Panel,
) {
    let Panel { tiles, acc, extra } = panel;
    let tile = &tiles[g];
    // SAFETY: the caller's promise.
    unsafe {
        let (d, m) = (W::load(tile.d[block].as_ptr()), W::load(tile.m[block].as_ptr()));
        let pairs = 256 / F::SUB / 2;
        let mins: [_; 8] = std::array::from_fn(|i| {
            W::load_int(tile.sums[block * pairs + if i < pairs { i } else { 0 }].as_ptr())
        });
        for token in group.1 {
            let at = tokens.block_of::<F>(job, group.0 + token, block);
            let scale = W::splat_float(*job.input.d.get_unchecked(at));
            let [low, high] = [0, 1].map(|panel| W::load_int(extra.sums[block][token][panel].as_ptr()));
            let sum = W::add(low, W::shift_left(high, 8));
            let output = acc[group.0 + token][g].as_mut_ptr();
            let mut out = W::fma(W::to_float(sum), W::mul_float(d, scale), W::load(output));
            if F::MIN {
                let all = if F::SUB == 16 { job.input.sums16 } else { job.input.sums32 };
                let all = all.as_ptr().add(at * (256 / F::SUB)).cast::<i32>();
                let mut sum = W::splat(0);
                for i in 0..pairs {
                    sum = W::dpwssd(sum, mins[i], W::splat(all.add(i).read_unaligned()));
                }
                out = W::fma(W::to_float(sum), W::mul_float(m, scale), out);
            }
            W::store(output, out);
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

/// Multiplies `$steps` times tiles of `$columns` columns, and writes the sums; `blocks` times.
macro_rules! multiply {
    ($first:literal, $columns:literal, $steps:literal, $operands:ident, $blocks:ident, $sums:ident) => {{
        let Operands { a, stride, tokens, panels } = $operands;
        let (_, second) = halves(tokens);
        std::arch::asm!(
            "2:",
            "tilezero tmm0",
            "tilezero tmm1",
            "tilezero tmm2",
            "tilezero tmm3",
            "mov {step}, {steps}",
            "3:",
            "tileloadd tmm4, [{a} + {stride}]",
            "tileloadd tmm6, [{w} + {row}]",
            "tileloadd tmm7, [{w1} + {row}]",
            "tileloadd tmm5, [{a1} + {stride}]",
            concat!($first, " tmm0, tmm4, tmm6"),
            "tdpbssd tmm1, tmm4, tmm7",
            concat!($first, " tmm2, tmm5, tmm6"),
            "tdpbssd tmm3, tmm5, tmm7",
            "add {a}, {columns}",
            "add {a1}, {columns}",
            "add {w}, {columns} * 16",
            "add {w1}, {columns} * 16",
            "dec {step}",
            "jnz 3b",
            "tilestored [{sums} + {sums_row}], tmm0",
            "tilestored [{sums} + {sums_row} + 64], tmm1",
            "tilestored [{sums1} + {sums_row}], tmm2",
            "tilestored [{sums1} + {sums_row} + 64], tmm3",
            "add {sums}, {sums_bytes}",
            "add {sums1}, {sums_bytes}",
            "dec {blocks}",
            "jnz 2b",
            a = inout(reg) a => _,
            a1 = inout(reg) a.add(second * stride) => _,
            w = inout(reg) panels[0] => _,
            w1 = inout(reg) panels[1] => _,
            sums = inout(reg) $sums => _,
            sums1 = inout(reg) $sums.cast::<[[i32; TILE]; 2]>().add(second) => _,
            blocks = inout(reg) $blocks => _,
            step = out(reg) _,
            stride = in(reg) stride,
            row = in(reg) QUAD,
            sums_row = in(reg) size_of::<[[i32; TILE]; 2]>(),
            sums_bytes = const size_of::<Sums>(),
            columns = const $columns,
            steps = const $steps,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        );
    }};
}

// SAFETY (for the whole block): by the trait's contract. No other code uses the tiles, so what `begin` sets stays.
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
        for ((tile, row_bytes), (rows, bytes)) in config.rows.iter_mut().zip(&mut config.row_bytes).zip(tiles) {
            (*tile, *row_bytes) = (rows as u8, bytes as u16);
        }
        unsafe { std::arch::asm!("ldtilecfg [{}]", in(reg) &raw const config, options(nostack, readonly)) };
    }

    #[inline(always)]
    unsafe fn wide(operands: Operands, blocks: usize, sums: *mut Sums) {
        unsafe { multiply!("tdpbsud", 64, 4, operands, blocks, sums) }
    }

    #[inline(always)]
    unsafe fn narrow(operands: Operands, blocks: usize, sums: *mut Sums) {
        unsafe { multiply!("tdpbssd", 32, 1, operands, blocks, sums) }
    }

    #[inline(always)]
    unsafe fn end() {
        unsafe { std::arch::asm!("tilerelease", options(nostack, nomem)) };
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
            rounds = inout(reg) rounds => _,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            options(nostack, nomem),
        );
        Amx::end();
    }
}

/// The products with AMX, for a type that has kernels.
pub(super) fn table(ttype: TensorType) -> MatmulFn {
    /// # Safety
    /// As [`MatmulFn`], with these features and AMX for bytes.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma,f16c")]
    unsafe fn run<F: Rows>(job: &Job<'_>, rows: Range<usize>, panel: &mut Box<Panel>) {
        // SAFETY: the caller's promise.
        unsafe { product::<Zmm, Amx, F>(job, rows, panel) }
    }
    let floats = tile::avx512(ttype);
    by_type!(ttype, run, floats, floats, floats)
}
