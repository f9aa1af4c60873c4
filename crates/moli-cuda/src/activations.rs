//! Activations, `[rows, cols]` f32, and what happens to them between products.

use moli_kernels::{RopeAngles, RopeStyle};

use crate::error::same;
use crate::gpu::{each, grid, int, launch};
use crate::memory::Array;
use crate::{CudaError, Gpu};

/// Activations, `[rows, cols]` f32, in memory for more.
pub struct Buffer {
    data: Array<f32>,
    pub(crate) rows: usize,
    pub(crate) cols: usize,
}

impl Buffer {
    /// Room for `rows` rows of `cols` columns.
    ///
    /// # Errors
    /// [`CudaError::OutOfMemory`].
    pub fn new(gpu: &Gpu, rows: usize, cols: usize) -> Result<Self, CudaError> {
        let data = gpu.array("a buffer of activations", rows.saturating_mul(cols))?;
        Ok(Self { data, rows, cols })
    }

    /// Rows in use.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Columns of each.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Puts rows in use. The memory grows where it is short, as that of the logits may be; then nothing of it is kept.
    pub(crate) fn resize(&mut self, gpu: &Gpu, rows: usize, cols: usize) -> Result<(), CudaError> {
        let elements = rows.saturating_mul(cols);
        if elements > self.data.len() {
            self.data = gpu.array("a buffer of activations", elements)?;
        }
        (self.rows, self.cols) = (rows, cols);
        Ok(())
    }

    pub(crate) fn address(&self) -> u64 {
        self.data.address()
    }

    /// Where a row is.
    pub(crate) fn at(&self, row: usize) -> u64 {
        self.data.at(row * self.cols)
    }

    /// Elements in use.
    pub(crate) fn len(&self) -> usize {
        self.rows * self.cols
    }

    /// Writes a row.
    pub(crate) fn write_row(&mut self, gpu: &Gpu, row: usize, values: &[f32]) -> Result<(), CudaError> {
        self.data.write(&gpu.stream, row.saturating_mul(self.cols), values)
    }
}

/// An activation function, by the kernels' numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Function {
    /// `x * sigmoid(x)`.
    Silu = 0,
    /// GELU by its tanh form.
    GeluTanh = 1,
    /// GELU by its error function.
    GeluErf = 2,
    /// `min(x, 7) * sigmoid(1.702 x)`, whose partner is between -7 and 7 and has 1 added; with a partner only.
    SwigluClamped = 3,
    /// `max(x, 0)`.
    Relu = 4,
    /// `max(x, 0)²`.
    ReluSquared = 5,
}

impl Gpu {
    /// Reads the rows in use; waits for all that was asked for before.
    ///
    /// # Errors
    /// What the driver reports, of what was asked for before as well.
    pub fn download(&self, x: &Buffer, to: &mut Vec<f32>) -> Result<(), CudaError> {
        to.resize(x.len(), 0.0);
        x.data.read(&self.stream, 0, to)
    }

    /// `out = gain * x / sqrt(mean(x²) + eps)` of each row.
    ///
    /// # Errors
    /// [`CudaError::Shape`], or what the driver reports; so for every operation below.
    pub fn rms_norm(
        &self,
        x: &Buffer,
        gain: &Array<f32>,
        eps: f32,
        out: &mut Buffer,
    ) -> Result<(), CudaError> {
        same("elements of a norm", x.cols, gain.len())?;
        out.resize(self, x.rows, x.cols)?;
        self.norm(x.address(), x.rows, gain, eps, out.address())
    }

    /// The same of each piece of a row that is as long as the gain, in place.
    pub fn rms_norm_pieces(&self, x: &mut Buffer, gain: &Array<f32>, eps: f32) -> Result<(), CudaError> {
        let pieces = x.cols.checked_div(gain.len()).unwrap_or(0);
        same("columns of pieces that are normed", x.cols, pieces * gain.len())?;
        self.norm(x.address(), x.rows * pieces, gain, eps, x.address())
    }

    fn norm(&self, x: u64, pieces: usize, gain: &Array<f32>, eps: f32, out: u64) -> Result<(), CudaError> {
        if pieces == 0 {
            return Ok(());
        }
        launch!(self, self.kernels.rms_norm, grid((pieces, 1, 1), threads(gain.len()), 0)?;
            x, gain.address(), eps, int("columns", gain.len())?, out)
    }

