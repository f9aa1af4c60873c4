//! LoRA adapters in the forward pass (arXiv:2106.09685).
//!
//! Where a matrix is multiplied with, what an adapter adds to it is multiplied with as well: `y += scale * factor * B · (A · x)`, for
//! the rows whose sequences have the adapter and no others. The model's own weights stay as they are, and a batch without
//! adapters does not come here.
//!
//! Adapters are added in the order of their numbers, each by operations that treat every row by itself. So the one arithmetic holds:
//! a row's result depends on its own adapters, not on those of its neighbours.

use std::ops::Range;

use moli_format::{Adapter, Tensor};
use moli_kernels::Activations;

use crate::weights::{Linear, rows};
use crate::{Backend, Batch, Config, ModelError};

/// Products with one input that are computed together: more than any layer has.
const TOGETHER: usize = 4;

/// An adapter of a sequence.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Adapted {
    /// Its number, in the order in which the adapters were given when the model was loaded.
    pub adapter: u32,
    /// What it is multiplied by: finite and at least 0.
    pub scale: f32,
}

/// What an adapter adds to a matrix.
pub struct LowRank<B: Backend + ?Sized> {
    /// `[rank, inputs]`.
    a: Linear<B>,
    b: WayUp<B>,
    factor: f32,
}

/// `B`, whose inner dimension is a few numbers.
enum WayUp<B: Backend + ?Sized> {
    /// `[outputs, rank]`, to multiply with.
    Rows(Linear<B>),
    /// `[rank, outputs]`, to add up: long stretches instead of short ones.
    Columns(Vec<f32>),
}

impl<B: Backend> LowRank<B> {
    /// What is added to these of the outputs.
    pub(crate) fn load(
        product: &moli_format::LowRank,
        outputs: Range<usize>,
        backend: &B,
    ) -> Result<Self, ModelError> {
        let linear = |tensor| {
            Ok::<_, ModelError>(Linear {
                weight: backend.matrix(tensor)?,
                bias: None,
                scale: None,
                adapters: Vec::new(),
            })
        };
        let b = rows(&product.b, outputs)?;
        let b = if B::ADDS_COLUMNS { WayUp::Columns(columns(&b)?) } else { WayUp::Rows(linear(&b)?) };
        Ok(Self { a: linear(&product.a)?, b, factor: product.factor })
    }
}

/// A matrix by columns, in single precision.
fn columns(matrix: &Tensor) -> Result<Vec<f32>, ModelError> {
    let (rows, cols) = (matrix.rows(), matrix.cols());
    let mut columns = vec![0.0; matrix.elements()];
    // A row at a time, so that nothing else of this size is needed.
    let mut values = vec![0.0; cols];
    for (i, row) in matrix.data.chunks_exact((matrix.data.len() / rows.max(1)).max(1)).enumerate() {
        moli_kernels::dequantize(matrix.ttype, row, &mut values)?;
        for (to, value) in columns.iter_mut().skip(i).step_by(rows.max(1)).zip(&values) {
            *to = *value;
        }
    }
    Ok(columns)
}

/// The adapters of a model, and which rows of the current batch have which.
pub(crate) struct Adapters<B: Backend>(Option<Loaded<B>>);

struct Loaded<B: Backend> {
    /// Of each adapter the scale of each row of the batch, 0 where the row does not have it; empty where none does.
    scales: Vec<Vec<f32>>,
    /// The rows that have one, their scales, and these times the factor of a product.
    rows: Vec<u32>,
    weights: Vec<f32>,
    factors: Vec<f32>,
    /// The inputs of those rows, `[inputs]`.
    x: B::Buffer,
    /// `A · x`, `[rank]`, of each product.
    low: [B::Buffer; TOGETHER],
    /// `B · A · x`, `[outputs]`, where that is not added up by columns.
    high: B::Buffer,
}

/// The sizes of what adapters are computed in.
struct Sizes {
    inputs: usize,
    rank: usize,
    /// But for the logits, whose rows are few.
    outputs: usize,
}

