//! The vector form of the quantised product.
//!
//! A task takes 16 rows of weights at a time. A stretch of their columns is unpacked into a panel that fits the
//! first-level cache, with rows as lanes, and multiplied with all tokens, a few at a time; then comes the next stretch.
//! With rows as lanes every lane performs the scalar form's sequence of operations, so the bits agree by construction,
//! and nothing depends on how many tokens there are.
//!
//! The multiplication is written once over [`Simd`], a few operations on 16 lanes, with AVX2 (two registers) and with
//! AVX-512-VNNI (one). The tests run the latter's form on any processor, with a substitute for its register.

#![allow(unsafe_code)]

use std::arch::x86_64::*;
use std::ops::Range;

use moli_format::TensorType;

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

/// Operations on 16 lanes, one for each row of a tile.
///
/// # Safety of all methods
/// The processor has the instructions, and 16 elements can be read or written at each pointer to lanes.
pub(super) trait Simd {
    /// 16 i32.
    type Int: Copy;
    /// 16 f32.
    type Float: Copy;

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
    /// What [`dot`](Self::dot) is over by for Q8_0, as the binary logarithm of a factor of the activations' sum.
    const SIGNED_OFFSET_BITS: Option<i32>;

    /// acc + the products of one sub-block with each token, times the sub-scales of K formats.
    ///
    /// `w`: `F::SUB / 4` quads of [`QUAD`] bytes. `a`: `F::SUB` bytes for each token. `scales`: lanes, read for blocks of
    /// 256 only.
    unsafe fn dot<F: Rows, const T: usize>(
        w: *const u8,
        a: [*const i8; T],
        scales: *const i32,
        acc: &mut [Self::Int; T],
    );
}

/// AVX2: a lane is in one of two registers.
pub(super) struct Avx2;

/// Quads whose products can be added as i16.
const fn safe_quads(max: i32, quads: usize) -> usize {
    let mut n = quads;
    // Each i16 takes two products of a quad; activations are at most 127 in magnitude.
    while n as i32 * 2 * max * 127 > i16::MAX as i32 {
        n /= 2;
    }
    n
}

// SAFETY (for the whole block): by the trait's contract.
#[allow(clippy::undocumented_unsafe_blocks)]
impl Simd for Avx2 {
    type Int = [__m256i; 2];
    type Float = [__m256; 2];
    const SIGNED_OFFSET_BITS: Option<i32> = None;

    #[inline(always)]
    unsafe fn zero() -> Self::Int {
        unsafe { [_mm256_setzero_si256(); 2] }
    }

    #[inline(always)]
    unsafe fn sub(a: Self::Int, b: Self::Int) -> Self::Int {
        unsafe { [_mm256_sub_epi32(a[0], b[0]), _mm256_sub_epi32(a[1], b[1])] }
    }

    #[inline(always)]
    unsafe fn splat_shifted(v: i32, bits: i32) -> Self::Int {
        unsafe { [_mm256_sll_epi32(_mm256_set1_epi32(v), _mm_cvtsi32_si128(bits)); 2] }
    }

