//! How a folder of sentence-transformers makes an embedding of a text: `modules.json`, `1_Pooling/config.json`, the most tokens
//! in `sentence_bert_config.json` and the prompts in `config_sentence_transformers.json`.

use std::path::Path;

use serde_json::{Map, Value};

use super::fields::Fields;
use super::{Entries, HuggingFaceError, Model, fields};
use crate::metadata::MAX_TOKENS;
use crate::{FormatError, ReadMode};

/// Bytes of either file, at most. Real ones have a few hundred.
const MAX_FILE: u64 = 1 << 20;
pub(super) const MODULES: &str = "modules.json";
pub(super) const FOLDER: &str = "1_Pooling";
pub(super) const CONFIG: &str = "1_Pooling/config.json";
pub(super) const LENGTH: &str = "sentence_bert_config.json";
pub(super) const PROMPTS: &str = "config_sentence_transformers.json";
/// The ways that are computed: the field of the older files, its name in the newer ones, its number in GGUF.
pub(super) const MODES: [(&str, &str, u32); 3] = [
    ("pooling_mode_mean_tokens", "mean", 1),
    ("pooling_mode_cls_token", "cls", 2),
    ("pooling_mode_lasttoken", "lasttoken", 3),
];

/// Writes what the folder says; one of a chat model says nothing.
pub(super) fn write(
    folder: &Path,
    model: &Model<'_>,
    mode: ReadMode,
    entries: &mut Entries,
) -> Result<(), FormatError> {
    let object = |file: &str| fields::json::<Map<String, Value>>(&folder.join(file), MAX_FILE, mode);
    if let Some(map) = object(LENGTH)? {
        let most = Fields::new(&map).count("max_seq_length").map_err(|error| in_file(LENGTH, error))?;
        if let Some(most) = most.filter(|&most| most > 0) {
            entries.plain(MAX_TOKENS, most);
        }
    }
    if let Some(map) = object(PROMPTS)? {
        prompts(&Fields::new(&map), entries).map_err(|error| in_file(PROMPTS, error))?;
    }
    if model.sorts {
        return Ok(());
    }
    if let Some(modules) = fields::json::<Vec<Value>>(&folder.join(MODULES), MAX_FILE, mode)? {
        modules.iter().try_for_each(check)?;
    }
    if let Some(config) = object(CONFIG)? {
        entries.put("pooling_type", pooling(&config)?);
    }
    Ok(())
}

/// The error about a field of this file.
fn in_file(file: &'static str, error: HuggingFaceError) -> HuggingFaceError {
    match error {
        HuggingFaceError::WrongField { field, value, .. } => {
            HuggingFaceError::UnsupportedEmbedding { file, field, value }
        }
        error => error,
    }
}

/// The texts that may be put before others, by their names.
fn prompts(config: &Fields<'_>, entries: &mut Entries) -> Result<(), HuggingFaceError> {
    let Some(prompts) = config.object("prompts")? else { return Ok(()) };
    let (mut names, mut texts) = (Vec::new(), Vec::new());
    for name in prompts.names() {
        if let Some(text) = prompts.text(name)? {
            names.push(name.to_owned());
            texts.push(text.to_owned());
        }
    }
    if !names.is_empty() {
        entries.plain("moli.prompts.names", names);
        entries.plain("moli.prompts.texts", texts);
    }
    Ok(())
}

/// Refuses a step that is not computed: without it the embedding would be another.
fn check(module: &Value) -> Result<(), HuggingFaceError> {
    let text = |field: &str| module.get(field).and_then(Value::as_str).unwrap_or_default();
    let unsupported = |field: &str| {
        let value = module.get(field).map_or_else(|| "absent".to_owned(), Value::to_string);
        Err(HuggingFaceError::UnsupportedEmbedding { file: MODULES, field: field.to_owned(), value })
    };
    match text("type").rsplit('.').next().unwrap_or_default() {
        "Transformer" | "Normalize" => Ok(()),
        "Pooling" if text("path") == FOLDER => Ok(()),
        "Pooling" => unsupported("path"),
        _ => unsupported("type"),
    }
}

/// The number that GGUF has for the way that is asked for.
fn pooling(config: &Map<String, Value>) -> Result<u32, HuggingFaceError> {
    let unsupported = |field: &str, value: String| {
        Err(HuggingFaceError::UnsupportedEmbedding { file: CONFIG, field: field.to_owned(), value })
    };
    // Whether the words of a prompt count: how many those are is known to nobody here.
    if config.get("include_prompt") == Some(&Value::Bool(false)) {
        return unsupported("include_prompt", "false".to_owned());
    }
    if let Some(named) = config.get("pooling_mode") {
        return match MODES.iter().find(|(_, name, _)| named.as_str() == Some(name)) {
            Some(&(.., number)) => Ok(number),
            None => unsupported("pooling_mode", named.to_string()),
        };
    }
    let is_set = |(field, value): &(&String, &Value)| {
        field.starts_with("pooling_mode_") && *value == &Value::Bool(true)
    };
    let set: Vec<&str> = config.iter().filter(is_set).map(|(field, _)| field.as_str()).collect();
    // Several are put one behind the other.
    match (set.as_slice(), MODES.iter().find(|(field, ..)| set == [*field])) {
        (_, Some(&(.., number))) => Ok(number),
        ([], None) => unsupported("pooling_mode", "absent".to_owned()),
        (all, None) => unsupported(&all.join(", "), "true".to_owned()),
    }
}
