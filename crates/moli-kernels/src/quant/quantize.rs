//! Reference quantisers: the simplest that are right. Blocks of 32 follow ggml's reference (`quantize_row_q*_ref`); the
//! K types take the range of each sub-block and search for nothing.

use half::{bf16, f16};
use moli_format::TensorType;

use super::row_bytes;
use crate::KernelError;

/// The tensor types that [`quantize`] makes blocks of: all that are [`SUPPORTED`](super::SUPPORTED) but those with codebooks and the
/// ternary ones.
pub const QUANTIZABLE: [TensorType; 13] = [
    TensorType::F32,
    TensorType::F16,
    TensorType::BF16,
    TensorType::Q4_0,
    TensorType::Q4_1,
    TensorType::Q5_0,
    TensorType::Q5_1,
    TensorType::Q8_0,
    TensorType::Q2K,
    TensorType::Q3K,
    TensorType::Q4K,
    TensorType::Q5K,
    TensorType::Q6K,
];

/// Appends the blocks of `x` to `out`. `x` is whole blocks of the type.
///
/// Values that are not finite give blocks of no meaning.
///
/// # Errors
/// [`KernelError::UnsupportedType`], [`KernelError::NoQuantizer`] and [`KernelError::PartialBlock`].
pub fn quantize(ttype: TensorType, x: &[f32], out: &mut Vec<u8>) -> Result<(), KernelError> {
    if !super::is_supported(ttype) {
        return Err(KernelError::UnsupportedType { ttype });
    }
    if !QUANTIZABLE.contains(&ttype) {
        return Err(KernelError::NoQuantizer { ttype });
    }
    out.reserve(row_bytes(ttype, x.len())?);
    let blocks = x.as_chunks::<32>().0;
    let super_blocks = x.as_chunks::<256>().0;
    match ttype {
        TensorType::F32 => x.iter().for_each(|v| out.extend(v.to_le_bytes())),
        TensorType::F16 => x.iter().for_each(|v| out.extend(f16::from_f32(*v).to_le_bytes())),
        TensorType::BF16 => x.iter().for_each(|v| out.extend(bf16::from_f32(*v).to_le_bytes())),
        TensorType::Q4_0 => blocks.iter().for_each(|x| symmetric(x, 8, out)),
        TensorType::Q5_0 => blocks.iter().for_each(|x| symmetric(x, 16, out)),
        TensorType::Q4_1 => blocks.iter().for_each(|x| ranged(x, 15, out)),
        TensorType::Q5_1 => blocks.iter().for_each(|x| ranged(x, 31, out)),
        TensorType::Q8_0 => blocks.iter().for_each(|x| q8_0(x, out)),
        TensorType::Q2K => super_blocks.iter().for_each(|x| q2_k(x, out)),
        TensorType::Q3K => super_blocks.iter().for_each(|x| q3_k(x, out)),
        TensorType::Q4K => super_blocks.iter().for_each(|x| q45_k(x, 15, out)),
        TensorType::Q5K => super_blocks.iter().for_each(|x| q45_k(x, 31, out)),
        _ => super_blocks.iter().for_each(|x| q6_k(x, out)),
    }
    Ok(())
}

/// The inverse, or 0 for 0.
#[inline(always)]
fn inverse(d: f32) -> f32 {
    if d == 0.0 { 0.0 } else { 1.0 / d }
}

/// `v` rounded and brought into `low..=high`. A NaN becomes 0.
#[inline(always)]
fn clamped(v: f32, low: i32, high: i32) -> i32 {
    (v.round() as i32).clamp(low, high)
}

/// The element of the greatest magnitude, with its sign.
fn extreme(x: &[f32]) -> f32 {
    x.iter().fold(0.0, |most: f32, v| if v.abs() > most.abs() { *v } else { most })
}

fn push_half(out: &mut Vec<u8>, v: f32) -> f32 {
    let half = f16::from_f32(v);
    out.extend(half.to_le_bytes());
    half.to_f32()
}

