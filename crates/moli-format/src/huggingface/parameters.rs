//! The fields of a configuration as metadata.

use serde_json::Value;

use super::family::{SENSITIVE, Special, Window};
use super::fields::Fields;
use super::{Entries, HuggingFaceError, Model, delta, gemma4};

/// Writes what every architecture has, and what is special for this one. Refuses what is not computed.
pub(super) fn write(model: &Model<'_>, entries: &mut Entries) -> Result<(), HuggingFaceError> {
    refuse(model, entries)?;
    let fields = &model.fields;
    entries.put("block_count", model.layers);
    const POSITIONS: &str = "max_position_embeddings";
    let context = fields.need_count(POSITIONS)?.checked_sub(model.unused_positions);
    entries.put("context_length", context.ok_or_else(|| fields.wrong(POSITIONS, "above pad_token_id"))?);
    entries.put("embedding_length", model.hidden);
    if gemma4::is(model) {
        gemma4::write_width(model, entries)?;
    } else if model.family.special == Special::Gemma3n {
        gemma4::write_widths(model, entries)?;
    } else if let Some(width) = width(model)? {
        entries.put("feed_forward_length", width);
    }
    entries.put("vocab_size", fields.need_count("vocab_size")?);
    entries.put("attention.head_count", model.heads);
    match model.family.special {
        Special::Lfm2 => {
            // A layer without key heads is a convolution.
            let heads = |&conv: &bool| if conv { 0 } else { model.kv_heads };
            let heads = recurrent_layers(model)?.iter().map(heads).collect::<Vec<u32>>();
            entries.put("attention.head_count_kv", heads);
        }
        Special::Gemma4 => gemma4::write_heads(model, entries)?,
        _ => entries.put("attention.head_count_kv", model.kv_heads),
    }
    if !matches!(model.family.special, Special::DeepSeek | Special::Gemma4) {
        entries.put("attention.key_length", model.head_dim);
        entries.put("attention.value_length", model.head_dim);
    }
    match model.family.layer_norm() {
        None if model.family.special == Special::Lfm2 => {
            entries.float("attention.layer_norm_rms_epsilon", fields.need_number("norm_eps")?);
        }
        Some(field) => entries.float("attention.layer_norm_epsilon", fields.need_number(field)?),
        None => entries.float("attention.layer_norm_rms_epsilon", fields.need_number("rms_norm_eps")?),
    }
    if model.family.halves {
        entries.plain("moli.rope.halves", true);
    }
    if model.family.encoder.is_some() {
        return encoder(model, entries);
    }
    let without = |field: &str| Ok::<_, HuggingFaceError>(fields.flag(field)? == Some(false));
    if match model.family.architecture {
        "qwen2moe" => without("qkv_bias")?,
        "starcoder2" => without("use_bias")?,
        "gpt-oss" | "gptneox" => without("attention_bias")?,
        _ => false,
    } {
        entries.plain("moli.qkv_bias", false);
    }
    window(model, entries)?;
    special(model, entries)
}

/// Width inside the feed-forward network of the layers without experts, which LFM2 computes of what its configuration says.
fn width(model: &Model<'_>) -> Result<Option<u32>, HuggingFaceError> {
    let fields = &model.fields;
    let told = match (model.family.special, fields.count("block_ff_dim")?) {
        (Special::Lfm2, Some(width)) => width,
        // Where all layers have experts there need not be one.
        (Special::DeltaNet, _) if fields.count("num_experts")?.is_some() => {
            return fields.count("intermediate_size");
        }
        (Special::Gpt2 | Special::Falcon, _) => match fields.count("intermediate_size")? {
            Some(width) => width,
            None => model.hidden.saturating_mul(4),
        },
        _ => fields.need_count("intermediate_size")?,
    };
    let adjusted =
        model.family.architecture == "lfm2" && fields.flag("block_auto_adjust_ff_dim")?.unwrap_or(true);
    if !adjusted {
        return Ok(Some(told));
    }
    let two_thirds = (2.0 * f64::from(told) / 3.0).floor();
    let wide = (fields.need_number("block_ffn_dim_multiplier")? * two_thirds).floor();
    match fields.need_count("block_multiple_of")? {
        0 => Err(fields.wrong("block_multiple_of", "a positive integer")),
        multiple if (0.0..=f64::from(u32::MAX / 2)).contains(&wide) => {
            Ok(Some((wide as u32).div_ceil(multiple).saturating_mul(multiple)))
        }
        _ => Err(fields.wrong("block_ffn_dim_multiplier", "a number that makes a width")),
    }
}

