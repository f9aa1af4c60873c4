//! A model as other programs read it from a GGUF file.

use std::collections::BTreeMap;
use std::io::{self, Write};

use moli_format::{Bytes, Gguf, Metadata, Tensor, TensorType, Value};
use moli_text::{TextError, gguf_tokenizer};

use crate::ConvertError;

/// A model in the form that GGUF files have, whatever it was opened as: what is particular to [`Gguf::open`] of a folder is
/// gone. Nothing of a large tensor is copied; its rows are read where they are.
///
/// A [`GgufWriter`](moli_format::GgufWriter) is filled with `entries` and, for each of `tensors`,
/// `tensor_from(name, ttype, dims, ..)` with [`PortableTensor::write`], or with its rows in another type.
#[derive(Debug, Clone)]
pub struct Portable {
    /// Keys and values, in the order of the file.
    pub entries: Vec<(String, Value)>,
    /// The tensors, in the order of the file.
    pub tensors: Vec<PortableTensor>,
    /// Sentences about what other programs do otherwise with this model, or can't do.
    pub notes: Vec<String>,
}

/// A tensor of a [`Portable`].
#[derive(Debug, Clone)]
pub struct PortableTensor {
    /// Its name.
    pub name: String,
    /// How its elements are stored where they come from. Vectors, norms and biases are F32, as the convention has them.
    pub ttype: TensorType,
    /// 1 to 4 dimensions; `dims[0]` is the contiguous one.
    pub dims: Vec<u64>,
    /// The data, in parts of as many rows each: the experts.
    parts: Vec<Bytes>,
    heads: Option<Heads>,
}

/// Rows of heads whose rotary pairs are halves, and are to be neighbours.
#[derive(Debug, Clone, Copy)]
struct Heads {
    /// Rows of a head.
    dim: usize,
    /// How many of them, from the first on, are turned: an even number.
    rotated: usize,
}

impl Heads {
    /// The row that comes to be row `index`.
    fn source(self, index: usize) -> usize {
        let (head, row) = (index / self.dim, index % self.dim);
        if row >= self.rotated {
            return index;
        }
        head * self.dim + row % 2 * (self.rotated / 2) + row / 2
    }
}

/// What becomes of the tokenizer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Text {
    Convert,
    LeaveOut,
}

impl Portable {
    /// The model with its tokenizer; one without a tokenizer is noted.
    ///
    /// # Errors
    /// [`ConvertError::Text`] names what of the tokenizer can't be said in GGUF; [`ConvertError::Experts`].
    pub fn new(model: &Gguf) -> Result<Self, ConvertError> {
        Self::with(model, Text::Convert)
    }

    /// The model without a tokenizer: one that only ids can be given to.
    ///
    /// # Errors
    /// [`ConvertError::Experts`].
    pub fn without_tokenizer(model: &Gguf) -> Result<Self, ConvertError> {
        Self::with(model, Text::LeaveOut)
    }

    fn with(model: &Gguf, text: Text) -> Result<Self, ConvertError> {
        let metadata = model.metadata();
        let (folder, mut notes) = (metadata.get(FOLDER).is_some(), Vec::new());
        let mut tensors = tensors(model)?;
        if folder {
            // In the order in which they are computed with; a folder has them by name.
            tensors.sort_by_key(|tensor| block(&tensor.name));
        }
        let vocab = tensors.iter().find(|tensor| tensor.name == "token_embd.weight");
        let none = || vec![("tokenizer.ggml.model".to_owned(), Value::from("none"))];
        // What is written of the tokenizer; `None`: what is there already.
        let tokenizer = match text {
            Text::LeaveOut => Some(none()),
            Text::Convert => match gguf_tokenizer(metadata, vocab.map(PortableTensor::rows)) {
                Ok(Some(made)) => {
                    notes.extend(made.notes);
                    Some(made.entries)
                }
                Ok(None) => None,
                Err(TextError::NoTokenizer { path }) => {
                    let path = path.display();
                    notes.push(format!("{path} is missing: the model is written without a tokenizer"));
                    Some(none())
                }
                Err(error) => return Err(error.into()),
            },
        };
        let kept = |key: &str| {
            let of_text =
                (key.starts_with("tokenizer.") || key.starts_with("moli.tokenizer.")) && key != KINDS;
            let replaced = match (of_text, text) {
                (true, Text::LeaveOut) => true,
                (true, Text::Convert) => tokenizer.is_some() && key != TEMPLATE,
                (false, _) => {
                    ["moli.rope.halves", "moli.unpacked"].contains(&key)
                        || key == "moli.eos_token_ids" && folder
                }
            };
            !(replaced || key.starts_with("split.") || key == "general.alignment")
        };
        let mut entries: Vec<(String, Value)> = metadata
            .iter()
            .filter(|(key, _)| kept(key))
            .map(|(key, value)| (key.to_owned(), value.clone()))
            .collect();
        let own = |key: &&str| key.ends_with(".hidden_activation") || OWN.contains(key);
        notes.extend(
            entries
                .iter()
                .map(|(key, _)| key.as_str())
                .filter(own)
                .map(|key| format!("{key} is read by Moli alone: other programs compute another model")),
        );
        entries.extend(tokenizer.into_iter().flatten());
        Ok(Self { entries, tensors, notes })
    }
}

