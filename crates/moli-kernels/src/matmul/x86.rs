//! The x86-64 forms of [`Simd`].
//!
//! [`Avx2`] has its 16 lanes in two registers, [`Avx512`] in one. The latter is written over [`Wide`], one instruction a
//! method, for which the tests have a substitute made of arrays.

#![allow(unsafe_code)]

use std::arch::x86_64::*;

use super::Job;
use super::simd::{Simd, safe_quads};
use super::tile::{Panel, Tokens, multiply_any};
use super::unpack::{Dwords, FAR, QUAD, Rows};

/// [`Simd::ask`] for a register. No instruction touches it, so nothing waits when this runs: only the compiler sees that what
/// comes needs what has been.
macro_rules! ask {
    ($lanes:ident, $class:ident, $line:expr) => {
        std::arch::asm!(
            "prefetcht0 [{line}]",
            "prefetcht1 [{line} + {far}]",
            "/* {lanes} */",
            lanes = inout($class) $lanes,
            // A number: a hint reads nothing.
            line = in(reg) $line.addr(),
            far = const FAR,
            options(pure, nomem, nostack, preserves_flags),
        )
    };
}

/// AVX2: a lane is in one of two registers.
pub(super) struct Avx2;

// SAFETY (for the whole block): by the trait's contract.
#[allow(clippy::undocumented_unsafe_blocks)]
impl Simd for Avx2 {
    type Int = [__m256i; 2];
    type Float = [__m256; 2];
    type Rows = __m256i;
    const TOKENS: usize = 3;
    const TILES: usize = 1;
    const AT_ONCE: usize = 4;
    const UNSIGNED: bool = false;

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

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn ask([mut first, second]: Self::Int, line: *const u8) -> Self::Int {
        unsafe { ask!(first, ymm_reg, line) }
        [first, second]
    }

    #[inline(always)]
    unsafe fn dot<F: Rows, const G: usize, const T: usize>(
        w: [*const u8; G],
        a: [*const i8; T],
        scales: [*const i32; G],
        acc: &mut [[Self::Int; T]; G],
    ) {
        unsafe {
            let safe = const { safe_quads::<F>(2) };
            for g in 0..G {
                let scales: [__m256i; 2] = if !F::SUB_SCALES {
                    [_mm256_set1_epi16(1); 2]
                } else {
                    [_mm256_loadu_si256(scales[g].cast()), _mm256_loadu_si256(scales[g].add(8).cast())]
                };
                for group in 0..F::SUB / 4 / safe {
                    let mut sums = [[_mm256_setzero_si256(); 2]; T];
                    for i in 0..safe {
                        let quad = group * safe + i;
                        let from = w[g].add(quad * QUAD).cast::<__m256i>();
                        let w = [_mm256_loadu_si256(from), _mm256_loadu_si256(from.add(1))];
                        for t in 0..T {
                            let a = _mm256_set1_epi32(a[t].add(4 * quad).cast::<i32>().read_unaligned());
                            for h in 0..2 {
                                // The sign goes from the weight to the activation. 128 * 127 * 2 fits.
                                let product = if F::SIGNED {
                                    _mm256_maddubs_epi16(_mm256_abs_epi8(w[h]), _mm256_sign_epi8(a, w[h]))
                                } else {
                                    _mm256_maddubs_epi16(w[h], a)
                                };
                                sums[t][h] =
                                    if i == 0 { product } else { _mm256_add_epi16(sums[t][h], product) };
                            }
                        }
                    }
                    for t in 0..T {
                        for h in 0..2 {
                            acc[g][t][h] =
                                _mm256_add_epi32(acc[g][t][h], _mm256_madd_epi16(sums[t][h], scales[h]));
                        }
                    }
                }
            }
        }
    }
}

/// AVX-512-VNNI: a lane is in one register, a `W`.
pub(super) struct Avx512<W>(std::marker::PhantomData<W>);

