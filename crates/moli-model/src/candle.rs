//! The decoder's operations on a candle device.
//!
//! candle brings the accelerators; on its CPU device this backend is the oracle of the parity tests: it shares no kernel
//! with [`crate::cpu`], only the trait. Matrices stay in the file's format (`QMatMul`); keys and values are f16,
//! everything else f32.

use std::sync::Arc;

use candle_core::quantized::{GgmlDType, QMatMul, QTensor, ggml_file};
use candle_core::{D, DType, Device, Module};
use half::f16;
use moli_format::{Tensor, TensorType};
use moli_kernels::{RopeAngles, RopeStyle};

use crate::backend::{AttentionSpec, Rows};
use crate::config::{Activation, Xielu};
use crate::weights::{Linear, Norm};
use crate::{Backend, KvShape, KvType, ModelError, PAGE_TOKENS};

/// A candle device.
pub struct CandleBackend {
    device: Device,
}

/// A quantised matrix, and the same tensor for the embedding's rows.
#[derive(Clone)]
pub struct CandleMatrix {
    matmul: QMatMul,
    table: Arc<QTensor>,
}

/// Keys and values of each layer: `[slots, kv_heads * head_dim]` f16.
pub struct CandleCache {
    layers: Vec<(candle_core::Tensor, candle_core::Tensor)>,
}

impl CandleCache {
    fn tensors(&self) -> impl Iterator<Item = &candle_core::Tensor> {
        self.layers.iter().flat_map(|(keys, values)| [keys, values])
    }
}

/// Names the operation in candle's errors.
trait Context<T> {
    fn during(self, operation: &'static str) -> Result<T, ModelError>;
}

impl<T> Context<T> for candle_core::Result<T> {
    fn during(self, operation: &'static str) -> Result<T, ModelError> {
        self.map_err(|error| ModelError::Accelerator { operation, message: error.to_string() })
    }
}

impl CandleBackend {
    /// A backend on the device.
    pub fn new(device: Device) -> Self {
        Self { device }
    }

    fn indices(&self, values: impl Iterator<Item = usize>) -> candle_core::Result<candle_core::Tensor> {
        let values: Vec<u32> = values.map(|value| value as u32).collect();
        let len = values.len();
        candle_core::Tensor::from_vec(values, len, &self.device)
    }

