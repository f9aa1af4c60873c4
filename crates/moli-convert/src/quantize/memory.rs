//! Quantising a model where it is loaded.

use std::sync::Arc;

use moli_format::{Bytes, FormatError, Gguf};
use moli_kernels::{Pool, zeroed};

use super::rows::Job;
use super::{Item, QuantizeNote, QuantizeOptions, items, note};
use crate::{ConvertError, Mixture, ModelFacts, PortableTensor, Watch};

/// A model whose weights are about to be quantised into memory. All else of it stays: its metadata, and the order of its rows.
#[derive(Debug)]
pub struct InMemory<'a> {
    model: &'a Gguf,
    items: Vec<Item>,
}

impl<'a> InMemory<'a> {
    /// Decides on the formats.
    ///
    /// # Errors
    /// [`ConvertError::Unreadable`], [`ConvertError::NeedsImatrix`], or metadata that says too little.
    pub fn new(model: &'a Gguf, mixture: Mixture) -> Result<Self, ConvertError> {
        let facts = ModelFacts::of(model.metadata())?;
        let tensors = model.tensors().cloned().map(PortableTensor::from).collect();
        let options = QuantizeOptions { mixture, keep: Vec::new(), imatrix: None };
        Ok(Self { model, items: items(&facts, tensors, &options)? })
    }

    /// What is worth knowing before it is done.
    pub fn notes(&self) -> Vec<QuantizeNote> {
        note::notes(&self.items, None)
    }

    /// The model with zeros for what will be quantised, whose pages nobody has touched: for planning what it will take.
    ///
    /// # Errors
    /// [`FormatError::OutOfMemory`] if it is more than the system would ever give.
    pub fn outline(&self) -> Result<Gguf, ConvertError> {
        self.with(|item| {
            let bytes = item.planned.to_bytes;
            let size = usize::try_from(bytes).ok();
            let zeros = size.and_then(zeroed).ok_or(FormatError::OutOfMemory { bytes })?;
            Ok(Bytes::from_vec(zeros))
        })
    }

    /// The model with its weights quantised.
    ///
    /// # Errors
    /// As for [`Quantization::in_memory`](super::Quantization::in_memory).
    pub fn make(&self, pool: &Arc<Pool>, watch: &Arc<Watch>) -> Result<Gguf, ConvertError> {
        self.with(|item| {
            let job = Job::new(item, pool, watch);
            let bytes = item.planned.to_bytes;
            let size = usize::try_from(bytes).map_err(|_| FormatError::OutOfMemory { bytes })?;
            Bytes::filled(size, |mut buffer| {
                job.write(&mut buffer).map_err(|source| FormatError::Write { source }.into())
            })
        })
    }

    fn with(&self, make: impl Fn(&Item) -> Result<Bytes, ConvertError>) -> Result<Gguf, ConvertError> {
        let mut items = self.items.iter();
        self.model.with_weights(|tensor| match items.next() {
            Some(item) if item.planned.changes() => Ok((item.planned.to, make(item)?)),
            _ => Ok((tensor.ttype, tensor.data.clone())),
        })
    }
}
