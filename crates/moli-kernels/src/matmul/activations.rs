//! What a matrix is multiplied with, quantised to 8 bits.

use moli_format::TensorType;

use super::Input;
use crate::float::Pieces;
use crate::{Isa, KernelError, Kernels, Pool, Zero, zeroed};

/// The greatest quantised activation.
const MAX: f32 = 127.0;
/// Adding this to a float below 2^22 rounds it to the nearest integer, ties to even, which is then in the low bits.
const ROUND: f32 = 12_582_912.0; // 1.5 * 2^23
/// The fewest elements that are quantised in one task: half a microsecond, and up to three where another thread has just written them.
const GRAIN: usize = 2 * 1024;
/// Up to so many elements are quantised by the caller: to meet another thread takes as long. With more, the others would wait so long
/// for this and what else comes between two products that they fall asleep.
const INLINE: usize = 2 * GRAIN;

/// The input of matrix products, `[rows, cols]` f32, and its quantised forms.
///
/// The buffers are allocated once. [`set`](Self::set) takes a new input and makes the forms that the weights need, once for
/// all the matrices that share the input.
///
/// A value is quantised to `q = round(x * (127 / m))`, ties to even, where `m` is the greatest magnitude of its block (32
/// values, or 256 for weights in blocks of 256), and stands for `q * (m / 127)`. A block with a NaN or an infinity gets a scale of NaN,
/// which every product then shows; a block whose `127 / m` is not finite (m is 0 or below 4e-37) counts as zeros.
#[derive(Debug)]
pub struct Activations {
    max_rows: usize,
    max_cols: usize,
    rows: usize,
    cols: usize,
    /// `[rows, cols]`, if `x_ready`.
    x: Lines<f32>,
    x_ready: bool,
    q32: Quantized,
    q256: Quantized,
}

/// Activations in blocks of 32 or 256.
#[derive(Debug, Default)]
struct Quantized {
    /// True if this belongs to the input that was set last.
    ready: bool,
    /// `[rows, cols]`
    q: Lines<i8>,
    /// A scale per block, `[rows, cols / block]`.
    d: Vec<f32>,
    /// Blocks of 32: the sum of each, `[rows, cols / 32]`.
    sums: Vec<i32>,
    /// Blocks of 32: that sum times the scale.
    ds: Vec<f32>,
    /// Blocks of 256: sums of 16 values each, `[rows, cols / 16]`.
    sums16: Vec<i16>,
    /// Blocks of 256: sums of 32 values each, `[rows, cols / 32]`.
    sums32: Vec<i16>,
}

/// Bytes of a line of the cache.
const LINE: usize = 64;

/// Values that begin where a line of the cache does: what is loaded at once should not lie in two of them.
#[derive(Debug, Default)]
struct Lines<T> {
    values: Vec<T>,
    start: usize,
}

impl<T: Zero> Lines<T> {
    /// Room for so many values.
    fn new(count: usize) -> Option<Self> {
        let more = LINE / size_of::<T>();
        let values = zeroed::<T>(count.checked_add(more)?)?;
        let start = values.as_ptr().align_offset(LINE).min(more);
        Some(Self { values, start })
    }

    /// The first `count` values.
    fn get(&self, count: usize) -> Option<&[T]> {
        self.values.get(self.start..)?.get(..count)
    }

    /// The same to write to.
    fn get_mut(&mut self, count: usize) -> Option<&mut [T]> {
        self.values.get_mut(self.start..)?.get_mut(..count)
    }
}

/// Which form of the input a type of weights is multiplied with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    Float,
    Blocks32,
    Blocks256,
}

impl Form {
    /// The form for a type that has kernels.
    pub(crate) fn of(ttype: TensorType) -> Self {
        match ttype.block_len() {
            32 | 64 => Self::Blocks32,
            256 => Self::Blocks256,
            _ => Self::Float,
        }
    }
}

impl Activations {
    /// Buffers for at most `max_rows` rows of at most `max_cols` columns.
    ///
    /// # Errors
    /// [`KernelError::TooLarge`] if the memory can't be had.
    pub fn new(max_rows: usize, max_cols: usize) -> Result<Self, KernelError> {
        Self::allocate(max_rows, max_cols).ok_or(KernelError::TooLarge { rows: max_rows, cols: max_cols })
    }

