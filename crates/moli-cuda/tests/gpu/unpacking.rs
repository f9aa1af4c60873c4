//! Rows of a table, of every type, beside the processor's bits.

use half::f16;
use moli_cuda::Matrix;
use moli_format::TensorType;
use moli_kernels::{SUPPORTED, dequantize};

use crate::common::{Random, bits, blocks, empty, gpu_for, read, set_scale, tensor};

/// Rows as the processor unpacks them.
fn expected(ttype: TensorType, bytes: &[u8], cols: usize, rows: &[u32], factor: f32) -> Vec<f32> {
    let mut all = vec![0.0; bytes.len() / ttype.block_bytes() * ttype.block_len()];
    dequantize(ttype, bytes, &mut all).unwrap();
    rows.iter().flat_map(|&row| &all[row as usize * cols..][..cols]).map(|value| value * factor).collect()
}

fn compare(ttype: TensorType, rows: usize, cols: usize, bytes: Vec<u8>, chosen: &[u32]) {
    let mut gpu = gpu_for(chosen.len(), cols);
    let table = Matrix::new(&gpu, &tensor(ttype, rows, cols, bytes.clone())).unwrap();
    let mut out = empty(&gpu);
    for factor in [1.0, 0.37] {
        gpu.look_up(&table, chosen, factor, &mut out).unwrap();
        assert_eq!((out.rows(), out.cols()), (chosen.len(), cols));
        let (found, expected) = (read(&gpu, &out), expected(ttype, &bytes, cols, chosen, factor));
        let wrong = bits(&found).iter().zip(bits(&expected)).position(|(a, b)| *a != b);
        let told = wrong.map(|at| format!("element {at}: {} for {}", found[at], expected[at]));
        assert_eq!(told, None, "{ttype:?}, {cols} columns, factor {factor}");
    }
}

#[test]
fn rows_have_the_processors_bits() {
    let mut random = Random::new(1);
    for ttype in SUPPORTED {
        // Widths around a segment of 256 columns, as the block allows; of floats odd ones.
        let widths: &[usize] = match ttype.block_len() {
            1 => &[1, 31, 257],
            256 => &[256, 768],
            block => &[block, 256 + block],
        };
        for &cols in widths {
            let bytes = blocks(ttype, 41 * cols / ttype.block_len(), &mut random);
            compare(ttype, 41, cols, bytes, &[40, 0, 7, 7, 39, 1, 7]);
        }
    }
}

/// All values of a byte that means something by itself, and scales that are infinite or no number at all.
#[test]
fn special_scales_have_the_processors_bits() {
    let mut random = Random::new(2);
    let rows: Vec<u32> = (0..256).collect();
    for ttype in [TensorType::MXFP4, TensorType::NVFP4] {
        let mut bytes = blocks(ttype, 256, &mut random);
        for (value, block) in bytes.chunks_exact_mut(ttype.block_bytes()).enumerate() {
            let scales = if ttype == TensorType::MXFP4 { 1 } else { 4 };
            block[..scales].fill(value as u8);
            // Every level in both halves of a byte.
            for (byte, level) in block[scales..].iter_mut().zip(0..16) {
                *byte = level << 4 | (15 - level);
            }
        }
        compare(ttype, 256, ttype.block_len(), bytes, &rows);
    }
    for ttype in SUPPORTED {
        for scale in [f16::NAN, f16::INFINITY, f16::NEG_INFINITY, f16::from_bits(1), f16::NEG_ZERO, f16::MAX]
        {
            let mut bytes = blocks(ttype, 1, &mut random);
            if set_scale(ttype, &mut bytes, scale) {
                compare(ttype, 1, ttype.block_len(), bytes, &[0, 0]);
            }
        }
    }
}

/// Each byte of a block everywhere: what a shift or a mask gets wrong at an end shows.
#[test]
fn extreme_bytes_have_the_processors_bits() {
    for ttype in SUPPORTED.into_iter().filter(|ttype| ttype.block_len() > 1) {
        let values = [0x00, 0x01, 0x0f, 0x55, 0x7f, 0x80, 0x81, 0xaa, 0xf0, 0xff];
        let mut bytes: Vec<u8> = values.iter().flat_map(|value| vec![*value; ttype.block_bytes()]).collect();
        for block in bytes.chunks_exact_mut(ttype.block_bytes()) {
            set_scale(ttype, block, f16::from_f32(0.5));
        }
        let rows: Vec<u32> = (0..values.len() as u32).collect();
        compare(ttype, values.len(), ttype.block_len(), bytes, &rows);
    }
}
