//! Writing GGUF.

use std::collections::HashSet;
use std::fmt;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::sync::Arc;

use crate::gguf::{self, MAGIC, MAX_DIMENSIONS};
use crate::{Bytes, FormatError, Metadata, TensorType, Value};

/// Builds a GGUF file of version 3.
///
/// ```
/// use moli_format::{Bytes, Gguf, GgufWriter, TensorType};
///
/// let mut file = Vec::new();
/// GgufWriter::new()
///     .meta("general.architecture", "llama")
///     .meta("llama.block_count", 2_u32)
///     .meta("tokenizer.ggml.tokens", ["a", "b"])
///     .tensor("ones", TensorType::F32, [2, 1], [1.0_f32, 1.0].map(f32::to_le_bytes).as_flattened())
///     .write(&mut file)?;
/// let gguf = Gguf::from_bytes(&Bytes::from_vec(file))?;
/// assert_eq!(gguf.metadata().architecture()?, "llama");
/// assert_eq!(gguf.tensor("ones").map(|tensor| tensor.rows()), Some(1));
/// # Ok::<(), moli_format::FormatError>(())
/// ```
#[derive(Debug, Clone, Default)]
pub struct GgufWriter {
    entries: Vec<(String, Value)>,
    tensors: Vec<Planned>,
}

/// A tensor that will be written.
#[derive(Debug, Clone)]
struct Planned {
    name: String,
    ttype: TensorType,
    dims: Vec<u64>,
    data: Data,
}

/// Where a tensor's bytes come from.
#[derive(Clone)]
enum Data {
    Ready(Bytes),
    /// Made while the file is written.
    Made(Arc<Maker>),
}

type Maker = dyn Fn(&mut dyn Write) -> io::Result<()> + Send + Sync;

impl fmt::Debug for Data {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ready(bytes) => bytes.fmt(f),
            Self::Made(_) => f.write_str("made while it is written"),
        }
    }
}

impl GgufWriter {
    /// A file with nothing in it.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a key. What is wrong with it is said by [`write`](Self::write).
    pub fn meta(&mut self, key: impl Into<String>, value: impl Into<Value>) -> &mut Self {
        self.entries.push((key.into(), value.into()));
        self
    }

    /// Sets the alignment of tensor data in bytes (`general.alignment`), a power of two from 8 on; 32 unless set.
    pub fn alignment(&mut self, alignment: u32) -> &mut Self {
        self.meta("general.alignment", alignment)
    }

    /// Adds a tensor: `dims[0]` is the contiguous dimension, `data` exactly the bytes that type and dimensions need.
    /// What is wrong with it is said by [`write`](Self::write). Borrowed data is copied; [`Bytes`] of another file or
    /// buffer are not.
    pub fn tensor(
        &mut self,
        name: impl Into<String>,
        ttype: TensorType,
        dims: impl Into<Vec<u64>>,
        data: impl Into<Bytes>,
    ) -> &mut Self {
        let data = Data::Ready(data.into());
        self.tensors.push(Planned { name: name.into(), ttype, dims: dims.into(), data });
        self
    }

    /// As [`tensor`](Self::tensor), for data that need not be in memory: `make` writes it when its turn comes, each time
    /// the file is written, in exactly the bytes that type and dimensions need.
    pub fn tensor_from(
        &mut self,
        name: impl Into<String>,
        ttype: TensorType,
        dims: impl Into<Vec<u64>>,
        make: impl Fn(&mut dyn Write) -> io::Result<()> + Send + Sync + 'static,
    ) -> &mut Self {
        let data = Data::Made(Arc::new(make));
        self.tensors.push(Planned { name: name.into(), ttype, dims: dims.into(), data });
        self
    }

    /// Bytes of the file that will be written.
    ///
    /// # Errors
    /// Everything that a reader refuses, as the same variant.
    pub fn file_bytes(&self) -> Result<u64, FormatError> {
        let (header, alignment) = self.header()?;
        // The header's own check has added these up without overflow.
        let padded = |bytes: u64| bytes.next_multiple_of(alignment);
        self.tensors.iter().try_fold(padded(header.len() as u64), |sum, tensor| {
            let end = sum.checked_add(padded(tensor.bytes()?));
            end.ok_or_else(|| FormatError::DimensionOverflow {
                tensor: tensor.name.clone(),
                dims: tensor.dims.clone(),
            })
        })
    }

