//! Reading GGUF. The format: <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>.

use std::path::{Path, PathBuf};

use crate::cursor::{Cursor, check_name};
use crate::{
    Bytes, DEFAULT_ALIGNMENT, FileKind, FormatError, Metadata, ReadMode, TensorType, Value, huggingface,
    kind, split,
};

/// Dimensions of a tensor, at most.
pub const MAX_DIMENSIONS: usize = 4;

/// Metadata entries of one file, at most. Real files have about a hundred. In memory an entry is larger than the
/// smallest entry in a file, and so is a tensor; these two limits keep the difference to a few megabytes.
const MAX_ENTRIES: u64 = 1 << 16;
/// Tensors of one file, at most. Real files have some thousands.
const MAX_TENSORS: u64 = 1 << 16;
/// Bytes of a key, at most, as the format says.
pub(crate) const MAX_KEY: u64 = 65_535;
/// Bytes of a tensor's name, at most. The format says 64, which some writers exceed.
pub(crate) const MAX_NAME: u64 = 1024;
/// Alignment of tensor data in bytes, at most.
const MAX_ALIGNMENT: u32 = 1 << 20;
/// The least bytes of an entry: a key of one character, a type and a value of one byte.
const LEAST_ENTRY: u64 = 8 + 1 + 4 + 1;
/// The least bytes of a tensor's description: a name of one character, no dimensions, a type and an offset.
const LEAST_TENSOR: u64 = 8 + 1 + 4 + 4 + 8;

pub(crate) const MAGIC: [u8; 4] = *b"GGUF";
const KEY: &str = "metadata key";
const NAME: &str = "tensor name";

/// A tensor of a file.
#[derive(Debug, Clone, PartialEq)]
pub struct Tensor {
    /// Its name.
    pub name: String,
    /// How its elements are stored.
    pub ttype: TensorType,
    /// 1 to 4 dimensions, none of them zero. `dims[0]` is the contiguous one, a whole number of blocks.
    pub dims: Vec<u64>,
    /// Exactly the bytes that type and dimensions need.
    pub data: Bytes,
}

impl Tensor {
    /// Elements of a row: `dims[0]`.
    pub fn cols(&self) -> usize {
        self.dims.first().map_or(1, |&cols| usize::try_from(cols).unwrap_or(usize::MAX))
    }

    /// Number of rows: the product of all dimensions but the first.
    pub fn rows(&self) -> usize {
        self.dims.iter().skip(1).fold(1, |rows, &dim| {
            // The product of a tensor that was read fits; one that was made by hand saturates.
            rows.saturating_mul(usize::try_from(dim).unwrap_or(usize::MAX))
        })
    }

    /// Number of elements.
    pub fn elements(&self) -> usize {
        self.rows().saturating_mul(self.cols())
    }
}

/// An open GGUF model: one file, or all the parts of a split one.
#[derive(Debug, Clone)]
pub struct Gguf {
    pub(crate) version: u32,
    pub(crate) metadata: Metadata,
    pub(crate) tensors: Vec<Tensor>,
    /// Indices of `tensors` by rising name.
    pub(crate) sorted: Box<[u32]>,
    pub(crate) paths: Vec<PathBuf>,
    pub(crate) file_bytes: u64,
    pub(crate) unpacked_bytes: u64,
    /// Of the files, what was unpacked and is not read again.
    pub(crate) released_bytes: u64,
}

impl Gguf {
    /// Opens a model and checks its whole header.
    ///
    /// If the name ends in `-00001-of-0000N.gguf`, with any part's number, all the parts are opened: their tensors are
    /// joined, and the metadata is that of the first part.
    ///
    /// A folder with a `config.json`, or that file or the safetensors in it, is opened as the model that a converter would
    /// make of it: with the keys and names of GGUF, and the weights where they are.
    ///
    /// # Errors
    /// A variant of [`FormatError`] for each thing that can be wrong with the file.
    pub fn open(path: &Path, mode: ReadMode) -> Result<Self, FormatError> {
        match huggingface::folder_of(path) {
            Some(folder) => huggingface::open(&folder, mode),
            None => split::open(path, mode),
        }
    }

