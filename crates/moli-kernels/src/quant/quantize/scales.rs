//! One scale for the scales of sub-blocks.

use super::block::{inverse, whole};

/// Multiples of one scale, and how far each may be from 0.
#[derive(Clone, Copy)]
pub(super) struct Multiples {
    pub(super) low: f32,
    pub(super) high: f32,
}

/// Scales tried, in each direction.
const TRIES: usize = 32;

impl Multiples {
    /// The scale with which the greatest value becomes the greatest multiple.
    #[inline(always)]
    pub(super) fn widest<const S: usize>(self, values: &[f32; S]) -> f32 {
        values.iter().fold(0.0, |most: f32, v| if *v > most { *v } else { most }) / self.high
    }

    /// The scale whose multiples are nearest to the values, each a pair with its weight.
    ///
    /// The greatest value becomes the greatest multiple, or one of those down to half of it: the coarser grids often fit
    /// the other values better.
    #[inline(always)]
    pub(super) fn scale<const S: usize>(self, values: &[(f32, f32); S]) -> f32 {
        let extreme = values.iter().fold(0.0f32, |most, v| if v.0.abs() > most.abs() { v.0 } else { most });
        let (mut best, mut scale) = (0.0, 0.0);
        for edge in [self.low, self.high].into_iter().filter(|edge| *edge != 0.0) {
            for n in 0..TRIES {
                let factor = edge * (1.0 - n as f32 / (2 * TRIES) as f32) * inverse(extreme);
                let (mut product, mut square) = (0.0, 0.0);
                for (v, w) in values {
                    let multiple = self.nearest(v * factor);
                    product += w * multiple * v;
                    square += w * multiple * multiple;
                }
                let fitted = product * inverse(square);
                if product * fitted > best {
                    (best, scale) = (product * fitted, fitted);
                }
            }
        }
        scale
    }

    /// The nearest multiple.
    #[inline(always)]
    pub(super) fn nearest(self, v: f32) -> f32 {
        whole(v, self.low, self.high)
    }
}
