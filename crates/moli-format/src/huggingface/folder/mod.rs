//! The way back: a model as the files of a Hugging Face folder.
//!
//! - [`config`], [`encoder`], [`rope`]: metadata to fields of the configuration;
//! - [`pooling`]: how a model makes embeddings;
//! - [`gemma4`]: what of both is Gemma 4's alone;
//! - [`tensors`], [`delta`]: tensors by the names that the family's parts have, put together as the family has them.
//!
//! The tables are those of [`family`](super::family), read the other way round.

mod config;
mod delta;
mod encoder;
mod gemma4;
mod pooling;
mod rope;
mod tensors;

use serde_json::{Map, Value as Json};

use super::HuggingFaceError;
use super::family::{self, Family, Special};
use crate::{FormatError, Gguf, Metadata, Tensor};

/// Layers, at most: far beyond any model, and what is said of each takes memory.
const MAX_LAYERS: usize = 1 << 16;

/// A model as a Hugging Face folder has it, but for its tokenizer.
#[derive(Debug, Clone)]
pub struct HuggingFaceFolder {
    /// `config.json`, without the type of the weights.
    pub config: Map<String, Json>,
    /// Other files about what the model does, by their paths in the folder.
    pub files: Vec<(&'static str, Json)>,
    /// The weights.
    pub tensors: Vec<FolderTensor>,
}

/// A tensor of a folder, and which rows of the model's tensors it is made of.
#[derive(Debug, Clone)]
pub struct FolderTensor {
    /// Its name.
    pub name: String,
    /// Its dimensions; the last is the contiguous one.
    pub shape: Vec<usize>,
    /// Its rows, one stretch behind the other; with `in_turns`, one row of each of the two in turns.
    pub rows: Vec<Rows>,
    /// Two stretches take turns.
    pub in_turns: bool,
    /// Its elements are one less: the norm's code adds it.
    pub minus_one: bool,
    /// Its rows are cut into as many stretches as this has, which come in this order; empty: they are whole.
    pub columns: Vec<usize>,
    /// Each of its matrices, the last two dimensions, has rows and columns changed over.
    pub transposed: bool,
}

/// Rows of a tensor: `count` of them, from `first` on, each `step`th.
#[derive(Debug, Clone)]
pub struct Rows {
    /// The tensor.
    pub tensor: Tensor,
    /// Elements of a row, whatever the tensor's own dimensions.
    pub cols: usize,
    /// The first row.
    pub first: usize,
    /// From a row to the next one.
    pub step: usize,
    /// How many rows.
    pub count: usize,
}

impl Rows {
    /// The bytes of a row, in the tensor's type; empty if there is none.
    #[must_use]
    pub fn row(&self, index: usize) -> &[u8] {
        let ttype = self.tensor.ttype;
        let bytes = self.cols / ttype.block_len() * ttype.block_bytes();
        let at = self.first.saturating_add(index.saturating_mul(self.step)).saturating_mul(bytes);
        let end = at.saturating_add(bytes);
        self.tensor.data.get(at..end).filter(|_| index < self.count).unwrap_or_default()
    }
}

impl HuggingFaceFolder {
    /// What of a model becomes what of a folder. Nothing is copied.
    ///
    /// # Errors
    /// [`FormatError::HuggingFace`] names the architecture that is not known, the tensor that has no name in folders, or the
    /// value that has no field.
    pub fn of(model: &Gguf) -> Result<Self, FormatError> {
        let source = Source::of(model)?;
        let config = match source.family.encoder {
            Some(_) => encoder::write(&source)?,
            None => config::write(&source)?,
        };
        Ok(Self { config, files: pooling::files(&source)?, tensors: tensors::all(&source)? })
    }
}

/// A model and what everything else depends on.
struct Source<'a> {
    model: &'a Gguf,
    family: &'static Family,
    model_type: &'static str,
    layers: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    /// Elements of a head that are turned.
    rotated: usize,
    /// Whether the rows of Q and K are to be put in the order of halves.
    reorders: bool,
    /// Per layer whether it carries a state instead of keys and values; empty where none does.
    recurrent: Vec<bool>,
}

