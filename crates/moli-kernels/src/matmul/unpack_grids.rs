//! As [`unpack`](super::unpack), for the formats with grids and for ternary digits. Entries of a grid are gathered, one
//! dword (4 values) of each row at a time; everything else is done for all rows and several entries at once.

#![allow(unsafe_code)]

use super::unpack::{Dwords, Lanes, Rows, ZERO, each, rows};
use crate::quant::grids::*;
use crate::quant::unpack::*;

/// The bits of signs of the first and of the second 4 values of 8.
const SIGN_BITS: [u32; 2] = [0x0804_0201, 0x8040_2010];

/// Byte `byte` alone, as a number.
///
/// # Safety
/// As [`Dwords`]; so for the others.
#[inline(always)]
unsafe fn number<V: Dwords>(v: V, byte: usize) -> V {
    // SAFETY: the caller's promise.
    unsafe { v.shuffle([byte as u8, ZERO, ZERO, ZERO]) }
}

/// Byte `byte` alone, times 256.
///
/// # Safety
/// As [`number`].
#[inline(always)]
unsafe fn second<V: Dwords>(v: V, byte: usize) -> V {
    // SAFETY: the caller's promise.
    unsafe { v.shuffle([ZERO, byte as u8, ZERO, ZERO]) }
}

/// 4 times seven bits, from the lowest, as bytes.
///
/// # Safety
/// As [`number`].
#[inline(always)]
unsafe fn sevens<V: Dwords>(bits: V) -> V {
    // SAFETY: the caller's promise.
    unsafe {
        let (first, second) = (bits.and(0x7f), bits.shifted_dword(1).and(0x7f00));
        let (third, fourth) = (bits.shifted_dword(2).and(0x7f_0000), bits.shifted_dword(3).and(0x7f00_0000));
        first.or(second).or(third.or(fourth))
    }
}

/// Bytes of seven bits, with an eighth that makes the number of ones even.
///
/// # Safety
/// As [`number`].
#[inline(always)]
unsafe fn even<V: Dwords>(signs: V) -> V {
    const ODD: [u8; 16] = {
        let mut table = [0; 16];
        let mut n = 0u8;
        while n < 16 {
            table[n as usize] = (n.count_ones() as u8 & 1) << 7;
            n += 1;
        }
        table
    };
    // SAFETY: the caller's promise.
    unsafe { signs.or(signs.shifted(-4, 15).xor_with(signs.shifted(0, 15)).look_up(ODD)) }
}

/// -1 in each byte of which a bit is set, 0 in the others; and those bytes as 1 and 0.
///
/// # Safety
/// As [`number`].
#[inline(always)]
unsafe fn masks<V: Dwords>(bits: V) -> (V, V) {
    // SAFETY: the caller's promise.
    unsafe {
        let ones = bits.min_bytes(1);
        (ones.xor(0x0101_0101).sub_bytes(1), ones)
    }
}

impl Lanes {
    /// A quad of signed values.
    ///
    /// # Safety
    /// As [`quad`](Self::quad).
    #[inline(always)]
    unsafe fn signed_quad<V: Dwords, const UNSIGNED: bool>(self, quad: usize, v: V) {
        // SAFETY: the caller's promise.
        unsafe { self.quad(quad, if UNSIGNED { v.xor(0x8080_8080) } else { v }) }
    }

    /// A quad of values with the signs whose bits are in byte `byte` of `signs`.
    ///
    /// # Safety
    /// As [`quad`](Self::quad).
    #[inline(always)]
    unsafe fn quad_with_signs<V: Dwords, const UNSIGNED: bool>(
        self,
        quad: usize,
        v: V,
        signs: V,
        byte: usize,
    ) {
        // SAFETY: the caller's promise.
        unsafe {
            let (mask, one) = masks(signs.shuffle([byte as u8; 4]).and(SIGN_BITS[quad % 2]));
            self.signed_quad::<V, UNSIGNED>(quad, v.xor_with(mask).plus(one));
        }
    }