    /// A model that is in memory already. A part of a split model is refused, as its other parts can't be found.
    ///
    /// # Errors
    /// As for [`open`](Self::open).
    pub fn from_bytes(bytes: &Bytes) -> Result<Self, FormatError> {
        let part = Self::parse(bytes)?;
        split::refuse_part(&part.metadata)?;
        Ok(part)
    }

    /// The same model with other weights, by tensor: of any type, in exactly the bytes that type and dimensions need.
    ///
    /// # Errors
    /// What `weights` says; [`FormatError::DataLength`] and [`FormatError::PartialBlock`] for weights of another size.
    pub fn with_weights<E: From<FormatError>>(
        &self,
        mut weights: impl FnMut(&Tensor) -> Result<(TensorType, Bytes), E>,
    ) -> Result<Self, E> {
        let mut file_bytes = 0;
        let tensors = self.tensors.iter().map(|tensor| -> Result<Tensor, E> {
            let (ttype, data) = weights(tensor)?;
            let expected = tensor_bytes(&tensor.name, ttype, &tensor.dims)?;
            let (name, actual) = (tensor.name.clone(), data.len() as u64);
            if actual != expected {
                return Err(FormatError::DataLength { tensor: name, expected, actual }.into());
            }
            file_bytes += actual;
            Ok(Tensor { name, ttype, dims: tensor.dims.clone(), data })
        });
        let tensors = tensors.collect::<Result<Vec<_>, E>>()?;
        Ok(Self { tensors, file_bytes, unpacked_bytes: 0, released_bytes: 0, ..self.clone() })
    }

    /// Key-value pairs.
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// The tensors, in the order of the file.
    pub fn tensors(&self) -> impl ExactSizeIterator<Item = &Tensor> {
        self.tensors.iter()
    }

    /// The tensor of this name.
    pub fn tensor(&self, name: &str) -> Option<&Tensor> {
        let found = self.sorted.binary_search_by(|&index| {
            self.tensors.get(index as usize).map_or("", |tensor| tensor.name.as_str()).cmp(name)
        });
        let &index = self.sorted.get(found.ok()?)?;
        self.tensors.get(index as usize)
    }

    /// The format's version: 2 or 3.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// The files: one, or the parts in order. None for a model that was in memory.
    pub fn paths(&self) -> &[PathBuf] {
        &self.paths
    }

    /// Bytes of all the files together.
    pub fn file_bytes(&self) -> u64 {
        self.file_bytes
    }

    /// Bytes that its weights take in memory: those of its files, but with what was unpacked in the place of what was packed.
    pub fn weight_bytes(&self) -> u64 {
        self.file_bytes.saturating_sub(self.released_bytes).saturating_add(self.unpacked_bytes)
    }

    /// Bytes of weights that a folder has in a packed form, and that were unpacked into memory when it was opened.
    pub fn unpacked_bytes(&self) -> u64 {
        self.unpacked_bytes
    }

    /// Reads one file, whatever its `split.*` keys say.
    pub(crate) fn parse(bytes: &Bytes) -> Result<Self, FormatError> {
        let mut cursor = Cursor::new(bytes);
        let version = read_version(&mut cursor)?;
        let tensor_count = cursor.u64(&"the number of tensors")?;
        let entry_count = cursor.u64(&"the number of metadata entries")?;
        let room = cursor.remaining();
        check_count("metadata entries", entry_count, (room / LEAST_ENTRY).min(MAX_ENTRIES))?;
        check_count("tensors", tensor_count, (room / LEAST_TENSOR).min(MAX_TENSORS))?;

        let metadata = read_metadata(&mut cursor, entry_count)?;
        let alignment = u64::from(alignment(&metadata)?);
        let room = cursor.remaining();
        check_count("tensors", tensor_count, (room / LEAST_TENSOR).min(MAX_TENSORS))?;
        let mut infos = Vec::new();
        for _ in 0..tensor_count {
            infos.push(Info::read(&mut cursor)?);
        }
        let sorted = sort_names(infos.len(), |index| &infos[index].name)
            .map_err(|tensor| FormatError::DuplicateTensor { tensor })?;
        // A file without tensors may end without padding, so its data section may begin past its end.
        let data_start = (cursor.position() as u64).next_multiple_of(alignment).min(bytes.len() as u64);
        check_overlaps(&infos, alignment)?;
        let tensors = infos
            .into_iter()
            .map(|info| info.into_tensor(bytes, data_start))
            .collect::<Result<Vec<_>, _>>()?;
        Ok(Self {
            version,
            metadata,
            tensors,
            sorted,
            paths: Vec::new(),
            file_bytes: bytes.len() as u64,
            unpacked_bytes: 0,
            released_bytes: 0,
        })
    }
}

