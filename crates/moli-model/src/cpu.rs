//! The decoder's operations on Moli's own kernels.
//!
//! Weights are ranges of the mapped file; activations, their quantised forms and the panels of the matrix products are
//! allocated once. An operation allocates nothing.

mod cache;

use moli_format::Tensor;
use moli_kernels::{
    Activations, AttentionArgs, DeltaShape, Isa, Kernels, Matrix, Pool, Product, RopeAngles, RopeStyle,
    Scratch, StateRun, Zero, zeroed,
};

use crate::backend::{AttentionSpec, DeltaInputs, Rows, cut_off};
use crate::config::Activation;
use crate::weights::{Linear, Norm};
use crate::{ActivationSquares, Backend, KvShape, KvType, ModelError};

pub use cache::CpuCache;

/// The processor.
pub struct CpuBackend {
    kernels: Kernels,
    pool: Pool,
    /// The input of the current product in the forms that the weights' types need.
    activations: Activations,
    /// Panels of the products, one per thread.
    scratch: Scratch,
    /// Where what weights are multiplied with is added up, if it is.
    squares: Option<ActivationSquares>,
}

/// Activations, `[rows, cols]` f32; the allocation is for the largest batch of the widest rows that go in.
pub struct CpuBuffer {
    data: Vec<f32>,
    rows: usize,
    cols: usize,
}

impl CpuBuffer {
    /// The rows in use.
    fn data(&self) -> &[f32] {
        &self.data[..self.rows * self.cols]
    }

    fn data_mut(&mut self) -> &mut [f32] {
        &mut self.data[..self.rows * self.cols]
    }

    /// Puts `rows` rows of `cols` columns in use.
    ///
    /// The logits' buffer alone starts smaller than its limit and grows: a prompt needs one row of it, scoring many.
    fn resize(&mut self, rows: usize, cols: usize) -> &mut [f32] {
        (self.rows, self.cols) = (rows, cols);
        if self.data.len() < rows * self.cols {
            self.data.resize(rows * self.cols, 0.0);
        }
        self.data_mut()
    }
}

impl CpuBackend {
    /// A backend of `threads` threads, the caller's own included.
    ///
    /// # Errors
    /// When this processor lacks the instruction set.
    pub fn new(isa: Isa, threads: usize) -> Result<Self, ModelError> {
        let pool = Pool::new(threads);
        let scratch = Scratch::new(pool.threads());
        let activations = Activations::new(0, 0)?;
        Ok(Self { kernels: Kernels::new(isa)?, pool, activations, scratch, squares: None })
    }

    /// Adds up what weights are multiplied with.
    #[must_use]
    pub fn observed(mut self, squares: &ActivationSquares) -> Self {
        self.squares = Some(squares.clone());
        self
    }
}

/// An allocation of zeros whose size has been checked. What is never used never becomes resident.
fn zeros<T: Zero>(what: &'static str, dims: &[usize]) -> Result<Vec<T>, ModelError> {
    let count = dims.iter().try_fold(1usize, |product, &n| product.checked_mul(n));
    count.and_then(zeroed).ok_or_else(|| {
        let bytes = dims.iter().fold(size_of::<T>() as u128, |product, &n| product.saturating_mul(n as u128));
        ModelError::TooLarge { what, bytes }
    })
}

impl Backend for CpuBackend {
    type Matrix = Matrix;
    type Vector = Vec<f32>;
    type Buffer = CpuBuffer;
    type Cache = CpuCache;

    fn description(&self) -> String {
        format!("cpu, {}, {} threads", self.kernels.isa().name(), self.pool.threads())
    }

    fn reserve(&mut self, rows: usize, cols: usize) -> Result<(), ModelError> {
        self.activations = Activations::new(rows, cols)?;
        Ok(())
    }

    fn matrix(&self, tensor: &Tensor) -> Result<Self::Matrix, ModelError> {
        if !moli_kernels::is_supported(tensor.ttype) {
            return Err(ModelError::TensorType { name: tensor.name.clone(), found: tensor.ttype.name() });
        }
        Ok(Matrix::new(tensor.ttype, tensor.rows(), tensor.cols(), tensor.data.clone())?)
    }

    fn vector(&self, values: Vec<f32>) -> Result<Self::Vector, ModelError> {
        Ok(values)
    }

