//! The x86-64 forms of [`Dwords`]: 8 rows in a register of AVX2, 16 in one of AVX-512.

#![allow(unsafe_code)]

use std::arch::x86_64::*;

use super::unpack::{Dwords, FAR, shuffle_pattern};

/// The pattern of [`Dwords::shuffle`] for 4 dwords.
///
/// # Safety
/// SSE2.
#[inline(always)]
unsafe fn pattern(from: [u8; 4]) -> __m128i {
    let [a, b, c, d] = shuffle_pattern(from);
    // SAFETY: the caller's promise.
    unsafe { _mm_setr_epi32(a, b, c, d) }
}

/// The methods that differ between the widths in the instructions' names alone.
macro_rules! width {
    (
        $float:ty, and $and:ident or $or:ident xor $xor:ident, splat $bytes:ident $dwords:ident $zero:ident,
        shift $left16:ident $right16:ident $sign16:ident $left32:ident $right32:ident, min $min:ident,
        add $add8:ident sub $sub8:ident $sub16:ident, shuffle $shuffle:ident $spread:ident, store $store:ident $store_float:ident
    ) => {
        // The counts of shifts are constants after inlining, so these are immediate shifts.
        #[inline(always)]
        unsafe fn shifted(self, left: i32, mask: u8) -> Self {
            unsafe {
                let v = if left >= 0 {
                    $left16(self, _mm_cvtsi32_si128(left))
                } else {
                    $right16(self, _mm_cvtsi32_si128(-left))
                };
                $and(v, $bytes(mask.cast_signed()))
            }
        }

        #[inline(always)]
        unsafe fn shifted_dword(self, left: i32) -> Self {
            unsafe {
                if left >= 0 {
                    $left32(self, _mm_cvtsi32_si128(left))
                } else {
                    $right32(self, _mm_cvtsi32_si128(-left))
                }
            }
        }

        #[inline(always)]
        unsafe fn and(self, dword: u32) -> Self {
            unsafe { $and(self, $dwords(dword.cast_signed())) }
        }

        #[inline(always)]
        unsafe fn or(self, other: Self) -> Self {
            unsafe { $or(self, other) }
        }

        #[inline(always)]
        unsafe fn xor(self, dword: u32) -> Self {
            unsafe { $xor(self, $dwords(dword.cast_signed())) }
        }

        #[inline(always)]
        unsafe fn xor_with(self, other: Self) -> Self {
            unsafe { $xor(self, other) }
        }

        #[inline(always)]
        unsafe fn min_bytes(self, most: u8) -> Self {
            unsafe { $min(self, $bytes(most.cast_signed())) }
        }

        #[inline(always)]
        unsafe fn sub_bytes(self, v: u8) -> Self {
            unsafe { $sub8(self, $bytes(v.cast_signed())) }
        }

        #[inline(always)]
        unsafe fn plus(self, other: Self) -> Self {
            unsafe { $add8(self, other) }
        }

        #[inline(always)]
        unsafe fn negated_times(self, bits: i32) -> Self {
            unsafe { $sub16($zero(), $left16(self, _mm_cvtsi32_si128(bits))) }
        }

        #[inline(always)]
        unsafe fn shuffle(self, from: [u8; 4]) -> Self {
            unsafe { $shuffle(self, $spread(pattern(from))) }
        }

        #[inline(always)]
        unsafe fn look_up(self, table: [u8; 16]) -> Self {
            unsafe { $shuffle($spread(_mm_loadu_si128(table.as_ptr().cast())), self) }
        }

        #[inline(always)]
        unsafe fn high_bytes(self) -> Self {
            unsafe { $sign16::<8>(self) }
        }

        #[inline(always)]
        unsafe fn store(self, to: *mut i32) {
            unsafe { $store(to.cast(), self) }
        }

        #[inline(always)]
        unsafe fn store_float(v: $float, to: *mut f32) {
            unsafe { $store_float(to, v) }
        }

        #[inline(always)]
        unsafe fn prefetch(line: *const u8) {
            unsafe {
                _mm_prefetch::<_MM_HINT_T0>(line.cast());
                _mm_prefetch::<_MM_HINT_T1>(line.wrapping_add(FAR).cast());
            }
        }
    };
}

