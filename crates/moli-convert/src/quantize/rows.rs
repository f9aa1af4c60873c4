//! A tensor's rows on their way from one format to another.

use std::io::{self, Write};
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use moli_format::{Tensor, TensorType};
use moli_kernels::{Pool, dequantize, is_supported};

use super::Progress;
use crate::ConvertError;

/// Weights that a thread takes at a time, unless a row has more.
const SPAN: usize = 1 << 16;
/// Spans for each thread between two writes.
const SPANS: usize = 4;

/// A tensor and what it shall become.
pub(super) struct Job {
    pub(super) tensor: Tensor,
    pub(super) to: TensorType,
    pub(super) importance: Option<Arc<[f32]>>,
    pub(super) pool: Arc<Pool>,
    pub(super) progress: Arc<Progress>,
}

/// What a thread makes of a span.
#[derive(Default)]
struct Slot {
    rows: Range<usize>,
    bytes: Vec<u8>,
    error: Option<ConvertError>,
}

impl Job {
    /// Writes the tensor in its new format. What goes wrong but for the writing is a [`ConvertError`] inside the error.
    pub(super) fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        let threads = self.pool.threads();
        let scratch: Vec<Mutex<Vec<f32>>> = (0..threads).map(|_| Mutex::default()).collect();
        let mut slots: Vec<Mutex<Slot>> = (0..threads * SPANS).map(|_| Mutex::default()).collect();
        let mut spans = self.spans();
        loop {
            let mut taken = 0;
            for (slot, rows) in slots.iter_mut().zip(&mut spans) {
                slot.get_mut().unwrap_or_else(PoisonError::into_inner).rows = rows;
                taken += 1;
            }
            if taken == 0 {
                return Ok(());
            }
            self.pool.run(taken, &|task, thread| {
                if let (Some(slot), Some(scratch)) = (slots.get(task), scratch.get(thread)) {
                    let mut slot = lock(slot);
                    slot.error = self.convert(&mut slot, &mut lock(scratch)).err();
                }
            });
            let mut read = 0;
            for slot in slots.iter_mut().take(taken) {
                let slot = slot.get_mut().unwrap_or_else(PoisonError::into_inner);
                if let Some(error) = slot.error.take() {
                    return Err(io::Error::other(error));
                }
                out.write_all(&slot.bytes)?;
                read += self.bytes(&slot.rows).len() as u64;
            }
            // Or the pages of the whole file would be counted as this process's.
            self.tensor.data.release();
            if (self.progress)(read).is_break() {
                return Err(io::Error::other(ConvertError::Interrupted));
            }
        }
    }

    /// The rows in spans, none of which has rows of two experts.
    fn spans(&self) -> impl Iterator<Item = Range<usize>> {
        let rows = self.tensor.rows();
        let expert = self.expert_rows();
        let most = (SPAN / self.tensor.cols().max(1)).max(1);
        let mut start = 0;
        std::iter::from_fn(move || {
            let end = (start + most).min((start / expert + 1) * expert).min(rows);
            let span = start..end;
            start = end;
            (!span.is_empty()).then_some(span)
        })
    }

    fn expert_rows(&self) -> usize {
        self.tensor.dims.get(1).map_or(1, |&rows| rows as usize).max(1)
    }

    /// Rows in the format that they have.
    fn bytes(&self, rows: &Range<usize>) -> &[u8] {
        let row = self.tensor.ttype.row_bytes(self.tensor.cols()).unwrap_or_default();
        self.tensor.data.get(rows.start * row..rows.end * row).unwrap_or_default()
    }

    /// Makes the bytes of a slot's rows.
    fn convert(&self, slot: &mut Slot, weights: &mut Vec<f32>) -> Result<(), ConvertError> {
        let (from, cols) = (self.tensor.ttype, self.tensor.cols());
        let source = self.bytes(&slot.rows);
        slot.bytes.clear();
        if !is_supported(from) {
            slot.bytes.extend_from_slice(source);
            return Ok(());
        }
        weights.resize(slot.rows.len() * cols, 0.0);
        dequantize(from, source, weights)?;
        if let Some(index) = not_finite(weights) {
            let (row, value) =
                (slot.rows.start + index / cols, weights.get(index).copied().unwrap_or_default());
            return Err(ConvertError::NotFinite { tensor: self.tensor.name.clone(), row, value });
        }
        if self.to == from {
            slot.bytes.extend_from_slice(source);
            return Ok(());
        }
        let expert = slot.rows.start / self.expert_rows();
        let importance = self.importance.as_ref().and_then(|all| all.chunks_exact(cols).nth(expert));
        blocks(self.to, weights, cols, importance, &mut slot.bytes)?;
        // A weight, or the scale that it needs, may be beyond half precision.
        dequantize(self.to, &slot.bytes, weights)?;
        if let Some(index) = not_finite(weights) {
            dequantize(from, source, weights)?;
            let (row, value) =
                (slot.rows.start + index / cols, weights.get(index).copied().unwrap_or_default());
            let tensor = self.tensor.name.clone();
            return Err(ConvertError::TooLarge { tensor, row, value, ttype: self.to });
        }
        Ok(())
    }
}

/// Appends the blocks of whole rows.
fn blocks(
    ttype: TensorType,
    weights: &[f32],
    _cols: usize,
    _importance: Option<&[f32]>,
    out: &mut Vec<u8>,
) -> Result<(), ConvertError> {
    Ok(moli_kernels::quantize(ttype, weights, out)?)
}

fn not_finite(weights: &[f32]) -> Option<usize> {
    weights.iter().position(|weight| !weight.is_finite())
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