    fn buffer(&self, rows: usize, cols: usize) -> Result<Self::Buffer, ModelError> {
        Ok(CpuBuffer { data: zeros("a buffer of activations", &[rows, cols])?, rows, cols })
    }

    fn cache(&self, layers: &[KvShape], pages: usize, kv_type: KvType) -> Result<Self::Cache, ModelError> {
        let widest = layers.iter().map(|shape| shape.head_dim).max().unwrap_or(0);
        self.kernels.reserve_attention(&self.pool, widest);
        CpuCache::new(layers, pages, kv_type)
    }

    fn page_bytes(&self, cache: &Self::Cache) -> usize {
        cache.page_bytes()
    }

    fn page_layout(&self, cache: &Self::Cache) -> String {
        format!("cpu {} v1", cache.kv_type())
    }

    fn copy_page(&mut self, cache: &mut Self::Cache, from: u32, to: u32) -> Result<(), ModelError> {
        cache.copy_page(from, to);
        Ok(())
    }

    fn read_page(&mut self, cache: &Self::Cache, page: u32, out: &mut Vec<u8>) -> Result<(), ModelError> {
        cache.read_page(page, out);
        Ok(())
    }

    fn write_page(&mut self, cache: &mut Self::Cache, page: u32, bytes: &[u8]) -> Result<(), ModelError> {
        cache.write_page(page, bytes);
        Ok(())
    }

    fn rows(&self, x: &Self::Buffer) -> usize {
        x.rows
    }

    fn download<'a>(&mut self, x: &'a Self::Buffer, _: &'a mut Vec<f32>) -> Result<&'a [f32], ModelError> {
        Ok(x.data())
    }

    fn embed(
        &mut self,
        table: &Self::Matrix,
        tokens: &[u32],
        scale: f32,
        out: &mut Self::Buffer,
    ) -> Result<(), ModelError> {
        let cols = table.cols();
        for (row, &token) in out.resize(tokens.len(), cols).chunks_exact_mut(cols).zip(tokens) {
            table.dequantize_row(token as usize, row)?;
        }
        if scale != 1.0 {
            self.kernels.scale(&self.pool, out.data_mut(), scale);
        }
        Ok(())
    }

    fn norm(
        &mut self,
        x: &Self::Buffer,
        norm: &Norm<Self::Vector>,
        eps: f32,
        out: &mut Self::Buffer,
    ) -> Result<(), ModelError> {
        let out = out.resize(x.rows, x.cols);
        match norm {
            Norm::Rms { gain } => self.kernels.rms_norm(&self.pool, x.data(), gain, eps, out),
            Norm::Layer { gain, bias } => {
                let bias = bias.as_deref().unwrap_or_default();
                self.kernels.layer_norm(&self.pool, x.data(), (gain, bias), eps, out);
            }
        }
        Ok(())
    }

    fn rms_norm_heads(
        &mut self,
        x: &mut Self::Buffer,
        gain: &Self::Vector,
        eps: f32,
    ) -> Result<(), ModelError> {
        self.kernels.rms_norm_in_place(&self.pool, x.data_mut(), gain, eps);
        Ok(())
    }

    fn project(
        &mut self,
        x: &Self::Buffer,
        into: &mut [(&Linear<Self>, &mut Self::Buffer)],
    ) -> Result<(), ModelError> {
        let Self { kernels, pool, activations, scratch, squares } = self;
        if let Some(squares) = squares {
            into.iter().for_each(|(linear, _)| squares.add(&linear.weight, x.data()));
        }
        let types = into.iter().map(|(linear, _)| linear.weight.ttype());
        activations.set(kernels, pool, x.data(), (x.rows, x.cols), types)?;
        let products = into.iter_mut().map(|(linear, out)| Product {
            weights: &linear.weight,
            bias: linear.bias.as_deref(),
            out: out.resize(x.rows, linear.weight.rows()),
        });
        Ok(kernels.matmul_all(pool, products, activations, scratch)?)
    }

    fn rope(
        &mut self,
        x: &mut Self::Buffer,
        angles: &RopeAngles,
        style: RopeStyle,
        head_dim: usize,
    ) -> Result<(), ModelError> {
        let heads = x.cols / head_dim;
        self.kernels.rope(&self.pool, x.data_mut(), heads, head_dim, angles, style);
        Ok(())
    }

