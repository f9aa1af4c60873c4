//! What each quantised format means: one plain function per format.
//!
//! Dequantising, the scalar matrix product and the tests are made of these; the vector kernels are tested against them.

use moli_format::TensorType;

use super::blocks::*;

/// A block taken apart. Value `k` is
///
/// ```text
/// (d * scales[k / sub]) * (q[k] - OFFSET) + (m * mins[k / sub])
/// ```
///
/// where formats without a minimum have m = 0, and formats of 32 values have one scale and one minimum of 1. (The K
/// formats subtract a minimum: their m is `-dmin`.)
#[derive(Debug, Clone)]
pub(crate) struct Unpacked {
    /// The quantised values; not negative, but for Q8_0.
    pub(crate) q: [i16; 256],
    pub(crate) scales: [i16; 16],
    pub(crate) mins: [i16; 16],
    pub(crate) d: f32,
    pub(crate) m: f32,
}

impl Unpacked {
    pub(crate) const fn new() -> Self {
        Self { q: [0; 256], scales: [1; 16], mins: [1; 16], d: 0.0, m: 0.0 }
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
    /// Values that share a scale.
    const SUB: usize;
    /// What is subtracted from the quantised values.
    const OFFSET: i16 = 0;
    /// Whether there is a minimum (or m).
    const MIN: bool = false;
    /// The greatest quantised value: products of it with activations must not overflow what a kernel adds them in.
    const MAX: i32;
    /// Takes a block apart. `block` has at least [`BYTES`](Self::BYTES) bytes; nothing is done if it has not.
    fn unpack(block: &[u8], out: &mut Unpacked);
}

/// Reads the halves of 16 bytes: low halves first.
fn halves(qs: &[u8; 16], out: &mut [i16; 256]) {
    for (k, byte) in qs.iter().enumerate() {
        out[k] = i16::from(byte & 15);
        out[k + 16] = i16::from(byte >> 4);
    }
}

/// Adds the fifth bits.
fn fifth_bits(qh: [u8; 4], out: &mut [i16; 256]) {
    let bits = u32::from_le_bytes(qh);
    for (k, q) in out.iter_mut().take(32).enumerate() {
        *q |= ((bits >> k & 1) as i16) << 4;
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

formats! {
    /// See [`BlockQ4_0`].
    Q4_0(BlockQ4_0) sub 32 max 15 { const OFFSET: i16 = 8; } |block, out| {
        out.d = half(block.d);
        halves(&block.qs, &mut out.q);
    }
    /// See [`BlockQ4_1`].
    Q4_1(BlockQ4_1) sub 32 max 15 { const MIN: bool = true; } |block, out| {
        (out.d, out.m) = (half(block.d), half(block.m));
        halves(&block.qs, &mut out.q);
    }
    /// See [`BlockQ5_0`].
    Q5_0(BlockQ5_0) sub 32 max 31 { const OFFSET: i16 = 16; } |block, out| {
        out.d = half(block.d);
        halves(&block.qs, &mut out.q);
        fifth_bits(block.qh, &mut out.q);
    }
    /// See [`BlockQ5_1`].
    Q5_1(BlockQ5_1) sub 32 max 31 { const MIN: bool = true; } |block, out| {
        (out.d, out.m) = (half(block.d), half(block.m));
        halves(&block.qs, &mut out.q);
        fifth_bits(block.qh, &mut out.q);
    }
    /// See [`BlockQ8_0`].
    Q8_0(BlockQ8_0) sub 32 max 128 |block, out| {
        out.d = half(block.d);
        for (q, byte) in out.q.iter_mut().zip(&block.qs) {
            *q = i16::from(byte.cast_signed());
        }
    }
    /// See [`BlockQ2K`].
    Q2K(BlockQ2K) sub 16 max 3 { const MIN: bool = true; } |block, out| {
        (out.d, out.m) = (half(block.d), -half(block.dmin));
        for (i, byte) in block.scales.iter().enumerate() {
            (out.scales[i], out.mins[i]) = (i16::from(byte & 15), i16::from(byte >> 4));
        }
        for (k, q) in out.q.iter_mut().enumerate() {
            let (n, j, l) = (k / 128, k / 32 % 4, k % 32);
            *q = i16::from(block.qs[32 * n + l] >> (2 * j) & 3);
        }
    }
    /// See [`BlockQ3K`].
    Q3K(BlockQ3K) sub 16 max 7 { const OFFSET: i16 = 4; } |block, out| {
        out.d = half(block.d);
        for (i, scale) in out.scales.iter_mut().enumerate() {
            let low = block.scales[i % 8] >> (4 * (i / 8)) & 15;
            let high = block.scales[8 + i % 4] >> (2 * (i / 4)) & 3;
            *scale = i16::from(low | high << 4) - 32;
        }
        for (k, q) in out.q.iter_mut().enumerate() {
            let (n, j, l) = (k / 128, k / 32 % 4, k % 32);
            let low = block.qs[32 * n + l] >> (2 * j) & 3;
            let high = block.hmask[l] >> (4 * n + j) & 1;
            *q = i16::from(low | high << 2);
        }
    }
    /// See [`BlockQ4K`].
    Q4K(BlockQ4K) sub 32 max 15 { const MIN: bool = true; } |block, out| {
        (out.d, out.m) = (half(block.d), -half(block.dmin));
        six_bits(&block.scales, out);
        for (k, q) in out.q.iter_mut().enumerate() {
            let (g, high, l) = (k / 64, k / 32 % 2, k % 32);
            *q = i16::from(block.qs[32 * g + l] >> (4 * high) & 15);
        }
    }
    /// See [`BlockQ5K`].
    Q5K(BlockQ5K) sub 32 max 31 { const MIN: bool = true; } |block, out| {
        (out.d, out.m) = (half(block.d), -half(block.dmin));
        six_bits(&block.scales, out);
        for (k, q) in out.q.iter_mut().enumerate() {
            let (g, high, l) = (k / 64, k / 32 % 2, k % 32);
            let low = block.qs[32 * g + l] >> (4 * high) & 15;
            *q = i16::from(low | (block.qh[l] >> (2 * g + high) & 1) << 4);
        }
    }
    /// See [`BlockQ6K`].
    Q6K(BlockQ6K) sub 16 max 63 { const OFFSET: i16 = 32; } |block, out| {
        out.d = half(block.d);
        for (scale, byte) in out.scales.iter_mut().zip(&block.scales) {
            *scale = i16::from(byte.cast_signed());
        }
        for (k, q) in out.q.iter_mut().enumerate() {
            let (n, j, l) = (k / 128, k / 32 % 4, k % 32);
            let low = block.ql[64 * n + 32 * (j % 2) + l] >> (4 * (j / 2)) & 15;
            let high = block.qh[32 * n + l] >> (2 * j) & 3;
            *q = i16::from(low | high << 4);
        }
    }
}
