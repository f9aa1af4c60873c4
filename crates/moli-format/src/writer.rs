//! Writing GGUF.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::Path;

use crate::gguf::{self, MAGIC, MAX_DIMENSIONS};
use crate::{Bytes, FormatError, Metadata, Tensor, TensorType, Value};

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
    tensors: Vec<Tensor>,
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
        self.tensors.push(Tensor { name: name.into(), ttype, dims: dims.into(), data: data.into() });
        self
    }

    /// Writes the file. Nothing is written if it would not be readable.
    ///
    /// # Errors
    /// Everything that a reader refuses, as the same variant; `DataLength` for a tensor with more or fewer bytes than
    /// it needs; `Write` if `out` fails.
    pub fn write(&self, mut out: impl Write) -> Result<(), FormatError> {
        let (header, alignment) = self.header()?;
        let failed = |source| FormatError::Write { source };
        let zeros = vec![0; alignment as usize];
        let mut put = |bytes: &[u8]| {
            let padding = (bytes.len() as u64).next_multiple_of(alignment) - bytes.len() as u64;
            out.write_all(bytes)
                .and_then(|()| out.write_all(zeros.get(..padding as usize).unwrap_or_default()))
        };
        put(&header).map_err(failed)?;
        for tensor in &self.tensors {
            put(&tensor.data).map_err(failed)?;
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
            check_tensor(tensor)?;
            if !names.insert(&tensor.name) {
                return Err(FormatError::DuplicateTensor { tensor: tensor.name.clone() });
            }
            put_str(&tensor.name, &mut out);
            out.extend((tensor.dims.len() as u32).to_le_bytes());
            tensor.dims.iter().for_each(|dim| out.extend(dim.to_le_bytes()));
            out.extend(tensor.ttype.id().to_le_bytes());
            out.extend(offset.to_le_bytes());
            // Each length is that of bytes in memory or mapped, so their sum is far from overflowing.
            offset += (tensor.data.len() as u64).next_multiple_of(alignment);
        }
        Ok((out, alignment))
    }
}

fn check_tensor(tensor: &Tensor) -> Result<(), FormatError> {
    gguf::check_tensor_name(&tensor.name)?;
    if !(1..=MAX_DIMENSIONS).contains(&tensor.dims.len()) {
        return Err(FormatError::TooManyDimensions {
            tensor: tensor.name.clone(),
            actual: tensor.dims.len() as u64,
            limit: MAX_DIMENSIONS as u64,
        });
    }
    let expected = gguf::tensor_bytes(&tensor.name, tensor.ttype, &tensor.dims)?;
    let actual = tensor.data.len() as u64;
    if actual != expected {
        return Err(FormatError::DataLength { tensor: tensor.name.clone(), expected, actual });
    }
    Ok(())
}

fn put_str(text: &str, out: &mut Vec<u8>) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}