impl<'a> Source<'a> {
    fn of(model: &'a Gguf) -> Result<Self, FormatError> {
        let metadata = model.metadata();
        let architecture = metadata.architecture()?;
        let keys = Keys { metadata, architecture };
        let model_type = match architecture {
            "llama" if keys.count("expert_count")?.is_some_and(|count| count > 0) => "mixtral",
            "llama" if keys.count("attention.sliding_window")?.is_some_and(|tokens| tokens > 0) => "mistral",
            "olmo2" if keys.count("attention.sliding_window")?.is_some_and(|tokens| tokens > 0) => "olmo3",
            "granitemoe"
                if keys.count("expert_shared_feed_forward_length")?.is_some_and(|width| width > 0) =>
            {
                "granitemoeshared"
            }
            "bert" => encoder::model_type(model)?,
            "deepseek2" if keys.count("expert_gating_func")? == Some(2) => "deepseek_v3",
            _ => family::model_type_of(architecture)?,
        };
        let family = family::find(model_type)?;
        let (hidden, heads) = (keys.need("embedding_length")?, keys.need("attention.head_count")?);
        let key = keys.count("attention.key_length")?;
        let head_dim = match key {
            Some(key) => key,
            None => hidden.checked_div(heads).unwrap_or(0),
        };
        let rotated = keys.count("rope.dimension_count")?.unwrap_or(head_dim);
        let halves = metadata.bool_opt("moli.rope.halves")? == Some(true);
        let layers = keys.need("block_count")?;
        if layers > MAX_LAYERS {
            let (key, value) = (keys.key("block_count"), layers.to_string());
            return Err(HuggingFaceError::NoField { key, value }.into());
        }
        // With positions that are learned, nothing is turned.
        let turns = !family.unturned();
        if head_dim == 0 || heads == 0 || turns && (rotated > head_dim || rotated % 2 != 0) {
            let (key, value) = (keys.key("rope.dimension_count"), rotated.to_string());
            return Err(HuggingFaceError::NoField { key, value }.into());
        }
        let (kv_heads, recurrent) = match family.special {
            Special::Lfm2 => keys.kv_heads(layers)?,
            Special::DeltaNet => (keys.count("attention.head_count_kv")?, keys.recurrent_layers(layers)?),
            Special::Gemma4 => (Some(gemma4::kv_heads(keys, layers)?), Vec::new()),
            _ => (keys.count("attention.head_count_kv")?, Vec::new()),
        };
        Ok(Self {
            model,
            family,
            model_type,
            layers,
            heads,
            kv_heads: kv_heads.unwrap_or(heads),
            recurrent,
            head_dim,
            rotated,
            reorders: family.halves && !halves,
        })
    }

    fn keys(&self) -> Keys<'a> {
        Keys { metadata: self.model.metadata(), architecture: self.family.architecture }
    }

    fn is(&self, special: Special) -> bool {
        self.family.special == special
    }

    /// Per layer whether it rotates, if the model says it.
    fn rotates(&self) -> Result<Option<Vec<bool>>, FormatError> {
        match self.keys().flags("rope.layers", self.layers)? {
            None if self.is(Special::SmolLm3) => Ok(Some(all_but(4, self.layers))),
            flags => Ok(flags),
        }
    }
}

/// The keys of an architecture.
#[derive(Clone, Copy)]
struct Keys<'a> {
    metadata: &'a Metadata,
    architecture: &'a str,
}

