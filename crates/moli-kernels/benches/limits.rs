//! Each format's products beside what this machine allows: reading for one token, 8-bit multiply-adds for many; and what
//! 8 tokens cost.
//!
//! `cargo bench -p moli-kernels --bench limits`. Every round measures the two limits and all products anew, so that a minute
//! in which the machine is slow slows both sides; medians and the median of the rounds' percentages are printed.
//! `MOLI_THREADS` sets the threads, `MOLI_ROUNDS` the rounds (5), `MOLI_FORMATS` the formats (`Q8_0,MXFP4`; all).

#![allow(unsafe_code, reason = "the peak is measured with instructions")]
#![allow(clippy::expect_used, reason = "a bench has nobody to return an error to")]

use std::hint::black_box;
use std::time::Instant;

use moli_format::{Bytes, TensorType};
use moli_kernels::{Activations, Isa, Kernels, Matrix, Pool, SUPPORTED, Scratch, default_threads};

/// Rows and columns: the two large matrices of a layer of Qwen2 1.5B.
const SHAPES: [(usize, usize); 2] = [(8960, 1536), (1536, 8960)];
/// Bytes that products of one token go around: more than the last cache.
const WORKING_SET: usize = 256 << 20;
const TOKENS: usize = 512;

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
    /// Bytes per second that all threads read.
    fn read(&self, data: &[u8]) -> f64 {
        let tasks = self.pool.threads() * 16;
        let chunk = data.len() / tasks;
        let taken = seconds(|| {
            self.pool.run(tasks, &|task, _| {
                let words = data[task * chunk..(task + 1) * chunk].as_chunks::<64>().0;
                black_box(words.iter().fold([0u64; 8], |mut sums, word| {
                    for (sum, word) in sums.iter_mut().zip(word.as_chunks::<8>().0) {
                        *sum ^= u64::from_le_bytes(*word);
                    }
                    sums
                }));
            });
        });
        (chunk * tasks) as f64 / taken
    }

    /// 8-bit multiply-adds per second of all threads, with nothing but the instruction; `None` where it is not known how.
    fn peak(&self) -> Option<f64> {
        let per_round = match self.kernels.isa() {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Vnni => 16 * 64,
            _ => return None,
        };
        const ROUNDS: usize = 4_000_000;
        let taken = seconds(|| {
            self.pool.run(self.pool.threads(), &|_, _| {
                #[cfg(target_arch = "x86_64")]
                // SAFETY: the kernels were made for this instruction set, so the processor has it.
                unsafe {
                    multiply(ROUNDS);
                }
            });
        });
        Some((self.pool.threads() * ROUNDS * per_round) as f64 / taken)
    }

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

/// 16 independent chains of `vpdpbusd`.
///
/// # Safety
/// AVX-512-VNNI.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512vnni")]
unsafe fn multiply(rounds: usize) {
    use std::arch::x86_64::*;
    let mut sums = [_mm512_setzero_si512(); 16];
    let (w, a) = (black_box(_mm512_set1_epi8(3)), black_box(_mm512_set1_epi8(5)));
    for _ in 0..rounds {
        for sum in &mut sums {
            *sum = _mm512_dpbusd_epi32(*sum, w, a);
        }
    }
    black_box(sums);
}

/// Matrices of small scales and bytes of no meaning, together as large as the working set.
fn matrices(ttype: TensorType, (rows, cols): (usize, usize)) -> Vec<Matrix> {
    let bytes = rows * ttype.row_bytes(cols).expect("whole blocks");
    let mut state = 1u64;
    let random: Vec<u8> = (0..bytes)
        .map(|_| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            // Without the two highest bits of an exponent no half-precision number is large.
            (state >> 56) as u8 & 0x3f
        })
        .collect();
    let count = WORKING_SET.div_ceil(bytes);
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
    let data = vec![1u8; WORKING_SET];
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
            let all = matrices(ttype, shape);
            let (mut one, mut of_read, mut eight, mut many, mut of_peak) =
                (vec![], vec![], vec![], vec![], vec![]);
            for _ in 0..rounds {
                let read = bench.read(&data);
                let seconds = bench.product(&all, 1, all.len());
                let bytes = all[0].bytes() as f64 / seconds;
                eight.push(bench.product(&all, 8, all.len()) / seconds);
                let macs = (TOKENS * rows * cols) as f64 / bench.product(&all[..1], TOKENS, 1);
                one.push(bytes);
                of_read.push(bytes / read);
                many.push(macs);
                reads.push(read);
                if let Some(peak) = bench.peak() {
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
