//! What a model is, read from its file's metadata. The decoder knows nothing of architectures: their differences are the
//! fields here.

use moli_format::{Metadata, Value};
use moli_kernels::RopeStyle;

use crate::ModelError;

/// The architectures that the decoder describes, as `general.architecture` spells them.
pub const ARCHITECTURES: [&str; 4] = ["llama", "qwen2", "qwen3", "gemma3"];

// Beyond what any published model has; a damaged file's numbers end here instead of in an allocation.
const MAX_LAYERS: usize = 1 << 10;
const MAX_HEADS: usize = 1 << 12;
const MAX_HEAD_DIM: usize = 1 << 10;
const MAX_WIDTH: usize = 1 << 20;
const MAX_CONTEXT: usize = 1 << 26;

/// A transformer decoder's hyperparameters.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// `general.architecture`.
    pub architecture: String,
    /// Transformer blocks.
    pub layers: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; each serves `heads / kv_heads` query heads (grouped-query attention, arXiv:2305.13245).
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Width inside the feed-forward network.
    pub ffn: usize,
    /// Tokens in the vocabulary.
    pub vocab: usize,
    /// The context that the model was trained for, in tokens.
    pub context_train: usize,
    /// Added to the mean square in RMS norm.
    pub norm_eps: f32,
    /// Rotary embedding of the layers with global attention.
    pub rope: Rope,
    /// Rotary embedding of the layers with a sliding window; the same as `rope` in most architectures.
    pub rope_local: Rope,
    /// Factor on the attention scores.
    pub attention_scale: f32,
    /// Where keys are limited to the latest few; `None` everywhere: global attention.
    pub window: Option<SlidingWindow>,
    /// Factor on the embeddings.
    pub embedding_scale: f32,
    /// The feed-forward network's activation.
    pub activation: Activation,
    /// `c` in `c * tanh(logit / c)`.
    pub logit_soft_cap: Option<f32>,
    /// Whether Q and K are normed per head.
    pub qk_norm: bool,
    /// Whether a second norm follows attention and the feed-forward network.
    pub post_norm: bool,
    /// Whether Q, K and V must have biases.
    pub qkv_bias: bool,
}

/// The gate of the feed-forward network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// `x * sigmoid(x)`.
    Silu,
    /// GELU by its tanh form (arXiv:1606.08415).
    GeluTanh,
}

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
}

/// Layers whose queries see only the latest `tokens` keys.
#[derive(Debug, Clone, PartialEq)]
pub struct SlidingWindow {
    /// Keys that a query sees, itself included.
    pub tokens: usize,
    /// Per layer: whether the window applies.
    pub layers: Vec<bool>,
}

