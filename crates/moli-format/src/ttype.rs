//! The tensor types of GGUF and the sizes of their blocks.

use std::fmt;

macro_rules! tensor_types {
    ($($(#[$doc:meta])* $variant:ident = $id:literal, $name:literal, $len:literal, $bytes:literal;)*) => {
        /// How the elements of a tensor are stored.
        ///
        /// A row is a sequence of blocks: [`block_len`](Self::block_len) elements in
        /// [`block_bytes`](Self::block_bytes) bytes. The numbers are those of `ggml_type`; 4 and 5 (Q4_2, Q4_3), 31 to
        /// 33 (Q4_0_4_4 and its kin) and 36 to 38 (IQ4_NL_4_4 and its kin) were withdrawn and are unknown here.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[repr(u32)]
        #[non_exhaustive]
        pub enum TensorType { $($(#[$doc])* $variant = $id,)* }

        impl TensorType {
            /// Every type, by rising number.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The type with this number in a file.
            pub const fn from_id(id: u32) -> Option<Self> {
                match id { $($id => Some(Self::$variant),)* _ => None }
            }

            /// The name that people know: `Q4_K`, `IQ2_XXS`.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// Elements of a block.
            pub const fn block_len(self) -> usize {
                match self { $(Self::$variant => $len,)* }
            }

            /// Bytes of a block.
            pub const fn block_bytes(self) -> usize {
                match self { $(Self::$variant => $bytes,)* }
            }
        }
    };
}

tensor_types! {
    /// IEEE single precision.
    F32 = 0, "F32", 1, 4;
    /// IEEE half precision.
    F16 = 1, "F16", 1, 2;
    /// 4 bits, a scale per 32.
    Q4_0 = 2, "Q4_0", 32, 18;
    /// 4 bits, a scale and a minimum per 32.
    Q4_1 = 3, "Q4_1", 32, 20;
    /// 5 bits, a scale per 32.
    Q5_0 = 6, "Q5_0", 32, 22;
    /// 5 bits, a scale and a minimum per 32.
    Q5_1 = 7, "Q5_1", 32, 24;
    /// 8 bits, a scale per 32.
    Q8_0 = 8, "Q8_0", 32, 34;
    /// 8 bits, a scale and a sum per 32, both half precision: for activations, never in files.
    Q8_1 = 9, "Q8_1", 32, 36;
    /// 2 bits, super-blocks of 256.
    Q2K = 10, "Q2_K", 256, 84;
    /// 3 bits, super-blocks of 256.
    Q3K = 11, "Q3_K", 256, 110;
    /// 4 bits, super-blocks of 256.
    Q4K = 12, "Q4_K", 256, 144;
    /// 5 bits, super-blocks of 256.
    Q5K = 13, "Q5_K", 256, 176;
    /// 6 bits, super-blocks of 256.
    Q6K = 14, "Q6_K", 256, 210;
    /// 8 bits, super-blocks of 256: for activations, never in files.
    Q8K = 15, "Q8_K", 256, 292;
    /// 2.06 bits, from a grid.
    IQ2XXS = 16, "IQ2_XXS", 256, 66;
    /// 2.31 bits, from a grid.
    IQ2XS = 17, "IQ2_XS", 256, 74;
    /// 3.06 bits, from a grid.
    IQ3XXS = 18, "IQ3_XXS", 256, 98;
    /// 1.56 bits, from a grid.
    IQ1S = 19, "IQ1_S", 256, 50;
    /// 4 bits through a table, a scale per 32.
    IQ4NL = 20, "IQ4_NL", 32, 18;
    /// 3.44 bits, from a grid.
    IQ3S = 21, "IQ3_S", 256, 110;
    /// 2.56 bits, from a grid.
    IQ2S = 22, "IQ2_S", 256, 82;
    /// 4.25 bits through a table, super-blocks of 256.
    IQ4XS = 23, "IQ4_XS", 256, 136;
    /// Signed 8-bit integers.
    I8 = 24, "I8", 1, 1;
    /// Signed 16-bit integers.
    I16 = 25, "I16", 1, 2;
    /// Signed 32-bit integers.
    I32 = 26, "I32", 1, 4;
    /// Signed 64-bit integers.
    I64 = 27, "I64", 1, 8;
    /// IEEE double precision.
    F64 = 28, "F64", 1, 8;
    /// 1.75 bits, from a grid.
    IQ1M = 29, "IQ1_M", 256, 56;
    /// The upper half of single precision.
    BF16 = 30, "BF16", 1, 2;
    /// Ternary, five digits to a byte.
    TQ1_0 = 34, "TQ1_0", 256, 54;
    /// Ternary, two bits each.
    TQ2_0 = 35, "TQ2_0", 256, 66;
    /// 4-bit floats (E2M1), a power of two per 32: OCP microscaling.
    MXFP4 = 39, "MXFP4", 32, 17;
    /// 4-bit floats (E2M1), an 8-bit float per 16, four of these to a block.
    NVFP4 = 40, "NVFP4", 64, 36;
    /// 1 bit, a scale per 128.
    Q1_0 = 41, "Q1_0", 128, 18;
}

impl TensorType {
    /// The type's number in a file.
    pub const fn id(self) -> u32 {
        self as u32
    }

    /// Bytes of a row of `cols` elements; `None` if that is not whole blocks or overflows.
    pub const fn row_bytes(self, cols: usize) -> Option<usize> {
        if !cols.is_multiple_of(self.block_len()) {
            return None;
        }
        (cols / self.block_len()).checked_mul(self.block_bytes())
    }
}

impl fmt::Display for TensorType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_round_trip_and_withdrawn_ones_are_unknown() {
        for &ttype in TensorType::ALL {
            assert_eq!(TensorType::from_id(ttype.id()), Some(ttype));
        }
        for id in [4, 5, 31, 32, 33, 36, 37, 38, 42, 255, u32::MAX] {
            assert_eq!(TensorType::from_id(id), None, "{id}");
        }
    }

    /// Each block's size is the sum of its fields, written out as ggml declares them. (The Python package `gguf` gives
    /// 40 bytes for Q8_1, whose scale and sum were single precision before 2023; no file holds that type.)
    #[test]
    fn block_bytes_are_the_sum_of_the_fields() {
        use TensorType::*;
        let half = 2;
        let expected = [
            (Q4_0, half + 32 / 2),
            (Q4_1, 2 * half + 32 / 2),
            (Q5_0, half + 4 + 32 / 2),
            (Q5_1, 2 * half + 4 + 32 / 2),
            (Q8_0, half + 32),
            (Q8_1, 2 * half + 32),
            (Q2K, 2 * half + 256 / 16 + 256 / 4),
            (Q3K, half + 256 / 4 + 256 / 8 + 12),
            (Q4K, 2 * half + 12 + 256 / 2),
            (Q5K, 2 * half + 12 + 256 / 8 + 256 / 2),
            (Q6K, half + 256 / 16 + 3 * 256 / 4),
            (Q8K, 4 + 256 + 256 / 16 * 2),
            (IQ2XXS, half + 256 / 8 * 2),
            (IQ2XS, half + 256 / 8 * 2 + 256 / 32),
            (IQ2S, half + 256 / 4 + 256 / 16),
            (IQ3XXS, half + 3 * (256 / 8)),
            (IQ3S, half + 13 * (256 / 32) + 256 / 64),
            (IQ1S, half + 256 / 8 + 256 / 16),
            (IQ1M, 256 / 8 + 256 / 16 + 256 / 32),
            (IQ4NL, half + 32 / 2),
            (IQ4XS, half + 2 + 256 / 64 + 256 / 2),
            (TQ1_0, half + 256 / 64 + (256 - 4 * 256 / 64) / 5),
            (TQ2_0, half + 256 / 4),
            (MXFP4, 1 + 32 / 2),
            (NVFP4, 64 / 16 + 64 / 2),
            (Q1_0, half + 128 / 8),
        ];
        for (ttype, bytes) in expected {
            assert_eq!(ttype.block_bytes(), bytes, "{ttype}");
        }
        let plain = [(F32, 4), (F16, 2), (BF16, 2), (F64, 8), (I8, 1), (I16, 2), (I32, 4), (I64, 8)];
        for (ttype, bytes) in plain {
            assert_eq!((ttype.block_len(), ttype.block_bytes()), (1, bytes), "{ttype}");
        }
        assert_eq!(expected.len() + plain.len(), TensorType::ALL.len());
    }

    #[test]
    fn row_bytes_wants_whole_blocks() {
        assert_eq!(TensorType::Q4K.row_bytes(512), Some(288));
        assert_eq!(TensorType::Q4K.row_bytes(500), None);
        assert_eq!(TensorType::F64.row_bytes(usize::MAX), None);
    }
}
