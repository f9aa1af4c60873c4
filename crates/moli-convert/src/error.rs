//! What can keep a model from being written in another form.

use std::io;
use std::path::PathBuf;

use moli_format::{FormatError, TensorType};
use moli_kernels::KernelError;
use moli_text::TextError;

use crate::{ImatrixError, Mixture};

/// A model that can't be written in the form that is asked for.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConvertError {
    /// The output is there already.
    #[error("{} exists already; nothing was written", path.display())]
    OutputExists {
        /// The output.
        path: PathBuf,
    },
    /// The output is the input.
    #[error("{} is the input and can't be the output as well", path.display())]
    OutputIsInput {
        /// Both.
        path: PathBuf,
    },
    /// An adapter's scale that is negative or no finite number.
    #[error("the scale of an adapter is {scale}, but must be finite and at least 0")]
    Scale {
        /// The scale.
        scale: f32,
    },
    /// A tensor that would have to be written in a type that can only be read.
    #[error(
        "tensor `{tensor}` is of type {found}, which can't be written: merge into a model of another type"
    )]
    NoQuantizer {
        /// Its name.
        tensor: String,
        /// Its type.
        found: &'static str,
    },
    /// A mixture that is not known.
    #[error("no mixture {name:?}: there are {known}")]
    UnknownMixture {
        /// What was asked for.
        name: String,
        /// Those that there are.
        known: String,
    },
    /// An exception to a mixture that can't be read.
    #[error("{asked:?} is no PATTERN=TYPE: {reason}")]
    BadKeep {
        /// What was asked for.
        asked: String,
        /// What is wrong with it.
        reason: String,
    },
    /// An exception to a mixture that no tensor is.
    #[error("no tensor that is quantised matches {pattern:?}")]
    KeepMatchesNothing {
        /// Its pattern.
        pattern: String,
    },
    /// Two bits that would be chosen blindly.
    #[error(
        "{mixture} stores {tensor} as {ttype}, which is of no use without an importance matrix that has it"
    )]
    NeedsImatrix {
        /// The mixture.
        mixture: Mixture,
        /// The tensor.
        tensor: String,
        /// Its format.
        ttype: TensorType,
    },
    /// A tensor in a format that is not read here.
    #[error("tensor {tensor} is {ttype}, which can't be read here")]
    Unreadable {
        /// The tensor.
        tensor: String,
        /// Its format.
        ttype: TensorType,
    },
    /// Weights that are infinite or no numbers.
    #[error("tensor {tensor} holds {value} in row {row}, which no format stores")]
    NotFinite {
        /// The tensor.
        tensor: String,
        /// The row, from 0.
        row: usize,
        /// The weight.
        value: f32,
    },
    /// Weights that a format can't hold.
    #[error("tensor {tensor} holds {value} in row {row}, which is too large for {ttype}")]
    TooLarge {
        /// The tensor.
        tensor: String,
        /// The row, from 0.
        row: usize,
        /// The weight.
        value: f32,
        /// The format.
        ttype: TensorType,
    },
    /// The tensors of a layer's experts don't belong together.
    #[error("{tensor} has another type or shape than the experts before it, or some of those are missing")]
    Experts {
        /// The first that does not fit.
        tensor: String,
    },
    /// An element that the type that is asked for can't hold.
    #[error("{tensor} has an element {value}, which is beyond half precision; bf16 and f32 hold it")]
    BeyondHalf {
        /// The tensor.
        tensor: String,
        /// The element.
        value: f32,
    },
    /// A folder that would be replaced and does not look like a model's.
    #[error("{} is a folder without a config.json, or with folders in it, and is not replaced", path.display())]
    NotAModelFolder {
        /// The folder.
        path: PathBuf,
    },
    /// The work was called off.
    #[error("called off; nothing was written")]
    Cancelled,
    /// The disk is full, or the folder is not there or can't be written to.
    #[error("cannot write {}: {source}; nothing was left there", path.display())]
    Write {
        /// The output.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// An importance matrix that can't be used.
    #[error("{}: {source}", path.display())]
    Imatrix {
        /// Its file.
        path: PathBuf,
        /// What is wrong with it.
        source: ImatrixError,
    },
    /// A tokenizer that can't be read, or not be said in the other form.
    #[error(transparent)]
    Text(#[from] TextError),
    /// A file that can't be read or written as a model.
    #[error(transparent)]
    Format(FormatError),
    /// Values that can't be stored in a format.
    #[error(transparent)]
    Kernel(#[from] KernelError),
}

impl From<FormatError> for ConvertError {
    /// An error of what makes a tensor comes through the writer, and is taken out of its error here.
    fn from(error: FormatError) -> Self {
        match error {
            FormatError::Write { source } => {
                source.downcast().unwrap_or_else(|source| Self::Format(FormatError::Write { source }))
            }
            error => Self::Format(error),
        }
    }
}
