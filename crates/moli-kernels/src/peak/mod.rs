//! What a processor can do at most, measured: reading, and multiply-adds of 8-bit numbers and of f32 with the instructions
//! that the kernels use. Nothing real reaches them; a benchmark says how near it comes.
//!
//! - [`read`] is bound by memory, if the data is larger than the caches;
//! - [`int8`] and [`f32()`] are bound by the instruction alone: their operands stay in registers, in chains that don't wait for
//!   each other, and that the compiler is not to take for one (`black_box`).

#[cfg(target_arch = "aarch64")]
mod neon;
#[cfg(target_arch = "x86_64")]
mod x86;

use std::hint::black_box;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::{Isa, Kernels, Pool};

/// Rounds between two looks at the clock: some tens of microseconds.
const ROUNDS: usize = 10_000;
/// Tasks of a thread while it reads: one that is held up leaves the others its rest.
const TASKS: usize = 16;
/// Places that a task reads in turns.
const STREAMS: usize = 8;

/// A loop of multiply-adds on one thread.
struct Loop {
    /// Does [`ROUNDS`] rounds.
    run: fn(),
    /// Multiply-adds of a round.
    macs: usize,
}

/// 8-bit multiply-adds per second of all threads together, measured for about so long; `None`: there is no loop of them for
/// this instruction set.
#[must_use]
pub fn int8(kernels: &Kernels, pool: &Pool, time: Duration) -> Option<f64> {
    let work = match kernels.isa() {
        #[cfg(target_arch = "x86_64")]
        isa => x86::int8(isa),
        #[cfg(target_arch = "aarch64")]
        isa => neon::int8(isa),
        #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
        _ => None,
    };
    work.map(|work| rate(pool, &work, time))
}

/// f32 multiply-adds per second of all threads together, measured for about so long.
#[must_use]
pub fn f32(kernels: &Kernels, pool: &Pool, time: Duration) -> f64 {
    let work = match kernels.isa() {
        Isa::Scalar => None,
        #[cfg(target_arch = "x86_64")]
        isa => x86::f32(isa),
        #[cfg(target_arch = "aarch64")]
        isa => neon::f32(isa),
        #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
        _ => None,
    };
    rate(pool, &work.unwrap_or(SCALAR), time)
}

/// Bytes per second that all threads together read, in one pass. `data` is larger than the caches, or it is their speed.
#[must_use]
pub fn read(pool: &Pool, data: &[u8]) -> f64 {
    let tasks = pool.threads() * TASKS;
    let chunk = data.len().div_ceil(tasks).max(1);
    let start = Instant::now();
    pool.run(tasks, &|task, _| {
        if let Some(part) = data.chunks(chunk).nth(task) {
            black_box(sums(part));
        }
    });
    data.len() as f64 / start.elapsed().as_secs_f64()
}

/// Touches every word, in several streams at once: they keep more reads under way than one does, and neither wider registers
/// nor asking ahead adds to that.
fn sums(data: &[u8]) -> [u64; 8] {
    let mut sums = [0; 8];
    let mut add = |line: &[u8; 64]| {
        for (sum, word) in sums.iter_mut().zip(line.as_chunks::<8>().0) {
            *sum ^= u64::from_le_bytes(*word);
        }
    };
    let lines = data.as_chunks::<64>().0;
    let (streams, rest) = lines.split_at(lines.len() / STREAMS * STREAMS);
    let part = streams.len() / STREAMS;
    for line in 0..part {
        for stream in 0..STREAMS {
            add(&streams[stream * part + line]);
        }
    }
    rest.iter().for_each(add);
    sums
}

/// Multiply-adds per second of all threads together.
fn rate(pool: &Pool, work: &Loop, time: Duration) -> f64 {
    let total = Mutex::new(0.0);
    pool.on_each_thread(&|| {
        let start = Instant::now();
        let mut rounds = 0;
        let taken = loop {
            (work.run)();
            rounds += ROUNDS;
            let taken = start.elapsed();
            if taken >= time {
                break taken;
            }
        };
        *total.lock().unwrap_or_else(PoisonError::into_inner) +=
            (rounds * work.macs) as f64 / taken.as_secs_f64();
    });
    total.into_inner().unwrap_or_else(PoisonError::into_inner)
}

/// What the compiler makes of plain code.
const SCALAR: Loop = Loop { run: scalar, macs: CHAINS };
const CHAINS: usize = 48;

fn scalar() {
    let mut sums = black_box([1.0f32; CHAINS]);
    let (factor, term) = (black_box(0.5), black_box(0.25));
    for _ in 0..ROUNDS {
        for sum in &mut sums {
            *sum = *sum * factor + term;
        }
    }
    black_box(sums);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kernels() -> impl Iterator<Item = Kernels> {
        Isa::available().into_iter().map(|isa| Kernels::new(isa).unwrap())
    }

    #[test]
    fn every_instruction_set_has_a_peak() {
        let pool = Pool::new(2);
        for kernels in kernels() {
            let time = Duration::from_millis(2);
            let (int8, f32) = (int8(&kernels, &pool, time), f32(&kernels, &pool, time));
            // Any processor does a million; no two threads do 10^15.
            let possible = 1e6..1e15;
            assert!(possible.contains(&f32), "{}: {f32}", kernels.isa());
            assert_eq!(int8.is_none(), kernels.isa() == Isa::Scalar, "{}", kernels.isa());
            assert!(int8.is_none_or(|int8| possible.contains(&int8)), "{}: {int8:?}", kernels.isa());
        }
    }

    #[test]
    fn it_is_measured_for_about_as_long_as_was_asked_for() {
        let pool = Pool::new(1);
        for kernels in kernels() {
            let time = Duration::from_millis(20);
            let start = Instant::now();
            let _ = f32(&kernels, &pool, time);
            assert!(start.elapsed() >= time, "{}", kernels.isa());
        }
    }

    #[test]
    fn all_of_the_data_is_read() {
        // Whole lines, of which some are left when the streams end.
        let data: Vec<u8> = (0..1024u32 + 48).flat_map(|n| n.wrapping_mul(77_777).to_le_bytes()).collect();
        let expected = data.as_chunks::<8>().0.iter().fold(0, |sum, word| sum ^ u64::from_le_bytes(*word));
        assert_eq!(sums(&data).into_iter().fold(0, |sum, word| sum ^ word), expected);
        for (threads, bytes) in [(1, 0), (1, 1), (2, 31), (3, 100_000)] {
            let rate = read(&Pool::new(threads), &vec![1; bytes]);
            assert_eq!(rate > 0.0, bytes > 0, "{bytes} bytes: {rate}");
        }
    }
}