    /// `out = gain * (x - mean) / sqrt(variance + eps) + bias` of each row.
    pub fn layer_norm(
        &self,
        x: &Buffer,
        gain: &Array<f32>,
        bias: Option<&Array<f32>>,
        eps: f32,
        out: &mut Buffer,
    ) -> Result<(), CudaError> {
        same("elements of a norm", x.cols, gain.len())?;
        same("elements of a norm's bias", x.cols, bias.map_or(x.cols, Array::len))?;
        out.resize(self, x.rows, x.cols)?;
        if x.rows == 0 {
            return Ok(());
        }
        launch!(self, self.kernels.layer_norm, grid((x.rows, 1, 1), threads(x.cols), 0)?;
            x.address(), gain.address(), bias.map_or(0, Array::address), eps, int("columns", x.cols)?, out.address())
    }

    /// Turns the first `2 * angles.half()` elements of each head by its row's angles, which [`angles`](Self::angles) has brought
    /// to the device.
    pub fn rope(
        &self,
        x: &mut Buffer,
        angles: &Angles,
        style: RopeStyle,
        head_dim: usize,
    ) -> Result<(), CudaError> {
        let heads = x.cols.checked_div(head_dim).unwrap_or(0);
        same("columns of heads", x.cols, heads * head_dim)?;
        if angles.half == 0 {
            // Nothing is turned, and angles of nothing don't tell how many rows they are of.
            return Ok(());
        }
        same("rows of angles", x.rows, angles.rows)?;
        if 2 * angles.half > head_dim {
            return Err(CudaError::Shape {
                what: "rotated elements",
                expected: head_dim,
                actual: 2 * angles.half,
            });
        }
        if x.rows * heads == 0 {
            return Ok(());
        }
        let style = match style {
            RopeStyle::Interleaved => 0,
            RopeStyle::Halves => 1,
            RopeStyle::HalvesToInterleaved => 2,
        };
        let block = angles.half.next_multiple_of(32);
        launch!(self, self.kernels.rope, grid((x.rows * heads, 1, 1), block, 0)?;
            x.address(), angles.cos.address(), angles.sin.address(), int("heads", heads)?, int("columns", head_dim)?,
            int("pairs", angles.half)?, style)
    }

    /// Brings the angles of a batch to the device.
    pub fn angles(&self, host: &RopeAngles, to: &mut Angles) -> Result<(), CudaError> {
        for (array, values) in [(&mut to.cos, host.cos()), (&mut to.sin, host.sin())] {
            if array.len() < values.len() {
                *array = self.array("rotary angles", values.len())?;
            }
            array.write(&self.stream, 0, values)?;
        }
        to.half = host.half();
        to.rows = host.cos().len().checked_div(to.half).unwrap_or(0);
        Ok(())
    }

    /// `gate = function(gate) * up`.
    pub fn gated(&self, gate: &mut Buffer, up: &Buffer, function: Function) -> Result<(), CudaError> {
        same("gated elements", gate.len(), up.len())?;
        self.elements(gate.len(), |threads, count| {
            launch!(self, self.kernels.gated, threads; gate.address(), up.address(), function as i32, count)
        })
    }

    /// `x = function(x)`, of the functions that need no partner.
    pub fn activate(&self, x: &mut Buffer, function: Function) -> Result<(), CudaError> {
        self.elements(x.len(), |threads, count| {
            launch!(self, self.kernels.activate, threads; x.address(), function as i32, count)
        })
    }

    /// `x = factor * x`.
    pub fn scale(&self, x: &mut Buffer, factor: f32) -> Result<(), CudaError> {
        self.elements(
            x.len(),
            |threads, count| launch!(self, self.kernels.scale, threads; x.address(), factor, count),
        )
    }

    /// `x += y`.
    pub fn add(&self, x: &mut Buffer, y: &Buffer) -> Result<(), CudaError> {
        same("added elements", x.len(), y.len())?;
        self.elements(
            x.len(),
            |threads, count| launch!(self, self.kernels.add, threads; x.address(), y.address(), count),
        )
    }

    /// `x = cap * tanh(x / cap)`.
    pub fn soft_cap(&self, x: &mut Buffer, cap: f32) -> Result<(), CudaError> {
        self.elements(
            x.len(),
            |threads, count| launch!(self, self.kernels.soft_cap, threads; x.address(), cap, count),
        )
    }

