//! LoRA adapters (arXiv:2106.09685): a low-rank addition to matrices of a model.
//!
//! Two forms are read, and what comes of both is the same: products by the names of the base model's tensors, with rows in the
//! order in which that model has them.
//!
//! - a GGUF file of llama.cpp's, [`gguf`]: `general.type` is `adapter`, and beside each adapted tensor's name stand `.lora_a` and
//!   `.lora_b`;
//! - a folder of `peft`'s: `adapter_config.json` and `adapter_model.safetensors`, with names of Hugging Face's.
//!
//! Files have the rows of Q and K in the order of interleaved rotary pairs where the convention of their architecture does, and
//! folders in that of halves. An adapter is often for the one and used with the other: its rows are put in order then.

mod error;
mod gguf;

use std::path::Path;

pub use self::error::AdapterError;
use crate::huggingface::{self, data, peft};
use crate::{Bytes, FormatError, Gguf, ReadMode, Tensor, TensorType, Value};

/// What is added to one matrix `W`, `[out, in]`: `scale * factor * B · A`.
#[derive(Debug, Clone, PartialEq)]
pub struct LowRank {
    /// The name of `W`. Of a stack of experts' matrices it is that of one expert, `blk.0.ffn_up.3.weight`, whether the base
    /// model has them in one tensor or not.
    pub name: String,
    /// `A`, `[rank, in]`: `dims` are `[in, rank]`.
    pub a: Tensor,
    /// `B`, `[out, rank]`: `dims` are `[rank, out]`.
    pub b: Tensor,
    /// `alpha / rank`, or what takes its place.
    pub factor: f32,
}

impl LowRank {
    /// The rank: rows of `A`.
    #[must_use]
    pub fn rank(&self) -> usize {
        self.a.rows()
    }
}

/// An adapter, checked against the model that it is for: every product fits a matrix of the model, and every element is finite.
#[derive(Debug, Clone, PartialEq)]
pub struct Adapter {
    /// By rising name.
    products: Vec<LowRank>,
}

impl Adapter {
    /// Opens an adapter for this model: a GGUF file, or a folder with an `adapter_config.json`, that file or the safetensors in it.
    ///
    /// # Errors
    /// [`FormatError::Adapter`] with an [`AdapterError`] that names what is wrong with the adapter or does not fit the model, and
    /// whatever is wrong with the files.
    pub fn open(path: &Path, base: &Gguf, mode: ReadMode) -> Result<Self, FormatError> {
        let target = Target::of(base)?;
        let raw = match peft::folder_of(path) {
            Some(folder) => peft::open(&folder, &target, mode)?,
            None => gguf::products(&Gguf::open(path, mode)?, &target)?,
        };
        Self::checked(raw, &target)
    }

    /// An adapter in the form of GGUF that is open already.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn from_gguf(adapter: &Gguf, base: &Gguf) -> Result<Self, FormatError> {
        let target = Target::of(base)?;
        Self::checked(gguf::products(adapter, &target)?, &target)
    }

    fn checked(raw: Vec<Raw>, target: &Target<'_>) -> Result<Self, FormatError> {
        let mut products = Vec::new();
        for raw in raw {
            for product in raw.of_each_expert()? {
                products.push(product.fitted(target)?);
            }
        }
        if products.is_empty() {
            return Err(AdapterError::Empty.into());
        }
        products.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        let names = products.iter().zip(products.iter().skip(1));
        if let Some((first, _)) = names.into_iter().find(|(a, b)| a.name == b.name) {
            return Err(FormatError::DuplicateTensor { tensor: first.name.clone() });
        }
        Ok(Self { products })
    }

    /// What it adds, by rising name of the model's tensors.
    pub fn products(&self) -> impl ExactSizeIterator<Item = &LowRank> {
        self.products.iter()
    }

    /// What it adds to the tensor of this name.
    pub fn product(&self, name: &str) -> Option<&LowRank> {
        let found = self.products.binary_search_by(|product| product.name.as_str().cmp(name)).ok()?;
        self.products.get(found)
    }

    /// The greatest rank.
    pub fn rank(&self) -> usize {
        self.products.iter().map(LowRank::rank).max().unwrap_or(0)
    }

    /// Bytes of its matrices.
    pub fn bytes(&self) -> u64 {
        let matrices = self.products.iter().flat_map(|product| [&product.a, &product.b]);
        matrices.fold(0, |sum, tensor| sum.saturating_add(tensor.data.len() as u64))
    }
}

/// How the rows of Q and K are ordered, where the convention of an architecture reorders them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    /// Of each head the first elements of all rotary pairs, then the second ones.
    Halves,
    /// The two elements of a pair beside each other.
    Pairs,
}