impl Sizes {
    fn of(adapters: &[Adapter], config: &Config) -> Self {
        let mut sizes = Self { inputs: config.widest_input(), rank: 1, outputs: 1 };
        for product in adapters.iter().flat_map(Adapter::products) {
            sizes.rank = sizes.rank.max(product.rank());
            if product.name != "output.weight" {
                sizes.outputs = sizes.outputs.max(product.b.rows());
            }
        }
        sizes
    }
}

/// Bytes that adapters take on the CPU beside their model: their matrices, and what they are computed in, for batches of `max_rows`
/// rows. Sums saturate.
#[must_use]
pub fn adapter_bytes(adapters: &[Adapter], config: &Config, max_rows: usize) -> u64 {
    if adapters.is_empty() {
        return 0;
    }
    let sizes = Sizes::of(adapters, config);
    let floats = |rows: usize, cols: usize| {
        (rows as u64).saturating_mul(cols as u64).saturating_mul(size_of::<f32>() as u64)
    };
    let lists = floats(max_rows, adapters.len() + 3);
    // By columns in single precision.
    let products = adapters.iter().flat_map(Adapter::products);
    let columns =
        products.fold(0u64, |sum, product| sum.saturating_add(floats(product.b.rows(), product.rank())));
    let wider = Activations::bytes(max_rows, sizes.inputs.max(sizes.rank))
        .saturating_sub(Activations::bytes(max_rows, sizes.inputs));
    let low = floats(max_rows, sizes.rank.saturating_mul(TOGETHER));
    let high = floats(1, sizes.outputs);
    let scratch = [lists, floats(max_rows, sizes.inputs), low, columns, high, wider];
    let matrices = adapters.iter().fold(0u64, |sum, adapter| sum.saturating_add(adapter.bytes()));
    scratch.iter().fold(matrices, |sum, &part| sum.saturating_add(part))
}

impl<B: Backend> Adapters<B> {
    pub(crate) fn new(
        backend: &B,
        config: &Config,
        adapters: &[Adapter],
        max_rows: usize,
    ) -> Result<Self, ModelError> {
        if adapters.is_empty() {
            return Ok(Self(None));
        }
        let sizes = Sizes::of(adapters, config);
        let low = || backend.buffer(max_rows, sizes.rank);
        Ok(Self(Some(Loaded {
            scales: adapters.iter().map(|_| Vec::with_capacity(max_rows)).collect(),
            rows: Vec::with_capacity(max_rows),
            weights: Vec::with_capacity(max_rows),
            factors: Vec::with_capacity(max_rows),
            x: backend.buffer(max_rows, sizes.inputs)?,
            low: [low()?, low()?, low()?, low()?],
            high: backend.buffer(if B::ADDS_COLUMNS { 1 } else { max_rows }, sizes.outputs)?,
        })))
    }

    /// The widest input of a product, the adapters' own included.
    pub(crate) fn widest_input(adapters: &[Adapter], config: &Config) -> usize {
        let sizes = Sizes::of(adapters, config);
        sizes.inputs.max(sizes.rank)
    }

    /// Refuses what a batch can't ask for.
    pub(crate) fn check(&self, batch: &Batch<'_>) -> Result<(), ModelError> {
        let bad = |what, actual, allowed| Err(ModelError::Batch { what, actual, allowed });
        let sequences = batch.tables.len();
        if !batch.adapters.is_empty() && batch.adapters.len() != sequences {
            return bad(
                "adapters",
                batch.adapters.len(),
                format!("0, or as many as there are tables, {sequences}"),
            );
        }
        let count = self.0.as_ref().map_or(0, |loaded| loaded.scales.len());
        for list in batch.adapters {
            for (place, &Adapted { adapter, scale }) in list.iter().enumerate() {
                if adapter as usize >= count {
                    return bad("adapter", adapter as usize, format!("below the {count} that were loaded"));
                }
                if list.iter().take(place).any(|other| other.adapter == adapter) {
                    return bad("adapter", adapter as usize, "given once for a sequence".to_owned());
                }
                if !(scale.is_finite() && scale >= 0.0) {
                    return Err(ModelError::AdapterScale { adapter, scale });
                }
            }
        }
        Ok(())
    }

