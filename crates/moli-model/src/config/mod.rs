//! What a model is, read from its file's metadata. The decoder knows nothing of architectures: their differences are the
//! fields here.

mod altup;
mod experts;
mod family;
mod keys;
mod latent;
mod recurrent;
mod rope;
mod xielu;

use moli_format::Metadata;

use crate::{KvType, ModelError};
use family::{FAMILIES, Family, Local, Windows};
use keys::Keys;
use recurrent::RecurrentFamily;

pub use altup::AltUp;
pub use experts::{Experts, Gating};
pub use family::ARCHITECTURES;
pub use latent::Latent;
pub use recurrent::{Recurrent, RecurrentKind};
pub use rope::{Rope, Yarn};
pub use xielu::Xielu;

// Beyond what any published model has; a damaged file's numbers end here instead of in an allocation.
const MAX_LAYERS: usize = 1 << 10;
const MAX_HEADS: usize = 1 << 12;
const MAX_HEAD_DIM: usize = 1 << 10;
const MAX_WIDTH: usize = 1 << 20;
const MAX_CONTEXT: usize = 1 << 26;
const MAX_EXPERTS: usize = 1 << 10;

/// A transformer's hyperparameters.
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
    /// Key and value heads of the layers with a sliding window; the same in most architectures.
    pub kv_local: KvShape,
    /// Layers, the last ones, that see the keys and values of the last one before them with the same attention, global or local,
    /// and have none of their own.
    pub shared_kv: usize,
    /// Per layer: width inside the feed-forward network without experts.
    pub ffn: Vec<usize>,
    /// Width of the vector that each layer has for each token; 0: there are none.
    pub layer_inputs: usize,
    /// Per layer: how many standard deviations above the mean of all a gate has to be to count, and by how much it counts then;
    /// `None`, or an empty list: all count as they are.
    pub cutoffs: Vec<Option<f32>>,
    /// Streams beside each other; `None`: there is one.
    pub altup: Option<AltUp>,
    /// Whether that network has a gate.
    pub gated: bool,
    /// The layers with experts; `None`: there are none.
    pub experts: Option<Experts>,
    /// Attention by latent vectors. Then `kv_heads` is 1, and `head_dim` is a latent key's width.
    pub latent: Option<Latent>,
    /// The layers that carry a state instead of keys and values; `None`: all have attention.
    pub recurrent: Option<Recurrent>,
    /// Layers behind these that guess tokens further ahead, whose tensors are left out.
    pub ahead: usize,
    /// Whether each query comes with a gate for what it finds.
    pub gated_attention: bool,
    /// Tokens in the vocabulary.
    pub vocab: usize,
    /// The context that the model was trained for, in tokens.
    pub context_train: usize,
    /// Whether a token sees those before it only. Where not, the model is an encoder: a text is computed whole, in one batch,
    /// and there is no output head.
    pub causal: bool,
    /// Whether a learned vector for each position is added to the embeddings.
    pub learned_positions: bool,
    /// Kinds of token, each of which has a vector that is added to the embeddings; 0: there are none.
    pub token_types: usize,
    /// Whether the embeddings go through a norm, which is the first layer's own where layers begin with one.
    pub embedding_norm: bool,
    /// Whether there is a norm after the last layer.
    pub final_norm: bool,
    /// LayerNorm with a bias instead of RMS norm.
    pub layer_norm: bool,
    /// Whether norms have gains; where not, they multiply by 1.
    pub norm_gains: bool,
    /// Added to the mean square, or the variance, in a norm.
    pub norm_eps: f32,
    /// Rotary embedding of the layers with global attention.
    pub rope: Rope,
    /// Rotary embedding of the layers with a sliding window; the same as `rope` in most architectures.
    pub rope_local: Rope,
    /// Per layer: whether it has a rotary embedding.
    pub rotated: Vec<bool>,
    /// Factor on the attention scores.
    pub attention_scale: f32,
    /// `c` in `c * tanh(score / c)`.
    pub attention_soft_cap: Option<f32>,
    /// Whether each head has a score for a key without a value (attention sinks).
    pub sinks: bool,
    /// Where keys are limited to the latest few; `None` everywhere: global attention.
    pub window: Option<SlidingWindow>,
    /// Factor on the embeddings.
    pub embedding_scale: f32,
    /// Factor on what attention and the feed-forward network add to the residual stream.
    pub residual_scale: f32,
    /// Factor on the logits.
    pub logit_scale: f32,
    /// The feed-forward network's activation.
    pub activation: Activation,
    /// That of each layer, where it has numbers of its own; empty: it is `activation` everywhere.
    pub xielu: Vec<Xielu>,
    /// `c` in `c * tanh(logit / c)`.
    pub logit_soft_cap: Option<f32>,
    /// Whether and how Q and K are normed.
    pub qk_norm: QkNorm,
    /// Whether the values of each head are normed, without a gain.
    pub value_norm: bool,
    /// Whether what the keys are made of are the values of layers that have no matrix for them.
    pub keys_as_values: bool,
    /// Whether Q and K are normed behind their rotary embedding.
    pub rope_first: bool,
    /// Whether attention and the feed-forward network read the residual stream through a norm.
    pub pre_norm: bool,
    /// Whether what they give goes through a norm.
    pub post_norm: bool,
    /// Whether the residual stream goes through a norm after each of the two is added to it (arXiv:1706.03762).
    pub sum_norm: bool,
    /// Whether the feed-forward network reads what attention read, and not what that made of it.
    pub parallel: Parallel,
    /// Whether Q, K and V must have biases.
    pub qkv_bias: bool,
}

