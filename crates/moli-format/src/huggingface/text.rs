//! Tokenizer, chat template, and the tokens that begin and end a text.

use std::path::Path;

use serde_json::{Map, Value};

use super::{Entries, Model, fields};
use crate::{FormatError, ReadMode};

/// Bytes of a `tokenizer.json`, at most. The largest have 40 MB.
const MAX_TOKENIZER: u64 = 256 << 20;
/// Bytes of every other file, at most. A `tokenizer_config.json` that lists its added tokens has a megabyte or more.
const MAX_OTHER: u64 = 32 << 20;
/// Tokens that end an answer, at most.
const MAX_ENDS: usize = 256;

/// Writes what the folder has; a model without a tokenizer is one that only ids can be given to.
pub(super) fn write(
    folder: &Path,
    model: &Model<'_>,
    mode: ReadMode,
    entries: &mut Entries,
) -> Result<(), FormatError> {
    entries.plain("tokenizer.huggingface.folder", folder.to_string_lossy().as_ref());
    if let Some(tokenizer) = fields::text(folder.join("tokenizer.json"), MAX_TOKENIZER, mode)? {
        entries.plain("tokenizer.huggingface.json", tokenizer);
    }
    let config: Map<String, Value> =
        fields::json(&folder.join("tokenizer_config.json"), MAX_OTHER, mode)?.unwrap_or_default();
    let template = match fields::text(folder.join("chat_template.jinja"), MAX_OTHER, mode)? {
        Some(template) => Some(template),
        None => config.get("chat_template").and_then(template).map(str::to_owned),
    };
    if let Some(template) = template {
        entries.plain("tokenizer.chat_template", template);
    }
    settings(config, entries);

    let generation: Map<String, Value> =
        fields::json(&folder.join("generation_config.json"), MAX_OTHER, mode)?.unwrap_or_default();
    for (name, key) in [("bos_token_id", "bos"), ("pad_token_id", "padding")] {
        let id = [generation.get(name), model.fields.get(name), model.root.get(name)];
        if let Some(id) = id.into_iter().flatten().find_map(id_of) {
            entries.plain(&format!("tokenizer.ggml.{key}_token_id"), id);
        }
    }
    let ends =
        [generation.get("eos_token_id"), model.fields.get("eos_token_id"), model.root.get("eos_token_id")];
    let ends = ends.into_iter().flatten().map(ids_of).find(|ids| !ids.is_empty()).unwrap_or_default();
    if ends.len() > MAX_ENDS {
        let (count, limit) = (ends.len() as u64, MAX_ENDS as u64);
        return Err(FormatError::TooMany { what: "tokens that end an answer", count, limit });
    }
    if let Some(&first) = ends.first() {
        entries.plain("tokenizer.ggml.eos_token_id", first);
        entries.plain("moli.eos_token_ids", ends);
    }
    Ok(())
}

/// The settings without what is large and said elsewhere.
fn settings(mut config: Map<String, Value>, entries: &mut Entries) {
    config.retain(|key, _| !matches!(key.as_str(), "chat_template" | "added_tokens_decoder"));
    if let (false, Ok(text)) = (config.is_empty(), serde_json::to_string(&config)) {
        entries.plain("tokenizer.huggingface.config", text);
    }
}

/// A template, or of several with names the default one.
fn template(value: &Value) -> Option<&str> {
    match value {
        Value::String(template) => Some(template),
        Value::Array(list) => {
            let name = |entry: &Value| entry.get("name").and_then(Value::as_str) == Some("default");
            list.iter().find(|entry| name(entry))?.get("template")?.as_str()
        }
        _ => None,
    }
}

/// An id; -1 is how some files say that there is none.
fn id_of(value: &Value) -> Option<u32> {
    value.as_u64().and_then(|id| u32::try_from(id).ok())
}

/// An id or a list of ids.
fn ids_of(value: &Value) -> Vec<u32> {
    match value {
        Value::Array(list) => list.iter().filter_map(id_of).collect(),
        one => id_of(one).into_iter().collect(),
    }
}
