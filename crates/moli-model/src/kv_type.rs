//! How keys and values are kept.

use std::fmt;
use std::str::FromStr;

use moli_kernels::{KV_BLOCK, PAGE_TOKENS};

use crate::ModelError;

/// The type of a model's keys and values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum KvType {
    /// Half precision.
    #[default]
    F16,
    /// Integers of 8 bits with a scale for each 32 elements of a head: about half the memory, and for long contexts about
    /// half of what attention reads.
    Q8_0,
    /// As computed: twice the memory of f16, for comparisons with what computes in f32.
    F32,
}

impl KvType {
    /// All types.
    pub const ALL: [Self; 3] = [Self::F16, Self::Q8_0, Self::F32];

    /// The name: `f16`, `q8_0`, `f32`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F16 => "f16",
            Self::Q8_0 => "q8_0",
            Self::F32 => "f32",
        }
    }

    /// Bytes of the keys and values of [`PAGE_TOKENS`] tokens in all layers; `None` if a u64 can't hold them.
    pub fn page_bytes(self, layers: usize, kv_heads: usize, head_dim: usize) -> Option<u64> {
        let half = size_of::<u16>();
        let head = match self {
            Self::F32 => head_dim.checked_mul(size_of::<f32>())?,
            Self::F16 => head_dim.checked_mul(half)?,
            Self::Q8_0 => head_dim.checked_add(head_dim.div_ceil(KV_BLOCK).checked_mul(half)?)?,
        };
        let factors = [layers, 2, kv_heads, PAGE_TOKENS, head];
        factors.iter().try_fold(1u64, |product, &n| product.checked_mul(u64::try_from(n).ok()?))
    }
}

impl fmt::Display for KvType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for KvType {
    type Err = ModelError;

    fn from_str(name: &str) -> Result<Self, ModelError> {
        let found = Self::ALL.into_iter().find(|kv_type| kv_type.name().eq_ignore_ascii_case(name));
        found.ok_or_else(|| ModelError::UnknownKvType { name: name.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back() {
        for kv_type in KvType::ALL {
            assert_eq!(kv_type.to_string().to_uppercase().parse::<KvType>().unwrap(), kv_type);
        }
        let error = "q4_0".parse::<KvType>().unwrap_err();
        assert_eq!(error.to_string(), "there is no KV type `q4_0`: it is f16, q8_0 or f32");
        assert_eq!(KvType::default(), KvType::F16);
    }

    #[test]
    fn bytes_of_a_page() {
        // Qwen2.5 0.5B: 24 layers, 2 heads of 64: 12 KiB per token in f16.
        assert_eq!(KvType::F16.page_bytes(24, 2, 64), Some(32 * 12 * 1024));
        assert_eq!(KvType::Q8_0.page_bytes(24, 2, 64), Some(32 * 24 * 2 * 2 * (64 + 2 * 2)));
        // 80 elements are two blocks and a shorter one.
        assert_eq!(KvType::Q8_0.page_bytes(1, 1, 80), Some(32 * 2 * (80 + 3 * 2)));
        for kv_type in KvType::ALL {
            assert_eq!(kv_type.page_bytes(usize::MAX, 2, 64), None);
            assert_eq!(kv_type.page_bytes(1, 1, usize::MAX), None);
        }
    }
}
