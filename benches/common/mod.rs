//! What the benches share, and the test that holds a bench's claim.

#![allow(dead_code, reason = "each of them uses a part")]

pub(crate) mod llama_bench;
pub(crate) mod llama_python;
pub(crate) mod options;
pub(crate) mod peer;
pub(crate) mod report;
pub(crate) mod workload;

/// A bench tells what went wrong and ends.
pub(crate) type Error = Box<dyn std::error::Error>;
