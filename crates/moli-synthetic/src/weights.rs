//! Random weights in quantised blocks.

use std::io::{self, Write};

use moli_format::TensorType;
use moli_kernels::KernelError;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

/// Weights that are quantised and drawn together: whole blocks of every format.
const UNIT: usize = 256;
/// Units of a format that are really quantised. Tensors draw from these, because quantising billions of weights one by one
/// takes minutes; a power of two, so that drawing is fair.
const POOL: usize = 4096;
/// Units that go to the file in one piece.
const CHUNK: usize = 256;
/// Standard deviation of weights and biases, as models are usually initialised.
pub(crate) const DEVIATION: f32 = 0.02;

/// A number for each name, so that every tensor has random numbers of its own.
pub fn stream_of(name: &str) -> u64 {
    name.bytes().fold(0, |hash, byte| hash.wrapping_mul(31).wrapping_add(u64::from(byte)))
}

/// [`POOL`] quantised units of a format.
pub(crate) struct Units {
    bytes: Vec<u8>,
}

impl Units {
    pub(crate) fn new(ttype: TensorType) -> Result<Self, KernelError> {
        let mut random = ChaCha8Rng::seed_from_u64(stream_of(ttype.name()));
        let values: Vec<f32> = (0..POOL * UNIT).map(|_| DEVIATION * normal(&mut random)).collect();
        let mut bytes = Vec::new();
        moli_kernels::quantize(ttype, &values, &mut bytes)?;
        Ok(Self { bytes })
    }

    /// Writes so many bytes of units drawn at random. Rows may begin inside a unit, never inside a block, and of the last
    /// unit there may be some blocks only.
    pub(crate) fn draw(&self, seed: u64, bytes: u64, out: &mut dyn Write) -> io::Result<()> {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let unit = self.bytes.len() / POOL;
        let mut chunk = Vec::with_capacity(CHUNK * unit);
        let mut left = bytes;
        while left > 0 {
            chunk.clear();
            for _ in 0..CHUNK {
                let start = random.next_u32() as usize % POOL * unit;
                chunk.extend_from_slice(self.bytes.get(start..start + unit).unwrap_or_default());
            }
            chunk.truncate(usize::try_from(left).unwrap_or(usize::MAX));
            out.write_all(&chunk)?;
            left -= chunk.len() as u64;
        }
        Ok(())
    }
}

/// So many floats around a mean: gains or biases.
pub(crate) fn vector(name: &str, mean: f32, len: u64) -> Vec<u8> {
    let mut random = ChaCha8Rng::seed_from_u64(stream_of(name));
    (0..len).flat_map(|_| (mean + DEVIATION * normal(&mut random)).to_le_bytes()).collect()
}

/// Nearly normal, with variance 1: the sum of eight uniform numbers, which is the same on every machine, as the logarithm of
/// the textbook's method is not.
fn normal(random: &mut ChaCha8Rng) -> f32 {
    let halves = |bits: u64| [bits, bits >> 16, bits >> 32, bits >> 48].map(|half| i64::from(half as u16));
    let sum: i64 = [random.next_u64(), random.next_u64()].into_iter().flat_map(halves).sum();
    let mean = 4 * 65_535;
    let deviation = 65_536.0 * (8.0f32 / 12.0).sqrt();
    (sum - mean) as f32 / deviation
}
