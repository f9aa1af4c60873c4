//! Rotary embeddings: `rope_theta`, `rope_scaling` and what stands beside them.

use std::f64::consts::TAU;

use serde_json::{Map, Value as Json, json};

use super::{Source, decimal, gemma4, inverse};
use crate::huggingface::HuggingFaceError;
use crate::huggingface::family::Special;
use crate::huggingface::rope::{llama3_divisor, longrope_factor, mscale};
use crate::{FormatError, Tensor, TensorType};

/// Factors per pair, as the convention has them.
const DIVISORS: &str = "rope_freqs.weight";
const LONG: &str = "rope_factors_long.weight";
const SHORT: &str = "rope_factors_short.weight";
/// What [`DIVISORS`] were computed from, where this crate computed them.
const LLAMA3: &str = "moli.rope.llama3";

/// Whether a tensor is one that [`write`] reads.
pub(super) fn is_factors(name: &str) -> bool {
    [DIVISORS, LONG, SHORT].contains(&name)
}

pub(super) fn write(source: &Source<'_>, config: &mut Map<String, Json>) -> Result<(), FormatError> {
    if source.is(Special::Gemma4) {
        return gemma4::write_rope(source, config);
    }
    let keys = source.keys();
    let usual = match source.family.architecture {
        "gpt-oss" => 150_000.0,
        "gemma3" | "gemma3n" => 1e6,
        _ => 1e4,
    };
    let base = decimal(keys.float("rope.freq_base")?.unwrap_or(usual));
    config.insert("rope_theta".to_owned(), base.into());
    if ["gemma3", "gemma3n"].contains(&source.family.architecture) {
        let local = decimal(keys.float("rope.freq_base_swa")?.unwrap_or(1e4));
        config.insert("rope_local_base_freq".to_owned(), local.into());
    }
    let told = source.family.defaults.iter().any(|(field, _)| *field == "partial_rotary_factor");
    if !source.is(Special::DeepSeek) && (told || source.rotated != source.head_dim) {
        let (rotated, all) = (source.rotated as f64, source.head_dim as f64);
        let exact = (all * (rotated / all)) as usize == source.rotated;
        let factor = if exact { rotated / all } else { (rotated + 0.5) / all };
        config.insert("partial_rotary_factor".to_owned(), factor.into());
    }
    let scaling = match keys.text("rope.scaling.type")? {
        Some("longrope") => long(source, config)?,
        Some("yarn") => yarn(source)?,
        None | Some("none" | "linear") => match keys.float("rope.scaling.factor")? {
            // Some readers know the one name, some the other.
            Some(factor) if factor != 1.0 => {
                json!({ "type": "linear", "rope_type": "linear", "factor": decimal(factor) })
            }
            _ => llama3(source, base)?,
        },
        Some(other) => {
            let (key, value) = (keys.key("rope.scaling.type"), other.to_owned());
            return Err(HuggingFaceError::NoField { key, value }.into());
        }
    };
    if source.model_type == "olmo3" {
        // Its class takes `rope_theta` for one kind of its layers only.
        let local = json!({ "rope_type": "default", "rope_theta": base });
        let mut global = scaling.as_object().cloned().unwrap_or_default();
        global.remove("type");
        global.entry("rope_type").or_insert_with(|| "default".into());
        global.insert("rope_theta".to_owned(), base.into());
        let kinds = json!({ "full_attention": global, "sliding_attention": local });
        config.insert("rope_parameters".to_owned(), kinds);
    }
    config.insert("rope_scaling".to_owned(), scaling);
    Ok(())
}

fn long(source: &Source<'_>, config: &mut Map<String, Json>) -> Result<Json, FormatError> {
    let keys = source.keys();
    let original = keys.need("rope.scaling.original_context_length")?;
    config.insert("original_max_position_embeddings".to_owned(), original.into());
    let lists = [LONG, SHORT].map(|name| {
        let missing = || HuggingFaceError::MissingTensor { tensor: name.to_owned() };
        floats(source.model.tensor(name).ok_or_else(missing)?)
    });
    let [long, short] = lists;
    let list = |values: Vec<f32>| values.into_iter().map(decimal).collect::<Vec<f64>>();
    let mut scaling = json!({ "type": "longrope", "long_factor": list(long?), "short_factor": list(short?) });
    let wanted = keys.float("rope.scaling.attn_factor")?.unwrap_or(1.0);
    if source.is(Special::PhiMoe) {
        for field in ["long_mscale", "short_mscale"] {
            scaling[field] = decimal(wanted).into();
        }
        return Ok(scaling);
    }
    let (context, original) = (keys.need("context_length")? as f64, original as f64);
    // Left out where it follows from the contexts: some readers refuse more than three fields.
    if longrope_factor(context / original, original) as f32 != wanted {
        scaling["attention_factor"] = decimal(wanted).into();
    }
    Ok(scaling)
}

