//! A tensor's rows on their way from one format to another.

use std::io::{self, Write};
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use moli_format::TensorType;
use moli_kernels::{Pool, dequantize, is_supported, quantize_rows};

use super::Item;
use crate::{ConvertError, PortableTensor, Watch};

/// Weights that a thread takes at a time, unless a row has more.
const SPAN: usize = 1 << 16;
/// Spans for each thread between two writes.
const SPANS: usize = 4;
/// The greatest number in half precision.
const MOST_HALF: f32 = 65_504.0;

/// A tensor and what it shall become.
pub(super) struct Job {
    tensor: PortableTensor,
    to: TensorType,
    importance: Option<Arc<[f32]>>,
    pool: Arc<Pool>,
    watch: Arc<Watch>,
}

/// What a thread makes of a span.
#[derive(Default)]
struct Slot {
    rows: Range<usize>,
    bytes: Vec<u8>,
    error: Option<ConvertError>,
}

/// A thread's room for a span's weights, as they are and as they will be read.
#[derive(Default)]
struct Scratch {
    weights: Vec<f32>,
    stored: Vec<f32>,
}

impl Job {
    pub(super) fn new(item: &Item, pool: &Arc<Pool>, watch: &Arc<Watch>) -> Self {
        Self {
            tensor: item.tensor.clone(),
            to: item.planned.to,
            importance: item.importance.clone(),
            pool: Arc::clone(pool),
            watch: Arc::clone(watch),
        }
    }

    /// Writes the tensor in its new format. What goes wrong but for the writing is a [`ConvertError`] inside the error.
    pub(super) fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        let threads = self.pool.threads();
        let scratch: Vec<Mutex<Scratch>> = (0..threads).map(|_| Mutex::default()).collect();
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
                read += (slot.rows.len() * self.row_bytes()) as u64;
            }
            // Or the pages of the whole file would be counted as this process's.
            self.tensor.release();
            if !(self.watch)(read) {
                return Err(io::Error::other(ConvertError::Cancelled));
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

    fn row_bytes(&self) -> usize {
        self.tensor.ttype.row_bytes(self.tensor.cols()).unwrap_or_default()
    }

    /// Makes the bytes of a slot's rows.
    fn convert(&self, slot: &mut Slot, scratch: &mut Scratch) -> Result<(), ConvertError> {
        let (from, cols) = (self.tensor.ttype, self.tensor.cols());
        let Scratch { weights, stored } = scratch;
        slot.bytes.clear();
        if is_supported(from) {
            weights.resize(slot.rows.len() * cols, 0.0);
            for (row, weights) in slot.rows.clone().zip(weights.chunks_exact_mut(cols)) {
                dequantize(from, self.tensor.row(row), weights)?;
                if let Some(&value) = weights.iter().find(|weight| !weight.is_finite()) {
                    return Err(ConvertError::NotFinite { tensor: self.tensor.name.clone(), row, value });
                }
            }
        }
        if self.to == from {
            slot.rows.clone().for_each(|row| slot.bytes.extend_from_slice(self.tensor.row(row)));
            return Ok(());
        }
        let expert = slot.rows.start / self.expert_rows();
        let importance = self.importance.as_ref().and_then(|all| all.chunks_exact(cols).nth(expert));
        quantize_rows(self.to, weights, cols, importance, &mut slot.bytes)?;
        stored.resize(weights.len(), 0.0);
        dequantize(self.to, &slot.bytes, stored)?;
        let rows = weights.chunks_exact(cols).zip(stored.chunks_exact(cols));
        for (row, (weights, stored)) in slot.rows.clone().zip(rows) {
            let (value, most) = (greatest(weights), greatest(stored).abs());
            // A weight or the scale of its block may be beyond half precision.
            if value.abs() > MOST_HALF && (most < value.abs() / 2.0 || most.is_infinite()) {
                let tensor = self.tensor.name.clone();
                return Err(ConvertError::TooLarge { tensor, row, value, ttype: self.to });
            }
        }
        Ok(())
    }
}

/// The weight of the greatest magnitude.
fn greatest(weights: &[f32]) -> f32 {
    weights.iter().fold(0.0, |most: f32, weight| if weight.abs() > most.abs() { *weight } else { most })
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
