//! What the decoder asks of a device.
//!
//! Activations live in [`Backend::Buffer`]s: `[rows, cols]` f32, allocated once for the largest batch; an operation sets
//! the number of rows that are in use. Operations write into a buffer that the decoder gives them, so a CPU backend
//! computes in place and a tensor library assigns its result.

use moli_format::Tensor;
use moli_kernels::{DeltaShape, KvSlot, RopeAngles, RopeStyle, StateRun};

use crate::config::Activation;
use crate::weights::{Linear, Norm};
use crate::{KvShape, KvType, ModelError};

/// The shape of attention in one layer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AttentionSpec {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads, a divisor of `heads`.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Factor on the scores.
    pub scale: f32,
    /// `c` in `c * tanh(score / c)`.
    pub soft_cap: Option<f32>,
    /// Keys that a query sees, itself included, and of a whole text so many on either side; `None`: all.
    pub window: Option<usize>,
}

/// The rows of a batch as attention sees them, already checked: every position has a reserved slot.
#[derive(Debug, Clone, Copy)]
pub struct Rows<'a> {
    /// Position of each row.
    pub positions: &'a [u32],
    /// Index into `tables` of each row.
    pub sequences: &'a [u32],
    /// Tokens of each sequence where its rows attend to all of them; `None`: attention is causal.
    pub lengths: Option<&'a [u32]>,
    /// Pages of the sequences, in order of position.
    pub tables: &'a [&'a [u32]],
    /// Where each row's own key and value go.
    pub slots: &'a [KvSlot],
}

/// What a gated delta rule reads.
pub struct DeltaInputs<'a, B: Backend + ?Sized> {
    /// Queries, keys and values of all heads, `[rows, shape.mixed()]`; the first two are made unit vectors.
    pub mixed: &'a mut B::Buffer,
    /// What the decays are computed of, `[rows, value_heads]`, and they are then.
    pub decay: &'a mut B::Buffer,
    /// What the rates are computed of, `[rows, value_heads]`, and they are then.
    pub rate: &'a mut B::Buffer,
    /// See [`Kernels::delta_rule`](moli_kernels::Kernels::delta_rule), `[value_heads]`.
    pub slope: &'a B::Vector,
    /// Likewise, `[value_heads]`.
    pub bias: &'a B::Vector,
}

/// [`Backend::cut_off`] of a row. Sums have sixteen lanes, in double precision.
pub(crate) fn cut_off(row: &mut [f32], deviations: f32) {
    let sum = |term: &dyn Fn(f32) -> f64| {
        let mut lanes = [0.0; 16];
        for chunk in row.chunks(16) {
            for (lane, &x) in lanes.iter_mut().zip(chunk) {
                *lane += term(x);
            }
        }
        lanes.iter().sum::<f64>() / row.len() as f64
    };
    let mean = sum(&|x| f64::from(x));
    let deviation = sum(&|x| (f64::from(x) - mean).powi(2)).sqrt();
    let least = (mean + deviation * f64::from(deviations)) as f32;
    row.iter_mut().for_each(|x| *x = (*x - least).max(0.0));
}

/// A device that computes the decoder's operations.
pub trait Backend: Send {
    /// A weight matrix in the file's own format.
    type Matrix: Clone + Send;
    /// A vector of f32 weights.
    type Vector: Send;
    /// Activations, `[rows, cols]` f32.
    type Buffer: Send;
    /// Keys and values of all layers, in pages.
    type Cache: Send;

    /// What computes, in words.
    fn description(&self) -> String;

    /// Makes room for products of `rows` activations of `cols` columns.
    ///
    /// # Errors
    /// When the memory can't be had.
    fn reserve(&mut self, rows: usize, cols: usize) -> Result<(), ModelError>;

    /// Takes a matrix of `dims[1]` rows of `dims[0]` columns, without a copy where the device allows it.
    ///
    /// # Errors
    /// [`ModelError::TensorType`] when the device can't compute with the tensor's type.
    fn matrix(&self, tensor: &Tensor) -> Result<Self::Matrix, ModelError>;

    /// Takes a vector.
    ///
    /// # Errors
    /// When the device can't hold it.
    fn vector(&self, values: Vec<f32>) -> Result<Self::Vector, ModelError>;

    /// Allocates activations for at most `rows` rows.
    ///
    /// # Errors
    /// [`ModelError::TooLarge`] when the size overflows.
    fn buffer(&self, rows: usize, cols: usize) -> Result<Self::Buffer, ModelError>;

    /// Allocates the keys and values of `pages` pages in each of these layers.
    ///
    /// # Errors
    /// [`ModelError::TooLarge`] when the size overflows or can't be had, [`ModelError::UnsupportedKvType`] when the device has
    /// no such keys and values.
    fn cache(&self, layers: &[KvShape], pages: usize, kv_type: KvType) -> Result<Self::Cache, ModelError>;

