//! What the machine can do at most, measured beside the rows: reading, and multiply-adds of the instruction set in use.

use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use moli_kernels::{Isa, KernelError, Kernels, Pool, peak, zeroed};

use crate::machine::last_level_caches;
use crate::report::Limits;
use crate::statistics::median;

/// Bytes that are read, at least: beyond the caches of most machines.
const LEAST_BUFFER: u64 = 256 << 20;
/// How many times as large as the last-level caches the buffer is. A cache that keeps what it can of a buffer that is read
/// again and again would answer the inverse of this part of the reads, a fast processor's prefetchers less.
const CACHES: u64 = 4;
/// The part of the memory that the buffer may take.
const MEMORY_SHARE: u64 = 8;
/// How long a sample reads, at least, and for how long it multiplies each kind of numbers.
const READ_TIME: Duration = Duration::from_millis(60);
const MULTIPLY_TIME: Duration = Duration::from_millis(20);

/// A meter that can't be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LimitsError {
    /// The system gives no memory for the buffer that is read.
    #[error("there is no memory for the {bytes} bytes that reading is measured with")]
    OutOfMemory {
        /// Bytes of the buffer.
        bytes: u64,
    },
    /// The system starts fewer threads than are asked for.
    #[error("{wanted} threads were asked for, and the system started {started}")]
    Threads {
        /// Threads asked for.
        wanted: usize,
        /// Threads that there are.
        started: usize,
    },
    /// The kernels can't be had.
    #[error(transparent)]
    Kernel(#[from] KernelError),
}

/// Measures the limits of so many threads.
#[derive(Debug)]
pub struct Meter {
    kernels: Kernels,
    pool: Pool,
    /// What is read: touched, so that it is memory and not a promise.
    data: Arc<Vec<u8>>,
    /// Bytes of all last-level caches together; `None`: not known.
    caches: Option<u64>,
}

/// One measurement.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sample {
    /// Bytes read per second.
    pub read: f64,
    /// 8-bit multiply-adds per second.
    pub int8: Option<f64>,
    /// f32 multiply-adds per second.
    pub f32: f64,
}

impl Meter {
    /// For `threads` threads (0 counts as 1) with the instruction set that the kernels use here, and a buffer of 256 MiB or four
    /// times all last-level caches, but at most an eighth of the memory that this process may use.
    ///
    /// # Errors
    /// If the memory or the threads can't be had.
    pub fn new(threads: usize) -> Result<Self, LimitsError> {
        let (caches, bytes) = planned();
        let data = touched(bytes, threads.max(1)).ok_or(LimitsError::OutOfMemory { bytes })?;
        Self::with(threads, Arc::new(data), caches)
    }

    /// Bytes of the buffer that a meter makes on this machine.
    pub fn planned_bytes() -> u64 {
        planned().1
    }

    /// The same for another number of threads, with the same buffer.
    ///
    /// # Errors
    /// If the threads can't be had.
    pub fn with_threads(&self, threads: usize) -> Result<Self, LimitsError> {
        Self::with(threads, Arc::clone(&self.data), self.caches)
    }

    fn with(threads: usize, data: Arc<Vec<u8>>, caches: Option<u64>) -> Result<Self, LimitsError> {
        let pool = Pool::new(threads);
        let (wanted, started) = (threads.max(1), pool.threads());
        if started != wanted {
            return Err(LimitsError::Threads { wanted, started });
        }
        Ok(Self { kernels: Kernels::new(Isa::detect())?, pool, data, caches })
    }

    /// Threads that measure.
    pub fn threads(&self) -> usize {
        self.pool.threads()
    }

    /// Bytes of the buffer.
    pub fn buffer_bytes(&self) -> u64 {
        self.data.len() as u64
    }

    /// What a reader must know: whether the caches hold so much of the buffer that reading it is partly their speed.
    pub fn note(&self) -> Option<String> {
        let (bytes, caches) = (self.buffer_bytes(), self.caches?);
        (bytes < 2 * caches).then(|| {
            format!(
                "the read limit is partly that of the caches: they hold {} MiB, and there was memory to measure with {} MiB",
                caches >> 20,
                bytes >> 20
            )
        })
    }

    /// Measures once: about a tenth of a second.
    pub fn measure(&mut self) -> Sample {
        let (mut passes, mut seconds) = (0.0, 0.0);
        let start = Instant::now();
        while passes == 0.0 || start.elapsed() < READ_TIME {
            passes += 1.0;
            seconds += self.data.len() as f64 / peak::read(&self.pool, &self.data);
        }
        Sample {
            read: passes * self.data.len() as f64 / seconds,
            int8: peak::int8(&self.kernels, &self.pool, MULTIPLY_TIME),
            f32: peak::f32(&self.kernels, &self.pool, MULTIPLY_TIME),
        }
    }
}

/// What measures the limits of what computes.
pub(crate) enum AnyMeter {
    /// The processor.
    Cpu(Box<Meter>),
    /// A GPU.
    #[cfg(feature = "cuda")]
    Gpu(Box<moli_model::Peak>),
}

