//! The tensors of gated delta nets, whose folders have them in another order, or as other numbers, than the convention.
//!
//! Folders have the value heads of a key head behind each other. So has the convention for Qwen3-Next, whose folders mix
//! queries, keys, values and gates, key head by key head; for Qwen3.5 its value heads take turns: the first of each key head, then the
//! second of each.

use super::data::{self, Source};
use super::family::Delta;
use super::{HuggingFaceError, Model};
use crate::{Bytes, FormatError, Tensor, TensorType};

/// Heads of keys and values, and their elements.
pub(super) struct Heads {
    pub(super) keys: usize,
    pub(super) values: usize,
    pub(super) key_dim: usize,
    pub(super) value_dim: usize,
    /// Whether the convention's value heads take turns.
    pub(super) tiled: bool,
}

impl Heads {
    pub(super) fn of(model: &Model<'_>) -> Result<Self, HuggingFaceError> {
        let size = |field: &str| model.fields.need_size(field).map(|size| size as usize);
        let (keys, values) = (size("linear_num_key_heads")?, size("linear_num_value_heads")?);
        if !values.is_multiple_of(keys) {
            return Err(model.fields.wrong("linear_num_key_heads", "a divisor of linear_num_value_heads"));
        }
        let (key_dim, value_dim) = (size("linear_key_head_dim")?, size("linear_value_head_dim")?);
        Ok(Self { keys, values, key_dim, value_dim, tiled: model.family.architecture != "qwen3next" })
    }

    /// Elements of the values of all heads.
    pub(super) fn inner(&self) -> usize {
        self.values.saturating_mul(self.value_dim)
    }

    /// Value heads of a key head.
    pub(super) fn each(&self) -> usize {
        self.values / self.keys
    }

    /// Where a folder has each of the convention's value heads.
    fn sources(&self) -> impl Iterator<Item = usize> {
        let (keys, each, tiled) = (self.keys, self.each(), self.tiled);
        (0..self.values).map(move |head| if tiled { head % keys * each + head / keys } else { head })
    }

    /// Where the convention has each of a folder's value heads.
    pub(super) fn targets(&self) -> impl Iterator<Item = usize> {
        let (keys, each, tiled) = (self.keys, self.each(), self.tiled);
        (0..self.values).map(move |head| if tiled { head % each * keys + head / each } else { head })
    }

    pub(super) fn reorders(&self) -> bool {
        self.tiled && self.keys < self.values && self.keys > 1
    }
}

/// The tensors of `layer` (`blk.N`) that one of the folder's becomes.
pub(super) fn tensors(
    part: Delta,
    layer: &str,
    tensor: &Source,
    heads: &Heads,
) -> Result<Vec<Tensor>, FormatError> {
    let keys = heads.keys * heads.key_dim;
    let name = |stem: &str| format!("{layer}.{stem}");
    Ok(vec![match part {
        Delta::Mixed => return mixed(layer, tensor, heads),
        Delta::Qkv => {
            data::renamed(name("attn_qkv.weight"), &values(tensor, 2 * keys, heads.value_dim, heads)?)?
        }
        Delta::Gate => data::renamed(name("attn_gate.weight"), &values(tensor, 0, heads.value_dim, heads)?)?,
        Delta::Rate => data::renamed(name("ssm_beta.weight"), &values(tensor, 0, 1, heads)?)?,
        Delta::Decay => data::renamed(name("ssm_alpha.weight"), &values(tensor, 0, 1, heads)?)?,
        Delta::Taps => {
            let flat = taps(tensor)?;
            data::renamed(name("ssm_conv1d.weight"), &values(&flat, 2 * keys, heads.value_dim, heads)?)?
        }
        Delta::Bias => data::renamed(name("ssm_dt.bias"), &values(tensor, 0, 1, heads)?)?,
        Delta::Slope => slope(name("ssm_a"), &values(tensor, 0, 1, heads)?)?,
        Delta::Out => data::renamed(name("ssm_out.weight"), &columns(tensor, heads)?)?,
    }])
}