/// Fifth bits (if `five`) and halves of 32 values.
fn push_nibbles(q: &[u8; 32], five: bool, out: &mut Vec<u8>) {
    if five {
        let bits = q.iter().enumerate().fold(0u32, |bits, (k, q)| bits | u32::from(q >> 4 & 1) << k);
        out.extend(bits.to_le_bytes());
    }
    out.extend((0..16).map(|k| q[k] & 15 | q[k + 16] << 4));
}

/// Q4_0 (`half` 8) and Q5_0 (16): the extreme becomes `-half` exactly.
fn symmetric(x: &[f32; 32], half: i32, out: &mut Vec<u8>) {
    let d = extreme(x) / -(half as f32);
    let id = inverse(d);
    push_half(out, d);
    let q = x.map(|v| ((v * id + half as f32 + 0.5) as i32).clamp(0, 2 * half - 1) as u8);
    push_nibbles(&q, half == 16, out);
}

/// Q4_1 and Q5_1.
fn ranged(x: &[f32; 32], most: i32, out: &mut Vec<u8>) {
    let low = x.iter().copied().fold(f32::INFINITY, f32::min);
    let high = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let d = (high - low) / most as f32;
    let id = inverse(d);
    push_half(out, d);
    push_half(out, low);
    let q = x.map(|v| (((v - low) * id + 0.5) as i32).clamp(0, most) as u8);
    push_nibbles(&q, most == 31, out);
}

/// A block of Q8_0, or the shorter one at the end of a head: the quantised values and the scale, max|x| / 127. A value that
/// is not finite makes a scale that is not.
#[inline(always)]
pub(crate) fn eight_bits(x: &[f32], q: &mut [i8]) -> f16 {
    // As integers, so that a NaN is the greatest.
    let most = x.iter().fold(0, |most, v| v.abs().to_bits().max(most));
    let d = f32::from_bits(most) / 127.0;
    let id = inverse(d);
    for (q, v) in q.iter_mut().zip(x) {
        *q = clamped(v * id, -128, 127) as i8;
    }
    f16::from_f32(d)
}

/// Q8_0.
fn q8_0(x: &[f32; 32], out: &mut Vec<u8>) {
    let mut q = [0; 32];
    out.extend(eight_bits(x, &mut q).to_le_bytes());
    out.extend(q.map(|q| q as u8));
}

/// For each sub-block of `N` a step and a minimum (not positive) such that the values are `step * q + minimum` with q
/// from 0 to `most`.
fn steps<const N: usize>(x: &[f32; 256], most: f32) -> Vec<(f32, f32)> {
    let range = |x: &[f32; N]| {
        let low = x.iter().copied().fold(0.0, f32::min);
        let high = x.iter().copied().fold(0.0, f32::max);
        ((high - low) / most, low)
    };
    x.as_chunks::<N>().0.iter().map(range).collect()
}

/// Sub-scales and sub-minima of at most `most` for the steps, with the scales of both as the file will hold them.
fn ranges(steps: &[(f32, f32)], most: i32, d: &mut Vec<u8>, dmin: &mut Vec<u8>) -> Vec<(f32, f32, u8, u8)> {
    let step = steps.iter().fold(0.0, |a: f32, s| a.max(s.0));
    let low = steps.iter().fold(0.0, |a: f32, s| a.max(-s.1));
    let d = push_half(d, step / most as f32);
    let dmin = push_half(dmin, low / most as f32);
    let sub = |s: &(f32, f32)| {
        let scale = clamped(s.0 * inverse(d), 0, most);
        let min = clamped(-s.1 * inverse(dmin), 0, most);
        (d * scale as f32, dmin * min as f32, scale as u8, min as u8)
    };
    steps.iter().map(sub).collect()
}