/// The model that an adapter is for.
pub(crate) struct Target<'a> {
    gguf: &'a Gguf,
    pub(crate) architecture: &'a str,
    pub(crate) heads: usize,
    pub(crate) kv_heads: usize,
    /// `None`: its architecture has one order only.
    order: Option<Order>,
}

impl<'a> Target<'a> {
    fn of(gguf: &'a Gguf) -> Result<Self, FormatError> {
        let metadata = gguf.metadata();
        let architecture = metadata.architecture()?;
        let heads = metadata.u32(&format!("{architecture}.attention.head_count"))?;
        let key = format!("{architecture}.attention.head_count_kv");
        let kv_heads = match metadata.get(&key) {
            // Of layers that carry a state instead of keys it is 0.
            Some(Value::Array(_)) => metadata.u32s(&key)?.iter().copied().find(|&count| count > 0),
            _ => metadata.u32_opt(&key)?,
        };
        let kv_heads = kv_heads.unwrap_or(heads);
        let order = match metadata.bool_opt("moli.rope.halves")? {
            Some(true) => Order::Halves,
            _ => Order::Pairs,
        };
        let order = huggingface::reorders(architecture).then_some(order);
        Ok(Self { gguf, architecture, heads: heads as usize, kv_heads: kv_heads as usize, order })
    }

    /// Rows and columns of the matrix of this name.
    pub(crate) fn shape(&self, name: &str) -> Option<(u64, u64)> {
        let tensor = match name {
            // Models that tie it to the embeddings.
            "output.weight" => self.gguf.tensor(name).or_else(|| self.gguf.tensor("token_embd.weight")),
            _ => self.gguf.tensor(name),
        };
        if let Some(tensor) = tensor {
            return Some((tensor.rows() as u64, tensor.cols() as u64));
        }
        // `blk.0.ffn_up.3.weight` in `blk.0.ffn_up_exps.weight`.
        let (stem, expert) = name.strip_suffix(".weight")?.rsplit_once('.')?;
        let expert: u64 = expert.parse().ok()?;
        match *self.gguf.tensor(&format!("{stem}_exps.weight"))?.dims.as_slice() {
            [cols, rows, experts] if expert < experts => Some((rows, cols)),
            _ => None,
        }
    }

    /// The heads whose rows are in an order of their own in this tensor.
    fn heads_of(&self, name: &str) -> Option<usize> {
        match name.strip_prefix("blk.")?.split_once('.')?.1 {
            "attn_q.weight" => Some(self.heads),
            "attn_k.weight" => Some(self.kv_heads),
            _ => None,
        }
    }
}

/// A product as its file has it.
pub(crate) struct Raw {
    pub(crate) product: LowRank,
    /// The order of Q's and K's rows.
    pub(crate) order: Order,
}

impl Raw {
    /// A stack of products one by one.
    fn of_each_expert(self) -> Result<Vec<Self>, AdapterError> {
        let Self { product, order } = self;
        let stem = product.name.strip_suffix("_exps.weight").map(str::to_owned);
        let (Some(stem), [_, _, experts]) = (stem, product.a.dims.as_slice()) else {
            return Ok(vec![Self { product, order }]);
        };
        let experts = *experts;
        if product.b.dims.get(2) != Some(&experts) || product.b.dims.len() != 3 {
            let mut expected = product.b.dims.clone();
            expected.resize(3, 1);
            expected.splice(2.., [experts]);
            let (tensor, actual) = (product.b.name.clone(), product.b.dims.clone());
            return Err(AdapterError::Shape { tensor, expected, actual });
        }
        let part = |tensor: &Tensor, expert: u64| {
            let bytes = tensor.data.len() / usize::try_from(experts).unwrap_or(usize::MAX).max(1);
            let start = expert as usize * bytes;
            let data = tensor.data.slice(start..start + bytes);
            let data = data.ok_or_else(|| AdapterError::UnknownTensor { tensor: tensor.name.clone() })?;
            let dims = tensor.dims.iter().take(2).copied().collect();
            Ok(Tensor { name: tensor.name.clone(), ttype: tensor.ttype, dims, data })
        };
        (0..experts)
            .map(|expert| {
                let name = format!("{stem}.{expert}.weight");
                let (a, b) = (part(&product.a, expert)?, part(&product.b, expert)?);
                Ok(Self { product: LowRank { name, a, b, factor: product.factor }, order })
            })
            .collect()
    }