    /// Writes the file. Nothing is written if it would not be readable, but for what is only known once
    /// [`tensor_from`](Self::tensor_from) has made its data.
    ///
    /// # Errors
    /// Everything that a reader refuses, as the same variant; `DataLength` for a tensor with more or fewer bytes than
    /// it needs; `Write` if `out` fails.
    pub fn write(&self, out: impl Write) -> Result<(), FormatError> {
        let (header, alignment) = self.header()?;
        let failed = |source| FormatError::Write { source };
        let zeros = vec![0; alignment as usize];
        let padding = |written: u64| {
            let missing = written.next_multiple_of(alignment) - written;
            zeros.get(..missing as usize).unwrap_or_default()
        };
        let mut out = Counted { out, bytes: 0 };
        out.write_all(&header).and_then(|()| out.write_all(padding(out.bytes))).map_err(failed)?;
        for tensor in &self.tensors {
            let start = out.bytes;
            match &tensor.data {
                Data::Ready(bytes) => out.write_all(bytes),
                Data::Made(make) => make(&mut out),
            }
            .map_err(failed)?;
            tensor.check_length(out.bytes - start)?;
            out.write_all(padding(out.bytes)).map_err(failed)?;
        }
        out.flush().map_err(failed)
    }

    /// Writes the file beside `path` and renames it when it is whole, so that `path` never holds half a model and a
    /// mapping of what was there before stays valid.
    ///
    /// # Errors
    /// As for [`write`](Self::write).
    pub fn write_file(&self, path: &Path) -> Result<(), FormatError> {
        let failed = |source| FormatError::from_io(path, source);
        let mut name = path.file_name().unwrap_or_default().to_os_string();
        name.push(format!(".{}.part", std::process::id()));
        let part = path.with_file_name(name);
        let written = File::create(&part).map_err(failed).and_then(|file| {
            self.write(BufWriter::new(&file))?;
            file.sync_all().map_err(failed)?;
            fs::rename(&part, path).map_err(failed)
        });
        if written.is_err() {
            // The first error is the one to tell; what is left of the file is of no use.
            let _ = fs::remove_file(&part);
        }
        written
    }

    /// All that comes before the data, and the alignment in bytes.
    fn header(&self) -> Result<(Vec<u8>, u64), FormatError> {
        for (key, _) in &self.entries {
            gguf::check_key(key)?;
        }
        let metadata = Metadata::new(self.entries.clone())?;
        let alignment = u64::from(gguf::alignment(&metadata)?);
        let mut out = Vec::new();
        out.extend(MAGIC);
        out.extend(3_u32.to_le_bytes());
        out.extend((self.tensors.len() as u64).to_le_bytes());
        out.extend((self.entries.len() as u64).to_le_bytes());
        for (key, value) in &self.entries {
            put_str(key, &mut out);
            out.extend(value.value_type().id().to_le_bytes());
            value.encode(&mut out);
        }
        let mut names = HashSet::new();
        let mut offset = 0_u64;
        for tensor in &self.tensors {
            let bytes = tensor.check()?;
            if !names.insert(&tensor.name) {
                return Err(FormatError::DuplicateTensor { tensor: tensor.name.clone() });
            }
            put_str(&tensor.name, &mut out);
            out.extend((tensor.dims.len() as u32).to_le_bytes());
            tensor.dims.iter().for_each(|dim| out.extend(dim.to_le_bytes()));
            out.extend(tensor.ttype.id().to_le_bytes());
            out.extend(offset.to_le_bytes());
            // Lengths of data in memory are far from overflowing; those of data to be made are only claims.
            offset = bytes
                .checked_next_multiple_of(alignment)
                .and_then(|bytes| offset.checked_add(bytes))
                .ok_or_else(|| FormatError::DimensionOverflow {
                    tensor: tensor.name.clone(),
                    dims: tensor.dims.clone(),
                })?;
        }
        Ok((out, alignment))
    }
}

impl Planned {
    /// What a reader would refuse, and the bytes that the tensor needs.
    fn check(&self) -> Result<u64, FormatError> {
        gguf::check_tensor_name(&self.name)?;
        if !(1..=MAX_DIMENSIONS).contains(&self.dims.len()) {
            return Err(FormatError::TooManyDimensions {
                tensor: self.name.clone(),
                actual: self.dims.len() as u64,
                limit: MAX_DIMENSIONS as u64,
            });
        }
        if let Data::Ready(bytes) = &self.data {
            self.check_length(bytes.len() as u64)?;
        }
        self.bytes()
    }

    fn bytes(&self) -> Result<u64, FormatError> {
        gguf::tensor_bytes(&self.name, self.ttype, &self.dims)
    }

    fn check_length(&self, actual: u64) -> Result<(), FormatError> {
        let expected = self.bytes()?;
        if actual == expected {
            Ok(())
        } else {
            Err(FormatError::DataLength { tensor: self.name.clone(), expected, actual })
        }
    }
}

/// Counts what goes through it.
struct Counted<W> {
    out: W,
    bytes: u64,
}

impl<W: Write> Write for Counted<W> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let written = self.out.write(data)?;
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

fn put_str(text: &str, out: &mut Vec<u8>) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}
