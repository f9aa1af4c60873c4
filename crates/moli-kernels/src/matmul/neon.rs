//! The aarch64 forms of [`Simd`] and [`Dwords`].
//!
//! 16 lanes are in four registers. The three instruction sets differ in how bytes are multiplied alone, which is
//! [`Bytes`]; the rest is [`Neon`]. Weights are bytes with a sign everywhere: formats without one stay below 128.
//!
//! Instructions that `std` offers in unstable functions only are written in assembly, one to a function.

#![allow(unsafe_code)]
#![allow(clippy::needless_range_loop)] // The indices of several loops meet in the sums.

use std::arch::aarch64::*;
use std::arch::asm;
use std::array::from_fn;
use std::marker::PhantomData;

use super::simd::{Simd, safe_quads};
use super::unpack::{Dwords, FAR, QUAD, Rows, shuffle_pattern};
use crate::vector::from_halves;

/// 16 i32.
type Int = [int32x4_t; 4];

/// How bytes are multiplied.
pub(super) trait Bytes {
    /// See [`Simd::TOKENS`].
    const TOKENS: usize;
    /// The sums of the products of one sub-block's weights with each token.
    ///
    /// # Safety
    /// As [`Simd::dot`].
    unsafe fn sums<F: Rows, const T: usize>(w: *const u8, a: [*const i8; T]) -> [Int; T];
}

/// NEON alone: products of bytes are added as i16 while they are sure to fit.
pub(super) struct Widening;

/// With dot products: one instruction for 4 rows' quads.
pub(super) struct Dot;

/// With matrix products besides: one instruction multiplies 8 bytes of 2 rows with those of 2 tokens, twice a dot product.
///
/// The panel has rows in quads, so the 8 bytes are zipped together from two quads each time. That pays where several pairs
/// of tokens use them; fewer tokens are multiplied as in [`Dot`]. (A second layout of the panel would save the zips, and
/// cost the unpacking a scattered store.)
pub(super) struct Matrix;

/// acc + the dot product of 4 signed bytes in each lane with quad `QUAD` of `a`.
///
/// # Safety
/// The processor has dot products.
#[inline]
#[target_feature(enable = "neon,dotprod")]
unsafe fn dot_quad<const QUAD: i32>(mut acc: int32x4_t, w: int8x16_t, a: int8x16_t) -> int32x4_t {
    // SAFETY: it touches nothing but its operands.
    unsafe {
        asm!("sdot {acc:v}.4s, {w:v}.16b, {a:v}.4b[{quad}]", acc = inout(vreg) acc, w = in(vreg) w, a = in(vreg) a,
            quad = const QUAD, options(pure, nomem, nostack, preserves_flags));
    }
    acc
}

/// acc + w times a transposed, `[2, 2] + [2, 8] * [8, 2]`.
///
/// # Safety
/// The processor has matrix products.
#[inline]
#[target_feature(enable = "neon,i8mm")]
unsafe fn matrix_product(mut acc: int32x4_t, w: int8x16_t, a: int8x16_t) -> int32x4_t {
    // SAFETY: it touches nothing but its operands.
    unsafe {
        asm!("smmla {acc:v}.4s, {w:v}.16b, {a:v}.16b", acc = inout(vreg) acc, w = in(vreg) w, a = in(vreg) a,
            options(pure, nomem, nostack, preserves_flags));
    }
    acc
}

// SAFETY (for the whole block): by the trait's contract.
#[allow(clippy::undocumented_unsafe_blocks)]
impl Bytes for Widening {
    const TOKENS: usize = 3;

    #[inline(always)]
    unsafe fn sums<F: Rows, const T: usize>(w: *const u8, a: [*const i8; T]) -> [Int; T] {
        unsafe {
            let safe = const { safe_quads::<F>(1) };
            let mut sums = [[vdupq_n_s32(0); 4]; T];
            for group in 0..F::SUB / 4 / safe {
                // The products of 2 rows, 4 each.
                let mut products = [[[vdupq_n_s16(0); 2]; 4]; T];
                for quad in group * safe..(group + 1) * safe {
                    for i in 0..4 {
                        let w = vld1q_s8(w.add(quad * QUAD + 16 * i).cast());
                        for t in 0..T {
                            let a = vdupq_n_s32(a[t].add(4 * quad).cast::<i32>().read_unaligned());
                            let a = vreinterpretq_s8_s32(a);
                            let [low, high] = products[t][i];
                            products[t][i] =
                                [vmlal_s8(low, vget_low_s8(w), vget_low_s8(a)), vmlal_high_s8(high, w, a)];
                        }
                    }
                }
                for t in 0..T {
                    for i in 0..4 {
                        let [low, high] = products[t][i];
                        let sum = vpaddq_s32(vpaddlq_s16(low), vpaddlq_s16(high));
                        sums[t][i] = vaddq_s32(sums[t][i], sum);
                    }
                }
            }
            sums
        }
    }
}

