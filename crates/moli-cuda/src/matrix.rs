//! Weights in the device's memory, in the file's own blocks.

use std::sync::Arc;

use moli_format::Tensor;

use crate::memory::Array;
use crate::modules::{self, Format};
use crate::{CudaError, Gpu};

/// Bytes of blocks that are taken apart at a time.
const STAGED: usize = 8 << 20;

/// A matrix `[rows, cols]` in the device's memory. A clone is the same memory.
///
/// Blocks are those of the file. Where a block's length would leave its words at odd addresses, its head (a scale, most often)
/// is kept apart from its body, so that both can be read in whole words; nothing is added and nothing is lost.
#[derive(Clone)]
pub struct Matrix {
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    pub(crate) body: Arc<Array<u8>>,
    pub(crate) head: Option<Arc<Array<u8>>>,
    pub(crate) format: Arc<Format>,
}

impl Matrix {
    /// Brings a matrix to the device.
    ///
    /// # Errors
    /// [`CudaError::UnsupportedType`], [`CudaError::OutOfMemory`], [`CudaError::Shape`] for a tensor whose bytes are not its shape's,
    /// or what the driver reports.
    pub fn new(gpu: &Gpu, tensor: &Tensor) -> Result<Self, CudaError> {
        let (ttype, rows, cols) = (tensor.ttype, tensor.rows(), tensor.cols());
        if !moli_kernels::is_supported(ttype) {
            return Err(CudaError::UnsupportedType { ttype });
        }
        let bytes: &[u8] = &tensor.data;
        let expected = ttype.row_bytes(cols).and_then(|row| row.checked_mul(rows)).unwrap_or(usize::MAX);
        crate::error::same("bytes of a matrix", expected, bytes.len())?;
        // Kernels number rows, columns and groups of columns by 31 bits.
        for (what, number) in [("rows of a matrix", rows), ("columns of a matrix", cols)] {
            crate::gpu::int(what, number)?;
        }
        let format = gpu.formats.get(ttype)?;
        let (body, head) = match modules::head(ttype) {
            None => {
                let mut body = gpu.array("a matrix", bytes.len())?;
                body.write(&gpu.stream, 0, bytes)?;
                (body, None)
            }
            Some((head, last)) => {
                let (body, head) = split(gpu, bytes, ttype.block_bytes(), head, last)?;
                (body, Some(Arc::new(head)))
            }
        };
        Ok(Self { rows, cols, body: Arc::new(body), head, format })
    }

    /// Outputs of a product with it.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Inputs of a product with it.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Where its heads are; 0 where it has none.
    pub(crate) fn heads(&self) -> u64 {
        self.head.as_ref().map_or(0, |head| head.address())
    }
}

/// Blocks of `block` bytes, of which the first or the last `head` are kept apart.
fn split(
    gpu: &Gpu,
    bytes: &[u8],
    block: usize,
    head: usize,
    last: bool,
) -> Result<(Array<u8>, Array<u8>), CudaError> {
    let (count, rest) = (bytes.len() / block, block - head);
    let mut bodies = gpu.array("a matrix", count * rest)?;
    let mut heads = gpu.array("the scales of a matrix", count * head)?;
    let each = (STAGED / block).max(1);
    let (mut body, mut own) = (Vec::with_capacity(each * rest), Vec::with_capacity(each * head));
    for (i, blocks) in bytes.chunks(each * block).enumerate() {
        body.clear();
        own.clear();
        for block in blocks.chunks_exact(block) {
            let (front, back) = block.split_at(if last { rest } else { head });
            let (kept, apart) = if last { (front, back) } else { (back, front) };
            body.extend_from_slice(kept);
            own.extend_from_slice(apart);
        }
        bodies.write(&gpu.stream, i * each * rest, &body)?;
        heads.write(&gpu.stream, i * each * head, &own)?;
    }
    // The buffers that were copied from go away now.
    gpu.wait()?;
    Ok((bodies, heads))
}
