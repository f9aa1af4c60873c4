//! Tensors out of tensors: renamed, sliced by rows, stacked, or with other values.

use half::f16;

use super::HuggingFaceError;
use crate::gguf::MAX_DIMENSIONS;
use crate::safetensors::{Dtype, SafeTensor};
use crate::{Bytes, FormatError, Tensor, TensorType};

/// A tensor of a folder: of one of its files, or made of several.
#[derive(Debug, Clone)]
pub(super) struct Source {
    pub(super) name: String,
    pub(super) stored: Stored,
    /// The contiguous dimension last.
    pub(super) shape: Vec<usize>,
    pub(super) data: Bytes,
}

/// How a tensor's elements are stored.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Stored {
    As(Dtype),
    /// In blocks of a format of GGUF, which its rows are whole ones of.
    Made(TensorType),
}

impl From<SafeTensor> for Source {
    fn from(SafeTensor { name, dtype, shape, data }: SafeTensor) -> Self {
        Self { name, stored: Stored::As(dtype), shape, data }
    }
}

impl Source {
    /// The error for elements of a type that is not read here.
    pub(super) fn element_type(&self) -> HuggingFaceError {
        let dtype = match self.stored {
            Stored::As(dtype) => format!("{dtype:?}"),
            Stored::Made(ttype) => ttype.name().to_owned(),
        };
        HuggingFaceError::ElementType { tensor: self.name.clone(), dtype }
    }

    /// How a float type is stored; an error for any other.
    pub(super) fn float_type(&self) -> Result<TensorType, HuggingFaceError> {
        match self.stored {
            Stored::As(Dtype::F32) => Ok(TensorType::F32),
            Stored::As(Dtype::F16) => Ok(TensorType::F16),
            Stored::As(Dtype::BF16) => Ok(TensorType::BF16),
            _ => Err(self.element_type()),
        }
    }
}

/// The same data under another name.
pub(super) fn renamed(name: String, tensor: &Source) -> Result<Tensor, FormatError> {
    let dims = dims(&tensor.name, &tensor.shape)?;
    let ttype = match tensor.stored {
        Stored::Made(ttype) => ttype,
        Stored::As(_) => tensor.float_type()?,
    };
    Ok(Tensor { name, ttype, dims, data: tensor.data.clone() })
}

/// A shape as the convention has it: the contiguous dimension first, none of them zero.
pub(super) fn dims(tensor: &str, shape: &[usize]) -> Result<Vec<u64>, FormatError> {
    let tensor = || tensor.to_owned();
    if shape.len() > MAX_DIMENSIONS {
        let (actual, limit) = (shape.len() as u64, MAX_DIMENSIONS as u64);
        return Err(FormatError::TooManyDimensions { tensor: tensor(), actual, limit });
    }
    let mut dims: Vec<u64> = shape.iter().rev().map(|&dim| dim as u64).collect();
    if dims.contains(&0) {
        return Err(FormatError::ZeroDimension { tensor: tensor(), dims });
    }
    if dims.is_empty() {
        dims.push(1);
    }
    Ok(dims)
}

/// Each element and one, in single precision.
pub(super) fn plus_one(name: String, tensor: &Source) -> Result<Tensor, FormatError> {
    let ttype = tensor.float_type()?;
    let values = floats(ttype, &tensor.data).flat_map(|value| (value + 1.0).to_le_bytes()).collect();
    let dims = dims(&tensor.name, &tensor.shape)?;
    Ok(Tensor { name, ttype: TensorType::F32, dims, data: Bytes::from_vec(values) })
}

/// The elements of a float type.
pub(crate) fn floats(ttype: TensorType, data: &[u8]) -> impl Iterator<Item = f32> + '_ {
    data.chunks_exact(ttype.block_bytes()).map(move |bytes| match *bytes {
        [a, b] if ttype == TensorType::BF16 => f32::from_le_bytes([0, 0, a, b]),
        [a, b] => f16::from_le_bytes([a, b]).to_f32(),
        [a, b, c, d] => f32::from_le_bytes([a, b, c, d]),
        _ => f32::NAN,
    })
}

/// Each row divided by its length, in half precision unless it was single.
pub(super) fn unit_rows(name: String, tensor: &Source) -> Result<Tensor, FormatError> {
    let (ttype, dims) = (tensor.float_type()?, dims(&tensor.name, &tensor.shape)?);
    let row = tensor.shape.last().copied().unwrap_or(1).max(1) * ttype.block_bytes();
    let wide = ttype == TensorType::F32;
    let mut data = reserve(tensor.data.len())?;
    for row in tensor.data.chunks(row) {
        let length = floats(ttype, row).map(|value| f64::from(value).powi(2)).sum::<f64>().sqrt().max(1e-12);
        for value in floats(ttype, row) {
            let value = (f64::from(value) / length) as f32;
            if wide {
                data.extend(value.to_le_bytes());
            } else {
                data.extend(f16::from_f32(value).to_le_bytes());
            }
        }
    }
    let ttype = if wide { TensorType::F32 } else { TensorType::F16 };
    Ok(Tensor { name, ttype, dims, data: Bytes::from_vec(data) })
}

