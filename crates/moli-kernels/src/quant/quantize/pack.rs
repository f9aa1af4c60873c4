//! Blocks as bytes; see [`blocks`](crate::quant::blocks) for the layouts.

use half::f16;

use super::affine::{Line, Lines};
use super::signed::{Scaled, Single};

/// Fifth bits (if `five`) and halves of 32 values.
fn halves(q: &[u8; 32], five: bool, out: &mut Vec<u8>) {
    if five {
        let bits = q.iter().enumerate().fold(0u32, |bits, (k, q)| bits | u32::from(q >> 4 & 1) << k);
        out.extend(bits.to_le_bytes());
    }
    out.extend::<[u8; 16]>(std::array::from_fn(|k| q[k] & 15 | q[k + 16] << 4));
}

/// Q4_0, Q5_0 (`five`) and IQ4_NL.
pub(super) fn nibbles(block: &Single, five: bool, out: &mut Vec<u8>) {
    out.extend(block.step.to_le_bytes());
    halves(&block.numbers, five, out);
}

/// Q4_1 and Q5_1 (`five`).
pub(super) fn nibbles_with_minimum(block: &Line, five: bool, out: &mut Vec<u8>) {
    out.extend(block.step.to_le_bytes());
    out.extend(block.min.to_le_bytes());
    halves(&block.q, five, out);
}

/// Two bits of each value.
fn quarters(q: &[u8; 256]) -> [u8; 64] {
    std::array::from_fn(|i| {
        let first = i / 32 * 128 + i % 32;
        (0..4).fold(0, |byte, j| byte | (q[first + 32 * j] & 3) << (2 * j))
    })
}

/// One bit of each value.
fn eighths(q: &[u8; 256], bit: u32) -> [u8; 32] {
    std::array::from_fn(|l| (0..8).fold(0, |byte, g| byte | (q[32 * g + l] >> bit & 1) << g))
}

/// Q2_K.
pub(super) fn q2_k(block: &Lines<16>, out: &mut Vec<u8>) {
    out.extend::<[u8; 16]>(std::array::from_fn(|i| block.scales[i] | block.mins[i] << 4));
    out.extend(quarters(&block.q));
    halves_of([block.d, block.dmin], out);
}

/// Q4_K and Q5_K (`five`).
pub(super) fn q45_k(block: &Lines<8>, five: bool, out: &mut Vec<u8>) {
    let Lines { scales, mins, q, .. } = block;
    halves_of([block.d, block.dmin], out);
    out.extend((0..4).map(|i| scales[i] | scales[i + 4] >> 4 << 6));
    out.extend((0..4).map(|i| mins[i] | mins[i + 4] >> 4 << 6));
    out.extend((4..8).map(|i| scales[i] & 15 | mins[i] << 4));
    if five {
        out.extend(eighths(q, 4));
    }
    out.extend::<[u8; 128]>(std::array::from_fn(|i| {
        let first = i / 32 * 64 + i % 32;
        q[first] & 15 | q[first + 32] << 4
    }));
}

fn halves_of(numbers: [f16; 2], out: &mut Vec<u8>) {
    numbers.iter().for_each(|number| out.extend(number.to_le_bytes()));
}

/// Q3_K.
pub(super) fn q3_k(block: &Scaled<16>, out: &mut Vec<u8>) {
    let mut packed = [0u8; 12];
    for (i, scale) in block.scales.iter().enumerate() {
        let scale = (scale + 32) as u8;
        packed[i % 8] |= (scale & 15) << (i / 8 * 4);
        packed[8 + i % 4] |= (scale >> 4) << (i / 4 * 2);
    }
    out.extend(eighths(&block.numbers, 2));
    out.extend(quarters(&block.numbers));
    out.extend(packed);
    out.extend(block.d.to_le_bytes());
}

/// Q6_K.
pub(super) fn q6_k(block: &Scaled<16>, out: &mut Vec<u8>) {
    let q = &block.numbers;
    out.extend::<[u8; 128]>(std::array::from_fn(|i| {
        let first = i / 64 * 128 + i % 64;
        q[first] & 15 | q[first + 64] << 4
    }));
    out.extend(quarters(&q.map(|q| q >> 4)));
    out.extend(block.scales.map(i8::cast_unsigned));
    out.extend(block.d.to_le_bytes());
}

/// IQ4_XS.
pub(super) fn iq4_xs(block: &Scaled<8>, out: &mut Vec<u8>) {
    let scales = block.scales.map(|scale| (scale + 32) as u8);
    let high =
        scales.iter().enumerate().fold(0u16, |bits, (i, scale)| bits | u16::from(scale >> 4) << (2 * i));
    out.extend(block.d.to_le_bytes());
    out.extend(high.to_le_bytes());
    out.extend((0..4).map(|i| scales[2 * i] & 15 | scales[2 * i + 1] << 4));
    for numbers in block.numbers.as_chunks().0 {
        halves(numbers, false, out);
    }
}