    /// Attention of consecutive rows of one sequence; `whole`: each row sees all of them.
    #[allow(clippy::too_many_arguments, reason = "they are what attention is of")]
    fn attend(
        &self,
        q: &candle_core::Tensor,
        sinks: Option<&candle_core::Tensor>,
        cache: &(candle_core::Tensor, candle_core::Tensor),
        spec: &AttentionSpec,
        pages: &[u32],
        positions: &[u32],
        whole: bool,
    ) -> candle_core::Result<candle_core::Tensor> {
        let rows = positions.len();
        let keys = positions.iter().max().map_or(0, |&last| last as usize + 1);
        let slot =
            |position: usize| pages[position / PAGE_TOKENS] as usize * PAGE_TOKENS + position % PAGE_TOKENS;
        let slots = self.indices((0..keys).map(slot))?;
        let group = spec.heads / spec.kv_heads;
        // [kv_heads, keys, head_dim]
        let gather = |cached: &candle_core::Tensor| {
            let shape = (keys, spec.kv_heads, spec.head_dim);
            cached
                .index_select(&slots, 0)?
                .to_dtype(DType::F32)?
                .reshape(shape)?
                .transpose(0, 1)?
                .contiguous()
        };
        let (k, v) = (gather(&cache.0)?, gather(&cache.1)?);
        // Query heads that share a key head become rows: [kv_heads, group * rows, head_dim].
        let q = q.reshape((rows, spec.kv_heads, group, spec.head_dim))?.permute((1, 2, 0, 3))?.reshape((
            spec.kv_heads,
            group * rows,
            spec.head_dim,
        ))?;
        let mut scores = (q.matmul(&k.transpose(1, 2)?.contiguous()?)? * f64::from(spec.scale))?;
        if let Some(cap) = spec.soft_cap {
            scores = ((scores / f64::from(cap))?.tanh()? * f64::from(cap))?;
        }
        let mask = positions.iter().flat_map(|&position| {
            let (position, window) = (position as usize, spec.window.unwrap_or(usize::MAX));
            (0..keys).map(move |key| {
                let seen = (whole || key <= position) && position.abs_diff(key) < window;
                if seen { 0.0 } else { f32::NEG_INFINITY }
            })
        });
        let mask = candle_core::Tensor::from_vec(mask.collect::<Vec<f32>>(), (rows, keys), &self.device)?;
        let scores = scores.reshape((spec.kv_heads, group, rows, keys))?.broadcast_add(&mask)?.reshape((
            spec.kv_heads,
            group * rows,
            keys,
        ))?;
        let max = scores.max_keepdim(D::Minus1)?;
        let weights = scores.broadcast_sub(&max)?.exp()?;
        let mut total = weights.sum_keepdim(D::Minus1)?;
        if let Some(sinks) = sinks {
            // The rows of `total` are [kv_heads, group * rows, 1].
            let sinks =
                sinks.reshape((spec.kv_heads, group, 1))?.broadcast_as((spec.kv_heads, group, rows))?;
            let sinks = sinks.contiguous()?.reshape((spec.kv_heads, group * rows, 1))?;
            total = (total + sinks.sub(&max)?.exp()?)?;
        }
        let weights = weights.broadcast_div(&total)?;
        weights
            .matmul(&v)?
            .reshape((spec.kv_heads, group, rows, spec.head_dim))?
            .permute((2, 0, 1, 3))?
            .reshape((rows, spec.heads * spec.head_dim))
    }
}

fn candle_type(ttype: TensorType) -> Option<GgmlDType> {
    Some(match ttype {
        TensorType::F32 => GgmlDType::F32,
        TensorType::F16 => GgmlDType::F16,
        TensorType::BF16 => GgmlDType::BF16,
        TensorType::Q4_0 => GgmlDType::Q4_0,
        TensorType::Q4_1 => GgmlDType::Q4_1,
        TensorType::Q5_0 => GgmlDType::Q5_0,
        TensorType::Q5_1 => GgmlDType::Q5_1,
        TensorType::Q8_0 => GgmlDType::Q8_0,
        TensorType::Q2K => GgmlDType::Q2K,
        TensorType::Q3K => GgmlDType::Q3K,
        TensorType::Q4K => GgmlDType::Q4K,
        TensorType::Q5K => GgmlDType::Q5K,
        TensorType::Q6K => GgmlDType::Q6K,
        _ => return None,
    })
}

fn rms_norm(
    x: &candle_core::Tensor,
    gain: &candle_core::Tensor,
    eps: f32,
) -> candle_core::Result<candle_core::Tensor> {
    let mean = x.sqr()?.mean_keepdim(D::Minus1)?;
    x.broadcast_div(&(mean + f64::from(eps))?.sqrt()?)?.broadcast_mul(gain)
}

fn xielu(x: &candle_core::Tensor, numbers: Xielu) -> candle_core::Result<candle_core::Tensor> {
    let [positive, negative, linear, limit] = numbers.numbers().map(f64::from);
    let above = (x.relu()?.sqr()? * positive)?;
    let below = ((x.minimum(limit)?.exp()? - 1.0)? - x.minimum(0.0)?)?;
    // Above 0 what is left of it is that of the limit, which is no part of the other.
    let below = (x.le(0.0)?.to_dtype(DType::F32)? * (below * negative)?)?;
    (above + below)? + (x * linear)?
}

impl Backend for CandleBackend {
    type Matrix = CandleMatrix;
    type Vector = candle_core::Tensor;
    type Buffer = candle_core::Tensor;
    type Cache = CandleCache;

    fn description(&self) -> String {
        format!("candle, {:?}", self.device.location()).to_lowercase()
    }

    fn reserve(&mut self, _rows: usize, _cols: usize) -> Result<(), ModelError> {
        Ok(())
    }

    fn matrix(&self, tensor: &Tensor) -> Result<Self::Matrix, ModelError> {
        let dtype = candle_type(tensor.ttype).ok_or_else(|| ModelError::TensorType {
            name: tensor.name.clone(),
            found: tensor.ttype.name(),
        })?;
        let dims = vec![tensor.rows(), tensor.cols()];
        let table = ggml_file::qtensor_from_ggml(dtype, &tensor.data, dims, &self.device)
            .during("reading a matrix")?;
        let table = Arc::new(table);
        Ok(CandleMatrix { matmul: QMatMul::from_arc(table.clone()).during("reading a matrix")?, table })
    }

    fn vector(&self, values: Vec<f32>) -> Result<Self::Vector, ModelError> {
        let len = values.len();
        candle_core::Tensor::from_vec(values, len, &self.device).during("reading a vector")
    }

