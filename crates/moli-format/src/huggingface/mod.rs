//! A Hugging Face folder as a model: `config.json`, safetensors, tokenizer and template as the GGUF that llama.cpp's
//! converter would have made of them, but in memory.
//!
//! Keys and names are those of the GGUF convention, so nothing that reads a model needs to know where it came from.
//! Weights stay mapped; what the convention stores with other values or in another order (norms that count from one,
//! the experts of gpt-oss, the heads of Qwen3.5, weights of a few bits) is made when the folder is opened.
//!
//! - [`family`]: what is known of each architecture, as data;
//! - [`parameters`], [`rope`]: fields of the configuration to metadata;
//! - [`gemma4`]: what of both is Gemma 4's alone;
//! - [`assemble`], [`data`], [`harmony`], [`delta`]: tensors by their new names, some of them with new data;
//! - [`packed`]: weights of a few bits that GPTQ and AWQ have packed;
//! - [`shards`], [`fields`]: the files;
//! - [`peft`]: adapters, whose tensors go by the same names;
//! - [`pooling`]: how a model of sentence-transformers makes embeddings;
//! - [`folder`]: the way back;
//! - [`text`]: tokenizer, chat template and the tokens that end an answer.
//!
//! One thing differs from a converted file: where the convention has the rows of Q and K in an order that suits
//! interleaved rotary pairs, they stay in that of halves, and `moli.rope.halves` says so.

mod assemble;
pub(crate) mod data;
mod delta;
mod error;
mod family;
mod fields;
mod folder;
mod gemma4;
mod harmony;
mod packed;
mod parameters;
pub(crate) mod peft;
mod pooling;
mod rope;
mod shards;
mod text;

use std::path::{Path, PathBuf};

use serde_json::{Map, Value as Json};

pub use self::error::HuggingFaceError;
use self::family::{Family, Special};
use self::fields::Fields;
pub use self::folder::{FolderTensor, HuggingFaceFolder, Rows};
use self::packed::Packing;
use self::shards::Shards;
use crate::{FormatError, Gguf, Metadata, ReadMode, Tensor, Value, gguf};

const CONFIG: &str = "config.json";
/// Bytes of a configuration, at most. Real ones have some thousands.
const MAX_CONFIG: u64 = 16 << 20;

/// Whether the convention has the rows of Q and K of this architecture in another order than its folders.
pub(crate) fn reorders(architecture: &str) -> bool {
    family::of_architecture(architecture).any(|family| family.halves)
}

/// The folder that a path means: itself, or where its configuration, index or weights are.
pub(crate) fn folder_of(path: &Path) -> Option<PathBuf> {
    if path.is_dir() {
        return Some(path.to_path_buf());
    }
    let name = path.file_name()?.to_str()?;
    let folder = match path.parent() {
        Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
        parent => parent?,
    };
    let belongs = name == CONFIG
        || (name == shards::INDEX || name.ends_with(".safetensors")) && folder.join(CONFIG).is_file();
    belongs.then(|| folder.to_path_buf())
}

/// What a `config.json` says of a model, in the keys of the GGUF convention and without its weights: enough to tell its
/// shape.
#[derive(Debug, Clone)]
pub struct HuggingFaceConfig {
    /// The keys of the architecture, and `general.architecture`.
    pub metadata: Metadata,
    /// What the convention has as tensors: factors on the rotary wavelengths, where the model has some.
    pub tensors: Vec<Tensor>,
    /// Whether the logits are computed with the embeddings. `None`: the fields contradict each other.
    pub tied: Option<bool>,
}

impl HuggingFaceConfig {
    /// Reads the file.
    ///
    /// # Errors
    /// If it can't be read or is too large, or as for [`parse`](Self::parse).
    pub fn open(path: &Path) -> Result<Self, FormatError> {
        let root = fields::json(path, MAX_CONFIG, ReadMode::Read)?;
        let missing = || FormatError::from_io(path, std::io::ErrorKind::NotFound.into());
        Self::of(&root.ok_or_else(missing)?)
    }

    /// Reads the file's text.
    ///
    /// # Errors
    /// [`FormatError::HuggingFace`] names the field that is missing, wrong or asks for what is not computed, or the model's
    /// type and those that are known.
    pub fn parse(json: &str) -> Result<Self, FormatError> {
        let root = serde_json::from_str(json).map_err(|error| HuggingFaceError::InvalidJson {
            path: CONFIG.into(),
            reason: error.to_string(),
        })?;
        Self::of(&root)
    }

    fn of(root: &Map<String, Json>) -> Result<Self, FormatError> {
        let model = Model::of(&Fields::new(root))?;
        let (entries, tensors) = describe(&model, None)?;
        Ok(Self { metadata: Metadata::new(entries.entries)?, tensors, tied: model.tied })
    }
}

