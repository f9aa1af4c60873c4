//! A synthetic model: its parts put together.

use std::collections::HashMap;
use std::io::{self, Read as _, Write};
use std::path::Path;
use std::sync::Arc;

use moli_format::{Bytes, FormatError, Gguf, GgufWriter, TensorType};

use crate::mixture::Rule;
use crate::shape::{Kind, Planned, Shape};
use crate::weights::{self, Units, stream_of};
use crate::{Mixture, SHAPES, SyntheticError};

/// A model with random weights, which can be made in memory or as a file: the same bytes each time.
#[derive(Debug, Clone)]
pub struct Synthetic {
    shape: Shape,
    mixture: Mixture,
    bytes: u64,
}

impl Synthetic {
    /// By the names of a shape and a mixture, `qwen2.5-7b:q4_k_m`, or the path of a `config.json` and a mixture,
    /// `path/config.json:q8_0`. No weights are made yet.
    ///
    /// # Errors
    /// A name that is not known, with those that there are; a configuration that can't be read or asks for what is not made.
    pub fn parse(asked: &str) -> Result<Self, SyntheticError> {
        let (shape, mixture) = asked.rsplit_once(':').ok_or_else(|| SyntheticError::NoMixture {
            asked: asked.to_owned(),
            shapes: SHAPES.join(", "),
            mixtures: Mixture::names(),
        })?;
        Self::new(Shape::named(shape)?, Mixture::named(mixture)?)
    }

    pub(crate) fn new(shape: Shape, mixture: Mixture) -> Result<Self, SyntheticError> {
        let mut model = Self { shape, mixture, bytes: 0 };
        let mut writer = model.header();
        for tensor in model.shape.tensors() {
            let (ttype, dims) = model.format(&tensor);
            writer.tensor_from(tensor.name, ttype, dims, |_| Ok(()));
        }
        model.bytes = writer.file_bytes()?;
        Ok(model)
    }

    /// Shape and mixture, as they are asked for.
    pub fn name(&self) -> String {
        format!("{}:{}", self.shape.name, self.mixture)
    }

    /// Bytes of the file, and of the model in memory.
    pub fn size_bytes(&self) -> u64 {
        self.bytes
    }

    /// Number of weights.
    pub fn parameters(&self) -> u64 {
        let elements = |tensor: &Planned| match &tensor.kind {
            Kind::Matrix(dims) => dims.iter().fold(1, |product: u64, &dim| product.saturating_mul(dim)),
            Kind::Vector { len, .. } => *len,
        };
        self.shape.tensors().iter().fold(0, |sum: u64, tensor| sum.saturating_add(elements(tensor)))
    }

    /// Writes the model.
    ///
    /// # Errors
    /// When the file can't be written.
    pub fn write(&self, path: &Path) -> Result<(), SyntheticError> {
        Ok(self.file()?.write_file(path)?)
    }

    /// Makes the model in memory: what [`write`](Self::write) writes, in one allocation of
    /// [`size_bytes`](Self::size_bytes) and less than a megabyte for each format.
    ///
    /// A system that promises more memory than it has ends the process when the weights are written, so compare the size
    /// with what there is first.
    ///
    /// # Errors
    /// [`SyntheticError::OutOfMemory`] if the system refuses the memory.
    pub fn in_memory(&self) -> Result<Gguf, SyntheticError> {
        let refused = SyntheticError::OutOfMemory { bytes: self.bytes };
        let Ok(size) = usize::try_from(self.bytes) else { return Err(refused) };
        // Nothing is made before the memory is there.
        let made =
            Bytes::filled(size, |buffer| -> Result<(), SyntheticError> { Ok(self.file()?.write(buffer)?) });
        match made {
            Err(SyntheticError::Format(FormatError::OutOfMemory { .. })) => Err(refused),
            made => Ok(Gguf::from_bytes(&made?)?),
        }
    }

