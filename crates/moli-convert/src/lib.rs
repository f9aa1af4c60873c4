//! Writes a model in another form.
//!
//! Whatever is written goes to a file beside the [`Output`] that is renamed when it is whole, one tensor at a time, so that
//! memory does not grow with the model.

mod error;
mod imatrix;
mod keep;
mod merge;
mod mixture;
mod output;
mod quantize;

pub use error::ConvertError;
pub use imatrix::{Imatrix, ImatrixEntry, ImatrixError};
pub use keep::Keep;
pub use merge::{Merged, merge};
pub use mixture::{Choice, Mixture, ModelFacts};
pub use output::Output;
pub use quantize::{PlannedTensor, Progress, Quantization, QuantizeNote, QuantizeOptions};
