//! The fields of a configuration as metadata.

use serde_json::Value;

use super::family::{SENSITIVE, Special, Window};
use super::fields::Fields;
use super::{Entries, HuggingFaceError, Model};

/// Writes what every architecture has, and what is special for this one. Refuses what is not computed.
pub(super) fn write(model: &Model<'_>, entries: &mut Entries) -> Result<(), HuggingFaceError> {
    refuse(model)?;
    let fields = &model.fields;
    entries.put("block_count", model.layers);
    entries.put("context_length", fields.need_count("max_position_embeddings")?);
    entries.put("embedding_length", model.hidden);
    entries.put("feed_forward_length", fields.need_count("intermediate_size")?);
    entries.put("vocab_size", fields.need_count("vocab_size")?);
    entries.put("attention.head_count", model.heads);
    entries.put("attention.head_count_kv", model.kv_heads);
    entries.put("attention.key_length", model.head_dim);
    entries.put("attention.value_length", model.head_dim);
    entries.float("attention.layer_norm_rms_epsilon", fields.need_number("rms_norm_eps")?);
    if model.family.halves {
        entries.plain("moli.rope.halves", true);
    }
    window(model, entries)?;
    special(model, entries)
}

/// What asks for a computation that this architecture's decoder does not do.
fn refuse(model: &Model<'_>) -> Result<(), HuggingFaceError> {
    let fields = &model.fields;
    for fields in [fields, &model.root] {
        if let Some(quantized) = fields.object("quantization_config")? {
            let method = quantized.text("quant_method")?.unwrap_or("an unnamed method").to_owned();
            return Err(HuggingFaceError::Quantized { method });
        }
    }
    for field in ["hidden_activation", "hidden_act", "activation_function"] {
        if let Some(activation) = fields.text(field)? {
            if !model.family.activations.contains(&activation) {
                return Err(fields.unsupported(field));
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
        _ if kinds.as_ref().is_some_and(|kinds| kinds.contains(&true)) => {
            return Err(fields.missing("sliding_window"));
        }
        _ => return Ok(()),
    };
    let all = |slides: &dyn Fn(u32) -> bool| (0..model.layers).map(slides).collect::<Vec<bool>>();
    let slides = match (kinds, model.family.window) {
        (Some(kinds), _) => kinds,
        (None, Window::All) => all(&|_| true),
        (None, Window::Late) => {
            if fields.flag("use_sliding_window")? != Some(true) {
                return Ok(());
            }
            let first = fields.count("max_window_layers")?.unwrap_or(0);
            all(&|layer| layer >= first)
        }
        (None, Window::Period(usual)) => {
            let period = match fields.count("sliding_window_pattern")? {
                Some(period) => period,
                None => fields.count("_sliding_window_pattern")?.unwrap_or(usual),
            };
            if period == 0 {
                return Err(fields.wrong("sliding_window_pattern", "a positive integer"));
            }
            all(&|layer| (layer + 1) % period != 0)
        }
    };
    if slides.contains(&true) {
        entries.put("attention.sliding_window", tokens);
        // Where all layers slide, the convention has no pattern.
        if slides.contains(&false) || matches!(model.family.window, Window::Period(_)) {
            entries.put("attention.sliding_window_pattern", slides);
        }
    }
    Ok(())
}

/// Per layer whether its attention slides, if `layer_types` says it.
fn layer_kinds(model: &Model<'_>) -> Result<Option<Vec<bool>>, HuggingFaceError> {
    const FIELD: &str = "layer_types";
    let fields = &model.fields;
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
        Special::Gemma => {
            if let Some(scalar) = positive(fields, "query_pre_attn_scalar")? {
                entries.float("attention.scale", scalar.sqrt().recip());
            }
            for field in ["attn_logit_softcapping", "final_logit_softcapping"] {
                if let Some(cap) = positive(fields, field)? {
                    entries.float(field, cap);
                }
            }
            Ok(())
        }
        _ => Ok(()),
    }
}

/// A number above 0, where there is one.
fn positive(fields: &Fields<'_>, field: &str) -> Result<Option<f64>, HuggingFaceError> {
    match fields.number(field)? {
        Some(number) if number <= 0.0 => Err(fields.wrong(field, "a number above 0")),
        number => Ok(number),
    }
}
