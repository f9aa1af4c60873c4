//! A register of f32, which the float products and attention's inner loops are written with, once for every width.

#![allow(unsafe_code)]

#[cfg(target_arch = "aarch64")]
use std::arch::aarch64::*;
#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

use crate::float::tree;

/// Asks for a line of memory, into the second-level cache: it is far ahead. It need not be readable.
#[inline(always)]
pub(crate) fn ask_for(line: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: SSE is in every such processor, and a hint can't fault.
    unsafe {
        _mm_prefetch::<_MM_HINT_T1>(line.cast());
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: a hint can't fault, and changes nothing that a program sees.
    unsafe {
        std::arch::asm!("prfm pldl2keep, [{}]", in(reg) line, options(nostack, preserves_flags, readonly));
    }
}

/// Asks for a line of memory that is written soon. It need not be writable.
#[inline(always)]
pub(crate) fn ask_to_write(line: *mut u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a hint can't fault, and does nothing where a processor has none for writing. (Compilers leave it out, or ask
    // to read instead, unless told that the processor has it.)
    unsafe {
        std::arch::asm!("prefetchw [{}]", in(reg) line, options(nostack, preserves_flags, readonly));
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: a hint can't fault, and changes nothing that a program sees.
    unsafe {
        std::arch::asm!("prfm pstl1keep, [{}]", in(reg) line, options(nostack, preserves_flags, readonly));
    }
}

/// A register of [`LANES`](Self::LANES) f32.
///
/// # Safety of all methods
/// The processor has the instructions, and as many elements can be read or written at a pointer.
pub(crate) trait Vector: Copy {
    /// A divisor of 16.
    const LANES: usize;

    unsafe fn splat(v: f32) -> Self;
    unsafe fn load(from: *const f32) -> Self;
    /// Half-precision numbers, exactly.
    unsafe fn load_f16(from: *const u8) -> Self;
    /// One half-precision number in every lane, exactly.
    unsafe fn splat_f16(from: *const u8) -> Self;
    /// Signed bytes.
    unsafe fn load_i8(from: *const i8) -> Self;
    /// bfloat16 numbers, exactly.
    unsafe fn load_bf16(from: *const u8) -> Self;
    unsafe fn store(self, to: *mut f32);
    unsafe fn mul(self, b: Self) -> Self;
    /// self * b + c, rounded once
    unsafe fn fma(self, b: Self, c: Self) -> Self;
    /// The sums of 16 lanes each, in `P` registers: lanes `l` and `l + 8` are added, then `l + 4`, `l + 2`, `l + 1`.
    #[inline(always)]
    unsafe fn sums<const P: usize, const R: usize>(lanes: [[Self; P]; R]) -> [f32; R] {
        let mut sums = [0.0; R];
        for (sum, lanes) in sums.iter_mut().zip(lanes) {
            let mut all = [0f32; 16];
            for (p, lanes) in lanes.into_iter().enumerate() {
                // SAFETY: the caller's promise; `P` registers are 16 lanes.
                unsafe { lanes.store(all.as_mut_ptr().add(Self::LANES * p)) };
            }
            *sum = tree(all);
        }
        sums
    }
}

// SAFETY (for the whole block): by the trait's contract.
#[cfg(target_arch = "x86_64")]
#[allow(clippy::undocumented_unsafe_blocks)]
impl Vector for __m256 {
    const LANES: usize = 8;

    #[inline(always)]
    unsafe fn splat(v: f32) -> Self {
        unsafe { _mm256_set1_ps(v) }
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        unsafe { _mm256_loadu_ps(from) }
    }

    #[inline(always)]
    unsafe fn load_f16(from: *const u8) -> Self {
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(from.cast())) }
    }

    #[inline(always)]
    unsafe fn splat_f16(from: *const u8) -> Self {
        unsafe { _mm256_cvtph_ps(_mm_set1_epi16(from.cast::<i16>().read_unaligned())) }
    }

    #[inline(always)]
    unsafe fn load_i8(from: *const i8) -> Self {
        unsafe { _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(from.cast()))) }
    }

    #[inline(always)]
    unsafe fn load_bf16(from: *const u8) -> Self {
        unsafe {
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast()))))
        }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        unsafe { _mm256_storeu_ps(to, self) }
    }

    #[inline(always)]
    unsafe fn mul(self, b: Self) -> Self {
        unsafe { _mm256_mul_ps(self, b) }
    }

    #[inline(always)]
    unsafe fn fma(self, b: Self, c: Self) -> Self {
        unsafe { _mm256_fmadd_ps(self, b, c) }
    }
}

// SAFETY (for the whole block): by the trait's contract.
#[cfg(target_arch = "x86_64")]
#[allow(clippy::undocumented_unsafe_blocks)]
impl Vector for __m512 {
    const LANES: usize = 16;

    #[inline(always)]
    unsafe fn splat(v: f32) -> Self {
        unsafe { _mm512_set1_ps(v) }
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        unsafe { _mm512_loadu_ps(from) }
    }

