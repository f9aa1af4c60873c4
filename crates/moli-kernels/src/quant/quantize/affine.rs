//! Values `step * q + minimum`, q from 0: for each block, or for the sub-blocks of one whose steps and minima are multiples of
//! two common scales.

use half::f16;

use super::block::{Block, inverse, sums, whole};
use super::scales::Multiples;

/// A block with one step and one minimum.
pub(super) struct Line {
    pub(super) step: f16,
    pub(super) min: f16,
    pub(super) q: [u8; 32],
}

/// A block of `S` sub-blocks, with `d * scale * q - dmin * min`.
pub(super) struct Lines<const S: usize> {
    pub(super) d: f16,
    pub(super) dmin: f16,
    pub(super) scales: [u8; S],
    pub(super) mins: [u8; S],
    pub(super) q: [u8; 256],
}

/// Grids tried for a sub-block: from `most - 1` steps in its range to `most + 1`.
const TRIES: usize = 20;
/// Rounds of assigning values to a grid and fitting the grid to them, after the best try.
const ROUNDS: usize = 2;
/// Rounds of choosing the multiples and fitting the common scales to them.
const COMMON_ROUNDS: usize = 3;

/// Weighted sums over values `x` and their `q`: all that the squared error of a line depends on.
#[derive(Clone, Copy, Default)]
struct Moments {
    w: f32,
    x: f32,
    q: f32,
    qq: f32,
    qx: f32,
}

impl Moments {
    #[inline(always)]
    fn new<const N: usize>(x: &[f32; N], w: &[f32; N], line: (f32, f32), most: f32) -> Self {
        let (step, min) = line;
        let factor = inverse(step);
        let [w, x, q, qq, qx] = sums::<N, 5>(|i| {
            let q = whole((x[i] - min) * factor, 0.0, most);
            let wq = w[i] * q;
            [w[i], w[i] * x[i], wq, wq * q, wq * x[i]]
        });
        Self { w, x, q, qq, qx }
    }

    /// The step and the minimum with the least error, the minimum at most `highest`.
    #[inline(always)]
    fn line(&self, highest: f32) -> (f32, f32) {
        let determinant = self.w * self.qq - self.q * self.q;
        let step = (self.w * self.qx - self.x * self.q) * inverse(determinant);
        let min = (self.x - step * self.q) / self.w;
        if determinant > 0.0 && min <= highest {
            return (step, min);
        }
        let min = if self.qq > 0.0 { highest } else { (self.x / self.w).min(highest) };
        ((self.qx - min * self.q) * inverse(self.qq), min)
    }

    /// How much less the error of a line is than that of the minimum 0 and the step 0.
    #[inline(always)]
    fn gain(&self, (step, min): (f32, f32)) -> f32 {
        step * (2.0 * self.qx - step * self.qq - 2.0 * min * self.q) + min * (2.0 * self.x - min * self.w)
    }
}

/// The best line found for some values, with the moments of their assignment to it.
#[derive(Clone, Copy)]
struct Fit {
    line: (f32, f32),
    moments: Moments,
    /// How much less its error is than that of zeros.
    gain: f32,
}

impl Fit {
    /// `signed` if the minimum may be above 0.
    #[inline(always)]
    fn new<const N: usize>(x: &[f32; N], w: &[f32; N], most: f32, signed: bool) -> Self {
        let low = x.iter().fold(x[0], |low, v| if *v < low { *v } else { low });
        let high = x.iter().fold(x[0], |high, v| if *v > high { *v } else { high });
        let low = if signed || low < 0.0 { low } else { 0.0 };
        // From the lowest value, so that little cancels.
        let y = x.map(|v| v - low);
        let highest = if signed { f32::INFINITY } else { -low };
        let range = high - low;
        let mut best = Self::of(&y, w, (range / most, 0.0), most, highest);
        for n in 0..TRIES {
            let steps = most - 1.0 + 2.0 * n as f32 / TRIES as f32;
            best = best.or(Self::of(&y, w, (range / steps, 0.0), most, highest));
        }
        for _ in 0..ROUNDS {
            best = best.or(Self::of(&y, w, best.line, most, highest));
        }
        let Moments { w, x, q, qq, qx } = best.moments;
        best.line.1 += low;
        best.moments = Moments { w, x: x + low * w, q, qq, qx: qx + low * q };
        best
    }

    /// The best line for the assignment to a line.
    #[inline(always)]
    fn of<const N: usize>(x: &[f32; N], w: &[f32; N], line: (f32, f32), most: f32, highest: f32) -> Self {
        let moments = Moments::new(x, w, line, most);
        let line = moments.line(highest);
        Self { line, moments, gain: moments.gain(line) }
    }

    #[inline(always)]
    fn or(self, other: Self) -> Self {
        if other.gain > self.gain { other } else { self }
    }
}

