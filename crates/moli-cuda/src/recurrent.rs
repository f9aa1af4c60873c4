//! Layers that carry a state from token to token: see `kernels/recurrent.cu`.

use moli_kernels::{DeltaShape, StateRun};

use crate::activations::Buffer;
use crate::error::same;
use crate::gpu::{each, grid, int, launch};
use crate::memory::Array;
use crate::{CudaError, Gpu};

/// No state before a run: it is the beginning of a text.
const NO_STATE: u32 = u32::MAX;
/// Shared memory that a head's state may take.
pub(crate) const STATE_BYTES: usize = 96 << 10;
/// Columns of a head's state: threads of a block.
const MOST_COLUMNS: usize = 1024;

/// What a gated delta rule reads: see [`Gpu::delta_rule`].
pub struct DeltaInputs<'a> {
    /// Queries, keys and values of all heads, `[rows, shape.mixed()]`; the first two are made unit vectors.
    pub mixed: &'a mut Buffer,
    /// What the decays are computed of, `[rows, value_heads]`, and they are then.
    pub decay: &'a mut Buffer,
    /// What the rates are computed of, `[rows, value_heads]`, and they are then.
    pub rate: &'a mut Buffer,
    /// `[value_heads]`.
    pub slope: &'a Array<f32>,
    /// `[value_heads]`.
    pub bias: &'a Array<f32>,
}

impl Gpu {
    /// `x *= sigmoid(gate)`.
    ///
    /// # Errors
    /// [`CudaError::Shape`], or what the driver reports; so for every operation below.
    pub fn gate_sigmoid(&self, x: &mut Buffer, gate: &Buffer) -> Result<(), CudaError> {
        same("gates", x.len(), gate.len())?;
        self.elements(x.len(), |threads, count| {
            launch!(self, self.kernels.gate_sigmoid, threads; x.address(), gate.address(), count)
        })
    }

    /// `x *= y`.
    pub fn multiply(&self, x: &mut Buffer, y: &Buffer) -> Result<(), CudaError> {
        same("factors", x.len(), y.len())?;
        self.elements(
            x.len(),
            |threads, count| launch!(self, self.kernels.multiply, threads; x.address(), y.address(), count),
        )
    }

    /// States of a layer, zeros, `[slots, floats]`.
    pub fn states(&self, slots: usize, floats: usize) -> Result<Buffer, CudaError> {
        let mut states = Buffer::new(self, slots, floats)?;
        self.zero(&mut states, slots, floats)?;
        Ok(states)
    }

    /// The runs on the device, and how many rows the longest has. They are checked.
    fn runs(&mut self, runs: &[StateRun], rows: usize, slots: usize) -> Result<usize, CudaError> {
        for run in runs {
            let end = run.first.saturating_add(run.rows);
            if end > rows {
                return Err(CudaError::Shape { what: "rows of a run", expected: rows, actual: end });
            }
            if let Some(slot) = run.from.into_iter().chain([run.to]).find(|&slot| slot as usize >= slots) {
                return Err(CudaError::Shape {
                    what: "a slot of states",
                    expected: slots,
                    actual: slot as usize,
                });
            }
        }
        let words = runs
            .iter()
            .flat_map(|run| [run.first as u32, run.rows as u32, run.from.unwrap_or(NO_STATE), run.to]);
        let words: Vec<u32> = words.collect();
        if words != self.runs.0 {
            if self.runs.1.len() < words.len() {
                self.runs.1 = self.array("the runs of a batch", words.len().next_power_of_two())?;
            }
            self.runs.1.write(&self.stream, 0, &words)?;
            self.runs.0 = words;
        }
        Ok(runs.iter().map(|run| run.rows).max().unwrap_or(0))
    }