/// Magic and version, with a word about what the file is if it isn't this.
fn read_version(cursor: &mut Cursor<'_>) -> Result<u32, FormatError> {
    let head = cursor.rest();
    let is_gguf = head.get(..4).map_or_else(|| MAGIC.starts_with(head), |magic| magic == MAGIC);
    if !is_gguf {
        return Err(FormatError::WrongKind { wanted: "GGUF", kind: kind::sniff(head) });
    }
    cursor.take(4, &"the magic number")?;
    let version = cursor.u32(&"the version")?;
    match version {
        2 | 3 => Ok(version),
        _ if kind::sniff(head) == FileKind::GgufBigEndian => {
            Err(FormatError::BigEndian { version: version.swap_bytes() })
        }
        _ => Err(FormatError::UnsupportedVersion { version }),
    }
}

fn check_count(what: &'static str, count: u64, limit: u64) -> Result<(), FormatError> {
    if count > limit { Err(FormatError::TooMany { what, count, limit }) } else { Ok(()) }
}

fn read_metadata(cursor: &mut Cursor<'_>, count: u64) -> Result<Metadata, FormatError> {
    // Grows as entries are found: the count is only a claim.
    let mut entries = Vec::new();
    for _ in 0..count {
        let key = cursor.name(KEY, MAX_KEY)?;
        let id = cursor.u32(&format_args!("the type of {}", crate::error::shown(key)))?;
        entries.push((key.to_string(), Value::parse(cursor, key, id)?));
    }
    Metadata::new(entries)
}

/// `general.alignment`, or the default, in bytes.
pub(crate) fn alignment(metadata: &Metadata) -> Result<u32, FormatError> {
    const ALIGNMENT: &str = "general.alignment";
    match metadata.get(ALIGNMENT) {
        None => Ok(DEFAULT_ALIGNMENT),
        Some(&Value::U32(value)) if value.is_power_of_two() && (8..=MAX_ALIGNMENT).contains(&value) => {
            Ok(value)
        }
        Some(&Value::U32(value)) => {
            Err(FormatError::BadAlignment { value: value.into(), limit: MAX_ALIGNMENT.into() })
        }
        Some(other) => Err(FormatError::WrongType {
            key: ALIGNMENT.to_string(),
            expected: "u32",
            actual: other.type_name(),
        }),
    }
}

/// A tensor's description, checked in itself.
struct Info {
    name: String,
    ttype: TensorType,
    dims: Vec<u64>,
    /// From the start of the data section.
    offset: u64,
    bytes: u64,
}

impl Info {
    fn read(cursor: &mut Cursor<'_>) -> Result<Self, FormatError> {
        let name = cursor.name(NAME, MAX_NAME)?;
        let what = &format_args!("the description of tensor {}", crate::error::shown(name));
        let count = cursor.u32(what)?;
        if count as usize > MAX_DIMENSIONS {
            return Err(FormatError::TooManyDimensions {
                tensor: name.to_string(),
                actual: count.into(),
                limit: MAX_DIMENSIONS as u64,
            });
        }
        let mut dims = Vec::with_capacity((count as usize).max(1));
        for _ in 0..count {
            dims.push(cursor.u64(what)?);
        }
        if dims.is_empty() {
            // A scalar, as array libraries write it.
            dims.push(1);
        }
        let id = cursor.u32(what)?;
        let ttype = TensorType::from_id(id)
            .ok_or_else(|| FormatError::UnknownTensorType { tensor: name.to_string(), id })?;
        let offset = cursor.u64(what)?;
        let bytes = tensor_bytes(name, ttype, &dims)?;
        Ok(Self { name: name.to_string(), ttype, dims, offset, bytes })
    }

