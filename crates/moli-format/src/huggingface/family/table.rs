//! The families.

use super::parts::*;
use super::{Family, Special, Window};

const SILU: &[&str] = &["silu", "swish"];
const GELU_TANH: &[&str] = &["gelu_pytorch_tanh", "gelu_new", "gelu_fast"];
/// Gemma's first configurations said `gelu` and meant this.
const GEMMA_GELU: &[&str] = &["gelu_pytorch_tanh", "gelu_new", "gelu_fast", "gelu"];

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

const DELTA_NET: Family = Family {
    model_types: &["qwen3_next"],
    architecture: "qwen3next",
    defaults: &[
        ("rms_norm_eps", 1e-6),
        ("rope_theta", 1e4),
        ("head_dim", 256.0),
        ("partial_rotary_factor", 0.25),
        ("full_attention_interval", 4.0),
        ("linear_conv_kernel_dim", 4.0),
        ("linear_key_head_dim", 128.0),
        ("linear_value_head_dim", 128.0),
        ("linear_num_key_heads", 16.0),
        ("linear_num_value_heads", 32.0),
    ],
    parts: DELTA_PARTS,
    reads: &["num_experts"],
    special: Special::DeltaNet,
    ..PLAIN
};

/// Rotary base of before the configurations named it, and the published taps.
const LFM2: Family = Family {
    model_types: &["lfm2"],
    architecture: "lfm2",
    defaults: &[
        ("norm_eps", 1e-5),
        ("rope_theta", 1e6),
        ("conv_L_cache", 3.0),
        ("block_multiple_of", 256.0),
        ("block_ffn_dim_multiplier", 1.0),
    ],
    tied: true,
    parts: LFM2_PARTS,
    special: Special::Lfm2,
    ..PLAIN
};

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

pub(super) static FAMILIES: &[Family] = &[
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
    DELTA_NET,
    Family { model_types: &["qwen3_5_text", "qwen3_5"], architecture: "qwen35", ..DELTA_NET },
    Family { model_types: &["qwen3_5_moe_text", "qwen3_5_moe"], architecture: "qwen35moe", ..DELTA_NET },
    LFM2,
    Family {
        model_types: &["lfm2_moe"],
        architecture: "lfm2moe",
        reads: &["num_experts", "routed_scaling_factor"],
        ..LFM2
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
