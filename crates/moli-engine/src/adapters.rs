//! LoRA adapters by name: loaded with a model, chosen for each session or answer.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use moli_format::{Adapter, Gguf, LowRank, ReadMode};
use moli_model::Adapted;
use sha2::{Digest as _, Sha256};

use crate::EngineError;
use crate::fingerprint::Digest;

/// An adapter that is loaded with a model.
#[derive(Debug, Clone, PartialEq)]
pub struct AdapterFile {
    /// What sessions choose it by.
    pub name: String,
    /// A GGUF file, or a folder of `peft`'s.
    pub path: PathBuf,
    /// What it is scaled by for those who choose nothing; 0: it is for those who choose it.
    pub scale: f32,
}

/// An adapter that is chosen, and how strongly it acts.
#[derive(Debug, Clone, PartialEq)]
pub struct AdapterScale {
    /// Its name.
    pub name: String,
    /// What it is multiplied by: finite and at least 0. 1: as it was trained; 0: as if it had not been chosen.
    pub scale: f32,
}

/// The number of no adapter, in the prefix cache and in saved sessions.
pub(crate) const NO_ADAPTER: u64 = 0;

/// What is chosen for a timeline.
#[derive(Debug, Clone)]
pub(crate) struct Chosen {
    /// By rising number, none of them scaled by 0.
    pub(crate) list: Arc<[Adapted]>,
    /// What tells keys and values that were computed with these from others: of the adapters' contents, in their order, and
    /// their scales. [`NO_ADAPTER`] where there are none.
    pub(crate) key: u64,
}

impl Default for Chosen {
    fn default() -> Self {
        Self { list: Arc::from([]), key: NO_ADAPTER }
    }
}

/// The adapters of a model, by their numbers.
#[derive(Debug, Default)]
pub(crate) struct Known {
    names: Vec<String>,
    digests: Vec<Digest>,
    /// What those have who choose nothing.
    defaults: Vec<AdapterScale>,
}

impl Known {
    /// Opens adapters for a model.
    pub(crate) fn open(
        files: &[AdapterFile],
        base: &Gguf,
        mode: ReadMode,
    ) -> Result<(Self, Vec<Adapter>), EngineError> {
        let mut known = Self::default();
        let mut adapters = Vec::new();
        for AdapterFile { name, path, scale } in files {
            if known.names.contains(name) {
                return Err(EngineError::DuplicateAdapter { name: name.clone() });
            }
            let adapter = Adapter::open(path, base, mode).map_err(|source| failed(path, source.into()))?;
            known.names.push(name.clone());
            known.digests.push(digest(&adapter));
            adapters.push(adapter);
            if *scale != 0.0 {
                known.defaults.push(AdapterScale { name: name.clone(), scale: *scale });
            }
        }
        known.choose(&known.defaults)?;
        Ok((known, adapters))
    }

    pub(crate) fn names(&self) -> &[String] {
        &self.names
    }

    pub(crate) fn defaults(&self) -> &[AdapterScale] {
        &self.defaults
    }

    /// What they have who choose nothing.
    pub(crate) fn unchosen(&self) -> Chosen {
        // It could be chosen when the model was loaded.
        self.choose(&self.defaults).unwrap_or_default()
    }

    /// What a caller wants of them.
    pub(crate) fn choose(&self, wanted: &[AdapterScale]) -> Result<Chosen, EngineError> {
        let mut list = Vec::new();
        for (place, AdapterScale { name, scale }) in wanted.iter().enumerate() {
            let Some(number) = self.names.iter().position(|known| known == name) else {
                return Err(EngineError::UnknownAdapter { name: name.clone(), known: self.names.join(", ") });
            };
            if wanted.iter().take(place).any(|other| other.name == *name) {
                return Err(EngineError::parameter(
                    "adapters",
                    format!("{name:?} twice"),
                    "each of them once",
                ));
            }
            if !(scale.is_finite() && *scale >= 0.0) {
                let value = format!("{name:?} with the scale {scale}");
                return Err(EngineError::parameter(
                    "adapters",
                    value,
                    "scaled by a finite number of at least 0",
                ));
            }
            if *scale > 0.0 {
                list.push(Adapted { adapter: number as u32, scale: *scale });
            }
        }
        list.sort_unstable_by_key(|adapted| adapted.adapter);
        Ok(Chosen { key: self.key(&list), list: list.into() })
    }

    fn key(&self, list: &[Adapted]) -> u64 {
        if list.is_empty() {
            return NO_ADAPTER;
        }
        let mut hash = Sha256::new();
        for Adapted { adapter, scale } in list {
            hash.update(self.digests.get(*adapter as usize).copied().unwrap_or_default());
            hash.update(scale.to_bits().to_le_bytes());
        }
        let digest: Digest = hash.finalize().into();
        let first = digest.first_chunk().copied().unwrap_or_default();
        u64::from_le_bytes(first).max(NO_ADAPTER + 1)
    }
}

/// The sha256 of all that an adapter computes with: two that were trained alike differ in the least of it.
fn digest(adapter: &Adapter) -> Digest {
    let mut hash = Sha256::new();
    for LowRank { name, a, b, factor } in adapter.products() {
        hash.update((name.len() as u64).to_le_bytes());
        hash.update(name);
        hash.update(factor.to_bits().to_le_bytes());
        for tensor in [a, b] {
            hash.update(tensor.ttype.id().to_le_bytes());
            hash.update((tensor.data.len() as u64).to_le_bytes());
            hash.update(&*tensor.data);
        }
    }
    hash.finalize().into()
}

fn failed(path: &Path, source: EngineError) -> EngineError {
    EngineError::Adapter { path: path.to_owned(), source: Box::new(source) }
}