    /// Entries of 8 values, with the signs whose bits are in byte `byte` of `signs`.
    ///
    /// # Safety
    /// As [`quad`](Self::quad); the grid has the entries.
    #[inline(always)]
    unsafe fn eight<V: Dwords, const UNSIGNED: bool>(
        self,
        group: usize,
        grid: &[[i8; 8]],
        entry: V,
        signs: V,
        byte: usize,
    ) {
        // SAFETY: the caller's promise.
        unsafe {
            let [first, second] = gather_eight(grid, entry);
            self.quad_with_signs::<V, UNSIGNED>(2 * group, first, signs, byte);
            self.quad_with_signs::<V, UNSIGNED>(2 * group + 1, second, signs, byte);
        }
    }

    /// Entries of 8 values, plus 1, or minus 1 where bit `bit` of byte 1 of `signs` is set.
    ///
    /// # Safety
    /// As [`eight`](Self::eight).
    #[inline(always)]
    unsafe fn shifted_eight<V: Dwords, const UNSIGNED: bool>(
        self,
        group: usize,
        entry: V,
        signs: V,
        bit: u32,
    ) {
        // SAFETY: the caller's promise.
        unsafe {
            let (mask, _) = masks(signs.shuffle([1; 4]).and(0x0101_0101 << bit));
            // 1 or -1.
            let shift = mask.and(0xfefe_fefe).xor(0x0101_0101);
            for (i, v) in gather_eight(&IQ1_GRID, entry).into_iter().enumerate() {
                self.signed_quad::<V, UNSIGNED>(2 * group + i, v.plus(shift));
            }
        }
    }

    /// A half-precision scale of each row, times `by`.
    ///
    /// # Safety
    /// As [`quad`](Self::quad).
    #[inline(always)]
    unsafe fn d_times<V: Dwords>(self, d: V::Float, by: f32) {
        // SAFETY: the caller's promise.
        unsafe {
            self.d::<V>(d);
            for row in 0..V::ROWS {
                *self.d.add(row) *= by;
            }
        }
    }

    /// Sub-scales, 4 in each dword, of signed values.
    ///
    /// # Safety
    /// As [`quad`](Self::quad).
    #[inline(always)]
    unsafe fn scales_of_signed<V: Dwords, const UNSIGNED: bool, const N: usize>(self, scales: [V; N]) {
        // SAFETY: the caller's promise.
        unsafe {
            if UNSIGNED {
                self.signed_scales(scales, 7);
            } else {
                self.scales::<V, false>(scales);
            }
        }
    }

    /// Sub-scales `2 v + 1` of halves of bytes, low halves first; the first is number `sub`.
    ///
    /// # Safety
    /// As [`quad`](Self::quad).
    #[inline(always)]
    unsafe fn odd_scales<V: Dwords, const UNSIGNED: bool>(self, sub: usize, halves: V) {
        // SAFETY: the caller's promise.
        unsafe {
            let low = halves.shifted(1, 0x1e).xor(0x0101_0101);
            let high = halves.shifted(-3, 0x1e).xor(0x0101_0101);
            self.alternating_scales::<V, UNSIGNED>(sub, low, high);
        }
    }

    /// The sub-scales `2 v + 1` of IQ2_XXS and IQ3_XXS, in the highest four bits of the dwords.
    ///
    /// # Safety
    /// As [`quad`](Self::quad).
    #[inline(always)]
    unsafe fn highest_scales<V: Dwords, const UNSIGNED: bool>(self, bits: [V; 8]) {
        // SAFETY: the caller's promise.
        unsafe {
            let four = |a: V, b: V, c: V, d: V| {
                let (a, b) = (a.shuffle([3, ZERO, ZERO, ZERO]), b.shuffle([ZERO, 3, ZERO, ZERO]));
                let (c, d) = (c.shuffle([ZERO, ZERO, 3, ZERO]), d.shuffle([ZERO, ZERO, ZERO, 3]));
                a.or(b).or(c.or(d)).shifted(-3, 0x1e).xor(0x0101_0101)
            };
            let [a, b, c, d, e, f, g, h] = bits;
            self.scales_of_signed::<V, UNSIGNED, 2>([four(a, b, c, d), four(e, f, g, h)]);
        }
    }
}

/// Both quads of entries of 8 values.
///
/// # Safety
/// As [`number`]; the grid has the entries.
#[inline(always)]
unsafe fn gather_eight<V: Dwords>(grid: &[[i8; 8]], entry: V) -> [V; 2] {
    // SAFETY: the caller's promise.
    unsafe {
        let from = grid.as_ptr().cast::<u8>();
        [entry.gather::<8>(from), entry.gather::<8>(from.add(4))]
    }
}

