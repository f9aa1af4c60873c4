//! The bench's claim as a test: decode at least as fast as candle's own model on the same file, prefill at least twice.
//!
//! The margins are wide (see `docs/measured.md`), so a noisy machine does not decide it.

use std::path::Path;

use crate::Outcome;
use crate::common::Error;
use crate::common::peer::{Candle, Moli, Peer};
use crate::common::workload::Workload;

const PROMPT: usize = 64;
const STEPS: usize = 8;
const ROUNDS: usize = 3;

/// The least seconds of a prefill and of [`STEPS`] decode steps behind it, round by round in turn.
fn least_times(peers: &mut [&mut dyn Peer; 2]) -> Result<[[f64; 2]; 2], Error> {
    let workloads = [Workload::Prefill { tokens: PROMPT }, Workload::Decode { steps: STEPS, depth: PROMPT }];
    let mut least = [[f64::INFINITY; 2]; 2];
    for _ in 0..ROUNDS {
        for (peer, least) in peers.iter_mut().zip(&mut least) {
            for (workload, least) in workloads.into_iter().zip(least) {
                *least = peer.run(workload)?.min(*least);
            }
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
    println!("  prefill {PROMPT}, decode {STEPS}: {moli:.4?} s, candle {candle:.4?}");
    if moli[0] * 2.0 > candle[0] || moli[1] > candle[1] {
        return Err(format!("prefill and decode took {moli:?} s, candle {candle:?}"));
    }
    Ok(())
}