/// Per layer whether it carries a state instead of keys and values.
fn recurrent_layers(model: &Model<'_>) -> Result<Vec<bool>, HuggingFaceError> {
    const KINDS: &str = "layer_types";
    const INDICES: &str = "full_attn_idxs";
    const INTERVAL: &str = "full_attention_interval";
    let fields = &model.fields;
    if let Some(kinds) = fields.texts(KINDS)? {
        if kinds.len() != model.layers as usize {
            return Err(fields.wrong(KINDS, "as long as num_hidden_layers"));
        }
        let recurrent = kinds.iter().map(|kind| match *kind {
            "conv" | "linear_attention" => Ok(true),
            "full_attention" => Ok(false),
            _ => Err(fields.unsupported(KINDS)),
        });
        return recurrent.collect();
    }
    if model.family.special == Special::DeltaNet {
        return match fields.need_count(INTERVAL)? {
            0 => Err(fields.wrong(INTERVAL, "a positive integer")),
            interval => Ok((1..=model.layers).map(|layer| !layer.is_multiple_of(interval)).collect()),
        };
    }
    match fields.numbers(INDICES)? {
        Some(indices) => Ok((0..model.layers).map(|layer| !indices.contains(&f64::from(layer))).collect()),
        None => Ok(vec![false; model.layers as usize]),
    }
}

/// What encoders have.
fn encoder(model: &Model<'_>, entries: &mut Entries) -> Result<(), HuggingFaceError> {
    let fields = &model.fields;
    entries.put("attention.causal", false);
    if model.family.special == Special::ModernBert {
        entries.put("attention.sliding_window", fields.need_count("local_attention")?);
        const PATTERN: &str = "attention.sliding_window_pattern";
        let every = |period: u32| (0..model.layers).map(move |layer| !layer.is_multiple_of(period));
        match layer_kinds(model)? {
            // The convention has a period; a list is for what none gives.
            Some(kinds) => match (1..=model.layers).find(|&period| every(period).eq(kinds.iter().copied())) {
                Some(period) => entries.put(PATTERN, period),
                None => entries.put(PATTERN, kinds),
            },
            None => match fields.need_count("global_attn_every_n_layers")? {
                0 => return Err(fields.wrong("global_attn_every_n_layers", "a positive integer")),
                period => entries.put(PATTERN, period),
            },
        }
    } else {
        if fields.text("position_embedding_type")?.is_some_and(|kind| kind != "absolute") {
            return Err(fields.unsupported("position_embedding_type"));
        }
        entries.plain("tokenizer.ggml.token_type_count", fields.need_count("type_vocab_size")?);
    }
    if !model.sorts {
        return Ok(());
    }
    // Ranks, in the convention.
    entries.put("pooling_type", 4u32);
    if fields.text("classifier_activation")?.is_some_and(|activation| activation != "gelu") {
        return Err(fields.unsupported("classifier_activation"));
    }
    entries.plain("moli.classifier.mean", fields.text("classifier_pooling")? == Some("mean"));
    if let Some(labels) = fields.object("id2label")? {
        let name = |id: usize| labels.text(&id.to_string()).map(|name| name.unwrap_or_default().to_owned());
        let names = (0..labels.len()).map(name).collect::<Result<Vec<_>, _>>()?;
        entries.put("classifier.output_labels", names);
    }
    Ok(())
}

