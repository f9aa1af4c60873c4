//! Writes a model in another form.
//!
//! Whatever is written goes to a file beside the [`Output`] that is renamed when it is whole, one tensor at a time, so that
//! memory does not grow with the model.

mod error;
mod merge;
mod output;

pub use error::ConvertError;
pub use merge::{Merged, merge};
pub use output::Output;