impl AnyMeter {
    /// See [`Meter::measure`].
    pub(crate) fn measure(&mut self) -> Result<Sample, String> {
        match self {
            Self::Cpu(meter) => Ok(meter.measure()),
            #[cfg(feature = "cuda")]
            Self::Gpu(peak) => {
                let sample = peak.measure(MULTIPLY_TIME).map_err(|error| error.to_string())?;
                Ok(Sample { read: sample.read, int8: Some(sample.int8), f32: sample.f32 })
            }
        }
    }
}

impl Limits {
    /// The medians of the samples of so many threads, of which there is at least one.
    pub fn of(threads: usize, samples: &[Sample]) -> Self {
        let all = |of: fn(&Sample) -> Option<f64>| samples.iter().filter_map(of).collect::<Vec<_>>();
        let int8 = all(|sample| sample.int8);
        Self {
            threads,
            read_bytes_per_second: median(&all(|sample| Some(sample.read))),
            int8_macs_per_second: (!int8.is_empty()).then(|| median(&int8)),
            f32_macs_per_second: median(&all(|sample| Some(sample.f32))),
        }
    }
}

/// Bytes of all last-level caches, and of the buffer.
fn planned() -> (Option<u64>, u64) {
    let caches = last_level_caches(Path::new("/"));
    // A system that does not say what there is has no limit.
    let memory = moli_engine::memory_limit(moli_engine::BackendKind::Cpu, None).ok().flatten().map(|limit| limit.bytes);
    (caches, buffer_bytes(caches, memory))
}

/// Bytes of the buffer, given those of the last-level caches and of the memory that there is.
fn buffer_bytes(caches: Option<u64>, memory: Option<u64>) -> u64 {
    let wanted = caches.map_or(0, |bytes| bytes.saturating_mul(CACHES)).max(LEAST_BUFFER);
    memory.map_or(wanted, |memory| wanted.min(memory / MEMORY_SHARE))
}

/// A buffer of which each thread has written its part: so that its pages are near the threads, on machines where some are
/// nearer than others.
fn touched(bytes: u64, threads: usize) -> Option<Vec<u8>> {
    let mut data: Vec<u8> = zeroed(usize::try_from(bytes).ok()?)?;
    let part = data.len().div_ceil(threads).max(1);
    let started = thread::scope(|scope| {
        let mut parts = data.chunks_mut(part);
        parts.all(|part| thread::Builder::new().spawn_scoped(scope, || part.fill(1)).is_ok())
    });
    if !started {
        // Where no thread can be had, this one writes.
        data.fill(1);
    }
    Some(data)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn a_sample_has_what_the_instruction_set_has() {
        let mut meter = Meter::new(2).unwrap();
        let start = Instant::now();
        let sample = meter.measure();
        assert!(start.elapsed() < Duration::from_secs(10));
        assert!(sample.read > 1e6 && sample.f32 > 1e6, "{sample:?}");
        assert_eq!(sample.int8.is_some(), Isa::detect() != Isa::Scalar);
        assert_eq!(meter.threads(), 2);
        let one = meter.with_threads(0).unwrap();
        assert_eq!((one.threads(), one.buffer_bytes()), (1, meter.buffer_bytes()));
        assert!(Arc::ptr_eq(&one.data, &meter.data));
    }

    #[test]
    fn limits_are_medians() {
        let sample = |read: f64, int8: Option<f64>| Sample { read, int8, f32: 2.0 * read };
        let limits = Limits::of(3, &[sample(5.0, None), sample(1.0, Some(7.0)), sample(2.0, Some(9.0))]);
        let expected = Limits {
            threads: 3,
            read_bytes_per_second: 2.0,
            int8_macs_per_second: Some(8.0),
            f32_macs_per_second: 4.0,
        };
        assert_eq!(limits, expected);
        assert_eq!(Limits::of(1, &[sample(1.0, None)]).int8_macs_per_second, None);
    }

    #[test]
    fn the_buffer_exceeds_the_caches_and_leaves_the_memory_to_others() {
        for (caches, memory, expected) in [
            (None, None, 256 * MIB),
            (Some(MIB), Some(8192 * MIB), 256 * MIB),
            (Some(32 * MIB), Some(8192 * MIB), 256 * MIB),
            (Some(384 * MIB), Some(65_536 * MIB), 1536 * MIB),
            (Some(384 * MIB), Some(4096 * MIB), 512 * MIB),
            (Some(MIB), Some(512 * MIB), 64 * MIB),
            (Some(u64::MAX), Some(u64::MAX), u64::MAX / 8),
        ] {
            assert_eq!(buffer_bytes(caches, memory), expected, "{caches:?} {memory:?}");
        }
    }

    #[test]
    fn caches_that_hold_the_buffer_are_told_of() {
        let meter = |bytes: u64, caches| {
            Meter::with(1, Arc::new(vec![1; bytes as usize]), caches).unwrap().note().is_some()
        };
        assert!(meter(3 * MIB, Some(2 * MIB)));
        assert!(!meter(4 * MIB, Some(2 * MIB)));
        assert!(!meter(MIB, None));
    }
}