/// Keys of Moli's own for what changes a model's logits and has none in the convention.
const OWN: [&str; 3] = ["moli.qkv_bias", "moli.latent_norm_epsilon", "moli.rope.yarn_whole"];
/// Says that a model was opened from a folder, and from which.
pub(crate) const FOLDER: &str = "tokenizer.huggingface.folder";
const TEMPLATE: &str = "tokenizer.chat_template";
/// Kinds of tokens that an encoder has, which is said of its tensors.
const KINDS: &str = "tokenizer.ggml.token_type_count";

/// Where a tensor belongs: before the blocks, in one of them, or behind them.
fn block(name: &str) -> u64 {
    match name.strip_prefix("blk.").and_then(|rest| rest.split_once('.')) {
        Some((number, _)) => number.parse().unwrap_or(0_u64).saturating_add(1),
        None if name.starts_with("output") || name.starts_with("cls") => u64::MAX,
        None => 0,
    }
}

/// A tensor in the convention's order already, such as one that was computed.
impl From<Tensor> for PortableTensor {
    fn from(Tensor { name, ttype, dims, data }: Tensor) -> Self {
        Self { name, ttype, dims, parts: vec![data], heads: None }
    }
}

impl PortableTensor {
    /// Elements of a row: `dims[0]`.
    pub fn cols(&self) -> usize {
        self.dims.first().map_or(1, |&cols| cols as usize)
    }

    /// Number of rows: the product of all dimensions but the first.
    pub fn rows(&self) -> usize {
        self.dims.iter().skip(1).map(|&dim| dim as usize).product()
    }

    /// Whether it is a matrix, or several: what may be stored in another type.
    pub fn is_matrix(&self) -> bool {
        self.dims.len() > 1 && !is_single(&self.name)
    }

    /// The bytes of a row, in the type of the tensor; empty if there is no such row.
    pub fn row(&self, index: usize) -> &[u8] {
        let bytes = self.cols() / self.ttype.block_len() * self.ttype.block_bytes();
        let rows_of_part = self.rows() / self.parts.len().max(1);
        let (part, row) = (index / rows_of_part.max(1), index % rows_of_part.max(1));
        let row = self.heads.map_or(row, |heads| heads.source(row));
        let part = self.parts.get(part).map(Bytes::as_slice).unwrap_or_default();
        part.get(row * bytes..(row + 1) * bytes).unwrap_or_default()
    }

    /// Bytes of it where it comes from.
    pub fn bytes(&self) -> u64 {
        self.parts.iter().map(|part| part.len() as u64).sum()
    }

    /// Takes what was read of a mapped file out of the process's memory.
    pub(crate) fn release(&self) {
        self.parts.iter().for_each(Bytes::release);
    }

    /// Writes all of it, in the type of the tensor.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        match self.heads {
            None => self.parts.iter().try_for_each(|part| out.write_all(part)),
            Some(_) => (0..self.rows()).try_for_each(|row| out.write_all(self.row(row))),
        }
    }
}