/// Key and value heads of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KvShape {
    /// How many there are, a divisor of the number of query heads.
    pub heads: usize,
    /// Width of a head, which is that of a query head too.
    pub head_dim: usize,
}

impl KvShape {
    /// Width of all of them.
    pub fn width(&self) -> usize {
        self.heads * self.head_dim
    }
}

/// The layers whose feed-forward network reads the residual stream as attention found it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Parallel {
    /// None.
    No,
    /// Those whose network has no norm of its own: it reads what attention read.
    Unnormed,
    /// All, each by a norm of its own.
    Own,
    /// All: by the norm that attention reads it by or, where attention has a second one, by the first.
    Second,
}

/// What is normed of Q and K.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QkNorm {
    /// Nothing.
    None,
    /// Each head.
    Head,
    /// Each head of the layers whose tensors include the gains.
    HeadOrNone,
    /// All heads together.
    Row,
}

/// The activation of the feed-forward network.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Activation {
    /// `x * sigmoid(x)`.
    Silu,
    /// GELU by its tanh form (arXiv:1606.08415).
    GeluTanh,
    /// GELU by its error function.
    GeluErf,
    /// `max(x, 0)`.
    Relu,
    /// `max(x, 0)²` (arXiv:2109.08668).
    ReluSquared,
    /// `min(x, 7) * sigmoid(1.702 x)`, whose partner is between -7 and 7 and has 1 added (arXiv:2508.10925).
    SwigluClamped,
    /// One whose numbers are learned.
    Xielu(Xielu),
}

/// Layers whose queries see only the latest `tokens` keys.
#[derive(Debug, Clone, PartialEq)]
pub struct SlidingWindow {
    /// Keys that a query sees, itself included; of an encoder, so many on either side.
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
        let Some(family) = FAMILIES.iter().find(|family| family.name == architecture) else {
            return Err(ModelError::UnsupportedArchitecture {
                found: architecture,
                supported: ARCHITECTURES.join(", "),
            });
        };
        let keys = Keys { metadata, architecture: &architecture };
        if let Some(told) = keys.count("vocab_size", usize::MAX)?.filter(|&told| told != vocab) {
            return Err(keys.out_of_range(
                "vocab_size",
                told,
                format!("the rows of token_embd.weight, {vocab}"),
            ));
        }

