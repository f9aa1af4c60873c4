//! The angles of rotary position embedding (Su et al., arXiv:2104.09864).

use crate::KernelError;

/// Which elements of a head form a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RopeStyle {
    /// (2 i, 2 i + 1): the order of the original LLaMA weights, which GGUF files of that architecture keep.
    Interleaved,
    /// (i, i + rot_dims / 2): the order of GPT-NeoX.
    Halves,
    /// The pairs of `Halves`, which come out in the order of `Interleaved`. Scores are sums over a head's elements in their
    /// order: so weights in the one order give the bits that the same weights in the other give.
    HalvesToInterleaved,
}

/// `[a0, a1, .. b0, b1, ..]` to `[a0, b0, a1, b1, ..]`, in place.
pub(super) fn interleave(x: &mut [f32]) {
    let half = x.len() / 2;
    let quarter = half / 2;
    if half < 2 {
        return;
    }
    // The second part of the first half changes places with the first part of the second half; then each side is such a list.
    if let Some(middle) = x.get_mut(quarter..half + quarter) {
        middle.rotate_left(half - quarter);
    }
    let (first, second) = x.split_at_mut(2 * quarter);
    interleave(first);
    interleave(second);
}

/// The cosines and sines for the rows of a batch.
///
/// The frequencies are computed in f64 and kept as f32, as the models were trained with; the angle (position times
/// frequency), its cosine and its sine are computed in f64 and rounded once. So a row depends on its position alone.
#[derive(Clone, Debug)]
pub struct RopeAngles {
    inv_freq: Vec<f32>,
    /// What cosines and sines are multiplied by.
    magnitude: f32,
    /// `[rows, half]`
    cos: Vec<f32>,
    /// `[rows, half]`
    sin: Vec<f32>,
}

impl RopeAngles {
    /// Angles for the first `rot_dims` elements of a head: pair `i` turns by `base^(-2 i / rot_dims)` per position,
    /// divided by `factors[i]` where factors are given (a linear scaling is a factor that all pairs share).
    ///
    /// An odd `rot_dims` is rounded down. A factor that is not given counts as 1.
    #[must_use]
    pub fn new(rot_dims: usize, base: f32, factors: Option<&[f32]>) -> RopeAngles {
        let half = rot_dims / 2;
        let frequency = |i: usize| {
            let factor = factors.and_then(|f| f.get(i)).map_or(1.0, |f| f64::from(*f));
            (f64::from(base).powf(-((2 * i) as f64) / (2 * half) as f64) / factor) as f32
        };
        RopeAngles {
            inv_freq: (0..half).map(frequency).collect(),
            magnitude: 1.0,
            cos: Vec::new(),
            sin: Vec::new(),
        }
    }

    /// The same angles, whose cosines and sines are multiplied by this (YaRN's attention factor, arXiv:2309.00071).
    #[must_use]
    pub fn with_magnitude(self, magnitude: f32) -> Self {
        Self { magnitude, ..self }
    }

    /// Room for `rows` rows, so that [`set`](RopeAngles::set) allocates nothing up to there.
    ///
    /// # Errors
    /// [`KernelError::TooLarge`] if the memory can't be had.
    pub fn reserve(&mut self, rows: usize) -> Result<(), KernelError> {
        let too_large = KernelError::TooLarge { rows, cols: self.half() };
        let wanted = rows.saturating_mul(self.half());
        let more = |angles: &mut Vec<f32>| angles.try_reserve(wanted.saturating_sub(angles.len()));
        more(&mut self.cos).and_then(|()| more(&mut self.sin)).map_err(|_| too_large)
    }

    /// Bytes of angles for the first `rot_dims` elements of a head with room for `rows` rows; saturating.
    #[must_use]
    pub fn bytes(rot_dims: usize, rows: usize) -> u64 {
        // The frequency, and a cosine and a sine in each row.
        let pair = (rows as u64).saturating_mul(2).saturating_add(1).saturating_mul(size_of::<f32>() as u64);
        pair.saturating_mul(rot_dims as u64 / 2)
    }

    /// Computes the rows for these positions.
    pub fn set(&mut self, positions: &[u32]) {
        self.cos.clear();
        self.sin.clear();
        for &position in positions {
            for &frequency in &self.inv_freq {
                let (sin, cos) = (f64::from(position) * f64::from(frequency)).sin_cos();
                self.cos.push(cos as f32 * self.magnitude);
                self.sin.push(sin as f32 * self.magnitude);
            }
        }
    }

    /// Half the rotated dimensions: the number of pairs.
    #[must_use]
    pub fn half(&self) -> usize {
        self.inv_freq.len()
    }

    /// The rows that were set.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.cos.len().checked_div(self.half()).unwrap_or(0)
    }

    /// The cosines of all rows, `[rows, half]`.
    #[must_use]
    pub fn cos(&self) -> &[f32] {
        &self.cos
    }

    /// The sines of all rows, `[rows, half]`.
    #[must_use]
    pub fn sin(&self) -> &[f32] {
        &self.sin
    }
}
