//! Blocks of several rows into a panel whose lanes are rows, written once for every vector width.
//!
//! The bytes of the rows are transposed as dwords first, 4 values of a row each (or 8 of 4 bits), and taken apart
//! afterwards: that is a quarter of the shuffles, and scales, minima and high bits are decoded for all rows at once.

#![allow(unsafe_code)]

use crate::quant::levels::{HALF_E4M3, HALF_POWERS, IQ4_LEVELS, MXFP4_LEVELS, raised};
use crate::quant::unpack::*;

/// Bytes of 4 values of [`TILE`](super::TILE) rows in a panel.
pub(super) const QUAD: usize = 4 * super::TILE;

/// A register with a dword of each of [`ROWS`](Self::ROWS) rows of weights.
///
/// # Safety of all methods
/// The processor has the instructions. Where rows are read, as many bytes as a method names can be read at
/// `from + r * stride`, or before `end + r * stride`, for each row `r`; where lanes are written, there is room for [`ROWS`](Self::ROWS).
pub(super) trait Dwords: Copy {
    /// Rows in a register.
    const ROWS: usize;
    /// As many f32.
    type Float: Copy;

    /// 16 bytes of each row: register `i` has dword `i`.
    unsafe fn transpose16(from: *const u8, stride: usize) -> [Self; 4];
    /// 32 bytes of each row: register `i` has dword `i`.
    #[inline(always)]
    unsafe fn transpose32(from: *const u8, stride: usize) -> [Self; 8] {
        // SAFETY: the caller's promise.
        unsafe { two_transposes(from, stride) }
    }
    /// The first two dwords of 16 bytes of each row: reading more than is wanted takes fewer instructions.
    #[inline(always)]
    unsafe fn first_two(from: *const u8, stride: usize) -> [Self; 2] {
        // SAFETY: the caller's promise.
        let [a, b, ..] = unsafe { Self::transpose16(from, stride) };
        [a, b]
    }
    /// The two dwords that end 16 bytes of each row, before `end`.
    #[inline(always)]
    unsafe fn last_two(end: *const u8, stride: usize) -> [Self; 2] {
        // SAFETY: the caller's promise.
        let [.., c, d] = unsafe { Self::transpose16(end.sub(16), stride) };
        [c, d]
    }
    /// The half-precision number that begins 16 bytes of each row.
    #[inline(always)]
    unsafe fn first_half(from: *const u8, stride: usize) -> Self::Float {
        // SAFETY: the caller's promise.
        unsafe { Self::first_two(from, stride)[0].two_halves().0 }
    }
    /// The half-precision number that ends 16 bytes of each row, before `end`.
    #[inline(always)]
    unsafe fn last_half(end: *const u8, stride: usize) -> Self::Float {
        // SAFETY: the caller's promise.
        unsafe { Self::last_two(end, stride)[1].two_halves().1 }
    }
    /// 4 bytes of each row.
    unsafe fn dwords(from: *const u8, stride: usize) -> Self;
    /// The half-precision numbers in the low and in the high halves of the dwords.
    unsafe fn two_halves(self) -> (Self::Float, Self::Float);
    /// The sign turned.
    unsafe fn negated(v: Self::Float) -> Self::Float;
    /// The bytes at `left` bits to the left (to the right where it is negative), masked. Only bits that stay in their byte
    /// may pass the mask.
    unsafe fn shifted(self, left: i32, mask: u8) -> Self;
    /// Each dword to the left, or to the right where that is negative.
    unsafe fn shifted_dword(self, left: i32) -> Self;
    unsafe fn and(self, dword: u32) -> Self;
    unsafe fn or(self, other: Self) -> Self;
    unsafe fn xor(self, dword: u32) -> Self;
    unsafe fn xor_with(self, other: Self) -> Self;
    /// The lesser of each unsigned byte and `most`.
    unsafe fn min_bytes(self, most: u8) -> Self;
    /// `v` from each byte.
    unsafe fn sub_bytes(self, v: u8) -> Self;
    /// The sums of the bytes, modulo 256.
    unsafe fn plus(self, other: Self) -> Self;
    /// Minus each i16 times 2^`bits`.
    unsafe fn negated_times(self, bits: i32) -> Self;
    /// Each dword made of its own bytes `from`; 0 where that is [`ZERO`].
    unsafe fn shuffle(self, from: [u8; 4]) -> Self;
    /// The byte of `table` that each byte is the number of, below 16.
    unsafe fn look_up(self, table: [u8; 16]) -> Self;
    /// The 4 bytes at `SCALE` times each dword, which can be read there.
    unsafe fn gather<const SCALE: i32>(self, from: *const u8) -> Self;
    /// Each i16 8 bits to the right, with its sign.
    unsafe fn high_bytes(self) -> Self;
    unsafe fn store(self, to: *mut i32);
    unsafe fn store_float(v: Self::Float, to: *mut f32);
    /// Asks for the line of this address, and perhaps for one that follows; neither needs to exist.
    unsafe fn prefetch(line: *const u8);
}

