//! Quantising a model.

mod note;
mod rows;

use std::io::{self, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use moli_format::{Bytes, FormatError, Gguf, GgufWriter, Metadata, Tensor, TensorType, Value};
use moli_kernels::{Pool, is_supported};

use crate::{Choice, ConvertError, Imatrix, ImatrixError, Keep, Mixture, ModelFacts, Output};

pub use note::QuantizeNote;
use rows::Job;

/// Told how many bytes of the model have been read since the last time; may stop the work.
pub type Progress = dyn Fn(u64) -> ControlFlow<()> + Send + Sync;

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
    metadata: Vec<(String, Value)>,
    items: Vec<Item>,
    notes: Vec<QuantizeNote>,
}

/// A tensor on its way.
#[derive(Debug)]
struct Item {
    tensor: Tensor,
    planned: PlannedTensor,
    /// How much each column matters, once for each expert.
    importance: Option<Arc<[f32]>>,
}

impl Quantization {
    /// Decides on the formats of a model's tensors.
    ///
    /// # Errors
    /// [`ConvertError::KeepMatchesNothing`]; [`ConvertError::Unreadable`] for a tensor whose format has to change and isn't
    /// read; [`ConvertError::Imatrix`] for a matrix of another model; [`ConvertError::NeedsImatrix`]; or metadata that says
    /// too little.
    pub fn new(model: &Gguf, options: &QuantizeOptions) -> Result<Self, ConvertError> {
        let QuantizeOptions { mixture, keep, imatrix } = options;
        if let Some((path, imatrix)) = imatrix {
            of_this_model(path, imatrix, model)?;
        }
        let outlines: Vec<(&str, &[u64])> =
            model.tensors().map(|tensor| (tensor.name.as_str(), tensor.dims.as_slice())).collect();
        let facts = ModelFacts::of(model.metadata())?;
        let choices = mixture.choose(&facts, imatrix.is_some(), keep, &outlines);
        let quantised = || outlines.iter().zip(&choices).filter(|(_, choice)| choice.is_some());
        if let Some(none) = keep.iter().find(|keep| !quantised().any(|((name, _), _)| keep.matches(name))) {
            return Err(ConvertError::KeepMatchesNothing { pattern: none.pattern().to_owned() });
        }
        let items = model.tensors().zip(choices).map(|(tensor, choice)| {
            let planned = PlannedTensor::new(tensor, choice)?;
            let importance = match imatrix {
                Some((path, imatrix)) => importance(path, imatrix, &planned)?,
                None => None,
            };
            if importance.is_none() && planned.changes() && mixture.needs_imatrix(&planned.name, planned.to) {
                let PlannedTensor { name: tensor, to: ttype, .. } = planned;
                return Err(ConvertError::NeedsImatrix { mixture: *mixture, tensor, ttype });
            }
            Ok(Item { tensor: tensor.clone(), planned, importance })
        });
        let items = items.collect::<Result<Vec<_>, ConvertError>>()?;
        let notes = note::notes(&items, imatrix.as_ref().map(|(_, imatrix)| imatrix));
        Ok(Self { metadata: metadata(model.metadata(), options), items, notes })
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
    /// [`ConvertError::Interrupted`] if `progress` says so, and as for [`Output::write`]. Then nothing is left of it.
    pub fn write(
        &self,
        output: &Output,
        pool: &Arc<Pool>,
        progress: &Arc<Progress>,
    ) -> Result<(), ConvertError> {
        output.write(&self.weights(pool, progress))
    }

    /// Makes the model in memory, in one allocation of [`file_bytes`](Self::file_bytes).
    ///
    /// # Errors
    /// As for [`write`](Self::write), or the system refuses the memory.
    pub fn in_memory(&self, pool: &Arc<Pool>, progress: &Arc<Progress>) -> Result<Gguf, ConvertError> {
        let bytes = self.file_bytes()?;
        let size = usize::try_from(bytes).map_err(|_| FormatError::OutOfMemory { bytes })?;
        let file = self.weights(pool, progress);
        let made = Bytes::filled(size, |buffer| file.write(buffer).map_err(ConvertError::from))?;
        Ok(Gguf::from_bytes(&made)?)
    }

    fn weights(&self, pool: &Arc<Pool>, progress: &Arc<Progress>) -> GgufWriter {
        self.file(|item| {
            let job = Job {
                tensor: item.tensor.clone(),
                to: item.planned.to,
                importance: item.importance.clone(),
                pool: Arc::clone(pool),
                progress: Arc::clone(progress),
            };
            Box::new(move |out| job.write(out))
        })
    }

    fn file(&self, maker: impl Fn(&Item) -> Maker) -> GgufWriter {
        let mut file = GgufWriter::new();
        for (key, value) in &self.metadata {
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

impl PlannedTensor {
    fn new(tensor: &Tensor, choice: Option<Choice>) -> Result<Self, ConvertError> {
        let from = tensor.ttype;
        let Choice { ttype: to, wanted } = choice.unwrap_or(Choice { ttype: from, wanted: from });
        if from != to && !is_supported(from) {
            return Err(ConvertError::Unreadable { tensor: tensor.name.clone(), ttype: from });
        }
        let from_bytes = tensor.data.len() as u64;
        // Blocks of both formats divide a row.
        let to_bytes = tensor.elements() as u64 / to.block_len() as u64 * to.block_bytes() as u64;
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
fn of_this_model(path: &Path, imatrix: &Imatrix, model: &Gguf) -> Result<(), ConvertError> {
    match imatrix.entries.keys().next() {
        Some(first) if imatrix.entries.keys().all(|name| model.tensor(name).is_none()) => {
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
fn metadata(metadata: &Metadata, options: &QuantizeOptions) -> Vec<(String, Value)> {
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
    // What is written is one file, and what an earlier matrix was is no longer true of it.
    let dropped = |key: &str| {
        ["split.", "quantize.imatrix."].iter().any(|prefix| key.starts_with(prefix))
            || changed.iter().any(|(name, _)| *name == key)
    };
    let kept = metadata.iter().filter(|(key, _)| !dropped(key));
    let mut all: Vec<_> = kept.map(|(key, value)| (key.to_owned(), value.clone())).collect();
    all.extend(changed.into_iter().map(|(key, value)| (key.to_owned(), value)));
    all
}

#[cfg(test)]
mod tests;
