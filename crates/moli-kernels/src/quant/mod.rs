//! Quantised formats: what their blocks mean, and how to make them.

pub(crate) mod blocks;
pub(crate) mod grids;
pub(crate) mod levels;
mod quantize;
pub(crate) mod unpack;

pub use grids::codebooks;
pub(crate) use quantize::eight_bits;
pub use quantize::{QUANTIZABLE, quantize, quantize_rows};

use half::{bf16, f16};
use moli_format::TensorType;

use crate::KernelError;
use unpack::*;

/// The tensor types that have kernels.
pub const SUPPORTED: [TensorType; 26] = [
    TensorType::F32,
    TensorType::F16,
    TensorType::BF16,
    TensorType::Q4_0,
    TensorType::Q4_1,
    TensorType::Q5_0,
    TensorType::Q5_1,
    TensorType::Q8_0,
    TensorType::Q2K,
    TensorType::Q3K,
    TensorType::Q4K,
    TensorType::Q5K,
    TensorType::Q6K,
    TensorType::IQ1S,
    TensorType::IQ1M,
    TensorType::IQ2XXS,
    TensorType::IQ2XS,
    TensorType::IQ2S,
    TensorType::IQ3XXS,
    TensorType::IQ3S,
    TensorType::IQ4NL,
    TensorType::IQ4XS,
    TensorType::TQ1_0,
    TensorType::TQ2_0,
    TensorType::MXFP4,
    TensorType::NVFP4,
];

/// `$quantized` for the format of a type, or what is given for the floats (and for types without kernels).
macro_rules! by_type {
    ($ttype:expr, $quantized:ident, $f32:expr, $f16:expr, $bf16:expr) => {
        match $ttype {
            TensorType::F16 => $f16,
            TensorType::BF16 => $bf16,
            TensorType::Q4_0 => $quantized::<Q4_0>,
            TensorType::Q4_1 => $quantized::<Q4_1>,
            TensorType::Q5_0 => $quantized::<Q5_0>,
            TensorType::Q5_1 => $quantized::<Q5_1>,
            TensorType::Q8_0 => $quantized::<Q8_0>,
            TensorType::Q2K => $quantized::<Q2K>,
            TensorType::Q3K => $quantized::<Q3K>,
            TensorType::Q4K => $quantized::<Q4K>,
            TensorType::Q5K => $quantized::<Q5K>,
            TensorType::Q6K => $quantized::<Q6K>,
            TensorType::IQ1S => $quantized::<IQ1S>,
            TensorType::IQ1M => $quantized::<IQ1M>,
            TensorType::IQ2XXS => $quantized::<IQ2XXS>,
            TensorType::IQ2XS => $quantized::<IQ2XS>,
            TensorType::IQ2S => $quantized::<IQ2S>,
            TensorType::IQ3XXS => $quantized::<IQ3XXS>,
            TensorType::IQ3S => $quantized::<IQ3S>,
            TensorType::IQ4NL => $quantized::<IQ4NL>,
            TensorType::IQ4XS => $quantized::<IQ4XS>,
            TensorType::TQ1_0 => $quantized::<TQ1_0>,
            TensorType::TQ2_0 => $quantized::<TQ2_0>,
            TensorType::MXFP4 => $quantized::<MXFP4>,
            TensorType::NVFP4 => $quantized::<NVFP4>,
            _ => $f32,
        }
    };
}
pub(crate) use by_type;

/// True if tensors of this type can be dequantised and multiplied with.
#[must_use]
pub fn is_supported(ttype: TensorType) -> bool {
    SUPPORTED.contains(&ttype)
}

/// Turns whole blocks into floats: `out` is as long as the blocks in `bytes` together.
///
/// The operations and their order are those of the reference (a scale times a sub-scale, then times the value, then
/// plus the minimum's product), so the results are the same bits as its.
///
/// # Errors
/// [`KernelError::UnsupportedType`]; [`KernelError::PartialBlock`] and [`KernelError::Length`] if the lengths disagree.
pub fn dequantize(ttype: TensorType, bytes: &[u8], out: &mut [f32]) -> Result<(), KernelError> {
    if !is_supported(ttype) {
        return Err(KernelError::UnsupportedType { ttype });
    }
    let expected = row_bytes(ttype, out.len())?;
    if bytes.len() != expected {
        return Err(KernelError::Length { what: "bytes of blocks", expected, actual: bytes.len() });
    }
    let dequantize: fn(&[u8], &mut [f32]) = by_type!(
        ttype,
        blocks_of,
        |bytes, out| convert(bytes, out, f32::from_le_bytes),
        |bytes, out| convert(bytes, out, |b| f16::from_le_bytes(b).to_f32()),
        |bytes, out| convert(bytes, out, |b| bf16::from_le_bytes(b).to_f32())
    );
    dequantize(bytes, out);
    Ok(())
}

/// Bytes of a row of `cols` elements.
pub(crate) fn row_bytes(ttype: TensorType, cols: usize) -> Result<usize, KernelError> {
    let block = ttype.block_len();
    if !cols.is_multiple_of(block) {
        return Err(KernelError::PartialBlock { ttype, block, cols });
    }
    ttype.row_bytes(cols).ok_or(KernelError::TooLarge { rows: 1, cols })
}

fn convert<const N: usize>(bytes: &[u8], out: &mut [f32], f: impl Fn([u8; N]) -> f32) {
    for (value, &bytes) in out.iter_mut().zip(bytes.as_chunks().0) {
        *value = f(bytes);
    }
}

fn blocks_of<F: Format>(bytes: &[u8], out: &mut [f32]) {
    let mut block = Unpacked::new();
    for (bytes, out) in bytes.chunks_exact(F::BYTES).zip(out.chunks_exact_mut(F::LEN)) {
        F::unpack(bytes, &mut block);
        for (sub, (out, q)) in out.chunks_exact_mut(F::SUB).zip(block.q.chunks_exact(F::SUB)).enumerate() {
            let scale = block.d[sub * F::SUB / F::SCALED] * f32::from(block.scales[sub]);
            let min = block.m * f32::from(block.mins[sub]);
            for (value, q) in out.iter_mut().zip(q) {
                let product = scale * f32::from(i16::from(*q) - F::OFFSET);
                *value = if F::MIN { product + min } else { product };
            }
        }
    }
}