fn yarn(source: &Source<'_>) -> Result<Json, FormatError> {
    let keys = source.keys();
    let factor = keys.float("rope.scaling.factor")?.unwrap_or(1.0);
    let stretch = decimal(factor);
    let mut scaling = json!({
        "type": "yarn", "rope_type": "yarn", "factor": stretch,
        "original_max_position_embeddings": keys.need("rope.scaling.original_context_length")?,
    });
    for (key, field) in [("yarn_beta_fast", "beta_fast"), ("yarn_beta_slow", "beta_slow")] {
        if let Some(beta) = keys.float(&format!("rope.scaling.{key}"))? {
            scaling[field] = decimal(beta).into();
        }
    }
    let wanted = keys.float("rope.scaling.attn_factor")?.unwrap_or(1.0);
    if source.is(Special::DeepSeek) {
        let usual = match keys.float("rope.scaling.yarn_log_multiplier")? {
            Some(multiplier) => {
                let all = inverse(10.0 * f64::from(multiplier), multiplier, |all| (0.1 * all) as f32);
                scaling["mscale"] = all.into();
                scaling["mscale_all_dim"] = all.into();
                1.0
            }
            None => mscale(stretch, 1.0),
        };
        if wanted != usual as f32 {
            scaling["attention_factor"] = decimal(wanted).into();
        }
        return Ok(scaling);
    }
    if wanted != 1.0 {
        let usual = mscale(stretch, 1.0);
        let attention = inverse(f64::from(wanted) * usual, wanted, |attention| (attention / usual) as f32);
        scaling["attention_factor"] = attention.into();
    }
    let whole = source.model.metadata().bool_opt("moli.rope.yarn_whole")?;
    if !whole.unwrap_or(!source.is(Special::GptOss)) {
        scaling["truncate"] = false.into();
    }
    Ok(scaling)
}

/// The numbers that the divisors of Llama 3 were computed from: those that the file tells, or the published ones.
fn llama3(source: &Source<'_>, base: f64) -> Result<Json, FormatError> {
    let Some(tensor) = source.model.tensor(DIVISORS) else { return Ok(Json::Null) };
    let wanted = floats(tensor)?;
    let told = source.model.metadata().f32s_opt(LLAMA3)?;
    let told = match told.as_deref() {
        Some(&[factor, low, high, context]) => Some([factor, low, high, context].map(decimal)),
        _ => None,
    };
    let largest = wanted.iter().copied().fold(1.0, f32::max);
    let published = (10..18).map(|power| [decimal(largest), 1.0, 4.0, f64::from(1 << power)]);
    let dims = source.rotated as f64;
    let found = told.into_iter().chain(published).find(|&numbers| {
        wanted.iter().zip(0..).all(|(&wanted, pair)| {
            let wavelength = TAU * base.powf(f64::from(2 * pair) / dims);
            llama3_divisor(wavelength, numbers) as f32 == wanted
        })
    });
    let Some([factor, low, high, context]) = found else {
        return Err(HuggingFaceError::NoName { tensor: DIVISORS.to_owned() }.into());
    };
    Ok(json!({
        "rope_type": "llama3", "factor": factor, "low_freq_factor": low, "high_freq_factor": high,
        "original_max_position_embeddings": context as u64,
    }))
}

/// The elements of a tensor in single precision.
pub(super) fn floats(tensor: &Tensor) -> Result<Vec<f32>, FormatError> {
    if tensor.ttype != TensorType::F32 {
        let (tensor, dtype) = (tensor.name.clone(), tensor.ttype.name().to_owned());
        return Err(HuggingFaceError::ElementType { tensor, dtype }.into());
    }
    Ok(tensor.data.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect())
}
