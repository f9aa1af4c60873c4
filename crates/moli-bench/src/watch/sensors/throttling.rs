//! Throttling: what the processor, the kernel and the control groups count of it.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use moli_engine::ControlGroup;

use super::{Found, lost};
use crate::files::{name, number, numbered, text};
use crate::watch::usable;

/// The bits by which a Raspberry Pi says that its clock is capped, throttled or limited by its temperature now.
const CAPPED: u64 = 0b1110;

/// Counters that rise, and levels that are above 0 while the processor is held back.
pub(in crate::watch) struct Throttling {
    parts: Vec<Part>,
    source: String,
}

struct Part {
    path: PathBuf,
    kind: Kind,
    last: u64,
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    /// Of a core or a package, since the start of the machine.
    Processor,
    /// `nr_throttled` of a control group's `cpu.stat`.
    Quota,
    /// How far the kernel has slowed the processors down.
    Cooling,
    /// A Raspberry Pi's bits, in hexadecimal.
    Firmware,
}

impl Throttling {
    pub(super) fn find(root: &Path, cpus: &[u32]) -> Found<Self> {
        let mut found: Vec<_> =
            counters(root, cpus).into_iter().map(|path| (Kind::Processor, path)).collect();
        let thermal = root.join("sys/class/thermal");
        let slows = |device: &str| {
            name(&thermal.join(device).join("type")).is_some_and(|kind| kind.contains("cpufreq"))
        };
        let devices = numbered(&thermal, "cooling_device").into_iter().filter(|(_, device)| slows(device));
        found.extend(devices.map(|(_, device)| (Kind::Cooling, thermal.join(device).join("cur_state"))));
        found.push((Kind::Firmware, root.join("sys/devices/platform/soc/soc:firmware/get_throttled")));
        let groups = ControlGroup::all(root, "cpu").into_iter();
        found.extend(groups.map(|group| (Kind::Quota, group.folder.join("cpu.stat"))));

        let part = |(kind, path): (Kind, PathBuf)| {
            let last = kind.read(&path)?;
            // One that is above 0 now counts once.
            Some(Part { last: if kind.is_level() { 0 } else { last }, kind, path })
        };
        let parts: Vec<_> = found.into_iter().filter_map(part).collect();
        let kinds = [Kind::Processor, Kind::Cooling, Kind::Firmware, Kind::Quota];
        let named = kinds.iter().filter(|kind| parts.iter().any(|part| part.kind == **kind));
        let source = named.map(|kind| kind.source()).collect::<Vec<_>>().join(", ");
        if parts.is_empty() {
            return Err("neither the processor nor a control group counts it".to_owned());
        }
        Ok(Self { parts, source })
    }

    pub(super) fn source(&self) -> &str {
        &self.source
    }

    /// How often since the last call.
    pub(in crate::watch) fn read(&mut self) -> Found<u64> {
        let mut times: u64 = 0;
        for part in &mut self.parts {
            let now = part.kind.read(&part.path);
            let more = now.and_then(|now| match part.kind.is_level() {
                true => Some(u64::from(part.last == 0 && now > 0)),
                // A counter that falls is none.
                false => now.checked_sub(part.last),
            });
            let Some(more) = more else { return Err(lost(&part.path, now)) };
            times = times.saturating_add(more);
            part.last = now.unwrap_or_default();
        }
        Ok(times)
    }
}

impl Kind {
    fn is_level(self) -> bool {
        matches!(self, Self::Cooling | Self::Firmware)
    }

    fn source(self) -> &'static str {
        match self {
            Self::Processor => "thermal_throttle of the processors",
            Self::Cooling => "cooling devices",
            Self::Firmware => "get_throttled of the firmware",
            Self::Quota => "cpu.stat of the control group",
        }
    }

    fn read(self, path: &Path) -> Option<u64> {
        match self {
            Self::Processor | Self::Cooling => number(path),
            Self::Firmware => Some(u64::from_str_radix(text(path)?.trim(), 16).ok()? & CAPPED),
            Self::Quota => {
                let stat = text(path)?;
                stat.lines().find_map(|line| line.strip_prefix("nr_throttled "))?.trim().parse().ok()
            }
        }
    }
}

/// How often the processors that this process may use slowed themselves down since the machine was started, as `/sys`
/// under `root` says; `None`: not counted.
#[must_use]
pub fn throttled_since_boot(root: &Path) -> Option<u64> {
    let counts: Vec<u64> = counters(root, &usable(root)).iter().filter_map(|path| number(path)).collect();
    (!counts.is_empty()).then(|| counts.iter().fold(0, |sum: u64, &count| sum.saturating_add(count)))
}

/// The counters of the cores and packages that these processors belong to, each once.
fn counters(root: &Path, cpus: &[u32]) -> Vec<PathBuf> {
    let mut seen = BTreeSet::new();
    let mut counters = Vec::new();
    for cpu in cpus {
        let folder = root.join(format!("sys/devices/system/cpu/cpu{cpu}"));
        let kinds = [("core", "thread_siblings_list"), ("package", "package_cpus_list")];
        for (part, members) in kinds {
            let path = folder.join(format!("thermal_throttle/{part}_throttle_count"));
            let members = text(&folder.join("topology").join(members)).unwrap_or_else(|| cpu.to_string());
            if fs::exists(&path).unwrap_or(false) && seen.insert((part, members)) {
                counters.push(path);
            }
        }
    }
    counters
}