/// 32 bytes of each row as 8 registers, by halves.
///
/// # Safety
/// As [`Dwords::transpose16`], for 32 bytes.
#[inline(always)]
unsafe fn two_transposes<V: Dwords>(from: *const u8, stride: usize) -> [V; 8] {
    // SAFETY: the caller's promise.
    unsafe {
        let ([a, b, c, d], [e, f, g, h]) =
            (V::transpose16(from, stride), V::transpose16(from.add(16), stride));
        [a, b, c, d, e, f, g, h]
    }
}

/// In a pattern of [`Dwords::shuffle`]: no byte.
pub(super) const ZERO: u8 = 0x80;

/// The pattern of [`Dwords::shuffle`] as a register of 4 dwords needs it: each byte's place in the register.
#[inline(always)]
pub(super) fn shuffle_pattern(from: [u8; 4]) -> [i32; 4] {
    let dword = |i: u8| i32::from_le_bytes(from.map(|byte| if byte == ZERO { ZERO } else { byte + 4 * i }));
    [dword(0), dword(1), dword(2), dword(3)]
}

/// Bytes that a prefetch fetches.
pub(super) const LINE: usize = 64;

/// Bytes beyond a prefetch into the first-level cache for one into the second, which has room for many more requests. With
/// the first alone a core got 10 GB/s, with both 15, with 33 for two (Zen 4, Q4_K).
pub(super) const FAR: usize = 16 << 10;

/// Where the lanes of a register go in a panel.
#[derive(Clone, Copy)]
pub(super) struct Lanes {
    /// Quantised values, `[quad][lane][4]`; [`QUAD`] bytes from a quad to the next.
    pub(super) quants: *mut u8,
    /// `[scaled][lane]`, the scales of the block: one, but for NVFP4; 16 floats from one to the next.
    pub(super) d: *mut f32,
    /// `[lane]`, the factor of the minima.
    pub(super) m: *mut f32,
    /// `[sub][lane]`, each sub-scale twice as i16; 16 dwords from one to the next.
    pub(super) scales: *mut i32,
    /// `[pair][lane]`, what the sums of two neighbouring sub-blocks of activations are multiplied with, as i16: the
    /// minima, or the sub-scales times minus the offset.
    pub(super) sums: *mut i32,
    /// What is read next, for which each quad asks in passing: bursts would stall what they are meant to hide.
    pub(super) ahead: *const u8,
    /// Bytes of it for each quad; 0 where somebody else asks.
    pub(super) ahead_step: usize,
    /// Whether this tile is unpacked alone, as for up to 8 tokens.
    pub(super) one_tile: bool,
}

/// A format that a vector kernel unpacks.
pub(super) trait Rows: Format {
    /// Unpacks one block of each of `V::ROWS` rows. The quantised values are bytes: unsigned, but those with a sign keep it, or
    /// count 128 too much where `UNSIGNED` asks for it.
    ///
    /// # Safety
    /// As for the methods of [`Dwords`]: each row has a whole block; the lanes have room for one.
    unsafe fn unpack_rows<V: Dwords, const UNSIGNED: bool>(block: *const u8, stride: usize, to: Lanes);

    /// Whether two blocks are better unpacked together, so that their scales are transposed with their values.
    const PAIRED: bool = false;