    /// Bytes that [`new`](Self::new) allocates; saturating.
    #[must_use]
    pub fn bytes(max_rows: usize, max_cols: usize) -> u64 {
        let (rows, cols) = (max_rows as u64, max_cols as u64);
        // A float; of each block of 32 or 256 its 8-bit form and what belongs to it.
        let block32 = 32 + 4 + 4 + 4;
        let block256 = 256 + 4 + 16 * 2 + 8 * 2;
        let row =
            cols.saturating_mul(4).saturating_add(cols / 32 * block32).saturating_add(cols / 256 * block256);
        row.saturating_mul(rows).saturating_add(3 * LINE as u64)
    }

    fn allocate(max_rows: usize, max_cols: usize) -> Option<Self> {
        let elements = max_rows.checked_mul(max_cols).filter(|n| *n <= isize::MAX as usize / 8)?;
        let blocks32 = max_rows * (max_cols / 32);
        let blocks256 = max_rows * (max_cols / 256);
        Some(Self {
            max_rows,
            max_cols,
            rows: 0,
            cols: 0,
            x: Lines::new(elements)?,
            x_ready: false,
            q32: Quantized {
                q: Lines::new(blocks32 * 32)?,
                d: zeroed(blocks32)?,
                sums: zeroed(blocks32)?,
                ds: zeroed(blocks32)?,
                ..Quantized::default()
            },
            q256: Quantized {
                q: Lines::new(blocks256 * 256)?,
                d: zeroed(blocks256)?,
                sums16: zeroed(blocks256 * 16)?,
                sums32: zeroed(blocks256 * 8)?,
                ..Quantized::default()
            },
        })
    }

    /// Takes a new input, x: `[rows, cols]`, in the forms that weights of these types are multiplied with.
    ///
    /// # Errors
    /// [`KernelError::Limit`] beyond what the buffers were made for; [`KernelError::Length`] if `x` has another length;
    /// [`KernelError::UnsupportedType`]; [`KernelError::PartialBlock`] if the columns are not whole blocks of a type.
    pub fn set(
        &mut self,
        kernels: &Kernels,
        pool: &Pool,
        x: &[f32],
        (rows, cols): (usize, usize),
        types: impl IntoIterator<Item = TensorType>,
    ) -> Result<(), KernelError> {
        (self.rows, self.cols) = (0, 0);
        (self.x_ready, self.q32.ready, self.q256.ready) = (false, false, false);
        for (what, limit, actual) in
            [("rows of activations", self.max_rows, rows), ("columns of activations", self.max_cols, cols)]
        {
            if actual > limit {
                return Err(KernelError::Limit { what, limit, actual });
            }
        }
        if x.len() != rows * cols {
            return Err(KernelError::Length { what: "activations", expected: rows * cols, actual: x.len() });
        }
        (self.rows, self.cols) = (rows, cols);
        types.into_iter().try_for_each(|ttype| self.prepare(kernels, pool, x, ttype))
    }