    fn store(
        &mut self,
        cache: &mut Self::Cache,
        layer: usize,
        spec: &AttentionSpec,
        keys: &Self::Buffer,
        values: &Self::Buffer,
        rows: &Rows<'_>,
    ) -> Result<(), ModelError> {
        let (heads, width) = (spec.kv_heads, spec.head_dim);
        let (pages, slots) = (cache.layer_mut(layer), rows.slots);
        Ok(self.kernels.store_kv(&self.pool, (keys.data(), values.data()), heads, width, slots, pages)?)
    }

    fn attention(
        &mut self,
        q: &Self::Buffer,
        sinks: Option<&Self::Vector>,
        cache: &Self::Cache,
        layer: usize,
        spec: &AttentionSpec,
        rows: &Rows<'_>,
        out: &mut Self::Buffer,
    ) -> Result<(), ModelError> {
        let (k_pages, v_pages) = cache.layer(layer);
        let args = AttentionArgs {
            q: q.data(),
            k_pages,
            v_pages,
            tables: rows.tables,
            sequences: rows.sequences,
            positions: rows.positions,
            lengths: rows.lengths,
            heads: spec.heads,
            kv_heads: spec.kv_heads,
            head_dim: spec.head_dim,
            scale: spec.scale,
            soft_cap: spec.soft_cap,
            window: spec.window,
            sinks: sinks.map(Vec::as_slice),
        };
        Ok(self.kernels.attention(&self.pool, &args, out.resize(q.rows, q.cols))?)
    }

    fn gated(
        &mut self,
        gate: &mut Self::Buffer,
        up: &Self::Buffer,
        activation: Activation,
    ) -> Result<(), ModelError> {
        match activation {
            Activation::Silu => self.kernels.swiglu(&self.pool, gate.data_mut(), up.data()),
            Activation::GeluTanh => self.kernels.geglu(&self.pool, gate.data_mut(), up.data()),
            Activation::GeluErf => self.kernels.geglu_erf(&self.pool, gate.data_mut(), up.data()),
            Activation::Relu | Activation::ReluSquared | Activation::Xielu(_) => {
                self.activate(gate, activation)?;
                self.kernels.multiply(&self.pool, gate.data_mut(), up.data());
            }
            Activation::SwigluClamped => {
                self.kernels.swiglu_clamped(&self.pool, gate.data_mut(), up.data());
            }
        }
        Ok(())
    }

    fn activate(&mut self, x: &mut Self::Buffer, activation: Activation) -> Result<(), ModelError> {
        match activation {
            Activation::Silu => self.kernels.silu(&self.pool, x.data_mut()),
            Activation::GeluTanh => self.kernels.gelu(&self.pool, x.data_mut()),
            Activation::GeluErf => self.kernels.gelu_erf(&self.pool, x.data_mut()),
            Activation::Relu => self.kernels.relu(&self.pool, x.data_mut()),
            Activation::ReluSquared => self.kernels.relu_squared(&self.pool, x.data_mut()),
            Activation::Xielu(xielu) => self.kernels.xielu(&self.pool, x.data_mut(), xielu.numbers()),
            Activation::SwigluClamped => return Err(ModelError::NoGate),
        }
        Ok(())
    }

    fn scale(&mut self, x: &mut Self::Buffer, factor: f32) -> Result<(), ModelError> {
        self.kernels.scale(&self.pool, x.data_mut(), factor);
        Ok(())
    }

    fn zero(&mut self, x: &mut Self::Buffer, rows: usize, cols: usize) -> Result<(), ModelError> {
        x.resize(rows, cols).fill(0.0);
        Ok(())
    }

    fn copy_columns(
        &mut self,
        from: &Self::Buffer,
        from_start: usize,
        to: &mut Self::Buffer,
        to_start: usize,
        count: usize,
    ) -> Result<(), ModelError> {
        let (from_cols, to_cols) = (from.cols, to.cols);
        let rows = to.data_mut().chunks_exact_mut(to_cols).zip(from.data().chunks_exact(from_cols));
        for (to, from) in rows {
            to[to_start..to_start + count].copy_from_slice(&from[from_start..from_start + count]);
        }
        Ok(())
    }

    fn scatter_add(
        &mut self,
        from: &Self::Buffer,
        rows: &[u32],
        weights: &[f32],
        to: &mut Self::Buffer,
    ) -> Result<(), ModelError> {
        let cols = from.cols;
        for ((from, &row), &weight) in from.data().chunks_exact(cols).zip(rows).zip(weights) {
            let start = row as usize * cols;
            self.kernels.add_scaled(&mut to.data_mut()[start..start + cols], from, weight);
        }
        Ok(())
    }