/// Activations that any architecture can have instead of its own: what the library calls them, and the value of the key for them.
pub(super) const ACTIVATIONS: &[(&[&str], &str)] = &[
    (&["silu", "swish"], "silu"),
    (&["gelu"], "gelu"),
    (&["gelu_pytorch_tanh", "gelu_new", "gelu_fast"], "gelu_tanh"),
    (&["relu"], "relu"),
    (&["relu2"], "relu2"),
];

/// What asks for a computation that this architecture's decoder does not do.
fn refuse(model: &Model<'_>, entries: &mut Entries) -> Result<(), HuggingFaceError> {
    let fields = &model.fields;
    for fields in [fields, &model.root] {
        if let Some(quantized) = fields.object("quantization_config")? {
            match quantized.text("quant_method")? {
                Some("mxfp4") if model.family.special == Special::GptOss => {}
                // What they say is checked where the weights are unpacked.
                Some("gptq" | "awq") => {}
                method => {
                    let method = method.unwrap_or("an unnamed method").to_owned();
                    return Err(HuggingFaceError::Quantized { method });
                }
            }
        }
    }
    for field in ["hidden_activation", "hidden_act", "activation_function"] {
        if let Some(activation) = fields.text(field)? {
            if !model.family.activations.contains(&activation) {
                let computed = ACTIVATIONS.iter().find(|(names, _)| names.contains(&activation));
                // Experts with clamps and layers with a state have one of their own.
                let (_, name) = computed
                    .filter(|_| {
                        !matches!(model.family.special, Special::GptOss | Special::DeltaNet | Special::Lfm2)
                    })
                    .ok_or_else(|| fields.unsupported(field))?;
                entries.put("hidden_activation", *name);
            }
            // Where there are two fields, this order is that in which they count.
            break;
        }
    }
    for &(field, neutral) in SENSITIVE {
        if !model.family.reads.contains(&field) && !is_neutral(fields.get(field), neutral) {
            return Err(fields.unsupported(field));
        }
    }
    Ok(())
}

fn is_neutral(value: Option<&Value>, neutral: f64) -> bool {
    match value {
        None => true,
        Some(Value::Bool(flag)) => f64::from(u8::from(*flag)) == neutral,
        Some(value) => value.as_f64() == Some(neutral),
    }
}

/// The sliding window, and which layers have it.
fn window(model: &Model<'_>, entries: &mut Entries) -> Result<(), HuggingFaceError> {
    let fields = &model.fields;
    let kinds = layer_kinds(model)?;
    let tokens = match fields.count("sliding_window")? {
        Some(tokens) if tokens > 0 && fields.flag("use_sliding_window")? != Some(false) => tokens,
        _ if model.family.architecture == "cohere2"
            || kinds.as_ref().is_some_and(|kinds| kinds.contains(&true)) =>
        {
            return Err(fields.missing("sliding_window"));
        }
        _ => return Ok(()),
    };
    let Some(slides) = slides(model)? else { return Ok(()) };
    // Where there is a window, the layers without it have no rotary embedding here, even if all of them are such.
    // Of Gemma 4 the convention always has the number.
    if slides.contains(&true)
        || ["exaone4", "cohere2", "gemma4", "gemma3n"].contains(&model.family.architecture)
    {
        entries.put("attention.sliding_window", tokens);
        // Where all layers slide, the convention has no pattern.
        if slides.contains(&false) || matches!(model.family.window, Window::Period(_)) {
            entries.put("attention.sliding_window_pattern", slides);
        }
    }
    Ok(())
}