/// The tensors: experts stacked, heads in the order of the convention, vectors in single precision.
fn tensors(model: &Gguf) -> Result<Vec<PortableTensor>, ConvertError> {
    let order = Order::of(model.metadata())?;
    let mut all: Vec<PortableTensor> = Vec::new();
    // Where each stack of experts is in `all`.
    let mut stacks: BTreeMap<String, usize> = BTreeMap::new();
    for tensor in sorted(model) {
        let heads = order.heads(&tensor.name);
        if let Some((stack, number)) = expert(&tensor.name) {
            let at = *stacks.entry(stack.clone()).or_insert(all.len());
            if at == all.len() && number > 0 {
                return Err(ConvertError::Experts { tensor: tensor.name.clone() });
            }
            let Some(first) = all.get_mut(at) else {
                let dims = tensor.dims.clone();
                let parts = vec![tensor.data.clone()];
                all.push(PortableTensor { name: stack, ttype: tensor.ttype, dims, parts, heads });
                continue;
            };
            if first.parts.len() != number || first.ttype != tensor.ttype || first.dims != tensor.dims {
                return Err(ConvertError::Experts { tensor: tensor.name.clone() });
            }
            first.parts.push(tensor.data.clone());
            continue;
        }
        let vector = tensor.rows() == 1 && tensor.dims.len() == 1;
        let single = vector || is_single(&tensor.name);
        let (ttype, data) = match tensor.ttype {
            TensorType::F16 | TensorType::BF16 if single => {
                (TensorType::F32, wide(tensor.ttype, &tensor.data)?)
            }
            ttype => (ttype, tensor.data.clone()),
        };
        let (data, heads) = match heads {
            Some(heads) if vector => (reordered(&data, heads, ttype.block_bytes()), None),
            heads => (data, heads),
        };
        let (name, dims) = (tensor.name.clone(), tensor.dims.clone());
        all.push(PortableTensor { name, ttype, dims, parts: vec![data], heads });
    }
    for &at in stacks.values() {
        if let Some(tensor) = all.get_mut(at) {
            tensor.dims.push(tensor.parts.len() as u64);
        }
    }
    Ok(all)
}

/// Whether the convention has tensors of this name in single precision.
fn is_single(name: &str) -> bool {
    let taps = name.ends_with(".shortconv.conv.weight") || name.ends_with(".ssm_conv1d.weight");
    taps || name.ends_with(".bias") || name.contains("_norm.")
}

/// The tensors in their order, but the experts of a part by rising number at the place of the first.
fn sorted(model: &Gguf) -> Vec<&Tensor> {
    let mut tensors: Vec<_> = model.tensors().collect();
    tensors.sort_by_key(|tensor| expert(&tensor.name).map_or(0, |(_, number)| number));
    tensors
}

/// The stack that a tensor of one expert belongs to, and the expert's number: `blk.0.ffn_up.3.weight`.
fn expert(name: &str) -> Option<(String, usize)> {
    let mut parts = name.split('.');
    let (block, layer, part) = (parts.next()?, parts.next()?, parts.next()?);
    let number = parts.next()?.parse().ok()?;
    let end = parts.next().filter(|_| block == "blk" && parts.next().is_none())?;
    Some((format!("blk.{layer}.{part}_exps.{end}"), number))
}

/// Which rows are in another order than the convention's.
struct Order {
    heads: Option<Heads>,
    /// The layers that rotate, where not all do. In others the order is of no consequence.
    rotated: Option<Vec<bool>>,
}

impl Order {
    fn of(metadata: &Metadata) -> Result<Self, ConvertError> {
        if metadata.bool_opt("moli.rope.halves")? != Some(true) {
            return Ok(Self { heads: None, rotated: None });
        }
        let architecture = metadata.architecture()?;
        let number = |key: &str| metadata.u32(&format!("{architecture}.{key}")).map(|n| n as usize);
        let heads = Heads { dim: number("attention.key_length")?, rotated: number("rope.dimension_count")? };
        let fits = heads.dim > 0 && heads.rotated <= heads.dim && heads.rotated.is_multiple_of(2);
        let rotated = metadata.bools_opt(&format!("{architecture}.rope.layers"))?;
        Ok(Self { heads: Some(heads).filter(|_| fits), rotated })
    }

    fn heads(&self, name: &str) -> Option<Heads> {
        let mut parts = name.strip_prefix("blk.")?.split('.');
        let layer: usize = parts.next()?.parse().ok()?;
        let rotates = self.rotated.as_ref().is_none_or(|layers| layers.get(layer) != Some(&false));
        let queries_or_keys = matches!(parts.next()?, "attn_q" | "attn_k");
        self.heads.filter(|_| rotates && queries_or_keys)
    }
}

/// The elements of a float type in single precision.
fn wide(ttype: TensorType, data: &[u8]) -> Result<Bytes, ConvertError> {
    let mut values = vec![0.0; data.len() / ttype.block_bytes()];
    moli_kernels::dequantize(ttype, data, &mut values)?;
    Ok(Bytes::from_vec(values.into_iter().flat_map(f32::to_le_bytes).collect()))
}

/// The elements of a vector in the order of neighbours.
fn reordered(data: &[u8], heads: Heads, size: usize) -> Bytes {
    let count = data.len() / size;
    let element = |index: usize| {
        let from = heads.source(index) * size;
        data.get(from..from + size).unwrap_or_default().iter().copied()
    };
    Bytes::from_vec((0..count).flat_map(element).collect())
}
