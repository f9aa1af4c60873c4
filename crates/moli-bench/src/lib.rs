//! What a machine does with a model, as a receipt: what was measured, on what, how well, and what limits it.
//!
//! - [`report`] is the receipt, as JSON has it.
//! - [`machine`] describes the machine, [`watch`] how it is while something is measured;
//! - [`run`] measures.

mod files;
pub mod format;
pub mod limits;
pub mod machine;
pub mod plot;
pub mod report;
pub mod run;
pub mod statistics;
#[cfg(test)]
mod testing;
pub mod watch;

pub use report::Report;