    fn buffer(&self, _rows: usize, cols: usize) -> Result<Self::Buffer, ModelError> {
        // Operations assign their results: candle allocates for itself.
        candle_core::Tensor::zeros((1, cols), DType::F32, &self.device).during("allocating activations")
    }

    fn cache(&self, layers: &[KvShape], pages: usize, kv_type: KvType) -> Result<Self::Cache, ModelError> {
        if kv_type != KvType::F16 {
            return Err(ModelError::UnsupportedKvType { backend: "candle", kv_type, supported: KvType::F16 });
        }
        let zeros = |layer: &KvShape| {
            let shape = (pages * PAGE_TOKENS, layer.heads * layer.head_dim);
            candle_core::Tensor::zeros(shape, DType::F16, &self.device).during("allocating the KV cache")
        };
        let layer = |layer: &KvShape| Ok::<_, ModelError>((zeros(layer)?, zeros(layer)?));
        let layers = layers.iter().map(layer).collect::<Result<_, _>>()?;
        Ok(CandleCache { layers })
    }

    fn page_bytes(&self, cache: &Self::Cache) -> usize {
        let page = |tensor: &candle_core::Tensor| PAGE_TOKENS * tensor.dims().last().unwrap_or(&0);
        cache.tensors().map(|tensor| page(tensor) * size_of::<f16>()).sum()
    }

    fn page_layout(&self, _cache: &Self::Cache) -> String {
        format!("candle {} v1", KvType::F16)
    }

    fn copy_page(&mut self, cache: &mut Self::Cache, from: u32, to: u32) -> Result<(), ModelError> {
        for tensor in cache.tensors() {
            tensor
                .narrow(0, from as usize * PAGE_TOKENS, PAGE_TOKENS)
                .and_then(|page| tensor.slice_set(&page.copy()?, 0, to as usize * PAGE_TOKENS))
                .during("copying a KV page")?;
        }
        Ok(())
    }

    fn read_page(&mut self, cache: &Self::Cache, page: u32, out: &mut Vec<u8>) -> Result<(), ModelError> {
        for tensor in cache.tensors() {
            let elements: Vec<f16> = tensor
                .narrow(0, page as usize * PAGE_TOKENS, PAGE_TOKENS)
                .and_then(|page| page.flatten_all()?.to_vec1())
                .during("reading a KV page")?;
            out.extend(elements.iter().flat_map(|x| x.to_le_bytes()));
        }
        Ok(())
    }

    fn write_page(&mut self, cache: &mut Self::Cache, page: u32, bytes: &[u8]) -> Result<(), ModelError> {
        let mut elements = bytes.as_chunks::<{ size_of::<f16>() }>().0.iter().map(|x| f16::from_le_bytes(*x));
        for tensor in cache.tensors() {
            let width = *tensor.dims().last().unwrap_or(&0);
            let page_elements: Vec<f16> = elements.by_ref().take(PAGE_TOKENS * width).collect();
            candle_core::Tensor::from_vec(page_elements, (PAGE_TOKENS, width), &self.device)
                .and_then(|new| tensor.slice_set(&new, 0, page as usize * PAGE_TOKENS))
                .during("writing a KV page")?;
        }
        Ok(())
    }

    fn rows(&self, x: &Self::Buffer) -> usize {
        x.dims().first().copied().unwrap_or(0)
    }

    fn download<'a>(&mut self, x: &'a Self::Buffer, copy: &'a mut Vec<f32>) -> Result<&'a [f32], ModelError> {
        *copy = x.flatten_all().and_then(|x| x.to_vec1()).during("download")?;
        Ok(copy)
    }

    fn embed(
        &mut self,
        table: &Self::Matrix,
        tokens: &[u32],
        scale: f32,
        out: &mut Self::Buffer,
    ) -> Result<(), ModelError> {
        let rows = || {
            let ids = self.indices(tokens.iter().map(|&token| token as usize))?;
            table.table.embedding(&ids)?.to_dtype(DType::F32)? * f64::from(scale)
        };
        *out = rows().during("embedding")?;
        Ok(())
    }

    fn norm(
        &mut self,
        x: &Self::Buffer,
        norm: &Norm<Self::Vector>,
        eps: f32,
        out: &mut Self::Buffer,
    ) -> Result<(), ModelError> {
        let normed = || match norm {
            Norm::Rms { gain } => rms_norm(x, gain, eps),
            Norm::Layer { gain, bias } => {
                let centred = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
                let variance = centred.sqr()?.mean_keepdim(D::Minus1)?;
                let normed =
                    centred.broadcast_div(&(variance + f64::from(eps))?.sqrt()?)?.broadcast_mul(gain)?;
                bias.as_ref().map_or(Ok(normed.clone()), |bias| normed.broadcast_add(bias))
            }
        };
        *out = normed().during("norm")?;
        Ok(())
    }

