//! What a machine does with a model, as a receipt: what was measured, on what, how well, and what limits it.
//!
//! - [`report`] is the receipt, as JSON has it.
//! - [`run`] measures.

pub mod format;
pub mod limits;
pub mod machine;
pub mod plot;
pub mod report;
pub mod run;
pub mod statistics;
pub mod watch;

pub use report::Report;
