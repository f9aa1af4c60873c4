//! The weights of a folder: one safetensors file, or several with an index.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use serde::Deserialize;

use super::data::Source;
use super::{HuggingFaceError, fields};
use crate::safetensors::Safetensors;
use crate::{Bytes, FormatError, ReadMode};

/// Bytes of an index, at most. That of 50,000 tensors has about 5 MB.
const MAX_INDEX: u64 = 64 << 20;
/// Files that an index may name. Real ones name some hundreds.
const MAX_SHARDS: u64 = 4096;

const SINGLE: &str = "model.safetensors";
pub(super) const INDEX: &str = "model.safetensors.index.json";

/// All tensors by name, and the files that they are in.
#[derive(Default)]
pub(super) struct Shards {
    pub(super) tensors: BTreeMap<String, Placed>,
    pub(super) paths: Vec<PathBuf>,
    pub(super) file_bytes: u64,
}

/// A tensor, and the number of its file.
pub(super) struct Placed {
    pub(super) tensor: Source,
    pub(super) shard: usize,
}

#[derive(Deserialize)]
struct Index {
    /// The file's name for each tensor.
    weight_map: BTreeMap<String, String>,
}

impl Shards {
    /// Opens what the index names, or else `model.safetensors`.
    pub(super) fn open(folder: &Path, mode: ReadMode) -> Result<Self, FormatError> {
        let mut shards = Self::default();
        let Some(index) = fields::json::<Index>(&folder.join(INDEX), MAX_INDEX, mode)? else {
            let path = folder.join(SINGLE);
            if !path.exists() {
                return Err(HuggingFaceError::NoWeights { folder: folder.to_path_buf() }.into());
            }
            shards.add(path, mode)?;
            return Ok(shards);
        };
        let mut names: Vec<&String> = index.weight_map.values().collect();
        names.sort_unstable();
        names.dedup();
        if let Some(name) = names.iter().find(|name| !is_file_name(name)) {
            return Err(HuggingFaceError::OutsideFolder { name: (*name).clone() }.into());
        }
        let count = names.len() as u64;
        if count > MAX_SHARDS {
            return Err(FormatError::TooMany { what: "files of weights", count, limit: MAX_SHARDS });
        }
        for name in &names {
            shards.add(folder.join(name), mode)?;
        }
        for (tensor, shard) in &index.weight_map {
            let here = names.binary_search(&shard).ok();
            if shards.tensors.get(tensor).is_none_or(|placed| Some(placed.shard) != here) {
                let (tensor, shard) = (tensor.clone(), shard.clone());
                return Err(HuggingFaceError::NotInShard { tensor, shard }.into());
            }
        }
        Ok(shards)
    }

    fn add(&mut self, path: PathBuf, mode: ReadMode) -> Result<(), FormatError> {
        let bytes = match Bytes::open(&path, mode) {
            Err(FormatError::NotFound { path }) => return Err(HuggingFaceError::MissingShard { path }.into()),
            other => other?,
        };
        let file = Safetensors::from_bytes(&bytes)
            .map_err(|source| FormatError::Part { path: path.clone(), source: Box::new(source) })?;
        self.file_bytes = self.file_bytes.saturating_add(bytes.len() as u64);
        let shard = self.paths.len();
        for tensor in file.tensors() {
            let placed = Placed { tensor: tensor.clone().into(), shard };
            if let Some(other) = self.tensors.insert(tensor.name.clone(), placed) {
                return Err(HuggingFaceError::InTwoShards {
                    tensor: tensor.name.clone(),
                    first: self.paths.get(other.shard).cloned().unwrap_or_default(),
                    second: path,
                }
                .into());
            }
        }
        self.paths.push(path);
        Ok(())
    }
}

/// Whether a name can only be that of a file in the folder.
fn is_file_name(name: &str) -> bool {
    let mut parts = Path::new(name).components();
    matches!((parts.next(), parts.next()), (Some(Component::Normal(part)), None) if part == name)
        && !name.contains('\\')
}
