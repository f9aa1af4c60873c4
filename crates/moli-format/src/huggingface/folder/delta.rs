//! Gated delta nets: their configuration, and their tensors in the folders' order.

use std::ops::Range;

use serde_json::{Value as Json, json};

use super::config::{Config, experts};
use super::rope::floats;
use super::tensors::{Folder, Place, made, shape, stretch};
use super::{FolderTensor, Rows, Source};
use crate::huggingface::delta::Heads;
use crate::huggingface::family::{Delta, Part};
use crate::{Bytes, FormatError, Tensor};

pub(super) fn config(source: &Source<'_>, config: &mut Config) -> Result<(), FormatError> {
    let keys = source.keys();
    let heads = heads(source)?;
    config.put("linear_conv_kernel_dim", keys.need("ssm.conv_kernel")?);
    config.put("linear_num_key_heads", heads.keys);
    config.put("linear_num_value_heads", heads.values);
    config.put("linear_key_head_dim", heads.key_dim);
    config.put("linear_value_head_dim", heads.value_dim);
    let kind = |&recurrent: &bool| if recurrent { "linear_attention" } else { "full_attention" };
    config.put("layer_types", source.recurrent.iter().map(kind).collect::<Vec<_>>());
    for field in ["sliding_window", "use_sliding_window", "max_window_layers"] {
        config.0.remove(field);
    }
    if keys.count("expert_count")?.is_some_and(|count| count > 0) {
        experts(source, config)?;
    }
    Ok(())
}

/// The parts of a position in a picture, which stand among the rotary parameters.
pub(super) fn sections(source: &Source<'_>, config: &mut Config) -> Result<(), FormatError> {
    let key = source.keys().key("rope.dimension_sections");
    let Some(sections) = source.model.metadata().u32s_opt(&key)? else { return Ok(()) };
    // The convention's fourth is none of a folder's.
    let sections: Vec<u32> = sections.iter().copied().take(3).collect();
    let mut parameters =
        json!({ "rope_type": "default", "mrope_section": sections, "mrope_interleaved": true });
    for field in ["rope_theta", "partial_rotary_factor"] {
        parameters[field] = config.0.remove(field).unwrap_or(Json::Null);
    }
    config.0.remove("rope_scaling");
    config.put("rope_parameters", parameters);
    Ok(())
}

fn heads(source: &Source<'_>) -> Result<Heads, FormatError> {
    let keys = source.keys();
    let (values, inner) = (keys.need("ssm.time_step_rank")?, keys.need("ssm.inner_size")?);
    let heads = Heads {
        keys: keys.need("ssm.group_count")?,
        values,
        key_dim: keys.need("ssm.state_size")?,
        value_dim: inner.checked_div(values).unwrap_or(0),
        tiled: source.family.architecture != "qwen3next",
    };
    if heads.keys == 0 || heads.values == 0 || !values.is_multiple_of(heads.keys) || heads.inner() != inner {
        let (key, value) = (keys.key("ssm.time_step_rank"), values.to_string());
        return Err(crate::HuggingFaceError::NoField { key, value }.into());
    }
    Ok(heads)
}