/// Opens a folder.
pub(crate) fn open(folder: &Path, mode: ReadMode) -> Result<Gguf, FormatError> {
    let root: Map<String, Json> = fields::json(&folder.join(CONFIG), MAX_CONFIG, mode)?
        .ok_or_else(|| HuggingFaceError::NoConfig { folder: folder.to_path_buf() })?;
    let model = Model::of(&Fields::new(&root))?;
    let whole = folder.canonicalize().ok();
    let name = whole.as_deref().and_then(Path::file_name).map(|name| name.to_string_lossy());
    let (mut entries, mut extra) = describe(&model, name.as_deref())?;
    text::write(folder, &model, mode, &mut entries)?;
    pooling::write(folder, &model, mode, &mut entries)?;

    let mut shards = Shards::open(folder, mode)?;
    let (mut unpacked_bytes, mut released_bytes) = (0, 0);
    if let Some(packing) = Packing::of(&model)? {
        let unpacked = packing.unpack(&mut shards)?;
        entries.plain("moli.unpacked", packing.describe(&unpacked));
        unpacked_bytes = unpacked.bytes;
        // A file that was read stays in memory as a whole.
        released_bytes = if mode == ReadMode::Map { unpacked.packed_bytes } else { 0 };
    }
    let mut tensors = assemble::tensors(&model, &shards)?;
    tensors.append(&mut extra);
    assemble::lists(&model, &shards, &mut entries)?;
    Ok(Gguf {
        version: 3,
        sorted: gguf::sort_tensors(&tensors)?,
        metadata: Metadata::new(entries.entries)?,
        tensors,
        paths: shards.paths,
        file_bytes: shards.file_bytes,
        unpacked_bytes,
        released_bytes,
    })
}

/// The configuration's metadata, and what of it the convention has as tensors.
fn describe(model: &Model<'_>, name: Option<&str>) -> Result<(Entries, Vec<Tensor>), HuggingFaceError> {
    let mut entries = Entries { architecture: model.family.architecture, entries: Vec::new() };
    entries.plain("general.architecture", model.family.architecture);
    if let Some(name) = name {
        entries.plain("general.name", name);
    }
    let mut tensors = Vec::new();
    parameters::write(model, &mut entries)?;
    if !model.family.unturned() {
        rope::write(model, &mut entries, &mut tensors)?;
    }
    Ok((entries, tensors))
}

/// The configuration of a language model, with what everything else depends on.
struct Model<'a> {
    family: &'static Family,
    /// All of `config.json`.
    root: Fields<'a>,
    /// The language model's fields: the same, or `text_config` of a model that also sees or hears.
    fields: Fields<'a>,
    /// Whether there are parts that are no language model.
    wrapped: bool,
    layers: u32,
    hidden: u32,
    heads: u32,
    kv_heads: u32,
    head_dim: u32,
    /// Whether the logits are computed with the embeddings. `None`: the whole and its language model disagree, and libraries
    /// about which of them counts.
    tied: Option<bool>,
    /// Whether the rows of the output layer are to be divided by their length.
    unit_output: bool,
    /// Whether it is an encoder that sorts texts.
    sorts: bool,
    /// Positions at the table's beginning that no token has.
    unused_positions: u32,
}

impl<'a> Model<'a> {
    fn of(root: &Fields<'a>) -> Result<Self, HuggingFaceError> {
        let inner = root.object("text_config")?;
        let wrapped = inner.is_some();
        let fields = inner.unwrap_or_else(|| root.clone());
        let model_type = match fields.text("model_type")? {
            Some(name) => name,
            None => root.text("model_type")?.ok_or_else(|| root.missing("model_type"))?,
        };
        let family = family::find(model_type)?;
        let fields = fields.of(family);
        let (hidden, heads) = (fields.need_count("hidden_size")?, fields.need_size("num_attention_heads")?);
        let kv_heads = match family.special {
            Special::GptNeoX | Special::Gpt2 => heads,
            Special::Falcon if fields.flag("new_decoder_architecture")? != Some(true) => {
                if fields.flag("multi_query")? == Some(false) { heads } else { 1 }
            }
            _ => fields.size("num_key_value_heads")?.unwrap_or(heads),
        };
        let head_dim = match fields.size("head_dim")? {
            Some(head_dim) => head_dim,
            None if hidden.is_multiple_of(heads) => hidden / heads,
            None => return Err(fields.wrong("num_attention_heads", "a divisor of hidden_size")),
        };
        const TIED: &str = "tie_word_embeddings";
        let own = match fields.flag("tie_embedding")? {
            Some(tied) if family.special == Special::Lfm2 => Some(tied),
            _ => fields.flag(TIED)?,
        };
        let tied = match (own, wrapped.then(|| root.flag(TIED)).transpose()?.flatten()) {
            (Some(inner), Some(outer)) if inner != outer => None,
            (inner, outer) => Some(inner.or(outer).unwrap_or(family.tied)),
        };
        // An encoder has no output layer.
        let tied = if family.encoder.is_some() { Some(true) } else { tied };
        let architectures = root.texts("architectures")?.unwrap_or_default();
        let sorts = architectures.first().is_some_and(|name| name.ends_with("ForSequenceClassification"));
        let unused_positions = match family.special {
            Special::Roberta => fields.need_size_from_zero("pad_token_id")? + 1,
            _ => 0,
        };
        Ok(Self {
            sorts: sorts && family.encoder.is_some(),
            unused_positions,
            layers: fields.need_size("num_hidden_layers")?,
            hidden,
            heads,
            kv_heads,
            head_dim,
            tied,
            // The second Baichuan, which nothing but its vocabulary tells from the first.
            unit_output: family.special == Special::Baichuan && fields.count("vocab_size")? == Some(125_696),
            family,
            root: root.clone(),
            fields,
            wrapped,
        })
    }
}

/// Metadata in the making.
struct Entries {
    architecture: &'static str,
    entries: Vec<(String, Value)>,
}

impl Entries {
    /// A key as it is.
    fn plain(&mut self, key: &str, value: impl Into<Value>) {
        self.entries.push((key.to_owned(), value.into()));
    }

    /// A key of the architecture: `llama.` before it.
    fn put(&mut self, key: &str, value: impl Into<Value>) {
        self.entries.push((format!("{}.{key}", self.architecture), value.into()));
    }

    /// A float of the architecture, rounded to single precision as files have it.
    fn float(&mut self, key: &str, value: f64) {
        self.put(key, value as f32);
    }
}