/// Four registers, transposed: in each lane of 16 bytes, register `i` gets dword `i` of all.
///
/// # Safety
/// AVX-512.
#[inline(always)]
unsafe fn transpose_lanes([a, b, c, d]: [__m512i; 4]) -> [__m512i; 4] {
    // SAFETY: the caller's promise.
    unsafe {
        let (ab_low, ab_high) = (_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
        let (cd_low, cd_high) = (_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
        [
            _mm512_unpacklo_epi64(ab_low, cd_low),
            _mm512_unpackhi_epi64(ab_low, cd_low),
            _mm512_unpacklo_epi64(ab_high, cd_high),
            _mm512_unpackhi_epi64(ab_high, cd_high),
        ]
    }
}

/// 32 bytes of each of 8 rows. The lanes of register `i`: dword `i` of rows 0 to 3, their dword `4 + i`, and the same of
/// rows 4 to 7.
///
/// # Safety
/// AVX-512; so many bytes can be read at `from + r * stride` for each row `r`.
#[inline(always)]
unsafe fn eight_rows(from: *const u8, stride: usize) -> [__m512i; 4] {
    // A function, since the compiler does not inline a closure in a closure, and has no such registers outside.
    /// # Safety
    /// As [`eight_rows`].
    #[inline(always)]
    unsafe fn two(row: *const u8, stride: usize) -> __m512i {
        // SAFETY: the caller's promise.
        unsafe {
            let v = _mm512_castsi256_si512(_mm256_loadu_si256(row.cast()));
            _mm512_inserti64x4::<1>(v, _mm256_loadu_si256(row.add(4 * stride).cast()))
        }
    }
    // SAFETY: the caller's promise.
    unsafe {
        transpose_lanes([
            two(from, stride),
            two(from.add(stride), stride),
            two(from.add(2 * stride), stride),
            two(from.add(3 * stride), stride),
        ])
    }
}

// SAFETY (for the whole block): by the trait's contract.
#[allow(clippy::undocumented_unsafe_blocks)]
impl Dwords for __m256i {
    const ROWS: usize = 8;
    type Float = __m256;

    #[inline(always)]
    unsafe fn transpose16(from: *const u8, stride: usize) -> [Self; 4] {
        unsafe {
            let row = |r: usize| _mm_loadu_si128(from.add(r * stride).cast());
            let pair = |r: usize| _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(row(r)), row(r + 4));
            let (a, b, c, d) = (pair(0), pair(1), pair(2), pair(3));
            let (ab_low, ab_high) = (_mm256_unpacklo_epi32(a, b), _mm256_unpackhi_epi32(a, b));
            let (cd_low, cd_high) = (_mm256_unpacklo_epi32(c, d), _mm256_unpackhi_epi32(c, d));
            [
                _mm256_unpacklo_epi64(ab_low, cd_low),
                _mm256_unpackhi_epi64(ab_low, cd_low),
                _mm256_unpacklo_epi64(ab_high, cd_high),
                _mm256_unpackhi_epi64(ab_high, cd_high),
            ]
        }
    }

    #[inline(always)]
    unsafe fn dwords(from: *const u8, stride: usize) -> Self {
        unsafe {
            let row = |r: usize| from.add(r * stride).cast::<i32>().read_unaligned();
            _mm256_setr_epi32(row(0), row(1), row(2), row(3), row(4), row(5), row(6), row(7))
        }
    }

    #[inline(always)]
    unsafe fn two_halves(self) -> (__m256, __m256) {
        unsafe {
            let low = _mm256_and_si256(self, _mm256_set1_epi32(0xffff));
            // [low 0-3, high 0-3 | low 4-7, high 4-7]
            let packed = _mm256_packus_epi32(low, _mm256_srli_epi32::<16>(self));
            let packed = _mm256_permute4x64_epi64::<0b11_01_10_00>(packed);
            (
                _mm256_cvtph_ps(_mm256_castsi256_si128(packed)),
                _mm256_cvtph_ps(_mm256_extracti128_si256::<1>(packed)),
            )
        }
    }

    #[inline(always)]
    unsafe fn negated(v: __m256) -> __m256 {
        unsafe { _mm256_xor_ps(v, _mm256_set1_ps(-0.0)) }
    }

    #[inline(always)]
    unsafe fn gather<const SCALE: i32>(self, from: *const u8) -> Self {
        unsafe { _mm256_i32gather_epi32::<SCALE>(from.cast(), self) }
    }

    width! {
        __m256, and _mm256_and_si256 or _mm256_or_si256 xor _mm256_xor_si256,
        splat _mm256_set1_epi8 _mm256_set1_epi32 _mm256_setzero_si256,
        shift _mm256_sll_epi16 _mm256_srl_epi16 _mm256_srai_epi16 _mm256_sll_epi32 _mm256_srl_epi32,
        min _mm256_min_epu8,
        add _mm256_add_epi8 sub _mm256_sub_epi8 _mm256_sub_epi16, shuffle _mm256_shuffle_epi8 _mm256_broadcastsi128_si256,
        store _mm256_storeu_si256 _mm256_storeu_ps
    }
}

// SAFETY (for the whole block): by the trait's contract.
#[allow(clippy::undocumented_unsafe_blocks)]
impl Dwords for __m512i {
    const ROWS: usize = 16;
    type Float = __m512;

    #[inline(always)]
    unsafe fn transpose16(from: *const u8, stride: usize) -> [Self; 4] {
        unsafe {
            let row = |r: usize| _mm_loadu_si128(from.add(r * stride).cast());
            let four = |r: usize| {
                let v = _mm512_castsi128_si512(row(r));
                let v = _mm512_inserti32x4::<1>(v, row(r + 4));
                let v = _mm512_inserti32x4::<2>(v, row(r + 8));
                _mm512_inserti32x4::<3>(v, row(r + 12))
            };
            transpose_lanes([four(0), four(1), four(2), four(3)])
        }
    }

    #[inline(always)]
    unsafe fn transpose32(from: *const u8, stride: usize) -> [Self; 8] {
        unsafe {
            let (a, b) = (eight_rows(from, stride), eight_rows(from.add(8 * stride), stride));
            // Lanes 0 and 2 of each, then 1 and 3.
            [
                _mm512_shuffle_i32x4::<0b10_00_10_00>(a[0], b[0]),
                _mm512_shuffle_i32x4::<0b10_00_10_00>(a[1], b[1]),
                _mm512_shuffle_i32x4::<0b10_00_10_00>(a[2], b[2]),
                _mm512_shuffle_i32x4::<0b10_00_10_00>(a[3], b[3]),
                _mm512_shuffle_i32x4::<0b11_01_11_01>(a[0], b[0]),
                _mm512_shuffle_i32x4::<0b11_01_11_01>(a[1], b[1]),
                _mm512_shuffle_i32x4::<0b11_01_11_01>(a[2], b[2]),
                _mm512_shuffle_i32x4::<0b11_01_11_01>(a[3], b[3]),
            ]
        }
    }

    #[inline(always)]
    unsafe fn dwords(from: *const u8, stride: usize) -> Self {
        unsafe {
            let four = |r: usize| {
                let row = |r: usize| from.add(r * stride).cast::<i32>().read_unaligned();
                _mm_setr_epi32(row(r), row(r + 1), row(r + 2), row(r + 3))
            };
            let v = _mm512_castsi128_si512(four(0));
            let v = _mm512_inserti32x4::<1>(v, four(4));
            let v = _mm512_inserti32x4::<2>(v, four(8));
            _mm512_inserti32x4::<3>(v, four(12))
        }
    }

    #[inline(always)]
    unsafe fn two_halves(self) -> (__m512, __m512) {
        unsafe {
            let high = _mm512_srli_epi32::<16>(self);
            (_mm512_cvtph_ps(_mm512_cvtepi32_epi16(self)), _mm512_cvtph_ps(_mm512_cvtepi32_epi16(high)))
        }
    }

    #[inline(always)]
    unsafe fn negated(v: __m512) -> __m512 {
        unsafe { _mm512_castsi512_ps(_mm512_xor_si512(_mm512_castps_si512(v), _mm512_set1_epi32(i32::MIN))) }
    }

    #[inline(always)]
    unsafe fn gather<const SCALE: i32>(self, from: *const u8) -> Self {
        unsafe { _mm512_i32gather_epi32::<SCALE>(self, from.cast()) }
    }

    width! {
        __m512, and _mm512_and_si512 or _mm512_or_si512 xor _mm512_xor_si512,
        splat _mm512_set1_epi8 _mm512_set1_epi32 _mm512_setzero_si512,
        shift _mm512_sll_epi16 _mm512_srl_epi16 _mm512_srai_epi16 _mm512_sll_epi32 _mm512_srl_epi32,
        min _mm512_min_epu8,
        add _mm512_add_epi8 sub _mm512_sub_epi8 _mm512_sub_epi16, shuffle _mm512_shuffle_epi8 _mm512_broadcast_i32x4,
        store _mm512_storeu_si512 _mm512_storeu_ps
    }
}