    /// The model in memory with zeros for weights, whose pages nobody has touched: for planning what it will take, without
    /// taking it.
    ///
    /// # Errors
    /// [`SyntheticError::OutOfMemory`] if it is more than the system would ever give.
    pub fn outline(&self) -> Result<Gguf, SyntheticError> {
        let refused = || SyntheticError::OutOfMemory { bytes: self.bytes };
        let size = usize::try_from(self.bytes).map_err(|_| refused())?;
        // What comes from the system is zero already, and stays its until it is written to.
        let mut out = Untouched { bytes: moli_kernels::zeroed(size).ok_or_else(refused)?, end: 0 };
        let mut writer = self.header();
        for tensor in self.shape.tensors() {
            let (ttype, dims) = self.format(&tensor);
            let bytes = tensor_bytes(ttype, &dims);
            let zeros = move |out: &mut dyn Write| io::copy(&mut io::repeat(0).take(bytes), out).map(drop);
            writer.tensor_from(tensor.name, ttype, dims, zeros);
        }
        writer.write(&mut out)?;
        Ok(Gguf::from_bytes(&Bytes::from_vec(out.bytes))?)
    }

    /// Everything but the weights.
    fn header(&self) -> GgufWriter {
        let mut writer = GgufWriter::new();
        for (key, value) in self.shape.metadata.iter() {
            // The order of rows within a head means nothing where they are random, so let it be that of a converted file.
            if key != "moli.rope.halves" {
                writer.meta(key, value.clone());
            }
        }
        writer.meta("general.name", format!("{} with random weights", self.shape.name));
        writer.meta("general.quantization_version", 2u32);
        self.shape.tokenizer.write(self.shape.vocab as usize, &mut writer);
        for tensor in &self.shape.factors {
            writer.tensor(&tensor.name, tensor.ttype, tensor.dims.clone(), &tensor.data);
        }
        writer
    }

    /// The format and the dimensions of a tensor.
    fn format(&self, tensor: &Planned) -> (TensorType, Vec<u64>) {
        let Shape { layers, experts, tied, .. } = self.shape;
        match &tensor.kind {
            Kind::Vector { len, .. } => (TensorType::F32, vec![*len]),
            Kind::Matrix(dims) => {
                let cols = dims.first().copied().unwrap_or(1);
                let rule = Rule { layers, experts, tied };
                (self.mixture.of(&tensor.name, tensor.layer, cols, rule), dims.clone())
            }
        }
    }

    fn file(&self) -> Result<GgufWriter, SyntheticError> {
        let mut writer = self.header();
        // Of each format that has been needed.
        let mut made: HashMap<TensorType, Arc<Units>> = HashMap::new();
        for tensor in self.shape.tensors() {
            let (ttype, dims) = self.format(&tensor);
            if let Kind::Vector { mean, len } = tensor.kind {
                let data = weights::vector(&tensor.name, mean, len);
                writer.tensor(tensor.name, ttype, dims, data);
                continue;
            }
            let units = match made.get(&ttype) {
                Some(units) => Arc::clone(units),
                None => {
                    let units = Arc::new(Units::new(ttype)?);
                    made.insert(ttype, Arc::clone(&units));
                    units
                }
            };
            let seed = stream_of(&tensor.name);
            let bytes = tensor_bytes(ttype, &dims);
            writer.tensor_from(tensor.name, ttype, dims, move |out| units.draw(seed, bytes, out));
        }
        Ok(writer)
    }
}

/// A product that `file_bytes` has checked.
fn tensor_bytes(ttype: TensorType, dims: &[u64]) -> u64 {
    dims.iter().product::<u64>() / ttype.block_len() as u64 * ttype.block_bytes() as u64
}

/// Zeros, of which only what differs from zero is written.
struct Untouched {
    bytes: Vec<u8>,
    end: usize,
}

impl Write for Untouched {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let place = self.bytes.get_mut(self.end..self.end.saturating_add(data.len()));
        let place = place.ok_or(io::ErrorKind::WriteZero)?;
        if data.iter().any(|&byte| byte != 0) {
            place.copy_from_slice(data);
        }
        self.end += data.len();
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests;
