//! What is known of each architecture, as data.
//!
//! - [`parts`]: the tensors of a layer, by their old and new names;
//! - [`table`]: the families.

mod parts;
mod table;

use super::HuggingFaceError;
use table::FAMILIES;

/// An architecture of Hugging Face's, and how it becomes one of the GGUF convention.
pub(super) struct Family {
    /// As `model_type` spells it.
    pub(super) model_types: &'static [&'static str],
    /// As `general.architecture` spells it.
    pub(super) architecture: &'static str,
    /// The spellings of the one activation that is computed.
    pub(super) activations: &'static [&'static str],
    /// Fields, and what the configurations of this family call them.
    pub(super) aliases: &'static [(&'static str, &'static str)],
    /// Numbers that a configuration may leave out, by the names that others have for them.
    pub(super) defaults: &'static [(&'static str, f64)],
    /// `tie_word_embeddings` where it is left out.
    pub(super) tied: bool,
    /// Whether the convention has the rows of Q and K for interleaved rotary pairs, and this model has halves.
    pub(super) halves: bool,
    /// Which layers have a sliding window if `layer_types` does not say it.
    pub(super) window: Window,
    /// What is around the layers of a decoder.
    pub(super) names: &'static Names,
    /// What is around the layers of an encoder.
    pub(super) encoder: Option<&'static Encoder>,
    /// The parts of a layer.
    pub(super) parts: &'static [(&'static str, Part)],
    /// Fields of [`SENSITIVE`] that are read.
    pub(super) reads: &'static [&'static str],
    /// What is special, beyond the parameters that all have.
    pub(super) special: Special,
}

impl Family {
    /// Whether its norms count from one.
    pub(super) fn norms_from_one(&self) -> bool {
        self.parts.iter().any(|(_, part)| matches!(part, Part::PlusOne(_)))
    }

    /// What stands before the number of a layer.
    pub(super) fn layers(&self) -> &'static str {
        self.encoder.map_or(self.names.layers, |encoder| encoder.layers)
    }
}