    #[inline(always)]
    unsafe fn to_float(v: Self::Int) -> Self::Float {
        unsafe { [_mm256_cvtepi32_ps(v[0]), _mm256_cvtepi32_ps(v[1])] }
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self::Float {
        unsafe { [_mm256_loadu_ps(from), _mm256_loadu_ps(from.add(8))] }
    }

    #[inline(always)]
    unsafe fn store(to: *mut f32, v: Self::Float) {
        unsafe {
            _mm256_storeu_ps(to, v[0]);
            _mm256_storeu_ps(to.add(8), v[1]);
        }
    }

    #[inline(always)]
    unsafe fn scaled(lanes: *const f32, s: f32) -> Self::Float {
        unsafe {
            let (lanes, s) = (Self::load(lanes), _mm256_set1_ps(s));
            [_mm256_mul_ps(lanes[0], s), _mm256_mul_ps(lanes[1], s)]
        }
    }

    #[inline(always)]
    unsafe fn fma(a: Self::Float, b: Self::Float, c: Self::Float) -> Self::Float {
        unsafe { [_mm256_fmadd_ps(a[0], b[0], c[0]), _mm256_fmadd_ps(a[1], b[1], c[1])] }
    }

    #[inline(always)]
    unsafe fn fma_splat(lanes: *const f32, s: f32, c: Self::Float) -> Self::Float {
        unsafe { Self::fma(Self::load(lanes), [_mm256_set1_ps(s); 2], c) }
    }

    #[inline(always)]
    unsafe fn add_pairs(lanes: *const i32, pair: i32, acc: Self::Int) -> Self::Int {
        unsafe {
            let pair = _mm256_set1_epi32(pair);
            let product = |i: usize| _mm256_madd_epi16(_mm256_loadu_si256(lanes.add(8 * i).cast()), pair);
            [_mm256_add_epi32(acc[0], product(0)), _mm256_add_epi32(acc[1], product(1))]
        }
    }

    #[inline(always)]
    unsafe fn dot<F: Rows, const T: usize>(
        w: *const u8,
        a: [*const i8; T],
        scales: *const i32,
        acc: &mut [Self::Int; T],
    ) {
        unsafe {
            let safe = const { safe_quads(F::MAX, F::SUB / 4) };
            let scales: [__m256i; 2] = if F::LEN == 32 {
                [_mm256_set1_epi16(1); 2]
            } else {
                [_mm256_loadu_si256(scales.cast()), _mm256_loadu_si256(scales.add(8).cast())]
            };
            for group in 0..F::SUB / 4 / safe {
                let mut sums = [[_mm256_setzero_si256(); 2]; T];
                for i in 0..safe {
                    let quad = group * safe + i;
                    let from = w.add(quad * QUAD).cast::<__m256i>();
                    let w = [_mm256_loadu_si256(from), _mm256_loadu_si256(from.add(1))];
                    for t in 0..T {
                        let a = _mm256_set1_epi32(a[t].add(4 * quad).cast::<i32>().read_unaligned());
                        for h in 0..2 {
                            // Q8_0: the sign goes from the weight to the activation. 128 * 127 * 2 fits.
                            let product = if matches!(F::TYPE, TensorType::Q8_0) {
                                _mm256_maddubs_epi16(_mm256_abs_epi8(w[h]), _mm256_sign_epi8(a, w[h]))
                            } else {
                                _mm256_maddubs_epi16(w[h], a)
                            };
                            sums[t][h] = if i == 0 { product } else { _mm256_add_epi16(sums[t][h], product) };
                        }
                    }
                }
                for t in 0..T {
                    for h in 0..2 {
                        acc[t][h] = _mm256_add_epi32(acc[t][h], _mm256_madd_epi16(sums[t][h], scales[h]));
                    }
                }
            }
        }
    }
}

/// AVX-512-VNNI: a lane is in one register, a `W`.
pub(super) struct Avx512<W>(std::marker::PhantomData<W>);

/// The register of [`Avx512`], one instruction a method; the tests have a substitute made of arrays.
pub(super) trait Wide {
    /// 16 i32.
    type Int: Copy;
    /// 16 f32.
    type Float: Copy;
    unsafe fn load_int(from: *const i32) -> Self::Int;
    unsafe fn splat(v: i32) -> Self::Int;
    /// acc + the sum of four products of unsigned with signed bytes in each lane.
    unsafe fn dpbusd(acc: Self::Int, w: Self::Int, a: Self::Int) -> Self::Int;
    /// acc + the sum of two products of i16 in each lane.
    unsafe fn dpwssd(acc: Self::Int, w: Self::Int, a: Self::Int) -> Self::Int;
    unsafe fn add(a: Self::Int, b: Self::Int) -> Self::Int;
    unsafe fn sub(a: Self::Int, b: Self::Int) -> Self::Int;
    unsafe fn mul(a: Self::Int, b: Self::Int) -> Self::Int;
    unsafe fn xor(a: Self::Int, b: Self::Int) -> Self::Int;
    /// Each lane to the left.
    unsafe fn shift_left(v: Self::Int, bits: i32) -> Self::Int;
    /// Each lane 16 bits to the right, with its sign.
    unsafe fn high_half(v: Self::Int) -> Self::Int;
    unsafe fn to_float(v: Self::Int) -> Self::Float;
    unsafe fn load(from: *const f32) -> Self::Float;
    unsafe fn store(to: *mut f32, v: Self::Float);
    unsafe fn splat_float(v: f32) -> Self::Float;
    unsafe fn mul_float(a: Self::Float, b: Self::Float) -> Self::Float;
    unsafe fn fma(a: Self::Float, b: Self::Float, c: Self::Float) -> Self::Float;
}

// SAFETY (for the whole block): by the trait's contract.
#[allow(clippy::undocumented_unsafe_blocks)]
impl<W: Wide> Simd for Avx512<W> {
    type Int = W::Int;
    type Float = W::Float;
    // The weights' bytes count 128 too many.
    const SIGNED_OFFSET_BITS: Option<i32> = Some(7);

    #[inline(always)]
    unsafe fn zero() -> Self::Int {
        unsafe { W::splat(0) }
    }

    #[inline(always)]
    unsafe fn sub(a: Self::Int, b: Self::Int) -> Self::Int {
        unsafe { W::sub(a, b) }
    }

    #[inline(always)]
    unsafe fn splat_shifted(v: i32, bits: i32) -> Self::Int {
        unsafe { W::shift_left(W::splat(v), bits) }
    }