        let blocks = keys.size("block_count", None, MAX_LAYERS)?;
        let ahead = keys.count("nextn_predict_layers", blocks - 1)?.unwrap_or(0);
        let layers = blocks - ahead;
        keys.refuse_unsupported(layers, family.causal)?;
        let hidden = keys.size("embedding_length", None, MAX_WIDTH)?;
        let heads = keys.size("attention.head_count", None, MAX_HEADS)?;
        let [of_layer_norm, of_rms_norm] =
            ["attention.layer_norm_epsilon", "attention.layer_norm_rms_epsilon"];
        let norm_eps = match family.layer_norm {
            // Phi 3.5's is by the other's name.
            true if keys.factor(of_layer_norm)?.is_none() && architecture == "phimoe" => {
                keys.positive(of_rms_norm, None)?
            }
            true => keys.positive(of_layer_norm, None)?,
            false => keys.positive(of_rms_norm, None)?,
        };
        let latent = if family.latent { Some(Latent::read(&keys, norm_eps)?) } else { None };
        let per_layer = match family.recurrent {
            RecurrentFamily::ShortConv => keys.counts("attention.head_count_kv", layers, MAX_HEADS)?,
            _ => None,
        };
        let recurrent = Recurrent::read(&keys, family.recurrent, layers, per_layer.as_deref())?;
        let dense_ffn = keys.per_layer("feed_forward_length", layers, MAX_WIDTH)?;
        let dense_ffn = dense_ffn.filter(|widths| widths.iter().any(|&width| width > 0));
        let experts =
            Experts::read(&keys, family, dense_ffn.as_ref().and_then(|widths| widths.first().copied()))?;
        let ffn = match dense_ffn {
            Some(widths) => widths,
            // All layers have experts, or one misses its tensors.
            None if experts.is_some() => vec![0; layers],
            None => vec![keys.size("feed_forward_length", None, MAX_WIDTH)?; layers],
        };
        let positions = keys.size("context_length", None, MAX_CONTEXT)?;
        let most = metadata.context_length()?.and_then(|most| usize::try_from(most).ok());
        let mut context_train = most.map_or(positions, |most| most.min(positions));
        if keys.factor("attention.temperature_scale")?.is_some() {
            // Queries get a factor that is 1 up to here, which is how far this goes.
            let suffix = "attention.temperature_length";
            let first = match keys.count(suffix, MAX_CONTEXT)?.filter(|&length| length > 0) {
                Some(length) => length,
                None => keys.size("rope.scaling.original_context_length", None, MAX_CONTEXT)?,
            };
            context_train = context_train.min(first);
        }
        let window = keys.sliding_window(family, layers, context_train)?;
        let [kv, kv_local] = match &latent {
            Some(latent) => [KvShape { heads: 1, head_dim: latent.width() }; 2],
            None => head_shapes(&keys, hidden, heads, layers, per_layer.as_deref(), window.as_ref())?,
        };
        let head_dim = kv.head_dim;
        let rope =
            Rope::read(&keys, family, context_train, latent.map_or(head_dim, |latent| latent.rotated))?;
        let local_base = match family.local {
            Local::Same => None,
            Local::Unstretched => Some(rope.base),
            Local::Base(usual) => Some(keys.positive("rope.freq_base_swa", Some(usual))?),
        };
        let rope_local = match local_base {
            Some(base) => {
                Rope { base, position_divisor: 1.0, yarn: None, magnitude: 1.0, factors: false, ..rope }
            }
            None => rope,
        };
        let rope_local = Rope { dims: rope.local_dims(&keys, kv, kv_local)?, ..rope_local };
        let rotated = keys.rotated(family, layers, window.as_ref())?;
        let attention_scale = match keys.factor("attention.scale")? {
            Some(scale) => scale,
            None => {
                let width = if family.unscaled { 1 } else { latent.map_or(head_dim, |l| l.head_dim()) };
                attention_scale(&keys, layers, hidden / heads, width, family.latent)?
            }
        };
        let activation = keys.activation()?;
        let [embedding, residual, logit] = scales(&keys, hidden, layers)?;
        let root_scale = if family.root_scale { (hidden as f32).sqrt() } else { 1.0 };

