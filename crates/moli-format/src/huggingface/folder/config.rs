//! Metadata as the fields of a configuration.

use serde_json::{Map, Value as Json};

use super::{Keys, Source, all_but, decimal, delta, gemma4, inverse, rope};
use crate::FormatError;
use crate::huggingface::HuggingFaceError;
use crate::huggingface::family::{NO_EPSILON, Special, Window};
use crate::huggingface::parameters::ACTIVATIONS;

/// The class of each model type.
const CLASSES: &[(&str, &str)] = &[
    ("llama", "LlamaForCausalLM"),
    ("mistral", "MistralForCausalLM"),
    ("mixtral", "MixtralForCausalLM"),
    ("qwen2", "Qwen2ForCausalLM"),
    ("qwen2_moe", "Qwen2MoeForCausalLM"),
    ("qwen3", "Qwen3ForCausalLM"),
    ("qwen3_moe", "Qwen3MoeForCausalLM"),
    ("gemma", "GemmaForCausalLM"),
    ("gemma2", "Gemma2ForCausalLM"),
    ("gemma3_text", "Gemma3ForCausalLM"),
    ("gemma4_text", "Gemma4ForCausalLM"),
    ("gemma3n_text", "Gemma3nForCausalLM"),
    ("phi3", "Phi3ForCausalLM"),
    ("smollm3", "SmolLM3ForCausalLM"),
    ("glm4", "Glm4ForCausalLM"),
    ("granite", "GraniteForCausalLM"),
    ("granitemoe", "GraniteMoeForCausalLM"),
    ("olmo", "OlmoForCausalLM"),
    ("apertus", "ApertusForCausalLM"),
    ("phimoe", "PhimoeForCausalLM"),
    ("minimax_m2", "MiniMaxM2ForCausalLM"),
    ("olmo2", "Olmo2ForCausalLM"),
    ("olmo3", "Olmo3ForCausalLM"),
    ("olmoe", "OlmoeForCausalLM"),
    ("granitemoeshared", "GraniteMoeSharedForCausalLM"),
    ("internlm2", "InternLM2ForCausalLM"),
    ("baichuan", "BaichuanForCausalLM"),
    ("minicpm", "MiniCPMForCausalLM"),
    ("exaone4", "Exaone4ForCausalLM"),
    ("ernie4_5", "Ernie4_5ForCausalLM"),
    ("ernie4_5_moe", "Ernie4_5_MoeForCausalLM"),
    ("deepseek_v2", "DeepseekV2ForCausalLM"),
    ("deepseek_v3", "DeepseekV3ForCausalLM"),
    ("cohere", "CohereForCausalLM"),
    ("cohere2", "Cohere2ForCausalLM"),
    ("stablelm", "StableLmForCausalLM"),
    ("phi", "PhiForCausalLM"),
    ("gpt_neox", "GPTNeoXForCausalLM"),
    ("gpt2", "GPT2LMHeadModel"),
    ("falcon", "FalconForCausalLM"),
    ("glm4_moe", "Glm4MoeForCausalLM"),
    ("seed_oss", "SeedOssForCausalLM"),
    ("hunyuan_v1_dense", "HunYuanDenseV1ForCausalLM"),
    ("arcee", "ArceeForCausalLM"),
    ("nemotron", "NemotronForCausalLM"),
    ("gpt_oss", "GptOssForCausalLM"),
    ("starcoder2", "Starcoder2ForCausalLM"),
    ("lfm2", "Lfm2ForCausalLM"),
    ("lfm2_moe", "Lfm2MoeForCausalLM"),
    ("qwen3_next", "Qwen3NextForCausalLM"),
    ("qwen3_5_text", "Qwen3_5ForCausalLM"),
    ("qwen3_5_moe_text", "Qwen3_5MoeForCausalLM"),
];

