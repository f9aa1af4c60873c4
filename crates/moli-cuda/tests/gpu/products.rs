//! Products beside sums in f64 of the dequantised weights with the activations as the kernels round them.

use half::f16;
use moli_cuda::{Array, Buffer, Gpu, Matrix};
use moli_format::TensorType;
use moli_kernels::{SUPPORTED, dequantize};

use crate::common::{Random, bits, buffer, empty, even_blocks, gpu_for, read, set_scale, tensor};

/// The most that an element may be off, in terms of the sum of the magnitudes that it is made of: a few roundings of f32.
const TOLERANCE: f64 = 1e-6;

/// A matrix on the device, and its weights.
struct Weights {
    ttype: TensorType,
    matrix: Matrix,
    values: Vec<f32>,
    rows: usize,
    cols: usize,
}

impl Weights {
    fn new(gpu: &Gpu, ttype: TensorType, rows: usize, cols: usize, bytes: Vec<u8>) -> Self {
        let mut values = vec![0.0; rows * cols];
        dequantize(ttype, &bytes, &mut values).unwrap();
        let matrix = Matrix::new(gpu, &tensor(ttype, rows, cols, bytes)).unwrap();
        Self { ttype, matrix, values, rows, cols }
    }

    fn random(gpu: &Gpu, ttype: TensorType, rows: usize, cols: usize, random: &mut Random) -> Self {
        let bytes = even_blocks(ttype, rows * cols / ttype.block_len(), random);
        Self::new(gpu, ttype, rows, cols, bytes)
    }

    /// Compares a product with what it should be.
    fn check(&self, x: &[f32], bias: Option<&[f32]>, found: &[f32]) {
        let x: Vec<f64> = if self.ttype.block_len() == 1 {
            x.iter().map(|&x| f64::from(x)).collect()
        } else {
            x.chunks(self.cols).flat_map(eight_bits).collect()
        };
        // What a minimum takes away again was there before: so the greatest weight near by stands for each.
        let near = |w: &[f32]| w.iter().fold(0.0_f32, |most, w| most.max(w.abs()));
        let greatest: Vec<f32> =
            self.values.chunks(self.cols).flat_map(|row| row.chunks(16).map(near)).collect();
        let tokens = x.len() / self.cols;
        assert_eq!(found.len(), tokens * self.rows);
        for (x, found) in x.chunks(self.cols).zip(found.chunks(self.rows)) {
            for (row, ((w, near), &found)) in self
                .values
                .chunks(self.cols)
                .zip(greatest.chunks(self.cols.div_ceil(16)))
                .zip(found)
                .enumerate()
            {
                let sum: f64 = w.iter().zip(x).map(|(&w, x)| f64::from(w) * x).sum();
                let all: f64 = x
                    .chunks(16)
                    .zip(near)
                    .map(|(x, &w)| x.iter().map(|x| x.abs()).sum::<f64>() * f64::from(w))
                    .sum();
                let bias = bias.map_or(0.0, |bias| f64::from(bias[row]));
                let (off, allowed) =
                    ((f64::from(found) - (sum + bias)).abs(), TOLERANCE * (all + bias.abs()));
                assert!(
                    off <= allowed,
                    "{:?} [{}, {}], {tokens} tokens, row {row}: {found} for {}, off by {off}, allowed {allowed}",
                    self.ttype,
                    self.rows,
                    self.cols,
                    sum + bias
                );
            }
        }
    }
}

/// A row of activations as `quantize` of kernels/elementwise.cu rounds it.
fn eight_bits(row: &[f32]) -> Vec<f64> {
    let group = |x: &[f32]| -> Vec<f64> {
        let max = x.iter().fold(0.0_f32, |max, x| max.max(x.abs()));
        let inverse = 127.0 / max;
        if !inverse.is_finite() {
            return vec![0.0; x.len()];
        }
        let step = f64::from(max / 127.0);
        x.iter().map(|x| f64::from((x * inverse).round_ties_even()) * step).collect()
    };
    row.chunks(32).flat_map(group).collect()
}

fn project(gpu: &mut Gpu, x: &Buffer, matrix: &Matrix, bias: Option<&Array<f32>>) -> Vec<f32> {
    let mut out = empty(gpu);
    gpu.project(x, std::iter::once((matrix, bias, &mut out))).unwrap();
    assert_eq!((out.rows(), out.cols()), (x.rows(), matrix.rows()));
    read(gpu, &out)
}

/// Products of the first `tokens` rows of x, which must have the same bits whatever their number.
fn compare(gpu: &mut Gpu, w: &Weights, x: &[f32], bias: Option<&[f32]>, tokens: &[usize]) {
    let on_device = bias.map(|bias| gpu.vector(bias).unwrap());
    let mut all: Option<Vec<f32>> = None;
    for &tokens in tokens {
        let x = &x[..tokens * w.cols];
        let rows = buffer(gpu, tokens, x);
        let found = project(gpu, &rows, &w.matrix, on_device.as_ref());
        match &all {
            None => {
                w.check(x, bias, &found);
                all = Some(found);
            }
            Some(all) => {
                let same = bits(&found) == bits(&all[..tokens * w.rows]);
                assert!(same, "{:?} [{}, {}]: {tokens} tokens", w.ttype, w.rows, w.cols);
            }
        }
    }
}

