//! Values `step * q + minimum`, q from 0: for each block, or for the sub-blocks of one whose steps and minima are multiples of
//! two common scales.

use half::f16;

use super::block::{Block, LANES, inverse, least, map, sums, whole};
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

/// Grids tried for a sub-block, a multiple of [`LANES`]: from `most - 1` steps in its range to `most + 1`.
const TRIES: usize = 16;
/// Rounds of assigning values to a grid and fitting the grid to them.
const ROUNDS: usize = 3;
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
    /// Those of the assignment to a line.
    #[inline(always)]
    fn new<const N: usize>(x: &[f32; N], w: &[f32; N], (step, min): (f32, f32), most: f32) -> Self {
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
        let free = (self.w * self.qx - self.x * self.q) * inverse(determinant);
        let min = (self.x - free * self.q) / self.w;
        let min = if min < highest { min } else { highest };
        ((self.qx - min * self.q) * inverse(self.qq), min)
    }

    /// How much less the error of a line is than that of the minimum 0 and the step 0.
    #[inline(always)]
    fn gain(&self, (step, min): (f32, f32)) -> f32 {
        step * (2.0 * self.qx - step * self.qq - 2.0 * min * self.q) + min * (2.0 * self.x - min * self.w)
    }
}

/// A line found for some values, with the moments of their assignment.
#[derive(Clone, Copy, Default)]
struct Fit {
    line: (f32, f32),
    moments: Moments,
}

impl Fit {
    /// The best found. `signed` if the minimum may be above 0.
    #[inline(always)]
    fn new<const N: usize>(x: &[f32; N], w: &[f32; N], most: f32, signed: bool) -> Self {
        let [low, high] = range(x);
        let low = if signed || low < 0.0 { low } else { 0.0 };
        // From the lowest value, so that little cancels.
        let y = map(x, |v| v - low);
        let highest = if signed { f32::INFINITY } else { -low };
        let range = high - low;
        let [total, mean] = sums::<N, 2>(|i| [w[i], w[i] * y[i]]);
        let start = Moments { w: total, x: mean, ..Moments::default() };
        let mut best = Self { line: (0.0, (mean / total).min(highest)), moments: start };
        let mut best_gain = start.gain(best.line);
        for first in (0..TRIES).step_by(LANES) {
            let (mut factors, mut mins) = ([0.0; LANES], [0.0; LANES]);
            for (lane, factor) in factors.iter_mut().enumerate() {
                let n = first + lane;
                *factor = (most + 2.0 * n as f32 / TRIES as f32 - 1.0) * inverse(range);
            }
            for _ in 0..ROUNDS {
                let [q, qq, qx] = assigned(&y, w, &factors, &mins, most);
                let mut gains = [0.0; LANES];
                let mut steps = [0.0; LANES];
                for lane in 0..LANES {
                    let moments = Moments { q: q[lane], qq: qq[lane], qx: qx[lane], ..start };
                    let line = moments.line(highest);
                    gains[lane] = moments.gain(line);
                    factors[lane] = inverse(line.0);
                    (steps[lane], mins[lane]) = line;
                }
                for lane in 0..LANES {
                    if gains[lane] > best_gain {
                        best_gain = gains[lane];
                        best.line = (steps[lane], mins[lane]);
                        best.moments = Moments { q: q[lane], qq: qq[lane], qx: qx[lane], ..start };
                    }
                }
            }
        }
        let Moments { w, x, q, qq, qx } = best.moments;
        best.line.1 += low;
        best.moments = Moments { w, x: x + low * w, q, qq, qx: qx + low * q };
        best
    }

    /// The best line for the assignment to a line.
    #[inline(always)]
    fn of<const N: usize>(x: &[f32; N], w: &[f32; N], line: (f32, f32), most: f32) -> Self {
        let moments = Moments::new(x, w, line, most);
        Self { line: moments.line(0.0), moments }
    }
}

/// The moments q, qq and qx of the assignments to several lines.
#[inline(always)]
fn assigned<const N: usize>(
    x: &[f32; N],
    w: &[f32; N],
    factors: &[f32; LANES],
    mins: &[f32; LANES],
    most: f32,
) -> [[f32; LANES]; 3] {
    let mut sums = [[0.0; LANES]; 3];
    for i in 0..N {
        for lane in 0..LANES {
            let q = whole((x[i] - mins[lane]) * factors[lane], 0.0, most);
            let wq = w[i] * q;
            sums[0][lane] += wq;
            sums[1][lane] += wq * q;
            sums[2][lane] += wq * x[i];
        }
    }
    sums
}

/// The lowest and the highest value.
#[inline(always)]
fn range<const N: usize>(x: &[f32; N]) -> [f32; 2] {
    let low = x.iter().fold(x[0], |low, v| if *v < low { *v } else { low });
    let high = x.iter().fold(x[0], |high, v| if *v > high { *v } else { high });
    [low, high]
}

