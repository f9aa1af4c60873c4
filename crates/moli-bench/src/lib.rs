//! What a machine does with a model, as a receipt: what was measured, on what, how well, and what limits it.
//!
//! - [`report`] is the receipt, as JSON has it.
//! - [`machine`] describes the machine, [`watch`] how it is while something is measured.

mod files;
pub mod machine;
pub mod report;
#[cfg(test)]
mod testing;
pub mod watch;

pub use report::Report;
