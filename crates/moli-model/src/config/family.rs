//! What sets the architectures apart: a table with a row for each. What a file's metadata says goes before it.

use moli_kernels::RopeStyle;

use super::{Activation, Gating, Parallel, QkNorm, RecurrentFamily};

/// An architecture: where it differs from [`PLAIN`].
#[derive(Debug, Clone, Copy)]
pub(super) struct Family {
    /// `general.architecture`.
    pub(super) name: &'static str,
    /// The order of the rotated elements in files of this architecture.
    pub(super) rope: RopeStyle,
    /// Base of the rotary wavelengths where the file has none.
    pub(super) rope_base: f32,
    /// The layers that rotate.
    pub(super) rotated: Rotated,
    /// The rotary embedding of the layers with a window.
    pub(super) local: Local,
    /// Whether a token sees those before it only.
    pub(super) causal: bool,
    pub(super) learned_positions: bool,
    /// Kinds of token, where the file does not say.
    pub(super) token_types: usize,
    pub(super) embedding_norm: bool,
    /// LayerNorm with a bias instead of RMS norm.
    pub(super) layer_norm: bool,
    /// Whether norms have gains.
    pub(super) norm_gains: bool,
    /// Whether attention and the feed-forward network read the residual stream through a norm.
    pub(super) pre_norm: bool,
    /// Whether what they give goes through a norm.
    pub(super) post_norm: bool,
    /// Whether the residual stream goes through a norm after each sum, and so needs none at the end.
    pub(super) sum_norm: bool,
    pub(super) parallel: Parallel,
    pub(super) qk_norm: QkNorm,
    /// Whether the values of each head are normed, without a gain.
    pub(super) value_norm: bool,
    /// Whether what the keys are made of are the values of layers that have no matrix for them.
    pub(super) keys_as_values: bool,
    /// Whether the scores have no factor, as what is multiplied is normed.
    pub(super) unscaled: bool,
    /// Whether Q and K are normed behind their rotary embedding.
    pub(super) rope_first: bool,
    /// Whether Q, K and V must have biases.
    pub(super) qkv_bias: bool,
    /// Attention sinks: a score of each head for a key without a value.
    pub(super) sinks: bool,
    /// Keys and values from a latent vector.
    pub(super) latent: bool,
    /// Layers with a state instead of keys and values.
    pub(super) recurrent: RecurrentFamily,
    /// Whether each query comes with a gate.
    pub(super) gated_attention: bool,
    pub(super) activation: Activation,
    /// Whether each layer's activation has numbers of its own instead.
    pub(super) xielu: bool,
    /// Whether the feed-forward network has a gate.
    pub(super) gated: bool,
    /// Embeddings times the root of the width.
    pub(super) root_scale: bool,
    pub(super) windows: Windows,
    pub(super) gating: Gating,
    /// Whether the chosen experts' weights are divided by their sum.
    pub(super) normalised: bool,
    /// Whether there is a dense network beside the experts.
    pub(super) beside: bool,
    /// Whether there are streams beside each other, ways around attention, and gates that only count if they stand out.
    pub(super) altup: bool,
}

/// The layers that have a window, where the file gives a window and no pattern.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Windows {
    /// A window is not part of the architecture.
    Refused,
    All,
    /// All but every `n`th.
    AllBut(usize),
    /// All but the first of each `n`.
    Global(usize),
}

/// The rotary embedding of the layers with a window.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Local {
    /// That of all layers.
    Same,
    /// The same without what stretches the context, which a window never reaches.
    Unstretched,
    /// Such a one with this base where the file has none for it.
    Base(f32),
}

/// The layers with a rotary embedding, where the file does not say.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Rotated {
    All,
    /// All but every `n`th.
    AllBut(usize),
    /// Those with a window, or all if there is none.
    Windowed,
    None,
}

/// Llama without its order of rotated elements.
const PLAIN: Family = Family {
    name: "",
    rope: RopeStyle::Halves,
    rope_base: 1e4,
    rotated: Rotated::All,
    local: Local::Same,
    causal: true,
    learned_positions: false,
    token_types: 0,
    embedding_norm: false,
    layer_norm: false,
    norm_gains: true,
    pre_norm: true,
    post_norm: false,
    sum_norm: false,
    parallel: Parallel::No,
    qk_norm: QkNorm::None,
    value_norm: false,
    keys_as_values: false,
    unscaled: false,
    rope_first: false,
    qkv_bias: false,
    sinks: false,
    latent: false,
    recurrent: RecurrentFamily::None,
    gated_attention: false,
    activation: Activation::Silu,
    xielu: false,
    gated: true,
    root_scale: false,
    windows: Windows::Refused,
    gating: Gating::Softmax,
    normalised: true,
    beside: false,
    altup: false,
};