/// The weighted squared errors of several lines.
#[inline(always)]
fn errors<const N: usize>(
    x: &[f32; N],
    w: &[f32; N],
    steps: &[f32; LANES],
    mins: &[f32; LANES],
    most: f32,
) -> [f32; LANES] {
    let mut errors = [0.0; LANES];
    let factors = map(steps, inverse);
    for i in 0..N {
        for lane in 0..LANES {
            let y = x[i] - mins[lane];
            let apart = steps[lane] * whole(y * factors[lane], 0.0, most) - y;
            errors[lane] += w[i] * (apart * apart);
        }
    }
    errors
}

/// A block of its own.
#[inline(always)]
pub(super) fn alone(block: &Block<32>, most: f32) -> Line {
    let (x, w) = (&block.x, &block.w);
    let Fit { line, moments } = Fit::new(x, w, most, true);
    let [low, high] = range(x);
    // Half-precision steps about the best, each with its minimum; and the range.
    let (mut steps, mut mins) = ([(f16::ZERO, 0.0); LANES], [(f16::ZERO, 0.0); LANES]);
    for lane in 1..LANES {
        steps[lane] = block.half(line.0 * (1.0 + (lane as f32 - 8.0) * f32::from(f16::EPSILON)));
        mins[lane] = block.half((moments.x - steps[lane].1 * moments.q) / moments.w);
    }
    (steps[0], mins[0]) = (block.half((high - low) / most), block.half(low));
    let errors = errors(x, w, &map(&steps, |step| step.1), &map(&mins, |min| min.1), most);
    let lane = least(&errors);
    let (factor, min) = (inverse(steps[lane].1), mins[lane].1);
    Line { step: steps[lane].0, min: mins[lane].0, q: map(x, |v| whole((v - min) * factor, 0.0, most) as u8) }
}

/// Sub-blocks of `N` whose scales and minima are at most `limit`.
#[inline(always)]
pub(super) fn together<const N: usize, const S: usize>(
    block: &Block<256>,
    most: f32,
    limit: f32,
) -> Lines<S> {
    let (xs, ws) = (block.x.as_chunks::<N>().0, block.w.as_chunks::<N>().0);
    let mut fits = [Fit::default(); S];
    for i in 0..S {
        fits[i] = Fit::new(&xs[i], &ws[i], most, false);
    }
    let (steps, mins) = (map(&fits, |fit| fit.line.0), map(&fits, |fit| -fit.line.1));
    let multiples = Multiples { low: 0.0, high: limit };
    let nearest = (
        multiples.scale(&map(&fits, |fit| (fit.line.0, fit.moments.qq))),
        multiples.scale(&map(&fits, |fit| (-fit.line.1, fit.moments.w))),
    );
    let mut best = (f32::INFINITY, (f16::ZERO, 0.0), (f16::ZERO, 0.0), [(0.0, 0.0); S]);
    for start in [nearest, (multiples.widest(&steps), multiples.widest(&mins))] {
        let (mut fits, mut common) = (fits, start);
        let mut least = f32::INFINITY;
        for _ in 0..COMMON_ROUNDS {
            let (d, dmin) = (block.half(common.0), block.half(common.1));
            let mut chosen = [(0.0, 0.0); S];
            let mut total = 0.0;
            for i in 0..S {
                let error;
                (error, chosen[i]) = choose(&xs[i], &ws[i], &fits[i], (d.1, dmin.1), most, multiples);
                total += error;
            }
            if total < best.0 {
                best = (total, d, dmin, chosen);
            }
            if total >= least {
                break;
            }
            least = total;
            for i in 0..S {
                fits[i] = Fit::of(&xs[i], &ws[i], (d.1 * chosen[i].0, -dmin.1 * chosen[i].1), most);
            }
            common = refit(&fits, &chosen);
        }
    }
    let (_, (d_half, d), (dmin_half, dmin), chosen) = best;
    let mut q = [0; 256];
    for (i, (q, x)) in q.as_chunks_mut::<N>().0.iter_mut().zip(xs).enumerate() {
        let (factor, min) = (inverse(d * chosen[i].0), -dmin * chosen[i].1);
        *q = map(x, |v| whole((v - min) * factor, 0.0, most) as u8);
    }
    Lines {
        d: d_half,
        dmin: dmin_half,
        scales: map(&chosen, |c| c.0 as u8),
        mins: map(&chosen, |c| c.1 as u8),
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
    let scale = (fit.line.0 * inverse(d)).floor();
    let (mut scales, mut mins) = ([0.0; LANES], [0.0; LANES]);
    for lane in 0..LANES {
        scales[lane] = multiples.nearest(scale + (lane / 4) as f32 - 1.0);
        // What the step lacks or has too much, the minimum evens out.
        let min = fit.line.1 + (fit.line.0 - d * scales[lane]) * fit.moments.q / fit.moments.w;
        mins[lane] = multiples.nearest((-min * inverse(dmin)).floor() + (lane % 4) as f32 - 1.0);
    }
    let errors = errors(x, w, &map(&scales, |scale| d * scale), &map(&mins, |min| -dmin * min), most);
    let lane = least(&errors);
    (errors[lane], (scales[lane], mins[lane]))
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
