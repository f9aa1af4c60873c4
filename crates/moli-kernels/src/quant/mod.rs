//! Quantised formats: what their blocks mean, and how to make them.

pub(crate) mod blocks;
mod quantize;
pub(crate) mod unpack;

pub(crate) use quantize::eight_bits;
pub use quantize::quantize;

use half::{bf16, f16};
use moli_format::TensorType;

use crate::KernelError;
use unpack::{Format, Q2K, Q3K, Q4_0, Q4_1, Q4K, Q5_0, Q5_1, Q5K, Q6K, Q8_0, Unpacked};

/// The tensor types that have kernels.
pub const SUPPORTED: [TensorType; 13] = [
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
];

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
    match ttype {
        TensorType::F32 => convert(bytes, out, f32::from_le_bytes),
        TensorType::F16 => convert(bytes, out, |b| f16::from_le_bytes(b).to_f32()),
        TensorType::BF16 => convert(bytes, out, |b| bf16::from_le_bytes(b).to_f32()),
        TensorType::Q4_0 => blocks_of::<Q4_0>(bytes, out),
        TensorType::Q4_1 => blocks_of::<Q4_1>(bytes, out),
        TensorType::Q5_0 => blocks_of::<Q5_0>(bytes, out),
        TensorType::Q5_1 => blocks_of::<Q5_1>(bytes, out),
        TensorType::Q8_0 => blocks_of::<Q8_0>(bytes, out),
        TensorType::Q2K => blocks_of::<Q2K>(bytes, out),
        TensorType::Q3K => blocks_of::<Q3K>(bytes, out),
        TensorType::Q4K => blocks_of::<Q4K>(bytes, out),
        TensorType::Q5K => blocks_of::<Q5K>(bytes, out),
        TensorType::Q6K => blocks_of::<Q6K>(bytes, out),
        _ => return Err(KernelError::UnsupportedType { ttype }),
    }
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
            let scale = block.d * f32::from(block.scales[sub]);
            let min = block.m * f32::from(block.mins[sub]);
            for (value, q) in out.iter_mut().zip(q) {
                let product = scale * f32::from(q - F::OFFSET);
                *value = if F::MIN { product + min } else { product };
            }
        }
    }
}
