//! Dequantising against an independent implementation, and the quantisers against dequantising.
//!
//! `fixtures/blocks.bin` and `fixtures/codebooks.bin` (of `scripts/block-fixtures.py`) hold, for each type, random blocks
//! (with finite scales, one of them subnormal) and the values that the Python package `gguf` 0.19 makes of them: type number,
//! bytes of blocks and count of values as little-endian u32, then the blocks, then the values as f32.

#![allow(clippy::unwrap_used)]

use moli_format::TensorType;
use moli_kernels::{KernelError, QUANTIZABLE, SUPPORTED, dequantize, is_supported, quantize};

const FIXTURES: [&[u8]; 2] =
    [include_bytes!("fixtures/blocks.bin"), include_bytes!("fixtures/codebooks.bin")];

fn u32_at(bytes: &[u8]) -> (u32, &[u8]) {
    let (head, rest) = bytes.split_at(4);
    (u32::from_le_bytes(head.try_into().unwrap()), rest)
}

#[test]
fn blocks_mean_what_the_reference_says_bit_for_bit() {
    let fixtures = FIXTURES.concat();
    let mut rest = fixtures.as_slice();
    let mut types = Vec::new();
    while !rest.is_empty() {
        let (id, r) = u32_at(rest);
        let (bytes, r) = u32_at(r);
        let (values, r) = u32_at(r);
        let (blocks, r) = r.split_at(bytes as usize);
        let (expected, r) = r.split_at(4 * values as usize);
        rest = r;
        let ttype = TensorType::from_id(id).unwrap();
        types.push(ttype);
        let mut out = vec![0.0; values as usize];
        dequantize(ttype, blocks, &mut out).unwrap();
        for (k, (actual, expected)) in out.iter().zip(expected.as_chunks().0).enumerate() {
            let expected = f32::from_le_bytes(*expected);
            // The sign of a zero is no part of the meaning.
            assert!(
                actual.to_bits() == expected.to_bits() || *actual == expected,
                "{ttype} {k}: {actual} {expected}"
            );
        }
    }
    // All but F32.
    assert!(SUPPORTED[1..].iter().all(|ttype| types.contains(ttype)), "{types:?}");
}

/// The greatest error of each quantiser on values in -1..1, in units of the range (2) or of the extreme (1).
///
/// A format of n bits has steps of `range / (2^n - 1)` (with a minimum) or `extreme / 2^(n-1)`, and errs by half a step;
/// Q4_0 and Q5_0 by a whole one at the end of the range that their extreme is not at. The K types add the error of their
/// sub-scales and sub-minima. IQ4_NL and IQ4_XS end at 113 on the side that their extreme of 127 is not at; a half-precision scale is off by up to 2^-11, which is 0.06 steps at 127.
#[test]
fn quantizing_errs_by_less_than_a_named_bound() {
    let bounds = [
        (TensorType::F32, 0.0),
        (TensorType::F16, 1.0 / 4096.0),
        (TensorType::BF16, 1.0 / 512.0),
        (TensorType::Q4_0, 1.01 / 8.0),
        (TensorType::Q5_0, 1.01 / 16.0),
        (TensorType::Q4_1, 1.02 / 15.0),
        (TensorType::Q5_1, 1.03 / 31.0),
        (TensorType::Q8_0, 0.57 / 127.0),
        (TensorType::Q2K, 0.4),
        (TensorType::Q3K, 0.3),
        (TensorType::Q4K, 0.08),
        (TensorType::Q5K, 0.04),
        (TensorType::Q6K, 0.04),
        (TensorType::IQ4NL, 0.12),
        // The levels end at -127 and 113, and scales are multiples of a 32nd.
        (TensorType::IQ4XS, 14.0 / 127.0 + 1.0 / 32.0),
    ];
    assert!(QUANTIZABLE.iter().all(|ttype| bounds.iter().any(|(bounded, _)| bounded == ttype)));
    let mut state = 1u64;
    let x: Vec<f32> = (0..4096)
        .map(|_| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 40) as f32 / (1 << 23) as f32 - 1.0
        })
        .collect();
    for (ttype, bound) in bounds {
        let mut bytes = Vec::new();
        quantize(ttype, &x, &mut bytes).unwrap();
        let mut back = vec![0.0; x.len()];
        dequantize(ttype, &bytes, &mut back).unwrap();
        let error = x.iter().zip(&back).map(|(x, b)| (x - b).abs()).fold(0.0, f32::max);
        assert!(error <= bound, "{ttype}: {error} > {bound}");
        // Zeros stay zeros.
        bytes.clear();
        quantize(ttype, &[0.0; 256], &mut bytes).unwrap();
        let mut back = [1.0; 256];
        dequantize(ttype, &bytes, &mut back).unwrap();
        assert!(back.iter().all(|v| *v == 0.0), "{ttype}");
    }
}

#[test]
fn types_without_kernels_and_partial_blocks_are_errors() {
    let supported = TensorType::ALL.iter().filter(|t| is_supported(**t)).count();
    assert_eq!(supported, 26);
    let ttype = TensorType::Q8_1;
    let unsupported = KernelError::UnsupportedType { ttype };
    assert_eq!(dequantize(ttype, &[], &mut []), Err(unsupported.clone()));
    assert_eq!(quantize(ttype, &[], &mut Vec::new()), Err(unsupported));
    for ttype in SUPPORTED.into_iter().filter(|t| !QUANTIZABLE.contains(t)) {
        assert_eq!(quantize(ttype, &[], &mut Vec::new()), Err(KernelError::NoQuantizer { ttype }));
    }
    let ttype = TensorType::Q6K;
    let partial = KernelError::PartialBlock { ttype, block: 256, cols: 255 };
    assert_eq!(dequantize(ttype, &[0; 210], &mut [0.0; 255]), Err(partial.clone()));
    assert_eq!(quantize(ttype, &[0.0; 255], &mut Vec::new()), Err(partial));
    assert_eq!(dequantize(ttype, &[], &mut []), Ok(()));
}