/// As [`PLAIN`], with pairs of neighbours rotated.
const INTERLEAVED: Family = Family { rope: RopeStyle::Interleaved, ..PLAIN };

/// Gemma, the first (arXiv:2403.08295).
const GEMMA: Family = Family { activation: Activation::GeluTanh, root_scale: true, ..PLAIN };

/// Qwen3-Next, whose delta rules have their value heads in the order of their key heads.
const QWEN3_NEXT: Family = Family {
    name: "qwen3next",
    qk_norm: QkNorm::Head,
    recurrent: RecurrentFamily::DeltaNet { tiled: false },
    gated_attention: true,
    ..PLAIN
};

/// Qwen3.5, where they take turns.
const QWEN35: Family =
    Family { name: "qwen35", recurrent: RecurrentFamily::DeltaNet { tiled: true }, ..QWEN3_NEXT };

/// Cohere's Command R.
const COMMAND_R: Family =
    Family { name: "command-r", layer_norm: true, parallel: Parallel::Unnormed, ..INTERLEAVED };

/// BERT (arXiv:1810.04805), RoBERTa and XLM-RoBERTa.
const BERT: Family = Family {
    name: "bert",
    rotated: Rotated::None,
    causal: false,
    learned_positions: true,
    token_types: 2,
    embedding_norm: true,
    layer_norm: true,
    pre_norm: false,
    sum_norm: true,
    qkv_bias: true,
    activation: Activation::GeluErf,
    gated: false,
    ..PLAIN
};

