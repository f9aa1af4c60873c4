//! From a model's name to a verified file: the catalogue, its sources and the cache.
//!
//! [`Hub::resolve`] takes what a person types (a path, a name of the [`Catalogue`], `hf:owner/repo/file`,
//! `modelscope:owner/repo/file`, an address) and gives a file to open. A model that is not in the [`Cache`] yet is
//! fetched from the first source that answers. Whatever the source, a file is written beside the cache, its sha256 is
//! compared with the promised one, it is moved in by a rename, and the manifest that makes it visible is written last.

mod cache;
mod catalogue;
mod config;
mod digest;
mod error;
mod fetch;
mod http;
mod hub;
mod names;
mod progress;
mod sources;
mod wheel;

pub use cache::{Cache, Cached, Manifest, ManifestFile};
pub use catalogue::{Catalogue, Entry, Expect, FileSpec, Licence, Sampling, Source, WheelPart};
pub use config::HubConfig;
pub use digest::Sha256Hex;
pub use error::{HubError, SourceFailure};
pub use hub::{Hub, is_path, resolve};
pub use progress::{Phase, Progress, Quiet};