// SAFETY (for the whole block): by the trait's contract.
#[allow(clippy::undocumented_unsafe_blocks)]
impl Bytes for Dot {
    const TOKENS: usize = 3;

    #[inline(always)]
    unsafe fn sums<F: Rows, const T: usize>(w: *const u8, a: [*const i8; T]) -> [Int; T] {
        unsafe {
            let mut sums = [[vdupq_n_s32(0); 4]; T];
            for k in (0..F::SUB).step_by(16) {
                // Four quads of each token.
                let a = a.map(|a| vld1q_s8(a.add(k)));
                let w = w.add(k / 4 * QUAD);
                add_quad::<0, T>(&mut sums, w, &a);
                add_quad::<1, T>(&mut sums, w, &a);
                add_quad::<2, T>(&mut sums, w, &a);
                add_quad::<3, T>(&mut sums, w, &a);
            }
            sums
        }
    }
}

/// sums + quad `N` of the weights times that of each token.
///
/// # Safety
/// The processor has dot products; `w` has four quads.
#[inline(always)]
unsafe fn add_quad<const N: i32, const T: usize>(sums: &mut [Int; T], w: *const u8, a: &[int8x16_t; T]) {
    for i in 0..4 {
        // SAFETY: the caller's promise.
        unsafe {
            let w = vld1q_s8(w.add(N as usize * QUAD + 16 * i).cast());
            for t in 0..T {
                sums[t][i] = dot_quad::<N>(sums[t][i], w, a[t]);
            }
        }
    }
}

// SAFETY (for the whole block): by the trait's contract.
#[allow(clippy::undocumented_unsafe_blocks)]
impl Bytes for Matrix {
    const TOKENS: usize = 6;

    #[inline(always)]
    unsafe fn sums<F: Rows, const T: usize>(w: *const u8, a: [*const i8; T]) -> [Int; T] {
        unsafe {
            if T != 6 {
                return Dot::sums::<F, T>(w, a);
            }
            // [pair of tokens][pair of rows]
            let mut sums = [[vdupq_n_s32(0); 8]; 3];
            for k in (0..F::SUB).step_by(8) {
                let a: [int8x16_t; 3] =
                    from_fn(|p| vcombine_s8(vld1_s8(a[2 * p].add(k)), vld1_s8(a[2 * p + 1].add(k))));
                for i in 0..4 {
                    let quad = |n: usize| vld1q_s32(w.add((k / 4 + n) * QUAD + 16 * i).cast());
                    let (even, odd) = (quad(0), quad(1));
                    let rows = [vzip1q_s32(even, odd), vzip2q_s32(even, odd)];
                    for half in 0..2 {
                        let w = vreinterpretq_s8_s32(rows[half]);
                        for p in 0..3 {
                            let sum = &mut sums[p][2 * i + half];
                            *sum = matrix_product(*sum, w, a[p]);
                        }
                    }
                }
            }
            from_fn(|t| {
                from_fn(|i| {
                    let (low, high) = (sums[t / 2][2 * i], sums[t / 2][2 * i + 1]);
                    if t % 2 == 0 { vuzp1q_s32(low, high) } else { vuzp2q_s32(low, high) }
                })
            })
        }
    }
}

/// NEON: a lane is in one of four registers.
pub(super) struct Neon<B>(PhantomData<B>);

// SAFETY (for the whole block): by the trait's contract.
#[allow(clippy::undocumented_unsafe_blocks)]
impl<B: Bytes> Simd for Neon<B> {
    type Rows = uint32x4_t;
    type Int = Int;
    type Float = [float32x4_t; 4];
    const TOKENS: usize = B::TOKENS;
    const TILES: usize = 1;
    // Not measured on any such processor.
    const AT_ONCE: usize = 0;
    const UNSIGNED: bool = false;

    #[inline(always)]
    unsafe fn zero() -> Int {
        unsafe { [vdupq_n_s32(0); 4] }
    }

    #[inline(always)]
    unsafe fn sub(a: Int, b: Int) -> Int {
        unsafe { from_fn(|i| vsubq_s32(a[i], b[i])) }
    }

