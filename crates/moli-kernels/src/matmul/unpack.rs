//! Blocks of 8 rows into a panel whose lanes are rows, with AVX2.
//!
//! The bytes of 8 rows are transposed as dwords first, 4 values of a row each (or 8 of 4 bits), and taken apart
//! afterwards: that is a quarter of the shuffles, and scales, minima and high bits are decoded for 8 rows at a time.

#![allow(unsafe_code)]

use std::arch::x86_64::*;

use crate::quant::unpack::*;

/// Bytes of 4 values of [`TILE`](super::TILE) rows in a panel.
pub(super) const QUAD: usize = 4 * super::TILE;

/// Where 8 lanes of a panel begin.
#[derive(Clone, Copy)]
pub(super) struct Lanes {
    /// Quantised values, `[quad][lane][4]`; [`QUAD`] bytes from a quad to the next.
    pub(super) quants: *mut u8,
    /// `[lane]`, the scale of the block.
    pub(super) d: *mut f32,
    /// `[lane]`, the factor of the minima.
    pub(super) m: *mut f32,
    /// `[sub][lane]`, each sub-scale twice as i16; 16 dwords from one to the next.
    pub(super) scales: *mut i32,
    /// `[pair][lane]`, what the sums of two neighbouring sub-blocks of activations are multiplied with, as i16: the
    /// minima, or the sub-scales times minus the offset.
    pub(super) sums: *mut i32,
}

/// A format that a vector kernel unpacks.
pub(super) trait Rows: Format {
    /// Unpacks one block of each of 8 rows. The quantised values are bytes: unsigned, but signed for Q8_0.
    ///
    /// # Safety
    /// The processor has AVX2 and F16C; `block + r * stride` has a whole block for each r below 8; the lanes have room
    /// for a block.
    unsafe fn unpack8(block: *const u8, stride: usize, to: Lanes);
}

