//! What can keep a model from being written in another form.

use std::path::PathBuf;

use moli_format::FormatError;
use moli_kernels::KernelError;
use moli_text::TextError;

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
    /// A tokenizer that can't be read, or not be said in the other form.
    #[error(transparent)]
    Text(#[from] TextError),
    /// A file that can't be read or written as a model.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// Values that can't be stored in a format.
    #[error(transparent)]
    Kernel(#[from] KernelError),
}
