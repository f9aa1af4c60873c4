//! The metadata keys of one architecture, each value checked as it is read.

use moli_format::{FormatError, Metadata, Value};

use super::{Activation, Family, MAX_CONTEXT, MAX_LAYERS, SlidingWindow, Windows};
use crate::ModelError;

pub(super) struct Keys<'a> {
    pub(super) metadata: &'a Metadata,
    pub(super) architecture: &'a str,
}

impl Keys<'_> {
    fn key(&self, suffix: &str) -> String {
        format!("{}.{suffix}", self.architecture)
    }

    pub(super) fn out_of_range(
        &self,
        suffix: &str,
        value: impl ToString,
        allowed: impl Into<String>,
    ) -> ModelError {
        ModelError::OutOfRange { key: self.key(suffix), value: value.to_string(), allowed: allowed.into() }
    }

    pub(super) fn unsupported(&self, suffix: &str, value: impl ToString) -> ModelError {
        ModelError::UnsupportedFeature { key: self.key(suffix), value: value.to_string() }
    }

    /// A count between 1 and `max`; required when there is no default.
    pub(super) fn size(&self, suffix: &str, default: Option<usize>, max: usize) -> Result<usize, ModelError> {
        let value = match self.count(suffix, max)? {
            Some(value) => value,
            None => match default {
                Some(value) => value,
                None => self.metadata.u64(&self.key(suffix)).map(|_| 0)?,
            },
        };
        if value == 0 || value > max {
            return Err(self.out_of_range(suffix, value, format!("between 1 and {max}")));
        }
        Ok(value)
    }

    /// A count up to `max`; a list with one for each layer counts as one if all are equal.
    pub(super) fn count(&self, suffix: &str, max: usize) -> Result<Option<usize>, ModelError> {
        let key = self.key(suffix);
        let value = if matches!(self.metadata.get(&key), Some(Value::Array(_))) {
            let counts = self.metadata.u64s(&key)?;
            match counts.first() {
                Some(first) if counts.iter().all(|count| count == first) => Some(*first),
                _ => return Err(self.unsupported(suffix, "a count that differs between layers")),
            }
        } else {
            self.metadata.u64_opt(&key)?
        };
        match value {
            None => Ok(None),
            Some(value) => match usize::try_from(value).ok().filter(|&value| value <= max) {
                Some(value) => Ok(Some(value)),
                None => Err(self.out_of_range(suffix, value, format!("at most {max}"))),
            },
        }
    }

    /// Counts up to `max`, one for each layer, where the file has a list of them.
    pub(super) fn counts(
        &self,
        suffix: &str,
        layers: usize,
        max: usize,
    ) -> Result<Option<Vec<usize>>, ModelError> {
        let key = self.key(suffix);
        let Some(Value::Array(_)) = self.metadata.get(&key) else { return Ok(None) };
        let counts = self.metadata.u64s(&key)?;
        if counts.len() != layers {
            let allowed = format!("as long as block_count, {layers}");
            return Err(self.out_of_range(suffix, format!("{} long", counts.len()), allowed));
        }
        let size = |&count: &u64| match usize::try_from(count).ok().filter(|&count| count <= max) {
            Some(count) => Ok(count),
            None => Err(self.out_of_range(suffix, count, format!("at most {max}"))),
        };
        counts.iter().map(size).collect::<Result<_, _>>().map(Some)
    }

    /// A count for each layer, which is the same for all where the file has one alone.
    pub(super) fn per_layer(
        &self,
        suffix: &str,
        layers: usize,
        max: usize,
    ) -> Result<Option<Vec<usize>>, ModelError> {
        let key = self.key(suffix);
        let differ = match self.metadata.get(&key) {
            Some(Value::Array(_)) => self.metadata.u64s(&key)?.windows(2).any(|pair| pair[0] != pair[1]),
            _ => false,
        };
        match differ {
            true => self.counts(suffix, layers, max),
            false => Ok(self.count(suffix, max)?.map(|count| vec![count; layers])),
        }
    }

    pub(super) fn text(&self, suffix: &str) -> Result<Option<&str>, ModelError> {
        Ok(self.metadata.str_opt(&self.key(suffix))?)
    }

    pub(super) fn flag(&self, suffix: &str) -> Result<Option<bool>, ModelError> {
        Ok(self.metadata.bool_opt(&self.key(suffix))?)
    }

    /// The activation, where a file has another than its architecture has.
    pub(super) fn activation(&self) -> Result<Option<Activation>, ModelError> {
        let suffix = "hidden_activation";
        Ok(match self.text(suffix)? {
            None => None,
            Some("silu") => Some(Activation::Silu),
            Some("gelu_tanh") => Some(Activation::GeluTanh),
            Some("gelu") => Some(Activation::GeluErf),
            Some("relu") => Some(Activation::Relu),
            Some("relu2") => Some(Activation::ReluSquared),
            Some(other) => return Err(self.unsupported(suffix, format!("`{other}`"))),
        })
    }

    /// A list of floats, of whatever length.
    pub(super) fn floats(&self, suffix: &str) -> Result<Option<Vec<f32>>, ModelError> {
        Ok(self.metadata.f32s_opt(&self.key(suffix))?.map(std::borrow::Cow::into_owned))
    }

    /// The error for a key that has to be there.
    pub(super) fn missing(&self, suffix: &str) -> ModelError {
        FormatError::MissingKey { key: self.key(suffix) }.into()
    }

    /// A list of flags, of whatever length.
    pub(super) fn flag_list(&self, suffix: &str) -> Result<Option<Vec<bool>>, ModelError> {
        Ok(self.metadata.bools_opt(&self.key(suffix))?)
    }

    /// A flag for each layer: a list, or a period `n` of which the last is false; `None` if the file has neither.
    fn flags(&self, suffix: &str, layers: usize) -> Result<Option<Vec<bool>>, ModelError> {
        let key = self.key(suffix);
        match self.metadata.get(&key) {
            None => Ok(None),
            Some(Value::Array(_)) => {
                let flags = self.metadata.bools(&key)?;
                if flags.len() != layers {
                    let allowed = format!("as long as block_count, {layers}");
                    return Err(self.out_of_range(suffix, format!("{} long", flags.len()), allowed));
                }
                Ok(Some(flags))
            }
            Some(_) => self.size(suffix, None, MAX_LAYERS).map(|period| Some(all_but(period, layers))),
        }
    }

    /// Whether the rotated elements are in the order of halves, whatever the architecture's is in GGUF files.
    pub(super) fn halves(&self) -> Result<bool, ModelError> {
        Ok(self.metadata.bool_opt("moli.rope.halves")?.unwrap_or(false))
    }

    /// Whether YaRN's ramp ends at whole pairs, where that is not as usual in the architecture.
    pub(super) fn yarn_whole(&self) -> Result<Option<bool>, ModelError> {
        Ok(self.metadata.bool_opt("moli.rope.yarn_whole")?)
    }

    /// A factor; 0 is how some files say that there is none.
    pub(super) fn factor(&self, suffix: &str) -> Result<Option<f32>, ModelError> {
        match self.metadata.f32_opt(&self.key(suffix))? {
            None | Some(0.0) => Ok(None),
            Some(_) => self.positive(suffix, None).map(Some),
        }
    }

    /// A finite number above zero; required when there is no default.
    pub(super) fn positive(&self, suffix: &str, default: Option<f32>) -> Result<f32, ModelError> {
        let key = self.key(suffix);
        let value = match self.metadata.f32_opt(&key)?.or(default) {
            Some(value) => value,
            None => self.metadata.f32(&key)?,
        };
        if !value.is_finite() || value <= 0.0 {
            return Err(self.out_of_range(suffix, value, "a finite number above 0"));
        }
        Ok(value)
    }

    /// Features that files can ask for and that the decoder does not compute.
    pub(super) fn refuse_unsupported(&self, layers: usize, causal: bool) -> Result<(), ModelError> {
        if let Some(value) = self.factor("attention.clamp_kqv")? {
            return Err(self.unsupported("attention.clamp_kqv", value));
        }
        if let Some(value) = self.factor("attention.max_alibi_bias")? {
            return Err(self.unsupported("attention.max_alibi_bias", value));
        }
        // How much of YaRN is applied: all of it, or what -1 stands for, which is the same.
        let suffix = "rope.scaling.yarn_ext_factor";
        if let Some(value) =
            self.metadata.f32_opt(&self.key(suffix))?.filter(|&value| value != 1.0 && value >= 0.0)
        {
            return Err(self.unsupported(suffix, value));
        }
        if let Some(other) = self.flag("attention.causal")?.filter(|&told| told != causal) {
            return Err(self.unsupported("attention.causal", other));
        }
        // The 13B alone has no rotary embedding but ALiBi, and no key that says so.
        if self.architecture == "baichuan" && layers == 40 {
            return Err(self.unsupported("block_count", "40, Baichuan 13B with ALiBi,"));
        }
        Ok(())
    }

    /// The layers with a sliding window. One as long as the context hides nothing.
    pub(super) fn sliding_window(
        &self,
        family: &Family,
        layers: usize,
        context_train: usize,
    ) -> Result<Option<SlidingWindow>, ModelError> {
        let window = "attention.sliding_window";
        let suffix = "attention.sliding_window_pattern";
        let pattern = match (family.windows, self.metadata.get(&self.key(suffix))) {
            // A period whose first layer is the one without a window.
            (Windows::Global(_), Some(value)) if !matches!(value, Value::Array(_)) => {
                let period = self.size(suffix, None, MAX_LAYERS)?;
                Some((0..layers).map(|layer| layer % period > 0).collect())
            }
            _ => self.flags(suffix, layers)?,
        };
        // A window as long as the context hides nothing, but where layers differ by it in their rotary embedding too.
        let differ = pattern.is_some() || matches!(family.windows, Windows::AllBut(_) | Windows::Global(_));
        let tokens = match self.metadata.u64_opt(&self.key(window))? {
            // Where heads differ by it too, all layers would be of the one kind without it.
            None | Some(0) if self.metadata.get(&self.key("attention.key_length_swa")).is_some() => {
                self.size(window, None, MAX_CONTEXT)?
            }
            None | Some(0) => return Ok(None),
            Some(tokens) if tokens >= context_train as u64 && !differ => return Ok(None),
            Some(_) => self.size(window, None, MAX_CONTEXT)?,
        };
        let layers = match (pattern, family.windows) {
            (Some(pattern), _) => pattern,
            (None, Windows::All) => vec![true; layers],
            (None, Windows::AllBut(period)) => all_but(period, layers),
            (None, Windows::Global(period)) => (0..layers).map(|layer| layer % period > 0).collect(),
            (None, Windows::Refused) => return Err(self.unsupported(window, tokens)),
        };
        // Of an encoder the number is that of the tokens on both sides.
        let tokens = if family.causal { tokens } else { tokens / 2 + 1 };
        Ok(Some(SlidingWindow { tokens, layers }))
    }

    /// The layers with a rotary embedding.
    pub(super) fn rotated(
        &self,
        family: &Family,
        layers: usize,
        window: Option<&SlidingWindow>,
    ) -> Result<Vec<bool>, ModelError> {
        use super::family::Rotated;
        // Granite's have this for layers without; in other files it tells of how the model was made.
        if self.architecture.starts_with("granite") && self.flag("rope.scaling.finetuned")? == Some(false) {
            return Ok(vec![false; layers]);
        }
        if let Some(flags) = self.flags("rope.layers", layers)? {
            return Ok(flags);
        }
        Ok(match (family.rotated, window) {
            (Rotated::None, _) => vec![false; layers],
            (Rotated::AllBut(period), _) => all_but(period, layers),
            (Rotated::Windowed, Some(window)) => window.layers.clone(),
            _ => vec![true; layers],
        })
    }
}

/// True for all but the last of each `period` layers.
fn all_but(period: usize, layers: usize) -> Vec<bool> {
    (0..layers).map(|layer| layer % period < period - 1).collect()
}