/// The weighted squared error.
#[inline(always)]
fn error<const N: usize>(x: &[f32; N], w: &[f32; N], (step, min): (f32, f32), most: f32) -> f32 {
    let factor = inverse(step);
    let [error] = sums::<N, 1>(|i| {
        let apart = step * whole((x[i] - min) * factor, 0.0, most) + (min - x[i]);
        [w[i] * (apart * apart)]
    });
    error
}

/// A block of its own.
#[inline(always)]
pub(super) fn alone(block: &Block<32>, most: f32) -> Line {
    let (step, min) = Fit::new(&block.x, &block.w, most, true).line;
    let (step_half, step) = block.half(step);
    let moments = Moments::new(&block.x, &block.w, (step, min), most);
    let (min_half, min) = block.half((moments.x - step * moments.q) / moments.w);
    let factor = inverse(step);
    let q = block.x.map(|v| whole((v - min) * factor, 0.0, most) as u8);
    Line { step: step_half, min: min_half, q }
}

/// Sub-blocks of `N` whose scales and minima are at most `limit`.
#[inline(always)]
pub(super) fn together<const N: usize, const S: usize>(
    block: &Block<256>,
    most: f32,
    limit: f32,
) -> Lines<S> {
    let (xs, ws) = (block.x.as_chunks::<N>().0, block.w.as_chunks::<N>().0);
    let mut fits: [Fit; S] = std::array::from_fn(|i| Fit::new(&xs[i], &ws[i], most, false));
    let multiples = Multiples { low: 0.0, high: limit };
    let mut d = multiples.scale(&fits.map(|fit| (fit.line.0, fit.moments.qq)));
    let mut dmin = multiples.scale(&fits.map(|fit| (-fit.line.1, fit.moments.w)));
    let mut best = (f32::INFINITY, (f16::ZERO, 0.0), (f16::ZERO, 0.0), [(0.0, 0.0); S]);
    for _ in 0..COMMON_ROUNDS {
        let (d_half, dmin_half) = (block.half(d), block.half(dmin));
        let common = (d_half.1, dmin_half.1);
        let chosen: [_; S] =
            std::array::from_fn(|i| choose(&xs[i], &ws[i], &fits[i], common, most, multiples));
        let total = chosen.iter().map(|c| c.0).sum();
        if total >= best.0 {
            break;
        }
        best = (total, d_half, dmin_half, chosen.map(|c| c.1));
        for i in 0..S {
            let (scale, min) = chosen[i].1;
            fits[i] = Fit::of(&xs[i], &ws[i], (common.0 * scale, -common.1 * min), most, 0.0);
        }
        (d, dmin) = refit(&fits, &best.3);
    }
    let (_, (d_half, d), (dmin_half, dmin), chosen) = best;
    let mut q = [0; 256];
    for (i, (q, x)) in q.as_chunks_mut::<N>().0.iter_mut().zip(xs).enumerate() {
        let (factor, min) = (inverse(d * chosen[i].0), -dmin * chosen[i].1);
        *q = x.map(|v| whole((v - min) * factor, 0.0, most) as u8);
    }
    Lines {
        d: d_half,
        dmin: dmin_half,
        scales: chosen.map(|c| c.0 as u8),
        mins: chosen.map(|c| c.1 as u8),
        q,
    }
}

/// The error with the best multiples of the common scales near a fit, and these multiples.
#[inline(always)]
fn choose<const N: usize>(
    x: &[f32; N],
    w: &[f32; N],
    fit: &Fit,
    (d, dmin): (f32, f32),
    most: f32,
    multiples: Multiples,
) -> (f32, (f32, f32)) {
    let mut best = (f32::INFINITY, (0.0, 0.0));
    let scale = multiples.nearest(fit.line.0 * inverse(d));
    for scale in [scale, scale - 1.0, scale + 1.0].map(|scale| multiples.nearest(scale)) {
        // What the step lacks or has too much, the minimum evens out.
        let min = fit.line.1 + (fit.line.0 - d * scale) * fit.moments.q / fit.moments.w;
        let min = multiples.nearest(-min * inverse(dmin));
        for min in [min, min - 1.0, min + 1.0].map(|min| multiples.nearest(min)) {
            let error = error(x, w, (d * scale, -dmin * min), most);
            if error < best.0 {
                best = (error, (scale, min));
            }
        }
    }
    best
}

/// The common scales with the least error for assignments and multiples.
#[inline(always)]
fn refit<const S: usize>(fits: &[Fit; S], multiples: &[(f32, f32); S]) -> (f32, f32) {
    // As the moments of one line, whose step is d and whose minimum is -dmin.
    let mut sums = Moments::default();
    for (Fit { moments, .. }, (scale, min)) in fits.iter().zip(multiples) {
        sums.w += min * min * moments.w;
        sums.x += min * moments.x;
        sums.q += scale * min * moments.q;
        sums.qq += scale * scale * moments.qq;
        sums.qx += scale * moments.qx;
    }
    if sums.w == 0.0 {
        return (sums.qx * inverse(sums.qq), 0.0);
    }
    let (d, min) = sums.line(f32::INFINITY);
    (d, -min)
}
