//! What each quantised format means: one plain function per format.
//!
//! Dequantising, the scalar matrix product and the tests are made of these; the vector kernels are tested against them.

use moli_format::TensorType;

use super::blocks::*;
pub(crate) use super::grids::{IQ1M, IQ1S, IQ2S, IQ2XS, IQ2XXS, IQ3S, IQ3XXS};
pub(crate) use super::levels::{IQ4NL, IQ4XS, MXFP4, NVFP4};

/// A block taken apart. Value `k` is
///
/// ```text
/// (d[k / SCALED] * scales[k / SUB]) * (q[k] - OFFSET) + (m * mins[k / SUB])
/// ```
///
/// where formats without a minimum have m = 0, and formats without sub-scales have scales and minima of 1. (The K
/// formats subtract a minimum: their m is `-dmin`.)
#[derive(Debug, Clone)]
pub(crate) struct Unpacked {
    /// The quantised values; not negative, but where a format is [`SIGNED`](Format::SIGNED).
    pub(crate) q: [i8; 256],
    pub(crate) scales: [i16; 16],
    pub(crate) mins: [i16; 16],
    /// One, but for NVFP4.
    pub(crate) d: [f32; 4],
    pub(crate) m: f32,
}

impl Unpacked {
    pub(crate) const fn new() -> Self {
        Self { q: [0; 256], scales: [1; 16], mins: [1; 16], d: [0.0; 4], m: 0.0 }
    }
}

/// A quantised format: its constants and its meaning.
pub(crate) trait Format {
    /// The type in a file.
    const TYPE: TensorType;
    /// Values of a block.
    const LEN: usize = Self::TYPE.block_len();
    /// Bytes of a block.
    const BYTES: usize = Self::TYPE.block_bytes();
    /// Values that share a sub-scale, or the scale where there are none.
    const SUB: usize;
    /// Values that share a float scale, whose products with activations are summed as integers.
    const SCALED: usize = Self::LEN;
    /// Whether there are sub-scales.
    const SUB_SCALES: bool = Self::SUB < Self::SCALED;
    /// Values that share a scale in the activations that this format is multiplied with.
    const ACTIVATIONS: usize = if Self::LEN == 256 { 256 } else { 32 };
    /// What is subtracted from the quantised values.
    const OFFSET: i16 = 0;
    /// Whether there is a minimum (or m).
    const MIN: bool = false;
    /// Whether quantised values may be negative; then they have no offset.
    const SIGNED: bool = false;
    /// The greatest magnitude of a quantised value: products of it with activations must not overflow what a kernel adds them in.
    const MAX: i32;
    /// Takes a block apart. `block` has at least [`BYTES`](Self::BYTES) bytes; nothing is done if it has not.
    fn unpack(block: &[u8], out: &mut Unpacked);
}

/// Reads the halves of 16 bytes: low halves first.
pub(super) fn halves(qs: &[u8; 16], out: &mut [i8]) {
    for (k, byte) in qs.iter().enumerate() {
        out[k] = (byte & 15).cast_signed();
        out[k + 16] = (byte >> 4).cast_signed();
    }
}

/// Adds the fifth bits.
fn fifth_bits(qh: [u8; 4], out: &mut [i8; 256]) {
    let bits = u32::from_le_bytes(qh);
    for (k, q) in out.iter_mut().take(32).enumerate() {
        *q |= ((bits >> k & 1) as i8) << 4;
    }
}

/// The scales and minima of Q4_K and Q5_K.
fn six_bits(packed: &[u8; 12], out: &mut Unpacked) {
    for i in 0..4 {
        let (scale, min, low) = (packed[i], packed[4 + i], packed[8 + i]);
        out.scales[i] = i16::from(scale & 63);
        out.mins[i] = i16::from(min & 63);
        out.scales[4 + i] = i16::from(low & 15 | scale >> 6 << 4);
        out.mins[4 + i] = i16::from(low >> 4 | min >> 6 << 4);
    }
}

/// Formats, each with the body of its [`Format::unpack`].
macro_rules! formats {
    ($($(#[$doc:meta])* $name:ident($block_type:ident) sub $sub:literal max $max:literal $({ $($const:item)* })?
        |$block:ident, $out:ident| $body:block)*) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, Copy)]
        pub(crate) struct $name;

        impl Format for $name {
            const TYPE: TensorType = TensorType::$name;
            const SUB: usize = $sub;
            const MAX: i32 = $max;
            $($($const)*)?
            fn unpack(block: &[u8], $out: &mut Unpacked) {
                if let Some(bytes) = block.first_chunk() {
                    let $block = $block_type::read(bytes);
                    $body
                }
            }
        }
    )*};
}
pub(super) use formats;