    /// A causal convolution of each run's rows, each channel by itself; see
    /// [`Kernels::short_conv`](moli_kernels::Kernels::short_conv). taps: `[n, channels]`; states: `[slots, (n - 1) * channels]`.
    pub fn short_conv(
        &mut self,
        x: &Buffer,
        taps: &Array<f32>,
        states: &mut Buffer,
        runs: &[StateRun],
        out: &mut Buffer,
    ) -> Result<(), CudaError> {
        let channels = x.cols.max(1);
        let before = (taps.len() / channels).saturating_sub(1);
        same("taps", (before + 1) * channels, taps.len())?;
        same("columns of states", before * channels, states.cols)?;
        out.resize(self, x.rows, x.cols)?;
        let longest = self.runs(runs, x.rows, states.rows)?;
        if longest == 0 {
            return Ok(());
        }
        let (inputs, width) = (int("taps", before)?, int("channels", channels)?);
        let all = grid(((longest * channels).div_ceil(256), runs.len(), 1), 256, 0)?;
        launch!(self, self.kernels.short_conv, all;
            x.address(), taps.address(), states.address(), self.runs.1.address(), inputs, width, out.address())?;
        let channel = grid((channels.div_ceil(256), runs.len(), 1), 256, 0)?;
        launch!(self, self.kernels.short_conv_state, channel;
            x.address(), states.address(), self.runs.1.address(), inputs, width)
    }

    /// The gated delta rule on each run's rows, `out: [rows, value_heads * value_dim]`; see
    /// [`Kernels::delta_rule`](moli_kernels::Kernels::delta_rule).
    pub fn delta_rule(
        &mut self,
        shape: &DeltaShape,
        inputs: DeltaInputs<'_>,
        states: &mut Buffer,
        runs: &[StateRun],
        out: &mut Buffer,
    ) -> Result<(), CudaError> {
        let DeltaShape { key_heads, value_heads, key_dim, value_dim, tiled } = *shape;
        let DeltaInputs { mixed, decay, rate, slope, bias } = inputs;
        let rows = mixed.rows;
        if key_heads == 0
            || key_dim == 0
            || !value_heads.is_multiple_of(key_heads)
            || value_dim > MOST_COLUMNS
        {
            return Err(CudaError::Shape {
                what: "heads of a delta rule",
                expected: MOST_COLUMNS,
                actual: value_dim,
            });
        }
        for (what, expected, actual) in [
            ("columns of queries, keys and values", shape.mixed(), mixed.cols),
            ("decays", rows * value_heads, decay.len()),
            ("rates", rows * value_heads, rate.len()),
            ("slopes", value_heads, slope.len()),
            ("biases", value_heads, bias.len()),
            ("columns of states", shape.state(), states.cols),
        ] {
            same(what, expected, actual)?;
        }
        out.resize(self, rows, value_heads * value_dim)?;
        if self.runs(runs, rows, states.rows)? == 0 {
            return Ok(());
        }
        let whole = |what, number| int(what, number);
        let (k_heads, v_heads) = (whole("key heads", key_heads)?, whole("value heads", value_heads)?);
        let (k_dim, v_dim) = (whole("elements of a key", key_dim)?, whole("elements of a value", value_dim)?);
        self.elements(decay.len(), |threads, count| {
            launch!(self, self.kernels.delta_gates, threads;
                decay.address(), rate.address(), slope.address(), bias.address(), v_heads, count)
        })?;
        launch!(self, self.kernels.delta_units, each(rows * 2 * key_heads * 32)?;
            mixed.address(), whole("rows", rows)?, k_heads, k_dim, whole("columns", shape.mixed())?)?;
        let bytes = key_dim * value_dim * size_of::<f32>();
        let in_shared = bytes <= STATE_BYTES;
        let heads = grid(
            (value_heads, runs.len(), 1),
            value_dim.next_multiple_of(32),
            if in_shared { bytes } else { 0 },
        )?;
        launch!(self, self.kernels.delta_rule, heads;
            mixed.address(), decay.address(), rate.address(), states.address(), self.runs.1.address(), k_heads, v_heads, k_dim,
            v_dim, i32::from(tiled), i32::from(in_shared), out.address())
    }

    /// Puts the numbers of one row where the host has them: `to[row] = values`.
    pub fn upload(&self, values: &[f32], row: usize, to: &mut Buffer) -> Result<(), CudaError> {
        same("numbers of a row", to.cols, values.len())?;
        to.write_row(self, row, values)
    }
}
