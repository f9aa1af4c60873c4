//! The experts of gpt-oss, whose gates and what they gate take turns row by row.

use super::HuggingFaceError;
use super::data::{self, Source, Stored};
use super::family::Harmony;
use crate::safetensors::Dtype;
use crate::{Bytes, FormatError, Tensor, TensorType};

/// Bytes of a block of 32 elements of 4 bits.
const BLOCK: usize = 16;

const GATE: &str = "ffn_gate_exps";
const UP: &str = "ffn_up_exps";
const DOWN: &str = "ffn_down_exps";

/// The tensors of `layer` (`blk.N`) that one of the file's becomes.
pub(super) fn tensors<'a>(
    part: Harmony,
    layer: &str,
    tensor: &Source,
    scales: impl Fn() -> Result<&'a Source, HuggingFaceError>,
) -> Result<Vec<Tensor>, FormatError> {
    let name = |stem: &str, end: &str| format!("{layer}.{stem}.{end}");
    match part {
        Harmony::Scales => Ok(Vec::new()),
        Harmony::DownBias => Ok(vec![data::renamed(name(DOWN, "bias"), tensor)?]),
        Harmony::GateUpBias => {
            // As rows of one element.
            let shape = [tensor.shape.as_slice(), &[1]].concat();
            let rows = every_other(&Source { shape, ..tensor.clone() })?;
            let flat = |name: String, mut rows: Source| {
                rows.shape.pop();
                data::renamed(name, &rows)
            };
            let [gate, up] = rows;
            Ok(vec![flat(name(GATE, "bias"), gate)?, flat(name(UP, "bias"), up)?])
        }
        Harmony::Down => Ok(vec![data::renamed(name(DOWN, "weight"), &experts_transposed(tensor)?)?]),
        Harmony::GateUp => {
            let [gate, up] = every_other(&experts_transposed(tensor)?)?;
            Ok(vec![data::renamed(name(GATE, "weight"), &gate)?, data::renamed(name(UP, "weight"), &up)?])
        }
        Harmony::DownBlocks => Ok(vec![mxfp4(name(DOWN, "weight"), tensor, scales()?)?]),
        Harmony::GateUpBlocks => {
            let [gate, up] = every_other(tensor)?;
            let [gate_scales, up_scales] = every_other(scales()?)?;
            Ok(vec![
                mxfp4(name(GATE, "weight"), &gate, &gate_scales)?,
                mxfp4(name(UP, "weight"), &up, &up_scales)?,
            ])
        }
    }
}

/// Matrices of experts with their outputs as rows.
fn experts_transposed(tensor: &Source) -> Result<Source, FormatError> {
    if tensor.shape.len() != 3 {
        return Err(shape(tensor, &[0, 0, 0]).into());
    }
    data::transposed(tensor)
}

/// The error for a tensor that has not this many dimensions, or an odd second one.
fn shape(tensor: &Source, expected: &[usize]) -> HuggingFaceError {
    let (expected, actual) = (expected.to_vec(), tensor.shape.clone());
    HuggingFaceError::Shape { tensor: tensor.name.clone(), expected, actual }
}

/// The even and the odd rows of each expert: `[experts, 2 * n, ..]` to two of `[experts, n, ..]`.
fn every_other(tensor: &Source) -> Result<[Source; 2], FormatError> {
    let (experts, rows) = match tensor.shape.as_slice() {
        &[experts, rows, _, ..] if rows % 2 == 0 => (experts, rows),
        _ => return Err(shape(tensor, &[0, 2, 0]).into()),
    };
    let bytes = tensor.data.len().checked_div(experts * rows).unwrap_or(0).max(1);
    let mut new = tensor.shape.clone();
    new.iter_mut().skip(1).take(1).for_each(|all| *all = rows / 2);
    let half = |odd: usize| {
        let mut data = data::reserve(tensor.data.len() / 2)?;
        // The number of rows is even, so each expert begins at an even one.
        tensor.data.chunks_exact(bytes).skip(odd).step_by(2).for_each(|row| data.extend_from_slice(row));
        Ok::<_, FormatError>(Source {
            name: tensor.name.clone(),
            stored: tensor.stored,
            shape: new.clone(),
            data: Bytes::from_vec(data),
        })
    };
    Ok([half(0)?, half(1)?])
}

/// Blocks `[experts, rows, cols / 32, 16]` and their scales `[experts, rows, cols / 32]` as GGUF has them: the scale first,
/// and element `i` beside element `i + 16` instead of element `i + 1`.
fn mxfp4(name: String, blocks: &Source, scales: &Source) -> Result<Tensor, FormatError> {
    for tensor in [blocks, scales] {
        if tensor.stored != Stored::As(Dtype::U8) {
            return Err(tensor.element_type().into());
        }
    }
    let (&[experts, rows, count, BLOCK], true) =
        (blocks.shape.as_slice(), blocks.shape.get(..3) == Some(scales.shape.as_slice()))
    else {
        return Err(shape(blocks, &[scales.shape.as_slice(), &[BLOCK]].concat()).into());
    };
    let mut data = data::reserve(blocks.data.len() + scales.data.len())?;
    for (block, &scale) in blocks.data.as_chunks::<BLOCK>().0.iter().zip(scales.data.iter()) {
        data.push(scale);
        let element = |index: usize| block.get(index / 2).map_or(0, |pair| pair >> (index % 2 * 4) & 15);
        data.extend((0..BLOCK).map(|index| element(index) | element(index + BLOCK) << 4));
    }
    Ok(Tensor {
        name,
        ttype: TensorType::MXFP4,
        dims: vec![count as u64 * 32, rows as u64, experts as u64],
        data: Bytes::from_vec(data),
    })
}
