//! How the machine is while something is measured: frequencies, temperatures, energy, throttling, and who else uses it.
//!
//! A thread looks at the sensors some times per second. A sensor that fails meanwhile gives nothing from then on, and no part
//! of a sum: an energy that is not whole is not given.

mod sensors;
#[cfg(test)]
mod tests;
mod times;
mod trace;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use moli_kernels::{allowed_cpus, parse_cpu_list};

use crate::files::text;
use crate::report::{self, Conditions};
pub use sensors::throttled_since_boot;
use trace::Trace;

/// Between two looks at the sensors.
const PERIOD: Duration = Duration::from_millis(125);
/// Between two looks, so many times what the last one took: where sensors are slow, they are read less often.
const LEAST_REST: u32 = 200;

/// What the sensors said in a while.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Reading {
    /// Median of the processors' frequencies, Hz.
    pub frequency: Option<f64>,
    /// The highest temperature, °C.
    pub temperature: Option<f64>,
    /// Mean power, watts.
    pub watts: Option<f64>,
}

/// What computes, and is watched with the machine around it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Computes {
    /// The processors that the calling thread may run on.
    #[default]
    Processor,
    /// A GPU, by its place on the PCI bus as the CUDA driver spells it.
    #[cfg(feature = "cuda")]
    Gpu {
        /// `domain:bus:device.function`, hexadecimal.
        pci_bus_id: String,
    },
}

/// Watches the machine until it is [finished](Self::finish) or dropped.
pub struct Watch {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    state: Mutex<State>,
    /// Woken when `stop` is set.
    stopped: Condvar,
}

struct State {
    /// Taken by [`Watch::finish`].
    trace: Option<Trace>,
    stop: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Watch {
    /// Watches this machine, and on it the processors that the calling thread may run on.
    #[must_use]
    pub fn start(computes: &Computes) -> Self {
        Self::under(PathBuf::from("/"), computes)
    }

    /// Watches the machine that `/proc` and `/sys` under `root` describe.
    #[must_use]
    pub fn under(root: PathBuf, computes: &Computes) -> Self {
        let trace = Some(Trace::start(&root, usable(&root), computes, Instant::now()));
        let state = Mutex::new(State { trace, stop: false });
        let shared = Arc::new(Shared { state, stopped: Condvar::new() });
        let theirs = Arc::clone(&shared);
        // Without the thread there are two samples, at the beginning and at the end.
        let thread = thread::Builder::new().name("watch".to_owned()).spawn(move || sample(&theirs)).ok();
        Self { shared, thread }
    }

    /// What the sensors said since the last call, or since the beginning.
    pub fn moment(&mut self) -> Reading {
        let mut state = self.shared.lock();
        state.trace.as_mut().map_or_else(Reading::default, |trace| trace.moment(Instant::now()))
    }

    /// The conditions of the whole time, in which so many tokens were computed, and what a reader has to be told of them.
    #[must_use]
    pub fn finish(self, tokens: usize) -> (Conditions, Vec<String>) {
        let trace = self.shared.lock().trace.take();
        trace.map_or_else(Default::default, |trace| trace.finish(tokens, Instant::now()))
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.shared.lock().stop = true;
        self.shared.stopped.notify_all();
        if let Some(thread) = self.thread.take() {
            // A thread that panicked has nothing to say.
            let _ = thread.join();
        }
    }
}

/// Looks at the sensors until it is stopped.
fn sample(shared: &Shared) {
    let mut rest = PERIOD;
    let mut state = shared.lock();
    while !state.stop {
        state = shared.stopped.wait_timeout(state, rest).unwrap_or_else(PoisonError::into_inner).0;
        if let Some(trace) = state.trace.as_mut() {
            let start = Instant::now();
            trace.sample(start);
            rest = PERIOD.max(start.elapsed() * LEAST_REST);
        }
    }
}

/// Where each sensor of the machine under `root` is read, or why it isn't.
pub(crate) fn sensors(root: &Path, computes: &Computes) -> report::Sensors {
    sensors::Sensors::find(root, &usable(root), computes).describe()
}

/// The processors that this process may use; where the system doesn't say, all.
fn usable(root: &Path) -> Vec<u32> {
    let online = || parse_cpu_list(&text(&root.join("sys/devices/system/cpu/online"))?);
    allowed_cpus(root).or_else(online).unwrap_or_default()
}
