//! What is known of each architecture, as data.

use super::HuggingFaceError;

/// An architecture of Hugging Face's, and how it becomes one of the GGUF convention.
pub(super) struct Family {
    /// As `model_type` spells it.
    pub(super) model_types: &'static [&'static str],
    /// As `general.architecture` spells it.
    pub(super) architecture: &'static str,
    /// The spellings of the one activation that is computed.
    pub(super) activations: &'static [&'static str],
    /// Numbers that a configuration may leave out.
    pub(super) defaults: &'static [(&'static str, f64)],
    /// `tie_word_embeddings` where it is left out.
    pub(super) tied: bool,
    /// Whether the convention has the rows of Q and K for interleaved rotary pairs, and this model has halves.
    pub(super) halves: bool,
    /// Which layers have a sliding window if `layer_types` does not say it.
    pub(super) window: Window,
    /// The parts of a layer.
    pub(super) parts: &'static [(&'static str, Part)],
    /// Fields of [`SENSITIVE`] that are read.
    pub(super) reads: &'static [&'static str],
    /// What is special, beyond the parameters that all have.
    pub(super) special: Special,
}

/// What becomes of a part of a layer. `blk.N.` stands before a new name, `.weight` or `.bias` behind it.
#[derive(Clone, Copy)]
pub(super) enum Part {
    /// It gets this name.
    As(&'static str),
    /// It gets this name and has 1 added: the norm's code adds it.
    PlusOne(&'static str),
    /// One of the experts' matrices, whose number is the `*`: they are stacked to one tensor of this name.
    Stack(&'static str),
    /// The rows of a gate and those of what it gates, one after the other, for each expert where there are some.
    GateUp(&'static str, &'static str),
    /// Nothing: the decoder computes it.
    Ignore,
}

/// Layers with a sliding window.
#[derive(Clone, Copy)]
pub(super) enum Window {
    /// Where `use_sliding_window` is set, those from `max_window_layers` on.
    Late,
    /// All.
    All,
    /// All but each last of so many (`sliding_window_pattern`, or this number).
    Period(u32),
}

/// Parameters that only some families have.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Special {
    None,
    Gemma,
    DeepSeek,
}

use Part::{As, Stack};

const SILU: &[&str] = &["silu", "swish"];
const GELU_TANH: &[&str] = &["gelu_pytorch_tanh", "gelu_new", "gelu_fast"];
/// Gemma's first configurations said `gelu` and meant this.
const GEMMA_GELU: &[&str] = &["gelu_pytorch_tanh", "gelu_new", "gelu_fast", "gelu"];

const ATTENTION: [(&str, Part); 4] = [
    ("self_attn.q_proj", As("attn_q")),
    ("self_attn.k_proj", As("attn_k")),
    ("self_attn.v_proj", As("attn_v")),
    ("self_attn.o_proj", As("attn_output")),
];
const MLP: [(&str, Part); 3] =
    [("mlp.gate_proj", As("ffn_gate")), ("mlp.up_proj", As("ffn_up")), ("mlp.down_proj", As("ffn_down"))];
const NORMS: [(&str, Part); 2] =
    [("input_layernorm", As("attn_norm")), ("post_attention_layernorm", As("ffn_norm"))];
const QK_NORMS: [(&str, Part); 2] =
    [("self_attn.q_norm", As("attn_q_norm")), ("self_attn.k_norm", As("attn_k_norm"))];
/// Experts one by one, and as newer libraries save them.
const EXPERTS: [(&str, Part); 6] = [
    ("mlp.gate", As("ffn_gate_inp")),
    ("mlp.experts.*.gate_proj", Stack("ffn_gate_exps")),
    ("mlp.experts.*.up_proj", Stack("ffn_up_exps")),
    ("mlp.experts.*.down_proj", Stack("ffn_down_exps")),
    ("mlp.experts.gate_up_proj", Part::GateUp("ffn_gate_exps", "ffn_up_exps")),
    ("mlp.experts.down_proj", As("ffn_down_exps")),
];

const LLAMA_PARTS: &[(&str, Part)] = &join::<9>(&[&ATTENTION, &MLP, &NORMS]);
const QWEN3_PARTS: &[(&str, Part)] = &join::<11>(&[&ATTENTION, &MLP, &NORMS, &QK_NORMS]);
const QWEN3_MOE_PARTS: &[(&str, Part)] = &join::<17>(&[&ATTENTION, &MLP, &NORMS, &QK_NORMS, &EXPERTS]);

/// Tables one after the other; `N` is the sum of their lengths.
const fn join<const N: usize>(tables: &[&[(&'static str, Part)]]) -> [(&'static str, Part); N] {
    let mut all = [("", Part::Ignore); N];
    let (mut table, mut filled) = (0, 0);
    while table < tables.len() {
        let mut row = 0;
        while row < tables[table].len() {
            all[filled] = tables[table][row];
            row += 1;
            filled += 1;
        }
        table += 1;
    }
    assert!(filled == N, "the sum of the tables' lengths");
    all
}

/// Fields that change what a model computes, with the number, or truth value as a number, that changes nothing (a field
/// that is absent never does). A family that does not read one refuses any other value.
pub(super) const SENSITIVE: &[(&str, f64)] = &[
    ("alibi", 0.0),
    ("attention_chunk_size", 0.0),
    ("attention_multiplier", 1.0),
    ("attn_logit_softcapping", 0.0),
    ("clip_qkv", 0.0),
    ("dim_model_base", 0.0),
    ("embedding_multiplier", 1.0),
    ("final_logit_softcapping", 0.0),
    ("kv_lora_rank", 0.0),
    ("logit_scale", 1.0),
    ("logits_scaling", 1.0),
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
    ("scale_depth", 0.0),
    ("scale_emb", 1.0),
    ("use_bidirectional_attention", 0.0),
    ("use_parallel_residual", 0.0),
    ("use_qk_norm", 0.0),
];

/// What most families share.
const PLAIN: Family = Family {
    model_types: &[],
    architecture: "",
    activations: SILU,
    defaults: &[("rms_norm_eps", 1e-6), ("rope_theta", 1e4)],
    tied: false,
    halves: false,
    window: Window::Late,
    parts: LLAMA_PARTS,
    reads: &[],
    special: Special::None,
};

/// Norms that count from one, and the number of those around each half of a layer.
const GEMMA_PARTS: &[(&str, Part)] = &join::<9>(&[
    &ATTENTION,
    &MLP,
    &[
        ("input_layernorm", Part::PlusOne("attn_norm")),
        ("post_attention_layernorm", Part::PlusOne("ffn_norm")),
    ],
]);
const GEMMA3_PARTS: &[(&str, Part)] = &join::<13>(&[
    &ATTENTION,
    &MLP,
    &[
        ("input_layernorm", Part::PlusOne("attn_norm")),
        ("post_attention_layernorm", Part::PlusOne("post_attention_norm")),
        ("pre_feedforward_layernorm", Part::PlusOne("ffn_norm")),
        ("post_feedforward_layernorm", Part::PlusOne("post_ffw_norm")),
        ("self_attn.q_norm", Part::PlusOne("attn_q_norm")),
        ("self_attn.k_norm", Part::PlusOne("attn_k_norm")),
    ],
]);

static FAMILIES: &[Family] = &[
    Family { model_types: &["llama"], architecture: "llama", halves: true, ..PLAIN },
    Family {
        model_types: &["mistral"],
        architecture: "llama",
        halves: true,
        window: Window::All,
        defaults: &[("rms_norm_eps", 1e-6), ("rope_theta", 1e4), ("sliding_window", 4096.0)],
        ..PLAIN
    },
    Family { model_types: &["qwen2"], architecture: "qwen2", ..PLAIN },
    Family {
        model_types: &["qwen3"],
        architecture: "qwen3",
        parts: QWEN3_PARTS,
        defaults: &[("rms_norm_eps", 1e-6), ("rope_theta", 1e4), ("head_dim", 128.0)],
        ..PLAIN
    },
    Family {
        model_types: &["gemma3_text", "gemma3"],
        architecture: "gemma3",
        activations: GEMMA_GELU,
        defaults: &[
            ("rms_norm_eps", 1e-6),
            ("head_dim", 256.0),
            ("num_attention_heads", 8.0),
            ("num_key_value_heads", 4.0),
            ("max_position_embeddings", 131_072.0),
            ("query_pre_attn_scalar", 256.0),
            ("sliding_window", 4096.0),
        ],
        tied: true,
        window: Window::Period(6),
        parts: GEMMA3_PARTS,
        reads: &["query_pre_attn_scalar", "final_logit_softcapping", "attn_logit_softcapping"],
        special: Special::Gemma,
        ..PLAIN
    },
];

/// The family of a model type.
pub(super) fn find(model_type: &str) -> Result<&'static Family, HuggingFaceError> {
    FAMILIES.iter().find(|family| family.model_types.contains(&model_type)).ok_or_else(|| {
        let known: Vec<&str> = FAMILIES.iter().flat_map(|family| family.model_types).copied().collect();
        HuggingFaceError::UnknownModelType { model_type: model_type.to_owned(), supported: known.join(", ") }
    })
}
