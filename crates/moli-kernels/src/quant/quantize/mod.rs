//! Quantisers.
//!
//! [`quantize`] takes the range of each block and searches for nothing: what tests and models with random weights need, at the
//! speed of reading. [`quantize_rows`] searches for the scales with the least weighted squared error: what a file that people
//! run should be made with.
//!
//! The searches are ours and not candle's, which is an optional dependency of minutes to build, has none for IQ4_NL and IQ4_XS,
//! and whose scales of Q2_K, Q4_K and Q5_K without importance come from an older search than llama.cpp's.

#![allow(clippy::needless_range_loop)] // Lanes and sub-blocks are the same place in several arrays.

mod affine;
mod block;
mod pack;
mod reference;
mod scales;
mod signed;
#[cfg(test)]
mod tests;

use moli_format::TensorType;

use super::levels::{IQ4NL, IQ4XS};
use super::unpack::{Q2K, Q3K, Q4_0, Q4_1, Q4K, Q5_0, Q5_1, Q5K, Q6K};
use super::{dequantize, row_bytes};
use crate::KernelError;
use block::{Block, Weighting, sums};
use signed::{Even, Iq4};

pub(crate) use reference::eight_bits;

/// The tensor types that [`quantize`] and [`quantize_rows`] make blocks of: all that are [`SUPPORTED`](super::SUPPORTED) but those
/// with grids, the ternary ones and the 4-bit floats.
pub const QUANTIZABLE: [TensorType; 15] = [
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
    TensorType::IQ4NL,
    TensorType::IQ4XS,
];

/// Appends the blocks of `x` to `out`, without a search. `x` is whole blocks of the type.
///
/// Values that are not finite give blocks of no meaning.
///
/// # Errors
/// [`KernelError::UnsupportedType`], [`KernelError::NoQuantizer`] and [`KernelError::PartialBlock`].
pub fn quantize(ttype: TensorType, x: &[f32], out: &mut Vec<u8>) -> Result<(), KernelError> {
    check(ttype)?;
    out.reserve(row_bytes(ttype, x.len())?);
    reference::quantize(ttype, x, out);
    Ok(())
}

/// Appends the blocks of rows of `cols` elements to `out`, with scales searched for.
///
/// `importance` has a weight for each column, llama.cpp's "imatrix": the mean square of the activations that the column is
/// multiplied with. Errors count in proportion to it; only the proportions within a block matter, and where a block has none
/// above 0, its errors count as without importance. There is no search for the floats and Q8_0, which importance does not
/// change, nor for Q4_0, Q4_1, Q5_0 and Q5_1 without importance: those are ggml's reference.
///
/// The blocks are the same bits however the rows are divided among calls, and on every processor. Where there is a search,
/// values too large for the half-precision scales become the largest that these allow.
///
/// # Errors
/// Those of [`quantize`] for `cols`, [`KernelError::Length`] if `x` is not whole rows or `importance` not a row long,
/// [`KernelError::NotFinite`] and [`KernelError::Importance`]. Then `out` is as it was.
pub fn quantize_rows(
    ttype: TensorType,
    x: &[f32],
    cols: usize,
    importance: Option<&[f32]>,
    out: &mut Vec<u8>,
) -> Result<(), KernelError> {
    check(ttype)?;
    row_bytes(ttype, cols)?;
    let whole = x.len() - x.len().checked_rem(cols).unwrap_or(x.len());
    if whole != x.len() {
        return Err(KernelError::Length { what: "values of whole rows", expected: whole, actual: x.len() });
    }
    if let Some(importance) = importance {
        if importance.len() != cols {
            return Err(KernelError::Length { what: "importance", expected: cols, actual: importance.len() });
        }
        if let Some(column) = importance.iter().position(|v| !(v.is_finite() && *v >= 0.0)) {
            return Err(KernelError::Importance { column });
        }
    }
    if let Some(index) = x.iter().position(|v| !v.is_finite()) {
        return Err(KernelError::NotFinite { index });
    }
    out.reserve(row_bytes(ttype, x.len())?);
    if x.is_empty() {
        return Ok(());
    }
    #[cfg(target_arch = "x86_64")]
    if crate::isa::Avx2::new().is_some() {
        #[target_feature(enable = "avx2")]
        fn with_avx2(
            ttype: TensorType,
            x: &[f32],
            cols: usize,
            importance: Option<&[f32]>,
            out: &mut Vec<u8>,
        ) {
            searched(ttype, x, cols, importance, out);
        }
        // SAFETY: this processor has AVX2.
        #[allow(unsafe_code)]
        unsafe {
            with_avx2(ttype, x, cols, importance, out);
        }
        return Ok(());
    }
    searched(ttype, x, cols, importance, out);
    Ok(())
}

fn check(ttype: TensorType) -> Result<(), KernelError> {
    if !super::is_supported(ttype) {
        return Err(KernelError::UnsupportedType { ttype });
    }
    if !QUANTIZABLE.contains(&ttype) {
        return Err(KernelError::NoQuantizer { ttype });
    }
    Ok(())
}

