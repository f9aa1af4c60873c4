//! What a machine does with a model, as a receipt: what was measured, on what, how well, and what limits it.
//!
//! - [`report`] is the receipt, as JSON has it; [`read`] reads one that somebody gives.
//! - [`statistics`] turns samples into a few numbers.
//! - [`compare`] says whether two runs differ.
//! - [`format`] writes a report, or a comparison, for people and programs; [`plot`] draws a report.

pub mod compare;
pub mod format;
mod names;
pub mod plot;
pub mod read;
pub mod report;
#[cfg(test)]
mod samples;
#[cfg(test)]
mod schema;
pub mod statistics;

pub use report::Report;