    /// Bytes of a page's keys and values, in all layers.
    fn page_bytes(&self, cache: &Self::Cache) -> usize;

    /// The name of what [`read_page`](Self::read_page) gives: the backend, the type, and a version that counts up with every
    /// change of the layout or of the bits that are stored.
    fn page_layout(&self, cache: &Self::Cache) -> String;

    /// Copies a page's keys and values, in all layers, to another page. Both exist.
    ///
    /// # Errors
    /// What the device reports.
    fn copy_page(&mut self, cache: &mut Self::Cache, from: u32, to: u32) -> Result<(), ModelError>;

    /// Appends a page's keys and values: of each layer the keys, then the values, as the cache has them, little-endian.
    ///
    /// # Errors
    /// What the device reports.
    fn read_page(&mut self, cache: &Self::Cache, page: u32, out: &mut Vec<u8>) -> Result<(), ModelError>;

    /// Puts keys and values that [`read_page`](Self::read_page) gave into a page; there are
    /// [`page_bytes`](Self::page_bytes) of them.
    ///
    /// # Errors
    /// What the device reports.
    fn write_page(&mut self, cache: &mut Self::Cache, page: u32, bytes: &[u8]) -> Result<(), ModelError>;

    /// Takes note of a batch whose operations come next. `angles`: those of its rotary embeddings, which the operations get again.
    ///
    /// # Errors
    /// As the device reports.
    fn begin(&mut self, _rows: &Rows<'_>, _angles: [&RopeAngles; 2]) -> Result<(), ModelError> {
        Ok(())
    }

    /// Rows of a buffer that are in use.
    fn rows(&self, x: &Self::Buffer) -> usize;

    /// A buffer's rows in use, where the host reads them: in the buffer itself, or in `copy`.
    ///
    /// # Errors
    /// As the device reports; so for every operation below.
    fn download<'a>(&mut self, x: &'a Self::Buffer, copy: &'a mut Vec<f32>) -> Result<&'a [f32], ModelError>;

    /// `out[i] = scale * table[tokens[i]]`.
    fn embed(
        &mut self,
        table: &Self::Matrix,
        tokens: &[u32],
        scale: f32,
        out: &mut Self::Buffer,
    ) -> Result<(), ModelError>;

    /// A norm of each row: `out = gain * x / sqrt(mean(x²) + eps)`, or LayerNorm.
    fn norm(
        &mut self,
        x: &Self::Buffer,
        norm: &Norm<Self::Vector>,
        eps: f32,
        out: &mut Self::Buffer,
    ) -> Result<(), ModelError>;

    /// RMS norm in place, of each piece of a row that is as long as `gain`: a head.
    fn rms_norm_heads(
        &mut self,
        x: &mut Self::Buffer,
        gain: &Self::Vector,
        eps: f32,
    ) -> Result<(), ModelError>;

    /// `out = x · weightᵀ + bias` for each pair; `x` is quantised once for all of them.
    fn project(
        &mut self,
        x: &Self::Buffer,
        into: &mut [(&Linear<Self>, &mut Self::Buffer)],
    ) -> Result<(), ModelError>;

    /// Turns the first `2 * angles.half()` elements of each head by its row's angles.
    fn rope(
        &mut self,
        x: &mut Self::Buffer,
        angles: &RopeAngles,
        style: RopeStyle,
        head_dim: usize,
    ) -> Result<(), ModelError>;

    /// Stores the rows' keys and values in their slots, rounded to the cache's type.
    fn store(
        &mut self,
        cache: &mut Self::Cache,
        layer: usize,
        spec: &AttentionSpec,
        keys: &Self::Buffer,
        values: &Self::Buffer,
        rows: &Rows<'_>,
    ) -> Result<(), ModelError>;

    /// Attention of each row over its own sequence, `out: [rows, heads * head_dim]`. `sinks`, `[heads]`: the score of a
    /// further key of each head, whose value is 0.
    #[allow(clippy::too_many_arguments, reason = "they are what attention is of")]
    fn attention(
        &mut self,
        q: &Self::Buffer,
        sinks: Option<&Self::Vector>,
        cache: &Self::Cache,
        layer: usize,
        spec: &AttentionSpec,
        rows: &Rows<'_>,
        out: &mut Self::Buffer,
    ) -> Result<(), ModelError>;

    /// `gate = activation(gate) * up` (arXiv:2002.05202).
    fn gated(
        &mut self,
        gate: &mut Self::Buffer,
        up: &Self::Buffer,
        activation: Activation,
    ) -> Result<(), ModelError>;

    /// `x = activation(x)`.
    fn activate(&mut self, x: &mut Self::Buffer, activation: Activation) -> Result<(), ModelError>;

    /// `x = factor * x`.
    fn scale(&mut self, x: &mut Self::Buffer, factor: f32) -> Result<(), ModelError>;

    /// Puts `rows` rows of `cols` zeros in use.
    fn zero(&mut self, x: &mut Self::Buffer, rows: usize, cols: usize) -> Result<(), ModelError>;

