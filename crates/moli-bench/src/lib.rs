//! What a machine does with a model, as a receipt: what was measured, on what, how well, and what limits it.
//!
//! - [`report`] is the receipt, as JSON has it;
//! - [`limits`] measures what the machine can do at most.

pub mod limits;
pub mod report;

pub use report::Report;