        Ok(Self {
            layers,
            hidden,
            heads,
            kv_heads: kv.heads,
            head_dim,
            kv_local,
            shared_kv: shared_kv(&keys, layers, window.as_ref())?,
            ffn,
            layer_inputs: keys.count("embedding_length_per_layer_input", MAX_WIDTH / layers)?.unwrap_or(0),
            cutoffs: if family.altup { altup::cutoffs(&keys, layers)? } else { Vec::new() },
            altup: if family.altup { Some(AltUp::read(&keys)?) } else { None },
            gated: family.gated,
            experts,
            latent,
            recurrent,
            ahead,
            gated_attention: family.gated_attention,
            vocab,
            context_train,
            causal: family.causal,
            learned_positions: family.learned_positions,
            token_types: match metadata.u32_opt("tokenizer.ggml.token_type_count")? {
                Some(count) if family.token_types > 0 => count as usize,
                _ => family.token_types,
            },
            embedding_norm: family.embedding_norm,
            final_norm: !family.sum_norm,
            layer_norm: family.layer_norm,
            norm_gains: family.norm_gains,
            norm_eps,
            rope,
            rope_local,
            rotated,
            attention_scale,
            attention_soft_cap: keys.factor("attn_logit_softcapping")?,
            sinks: family.sinks,
            window,
            embedding_scale: embedding.unwrap_or(root_scale),
            residual_scale: residual.unwrap_or(1.0),
            logit_scale: match logit {
                Some(factor) if family.parallel != Parallel::No => factor,
                Some(divisor) => 1.0 / divisor,
                None => 1.0,
            },
            activation: activation.unwrap_or(family.activation),
            xielu: match family.xielu && activation.is_none() {
                true => Xielu::read(metadata, layers)?,
                false => Vec::new(),
            },
            logit_soft_cap: keys.factor("final_logit_softcapping")?,
            qk_norm: family.qk_norm,
            value_norm: family.value_norm,
            keys_as_values: family.keys_as_values,
            rope_first: family.rope_first,
            pre_norm: family.pre_norm,
            post_norm: family.post_norm,
            sum_norm: family.sum_norm,
            parallel: match (family.parallel, keys.flag("use_parallel_residual")?) {
                (Parallel::Own, Some(false)) => Parallel::No,
                (parallel, _) => parallel,
            },
            // The convention has no key for models that lack what their architecture has.
            qkv_bias: metadata.bool_opt("moli.qkv_bias")?.unwrap_or(family.qkv_bias),
            architecture,
        })
    }

    /// Width of the queries of all heads, as the weights give them.
    pub fn q_width(&self) -> usize {
        self.heads * self.latent.map_or(self.head_dim, |latent| latent.head_dim())
    }

    /// Width of what attention of a layer hands on, of all heads.
    pub fn attended_width(&self, layer: usize) -> usize {
        self.heads * self.latent.map_or(self.kv_of(layer).head_dim, |latent| latent.value)
    }

    /// The greatest width of a layer's queries, and that of its keys.
    pub fn widest_heads(&self) -> [usize; 2] {
        let kv = KvShape { heads: self.kv_heads, head_dim: self.head_dim };
        let queries = self.heads * kv.head_dim.max(self.kv_local.head_dim);
        [queries, kv.width().max(self.kv_local.width())]
    }

    /// The greatest width of what a matrix is multiplied with.
    pub fn widest_input(&self) -> usize {
        let latent = self
            .latent
            .map_or(0, |l| l.kv_rank.max(l.plain).max(l.q_rank.unwrap_or(0)).max(self.heads * l.value));
        let recurrent = self.recurrent.as_ref().map_or(0, |recurrent| recurrent.kind.width(self.hidden));
        let [queries, _] = self.widest_heads();
        [queries, self.widest_ffn(), latent, recurrent].into_iter().fold(self.hidden, usize::max)
    }

    /// The greatest width inside a feed-forward network, or what gates a layer's own vector of a token.
    pub fn widest_ffn(&self) -> usize {
        let dense = self.ffn.iter().copied().fold(self.layer_inputs, usize::max);
        self.experts.as_ref().map_or(dense, |experts| dense.max(experts.ffn).max(experts.shared_ffn))
    }

    /// The activation of a layer's feed-forward network.
    pub fn activation_of(&self, layer: usize) -> Activation {
        self.xielu.get(layer).map_or(self.activation, |&xielu| Activation::Xielu(xielu))
    }

    /// The sliding window of a layer in tokens, or `None` where it sees everything.
    pub fn window_of(&self, layer: usize) -> Option<usize> {
        let window = self.window.as_ref()?;
        window.layers.get(layer).copied().unwrap_or(false).then_some(window.tokens)
    }

    /// Key and value heads that a layer sees, its own or those of another.
    pub fn kv_of(&self, layer: usize) -> KvShape {
        match self.window_of(layer) {
            Some(_) => self.kv_local,
            None => KvShape { heads: self.kv_heads, head_dim: self.head_dim },
        }
    }

    /// Whether a layer sees keys and values.
    pub fn attends(&self, layer: usize) -> bool {
        self.recurrent.as_ref().is_none_or(|recurrent| !recurrent.has(layer))
    }

    /// Whether a layer has keys and values of its own.
    pub fn keeps_kv(&self, layer: usize) -> bool {
        layer < self.layers - self.shared_kv && self.attends(layer)
    }

    /// Of each layer with keys and values of its own their shape, in order: what a cache holds.
    pub fn kv_shapes(&self) -> Vec<KvShape> {
        (0..self.layers).filter(|&layer| self.keeps_kv(layer)).map(|layer| self.kv_of(layer)).collect()
    }

    /// Per layer whose keys and values it sees, by their place in [`kv_shapes`](Self::kv_shapes); of no meaning where it sees none.
    pub fn kv_places(&self) -> Vec<usize> {
        // The next place, and the last one of the layers with global and with local attention.
        let (mut next, mut last) = (0, [0; 2]);
        let place = |layer| {
            let last = &mut last[usize::from(self.window_of(layer).is_some())];
            if self.keeps_kv(layer) {
                *last = next;
                next += 1;
            }
            *last
        };
        (0..self.layers).map(place).collect()
    }

    /// Bytes of the keys and values of [`PAGE_TOKENS`](crate::PAGE_TOKENS) tokens in all layers; saturates.
    pub fn page_bytes(&self, kv_type: KvType) -> u64 {
        let layer = |shape: KvShape| kv_type.page_bytes(1, shape.heads, shape.head_dim).unwrap_or(u64::MAX);
        self.kv_shapes().into_iter().map(layer).fold(0, u64::saturating_add)
    }

    /// Bytes of the state of one sequence, whatever its length; 0 where all layers have attention.
    pub fn state_bytes(&self) -> u64 {
        self.recurrent.as_ref().map_or(0, |recurrent| recurrent.state_bytes(self.hidden).unwrap_or(u64::MAX))
    }

    /// Bytes of keys and values per token in f16.
    pub fn kv_bytes_per_token(&self) -> u64 {
        self.page_bytes(KvType::F16) / crate::PAGE_TOKENS as u64
    }
}

