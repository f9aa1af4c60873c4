//! The bench's claim as a test: decode at least as fast as candle's own model on the same file, prefill at least twice.
//!
//! The margins are wide (see `docs/measured.md`), so a noisy machine does not decide it.

use std::path::Path;
use std::time::{Duration, Instant};

use crate::Outcome;
use crate::common::Error;
use crate::common::peer::{Candle, Moli, Peer};

const PROMPT: usize = 64;
const STEPS: usize = 8;
const ROUNDS: usize = 3;

/// The least time of a prefill and of [`STEPS`] decode steps, round by round in turn.
fn least_times(peers: &mut [&mut dyn Peer; 2]) -> Result<[[Duration; 2]; 2], Error> {
    let ids: Vec<u32> = (0..PROMPT as u32).map(|i| 1000 + i * 37 % 20000).collect();
    let mut least = [[Duration::MAX; 2]; 2];
    for _ in 0..ROUNDS {
        for (peer, [prefill, decode]) in peers.iter_mut().zip(&mut least) {
            let start = Instant::now();
            peer.prefill(&ids)?;
            *prefill = start.elapsed().min(*prefill);
            let start = Instant::now();
            for step in 0..STEPS {
                peer.step(&[1000], PROMPT + step)?;
            }
            *decode = start.elapsed().min(*decode);
        }
    }
    Ok(least)
}

pub(crate) fn faster_than_candle(path: &Path) -> Outcome {
    let run = || {
        let (mut moli, mut candle) =
            (Moli::load(path, moli_kernels::default_threads(), 4096)?, Candle::load(path)?);
        least_times(&mut [&mut moli, &mut candle])
    };
    let [moli, candle] = run().map_err(|error| error.to_string())?;
    println!("  prefill {PROMPT}, decode {STEPS}: moli {moli:?}, candle {candle:?}");
    if moli[0] * 2 > candle[0] || moli[1] > candle[1] {
        return Err(format!("prefill and decode took moli {moli:?}, candle {candle:?}"));
    }
    Ok(())
}