/// Per layer whether its attention slides where there is a window; `None`: it is not used.
pub(super) fn slides(model: &Model<'_>) -> Result<Option<Vec<bool>>, HuggingFaceError> {
    const PATTERN: &str = "sliding_window_pattern";
    let fields = &model.fields;
    let all = |slides: &dyn Fn(u32) -> bool| (0..model.layers).map(slides).collect::<Vec<bool>>();
    let mut slides = match (layer_kinds(model)?, model.family.window) {
        (Some(kinds), _) => kinds,
        (None, Window::All) => all(&|_| true),
        (None, Window::Late | Window::Alternate | Window::Unrotated | Window::Wanted)
            if fields.flag("use_sliding_window")? != Some(true) =>
        {
            return Ok(None);
        }
        (None, Window::Wanted) => all(&|_| true),
        (None, Window::Late) => {
            let first = fields.count("max_window_layers")?.unwrap_or(0);
            all(&|layer| layer >= first)
        }
        (None, Window::Alternate) => {
            let end = fields.count("max_window_layers")?.unwrap_or(0);
            all(&|layer| layer % 2 == 0 && layer < end)
        }
        (None, Window::Unrotated) => rotated_layers(model)?.iter().map(|rotates| !rotates).collect(),
        (None, Window::Period(_)) if fields.get(PATTERN).is_some_and(Value::is_string) => {
            // A letter for each layer of a period, L for those with a window.
            let letters = fields.text(PATTERN)?.unwrap_or_default().as_bytes();
            if letters.is_empty() || letters.iter().any(|letter| !b"LG".contains(letter)) {
                return Err(fields.wrong(PATTERN, "a number or the letters L and G"));
            }
            (0..model.layers as usize).map(|layer| letters[layer % letters.len()] == b'L').collect()
        }
        (None, Window::Period(usual)) => {
            let period = match fields.count(PATTERN)? {
                Some(period) => period,
                None => fields.count("_sliding_window_pattern")?.unwrap_or(usual),
            };
            if period == 0 {
                return Err(fields.wrong(PATTERN, "a positive integer"));
            }
            all(&|layer| (layer + 1) % period != 0)
        }
    };
    if let Some(last) = slides.last_mut().filter(|_| gemma4::is(model)) {
        // Whatever the configuration says.
        *last = false;
    }
    Ok(Some(slides))
}

/// Per layer whether its attention slides, if `layer_types` says it.
fn layer_kinds(model: &Model<'_>) -> Result<Option<Vec<bool>>, HuggingFaceError> {
    const FIELD: &str = "layer_types";
    let fields = &model.fields;
    if matches!(model.family.special, Special::Lfm2 | Special::DeltaNet) {
        // What the kinds are there for is said otherwise.
        return Ok(None);
    }
    let Some(kinds) = fields.texts(FIELD)? else { return Ok(None) };
    if kinds.len() != model.layers as usize {
        return Err(fields.wrong(FIELD, "as long as num_hidden_layers"));
    }
    let slides = kinds.iter().map(|kind| match *kind {
        "sliding_attention" => Ok(true),
        "full_attention" => Ok(false),
        _ => Err(fields.unsupported(FIELD)),
    });
    slides.collect::<Result<_, _>>().map(Some)
}

