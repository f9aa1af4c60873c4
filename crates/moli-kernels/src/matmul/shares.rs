//! Which thread computes what.
//!
//! Units of work are dealt out in contiguous shares, one for each thread, so that a thread reads a matrix front to back
//! and what it reads next is what comes next in the file. A thread whose share is used up takes from the others: one that lost its core to
//! another process holds up the few units that it has taken, nothing else.

use std::sync::atomic::{AtomicUsize, Ordering};

/// The shares of one parallel run.
#[derive(Debug)]
pub(super) struct Shares(Vec<Share>);

/// A cache line of its own for each: its thread writes it often.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Share {
    /// The first unit that nobody has taken.
    next: AtomicUsize,
    /// Written between runs only, as `grab`.
    end: AtomicUsize,
    /// Units that are taken at a time.
    grab: AtomicUsize,
}

impl Shares {
    /// Bytes of the shares of so many threads.
    pub(super) fn bytes(threads: usize) -> u64 {
        (size_of::<Share>() as u64).saturating_mul(threads as u64)
    }

    pub(super) fn new(threads: usize) -> Self {
        Self((0..threads).map(|_| Share::default()).collect())
    }

    /// Deals `units` out to `threads`. No run may be in progress: the start of the next one publishes this.
    pub(super) fn deal(&self, units: usize, threads: usize, grab: usize) {
        let threads = threads.clamp(1, self.0.len().max(1));
        for (i, share) in self.0.iter().enumerate() {
            let bound = |i: usize| units * i.min(threads) / threads;
            share.next.store(bound(i), Ordering::Relaxed);
            share.end.store(bound(i + 1), Ordering::Relaxed);
            share.grab.store(grab.max(1), Ordering::Relaxed);
        }
    }

    /// Calls `f` for units of share number `first`, then of the others, until all have been taken.
    pub(super) fn work(&self, first: usize, mut f: impl FnMut(usize)) {
        let (before, after) = self.0.split_at(first.min(self.0.len()));
        for share in after.iter().chain(before) {
            let end = share.end.load(Ordering::Relaxed);
            let grab = share.grab.load(Ordering::Relaxed);
            loop {
                let start = share.next.fetch_add(grab, Ordering::Relaxed);
                if start >= end {
                    break;
                }
                (start..(start + grab).min(end)).for_each(&mut f);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_unit_is_given_out_once_whoever_comes() {
        for (units, threads, grab) in [(0, 1, 1), (1, 3, 2), (7, 2, 3), (100, 3, 1), (5, 4, 9)] {
            for first in [0, threads - 1] {
                let shares = Shares::new(threads);
                shares.deal(units, threads, grab);
                let mut seen = Vec::new();
                shares.work(first, |unit| seen.push(unit));
                // A second thread finds nothing.
                shares.work(0, |_| panic!("given out twice"));
                seen.sort_unstable();
                assert_eq!(seen, (0..units).collect::<Vec<_>>());
            }
        }
    }
}
