//! How keys and values are stored.

use crate::PAGE_TOKENS;

/// The element type of the KV pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum KvType {
    /// Half precision.
    #[default]
    F16,
    /// Blocks of 32 bytes with a scale in half precision: 34 bytes for what takes 64 in half precision.
    Q8_0,
}

impl KvType {
    /// `f16` or `q8_0`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::F16 => "f16",
            Self::Q8_0 => "q8_0",
        }
    }

    /// Bytes of the keys and values of one page in all layers; `None` where heads are not whole blocks.
    #[must_use]
    pub fn page_bytes(self, layers: usize, kv_heads: usize, head_dim: usize) -> Option<u64> {
        let elements = [2, layers, kv_heads, head_dim, PAGE_TOKENS];
        let elements = elements.iter().try_fold(1u64, |product, &n| product.checked_mul(n as u64))?;
        match self {
            Self::F16 => elements.checked_mul(2),
            Self::Q8_0 => (head_dim % 32 == 0).then(|| elements / 32 * 34),
        }
    }
}