/// What only some families have.
fn special(model: &Model<'_>, entries: &mut Entries) -> Result<(), HuggingFaceError> {
    let fields = &model.fields;
    match model.family.special {
        Special::None
        | Special::Baichuan
        | Special::Gpt2
        | Special::Apertus
        | Special::Bert
        | Special::Roberta
        | Special::NomicBert
        | Special::ModernBert => Ok(()),
        Special::Gemma4 => gemma4::write(model, entries),
        Special::Gemma3n => gemma4::write_streams(model, entries),
        Special::Gemma => {
            if let Some(scalar) = positive(fields, "query_pre_attn_scalar")? {
                entries.float("attention.scale", scalar.sqrt().recip());
            }
            for field in ["attn_logit_softcapping", "final_logit_softcapping"] {
                // The third has both fields, and no code for the first.
                if model.family.architecture == "gemma3" && field.starts_with("attn") {
                    continue;
                }
                if let Some(cap) = positive(fields, field)? {
                    entries.float(field, cap);
                }
            }
            Ok(())
        }
        Special::Granite => {
            for (field, key) in [
                ("embedding_multiplier", "embedding_scale"),
                ("residual_multiplier", "residual_scale"),
                ("attention_multiplier", "attention.scale"),
                ("logits_scaling", "logit_scale"),
            ] {
                entries.float(key, positive(fields, field)?.unwrap_or(1.0));
            }
            if fields.count("num_local_experts")?.is_some_and(|count| count > 0) {
                experts(model, "num_local_experts", "num_experts_per_tok", entries)?;
            }
            if let Some(width) = fields.count("shared_intermediate_size")?.filter(|&width| width > 0) {
                entries.put("expert_shared_feed_forward_length", width);
            }
            Ok(())
        }
        Special::MiniCpm => {
            let need = |field: &str| positive(fields, field)?.ok_or_else(|| fields.missing(field));
            entries.float("embedding_scale", need("scale_emb")?);
            entries.float("residual_scale", need("scale_depth")? / f64::from(model.layers).sqrt());
            entries.float("logit_scale", f64::from(model.hidden) / need("dim_model_base")?);
            Ok(())
        }
        Special::SmolLm3 => {
            entries.put("rope.layers", rotated_layers(model)?);
            Ok(())
        }
        Special::Lfm2 => {
            entries.put("shortconv.l_cache", fields.need_size("conv_L_cache")?);
            if model.family.architecture == "lfm2" {
                return Ok(());
            }
            experts(model, "num_experts", "num_experts_per_tok", entries)?;
            entries.put("leading_dense_block_count", fields.count("num_dense_layers")?.unwrap_or(0));
            // Sigmoid.
            entries.put("expert_gating_func", 2u32);
            entries.float("expert_weights_scale", positive(fields, "routed_scaling_factor")?.unwrap_or(1.0));
            entries.put("expert_weights_norm", fields.flag("norm_topk_prob")?.unwrap_or(true));
            Ok(())
        }
        Special::DeltaNet => delta_net(model, entries),
        Special::Experts => {
            let field = if fields.get("num_experts").is_some() { "num_experts" } else { "num_local_experts" };
            shared_experts(model, field, entries)
        }
        Special::Ernie => {
            experts(model, "moe_num_experts", "moe_k", entries)?;
            let (width, shared) = (
                fields.need_count("moe_intermediate_size")?,
                fields.count("moe_num_shared_experts")?.unwrap_or(0),
            );
            entries.put("expert_shared_count", shared);
            entries.put("expert_shared_feed_forward_length", shared.saturating_mul(width));
            let interval = fields.count("moe_layer_interval")?.unwrap_or(1);
            let first = fields.count("moe_layer_start_index")?.unwrap_or(0);
            entries.put("interleave_moe_layer_step", interval);
            entries.put("leading_dense_block_count", first);
            // Up to which layer there are experts, their tensors tell.
            Ok(())
        }
        Special::PhiMoe => {
            experts(model, "num_local_experts", "num_experts_per_tok", entries)?;
            if fields.need_count("num_experts_per_tok")? != 2 {
                // Its code chooses two.
                return Err(fields.unsupported("num_experts_per_tok"));
            }
            let jitter = fields.number("router_jitter_noise")?.filter(|&jitter| jitter >= 0.0);
            let jitter = jitter.ok_or_else(|| fields.wrong("router_jitter_noise", "a number from 0 on"))?;
            if jitter != 0.01 {
                entries.plain("moli.router_jitter", jitter as f32);
            }
            Ok(())
        }
        Special::MiniMaxM2 => {
            if fields.text("scoring_func")?.is_some_and(|function| function != "sigmoid") {
                return Err(fields.unsupported("scoring_func"));
            }
            experts(model, "num_local_experts", "num_experts_per_tok", entries)?;
            // Sigmoid.
            entries.put("expert_gating_func", 2u32);
            Ok(())
        }
        Special::Falcon => {
            let new = fields.flag("new_decoder_architecture")? == Some(true);
            // How many norms a layer has, its tensors tell.
            if !new && fields.count("num_ln_in_parallel_attn")? == Some(2) {
                return Err(fields.unsupported("num_ln_in_parallel_attn"));
            }
            match fields.flag("parallel_attn")? {
                Some(false) => Err(fields.unsupported("parallel_attn")),
                _ => Ok(()),
            }
        }
        Special::GptNeoX => {
            entries.put("use_parallel_residual", fields.flag("use_parallel_residual")?.unwrap_or(true));
            Ok(())
        }
        Special::Cohere => {
            entries.float("logit_scale", positive(fields, "logit_scale")?.unwrap_or(1.0));
            Ok(())
        }
        Special::Glm4Moe => deepseek_experts(model, true, entries),
        Special::DeepSeek => latent(model, entries),
        Special::GptOss => experts(model, "num_local_experts", "num_experts_per_tok", entries),
    }
}

