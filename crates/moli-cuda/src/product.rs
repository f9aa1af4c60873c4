//! Products of matrices, and rows of a table.
//!
//! Up to [`FEW`] rows of activations are multiplied by kernels that read each weight once and do the arithmetic on the way: memory
//! is what limits them. More rows go to the matrix units: a stretch of the matrix's rows that the second-level cache holds is
//! unpacked into bytes, and multiplied with all rows of activations.
//!
//! Both add a row's parts in the same order (`segment_sum` in `kernels/device.cuh`), so a row of the result has the same bits
//! whichever computed it.

use std::sync::Arc;

use cudarc::driver::{CudaStream, sys};

use crate::activations::Buffer;
use crate::error::same;
use crate::gpu::{each, grid, int, launch};
use crate::memory::Array;
use crate::modules::Rest;
use crate::{CudaError, Gpu, Matrix};

/// Rows of activations that are multiplied one by one.
const FEW: usize = 8;
/// Columns in a group, and in a segment: see `kernels/device.cuh`.
const GROUP: usize = 32;
const SEGMENT: usize = 8 * GROUP;
/// The tile of `kernels/gemm.cu`: rows of weights, rows of activations.
const TILE: (usize, usize) = (128, 64);
/// The tile of `kernels/float_product.cu`.
const FLOAT_TILE: usize = 64;
/// Dynamic shared memory that every kernel may have.
const SHARED: usize = 48 << 10;
/// Bytes of unpacked weights at a time, at least and at most; between them, half of the second-level cache.
const UNPACKED: (usize, usize) = (4 << 20, 24 << 20);

/// Shared memory of `kernels/gemm.cu` with so many scales for each group of weights.
pub(crate) const fn tile_bytes(scales: usize) -> usize {
    let row = SEGMENT + 16;
    (TILE.0 + TILE.1) * row + TILE.0 * 8 * scales * 4 + TILE.1 * 8 * 8
}

/// What products work in: allocated for the largest that there will be.
pub(crate) struct Scratch {
    /// Activations as bytes, and for each group of 32 of them a scale and two sums.
    x: Array<u8>,
    x_scales: Array<u32>,
    /// Weights as bytes with their scales.
    w: Array<u8>,
    w_scales: Array<f32>,
    /// Numbers of rows.
    indices: Array<u32>,
}

impl Scratch {
    pub(crate) fn new(stream: &Arc<CudaStream>) -> Result<Self, CudaError> {
        Ok(Self {
            x: Array::new(stream, "activations", 0)?,
            x_scales: Array::new(stream, "activations", 0)?,
            w: Array::new(stream, "unpacked weights", 0)?,
            w_scales: Array::new(stream, "unpacked weights", 0)?,
            indices: Array::new(stream, "row numbers", 0)?,
        })
    }
}

/// Groups of columns, those behind the last to a whole segment among them.
const fn padded(cols: usize) -> usize {
    cols.div_ceil(SEGMENT) * (SEGMENT / GROUP)
}

/// Bytes that [`Gpu::reserve`] takes for products of `rows` activations of `cols` columns, at most.
#[must_use]
pub fn reserved_bytes(rows: usize, cols: usize) -> u64 {
    let group = GROUP as u64;
    let row = padded(cols) as u64;
    let x = (rows as u64).saturating_mul(row).saturating_mul(group + 8);
    let unpacked = (UNPACKED.1 as u64 / group).max(row.saturating_mul(TILE.0.max(rows) as u64));
    x.saturating_add(unpacked.saturating_mul(group + 16)).saturating_add(4 * rows as u64)
}

impl Gpu {
    /// Makes room for products of `rows` activations of `cols` columns.
    ///
    /// # Errors
    /// [`CudaError::OutOfMemory`].
    pub fn reserve(&mut self, rows: usize, cols: usize) -> Result<(), CudaError> {
        let groups = rows.saturating_mul(padded(cols));
        self.products.x = self.array("activations", groups.saturating_mul(GROUP))?;
        self.products.x_scales = self.array("activations", groups.saturating_mul(2))?;
        self.products.indices = self.array("row numbers", rows)?;
        let groups = self.unpacked_rows(cols, rows).saturating_mul(padded(cols));
        self.products.w = self.array("unpacked weights", groups * GROUP)?;
        self.products.w_scales = self.array("unpacked weights", groups * 4)?;
        Ok(())
    }