/// Rows and columns of each matrix, the last two dimensions, changed over.
pub(super) fn transposed(tensor: &Source) -> Result<Source, FormatError> {
    let mut shape = tensor.shape.clone();
    let [.., inputs, outputs] = shape.as_mut_slice() else {
        let (expected, actual) = (vec![0, 0], shape);
        return Err(HuggingFaceError::Shape { tensor: tensor.name.clone(), expected, actual }.into());
    };
    let row = *outputs * tensor.float_type()?.block_bytes();
    let size = tensor.float_type()?.block_bytes();
    let mut data = reserve(tensor.data.len())?;
    for matrix in tensor.data.chunks_exact((*inputs * row).max(1)) {
        for output in 0..*outputs {
            let column = matrix.get(output * size..).unwrap_or_default();
            column.chunks(row).for_each(|row| data.extend(row.iter().take(size)));
        }
    }
    std::mem::swap(inputs, outputs);
    Ok(Source { shape, data: Bytes::from_vec(data), ..tensor.clone() })
}

/// An empty buffer for so many bytes, or the error that there is no memory for them.
pub(crate) fn reserve(bytes: usize) -> Result<Vec<u8>, FormatError> {
    let mut data = Vec::new();
    data.try_reserve_exact(bytes).map_err(|_| FormatError::OutOfMemory { bytes: bytes as u64 })?;
    Ok(data)
}

/// Some rows of a tensor: a range of its first dimension; an error if they are not all there.
pub(super) fn rows(tensor: &Source, first: usize, count: usize) -> Result<Source, HuggingFaceError> {
    let total = tensor.shape.first().copied().unwrap_or(0);
    let row = tensor.data.len().checked_div(total).unwrap_or(0);
    let end = first.checked_add(count).filter(|&end| end <= total);
    let data = end.and_then(|end| tensor.data.slice(first * row..end * row));
    let Some(data) = data else {
        let rest = tensor.shape.get(1..).unwrap_or_default();
        return Err(HuggingFaceError::Shape {
            tensor: tensor.name.clone(),
            expected: [&[first.saturating_add(count)], rest].concat(),
            actual: tensor.shape.clone(),
        });
    };
    let mut shape = tensor.shape.clone();
    if let Some(rows) = shape.first_mut() {
        *rows = count;
    }
    Ok(Source { name: tensor.name.clone(), stored: tensor.stored, shape, data })
}

/// Row `index` of the first dimension, without that dimension.
fn row(tensor: &Source, index: usize) -> Result<Source, HuggingFaceError> {
    let mut row = rows(tensor, index, 1)?;
    row.shape.remove(0);
    Ok(row)
}

/// The tensors of all experts, the rows of the first dimension; `None` if there are no more than two dimensions.
pub(super) fn experts(tensor: &Source) -> Result<Option<Vec<Source>>, HuggingFaceError> {
    let &[count, _, _] = tensor.shape.as_slice() else { return Ok(None) };
    (0..count).map(|expert| row(tensor, expert)).collect::<Result<_, _>>().map(Some)
}

/// The first and the second half of the rows.
pub(super) fn halves(tensor: &Source) -> Result<(Source, Source), HuggingFaceError> {
    let total = tensor.shape.first().copied().unwrap_or(0);
    let half = total / 2;
    // Of an odd number the second half would have a row less.
    Ok((
        rows(tensor, 0, half)?,
        rows(tensor, half, total - half).and_then(|rest| {
            let mut expected = rest.shape.clone();
            expected.iter_mut().take(1).for_each(|rows| *rows = half);
            expect(&rest, &expected)?;
            Ok(rest)
        })?,
    ))
}

/// Tensors of one type and row in one, the rows of each after those of the one before.
pub(super) fn join(name: &str, parts: &[Source]) -> Result<Source, FormatError> {
    let Some(first) = parts.first() else {
        return Err(HuggingFaceError::MissingTensor { tensor: name.to_owned() }.into());
    };
    let bytes: usize = parts.iter().map(|part| part.data.len()).sum();
    let mut data = reserve(bytes)?;
    let mut shape = first.shape.clone();
    let mut total = 0;
    for part in parts {
        if part.shape.get(1..) != first.shape.get(1..) || part.shape.is_empty() {
            let (expected, actual) = (first.shape.clone(), part.shape.clone());
            return Err(HuggingFaceError::Shape { tensor: part.name.clone(), expected, actual }.into());
        }
        if part.stored != first.stored {
            let dtype = format!("{:?} beside {:?}", part.stored, first.stored);
            return Err(HuggingFaceError::ElementType { tensor: part.name.clone(), dtype }.into());
        }
        total += part.shape.first().copied().unwrap_or(0);
        data.extend_from_slice(&part.data);
    }
    if let Some(rows) = shape.first_mut() {
        *rows = total;
    }
    Ok(Source { name: name.to_owned(), stored: first.stored, shape, data: Bytes::from_vec(data) })
}

/// An error unless the shape is this one.
pub(super) fn expect(tensor: &Source, expected: &[usize]) -> Result<(), HuggingFaceError> {
    if tensor.shape == expected {
        return Ok(());
    }
    Err(HuggingFaceError::Shape {
        tensor: tensor.name.clone(),
        expected: expected.to_vec(),
        actual: tensor.shape.clone(),
    })
}