/// Taps of a convolution, `[channels, 1, taps]`, without the dimension of one.
pub(super) fn taps(tensor: &Source) -> Result<Source, HuggingFaceError> {
    let mut flat = tensor.clone();
    if let &[channels, _, taps] = tensor.shape.as_slice() {
        data::expect(tensor, &[channels, 1, taps])?;
        flat.shape = vec![channels, taps];
    }
    Ok(flat)
}

/// The first rows as they are, then those of the values, `unit` of each head.
fn values(tensor: &Source, first: usize, unit: usize, heads: &Heads) -> Result<Source, FormatError> {
    let mut expected = tensor.shape.clone();
    expected.iter_mut().take(1).for_each(|rows| *rows = first + heads.values * unit);
    data::expect(tensor, &expected)?;
    if !heads.reorders() {
        return Ok(tensor.clone());
    }
    let head = |head: usize| data::rows(tensor, first + head * unit, unit);
    let before = (first > 0).then(|| data::rows(tensor, 0, first));
    let parts = before.into_iter().chain(heads.sources().map(head)).collect::<Result<Vec<_>, _>>()?;
    data::join(&tensor.name, &parts)
}

/// The columns of each value head in the convention's order.
fn columns(tensor: &Source, heads: &Heads) -> Result<Source, FormatError> {
    let rows = tensor.shape.first().copied().unwrap_or(0);
    data::expect(tensor, &[rows, heads.inner()])?;
    if !heads.reorders() {
        return Ok(tensor.clone());
    }
    let head = heads.value_dim * tensor.float_type()?.block_bytes();
    let mut reordered = data::reserve(tensor.data.len())?;
    for row in tensor.data.chunks_exact(head * heads.values) {
        for source in heads.sources() {
            reordered.extend_from_slice(row.get(source * head..(source + 1) * head).unwrap_or_default());
        }
    }
    Ok(Source { data: Bytes::from_vec(reordered), ..tensor.clone() })
}

/// Queries, keys and values of all heads, and their gates, out of one matrix that has all of a key head behind each other.
fn mixed(layer: &str, tensor: &Source, heads: &Heads) -> Result<Vec<Tensor>, FormatError> {
    let values = heads.each() * heads.value_dim;
    let group = 2 * (heads.key_dim + values);
    let mut expected = tensor.shape.clone();
    expected.iter_mut().take(1).for_each(|rows| *rows = heads.keys * group);
    data::expect(tensor, &expected)?;
    let of = |first: usize, count: usize| {
        (0..heads.keys).map(move |head| data::rows(tensor, head * group + first, count))
    };
    let (key, value, gate) = (heads.key_dim, 2 * heads.key_dim, 2 * heads.key_dim + values);
    let qkv = of(0, key).chain(of(key, heads.key_dim)).chain(of(value, values));
    let qkv = qkv.collect::<Result<Vec<_>, _>>()?;
    let gates = of(gate, values).collect::<Result<Vec<_>, _>>()?;
    let joined = |stem: &str, parts: &[Source]| {
        data::renamed(format!("{layer}.{stem}.weight"), &data::join(&tensor.name, parts)?)
    };
    Ok(vec![joined("attn_qkv", &qkv)?, joined("attn_gate", &gates)?])
}

/// `-e^x` of the elements.
fn slope(name: String, tensor: &Source) -> Result<Tensor, FormatError> {
    let values = data::floats(tensor.float_type()?, &tensor.data);
    let values = values.flat_map(|value| (-f64::from(value).exp() as f32).to_le_bytes()).collect();
    let dims = data::dims(&tensor.name, &tensor.shape)?;
    Ok(Tensor { name, ttype: TensorType::F32, dims, data: Bytes::from_vec(values) })
}