/// What becomes of a part of a layer. `blk.N.` stands before a new name, `.weight` or `.bias` behind it. The number of an expert,
/// the `*` in a part's name, becomes a `.N` behind the new one, as in files of before experts were stacked: so they stay
/// where they are.
#[derive(Debug, Clone, Copy)]
pub(super) enum Part {
    /// It gets this name.
    As(&'static str),
    /// It gets this name, and is a bias whatever its own name says.
    Bias(&'static str),
    /// It gets this name and has 1 added: the norm's code adds it.
    PlusOne(&'static str),
    /// It gets this name: the taps of a convolution, each channel with an input of its own, a dimension of one that goes.
    Taps(&'static str),
    /// It gets this name, with `.scale` behind it: a factor, not a weight.
    Scale(&'static str),
    /// The rows of a gate and those of what it gates, one after the other, for each expert if there are some.
    GateUp,
    /// The same of an expert that every token goes through.
    SharedGateUp,
    /// The way back of all experts.
    Down,
    /// Queries, keys and values, one after the other.
    Qkv,
    /// For each head of keys its queries, then the key, then the value.
    GroupedQkv,
    /// The same, which stays one tensor: all queries, then all keys, then all values.
    FusedQkv,
    /// It gets this name, and its matrix has its inputs as rows.
    Transposed(&'static str),
    /// What the library's code computes for itself.
    Ignored,
    /// A number that the convention has in a list with those of the other layers, by this key.
    Listed(&'static str),
    /// gpt-oss: gates and what they gate in turns, of all experts.
    Harmony(Harmony),
    /// Of a gated delta net what has heads of values.
    Delta(Delta),
}

/// What a gated delta net has.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Delta {
    /// Queries, keys, values and gates, key head by key head.
    Mixed,
    /// Queries, then keys, then values.
    Qkv,
    /// The gate of what a head finds.
    Gate,
    /// How strongly a token corrects the state, of each value head.
    Rate,
    /// How fast it fades, likewise.
    Decay,
    /// Taps of the convolution.
    Taps,
    /// What the decays are multiplied by, as the logarithm of its opposite.
    Slope,
    /// What is added to them.
    Bias,
    /// The way back to the residual stream.
    Out,
}

/// What gpt-oss has of its experts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Harmony {
    /// Matrices with their inputs as rows.
    GateUp,
    /// The same for the way back.
    Down,
    GateUpBias,
    DownBias,
    /// Blocks of 4 bits; their scales are looked up beside them.
    GateUpBlocks,
    /// The same for the way back.
    DownBlocks,
    /// Read with the blocks.
    Scales,
}

/// Layers with a sliding window.
#[derive(Clone, Copy)]
pub(super) enum Window {
    /// Where `use_sliding_window` is set, those from `max_window_layers` on.
    Late,
    /// Where `use_sliding_window` is set, every other of those before `max_window_layers`.
    Alternate,
    /// Where `use_sliding_window` is set, those without rotary embedding.
    Unrotated,
    /// All where `use_sliding_window` is set.
    Wanted,
    /// All.
    All,
    /// All but each last of so many (`sliding_window_pattern`, or this number).
    Period(u32),
}

/// Parameters that only some families have.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Special {
    None,
    /// Experts whose number is `num_local_experts` or `num_experts`, with widths of their own or not.
    Experts,
    /// Norms that count from one, scaled embeddings and soft caps.
    Gemma,
    /// The same with norms as they are; two kinds of heads, layers without keys, and vectors that layers have for tokens.
    Gemma4,
    /// The same with heads of one kind, and streams beside each other.
    Gemma3n,
    /// Factors on the embeddings, the residual stream, the scores and the logits; experts or not.
    Granite,
    /// The same in other terms.
    MiniCpm,
    /// Layers without rotary embedding.
    SmolLm3,
    /// Layers that are convolutions; experts or not.
    Lfm2,
    /// Layers that are gated delta nets, and attention with a gate; experts or not.
    DeltaNet,
    Ernie,
    /// Parallel layers, each half with a norm of its own.
    GptNeoX,
    /// An activation with learned numbers.
    Apertus,
    /// A router that chooses one expert after the other.
    PhiMoe,
    /// A router by sigmoids, and a number of turned elements by another name.
    MiniMaxM2,
    /// Learned positions, and matrices that have their inputs as rows.
    Gpt2,
    /// Parallel layers, with one norm or two.
    Falcon,
    /// One norm for both halves of a layer, and a factor on the logits.
    Cohere,
    /// Experts as DeepSeek has them.
    Glm4Moe,
    DeepSeek,
    GptOss,
    Baichuan,
    /// Post-norm encoders with kinds of token; positions are learned.
    Bert,
    /// The same with learned positions that begin behind the padding's id.
    Roberta,
    /// The same with rotary positions.
    NomicBert,
    ModernBert,
}

/// A decoder's tensors beside those of its layers, by their stems.
pub(super) struct Names {
    /// What stands before all names but that of the output layer.
    pub(super) prefix: &'static str,
    /// What stands before the number of a layer.
    pub(super) layers: &'static str,
    /// Old and new stems; of several old ones the first is the one that is written.
    pub(super) stems: &'static [(&'static str, &'static str)],
}

impl Names {
    /// The new stem of a tensor.
    pub(super) fn new_stem(&self, stem: &str) -> Option<&'static str> {
        self.stems.iter().find(|(old, _)| *old == stem).map(|(_, new)| *new)
    }

    /// The stem that a tensor has in a folder, with what stands before it.
    pub(super) fn old_stem(&self, stem: &str) -> Option<String> {
        let (old, new) = self.stems.iter().find(|(_, new)| *new == stem)?;
        Some(if *new == "output" { (*old).to_owned() } else { format!("{}{old}", self.prefix) })
    }
}

/// An encoder's tensors beside those of its layers, by their stems, and what is left out.
pub(super) struct Encoder {
    /// What stands before the number of a layer.
    pub(super) layers: &'static str,
    /// Old and new stems.
    pub(super) stems: &'static [(&'static str, &'static str)],
    /// The same of a model that sorts texts.
    pub(super) classifier: &'static [(&'static str, &'static str)],
    /// Beginnings of what is left out: heads that guess words.
    pub(super) ignored: &'static [&'static str],
}

impl Encoder {
    /// The new stem of a tensor, of a model that sorts texts or not.
    pub(super) fn stem(&self, stem: &str, sorts: bool) -> Option<&'static str> {
        let classifier = if sorts { self.classifier } else { &[] };
        self.stems.iter().chain(classifier).find(|(old, _)| *old == stem).map(|(_, new)| *new)
    }
}

/// Fields that change what a model computes, with the number, or truth value as a number, that changes nothing (a field
/// that is absent never does). A family that does not read one refuses any other value.
pub(super) const SENSITIVE: &[(&str, f64)] = &[
    ("add_cross_attention", 0.0),
    ("alibi", 0.0),
    ("attention_chunk_size", 0.0),
    ("attention_multiplier", 1.0),
    ("attn_logit_softcapping", 0.0),
    ("clip_qkv", 0.0),
    ("conv_bias", 0.0),
    ("dim_model_base", 0.0),
    ("embedding_multiplier", 1.0),
    ("final_logit_softcapping", 0.0),
    ("is_decoder", 0.0),
    ("kv_lora_rank", 0.0),
    ("logit_scale", 1.0),
    ("logits_scaling", 1.0),
    ("n_embed", 0.0),
    ("n_routed_experts", 0.0),
    ("no_rope_layer_interval", 0.0),
    ("num_experts", 0.0),
    ("num_kv_shared_layers", 0.0),
    ("num_local_experts", 0.0),
    ("parallel_attn", 0.0),
    ("q_lora_rank", 0.0),
    ("qk_layernorm", 0.0),
    ("query_pre_attn_scalar", 0.0),
    ("residual_multiplier", 1.0),
    ("routed_scaling_factor", 1.0),
    ("scale_attn_by_inverse_layer_idx", 0.0),
    ("scale_attn_weights", 1.0),
    ("scale_depth", 0.0),
    ("scale_emb", 1.0),
    ("use_bidirectional_attention", 0.0),
    ("use_parallel_residual", 0.0),
    ("use_qk_norm", 0.0),
    ("swiglu_alpha", 1.702),
    ("swiglu_limit", 7.0),
    ("rope_interleave", 1.0),
    ("moe_layer_freq", 1.0),
    ("attention_k_eq_v", 0.0),
    ("enable_moe_block", 0.0),
    ("hidden_size_per_layer_input", 0.0),
    ("use_double_wide_mlp", 0.0),
    ("altup_num_inputs", 1.0),
    ("laurel_rank", 0.0),
    ("activation_sparsity_pattern", 0.0),
];

/// In the place of a field: the epsilon of norms that no configuration tells.
pub(super) const NO_EPSILON: &str = "eps";

impl Family {
    /// The field with the epsilon of LayerNorm; `None`: another norm, whose field is `rms_norm_eps`.
    pub(super) fn layer_norm(&self) -> Option<&'static str> {
        match self.architecture {
            "command-r" | "cohere2" | "stablelm" | "phi2" | "gptneox" | "bert" | "nomic-bert" => {
                Some("layer_norm_eps")
            }
            "nemotron" | "modern-bert" => Some("norm_eps"),
            "starcoder2" => Some("norm_epsilon"),
            "gpt2" | "falcon" => Some("layer_norm_epsilon"),
            // Which its configurations don't have: it is the same in all of them.
            "olmo" => Some(NO_EPSILON),
            _ => None,
        }
    }

