//! Quantising a model.

mod memory;
mod note;
mod rows;

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use moli_format::{Bytes, FormatError, Gguf, GgufWriter, TensorType, Value};
use moli_kernels::{Pool, is_supported};

use crate::{
    Choice, ConvertError, Imatrix, ImatrixError, Keep, Mixture, ModelFacts, Output, Portable, PortableTensor,
    Watch,
};

pub use memory::InMemory;
pub use note::QuantizeNote;
use rows::Job;

/// The version of the quantised formats, as files name it.
const QUANTIZATION_VERSION: u32 = 2;

/// How a model is quantised.
#[derive(Debug, Clone)]
pub struct QuantizeOptions {
    /// Which tensor gets which format.
    pub mixture: Mixture,
    /// Exceptions to it, of which the first that matches holds.
    pub keep: Vec<Keep>,
    /// The file of an importance matrix, and what is in it.
    pub imatrix: Option<(PathBuf, Imatrix)>,
}

/// What becomes of a tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlannedTensor {
    /// Its name.
    pub name: String,
    /// Its dimensions, the contiguous one first.
    pub dims: Vec<u64>,
    /// The format that it has.
    pub from: TensorType,
    /// The format that it will have.
    pub to: TensorType,
    /// The format that it would have if its rows were whole blocks of that.
    pub wanted: TensorType,
    /// Bytes that it has.
    pub from_bytes: u64,
    /// Bytes that it will have.
    pub to_bytes: u64,
}

/// A model that is about to be quantised: everything is decided and checked that does not take reading its weights.
#[derive(Debug)]
pub struct Quantization {
    entries: Vec<(String, Value)>,
    items: Vec<Item>,
    notes: Vec<QuantizeNote>,
}

/// A tensor on its way.
#[derive(Debug)]
struct Item {
    tensor: PortableTensor,
    planned: PlannedTensor,
    /// How much each column matters, once for each expert.
    importance: Option<Arc<[f32]>>,
}

impl Quantization {
    /// Decides on the formats of a model's tensors, a folder's as those of a GGUF file.
    ///
    /// # Errors
    /// [`ConvertError::KeepMatchesNothing`]; [`ConvertError::Unreadable`] for a tensor whose format has to change and isn't
    /// read; [`ConvertError::Imatrix`] for a matrix of another model; [`ConvertError::NeedsImatrix`]; metadata that says
    /// too little; what [`Portable::new`] refuses.
    pub fn new(model: &Gguf, options: &QuantizeOptions) -> Result<Self, ConvertError> {
        let facts = ModelFacts::of(model.metadata())?;
        let Portable { entries, tensors, notes } = Portable::new(model)?;
        let items = items(&facts, tensors, options)?;
        let mut all: Vec<QuantizeNote> = notes.into_iter().map(QuantizeNote::Conversion).collect();
        all.extend(note::notes(&items, options.imatrix.as_ref().map(|(_, imatrix)| imatrix)));
        Ok(Self { entries: entries_for(entries, options), items, notes: all })
    }

    /// What becomes of each tensor, in the order of the file.
    pub fn tensors(&self) -> impl ExactSizeIterator<Item = &PlannedTensor> {
        self.items.iter().map(|item| &item.planned)
    }

    /// What is worth knowing before it is done.
    pub fn notes(&self) -> &[QuantizeNote] {
        &self.notes
    }

    /// Bytes of the model's tensors before.
    pub fn input_bytes(&self) -> u64 {
        self.tensors().map(|tensor| tensor.from_bytes).sum()
    }

    /// Bytes of the file that will be written.
    ///
    /// # Errors
    /// What a writer refuses.
    pub fn file_bytes(&self) -> Result<u64, ConvertError> {
        Ok(self.file(|_| Box::new(|_| Ok(()))).file_bytes()?)
    }

    /// Writes the model: tensor by tensor, each in pieces, so that memory does not grow with it.
    ///
    /// # Errors
    /// [`ConvertError::NotFinite`] and [`ConvertError::TooLarge`] for weights that can't be stored,
    /// [`ConvertError::Cancelled`] if `watch` says so, and as for [`Output::write`]. Then nothing is left of it.
    pub fn write(&self, output: &Output, pool: &Arc<Pool>, watch: &Arc<Watch>) -> Result<(), ConvertError> {
        output.write(&self.weights(pool, watch))
    }

    /// Makes the model in memory, in one allocation of [`file_bytes`](Self::file_bytes).
    ///
    /// # Errors
    /// As for [`write`](Self::write), or the system refuses the memory.
    pub fn in_memory(&self, pool: &Arc<Pool>, watch: &Arc<Watch>) -> Result<Gguf, ConvertError> {
        let bytes = self.file_bytes()?;
        let size = usize::try_from(bytes).map_err(|_| FormatError::OutOfMemory { bytes })?;
        let file = self.weights(pool, watch);
        let made = Bytes::filled(size, |buffer| file.write(buffer).map_err(ConvertError::from))?;
        Ok(Gguf::from_bytes(&made)?)
    }

    fn weights(&self, pool: &Arc<Pool>, watch: &Arc<Watch>) -> GgufWriter {
        self.file(|item| {
            let job = Job::new(item, pool, watch);
            Box::new(move |out| job.write(out))
        })
    }

    fn file(&self, maker: impl Fn(&Item) -> Maker) -> GgufWriter {
        let mut file = GgufWriter::new();
        for (key, value) in &self.entries {
            file.meta(key, value.clone());
        }
        for item in &self.items {
            let PlannedTensor { name, to, dims, .. } = &item.planned;
            file.tensor_from(name, *to, dims.clone(), maker(item));
        }
        file
    }
}

