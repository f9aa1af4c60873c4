//! What a machine does with a model, as a receipt: what was measured, on what, how well, and what limits it.
//!
//! - [`run`] measures, beside what [`limits`] finds that the machine can do at most.
//! - [`machine`] describes the machine, [`watch`] how it is while something is measured.
//! - [`report`] is the receipt, as JSON has it.
//! - [`read`] reads one that somebody gives, [`compare`] says whether two runs differ, [`turns`] runs two programs in turns for it,
//!   [`statistics`] turns samples into a few numbers.
//! - [`format`](mod@format) writes a report, or a comparison, for people and programs; [`plot`] draws a report.

pub mod compare;
mod files;
pub mod format;
pub mod limits;
pub mod machine;
mod names;
pub mod plot;
pub mod read;
pub mod report;
pub mod run;
#[cfg(test)]
mod samples;
#[cfg(test)]
mod schema;
pub mod statistics;
#[cfg(test)]
mod testing;
pub mod turns;
pub mod watch;

pub use report::Report;
