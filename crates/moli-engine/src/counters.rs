//! What an engine has done and is doing, as plain data.

use std::time::Duration;

/// Upper bounds of times, in seconds: from a millisecond to five minutes.
const SECONDS: [f64; 17] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 60.0, 120.0, 300.0];
/// Upper bounds of the rows of a step.
const ROWS: [f64; 11] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0];

/// How often a value fell between which bounds.
#[derive(Debug, Clone, PartialEq)]
pub struct Histogram {
    bounds: &'static [f64],
    /// One more than there are bounds.
    counts: Vec<u64>,
    sum: f64,
}

impl Histogram {
    fn new(bounds: &'static [f64]) -> Self {
        Self { bounds, counts: vec![0; bounds.len() + 1], sum: 0.0 }
    }

    pub(crate) fn record(&mut self, value: f64) {
        let bin = self.bounds.partition_point(|&bound| bound < value);
        if let Some(count) = self.counts.get_mut(bin) {
            *count += 1;
        }
        self.sum += value;
    }

    /// Upper bounds, each with the number of values up to it that are above the bound before; the last bound is infinite.
    pub fn bins(&self) -> impl Iterator<Item = (f64, u64)> + '_ {
        self.bounds.iter().copied().chain([f64::INFINITY]).zip(self.counts.iter().copied())
    }

    /// Values in all.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// Their sum.
    pub fn sum(&self) -> f64 {
        self.sum
    }

    /// Their mean; 0 where there are none.
    pub fn mean(&self) -> f64 {
        if self.count() == 0 { 0.0 } else { self.sum / self.count() as f64 }
    }
}

/// What an engine has done since it was loaded, and what it is doing.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Counters {
    /// Answers that were asked for and taken, each choice counted.
    pub submitted: u64,
    /// Requests that were refused because too many waited.
    pub rejected_queue_full: u64,
    /// Requests that were refused because something in them was wrong.
    pub rejected_invalid: u64,
    /// Answers that ended themselves: by the model, a stop string, a grammar, or the tokens allowed.
    pub completed: u64,
    /// Answers that were cancelled.
    pub cancelled: u64,
    /// Answers whose deadline came first.
    pub expired: u64,
    /// Answers that ended with an error.
    pub failed: u64,
    /// Answers that wait now.
    pub waiting: usize,
    /// Answers that are computed now.
    pub running: usize,
    /// Forward passes.
    pub steps: u64,
    /// Rows of each step.
    pub step_rows: Histogram,
    /// Seconds that each step took.
    pub step_seconds: Histogram,
    /// Seconds from a request to its first token.
    pub ttft_seconds: Histogram,
    /// Seconds from one token of an answer to the next.
    pub inter_token_seconds: Histogram,
    /// Tokens of prompts, the cached ones included.
    pub prompt_tokens: u64,
    /// Tokens of prompts that the prefix cache had.
    pub cached_tokens: u64,
    /// Tokens that were chosen.
    pub completion_tokens: u64,
    /// KV pages in all, and those that nobody holds.
    pub pages: usize,
    /// KV pages that nobody holds.
    pub pages_free: usize,
    /// KV pages that the prefix cache holds.
    pub pages_cached: usize,
    /// Bytes of a KV page.
    pub page_bytes: usize,
    /// Answers that had to wait again because pages ran out.
    pub preempted: u64,
    /// Tokens that were guessed.
    pub drafted: u64,
    /// Guesses that the model would have chosen too.
    pub accepted: u64,
    /// KV pages of the draft model in all; 0 where there is none, or none any more.
    pub draft_pages: usize,
    /// KV pages of the draft model that no answer holds.
    pub draft_pages_free: usize,
    /// Errors of the draft model: after one it is not asked again.
    pub draft_errors: u64,
    /// Steps that took longer than [`Scheduling::stall_after`](crate::Scheduling::stall_after).
    pub stalls: u64,
}

impl Counters {
    pub(crate) fn new(pages: usize, page_bytes: usize) -> Self {
        Self {
            submitted: 0,
            rejected_queue_full: 0,
            rejected_invalid: 0,
            completed: 0,
            cancelled: 0,
            expired: 0,
            failed: 0,
            waiting: 0,
            running: 0,
            steps: 0,
            step_rows: Histogram::new(&ROWS),
            step_seconds: Histogram::new(&SECONDS),
            ttft_seconds: Histogram::new(&SECONDS),
            inter_token_seconds: Histogram::new(&SECONDS),
            prompt_tokens: 0,
            cached_tokens: 0,
            completion_tokens: 0,
            pages,
            pages_free: pages,
            pages_cached: 0,
            page_bytes,
            preempted: 0,
            drafted: 0,
            accepted: 0,
            draft_pages: 0,
            draft_pages_free: 0,
            draft_errors: 0,
            stalls: 0,
        }
    }

    pub(crate) fn step(&mut self, rows: usize, took: Duration) {
        self.steps += 1;
        self.step_rows.record(rows as f64);
        self.step_seconds.record(took.as_secs_f64());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_fall_between_their_bounds() {
        let mut histogram = Histogram::new(&ROWS);
        assert_eq!(histogram.mean(), 0.0);
        for value in [0.5, 1.0, 3.0, 9999.0] {
            histogram.record(value);
        }
        let bins: Vec<(f64, u64)> = histogram.bins().filter(|&(_, count)| count > 0).collect();
        assert_eq!(bins, [(1.0, 2), (4.0, 1), (f64::INFINITY, 1)]);
        assert_eq!((histogram.count(), histogram.sum()), (4, 10003.5));
    }
}