    /// Unpacks two blocks of each row, which follow each other.
    ///
    /// # Safety
    /// As [`unpack_rows`](Self::unpack_rows), for both.
    #[inline(always)]
    unsafe fn unpack_two<V: Dwords, const UNSIGNED: bool>(blocks: *const u8, stride: usize, to: [Lanes; 2]) {
        // SAFETY: the caller's promise.
        unsafe {
            Self::unpack_rows::<V, UNSIGNED>(blocks, stride, to[0]);
            Self::unpack_rows::<V, UNSIGNED>(blocks.add(Self::BYTES), stride, to[1]);
        }
    }
}

/// Writes a body out for each of some numbers, so that `$i` is a constant in it: shifts and shuffles by a number that is
/// not known when the text is compiled are slow, and compilers unroll as they please.
macro_rules! each {
    ($i:ident in $($n:literal)* $body:block) => { $({ const $i: usize = $n; $body })* };
}

/// In each dword, bytes `A` and `B` as i16s.
///
/// # Safety
/// As [`Dwords`].
#[inline(always)]
unsafe fn byte_pair<V: Dwords, const SIGNED: bool, const A: usize, const B: usize>(v: V) -> V {
    // SAFETY: the caller's promise.
    unsafe {
        if SIGNED {
            v.shuffle(const { [ZERO, A as u8, ZERO, B as u8] }).high_bytes()
        } else {
            v.shuffle(const { [A as u8, ZERO, B as u8, ZERO] })
        }
    }
}

impl Lanes {
    /// # Safety
    /// As [`Dwords`]; there is room for this quad. So for the others.
    #[inline(always)]
    pub(super) unsafe fn quad<V: Dwords>(self, quad: usize, v: V) {
        // SAFETY: the caller's promise.
        unsafe {
            let ahead = quad * self.ahead_step;
            // Once for each line. (Both numbers are constants where this is unrolled.)
            let next = quad == 0 || ahead / LINE != (ahead - self.ahead_step) / LINE;
            if self.ahead_step > 0 && next {
                V::prefetch(self.ahead.wrapping_add(ahead));
            }
            v.store(self.quants.add(quad * QUAD).cast());
        }
    }

    /// # Safety
    /// As [`quad`](Self::quad).
    #[inline(always)]
    pub(super) unsafe fn d<V: Dwords>(self, v: V::Float) {
        // SAFETY: the caller's promise.
        unsafe { V::store_float(v, self.d) }
    }

    /// # Safety
    /// As [`quad`](Self::quad).
    #[inline(always)]
    unsafe fn m<V: Dwords>(self, v: V::Float) {
        // SAFETY: the caller's promise.
        unsafe { V::store_float(v, self.m) }
    }

    /// A block's scale and minimum, in the halves of a dword.
    ///
    /// # Safety
    /// As [`quad`](Self::quad).
    #[inline(always)]
    unsafe fn d_and_m<V: Dwords>(self, header: V) {
        // SAFETY: the caller's promise.
        unsafe {
            let (d, m) = header.two_halves();
            self.d::<V>(d);
            self.m::<V>(m);
        }
    }

    /// # Safety
    /// As [`quad`](Self::quad).
    #[inline(always)]
    unsafe fn minus_m<V: Dwords>(self, v: V::Float) {
        // SAFETY: the caller's promise.
        unsafe { self.m::<V>(V::negated(v)) }
    }

    /// # Safety
    /// As [`quad`](Self::quad).
    #[inline(always)]
    unsafe fn scale<V: Dwords>(self, sub: usize, v: V) {
        // SAFETY: the caller's promise.
        unsafe { v.store(self.scales.add(sub * super::TILE)) }
    }

    /// # Safety
    /// As [`quad`](Self::quad).
    #[inline(always)]
    unsafe fn sum<V: Dwords>(self, pair: usize, v: V) {
        // SAFETY: the caller's promise.
        unsafe { v.store(self.sums.add(pair * super::TILE)) }
    }

    /// Sub-scales, 4 in each dword.
    ///
    /// # Safety
    /// As [`quad`](Self::quad).
    #[inline(always)]
    pub(super) unsafe fn scales<V: Dwords, const SIGNED: bool>(self, scales: impl IntoIterator<Item = V>) {
        // SAFETY: the caller's promise.
        unsafe {
            for (i, v) in scales.into_iter().enumerate() {
                each! { J in 0 1 2 3 { self.scale(4 * i + J, byte_pair::<V, SIGNED, J, J>(v)); } }
            }
        }
    }

