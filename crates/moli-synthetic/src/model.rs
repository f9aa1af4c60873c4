//! A synthetic model: its parts put together.

use std::collections::HashMap;
use std::io::{self, Read as _, Write};
use std::path::Path;
use std::sync::Arc;

use moli_convert::{Mixture, ModelFacts};
use moli_format::{Bytes, FormatError, Gguf, GgufWriter, TensorType};

use crate::shape::{Kind, Planned, Shape};
use crate::weights::{self, Units, stream_of};
use crate::{SHAPES, SyntheticError};

/// A model with random weights, which can be made in memory or as a file: the same bytes each time.
#[derive(Debug, Clone)]
pub struct Synthetic {
    shape: Shape,
    mixture: Mixture,
    tensors: Vec<Tensor>,
    bytes: u64,
}

/// A tensor with its format and dimensions.
#[derive(Debug, Clone)]
struct Tensor {
    name: String,
    kind: Kind,
    ttype: TensorType,
    dims: Vec<u64>,
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
        let mixture = Mixture::named(mixture).map_err(|_| SyntheticError::UnknownMixture {
            mixture: mixture.to_owned(),
            known: Mixture::names(),
        })?;
        Self::new(Shape::named(shape)?, mixture)
    }

    pub(crate) fn new(shape: Shape, mixture: Mixture) -> Result<Self, SyntheticError> {
        let tensors = tensors(&shape, mixture)?;
        let mut model = Self { shape, mixture, tensors, bytes: 0 };
        let mut writer = model.header();
        for tensor in &model.tensors {
            writer.tensor_from(&tensor.name, tensor.ttype, tensor.dims.clone(), |_| Ok(()));
        }
        model.bytes = writer.file_bytes()?;
        Ok(model)
    }

    /// Shape and mixture, as they are asked for.
    pub fn name(&self) -> String {
        format!("{}:{}", self.shape.name, self.mixture.name().to_lowercase())
    }

    /// Bytes of the file, and of the model in memory.
    pub fn size_bytes(&self) -> u64 {
        self.bytes
    }

    /// Number of weights.
    pub fn parameters(&self) -> u64 {
        let elements = |dims: &[u64]| dims.iter().fold(1, |product: u64, &dim| product.saturating_mul(dim));
        self.tensors.iter().fold(0, |sum: u64, tensor| sum.saturating_add(elements(&tensor.dims)))
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
        for tensor in &self.tensors {
            let bytes = tensor.bytes();
            let zeros = move |out: &mut dyn Write| io::copy(&mut io::repeat(0).take(bytes), out).map(drop);
            writer.tensor_from(&tensor.name, tensor.ttype, tensor.dims.clone(), zeros);
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

    fn file(&self) -> Result<GgufWriter, SyntheticError> {
        let mut writer = self.header();
        // Of each format that has been needed.
        let mut made: HashMap<TensorType, Arc<Units>> = HashMap::new();
        for tensor in &self.tensors {
            let Tensor { name, kind, ttype, dims } = tensor;
            if let Kind::Vector { mean, len } = kind {
                writer.tensor(name, *ttype, dims.clone(), weights::vector(name, *mean, *len));
                continue;
            }
            let units = match made.get(ttype) {
                Some(units) => Arc::clone(units),
                None => {
                    let units = Arc::new(Units::new(*ttype)?);
                    made.insert(*ttype, Arc::clone(&units));
                    units
                }
            };
            let (seed, bytes) = (stream_of(name), tensor.bytes());
            writer.tensor_from(name, *ttype, dims.clone(), move |out| units.draw(seed, bytes, out));
        }
        Ok(writer)
    }
}

/// The tensors of a shape, in the formats of a mixture.
fn tensors(shape: &Shape, mixture: Mixture) -> Result<Vec<Tensor>, SyntheticError> {
    let facts = ModelFacts::of(&shape.metadata)?;
    let dims = |planned: Planned| match &planned.kind {
        Kind::Matrix(dims) => (dims.clone(), planned),
        Kind::Vector { len, .. } => (vec![*len], planned),
    };
    let planned: Vec<(Vec<u64>, Planned)> = shape.tensors().into_iter().map(dims).collect();
    let outlines: Vec<(&str, &[u64])> =
        planned.iter().map(|(dims, planned)| (planned.name.as_str(), dims.as_slice())).collect();
    let choices = mixture.choose(&facts, false, &[], &outlines);
    let made = planned.into_iter().zip(choices).map(|((dims, Planned { name, kind }), choice)| {
        // As a converter leaves what no mixture has a say in.
        let ttype = choice.map_or(TensorType::F32, |choice| choice.ttype);
        Tensor { name, kind, ttype, dims }
    });
    Ok(made.collect())
}

impl Tensor {
    /// A product that `file_bytes` has checked.
    fn bytes(&self) -> u64 {
        self.dims.iter().product::<u64>() / self.ttype.block_len() as u64 * self.ttype.block_bytes() as u64
    }
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
