//! A block as the searches see it: scaled to about one, with a weight for each value.

use half::f16;

/// How much the errors of a block's values count when no importance is given.
#[derive(Debug, Clone, Copy)]
pub(super) enum Weighting {
    /// As the root mean square of the block plus the magnitude of the value: for formats with minima.
    Magnitude,
    /// As the square of the value: for formats without.
    Square,
}

/// Values divided by a power of two, which costs no bits, so that no square over- or underflows.
pub(super) struct Block<const N: usize> {
    pub(super) x: [f32; N],
    /// Above 0, about 1 at most.
    pub(super) w: [f32; N],
    /// What the values were divided by.
    unit: f32,
    /// Its inverse.
    inverse: f32,
}

/// The least weight beside the greatest: it decides where all others are 0 (in a sub-block without importance), and nowhere else.
const FLOOR: f32 = 1e-6;

impl<const N: usize> Block<N> {
    /// Importance is left out of account if it is 0 everywhere.
    #[inline(always)]
    pub(super) fn new(x: &[f32; N], importance: Option<&[f32; N]>, weighting: Weighting) -> Self {
        let most = most(x);
        // Below 2^-30 there is nothing that half-precision scales could hold; far above 2^100 they overflow.
        let exponent = ((most.to_bits() >> 23) as i32).clamp(127 - 30, 127 + 100);
        let power = |biased: i32| f32::from_bits((biased as u32) << 23);
        let (unit, inverse) = (power(exponent), power(254 - exponent));
        let x = x.map(|v| v * inverse);
        let [squares] = sums::<N, 1>(|i| [x[i] * x[i]]);
        let mean = squares / N as f32;
        let total = importance.map_or(0.0, |importance| self::most(importance));
        let w = match importance {
            Some(importance) if total > 0.0 => {
                std::array::from_fn(|i| (importance[i] / total).max(FLOOR) * (mean + x[i] * x[i]).sqrt())
            }
            _ => match weighting {
                Weighting::Magnitude => x.map(|v| mean.sqrt() + v.abs()),
                Weighting::Square => x.map(|v| (v * v).max(FLOOR)),
            },
        };
        Self { x, w, unit, inverse }
    }

    /// A scale as the file holds it, and what it is in the units of the block.
    #[inline(always)]
    pub(super) fn half(&self, v: f32) -> (f16, f32) {
        let limit = f16::MAX.to_f32();
        let half = f16::from_f32((v * self.unit).clamp(-limit, limit));
        (half, half.to_f32() * self.inverse)
    }
}

/// The greatest magnitude.
#[inline(always)]
fn most<const N: usize>(x: &[f32; N]) -> f32 {
    x.iter().fold(0.0, |most, v| if v.abs() > most { v.abs() } else { most })
}

/// Lanes of a sum.
const LANES: usize = 8;

/// `K` sums over `N` terms.
#[inline(always)]
pub(super) fn sums<const N: usize, const K: usize>(term: impl Fn(usize) -> [f32; K]) -> [f32; K] {
    let mut lanes = [[0.0f32; LANES]; K];
    for start in (0..N).step_by(LANES) {
        for lane in 0..LANES {
            let term = term(start + lane);
            for k in 0..K {
                lanes[k][lane] += term[k];
            }
        }
    }
    lanes.map(|[a, b, c, d, e, f, g, h]| ((a + e) + (c + g)) + ((b + f) + (d + h)))
}

/// The nearest whole number from `low` to `high`, which are whole and below 2^22 in magnitude; `low` for a NaN.
#[inline(always)]
pub(super) fn whole(v: f32, low: f32, high: f32) -> f32 {
    /// Beside this number fractions have no bits. `f32::round` has no instruction on every processor.
    const ROUNDER: f32 = 1.5 * (1 << 23) as f32;
    let v = if v > low { v } else { low };
    let v = if v < high { v } else { high };
    (v + ROUNDER) - ROUNDER
}

/// The inverse, or 0 for 0.
#[inline(always)]
pub(super) fn inverse(d: f32) -> f32 {
    if d == 0.0 { 0.0 } else { 1.0 / d }
}
