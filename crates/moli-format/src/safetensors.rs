//! Reading safetensors through the crate of that name, with the header checked before the crate sees it.
//!
//! The format is 8 bytes of header length, a JSON header with the type, shape and range of each tensor, and the data.
//! The header is measured first (the crate adds lengths that the file gives), then its ranges are checked for order,
//! bounds and overlap, so that each fault has its own error with the tensor's name; only then is the file handed to
//! [`safetensors`].

use std::collections::HashMap;
use std::fmt;
use std::path::Path;

use safetensors::SafeTensors;
use serde::Deserialize;
use serde::de::{IgnoredAny, MapAccess, Visitor};

use crate::{Bytes, FileKind, FormatError, ReadMode, kind};

pub use safetensors::Dtype;

/// Bytes of a header, at most: the limit of the safetensors crate.
pub(crate) const MAX_HEADER: u64 = 100_000_000;

/// A tensor of a safetensors file.
#[derive(Debug, Clone)]
pub struct SafeTensor {
    /// Its name.
    pub name: String,
    /// How its elements are stored.
    pub dtype: Dtype,
    /// Its dimensions; the last one is the contiguous one, the opposite of GGUF. None for a scalar, and a dimension may
    /// be zero.
    pub shape: Vec<usize>,
    /// Exactly the bytes that type and shape need.
    pub data: Bytes,
}

/// An open safetensors file.
#[derive(Debug, Clone)]
pub struct Safetensors {
    metadata: HashMap<String, String>,
    /// By rising name.
    tensors: Vec<SafeTensor>,
}

impl Safetensors {
    /// Opens a file and checks its whole header.
    ///
    /// # Errors
    /// A variant of [`FormatError`] for each thing that can be wrong with the file.
    pub fn open(path: &Path, mode: ReadMode) -> Result<Self, FormatError> {
        Self::from_bytes(&Bytes::open(path, mode)?)
    }

    /// A file that is in memory already.
    ///
    /// # Errors
    /// As for [`open`](Self::open).
    pub fn from_bytes(bytes: &Bytes) -> Result<Self, FormatError> {
        let data_start = check(bytes)?;
        let invalid =
            |error: safetensors::SafeTensorError| FormatError::InvalidHeader { reason: error.to_string() };
        let (_, header) = SafeTensors::read_metadata(bytes).map_err(invalid)?;
        let mut tensors = Vec::new();
        for (name, info) in header.tensors() {
            let (start, end) = info.data_offsets;
            let data = data_start.checked_add(start).zip(data_start.checked_add(end));
            let data = data.and_then(|(start, end)| bytes.slice(start..end));
            let data =
                data.ok_or_else(|| FormatError::InvalidHeader { reason: "a range out of bounds".into() })?;
            tensors.push(SafeTensor { name, dtype: info.dtype, shape: info.shape.clone(), data });
        }
        tensors.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        Ok(Self { metadata: header.metadata().clone().unwrap_or_default(), tensors })
    }

    /// The free-form pairs under `__metadata__`.
    pub fn metadata(&self) -> &HashMap<String, String> {
        &self.metadata
    }

    /// The tensors by rising name.
    pub fn tensors(&self) -> impl ExactSizeIterator<Item = &SafeTensor> {
        self.tensors.iter()
    }

    /// The tensor of this name.
    pub fn tensor(&self, name: &str) -> Option<&SafeTensor> {
        let found = self.tensors.binary_search_by(|tensor| tensor.name.as_str().cmp(name)).ok()?;
        self.tensors.get(found)
    }
}

/// What one entry of the header says.
#[derive(Deserialize)]
struct Entry {
    dtype: Dtype,
    shape: Vec<u64>,
    data_offsets: [u64; 2],
}

/// The header's entries in its order, with double names kept.
struct Header(Vec<(String, Entry)>);

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Header;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
                let mut entries = Vec::new();
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        map.next_value::<IgnoredAny>()?;
                    } else {
                        entries.push((name, map.next_value()?));
                    }
                }
                Ok(Header(entries))
            }
        }
        deserializer.deserialize_map(Entries)
    }
}

/// Checks the header and gives the place where the data begins.
fn check(bytes: &Bytes) -> Result<usize, FormatError> {
    let file = bytes.as_slice();
    let Some((length, rest)) = file.split_first_chunk::<8>() else {
        return Err(FormatError::Truncated {
            what: "the header's length".to_string(),
            offset: 0,
            needed: 8,
            available: file.len() as u64,
        });
    };
    let other = kind::sniff(file);
    if !matches!(other, FileKind::Safetensors | FileKind::Unknown | FileKind::Text) {
        return Err(FormatError::WrongKind { wanted: "safetensors", kind: other });
    }
    let length = u64::from_le_bytes(*length);
    let limit = MAX_HEADER.min(rest.len() as u64);
    if length > limit {
        return Err(FormatError::HeaderTooLarge { length, limit });
    }
    // Not more than the file has, so it fits.
    let (header, data) = rest.split_at_checked(length as usize).unwrap_or((rest, &[]));
    let Header(mut entries) = serde_json::from_slice(header)
        .map_err(|error| FormatError::InvalidHeader { reason: error.to_string() })?;

    let mut names: Vec<&str> = entries.iter().map(|(name, _)| name.as_str()).collect();
    names.sort_unstable();
    if let Some((name, _)) = names.iter().zip(names.iter().skip(1)).find(|(a, b)| a == b) {
        return Err(FormatError::DuplicateTensor { tensor: (*name).to_string() });
    }
    for (name, entry) in &entries {
        check_entry(name, entry, data.len() as u64)?;
    }
    entries.sort_unstable_by_key(|(_, entry)| entry.data_offsets);
    let mut before = ("", 0);
    for (name, entry) in &entries {
        let [start, end] = entry.data_offsets;
        if start < before.1 {
            return Err(FormatError::OverlappingTensors {
                first: before.0.to_string(),
                second: name.clone(),
            });
        }
        if start > before.1 {
            return Err(FormatError::UnusedBytes { offset: before.1, bytes: start - before.1 });
        }
        before = (name, end);
    }
    let unused = data.len() as u64 - before.1;
    if unused > 0 {
        return Err(FormatError::UnusedBytes { offset: before.1, bytes: unused });
    }
    Ok(8 + header.len())
}

/// A name, a range inside the data, and a shape that needs exactly that range.
fn check_entry(name: &str, entry: &Entry, available: u64) -> Result<(), FormatError> {
    let tensor = || name.to_string();
    if name.contains('\0') {
        return Err(FormatError::NulInName { what: "tensor name", name: tensor() });
    }
    let [start, end] = entry.data_offsets;
    if start > end {
        return Err(FormatError::InvertedRange { tensor: tensor(), start, end });
    }
    if end > available {
        return Err(FormatError::TensorOutOfBounds {
            tensor: tensor(),
            offset: start,
            bytes: end - start,
            available,
        });
    }
    let overflow = || FormatError::DimensionOverflow { tensor: tensor(), dims: entry.shape.clone() };
    let elements = entry.shape.iter().try_fold(1_u64, |product, &dim| product.checked_mul(dim));
    let bits =
        elements.and_then(|count| count.checked_mul(entry.dtype.bitsize() as u64)).ok_or_else(overflow)?;
    let expected = bits.div_ceil(8);
    if expected != end - start {
        return Err(FormatError::DataLength { tensor: tensor(), expected, actual: end - start });
    }
    Ok(())
}
