//! Formats whose quantised values are numbers of levels: four bits each, and a table of 16.

use moli_format::TensorType;

use super::blocks::*;
use super::unpack::{Format, Unpacked, formats, halves};

/// The levels of IQ4_NL and IQ4_XS, closer together around zero.
pub(crate) const IQ4_LEVELS: [i8; 16] =
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// The levels of MXFP4 and NVFP4: twice the floats with 2 bits of exponent and 1 of mantissa (E2M1).
pub(crate) const MXFP4_LEVELS: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

/// Levels as bytes that count `excess` too many.
pub(crate) const fn raised(levels: [i8; 16], excess: u8) -> [u8; 16] {
    let mut bytes = [0; 16];
    let mut n = 0;
    while n < 16 {
        bytes[n] = levels[n].cast_unsigned().wrapping_add(excess);
        n += 1;
    }
    bytes
}

/// Half of the power of two that each byte stands for, so `2^(e - 128)`: the levels are twice their floats.
pub(crate) static HALF_POWERS: [f32; 256] = {
    let mut halves = [0.0; 256];
    let mut e = 0;
    while e < 256 {
        // The first two are below the normal numbers.
        halves[e] = f32::from_bits(if e < 2 { 0x0020_0000 << e } else { (e as u32 - 1) << 23 });
        e += 1;
    }
    halves
};

/// Half of each float with 4 bits of exponent and 3 of mantissa (E4M3), without its sign. Its NaN, 0x7f, counts as 0 in the
/// reference.
pub(crate) static HALF_E4M3: [f32; 256] = {
    let mut halves = [0.0; 256];
    let mut byte = 0;
    while byte < 256 {
        let (exponent, mantissa) = (byte as u32 >> 3 & 15, (byte & 7) as f32);
        // 2^(exponent - 11); below the normal numbers as for the first of them.
        let power = f32::from_bits((116 + if exponent == 0 { 1 } else { exponent }) << 23);
        halves[byte] = power * if exponent == 0 { mantissa } else { 8.0 + mantissa };
        byte += 1;
    }
    halves[0x7f] = 0.0;
    halves
};

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
        out.d[0] = HALF_POWERS[usize::from(block.e)];
        halves(&block.qs, &mut out.q[..32]);
        look_up(&mut out.q[..32], &MXFP4_LEVELS.map(|level| level + 16));
    }
    /// See [`BlockNVFP4`].
    NVFP4(BlockNVFP4) sub 16 max 12 { const SIGNED: bool = true; const SCALED: usize = 16; } |block, out| {
        out.d = block.d.map(|byte| HALF_E4M3[usize::from(byte)]);
        for (q, qs) in out.q.chunks_exact_mut(16).zip(&block.qs) {
            for (k, byte) in qs.iter().enumerate() {
                q[k] = (byte & 15).cast_signed();
                q[k + 8] = (byte >> 4).cast_signed();
            }
        }
        look_up(&mut out.q[..64], &MXFP4_LEVELS);
    }
}
