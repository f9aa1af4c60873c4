//! What the device can do at most, measured.

use std::time::{Duration, Instant};

use cudarc::driver::CudaFunction;

use crate::gpu::{grid, launch};
use crate::memory::Array;
use crate::modules::Module;
use crate::{CudaError, Gpu};

/// Bytes that are read, and the part of the free memory that they may take.
const BUFFER: u64 = 512 << 20;
const SHARE: u64 = 8;
/// Blocks for each multiprocessor, threads of a block.
const BLOCKS: usize = 8;
const THREADS: usize = 256;
/// Multiply-adds of a warp in a step of the int8 kernel, of a thread in one of the f32 kernel.
const INT8_STEP: f64 = 8.0 * 16.0 * 8.0 * 32.0;
const F32_STEP: f64 = 8.0;

/// A device's limits, to be measured again and again.
pub struct Peak {
    gpu: Gpu,
    read: CudaFunction,
    int8: CudaFunction,
    f32: CudaFunction,
    data: Array<u8>,
    out: Array<u32>,
}

/// One measurement.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PeakSample {
    /// Bytes read per second from the device's memory.
    pub read: f64,
    /// 8-bit multiply-adds per second of the matrix units.
    pub int8: f64,
    /// f32 multiply-adds per second.
    pub f32: f64,
}

impl Peak {
    /// Of the GPU of this number, with a buffer of 512 MiB or an eighth of what is free.
    ///
    /// # Errors
    /// Why the GPU can't be used.
    pub fn new(index: usize) -> Result<Self, CudaError> {
        let gpu = Gpu::open(index)?;
        let module = Module::load(&gpu.context, "peak")?;
        let bytes = usize::try_from(BUFFER.min(gpu.free_bytes()? / SHARE)).unwrap_or(0).next_multiple_of(16);
        let mut data = gpu.array("the bytes that reading is measured with", bytes)?;
        data.clear(&gpu.stream, bytes)?;
        let mut out = gpu.array("a result", 1)?;
        out.clear(&gpu.stream, 1)?;
        Ok(Self {
            read: module.function("read_all")?,
            int8: module.function("multiply_int8")?,
            f32: module.function("multiply_f32")?,
            data,
            out,
            gpu,
        })
    }

    /// Bytes that are read.
    pub fn buffer_bytes(&self) -> u64 {
        self.data.len() as u64
    }

    /// Measures for about so long each.
    ///
    /// # Errors
    /// What the driver reports.
    pub fn measure(&self, time: Duration) -> Result<PeakSample, CudaError> {
        let blocks = self.gpu.info().multiprocessors * BLOCKS;
        let grid = grid((blocks, 1, 1), THREADS, 0)?;
        let (gpu, count, out) = (&self.gpu, (self.data.len() / 16) as u64, self.out.address());
        let passes = rate(time, gpu, |passes| {
            for _ in 0..passes {
                launch!(gpu, self.read, grid; self.data.address(), count, out)?;
            }
            Ok(())
        })?;
        let steps = |kernel: &CudaFunction| {
            rate(time, gpu, |steps| launch!(gpu, kernel, grid; i32::try_from(steps).unwrap_or(i32::MAX), out))
        };
        let threads = (blocks * THREADS) as f64;
        Ok(PeakSample {
            read: passes * self.data.len() as f64,
            int8: steps(&self.int8)? * INT8_STEP * threads / 32.0,
            f32: steps(&self.f32)? * F32_STEP * threads,
        })
    }
}

/// How often something is done in a second: of so many times that it takes about as long as is wanted.
fn rate(
    time: Duration,
    gpu: &Gpu,
    mut run: impl FnMut(u64) -> Result<(), CudaError>,
) -> Result<f64, CudaError> {
    let mut times = 1;
    loop {
        gpu.wait()?;
        let start = Instant::now();
        run(times)?;
        gpu.wait()?;
        let taken = start.elapsed();
        if taken >= time || times >= 1 << 30 {
            return Ok(times as f64 / taken.as_secs_f64());
        }
        times *= 2;
    }
}