    /// Minima, 4 in each dword.
    ///
    /// # Safety
    /// As [`quad`](Self::quad).
    #[inline(always)]
    unsafe fn mins<V: Dwords>(self, mins: impl IntoIterator<Item = V>) {
        // SAFETY: the caller's promise.
        unsafe {
            for (i, v) in mins.into_iter().enumerate() {
                self.sum(2 * i, byte_pair::<V, false, 0, 1>(v));
                self.sum(2 * i + 1, byte_pair::<V, false, 2, 3>(v));
            }
        }
    }

    /// Signed sub-scales, 4 in each dword, and their products with `-2^offset_bits` for the sums.
    ///
    /// # Safety
    /// As [`quad`](Self::quad).
    #[inline(always)]
    pub(super) unsafe fn signed_scales<V: Dwords, const N: usize>(self, scales: [V; N], offset_bits: i32) {
        // SAFETY: the caller's promise.
        unsafe {
            self.scales::<V, true>(scales);
            for (i, v) in scales.into_iter().enumerate() {
                self.sum(2 * i, byte_pair::<V, true, 0, 1>(v).negated_times(offset_bits));
                self.sum(2 * i + 1, byte_pair::<V, true, 2, 3>(v).negated_times(offset_bits));
            }
        }
    }

    /// Sub-scales of signed values from number `sub`: one of `even`, then one of `odd`, ….
    ///
    /// # Safety
    /// As [`quad`](Self::quad).
    #[inline(always)]
    pub(super) unsafe fn alternating_scales<V: Dwords, const UNSIGNED: bool>(
        self,
        sub: usize,
        even: V,
        odd: V,
    ) {
        // SAFETY: the caller's promise.
        unsafe {
            each! { J in 0 1 2 3 {
                let (even, odd) = (byte_pair::<V, true, J, J>(even), byte_pair::<V, true, J, J>(odd));
                self.scale(sub + 2 * J, even);
                self.scale(sub + 2 * J + 1, odd);
                if UNSIGNED {
                    let pair = even.and(0xffff).or(odd.and(0xffff_0000));
                    self.sum(sub / 2 + J, pair.negated_times(7));
                }
            } }
        }
    }

    /// The header of Q4_K and Q5_K: scales, minima and their factors.
    ///
    /// # Safety
    /// As [`Rows::unpack_rows`].
    #[inline(always)]
    unsafe fn six_bits<V: Dwords>(self, block: *const u8, stride: usize) {
        // SAFETY: the caller's promise; the header is 16 bytes.
        unsafe {
            let [dm, scale, min, low] = V::transpose16(block, stride);
            let (d, dmin) = dm.two_halves();
            self.d::<V>(d);
            self.minus_m::<V>(dmin);
            let scales = [scale.shifted(0, 63), low.shifted(0, 15).or(scale.shifted(-2, 0x30))];
            let mins = [min.shifted(0, 63), low.shifted(-4, 15).or(min.shifted(-2, 0x30))];
            self.scales::<V, false>(scales);
            self.mins(mins);
        }
    }

    /// 32 values of 4 bits.
    ///
    /// # Safety
    /// As [`quad`](Self::quad).
    #[inline(always)]
    unsafe fn four_bits<V: Dwords>(self, qs: [V; 4]) {
        // SAFETY: the caller's promise.
        unsafe {
            for (i, v) in qs.into_iter().enumerate() {
                self.quad(i, v.shifted(0, 15));
                self.quad(4 + i, v.shifted(-4, 15));
            }
        }
    }

    /// 32 values of 4 bits, from quad number `quad`, which are looked up in a table.
    ///
    /// # Safety
    /// As [`quad`](Self::quad).
    #[inline(always)]
    unsafe fn levels<V: Dwords>(self, quad: usize, qs: [V; 4], table: [u8; 16]) {
        // SAFETY: the caller's promise.
        unsafe {
            for (i, v) in qs.into_iter().enumerate() {
                self.quad(quad + i, v.shifted(0, 15).look_up(table));
                self.quad(quad + 4 + i, v.shifted(-4, 15).look_up(table));
            }
        }
    }