    /// Rows of weights of so many columns that are unpacked at a time: whole tiles, or as many rows as a batch may look up.
    fn unpacked_rows(&self, cols: usize, lookups: usize) -> usize {
        let cache = sys::CUdevice_attribute_enum::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE;
        let cache = self.context.attribute(cache).map_or(0, |bytes| usize::try_from(bytes).unwrap_or(0));
        let bytes = (cache / 2).clamp(UNPACKED.0, UNPACKED.1);
        let tiles = bytes / (padded(cols).max(1) * GROUP) / TILE.0;
        (tiles.max(1) * TILE.0).max(lookups)
    }

    /// `out = x · weightᵀ + bias` for each matrix; x is quantised once for all.
    ///
    /// # Errors
    /// [`CudaError::Shape`] where something doesn't fit, or what the driver reports.
    pub fn project<'a>(
        &mut self,
        x: &Buffer,
        into: impl Iterator<Item = (&'a Matrix, Option<&'a Array<f32>>, &'a mut Buffer)>,
    ) -> Result<(), CudaError> {
        let mut quantized = false;
        for (matrix, bias, out) in into {
            same("columns of a matrix", x.cols, matrix.cols)?;
            if let Some(bias) = bias {
                same("elements of a bias", matrix.rows, bias.len())?;
            }
            out.resize(self, x.rows, matrix.rows)?;
            if x.rows == 0 || matrix.rows == 0 {
                continue;
            }
            if matches!(matrix.format.rest, Rest::Quantized { .. }) && !quantized {
                self.quantize(x)?;
                quantized = true;
            }
            let bias = bias.map_or(0, Array::address);
            if x.rows <= FEW {
                self.few(x, matrix, bias, out)?;
            } else {
                self.many(x, matrix, bias, out)?;
            }
        }
        Ok(())
    }

    /// x as bytes.
    fn quantize(&mut self, x: &Buffer) -> Result<(), CudaError> {
        let groups = x.rows * padded(x.cols);
        let room = self.products.x_scales.len() / 2;
        if groups > room {
            return Err(CudaError::Shape { what: "groups of activations", expected: room, actual: groups });
        }
        let (rows, cols, padded) =
            (int("rows", x.rows)?, int("columns", x.cols)?, int("groups", padded(x.cols))?);
        launch!(self, self.kernels.quantize, each(groups * GROUP)?;
            x.address(), rows, cols, padded, self.products.x.address(), self.products.x_scales.address())
    }

    /// A product with few rows of activations.
    fn few(&self, x: &Buffer, matrix: &Matrix, bias: u64, out: &Buffer) -> Result<(), CudaError> {
        let groups = matrix.cols.div_ceil(GROUP);
        let (segments, chunks) = (groups.div_ceil(8), groups.div_ceil(32));
        // About four stretches of 1024 columns for each of the four warps.
        let per_block = (16 / chunks.max(1)).clamp(1, 8);
        let shared = |rows: usize| per_block * rows * segments * size_of::<f32>();
        // Very long rows leave room for the sums of fewer rows of activations at a time.
        let mut fitting = matrix.format.matvec.iter().filter(|(most, _)| shared(*most) <= SHARED);
        let chosen = fitting.clone().find(|(most, _)| *most >= x.rows).or_else(|| fitting.next_back());
        let Some((most, kernel)) = chosen else {
            let most = SHARED / size_of::<f32>() * SEGMENT;
            return Err(CudaError::Shape {
                what: "columns of a matrix",
                expected: most,
                actual: matrix.cols,
            });
        };
        let grid = grid((matrix.rows.div_ceil(per_block), 1, 1), 128, shared(*most))?;
        let (rows, cols) = (int("rows", matrix.rows)?, int("columns", matrix.cols)?);
        let (groups, x_groups, per_block) =
            (int("groups", groups)?, int("groups", padded(x.cols))?, per_block as i32);
        for first in (0..x.rows).step_by(*most) {
            let tokens = int("rows", (*most).min(x.rows - first))?;
            let out = out.at(first);
            match &matrix.format.rest {
                Rest::Float { .. } => launch!(self, kernel, grid;
                    matrix.body.address(), x.at(first), bias, out, rows, cols, tokens, per_block)?,
                Rest::Quantized { .. } => {
                    let at = first * padded(x.cols);
                    launch!(self, kernel, grid;
                        matrix.body.address(), matrix.heads(), self.codebooks.address(),
                        self.products.x.at(at * GROUP), self.products.x_scales.at(at * 2), bias, out,
                        rows, groups, x_groups, tokens, per_block)?;
                }
            }
        }
        Ok(())
    }