impl Folder<'_> {
    /// Adds what a tensor of a delta net becomes, or becomes a part of; `false` if it is none.
    pub(super) fn delta(&mut self, place: &Place<'_>, tensor: &Tensor) -> Result<bool, FormatError> {
        let mixed = self.source.family.architecture == "qwen3next";
        let part = match (place.stem, place.end) {
            ("attn_qkv", "weight") if mixed => Delta::Mixed,
            // A part of the one before.
            ("attn_gate", "weight") if mixed => return Ok(true),
            ("attn_qkv", "weight") => Delta::Qkv,
            ("attn_gate", "weight") => Delta::Gate,
            ("ssm_beta", "weight") => Delta::Rate,
            ("ssm_alpha", "weight") => Delta::Decay,
            ("ssm_conv1d", "weight") => Delta::Taps,
            ("ssm_a", "") => Delta::Slope,
            ("ssm_dt", "bias") => Delta::Bias,
            ("ssm_out", "weight") => Delta::Out,
            _ => return Ok(false),
        };
        let same = |other: &Part| matches!(other, Part::Delta(other) if *other == part);
        let Some((pattern, _)) = self.source.family.parts.iter().find(|(_, other)| same(other)) else {
            return Ok(false);
        };
        let end = if matches!(part, Delta::Slope | Delta::Bias) { "" } else { ".weight" };
        let name = format!("model.layers.{}.{pattern}{end}", place.layer);
        let heads = heads(self.source)?;
        // Rows of the queries and keys, which come first.
        let first = heads.keys.saturating_mul(heads.key_dim).saturating_mul(2);
        let new = match part {
            Delta::Mixed => mixed_rows(name, tensor, self.beside(place, "attn_gate")?, &heads)?,
            Delta::Qkv => values(name, tensor, first, heads.value_dim, &heads)?,
            Delta::Gate => values(name, tensor, 0, heads.value_dim, &heads)?,
            Delta::Rate | Delta::Decay | Delta::Bias => values(name, tensor, 0, 1, &heads)?,
            Delta::Slope => values(name, &logarithms(tensor)?, 0, 1, &heads)?,
            Delta::Taps => {
                let mut taps = values(name, tensor, first, heads.value_dim, &heads)?;
                taps.shape.insert(1, 1);
                taps
            }
            Delta::Out => {
                let rows = tensor.rows();
                if tensor.cols() != heads.inner() {
                    return Err(shape(tensor, &[rows, heads.inner()]));
                }
                let columns = if heads.reorders() { heads.targets().collect() } else { Vec::new() };
                let rows = made(name, vec![rows, heads.inner()], vec![stretch(tensor, tensor.cols())]);
                FolderTensor { columns, ..rows }
            }
        };
        self.tensors.push(new);
        Ok(true)
    }
}

/// The first rows as they are, then those of the values, `unit` of each head, in the folder's order.
fn values(
    name: String,
    tensor: &Tensor,
    first: usize,
    unit: usize,
    heads: &Heads,
) -> Result<FolderTensor, FormatError> {
    let cols = if tensor.dims.len() == 1 { 1 } else { tensor.cols() };
    let all = stretch(tensor, cols);
    let count = heads.values.saturating_mul(unit).saturating_add(first);
    if all.count != count {
        return Err(shape(tensor, &[count, cols]));
    }
    let some = |rows: Range<usize>| Rows { first: rows.start, count: rows.len(), ..all.clone() };
    let rows = if heads.reorders() {
        let head = |head: usize| some(first + head * unit..first + (head + 1) * unit);
        let before = Some(some(0..first)).filter(|rows| rows.count > 0);
        before.into_iter().chain(heads.targets().map(head)).collect()
    } else {
        vec![all.clone()]
    };
    let shape = if tensor.dims.len() == 1 { vec![count] } else { vec![count, cols] };
    Ok(made(name, shape, rows))
}

/// Queries, keys, values and gates, key head by key head.
fn mixed_rows(
    name: String,
    qkv: &Tensor,
    gates: &Tensor,
    heads: &Heads,
) -> Result<FolderTensor, FormatError> {
    let (key, value) = (heads.key_dim, heads.each() * heads.value_dim);
    let keys = heads.keys.saturating_mul(key);
    let (cols, expected) = (qkv.cols(), keys.saturating_mul(2).saturating_add(heads.inner()));
    let (qkv_rows, gate_rows) = (stretch(qkv, cols), stretch(gates, gates.cols()));
    if qkv_rows.count != expected {
        return Err(shape(qkv, &[expected, cols]));
    }
    if gate_rows.count != heads.inner() || gates.cols() != cols {
        return Err(shape(gates, &[heads.inner(), cols]));
    }
    let mut rows = Vec::new();
    for head in 0..heads.keys {
        for (all, first, count) in [
            (&qkv_rows, head * key, key),
            (&qkv_rows, keys + head * key, key),
            (&qkv_rows, 2 * keys + head * value, value),
            (&gate_rows, head * value, value),
        ] {
            rows.push(Rows { first, count, ..all.clone() });
        }
    }
    Ok(made(name, vec![qkv_rows.count + gate_rows.count, cols], rows))
}

/// The numbers of which `-e^x` is the elements.
fn logarithms(tensor: &Tensor) -> Result<Tensor, FormatError> {
    let slope = |log: f32| -f64::from(log).exp() as f32;
    let logarithm = |value: f32| {
        let near = f64::from(-value).ln() as f32;
        // The logarithm is rounded: of its neighbours the one that gives the element back.
        [near, near.next_up(), near.next_down()].into_iter().find(|&log| slope(log) == value).unwrap_or(near)
    };
    let data = floats(tensor)?.into_iter().flat_map(|value| logarithm(value).to_le_bytes()).collect();
    Ok(Tensor { data: Bytes::from_vec(data), ..tensor.clone() })
}
