//! What is timed, and who can be told to do it.

use std::fmt;
use std::str::FromStr;

use moli_bench::report::Test;

use super::Error;
use super::peer::Peer;

/// Steps of a batch, as its short name doesn't say them.
const BATCH_STEPS: usize = 32;

/// A measurement; llama.cpp's names, where it has one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Workload {
    /// `pp512`: reading a prompt.
    Prefill { tokens: usize },
    /// `tg64`, `tg64@4096`: reading one token after another, behind `depth` tokens whose reading isn't timed.
    Decode { steps: usize, depth: usize },
    /// `batch8`: reading one token of each sequence, 32 times.
    Batch { sequences: usize },
}

impl Workload {
    /// As `moli bench` has it.
    pub(crate) fn test(self) -> Test {
        match self {
            Self::Prefill { tokens } => Test::Prefill { tokens, depth: 0 },
            Self::Decode { steps, depth } => Test::Decode { tokens: steps, depth, batch: 1 },
            Self::Batch { sequences } => Test::Decode { tokens: BATCH_STEPS, depth: 0, batch: sequences },
        }
    }

    /// Tokens that are timed.
    pub(crate) fn tokens(self) -> usize {
        match self {
            Self::Prefill { tokens } => tokens,
            Self::Decode { steps, .. } => steps,
            Self::Batch { sequences } => sequences * BATCH_STEPS,
        }
    }

    /// What the caches must hold: sequences and the tokens of each.
    pub(crate) fn context(self) -> (usize, usize) {
        match self {
            Self::Prefill { tokens } => (1, tokens),
            Self::Decode { steps, depth } => (1, depth + steps),
            Self::Batch { sequences } => (sequences, BATCH_STEPS),
        }
    }
}

impl FromStr for Workload {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!("{text} is no workload; there are pp512, tg64, tg64@4096 and batch8, with any numbers")
        };
        let number = |text: &str| text.parse().ok().filter(|&number: &usize| number > 0).ok_or_else(wrong);
        if let Some(tokens) = text.strip_prefix("pp") {
            Ok(Self::Prefill { tokens: number(tokens)? })
        } else if let Some(steps) = text.strip_prefix("tg") {
            match steps.split_once('@') {
                Some((steps, depth)) => Ok(Self::Decode { steps: number(steps)?, depth: number(depth)? }),
                None => Ok(Self::Decode { steps: number(steps)?, depth: 0 }),
            }
        } else if let Some(sequences) = text.strip_prefix("batch") {
            Ok(Self::Batch { sequences: number(sequences)? })
        } else {
            Err(wrong())
        }
    }
}

impl fmt::Display for Workload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Prefill { tokens } => write!(f, "pp{tokens}"),
            Self::Decode { steps, depth: 0 } => write!(f, "tg{steps}"),
            Self::Decode { steps, depth } => write!(f, "tg{steps}@{depth}"),
            Self::Batch { sequences } => write!(f, "batch{sequences}"),
        }
    }
}

/// Somebody who runs workloads on one model.
pub(crate) trait Contender {
    /// How tables call it.
    fn name(&self) -> &str;
    /// Runs the workload from an empty cache and says how many seconds its timed part took.
    fn seconds(&mut self, workload: Workload) -> Result<f64, Error>;
}

/// A model in this process. What it has not done before, it does once unmeasured, as llama-bench does.
pub(crate) struct InProcess<P> {
    name: &'static str,
    peer: P,
    warm: Vec<Workload>,
}

impl<P: Peer> InProcess<P> {
    pub(crate) fn new(name: &'static str, peer: P) -> Self {
        Self { name, peer, warm: Vec::new() }
    }
}

impl<P: Peer> Contender for InProcess<P> {
    fn name(&self) -> &str {
        self.name
    }

    fn seconds(&mut self, workload: Workload) -> Result<f64, Error> {
        if !self.warm.contains(&workload) {
            self.peer.run(workload)?;
            self.warm.push(workload);
        }
        self.peer.run(workload)
    }
}
