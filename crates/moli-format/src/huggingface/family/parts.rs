//! The tensors of a layer, and of what is around the layers of an encoder.

use super::{Delta, Encoder, Harmony, Names, Part};
use Part::As;

pub(super) const ATTENTION: [(&str, Part); 4] = [
    ("self_attn.q_proj", As("attn_q")),
    ("self_attn.k_proj", As("attn_k")),
    ("self_attn.v_proj", As("attn_v")),
    ("self_attn.o_proj", As("attn_output")),
];
pub(super) const MLP: [(&str, Part); 3] =
    [("mlp.gate_proj", As("ffn_gate")), ("mlp.up_proj", As("ffn_up")), ("mlp.down_proj", As("ffn_down"))];
pub(super) const NORMS: [(&str, Part); 2] =
    [("input_layernorm", As("attn_norm")), ("post_attention_layernorm", As("ffn_norm"))];
pub(super) const QK_NORMS: [(&str, Part); 2] =
    [("self_attn.q_norm", As("attn_q_norm")), ("self_attn.k_norm", As("attn_k_norm"))];
/// Experts one by one, and as newer libraries save them.
pub(super) const EXPERTS: [(&str, Part); 6] = [
    ("mlp.gate", As("ffn_gate_inp")),
    ("mlp.experts.*.gate_proj", As("ffn_gate")),
    ("mlp.experts.*.up_proj", As("ffn_up")),
    ("mlp.experts.*.down_proj", As("ffn_down")),
    ("mlp.experts.gate_up_proj", Part::GateUp),
    ("mlp.experts.down_proj", Part::Down),
];
/// Experts that every token goes through.
pub(super) const SHARED: [(&str, Part); 3] = [
    ("mlp.shared_experts.gate_proj", As("ffn_gate_shexp")),
    ("mlp.shared_experts.up_proj", As("ffn_up_shexp")),
    ("mlp.shared_experts.down_proj", As("ffn_down_shexp")),
];

/// One that every token goes through, weighted.
pub(super) const SHARED_EXPERT: [(&str, Part); 4] = [
    ("mlp.shared_expert.gate_proj", As("ffn_gate_shexp")),
    ("mlp.shared_expert.up_proj", As("ffn_up_shexp")),
    ("mlp.shared_expert.down_proj", As("ffn_down_shexp")),
    ("mlp.shared_expert_gate", As("ffn_gate_inp_shexp")),
];

pub(super) const LLAMA_PARTS: &[(&str, Part)] = &join::<_, 9>(&[&ATTENTION, &MLP, &NORMS]);
pub(super) const QWEN3_PARTS: &[(&str, Part)] =
    &join::<_, 17>(&[&ATTENTION, &MLP, &NORMS, &QK_NORMS, &EXPERTS]);
