//! Each format's products beside what this machine allows: reading for one token, 8-bit multiply-adds for many; and what
//! 8 tokens cost.
//!
//! `cargo bench -p moli-kernels --bench limits`. Every round measures the two limits and all products anew, so that a minute
//! in which the machine is slow slows both sides; medians and the median of the rounds' percentages are printed.
//! `MOLI_THREADS` sets the threads, `MOLI_ROUNDS` the rounds (5), `MOLI_FORMATS` the formats (`Q8_0,MXFP4`; all),
//! `MOLI_WORKING_SET` the megabytes that products of one token go around (256): with 1 everything is in a cache, and a token is
//! bound by unpacking alone.

#![allow(clippy::expect_used, reason = "a bench has nobody to return an error to")]

use std::hint::black_box;
use std::time::{Duration, Instant};

use moli_format::{Bytes, TensorType};
use moli_kernels::{
    Activations, Isa, Kernels, Matrix, Pool, SUPPORTED, Scratch, default_threads, peak, quantize,
};

/// Rows and columns: the two large matrices of a layer of Qwen2 1.5B.
const SHAPES: [(usize, usize); 2] = [(8960, 1536), (1536, 8960)];
/// Megabytes that products of one token go around, unless it is said otherwise: more than the last cache.
const WORKING_SET: usize = 256;
const TOKENS: usize = 512;
/// For which the peak of multiply-adds is measured each time.
const PEAK_TIME: Duration = Duration::from_millis(50);

struct Bench {
    kernels: Kernels,
    pool: Pool,
    scratch: Scratch,
}

/// Seconds that `f` takes.
fn seconds(f: impl FnOnce()) -> f64 {
    let start = Instant::now();
    f();
    start.elapsed().as_secs_f64()
}

fn median(mut samples: Vec<f64>) -> f64 {
    samples.sort_by(f64::total_cmp);
    samples.get(samples.len() / 2).copied().unwrap_or(f64::NAN)
}

impl Bench {
    /// Seconds of a product; the matrices take turns.
    fn product(&self, matrices: &[Matrix], tokens: usize, repeat: usize) -> f64 {
        let first = &matrices[0];
        let x: Vec<f32> = (0..tokens * first.cols()).map(|k| (k % 37) as f32 / 37.0 - 0.5).collect();
        let mut act = Activations::new(tokens, first.cols()).expect("the memory is there");
        act.set(&self.kernels, &self.pool, &x, (tokens, first.cols()), [first.ttype()]).expect("it fits");
        let mut out = vec![0.0; tokens * first.rows()];
        let mut product = |w| {
            self.kernels.matmul(&self.pool, w, &act, &self.scratch, black_box(&mut out)).expect("it fits");
        };
        product(first);
        seconds(|| matrices.iter().cycle().take(repeat).for_each(product)) / repeat as f64
    }
}

/// Matrices of small scales and bytes of no meaning, together as large as the working set.
fn matrices(ttype: TensorType, (rows, cols): (usize, usize), working_set: usize) -> Vec<Matrix> {
    let bytes = rows * ttype.row_bytes(cols).expect("whole blocks");
    let mut state = 1u64;
    let mut byte = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 56) as u8
    };
    let mut random = Vec::with_capacity(bytes);
    if ttype.block_len() == 1 {
        // Numbers as weights are: with subnormal ones, which no weight is, some processors take a hundred times as long.
        let values: Vec<f32> = (0..rows * cols).map(|_| (f32::from(byte()) - 127.5) / 4096.0).collect();
        quantize(ttype, &values, &mut random).expect("any length");
    } else {
        // Without the two highest bits of an exponent no half-precision number is large.
        random.extend((0..bytes).map(|_| byte() & 0x3f));
    }
    let count = working_set.div_ceil(bytes);
    let new = |_| Matrix::new(ttype, rows, cols, Bytes::from_vec(random.clone())).expect("it fits");
    (0..count).map(new).collect()
}

fn main() {
    let number = |name: &str| std::env::var(name).ok().and_then(|n| n.parse::<usize>().ok());
    let rounds = number("MOLI_ROUNDS").unwrap_or(5).max(1);
    let pool = Pool::new(number("MOLI_THREADS").unwrap_or_else(default_threads));
    let scratch = Scratch::new(pool.threads());
    let kernels = Kernels::new(Isa::detect()).expect("it was detected");
    let bench = Bench { kernels, pool, scratch };
    let working_set = number("MOLI_WORKING_SET").unwrap_or(WORKING_SET) << 20;
    let data = vec![1u8; WORKING_SET << 20];
    println!("{}, {} threads, medians of {rounds} rounds\n", bench.kernels.isa(), bench.pool.threads());
    println!(
        "| format | shape | 1 token, GB/s | of reading | 8 tokens cost | {TOKENS} tokens, GMAC/s | of the int8 peak |"
    );
    println!("|---|---|---|---|---|---|---|");
    let (mut reads, mut peaks) = (Vec::new(), Vec::new());
    let wanted = std::env::var("MOLI_FORMATS").unwrap_or_default();
    let is_wanted =
        |ttype: &TensorType| wanted.is_empty() || wanted.split(',').any(|name| name == ttype.name());
    for ttype in SUPPORTED.into_iter().filter(is_wanted) {
        for shape @ (rows, cols) in SHAPES {
            let all = matrices(ttype, shape, working_set);
            let (mut one, mut of_read, mut eight, mut many, mut of_peak) =
                (vec![], vec![], vec![], vec![], vec![]);
            for _ in 0..rounds {
                let read = peak::read(&bench.pool, &data);
                let seconds = bench.product(&all, 1, all.len().max(8));
                let bytes = all[0].bytes() as f64 / seconds;
                eight.push(bench.product(&all, 8, all.len().max(8)) / seconds);
                let macs = (TOKENS * rows * cols) as f64 / bench.product(&all[..1], TOKENS, 1);
                one.push(bytes);
                of_read.push(bytes / read);
                many.push(macs);
                reads.push(read);
                if let Some(peak) = peak::int8(&bench.kernels, &bench.pool, PEAK_TIME) {
                    of_peak.push(macs / peak);
                    peaks.push(peak);
                }
            }
            let percent = |samples: Vec<f64>| match samples.len() {
                0 => "–".to_owned(),
                _ => format!("{:.0}%", 100.0 * median(samples)),
            };
            println!(
                "| {ttype} | {rows}×{cols} | {:.1} | {} | {:.1} × 1 | {:.0} | {} |",
                median(one) / 1e9,
                percent(of_read),
                median(eight),
                median(many) / 1e9,
                percent(of_peak)
            );
        }
    }
    println!("\nreading: {:.1} GB/s", median(reads) / 1e9);
    if !peaks.is_empty() {
        println!("int8 peak: {:.0} GMAC/s", median(peaks) / 1e9);
    }
}
