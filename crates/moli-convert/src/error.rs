//! What can keep a model from being written in another form.

use std::path::PathBuf;

use moli_format::FormatError;
use moli_kernels::KernelError;

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
    /// The model that adapters are to be merged into is a folder, not a file.
    #[error("{}: adapters are merged into a GGUF file: convert the model first", path.display())]
    MergeIntoFolder {
        /// A file of the folder.
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
    /// A file that can't be read or written as a model.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// Values that can't be stored in a format.
    #[error(transparent)]
    Kernel(#[from] KernelError),
}