pub(super) const MIXTRAL_PARTS: &[(&str, Part)] = &join::<_, 16>(&[
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
pub(super) const QWEN2_MOE_PARTS: &[(&str, Part)] =
    &join::<_, 19>(&[&ATTENTION, &MLP, &NORMS, &EXPERTS, &SHARED_EXPERT]);
/// Q, K and V in one matrix, gate and up in another.
pub(super) const PHI3_PARTS: &[(&str, Part)] = &join::<_, 7>(&[
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
pub(super) const GLM4_PARTS: &[(&str, Part)] = &join::<_, 10>(&[
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
pub(super) const OLMO2_PARTS: &[(&str, Part)] = &join::<_, 11>(&[
    &ATTENTION,
    &MLP,
    &QK_NORMS,
    &[
        ("post_attention_layernorm", As("post_attention_norm")),
        ("post_feedforward_layernorm", As("post_ffw_norm")),
    ],
]);
pub(super) const GRANITE_MOE_PARTS: &[(&str, Part)] = &join::<_, 9>(&[
    &ATTENTION,
    &NORMS,
    &[
        ("block_sparse_moe.router.layer", As("ffn_gate_inp")),
        ("block_sparse_moe.input_linear", Part::GateUp),
        ("block_sparse_moe.output_linear", Part::Down),
    ],
]);
pub(super) const GRANITE_MOE_SHARED_PARTS: &[(&str, Part)] = &join::<_, 11>(&[
    GRANITE_MOE_PARTS,
    &[("shared_mlp.input_linear", Part::SharedGateUp), ("shared_mlp.output_linear", As("ffn_down_shexp"))],
]);
pub(super) const ERNIE_PARTS: &[(&str, Part)] = &join::<_, 19>(&[
    &ATTENTION,
    &MLP,
    &NORMS,
    &EXPERTS,
    &SHARED,
    &[("mlp.moe_statics.e_score_correction_bias", Part::Bias("exp_probs_b"))],
]);
/// Norms without gains.
pub(super) const OLMO_PARTS: &[(&str, Part)] = &join::<_, 7>(&[&ATTENTION, &MLP]);
pub(super) const PHI_MOE_PARTS: &[(&str, Part)] =
    &join::<_, 17>(&[&[("mlp.router", As("ffn_gate_inp"))], MIXTRAL_PARTS]);
pub(super) const MINIMAX_M2_PARTS: &[(&str, Part)] = &join::<_, 20>(&[
    &[("mlp.e_score_correction_bias", Part::Bias("exp_probs_b"))],
    MIXTRAL_PARTS,
    &QK_NORMS,
    &[("block_sparse_moe.e_score_correction_bias", Part::Bias("exp_probs_b"))],
]);
pub(super) const APERTUS_PARTS: &[(&str, Part)] = &join::<_, 15>(&[
    &ATTENTION,
    &QK_NORMS,
    &[
        ("mlp.up_proj", As("ffn_up")),
        ("mlp.down_proj", As("ffn_down")),
        ("attention_layernorm", As("attn_norm")),
        ("feedforward_layernorm", As("ffn_norm")),
        // The end of `beta` is that of a bias by another name: so it is this stem's.
        ("mlp.act_fn", Part::Ignored),
        ("mlp.act_fn.alpha_p", Part::Listed("xielu.alpha_p")),
        ("mlp.act_fn.alpha_n", Part::Listed("xielu.alpha_n")),
        ("mlp.act_fn.beta", Part::Listed("xielu.beta")),
        ("mlp.act_fn.eps", Part::Listed("xielu.eps")),
    ],
]);
pub(super) const OLMOE_PARTS: &[(&str, Part)] = &join::<_, 14>(&[&ATTENTION, &NORMS, &QK_NORMS, &EXPERTS]);
/// The norm before the feed-forward network by the name of one behind attention.
pub(super) const SEED_OSS_PARTS: &[(&str, Part)] = &join::<_, 9>(&[
    &ATTENTION,
    &MLP,
    &[("input_layernorm", As("attn_norm")), ("post_attention_layernorm", As("post_attention_norm"))],
]);
pub(super) const GLM4_MOE_PARTS: &[(&str, Part)] = &join::<_, 21>(&[
    SEED_OSS_PARTS,
    &QK_NORMS,
    &EXPERTS,
    &SHARED,
    &[("mlp.gate.e_score_correction_bias", Part::Bias("exp_probs_b"))],
]);
pub(super) const HUNYUAN_PARTS: &[(&str, Part)] = &join::<_, 11>(&[
    LLAMA_PARTS,
    &[("self_attn.query_layernorm", As("attn_q_norm")), ("self_attn.key_layernorm", As("attn_k_norm"))],
]);
/// One norm for attention and the feed-forward network.
pub(super) const COHERE_PARTS: &[(&str, Part)] =
    &join::<_, 8>(&[&ATTENTION, &MLP, &[("input_layernorm", As("attn_norm"))]]);
pub(super) const PHI_PARTS: &[(&str, Part)] = &[
    ("self_attn.q_proj", As("attn_q")),
    ("self_attn.k_proj", As("attn_k")),
    ("self_attn.v_proj", As("attn_v")),
    ("self_attn.dense", As("attn_output")),
    ("mlp.fc1", As("ffn_up")),
    ("mlp.fc2", As("ffn_down")),
    ("input_layernorm", As("attn_norm")),
];
pub(super) const NEMOTRON_PARTS: &[(&str, Part)] = &join::<_, 8>(&[
    &ATTENTION,
    &[
        ("mlp.up_proj", As("ffn_up")),
        ("mlp.down_proj", As("ffn_down")),
        ("input_layernorm", Part::PlusOne("attn_norm")),
        ("post_attention_layernorm", Part::PlusOne("ffn_norm")),
    ],
]);
/// Keys and values from a latent vector (arXiv:2405.04434).
pub(super) const DEEPSEEK_PARTS: &[(&str, Part)] = &join::<_, 23>(&[
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
pub(super) const GPT_OSS_PARTS: &[(&str, Part)] = &join::<_, 16>(&[
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
pub(super) const STARCODER2_PARTS: &[(&str, Part)] =
    &join::<_, 8>(&[&ATTENTION, &NORMS, &[("mlp.c_fc", As("ffn_up")), ("mlp.c_proj", As("ffn_down"))]]);
/// Gated delta nets in the place of attention in some layers (arXiv:2412.06464): Qwen3-Next and Qwen3.5.
pub(super) const DELTA_PARTS: &[(&str, Part)] = &join::<_, 32>(&[
    &ATTENTION,
    &MLP,
    &EXPERTS,
    &SHARED_EXPERT,
    &[
        ("input_layernorm", Part::PlusOne("attn_norm")),
        ("post_attention_layernorm", Part::PlusOne("post_attention_norm")),
        ("self_attn.q_norm", Part::PlusOne("attn_q_norm")),
        ("self_attn.k_norm", Part::PlusOne("attn_k_norm")),
        ("linear_attn.in_proj_qkvz", Part::Delta(Delta::Mixed)),
        ("linear_attn.in_proj_ba", As("ssm_ba")),
        ("linear_attn.in_proj_qkv", Part::Delta(Delta::Qkv)),
        ("linear_attn.in_proj_z", Part::Delta(Delta::Gate)),
        ("linear_attn.in_proj_b", Part::Delta(Delta::Rate)),
        ("linear_attn.in_proj_a", Part::Delta(Delta::Decay)),
        ("linear_attn.conv1d", Part::Delta(Delta::Taps)),
        ("linear_attn.A_log", Part::Delta(Delta::Slope)),
        ("linear_attn.dt_bias", Part::Delta(Delta::Bias)),
        ("linear_attn.norm", As("ssm_norm")),
        ("linear_attn.out_proj", Part::Delta(Delta::Out)),
    ],
]);
/// Convolutions in the place of attention in some layers (arXiv:2511.23404).
pub(super) const LFM2_PARTS: &[(&str, Part)] = &[
    ("self_attn.q_proj", As("attn_q")),
    ("self_attn.k_proj", As("attn_k")),
    ("self_attn.v_proj", As("attn_v")),
    ("self_attn.out_proj", As("attn_output")),
    ("self_attn.q_layernorm", As("attn_q_norm")),
    ("self_attn.k_layernorm", As("attn_k_norm")),
    ("operator_norm", As("attn_norm")),
    ("ffn_norm", As("ffn_norm")),
    ("conv.in_proj", As("shortconv.in_proj")),
    ("conv.conv", Part::Taps("shortconv.conv")),
    ("conv.out_proj", As("shortconv.out_proj")),
    ("feed_forward.w1", As("ffn_gate")),
    ("feed_forward.w3", As("ffn_up")),
    ("feed_forward.w2", As("ffn_down")),
    // Where there are experts, behind the first layers.
    ("feed_forward.gate", As("ffn_gate_inp")),
    ("feed_forward.expert_bias", Part::Bias("exp_probs_b")),
    ("feed_forward.experts.*.w1", As("ffn_gate")),
    ("feed_forward.experts.*.w3", As("ffn_up")),
    ("feed_forward.experts.*.w2", As("ffn_down")),
    ("feed_forward.experts.gate_up_proj", Part::GateUp),
    ("feed_forward.experts.down_proj", Part::Down),
];
pub(super) const INTERNLM2_PARTS: &[(&str, Part)] = &[
    ("attention.wqkv", Part::GroupedQkv),
    ("attention.wo", As("attn_output")),
    ("feed_forward.w1", As("ffn_gate")),
    ("feed_forward.w3", As("ffn_up")),
    ("feed_forward.w2", As("ffn_down")),
    ("attention_norm", As("attn_norm")),
    ("ffn_norm", As("ffn_norm")),
];
pub(super) const BAICHUAN_PARTS: &[(&str, Part)] = &join::<_, 7>(&[
    &MLP,
    &NORMS,
    &[("self_attn.W_pack", Part::Qkv), ("self_attn.o_proj", As("attn_output"))],
]);

pub(super) const GPT_NEOX_PARTS: &[(&str, Part)] = &join::<_, 8>(&[
    &NORMS,
    &[
        ("attention.query_key_value", Part::FusedQkv),
        ("attention.dense", As("attn_output")),
        ("mlp.dense_h_to_4h", As("ffn_up")),
        ("mlp.dense_4h_to_h", As("ffn_down")),
        // The causal mask, `attention.bias`, and what it puts in the place of a score.
        ("attention", Part::Ignored),
        ("attention.masked_bias", Part::Ignored),
    ],
]);

pub(super) const GPT2_PARTS: &[(&str, Part)] = &[
    ("ln_1", As("attn_norm")),
    ("ln_2", As("ffn_norm")),
    ("attn.c_attn", Part::Transposed("attn_qkv")),
    ("attn.c_proj", Part::Transposed("attn_output")),
    ("mlp.c_fc", Part::Transposed("ffn_up")),
    ("mlp.c_proj", Part::Transposed("ffn_down")),
    // As of GPT-NeoX.
    ("attn", Part::Ignored),
    ("attn.masked_bias", Part::Ignored),
];
/// One norm, or two: the convention's first is the feed-forward network's then.
pub(super) const FALCON_PARTS: &[(&str, Part)] = &[
    ("self_attention.query_key_value", Part::FusedQkv),
    ("self_attention.dense", As("attn_output")),
    ("mlp.dense_h_to_4h", As("ffn_up")),
    ("mlp.dense_4h_to_h", As("ffn_down")),
    ("input_layernorm", As("attn_norm")),
    ("ln_mlp", As("attn_norm")),
    ("ln_attn", As("attn_norm_2")),
];

pub(super) const DECODER_NAMES: Names = Names {
    prefix: "model.",
    layers: "layers.",
    stems: &[("embed_tokens", "token_embd"), ("norm", "output_norm"), ("lm_head", "output")],
};
/// With a vector of each layer for each token.
pub(super) const GEMMA4_NAMES: Names = Names {
    stems: &[
        ("embed_tokens", "token_embd"),
        ("norm", "output_norm"),
        ("lm_head", "output"),
        ("embed_tokens_per_layer", "per_layer_token_embd"),
        ("per_layer_model_projection", "per_layer_model_proj"),
        ("per_layer_projection_norm", "per_layer_proj_norm"),
    ],
    ..DECODER_NAMES
};
pub(super) const INTERNLM2_NAMES: Names = Names {
    stems: &[("tok_embeddings", "token_embd"), ("norm", "output_norm"), ("output", "output")],
    ..DECODER_NAMES
};
pub(super) const PHI_NAMES: Names = Names {
    stems: &[("embed_tokens", "token_embd"), ("final_layernorm", "output_norm"), ("lm_head", "output")],
    ..DECODER_NAMES
};
/// The last norm by the name of one of the embeddings, in the convention too.
pub(super) const LFM2_NAMES: Names = Names {
    stems: &[("embed_tokens", "token_embd"), ("embedding_norm", "token_embd_norm"), ("lm_head", "output")],
    ..DECODER_NAMES
};
pub(super) const GPT_NEOX_NAMES: Names = Names {
    prefix: "gpt_neox.",
    stems: &[
        ("embed_in", "token_embd"),
        ("final_layer_norm", "output_norm"),
        ("embed_out", "output"),
        // As newer libraries save it.
        ("lm_head", "output"),
    ],
    ..DECODER_NAMES
};

pub(super) const GPT2_NAMES: Names = Names {
    prefix: "transformer.",
    layers: "h.",
    stems: &[("wte", "token_embd"), ("wpe", "position_embd"), ("ln_f", "output_norm"), ("lm_head", "output")],
};
pub(super) const FALCON_NAMES: Names = Names {
    stems: &[("word_embeddings", "token_embd"), ("ln_f", "output_norm"), ("lm_head", "output")],
    ..GPT2_NAMES
};

pub(super) const BERT_PARTS: &[(&str, Part)] = &[
    ("attention.self.query", As("attn_q")),
    ("attention.self.key", As("attn_k")),
    ("attention.self.value", As("attn_v")),
    ("attention.output.dense", As("attn_output")),
    ("attention.output.LayerNorm", As("attn_output_norm")),
    ("intermediate.dense", As("ffn_up")),
    ("output.dense", As("ffn_down")),
    ("output.LayerNorm", As("layer_output_norm")),
];
pub(super) const NOMIC_BERT_PARTS: &[(&str, Part)] = &[
    ("attn.Wqkv", As("attn_qkv")),
    ("attn.out_proj", As("attn_output")),
    ("norm1", As("attn_output_norm")),
    ("mlp.fc11", As("ffn_up")),
    ("mlp.fc12", As("ffn_gate")),
    ("mlp.fc2", As("ffn_down")),
    ("norm2", As("layer_output_norm")),
];
pub(super) const MODERN_BERT_PARTS: &[(&str, Part)] = &[
    ("attn.Wqkv", As("attn_qkv")),
    ("attn.Wo", As("attn_output")),
    ("attn_norm", As("attn_norm")),
    ("mlp_norm", As("ffn_norm")),
    ("mlp.Wi", As("ffn_up")),
    ("mlp.Wo", As("ffn_down")),
];

pub(super) const BERT_STEMS: &[(&str, &str)] = &[
    ("embeddings.word_embeddings", "token_embd"),
    ("embeddings.position_embeddings", "position_embd"),
    ("embeddings.token_type_embeddings", "token_types"),
    ("embeddings.LayerNorm", "token_embd_norm"),
];
pub(super) const BERT_ENCODER: Encoder = Encoder {
    layers: "encoder.layer.",
    stems: BERT_STEMS,
    classifier: &[("pooler.dense", "cls"), ("classifier", "cls.output")],
    ignored: &["embeddings.position_ids", "pooler.", "cls."],
};
pub(super) const ROBERTA_ENCODER: Encoder = Encoder {
    classifier: &[("classifier.dense", "cls"), ("classifier.out_proj", "cls.output")],
    ignored: &["embeddings.position_ids", "embeddings.token_type_ids", "pooler.", "lm_head."],
    ..BERT_ENCODER
};
pub(super) const NOMIC_BERT_ENCODER: Encoder = Encoder {
    layers: "encoder.layers.",
    stems: &[
        ("embeddings.word_embeddings", "token_embd"),
        ("embeddings.token_type_embeddings", "token_types"),
        ("emb_ln", "token_embd_norm"),
    ],
    ..BERT_ENCODER
};
pub(super) const MODERN_BERT_ENCODER: Encoder = Encoder {
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
pub(super) const fn join<T: Copy, const N: usize>(tables: &[&[T]]) -> [T; N] {
    let mut all = [tables[0][0]; N];
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

/// Gemma 3's norms as they are, experts beside the network, and what a layer makes of its own vector of a token.
pub(super) const GEMMA4_PARTS: &[(&str, Part)] = &join::<_, 25>(&[
    &ATTENTION,
    &MLP,
    &QK_NORMS,
    &[
        ("input_layernorm", As("attn_norm")),
        ("post_attention_layernorm", As("post_attention_norm")),
        ("pre_feedforward_layernorm", As("ffn_norm")),
        ("post_feedforward_layernorm", As("post_ffw_norm")),
        ("layer_scalar", As("layer_output_scale")),
        ("per_layer_input_gate", As("inp_gate")),
        ("per_layer_projection", As("proj")),
        ("post_per_layer_input_norm", As("post_norm")),
        ("pre_feedforward_layernorm_2", As("pre_ffw_norm_2")),
        ("post_feedforward_layernorm_1", As("post_ffw_norm_1")),
        ("post_feedforward_layernorm_2", As("post_ffw_norm_2")),
        ("router.proj", As("ffn_gate_inp")),
        ("router.scale", Part::Scale("ffn_gate_inp")),
        ("router.per_expert_scale", Part::Scale("ffn_down_exps")),
        ("experts.gate_up_proj", Part::GateUp),
        ("experts.down_proj", Part::Down),
    ],
]);
/// The same without experts and with streams beside each other.
pub(super) const GEMMA3N_PARTS: &[(&str, Part)] = &join::<_, 24>(&[
    &ATTENTION,
    &MLP,
    &QK_NORMS,
    &[
        ("input_layernorm", As("attn_norm")),
        ("post_attention_layernorm", As("post_attention_norm")),
        ("pre_feedforward_layernorm", As("ffn_norm")),
        ("post_feedforward_layernorm", As("post_ffw_norm")),
        ("per_layer_input_gate", As("inp_gate")),
        ("per_layer_projection", As("proj")),
        ("post_per_layer_input_norm", As("post_norm")),
        ("altup.modality_router", As("altup_router")),
        ("altup.router_norm", As("altup_router_norm")),
        ("altup.prediction_coefs", As("altup_predict_coef")),
        ("altup.correction_coefs", As("altup_correct_coef")),
        ("altup.correct_output_scale", As("altup_correct_scale")),
        ("laurel.linear_left", As("laurel_l")),
        ("laurel.linear_right", As("laurel_r")),
        ("laurel.post_laurel_norm", As("laurel_post_norm")),
    ],
]);
/// Norms that count from one, and the number of those around each half of a layer.
pub(super) const GEMMA_PARTS: &[(&str, Part)] = &join::<_, 9>(&[
    &ATTENTION,
    &MLP,
    &[
        ("input_layernorm", Part::PlusOne("attn_norm")),
        ("post_attention_layernorm", Part::PlusOne("ffn_norm")),
    ],
]);
pub(super) const GEMMA3_PARTS: &[(&str, Part)] = &join::<_, 13>(&[
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