/// Layers, the last ones, without keys and values of their own.
fn shared_kv(keys: &Keys<'_>, layers: usize, window: Option<&SlidingWindow>) -> Result<usize, ModelError> {
    let suffix = "attention.shared_kv_layers";
    let shared = keys.count(suffix, layers)?.unwrap_or(0);
    let local = |layer: usize| window.is_some_and(|window| window.layers.get(layer) == Some(&true));
    let first = layers - shared;
    let has_some = |layer: usize| (0..first).any(|other| local(other) == local(layer));
    if !(first..layers).all(has_some) {
        let allowed = format!("so few of {layers} that each kind of attention has keys before them");
        return Err(keys.out_of_range(suffix, shared, allowed));
    }
    Ok(shared)
}

/// Key heads, and the width of a head, of the layers with global attention and of those with a window. `with_state`: the key
/// heads of each layer, where those that have none carry a state.
fn head_shapes(
    keys: &Keys<'_>,
    hidden: usize,
    heads: usize,
    layers: usize,
    with_state: Option<&[usize]>,
    window: Option<&SlidingWindow>,
) -> Result<[KvShape; 2], ModelError> {
    let suffix = "attention.head_count_kv";
    let counts = match with_state {
        Some(counts) => counts.to_vec(),
        None => keys.per_layer(suffix, layers, MAX_HEADS)?.unwrap_or_else(|| vec![heads; layers]),
    };
    // Layers that differ are of two kinds.
    let count_of = |local: bool| {
        let is_local = |layer: usize| window.is_some_and(|window| window.layers.get(layer) == Some(&true));
        let of_kind = counts.iter().enumerate().filter(|&(layer, _)| is_local(layer) == local);
        let mut some = of_kind.map(|(_, &count)| count).filter(|&count| count > 0 || with_state.is_none());
        let first = some.next();
        if some.any(|count| Some(count) != first) {
            return Err(
                keys.unsupported(suffix, "a count that differs between layers with the same attention")
            );
        }
        Ok(first)
    };
    let (global, local) = (count_of(false)?, count_of(true)?);
    let global_dim = head_dim(keys, ["attention.key_length", "attention.value_length"], hidden / heads)?;
    let local_dim = match window {
        Some(_) => head_dim(keys, ["attention.key_length_swa", "attention.value_length_swa"], global_dim)?,
        None => global_dim,
    };
    let shape = |count: Option<usize>, head_dim| match count.unwrap_or(heads) {
        0 => Err(keys.out_of_range(suffix, 0, format!("between 1 and {MAX_HEADS}"))),
        kv_heads if heads.is_multiple_of(kv_heads) => Ok(KvShape { heads: kv_heads, head_dim }),
        kv_heads => Err(keys.out_of_range(suffix, kv_heads, format!("a divisor of {heads}"))),
    };
    Ok([shape(global.or(local), global_dim)?, shape(local.or(global), local_dim)?])
}