/// Experts: how many, how many of them for a token, and their width.
pub(super) fn experts(
    model: &Model<'_>,
    count: &str,
    used: &str,
    entries: &mut Entries,
) -> Result<(), HuggingFaceError> {
    let fields = &model.fields;
    entries.put("expert_count", fields.need_count(count)?);
    entries.put("expert_used_count", fields.need_count(used)?);
    let width = match fields.count("moe_intermediate_size")? {
        Some(width) => width,
        None => fields.need_count("intermediate_size")?,
    };
    entries.put("expert_feed_forward_length", width);
    Ok(())
}

/// Experts, one of which every token may go through.
fn shared_experts(model: &Model<'_>, count: &str, entries: &mut Entries) -> Result<(), HuggingFaceError> {
    let fields = &model.fields;
    experts(model, count, "num_experts_per_tok", entries)?;
    if let Some(width) = fields.count("shared_expert_intermediate_size")? {
        entries.put("expert_shared_feed_forward_length", width);
    }
    let normalised = match model.family.architecture {
        "qwen2moe" | "qwen3moe" | "olmoe" => fields.flag("norm_topk_prob")?.unwrap_or(false),
        "qwen3next" => fields.flag("norm_topk_prob")?.unwrap_or(true),
        // Others have no code for the field.
        _ => true,
    };
    entries.put("expert_weights_norm", normalised);
    sparse_layers(model, entries)
}

/// Qwen3-Next and Qwen3.5: gated delta nets, and attention with a gate.
fn delta_net(model: &Model<'_>, entries: &mut Entries) -> Result<(), HuggingFaceError> {
    let fields = &model.fields;
    if fields.flag("attn_output_gate")? == Some(false) {
        return Err(fields.unsupported("attn_output_gate"));
    }
    let heads = delta::Heads::of(model)?;
    entries.put("ssm.conv_kernel", fields.need_size("linear_conv_kernel_dim")?);
    entries.put("ssm.state_size", fields.need_size("linear_key_head_dim")?);
    entries.put("ssm.group_count", heads.keys as u32);
    entries.put("ssm.time_step_rank", heads.values as u32);
    entries.put("ssm.inner_size", u32::try_from(heads.inner()).unwrap_or(u32::MAX));
    entries.put("attention.recurrent_layers", recurrent_layers(model)?);
    match fields.count("num_experts")? {
        Some(count) if count > 0 => shared_experts(model, "num_experts", entries),
        _ => Ok(()),
    }
}

/// Each how manyth layer has experts. Those of them that `mlp_only_layers` excepts have no router, which tells a decoder.
fn sparse_layers(model: &Model<'_>, entries: &mut Entries) -> Result<(), HuggingFaceError> {
    let step = model.fields.count("decoder_sparse_step")?.unwrap_or(1);
    if step == 0 {
        return Err(model.fields.wrong("decoder_sparse_step", "a positive integer"));
    }
    if step > 1 {
        entries.put("interleave_moe_layer_step", step);
    }
    Ok(())
}