    /// Copies columns, of each row `to[to_start + i] = from[from_start + i]` for `i` below `count`.
    fn copy_columns(
        &mut self,
        from: &Self::Buffer,
        from_start: usize,
        to: &mut Self::Buffer,
        to_start: usize,
        count: usize,
    ) -> Result<(), ModelError>;

    /// `to[rows[i]] += weights[i] * from[i]`, each product and sum rounded once.
    fn scatter_add(
        &mut self,
        from: &Self::Buffer,
        rows: &[u32],
        weights: &[f32],
        to: &mut Self::Buffer,
    ) -> Result<(), ModelError>;

    /// Whether [`add_columns`](Self::add_columns) is faster here than a product with the same matrix and
    /// [`scatter_add`](Self::scatter_add).
    const ADDS_COLUMNS: bool = false;

    /// `to[rows[i]] += weights[i] * low[i][r] * columns[r]`, r rising; columns: `[low's, to's]`. Only where
    /// [`ADDS_COLUMNS`](Self::ADDS_COLUMNS) says so.
    ///
    /// # Errors
    /// [`ModelError::UnsupportedOperation`] where it does not.
    fn add_columns(
        &mut self,
        _low: &Self::Buffer,
        _columns: &[f32],
        _rows: &[u32],
        _weights: &[f32],
        _to: &mut Self::Buffer,
    ) -> Result<(), ModelError> {
        let operation = "adding columns";
        Err(ModelError::UnsupportedOperation { backend: self.description(), operation })
    }

    /// `x += y`.
    fn add(&mut self, x: &mut Self::Buffer, y: &Self::Buffer) -> Result<(), ModelError>;

    /// `x = cap * tanh(x / cap)`.
    fn soft_cap(&mut self, x: &mut Self::Buffer, cap: f32) -> Result<(), ModelError>;

    /// `out[i] = x[rows[i]]`.
    fn select(&mut self, x: &Self::Buffer, rows: &[u32], out: &mut Self::Buffer) -> Result<(), ModelError>;

    // What only some architectures need: those that gate attention, and those whose layers carry a state.

    /// `x *= sigmoid(gate)`.
    fn gate_sigmoid(&mut self, x: &mut Self::Buffer, gate: &Self::Buffer) -> Result<(), ModelError> {
        let _ = (x, gate);
        self.unsupported("gated attention")
    }

    /// `x *= y`.
    fn multiply(&mut self, x: &mut Self::Buffer, y: &Self::Buffer) -> Result<(), ModelError> {
        let _ = (x, y);
        self.unsupported("products of activations")
    }

    /// What of each row is above its mean by more than so many of its standard deviations, by how much it is; else 0:
    /// `x = max(x - mean - deviations * deviation, 0)`.
    fn cut_off(&mut self, x: &mut Self::Buffer, deviations: f32) -> Result<(), ModelError> {
        let _ = (x, deviations);
        self.unsupported("gates that have to stand out")
    }

    /// Allocates the states of a layer, zeros, `[slots, floats]`.
    fn states(&self, slots: usize, floats: usize) -> Result<Self::Buffer, ModelError> {
        let _ = (slots, floats);
        self.unsupported("recurrent layers")
    }

    /// Puts the numbers of one row where the host has them: `to[row] = values`.
    fn upload(&mut self, values: &[f32], row: usize, to: &mut Self::Buffer) -> Result<(), ModelError> {
        let _ = (values, row, to);
        self.unsupported("recurrent layers")
    }

    /// A causal convolution of each run's rows, each channel by itself, with `taps`, `[taps, channels]`; see
    /// [`Kernels::short_conv`](moli_kernels::Kernels::short_conv).
    fn short_conv(
        &mut self,
        x: &Self::Buffer,
        taps: &Self::Vector,
        states: &mut Self::Buffer,
        runs: &[StateRun],
        out: &mut Self::Buffer,
    ) -> Result<(), ModelError> {
        let _ = (x, taps, states, runs, out);
        self.unsupported("short convolutions")
    }

    /// The gated delta rule on each run's rows, `out: [rows, value_heads * value_dim]`; see
    /// [`Kernels::delta_rule`](moli_kernels::Kernels::delta_rule).
    fn delta_rule(
        &mut self,
        shape: &DeltaShape,
        inputs: DeltaInputs<'_, Self>,
        states: &mut Self::Buffer,
        runs: &[StateRun],
        out: &mut Self::Buffer,
    ) -> Result<(), ModelError> {
        let _ = (shape, inputs, states, runs, out);
        self.unsupported("gated delta rules")
    }

    /// The error for an operation that is not computed here.
    #[doc(hidden)]
    fn unsupported<T>(&self, operation: &'static str) -> Result<T, ModelError> {
        Err(ModelError::UnsupportedOperation { backend: self.description(), operation })
    }
}
