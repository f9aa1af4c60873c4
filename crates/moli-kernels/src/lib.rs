//! The arithmetic of a language model on slices: quantised matrix products, the float operations between them, and the
//! thread pool under both. No file is opened here and nothing is allocated while a model runs.
//!
//! - [`Matrix`] is a weight matrix in a file's own blocks; [`Activations`] is what it is multiplied with, quantised to
//!   8 bits once for all the matrices that read it; [`Kernels::matmul`] multiplies.
//! - [`dequantize`] and [`quantize`] turn blocks into floats and back; [`quantize_rows`] loses less and takes longer.
//! - [`Kernels`] is a table of functions for one instruction set ([`Isa`]), picked once.
//! - [`Pool`] runs short parallel loops.
//! - [`peak`] measures what the processor can do at most.
//!
//! # One arithmetic
//!
//! Every output element is computed by one fixed sequence of operations. The batch, the tile, the number of threads and
//! the instruction set decide when it is computed and in which register, never what is computed: the results are the same
//! bits. [`Kernels::matmul`] says what the sequence is.

mod error;
mod float;
mod isa;
mod kernels;
mod matmul;
pub mod peak;
mod pool;
mod quant;
mod threads;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod vector;
mod zeroed;

pub use error::KernelError;
pub use float::*;
pub use isa::Isa;
pub use kernels::Kernels;
pub use matmul::{Activations, Matrix, Product, Scratch};
pub use pool::Pool;
pub use quant::{QUANTIZABLE, SUPPORTED, codebooks, dequantize, is_supported, quantize, quantize_rows};
pub use threads::{allowed_cpus, default_threads, parse_cpu_list};
pub use zeroed::{Zero, zeroed};