    const ADDS_COLUMNS: bool = true;

    fn add_columns(
        &mut self,
        low: &Self::Buffer,
        columns: &[f32],
        rows: &[u32],
        weights: &[f32],
        to: &mut Self::Buffer,
    ) -> Result<(), ModelError> {
        let (rank, cols) = (low.cols, to.cols);
        // All rows in their order, as of a batch that is of one adapter: threads share them.
        if to.rows == rows.len() && rows.iter().zip(0..).all(|(&row, place)| row == place) {
            self.kernels.add_columns(&self.pool, to.data_mut(), low.data(), columns, weights);
            return Ok(());
        }
        for ((low, &row), weight) in low.data().chunks_exact(rank).zip(rows).zip(weights.chunks_exact(1)) {
            let start = row as usize * cols;
            self.kernels.add_columns(
                &self.pool,
                &mut to.data_mut()[start..start + cols],
                low,
                columns,
                weight,
            );
        }
        Ok(())
    }

    fn add(&mut self, x: &mut Self::Buffer, y: &Self::Buffer) -> Result<(), ModelError> {
        self.kernels.add(&self.pool, x.data_mut(), y.data());
        Ok(())
    }

    fn soft_cap(&mut self, x: &mut Self::Buffer, cap: f32) -> Result<(), ModelError> {
        self.kernels.soft_cap(&self.pool, x.data_mut(), cap);
        Ok(())
    }

    fn select(&mut self, x: &Self::Buffer, rows: &[u32], out: &mut Self::Buffer) -> Result<(), ModelError> {
        let cols = x.cols;
        for (to, &row) in out.resize(rows.len(), cols).chunks_exact_mut(cols).zip(rows) {
            let start = row as usize * cols;
            to.copy_from_slice(&x.data()[start..start + cols]);
        }
        Ok(())
    }

    fn gate_sigmoid(&mut self, x: &mut Self::Buffer, gate: &Self::Buffer) -> Result<(), ModelError> {
        self.kernels.gate_sigmoid(&self.pool, x.data_mut(), gate.data());
        Ok(())
    }

    fn multiply(&mut self, x: &mut Self::Buffer, y: &Self::Buffer) -> Result<(), ModelError> {
        self.kernels.multiply(&self.pool, x.data_mut(), y.data());
        Ok(())
    }

    fn cut_off(&mut self, x: &mut Self::Buffer, deviations: f32) -> Result<(), ModelError> {
        let cols = x.cols;
        x.data_mut().chunks_exact_mut(cols).for_each(|row| cut_off(row, deviations));
        Ok(())
    }

    fn states(&self, slots: usize, floats: usize) -> Result<Self::Buffer, ModelError> {
        let data = zeros("the states of recurrent layers", &[slots, floats])?;
        Ok(CpuBuffer { data, rows: slots, cols: floats })
    }

    fn upload(&mut self, values: &[f32], row: usize, to: &mut Self::Buffer) -> Result<(), ModelError> {
        let cols = to.cols;
        to.data_mut()[row * cols..(row + 1) * cols].copy_from_slice(values);
        Ok(())
    }

    fn short_conv(
        &mut self,
        x: &Self::Buffer,
        taps: &Self::Vector,
        states: &mut Self::Buffer,
        runs: &[StateRun],
        out: &mut Self::Buffer,
    ) -> Result<(), ModelError> {
        let out = out.resize(x.rows, x.cols);
        Ok(self.kernels.short_conv(&self.pool, x.data(), (taps, x.cols), states.data_mut(), runs, out)?)
    }

    fn delta_rule(
        &mut self,
        shape: &DeltaShape,
        inputs: DeltaInputs<'_, Self>,
        states: &mut Self::Buffer,
        runs: &[StateRun],
        out: &mut Self::Buffer,
    ) -> Result<(), ModelError> {
        let DeltaInputs { mixed, decay, rate, slope, bias } = inputs;
        let out = out.resize(mixed.rows, shape.value_heads * shape.value_dim);
        let gates = (decay.data_mut(), rate.data_mut());
        let (mixed, states) = (mixed.data_mut(), states.data_mut());
        Ok(self.kernels.delta_rule(&self.pool, shape, mixed, gates, (slope, bias), states, runs, out)?)
    }
}
