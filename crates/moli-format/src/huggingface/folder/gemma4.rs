//! Gemma 3n and 4: the two kinds of layers, and what each layer has of its own.

use serde_json::{Map, Value as Json, json};

use super::config::Config;
use super::rope::floats;
use super::{Keys, Source, decimal};
use crate::huggingface::HuggingFaceError;
use crate::huggingface::gemma4::quantile;
use crate::huggingface::rope::NO_TURN;
use crate::{FormatError, Value};

/// A count for each layer, which is the same for all where the file has one alone.
fn counts(keys: Keys<'_>, suffix: &str, layers: usize) -> Result<Vec<usize>, FormatError> {
    let key = keys.key(suffix);
    if !matches!(keys.metadata.get(&key), Some(Value::Array(_))) {
        return Ok(vec![keys.need(suffix)?; layers]);
    }
    let counts = keys.metadata.u32s(&key)?;
    match counts.len() == layers {
        true => Ok(counts.iter().map(|&count| count as usize).collect()),
        false => Err(no_field(keys, suffix, format!("{} counts for {layers} layers", counts.len()))),
    }
}

fn no_field(keys: Keys<'_>, suffix: &str, value: impl ToString) -> FormatError {
    HuggingFaceError::NoField { key: keys.key(suffix), value: value.to_string() }.into()
}

/// The heads of keys and values of the layers with local attention, or of all.
pub(super) fn kv_heads(keys: Keys<'_>, layers: usize) -> Result<usize, FormatError> {
    let (slides, counts) = (slides(keys, layers)?, counts(keys, "attention.head_count_kv", layers)?);
    let local = slides.iter().zip(&counts).find(|(slides, _)| **slides).map(|(_, count)| *count);
    Ok(local.or(counts.first().copied()).unwrap_or_default())
}

/// Per layer whether its attention slides.
fn slides(keys: Keys<'_>, layers: usize) -> Result<Vec<bool>, FormatError> {
    Ok(keys.flags("attention.sliding_window_pattern", layers)?.unwrap_or_else(|| vec![false; layers]))
}

/// Width inside the feed-forward network of the first layers.
pub(super) fn width(source: &Source<'_>) -> Result<usize, FormatError> {
    Ok(counts(source.keys(), "feed_forward_length", source.layers)?.first().copied().unwrap_or_default())
}

/// Widths inside the feed-forward networks.
pub(super) fn widths(source: &Source<'_>) -> Result<Vec<usize>, FormatError> {
    counts(source.keys(), "feed_forward_length", source.layers)
}

/// The fields that only Gemma 3n has.
pub(super) fn write_streams(source: &Source<'_>, config: &mut Config) -> Result<(), FormatError> {
    let keys = source.keys();
    config.put("num_kv_shared_layers", keys.count("attention.shared_kv_layers")?.unwrap_or(0));
    config.put("hidden_size_per_layer_input", keys.need("embedding_length_per_layer_input")?);
    let table = source.model.tensor("per_layer_token_embd.weight").map_or(0, crate::Tensor::rows);
    config.put("vocab_size_per_layer_input", table);
    config.put("altup_num_inputs", keys.need("altup.num_inputs")?);
    config.put("altup_active_idx", keys.count("altup.active_idx")?.unwrap_or(0));
    config.put("altup_correct_scale", true);
    let rank = source.model.tensor("blk.0.laurel_l.weight").map_or(0, crate::Tensor::rows);
    config.put("laurel_rank", rank);
    let cap = keys.float("final_logit_softcapping")?;
    config.put("final_logit_softcapping", cap.map_or(Json::Null, |cap| decimal(cap).into()));
    let suffix = "activation_sparsity_scale";
    let cutoffs = keys.metadata.f32s_opt(&keys.key(suffix))?;
    let cutoffs = cutoffs.ok_or_else(|| FormatError::MissingKey { key: keys.key(suffix) })?;
    let share = |&cutoff: &f32| match cutoff {
        f32::NEG_INFINITY => Some(0.0),
        cutoff => inverse_of(cutoff),
    };
    let shares: Option<Vec<f64>> = cutoffs.iter().map(share).collect();
    let shares = shares.ok_or_else(|| no_field(keys, suffix, "a number that no share gives"))?;
    config.put("activation_sparsity_pattern", shares);
    Ok(())
}

/// The share in single precision, written short, that gives this cutoff.
fn inverse_of(cutoff: f32) -> Option<f64> {
    let gives = |share: f32| quantile(f64::from(share)) as f32;
    // Shares of a few digits first, then those next to where they cross.
    let (mut low, mut high) = (0.0_f32, 1.0_f32);
    for _ in 0..64 {
        let middle = 0.5 * (low + high);
        if gives(middle) < cutoff { low = middle } else { high = middle }
    }
    let short = |digits: usize| format!("{high:.digits$}").parse::<f32>().ok();
    let found = (1..9).filter_map(short).chain([high, low]).find(|&share| gives(share) == cutoff);
    found.map(decimal)
}

