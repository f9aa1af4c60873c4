//! A model with adapters merged into its weights: `W + scale * factor * B · A`, in the tensor's own type.
//!
//! One row at a time is unpacked, added to and packed again, so that a model of any size needs little memory. What no adapter touches is
//! copied byte for byte.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::Arc;

use moli_format::{Adapter, Gguf, GgufWriter, LowRank, ReadMode, Tensor, TensorType};
use moli_kernels::{QUANTIZABLE, dequantize, quantize_rows};

use crate::portable::FOLDER;
use crate::{ConvertError, Options, Output, to_folder, to_gguf};

/// The head of models that tie it to the embeddings: merging into it unties it.
const OUTPUT: &str = "output.weight";
const EMBEDDINGS: &str = "token_embd.weight";

/// What was merged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Merged {
    /// Tensors that were added to.
    pub changed: usize,
    /// Those of them that are quantised, by their types: they were rounded to these again.
    pub requantized: BTreeMap<&'static str, usize>,
    /// Whether the head was tied to the embeddings, and is a tensor of its own now.
    pub untied: bool,
    /// Sentences about what other programs do otherwise with this model, or can't do.
    pub notes: Vec<String>,
}

/// Writes a model with adapters merged into it, each scaled by its number: a GGUF file where the output's name ends so, else a
/// Hugging Face folder. Where model and output are not both files, the merged model is a file beside the output before it is
/// converted, and needs the room of one.
///
/// # Errors
/// [`ConvertError::Scale`] for a scale that is negative or no finite number; [`ConvertError::NoQuantizer`] for a tensor of a type that
/// can't be written; what [`to_gguf`] and [`to_folder`] refuse; whatever writing says.
pub fn merge(base: &Gguf, adapters: &[(Adapter, f32)], output: &Output) -> Result<Merged, ConvertError> {
    let is_folder = base.metadata().get(FOLDER).is_some();
    let to_file = output.path().extension().is_some_and(|end| end.eq_ignore_ascii_case("gguf"));
    if to_file && !is_folder {
        return merge_files(base, adapters, output);
    }
    let between = Between::new(output)?;
    let mut merged = merge_files(base, adapters, &between.0)?;
    let model = Gguf::open(between.0.path(), ReadMode::Map)?;
    let convert = if to_file { to_gguf } else { to_folder };
    merged.notes = convert(&model, output, &Options::default(), Arc::new(|_| true))?.notes;
    Ok(merged)
}

/// A file that is gone in the end, however it goes.
struct Between(Output);

impl Between {
    fn new(output: &Output) -> Result<Self, ConvertError> {
        let mut name = output.path().file_name().unwrap_or_default().to_os_string();
        name.push(format!(".{}.merged", std::process::id()));
        let path: PathBuf = output.path().with_file_name(name);
        Ok(Self(Output::new(&path, &[], false)?))
    }
}

impl Drop for Between {
    fn drop(&mut self) {
        let _ = fs::remove_file(self.0.path());
    }
}