formats! {
    /// See [`BlockQ4_0`].
    Q4_0(BlockQ4_0) sub 32 max 15 { const OFFSET: i16 = 8; } |block, out| {
        out.d[0] = half(block.d);
        halves(&block.qs, &mut out.q);
    }
    /// See [`BlockQ4_1`].
    Q4_1(BlockQ4_1) sub 32 max 15 { const MIN: bool = true; } |block, out| {
        (out.d[0], out.m) = (half(block.d), half(block.m));
        halves(&block.qs, &mut out.q);
    }
    /// See [`BlockQ5_0`].
    Q5_0(BlockQ5_0) sub 32 max 31 { const OFFSET: i16 = 16; } |block, out| {
        out.d[0] = half(block.d);
        halves(&block.qs, &mut out.q);
        fifth_bits(block.qh, &mut out.q);
    }
    /// See [`BlockQ5_1`].
    Q5_1(BlockQ5_1) sub 32 max 31 { const MIN: bool = true; } |block, out| {
        (out.d[0], out.m) = (half(block.d), half(block.m));
        halves(&block.qs, &mut out.q);
        fifth_bits(block.qh, &mut out.q);
    }
    /// See [`BlockQ8_0`].
    Q8_0(BlockQ8_0) sub 32 max 128 { const SIGNED: bool = true; } |block, out| {
        out.d[0] = half(block.d);
        for (q, byte) in out.q.iter_mut().zip(&block.qs) {
            *q = byte.cast_signed();
        }
    }
    /// See [`BlockQ2K`].
    Q2K(BlockQ2K) sub 16 max 3 { const MIN: bool = true; } |block, out| {
        (out.d[0], out.m) = (half(block.d), -half(block.dmin));
        for (i, byte) in block.scales.iter().enumerate() {
            (out.scales[i], out.mins[i]) = (i16::from(byte & 15), i16::from(byte >> 4));
        }
        for (k, q) in out.q.iter_mut().enumerate() {
            let (n, j, l) = (k / 128, k / 32 % 4, k % 32);
            *q = (block.qs[32 * n + l] >> (2 * j) & 3).cast_signed();
        }
    }
    /// See [`BlockQ3K`].
    Q3K(BlockQ3K) sub 16 max 7 { const OFFSET: i16 = 4; } |block, out| {
        out.d[0] = half(block.d);
        for (i, scale) in out.scales.iter_mut().enumerate() {
            let low = block.scales[i % 8] >> (4 * (i / 8)) & 15;
            let high = block.scales[8 + i % 4] >> (2 * (i / 4)) & 3;
            *scale = i16::from(low | high << 4) - 32;
        }
        for (k, q) in out.q.iter_mut().enumerate() {
            let (n, j, l) = (k / 128, k / 32 % 4, k % 32);
            let low = block.qs[32 * n + l] >> (2 * j) & 3;
            let high = block.hmask[l] >> (4 * n + j) & 1;
            *q = (low | high << 2).cast_signed();
        }
    }
    /// See [`BlockQ4K`].
    Q4K(BlockQ4K) sub 32 max 15 { const MIN: bool = true; } |block, out| {
        (out.d[0], out.m) = (half(block.d), -half(block.dmin));
        six_bits(&block.scales, out);
        for (k, q) in out.q.iter_mut().enumerate() {
            let (g, high, l) = (k / 64, k / 32 % 2, k % 32);
            *q = (block.qs[32 * g + l] >> (4 * high) & 15).cast_signed();
        }
    }
    /// See [`BlockQ5K`].
    Q5K(BlockQ5K) sub 32 max 31 { const MIN: bool = true; } |block, out| {
        (out.d[0], out.m) = (half(block.d), -half(block.dmin));
        six_bits(&block.scales, out);
        for (k, q) in out.q.iter_mut().enumerate() {
            let (g, high, l) = (k / 64, k / 32 % 2, k % 32);
            let low = block.qs[32 * g + l] >> (4 * high) & 15;
            *q = (low | (block.qh[l] >> (2 * g + high) & 1) << 4).cast_signed();
        }
    }
    /// See [`BlockQ6K`].
    Q6K(BlockQ6K) sub 16 max 63 { const OFFSET: i16 = 32; } |block, out| {
        out.d[0] = half(block.d);
        for (scale, byte) in out.scales.iter_mut().zip(&block.scales) {
            *scale = i16::from(byte.cast_signed());
        }
        for (k, q) in out.q.iter_mut().enumerate() {
            let (n, j, l) = (k / 128, k / 32 % 4, k % 32);
            let low = block.ql[64 * n + 32 * (j % 2) + l] >> (4 * (j / 2)) & 15;
            let high = block.qh[32 * n + l] >> (2 * j) & 3;
            *q = (low | high << 4).cast_signed();
        }
    }
    /// See [`BlockTQ1_0`].
    TQ1_0(BlockTQ1_0) sub 32 max 2 { const OFFSET: i16 = 1; } |block, out| {
        out.d[0] = half(block.d);
        let digit = |byte: u8, n: usize| {
            let rest = byte.wrapping_mul([1, 3, 9, 27, 81][n]);
            ((u16::from(rest) * 3) >> 8) as i8
        };
        for (k, q) in out.q.iter_mut().enumerate() {
            *q = match k {
                0..160 => digit(block.qs[k % 32], k / 32),
                160..240 => digit(block.qs[32 + k % 16], k / 16 - 10),
                _ => digit(block.qh[k % 4], k / 4 % 4),
            };
        }
    }
    /// See [`BlockTQ2_0`].
    TQ2_0(BlockTQ2_0) sub 32 max 3 { const OFFSET: i16 = 1; } |block, out| {
        out.d[0] = half(block.d);
        for (k, q) in out.q.iter_mut().enumerate() {
            let (n, j, l) = (k / 128, k / 32 % 4, k % 32);
            *q = (block.qs[32 * n + l] >> (2 * j) & 3).cast_signed();
        }
    }
}
