//! Model files as names, shapes and bytes.
//!
//! This crate reads GGUF (versions 2 and 3, split or whole) and safetensors files, and writes GGUF. It knows how many
//! bytes a tensor of each type takes and nothing about what they mean.
//!
//! - [`Gguf::open`] maps a file, checks all of its header and gives typed [`Metadata`] and [`Tensor`]s whose
//!   [`Bytes`] are ranges of the mapping. Nothing is copied but strings.
//!   Of a Hugging Face folder it makes the same in memory.
//! - [`Adapter::open`] reads a LoRA adapter, in GGUF or as `peft` saves it, for such a model.
//! - [`GgufWriter`] writes such a file.
//! - [`safetensors::Safetensors::open`] does for safetensors what `Gguf::open` does for GGUF.
//! - [`looks_like`] tells from its first bytes what a file is; the errors use it to say what was given instead of a
//!   model.
//!
//! A file is hostile until it has been checked. Every length is compared with the bytes that are left before anything is
//! allocated, every product is checked, nesting and counts have limits, and whatever is wrong is a [`FormatError`] with
//! the name of the thing at fault. No input makes this crate panic.

mod adapter;
mod bytes;
mod cursor;
mod error;
mod gguf;
mod huggingface;
mod kind;
mod mapping;
mod metadata;
pub mod safetensors;
mod split;
mod ttype;
mod value;
mod writer;

pub use adapter::{Adapter, AdapterError, LowRank};
pub use bytes::Bytes;
pub use error::FormatError;
pub use gguf::{Gguf, MAX_DIMENSIONS, Tensor};
pub use huggingface::{FolderTensor, HuggingFaceConfig, HuggingFaceError, HuggingFaceFolder, Rows};
pub use kind::{FileKind, looks_like};
pub use mapping::ReadMode;
pub use metadata::Metadata;
pub use ttype::TensorType;
pub use value::{Array, NestedArray, Scalars, StringArray, Value, ValueType};
pub use writer::GgufWriter;

/// The alignment of tensor data where `general.alignment` is absent, in bytes.
pub const DEFAULT_ALIGNMENT: u32 = 32;