/// As [`merge`], in the form in which the model is.
fn merge_files(base: &Gguf, adapters: &[(Adapter, f32)], output: &Output) -> Result<Merged, ConvertError> {
    if let Some(&(_, scale)) = adapters.iter().find(|(_, scale)| !(scale.is_finite() && *scale >= 0.0)) {
        return Err(ConvertError::Scale { scale });
    }
    let untied = base.tensor(OUTPUT).is_none()
        && adapters.iter().any(|(adapter, _)| adapter.product(OUTPUT).is_some());
    let head = base.tensor(EMBEDDINGS).filter(|_| untied);
    let head = head.map(|tensor| Tensor { name: OUTPUT.to_owned(), ..tensor.clone() });
    let mut merged = Merged { changed: 0, requantized: BTreeMap::new(), untied, notes: Vec::new() };
    let mut writer = GgufWriter::new();
    // What a file was a part of says nothing of the whole.
    for (key, value) in base.metadata().iter().filter(|(key, _)| !key.starts_with("split.")) {
        writer.meta(key, value.clone());
    }
    for tensor in base.tensors().chain(&head) {
        let parts = parts_of(tensor, adapters);
        let (name, dims) = (tensor.name.clone(), tensor.dims.clone());
        if parts.is_empty() {
            writer.tensor(name, tensor.ttype, dims, tensor.data.clone());
            continue;
        }
        if !QUANTIZABLE.contains(&tensor.ttype) {
            return Err(ConvertError::NoQuantizer { tensor: name, found: tensor.ttype.name() });
        }
        merged.changed += 1;
        if !matches!(tensor.ttype, TensorType::F32 | TensorType::F16 | TensorType::BF16) {
            *merged.requantized.entry(tensor.ttype.name()).or_default() += 1;
        }
        let base = tensor.clone();
        writer.tensor_from(name, tensor.ttype, dims, move |out| {
            write(&base, &parts, out).map_err(io::Error::other)
        });
    }
    output.write(&writer)?;
    Ok(merged)
}

/// Something that is added to rows of a tensor.
struct Part {
    first_row: usize,
    product: LowRank,
    scale: f32,
}

/// What adapters add to a tensor: to all of it, or to the matrices of a stack of experts.
fn parts_of(tensor: &Tensor, adapters: &[(Adapter, f32)]) -> Vec<Part> {
    let stem = tensor.name.strip_suffix("_exps.weight");
    let experts = stem.and(tensor.dims.get(2)).copied().unwrap_or(0);
    let mut parts = Vec::new();
    for (adapter, scale) in adapters {
        let mut add = |name: &str, first_row: usize| {
            if let Some(product) = adapter.product(name) {
                parts.push(Part { first_row, product: product.clone(), scale: *scale });
            }
        };
        match stem {
            Some(stem) => {
                let rows = tensor.dims.get(1).map_or(0, |&rows| rows as usize);
                (0..experts as usize)
                    .for_each(|expert| add(&format!("{stem}.{expert}.weight"), expert * rows));
            }
            None => add(&tensor.name, 0),
        }
    }
    parts
}

/// Writes a tensor row by row.
fn write(tensor: &Tensor, parts: &[Part], out: &mut dyn Write) -> Result<(), ConvertError> {
    let cols = tensor.cols();
    let floats = |tensor: &Tensor| {
        let mut values = vec![0.0; tensor.elements()];
        dequantize(tensor.ttype, &tensor.data, &mut values).map(|()| values)
    };
    // Of the parts at hand: those of a stack come one after the other.
    let mut open: Vec<(&Part, Vec<f32>, Vec<f32>)> = Vec::new();
    let (mut row, mut packed) = (vec![0.0; cols], Vec::new());
    let bytes = tensor.data.len() / tensor.rows().max(1);
    for (number, data) in tensor.data.chunks_exact(bytes.max(1)).enumerate() {
        open.retain(|(part, ..)| number < part.first_row + part.product.b.rows());
        for part in parts.iter().filter(|part| part.first_row == number) {
            open.push((part, floats(&part.product.a)?, floats(&part.product.b)?));
        }
        dequantize(tensor.ttype, data, &mut row)?;
        for (part, a, b) in &open {
            let rank = part.product.rank();
            let own = b.chunks_exact(rank).nth(number - part.first_row).unwrap_or_default();
            for (&b, a) in own.iter().zip(a.chunks_exact(cols)) {
                let factor = part.scale * part.product.factor * b;
                row.iter_mut().zip(a).for_each(|(value, a)| *value += factor * a);
            }
        }
        if let Some(&value) = row.iter().find(|value| !value.is_finite()) {
            return Err(ConvertError::NotFinite { tensor: tensor.name.clone(), row: number, value });
        }
        packed.clear();
        quantize_rows(tensor.ttype, &row, cols, None, &mut packed)?;
        out.write_all(&packed).map_err(|source| moli_format::FormatError::Write { source })?;
    }
    Ok(())
}
