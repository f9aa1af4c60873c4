//! What the tests share: a GPU, numbers that look random, blocks of every format, and buffers with given contents.

use half::f16;
use moli_cuda::{Buffer, CudaError, Gpu, Matrix};
use moli_format::{Bytes, Tensor, TensorType};

/// A fixed sequence of numbers that look random (Marsaglia's xorshift).
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// In -1..1.
    pub(crate) fn float(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1 << 23) as f32 - 1.0
    }

    pub(crate) fn floats(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.float()).collect()
    }

    pub(crate) fn bytes(&mut self, n: usize) -> Vec<u8> {
        (0..n).map(|_| (self.next() >> 32) as u8).collect()
    }
}

/// The mock's device.
pub(crate) fn gpu() -> Gpu {
    moli_testkit::mock_cuda().unwrap();
    Gpu::open(0).unwrap()
}

/// The same with room for products of so many rows and columns.
pub(crate) fn gpu_for(rows: usize, cols: usize) -> Gpu {
    let mut gpu = gpu();
    gpu.reserve(rows, cols).unwrap();
    gpu
}

pub(crate) fn tensor(ttype: TensorType, rows: usize, cols: usize, bytes: Vec<u8>) -> Tensor {
    let dims = vec![cols as u64, rows as u64];
    Tensor { name: "a tensor".to_owned(), ttype, dims, data: Bytes::from_vec(bytes) }
}

/// A buffer with these rows. The GPU has room for so many.
pub(crate) fn buffer(gpu: &mut Gpu, rows: usize, values: &[f32]) -> Buffer {
    let cols = values.len() / rows;
    let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    let table = Matrix::new(gpu, &tensor(TensorType::F32, rows, cols, bytes)).unwrap();
    let mut out = Buffer::new(gpu, rows, cols).unwrap();
    let all: Vec<u32> = (0..rows as u32).collect();
    gpu.look_up(&table, &all, 1.0, &mut out).unwrap();
    out
}

/// An empty buffer that grows.
pub(crate) fn empty(gpu: &Gpu) -> Buffer {
    Buffer::new(gpu, 0, 0).unwrap()
}

pub(crate) fn read(gpu: &Gpu, x: &Buffer) -> Vec<f32> {
    let mut values = Vec::new();
    gpu.download(x, &mut values).unwrap();
    values
}

/// The bits of floats, every NaN the same: a NaN's payload is nobody's business.
pub(crate) fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| if x.is_nan() { f32::NAN.to_bits() } else { x.to_bits() }).collect()
}

/// Where a block has numbers of half precision: the first byte of each.
fn halves(ttype: TensorType) -> &'static [usize] {
    match ttype {
        TensorType::F16 => &[0],
        TensorType::Q4_0 | TensorType::Q5_0 | TensorType::Q8_0 | TensorType::IQ4NL | TensorType::IQ4XS => {
            &[0]
        }
        TensorType::IQ1S | TensorType::IQ2XXS | TensorType::IQ2XS | TensorType::IQ2S => &[0],
        TensorType::IQ3XXS | TensorType::IQ3S => &[0],
        TensorType::Q4_1 | TensorType::Q5_1 | TensorType::Q4K | TensorType::Q5K => &[0, 2],
        TensorType::Q2K => &[80, 82],
        TensorType::Q3K => &[108],
        TensorType::Q6K => &[208],
        TensorType::TQ1_0 => &[52],
        TensorType::TQ2_0 => &[64],
        _ => &[],
    }
}

/// Gives a block this number as its scale, and as its minimum where it has one; false for formats whose scale is no number of
/// half precision.
pub(crate) fn set_scale(ttype: TensorType, block: &mut [u8], scale: f16) -> bool {
    for &at in halves(ttype) {
        block[at..at + 2].copy_from_slice(&scale.to_le_bytes());
    }
    if ttype == TensorType::IQ1M {
        for i in 0..4 {
            let four = (scale.to_bits() >> (4 * i) & 15) as u8;
            block[49 + 2 * i] = block[49 + 2 * i] & 15 | four << 4;
        }
        return true;
    }
    !halves(ttype).is_empty()
}

/// Random blocks: every field may hold anything, but for scales, which are finite.
pub(crate) fn blocks(ttype: TensorType, count: usize, random: &mut Random) -> Vec<u8> {
    let mut bytes = random.bytes(count * ttype.block_bytes());
    for block in bytes.chunks_exact_mut(ttype.block_bytes()) {
        let finite = |block: &mut [u8], high: usize, bit: u8| block[high] &= !bit;
        match ttype {
            // One bit of the exponent less: neither infinite nor no number.
            TensorType::F32 => finite(block, 3, 0x40),
            TensorType::BF16 => finite(block, 1, 0x40),
            // The last exponent bit of IQ1_M's scale is the third bit of its highest four.
            TensorType::IQ1M => finite(block, 55, 0x40),
            _ => halves(ttype).iter().for_each(|&at| finite(block, at + 1, 0x40)),
        }
    }
    bytes
}

/// Random blocks whose scales are of similar magnitude, so that each matters in a sum.
pub(crate) fn even_blocks(ttype: TensorType, count: usize, random: &mut Random) -> Vec<u8> {
    let mut bytes = blocks(ttype, count, random);
    for block in bytes.chunks_exact_mut(ttype.block_bytes()) {
        match ttype {
            TensorType::F32 => block.copy_from_slice(&random.float().to_le_bytes()),
            TensorType::BF16 => block.copy_from_slice(&random.float().to_le_bytes()[2..]),
            TensorType::MXFP4 => block[0] = 120 + block[0] % 4,
            TensorType::NVFP4 => block[..4].iter_mut().for_each(|scale| *scale = 0x28 + *scale % 32),
            _ => {
                for &at in halves(ttype) {
                    let sign = if random.next() & 1 << 40 == 0 { 1.0 } else { -1.0 };
                    let scale = f16::from_f32(sign * (0.02 + 0.01 * random.float()));
                    block[at..at + 2].copy_from_slice(&scale.to_le_bytes());
                }
                if ttype == TensorType::IQ1M {
                    set_scale(ttype, block, f16::from_f32(0.02 + 0.01 * random.float()));
                }
            }
        }
    }
    bytes
}

/// The shape that doesn't fit: what, expected, actual.
pub(crate) fn shape<T>(result: Result<T, CudaError>) -> (&'static str, usize, usize) {
    match result {
        Err(CudaError::Shape { what, expected, actual }) => (what, expected, actual),
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("no error"),
    }
}