    #[inline(always)]
    unsafe fn to_float(v: Self::Int) -> Self::Float {
        unsafe { W::to_float(v) }
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self::Float {
        unsafe { W::load(from) }
    }

    #[inline(always)]
    unsafe fn store(to: *mut f32, v: Self::Float) {
        unsafe { W::store(to, v) }
    }

    #[inline(always)]
    unsafe fn scaled(lanes: *const f32, s: f32) -> Self::Float {
        unsafe { W::mul_float(W::load(lanes), W::splat_float(s)) }
    }

    #[inline(always)]
    unsafe fn fma(a: Self::Float, b: Self::Float, c: Self::Float) -> Self::Float {
        unsafe { W::fma(a, b, c) }
    }

    #[inline(always)]
    unsafe fn fma_splat(lanes: *const f32, s: f32, c: Self::Float) -> Self::Float {
        unsafe { W::fma(W::load(lanes), W::splat_float(s), c) }
    }

    #[inline(always)]
    unsafe fn add_pairs(lanes: *const i32, pair: i32, acc: Self::Int) -> Self::Int {
        unsafe { W::dpwssd(acc, W::load_int(lanes), W::splat(pair)) }
    }

    #[inline(always)]
    unsafe fn dot<F: Rows, const T: usize>(
        w: *const u8,
        a: [*const i8; T],
        scales: *const i32,
        acc: &mut [Self::Int; T],
    ) {
        unsafe {
            let mut sums = if F::LEN == 32 { *acc } else { [W::splat(0); T] };
            for quad in 0..F::SUB / 4 {
                let w = W::load_int(w.add(quad * QUAD).cast());
                let w = if matches!(F::TYPE, TensorType::Q8_0) {
                    W::xor(w, W::splat(0x8080_8080_u32.cast_signed()))
                } else {
                    w
                };
                for t in 0..T {
                    let a = W::splat(a[t].add(4 * quad).cast::<i32>().read_unaligned());
                    sums[t] = W::dpbusd(sums[t], w, a);
                }
            }
            if F::LEN == 32 {
                *acc = sums;
            } else {
                let scales = W::high_half(W::load_int(scales));
                for t in 0..T {
                    acc[t] = W::add(acc[t], W::mul(sums[t], scales));
                }
            }
        }
    }
}

/// The processor's own registers.
pub(super) struct Zmm;

// SAFETY (for the whole block): by the trait's contract.
#[allow(clippy::undocumented_unsafe_blocks)]
impl Wide for Zmm {
    type Int = __m512i;
    type Float = __m512;

    #[inline(always)]
    unsafe fn load_int(from: *const i32) -> __m512i {
        unsafe { _mm512_loadu_si512(from.cast()) }
    }

    #[inline(always)]
    unsafe fn splat(v: i32) -> __m512i {
        unsafe { _mm512_set1_epi32(v) }
    }

    #[inline(always)]
    unsafe fn dpbusd(acc: __m512i, w: __m512i, a: __m512i) -> __m512i {
        unsafe { _mm512_dpbusd_epi32(acc, w, a) }
    }

    #[inline(always)]
    unsafe fn dpwssd(acc: __m512i, w: __m512i, a: __m512i) -> __m512i {
        unsafe { _mm512_dpwssd_epi32(acc, w, a) }
    }

    #[inline(always)]
    unsafe fn add(a: __m512i, b: __m512i) -> __m512i {
        unsafe { _mm512_add_epi32(a, b) }
    }

    #[inline(always)]
    unsafe fn sub(a: __m512i, b: __m512i) -> __m512i {
        unsafe { _mm512_sub_epi32(a, b) }
    }

    #[inline(always)]
    unsafe fn mul(a: __m512i, b: __m512i) -> __m512i {
        unsafe { _mm512_mullo_epi32(a, b) }
    }

    #[inline(always)]
    unsafe fn xor(a: __m512i, b: __m512i) -> __m512i {
        unsafe { _mm512_xor_si512(a, b) }
    }

    #[inline(always)]
    unsafe fn shift_left(v: __m512i, bits: i32) -> __m512i {
        unsafe { _mm512_sll_epi32(v, _mm_cvtsi32_si128(bits)) }
    }

    #[inline(always)]
    unsafe fn high_half(v: __m512i) -> __m512i {
        unsafe { _mm512_srai_epi32::<16>(v) }
    }

    #[inline(always)]
    unsafe fn to_float(v: __m512i) -> __m512 {
        unsafe { _mm512_cvtepi32_ps(v) }
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> __m512 {
        unsafe { _mm512_loadu_ps(from) }
    }

    #[inline(always)]
    unsafe fn store(to: *mut f32, v: __m512) {
        unsafe { _mm512_storeu_ps(to, v) }
    }

    #[inline(always)]
    unsafe fn splat_float(v: f32) -> __m512 {
        unsafe { _mm512_set1_ps(v) }
    }

    #[inline(always)]
    unsafe fn mul_float(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_mul_ps(a, b) }
    }

    #[inline(always)]
    unsafe fn fma(a: __m512, b: __m512, c: __m512) -> __m512 {
        unsafe { _mm512_fmadd_ps(a, b, c) }
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
