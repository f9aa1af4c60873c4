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
    /// The rows of a gate and those of what it gates, one after the other, for each expert if there are some.
    GateUp,
    /// The way back of all experts.
    Down,
    /// Queries, keys and values, one after the other.
    Qkv,
    /// For each head of keys its queries, then the key, then the value.
    GroupedQkv,
    /// gpt-oss: gates and what they gate in turns, of all experts.
    Harmony(Harmony),
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
    /// Those that `layer_types` names; without it the library's own rule has changed over time.
    Named,
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
    /// Factors on the embeddings, the residual stream, the scores and the logits; experts or not.
    Granite,
    /// The same in other terms.
    MiniCpm,
    /// Layers without rotary embedding.
    SmolLm3,
    Ernie,
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

use Part::As;

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
    ("mlp.experts.*.gate_proj", As("ffn_gate")),
    ("mlp.experts.*.up_proj", As("ffn_up")),
    ("mlp.experts.*.down_proj", As("ffn_down")),
    ("mlp.experts.gate_up_proj", Part::GateUp),
    ("mlp.experts.down_proj", Part::Down),
];
/// Experts that every token goes through.
const SHARED: [(&str, Part); 3] = [
    ("mlp.shared_experts.gate_proj", As("ffn_gate_shexp")),
    ("mlp.shared_experts.up_proj", As("ffn_up_shexp")),
    ("mlp.shared_experts.down_proj", As("ffn_down_shexp")),
];

const LLAMA_PARTS: &[(&str, Part)] = &join::<9>(&[&ATTENTION, &MLP, &NORMS]);
const QWEN3_PARTS: &[(&str, Part)] = &join::<17>(&[&ATTENTION, &MLP, &NORMS, &QK_NORMS, &EXPERTS]);
const MIXTRAL_PARTS: &[(&str, Part)] = &join::<16>(&[
    &ATTENTION,
    &NORMS,
    &EXPERTS,
    &[
        ("block_sparse_moe.gate", As("ffn_gate_inp")),
        ("block_sparse_moe.experts.*.w1", As("ffn_gate")),
        ("block_sparse_moe.experts.*.w3", As("ffn_up")),
        ("block_sparse_moe.experts.*.w2", As("ffn_down")),
    ],
]);
const QWEN2_MOE_PARTS: &[(&str, Part)] = &join::<19>(&[
    &ATTENTION,
    &MLP,
    &NORMS,
    &EXPERTS,
    &[
        ("mlp.shared_expert.gate_proj", As("ffn_gate_shexp")),
        ("mlp.shared_expert.up_proj", As("ffn_up_shexp")),
        ("mlp.shared_expert.down_proj", As("ffn_down_shexp")),
        ("mlp.shared_expert_gate", As("ffn_gate_inp_shexp")),
    ],
]);
/// Q, K and V in one matrix, gate and up in another.
const PHI3_PARTS: &[(&str, Part)] = &join::<7>(&[
    &NORMS,
    &[
        ("self_attn.qkv_proj", As("attn_qkv")),
        ("self_attn.o_proj", As("attn_output")),
        ("mlp.gate_up_proj", As("ffn_up")),
        ("mlp.down_proj", As("ffn_down")),
        // As some of its descendants name it.
        ("mlp.gate_proj", As("ffn_gate")),
    ],
]);
/// Norms before and behind attention and the feed-forward network.
const GLM4_PARTS: &[(&str, Part)] = &join::<10>(&[
    &ATTENTION,
    &[
        ("mlp.gate_up_proj", As("ffn_up")),
        ("mlp.down_proj", As("ffn_down")),
        ("input_layernorm", As("attn_norm")),
        ("post_self_attn_layernorm", As("post_attention_norm")),
        ("post_attention_layernorm", As("ffn_norm")),
        ("post_mlp_layernorm", As("post_ffw_norm")),
    ],
]);
/// Norms behind them only.
const OLMO2_PARTS: &[(&str, Part)] = &join::<11>(&[
    &ATTENTION,
    &MLP,
    &QK_NORMS,
    &[
        ("post_attention_layernorm", As("post_attention_norm")),
        ("post_feedforward_layernorm", As("post_ffw_norm")),
    ],
]);
const GRANITE_MOE_PARTS: &[(&str, Part)] = &join::<9>(&[
    &ATTENTION,
    &NORMS,
    &[
        ("block_sparse_moe.router.layer", As("ffn_gate_inp")),
        ("block_sparse_moe.input_linear", Part::GateUp),
        ("block_sparse_moe.output_linear", Part::Down),
    ],
]);
const ERNIE_PARTS: &[(&str, Part)] = &join::<19>(&[
    &ATTENTION,
    &MLP,
    &NORMS,
    &EXPERTS,
    &SHARED,
    &[("mlp.moe_statics.e_score_correction_bias", Part::Bias("exp_probs_b"))],
]);
/// Keys and values from a latent vector (arXiv:2405.04434).
const DEEPSEEK_PARTS: &[(&str, Part)] = &join::<23>(&[
    &MLP,
    &NORMS,
    &EXPERTS,
    &SHARED,
    &[
        ("self_attn.q_proj", As("attn_q")),
        ("self_attn.q_a_proj", As("attn_q_a")),
        ("self_attn.q_a_layernorm", As("attn_q_a_norm")),
        ("self_attn.q_b_proj", As("attn_q_b")),
        ("self_attn.kv_a_proj_with_mqa", As("attn_kv_a_mqa")),
        ("self_attn.kv_a_layernorm", As("attn_kv_a_norm")),
        ("self_attn.kv_b_proj", As("attn_kv_b")),
        ("self_attn.o_proj", As("attn_output")),
        ("mlp.gate.e_score_correction_bias", Part::Bias("exp_probs_b")),
    ],
]);
const GPT_OSS_PARTS: &[(&str, Part)] = &join::<16>(&[
    &ATTENTION,
    &[
        ("input_layernorm", As("attn_norm")),
        ("post_attention_layernorm", As("post_attention_norm")),
        ("self_attn.sinks", As("attn_sinks")),
        ("mlp.router", As("ffn_gate_inp")),
        ("mlp.experts.gate_up_proj", Part::Harmony(Harmony::GateUp)),
        ("mlp.experts.gate_up_proj_bias", Part::Harmony(Harmony::GateUpBias)),
        ("mlp.experts.gate_up_proj_blocks", Part::Harmony(Harmony::GateUpBlocks)),
        ("mlp.experts.gate_up_proj_scales", Part::Harmony(Harmony::Scales)),
        ("mlp.experts.down_proj", Part::Harmony(Harmony::Down)),
        ("mlp.experts.down_proj_bias", Part::Harmony(Harmony::DownBias)),
        ("mlp.experts.down_proj_blocks", Part::Harmony(Harmony::DownBlocks)),
        ("mlp.experts.down_proj_scales", Part::Harmony(Harmony::Scales)),
    ],
]);
const STARCODER2_PARTS: &[(&str, Part)] =
    &join::<8>(&[&ATTENTION, &NORMS, &[("mlp.c_fc", As("ffn_up")), ("mlp.c_proj", As("ffn_down"))]]);
