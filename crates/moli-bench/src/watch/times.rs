//! Who used the processors: this process, others, the hypervisor.

use std::path::Path;

use crate::files::text;

/// Ticks of a second in `/proc`: Linux's `USER_HZ`, the same on all processors that Moli knows.
pub(super) const TICKS: f64 = 100.0;
/// Ticks below which shares say nothing: one tick more or less would change them too much.
const FEW: f64 = 40.0;

/// What this process has used so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Usage {
    /// Of all its threads, with what the kernel did for them.
    pub(super) ticks: u64,
    pub(super) major_faults: u64,
    pub(super) minor_faults: u64,
}

impl Usage {
    pub(super) fn read(root: &Path) -> Option<Self> {
        let stat = text(&root.join("proc/self/stat"))?;
        // The second field is the program's name in parentheses, whatever that contains; the third comes behind.
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
        Some(Self {
            minor_faults: field(10)?,
            major_faults: field(12)?,
            ticks: field(14)?.checked_add(field(15)?)?,
        })
    }
}

/// What some processors have done so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Busy {
    /// Ticks for any process.
    ticks: u64,
    /// Ticks that the hypervisor gave to others.
    stolen: u64,
    /// The processors.
    cpus: usize,
}

impl Busy {
    /// Of these processors.
    pub(super) fn read(root: &Path, cpus: &[u32]) -> Option<Self> {
        let stat = text(&root.join("proc/stat"))?;
        let mut busy = Self { ticks: 0, stolen: 0, cpus: 0 };
        for line in stat.lines() {
            let mut fields = line.strip_prefix("cpu").unwrap_or_default().split(' ');
            if !fields.next().and_then(|cpu| cpu.parse().ok()).is_some_and(|cpu| cpus.contains(&cpu)) {
                continue;
            }
            let ticks: Vec<u64> = fields.map_while(|ticks| ticks.parse().ok()).collect();
            let [user, nice, system, _idle, _iowait, irq, softirq, stolen, ..] = ticks.as_slice() else {
                return None;
            };
            for part in [user, nice, system, irq, softirq] {
                busy.ticks = busy.ticks.checked_add(*part)?;
            }
            busy.stolen = busy.stolen.checked_add(*stolen)?;
            busy.cpus += 1;
        }
        (busy.cpus > 0).then_some(busy)
    }

    /// The shares of the processors' time since `before` that others had, and that was stolen, when this process has used
    /// so many ticks; `None` where too little time has passed or a number has fallen.
    pub(super) fn shares(self, before: Self, own_ticks: u64, seconds: f64) -> Option<[f64; 2]> {
        let all = seconds * self.cpus as f64 * TICKS;
        if all < FEW || self.cpus != before.cpus {
            return None;
        }
        let others = self.ticks.checked_sub(before.ticks)?.saturating_sub(own_ticks);
        let stolen = self.stolen.checked_sub(before.stolen)?;
        Some([others, stolen].map(|ticks| (ticks as f64 / all).min(1.0)))
    }
}
