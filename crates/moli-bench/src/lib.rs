//! What a machine does with a model, as a receipt: what was measured, on what, how well, and what limits it.
//!
//! - [`run`] measures, beside what [`limits`] finds that the machine can do at most.
//! - [`machine`] describes the machine, [`watch`] how it is while something is measured.
//! - [`report`] is the receipt, as JSON has it.

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