    /// Whether nothing is turned by its position: positions are learned.
    pub(super) fn unturned(&self) -> bool {
        matches!(self.special, Special::Bert | Special::Roberta | Special::Gpt2)
    }

    /// Whether it is the language model of one that sees, whose configuration need not say so.
    pub(super) fn sees(&self) -> bool {
        matches!(self.architecture, "qwen2vl" | "qwen3vl" | "qwen3vlmoe")
    }
}

/// Those that become this architecture.
pub(super) fn of_architecture(architecture: &str) -> impl Iterator<Item = &'static Family> {
    FAMILIES.iter().filter(move |family| family.architecture == architecture)
}

/// The parts of the layers of all of these.
pub(super) fn parts_of(architecture: &str) -> impl Iterator<Item = (&'static str, Part)> {
    of_architecture(architecture).flat_map(|family| family.parts).copied()
}

/// The family of a model type.
pub(super) fn find(model_type: &str) -> Result<&'static Family, HuggingFaceError> {
    FAMILIES.iter().find(|family| family.model_types.contains(&model_type)).ok_or_else(|| {
        let known: Vec<&str> = FAMILIES.iter().flat_map(|family| family.model_types).copied().collect();
        HuggingFaceError::UnknownModelType { model_type: model_type.to_owned(), supported: known.join(", ") }
    })
}

/// The first model type of an architecture. There is no way back to the folder of a model that sees.
pub(super) fn model_type_of(architecture: &str) -> Result<&'static str, HuggingFaceError> {
    let family = of_architecture(architecture).find(|family| !family.sees());
    family.and_then(|family| family.model_types.first().copied()).ok_or_else(|| {
        let mut known: Vec<&str> =
            FAMILIES.iter().filter(|family| !family.sees()).map(|family| family.architecture).collect();
        known.dedup();
        HuggingFaceError::NoModelType { architecture: architecture.to_owned(), supported: known.join(", ") }
    })
}
