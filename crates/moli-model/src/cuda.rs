//! The decoder's operations on an NVIDIA GPU: the kernels are those of `moli-cuda`.
//!
//! Everything is asked for in order and done some time later; the host waits where it reads, which is once in a batch of a model
//! without experts.

use moli_cuda::{Angles, Array, Buffer, Cache, CudaError, Function, Gpu, KvKind, Matrix, Shape};
use moli_format::Tensor;
use moli_kernels::{DeltaShape, RopeAngles, RopeStyle, StateRun};

use crate::backend::{AttentionSpec, DeltaInputs, Rows, cut_off};
use crate::config::Activation;
use crate::weights::{Linear, Norm};
use crate::{Backend, KvShape, KvType, ModelError};

/// A GPU.
pub struct CudaBackend {
    gpu: Gpu,
    /// The angles of the batch: of layers that see everything, and of those with a window.
    angles: Angles,
    local_angles: Angles,
    /// The address of the host's own angles of the second kind, by which an operation's are told apart.
    local: usize,
    /// What rows are weighted with where they are added.
    weights: Array<f32>,
}

impl CudaBackend {
    /// The GPU of this number.
    ///
    /// # Errors
    /// Why it can't be used.
    pub fn new(index: usize) -> Result<Self, ModelError> {
        let gpu = Gpu::open(index)?;
        let (angles, local_angles) = (Angles::new(&gpu)?, Angles::new(&gpu)?);
        let weights = gpu.vector(&[])?;
        Ok(Self { gpu, angles, local_angles, local: 0, weights })
    }
}

/// A matrix's name in what goes wrong with it.
fn of_tensor(tensor: &Tensor) -> impl FnOnce(CudaError) -> ModelError + '_ {
    |error| match error {
        CudaError::UnsupportedType { ttype } => {
            ModelError::TensorType { name: tensor.name.clone(), found: ttype.name() }
        }
        error => error.into(),
    }
}

fn function(activation: Activation) -> Option<Function> {
    Some(match activation {
        Activation::Silu => Function::Silu,
        Activation::GeluTanh => Function::GeluTanh,
        Activation::GeluErf => Function::GeluErf,
        Activation::Relu => Function::Relu,
        Activation::ReluSquared => Function::ReluSquared,
        Activation::SwigluClamped => Function::SwigluClamped,
        Activation::Xielu(_) => return None,
    })
}

impl Backend for CudaBackend {
    type Matrix = Matrix;
    type Vector = Array<f32>;
    type Buffer = Buffer;
    type Cache = Cache;

    fn description(&self) -> String {
        let info = self.gpu.info();
        format!("cuda:{}, {}", info.index, info.name)
    }

    fn reserve(&mut self, rows: usize, cols: usize) -> Result<(), ModelError> {
        Ok(self.gpu.reserve(rows, cols)?)
    }

    fn matrix(&self, tensor: &Tensor) -> Result<Self::Matrix, ModelError> {
        Matrix::new(&self.gpu, tensor).map_err(of_tensor(tensor))
    }

    fn vector(&self, values: Vec<f32>) -> Result<Self::Vector, ModelError> {
        Ok(self.gpu.vector(&values)?)
    }

    fn buffer(&self, rows: usize, cols: usize) -> Result<Self::Buffer, ModelError> {
        Ok(Buffer::new(&self.gpu, rows, cols)?)
    }

    fn cache(&self, layers: &[KvShape], pages: usize, kv_type: KvType) -> Result<Self::Cache, ModelError> {
        let kind = match kv_type {
            KvType::F32 => KvKind::F32,
            KvType::F16 => KvKind::F16,
            KvType::Q8_0 => KvKind::Q8_0,
        };
        let layers: Vec<_> = layers.iter().map(|shape| (shape.heads, shape.head_dim)).collect();
        Ok(Cache::new(&self.gpu, &layers, pages, kind)?)
    }

    fn page_bytes(&self, cache: &Self::Cache) -> usize {
        cache.page_bytes()
    }

    fn page_layout(&self, cache: &Self::Cache) -> String {
        let kv_type = match cache.kind() {
            KvKind::F32 => KvType::F32,
            KvKind::F16 => KvType::F16,
            KvKind::Q8_0 => KvType::Q8_0,
        };
        format!("cuda {kv_type} v1")
    }