    /// 8 sub-scales of 1, for values with an offset of 1.
    ///
    /// # Safety
    /// As [`quad`](Self::quad).
    #[inline(always)]
    pub(super) unsafe fn plain_scales<V: Dwords>(self, any: V) {
        // SAFETY: the caller's promise.
        unsafe {
            for sub in 0..8 {
                self.scale(sub, any.and(0).xor(0x0001_0001));
            }
            for pair in 0..4 {
                self.sum(pair, any.and(0).xor(u32::MAX));
            }
        }
    }

    /// 32 values of 5 bits: the highest bits of all in one dword, the others in `low`.
    ///
    /// # Safety
    /// As [`quad`](Self::quad).
    #[inline(always)]
    unsafe fn five_bits<V: Dwords>(self, highest: V, low: [V; 4]) {
        // SAFETY: the caller's promise.
        unsafe {
            // The bits of every quad are the high half of a byte in one of the two.
            let (even, odd) = (highest.shifted_dword(4), highest);
            // Byte i keeps bit 4 + i, which then counts 16.
            let high = |bytes: V| bytes.and(0x8040_2010).min_bytes(16);
            each! { I in 0 1 2 3 {
                let of_quad = if I.is_multiple_of(2) { even } else { odd };
                self.quad(I, low[I].shifted(0, 15).or(high(of_quad.shuffle(const { [I as u8 / 2; 4] }))));
                let high = high(of_quad.shuffle(const { [2 + I as u8 / 2; 4] }));
                self.quad(4 + I, low[I].shifted(-4, 15).or(high));
            } }
        }
    }
}

/// The dword that begins in the middle of `low` and ends in that of `high`, which follows it.
///
/// # Safety
/// As [`Dwords`].
#[inline(always)]
unsafe fn between<V: Dwords>(low: V, high: V) -> V {
    // SAFETY: the caller's promise.
    unsafe { low.shifted_dword(-16).or(high.shifted_dword(16)) }
}

/// Formats, each with the body of its [`Rows::unpack_rows`], and some with that of [`Rows::unpack_two`].
macro_rules! rows {
    ($(
        $name:ident |$block:ident, $stride:ident, $to:ident| $body:block
        $(=> |$two:ident, $two_stride:ident, $two_to:ident| $pair:block)?
    )*) => {$(
        impl Rows for $name {
            $(
                const PAIRED: bool = true;

                #[inline(always)]
                unsafe fn unpack_two<V: Dwords, const UNSIGNED: bool>(
                    $two: *const u8,
                    $two_stride: usize,
                    $two_to: [Lanes; 2],
                ) {
                    // SAFETY: the caller's promise; every offset and length below is inside the two blocks.
                    unsafe { $pair }
                }
            )?

            #[inline(always)]
            unsafe fn unpack_rows<V: Dwords, const UNSIGNED: bool>($block: *const u8, $stride: usize, $to: Lanes) {
                // SAFETY: the caller's promise; every offset and length below is inside the format's block.
                unsafe { $body }
            }
        }
    )*};
}
pub(super) use {each, rows};