pub(super) fn write(source: &Source<'_>) -> Result<Map<String, Json>, FormatError> {
    let (keys, mut config) = (source.keys(), Config(Map::new()));
    let class = CLASSES.iter().find(|(model_type, _)| *model_type == source.model_type);
    config.put("architectures", class.map(|(_, class)| *class).into_iter().collect::<Vec<_>>());
    config.put("model_type", source.model_type);
    config.put("hidden_size", keys.need("embedding_length")?);
    let width = match source.family.special {
        Special::Gemma4 => gemma4::width(source)?.into(),
        Special::Gemma3n => gemma4::widths(source)?.into(),
        _ => Json::from(width(keys)?),
    };
    config.put("intermediate_size", width);
    config.put("num_hidden_layers", source.layers);
    config.put("num_attention_heads", source.heads);
    // That of latent attention is 1 in newer files, and each head has keys of its own.
    let kv_heads = if source.is(Special::DeepSeek) { source.heads } else { source.kv_heads };
    config.put("num_key_value_heads", kv_heads);
    if !source.is(Special::DeepSeek) {
        config.put("head_dim", source.head_dim);
        let value = keys.count("attention.value_length")?.unwrap_or(source.head_dim);
        if value != source.head_dim {
            let key = keys.key("attention.value_length");
            return Err(HuggingFaceError::NoField { key, value: value.to_string() }.into());
        }
    }
    config.put("max_position_embeddings", keys.need("context_length")?);
    let missing = |tensor: &str| HuggingFaceError::MissingTensor { tensor: tensor.to_owned() };
    let embeddings = source.model.tensor("token_embd.weight").ok_or_else(|| missing("token_embd.weight"))?;
    config.put("vocab_size", embeddings.rows());
    let (field, key) = match source.family.layer_norm() {
        Some(field) => (field, "attention.layer_norm_epsilon"),
        None => ("rms_norm_eps", "attention.layer_norm_rms_epsilon"),
    };
    let epsilon = keys.float(key)?.ok_or_else(|| FormatError::MissingKey { key: keys.key(key) })?;
    match field {
        NO_EPSILON if epsilon != 1e-5 => {
            return Err(HuggingFaceError::NoField { key: keys.key(key), value: epsilon.to_string() }.into());
        }
        NO_EPSILON => {}
        field => config.put(field, decimal(epsilon)),
    }
    let activation = activation(source)?;
    config.put("hidden_act", activation);
    if source.family.architecture.starts_with("gemma") {
        config.put("hidden_activation", activation);
    }
    config.put("tie_word_embeddings", source.model.tensor("output.weight").is_none());
    // Some classes have a default beyond a small vocabulary.
    config.put("pad_token_id", Json::Null);
    biases(source, &mut config);
    window(source, &mut config)?;
    special(source, &mut config)?;
    if !source.family.unturned() {
        rope::write(source, &mut config.0)?;
    }
    if source.is(Special::DeltaNet) {
        delta::sections(source, &mut config)?;
    }
    if matches!(source.family.special, Special::Gpt2 | Special::Falcon) {
        // Fields of others, the first of which is none that can be set here.
        for field in [
            "head_dim",
            "attention_bias",
            "mlp_bias",
            "sliding_window",
            "use_sliding_window",
            "max_window_layers",
        ] {
            config.0.remove(field);
        }
    }
    for (field, own) in source.family.aliases {
        if let Some(value) = config.0.remove(*field) {
            config.put(own, value);
        }
    }
    Ok(config.0)
}