    fn rms_norm_heads(
        &mut self,
        x: &mut Self::Buffer,
        gain: &Self::Vector,
        eps: f32,
    ) -> Result<(), ModelError> {
        let normed = || {
            let (rows, cols) = x.dims2()?;
            let head_dim = gain.dim(0)?;
            rms_norm(&x.reshape((rows, cols / head_dim, head_dim))?, gain, eps)?.reshape((rows, cols))
        };
        *x = normed().during("RMS norm of heads")?;
        Ok(())
    }

    fn project(
        &mut self,
        x: &Self::Buffer,
        into: &mut [(&Linear<Self>, &mut Self::Buffer)],
    ) -> Result<(), ModelError> {
        for (linear, out) in into {
            let product = || match &linear.bias {
                Some(bias) => linear.weight.matmul.forward(x)?.broadcast_add(bias),
                None => linear.weight.matmul.forward(x),
            };
            **out = product().during("matrix product")?;
        }
        Ok(())
    }

    fn rope(
        &mut self,
        x: &mut Self::Buffer,
        angles: &RopeAngles,
        style: RopeStyle,
        head_dim: usize,
    ) -> Result<(), ModelError> {
        let turned = || {
            let (rows, cols) = x.dims2()?;
            let (pairs, last) = (angles.half(), D::Minus1);
            let dims = 2 * pairs;
            let on_device =
                |part: &[f32]| candle_core::Tensor::from_slice(part, (rows, 1, pairs), &self.device);
            let (cos, sin) = (on_device(angles.cos())?, on_device(angles.sin())?);
            let heads = x.reshape((rows, cols / head_dim, head_dim))?;
            let turning = heads.narrow(last, 0, dims)?;
            let (a, b) = match style {
                RopeStyle::Interleaved => {
                    let pairs = turning.reshape((rows, cols / head_dim, pairs, 2))?;
                    (pairs.narrow(last, 0, 1)?.squeeze(last)?, pairs.narrow(last, 1, 1)?.squeeze(last)?)
                }
                RopeStyle::Halves | RopeStyle::HalvesToInterleaved => {
                    (turning.narrow(last, 0, pairs)?, turning.narrow(last, pairs, pairs)?)
                }
            };
            let first = (a.broadcast_mul(&cos)? - b.broadcast_mul(&sin)?)?;
            let second = (a.broadcast_mul(&sin)? + b.broadcast_mul(&cos)?)?;
            let turned = match style {
                RopeStyle::Interleaved | RopeStyle::HalvesToInterleaved => {
                    candle_core::Tensor::stack(&[first, second], 3)?.flatten_from(2)?
                }
                RopeStyle::Halves => candle_core::Tensor::cat(&[first, second], last)?,
            };
            let rest = heads.narrow(last, dims, head_dim - dims)?;
            candle_core::Tensor::cat(&[turned, rest], last)?.reshape((rows, cols))
        };
        *x = turned().during("rotary embedding")?;
        Ok(())
    }

    fn store(
        &mut self,
        cache: &mut Self::Cache,
        layer: usize,
        _spec: &AttentionSpec,
        keys: &Self::Buffer,
        values: &Self::Buffer,
        rows: &Rows<'_>,
    ) -> Result<(), ModelError> {
        let (k, v) = &cache.layers[layer];
        for (cached, new) in [(k, keys), (v, values)] {
            let new = new
                .to_dtype(DType::F16)
                .and_then(|new| new.contiguous())
                .during("storing keys and values")?;
            for (row, slot) in rows.slots.iter().enumerate() {
                let slot = slot.page as usize * PAGE_TOKENS + slot.token as usize;
                new.narrow(0, row, 1)
                    .and_then(|row| row.contiguous())
                    .and_then(|row| cached.slice_set(&row, 0, slot))
                    .during("storing keys and values")?;
            }
        }
        Ok(())
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
        let mut attended = Vec::new();
        let mut first = 0;
        for run in rows.sequences.chunk_by(|a, b| a == b) {
            let (len, pages) = (run.len(), rows.tables[run[0] as usize]);
            let positions = &rows.positions[first..first + len];
            let part = q
                .narrow(0, first, len)
                .and_then(|q| {
                    self.attend(
                        &q,
                        sinks,
                        &cache.layers[layer],
                        spec,
                        pages,
                        positions,
                        rows.lengths.is_some(),
                    )
                })
                .during("attention")?;
            attended.push(part);
            first += len;
        }
        *out = candle_core::Tensor::cat(&attended, 0).during("attention")?;
        Ok(())
    }