type Maker = Box<dyn Fn(&mut dyn Write) -> io::Result<()> + Send + Sync>;

/// Tensors with what becomes of them.
fn items(
    facts: &ModelFacts,
    tensors: Vec<PortableTensor>,
    options: &QuantizeOptions,
) -> Result<Vec<Item>, ConvertError> {
    let QuantizeOptions { mixture, keep, imatrix } = options;
    if let Some((path, imatrix)) = imatrix {
        of_this_model(path, imatrix, &tensors)?;
    }
    let outlines: Vec<(&str, &[u64])> =
        tensors.iter().map(|tensor| (tensor.name.as_str(), tensor.dims.as_slice())).collect();
    let choices = mixture.choose(facts, imatrix.is_some(), keep, &outlines);
    let quantised = || outlines.iter().zip(&choices).filter(|(_, choice)| choice.is_some());
    if let Some(none) = keep.iter().find(|keep| !quantised().any(|((name, _), _)| keep.matches(name))) {
        return Err(ConvertError::KeepMatchesNothing { pattern: none.pattern().to_owned() });
    }
    let items = tensors.into_iter().zip(choices).map(|(tensor, choice)| {
        let planned = PlannedTensor::new(&tensor, choice)?;
        let importance = match imatrix {
            Some((path, imatrix)) => importance(path, imatrix, &planned)?,
            None => None,
        };
        if importance.is_none() && planned.changes() && mixture.needs_imatrix(&planned.name, planned.to) {
            let PlannedTensor { name: tensor, to: ttype, .. } = planned;
            return Err(ConvertError::NeedsImatrix { mixture: *mixture, tensor, ttype });
        }
        Ok(Item { tensor, planned, importance })
    });
    items.collect()
}

impl PlannedTensor {
    fn new(tensor: &PortableTensor, choice: Option<Choice>) -> Result<Self, ConvertError> {
        let from = tensor.ttype;
        let Choice { ttype: to, wanted } = choice.unwrap_or(Choice { ttype: from, wanted: from });
        if from != to && !is_supported(from) {
            return Err(ConvertError::Unreadable { tensor: tensor.name.clone(), ttype: from });
        }
        let from_bytes = tensor.bytes();
        // Blocks of both formats divide a row.
        let blocks = (tensor.cols() / to.block_len() * tensor.rows()) as u64;
        let to_bytes = blocks * to.block_bytes() as u64;
        Ok(Self {
            name: tensor.name.clone(),
            dims: tensor.dims.clone(),
            from,
            to,
            wanted,
            from_bytes,
            to_bytes,
        })
    }

    /// Whether its weights are stored anew.
    pub fn changes(&self) -> bool {
        self.from != self.to
    }

    /// Whether it becomes blocks, whose weights share scales.
    fn is_quantised(&self) -> bool {
        self.changes() && self.to.block_len() > 1
    }
}

/// An error for an importance matrix that has none of the model's tensors.
fn of_this_model(path: &Path, imatrix: &Imatrix, tensors: &[PortableTensor]) -> Result<(), ConvertError> {
    match imatrix.entries.keys().next() {
        Some(first) if !tensors.iter().any(|tensor| imatrix.entries.contains_key(&tensor.name)) => {
            let source = ImatrixError::OtherModel { first: first.clone() };
            Err(ConvertError::Imatrix { path: path.to_path_buf(), source })
        }
        _ => Ok(()),
    }
}

/// How much the columns of a tensor matter that becomes blocks.
fn importance(
    path: &Path,
    imatrix: &Imatrix,
    planned: &PlannedTensor,
) -> Result<Option<Arc<[f32]>>, ConvertError> {
    if !planned.is_quantised() {
        return Ok(None);
    }
    let Some(values) = imatrix.importance(&planned.name) else { return Ok(None) };
    let experts: u64 = planned.dims.iter().skip(2).product();
    let expected = planned.dims.first().map_or(0, |cols| cols.saturating_mul(experts)) as usize;
    if values.len() != expected {
        let source = ImatrixError::Columns { tensor: planned.name.clone(), expected, actual: values.len() };
        return Err(ConvertError::Imatrix { path: path.to_path_buf(), source });
    }
    Ok(Some(values.into()))
}

/// The model's metadata, with what changes.
fn entries_for(mut entries: Vec<(String, Value)>, options: &QuantizeOptions) -> Vec<(String, Value)> {
    let mut changed: Vec<(&str, Value)> = vec![
        ("general.file_type", options.mixture.file_type().into()),
        ("general.quantization_version", QUANTIZATION_VERSION.into()),
    ];
    if let Some((path, imatrix)) = &options.imatrix {
        changed.push(("quantize.imatrix.file", path.display().to_string().into()));
        if let Some(dataset) = imatrix.datasets.first() {
            changed.push(("quantize.imatrix.dataset", dataset.as_str().into()));
        }
        changed.push(("quantize.imatrix.entries_count", (imatrix.entries.len() as u32).into()));
        changed.push(("quantize.imatrix.chunks_count", imatrix.chunk_count.into()));
    }
    // What an earlier matrix was is no longer true of the file.
    entries.retain(|(key, _)| {
        !key.starts_with("quantize.imatrix.") && !changed.iter().any(|(name, _)| name == key)
    });
    entries.extend(changed.into_iter().map(|(key, value)| (key.to_owned(), value)));
    entries
}

#[cfg(test)]
mod tests;