/// The text of all searches, to be compiled for several instruction sets. Vectors of any width give the same bits, because
/// sums have lanes of their own.
#[inline(always)]
fn searched(ttype: TensorType, x: &[f32], cols: usize, importance: Option<&[f32]>, out: &mut Vec<u8>) {
    let rows = Rows { ttype, x, cols, importance };
    let weighted = importance.is_some();
    match ttype {
        TensorType::Q4_0 if weighted => rows.search::<Q4_0, 32>(out),
        TensorType::Q4_1 if weighted => rows.search::<Q4_1, 32>(out),
        TensorType::Q5_0 if weighted => rows.search::<Q5_0, 32>(out),
        TensorType::Q5_1 if weighted => rows.search::<Q5_1, 32>(out),
        TensorType::Q2K => rows.search::<Q2K, 256>(out),
        TensorType::Q3K => rows.search::<Q3K, 256>(out),
        TensorType::Q4K => rows.search::<Q4K, 256>(out),
        TensorType::Q5K => rows.search::<Q5K, 256>(out),
        TensorType::Q6K => rows.search::<Q6K, 256>(out),
        TensorType::IQ4NL => rows.search::<IQ4NL, 32>(out),
        TensorType::IQ4XS => rows.search::<IQ4XS, 256>(out),
        _ => reference::quantize(ttype, x, out),
    }
}

/// Rows with the importance of their columns.
struct Rows<'a> {
    ttype: TensorType,
    x: &'a [f32],
    cols: usize,
    importance: Option<&'a [f32]>,
}

impl Rows<'_> {
    #[inline(always)]
    fn search<F: Search<N>, const N: usize>(&self, out: &mut Vec<u8>) {
        let importance = self.importance.map(|importance| importance.as_chunks::<N>().0);
        let mut simple = Vec::new();
        for row in self.x.chunks_exact(self.cols) {
            for (i, x) in row.as_chunks::<N>().0.iter().enumerate() {
                let importance = importance.and_then(|importance| importance.get(i));
                let block = Block::new(x, importance, F::WEIGHTING);
                let start = out.len();
                F::append(&block, out);
                // A search goes step by step and can end beside what it looks for; the range of the values is no bad guess.
                simple.clear();
                reference::quantize(self.ttype, x, &mut simple);
                if self.error(&block, &simple) < self.error(&block, &out[start..]) {
                    out.truncate(start);
                    out.extend_from_slice(&simple);
                }
            }
        }
    }

    /// The weighted squared error of a block that was made, in the units that the search counts in.
    #[inline(always)]
    fn error<const N: usize>(&self, block: &Block<N>, bytes: &[u8]) -> f32 {
        let mut made = [0.0; N];
        if dequantize(self.ttype, bytes, &mut made).is_err() {
            return f32::INFINITY;
        }
        let [error] = sums::<N, 1>(|i| {
            let apart = block.scaled(made[i]) - block.x[i];
            [block.w[i] * (apart * apart)]
        });
        error
    }
}

/// The search for the blocks of a format, which are of `N` values. It is no closure, because closures do not become part of
/// the function that they are called from for certain, and so are not compiled for its instruction set.
trait Search<const N: usize> {
    const WEIGHTING: Weighting;
    fn append(block: &Block<N>, out: &mut Vec<u8>);
}

macro_rules! searches {
    ($($name:ident of $len:literal by $weighting:ident |$block:ident, $out:ident| $append:expr;)*) => {$(
        impl Search<$len> for $name {
            const WEIGHTING: Weighting = Weighting::$weighting;
            #[inline(always)]
            fn append($block: &Block<$len>, $out: &mut Vec<u8>) {
                $append;
            }
        }
    )*};
}

searches! {
    Q4_0 of 32 by Square |block, out| pack::nibbles(&signed::alone::<Even<8>>(block), false, out);
    Q4_1 of 32 by Magnitude |block, out| pack::nibbles_with_minimum(&affine::alone(block, 15.0), false, out);
    Q5_0 of 32 by Square |block, out| pack::nibbles(&signed::alone::<Even<16>>(block), true, out);
    Q5_1 of 32 by Magnitude |block, out| pack::nibbles_with_minimum(&affine::alone(block, 31.0), true, out);
    Q2K of 256 by Magnitude |block, out| pack::q2_k(&affine::together::<16, 16>(block, 3.0, 15.0), out);
    Q3K of 256 by Square |block, out| pack::q3_k(&signed::together::<Even<4>, 16, 16>(block, 32.0), out);
    Q4K of 256 by Magnitude |block, out| pack::q45_k(&affine::together::<32, 8>(block, 15.0, 63.0), false, out);
    Q5K of 256 by Magnitude |block, out| pack::q45_k(&affine::together::<32, 8>(block, 31.0, 63.0), true, out);
    Q6K of 256 by Square |block, out| pack::q6_k(&signed::together::<Even<32>, 16, 16>(block, 128.0), out);
    IQ4NL of 32 by Square |block, out| pack::nibbles(&signed::alone::<Iq4>(block), false, out);
    IQ4XS of 256 by Square |block, out| pack::iq4_xs(&signed::together::<Iq4, 32, 8>(block, 32.0), out);
}