impl Config {
    /// Reads the hyperparameters.
    ///
    /// `vocab` is the number of rows of the embedding table, which is what the file really has.
    ///
    /// # Errors
    /// Names the metadata key that is missing, of another type, out of range, or asks for what is not computed.
    pub fn from_metadata(metadata: &Metadata, vocab: usize) -> Result<Self, ModelError> {
        let architecture = metadata.architecture()?.to_owned();
        if !ARCHITECTURES.contains(&architecture.as_str()) {
            return Err(ModelError::UnsupportedArchitecture {
                found: architecture,
                supported: ARCHITECTURES.join(", "),
            });
        }
        let keys = Keys { metadata, architecture: &architecture };
        keys.refuse_unsupported()?;

        let layers = keys.size("block_count", None, MAX_LAYERS)?;
        let hidden = keys.size("embedding_length", None, MAX_WIDTH)?;
        let heads = keys.size("attention.head_count", None, MAX_HEADS)?;
        let kv_heads = keys.size("attention.head_count_kv", Some(heads), MAX_HEADS)?;
        if heads % kv_heads != 0 {
            return Err(keys.out_of_range(
                "attention.head_count_kv",
                kv_heads,
                format!("a divisor of {heads}"),
            ));
        }
        let head_dim = keys.size("attention.key_length", Some(hidden / heads), MAX_HEAD_DIM)?;
        let value_dim = keys.size("attention.value_length", Some(head_dim), MAX_HEAD_DIM)?;
        if value_dim != head_dim {
            return Err(keys.out_of_range(
                "attention.value_length",
                value_dim,
                format!("{head_dim}, as the keys are"),
            ));
        }
        let ffn = keys.size("feed_forward_length", None, MAX_WIDTH)?;
        let context_train = keys.size("context_length", None, MAX_CONTEXT)?;
        let norm_eps = keys.positive("attention.layer_norm_rms_epsilon", None)?;

        // Converters put the rows of Q and K into another order; a model that was not converted says so.
        let interleaved = architecture == "llama" && metadata.bool_opt("moli.rope.halves")? != Some(true);
        let style = if interleaved { RopeStyle::Interleaved } else { RopeStyle::Halves };
        let gemma = architecture == "gemma3";
        let rope = keys.rope(style, head_dim, if gemma { 1e6 } else { 1e4 })?;
        let window = keys.sliding_window(layers, context_train)?;
        let rope_local = if gemma {
            // The window never reaches positions that need stretching.
            Rope { base: keys.positive("rope.freq_base_swa", Some(1e4))?, position_divisor: 1.0, ..rope }
        } else {
            rope
        };
        // Gemma 3 27B alone scales by the width per head instead of the head's width (arXiv:2503.19786).
        let scale_dim = if gemma && layers == 62 { hidden / heads } else { head_dim };

        Ok(Self {
            layers,
            hidden,
            heads,
            kv_heads,
            head_dim,
            ffn,
            vocab,
            context_train,
            norm_eps,
            rope,
            rope_local,
            attention_scale: match keys.factor("attention.scale")? {
                Some(scale) => scale,
                None => 1.0 / (scale_dim as f32).sqrt(),
            },
            window,
            embedding_scale: if gemma { (hidden as f32).sqrt() } else { 1.0 },
            activation: if gemma { Activation::GeluTanh } else { Activation::Silu },
            logit_soft_cap: keys.factor("final_logit_softcapping")?,
            qk_norm: matches!(architecture.as_str(), "qwen3" | "gemma3"),
            post_norm: gemma,
            qkv_bias: architecture == "qwen2",
            architecture,
        })
    }

    /// The sliding window of a layer in tokens, or `None` where it sees everything.
    pub fn window_of(&self, layer: usize) -> Option<usize> {
        let window = self.window.as_ref()?;
        window.layers.get(layer).copied().unwrap_or(false).then_some(window.tokens)
    }

    /// Bytes of keys and values per token in f16.
    pub fn kv_bytes_per_token(&self) -> u64 {
        [self.layers, 2, self.kv_heads, self.head_dim, size_of::<u16>()]
            .iter()
            .fold(1u64, |product, &n| product.saturating_mul(n as u64))
    }
}

/// The metadata keys of one architecture, each value checked as it is read.
struct Keys<'a> {
    metadata: &'a Metadata,
    architecture: &'a str,
}