    fn copy_page(&mut self, cache: &mut Self::Cache, from: u32, to: u32) -> Result<(), ModelError> {
        Ok(self.gpu.copy_page(cache, from, to)?)
    }

    fn read_page(&mut self, cache: &Self::Cache, page: u32, out: &mut Vec<u8>) -> Result<(), ModelError> {
        Ok(self.gpu.read_page(cache, page, out)?)
    }

    fn write_page(&mut self, cache: &mut Self::Cache, page: u32, bytes: &[u8]) -> Result<(), ModelError> {
        Ok(self.gpu.write_page(cache, page, bytes)?)
    }

    fn begin(&mut self, rows: &Rows<'_>, [angles, local]: [&RopeAngles; 2]) -> Result<(), ModelError> {
        self.gpu.angles(angles, &mut self.angles)?;
        self.gpu.angles(local, &mut self.local_angles)?;
        self.local = std::ptr::from_ref(local).addr();
        Ok(self.gpu.begin(&moli_cuda::Rows {
            positions: rows.positions,
            sequences: rows.sequences,
            lengths: rows.lengths,
            tables: rows.tables,
            slots: rows.slots,
        })?)
    }

    fn rows(&self, x: &Self::Buffer) -> usize {
        x.rows()
    }

    fn download<'a>(&mut self, x: &'a Self::Buffer, copy: &'a mut Vec<f32>) -> Result<&'a [f32], ModelError> {
        self.gpu.download(x, copy)?;
        Ok(copy)
    }

    fn embed(
        &mut self,
        table: &Self::Matrix,
        tokens: &[u32],
        scale: f32,
        out: &mut Self::Buffer,
    ) -> Result<(), ModelError> {
        Ok(self.gpu.look_up(table, tokens, scale, out)?)
    }

    fn norm(
        &mut self,
        x: &Self::Buffer,
        norm: &Norm<Self::Vector>,
        eps: f32,
        out: &mut Self::Buffer,
    ) -> Result<(), ModelError> {
        let normed = match norm {
            Norm::Rms { gain } => self.gpu.rms_norm(x, gain, eps, out),
            Norm::Layer { gain, bias } => self.gpu.layer_norm(x, gain, bias.as_ref(), eps, out),
        };
        Ok(normed?)
    }

    fn rms_norm_heads(
        &mut self,
        x: &mut Self::Buffer,
        gain: &Self::Vector,
        eps: f32,
    ) -> Result<(), ModelError> {
        Ok(self.gpu.rms_norm_pieces(x, gain, eps)?)
    }

    fn project(
        &mut self,
        x: &Self::Buffer,
        into: &mut [(&Linear<Self>, &mut Self::Buffer)],
    ) -> Result<(), ModelError> {
        let products =
            into.iter_mut().map(|(linear, out)| (&linear.weight, linear.bias.as_ref(), &mut **out));
        Ok(self.gpu.project(x, products)?)
    }

    fn rope(
        &mut self,
        x: &mut Self::Buffer,
        angles: &RopeAngles,
        style: RopeStyle,
        head_dim: usize,
    ) -> Result<(), ModelError> {
        let local = std::ptr::from_ref(angles).addr() == self.local;
        let angles = if local { &self.local_angles } else { &self.angles };
        Ok(self.gpu.rope(x, angles, style, head_dim)?)
    }

    fn store(
        &mut self,
        cache: &mut Self::Cache,
        layer: usize,
        _spec: &AttentionSpec,
        keys: &Self::Buffer,
        values: &Self::Buffer,
        _rows: &Rows<'_>,
    ) -> Result<(), ModelError> {
        Ok(self.gpu.store(cache, layer, keys, values)?)
    }

    fn attention(
        &mut self,
        q: &Self::Buffer,
        sinks: Option<&Self::Vector>,
        cache: &Self::Cache,
        layer: usize,
        spec: &AttentionSpec,
        _rows: &Rows<'_>,
        out: &mut Self::Buffer,
    ) -> Result<(), ModelError> {
        let shape = Shape {
            heads: spec.heads,
            kv_heads: spec.kv_heads,
            head_dim: spec.head_dim,
            scale: spec.scale,
            soft_cap: spec.soft_cap,
            window: spec.window,
        };
        Ok(self.gpu.attention(q, sinks, cache, layer, &shape, out)?)
    }