    #[inline(always)]
    unsafe fn splat_shifted(v: i32, bits: i32) -> Int {
        unsafe { [vdupq_n_s32(v << bits); 4] }
    }

    #[inline(always)]
    unsafe fn to_float(v: Int) -> Self::Float {
        unsafe { v.map(|v| vcvtq_f32_s32(v)) }
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self::Float {
        unsafe { from_fn(|i| vld1q_f32(from.add(4 * i))) }
    }

    #[inline(always)]
    unsafe fn store(to: *mut f32, v: Self::Float) {
        for (i, v) in v.into_iter().enumerate() {
            unsafe { vst1q_f32(to.add(4 * i), v) }
        }
    }

    #[inline(always)]
    unsafe fn scaled(lanes: *const f32, s: f32) -> Self::Float {
        unsafe { Self::load(lanes).map(|v| vmulq_n_f32(v, s)) }
    }

    #[inline(always)]
    unsafe fn fma(a: Self::Float, b: Self::Float, c: Self::Float) -> Self::Float {
        unsafe { from_fn(|i| vfmaq_f32(c[i], a[i], b[i])) }
    }

    #[inline(always)]
    unsafe fn fma_splat(lanes: *const f32, s: f32, c: Self::Float) -> Self::Float {
        unsafe { Self::fma(Self::load(lanes), [vdupq_n_f32(s); 4], c) }
    }

    #[inline(always)]
    unsafe fn add_pairs(lanes: *const i32, pair: i32, acc: Int) -> Int {
        unsafe {
            let pair = vreinterpretq_s16_s32(vdupq_n_s32(pair));
            from_fn(|i| {
                let lanes = vld1q_s16(lanes.add(4 * i).cast());
                let low = vmull_s16(vget_low_s16(lanes), vget_low_s16(pair));
                vaddq_s32(acc[i], vpaddq_s32(low, vmull_high_s16(lanes, pair)))
            })
        }
    }

    #[inline(always)]
    unsafe fn dot<F: Rows, const G: usize, const T: usize>(
        w: [*const u8; G],
        a: [*const i8; T],
        scales: [*const i32; G],
        acc: &mut [[Int; T]; G],
    ) {
        unsafe {
            for g in 0..G {
                let sums = B::sums::<F, T>(w[g], a);
                for i in 0..4 {
                    // Each sub-scale is there twice, as i16.
                    let scales = F::SUB_SCALES.then(|| vshrq_n_s32::<16>(vld1q_s32(scales[g].add(4 * i))));
                    for t in 0..T {
                        acc[g][t][i] = match scales {
                            Some(scales) => vmlaq_s32(acc[g][t][i], sums[t][i], scales),
                            None => vaddq_s32(acc[g][t][i], sums[t][i]),
                        };
                    }
                }
            }
        }
    }
}

// SAFETY (for the whole block): by the trait's contract.
#[allow(clippy::undocumented_unsafe_blocks)]
impl Dwords for uint32x4_t {
    const ROWS: usize = 4;
    type Float = float32x4_t;

    #[inline(always)]
    unsafe fn transpose16(from: *const u8, stride: usize) -> [Self; 4] {
        unsafe {
            let row = |r: usize| vreinterpretq_u32_u8(vld1q_u8(from.add(r * stride)));
            let pair = |a: usize, b: usize| {
                let (a, b) = (row(a), row(b));
                (
                    vreinterpretq_u64_u32(vtrn1q_u32(a, b)), // dwords 0 and 2
                    vreinterpretq_u64_u32(vtrn2q_u32(a, b)), // dwords 1 and 3
                )
            };
            let ((even, odd), (even_of_next, odd_of_next)) = (pair(0, 1), pair(2, 3));
            [
                vreinterpretq_u32_u64(vtrn1q_u64(even, even_of_next)),
                vreinterpretq_u32_u64(vtrn1q_u64(odd, odd_of_next)),
                vreinterpretq_u32_u64(vtrn2q_u64(even, even_of_next)),
                vreinterpretq_u32_u64(vtrn2q_u64(odd, odd_of_next)),
            ]
        }
    }

    #[inline(always)]
    unsafe fn dwords(from: *const u8, stride: usize) -> Self {
        unsafe {
            let rows: [u32; 4] = from_fn(|r| from.add(r * stride).cast::<u32>().read_unaligned());
            vld1q_u32(rows.as_ptr())
        }
    }