    fn gated(
        &mut self,
        gate: &mut Self::Buffer,
        up: &Self::Buffer,
        activation: Activation,
    ) -> Result<(), ModelError> {
        let product = || match activation {
            Activation::Silu => gate.silu()? * up,
            Activation::GeluTanh => gate.gelu()? * up,
            Activation::GeluErf => gate.gelu_erf()? * up,
            Activation::Relu => gate.relu()? * up,
            Activation::ReluSquared => gate.relu()?.sqr()? * up,
            Activation::Xielu(numbers) => xielu(gate, numbers)? * up,
            Activation::SwigluClamped => {
                let clamped = gate.minimum(7.0)?;
                let factor = ((&clamped * -1.702)?.exp()? + 1.0)?.recip()?;
                (clamped * factor)? * (up.clamp(-7.0, 7.0)? + 1.0)?
            }
        };
        *gate = product().during("gated activation")?;
        Ok(())
    }

    fn activate(&mut self, x: &mut Self::Buffer, activation: Activation) -> Result<(), ModelError> {
        let activated = match activation {
            Activation::Silu => x.silu(),
            Activation::GeluTanh => x.gelu(),
            Activation::GeluErf => x.gelu_erf(),
            Activation::Relu => x.relu(),
            Activation::ReluSquared => x.relu().and_then(|x| x.sqr()),
            Activation::Xielu(numbers) => xielu(x, numbers),
            Activation::SwigluClamped => return Err(ModelError::NoGate),
        };
        *x = activated.during("activation")?;
        Ok(())
    }

    fn scale(&mut self, x: &mut Self::Buffer, factor: f32) -> Result<(), ModelError> {
        *x = (&*x * f64::from(factor)).during("scaling")?;
        Ok(())
    }

    fn zero(&mut self, x: &mut Self::Buffer, rows: usize, cols: usize) -> Result<(), ModelError> {
        *x = candle_core::Tensor::zeros((rows, cols), DType::F32, &self.device).during("zeros")?;
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
        let (rows, after) = (to.dims()[0], to_start + count);
        let copied = || {
            let part = from.narrow(1, from_start, count)?;
            to.slice_assign(&[0..rows, to_start..after], &part.contiguous()?)
        };
        *to = copied().during("copying columns")?;
        Ok(())
    }

    fn scatter_add(
        &mut self,
        from: &Self::Buffer,
        rows: &[u32],
        weights: &[f32],
        to: &mut Self::Buffer,
    ) -> Result<(), ModelError> {
        let added = || {
            let weights = candle_core::Tensor::from_slice(weights, (weights.len(), 1), &self.device)?;
            let rows = self.indices(rows.iter().map(|&row| row as usize))?;
            to.index_add(&rows, &from.broadcast_mul(&weights)?, 0)
        };
        *to = added().during("adding rows")?;
        Ok(())
    }

    fn add(&mut self, x: &mut Self::Buffer, y: &Self::Buffer) -> Result<(), ModelError> {
        *x = (&*x + y).during("addition")?;
        Ok(())
    }

    fn multiply(&mut self, x: &mut Self::Buffer, y: &Self::Buffer) -> Result<(), ModelError> {
        *x = (&*x * y).during("product")?;
        Ok(())
    }

    fn cut_off(&mut self, x: &mut Self::Buffer, deviations: f32) -> Result<(), ModelError> {
        let cut = || {
            let above = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
            let deviation = above.sqr()?.mean_keepdim(D::Minus1)?.sqrt()?;
            above.broadcast_sub(&(deviation * f64::from(deviations))?)?.relu()
        };
        *x = cut().during("cutting off")?;
        Ok(())
    }

    fn soft_cap(&mut self, x: &mut Self::Buffer, cap: f32) -> Result<(), ModelError> {
        let capped = (&*x / f64::from(cap)).and_then(|x| x.tanh()).and_then(|x| x * f64::from(cap));
        *x = capped.during("soft cap")?;
        Ok(())
    }

    fn select(&mut self, x: &Self::Buffer, rows: &[u32], out: &mut Self::Buffer) -> Result<(), ModelError> {
        let rows = self.indices(rows.iter().map(|&row| row as usize)).during("selecting rows")?;
        *out = x.index_select(&rows, 0).during("selecting rows")?;
        Ok(())
    }
}
