//! A model as a GGUF file.

use std::io::{self, Write};
use std::sync::Arc;

use moli_format::{Gguf, GgufWriter, TensorType};

use crate::elements::Recoder;
use crate::{ConvertError, Options, Output, Portable, PortableTensor, Report, Watch};

const FILE_TYPE: &str = "general.file_type";

/// Writes a model, a folder or a file of either kind, as one GGUF file.
///
/// # Errors
/// What can't be said in GGUF, by its name; whatever keeps the file from being written; [`ConvertError::Cancelled`]. Then there is
/// nothing new under the output's path or beside it.
pub fn to_gguf(
    model: &Gguf,
    output: &Output,
    options: &Options,
    watch: Arc<Watch>,
) -> Result<Report, ConvertError> {
    let portable = if options.tokenizer { Portable::new(model) } else { Portable::without_tokenizer(model) }?;
    let mut file = GgufWriter::new();
    let dtype = options.dtype.map(Into::into);
    let ours = file_type(&portable.tensors, dtype);
    let known = portable.entries.iter().any(|(key, _)| key == FILE_TYPE) && dtype.is_none();
    for (key, value) in portable.entries.into_iter().filter(|(key, _)| known || key != FILE_TYPE) {
        file.meta(key, value);
    }
    if let Some(number) = ours.filter(|_| !known) {
        file.meta(FILE_TYPE, number);
    }
    let mut report = Report { tensors: portable.tensors.len(), bytes: 0, notes: portable.notes };
    for tensor in portable.tensors {
        let to = dtype.filter(|_| tensor.is_matrix()).unwrap_or(tensor.ttype);
        let watch = Arc::clone(&watch);
        file.tensor_from(tensor.name.clone(), to, tensor.dims.clone(), move |out| {
            write(&tensor, to, out, &*watch)
        });
    }
    report.bytes = file.file_bytes()?;
    output.write(&file)?;
    Ok(report)
}

/// Writes a tensor in a type.
fn write(tensor: &PortableTensor, to: TensorType, out: &mut dyn Write, watch: &Watch) -> io::Result<()> {
    let mut recoder = Recoder::new(to, 0.0);
    for index in 0..tensor.rows() {
        let row = tensor.row(index);
        if recoder.keeps(tensor.ttype) {
            out.write_all(row)?;
        } else {
            out.write_all(recoder.row(&tensor.name, tensor.ttype, row).map_err(io::Error::other)?)?;
        }
        if !watch(row.len() as u64) {
            return Err(io::Error::other(ConvertError::Cancelled));
        }
    }
    Ok(())
}

/// The number that the convention has for a file most of whose elements are of a float type.
fn file_type(tensors: &[PortableTensor], dtype: Option<TensorType>) -> Option<u32> {
    let largest = tensors.iter().filter(|tensor| tensor.is_matrix()).max_by_key(|tensor| tensor.rows());
    match dtype.or(largest.map(|tensor| tensor.ttype))? {
        TensorType::F32 => Some(0),
        TensorType::F16 => Some(1),
        TensorType::BF16 => Some(32),
        _ => None,
    }
}
