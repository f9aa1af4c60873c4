//! Moli's operations on an NVIDIA GPU: own kernels, loaded through the driver where there is one.
//!
//! * [`devices`]: which GPUs there are, or why none;
//! * [`Gpu`]: one that is in use, with all operations of the decoder;
//! * [`Matrix`], [`Buffer`], [`Cache`]: weights, activations, keys and values in its memory.
//!
//! Nothing is linked and no toolkit is needed: the driver's library is opened when somebody asks, and the kernels are PTX that is
//! committed (`ptx/`), made of the sources in `kernels/` by `scripts/compile-kernels.py`. A test fails where the two are apart.
//!
//! # One arithmetic
//!
//! As on the processor, a row's result is the same bits whatever else is in the batch: every sum has an order that depends on its
//! own length alone. The order is another than the processor's, so the bits are others as well: tests compare the two within
//! bounds.
//!
//! # Without a GPU
//!
//! `mock/` is a driver that runs the same sources on the processor. With it the whole crate is tested where there is no GPU, but
//! for the speed and for what the real compiler makes of the PTX.

mod activations;
mod attention;
mod driver;
mod error;
mod gpu;
mod matrix;
mod memory;
mod modules;
mod peak;
mod product;
mod recurrent;

pub use activations::{Angles, Buffer, Function};
pub use attention::{Cache, KvKind, Rows, Shape, attention_bytes};
pub use driver::{DeviceInfo, devices, usable};
pub use error::CudaError;
pub use gpu::Gpu;
pub use matrix::Matrix;
pub use memory::{Array, Number};
pub use peak::{Peak, PeakSample};
pub use product::reserved_bytes;
pub use recurrent::DeltaInputs;