/// The activation's name: the architecture's own, or what the file says instead.
fn activation(source: &Source<'_>) -> Result<&'static str, FormatError> {
    let (keys, own) = (source.keys(), source.family.activations);
    let Some(told) = keys.text("hidden_activation")? else {
        return Ok(own.first().copied().unwrap_or_default());
    };
    let named = ACTIVATIONS.iter().find(|(_, kind)| *kind == told).and_then(|(names, _)| names.first());
    let no_field = || {
        let (key, value) = (keys.key("hidden_activation"), told.to_owned());
        HuggingFaceError::NoField { key, value }
    };
    // A name that means the architecture's own there is no name for this one.
    Ok(named.copied().filter(|name| own.first() == Some(name) || !own.contains(name)).ok_or_else(no_field)?)
}

pub(super) struct Config(pub(super) Map<String, Json>);

impl Config {
    pub(super) fn put(&mut self, field: &str, value: impl Into<Json>) {
        self.0.insert(field.to_owned(), value.into());
    }
}

/// The width inside a layer without experts, or of an expert where all have some.
fn width(keys: Keys<'_>) -> Result<usize, FormatError> {
    match keys.count("feed_forward_length")?.filter(|&width| width > 0) {
        Some(width) => Ok(width),
        None => keys.need("expert_feed_forward_length"),
    }
}

/// Which biases there are, by the fields that one or the other class reads.
fn biases(source: &Source<'_>, config: &mut Config) {
    let has = |name: &str| source.model.tensor(name).is_some();
    let attention =
        ["attn_q", "attn_qkv", "attn_kv_a_mqa"].iter().any(|stem| has(&format!("blk.0.{stem}.bias")));
    config.put("attention_bias", attention);
    config.put("mlp_bias", has("blk.0.ffn_down.bias"));
    match source.family.architecture {
        "starcoder2" | "ernie4_5" | "ernie4_5-moe" => config.put("use_bias", attention),
        "internlm2" => config.put("bias", attention),
        "stablelm" => {
            config.put("use_qkv_bias", attention);
            config.put("use_parallel_residual", !has("blk.0.ffn_norm.weight"));
        }
        "glm4moe" => config.put("use_qk_norm", has("blk.0.attn_q_norm.weight")),
        "seed_oss" => config.put("attention_out_bias", has("blk.0.attn_output.bias")),
        _ => {}
    }
}

/// The sliding window and the layers that have it, all of it said so that no default counts.
fn window(source: &Source<'_>, config: &mut Config) -> Result<(), FormatError> {
    let keys = source.keys();
    let pattern = keys.flags("attention.sliding_window_pattern", source.layers)?;
    let tokens = keys.count("attention.sliding_window")?.filter(|&tokens| tokens > 0);
    let slides = match (tokens, pattern, source.family.window) {
        (None, ..) => vec![false; source.layers],
        (Some(_), Some(pattern), _) => pattern,
        (Some(_), None, Window::Period(period)) => all_but(period as usize, source.layers),
        (Some(_), None, _) => vec![true; source.layers],
    };
    config.put("sliding_window", tokens.map_or(Json::Null, Json::from));
    let listed = match source.family.window {
        Window::Period(_) => true,
        // A window of all layers needs no list, which older readers don't know.
        Window::All => slides.contains(&true) && slides.contains(&false),
        Window::Late | Window::Alternate | Window::Unrotated | Window::Wanted => tokens.is_some(),
    };
    if listed {
        let kind = |slides: &bool| if *slides { "sliding_attention" } else { "full_attention" };
        config.put("layer_types", slides.iter().map(kind).collect::<Vec<_>>());
    }
    if !matches!(source.family.window, Window::All | Window::Period(_)) {
        config.put("use_sliding_window", tokens.is_some());
        config.put("max_window_layers", slides.iter().position(|&slides| slides).unwrap_or(source.layers));
    }
    Ok(())
}

/// What only some families have.
fn special(source: &Source<'_>, config: &mut Config) -> Result<(), FormatError> {
    let keys = source.keys();
    match source.family.special {
        Special::DeltaNet => delta::config(source, config),
        // The encoders among them have a configuration of their own.
        Special::None
        | Special::Baichuan
        | Special::Apertus
        | Special::Bert
        | Special::Roberta
        | Special::NomicBert
        | Special::ModernBert => Ok(()),
        Special::Gemma4 => gemma4::write(source, config),
        Special::Gemma3n => gemma4::write_streams(source, config),
        Special::Gemma => {
            let scale = match keys.float("attention.scale")? {
                Some(scale) => scale,
                // Those of 27B alone scale by the width per head.
                None => {
                    let width = match (source.family.architecture, source.layers) {
                        ("gemma2", 46) | ("gemma3", 62) => keys.need("embedding_length")? / source.heads,
                        _ => source.head_dim,
                    };
                    (width as f64).sqrt().recip() as f32
                }
            };
            let scalar = inverse(f64::from(scale).powi(-2), scale, |scalar| scalar.sqrt().recip() as f32);
            // transformers wants an integer.
            let whole = scalar.fract() == 0.0;
            config
                .put("query_pre_attn_scalar", if whole { Json::from(scalar as u64) } else { scalar.into() });
            for field in ["attn_logit_softcapping", "final_logit_softcapping"] {
                let cap = keys.float(field)?.map_or(Json::Null, |cap| decimal(cap).into());
                config.put(field, cap);
            }
            Ok(())
        }
        Special::Granite => {
            for (field, key) in [
                ("embedding_multiplier", "embedding_scale"),
                ("residual_multiplier", "residual_scale"),
                ("logits_scaling", "logit_scale"),
            ] {
                config.put(field, decimal(keys.float(key)?.unwrap_or(1.0)));
            }
            let usual = (source.head_dim as f32).sqrt().recip();
            config.put("attention_multiplier", decimal(keys.float("attention.scale")?.unwrap_or(usual)));
            if keys.count("expert_count")?.is_some_and(|count| count > 0) {
                config.put("num_local_experts", keys.need("expert_count")?);
                config.put("num_experts_per_tok", keys.need("expert_used_count")?);
                config.put(
                    "shared_intermediate_size",
                    keys.count("expert_shared_feed_forward_length")?.unwrap_or(0),
                );
            }
            Ok(())
        }
        Special::PhiMoe => {
            config.put("num_local_experts", keys.need("expert_count")?);
            config.put("num_experts_per_tok", keys.need("expert_used_count")?);
            let jitter = source.model.metadata().f32_opt("moli.router_jitter")?.unwrap_or(0.01);
            config.put("router_jitter_noise", decimal(jitter));
            config.put("lm_head_bias", source.model.tensor("output.bias").is_some());
            Ok(())
        }
        Special::MiniMaxM2 => {
            config.put("num_local_experts", keys.need("expert_count")?);
            config.put("num_experts_per_tok", keys.need("expert_used_count")?);
            config.put("intermediate_size", keys.need("expert_feed_forward_length")?);
            config.put("rotary_dim", source.rotated);
            config.put("scoring_func", "sigmoid");
            config.put("use_qk_norm", true);
            Ok(())
        }
        Special::Gpt2 => {
            // More positions than the convention tells are there.
            if let Some(positions) = source.model.tensor("position_embd.weight") {
                config.put("max_position_embeddings", positions.rows());
            }
            config.0.remove("num_key_value_heads");
            Ok(())
        }
        Special::Falcon => {
            let has = |name: &str| source.model.tensor(name).is_some();
            let two = has("blk.0.attn_norm_2.weight");
            let new = two || source.kv_heads != 1;
            config.put("new_decoder_architecture", new);
            config.put("multi_query", !new);
            config.put("num_ln_in_parallel_attn", new.then_some(if two { 2 } else { 1 }));
            config.put("parallel_attn", true);
            config.put("alibi", false);
            config.put("bias", has("blk.0.attn_qkv.bias"));
            Ok(())
        }
        Special::GptNeoX => {
            config.put("use_parallel_residual", keys.flag("use_parallel_residual")?.unwrap_or(true));
            Ok(())
        }
        Special::Cohere => {
            config.put("logit_scale", decimal(keys.float("logit_scale")?.unwrap_or(1.0)));
            Ok(())
        }
        Special::Glm4Moe => deepseek_experts(source, true, config),
        Special::MiniCpm => mini_cpm(source, config),
        Special::SmolLm3 => {
            let rotates = source.rotates()?.unwrap_or_default();
            config
                .put("no_rope_layers", rotates.iter().map(|&rotates| u8::from(rotates)).collect::<Vec<_>>());
            Ok(())
        }
        Special::Experts => experts(source, config),
        Special::Lfm2 => lfm2(source, config),
        Special::Ernie => {
            config.put("moe_num_experts", keys.need("expert_count")?);
            config.put("moe_k", keys.need("expert_used_count")?);
            config.put("moe_intermediate_size", keys.need("expert_feed_forward_length")?);
            config.put("moe_num_shared_experts", keys.count("expert_shared_count")?.unwrap_or(0));
            config.put("moe_layer_interval", keys.count("interleave_moe_layer_step")?.unwrap_or(1));
            config.put("moe_layer_start_index", keys.count("leading_dense_block_count")?.unwrap_or(0));
            config.put("moe_layer_end_index", source.layers.saturating_sub(1));
            Ok(())
        }
        Special::DeepSeek => latent(source, config),
        Special::GptOss => {
            config.put("num_local_experts", keys.need("expert_count")?);
            config.put("num_experts_per_tok", keys.need("expert_used_count")?);
            config.put("intermediate_size", keys.need("expert_feed_forward_length")?);
            Ok(())
        }
    }
}

fn mini_cpm(source: &Source<'_>, config: &mut Config) -> Result<(), FormatError> {
    let keys = source.keys();
    let (layers, hidden) = (source.layers as f64, keys.need("embedding_length")? as f64);
    // Older files leave out the numbers of the first MiniCPM.
    let embedding = keys.float("embedding_scale")?.unwrap_or(12.0);
    config.put("scale_emb", decimal(embedding));
    let depth = match keys.float("residual_scale")? {
        Some(scale) => {
            inverse(f64::from(scale) * layers.sqrt(), scale, |depth| (depth / layers.sqrt()) as f32)
        }
        None => 1.4,
    };
    config.put("scale_depth", depth);
    let base = match keys.float("logit_scale")? {
        Some(scale) => inverse(hidden / f64::from(scale), scale, |base| (hidden / base) as f32),
        None => 256.0,
    };
    config.put("dim_model_base", base);
    Ok(())
}

/// Convolutions, and the width as it is.
fn lfm2(source: &Source<'_>, config: &mut Config) -> Result<(), FormatError> {
    let keys = source.keys();
    config.put("conv_L_cache", keys.need("shortconv.l_cache")?);
    config.put("conv_bias", false);
    config.put("block_auto_adjust_ff_dim", false);
    let epsilon = config.0.remove("rms_norm_eps");
    config.put("norm_eps", epsilon.unwrap_or_default());
    let kind = |&recurrent: &bool| if recurrent { "conv" } else { "full_attention" };
    config.put("layer_types", source.recurrent.iter().map(kind).collect::<Vec<_>>());
    // A window of layers is none of theirs.
    config.0.remove("sliding_window");
    if source.family.architecture == "lfm2" {
        return Ok(());
    }
    config.put("num_experts", keys.need("expert_count")?);
    config.put("num_experts_per_tok", keys.need("expert_used_count")?);
    config.put("moe_intermediate_size", keys.need("expert_feed_forward_length")?);
    config.put("num_dense_layers", keys.count("leading_dense_block_count")?.unwrap_or(0));
    let bias = |layer| source.model.tensor(&format!("blk.{layer}.exp_probs_b.bias")).is_some();
    config.put("use_expert_bias", (0..source.layers).any(bias));
    config.put("routed_scaling_factor", decimal(keys.float("expert_weights_scale")?.unwrap_or(1.0)));
    config.put("norm_topk_prob", keys.flag("expert_weights_norm")?.unwrap_or(true));
    Ok(())
}

/// Mixtral and Qwen.
pub(super) fn experts(source: &Source<'_>, config: &mut Config) -> Result<(), FormatError> {
    let keys = source.keys();
    let (count, used) = (keys.need("expert_count")?, keys.need("expert_used_count")?);
    config.put("num_experts_per_tok", used);
    if source.model_type == "mixtral" {
        config.put("num_local_experts", count);
        return Ok(());
    }
    config.put("num_experts", count);
    config.put("moe_intermediate_size", keys.need("expert_feed_forward_length")?);
    if let Some(width) = keys.count("expert_shared_feed_forward_length")? {
        config.put("shared_expert_intermediate_size", width);
    }
    let usual = source.model_type != "qwen2_moe";
    config.put("norm_topk_prob", keys.flag("expert_weights_norm")?.unwrap_or(usual));
    config.put("decoder_sparse_step", keys.count("interleave_moe_layer_step")?.unwrap_or(1).max(1));
    let dense = |layer: &usize| source.model.tensor(&format!("blk.{layer}.ffn_gate_inp.weight")).is_none();
    config.put("mlp_only_layers", (0..source.layers).filter(dense).collect::<Vec<_>>());
    Ok(())
}

/// DeepSeek.
fn latent(source: &Source<'_>, config: &mut Config) -> Result<(), FormatError> {
    let keys = source.keys();
    let (key, value) = match keys.count("attention.key_length_mla")? {
        Some(key) => (key, keys.need("attention.value_length_mla")?),
        None => (keys.need("attention.key_length")?, keys.need("attention.value_length")?),
    };
    let rotated = keys.need("rope.dimension_count")?;
    config.put("qk_rope_head_dim", rotated);
    config.put("qk_nope_head_dim", key.saturating_sub(rotated));
    config.put("v_head_dim", value);
    config.put("kv_lora_rank", keys.need("attention.kv_lora_rank")?);
    let rank = keys.count("attention.q_lora_rank")?.filter(|&rank| rank > 0);
    config.put("q_lora_rank", rank.map_or(Json::Null, Json::from));
    deepseek_experts(source, source.model_type == "deepseek_v3", config)
}

/// The experts of DeepSeek's second or third model.
fn deepseek_experts(source: &Source<'_>, third: bool, config: &mut Config) -> Result<(), FormatError> {
    let keys = source.keys();
    let Some(count) = keys.count("expert_count")?.filter(|&count| count > 0) else {
        return Ok(());
    };
    config.put("n_routed_experts", count);
    config.put("num_experts_per_tok", keys.need("expert_used_count")?);
    config.put("moe_intermediate_size", keys.need("expert_feed_forward_length")?);
    config.put("n_shared_experts", keys.count("expert_shared_count")?.unwrap_or(0));
    config.put("first_k_dense_replace", keys.count("leading_dense_block_count")?.unwrap_or(0));
    config.put("moe_layer_freq", 1);
    config.put("routed_scaling_factor", decimal(keys.float("expert_weights_scale")?.unwrap_or(1.0)));
    config.put("norm_topk_prob", keys.flag("expert_weights_norm")?.unwrap_or(false));
    config.put("scoring_func", if third { "sigmoid" } else { "softmax" });
    match (keys.count("expert_group_count")?, keys.count("expert_group_used_count")?) {
        (Some(groups), Some(used)) => {
            config.put("topk_method", if third { "noaux_tc" } else { "group_limited_greedy" });
            config.put("n_group", groups);
            config.put("topk_group", used);
        }
        _ => {
            config.put("topk_method", if third { "noaux_tc" } else { "greedy" });
            config.put("n_group", 1);
            config.put("topk_group", 1);
        }
    }
    Ok(())
}
