//! Matrix products of quantised weights with many rows of activations, or one.
//!
//! - [`activations`]: the input and its 8-bit forms;
//! - [`scalar`]: the plainest form of the product, which defines its bits;
//! - [`tile`]: the vector form: 16 rows of weights are unpacked into a panel and multiplied with the tokens;
//! - [`few`]: the same without a panel, for a few tokens on x86-64 and blocks without sub-scales;
//! - [`unpack`]: blocks of each format into the panel, those with grids in [`unpack_grids`];
//! - [`simd`]: the operations that both are written with, and `x86` and `neon`, their forms for the instruction sets;
//! - `amx`: panels by a matrix unit;
//! - [`shares`]: which thread computes what;
//! - [`float`]: unquantised weights.

mod activations;
#[cfg(target_arch = "x86_64")]
mod amx;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod few;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod float;
#[cfg(target_arch = "aarch64")]
mod neon;
mod scalar;
mod shares;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod simd;
#[cfg(all(test, target_arch = "x86_64"))]
mod substitute;
#[cfg(test)]
mod tests;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod tile;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod unpack;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod unpack_grids;
#[cfg(target_arch = "x86_64")]
mod x86;
#[cfg(target_arch = "x86_64")]
mod x86_rows;

pub use activations::Activations;
#[cfg(target_arch = "x86_64")]
pub(crate) use amx::full_speed as amx_loop;

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use moli_format::{Bytes, TensorType};

use crate::quant::{SUPPORTED, row_bytes};
use crate::{Isa, KernelError, Kernels, Pool};
use activations::Quantize;
use shares::Shares;

/// Rows of weights that a task computes together, and the unit in which tasks are cut.
pub(crate) const TILE: usize = 16;
/// Rows that a thread computes before it looks for more when there are many tokens: the most tiles that a form multiplies
/// together, so that a token's activations are read once for both.
const ROWS_MANY: usize = 2 * TILE;
/// Multiply-adds (or as much unpacking) that are worth taking at a time: a microsecond or so.
const GRAB_WORK: usize = 96 * 1024;
/// Products that are computed in one parallel run; more are computed in several.
const FUSED: usize = 4;

/// A weight matrix, `[rows, cols]` in row-major blocks: a range of a model file.
#[derive(Debug, Clone)]
pub struct Matrix {
    ttype: TensorType,
    rows: usize,
    cols: usize,
    row_bytes: usize,
    data: Bytes,
}

impl Matrix {
    /// A matrix of these bytes, which stay where they are.
    ///
    /// # Errors
    /// [`KernelError::UnsupportedType`], [`KernelError::PartialBlock`], [`KernelError::TooLarge`], or
    /// [`KernelError::Length`] if `data` is not exactly the rows.
    pub fn new(ttype: TensorType, rows: usize, cols: usize, data: Bytes) -> Result<Self, KernelError> {
        if !crate::is_supported(ttype) {
            return Err(KernelError::UnsupportedType { ttype });
        }
        let row_bytes = row_bytes(ttype, cols)?;
        let expected = row_bytes.checked_mul(rows).ok_or(KernelError::TooLarge { rows, cols })?;
        if data.len() != expected {
            return Err(KernelError::Length { what: "bytes of a matrix", expected, actual: data.len() });
        }
        Ok(Self { ttype, rows, cols, row_bytes, data })
    }

    /// Rows: outputs of a product.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Columns: inputs of a product.
    #[must_use]
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// How the elements are stored.
    #[must_use]
    pub fn ttype(&self) -> TensorType {
        self.ttype
    }

    /// Bytes of the whole matrix.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.data.len()
    }

    /// Where its bytes begin in memory: tells whether it is part of a tensor.
    #[must_use]
    pub fn address(&self) -> usize {
        self.data.as_ptr().addr()
    }

    /// One row as floats, out: `[cols]`.
    ///
    /// # Errors
    /// [`KernelError::Limit`] if there is no such row, [`KernelError::Length`] if `out` has another length.
    pub fn dequantize_row(&self, row: usize, out: &mut [f32]) -> Result<(), KernelError> {
        if row >= self.rows {
            return Err(KernelError::Limit { what: "row of a matrix", limit: self.rows, actual: row });
        }
        if out.len() != self.cols {
            return Err(KernelError::Length {
                what: "row of a matrix",
                expected: self.cols,
                actual: out.len(),
            });
        }
        let bytes = self.data.get(row * self.row_bytes..(row + 1) * self.row_bytes).unwrap_or_default();
        crate::dequantize(self.ttype, bytes, out)
    }
}