impl Keys<'_> {
    fn key(&self, suffix: &str) -> String {
        format!("{}.{suffix}", self.architecture)
    }

    fn out_of_range(&self, suffix: &str, value: impl ToString, allowed: impl Into<String>) -> ModelError {
        ModelError::OutOfRange { key: self.key(suffix), value: value.to_string(), allowed: allowed.into() }
    }

    /// A count between 1 and `max`; required when there is no default.
    fn size(&self, suffix: &str, default: Option<usize>, max: usize) -> Result<usize, ModelError> {
        let key = self.key(suffix);
        let value = match self.count(&key)? {
            Some(value) => value,
            None => match default {
                Some(value) => value as u64,
                None => self.metadata.u64(&key)?,
            },
        };
        if value == 0 || value > max as u64 {
            return Err(self.out_of_range(suffix, value, format!("between 1 and {max}")));
        }
        Ok(value as usize)
    }

    /// A count; a list with one for each layer counts as one if all are equal.
    fn count(&self, key: &str) -> Result<Option<u64>, ModelError> {
        if !matches!(self.metadata.get(key), Some(Value::Array(_))) {
            return Ok(self.metadata.u64_opt(key)?);
        }
        let counts = self.metadata.u64s(key)?;
        match counts.first() {
            Some(first) if counts.iter().all(|count| count == first) => Ok(Some(*first)),
            _ => {
                let value = "a count that differs between layers".to_owned();
                Err(ModelError::UnsupportedFeature { key: key.to_owned(), value })
            }
        }
    }

    /// A factor; 0 is how some files say that there is none.
    fn factor(&self, suffix: &str) -> Result<Option<f32>, ModelError> {
        match self.metadata.f32_opt(&self.key(suffix))? {
            None | Some(0.0) => Ok(None),
            Some(_) => self.positive(suffix, None).map(Some),
        }
    }

    /// A finite number above zero; required when there is no default.
    fn positive(&self, suffix: &str, default: Option<f32>) -> Result<f32, ModelError> {
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

    /// Features that these architectures' files can ask for and that the decoder does not compute yet.
    fn refuse_unsupported(&self) -> Result<(), ModelError> {
        let refuse = |suffix: &str, value: String| {
            Err(ModelError::UnsupportedFeature { key: self.key(suffix), value })
        };
        if let Some(experts) = self.metadata.u64_opt(&self.key("expert_count"))?
            && experts > 0
        {
            return refuse("expert_count", experts.to_string());
        }
        for suffix in ["attn_logit_softcapping", "attention.clamp_kqv"] {
            if let Some(value) = self.factor(suffix)? {
                return refuse(suffix, value.to_string());
            }
        }
        for suffix in ["logit_scale", "residual_scale", "embedding_scale", "rope.scaling.attn_factor"] {
            if let Some(value) = self.factor(suffix)?.filter(|&value| value != 1.0) {
                return refuse(suffix, value.to_string());
            }
        }
        if let Some(false) = self.metadata.bool_opt(&self.key("attention.causal"))? {
            return refuse("attention.causal", "false".to_owned());
        }
        match self.metadata.str_opt(&self.key("rope.scaling.type"))? {
            None | Some("none" | "linear") => Ok(()),
            Some(kind) => refuse("rope.scaling.type", format!("`{kind}`")),
        }
    }

    fn rope(&self, style: RopeStyle, head_dim: usize, base: f32) -> Result<Rope, ModelError> {
        let dims = self.size("rope.dimension_count", Some(head_dim), head_dim)?;
        if dims % 2 != 0 {
            return Err(self.out_of_range("rope.dimension_count", dims, "even"));
        }
        let linear = self.metadata.str_opt(&self.key("rope.scaling.type"))? != Some("none");
        let divisor = match self.factor("rope.scaling.factor")? {
            _ if !linear => 1.0,
            Some(factor) => factor,
            // The key that files of 2023 used for the same thing.
            None => self.factor("rope.scale_linear")?.unwrap_or(1.0),
        };
        Ok(Rope {
            style,
            dims,
            base: self.positive("rope.freq_base", Some(base))?,
            position_divisor: divisor,
        })
    }

    /// Gemma 3: five layers with a window, then one without, unless the file has a pattern of its own. Llama (the first
    /// Mistral): every layer. A window as long as the context hides nothing.
    fn sliding_window(
        &self,
        layers: usize,
        context_train: usize,
    ) -> Result<Option<SlidingWindow>, ModelError> {
        let window = "attention.sliding_window";
        let tokens = match self.metadata.u64_opt(&self.key(window))? {
            None | Some(0) => return Ok(None),
            // Gemma's local layers differ in their rotary base too.
            Some(tokens) if tokens >= context_train as u64 && self.architecture != "gemma3" => {
                return Ok(None);
            }
            Some(_) => self.size(window, None, MAX_CONTEXT)?,
        };
        match self.architecture {
            "gemma3" => {}
            "llama" => return Ok(Some(SlidingWindow { tokens, layers: vec![true; layers] })),
            _ => {
                return Err(ModelError::UnsupportedFeature {
                    key: self.key(window),
                    value: tokens.to_string(),
                });
            }
        }
        let suffix = "attention.sliding_window_pattern";
        let layers = match self.metadata.get(&self.key(suffix)) {
            Some(Value::Array(_)) => {
                let pattern = self.metadata.bools(&self.key(suffix))?;
                if pattern.len() != layers {
                    let allowed = format!("as long as block_count, {layers}");
                    return Err(self.out_of_range(suffix, format!("{} long", pattern.len()), allowed));
                }
                pattern
            }
            _ => {
                let period = self.size(suffix, Some(6), MAX_LAYERS)?;
                (0..layers).map(|layer| layer % period < period - 1).collect()
            }
        };
        Ok(Some(SlidingWindow { tokens, layers }))
    }
}