    #[inline(always)]
    unsafe fn two_halves(self) -> (float32x4_t, float32x4_t) {
        unsafe { (from_halves(vmovn_u32(self)), from_halves(vshrn_n_u32::<16>(self))) }
    }

    #[inline(always)]
    unsafe fn negated(v: float32x4_t) -> float32x4_t {
        unsafe { vnegq_f32(v) }
    }

    // The counts of shifts are constants after inlining, so these are immediate shifts.
    #[inline(always)]
    unsafe fn shifted(self, left: i32, mask: u8) -> Self {
        unsafe {
            let v = vshlq_u8(vreinterpretq_u8_u32(self), vdupq_n_s8(left as i8));
            vreinterpretq_u32_u8(vandq_u8(v, vdupq_n_u8(mask)))
        }
    }

    #[inline(always)]
    unsafe fn shifted_dword(self, left: i32) -> Self {
        unsafe { vshlq_u32(self, vdupq_n_s32(left)) }
    }

    #[inline(always)]
    unsafe fn and(self, dword: u32) -> Self {
        unsafe { vandq_u32(self, vdupq_n_u32(dword)) }
    }

    #[inline(always)]
    unsafe fn or(self, other: Self) -> Self {
        unsafe { vorrq_u32(self, other) }
    }

    #[inline(always)]
    unsafe fn xor(self, dword: u32) -> Self {
        unsafe { veorq_u32(self, vdupq_n_u32(dword)) }
    }

    #[inline(always)]
    unsafe fn xor_with(self, other: Self) -> Self {
        unsafe { veorq_u32(self, other) }
    }

    #[inline(always)]
    unsafe fn min_bytes(self, most: u8) -> Self {
        unsafe { vreinterpretq_u32_u8(vminq_u8(vreinterpretq_u8_u32(self), vdupq_n_u8(most))) }
    }

    #[inline(always)]
    unsafe fn sub_bytes(self, v: u8) -> Self {
        unsafe { vreinterpretq_u32_u8(vsubq_u8(vreinterpretq_u8_u32(self), vdupq_n_u8(v))) }
    }

    #[inline(always)]
    unsafe fn plus(self, other: Self) -> Self {
        unsafe { vreinterpretq_u32_u8(vaddq_u8(vreinterpretq_u8_u32(self), vreinterpretq_u8_u32(other))) }
    }

    #[inline(always)]
    unsafe fn negated_times(self, bits: i32) -> Self {
        unsafe {
            let v = vshlq_s16(vreinterpretq_s16_u32(self), vdupq_n_s16(bits as i16));
            vreinterpretq_u32_s16(vnegq_s16(v))
        }
    }

    #[inline(always)]
    unsafe fn shuffle(self, from: [u8; 4]) -> Self {
        unsafe {
            let pattern = vreinterpretq_u8_s32(vld1q_s32(shuffle_pattern(from).as_ptr()));
            vreinterpretq_u32_u8(vqtbl1q_u8(vreinterpretq_u8_u32(self), pattern))
        }
    }

    #[inline(always)]
    unsafe fn look_up(self, table: [u8; 16]) -> Self {
        unsafe { vreinterpretq_u32_u8(vqtbl1q_u8(vld1q_u8(table.as_ptr()), vreinterpretq_u8_u32(self))) }
    }

    #[inline(always)]
    unsafe fn gather<const SCALE: i32>(self, from: *const u8) -> Self {
        unsafe {
            let mut at = [0u32; 4];
            vst1q_u32(at.as_mut_ptr(), self);
            let dwords = at.map(|at| from.add(at as usize * SCALE as usize).cast::<u32>().read_unaligned());
            vld1q_u32(dwords.as_ptr())
        }
    }

    #[inline(always)]
    unsafe fn high_bytes(self) -> Self {
        unsafe { vreinterpretq_u32_s16(vshrq_n_s16::<8>(vreinterpretq_s16_u32(self))) }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut i32) {
        unsafe { vst1q_u32(to.cast(), self) }
    }

    #[inline(always)]
    unsafe fn store_float(v: float32x4_t, to: *mut f32) {
        unsafe { vst1q_f32(to, v) }
    }

    #[inline(always)]
    unsafe fn prefetch(line: *const u8) {
        unsafe {
            asm!("prfm pldl1keep, [{line}]", "prfm pldl2keep, [{far}]", line = in(reg) line,
                far = in(reg) line.wrapping_add(FAR), options(readonly, nostack, preserves_flags));
        }
    }
}
