//! A thread that reports steps that take too long: a page that does not come from disk, a device that hangs.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::thread;
use std::time::{Duration, Instant};

use crate::Scheduling;
use crate::worker::Shared;

/// A step that has taken longer than [`Scheduling::stall_after`] and still runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stall {
    /// How long it has run.
    pub running_for: Duration,
}

/// When the step that is computed began.
#[derive(Debug, Default)]
pub(crate) struct Heartbeat {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// `None` between steps.
    since: Option<Instant>,
    /// Whether this step has been reported.
    reported: bool,
    closed: bool,
}

impl Heartbeat {
    pub(crate) fn begin(&self) {
        let mut state = self.lock();
        state.since = Some(Instant::now());
        state.reported = false;
    }

    pub(crate) fn rest(&self) {
        self.lock().since = None;
    }

    /// Ends the watchdog.
    pub(crate) fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a step that has run longer than `limit` and has not been reported; `None`: the engine is gone.
    fn stalled(&self, limit: Duration) -> Option<Stall> {
        let mut state = self.lock();
        loop {
            if state.closed {
                return None;
            }
            let running_for = state.since.map_or(Duration::ZERO, |since| since.elapsed());
            if running_for > limit && !state.reported {
                state.reported = true;
                return Some(Stall { running_for });
            }
            // Often enough that a report is late by a quarter of the limit; a step need not wake it.
            let pause = (limit / 4).clamp(Duration::from_millis(1), Duration::from_secs(5));
            state = self.changed.wait_timeout(state, pause).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// Watches an engine's steps on a thread of its own.
pub(crate) fn watch(shared: &Arc<Shared>, scheduling: &Scheduling) {
    let (limit, on_stall) = (scheduling.stall_after, scheduling.on_stall.clone());
    let weak: Weak<Shared> = Arc::downgrade(shared);
    let watch = move || {
        while let Some(shared) = weak.upgrade() {
            let Some(stall) = shared.heartbeat.stalled(limit) else { return };
            shared.count(|counters| counters.stalls += 1);
            if let Some(report) = &on_stall {
                report(stall);
            }
        }
    };
    // Without the thread stalls are not reported, nothing else.
    let _ = thread::Builder::new().name("moli-watchdog".to_owned()).spawn(watch);
}
