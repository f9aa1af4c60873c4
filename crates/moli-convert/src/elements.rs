//! Rows in another type.

use moli_format::TensorType;

use crate::ConvertError;

/// The greatest number in half precision.
const MOST_HALF: f32 = 65_504.0;

/// Writes rows in another type, with room that is used again.
pub(crate) struct Recoder {
    to: TensorType,
    /// What is added to each element.
    offset: f32,
    values: Vec<f32>,
    bytes: Vec<u8>,
}

impl Recoder {
    pub(crate) fn new(to: TensorType, offset: f32) -> Self {
        Self { to, offset, values: Vec::new(), bytes: Vec::new() }
    }

    /// Whether rows of this type stay as they are.
    pub(crate) fn keeps(&self, ttype: TensorType) -> bool {
        ttype == self.to && self.offset == 0.0
    }

    /// A row of `tensor` in the new type.
    pub(crate) fn row(&mut self, tensor: &str, ttype: TensorType, row: &[u8]) -> Result<&[u8], ConvertError> {
        self.values.clear();
        floats(ttype, row, self.offset, &mut self.values)?;
        self.bytes.clear();
        encode(tensor, self.to, &self.values, &mut self.bytes)?;
        Ok(&self.bytes)
    }
}

/// Appends the elements of a row, with something added to each.
pub(crate) fn floats(
    ttype: TensorType,
    row: &[u8],
    offset: f32,
    out: &mut Vec<f32>,
) -> Result<(), ConvertError> {
    let start = out.len();
    out.resize(start + row.len() / ttype.block_bytes() * ttype.block_len(), 0.0);
    let values = out.get_mut(start..).unwrap_or_default();
    moli_kernels::dequantize(ttype, row, values)?;
    if offset != 0.0 {
        values.iter_mut().for_each(|value| *value += offset);
    }
    Ok(())
}

/// Appends elements in a type; an error for one that half precision can't hold.
pub(crate) fn encode(
    tensor: &str,
    to: TensorType,
    values: &[f32],
    out: &mut Vec<u8>,
) -> Result<(), ConvertError> {
    let beyond = |value: &&f32| value.is_finite() && value.abs() > MOST_HALF;
    if let Some(&value) = values.iter().find(beyond).filter(|_| to == TensorType::F16) {
        return Err(ConvertError::BeyondHalf { tensor: tensor.to_owned(), value });
    }
    Ok(moli_kernels::quantize(to, values, out)?)
}
