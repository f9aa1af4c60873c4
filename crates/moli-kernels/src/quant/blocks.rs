//! The layouts of quantised blocks, as GGUF files hold them.
//!
//! The formats are those of ggml (`ggml-common.h`). Every field is bytes, so a block has alignment 1 and can be read
//! wherever it lies; numbers are little-endian.

use half::f16;
use moli_format::TensorType;

/// A half-precision number as a file holds it.
pub(crate) type Half = [u8; 2];

/// The number, exactly.
#[inline(always)]
pub(crate) fn half(bytes: Half) -> f32 {
    f16::from_le_bytes(bytes).to_f32()
}

macro_rules! blocks {
    ($($(#[$doc:meta])* $name:ident = $ttype:ident { $($(#[$field_doc:meta])* $field:ident: $ty:ty,)* })*) => {
        $($(#[$doc])*
        #[derive(Clone, Copy)]
        #[repr(C)]
        pub(crate) struct $name { $($(#[$field_doc])* pub(crate) $field: $ty,)* }

        const _: () = assert!(size_of::<$name>() == TensorType::$ttype.block_bytes() && align_of::<$name>() == 1);

        impl $name {
            /// Reads a block from its bytes.
            #[inline(always)]
            pub(crate) fn read(bytes: &[u8; TensorType::$ttype.block_bytes()]) -> &Self {
                // SAFETY: the block is as long as the array, has alignment 1, and any bytes are valid for its fields,
                // which are all bytes.
                #[allow(unsafe_code)]
                unsafe { &*bytes.as_ptr().cast::<Self>() }
            }
        })*
    };
}

blocks! {
    /// 32 values `d * (q - 8)`.
    BlockQ4_0 = Q4_0 {
        d: Half,
        /// Value `k` in the low half of byte `k`, value `k + 16` in its high half.
        qs: [u8; 16],
    }
    /// 32 values `d * q + m`.
    BlockQ4_1 = Q4_1 {
        d: Half,
        m: Half,
        /// As in [`BlockQ4_0`].
        qs: [u8; 16],
    }
    /// 32 values `d * (q - 16)`.
    BlockQ5_0 = Q5_0 {
        d: Half,
        /// Bit `k`: the fifth bit of value `k`.
        qh: [u8; 4],
        /// The low four bits, as in [`BlockQ4_0`].
        qs: [u8; 16],
    }
    /// 32 values `d * q + m`.
    BlockQ5_1 = Q5_1 {
        d: Half,
        m: Half,
        /// As in [`BlockQ5_0`].
        qh: [u8; 4],
        /// As in [`BlockQ5_0`].
        qs: [u8; 16],
    }
    /// 32 values `d * q`, q signed.
    BlockQ8_0 = Q8_0 {
        d: Half,
        qs: [u8; 32],
    }
    /// 256 values `d * scale * q - dmin * min`, a scale and a minimum for each 16.
    BlockQ2K = Q2K {
        /// For each 16 values the scale in the low half and the minimum in the high half.
        scales: [u8; 16],
        /// Value `128 n + 32 j + l` in bits `2 j` and up of byte `32 n + l`.
        qs: [u8; 64],
        d: Half,
        dmin: Half,
    }
    /// 256 values `d * scale * (q - 4)`, a scale for each 16.
    BlockQ3K = Q3K {
        /// Bit `4 n + j` of byte `l`: the third bit of value `128 n + 32 j + l`.
        hmask: [u8; 32],
        /// The low two bits, as in [`BlockQ2K`].
        qs: [u8; 64],
        /// 16 scales of 6 bits, from -32: the low four bits in the halves of bytes 0 to 7 (low halves first), the high
        /// two of scale `4 g + i` in bits `2 g` and up of byte `8 + i`.
        scales: [u8; 12],
        d: Half,
    }
    /// 256 values `d * scale * q - dmin * min`, a scale and a minimum for each 32.
    BlockQ4K = Q4K {
        d: Half,
        dmin: Half,
        /// 8 scales and 8 minima of 6 bits. Byte `i` below 4 holds scale `i` and byte `4 + i` minimum `i`; the halves of
        /// byte `8 + i` are the low four bits of scale and minimum `4 + i`, whose high bits are the highest two of
        /// bytes `i` and `4 + i`.
        scales: [u8; 12],
        /// Value `64 g + l` in the low half of byte `32 g + l`, value `64 g + 32 + l` in its high half.
        qs: [u8; 128],
    }
    /// 256 values `d * scale * q - dmin * min`, a scale and a minimum for each 32.
    BlockQ5K = Q5K {
        d: Half,
        dmin: Half,
        /// As in [`BlockQ4K`].
        scales: [u8; 12],
        /// Bit `g` of byte `l`: the fifth bit of value `32 g + l`.
        qh: [u8; 32],
        /// The low four bits, as in [`BlockQ4K`].
        qs: [u8; 128],
    }
    /// 256 values `d * scale * (q - 32)`, a scale for each 16.
    BlockQ6K = Q6K {
        /// The low four bits: value `128 n + l` in the low half of byte `64 n + l`, value `128 n + 64 + l` in its high
        /// half, `l` below 64.
        ql: [u8; 128],
        /// Bits `2 j` and up of byte `32 n + l`: the high two bits of value `128 n + 32 j + l`.
        qh: [u8; 64],
        /// Signed.
        scales: [u8; 16],
        d: Half,
    }
    /// 256 values `d * (t - 1)` of three digits t.
    BlockTQ1_0 = TQ1_0 {
        /// Five digits a byte: digit `n` of a byte is the whole part of `3 * (byte * 3^n mod 256) / 256`. Value `32 n + l` is
        /// digit n of byte l below 32, value `160 + 16 n + l` that of byte `32 + l`.
        qs: [u8; 48],
        /// Four digits a byte: value `240 + 4 n + l` is digit n of byte l.
        qh: [u8; 4],
        d: Half,
    }
    /// 256 values `d * (q - 1)`.
    BlockTQ2_0 = TQ2_0 {
        /// As in [`BlockQ2K`].
        qs: [u8; 64],
        d: Half,
    }
    /// 32 values `d * level`.
    BlockIQ4NL = IQ4NL {
        d: Half,
        /// Numbers of levels, as in [`BlockQ4_0`].
        qs: [u8; 16],
    }
    /// 256 values `d * scale * level`, a scale for each 32.
    BlockIQ4XS = IQ4XS {
        d: Half,
        /// 8 scales of 6 bits, from -32. Bits `2 i` and up of these 16: the high two of scale `i`.
        scales_h: [u8; 2],
        /// The low four bits: scale `2 i` in the low half of byte `i`, scale `2 i + 1` in its high half.
        scales_l: [u8; 4],
        /// For each 32 values the numbers of their levels, as in [`BlockQ4_0`].
        qs: [[u8; 16]; 8],
    }
    /// 32 values `2^(e - 128) * level`.
    BlockMXFP4 = MXFP4 {
        e: u8,
        /// Numbers of levels, as in [`BlockQ4_0`].
        qs: [u8; 16],
    }
    /// 64 values `d * level`, a d for each 16.
    BlockNVFP4 = NVFP4 {
        /// Floats with 4 bits of exponent and 3 of mantissa (E4M3) without their sign.
        d: [u8; 4],
        /// For each 16 values the numbers of their levels: value `k` in the low half of byte `k`, value `k + 8` in its high half.
        qs: [[u8; 8]; 4],
    }
    /// 256 values `d / 8 * (2 scale + 1) * ±entry`, a scale for each 32.
    BlockIQ2XXS = IQ2XXS {
        d: Half,
        /// For each 32 values the numbers of four entries of 8 values, then 32 bits: from the lowest, seven signs for each
        /// entry (the eighth makes them even) and the scale.
        qs: [[u8; 8]; 8],
    }
    /// 256 values `d / 8 * (2 scale + 1) * ±entry`, a scale for each 16.
    BlockIQ2XS = IQ2XS {
        d: Half,
        /// For each 8 values the number of their entry in the low nine bits, and seven signs (the eighth makes them even).
        qs: [[u8; 2]; 32],
        /// Scale `2 i` in the low half of byte `i`, scale `2 i + 1` in its high half.
        scales: [u8; 8],
    }
    /// 256 values `d / 8 * (2 scale + 1) * ±entry`, a scale for each 16.
    BlockIQ2S = IQ2S {
        d: Half,
        /// For each 8 values the low eight bits of the number of their entry.
        qs: [u8; 32],
        /// For each 8 values their signs.
        signs: [u8; 32],
        /// Bits `2 j` and up of byte `i`: the high two bits of number `4 i + j`.
        qh: [u8; 8],
        /// As in [`BlockIQ2XS`].
        scales: [u8; 8],
    }
    /// 256 values `d / 4 * (2 scale + 1) * ±entry`, a scale for each 32.
    BlockIQ3XXS = IQ3XXS {
        d: Half,
        /// For each 4 values the number of their entry.
        qs: [[u8; 8]; 8],
        /// For each 32 values 32 bits, as in [`BlockIQ2XXS`].
        signs: [[u8; 4]; 8],
    }
    /// 256 values `d * (2 scale + 1) * ±entry`, a scale for each 32.
    BlockIQ3S = IQ3S {
        d: Half,
        /// For each 4 values the low eight bits of the number of their entry.
        qs: [[u8; 2]; 32],
        /// Bit `j` of byte `i`: the ninth bit of number `8 i + j`.
        qh: [u8; 8],
        /// For each 8 values their signs.
        signs: [u8; 32],
        /// As in [`BlockIQ2XS`].
        scales: [u8; 4],
    }
    /// 256 values `d * (2 scale + 1) * (entry ± 1/8)`, a scale and a sign for each 32.
    BlockIQ1S = IQ1S {
        d: Half,
        /// For each 8 values the low eight bits of the number of their entry.
        qs: [[u8; 4]; 8],
        /// For each 32 values, from the lowest bit: the high three bits of each of the four numbers, the scale, and whether
        /// the eighth is subtracted.
        qh: [[u8; 2]; 8],
    }
    /// 256 values `d * (2 scale + 1) * (entry ± 1/8)`, a scale for each 16, a sign for each 8.
    BlockIQ1M = IQ1M {
        /// As in [`BlockIQ1S`].
        qs: [u8; 32],
        /// For each 8 values four bits, low halves first: the high three bits of the number, and whether the eighth is subtracted.
        qh: [u8; 16],
        /// 16 bits for each 64 values: four scales of three bits, then four bits of d, whose lowest come first.
        scales: [[u8; 2]; 4],
    }
}
