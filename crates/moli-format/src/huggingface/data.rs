//! Tensors out of tensors: renamed, sliced by rows, stacked, or with other values.

use half::f16;

use super::HuggingFaceError;
use crate::gguf::MAX_DIMENSIONS;
use crate::safetensors::{Dtype, SafeTensor};
use crate::{Bytes, FormatError, Tensor, TensorType};

/// How a float type is stored; an error for any other.
pub(super) fn float_type(tensor: &SafeTensor) -> Result<TensorType, HuggingFaceError> {
    match tensor.dtype {
        Dtype::F32 => Ok(TensorType::F32),
        Dtype::F16 => Ok(TensorType::F16),
        Dtype::BF16 => Ok(TensorType::BF16),
        other => {
            Err(HuggingFaceError::ElementType { tensor: tensor.name.clone(), dtype: format!("{other:?}") })
        }
    }
}

/// The same data under another name.
pub(super) fn renamed(name: String, tensor: &SafeTensor) -> Result<Tensor, FormatError> {
    let dims = dims(&tensor.name, &tensor.shape)?;
    Ok(Tensor { name, ttype: float_type(tensor)?, dims, data: tensor.data.clone() })
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
pub(super) fn plus_one(name: String, tensor: &SafeTensor) -> Result<Tensor, FormatError> {
    let ttype = float_type(tensor)?;
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
pub(super) fn unit_rows(name: String, tensor: &SafeTensor) -> Result<Tensor, FormatError> {
    let (ttype, dims) = (float_type(tensor)?, dims(&tensor.name, &tensor.shape)?);
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

/// An empty buffer for so many bytes, or the error that there is no memory for them.
pub(crate) fn reserve(bytes: usize) -> Result<Vec<u8>, FormatError> {
    let mut data = Vec::new();
    data.try_reserve_exact(bytes).map_err(|_| FormatError::OutOfMemory { bytes: bytes as u64 })?;
    Ok(data)
}

/// Some rows of a tensor: a range of its first dimension; an error if they are not all there.
pub(super) fn rows(tensor: &SafeTensor, first: usize, count: usize) -> Result<SafeTensor, HuggingFaceError> {
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
    Ok(SafeTensor { name: tensor.name.clone(), dtype: tensor.dtype, shape, data })
}

/// Row `index` of the first dimension, without that dimension.
fn row(tensor: &SafeTensor, index: usize) -> Result<SafeTensor, HuggingFaceError> {
    let mut row = rows(tensor, index, 1)?;
    row.shape.remove(0);
    Ok(row)
}

/// The tensors of all experts, the rows of the first dimension; `None` if there are no more than two dimensions.
pub(super) fn experts(tensor: &SafeTensor) -> Result<Option<Vec<SafeTensor>>, HuggingFaceError> {
    let &[count, _, _] = tensor.shape.as_slice() else { return Ok(None) };
    (0..count).map(|expert| row(tensor, expert)).collect::<Result<_, _>>().map(Some)
}

/// The first and the second half of the rows.
pub(super) fn halves(tensor: &SafeTensor) -> Result<(SafeTensor, SafeTensor), HuggingFaceError> {
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
pub(super) fn join(name: &str, parts: &[SafeTensor]) -> Result<SafeTensor, FormatError> {
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
        if part.dtype != first.dtype {
            let dtype = format!("{:?} beside {:?}", part.dtype, first.dtype);
            return Err(HuggingFaceError::ElementType { tensor: part.name.clone(), dtype }.into());
        }
        total += part.shape.first().copied().unwrap_or(0);
        data.extend_from_slice(&part.data);
    }
    if let Some(rows) = shape.first_mut() {
        *rows = total;
    }
    Ok(SafeTensor { name: name.to_owned(), dtype: first.dtype, shape, data: Bytes::from_vec(data) })
}

/// An error unless the shape is this one.
pub(super) fn expect(tensor: &SafeTensor, expected: &[usize]) -> Result<(), HuggingFaceError> {
    if tensor.shape == expected {
        return Ok(());
    }
    Err(HuggingFaceError::Shape {
        tensor: tensor.name.clone(),
        expected: expected.to_vec(),
        actual: tensor.shape.clone(),
    })
}