    /// A product with many rows of activations.
    fn many(&mut self, x: &Buffer, matrix: &Matrix, bias: u64, out: &Buffer) -> Result<(), CudaError> {
        let (rows, cols, tokens) =
            (int("rows", matrix.rows)?, int("columns", matrix.cols)?, int("rows", x.rows)?);
        let (halves, min) = match &matrix.format.rest {
            Rest::Float { gemm, .. } => {
                let grid = grid((matrix.rows.div_ceil(FLOAT_TILE), x.rows.div_ceil(FLOAT_TILE), 1), 256, 0)?;
                return launch!(self, gemm, grid; matrix.body.address(), x.address(), bias, out.address(), rows, cols, tokens);
            }
            Rest::Quantized { halves, min, .. } => (*halves, *min),
        };
        let groups = padded(matrix.cols);
        let stretch = (self.products.w.len() / (groups * GROUP).max(1)) / TILE.0 * TILE.0;
        if stretch == 0 {
            let room = self.products.w.len() / TILE.0;
            return Err(CudaError::Shape {
                what: "columns of a matrix",
                expected: room,
                actual: matrix.cols,
            });
        }
        let segments = int("segments", groups / 8)?;
        let scales = (1 + usize::from(halves)) * (1 + usize::from(min));
        let kernel = &self.kernels.gemm[usize::from(halves)][usize::from(min)];
        for first in (0..matrix.rows).step_by(stretch) {
            let count = stretch.min(matrix.rows - first);
            self.unpack(matrix, None, first, count)?;
            let grid = grid((count.div_ceil(TILE.0), x.rows.div_ceil(TILE.1), 1), 256, tile_bytes(scales))?;
            launch!(self, kernel, grid;
                self.products.w.address(), self.products.w_scales.address(), self.products.x.address(),
                self.products.x_scales.address(), bias, out.address(), int("rows", first)?, int("rows", count)?, rows,
                segments, tokens)?;
        }
        Ok(())
    }

    /// Rows of a quantised matrix as bytes: those from `first` on, or those whose numbers lie in `indices`.
    fn unpack(
        &self,
        matrix: &Matrix,
        indices: Option<u64>,
        first: usize,
        count: usize,
    ) -> Result<(), CudaError> {
        let Rest::Quantized { unpack, .. } = &matrix.format.rest else { return Ok(()) };
        let groups = padded(matrix.cols);
        let room = self.products.w.len() / (groups * GROUP).max(1);
        if count > room {
            return Err(CudaError::Shape { what: "unpacked rows", expected: room, actual: count });
        }
        launch!(self, unpack, each(count * groups)?;
            matrix.body.address(), matrix.heads(), self.codebooks.address(), indices.unwrap_or(0), int("rows", first)?,
            int("rows", count)?, int("groups", matrix.cols / GROUP)?, int("groups", groups)?, self.products.w.address(),
            self.products.w_scales.address())
    }

    /// `out[i] = factor * table[rows[i]]`.
    ///
    /// # Errors
    /// [`CudaError::Shape`] for a row that the table has not, or what the driver reports.
    pub fn look_up(
        &mut self,
        table: &Matrix,
        rows: &[u32],
        factor: f32,
        out: &mut Buffer,
    ) -> Result<(), CudaError> {
        if let Some(&row) = rows.iter().find(|&&row| row as usize >= table.rows) {
            return Err(CudaError::Shape {
                what: "a row of a table",
                expected: table.rows,
                actual: row as usize,
            });
        }
        out.resize(self, rows.len(), table.cols)?;
        if rows.is_empty() || table.cols == 0 {
            return Ok(());
        }
        self.products.indices.write(&self.stream, 0, rows)?;
        let indices = self.products.indices.address();
        let (count, cols) = (int("rows", rows.len())?, int("columns", table.cols)?);
        let threads = each(rows.len() * table.cols)?;
        match &table.format.rest {
            Rest::Float { rows, .. } => {
                launch!(self, rows, threads; table.body.address(), indices, count, cols, factor, out.address())
            }
            Rest::Quantized { halves, min, .. } => {
                self.unpack(table, Some(indices), 0, rows.len())?;
                launch!(self, self.kernels.unpacked_to_float, threads;
                    self.products.w.address(), self.products.w_scales.address(), i32::from(*halves), i32::from(*min), count,
                    int("groups", padded(table.cols))?, cols, factor, out.address())
            }
        }
    }

    /// Puts row numbers where kernels find them; `below`: what each has to be less than.
    pub(crate) fn indices(&mut self, rows: &[u32], below: usize) -> Result<u64, CudaError> {
        if let Some(&row) = rows.iter().find(|&&row| row as usize >= below) {
            return Err(CudaError::Shape {
                what: "a row of a buffer",
                expected: below,
                actual: row as usize,
            });
        }
        self.products.indices.write(&self.stream, 0, rows)?;
        Ok(self.products.indices.address())
    }
}