    /// Makes the form of the input that weights of this type are multiplied with, if it is not there yet.
    fn prepare(
        &mut self,
        kernels: &Kernels,
        pool: &Pool,
        x: &[f32],
        ttype: TensorType,
    ) -> Result<(), KernelError> {
        if !crate::is_supported(ttype) {
            return Err(KernelError::UnsupportedType { ttype });
        }
        let form = Form::of(ttype);
        if form == Form::Float {
            if let Some(to) = self.x.get_mut(x.len()).filter(|_| !self.x_ready) {
                to.copy_from_slice(x);
                self.x_ready = true;
            }
            return Ok(());
        }
        // The columns are whole blocks of activations if they are whole blocks of weights, which are as long or twice.
        let (block, cols) = (ttype.block_len(), self.cols);
        if !cols.is_multiple_of(block) {
            return Err(KernelError::PartialBlock { ttype, block, cols });
        }
        let (block, out) = if form == Form::Blocks32 { (32, &mut self.q32) } else { (256, &mut self.q256) };
        if out.ready {
            return Ok(());
        }
        let blocks = x.len() / block;
        let quantize = kernels.matmul.quantize;
        let per_task = blocks.div_ceil((x.len() / GRAIN).max(1)).max(1);
        let q = out.q.get_mut(x.len()).ok_or(KernelError::TooLarge { rows: self.rows, cols })?;
        let to = Buffers {
            q: Pieces(q.as_mut_ptr()),
            d: Pieces(out.d.as_mut_ptr()),
            sums: Pieces(out.sums.as_mut_ptr()),
            ds: Pieces(out.ds.as_mut_ptr()),
            sums16: Pieces(out.sums16.as_mut_ptr()),
            sums32: Pieces(out.sums32.as_mut_ptr()),
        };
        let task = |task: usize, _: usize| {
            let start = task * per_task;
            let n = per_task.min(blocks - start);
            let x = &x[start * block..(start + n) * block];
            // SAFETY: the blocks start..start + n are below `blocks`, for which `new` made room in the buffers of this
            // form (rows and columns are within its limits); they are borrowed mutably through `out` for the whole run,
            // and the pool gives each task out once.
            #[allow(unsafe_code)]
            unsafe {
                let (q, d) = (to.q.slice(start * block, n * block), to.d.slice(start, n));
                if form == Form::Blocks32 {
                    quantize.blocks32(x, q, d, to.sums.slice(start, n), to.ds.slice(start, n));
                } else {
                    quantize.blocks256(
                        x,
                        q,
                        d,
                        to.sums16.slice(start * 16, n * 16),
                        to.sums32.slice(start * 8, n * 8),
                    );
                }
            }
        };
        let tasks = blocks.div_ceil(per_task);
        if x.len() <= INLINE {
            (0..tasks).for_each(|index| task(index, 0));
        } else {
            pool.run(tasks, &task);
        }
        out.ready = true;
        Ok(())
    }

    /// Rows of the input.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Columns of the input.
    #[must_use]
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// The most rows that [`set`](Self::set) takes.
    #[must_use]
    pub fn max_rows(&self) -> usize {
        self.max_rows
    }

    /// The most columns that [`set`](Self::set) takes.
    #[must_use]
    pub fn max_cols(&self) -> usize {
        self.max_cols
    }

    /// The input in the form for weights of this type; `None` if it is not prepared.
    pub(crate) fn input(&self, ttype: TensorType) -> Option<Input<'_>> {
        let elements = self.rows * self.cols;
        let blocks = |block: usize| elements / block;
        let mut input = Input { rows: self.rows, cols: self.cols, ..Input::default() };
        match Form::of(ttype) {
            Form::Float if self.x_ready => input.x = self.x.get(elements)?,
            Form::Blocks32 if self.q32.ready => {
                input.q = self.q32.q.get(elements)?;
                input.d = self.q32.d.get(..blocks(32))?;
                input.sums = self.q32.sums.get(..blocks(32))?;
                input.ds = self.q32.ds.get(..blocks(32))?;
            }
            Form::Blocks256 if self.q256.ready => {
                input.q = self.q256.q.get(elements)?;
                input.d = self.q256.d.get(..blocks(256))?;
                input.sums16 = self.q256.sums16.get(..blocks(16))?;
                input.sums32 = self.q256.sums32.get(..blocks(32))?;
            }
            _ => return None,
        }
        Some(input)
    }
}

/// The buffers of one form, of which each task writes its blocks.
struct Buffers {
    q: Pieces<i8>,
    d: Pieces<f32>,
    sums: Pieces<i32>,
    ds: Pieces<f32>,
    sums16: Pieces<i16>,
    sums32: Pieces<i16>,
}

/// The quantising functions for one instruction set.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Quantize {
    /// The processor has AVX2. (Of other instruction sets, NEON is what any aarch64 is compiled for.)
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
    avx2: bool,
}

impl Quantize {
    /// `isa` must be one that this processor has.
    pub(super) fn new(isa: Isa) -> Self {
        Self { avx2: matches!(isa, Isa::Avx2 | Isa::Avx512Vnni | Isa::Avx512Amx) }
    }