/// The layers that rotate, which `no_rope_layers` has as 1 or each but the last of some.
fn rotated_layers(model: &Model<'_>) -> Result<Vec<bool>, HuggingFaceError> {
    const FIELD: &str = "no_rope_layers";
    let fields = &model.fields;
    match fields.numbers(FIELD)? {
        Some(flags) if flags.len() == model.layers as usize => {
            Ok(flags.iter().map(|&flag| flag != 0.0).collect())
        }
        Some(_) => Err(fields.wrong(FIELD, "as long as num_hidden_layers")),
        None => match fields.need_count("no_rope_layer_interval")? {
            0 => Err(fields.wrong("no_rope_layer_interval", "a positive integer")),
            interval => Ok((1..=model.layers).map(|layer| !layer.is_multiple_of(interval)).collect()),
        },
    }
}

/// DeepSeek: keys and values from a latent vector, and a router with groups (arXiv:2405.04434, arXiv:2412.19437).
fn latent(model: &Model<'_>, entries: &mut Entries) -> Result<(), HuggingFaceError> {
    let fields = &model.fields;
    if fields.number("rms_norm_eps")? != Some(1e-6) {
        // That of these norms is the same in the library's code whatever the configuration says.
        entries.plain("moli.latent_norm_epsilon", 1e-6f32);
    }
    let rotated = fields.need_size("qk_rope_head_dim")?;
    entries.put("attention.key_length", fields.need_count("qk_nope_head_dim")?.saturating_add(rotated));
    entries.put("attention.value_length", fields.need_count("v_head_dim")?);
    entries.put("attention.kv_lora_rank", fields.need_count("kv_lora_rank")?);
    if let Some(rank) = fields.count("q_lora_rank")? {
        entries.put("attention.q_lora_rank", rank);
    }
    deepseek_experts(model, model.family.model_types.contains(&"deepseek_v3"), entries)
}

/// A router with groups, of DeepSeek's second or third model.
fn deepseek_experts(model: &Model<'_>, third: bool, entries: &mut Entries) -> Result<(), HuggingFaceError> {
    let fields = &model.fields;
    if fields.count("n_routed_experts")?.is_none_or(|count| count == 0) {
        return Ok(());
    }
    experts(model, "n_routed_experts", "num_experts_per_tok", entries)?;
    entries.put("expert_shared_count", fields.count("n_shared_experts")?.unwrap_or(0));
    entries.put("leading_dense_block_count", fields.count("first_k_dense_replace")?.unwrap_or(0));
    entries.float("expert_weights_scale", positive(fields, "routed_scaling_factor")?.unwrap_or(1.0));
    // The second has the field, and no code for it in transformers.
    entries.put("expert_weights_norm", third && fields.flag("norm_topk_prob")?.unwrap_or(true));
    let gating: u32 = match fields.text("scoring_func")? {
        Some("softmax") => 1,
        Some("sigmoid") => 2,
        None => {
            if third {
                2
            } else {
                1
            }
        }
        Some(_) => return Err(fields.unsupported("scoring_func")),
    };
    entries.put("expert_gating_func", gating);
    let grouped = match fields.text("topk_method")? {
        // The third has one way only.
        Some("greedy") if !third => false,
        Some("greedy" | "group_limited_greedy" | "noaux_tc") => true,
        None => third,
        Some(_) => return Err(fields.unsupported("topk_method")),
    };
    if grouped {
        let (groups, used) = (fields.need_count("n_group")?, fields.need_count("topk_group")?);
        // All of them are none to choose from, which the convention has no keys for.
        if used < groups {
            entries.put("expert_group_count", groups);
            entries.put("expert_group_used_count", used);
        }
    }
    Ok(())
}

/// A number above 0, where there is one.
pub(super) fn positive(fields: &Fields<'_>, field: &str) -> Result<Option<f64>, HuggingFaceError> {
    match fields.number(field)? {
        Some(number) if number <= 0.0 => Err(fields.wrong(field, "a number above 0")),
        number => Ok(number),
    }
}
