//! The decoder: from token ids to logits.
//!
//! * [`Config`]: what the model is, read from the file's metadata;
//! * [`weights`]: its tensors, checked against the shapes that the configuration implies;
//! * [`decoder`]: the one forward pass, over the small trait [`Backend`];
//! * [`LowRank`]: what adapters add to them, chosen for each sequence of a batch by [`Adapted`];
//! * [`Classifier`]: the head of models that sort texts;
//! * [`Footprint`]: the memory that it will take;
//! * [`kv`]: who holds which page of keys and values; [`KvType`]: what a page holds;
//! * [`cpu`], `cuda` and `candle`: the backends.
//!
//! Users of a loaded model see [`Runtime`], which hides the backend.

mod adapter;
pub mod backend;
#[cfg(feature = "candle")]
pub mod candle;
mod classifier;
mod config;
pub mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
pub mod decoder;
mod device;
mod error;
mod experts;
mod footprint;
pub mod kv;
mod kv_type;
mod runtime;
mod squares;
pub mod weights;

pub use adapter::{Adapted, LowRank, adapter_bytes};
pub use backend::Backend;
pub use classifier::Classifier;
pub use config::{
    ARCHITECTURES, Activation, AltUp, Config, Experts, Gating, KvShape, Latent, Parallel, QkNorm, Recurrent,
    RecurrentKind, Rope, SlidingWindow, Xielu, Yarn,
};
pub use device::{Device, DeviceMemory, Resolved};
pub use error::ModelError;
pub use footprint::{Footprint, Load};
pub use kv::{PAGE_TOKENS, PagePool, pages_of};
pub use kv_type::KvType;
#[cfg(feature = "cuda")]
pub use moli_cuda::{CudaError, DeviceInfo, Peak, PeakSample, devices, usable};
pub use runtime::{
    BackendKind, Batch, Computed, LoadOptions, MAX_OUTPUTS, Runtime, StateSlots, load, load_adapted,
    load_observed,
};
pub use squares::{ActivationSquares, Squares};
