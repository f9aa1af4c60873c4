//! The vector operations of the quantised product, on 16 lanes: one for each row of a tile.
//!
//! [`Simd`] is what the product is written with. [`Avx2`] implements it in two registers, [`Avx512`] in one, itself written
//! over [`Wide`] with one instruction a method, for which the tests have a substitute made of arrays.

#![allow(unsafe_code)]

use std::arch::x86_64::*;

use moli_format::TensorType;

use super::unpack::{QUAD, Rows};

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
