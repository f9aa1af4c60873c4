use moli_format::TensorType;

use super::block::{Block, Weighting};
use super::{QUANTIZABLE, quantize, quantize_rows, searched};
use crate::{KernelError, dequantize};

/// The types whose scales are searched for, if importance is given.
const SEARCHED: [TensorType; 11] = [
    TensorType::Q4_0,
    TensorType::Q4_1,
    TensorType::Q5_0,
    TensorType::Q5_1,
    TensorType::Q2K,
    TensorType::Q3K,
    TensorType::Q4K,
    TensorType::Q5K,
    TensorType::Q6K,
    TensorType::IQ4NL,
    TensorType::IQ4XS,
];

struct Random(u64);

impl Random {
    /// In -1..1.
    fn float(&mut self) -> f32 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 40) as f32 / (1 << 23) as f32 - 1.0
    }

    fn many(&mut self, n: usize, mut of: impl FnMut(&mut Self) -> f32) -> Vec<f32> {
        (0..n).map(|_| of(self)).collect()
    }

    fn normal(&mut self) -> f32 {
        (0..8).map(|_| self.float()).sum::<f32>() * 0.6
    }

    /// From 1/54 to 54.
    fn importance(&mut self, n: usize) -> Vec<f32> {
        self.many(n, |random| (4.0 * random.float()).exp())
    }
}

/// 256 values of every kind that a search could stumble over.
fn kinds() -> Vec<(&'static str, Vec<f32>)> {
    let mut random = Random(7);
    let mut kinds = Vec::new();
    for _ in 0..16 {
        kinds.push(("normal", random.many(256, |random| 0.02 * random.normal())));
        kinds.push(("heavy-tailed", random.many(256, |random| random.normal().powi(5))));
        kinds.push(("positive", random.many(256, |random| 1.0 + random.float() / 4.0)));
        let mut outlier = random.many(256, Random::float);
        outlier[77] = -1e4;
        kinds.push(("outlier", outlier));
        kinds.push(("small", random.many(256, |random| 1e-6 * random.normal())));
        let mut partly = random.many(256, Random::normal);
        partly[..100].fill(0.0);
        kinds.push(("partly zero", partly));
    }
    kinds.extend([("zero", vec![0.0; 256]), ("constant", vec![0.3; 256]), ("negative", vec![-0.3; 256])]);
    kinds.push(("subnormal", random.many(256, |random| 1e-40 * random.normal())));
    kinds
}

fn rows(ttype: TensorType, x: &[f32], cols: usize, importance: Option<&[f32]>) -> Vec<u8> {
    let mut bytes = Vec::new();
    quantize_rows(ttype, x, cols, importance, &mut bytes).unwrap();
    bytes
}

fn values(ttype: TensorType, bytes: &[u8], len: usize) -> Vec<f32> {
    let mut values = vec![f32::NAN; len];
    dequantize(ttype, bytes, &mut values).unwrap();
    values
}

/// The sum of weighted squared differences.
fn error(x: &[f32], y: &[f32], weights: &[f32]) -> f64 {
    let term = |((x, y), w): ((&f32, &f32), &f32)| f64::from(*w) * (f64::from(*x) - f64::from(*y)).powi(2);
    x.iter().zip(y).zip(weights).map(term).sum()
}

/// The weights that the search goes by.
fn weights(ttype: TensorType, x: &[f32], importance: Option<&[f32]>) -> Vec<f32> {
    let weighting = match ttype {
        TensorType::Q4_1 | TensorType::Q5_1 | TensorType::Q2K | TensorType::Q4K | TensorType::Q5K => {
            Weighting::Magnitude
        }
        _ => Weighting::Square,
    };
    fn of<const N: usize>(x: &[f32], importance: Option<&[f32]>, weighting: Weighting) -> Vec<f32> {
        let block = |i: usize| &x.as_chunks::<N>().0[i];
        let importance = |i: usize| importance.map(|importance| &importance.as_chunks::<N>().0[i]);
        (0..x.len() / N).flat_map(|i| Block::new(block(i), importance(i), weighting).w).collect()
    }
    match ttype.block_len() {
        32 => of::<32>(x, importance, weighting),
        _ => of::<256>(x, importance, weighting),
    }
}