/// Working memory for matrix products, for each thread of a pool: a panel, and its share of the work.
#[derive(Debug)]
pub struct Scratch {
    panels: Vec<Mutex<Panel>>,
    shares: Shares,
}

/// One of the products that share an input; see [`Kernels::matmul_all`].
#[derive(Debug)]
pub struct Product<'a> {
    /// The matrix.
    pub weights: &'a Matrix,
    /// Added to each token's output, `[rows]`.
    pub bias: Option<&'a [f32]>,
    /// `[tokens, rows]`
    pub out: &'a mut [f32],
}

impl Scratch {
    /// Working memory for a pool of this many threads.
    #[must_use]
    pub fn new(threads: usize) -> Self {
        let threads = threads.max(1);
        Self { panels: (0..threads).map(|_| Mutex::default()).collect(), shares: Shares::new(threads) }
    }

    /// Bytes that [`new`](Self::new) allocates; saturating.
    #[must_use]
    pub fn bytes(threads: usize) -> u64 {
        let thread = size_of::<Mutex<Panel>>() + PANEL_BYTES;
        (thread as u64).saturating_mul(threads.max(1) as u64).saturating_add(Shares::bytes(threads.max(1)))
    }
}

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
type Panel = Box<tile::Panel>;
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
type Panel = ();
/// Bytes of a panel on the heap.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
const PANEL_BYTES: usize = size_of::<tile::Panel>();
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
const PANEL_BYTES: usize = 0;

/// Tokens that count as few: threads part smaller pieces of work, and a panel is shorter.
const FEW: usize = 8;

/// The input of a product in the form that the weights need; the other slices are empty. See [`Activations`].
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Input<'a> {
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    pub(crate) x: &'a [f32],
    pub(crate) q: &'a [i8],
    pub(crate) d: &'a [f32],
    pub(crate) sums: &'a [i32],
    pub(crate) ds: &'a [f32],
    pub(crate) sums16: &'a [i16],
    pub(crate) sums32: &'a [i16],
}

/// One product: everything that a task needs to compute a range of rows of weights for all tokens.
#[derive(Clone, Copy)]
pub(crate) struct Job<'a> {
    /// Bytes of the weights, `[rows, row_bytes]`.
    weights: &'a [u8],
    rows: usize,
    row_bytes: usize,
    input: Input<'a>,
    out: Out<'a>,
}

/// The output, `[tokens, rows]`, of which each task writes other columns.
#[derive(Clone, Copy)]
struct Out<'a> {
    to: *mut f32,
    rows: usize,
    tokens: usize,
    /// Empty or `[rows]`.
    bias: &'a [f32],
}

// SAFETY: the pointer is written through in `write` only, whose caller promises that no two threads write the same element;
// `ask_for` reads and writes nothing.
#[allow(unsafe_code)]
unsafe impl Send for Out<'_> {}
// SAFETY: as above.
#[allow(unsafe_code)]
unsafe impl Sync for Out<'_> {}

impl Out<'_> {
    /// Asks for the line in which an output is written soon: most often another thread has it in its cache, and whoever next
    /// takes work waits until all that was written has arrived.
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    #[inline(always)]
    fn ask_for(self, token: usize, row: usize) {
        crate::vector::ask_to_write(self.to.wrapping_add(token * self.rows + row).cast());
    }

    /// Writes the elements `row..row + values.len()` of a token's output; what is outside is left out.
    ///
    /// # Safety
    /// The output is borrowed mutably by the caller of [`Kernels::matmul_all`], and no other thread uses these elements.
    #[allow(unsafe_code)]
    #[inline(always)]
    unsafe fn write(self, token: usize, row: usize, values: &[f32]) {
        if token >= self.tokens || row >= self.rows {
            return;
        }
        let n = values.len().min(self.rows - row);
        // SAFETY: the elements are inside `[tokens, rows]`, and no one else uses them (the caller's promise).
        let out = unsafe { std::slice::from_raw_parts_mut(self.to.add(token * self.rows + row), n) };
        match self.bias.get(row..row + n) {
            Some(bias) => {
                for ((out, value), bias) in out.iter_mut().zip(values).zip(bias) {
                    *out = value + bias;
                }
            }
            // A whole tile in a register: a call would cost more than the copy.
            None => match (<&mut [f32; TILE]>::try_from(&mut *out), <&[f32; TILE]>::try_from(values)) {
                (Ok(out), Ok(values)) => *out = *values,
                _ => out.copy_from_slice(&values[..n]),
            },
        }
    }
}

