//! Values `step * level`, levels on both sides of 0: for each block, or for the sub-blocks of one whose steps are multiples of a
//! common scale.

use half::f16;

use super::block::{Block, LANES, inverse, least, map, sums, whole};
use super::scales::Multiples;
use crate::quant::levels::IQ4_LEVELS;

/// The levels of a format.
pub(super) trait Levels {
    /// The lowest and the highest.
    const EDGES: [f32; 2];
    /// How far apart levels at the edges are.
    const GAP: f32;
    /// The nearest level; any for a NaN.
    fn nearest(v: f32) -> f32;
    /// The number of a level.
    fn number(level: f32) -> u8;
}

/// Whole numbers from `-HALF` to `HALF - 1`.
pub(super) struct Even<const HALF: usize>;

impl<const HALF: usize> Levels for Even<HALF> {
    const EDGES: [f32; 2] = [-(HALF as f32), HALF as f32 - 1.0];
    const GAP: f32 = 1.0;

    #[inline(always)]
    fn nearest(v: f32) -> f32 {
        whole(v, Self::EDGES[0], Self::EDGES[1])
    }

    #[inline(always)]
    fn number(level: f32) -> u8 {
        (level + HALF as f32) as u8
    }
}

/// The levels of IQ4_NL and IQ4_XS.
pub(super) struct Iq4;

impl Levels for Iq4 {
    const EDGES: [f32; 2] = [IQ4_LEVELS[0] as f32, IQ4_LEVELS[15] as f32];
    const GAP: f32 = 20.0;

    #[inline(always)]
    fn nearest(v: f32) -> f32 {
        let mut level = Self::EDGES[0];
        for n in 1..16 {
            let (below, above) = (f32::from(IQ4_LEVELS[n - 1]), f32::from(IQ4_LEVELS[n]));
            level = if v > (below + above) / 2.0 { above } else { level };
        }
        level
    }

    #[inline(always)]
    fn number(level: f32) -> u8 {
        IQ4_LEVELS.iter().filter(|other| f32::from(**other) < level).count() as u8
    }
}

/// A block with one step.
pub(super) struct Single {
    pub(super) step: f16,
    pub(super) numbers: [u8; 32],
}

/// A block of `S` sub-blocks, with `d * scale * level`.
pub(super) struct Scaled<const S: usize> {
    pub(super) d: f16,
    pub(super) scales: [i8; S],
    pub(super) numbers: [u8; 256],
}

/// How many gaps inside an edge and beyond it the extreme of a sub-block is brought to.
const REACH: f32 = 1.5;
/// Rounds of assigning values to levels and fitting the step to them.
const ROUNDS: usize = 2;
/// Rounds of choosing the multiples and fitting the common scale to them.
const COMMON_ROUNDS: usize = 3;

/// Multiples, or half-precision steps, tried about the best.
const NEAR: usize = 8;

/// The best step found for some values, and the weighted sum of their levels' squares.
#[derive(Clone, Copy, Default)]
struct Fit {
    step: f32,
    square: f32,
}

impl Fit {
    #[inline(always)]
    fn new<L: Levels, const N: usize>(x: &[f32; N], w: &[f32; N]) -> Self {
        let extreme = extreme(x);
        // How much less the error is than that of zeros.
        let mut gain = 0.0;
        let mut best = Self::default();
        for edge in L::EDGES {
            let mut factors = [0.0; LANES];
            for (lane, factor) in factors.iter_mut().enumerate() {
                let beyond = REACH * L::GAP * (2.0 * lane as f32 / LANES as f32 - 1.0);
                *factor = (edge + beyond) * inverse(extreme);
            }
            for _ in 0..ROUNDS {
                let [products, squares] = assigned::<L, N>(x, w, &factors);
                for lane in 0..LANES {
                    factors[lane] = squares[lane] * inverse(products[lane]);
                }
                for lane in 0..LANES {
                    let (product, square) = (products[lane], squares[lane]);
                    if product * product > gain * square {
                        gain = product * product / square;
                        best = Self { step: product / square, square };
                    }
                }
            }
        }
        best
    }

    /// The best step for the assignment to a step's levels.
    #[inline(always)]
    fn of<L: Levels, const N: usize>(x: &[f32; N], w: &[f32; N], step: f32) -> Self {
        let factor = inverse(step);
        let [product, square] = sums::<N, 2>(|i| {
            let level = L::nearest(x[i] * factor);
            let weighted = w[i] * level;
            [weighted * x[i], weighted * level]
        });
        Self { step: product * inverse(square), square }
    }
}

/// The value of the greatest magnitude, with its sign.
#[inline(always)]
pub(super) fn extreme<const N: usize>(x: &[f32; N]) -> f32 {
    x.iter().fold(0.0f32, |most, v| if v.abs() > most.abs() { *v } else { most })
}