/// The architectures that the decoder computes.
pub(super) const FAMILIES: [Family; 60] = [
    // Mistral and Mixtral too.
    Family { name: "llama", windows: Windows::All, ..INTERLEAVED },
    Family { name: "qwen2", qkv_bias: true, windows: Windows::All, ..PLAIN },
    Family { name: "qwen2moe", qkv_bias: true, normalised: false, windows: Windows::All, ..PLAIN },
    Family { name: "qwen3", qk_norm: QkNorm::Head, windows: Windows::All, ..PLAIN },
    Family { name: "qwen3moe", qk_norm: QkNorm::Head, windows: Windows::All, ..PLAIN },
    // Their language models; a position of a text is the same number in all its parts.
    Family { name: "qwen2vl", qkv_bias: true, ..PLAIN },
    Family { name: "qwen3vl", qk_norm: QkNorm::Head, ..PLAIN },
    Family { name: "qwen3vlmoe", qk_norm: QkNorm::Head, ..PLAIN },
    Family { name: "gemma", ..GEMMA },
    Family { name: "gemma2", post_norm: true, windows: Windows::AllBut(2), ..GEMMA },
    Family {
        name: "gemma3",
        rope_base: 1e6,
        local: Local::Base(1e4),
        post_norm: true,
        qk_norm: QkNorm::Head,
        windows: Windows::AllBut(6),
        ..GEMMA
    },
    // Phi-4 too.
    Family { name: "phi3", windows: Windows::All, ..PLAIN },
    // arXiv:2404.14219.
    Family {
        name: "phimoe",
        layer_norm: true,
        gating: Gating::SparseMixer,
        normalised: false,
        windows: Windows::All,
        ..PLAIN
    },
    Family { name: "minimax-m2", qk_norm: QkNorm::Row, gating: Gating::Sigmoid, ..PLAIN },
    Family { name: "smollm3", rotated: Rotated::AllBut(4), windows: Windows::All, ..INTERLEAVED },
    Family { name: "chatglm", ..INTERLEAVED },
    Family { name: "glm4", post_norm: true, ..INTERLEAVED },
    Family { name: "glm4moe", qk_norm: QkNorm::HeadOrNone, gating: Gating::Sigmoid, ..PLAIN },
    Family { name: "granite", ..INTERLEAVED },
    Family { name: "granitemoe", ..INTERLEAVED },
    // arXiv:2402.00838.
    Family { name: "olmo", layer_norm: true, norm_gains: false, ..INTERLEAVED },
    // The third too.
    Family {
        name: "olmo2",
        local: Local::Unstretched,
        pre_norm: false,
        post_norm: true,
        qk_norm: QkNorm::Row,
        windows: Windows::AllBut(4),
        ..PLAIN
    },
    Family { name: "olmoe", qk_norm: QkNorm::Row, normalised: false, ..PLAIN },
    Family { name: "internlm2", ..INTERLEAVED },
    Family { name: "baichuan", ..INTERLEAVED },
    Family { name: "minicpm", ..INTERLEAVED },
    Family {
        name: "exaone4",
        pre_norm: false,
        post_norm: true,
        qk_norm: QkNorm::Head,
        rotated: Rotated::Windowed,
        windows: Windows::AllBut(4),
        ..PLAIN
    },
    Family { name: "exaone", ..PLAIN },
    Family { name: "ernie4_5", ..INTERLEAVED },
    Family { name: "ernie4_5-moe", ..INTERLEAVED },
    Family { name: "deepseek", normalised: false, ..INTERLEAVED },
    Family { name: "dots1", qk_norm: QkNorm::Head, gating: Gating::Sigmoid, ..PLAIN },
    COMMAND_R,
    Family { name: "cohere2", rotated: Rotated::Windowed, windows: Windows::AllBut(4), ..COMMAND_R },
    Family { name: "mistral3", ..INTERLEAVED },
    Family { name: "stablelm", layer_norm: true, parallel: Parallel::Unnormed, ..PLAIN },
    Family {
        name: "phi2",
        layer_norm: true,
        parallel: Parallel::Unnormed,
        qkv_bias: true,
        activation: Activation::GeluTanh,
        gated: false,
        ..PLAIN
    },
    // arXiv:2204.06745; Pythia too.
    Family {
        name: "gptneox",
        layer_norm: true,
        parallel: Parallel::Own,
        qkv_bias: true,
        activation: Activation::GeluErf,
        gated: false,
        ..PLAIN
    },
    Family {
        name: "gpt2",
        rotated: Rotated::None,
        learned_positions: true,
        layer_norm: true,
        qkv_bias: true,
        activation: Activation::GeluTanh,
        gated: false,
        ..PLAIN
    },
    // arXiv:2311.16867.
    Family {
        name: "falcon",
        layer_norm: true,
        parallel: Parallel::Second,
        activation: Activation::GeluErf,
        gated: false,
        ..PLAIN
    },
    // arXiv:2509.14233.
    Family { name: "apertus", qk_norm: QkNorm::Head, xielu: true, gated: false, ..PLAIN },
    Family { name: "seed_oss", ..PLAIN },
    Family { name: "hunyuan-dense", qk_norm: QkNorm::Head, rope_first: true, ..PLAIN },
    Family { name: "hunyuan-moe", qk_norm: QkNorm::Head, rope_first: true, ..PLAIN },
    Family { name: "arcee", activation: Activation::ReluSquared, gated: false, ..INTERLEAVED },
    Family { name: "nemotron", layer_norm: true, activation: Activation::ReluSquared, gated: false, ..PLAIN },
    Family { name: "xverse", ..INTERLEAVED },
    Family { name: "deepseek2", latent: true, normalised: false, ..INTERLEAVED },
    Family {
        name: "gpt-oss",
        rope_base: 150_000.0,
        qkv_bias: true,
        sinks: true,
        activation: Activation::SwigluClamped,
        windows: Windows::AllBut(2),
        ..PLAIN
    },
    Family {
        name: "starcoder2",
        layer_norm: true,
        qkv_bias: true,
        activation: Activation::GeluTanh,
        gated: false,
        windows: Windows::All,
        ..PLAIN
    },
    // arXiv:2511.23404.
    Family { name: "lfm2", qk_norm: QkNorm::Head, recurrent: RecurrentFamily::ShortConv, ..PLAIN },
    Family {
        name: "lfm2moe",
        qk_norm: QkNorm::Head,
        recurrent: RecurrentFamily::ShortConv,
        gating: Gating::Sigmoid,
        ..PLAIN
    },
    QWEN3_NEXT,
    QWEN35,
    Family { name: "qwen35moe", ..QWEN35 },
    BERT,
    Family {
        name: "nomic-bert",
        rotated: Rotated::All,
        learned_positions: false,
        qkv_bias: false,
        activation: Activation::Silu,
        gated: true,
        ..BERT
    },
    // arXiv:2412.13663.
    Family {
        name: "modern-bert",
        rope_base: 1.6e5,
        local: Local::Base(1e4),
        causal: false,
        embedding_norm: true,
        layer_norm: true,
        activation: Activation::GeluErf,
        windows: Windows::Global(3),
        ..PLAIN
    },
    // Which layers have a window decides about the width of their heads too: a file has to say it.
    Family {
        name: "gemma4",
        rope_base: 1e6,
        local: Local::Base(1e4),
        post_norm: true,
        qk_norm: QkNorm::Head,
        value_norm: true,
        keys_as_values: true,
        unscaled: true,
        beside: true,
        ..GEMMA
    },
    Family {
        name: "gemma3n",
        rope_base: 1e6,
        local: Local::Base(1e4),
        post_norm: true,
        qk_norm: QkNorm::Head,
        value_norm: true,
        unscaled: true,
        windows: Windows::AllBut(5),
        altup: true,
        ..GEMMA
    },
];

const fn names() -> [&'static str; FAMILIES.len()] {
    let mut names = [""; FAMILIES.len()];
    let mut i = 0;
    while i < names.len() {
        names[i] = FAMILIES[i].name;
        i += 1;
    }
    names
}

/// The architectures that the decoder computes, as `general.architecture` spells them.
pub const ARCHITECTURES: [&str; FAMILIES.len()] = names();