/// Computes the outputs `rows` for all tokens. The range starts at a multiple of [`TILE`], and ends at one or at the last
/// row.
///
/// # Safety
/// The processor has the instruction set of the table that the function is in, the job's slices agree (as
/// [`Kernels::matmul_all`] checks), and no other thread computes these rows.
type MatmulFn = unsafe fn(job: &Job<'_>, rows: Range<usize>, panel: &mut Panel);

/// The matrix products of one instruction set.
#[derive(Debug, Clone)]
pub(crate) struct MatmulTable {
    /// In the order of [`SUPPORTED`].
    products: [MatmulFn; SUPPORTED.len()],
    pub(crate) quantize: Quantize,
}

impl MatmulTable {
    /// The table for `isa`, which must be one that this processor has: [`Kernels::new`] checks it.
    pub(crate) fn new(isa: Isa) -> Self {
        let product: fn(TensorType) -> MatmulFn = match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => tile::avx2,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Vnni => tile::avx512,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Amx => amx::table,
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => tile::neon,
            #[cfg(target_arch = "aarch64")]
            Isa::NeonDot => tile::neon_dot,
            #[cfg(target_arch = "aarch64")]
            Isa::NeonI8mm => tile::neon_i8mm,
            _ => scalar::product,
        };
        Self { products: SUPPORTED.map(product), quantize: Quantize::new(isa) }
    }
}

impl Kernels {
    /// out = activations · weightsᵀ, out: `[tokens, w.rows()]` row-major, one row for each row of `act`.
    ///
    /// `act` must have been [set](Activations::set) for the type of `w`, and `scratch` made for at least as
    /// many threads as `pool` has.
    ///
    /// # The bits of the result
    ///
    /// With `I`, `M` and sums of quantised activations being exact integers, and each block in ascending order, an
    /// output element starts as `acc = 0` and is:
    ///
    /// - blocks of 32: `acc = fma(f32(I), d_w * d_a, acc)` where `I` is the sum of the products of the quantised values
    ///   (less the format's offset), and then, where there is a minimum, `acc = fma(m, d_a * f32(sum), acc)`;
    /// - NVFP4, which has a scale for each 16: the same for each of these;
    /// - blocks of 256: the same with `I` the sum of these sums times the sub-scales, and then, where there are minima,
    ///   `acc = fma(f32(M), -dmin * d_a, acc)` with `M` the sum of the sub-minima times the sums of the activations;
    /// - floats: lane `l` of 16 takes `fma(w, x, lane)` for `k = l, l + 16, …`; lanes `l` and `l + 8` are added, then
    ///   `l + 4`, `l + 2`, `l + 1`.
    ///
    /// # Errors
    /// [`KernelError::Length`] and [`KernelError::Limit`] if the shapes disagree, [`KernelError::NotPrepared`].
    pub fn matmul(
        &self,
        pool: &Pool,
        w: &Matrix,
        act: &Activations,
        scratch: &Scratch,
        out: &mut [f32],
    ) -> Result<(), KernelError> {
        self.matmul_all(pool, [Product { weights: w, bias: None, out }], act, scratch)
    }