/// The weighted sums of values by levels and of the levels' squares, for several steps (by their inverses).
#[inline(always)]
fn assigned<L: Levels, const N: usize>(
    x: &[f32; N],
    w: &[f32; N],
    factors: &[f32; LANES],
) -> [[f32; LANES]; 2] {
    let mut sums = [[0.0; LANES]; 2];
    for i in 0..N {
        for lane in 0..LANES {
            let level = L::nearest(x[i] * factors[lane]);
            let weighted = w[i] * level;
            sums[0][lane] += weighted * x[i];
            sums[1][lane] += weighted * level;
        }
    }
    sums
}

/// The weighted squared errors of several steps.
#[inline(always)]
fn errors<L: Levels, const N: usize>(x: &[f32; N], w: &[f32; N], steps: &[f32; NEAR]) -> [f32; NEAR] {
    let factors = map(steps, inverse);
    let mut errors = [0.0; NEAR];
    for i in 0..N {
        for lane in 0..NEAR {
            let apart = steps[lane] * L::nearest(x[i] * factors[lane]) - x[i];
            errors[lane] += w[i] * (apart * apart);
        }
    }
    errors
}

/// A block of its own.
#[inline(always)]
pub(super) fn alone<L: Levels>(block: &Block<32>) -> Single {
    let x = &block.x;
    let step = Fit::new::<L, 32>(x, &block.w).step;
    // Half-precision steps about the best, and the one that brings the extreme to the lowest level.
    let mut steps = [block.half(extreme(x) / L::EDGES[0]); NEAR];
    for (lane, near) in steps.iter_mut().enumerate().skip(1) {
        *near = block.half(step * (1.0 + (lane as f32 - 4.0) * f32::from(f16::EPSILON)));
    }
    let (half, step) = steps[least(&errors::<L, 32>(x, &block.w, &map(&steps, |step| step.1)))];
    let factor = inverse(step);
    Single { step: half, numbers: map(x, |v| L::number(L::nearest(v * factor))) }
}

/// Sub-blocks of `N` whose scales are from `-limit` to `limit - 1`.
#[inline(always)]
pub(super) fn together<L: Levels, const N: usize, const S: usize>(
    block: &Block<256>,
    limit: f32,
) -> Scaled<S> {
    let (xs, ws) = (block.x.as_chunks::<N>().0, block.w.as_chunks::<N>().0);
    let mut fits = [Fit::default(); S];
    for i in 0..S {
        fits[i] = Fit::new::<L, N>(&xs[i], &ws[i]);
    }
    let multiples = Multiples { low: -limit, high: limit - 1.0 };
    let mut d = multiples.scale(&map(&fits, |fit| (fit.step, fit.square)));
    let mut best = (f32::INFINITY, (f16::ZERO, 0.0), [0.0; S]);
    for _ in 0..COMMON_ROUNDS {
        let d_half = block.half(d);
        let mut scales = [0.0; S];
        let mut total = 0.0;
        for i in 0..S {
            let error;
            (error, scales[i]) = choose::<L, N>(&xs[i], &ws[i], fits[i].step, d_half.1, multiples);
            total += error;
        }
        if total >= best.0 {
            break;
        }
        best = (total, d_half, scales);
        let (mut product, mut square) = (0.0, 0.0);
        for i in 0..S {
            fits[i] = Fit::of::<L, N>(&xs[i], &ws[i], d_half.1 * scales[i]);
            product += scales[i] * fits[i].step * fits[i].square;
            square += scales[i] * scales[i] * fits[i].square;
        }
        d = product * inverse(square);
    }
    let (_, (half, d), scales) = best;
    let mut numbers = [0; 256];
    for (i, (numbers, x)) in numbers.as_chunks_mut::<N>().0.iter_mut().zip(xs).enumerate() {
        let factor = inverse(d * scales[i]);
        *numbers = map(x, |v| L::number(L::nearest(v * factor)));
    }
    Scaled { d: half, scales: map(&scales, |scale| scale as i8), numbers }
}

/// The error with the best multiple of the common scale near a step, and this multiple.
#[inline(always)]
fn choose<L: Levels, const N: usize>(
    x: &[f32; N],
    w: &[f32; N],
    step: f32,
    d: f32,
    multiples: Multiples,
) -> (f32, f32) {
    let scale = (step * inverse(d)).floor();
    let mut scales = [0.0; NEAR];
    for lane in 0..NEAR {
        scales[lane] = multiples.nearest(scale + lane as f32 - 3.0);
    }
    let errors = errors::<L, N>(x, w, &map(&scales, |scale| d * scale));
    let near = least(&errors);
    (errors[near], scales[near])
}