#[test]
fn no_block_is_worse_than_without_a_search() {
    let mut random = Random(1);
    let mut worse = Vec::new();
    for (kind, x) in kinds() {
        let importance = random.importance(256);
        for ttype in SEARCHED {
            for importance in [None, Some(importance.as_slice())] {
                let mut simple = Vec::new();
                quantize(ttype, &x, &mut simple).unwrap();
                let ours = values(ttype, &rows(ttype, &x, 256, importance), 256);
                let simple = values(ttype, &simple, 256);
                let weights = weights(ttype, &x, importance);
                for (block, x) in x.chunks(ttype.block_len()).enumerate() {
                    let range = block * ttype.block_len()..(block + 1) * ttype.block_len();
                    let error = |y: &[f32]| error(x, &y[range.clone()], &weights[range.clone()]);
                    let (ours, simple) = (error(&ours), error(&simple));
                    // 1e-6 of the error: what the search can't tell apart in f32.
                    if ours > simple * (1.0 + 1e-6) {
                        worse.push(format!(
                            "{ttype}, {kind}, importance {}: {ours} {simple}",
                            importance.is_some()
                        ));
                    }
                }
            }
        }
    }
    assert!(worse.is_empty(), "{worse:#?}");
}

/// The root of the mean squared error on values spread evenly in -1..1, beside that of the format's grid laid over the whole
/// range: `1 / √3 / (2^n - 1)` with a minimum, `1 / √3 / 2^n` without.
#[test]
fn even_values_lose_what_the_grid_implies() {
    let grids = [
        (TensorType::Q2K, 3.0),
        (TensorType::Q3K, 8.0),
        (TensorType::Q4K, 15.0),
        (TensorType::Q5K, 31.0),
        (TensorType::Q6K, 64.0),
        (TensorType::IQ4NL, 16.0),
        (TensorType::IQ4XS, 16.0),
    ];
    let mut random = Random(2);
    let x = random.many(1 << 14, Random::float);
    for (ttype, levels) in grids {
        let y = values(ttype, &rows(ttype, &x, x.len(), None), x.len());
        let rms = (error(&x, &y, &vec![1.0; x.len()]) / x.len() as f64).sqrt();
        let grid = 1.0 / 3f64.sqrt() / levels;
        println!("{ttype}: {rms} {grid} {}", rms / grid);
        assert!(rms < 1.1 * grid, "{ttype}: {rms} {grid}");
    }
}

#[test]
fn importance_lowers_the_errors_that_it_weighs() {
    let mut random = Random(3);
    let (cols, len) = (512, 64 * 512);
    let x = random.many(len, Random::normal);
    let importance = random.importance(cols);
    let repeated: Vec<f32> = importance.iter().copied().cycle().take(len).collect();
    for ttype in QUANTIZABLE {
        let (with, without) = (rows(ttype, &x, cols, Some(&importance)), rows(ttype, &x, cols, None));
        let error = |bytes: &[u8]| error(&x, &values(ttype, bytes, len), &repeated);
        if SEARCHED.contains(&ttype) {
            let (with, without) = (error(&with), error(&without));
            assert!(with < 0.95 * without, "{ttype}: {with} {without}");
        } else {
            assert!(with == without, "{ttype}");
        }
    }
}

#[test]
fn importance_that_is_zero_everywhere_or_in_proportion_changes_nothing() {
    let mut random = Random(4);
    let x = random.many(1024, Random::normal);
    for ttype in SEARCHED {
        let importance = random.importance(512);
        let eighth: Vec<f32> = importance.iter().map(|v| v / 8.0).collect();
        assert!(rows(ttype, &x, 512, Some(&importance)) == rows(ttype, &x, 512, Some(&eighth)), "{ttype}");
        if !matches!(ttype, TensorType::Q4_0 | TensorType::Q4_1 | TensorType::Q5_0 | TensorType::Q5_1) {
            assert!(rows(ttype, &x, 512, Some(&[0.0; 512])) == rows(ttype, &x, 512, None), "{ttype}");
        }
        // A sub-block of no importance beside others with some.
        let mut partly = importance;
        partly[..32].fill(0.0);
        let y = values(ttype, &rows(ttype, &x, 512, Some(&partly)), 1024);
        let sizes = [&x[..32], &y[..32]].map(|v| v.iter().map(|v| v * v).sum::<f32>());
        assert!((sizes[1] / sizes[0] - 1.0).abs() < 0.5, "{ttype}: {sizes:?}");
    }
}

