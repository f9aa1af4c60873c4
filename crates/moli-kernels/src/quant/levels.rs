//! Formats whose quantised values are numbers of levels: four bits each, and a table of 16.

use moli_format::TensorType;

use super::blocks::*;
use super::unpack::{Format, Unpacked, formats, halves};

/// The levels of IQ4_NL and IQ4_XS, closer together around zero.
pub(crate) const IQ4_LEVELS: [i8; 16] =
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// The levels of MXFP4 and NVFP4: twice the floats with 2 bits of exponent and 1 of mantissa (E2M1).
pub(crate) const MXFP4_LEVELS: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

/// Half of the power of two that a byte stands for, `2^(e - 128)`: the levels are twice their floats.
pub(crate) fn half_power(e: u8) -> f32 {
    match e {
        // Below the normal numbers.
        0 | 1 => f32::from_bits(0x0020_0000 << e),
        _ => f32::from_bits(u32::from(e - 1) << 23),
    }
}

/// Half of the float with 4 bits of exponent and 3 of mantissa (E4M3), without its sign. Its NaN, 0x7f, counts as 0 in the
/// reference.
fn half_e4m3(byte: u8) -> f32 {
    let (exponent, mantissa) = (u32::from(byte >> 3 & 15), byte & 7);
    let power = |e: u32| f32::from_bits((116 + e) << 23); // 2^(e - 11)
    match (byte, exponent) {
        (0x7f, _) => 0.0,
        (_, 0) => f32::from(mantissa) * power(1),
        _ => f32::from(8 + mantissa) * power(exponent),
    }
}

/// Numbers of 16 levels into the levels.
fn look_up(q: &mut [i8], levels: &[i8; 16]) {
    for q in q {
        *q = levels[(*q & 15) as usize];
    }
}

formats! {
    /// See [`BlockIQ4NL`].
    IQ4NL(BlockIQ4NL) sub 32 max 127 { const SIGNED: bool = true; } |block, out| {
        out.d[0] = half(block.d);
        halves(&block.qs, &mut out.q[..32]);
        look_up(&mut out.q[..32], &IQ4_LEVELS);
    }
    /// See [`BlockIQ4XS`].
    IQ4XS(BlockIQ4XS) sub 32 max 127 { const SIGNED: bool = true; } |block, out| {
        out.d[0] = half(block.d);
        let high = u16::from_le_bytes(block.scales_h);
        for (i, scale) in out.scales.iter_mut().take(8).enumerate() {
            let low = block.scales_l[i / 2] >> (4 * (i % 2)) & 15;
            *scale = i16::from(low) + ((high >> (2 * i) & 3) << 4).cast_signed() - 32;
        }
        for (q, qs) in out.q.chunks_exact_mut(32).zip(&block.qs) {
            halves(qs, q);
        }
        look_up(&mut out.q, &IQ4_LEVELS);
    }
    /// See [`BlockMXFP4`]. (With an offset of 16, so that no value is negative.)
    MXFP4(BlockMXFP4) sub 32 max 28 { const OFFSET: i16 = 16; } |block, out| {
        out.d[0] = half_power(block.e);
        halves(&block.qs, &mut out.q[..32]);
        look_up(&mut out.q[..32], &MXFP4_LEVELS.map(|level| level + 16));
    }
    /// See [`BlockNVFP4`].
    NVFP4(BlockNVFP4) sub 16 max 12 { const SIGNED: bool = true; const SCALED: usize = 16; } |block, out| {
        out.d = block.d.map(half_e4m3);
        for (q, qs) in out.q.chunks_exact_mut(16).zip(&block.qs) {
            for (k, byte) in qs.iter().enumerate() {
                q[k] = (byte & 15).cast_signed();
                q[k + 8] = (byte >> 4).cast_signed();
            }
        }
        look_up(&mut out.q[..64], &MXFP4_LEVELS);
    }
}