rows! {
    IQ2XXS |block, stride, to| {
        to.d_times::<V>(V::first_half(block, stride), 0.125);
        let [a, b, c, d] = [2, 18, 34, 50].map(|at| V::transpose16(block.add(at), stride));
        each! { I in 0 1 2 3 {
            let dwords = [a, b, c, d][I];
            each! { HALF in 0 1 {
                let signs = even(sevens(dwords[2 * HALF + 1]));
                each! { J in 0 1 2 3 {
                    let entry = number(dwords[2 * HALF], J);
                    to.eight::<V, UNSIGNED>(8 * I + 4 * HALF + J, &IQ2XXS_GRID, entry, signs, J);
                } }
            } }
        } }
        let bits = [a[1], a[3], b[1], b[3], c[1], c[3], d[1], d[3]];
        to.highest_scales::<V, UNSIGNED>(bits);
    }
    IQ2XS |block, stride, to| {
        to.d_times::<V>(V::first_half(block, stride), 0.125);
        for i in 0..4 {
            for (j, v) in V::transpose16(block.add(2 + 16 * i), stride).into_iter().enumerate() {
                let (group, signs) = (2 * (4 * i + j), even(v.shifted(-1, 127)));
                to.eight::<V, UNSIGNED>(group, &IQ2XS_GRID, v.and(511), signs, 1);
                let entry = v.shuffle([2, 3, ZERO, ZERO]).and(511);
                to.eight::<V, UNSIGNED>(group + 1, &IQ2XS_GRID, entry, signs, 3);
            }
        }
        to.odd_scales::<V, UNSIGNED>(0, V::dwords(block.add(66), stride));
        to.odd_scales::<V, UNSIGNED>(8, V::dwords(block.add(70), stride));
    }
    IQ2S |block, stride, to| {
        to.d_times::<V>(V::first_half(block, stride), 0.125);
        let low = V::transpose32(block.add(2), stride);
        let signs = V::transpose32(block.add(34), stride);
        let [high_a, high_b, scales_a, scales_b] = V::transpose16(block.add(66), stride);
        each! { I in 0 1 2 3 4 5 6 7 {
            let high = if I < 4 { high_a } else { high_b };
            each! { J in 0 1 2 3 {
                let entry = number(low[I], J).or(second(high.shifted(-2 * J as i32, 3), I % 4));
                to.eight::<V, UNSIGNED>(4 * I + J, &IQ2S_GRID, entry, signs[I], J);
            } }
        } }
        to.odd_scales::<V, UNSIGNED>(0, scales_a);
        to.odd_scales::<V, UNSIGNED>(8, scales_b);
    }
    IQ3XXS |block, stride, to| {
        to.d_times::<V>(V::first_half(block, stride), 0.25);
        let bits = V::transpose32(block.add(66), stride);
        let grid = IQ3XXS_GRID.as_ptr().cast();
        each! { I in 0 1 2 3 {
            let entries = V::transpose16(block.add(2 + 16 * I), stride);
            each! { HALF in 0 1 {
                let signs = even(sevens(bits[2 * I + HALF]));
                each! { J in 0 1 2 3 4 5 6 7 {
                    let values = number(entries[2 * HALF + J / 4], J % 4).gather::<4>(grid);
                    to.quad_with_signs::<V, UNSIGNED>(16 * I + 8 * HALF + J, values, signs, J / 2);
                } }
            } }
        } }
        to.highest_scales::<V, UNSIGNED>(bits);
    }
    IQ3S |block, stride, to| {
        to.d::<V>(V::first_half(block, stride));
        let high = [V::dwords(block.add(66), stride), V::dwords(block.add(70), stride)];
        let signs = V::transpose32(block.add(74), stride);
        let grid = IQ3S_GRID.as_ptr().cast();
        each! { I in 0 1 2 3 {
            let low = V::transpose16(block.add(2 + 16 * I), stride);
            each! { J in 0 1 2 3 {
                // The signs of 8 values in each byte, the high bits of 4 entries in half a byte.
                const DWORD: usize = 4 * I + J;
                each! { K in 0 1 2 3 {
                    let bit = high[I / 2].shifted(-((4 * (J % 2) + K) as i32), 1);
                    let values = number(low[J], K).or(second(bit, DWORD / 2 % 4)).gather::<4>(grid);
                    let byte = 2 * (DWORD % 2) + K / 2;
                    to.quad_with_signs::<V, UNSIGNED>(4 * DWORD + K, values, signs[DWORD / 2], byte);
                } }
            } }
        } }
        to.odd_scales::<V, UNSIGNED>(0, V::dwords(block.add(106), stride));
    }
    IQ1S |block, stride, to| {
        to.d_times::<V>(V::first_half(block, stride), 0.125);
        let low = V::transpose32(block.add(2), stride);
        let high = V::transpose16(block.add(34), stride);
        each! { I in 0 1 2 3 4 5 6 7 {
            // The 16 bits times 256: three bits of each entry, from bit 8; the sign is the highest of byte 2.
            let bits = high[I / 2].shuffle(if I.is_multiple_of(2) { [ZERO, 0, 1, ZERO] } else { [ZERO, 2, 3, ZERO] });
            let sign = second(bits, 2);
            each! { J in 0 1 2 3 {
                let entry = number(low[I], J).or(bits.shifted_dword(-3 * J as i32).and(0x700));
                to.shifted_eight::<V, UNSIGNED>(4 * I + J, entry, sign, 7);
            } }
        } }
        let two = |a: V, b: V| {
            a.shuffle([1, 3, ZERO, ZERO]).or(b.shuffle([ZERO, ZERO, 1, 3])).shifted(-3, 0x0e).xor(0x0101_0101)
        };
        to.scales_of_signed::<V, UNSIGNED, 2>([two(high[0], high[1]), two(high[2], high[3])]);
    }
    IQ1M |block, stride, to| {
        let low = V::transpose32(block, stride);
        let high = V::transpose16(block.add(32), stride);
        each! { I in 0 1 2 3 4 5 6 7 {
            each! { J in 0 1 2 3 {
                let bits = second(high[I / 2], I % 2 * 2 + J / 2).shifted_dword(-4 * (J as i32 % 2));
                to.shifted_eight::<V, UNSIGNED>(4 * I + J, number(low[I], J).or(bits.and(0x700)), bits, 3);
            } }
        } }
        let (a, b) = (V::dwords(block.add(48), stride), V::dwords(block.add(52), stride));
        // Four scales of three bits, times two, plus one.
        let four = |v: V| {
            let (first, second) = (v.and(7), v.shifted_dword(5).and(0x700));
            let (third, fourth) = (v.shifted_dword(10).and(0x7_0000), v.shifted_dword(15).and(0x700_0000));
            first.or(second).or(third.or(fourth)).shifted(1, 0x0e).xor(0x0101_0101)
        };
        let upper = |v: V| v.shuffle([2, 3, ZERO, ZERO]);
        to.scales_of_signed::<V, UNSIGNED, 4>([four(a), four(upper(a)), four(b), four(upper(b))]);
        // The scale's four bits are the highest of each 16.
        let byte = |v: V| number(v, 1).shifted(-4, 15).or(number(v, 3).shifted(0, 0xf0));
        let (d, _) = byte(a).or(second(byte(b), 0)).two_halves();
        to.d_times::<V>(d, 0.125);
    }
    TQ1_0 |block, stride, to| {
        to.d::<V>(V::last_half(block.add(54), stride));
        to.plain_scales(V::dwords(block, stride));
        // The first digit of each byte, and the bytes that begin with the next: times three.
        let digit = |v: V| {
            let at_least = |least: u8| v.plus(v.min_bytes(least - 1).xor(u32::MAX).sub_bytes(255)).min_bytes(1);
            // 3 v / 256 is at least 1 from 86, at least 2 from 171.
            at_least(86).plus(at_least(171))
        };
        let next = |v: V| v.shifted(1, 0xfe).plus(v);
        for (i, v) in V::transpose32(block, stride).into_iter().enumerate() {
            let mut v = v;
            for n in 0..5 {
                to.quad(8 * n + i, digit(v));
                v = next(v);
            }
        }
        for (i, v) in V::transpose16(block.add(32), stride).into_iter().enumerate() {
            let mut v = v;
            for n in 0..5 {
                to.quad(40 + 4 * n + i, digit(v));
                v = next(v);
            }
        }
        let mut v = V::dwords(block.add(48), stride);
        for n in 0..4 {
            to.quad(60 + n, digit(v));
            v = next(v);
        }
    }
}