const INTERNLM2_PARTS: &[(&str, Part)] = &[
    ("attention.wqkv", Part::GroupedQkv),
    ("attention.wo", As("attn_output")),
    ("feed_forward.w1", As("ffn_gate")),
    ("feed_forward.w3", As("ffn_up")),
    ("feed_forward.w2", As("ffn_down")),
    ("attention_norm", As("attn_norm")),
    ("ffn_norm", As("ffn_norm")),
];
const BAICHUAN_PARTS: &[(&str, Part)] =
    &join::<7>(&[&MLP, &NORMS, &[("self_attn.W_pack", Part::Qkv), ("self_attn.o_proj", As("attn_output"))]]);

const BERT_PARTS: &[(&str, Part)] = &[
    ("attention.self.query", As("attn_q")),
    ("attention.self.key", As("attn_k")),
    ("attention.self.value", As("attn_v")),
    ("attention.output.dense", As("attn_output")),
    ("attention.output.LayerNorm", As("attn_output_norm")),
    ("intermediate.dense", As("ffn_up")),
    ("output.dense", As("ffn_down")),
    ("output.LayerNorm", As("layer_output_norm")),
];
const NOMIC_BERT_PARTS: &[(&str, Part)] = &[
    ("attn.Wqkv", As("attn_qkv")),
    ("attn.out_proj", As("attn_output")),
    ("norm1", As("attn_output_norm")),
    ("mlp.fc11", As("ffn_up")),
    ("mlp.fc12", As("ffn_gate")),
    ("mlp.fc2", As("ffn_down")),
    ("norm2", As("layer_output_norm")),
];
const MODERN_BERT_PARTS: &[(&str, Part)] = &[
    ("attn.Wqkv", As("attn_qkv")),
    ("attn.Wo", As("attn_output")),
    ("attn_norm", As("attn_norm")),
    ("mlp_norm", As("ffn_norm")),
    ("mlp.Wi", As("ffn_up")),
    ("mlp.Wo", As("ffn_down")),
];