    /// Finds the data in the file.
    fn into_tensor(self, bytes: &Bytes, data_start: u64) -> Result<Tensor, FormatError> {
        let available = bytes.len() as u64 - data_start;
        let inside = self.offset.checked_add(self.bytes).is_some_and(|end| end <= available);
        let start = (data_start.saturating_add(self.offset)) as usize;
        let data = if inside { bytes.slice(start..start + self.bytes as usize) } else { None };
        match data {
            Some(data) => Ok(Tensor { name: self.name, ttype: self.ttype, dims: self.dims, data }),
            None => Err(FormatError::TensorOutOfBounds {
                tensor: self.name,
                offset: self.offset,
                bytes: self.bytes,
                available,
            }),
        }
    }
}

/// Bytes that a tensor of this type and shape takes.
pub(crate) fn tensor_bytes(name: &str, ttype: TensorType, dims: &[u64]) -> Result<u64, FormatError> {
    let tensor = || name.to_string();
    if dims.contains(&0) {
        return Err(FormatError::ZeroDimension { tensor: tensor(), dims: dims.to_vec() });
    }
    let overflow = || FormatError::DimensionOverflow { tensor: tensor(), dims: dims.to_vec() };
    let elements = dims.iter().try_fold(1_u64, |product, &dim| product.checked_mul(dim));
    let elements = elements.filter(|&count| isize::try_from(count).is_ok()).ok_or_else(overflow)?;
    let (cols, block_len) = (dims.first().copied().unwrap_or(1), ttype.block_len() as u64);
    if !cols.is_multiple_of(block_len) {
        return Err(FormatError::PartialBlock { tensor: tensor(), ttype: ttype.name(), cols, block_len });
    }
    (elements / block_len).checked_mul(ttype.block_bytes() as u64).ok_or_else(overflow)
}

/// No tensor begins off the alignment or inside another.
fn check_overlaps(infos: &[Info], alignment: u64) -> Result<(), FormatError> {
    for info in infos {
        if !info.offset.is_multiple_of(alignment) {
            return Err(FormatError::MisalignedTensor {
                tensor: info.name.clone(),
                offset: info.offset,
                alignment,
            });
        }
    }
    let mut order: Vec<&Info> = infos.iter().collect();
    order.sort_unstable_by_key(|info| info.offset);
    for (first, second) in order.iter().zip(order.iter().skip(1)) {
        // An end that overflows is out of bounds, which is said later.
        if first.offset.checked_add(first.bytes).is_some_and(|end| end > second.offset) {
            return Err(FormatError::OverlappingTensors {
                first: first.name.clone(),
                second: second.name.clone(),
            });
        }
    }
    Ok(())
}

/// The indices of tensors by rising name; an error if a name occurs twice.
pub(crate) fn sort_tensors(tensors: &[Tensor]) -> Result<Box<[u32]>, FormatError> {
    sort_names(tensors.len(), |index| &tensors[index].name)
        .map_err(|tensor| FormatError::DuplicateTensor { tensor })
}

/// The indices 0 to `len - 1` by rising name, or the name that occurs twice. This takes 4 bytes an entry, copies no
/// names, and unlike a hash table has no slow inputs.
pub(crate) fn sort_names<'a>(len: usize, name: impl Fn(usize) -> &'a str) -> Result<Box<[u32]>, String> {
    let mut sorted: Box<[u32]> = (0..u32::try_from(len).unwrap_or(u32::MAX)).collect();
    sorted.sort_unstable_by_key(|&index| name(index as usize));
    for (&a, &b) in sorted.iter().zip(sorted.iter().skip(1)) {
        if name(a as usize) == name(b as usize) {
            return Err(name(a as usize).to_string());
        }
    }
    Ok(sorted)
}

/// What the writer asks of a metadata key.
pub(crate) fn check_key(key: &str) -> Result<(), FormatError> {
    check_name(KEY, key, MAX_KEY)
}

/// What the writer asks of a tensor's name.
pub(crate) fn check_tensor_name(name: &str) -> Result<(), FormatError> {
    check_name(NAME, name, MAX_NAME)
}
