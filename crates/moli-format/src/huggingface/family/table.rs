//! The families.

use super::parts::*;
use super::{Family, NO_EPSILON, Special, Window};

const SILU: &[&str] = &["silu", "swish"];
const GELU_TANH: &[&str] = &["gelu_pytorch_tanh", "gelu_new", "gelu_fast"];
const RELU2: &[&str] = &["relu2"];
/// Gemma's first configurations said `gelu` and meant this.
const GEMMA_GELU: &[&str] = &["gelu_pytorch_tanh", "gelu_new", "gelu_fast", "gelu"];

/// What most families share.
const PLAIN: Family = Family {
    model_types: &[],
    architecture: "",
    activations: SILU,
    aliases: &[],
    defaults: &[("rms_norm_eps", 1e-6), ("rope_theta", 1e4), ("max_position_embeddings", 2048.0)],
    tied: false,
    halves: false,
    window: Window::Late,
    names: &DECODER_NAMES,
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

const GEMMA4: Family = Family {
    model_types: &["gemma4_text", "gemma4"],
    architecture: "gemma4",
    names: &GEMMA4_NAMES,
    activations: GELU_TANH,
    defaults: &[
        ("rms_norm_eps", 1e-6),
        ("vocab_size", 262_144.0),
        ("hidden_size", 2304.0),
        ("intermediate_size", 9216.0),
        ("num_hidden_layers", 30.0),
        ("num_attention_heads", 8.0),
        ("num_key_value_heads", 4.0),
        ("head_dim", 256.0),
        ("global_head_dim", 512.0),
        ("max_position_embeddings", 131_072.0),
        ("sliding_window", 512.0),
        ("vocab_size_per_layer_input", 262_144.0),
        ("hidden_size_per_layer_input", 256.0),
    ],
    tied: true,
    window: Window::Period(6),
    parts: GEMMA4_PARTS,
    reads: &[
        "final_logit_softcapping",
        "num_kv_shared_layers",
        "num_experts",
        "use_bidirectional_attention",
        "attention_k_eq_v",
        "enable_moe_block",
        "hidden_size_per_layer_input",
        "use_double_wide_mlp",
    ],
    special: Special::Gemma4,
    ..PLAIN
};

const ERNIE_DEFAULTS: &[(&str, f64)] = &[
    ("rms_norm_eps", 1e-5),
    ("rope_theta", 5e5),
    ("num_key_value_heads", 2.0),
    ("head_dim", 128.0),
    ("max_position_embeddings", 131_072.0),
];
const GRANITE_FACTORS: &[&str] = &[
    "embedding_multiplier",
    "residual_multiplier",
    "attention_multiplier",
    "logits_scaling",
    "num_local_experts",
];

const DELTA_DEFAULTS: &[(&str, f64)] = &[
    ("rms_norm_eps", 1e-6),
    ("rope_theta", 1e4),
    ("head_dim", 256.0),
    ("max_position_embeddings", 32_768.0),
    ("partial_rotary_factor", 0.25),
    ("full_attention_interval", 4.0),
    ("linear_conv_kernel_dim", 4.0),
    ("linear_key_head_dim", 128.0),
    ("linear_value_head_dim", 128.0),
    ("linear_num_key_heads", 16.0),
    ("linear_num_value_heads", 32.0),
];

const DELTA_NET: Family = Family {
    model_types: &["qwen3_next"],
    architecture: "qwen3next",
    defaults: &join::<_, 16>(&[
        DELTA_DEFAULTS,
        &[
            ("num_key_value_heads", 2.0),
            ("num_experts", 512.0),
            ("num_experts_per_tok", 10.0),
            ("moe_intermediate_size", 512.0),
            ("shared_expert_intermediate_size", 512.0),
        ],
    ]),
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
        ("num_key_value_heads", 8.0),
        ("max_position_embeddings", 128_000.0),
        ("conv_L_cache", 3.0),
        ("block_multiple_of", 256.0),
        ("block_ffn_dim_multiplier", 1.0),
        ("num_dense_layers", 2.0),
        ("num_experts", 32.0),
        ("num_experts_per_tok", 4.0),
        ("moe_intermediate_size", 1792.0),
    ],
    tied: true,
    names: &LFM2_NAMES,
    parts: LFM2_PARTS,
    special: Special::Lfm2,
    ..PLAIN
};