const BERT_STEMS: &[(&str, &str)] = &[
    ("embeddings.word_embeddings", "token_embd"),
    ("embeddings.position_embeddings", "position_embd"),
    ("embeddings.token_type_embeddings", "token_types"),
    ("embeddings.LayerNorm", "token_embd_norm"),
];
const BERT_ENCODER: Encoder = Encoder {
    layers: "encoder.layer.",
    stems: BERT_STEMS,
    classifier: &[("pooler.dense", "cls"), ("classifier", "cls.output")],
    ignored: &["embeddings.position_ids", "pooler.", "cls."],
};
const ROBERTA_ENCODER: Encoder = Encoder {
    classifier: &[("classifier.dense", "cls"), ("classifier.out_proj", "cls.output")],
    ignored: &["embeddings.position_ids", "embeddings.token_type_ids", "pooler.", "lm_head."],
    ..BERT_ENCODER
};
const NOMIC_BERT_ENCODER: Encoder = Encoder {
    layers: "encoder.layers.",
    stems: &[
        ("embeddings.word_embeddings", "token_embd"),
        ("embeddings.token_type_embeddings", "token_types"),
        ("emb_ln", "token_embd_norm"),
    ],
    ..BERT_ENCODER
};
const MODERN_BERT_ENCODER: Encoder = Encoder {
    layers: "layers.",
    stems: &[
        ("embeddings.tok_embeddings", "token_embd"),
        ("embeddings.norm", "token_embd_norm"),
        ("final_norm", "output_norm"),
    ],
    classifier: &[("head.dense", "cls"), ("head.norm", "cls.norm"), ("classifier", "cls.output")],
    ignored: &["head.", "decoder."],
};