#[test]
fn rows_are_the_same_bits_in_any_division_and_with_any_instructions() {
    let mut random = Random(5);
    let (cols, len) = (512, 8 * 512);
    let x = random.many(len, |random| random.normal().powi(3));
    let importance = random.importance(cols);
    for ttype in QUANTIZABLE {
        for importance in [None, Some(importance.as_slice())] {
            let whole = rows(ttype, &x, cols, importance);
            assert_eq!(whole.len(), ttype.row_bytes(len).unwrap(), "{ttype}");
            for rows_each in [1, 3] {
                let parts: Vec<u8> =
                    x.chunks(rows_each * cols).flat_map(|x| rows(ttype, x, cols, importance)).collect();
                assert!(parts == whole, "{ttype} by {rows_each}");
            }
            // Compiled for any processor of this architecture.
            let mut plain = Vec::new();
            searched(ttype, &x, cols, importance, &mut plain);
            assert!(plain == whole, "{ttype} without AVX2");
        }
    }
}

#[test]
fn zeros_stay_zeros_and_values_beyond_a_scale_stay_finite() {
    for ttype in SEARCHED {
        for importance in [None, Some([1.0; 256].as_slice()), Some(&[0.0; 256])] {
            let zeros = values(ttype, &rows(ttype, &[0.0; 256], 256, importance), 256);
            assert!(zeros.iter().all(|v| *v == 0.0), "{ttype}");
        }
        let mut large = [1.0; 256];
        (large[3], large[200]) = (f32::MAX, f32::MIN);
        let large = values(ttype, &rows(ttype, &large, 256, Some(&[1.0; 256])), 256);
        // The minimum of these is a number of half precision by itself.
        let lowest = if matches!(ttype, TensorType::Q4_1 | TensorType::Q5_1) { -6e4 } else { -2e5 };
        assert!(
            large.iter().all(|v| v.is_finite()) && large[3] > 2e5 && large[200] < lowest,
            "{ttype}: {large:?}"
        );
    }
}

#[test]
fn what_cannot_be_quantised_is_an_error_and_leaves_nothing() {
    let mut out = vec![1, 2, 3];
    let mut error = |ttype, x: &[f32], cols, importance: Option<&[f32]>| {
        let error = quantize_rows(ttype, x, cols, importance, &mut out).unwrap_err();
        assert_eq!(out, [1, 2, 3]);
        error
    };
    let ttype = TensorType::Q4K;
    let x = [1.0; 512];
    let length = |what, expected, actual| KernelError::Length { what, expected, actual };
    assert_eq!(
        error(TensorType::Q8_1, &x, 256, None),
        KernelError::UnsupportedType { ttype: TensorType::Q8_1 }
    );
    assert_eq!(error(TensorType::IQ3S, &x, 256, None), KernelError::NoQuantizer { ttype: TensorType::IQ3S });
    assert_eq!(error(ttype, &x, 128, None), KernelError::PartialBlock { ttype, block: 256, cols: 128 });
    assert_eq!(error(ttype, &x[..500], 256, None), length("values of whole rows", 256, 500));
    assert_eq!(error(ttype, &x, 0, None), length("values of whole rows", 0, 512));
    assert_eq!(error(ttype, &x, 256, Some(&x)), length("importance", 256, 512));
    for bad in [f32::NAN, f32::INFINITY, -1.0] {
        let mut importance = [1.0; 256];
        importance[9] = bad;
        assert_eq!(error(ttype, &x, 256, Some(&importance)), KernelError::Importance { column: 9 });
    }
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut x = x;
        x[300] = bad;
        for ttype in QUANTIZABLE {
            assert_eq!(error(ttype, &x, 256, None), KernelError::NotFinite { index: 300 });
        }
    }
    assert_eq!(quantize_rows(ttype, &[], 256, None, &mut out), Ok(()));
    assert_eq!(quantize_rows(ttype, &[], 0, None, &mut out), Ok(()));
    assert_eq!(out, [1, 2, 3]);
}