/// The width of a matrix of this type, near `cols`.
fn width(ttype: TensorType, cols: usize) -> usize {
    match ttype.block_len() {
        1 => cols + 1,
        block => cols.next_multiple_of(block),
    }
}

/// Every type, with few tokens and with many.
#[test]
fn every_type() {
    let mut random = Random::new(3);
    for ttype in SUPPORTED {
        let cols = width(ttype, 288);
        let mut gpu = gpu_for(10, cols);
        let w = Weights::random(&gpu, ttype, 130, cols, &mut random);
        let (x, bias) = (random.floats(10 * cols), random.floats(w.rows));
        compare(&mut gpu, &w, &x, Some(&bias), &[9, 8, 5, 4, 3, 1]);
        compare(&mut gpu, &w, &x, None, &[10, 2]);
    }
}

/// One of each form of scales, and the floats.
const FORMS: [TensorType; 7] = [
    TensorType::Q8_0,
    TensorType::Q4_1,
    TensorType::NVFP4,
    TensorType::Q2K,
    TensorType::F32,
    TensorType::F16,
    TensorType::BF16,
];

/// Sizes around the tiles of rows and of tokens, the segments of columns and the stretches of a warp.
#[test]
fn edges_of_tiles() {
    let mut random = Random::new(4);
    for ttype in FORMS {
        for (rows, cols, tokens) in
            [(1, 1, 9), (7, 256, 64), (127, 1056, 65), (128, 289, 64), (129, 511, 70), (300, 1, 65)]
        {
            let cols = width(ttype, cols);
            let mut gpu = gpu_for(tokens, cols);
            let w = Weights::random(&gpu, ttype, rows, cols, &mut random);
            let (x, bias) = (random.floats(tokens * cols), random.floats(rows));
            compare(&mut gpu, &w, &x, (rows % 2 == 1).then_some(&bias), &[tokens, 9, 8, 1]);
        }
    }
}

/// Rows so long that the sums of eight tokens, or of four, have no room in shared memory; and widths with few rows to a block.
#[test]
fn long_rows() {
    let mut random = Random::new(5);
    for (ttype, cols) in [
        (TensorType::Q4_0, 5024),
        (TensorType::F32, 5001),
        (TensorType::Q6K, 18_432),
        (TensorType::BF16, 400_001),
    ] {
        let mut gpu = gpu_for(9, cols);
        let w = Weights::random(&gpu, ttype, 3, cols, &mut random);
        let x = random.floats(8 * cols);
        compare(&mut gpu, &w, &x, None, &[8, 7, 4, 1]);
    }
    let ttype = TensorType::Q4_1;
    let mut gpu = gpu_for(8, 800_000);
    let w = Weights::random(&gpu, ttype, 2, 800_000, &mut random);
    compare(&mut gpu, &w, &random.floats(5 * w.cols), None, &[5, 1]);
}

/// A matrix that doesn't fit unpacked: it is done in stretches of rows.
#[test]
fn stretches_of_rows() {
    let mut random = Random::new(6);
    let (rows, cols) = (140, 32_768);
    let mut gpu = gpu_for(9, cols);
    let w = Weights::random(&gpu, TensorType::TQ2_0, rows, cols, &mut random);
    let bias = random.floats(rows);
    compare(&mut gpu, &w, &random.floats(9 * cols), Some(&bias), &[9, 1]);
}

/// Several matrices that read the same activations, of which some want them rounded.
#[test]
fn several_matrices_at_once() {
    let mut random = Random::new(7);
    let cols = 256;
    for tokens in [2, 11] {
        let mut gpu = gpu_for(tokens, cols);
        let types = [TensorType::F16, TensorType::Q4K, TensorType::Q8_0, TensorType::F32, TensorType::IQ1M];
        let weights = types.map(|ttype| Weights::random(&gpu, ttype, 33, cols, &mut random));
        let values = random.floats(tokens * cols);
        let x = buffer(&mut gpu, tokens, &values);
        let bias = random.floats(33);
        let on_device = gpu.vector(&bias).unwrap();
        let mut outs = types.map(|_| empty(&gpu));
        let into = weights.iter().zip(&mut outs).map(|(w, out)| (&w.matrix, Some(&on_device), out));
        gpu.project(&x, into).unwrap();
        for (w, out) in weights.iter().zip(&outs) {
            w.check(&values, Some(&bias), &read(&gpu, out));
        }
    }
}

