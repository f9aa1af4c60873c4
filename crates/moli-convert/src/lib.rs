//! Writes a model in another form.
//!
//! Whatever is written goes to a file beside the [`Output`] that is renamed when it is whole, one tensor at a time, so that
//! memory does not grow with the model.
//!
//! - [`to_gguf`], [`to_folder`]: the whole way, into one file that llama.cpp reads too, or a folder that transformers reads.
//! - [`Portable`]: a model as GGUF files have it, whether it was one or a Hugging Face folder. Its rows are read where they are;
//!   whoever writes a GGUF, in whatever types, begins with it.
//! - [`Quantization`]: a model in one of llama.cpp's [`Mixture`]s of formats, with what an [`Imatrix`] says of its columns.

mod elements;
mod error;
mod folder;
mod gguf;
mod imatrix;
mod keep;
mod merge;
mod mixture;
mod output;
mod portable;
mod quantize;

use moli_format::TensorType;

pub use error::ConvertError;
pub use folder::to_folder;
pub use gguf::to_gguf;
pub use imatrix::{Imatrix, ImatrixEntry, ImatrixError};
pub use keep::Keep;
pub use merge::{Merged, merge};
pub use mixture::{Choice, Mixture, ModelFacts};
pub use output::Output;
pub use portable::{Portable, PortableTensor};
pub use quantize::{InMemory, PlannedTensor, Quantization, QuantizeNote, QuantizeOptions};

/// Told of each stretch of so many bytes that was read; `false` calls the work off.
pub type Watch = dyn Fn(u64) -> bool + Send + Sync;

/// How to write a model.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// The type of its matrices; `None`: as they are, and in a folder F32 where they were quantised.
    pub dtype: Option<Dtype>,
    /// Whether its tokenizer is written too.
    pub tokenizer: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { dtype: None, tokenizer: true }
    }
}

/// A type of floats.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "each name says all")]
pub enum Dtype {
    F32,
    F16,
    BF16,
}

impl From<Dtype> for TensorType {
    fn from(dtype: Dtype) -> Self {
        match dtype {
            Dtype::F32 => Self::F32,
            Dtype::F16 => Self::F16,
            Dtype::BF16 => Self::BF16,
        }
    }
}

/// What was written.
#[derive(Debug, Clone)]
pub struct Report {
    /// Tensors.
    pub tensors: usize,
    /// Bytes: of the file, or of a folder's weights.
    pub bytes: u64,
    /// Sentences about what other programs do otherwise with this model, or can't do.
    pub notes: Vec<String>,
}
