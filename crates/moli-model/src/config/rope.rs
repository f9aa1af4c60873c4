//! Rotary position embedding and what stretches it.

use moli_kernels::{RopeAngles, RopeStyle};

use super::keys::Keys;
use super::{Family, KvShape, MAX_CONTEXT};
use crate::ModelError;

/// Rotary position embedding (arXiv:2104.09864).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rope {
    /// Which elements form a pair.
    pub style: RopeStyle,
    /// Leading elements of a head that are turned.
    pub dims: usize,
    /// Base of the geometric series of wavelengths.
    pub base: f32,
    /// Positions are divided by this (linear scaling, arXiv:2306.15595).
    pub position_divisor: f32,
    /// The context before it was stretched, in tokens, where the file tells.
    pub original_context: Option<usize>,
    /// Where only long wavelengths are stretched.
    pub yarn: Option<Yarn>,
    /// What cosines and sines are multiplied by.
    pub magnitude: f32,
    /// Whether the wavelengths are multiplied by what the file has for each.
    pub factors: bool,
}

/// YaRN (arXiv:2309.00071): wavelengths that turn often in the original context stay, long ones are stretched, and between
/// them goes a ramp.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Yarn {
    /// How far the context is stretched.
    pub factor: f32,
    /// Turns in the original context above which nothing is stretched.
    pub beta_fast: f32,
    /// Turns below which all of it is.
    pub beta_slow: f32,
    /// Whether the ramp begins and ends at whole pairs.
    pub whole: bool,
}

impl Rope {
    pub(super) fn read(
        keys: &Keys<'_>,
        family: &Family,
        context: usize,
        head_dim: usize,
    ) -> Result<Self, ModelError> {
        let dims = keys.size("rope.dimension_count", Some(head_dim), head_dim)?;
        if dims % 2 != 0 {
            return Err(keys.out_of_range("rope.dimension_count", dims, "even"));
        }
        // Converters to GGUF reorder the rows of Q and K for some architectures; a folder of safetensors has them as they were.
        let style = match family.rope {
            RopeStyle::Interleaved if keys.halves()? => RopeStyle::HalvesToInterleaved,
            style => style,
        };
        let kind = keys.text("rope.scaling.type")?.unwrap_or("linear");
        if !["none", "linear", "yarn", "longrope"].contains(&kind) {
            return Err(keys.unsupported("rope.scaling.type", format!("`{kind}`")));
        }
        let factor = match keys.factor("rope.scaling.factor")? {
            Some(factor) => factor,
            // The key that files of 2023 used for the same thing.
            None => keys.factor("rope.scale_linear")?.unwrap_or(1.0),
        };
        let magnitude = keys.factor("rope.scaling.attn_factor")?.unwrap_or(1.0);
        let yarn_magnitude = keys.factor("rope.scaling.yarn_attn_factor")?.unwrap_or(1.0);
        let mut rope = Self {
            style,
            dims,
            base: keys.positive("rope.freq_base", Some(family.rope_base))?,
            position_divisor: if kind == "linear" { factor } else { 1.0 },
            original_context: keys
                .count("rope.scaling.original_context_length", MAX_CONTEXT)?
                .filter(|&n| n > 0),
            yarn: None,
            magnitude,
            factors: true,
        };
        if kind == "yarn" {
            rope.original_context.get_or_insert(context);
            rope.magnitude *= yarn_magnitude;
            rope.yarn = Some(Yarn {
                factor,
                beta_fast: keys.positive("rope.scaling.yarn_beta_fast", Some(32.0))?,
                beta_slow: keys.positive("rope.scaling.yarn_beta_slow", Some(1.0))?,
                whole: keys.yarn_whole()?.unwrap_or(family.name != "gpt-oss"),
            });
            // Attention is sharpened by a factor on queries and keys; DeepSeek's has one on the scores instead.
            if !family.latent {
                let sharper = |weight: f32| 1.0 + 0.1 * weight * factor.max(1.0).ln();
                let all = keys.factor("rope.scaling.yarn_log_multiplier")?.unwrap_or(0.0);
                rope.magnitude *= sharper(1.0) / sharper(all);
            }
        }
        Ok(rope)
    }

    /// Leading elements of a head that are turned in the layers with a window.
    pub(super) fn local_dims(
        &self,
        keys: &Keys<'_>,
        global: KvShape,
        local: KvShape,
    ) -> Result<usize, ModelError> {
        let suffix = "rope.dimension_count_swa";
        let usual = Some(self.dims).filter(|_| global.head_dim == local.head_dim);
        let dims = keys.size(suffix, usual, local.head_dim)?;
        if dims % 2 != 0 {
            return Err(keys.out_of_range(suffix, dims, "even"));
        }
        Ok(dims)
    }

    /// The angles, whose wavelengths are also multiplied by `factors`, one for each pair, where a file has some.
    #[must_use]
    pub fn angles(&self, factors: Option<&[f32]>) -> RopeAngles {
        let stretched = |pair: usize| {
            let factor = factors.filter(|_| self.factors).and_then(|all| all.get(pair)).unwrap_or(&1.0);
            factor
                * self.position_divisor
                * self
                    .yarn
                    .zip(self.original_context)
                    .map_or(1.0, |(yarn, context)| yarn.stretch(pair, self, context))
        };
        let factors: Vec<f32> = (0..self.dims / 2).map(stretched).collect();
        RopeAngles::new(self.dims, self.base, Some(&factors)).with_magnitude(self.magnitude)
    }
}

impl Yarn {
    /// What the wavelength of a pair is multiplied by.
    fn stretch(&self, pair: usize, rope: &Rope, original_context: usize) -> f32 {
        // The pair, as a fraction, that turns so often in the original context.
        let pair_of = |turns: f32| {
            let wavelength = original_context as f32 / (turns * 2.0 * std::f32::consts::PI);
            rope.dims as f32 * wavelength.ln() / (2.0 * rope.base.ln())
        };
        let (mut low, mut high) = (pair_of(self.beta_fast), pair_of(self.beta_slow));
        if self.whole {
            (low, high) = (low.floor(), high.ceil());
        }
        low = low.max(0.0);
        high = high.min(rope.dims as f32 - 1.0);
        if low == high {
            high += 0.001;
        }
        let ramp = ((pair as f32 - low) / (high - low)).clamp(0.0, 1.0);
        1.0 / (ramp / self.factor + (1.0 - ramp))
    }
}