    /// The product as the model needs it, if it fits.
    fn fitted(self, target: &Target<'_>) -> Result<LowRank, FormatError> {
        let Self { mut product, order } = self;
        let LowRank { name, a, b, .. } = &product;
        let tensor = || a.name.clone();
        // What is looked up, and what is taken apart when a model is loaded, is multiplied with nothing.
        let apart = ["token_embd.", ".attn_kv_b.", ".attn_k_b.", ".attn_v_b.", ".ffn_gate_up."];
        if apart.iter().any(|part| name.contains(part)) {
            return Err(AdapterError::NotAdaptable { tensor: tensor(), name: name.clone() }.into());
        }
        let Some((rows, cols)) = target.shape(name) else {
            return Err(AdapterError::NoTensor { tensor: tensor(), name: name.clone() }.into());
        };
        if rows == 1 && !name.contains("ffn_gate_inp_shexp") {
            return Err(AdapterError::NotAdaptable { tensor: tensor(), name: name.clone() }.into());
        }
        let rank = a.dims.get(1).copied().unwrap_or(1);
        check_shape(a, [cols, rank])?;
        match b.dims.first() {
            Some(&own) if own != rank => {
                let tensor = b.name.clone();
                return Err(AdapterError::Rank { tensor, expected: rank, actual: own }.into());
            }
            _ => check_shape(b, [rank, rows])?,
        }
        for tensor in [a, b] {
            check_values(tensor)?;
        }
        if let (Some(wanted), Some(heads)) =
            (target.order.filter(|&wanted| wanted != order), target.heads_of(name))
        {
            product.b = reordered(&product.b, heads, wanted)?;
        }
        // A vector's trailing dimension may have been left out.
        product.a.dims = vec![cols, rank];
        product.b.dims = vec![rank, rows];
        Ok(product)
    }
}

/// Refuses a tensor whose shape is not this one; writers may leave trailing dimensions of 1 in place or out.
fn check_shape(tensor: &Tensor, expected: [u64; 2]) -> Result<(), AdapterError> {
    let mut dims = tensor.dims.iter().copied().chain(std::iter::repeat(1)).take(tensor.dims.len().max(2));
    if dims.by_ref().take(2).eq(expected) && dims.all(|dim| dim == 1) {
        return Ok(());
    }
    Err(AdapterError::Shape {
        tensor: tensor.name.clone(),
        expected: expected.to_vec(),
        actual: tensor.dims.clone(),
    })
}

fn check_values(tensor: &Tensor) -> Result<(), AdapterError> {
    let name = || tensor.name.clone();
    if !matches!(tensor.ttype, TensorType::F32 | TensorType::F16 | TensorType::BF16) {
        return Err(AdapterError::ElementType { tensor: name(), found: tensor.ttype.name() });
    }
    let odd = data::floats(tensor.ttype, &tensor.data).enumerate().find(|(_, value)| !value.is_finite());
    match odd {
        Some((index, value)) => Err(AdapterError::NotFinite { tensor: name(), index, value }),
        None => Ok(()),
    }
}

/// The rows of `B` in this order, from the other one.
fn reordered(b: &Tensor, heads: usize, wanted: Order) -> Result<Tensor, FormatError> {
    let head = b.rows() / heads.max(1);
    let (half, row) = (head / 2, b.data.len() / b.rows().max(1));
    if heads == 0 || !b.rows().is_multiple_of(heads) || !head.is_multiple_of(2) {
        let (expected, actual) = (vec![b.dims.first().copied().unwrap_or(1), heads as u64], b.dims.clone());
        return Err(AdapterError::Shape { tensor: b.name.clone(), expected, actual }.into());
    }
    let mut data = data::reserve(b.data.len())?;
    for place in 0..b.rows() {
        let (first, place) = (place - place % head, place % head);
        let from = match wanted {
            Order::Pairs => place % 2 * half + place / 2,
            Order::Halves => place % half * 2 + place / half,
        };
        let start = (first + from) * row;
        data.extend_from_slice(b.data.get(start..start + row).unwrap_or_default());
    }
    Ok(Tensor { data: Bytes::from_vec(data), ..b.clone() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_two_orders_are_each_others_inverse() {
        // Two heads of six rows, each row its own number.
        let halves = Tensor {
            name: "b".to_owned(),
            ttype: TensorType::F32,
            dims: vec![1, 12],
            data: Bytes::from_vec((0..12u8).flat_map(|row| f32::from(row).to_le_bytes()).collect()),
        };
        let pairs = reordered(&halves, 2, Order::Pairs).unwrap();
        let rows: Vec<f32> = data::floats(TensorType::F32, &pairs.data).collect();
        assert_eq!(rows, [0., 3., 1., 4., 2., 5., 6., 9., 7., 10., 8., 11.]);
        assert_eq!(reordered(&pairs, 2, Order::Halves).unwrap(), halves);
    }
}