    /// Takes note of a batch that has been checked.
    pub(crate) fn set(&mut self, batch: &Batch<'_>) {
        let Some(loaded) = &mut self.0 else { return };
        for (number, scales) in loaded.scales.iter_mut().enumerate() {
            scales.clear();
            let of = |list: &[Adapted]| {
                let own = list.iter().find(|own| own.adapter as usize == number);
                own.map_or(0.0, |own| own.scale)
            };
            if batch.adapters.iter().any(|list| of(list) != 0.0) {
                let list =
                    |&sequence: &u32| batch.adapters.get(sequence as usize).copied().unwrap_or_default();
                scales.extend(batch.sequences.iter().map(list).map(of));
            }
        }
    }

    /// [`Backend::project`], and what the adapters add to it. `rows`: which rows of the batch are in `x`; `None`: all.
    pub(crate) fn project(
        &mut self,
        b: &mut B,
        x: &B::Buffer,
        rows: Option<&[u32]>,
        into: &mut [(&Linear<B>, &mut B::Buffer)],
    ) -> Result<(), ModelError> {
        b.project(x, into)?;
        for (linear, out) in &mut *into {
            if let Some(scale) = linear.scale {
                b.scale(out, scale)?;
            }
        }
        match &mut self.0 {
            Some(loaded) => loaded.add(b, x, rows, into),
            None => Ok(()),
        }
    }
}

impl<B: Backend> Loaded<B> {
    fn add(
        &mut self,
        b: &mut B,
        x: &B::Buffer,
        rows: Option<&[u32]>,
        into: &mut [(&Linear<B>, &mut B::Buffer)],
    ) -> Result<(), ModelError> {
        let count = b.rows(x);
        for (number, scales) in self.scales.iter().enumerate() {
            let product = |linear: &Linear<B>| matches!(linear.adapters.get(number), Some(Some(_)));
            if scales.is_empty() || !into.iter().any(|(linear, _)| product(linear)) {
                continue;
            }
            self.rows.clear();
            self.weights.clear();
            for row in 0..count as u32 {
                let of = rows.map_or(Some(row), |rows| rows.get(row as usize).copied());
                let scale = of.and_then(|row| scales.get(row as usize)).copied().unwrap_or(0.0);
                if scale != 0.0 {
                    self.rows.push(row);
                    self.weights.push(scale);
                }
            }
            let own = match self.rows.len() {
                0 => continue,
                // All of them: they are in order already.
                all if all == count => x,
                _ => {
                    b.select(x, &self.rows, &mut self.x)?;
                    &self.x
                }
            };
            for some in into.chunks_mut(TOGETHER) {
                let products = some.iter().map(|(linear, _)| linear.adapters.get(number)?.as_ref());
                let ways_down = products.zip(&mut self.low);
                project_all(b, own, ways_down.filter_map(|(product, low)| Some((&product?.a, low))))?;
                for ((linear, out), low) in some.iter_mut().zip(&self.low) {
                    let Some(Some(product)) = linear.adapters.get(number) else { continue };
                    self.factors.clear();
                    self.factors.extend(self.weights.iter().map(|weight| weight * product.factor));
                    match &product.b {
                        WayUp::Rows(up) => {
                            b.project(low, &mut [(up, &mut self.high)])?;
                            b.scatter_add(&self.high, &self.rows, &self.factors, out)?;
                        }
                        WayUp::Columns(columns) => {
                            b.add_columns(low, columns, &self.rows, &self.factors, out)?;
                        }
                    }
                }
            }
        }
        Ok(())
    }
}

/// Products with one input, as many together as there are.
fn project_all<'a, B: Backend + 'a>(
    b: &mut B,
    x: &B::Buffer,
    mut into: impl Iterator<Item = (&'a Linear<B>, &'a mut B::Buffer)>,
) -> Result<(), ModelError> {
    loop {
        match (into.next(), into.next(), into.next()) {
            (Some(one), Some(two), Some(three)) => b.project(x, &mut [one, two, three])?,
            (Some(one), Some(two), None) => return b.project(x, &mut [one, two]),
            (Some(one), None, _) => return b.project(x, &mut [one]),
            (None, ..) => return Ok(()),
        }
    }
}
