//! The simplest quantisers that are right. Blocks of 32 follow ggml's reference (`quantize_row_q*_ref`); the K types and those
//! with levels take the range of each sub-block and search for nothing.

use half::{bf16, f16};
use moli_format::TensorType;

use super::affine::{Line, Lines};
use super::block::inverse;
use super::pack;
use super::signed::{Even, Iq4, Levels, Scaled, Single, extreme};

/// Appends the whole blocks of `x`, of a type in [`QUANTIZABLE`](super::QUANTIZABLE).
pub(super) fn quantize(ttype: TensorType, x: &[f32], out: &mut Vec<u8>) {
    let blocks = x.as_chunks::<32>().0.iter();
    let super_blocks = x.as_chunks::<256>().0.iter();
    match ttype {
        TensorType::F32 => x.iter().for_each(|v| out.extend(v.to_le_bytes())),
        TensorType::F16 => x.iter().for_each(|v| out.extend(f16::from_f32(*v).to_le_bytes())),
        TensorType::BF16 => x.iter().for_each(|v| out.extend(bf16::from_f32(*v).to_le_bytes())),
        TensorType::Q4_0 => blocks.for_each(|x| pack::nibbles(&symmetric(x, 8), false, out)),
        TensorType::Q5_0 => blocks.for_each(|x| pack::nibbles(&symmetric(x, 16), true, out)),
        TensorType::Q4_1 => blocks.for_each(|x| pack::nibbles_with_minimum(&ranged(x, 15), false, out)),
        TensorType::Q5_1 => blocks.for_each(|x| pack::nibbles_with_minimum(&ranged(x, 31), true, out)),
        TensorType::Q8_0 => blocks.for_each(|x| q8_0(x, out)),
        TensorType::IQ4NL => blocks.for_each(|x| pack::nibbles(&levels(x), false, out)),
        TensorType::IQ4XS => {
            super_blocks.for_each(|x| pack::iq4_xs(&signed::<Iq4, 32, 8>(x, 32), out));
        }
        TensorType::Q2K => super_blocks.for_each(|x| pack::q2_k(&lines::<16, 16>(x, 3, 15), out)),
        TensorType::Q3K => {
            super_blocks.for_each(|x| pack::q3_k(&signed::<Even<4>, 16, 16>(x, 32), out));
        }
        TensorType::Q4K => super_blocks.for_each(|x| pack::q45_k(&lines::<32, 8>(x, 15, 63), false, out)),
        TensorType::Q5K => super_blocks.for_each(|x| pack::q45_k(&lines::<32, 8>(x, 31, 63), true, out)),
        _ => super_blocks.for_each(|x| pack::q6_k(&signed::<Even<32>, 16, 16>(x, 128), out)),
    }
}

/// `v` rounded and brought into `low..=high`. A NaN becomes 0.
#[inline(always)]
fn clamped(v: f32, low: i32, high: i32) -> i32 {
    (v.round() as i32).clamp(low, high)
}

/// As the file will hold it, and as the number that this is.
fn half(v: f32) -> (f16, f32) {
    let half = f16::from_f32(v);
    (half, half.to_f32())
}

/// Q4_0 (`half` 8) and Q5_0 (16): the extreme becomes `-half` exactly.
fn symmetric(x: &[f32; 32], half: i32) -> Single {
    let d = extreme(x) / -(half as f32);
    let id = inverse(d);
    let numbers = x.map(|v| ((v * id + half as f32 + 0.5) as i32).clamp(0, 2 * half - 1) as u8);
    Single { step: f16::from_f32(d), numbers }
}

/// IQ4_NL: the extreme becomes the lowest level.
fn levels(x: &[f32; 32]) -> Single {
    let (step, d) = half(extreme(x) / Iq4::EDGES[0]);
    let id = inverse(d);
    Single { step, numbers: x.map(|v| Iq4::number(Iq4::nearest(v * id))) }
}

/// Q4_1 and Q5_1.
fn ranged(x: &[f32; 32], most: i32) -> Line {
    let low = x.iter().copied().fold(f32::INFINITY, f32::min);
    let high = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let d = (high - low) / most as f32;
    let id = inverse(d);
    let q = x.map(|v| (((v - low) * id + 0.5) as i32).clamp(0, most) as u8);
    Line { step: f16::from_f32(d), min: f16::from_f32(low), q }
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

/// Q2_K, Q4_K and Q5_K: each sub-block of `N` has a step and a minimum (not positive) such that its range becomes `0..=most`;
/// the greatest of either becomes `limit`.
fn lines<const N: usize, const S: usize>(x: &[f32; 256], most: i32, limit: i32) -> Lines<S> {
    let xs = x.as_chunks::<N>().0;
    let low: [f32; S] = std::array::from_fn(|i| xs[i].iter().copied().fold(0.0, f32::min));
    let step: [f32; S] =
        std::array::from_fn(|i| (xs[i].iter().copied().fold(0.0, f32::max) - low[i]) / most as f32);
    let (d_half, d) = half(step.iter().copied().fold(0.0, f32::max) / limit as f32);
    let (dmin_half, dmin) = half(low.iter().fold(0.0, |a: f32, low| a.max(-low)) / limit as f32);
    let scales = step.map(|step| clamped(step * inverse(d), 0, limit));
    let mins = low.map(|low| clamped(-low * inverse(dmin), 0, limit));
    let q = std::array::from_fn(|k| {
        let (scale, min) = (scales[k / N] as f32, mins[k / N] as f32);
        clamped((x[k] + dmin * min) * inverse(d * scale), 0, most) as u8
    });
    Lines { d: d_half, dmin: dmin_half, scales: scales.map(|s| s as u8), mins: mins.map(|m| m as u8), q }
}

/// Q3_K, Q6_K and IQ4_XS: the extreme of each sub-block of `N` becomes the lowest level, and that of their steps `-limit`.
fn signed<L: Levels, const N: usize, const S: usize>(x: &[f32; 256], limit: i32) -> Scaled<S> {
    let xs = x.as_chunks::<N>().0;
    let step: [f32; S] = std::array::from_fn(|i| extreme(&xs[i]) / L::EDGES[0]);
    let (d_half, d) = half(extreme(&step) / -(limit as f32));
    let scales = step.map(|step| clamped(step * inverse(d), -limit, limit - 1));
    let numbers = std::array::from_fn(|k| L::number(L::nearest(x[k] * inverse(d * scales[k / N] as f32))));
    Scaled { d: d_half, scales: scales.map(|s| s as i8), numbers }
}