    fn gated(
        &mut self,
        gate: &mut Self::Buffer,
        up: &Self::Buffer,
        activation: Activation,
    ) -> Result<(), ModelError> {
        match function(activation) {
            Some(function) => Ok(self.gpu.gated(gate, up, function)?),
            None => self.unsupported("xIELU"),
        }
    }

    fn activate(&mut self, x: &mut Self::Buffer, activation: Activation) -> Result<(), ModelError> {
        if activation == Activation::SwigluClamped {
            return Err(ModelError::NoGate);
        }
        match function(activation) {
            Some(function) => Ok(self.gpu.activate(x, function)?),
            None => self.unsupported("xIELU"),
        }
    }

    fn scale(&mut self, x: &mut Self::Buffer, factor: f32) -> Result<(), ModelError> {
        Ok(self.gpu.scale(x, factor)?)
    }

    fn zero(&mut self, x: &mut Self::Buffer, rows: usize, cols: usize) -> Result<(), ModelError> {
        Ok(self.gpu.zero(x, rows, cols)?)
    }

    fn copy_columns(
        &mut self,
        from: &Self::Buffer,
        from_start: usize,
        to: &mut Self::Buffer,
        to_start: usize,
        count: usize,
    ) -> Result<(), ModelError> {
        Ok(self.gpu.copy_columns(from, from_start, to, to_start, count)?)
    }

    fn scatter_add(
        &mut self,
        from: &Self::Buffer,
        rows: &[u32],
        weights: &[f32],
        to: &mut Self::Buffer,
    ) -> Result<(), ModelError> {
        self.gpu.write(&mut self.weights, weights)?;
        Ok(self.gpu.scatter_add(from, rows, &self.weights, to)?)
    }

    fn add(&mut self, x: &mut Self::Buffer, y: &Self::Buffer) -> Result<(), ModelError> {
        Ok(self.gpu.add(x, y)?)
    }

    fn soft_cap(&mut self, x: &mut Self::Buffer, cap: f32) -> Result<(), ModelError> {
        Ok(self.gpu.soft_cap(x, cap)?)
    }

    fn select(&mut self, x: &Self::Buffer, rows: &[u32], out: &mut Self::Buffer) -> Result<(), ModelError> {
        Ok(self.gpu.select(x, rows, out)?)
    }

    fn gate_sigmoid(&mut self, x: &mut Self::Buffer, gate: &Self::Buffer) -> Result<(), ModelError> {
        Ok(self.gpu.gate_sigmoid(x, gate)?)
    }

    fn multiply(&mut self, x: &mut Self::Buffer, y: &Self::Buffer) -> Result<(), ModelError> {
        Ok(self.gpu.multiply(x, y)?)
    }

    fn cut_off(&mut self, x: &mut Self::Buffer, deviations: f32) -> Result<(), ModelError> {
        // On the host: a few layers of one architecture have it.
        let (mut values, cols) = (Vec::new(), x.cols());
        self.gpu.download(x, &mut values)?;
        for (row, values) in values.chunks_exact_mut(cols.max(1)).enumerate() {
            cut_off(values, deviations);
            self.gpu.upload(values, row, x)?;
        }
        Ok(())
    }

    fn states(&self, slots: usize, floats: usize) -> Result<Self::Buffer, ModelError> {
        Ok(self.gpu.states(slots, floats)?)
    }

    fn upload(&mut self, values: &[f32], row: usize, to: &mut Self::Buffer) -> Result<(), ModelError> {
        Ok(self.gpu.upload(values, row, to)?)
    }

    fn short_conv(
        &mut self,
        x: &Self::Buffer,
        taps: &Self::Vector,
        states: &mut Self::Buffer,
        runs: &[StateRun],
        out: &mut Self::Buffer,
    ) -> Result<(), ModelError> {
        Ok(self.gpu.short_conv(x, taps, states, runs, out)?)
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
        let inputs = moli_cuda::DeltaInputs { mixed, decay, rate, slope, bias };
        Ok(self.gpu.delta_rule(shape, inputs, states, runs, out)?)
    }
}
