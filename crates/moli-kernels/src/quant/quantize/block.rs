//! A block as the searches see it: scaled to about one, with a weight for each value.

use half::f16;

/// How much the errors of a block's values count when no importance is given.
#[derive(Debug, Clone, Copy)]
pub(super) enum Weighting {
    /// As the root mean square of the block plus the magnitude of the value: for formats with minima.
    Magnitude,
    /// As half the mean square of the block plus the square of the value: for formats without.
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

/// What keeps weights above 0, beside the greatest of about 1: it decides in sub-blocks that have no other, and nowhere else.
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
        let x = map(x, |v| v * inverse);
        let [squares] = sums::<N, 1>(|i| [x[i] * x[i]]);
        let mean = squares / N as f32;
        let mut w = match weighting {
            Weighting::Magnitude => map(&x, |v| mean.sqrt() + v.abs() + FLOOR),
            Weighting::Square => map(&x, |v| v * v + mean / 2.0 + FLOOR),
        };
        if let Some(importance) = importance {
            let total = self::most(importance);
            if total > 0.0 {
                for i in 0..N {
                    w[i] = (importance[i] / total).max(FLOOR) * (2.0 * mean + x[i] * x[i] + FLOOR).sqrt();
                }
            }
        }
        Self { x, w, unit, inverse }
    }

    /// A value in the units of the block.
    #[inline(always)]
    pub(super) fn scaled(&self, v: f32) -> f32 {
        v * self.inverse
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

/// Lanes of a sum, and grids that are tried side by side.
pub(super) const LANES: usize = 16;

/// As `array::map`, which does not become part of the function that it is called from, and so not vectors of its width.
#[inline(always)]
pub(super) fn map<T: Copy, U: Copy + Default, const N: usize>(from: &[T; N], f: impl Fn(T) -> U) -> [U; N] {
    let mut to = [U::default(); N];
    for (to, from) in to.iter_mut().zip(from) {
        *to = f(*from);
    }
    to
}

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
    map(&lanes, |mut lanes| {
        for half in [8, 4, 2, 1] {
            for lane in 0..half {
                lanes[lane] += lanes[lane + half];
            }
        }
        lanes[0]
    })
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

/// Where the least is.
#[inline(always)]
pub(super) fn least<const N: usize>(of: &[f32; N]) -> usize {
    let mut least = 0;
    for i in 1..N {
        if of[i] < of[least] {
            least = i;
        }
    }
    least
}

/// The inverse, or 0 for 0.
#[inline(always)]
pub(super) fn inverse(d: f32) -> f32 {
    if d == 0.0 { 0.0 } else { 1.0 / d }
}