rows! {
    Q4_0 |block, stride, to| {
        to.d::<V>(V::first_half(block, stride));
        to.four_bits(V::transpose16(block.add(2), stride));
    } => |blocks, stride, to| {
        let [a, b, c, d, e, f, g, h] = V::transpose32(blocks, stride);
        let [_, i] = V::last_two(blocks.add(36), stride);
        to[0].d::<V>(a.two_halves().0);
        to[0].four_bits([between(a, b), between(b, c), between(c, d), between(d, e)]);
        to[1].d::<V>(e.two_halves().1);
        to[1].four_bits([f, g, h, i]);
    }
    Q4_1 |block, stride, to| {
        to.d_and_m(V::first_two(block, stride)[0]);
        to.four_bits(V::transpose16(block.add(4), stride));
    } => |blocks, stride, to| {
        let [a, b, c, d, e, f, g, h] = V::transpose32(blocks, stride);
        let [i, j] = V::last_two(blocks.add(40), stride);
        to[0].d_and_m(a);
        to[0].four_bits([b, c, d, e]);
        to[1].d_and_m(f);
        to[1].four_bits([g, h, i, j]);
    }
    Q5_0 |block, stride, to| {
        let [a, b] = V::first_two(block, stride);
        to.d::<V>(a.two_halves().0);
        to.five_bits(between(a, b), V::transpose16(block.add(6), stride));
    } => |blocks, stride, to| {
        let [a, b, c, d, e, f, g, h] = V::transpose32(blocks, stride);
        let [_, i, j, k] = V::transpose16(blocks.add(28), stride);
        to[0].d::<V>(a.two_halves().0);
        to[0].five_bits(between(a, b), [between(b, c), between(c, d), between(d, e), between(e, f)]);
        to[1].d::<V>(f.two_halves().1);
        to[1].five_bits(g, [h, i, j, k]);
    }
    Q5_1 |block, stride, to| {
        let [header, high] = V::first_two(block, stride);
        to.d_and_m(header);
        to.five_bits(high, V::transpose16(block.add(8), stride));
    } => |blocks, stride, to| {
        let [a, b, c, d, e, f, g, h] = V::transpose32(blocks, stride);
        to[0].d_and_m(a);
        to[0].five_bits(b, [c, d, e, f]);
        to[1].d_and_m(g);
        to[1].five_bits(h, V::transpose16(blocks.add(32), stride));
    }
    Q8_0 |block, stride, to| {
        to.d::<V>(V::first_half(block, stride));
        // With two tiles, 32 bytes at once were slower (Zen 5: 1.06 of the time for 8 tokens).
        let quads = match to.one_tile {
            true => V::transpose32(block.add(2), stride),
            false => two_transposes::<V>(block.add(2), stride),
        };
        for (i, v) in quads.into_iter().enumerate() {
            to.quad(i, if UNSIGNED { v.xor(0x8080_8080) } else { v });
        }
    }
    Q2K |block, stride, to| {
        let (d, dmin) = V::last_two(block.add(84), stride)[1].two_halves();
        to.d::<V>(d);
        to.minus_m::<V>(dmin);
        let packed = V::transpose16(block, stride);
        to.scales::<V, false>(packed.map(|v| v.shifted(0, 15)));
        to.mins(packed.map(|v| v.shifted(-4, 15)));
        for n in 0..2 {
            for (i, v) in V::transpose32(block.add(16 + 32 * n), stride).into_iter().enumerate() {
                each! { J in 0 1 2 3 { to.quad(32 * n + 8 * J + i, v.shifted(-2 * J as i32, 3)); } }
            }
        }
    }
    Q3K |block, stride, to| {
        to.d::<V>(V::last_half(block.add(110), stride));
        let [_, a, b, high] = V::transpose16(block.add(92), stride);
        let signed = |low: V, high: V| low.or(high).sub_bytes(32);
        to.signed_scales(
            [
                signed(a.shifted(0, 15), high.shifted(4, 0x30)),
                signed(b.shifted(0, 15), high.shifted(2, 0x30)),
                signed(a.shifted(-4, 15), high.shifted(0, 0x30)),
                signed(b.shifted(-4, 15), high.shifted(-2, 0x30)),
            ],
            2,
        );
        let high = V::transpose32(block, stride);
        each! { N in 0 1 {
            for (i, v) in V::transpose32(block.add(32 + 32 * N), stride).into_iter().enumerate() {
                each! { J in 0 1 2 3 {
                    let bit = high[i].shifted(2 - (4 * N + J) as i32, 4);
                    to.quad(32 * N + 8 * J + i, v.shifted(-2 * J as i32, 3).or(bit));
                } }
            }
        } }
    }
    Q4K |block, stride, to| {
        to.six_bits::<V>(block, stride);
        for g in 0..4 {
            for (i, v) in V::transpose32(block.add(16 + 32 * g), stride).into_iter().enumerate() {
                to.quad(16 * g + i, v.shifted(0, 15));
                to.quad(16 * g + 8 + i, v.shifted(-4, 15));
            }
        }
    }
    Q5K |block, stride, to| {
        to.six_bits::<V>(block, stride);
        let high = V::transpose32(block.add(16), stride);
        each! { G in 0 1 2 3 {
            for (i, v) in V::transpose32(block.add(48 + 32 * G), stride).into_iter().enumerate() {
                let bit = |sub: usize| high[i].shifted(4 - sub as i32, 16);
                to.quad(16 * G + i, v.shifted(0, 15).or(bit(2 * G)));
                to.quad(16 * G + 8 + i, v.shifted(-4, 15).or(bit(2 * G + 1)));
            }
        } }
    }
    Q6K |block, stride, to| {
        to.d::<V>(V::last_half(block.add(210), stride));
        to.signed_scales(V::transpose16(block.add(192), stride), 5);
        for n in 0..2 {
            let high = V::transpose32(block.add(128 + 32 * n), stride);
            each! { PART in 0 1 {
                for (i, v) in V::transpose32(block.add(64 * n + 32 * PART), stride).into_iter().enumerate() {
                    let bits = |j: usize| high[i].shifted(4 - 2 * j as i32, 0x30);
                    to.quad(32 * n + 8 * PART + i, v.shifted(0, 15).or(bits(PART)));
                    to.quad(32 * n + 16 + 8 * PART + i, v.shifted(-4, 15).or(bits(PART + 2)));
                }
            } }
        }
    }
    IQ4NL |block, stride, to| {
        to.d::<V>(V::first_half(block, stride));
        to.levels(0, V::transpose16(block.add(2), stride), const { iq4_levels(UNSIGNED) });
    } => |blocks, stride, to| {
        let [a, b, c, d, e, f, g, h] = V::transpose32(blocks, stride);
        let [_, i] = V::last_two(blocks.add(36), stride);
        let table = const { iq4_levels(UNSIGNED) };
        to[0].d::<V>(a.two_halves().0);
        to[0].levels(0, [between(a, b), between(b, c), between(c, d), between(d, e)], table);
        to[1].d::<V>(e.two_halves().1);
        to[1].levels(0, [f, g, h, i], table);
    }
    IQ4XS |block, stride, to| {
        let [header, low] = V::first_two(block, stride);
        to.d::<V>(header.two_halves().0);
        // The two bits of scales 0 and 1 are the lowest of the first byte, those of 2 and 3 its highest; then the second.
        let high = header.shuffle([2, 2, 3, 3]);
        let [first, second] = [0x00ff_00ff, 0xff00_ff00];
        let even = high.shifted(4, 0x30).and(first).or(high.shifted(0, 0x30).and(second));
        let odd = high.shifted(2, 0x30).and(first).or(high.shifted(-2, 0x30).and(second));
        let even = low.shifted(0, 15).or(even).sub_bytes(32);
        let odd = low.shifted(-4, 15).or(odd).sub_bytes(32);
        to.alternating_scales::<V, UNSIGNED>(0, even, odd);
        for sub in 0..8 {
            let qs = V::transpose16(block.add(8 + 16 * sub), stride);
            to.levels(8 * sub, qs, const { iq4_levels(UNSIGNED) });
        }
    }
    MXFP4 |block, stride, to| {
        let [header, _] = V::first_two(block, stride);
        header.and(0xff).gather::<4>(HALF_POWERS.as_ptr().cast()).store(to.d.cast());
        to.levels(0, V::transpose16(block.add(1), stride), const { raised(MXFP4_LEVELS, 16) });
    }
    NVFP4 |block, stride, to| {
        let [scales, _] = V::first_two(block, stride);
        each! { PART in 0 1 2 3 {
            let d = scales.shuffle([PART as u8, ZERO, ZERO, ZERO]).gather::<4>(HALF_E4M3.as_ptr().cast());
            d.store(to.d.add(PART * super::TILE).cast());
        } }
        let table = const { raised(MXFP4_LEVELS, if UNSIGNED { 128 } else { 0 }) };
        for (i, v) in V::transpose32(block.add(4), stride).into_iter().enumerate() {
            let quad = i / 2 * 4 + i % 2;
            to.quad(quad, v.shifted(0, 15).look_up(table));
            to.quad(quad + 2, v.shifted(-4, 15).look_up(table));
        }
    }
    TQ2_0 |block, stride, to| {
        to.d::<V>(V::last_half(block.add(66), stride));
        to.plain_scales(V::dwords(block, stride));
        for n in 0..2 {
            for (i, v) in V::transpose32(block.add(32 * n), stride).into_iter().enumerate() {
                each! { J in 0 1 2 3 { to.quad(32 * n + 8 * J + i, v.shifted(-2 * J as i32, 3)); } }
            }
        }
    }
}

/// [`IQ4_LEVELS`] as they are, or 128 more.
const fn iq4_levels(unsigned: bool) -> [u8; 16] {
    raised(IQ4_LEVELS, if unsigned { 128 } else { 0 })
}