/// The fields that only Gemma 4 has, or that it has otherwise than others.
pub(super) fn write(source: &Source<'_>, config: &mut Config) -> Result<(), FormatError> {
    let (keys, layers) = (source.keys(), source.layers);
    let slides = slides(keys, layers)?;
    if keys.count("attention.sliding_window")?.is_none_or(|tokens| tokens == 0) {
        // The class wants a number where no layer has a window too.
        config.put("sliding_window", 512);
    }
    let local = keys.count("attention.key_length_swa")?.unwrap_or(source.head_dim);
    let values = keys.count("attention.value_length_swa")?.unwrap_or(local);
    if values != local {
        return Err(no_field(keys, "attention.value_length_swa", values));
    }
    config.put("head_dim", local);
    config.put("global_head_dim", source.head_dim);

    let shared = keys.count("attention.shared_kv_layers")?.unwrap_or(0);
    let first_shared =
        layers.checked_sub(shared).ok_or_else(|| no_field(keys, "attention.shared_kv_layers", shared))?;
    config.put("num_kv_shared_layers", shared);
    // Of the layers with global attention all have a matrix for their values, or none.
    let has_values = |layer: usize| source.model.tensor(&format!("blk.{layer}.attn_v.weight")).is_some();
    let mut own_global = (0..first_shared).filter(|&layer| !slides[layer]);
    let keys_as_values = own_global.next().is_some_and(|layer| !has_values(layer));
    if let Some(layer) =
        (0..first_shared).find(|&layer| has_values(layer) == (keys_as_values && !slides[layer]))
    {
        return Err(HuggingFaceError::NoName { tensor: format!("blk.{layer}.attn_v.weight") }.into());
    }
    config.put("attention_k_eq_v", keys_as_values);
    for (count, slides) in counts(keys, "attention.head_count_kv", layers)?.into_iter().zip(&slides) {
        if keys_as_values && !slides {
            config.put("num_global_key_value_heads", count);
        } else if count != source.kv_heads {
            return Err(no_field(keys, "attention.head_count_kv", count));
        }
    }

    let widths = counts(keys, "feed_forward_length", layers)?;
    let (own, others) = widths.split_at(first_shared);
    let width = own.first().copied().unwrap_or_default();
    let double = others.first().is_some_and(|&first| first != width);
    let wanted = if double { 2 * width } else { width };
    if own.iter().any(|&own| own != width) || others.iter().any(|&other| other != wanted) {
        return Err(no_field(keys, "feed_forward_length", "a width for each layer"));
    }
    config.put("use_double_wide_mlp", double);

    config.put("hidden_size_per_layer_input", keys.count("embedding_length_per_layer_input")?.unwrap_or(0));
    let vocab = config.0.get("vocab_size").cloned().unwrap_or_default();
    config.put("vocab_size_per_layer_input", vocab);
    let cap = keys.float("final_logit_softcapping")?;
    config.put("final_logit_softcapping", cap.map_or(Json::Null, |cap| decimal(cap).into()));
    let experts = keys.count("expert_count")?.filter(|&count| count > 0);
    config.put("enable_moe_block", experts.is_some());
    if let Some(count) = experts {
        config.put("num_experts", count);
        config.put("top_k_experts", keys.need("expert_used_count")?);
        config.put("moe_intermediate_size", keys.need("expert_feed_forward_length")?);
    }
    Ok(())
}

/// The rotary embeddings of both kinds of layers.
pub(super) fn write_rope(source: &Source<'_>, config: &mut Map<String, Json>) -> Result<(), FormatError> {
    let keys = source.keys();
    let pairs = source.head_dim / 2;
    if source.rotated != source.head_dim {
        return Err(no_field(keys, "rope.dimension_count", source.rotated));
    }
    let local = keys.count("attention.key_length_swa")?.unwrap_or(source.head_dim);
    if let Some(dims) = keys.count("rope.dimension_count_swa")?.filter(|&dims| dims != local) {
        return Err(no_field(keys, "rope.dimension_count_swa", dims));
    }
    if let Some(kind) = keys.text("rope.scaling.type")?.filter(|kind| !["none", "linear"].contains(kind)) {
        return Err(no_field(keys, "rope.scaling.type", kind));
    }
    const DIVISORS: &str = "rope_freqs.weight";
    let turned = match source.model.tensor(DIVISORS) {
        None => pairs,
        Some(tensor) => {
            let divisors = floats(tensor)?;
            let turned = divisors.iter().take_while(|&&divisor| divisor == 1.0).count();
            let rest = divisors.get(turned..).unwrap_or_default();
            if divisors.len() != pairs || rest.iter().any(|&divisor| divisor < NO_TURN) {
                return Err(HuggingFaceError::NoName { tensor: DIVISORS.to_owned() }.into());
            }
            turned
        }
    };
    let (turned, all) = (turned as f64, pairs as f64);
    let share = turned / all;
    let share = if (share * 2.0 * all / 2.0).floor() == turned { share } else { (turned + 0.5) / all };
    let base = |suffix, usual| Ok::<_, FormatError>(decimal(keys.float(suffix)?.unwrap_or(usual)));
    let factor = decimal(keys.float("rope.scaling.factor")?.unwrap_or(1.0));
    let mut global = json!({
        "rope_type": "proportional", "rope_theta": base("rope.freq_base", 1e6)?, "partial_rotary_factor": share,
    });
    if factor != 1.0 {
        global["factor"] = factor.into();
    }
    let local = json!({ "rope_type": "default", "rope_theta": base("rope.freq_base_swa", 1e4)? });
    config.insert(
        "rope_parameters".to_owned(),
        json!({ "full_attention": global, "sliding_attention": local }),
    );
    Ok(())
}