/// Tables one after the other; `N` is the sum of their lengths.
const fn join<const N: usize>(tables: &[&[(&'static str, Part)]]) -> [(&'static str, Part); N] {
    let mut all = [("", Part::Qkv); N];
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
    ("add_cross_attention", 0.0),
    ("alibi", 0.0),
    ("attention_chunk_size", 0.0),
    ("attention_multiplier", 1.0),
    ("attn_logit_softcapping", 0.0),
    ("clip_qkv", 0.0),
    ("dim_model_base", 0.0),
    ("embedding_multiplier", 1.0),
    ("final_logit_softcapping", 0.0),
    ("is_decoder", 0.0),
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
    ("swiglu_alpha", 1.702),
    ("swiglu_limit", 7.0),
    ("rope_interleave", 1.0),
    ("moe_layer_freq", 1.0),
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
    encoder: None,
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

const GEMMA3: Family = Family {
    model_types: &["gemma3_text", "gemma3"],
    architecture: "gemma3",
    activations: GELU_TANH,
    defaults: &[
        ("rms_norm_eps", 1e-6),
        ("head_dim", 256.0),
        ("num_attention_heads", 8.0),
        ("num_key_value_heads", 4.0),
        ("max_position_embeddings", 131_072.0),
        ("query_pre_attn_scalar", 256.0),
        ("sliding_window", 4096.0),
        ("rope_theta", 1e6),
        ("vocab_size", 262_208.0),
    ],
    tied: true,
    window: Window::Period(6),
    parts: GEMMA3_PARTS,
    reads: &["query_pre_attn_scalar", "final_logit_softcapping", "attn_logit_softcapping"],
    special: Special::Gemma,
    ..PLAIN
};

const QWEN3_DEFAULTS: &[(&str, f64)] = &[("rms_norm_eps", 1e-6), ("rope_theta", 1e4), ("head_dim", 128.0)];
const ERNIE_DEFAULTS: &[(&str, f64)] = &[("rms_norm_eps", 1e-5), ("rope_theta", 5e5)];
const GRANITE_FACTORS: &[&str] = &[
    "embedding_multiplier",
    "residual_multiplier",
    "attention_multiplier",
    "logits_scaling",
    "num_local_experts",
];

const GELU: &[&str] = &["gelu"];
const BERT: Family = Family {
    model_types: &["bert"],
    architecture: "bert",
    activations: GELU,
    defaults: &[("layer_norm_eps", 1e-12), ("type_vocab_size", 2.0)],
    encoder: Some(&BERT_ENCODER),
    parts: BERT_PARTS,
    special: Special::Bert,
    ..PLAIN
};

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
    Family {
        model_types: &["mixtral"],
        architecture: "llama",
        halves: true,
        window: Window::All,
        defaults: &[("rms_norm_eps", 1e-5), ("rope_theta", 1e6), ("num_experts_per_tok", 2.0)],
        parts: MIXTRAL_PARTS,
        reads: &["num_local_experts"],
        special: Special::Experts,
        ..PLAIN
    },
    Family { model_types: &["qwen2"], architecture: "qwen2", ..PLAIN },
    Family {
        model_types: &["qwen2_moe"],
        architecture: "qwen2moe",
        parts: QWEN2_MOE_PARTS,
        window: Window::Named,
        reads: &["num_experts"],
        special: Special::Experts,
        ..PLAIN
    },
    Family {
        model_types: &["qwen3"],
        architecture: "qwen3",
        defaults: QWEN3_DEFAULTS,
        parts: QWEN3_PARTS,
        ..PLAIN
    },
    Family {
        model_types: &["qwen3_moe"],
        architecture: "qwen3moe",
        parts: QWEN3_PARTS,
        reads: &["num_experts", "num_local_experts"],
        special: Special::Experts,
        ..PLAIN
    },
    Family {
        model_types: &["gemma"],
        architecture: "gemma",
        activations: GEMMA_GELU,
        defaults: &[("rms_norm_eps", 1e-6), ("rope_theta", 1e4), ("head_dim", 256.0)],
        tied: true,
        parts: GEMMA_PARTS,
        ..PLAIN
    },
    Family {
        model_types: &["gemma2"],
        architecture: "gemma2",
        activations: GELU_TANH,
        defaults: &[
            ("rms_norm_eps", 1e-6),
            ("rope_theta", 1e4),
            ("head_dim", 256.0),
            ("num_attention_heads", 8.0),
            ("num_key_value_heads", 4.0),
            ("max_position_embeddings", 8192.0),
            ("query_pre_attn_scalar", 256.0),
            ("sliding_window", 4096.0),
            ("attn_logit_softcapping", 50.0),
            ("final_logit_softcapping", 30.0),
        ],
        window: Window::Period(2),
        ..GEMMA3
    },
    GEMMA3,
    Family {
        model_types: &["phi3"],
        architecture: "phi3",
        defaults: &[("rms_norm_eps", 1e-5), ("rope_theta", 1e4), ("max_position_embeddings", 4096.0)],
        window: Window::All,
        parts: PHI3_PARTS,
        ..PLAIN
    },
    Family {
        model_types: &["smollm3"],
        architecture: "smollm3",
        defaults: &[
            ("rms_norm_eps", 1e-6),
            ("rope_theta", 2e6),
            ("num_key_value_heads", 4.0),
            ("no_rope_layer_interval", 4.0),
        ],
        tied: true,
        halves: true,
        window: Window::Named,
        reads: &["no_rope_layer_interval"],
        special: Special::SmolLm3,
        ..PLAIN
    },
    Family {
        model_types: &["glm4"],
        architecture: "glm4",
        defaults: &[
            ("rms_norm_eps", 1.5625e-7),
            ("rope_theta", 1e4),
            ("head_dim", 128.0),
            ("num_key_value_heads", 2.0),
            ("partial_rotary_factor", 0.5),
        ],
        parts: GLM4_PARTS,
        ..PLAIN
    },
    Family {
        model_types: &["granite"],
        architecture: "granite",
        halves: true,
        reads: GRANITE_FACTORS,
        special: Special::Granite,
        ..PLAIN
    },
    Family {
        model_types: &["granitemoe"],
        architecture: "granitemoe",
        halves: true,
        parts: GRANITE_MOE_PARTS,
        reads: GRANITE_FACTORS,
        special: Special::Granite,
        ..PLAIN
    },
    Family {
        model_types: &["olmo2"],
        architecture: "olmo2",
        defaults: &[("rms_norm_eps", 1e-5), ("rope_theta", 1e4)],
        parts: OLMO2_PARTS,
        ..PLAIN
    },
    Family {
        model_types: &["internlm2"],
        architecture: "internlm2",
        halves: true,
        parts: INTERNLM2_PARTS,
        ..PLAIN
    },
    Family {
        model_types: &["baichuan"],
        architecture: "baichuan",
        halves: true,
        parts: BAICHUAN_PARTS,
        special: Special::Baichuan,
        ..PLAIN
    },
    Family {
        model_types: &["minicpm"],
        architecture: "minicpm",
        defaults: &[
            ("rms_norm_eps", 1e-6),
            ("rope_theta", 1e4),
            ("scale_emb", 1.0),
            ("scale_depth", 1.0),
            ("dim_model_base", 1.0),
        ],
        tied: true,
        halves: true,
        reads: &["scale_emb", "scale_depth", "dim_model_base"],
        special: Special::MiniCpm,
        ..PLAIN
    },
    Family {
        model_types: &["exaone4"],
        architecture: "exaone4",
        defaults: &[("rms_norm_eps", 1e-5), ("rope_theta", 1e4), ("sliding_window", 4096.0)],
        window: Window::Period(4),
        parts: OLMO2_PARTS,
        ..PLAIN
    },
    Family {
        model_types: &["ernie4_5"],
        architecture: "ernie4_5",
        defaults: ERNIE_DEFAULTS,
        tied: true,
        ..PLAIN
    },
    Family {
        model_types: &["ernie4_5_moe"],
        architecture: "ernie4_5-moe",
        defaults: ERNIE_DEFAULTS,
        tied: true,
        parts: ERNIE_PARTS,
        special: Special::Ernie,
        ..PLAIN
    },
    Family {
        model_types: &["deepseek_v2", "deepseek_v3"],
        architecture: "deepseek2",
        parts: DEEPSEEK_PARTS,
        reads: &["n_routed_experts", "q_lora_rank", "kv_lora_rank", "routed_scaling_factor"],
        special: Special::DeepSeek,
        ..PLAIN
    },
    Family {
        model_types: &["gpt_oss"],
        architecture: "gpt-oss",
        defaults: &[
            ("rms_norm_eps", 1e-5),
            ("rope_theta", 150_000.0),
            ("head_dim", 64.0),
            ("sliding_window", 128.0),
            ("num_experts_per_tok", 4.0),
        ],
        window: Window::Period(2),
        parts: GPT_OSS_PARTS,
        reads: &["num_local_experts"],
        special: Special::GptOss,
        ..PLAIN
    },
    Family {
        model_types: &["starcoder2"],
        architecture: "starcoder2",
        activations: GELU_TANH,
        defaults: &[("norm_epsilon", 1e-5), ("rope_theta", 1e4)],
        tied: true,
        window: Window::All,
        parts: STARCODER2_PARTS,
        ..PLAIN
    },
    BERT,
    Family {
        model_types: &["roberta", "xlm-roberta", "camembert"],
        defaults: &[("layer_norm_eps", 1e-12), ("type_vocab_size", 2.0), ("pad_token_id", 1.0)],
        encoder: Some(&ROBERTA_ENCODER),
        special: Special::Roberta,
        ..BERT
    },
    Family {
        model_types: &["nomic_bert"],
        architecture: "nomic-bert",
        activations: SILU,
        defaults: &[("layer_norm_eps", 1e-12), ("type_vocab_size", 2.0), ("rope_theta", 1e3)],
        encoder: Some(&NOMIC_BERT_ENCODER),
        parts: NOMIC_BERT_PARTS,
        special: Special::NomicBert,
        ..BERT
    },
    Family {
        model_types: &["modernbert"],
        architecture: "modern-bert",
        activations: GELU,
        defaults: &[
            ("norm_eps", 1e-5),
            ("rope_theta", 1.6e5),
            ("local_attention", 128.0),
            ("global_attn_every_n_layers", 3.0),
        ],
        encoder: Some(&MODERN_BERT_ENCODER),
        parts: MODERN_BERT_PARTS,
        special: Special::ModernBert,
        ..BERT
    },
];

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

/// The first model type of an architecture. There is no way back to an encoder's folder yet.
pub(super) fn model_type_of(architecture: &str) -> Result<&'static str, HuggingFaceError> {
    let decoders = || FAMILIES.iter().filter(|family| family.encoder.is_none());
    let family = decoders().find(|family| family.architecture == architecture);
    family.and_then(|family| family.model_types.first().copied()).ok_or_else(|| {
        let mut known: Vec<&str> = decoders().map(|family| family.architecture).collect();
        known.dedup();
        HuggingFaceError::NoModelType { architecture: architecture.to_owned(), supported: known.join(", ") }
    })
}
