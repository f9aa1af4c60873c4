//! The files of sentence-transformers: how a model makes embeddings, as far as the metadata says it.

use serde_json::{Map, Value as Json, json};

use super::{Source, encoder};
use crate::FormatError;
use crate::huggingface::pooling::{CONFIG, FOLDER, LENGTH, MODES, MODULES, PROMPTS};
use crate::metadata::MAX_TOKENS;

/// Paths in the folder and what is there; none for a model that says nothing of embeddings.
pub(super) fn files(source: &Source<'_>) -> Result<Vec<(&'static str, Json)>, FormatError> {
    let metadata = source.model.metadata();
    let pooling = source.keys().count("pooling_type")?;
    let mode = MODES.iter().find(|&&(.., number)| Some(number as usize) == pooling);
    let Some(&(field, ..)) = mode.filter(|_| !encoder::sorts(source)) else { return Ok(Vec::new()) };
    let module = |index: usize, path: &str, kind: &str| json!({ "idx": index, "name": index.to_string(), "path": path, "type": format!("sentence_transformers.models.{kind}") });
    let modules = [("", "Transformer"), (FOLDER, "Pooling"), ("2_Normalize", "Normalize")];
    let modules: Vec<Json> =
        modules.iter().enumerate().map(|(index, (path, kind))| module(index, path, kind)).collect();
    let mut pooling: Map<String, Json> =
        MODES.iter().map(|&(name, ..)| (name.to_owned(), (name == field).into())).collect();
    pooling.insert("word_embedding_dimension".to_owned(), source.keys().need("embedding_length")?.into());
    let mut files = vec![(MODULES, modules.into()), (CONFIG, pooling.into())];
    if let Some(most) = metadata.u64_opt(MAX_TOKENS)? {
        files.push((LENGTH, json!({ "max_seq_length": most, "do_lower_case": false })));
    }
    let prompts = (metadata.strings_opt("moli.prompts.names")?, metadata.strings_opt("moli.prompts.texts")?);
    if let (Some(names), Some(texts)) = prompts {
        let prompts: Map<String, Json> =
            names.iter().zip(texts.iter()).map(|(name, text)| (name.to_owned(), text.into())).collect();
        files.push((PROMPTS, json!({ "prompts": prompts })));
    }
    Ok(files)
}