    /// Puts `rows` rows of `cols` zeros in use.
    pub fn zero(&self, x: &mut Buffer, rows: usize, cols: usize) -> Result<(), CudaError> {
        x.resize(self, rows, cols)?;
        // What is behind the rows in use may be much more than they are.
        let len = x.len();
        x.data.clear(&self.stream, len)
    }

    /// `to[row][to_start + i] = from[row][from_start + i]` for i below `count`.
    pub fn copy_columns(
        &self,
        from: &Buffer,
        from_start: usize,
        to: &mut Buffer,
        to_start: usize,
        count: usize,
    ) -> Result<(), CudaError> {
        same("copied rows", from.rows, to.rows)?;
        for (what, cols, start) in
            [("copied columns", from.cols, from_start), ("columns that are copied to", to.cols, to_start)]
        {
            if start + count > cols {
                return Err(CudaError::Shape { what, expected: cols, actual: start + count });
            }
        }
        let all = [from.cols, from_start, to.cols, to_start, count, from.rows];
        let mut numbers = [0; 6];
        for (number, &value) in numbers.iter_mut().zip(&all) {
            *number = int("columns", value)?;
        }
        let [from_cols, from_start, to_cols, to_start, width, rows] = numbers;
        self.elements(from.rows * count, |threads, _| {
            launch!(self, self.kernels.copy_columns, threads;
                from.address(), from_cols, from_start, to.address(), to_cols, to_start, width, rows)
        })
    }

    /// `out[i] = x[rows[i]]`.
    pub fn select(&mut self, x: &Buffer, rows: &[u32], out: &mut Buffer) -> Result<(), CudaError> {
        out.resize(self, rows.len(), x.cols)?;
        let indices = self.indices(rows, x.rows)?;
        let (count, cols) = (int("rows", rows.len())?, int("columns", x.cols)?);
        self.elements(out.len(), |threads, _| {
            launch!(self, self.kernels.select, threads; x.address(), indices, count, cols, out.address())
        })
    }

    /// `to[rows[i]] += weights[i] * from[i]`, of rows that differ.
    pub fn scatter_add(
        &mut self,
        from: &Buffer,
        rows: &[u32],
        weights: &Array<f32>,
        to: &mut Buffer,
    ) -> Result<(), CudaError> {
        same("added rows", rows.len(), from.rows)?;
        same("columns of added rows", to.cols, from.cols)?;
        if weights.len() < rows.len() {
            return Err(CudaError::Shape {
                what: "weights of added rows",
                expected: rows.len(),
                actual: weights.len(),
            });
        }
        let indices = self.indices(rows, to.rows)?;
        let (count, cols) = (int("rows", rows.len())?, int("columns", from.cols)?);
        self.elements(from.len(), |threads, _| {
            launch!(self, self.kernels.scatter_add, threads;
                from.address(), indices, weights.address(), count, cols, to.address())
        })
    }

    /// Numbers of the host in an array, which grows where it is too short.
    pub fn write(&self, to: &mut Array<f32>, from: &[f32]) -> Result<(), CudaError> {
        if to.len() < from.len() {
            *to = self.array("numbers for rows", from.len().next_power_of_two())?;
        }
        to.write(&self.stream, 0, from)
    }

    /// Waits for all that was asked for.
    pub fn wait(&self) -> Result<(), CudaError> {
        self.stream.synchronize().map_err(|error| crate::driver::failed("waiting for the device", error))
    }

    /// A launch with a thread for each element; none for none.
    pub(crate) fn elements(
        &self,
        count: usize,
        launch: impl FnOnce(cudarc::driver::LaunchConfig, u64) -> Result<(), CudaError>,
    ) -> Result<(), CudaError> {
        if count == 0 { Ok(()) } else { launch(each(count)?, count as u64) }
    }
}

/// Threads for a block that goes through so many elements.
fn threads(elements: usize) -> usize {
    elements.next_multiple_of(32).clamp(32, 256)
}

/// The rotary angles of a batch.
pub struct Angles {
    cos: Array<f32>,
    sin: Array<f32>,
    half: usize,
    rows: usize,
}

impl Angles {
    /// None yet.
    ///
    /// # Errors
    /// What the driver reports.
    pub fn new(gpu: &Gpu) -> Result<Self, CudaError> {
        let array = || gpu.array("rotary angles", 0);
        Ok(Self { cos: array()?, sin: array()?, half: 0, rows: 0 })
    }
}
