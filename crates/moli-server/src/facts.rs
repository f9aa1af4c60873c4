//! What a model's file says of it, read from its header.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use moli_engine::EngineError;
use moli_format::{Gguf, Metadata, ReadMode, Value as Entry};
use moli_text::{ChatTemplate, Tokenizer};
use serde_json::{Map, Value};
use sha2::{Digest as _, Sha256};

/// Bytes of a text of the metadata that are shown. A license may be long; a folder's whole tokenizer is not of interest.
const MAX_TEXT: usize = 64 << 10;

/// What the file of a model says. Of a model without a file nothing is known.
#[derive(Debug, Default)]
pub(crate) struct Facts {
    /// Bytes of all its files.
    pub(crate) size: u64,
    /// When the latest of them was written.
    pub(crate) modified: Option<SystemTime>,
    /// The sha256 of the files' sizes and times, the metadata and the tensors' names, types and shapes: it changes with the
    /// file, and spares reading gigabytes.
    pub(crate) digest: String,
    /// `gguf` or `safetensors`.
    pub(crate) format: &'static str,
    pub(crate) architecture: String,
    /// Elements of all tensors.
    pub(crate) parameters: u64,
    /// `Q4_K_M`, as the file says; else the type that most bytes are in.
    pub(crate) quantization: String,
    /// What it was trained for, in tokens.
    pub(crate) context: Option<u64>,
    /// Width of its hidden states.
    pub(crate) hidden: Option<u64>,
    /// Jinja; empty where there is none that can be used.
    pub(crate) template: String,
    pub(crate) license: String,
    pub(crate) capabilities: Vec<&'static str>,
    /// Numbers, truth values and texts; lists are null.
    pub(crate) metadata: Map<String, Value>,
    /// Names, types and shapes, the contiguous dimension first.
    pub(crate) tensors: Vec<(String, &'static str, Vec<u64>)>,
}

impl Facts {
    /// Reads the header of a file, or the files of a folder.
    pub(crate) fn read(path: &Path) -> Result<Self, EngineError> {
        let gguf = Gguf::open(path, ReadMode::Map)?;
        let metadata = gguf.metadata();
        let architecture = metadata.architecture()?.to_owned();
        let template = Tokenizer::from_gguf(metadata)
            .and_then(|tokenizer| ChatTemplate::for_model(metadata, &tokenizer))
            // A broken one is an error to whoever chats, not to whoever looks.
            .unwrap_or_default();
        let text = |key| metadata.str_opt(key).ok().flatten().unwrap_or_default().to_owned();
        let number = |name: &str| metadata.u64_opt(&format!("{architecture}.{name}")).ok().flatten();
        let folder = metadata.get("tokenizer.huggingface.folder").is_some();
        let stamps: Vec<(u64, Option<SystemTime>)> = gguf.paths().iter().map(|path| stamp(path)).collect();
        let tensors =
            gguf.tensors().map(|tensor| (tensor.name.clone(), tensor.ttype.name(), tensor.dims.clone()));
        let facts = Self {
            size: gguf.file_bytes(),
            modified: stamps.iter().filter_map(|(_, modified)| *modified).max(),
            digest: String::new(),
            format: if folder { "safetensors" } else { "gguf" },
            parameters: gguf.tensors().map(|tensor| tensor.elements() as u64).sum(),
            quantization: quantization(&gguf),
            context: metadata.context_length().ok().flatten(),
            hidden: number("embedding_length"),
            capabilities: capabilities(metadata, &architecture, template.as_ref()),
            template: template.map(|template| template.source().to_owned()).unwrap_or_default(),
            license: text("general.license"),
            metadata: scalars(metadata),
            tensors: tensors.collect(),
            architecture,
        };
        Ok(Self { digest: digest(&stamps, &facts), ..facts })
    }
}

/// A file's bytes and when it was written.
fn stamp(path: &Path) -> (u64, Option<SystemTime>) {
    fs::metadata(path).map_or((0, None), |file| (file.len(), file.modified().ok()))
}

fn digest(stamps: &[(u64, Option<SystemTime>)], facts: &Facts) -> String {
    let mut hash = Sha256::new();
    for (bytes, modified) in stamps {
        hash.update(bytes.to_le_bytes());
        let since = modified.and_then(|modified| modified.duration_since(UNIX_EPOCH).ok());
        hash.update(since.map_or(0, |since| since.as_nanos()).to_le_bytes());
    }
    // As JSON, so that what ends where is part of it.
    hash.update(serde_json::to_vec(&(&facts.metadata, &facts.tensors)).unwrap_or_default());
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What a model can be asked for, in Ollama's words.
fn capabilities(
    metadata: &Metadata,
    architecture: &str,
    template: Option<&ChatTemplate>,
) -> Vec<&'static str> {
    match metadata.i64_opt(&format!("{architecture}.pooling_type")).ok().flatten() {
        Some(1..=3) => vec!["embedding"],
        // It ranks documents, which has no word.
        Some(4) => vec![],
        _ => {
            let tools = template.filter(|template| template.uses_tools() && template.tool_format().is_some());
            let thinking = template.and_then(ChatTemplate::reasoning_tags);
            [Some("completion"), tools.map(|_| "tools"), thinking.map(|_| "thinking")]
                .into_iter()
                .flatten()
                .collect()
        }
    }
}

/// What `general.file_type` means.
const FILE_TYPES: [(u32, &str); 33] = [
    (0, "F32"),
    (1, "F16"),
    (2, "Q4_0"),
    (3, "Q4_1"),
    (7, "Q8_0"),
    (8, "Q5_0"),
    (9, "Q5_1"),
    (10, "Q2_K"),
    (11, "Q3_K_S"),
    (12, "Q3_K_M"),
    (13, "Q3_K_L"),
    (14, "Q4_K_S"),
    (15, "Q4_K_M"),
    (16, "Q5_K_S"),
    (17, "Q5_K_M"),
    (18, "Q6_K"),
    (19, "IQ2_XXS"),
    (20, "IQ2_XS"),
    (21, "Q2_K_S"),
    (22, "IQ3_XS"),
    (23, "IQ3_XXS"),
    (24, "IQ1_S"),
    (25, "IQ4_NL"),
    (26, "IQ3_S"),
    (27, "IQ3_M"),
    (28, "IQ2_S"),
    (29, "IQ2_M"),
    (30, "IQ4_XS"),
    (31, "IQ1_M"),
    (32, "BF16"),
    (36, "TQ1_0"),
    (37, "TQ2_0"),
    (38, "MXFP4"),
];

fn quantization(gguf: &Gguf) -> String {
    let said = gguf.metadata().u32_opt("general.file_type").ok().flatten();
    let named = said.and_then(|said| FILE_TYPES.iter().find(|(number, _)| *number == said));
    if let Some((_, name)) = named {
        return (*name).to_owned();
    }
    let mut bytes: BTreeMap<&str, u64> = BTreeMap::new();
    for tensor in gguf.tensors() {
        *bytes.entry(tensor.ttype.name()).or_default() += tensor.data.len() as u64;
    }
    let most = bytes.into_iter().max_by_key(|(_, bytes)| *bytes);
    most.map(|(name, _)| name.to_owned()).unwrap_or_default()
}

/// The metadata, without lists, the chat template, which is told elsewhere, and a folder's place on this machine.
fn scalars(metadata: &Metadata) -> Map<String, Value> {
    let shown = |key: &str| key != "tokenizer.chat_template" && !key.starts_with("tokenizer.huggingface.");
    let entries = metadata.iter().filter(|(key, _)| shown(key));
    let value = |entry: &Entry| match entry {
        Entry::Bool(value) => Value::from(*value),
        Entry::F32(value) => Value::from(*value),
        Entry::F64(value) => Value::from(*value),
        Entry::String(text) if text.len() <= MAX_TEXT => Value::from(text.as_str()),
        Entry::U64(value) => Value::from(*value),
        other => {
            other.as_integer().and_then(|value| i64::try_from(value).ok()).map_or(Value::Null, Value::from)
        }
    };
    entries.map(|(key, entry)| (key.to_owned(), value(entry))).collect()
}