impl Keys<'_> {
    fn key(&self, suffix: &str) -> String {
        format!("{}.{suffix}", self.architecture)
    }

    /// A count; a list of equal ones counts as one.
    fn count(&self, suffix: &str) -> Result<Option<usize>, FormatError> {
        let key = self.key(suffix);
        let value = match self.metadata.get(&key) {
            Some(crate::Value::Array(_)) => {
                let counts = self.metadata.u32s(&key)?;
                match counts.first() {
                    Some(first) if counts.iter().all(|count| count == first) => Some(*first),
                    _ => {
                        let value = "a count for each layer".to_owned();
                        return Err(HuggingFaceError::NoField { key, value }.into());
                    }
                }
            }
            _ => self.metadata.u32_opt(&key)?,
        };
        Ok(value.map(|value| value as usize))
    }

    /// Key heads of the layers that have some, and which layers have none.
    fn kv_heads(&self, layers: usize) -> Result<(Option<usize>, Vec<bool>), FormatError> {
        let suffix = "attention.head_count_kv";
        let key = self.key(suffix);
        let Some(crate::Value::Array(_)) = self.metadata.get(&key) else {
            return Ok((self.count(suffix)?, vec![false; layers]));
        };
        let counts = self.metadata.u32s(&key)?;
        let some = counts.iter().copied().find(|&count| count > 0);
        if counts.len() != layers || counts.iter().any(|&count| count > 0 && Some(count) != some) {
            return Err(HuggingFaceError::NoField { key, value: "a count for each layer".to_owned() }.into());
        }
        Ok((some.map(|count| count as usize), counts.iter().map(|&count| count == 0).collect()))
    }

    /// The layers of delta nets: a list, or all but each last of a few.
    fn recurrent_layers(&self, layers: usize) -> Result<Vec<bool>, FormatError> {
        let told = self.flags("attention.recurrent_layers", layers)?;
        let interval = self.count("full_attention_interval")?.unwrap_or(4);
        Ok(told.unwrap_or_else(|| all_but(interval.max(1), layers)))
    }

    fn need(&self, suffix: &str) -> Result<usize, FormatError> {
        self.count(suffix)?.ok_or_else(|| FormatError::MissingKey { key: self.key(suffix) })
    }

    /// A float; 0 is how some files say that there is none.
    fn float(&self, suffix: &str) -> Result<Option<f32>, FormatError> {
        Ok(self.metadata.f32_opt(&self.key(suffix))?.filter(|&value| value != 0.0))
    }

    fn flag(&self, suffix: &str) -> Result<Option<bool>, FormatError> {
        self.metadata.bool_opt(&self.key(suffix))
    }

    fn text(&self, suffix: &str) -> Result<Option<&str>, FormatError> {
        self.metadata.str_opt(&self.key(suffix))
    }

    /// A flag for each layer: a list, or a period of which the last is false.
    fn flags(&self, suffix: &str, layers: usize) -> Result<Option<Vec<bool>>, FormatError> {
        let key = self.key(suffix);
        match self.metadata.get(&key) {
            None => Ok(None),
            Some(crate::Value::Array(_)) => {
                let flags = self.metadata.bools(&key)?;
                if flags.len() != layers {
                    let value = format!("{} flags for {layers} layers", flags.len());
                    return Err(HuggingFaceError::NoField { key, value }.into());
                }
                Ok(Some(flags))
            }
            Some(_) => Ok(self.count(suffix)?.map(|period| all_but(period.max(1), layers))),
        }
    }
}

/// True for all but the last of each `period` layers.
fn all_but(period: usize, layers: usize) -> Vec<bool> {
    (1..=layers).map(|layer| !layer.is_multiple_of(period)).collect()
}

/// The number that people would write for this one in single precision: the shortest that is read as it.
fn decimal(value: f32) -> f64 {
    format!("{value}").parse().unwrap_or_else(|_| value.into())
}

/// The shortest number near `about` of which `compute` makes exactly `wanted`; `about` if there is none.
fn inverse(about: f64, wanted: f32, compute: impl Fn(f64) -> f32) -> f64 {
    let rounded = |digits: usize| format!("{about:.digits$e}").parse::<f64>().ok();
    (0..17).filter_map(rounded).find(|&number| compute(number) == wanted).unwrap_or(about)
}