    /// The products of one input with several matrices, as [`matmul`](Self::matmul) computes each, in one parallel run.
    ///
    /// # Errors
    /// As [`matmul`](Self::matmul), and [`KernelError::Length`] if a bias is not as long as its matrix has rows. Products
    /// before the one that is refused may have been computed.
    pub fn matmul_all<'a>(
        &self,
        pool: &Pool,
        products: impl IntoIterator<Item = Product<'a>>,
        act: &'a Activations,
        scratch: &Scratch,
    ) -> Result<(), KernelError> {
        if scratch.panels.len() < pool.threads() {
            return Err(KernelError::Limit {
                what: "threads",
                limit: scratch.panels.len(),
                actual: pool.threads(),
            });
        }
        let mut products = products.into_iter().peekable();
        while products.peek().is_some() {
            let mut runs = [const { None }; FUSED];
            for (run, product) in runs.iter_mut().zip(products.by_ref()) {
                *run = self.job(product, act)?;
            }
            run_jobs(pool, &runs, scratch);
        }
        Ok(())
    }

    /// Checks a product; `None` if it has no outputs.
    fn job<'a>(&self, product: Product<'a>, act: &'a Activations) -> Result<Option<Run<'a>>, KernelError> {
        let Product { weights: w, bias, out } = product;
        let shape = |what, expected, actual| KernelError::Length { what, expected, actual };
        if act.cols() != w.cols {
            return Err(shape("columns of activations", w.cols, act.cols()));
        }
        let tokens = act.rows();
        let expected =
            tokens.checked_mul(w.rows).ok_or(KernelError::TooLarge { rows: tokens, cols: w.rows })?;
        if out.len() != expected {
            return Err(shape("outputs", expected, out.len()));
        }
        let bias = bias.unwrap_or_default();
        if !bias.is_empty() && bias.len() != w.rows {
            return Err(shape("biases", w.rows, bias.len()));
        }
        let input = act.input(w.ttype).ok_or(KernelError::NotPrepared { ttype: w.ttype })?;
        let unsupported = KernelError::UnsupportedType { ttype: w.ttype };
        let index = SUPPORTED.iter().position(|t| *t == w.ttype).ok_or(unsupported)?;
        if expected == 0 {
            return Ok(None);
        }
        // A tile needs all of its rows.
        let compute = if w.rows < TILE { scalar::product(w.ttype) } else { self.matmul.products[index] };
        let out = Out { to: out.as_mut_ptr(), rows: w.rows, tokens, bias };
        let job = Job { weights: &w.data, rows: w.rows, row_bytes: w.row_bytes, input, out };
        Ok(Some(Run { job, compute }))
    }
}

/// A product that has been checked, and what computes it.
struct Run<'a> {
    job: Job<'a>,
    compute: MatmulFn,
}

/// Computes products, whose rows are numbered through in units: those of the first, then those of the second, ….
fn run_jobs(pool: &Pool, runs: &[Option<Run<'_>>; FUSED], scratch: &Scratch) {
    let tokens = runs.iter().flatten().map(|run| run.job.input.rows).max().unwrap_or(0);
    // With few tokens a thread that waits for another's last rows costs more than tiles one by one.
    let unit = if tokens > FEW { ROWS_MANY } else { TILE };
    let units = |run: &Run<'_>| run.job.rows.div_ceil(unit);
    let total: usize = runs.iter().flatten().map(units).sum();
    let cols = runs.iter().flatten().map(|run| run.job.input.cols).max().unwrap_or(0);
    // Unpacking a row costs about as much as multiplying it twice.
    let grab = (GRAB_WORK / (unit * cols.max(1) * (tokens + 2))).max(1);
    let find = |mut index: usize| {
        for run in runs.iter().flatten() {
            if index < units(run) {
                return Some((run, index * unit));
            }
            index -= units(run);
        }
        None
    };
    scratch.shares.deal(total, pool.threads(), grab);
    pool.run(pool.threads(), &|share, thread| {
        let Some(panel) = scratch.panels.get(thread) else { return };
        let mut panel = panel.lock().unwrap_or_else(PoisonError::into_inner);
        scratch.shares.work(share, |index| {
            let Some((run, row)) = find(index) else { return };
            let end = (row + unit).min(run.job.rows);
            // SAFETY: the table was picked for this processor. The lengths have been checked: `weights` is rows *
            // row_bytes long, `input` was made for the same columns, `out` is tokens * rows long and borrowed mutably
            // for the whole run; each unit is handed out once, and the units' rows don't overlap.
            #[allow(unsafe_code)]
            unsafe {
                (run.compute)(&run.job, row..end, &mut panel);
            }
        });
    });
}