/// What is no number stays where it belongs: in the token's own row of the result, or in the weights' own column.
#[test]
fn what_is_no_number_stays_in_its_row() {
    let mut random = Random::new(8);
    for ttype in FORMS {
        let cols = width(ttype, 288);
        for tokens in [1, 4, 8, 9] {
            let mut gpu = gpu_for(tokens, cols);
            let w = Weights::random(&gpu, ttype, 130, cols, &mut random);
            let clean = random.floats(tokens * cols);
            let rows = buffer(&mut gpu, tokens, &clean);
            let expected = project(&mut gpu, &rows, &w.matrix, None);
            for odd in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                for (token, col) in [(tokens / 2, 0), (tokens - 1, cols - 1)] {
                    let mut x = clean.clone();
                    x[token * cols + col] = odd;
                    let rows = buffer(&mut gpu, tokens, &x);
                    let found = project(&mut gpu, &rows, &w.matrix, None);
                    for (row, (found, expected)) in
                        found.chunks(w.rows).zip(expected.chunks(w.rows)).enumerate()
                    {
                        if row == token {
                            let all = found.iter().all(|x| !x.is_finite());
                            assert!(all, "{ttype:?}, {tokens} tokens: {odd} in column {col} is lost");
                        } else {
                            assert_eq!(bits(found), bits(expected), "{ttype:?}, {tokens} tokens: row {row}");
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn a_scale_that_is_no_number_stays_in_its_column() {
    let mut random = Random::new(9);
    for ttype in SUPPORTED.into_iter().filter(|ttype| *ttype != TensorType::F32) {
        let cols = width(ttype, 288);
        let per_row = cols / ttype.block_len();
        let clean = even_blocks(ttype, 140 * per_row, &mut random);
        let mut dirty = clean.clone();
        // The last block of a row in each tile.
        let odd = [5, 133];
        if !odd.iter().all(|row| {
            let block = &mut dirty[((row + 1) * per_row - 1) * ttype.block_bytes()..][..ttype.block_bytes()];
            set_scale(ttype, block, f16::NAN)
        }) {
            continue;
        }
        for tokens in [3, 9] {
            let mut gpu = gpu_for(tokens, cols);
            let values = random.floats(tokens * cols);
            let x = buffer(&mut gpu, tokens, &values);
            let [expected, found] = [&clean, &dirty].map(|bytes| {
                let w = Weights::new(&gpu, ttype, 140, cols, bytes.clone());
                project(&mut gpu, &x, &w.matrix, None)
            });
            for (at, (found, expected)) in found.iter().zip(&expected).enumerate() {
                if odd.contains(&(at % 140)) {
                    assert!(found.is_nan(), "{ttype:?}, {tokens} tokens: {found} at {at}");
                } else {
                    assert_eq!(found.to_bits(), expected.to_bits(), "{ttype:?}, {tokens} tokens: at {at}");
                }
            }
        }
    }
}

/// Activations of nothing, and activations too small to have a scale, come to nothing: exactly.
#[test]
fn nothing_stays_nothing() {
    let mut random = Random::new(10);
    for ttype in FORMS.into_iter().filter(|ttype| ttype.block_len() > 1) {
        let cols = width(ttype, 288);
        for tokens in [2, 9] {
            let mut gpu = gpu_for(tokens, cols);
            let w = Weights::random(&gpu, ttype, 20, cols, &mut random);
            let mut values = vec![0.0; tokens * cols];
            values[..cols].fill(f32::from_bits(1));
            let x = buffer(&mut gpu, tokens, &values);
            let bias = random.floats(20);
            let on_device = gpu.vector(&bias).unwrap();
            let found = project(&mut gpu, &x, &w.matrix, Some(&on_device));
            assert_eq!(found, bias.repeat(tokens), "{ttype:?}, {tokens} tokens");
            let found = project(&mut gpu, &x, &w.matrix, None);
            assert_eq!(bits(&found), vec![0; 20 * tokens], "{ttype:?}, {tokens} tokens");
        }
    }
}

/// Values at the ends of each group: the greatest is 127 steps, halves go to the even byte.
#[test]
fn activations_are_rounded_to_the_nearest_byte() {
    let cols = 64;
    let mut gpu = gpu_for(9, cols);
    // Weights that are 1 in one column each: a product is an activation as it was rounded.
    let mut bytes = Vec::new();
    for row in 0..cols {
        for block in 0..cols / 32 {
            let mut quants = [0u8; 32];
            if row / 32 == block {
                quants[row % 32] = 1;
            }
            bytes.extend(f16::ONE.to_le_bytes());
            bytes.extend(quants);
        }
    }
    let w = Weights::new(&gpu, TensorType::Q8_0, cols, cols, bytes);
    let mut values: Vec<f32> = (0..cols).map(|i| (i as f32 - 32.0) + 0.5).collect();
    (values[0], values[32]) = (127.0, -254.0);
    for tokens in [1, 9] {
        let x = buffer(&mut gpu, tokens, &values.repeat(tokens));
        let found = project(&mut gpu, &x, &w.matrix, None);
        let expected: Vec<f32> = eight_bits(&values).into_iter().map(|x| x as f32).collect();
        assert_eq!(found, expected.repeat(tokens));
        // -30.5 and -29.5 in steps of 1, 2.5 and 3.5 in steps of 2.
        assert_eq!(found[1..3], [-30.0, -30.0]);
        assert_eq!(found[34..36], [2.0, 4.0]);
    }
}