/// The width of keys, which is that of values too.
fn head_dim(keys: &Keys<'_>, [key, value]: [&str; 2], usual: usize) -> Result<usize, ModelError> {
    let head_dim = keys.size(key, Some(usual), MAX_HEAD_DIM)?;
    let value_dim = keys.size(value, Some(head_dim), MAX_HEAD_DIM)?;
    if value_dim != head_dim {
        return Err(keys.out_of_range(value, value_dim, format!("{head_dim}, as the keys are")));
    }
    Ok(head_dim)
}

/// The factor on the scores of files that have none: one over the root of a width.
fn attention_scale(
    keys: &Keys<'_>,
    layers: usize,
    per_head: usize,
    head_dim: usize,
    latent: bool,
) -> Result<f32, ModelError> {
    // Gemma 2 and 3 of 27B alone scale by the width per head instead of the head's width (arXiv:2408.00118, arXiv:2503.19786).
    let width = match (keys.architecture, layers) {
        ("gemma2", 46) | ("gemma3", 62) => per_head,
        _ => head_dim,
    };
    let scale = 1.0 / (width as f32).sqrt();
    // DeepSeek's YaRN sharpens the scores: this is squared, for the query and the key.
    let sharper = match keys.factor("rope.scaling.yarn_log_multiplier")? {
        Some(multiplier) if latent => {
            1.0 + multiplier * keys.factor("rope.scaling.factor")?.unwrap_or(1.0).max(1.0).ln()
        }
        _ => 1.0,
    };
    Ok(scale * sharper * sharper)
}

/// The factors on embeddings and residuals, and what logits are divided by (Granite; MiniCPM, arXiv:2404.06395) or, in Cohere's
/// models, multiplied with.
fn scales(keys: &Keys<'_>, hidden: usize, layers: usize) -> Result<[Option<f32>; 3], ModelError> {
    let suffixes = ["embedding_scale", "residual_scale", "logit_scale"];
    let mut scales = [None; 3];
    for (scale, suffix) in scales.iter_mut().zip(suffixes) {
        *scale = keys.factor(suffix)?;
        // Others mean something else by these keys.
        if let Some(value) = scale.filter(|&value| value != 1.0)
            && !["granite", "granitemoe", "minicpm"].contains(&keys.architecture)
            && !(suffix == "logit_scale" && ["command-r", "cohere2"].contains(&keys.architecture))
        {
            return Err(keys.unsupported(suffix, value));
        }
    }
    if keys.architecture == "minicpm" {
        // Older files leave out the numbers of the first MiniCPM.
        let published = [12.0, 1.4 / (layers as f32).sqrt(), hidden as f32 / 256.0];
        for (scale, value) in scales.iter_mut().zip(published) {
            scale.get_or_insert(value);
        }
    }
    Ok(scales)
}