/// The register of [`Avx512`], one instruction a method but for [`ask`](Self::ask) and the last; the tests have a substitute made of
/// arrays.
pub(super) trait Wide {
    /// 16 i32.
    type Int: Copy;
    /// 16 f32.
    type Float: Copy;
    /// See [`Simd::Rows`].
    type Rows: Dwords;
    unsafe fn load_int(from: *const i32) -> Self::Int;
    unsafe fn splat(v: i32) -> Self::Int;
    /// acc + the sum of four products of unsigned with signed bytes in each lane.
    unsafe fn dpbusd(acc: Self::Int, w: Self::Int, a: Self::Int) -> Self::Int;
    /// acc + the sum of two products of i16 in each lane.
    unsafe fn dpwssd(acc: Self::Int, w: Self::Int, a: Self::Int) -> Self::Int;
    unsafe fn add(a: Self::Int, b: Self::Int) -> Self::Int;
    unsafe fn sub(a: Self::Int, b: Self::Int) -> Self::Int;
    unsafe fn mul(a: Self::Int, b: Self::Int) -> Self::Int;
    /// See [`Simd::ask`].
    unsafe fn ask(lanes: Self::Int, line: *const u8) -> Self::Int;
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

    /// See [`Simd::multiply_many`].
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
        unsafe { multiply_any::<Avx512<Self>, F, G>(job, blocks, tokens, panel) }
    }
}

// SAFETY (for the whole block): by the trait's contract.
#[allow(clippy::undocumented_unsafe_blocks)]
impl<W: Wide> Simd for Avx512<W> {
    type Int = W::Int;
    type Float = W::Float;
    type Rows = W::Rows;
    const TOKENS: usize = 6;
    const TILES: usize = 2;
    const AT_ONCE: usize = 8;
    const UNSIGNED: bool = true;

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
    unsafe fn dot<F: Rows, const G: usize, const T: usize>(
        w: [*const u8; G],
        a: [*const i8; T],
        scales: [*const i32; G],
        acc: &mut [[Self::Int; T]; G],
    ) {
        unsafe {
            let mut sums = if !F::SUB_SCALES { *acc } else { [[W::splat(0); T]; G] };
            for quad in 0..F::SUB / 4 {
                let w: [W::Int; G] = std::array::from_fn(|g| W::load_int(w[g].add(quad * QUAD).cast()));
                for t in 0..T {
                    let a = W::splat(a[t].add(4 * quad).cast::<i32>().read_unaligned());
                    for g in 0..G {
                        sums[g][t] = W::dpbusd(sums[g][t], w[g], a);
                    }
                }
            }
            if !F::SUB_SCALES {
                *acc = sums;
            } else {
                for g in 0..G {
                    let scales = W::high_half(W::load_int(scales[g]));
                    for t in 0..T {
                        acc[g][t] = W::add(acc[g][t], W::mul(sums[g][t], scales));
                    }
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn ask(lanes: Self::Int, line: *const u8) -> Self::Int {
        unsafe { W::ask(lanes, line) }
    }

    #[inline(always)]
    unsafe fn multiply_many<F: Rows, const G: usize>(
        job: &Job<'_>,
        blocks: usize,
        tokens: &Tokens,
        panel: &mut Panel,
    ) {
        unsafe { W::multiply_many::<F, G>(job, blocks, tokens, panel) }
    }
}

/// The processor's own registers.
pub(super) struct Zmm;

// SAFETY (for the whole block): by the trait's contract.
#[allow(clippy::undocumented_unsafe_blocks)]
impl Wide for Zmm {
    type Int = __m512i;
    type Float = __m512;
    type Rows = __m512i;

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

    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn ask(mut lanes: __m512i, line: *const u8) -> __m512i {
        unsafe { ask!(lanes, zmm_reg, line) }
        lanes
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

    #[inline(always)]
    unsafe fn multiply_many<F: Rows, const G: usize>(
        job: &Job<'_>,
        blocks: usize,
        tokens: &Tokens,
        panel: &mut Panel,
    ) {
        /// # Safety
        /// As [`Simd::multiply_many`], with these features.
        #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma,f16c")]
        #[inline(never)]
        unsafe fn apart<F: Rows, const G: usize>(
            job: &Job<'_>,
            blocks: usize,
            tokens: &Tokens,
            panel: &mut Panel,
        ) {
            unsafe { multiply_any::<Avx512<Zmm>, F, G>(job, blocks, tokens, panel) }
        }
        // A function of its own has all registers to itself: together with unpacking, compilers kept some of its addresses in
        // memory, which cost a tenth.
        unsafe { apart::<F, G>(job, blocks, tokens, panel) }
    }
}