const QWEN2_VL: Family = Family {
    model_types: &["qwen2_vl_text", "qwen2_vl", "qwen2_5_vl_text", "qwen2_5_vl"],
    architecture: "qwen2vl",
    defaults: &[
        ("rms_norm_eps", 1e-5),
        ("rope_theta", 1e6),
        ("num_key_value_heads", 8.0),
        ("max_position_embeddings", 32_768.0),
        ("sliding_window", 4096.0),
        ("max_window_layers", 80.0),
    ],
    ..PLAIN
};

const COHERE: Family = Family {
    model_types: &["cohere"],
    architecture: "command-r",
    defaults: &[
        ("layer_norm_eps", 1e-5),
        ("rope_theta", 5e5),
        ("max_position_embeddings", 8192.0),
        ("logit_scale", 0.0625),
    ],
    tied: true,
    parts: COHERE_PARTS,
    reads: &["logit_scale"],
    special: Special::Cohere,
    ..PLAIN
};

const DEEPSEEK2: Family = Family {
    model_types: &["deepseek_v2"],
    architecture: "deepseek2",
    defaults: &[
        ("rms_norm_eps", 1e-6),
        ("rope_theta", 1e4),
        ("max_position_embeddings", 2048.0),
        ("kv_lora_rank", 512.0),
        ("q_lora_rank", 1536.0),
        ("qk_nope_head_dim", 128.0),
        ("qk_rope_head_dim", 64.0),
        ("v_head_dim", 128.0),
        ("n_routed_experts", 64.0),
        ("n_shared_experts", 2.0),
        ("moe_intermediate_size", 1407.0),
    ],
    parts: DEEPSEEK_PARTS,
    reads: &["n_routed_experts", "q_lora_rank", "kv_lora_rank", "routed_scaling_factor"],
    special: Special::DeepSeek,
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
        defaults: &[
            ("rms_norm_eps", 1e-6),
            ("rope_theta", 1e4),
            ("num_key_value_heads", 8.0),
            ("max_position_embeddings", 131_072.0),
            ("sliding_window", 4096.0),
        ],
        ..PLAIN
    },
    Family {
        model_types: &["mixtral"],
        architecture: "llama",
        halves: true,
        window: Window::All,
        defaults: &[
            ("rms_norm_eps", 1e-5),
            ("rope_theta", 1e6),
            ("num_key_value_heads", 8.0),
            ("max_position_embeddings", 131_072.0),
            ("num_local_experts", 8.0),
            ("num_experts_per_tok", 2.0),
        ],
        parts: MIXTRAL_PARTS,
        reads: &["num_local_experts"],
        special: Special::Experts,
        ..PLAIN
    },
    Family {
        model_types: &["qwen2"],
        architecture: "qwen2",
        defaults: &[
            ("rms_norm_eps", 1e-6),
            ("rope_theta", 1e4),
            ("num_key_value_heads", 32.0),
            ("max_position_embeddings", 32_768.0),
            ("sliding_window", 4096.0),
            ("max_window_layers", 28.0),
        ],
        ..PLAIN
    },
    Family {
        model_types: &["qwen2_moe"],
        architecture: "qwen2moe",
        defaults: &[
            ("rms_norm_eps", 1e-6),
            ("rope_theta", 1e4),
            ("num_key_value_heads", 16.0),
            ("max_position_embeddings", 32_768.0),
            ("sliding_window", 4096.0),
            ("max_window_layers", 28.0),
            ("num_experts", 60.0),
            ("num_experts_per_tok", 4.0),
            ("moe_intermediate_size", 1408.0),
            ("shared_expert_intermediate_size", 5632.0),
        ],
        parts: QWEN2_MOE_PARTS,
        window: Window::Alternate,
        reads: &["num_experts"],
        special: Special::Experts,
        ..PLAIN
    },
    Family {
        model_types: &["qwen3"],
        architecture: "qwen3",
        defaults: &[
            ("rms_norm_eps", 1e-6),
            ("rope_theta", 1e4),
            ("num_key_value_heads", 32.0),
            ("head_dim", 128.0),
            ("max_position_embeddings", 32_768.0),
            ("sliding_window", 4096.0),
            ("max_window_layers", 28.0),
        ],
        parts: QWEN3_PARTS,
        ..PLAIN
    },
    QWEN2_VL,
    Family {
        model_types: &["qwen3_vl_text", "qwen3_vl"],
        architecture: "qwen3vl",
        defaults: &[
            ("rms_norm_eps", 1e-6),
            ("rope_theta", 5e5),
            ("num_key_value_heads", 32.0),
            ("head_dim", 128.0),
            ("max_position_embeddings", 128_000.0),
        ],
        parts: QWEN3_PARTS,
        ..PLAIN
    },
    Family {
        model_types: &["qwen3_vl_moe_text", "qwen3_vl_moe"],
        architecture: "qwen3vlmoe",
        defaults: &[
            ("rms_norm_eps", 1e-6),
            ("rope_theta", 5e5),
            ("num_key_value_heads", 16.0),
            ("max_position_embeddings", 128_000.0),
            ("num_experts", 60.0),
            ("num_experts_per_tok", 4.0),
            ("moe_intermediate_size", 1408.0),
        ],
        tied: true,
        parts: QWEN3_PARTS,
        reads: &["num_experts", "num_local_experts"],
        special: Special::Experts,
        ..PLAIN
    },
    Family {
        model_types: &["qwen3_moe"],
        architecture: "qwen3moe",
        defaults: &[
            ("rms_norm_eps", 1e-6),
            ("rope_theta", 1e4),
            ("num_key_value_heads", 4.0),
            ("max_position_embeddings", 32_768.0),
            ("sliding_window", 4096.0),
            ("num_experts", 128.0),
            ("num_experts_per_tok", 8.0),
            ("moe_intermediate_size", 768.0),
        ],
        window: Window::Wanted,
        parts: QWEN3_PARTS,
        reads: &["num_experts", "num_local_experts"],
        special: Special::Experts,
        ..PLAIN
    },
    Family {
        model_types: &["gemma"],
        architecture: "gemma",
        activations: GEMMA_GELU,
        defaults: &[
            ("rms_norm_eps", 1e-6),
            ("rope_theta", 1e4),
            ("head_dim", 256.0),
            ("num_key_value_heads", 16.0),
            ("max_position_embeddings", 8192.0),
        ],
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
        model_types: &["gemma3n_text", "gemma3n"],
        architecture: "gemma3n",
        names: &GEMMA4_NAMES,
        defaults: &[
            ("rms_norm_eps", 1e-6),
            ("rope_theta", 1e6),
            ("vocab_size", 262_400.0),
            ("hidden_size", 2048.0),
            ("intermediate_size", 16_384.0),
            ("num_hidden_layers", 35.0),
            ("num_attention_heads", 8.0),
            ("num_key_value_heads", 2.0),
            ("head_dim", 256.0),
            ("max_position_embeddings", 32_768.0),
            ("sliding_window", 512.0),
            ("final_logit_softcapping", 30.0),
            ("vocab_size_per_layer_input", 262_144.0),
            ("hidden_size_per_layer_input", 256.0),
            ("altup_active_idx", 0.0),
            ("altup_num_inputs", 4.0),
            ("num_kv_shared_layers", 15.0),
        ],
        window: Window::Period(5),
        parts: GEMMA3N_PARTS,
        reads: &[
            "final_logit_softcapping",
            "num_kv_shared_layers",
            "hidden_size_per_layer_input",
            "altup_num_inputs",
            "laurel_rank",
            "activation_sparsity_pattern",
        ],
        special: Special::Gemma3n,
        ..GEMMA4
    },
    GEMMA4,
    // Without vectors that layers have for tokens, and without experts.
    Family {
        model_types: &["gemma4_unified_text", "gemma4_unified"],
        defaults: &[
            ("rms_norm_eps", 1e-6),
            ("vocab_size", 262_144.0),
            ("hidden_size", 2304.0),
            ("intermediate_size", 9216.0),
            ("num_hidden_layers", 30.0),
            ("num_attention_heads", 8.0),
            ("num_key_value_heads", 4.0),
            ("head_dim", 256.0),
            ("global_head_dim", 512.0),
            ("max_position_embeddings", 262_144.0),
            ("sliding_window", 1024.0),
        ],
        reads: &[
            "final_logit_softcapping",
            "num_kv_shared_layers",
            "use_bidirectional_attention",
            "attention_k_eq_v",
            "use_double_wide_mlp",
        ],
        ..GEMMA4
    },
    Family {
        model_types: &["phi3"],
        architecture: "phi3",
        defaults: &[
            ("rms_norm_eps", 1e-5),
            ("rope_theta", 1e4),
            ("max_position_embeddings", 4096.0),
            ("original_max_position_embeddings", 4096.0),
        ],
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
            ("max_position_embeddings", 32_768.0),
            ("no_rope_layer_interval", 4.0),
        ],
        tied: true,
        halves: true,
        window: Window::Unrotated,
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
            ("max_position_embeddings", 131_072.0),
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
        model_types: &["granitemoe", "granitemoeshared"],
        architecture: "granitemoe",
        defaults: &[
            ("rms_norm_eps", 1e-6),
            ("rope_theta", 1e4),
            ("max_position_embeddings", 2048.0),
            ("num_local_experts", 8.0),
            ("num_experts_per_tok", 2.0),
        ],
        halves: true,
        parts: GRANITE_MOE_SHARED_PARTS,
        reads: GRANITE_FACTORS,
        special: Special::Granite,
        ..PLAIN
    },
    Family {
        model_types: &["olmo"],
        architecture: "olmo",
        defaults: &[(NO_EPSILON, 1e-5), ("rope_theta", 1e4), ("max_position_embeddings", 2048.0)],
        halves: true,
        parts: OLMO_PARTS,
        ..PLAIN
    },
    Family {
        model_types: &["apertus"],
        architecture: "apertus",
        activations: &["xielu"],
        defaults: &[("rms_norm_eps", 1e-5), ("rope_theta", 1.2e7), ("max_position_embeddings", 65_536.0)],
        parts: APERTUS_PARTS,
        special: Special::Apertus,
        ..PLAIN
    },
    Family {
        model_types: &["phimoe"],
        architecture: "phimoe",
        defaults: &[
            ("rms_norm_eps", 1e-5),
            ("rope_theta", 1e6),
            ("num_key_value_heads", 8.0),
            ("max_position_embeddings", 131_072.0),
            ("num_local_experts", 16.0),
            ("num_experts_per_tok", 2.0),
            ("router_jitter_noise", 0.01),
        ],
        window: Window::All,
        parts: PHI_MOE_PARTS,
        reads: &["num_local_experts"],
        special: Special::PhiMoe,
        ..PLAIN
    },
    Family {
        model_types: &["minimax_m2"],
        architecture: "minimax-m2",
        defaults: &[
            ("rms_norm_eps", 1e-6),
            ("rope_theta", 5e6),
            ("num_key_value_heads", 8.0),
            ("head_dim", 128.0),
            ("max_position_embeddings", 196_608.0),
            ("num_local_experts", 256.0),
            ("num_experts_per_tok", 8.0),
        ],
        parts: MINIMAX_M2_PARTS,
        reads: &["num_local_experts", "use_qk_norm"],
        special: Special::MiniMaxM2,
        ..PLAIN
    },
    Family {
        model_types: &["olmo2"],
        architecture: "olmo2",
        defaults: &[("rms_norm_eps", 1e-5), ("rope_theta", 1e4), ("max_position_embeddings", 2048.0)],
        parts: OLMO2_PARTS,
        ..PLAIN
    },
    Family {
        model_types: &["olmo3"],
        architecture: "olmo2",
        defaults: &[
            ("rms_norm_eps", 1e-5),
            ("rope_theta", 5e5),
            ("max_position_embeddings", 2048.0),
            ("sliding_window", 4096.0),
        ],
        window: Window::Period(4),
        parts: OLMO2_PARTS,
        ..PLAIN
    },
    Family {
        model_types: &["olmoe"],
        architecture: "olmoe",
        defaults: &[
            ("rms_norm_eps", 1e-5),
            ("rope_theta", 1e4),
            ("max_position_embeddings", 4096.0),
            ("num_experts", 64.0),
            ("num_experts_per_tok", 8.0),
        ],
        parts: OLMOE_PARTS,
        reads: &["num_experts"],
        special: Special::Experts,
        ..PLAIN
    },
    Family {
        model_types: &["internlm2"],
        architecture: "internlm2",
        halves: true,
        names: &INTERNLM2_NAMES,
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
        defaults: &[
            ("rms_norm_eps", 1e-5),
            ("rope_theta", 1e4),
            ("num_key_value_heads", 32.0),
            ("max_position_embeddings", 2048.0),
            ("sliding_window", 4096.0),
        ],
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
        defaults: &[
            ("rms_norm_eps", 1e-5),
            ("rope_theta", 5e5),
            ("num_key_value_heads", 4.0),
            ("max_position_embeddings", 131_072.0),
            ("moe_k", 6.0),
            ("moe_num_experts", 64.0),
            ("moe_intermediate_size", 1536.0),
            ("moe_num_shared_experts", 2.0),
            ("moe_layer_start_index", 1.0),
        ],
        tied: true,
        parts: ERNIE_PARTS,
        special: Special::Ernie,
        ..PLAIN
    },
    COHERE,
    Family {
        model_types: &["cohere2"],
        architecture: "cohere2",
        defaults: &[
            ("layer_norm_eps", 1e-5),
            ("rope_theta", 1e4),
            ("max_position_embeddings", 8192.0),
            ("logit_scale", 0.0625),
            ("sliding_window", 4096.0),
        ],
        window: Window::Period(4),
        ..COHERE
    },
    Family {
        model_types: &["stablelm", "stablelm_epoch"],
        architecture: "stablelm",
        defaults: &[
            ("layer_norm_eps", 1e-5),
            ("rope_theta", 1e4),
            ("num_key_value_heads", 32.0),
            ("max_position_embeddings", 4096.0),
            ("partial_rotary_factor", 0.25),
        ],
        // Which of the two it has, its tensors tell.
        reads: &["use_parallel_residual"],
        ..PLAIN
    },
    Family {
        model_types: &["phi"],
        architecture: "phi2",
        activations: GELU_TANH,
        defaults: &[
            ("layer_norm_eps", 1e-5),
            ("rope_theta", 1e4),
            ("max_position_embeddings", 2048.0),
            ("partial_rotary_factor", 0.5),
        ],
        names: &PHI_NAMES,
        parts: PHI_PARTS,
        ..PLAIN
    },
    Family {
        model_types: &["gpt_neox"],
        architecture: "gptneox",
        activations: GELU,
        aliases: &[("rope_theta", "rotary_emb_base"), ("partial_rotary_factor", "rotary_pct")],
        defaults: &[
            ("layer_norm_eps", 1e-5),
            ("rope_theta", 1e4),
            ("max_position_embeddings", 2048.0),
            ("partial_rotary_factor", 0.25),
        ],
        names: &GPT_NEOX_NAMES,
        parts: GPT_NEOX_PARTS,
        reads: &["use_parallel_residual"],
        special: Special::GptNeoX,
        ..PLAIN
    },
    Family {
        model_types: &["gpt2"],
        architecture: "gpt2",
        activations: GELU_TANH,
        aliases: &[
            ("hidden_size", "n_embd"),
            ("num_hidden_layers", "n_layer"),
            ("num_attention_heads", "n_head"),
            ("max_position_embeddings", "n_positions"),
            ("intermediate_size", "n_inner"),
            ("hidden_act", "activation_function"),
        ],
        defaults: &[("layer_norm_epsilon", 1e-5), ("max_position_embeddings", 1024.0)],
        tied: true,
        names: &GPT2_NAMES,
        parts: GPT2_PARTS,
        special: Special::Gpt2,
        ..PLAIN
    },
    Family {
        model_types: &["falcon"],
        architecture: "falcon",
        activations: GELU,
        aliases: &[
            ("num_key_value_heads", "num_kv_heads"),
            ("intermediate_size", "ffn_hidden_size"),
            ("hidden_act", "activation"),
        ],
        defaults: &[("layer_norm_epsilon", 1e-5), ("rope_theta", 1e4), ("max_position_embeddings", 2048.0)],
        tied: true,
        names: &FALCON_NAMES,
        parts: FALCON_PARTS,
        reads: &["parallel_attn"],
        special: Special::Falcon,
        ..PLAIN
    },
    Family {
        model_types: &["glm4_moe"],
        architecture: "glm4moe",
        defaults: &[
            ("rms_norm_eps", 1e-5),
            ("rope_theta", 1e4),
            ("num_key_value_heads", 8.0),
            ("max_position_embeddings", 131_072.0),
            ("partial_rotary_factor", 0.5),
            ("n_routed_experts", 128.0),
            ("num_experts_per_tok", 8.0),
            ("n_shared_experts", 1.0),
            ("moe_intermediate_size", 1408.0),
            ("first_k_dense_replace", 1.0),
            ("n_group", 1.0),
            ("topk_group", 1.0),
        ],
        parts: GLM4_MOE_PARTS,
        // Whether there is a norm of queries and keys, the tensors tell.
        reads: &["n_routed_experts", "routed_scaling_factor", "use_qk_norm"],
        special: Special::Glm4Moe,
        ..PLAIN
    },
    Family {
        model_types: &["seed_oss"],
        architecture: "seed_oss",
        defaults: &[
            ("rms_norm_eps", 1e-6),
            ("rope_theta", 1e4),
            ("num_key_value_heads", 8.0),
            ("head_dim", 128.0),
            ("max_position_embeddings", 524_288.0),
        ],
        parts: SEED_OSS_PARTS,
        ..PLAIN
    },
    Family {
        model_types: &["hunyuan_v1_dense"],
        architecture: "hunyuan-dense",
        defaults: &[("rms_norm_eps", 1e-5), ("rope_theta", 1e4), ("max_position_embeddings", 2048.0)],
        parts: HUNYUAN_PARTS,
        ..PLAIN
    },
    Family {
        model_types: &["arcee"],
        architecture: "arcee",
        activations: RELU2,
        defaults: &[("rms_norm_eps", 1e-5), ("rope_theta", 1e4), ("max_position_embeddings", 4096.0)],
        halves: true,
        ..PLAIN
    },
    Family {
        model_types: &["nemotron"],
        architecture: "nemotron",
        activations: RELU2,
        defaults: &[
            ("norm_eps", 1e-5),
            ("rope_theta", 1e4),
            ("max_position_embeddings", 4096.0),
            ("partial_rotary_factor", 0.5),
        ],
        parts: NEMOTRON_PARTS,
        ..PLAIN
    },
    DEEPSEEK2,
    Family {
        model_types: &["deepseek_v3"],
        defaults: &[
            ("rms_norm_eps", 1e-6),
            ("rope_theta", 1e4),
            ("max_position_embeddings", 4096.0),
            ("kv_lora_rank", 512.0),
            ("q_lora_rank", 1536.0),
            ("qk_nope_head_dim", 128.0),
            ("qk_rope_head_dim", 64.0),
            ("v_head_dim", 128.0),
            ("n_routed_experts", 256.0),
            ("num_experts_per_tok", 8.0),
            ("n_shared_experts", 1.0),
            ("moe_intermediate_size", 2048.0),
            ("first_k_dense_replace", 3.0),
            ("n_group", 8.0),
            ("topk_group", 4.0),
            ("routed_scaling_factor", 2.5),
        ],
        ..DEEPSEEK2
    },
    Family {
        model_types: &["gpt_oss"],
        architecture: "gpt-oss",
        defaults: &[
            ("rms_norm_eps", 1e-5),
            ("rope_theta", 150_000.0),
            ("head_dim", 64.0),
            ("num_key_value_heads", 8.0),
            ("max_position_embeddings", 131_072.0),
            ("sliding_window", 128.0),
            ("num_local_experts", 128.0),
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
        defaults: &[
            ("norm_epsilon", 1e-5),
            ("rope_theta", 1e4),
            ("num_key_value_heads", 2.0),
            ("max_position_embeddings", 4096.0),
        ],
        tied: true,
        window: Window::All,
        parts: STARCODER2_PARTS,
        ..PLAIN
    },
    DELTA_NET,
    Family {
        model_types: &["qwen3_5_text", "qwen3_5"],
        architecture: "qwen35",
        defaults: &join::<_, 12>(&[DELTA_DEFAULTS, &[("num_key_value_heads", 4.0)]]),
        ..DELTA_NET
    },
    Family {
        model_types: &["qwen3_5_moe_text", "qwen3_5_moe"],
        architecture: "qwen35moe",
        defaults: &join::<_, 16>(&[
            DELTA_DEFAULTS,
            &[
                ("num_key_value_heads", 2.0),
                ("num_experts", 256.0),
                ("num_experts_per_tok", 8.0),
                ("moe_intermediate_size", 512.0),
                ("shared_expert_intermediate_size", 512.0),
            ],
        ]),
        ..DELTA_NET
    },
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