    /// Whole blocks of 32.
    fn blocks32(self, x: &[f32], q: &mut [i8], d: &mut [f32], sums: &mut [i32], ds: &mut [f32]) {
        #[cfg(target_arch = "x86_64")]
        if self.avx2 {
            #[target_feature(enable = "avx2,fma,f16c")]
            fn with_avx2(x: &[f32], q: &mut [i8], d: &mut [f32], sums: &mut [i32], ds: &mut [f32]) {
                blocks32(x, q, d, sums, ds);
            }
            // SAFETY: `avx2` says that the processor has these, by the contract of `new`.
            #[allow(unsafe_code)]
            return unsafe { with_avx2(x, q, d, sums, ds) };
        }
        blocks32(x, q, d, sums, ds);
    }

    /// Whole blocks of 256.
    fn blocks256(self, x: &[f32], q: &mut [i8], d: &mut [f32], sums16: &mut [i16], sums32: &mut [i16]) {
        #[cfg(target_arch = "x86_64")]
        if self.avx2 {
            #[target_feature(enable = "avx2,fma,f16c")]
            fn with_avx2(x: &[f32], q: &mut [i8], d: &mut [f32], sums16: &mut [i16], sums32: &mut [i16]) {
                blocks256(x, q, d, sums16, sums32);
            }
            // SAFETY: `avx2` says that the processor has these, by the contract of `new`.
            #[allow(unsafe_code)]
            return unsafe { with_avx2(x, q, d, sums16, sums32) };
        }
        blocks256(x, q, d, sums16, sums32);
    }
}

/// Quantises one block, as bytes and as integers to go on with, and returns its scale: bytes that were just written are slow to
/// read in other pieces. Plain text that a compiler may turn into vectors of any width: it is only
/// integer operations and single, exactly rounded float operations.
#[inline(always)]
fn block<const N: usize>(x: &[f32; N], q: &mut [i8; N], integers: &mut [i32; N]) -> f32 {
    const INFINITY: i32 = 0x7f80_0000;
    // Magnitudes of floats are ordered like their bits, with infinity and then the NaNs on top.
    let mut most = 0;
    for v in x {
        most = most.max((v.to_bits() & 0x7fff_ffff).cast_signed());
    }
    let greatest = f32::from_bits(most.cast_unsigned());
    let inverse = MAX / greatest;
    if most >= INFINITY || inverse == f32::INFINITY {
        q.fill(0);
        integers.fill(0);
        return if most >= INFINITY { f32::NAN } else { 0.0 };
    }
    for ((q, integer), v) in q.iter_mut().zip(integers).zip(x) {
        // At most 127 and a bit, which rounds to 127.
        *q = (v * inverse + ROUND).to_bits() as i8;
        *integer = i32::from(*q);
    }
    greatest / MAX
}

#[inline(always)]
fn blocks32(x: &[f32], q: &mut [i8], d: &mut [f32], sums: &mut [i32], ds: &mut [f32]) {
    let blocks = x.as_chunks::<32>().0.iter().zip(q.as_chunks_mut::<32>().0);
    for ((((x, q), d), sum), ds) in blocks.zip(d).zip(sums).zip(ds) {
        let mut integers = [0; 32];
        *d = block(x, q, &mut integers);
        *sum = integers.iter().sum();
        *ds = *d * *sum as f32;
    }
}

#[inline(always)]
fn blocks256(x: &[f32], q: &mut [i8], d: &mut [f32], sums16: &mut [i16], sums32: &mut [i16]) {
    let blocks = x.as_chunks::<256>().0.iter().zip(q.as_chunks_mut::<256>().0);
    let sums = sums16.as_chunks_mut::<16>().0.iter_mut().zip(sums32.as_chunks_mut::<8>().0);
    for (((x, q), d), (sums16, sums32)) in blocks.zip(d).zip(sums) {
        let mut integers = [0; 256];
        *d = block(x, q, &mut integers);
        for (sum, integers) in sums16.iter_mut().zip(integers.as_chunks::<16>().0) {
            // Of 16 bytes.
            *sum = integers.iter().sum::<i32>() as i16;
        }
        for (sum, pair) in sums32.iter_mut().zip(sums16.as_chunks::<2>().0) {
            *sum = pair[0] + pair[1];
        }
    }
}
