//! Values `step * level`, levels on both sides of 0: for each block, or for the sub-blocks of one whose steps are multiples of a
//! common scale.

use half::f16;

use super::block::{Block, inverse, sums, whole};
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

/// Steps tried for a sub-block, for each edge that its extreme is brought to: from a gap inside it to a gap beyond.
const TRIES: usize = 18;
/// Rounds of assigning values to levels and fitting the step to them, after the best try.
const ROUNDS: usize = 2;
/// Rounds of choosing the multiples and fitting the common scale to them.
const COMMON_ROUNDS: usize = 3;

/// The best step found for some values, and the weighted sum of their levels' squares.
#[derive(Clone, Copy, Default)]
struct Fit {
    step: f32,
    square: f32,
    /// How much less its error is than that of zeros.
    gain: f32,
}

impl Fit {
    #[inline(always)]
    fn new<L: Levels, const N: usize>(x: &[f32; N], w: &[f32; N]) -> Self {
        let extreme = x.iter().fold(0.0f32, |most, v| if v.abs() > most.abs() { *v } else { most });
        let mut best = Self::default();
        for edge in L::EDGES {
            for n in 0..TRIES {
                let edge = edge + L::GAP * (2.0 * n as f32 / TRIES as f32 - 1.0);
                best = best.or(Self::of::<L, N>(x, w, extreme / edge));
            }
        }
        for _ in 0..ROUNDS {
            best = best.or(Self::of::<L, N>(x, w, best.step));
        }
        best
    }

    /// The best step for the assignment to a step's levels.
    #[inline(always)]
    fn of<L: Levels, const N: usize>(x: &[f32; N], w: &[f32; N], step: f32) -> Self {
        let [product, square] = products::<L, N>(x, w, step);
        let step = product * inverse(square);
        Self { step, square, gain: step * product }
    }

    #[inline(always)]
    fn or(self, other: Self) -> Self {
        if other.gain > self.gain { other } else { self }
    }
}

/// The weighted sums of values by levels and of the levels' squares.
#[inline(always)]
fn products<L: Levels, const N: usize>(x: &[f32; N], w: &[f32; N], step: f32) -> [f32; 2] {
    let factor = inverse(step);
    sums::<N, 2>(|i| {
        let level = L::nearest(x[i] * factor);
        let weighted = w[i] * level;
        [weighted * x[i], weighted * level]
    })
}

/// The weighted squared error.
#[inline(always)]
fn error<L: Levels, const N: usize>(x: &[f32; N], w: &[f32; N], step: f32) -> f32 {
    let factor = inverse(step);
    let [error] = sums::<N, 1>(|i| {
        let apart = step * L::nearest(x[i] * factor) - x[i];
        [w[i] * (apart * apart)]
    });
    error
}

/// A block of its own.
#[inline(always)]
pub(super) fn alone<L: Levels>(block: &Block<32>) -> Single {
    let (half, step) = block.half(Fit::new::<L, 32>(&block.x, &block.w).step);
    let factor = inverse(step);
    Single { step: half, numbers: block.x.map(|v| L::number(L::nearest(v * factor))) }
}

/// Sub-blocks of `N` whose scales are from `-limit` to `limit - 1`.
#[inline(always)]
pub(super) fn together<L: Levels, const N: usize, const S: usize>(
    block: &Block<256>,
    limit: f32,
) -> Scaled<S> {
    let (xs, ws) = (block.x.as_chunks::<N>().0, block.w.as_chunks::<N>().0);
    let mut fits: [Fit; S] = std::array::from_fn(|i| Fit::new::<L, N>(&xs[i], &ws[i]));
    let multiples = Multiples { low: -limit, high: limit - 1.0 };
    let mut d = multiples.scale(&fits.map(|fit| (fit.step, fit.square)));
    let mut best = (f32::INFINITY, (f16::ZERO, 0.0), [0.0; S]);
    for _ in 0..COMMON_ROUNDS {
        let d_half = block.half(d);
        let chosen: [(f32, f32); S] =
            std::array::from_fn(|i| choose::<L, N>(&xs[i], &ws[i], fits[i].step, d_half.1, multiples));
        let total = chosen.iter().map(|c| c.0).sum();
        if total >= best.0 {
            break;
        }
        best = (total, d_half, chosen.map(|c| c.1));
        let (mut product, mut square) = (0.0, 0.0);
        for i in 0..S {
            let scale = best.2[i];
            fits[i] = Fit::of::<L, N>(&xs[i], &ws[i], d_half.1 * scale);
            product += scale * fits[i].step * fits[i].square;
            square += scale * scale * fits[i].square;
        }
        d = product * inverse(square);
    }
    let (_, (half, d), scales) = best;
    let mut numbers = [0; 256];
    for (i, (numbers, x)) in numbers.as_chunks_mut::<N>().0.iter_mut().zip(xs).enumerate() {
        let factor = inverse(d * scales[i]);
        *numbers = x.map(|v| L::number(L::nearest(v * factor)));
    }
    Scaled { d: half, scales: scales.map(|scale| scale as i8), numbers }
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
    let mut best = (f32::INFINITY, 0.0);
    let scale = multiples.nearest(step * inverse(d));
    for scale in [scale, scale - 1.0, scale + 1.0].map(|scale| multiples.nearest(scale)) {
        let error = error::<L, N>(x, w, d * scale);
        if error < best.0 {
            best = (error, scale);
        }
    }
    best
}