    #[inline(always)]
    unsafe fn load_f16(from: *const u8) -> Self {
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.cast())) }
    }

    #[inline(always)]
    unsafe fn splat_f16(from: *const u8) -> Self {
        unsafe { _mm512_cvtph_ps(_mm256_set1_epi16(from.cast::<i16>().read_unaligned())) }
    }

    #[inline(always)]
    unsafe fn load_i8(from: *const i8) -> Self {
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(from.cast()))) }
    }

    #[inline(always)]
    unsafe fn load_bf16(from: *const u8) -> Self {
        unsafe {
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(_mm256_loadu_si256(
                from.cast(),
            ))))
        }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        unsafe { _mm512_storeu_ps(to, self) }
    }

    #[inline(always)]
    unsafe fn mul(self, b: Self) -> Self {
        unsafe { _mm512_mul_ps(self, b) }
    }

    #[inline(always)]
    unsafe fn fma(self, b: Self, c: Self) -> Self {
        unsafe { _mm512_fmadd_ps(self, b, c) }
    }

    #[inline(always)]
    unsafe fn sums<const P: usize, const R: usize>(lanes: [[Self; P]; R]) -> [f32; R] {
        let mut sums = [0.0; R];
        for (sums, lanes) in sums.chunks_mut(4).zip(lanes.chunks(4)) {
            unsafe {
                let row = |r: usize| lanes.get(r).map_or(_mm512_setzero_ps(), |lanes| lanes[0]);
                // Of two rows each, whose halves have been added; then four rows of four lanes.
                let (a, b, c, d) = (row(0), row(1), row(2), row(3));
                let ab =
                    _mm512_add_ps(_mm512_shuffle_f32x4::<0x44>(a, b), _mm512_shuffle_f32x4::<0xee>(a, b));
                let cd =
                    _mm512_add_ps(_mm512_shuffle_f32x4::<0x44>(c, d), _mm512_shuffle_f32x4::<0xee>(c, d));
                let all =
                    _mm512_add_ps(_mm512_shuffle_f32x4::<0x88>(ab, cd), _mm512_shuffle_f32x4::<0xdd>(ab, cd));
                let all = _mm512_add_ps(all, _mm512_permute_ps::<0x4e>(all));
                let all = _mm512_add_ps(all, _mm512_permute_ps::<0xb1>(all));
                let first = _mm512_setr_epi32(0, 4, 8, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0);
                let mut four = [0f32; 4];
                _mm_storeu_ps(four.as_mut_ptr(), _mm512_castps512_ps128(_mm512_permutexvar_ps(first, all)));
                sums.copy_from_slice(&four[..sums.len()]);
            }
        }
        sums
    }
}

// SAFETY (for the whole block): by the trait's contract.
#[cfg(target_arch = "aarch64")]
#[allow(clippy::undocumented_unsafe_blocks)]
impl Vector for float32x4_t {
    const LANES: usize = 4;

    #[inline(always)]
    unsafe fn splat(v: f32) -> Self {
        unsafe { vdupq_n_f32(v) }
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        unsafe { vld1q_f32(from) }
    }

    #[inline(always)]
    unsafe fn load_f16(from: *const u8) -> Self {
        unsafe { from_halves(vreinterpret_u16_u8(vld1_u8(from))) }
    }

    #[inline(always)]
    unsafe fn splat_f16(from: *const u8) -> Self {
        unsafe { from_halves(vdup_n_u16(from.cast::<u16>().read_unaligned())) }
    }

    #[inline(always)]
    unsafe fn load_i8(from: *const i8) -> Self {
        unsafe {
            let bytes = vreinterpret_s8_s32(vdup_n_s32(from.cast::<i32>().read_unaligned()));
            vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(bytes))))
        }
    }

    #[inline(always)]
    unsafe fn load_bf16(from: *const u8) -> Self {
        unsafe { vreinterpretq_f32_u32(vshll_n_u16::<16>(vreinterpret_u16_u8(vld1_u8(from)))) }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        unsafe { vst1q_f32(to, self) }
    }

    #[inline(always)]
    unsafe fn mul(self, b: Self) -> Self {
        unsafe { vmulq_f32(self, b) }
    }

    #[inline(always)]
    unsafe fn fma(self, b: Self, c: Self) -> Self {
        unsafe { vfmaq_f32(c, self, b) }
    }
}

/// Half-precision numbers as f32, exactly.
///
/// # Safety
/// NEON.
#[cfg(target_arch = "aarch64")]
#[inline(always)]
pub(crate) unsafe fn from_halves(halves: uint16x4_t) -> float32x4_t {
    let wide: float32x4_t;
    // SAFETY: it touches nothing but its operands. `std` has the conversion in an unstable function only.
    unsafe {
        std::arch::asm!("fcvtl {wide:v}.4s, {halves:v}.4h", wide = lateout(vreg) wide, halves = in(vreg) halves,
            options(pure, nomem, nostack));
    }
    wide
}