/// 16 bytes of each of 8 rows as 4 vectors of dwords: vector `i` has dword `i` of each row.
///
/// # Safety
/// AVX2; 16 bytes can be read at `from + r * stride` for each r below 8.
#[inline(always)]
unsafe fn transpose16(from: *const u8, stride: usize) -> [__m256i; 4] {
    // SAFETY: the caller's promise.
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

/// 32 bytes of each row as 8 vectors.
///
/// # Safety
/// As [`transpose16`], for 32 bytes.
#[inline(always)]
unsafe fn transpose32(from: *const u8, stride: usize) -> [__m256i; 8] {
    // SAFETY: the caller's promise.
    unsafe {
        let ([a, b, c, d], [e, f, g, h]) = (transpose16(from, stride), transpose16(from.add(16), stride));
        [a, b, c, d, e, f, g, h]
    }
}

/// A dword of each of 8 rows.
///
/// # Safety
/// AVX2; 4 bytes can be read at `from + r * stride` for each r below 8.
#[inline(always)]
unsafe fn dwords(from: *const u8, stride: usize) -> __m256i {
    // SAFETY: the caller's promise.
    unsafe {
        let row = |r: usize| from.add(r * stride).cast::<i32>().read_unaligned();
        _mm256_setr_epi32(row(0), row(1), row(2), row(3), row(4), row(5), row(6), row(7))
    }
}

/// A half-precision number of each of 8 rows.
///
/// # Safety
/// AVX2 and F16C; 2 bytes can be read at `from + r * stride` for each r below 8.
#[inline(always)]
unsafe fn halves(from: *const u8, stride: usize) -> __m256 {
    // SAFETY: the caller's promise.
    unsafe {
        let row = |r: usize| from.add(r * stride).cast::<i16>().read_unaligned();
        _mm256_cvtph_ps(_mm_setr_epi16(row(0), row(1), row(2), row(3), row(4), row(5), row(6), row(7)))
    }
}

/// The half-precision numbers in the low and in the high halves of 8 dwords.
///
/// # Safety
/// AVX2 and F16C.
#[inline(always)]
unsafe fn two_halves(v: __m256i) -> (__m256, __m256) {
    // SAFETY: the caller's promise.
    unsafe {
        let low = _mm256_and_si256(v, _mm256_set1_epi32(0xffff));
        // [low 0-3, high 0-3 | low 4-7, high 4-7]
        let packed = _mm256_packus_epi32(low, _mm256_srli_epi32::<16>(v));
        let packed = _mm256_permute4x64_epi64::<0b11_01_10_00>(packed);
        (
            _mm256_cvtph_ps(_mm256_castsi256_si128(packed)),
            _mm256_cvtph_ps(_mm256_extracti128_si256::<1>(packed)),
        )
    }
}

/// The bytes at `left` bits to the left (to the right where it is negative), masked. Only bits that stay in their byte
/// may pass the mask.
///
/// # Safety
/// AVX2.
#[inline(always)]
unsafe fn shifted(v: __m256i, left: i32, mask: i8) -> __m256i {
    // SAFETY: the caller's promise. The counts are constants after inlining, so these are immediate shifts.
    unsafe {
        let v = if left >= 0 {
            _mm256_sll_epi16(v, _mm_cvtsi32_si128(left))
        } else {
            _mm256_srl_epi16(v, _mm_cvtsi32_si128(-left))
        };
        _mm256_and_si256(v, _mm256_set1_epi8(mask))
    }
}

/// In each dword, bytes `a` and `b` as i16s.
///
/// # Safety
/// AVX2.
#[inline(always)]
unsafe fn byte_pair<const SIGNED: bool>(v: __m256i, a: usize, b: usize) -> __m256i {
    // SAFETY: the caller's promise.
    unsafe {
        let (a, b) = (a as i32, b as i32);
        let pattern = if SIGNED { 0x0080_0080 | a << 8 | b << 24 } else { -0x7fff_8000 | a | b << 16 };
        let lane = |i: i32| pattern + i * if SIGNED { 0x0400_0400 } else { 0x0004_0004 };
        let shuffle =
            _mm256_setr_epi32(lane(0), lane(1), lane(2), lane(3), lane(0), lane(1), lane(2), lane(3));
        let pair = _mm256_shuffle_epi8(v, shuffle);
        if SIGNED { _mm256_srai_epi16::<8>(pair) } else { pair }
    }
}

impl Lanes {
    /// # Safety
    /// AVX2; there is room for this quad. So for the others.
    #[inline(always)]
    unsafe fn quad(self, quad: usize, v: __m256i) {
        // SAFETY: the caller's promise.
        unsafe { _mm256_storeu_si256(self.quants.add(quad * QUAD).cast(), v) }
    }

    /// # Safety
    /// As [`quad`](Self::quad).
    #[inline(always)]
    unsafe fn d(self, v: __m256) {
        // SAFETY: the caller's promise.
        unsafe { _mm256_storeu_ps(self.d, v) }
    }

    /// # Safety
    /// As [`quad`](Self::quad).
    #[inline(always)]
    unsafe fn m(self, v: __m256) {
        // SAFETY: the caller's promise.
        unsafe { _mm256_storeu_ps(self.m, v) }
    }

    /// # Safety
    /// As [`quad`](Self::quad).
    #[inline(always)]
    unsafe fn minus_m(self, v: __m256) {
        // SAFETY: the caller's promise.
        unsafe { self.m(_mm256_xor_ps(v, _mm256_set1_ps(-0.0))) }
    }

    /// # Safety
    /// As [`quad`](Self::quad).
    #[inline(always)]
    unsafe fn scale(self, sub: usize, v: __m256i) {
        // SAFETY: the caller's promise.
        unsafe { _mm256_storeu_si256(self.scales.add(sub * super::TILE).cast(), v) }
    }

    /// # Safety
    /// As [`quad`](Self::quad).
    #[inline(always)]
    unsafe fn sum(self, pair: usize, v: __m256i) {
        // SAFETY: the caller's promise.
        unsafe { _mm256_storeu_si256(self.sums.add(pair * super::TILE).cast(), v) }
    }

    /// 16 signed sub-scales, and their products with `-2^offset_bits` for the sums.
    ///
    /// # Safety
    /// As [`quad`](Self::quad).
    #[inline(always)]
    unsafe fn signed_scales(self, scales: [__m256i; 4], offset_bits: i32) {
        // SAFETY: the caller's promise.
        unsafe {
            for i in 0..16 {
                self.scale(i, byte_pair::<true>(scales[i / 4], i % 4, i % 4));
            }
            for i in 0..8 {
                let pair = byte_pair::<true>(scales[i / 2], i % 2 * 2, i % 2 * 2 + 1);
                let times_offset = _mm256_sll_epi16(pair, _mm_cvtsi32_si128(offset_bits));
                self.sum(i, _mm256_sub_epi16(_mm256_setzero_si256(), times_offset));
            }
        }
    }

    /// The header of Q4_K and Q5_K: scales, minima and their factors.
    ///
    /// # Safety
    /// As [`Rows::unpack8`].
    #[inline(always)]
    unsafe fn six_bits(self, block: *const u8, stride: usize) {
        // SAFETY: the caller's promise; the header is 16 bytes.
        unsafe {
            let [dm, scale, min, low] = transpose16(block, stride);
            let (d, dmin) = two_halves(dm);
            self.d(d);
            self.minus_m(dmin);
            let scales =
                [shifted(scale, 0, 63), _mm256_or_si256(shifted(low, 0, 15), shifted(scale, -2, 0x30))];
            let mins = [shifted(min, 0, 63), _mm256_or_si256(shifted(low, -4, 15), shifted(min, -2, 0x30))];
            for i in 0..8 {
                self.scale(i, byte_pair::<false>(scales[i / 4], i % 4, i % 4));
            }
            for i in 0..4 {
                self.sum(i, byte_pair::<false>(mins[i / 2], i % 2 * 2, i % 2 * 2 + 1));
            }
        }
    }

    /// 32 values of 4 bits.
    ///
    /// # Safety
    /// As [`transpose16`] and [`quad`](Self::quad).
    #[inline(always)]
    unsafe fn four_bits(self, qs: *const u8, stride: usize) {
        // SAFETY: the caller's promise.
        unsafe {
            for (i, v) in transpose16(qs, stride).into_iter().enumerate() {
                self.quad(i, shifted(v, 0, 15));
                self.quad(4 + i, shifted(v, -4, 15));
            }
        }
    }

    /// 32 values of 5 bits.
    ///
    /// # Safety
    /// As [`four_bits`](Self::four_bits), and [`dwords`] at `qh`.
    #[inline(always)]
    unsafe fn five_bits(self, qh: *const u8, qs: *const u8, stride: usize) {
        // SAFETY: the caller's promise.
        unsafe {
            let odd = dwords(qh, stride);
            // The bits of every quad are the high half of a byte in one of the two.
            let even = _mm256_slli_epi32::<4>(odd);
            let high = |quad: usize| {
                let byte = (quad / 2) as i32 * 0x0101_0101;
                let lane = |i: i32| byte + i * 0x0404_0404;
                let shuffle =
                    _mm256_setr_epi32(lane(0), lane(1), lane(2), lane(3), lane(0), lane(1), lane(2), lane(3));
                let bytes = _mm256_shuffle_epi8(if quad.is_multiple_of(2) { even } else { odd }, shuffle);
                // Byte i keeps bit 4 + i, which then counts 16.
                let bits = _mm256_and_si256(bytes, _mm256_set1_epi32(0x8040_2010_u32.cast_signed()));
                _mm256_min_epu8(bits, _mm256_set1_epi8(16))
            };
            for (i, v) in transpose16(qs, stride).into_iter().enumerate() {
                self.quad(i, _mm256_or_si256(shifted(v, 0, 15), high(i)));
                self.quad(4 + i, _mm256_or_si256(shifted(v, -4, 15), high(4 + i)));
            }
        }
    }
}

macro_rules! rows {
    ($($name:ident |$block:ident, $stride:ident, $to:ident| $body:block)*) => {$(
        impl Rows for $name {
            #[inline(always)]
            unsafe fn unpack8($block: *const u8, $stride: usize, $to: Lanes) {
                // SAFETY: the caller's promise; every offset and length below is inside the format's block.
                unsafe { $body }
            }
        }
    )*};
}

rows! {
    Q4_0 |block, stride, to| {
        to.d(halves(block, stride));
        to.four_bits(block.add(2), stride);
    }
    Q4_1 |block, stride, to| {
        let (d, m) = two_halves(dwords(block, stride));
        to.d(d);
        to.m(m);
        to.four_bits(block.add(4), stride);
    }
    Q5_0 |block, stride, to| {
        to.d(halves(block, stride));
        to.five_bits(block.add(2), block.add(6), stride);
    }
    Q5_1 |block, stride, to| {
        let (d, m) = two_halves(dwords(block, stride));
        to.d(d);
        to.m(m);
        to.five_bits(block.add(4), block.add(8), stride);
    }
    Q8_0 |block, stride, to| {
        to.d(halves(block, stride));
        for (i, v) in transpose32(block.add(2), stride).into_iter().enumerate() {
            to.quad(i, v);
        }
    }
    Q2K |block, stride, to| {
        let (d, dmin) = two_halves(dwords(block.add(80), stride));
        to.d(d);
        to.minus_m(dmin);
        let packed = transpose16(block, stride);
        for i in 0..16 {
            to.scale(i, byte_pair::<false>(shifted(packed[i / 4], 0, 15), i % 4, i % 4));
        }
        for i in 0..8 {
            to.sum(i, byte_pair::<false>(shifted(packed[i / 2], -4, 15), i % 2 * 2, i % 2 * 2 + 1));
        }
        for n in 0..2 {
            for (i, v) in transpose32(block.add(16 + 32 * n), stride).into_iter().enumerate() {
                for j in 0..4 {
                    to.quad(32 * n + 8 * j + i, shifted(v, -2 * j as i32, 3));
                }
            }
        }
    }
    Q3K |block, stride, to| {
        to.d(halves(block.add(108), stride));
        let scales = block.add(96);
        let (a, b) = (dwords(scales, stride), dwords(scales.add(4), stride));
        let high = dwords(scales.add(8), stride);
        let signed = |low, high| _mm256_sub_epi8(_mm256_or_si256(low, high), _mm256_set1_epi8(32));
        to.signed_scales(
            [
                signed(shifted(a, 0, 15), shifted(high, 4, 0x30)),
                signed(shifted(b, 0, 15), shifted(high, 2, 0x30)),
                signed(shifted(a, -4, 15), shifted(high, 0, 0x30)),
                signed(shifted(b, -4, 15), shifted(high, -2, 0x30)),
            ],
            2,
        );
        let high = transpose32(block, stride);
        for n in 0..2 {
            for (i, v) in transpose32(block.add(32 + 32 * n), stride).into_iter().enumerate() {
                for j in 0..4 {
                    let bit = shifted(high[i], 2 - (4 * n + j) as i32, 4);
                    to.quad(32 * n + 8 * j + i, _mm256_or_si256(shifted(v, -2 * j as i32, 3), bit));
                }
            }
        }
    }
    Q4K |block, stride, to| {
        to.six_bits(block, stride);
        for g in 0..4 {
            for (i, v) in transpose32(block.add(16 + 32 * g), stride).into_iter().enumerate() {
                to.quad(16 * g + i, shifted(v, 0, 15));
                to.quad(16 * g + 8 + i, shifted(v, -4, 15));
            }
        }
    }
    Q5K |block, stride, to| {
        to.six_bits(block, stride);
        let high = transpose32(block.add(16), stride);
        for g in 0..4 {
            for (i, v) in transpose32(block.add(48 + 32 * g), stride).into_iter().enumerate() {
                let bit = |sub: usize| shifted(high[i], 4 - sub as i32, 16);
                to.quad(16 * g + i, _mm256_or_si256(shifted(v, 0, 15), bit(2 * g)));
                to.quad(16 * g + 8 + i, _mm256_or_si256(shifted(v, -4, 15), bit(2 * g + 1)));
            }
        }
    }
    Q6K |block, stride, to| {
        to.d(halves(block.add(208), stride));
        to.signed_scales(transpose16(block.add(192), stride), 5);
        for n in 0..2 {
            let high = transpose32(block.add(128 + 32 * n), stride);
            for part in 0..2 {
                for (i, v) in transpose32(block.add(64 * n + 32 * part), stride).into_iter().enumerate() {
                    let bits = |j: usize| shifted(high[i], 4 - 2 * j as i32, 0x30);
                    to.quad(32 * n + 8 * part + i, _mm256_or_si256(shifted(v, 0, 15), bits(part)));
                    to.quad(32 * n + 16 + 8 * part + i, _mm256_or_si256(shifted(v, -4, 15), bits(part + 2)));
                }
            }
        }
    }
}