fn q2_k(x: &[f32; 256], out: &mut Vec<u8>) {
    let (mut d, mut dmin) = (Vec::new(), Vec::new());
    let subs = ranges(&steps::<16>(x, 3.0), 15, &mut d, &mut dmin);
    let mut qs = [0u8; 64];
    for (k, v) in x.iter().enumerate() {
        let (step, min, ..) = subs[k / 16];
        let q = clamped((v + min) * inverse(step), 0, 3) as u8;
        qs[k / 128 * 32 + k % 32] |= q << (k / 32 % 4 * 2);
    }
    out.extend(subs.iter().map(|s| s.2 | s.3 << 4));
    out.extend(qs);
    out.extend(d);
    out.extend(dmin);
}

fn q45_k(x: &[f32; 256], most: i32, out: &mut Vec<u8>) {
    let (mut d, mut dmin) = (Vec::new(), Vec::new());
    let subs = ranges(&steps::<32>(x, most as f32), 63, &mut d, &mut dmin);
    let (mut qh, mut qs) = ([0u8; 32], [0u8; 128]);
    for (k, v) in x.iter().enumerate() {
        let (step, min, ..) = subs[k / 32];
        let q = clamped((v + min) * inverse(step), 0, most) as u8;
        qs[k / 64 * 32 + k % 32] |= (q & 15) << (k / 32 % 2 * 4);
        qh[k % 32] |= (q >> 4) << (k / 32);
    }
    out.extend(d);
    out.extend(dmin);
    out.extend((0..4).map(|i| subs[i].2 | subs[i + 4].2 >> 4 << 6));
    out.extend((0..4).map(|i| subs[i].3 | subs[i + 4].3 >> 4 << 6));
    out.extend((4..8).map(|i| subs[i].2 & 15 | subs[i].3 << 4));
    if most == 31 {
        out.extend(qh);
    }
    out.extend(qs);
}

/// Signed sub-scales from `-most`, such that the extreme of each 16 values becomes `-half`; and the scale of all.
fn signed_scales(x: &[f32; 256], half: f32, most: i32, d: &mut Vec<u8>) -> (f32, [i32; 16]) {
    let mut steps = [0.0; 16];
    for (step, x) in steps.iter_mut().zip(x.as_chunks::<16>().0) {
        *step = extreme(x) / -half;
    }
    let d = push_half(d, extreme(&steps) / -(most as f32));
    (d, steps.map(|s| clamped(s * inverse(d), -most, most - 1)))
}

fn q3_k(x: &[f32; 256], out: &mut Vec<u8>) {
    let mut d_bytes = Vec::new();
    let (d, scales) = signed_scales(x, 4.0, 32, &mut d_bytes);
    let (mut hmask, mut qs, mut packed) = ([0u8; 32], [0u8; 64], [0u8; 12]);
    for (k, v) in x.iter().enumerate() {
        let q = (clamped(v * inverse(d * scales[k / 16] as f32), -4, 3) + 4) as u8;
        qs[k / 128 * 32 + k % 32] |= (q & 3) << (k / 32 % 4 * 2);
        hmask[k % 32] |= (q >> 2) << (k / 32);
    }
    for (i, scale) in scales.iter().enumerate() {
        let scale = (scale + 32) as u8;
        packed[i % 8] |= (scale & 15) << (i / 8 * 4);
        packed[8 + i % 4] |= (scale >> 4) << (i / 4 * 2);
    }
    out.extend(hmask);
    out.extend(qs);
    out.extend(packed);
    out.extend(d_bytes);
}

fn q6_k(x: &[f32; 256], out: &mut Vec<u8>) {
    let mut d_bytes = Vec::new();
    let (d, scales) = signed_scales(x, 32.0, 128, &mut d_bytes);
    let (mut ql, mut qh) = ([0u8; 128], [0u8; 64]);
    for (k, v) in x.iter().enumerate() {
        let q = (clamped(v * inverse(d * scales[k / 16] as f32), -32, 31) + 32) as u8;
        let (n, j, l) = (k / 128, k / 32 % 4, k % 32);
        ql[64 * n + 32 * (j % 2) + l] |= (q & 15) << (j / 2 * 4);
        qh[32 * n + l] |= (q >> 4) << (2 * j);
    }
    out.extend(ql);
    out.extend(qh);
    out.extend(scales.map(|s| s as u8));
    out.extend(d_bytes);
}
