//! How much memory this process may use, as Linux says it. On other systems no limit is known.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use moli_model::DeviceMemory;

use crate::cgroup::ControlGroup;
use crate::{EngineError, MemoryBudget, units};

/// Limits from here on are the kernel's way to write that there is none.
const UNLIMITED: u64 = 1 << 60;
/// What is left to the rest of the machine: this part of all its memory, at most [`MOST_RESERVE`].
const RESERVE: u64 = 16;
const MOST_RESERVE: u64 = 512 << 20;

/// A limit, and who sets it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limit {
    /// Bytes that the process may use.
    pub bytes: u64,
    /// Where that comes from.
    pub source: LimitSource,
}

/// Who sets a limit.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum LimitSource {
    /// The budget that was asked for.
    Budget,
    /// A control group.
    Cgroup {
        /// The file that says so.
        path: PathBuf,
    },
    /// The memory that the machine has available, less a reserve for all else that runs there.
    Machine,
    /// The free memory of a GPU, less a reserve for the driver's own needs.
    Device {
        /// `cuda:0`.
        name: String,
    },
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = units::megabytes(self.bytes);
        match &self.source {
            LimitSource::Budget => write!(f, "the memory budget of {bytes}"),
            LimitSource::Cgroup { path } => write!(f, "the cgroup's limit of {bytes} ({})", path.display()),
            LimitSource::Machine => write!(f, "the {bytes} that this machine has to spare"),
            LimitSource::Device { name } => write!(f, "the {bytes} that {name} has to spare"),
        }
    }
}

/// The memory that there is, as the system says it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SystemMemory {
    /// The least of the limits of the process's control groups.
    pub cgroup: Option<Limit>,
    /// All of the machine's memory, bytes.
    pub machine: Option<u64>,
    /// What of it could be had without swapping, bytes.
    pub available: Option<u64>,
    /// What of it is in the swap space, bytes.
    pub swapped: Option<u64>,
}

impl SystemMemory {
    /// Reads `/proc` and `/sys` under `root`. What is missing or makes no sense is no limit.
    #[must_use]
    pub fn read(root: &Path) -> Self {
        let limits = ControlGroup::all(root, "memory").into_iter().flat_map(|group| {
            let files: &[&str] =
                if group.version2 { &["memory.max", "memory.high"] } else { &["memory.limit_in_bytes"] };
            files.iter().filter_map(move |file| limit(group.folder.join(file)))
        });
        let memory = fs::read_to_string(root.join("proc/meminfo")).unwrap_or_default();
        let swap = (kilobytes(&memory, "SwapTotal"), kilobytes(&memory, "SwapFree"));
        Self {
            cgroup: limits.min_by_key(|limit| limit.bytes),
            machine: kilobytes(&memory, "MemTotal"),
            available: kilobytes(&memory, "MemAvailable"),
            swapped: swap.0.zip(swap.1).and_then(|(total, free)| total.checked_sub(free)),
        }
    }

    /// The memory that there is for this process, of which a budget may be a share.
    pub(super) fn all(&self) -> Option<u64> {
        self.cgroup.iter().map(|limit| limit.bytes).chain(self.machine).min()
    }

    /// The limit that holds with this budget.
    pub(super) fn within(&self, budget: Option<MemoryBudget>) -> Result<Option<Limit>, EngineError> {
        let bytes = match budget {
            None => None,
            Some(MemoryBudget::Bytes(bytes)) => Some(bytes),
            Some(MemoryBudget::Share(share)) => {
                let all = self.all().ok_or_else(|| {
                    let size = "a size: how much memory this system has is not known";
                    EngineError::parameter("budget", MemoryBudget::Share(share), size)
                })?;
                Some((all as f64 * share) as u64)
            }
        };
        Ok(self.limit(bytes))
    }

    /// The limit on a GPU: what it has to spare or the budget, of which a share is one of what is free.
    pub(super) fn of_device(device: &DeviceMemory, budget: Option<MemoryBudget>) -> Limit {
        let spare = device.free.saturating_sub((device.free / RESERVE).min(MOST_RESERVE));
        let free = Limit { bytes: spare, source: LimitSource::Device { name: device.name.clone() } };
        let asked = match budget {
            None => None,
            Some(MemoryBudget::Bytes(bytes)) => Some(bytes),
            Some(MemoryBudget::Share(share)) => Some((device.free as f64 * share) as u64),
        };
        let asked = asked.map(|bytes| Limit { bytes, source: LimitSource::Budget });
        asked.filter(|asked| asked.bytes < free.bytes).unwrap_or(free)
    }

    /// The limit that holds: the cgroup's or the budget, whichever is less; without a budget, what the machine has
    /// to spare counts too.
    pub(super) fn limit(&self, budget: Option<u64>) -> Option<Limit> {
        let asked = match (budget, self.machine, self.available) {
            (Some(bytes), ..) => Some(Limit { bytes, source: LimitSource::Budget }),
            (None, Some(machine), Some(available)) => {
                let bytes = available.saturating_sub((machine / RESERVE).min(MOST_RESERVE));
                Some(Limit { bytes, source: LimitSource::Machine })
            }
            _ => None,
        };
        asked.into_iter().chain(self.cgroup.clone()).min_by_key(|limit| limit.bytes)
    }
}

/// The bytes that a line such as `MemTotal:  5 kB` of a file in `/proc` says.
pub(super) fn kilobytes(text: &str, name: &str) -> Option<u64> {
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    value.trim().strip_suffix("kB")?.trim_end().parse::<u64>().ok()?.checked_mul(1024)
}

/// The limit that a file of a control group says.
fn limit(path: PathBuf) -> Option<Limit> {
    let bytes = fs::read_to_string(&path).ok()?.trim().parse().ok()?;
    (bytes < UNLIMITED).then_some(Limit { bytes, source: LimitSource::Cgroup { path } })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A machine as files: each is a path under the root and its content.
    struct Machine(tempfile::TempDir);

    impl Machine {
        fn new(groups: &str) -> Self {
            Self(tempfile::tempdir().unwrap()).file("proc/self/cgroup", groups)
        }

        fn file(self, path: &str, content: &str) -> Self {
            let path = self.0.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
            self
        }

        fn memory(self, total_kb: u64, available_kb: u64) -> Self {
            self.file(
                "proc/meminfo",
                &format!("MemTotal:       {total_kb} kB\nMemFree: 1 kB\nMemAvailable:\t{available_kb} kB\n"),
            )
        }

        /// The bytes of the cgroup's limit, and the file under `sys/fs/cgroup`.
        fn cgroup(&self) -> Option<(u64, String)> {
            let limit = SystemMemory::read(self.0.path()).cgroup?;
            let LimitSource::Cgroup { path } = limit.source else { unreachable!() };
            let path = path.strip_prefix(self.0.path().join("sys/fs/cgroup")).unwrap();
            Some((limit.bytes, path.to_str().unwrap().to_owned()))
        }
    }

    #[test]
    fn the_least_of_all_groups_around_the_process_holds() {
        let machine = || Machine::new("0::/system.slice/moli.service\n");
        assert_eq!(machine().cgroup(), None);
        let file = "sys/fs/cgroup/system.slice/moli.service/memory.max";
        assert_eq!(machine().file(file, "max\n").cgroup(), None);
        let own = machine().file(file, "900000000\n");
        assert_eq!(own.cgroup(), Some((900_000_000, "system.slice/moli.service/memory.max".to_owned())));
        let around = own.file("sys/fs/cgroup/system.slice/memory.max", "700000000\n");
        assert_eq!(around.cgroup(), Some((700_000_000, "system.slice/memory.max".to_owned())));
        let high = around.file("sys/fs/cgroup/system.slice/moli.service/memory.high", "500000000\n");
        assert_eq!(high.cgroup(), Some((500_000_000, "system.slice/moli.service/memory.high".to_owned())));
    }

    #[test]
    fn a_container_sees_its_own_group_as_the_root() {
        for path in ["/", "/docker/0123abcd", "/../other"] {
            let machine = Machine::new(&format!("0::{path}\n")).file("sys/fs/cgroup/memory.max", "1000000");
            assert_eq!(machine.cgroup(), Some((1_000_000, "memory.max".to_owned())), "{path}");
        }
    }

    #[test]
    fn groups_of_version_1_and_of_both() {
        let groups = "12:cpu,cpuacct:/a\n4:memory:/box/inner\n0::/init.scope\n";
        let machine = || {
            Machine::new(groups)
                .file("sys/fs/cgroup/memory/box/inner/memory.limit_in_bytes", "9223372036854771712\n")
                .file("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n")
        };
        assert_eq!(machine().cgroup(), None);
        let limited = machine().file("sys/fs/cgroup/memory/box/memory.limit_in_bytes", "123456789\n");
        assert_eq!(limited.cgroup(), Some((123_456_789, "memory/box/memory.limit_in_bytes".to_owned())));
        let both = limited.file("sys/fs/cgroup/unified/init.scope/memory.max", "1000\n");
        assert_eq!(both.cgroup(), Some((1000, "unified/init.scope/memory.max".to_owned())));
    }

    #[test]
    fn what_is_missing_or_garbage_is_no_limit() {
        let empty = tempfile::tempdir().unwrap();
        assert_eq!(SystemMemory::read(empty.path()), SystemMemory::default());
        assert_eq!(SystemMemory::default().limit(None), None);
        for groups in ["", "nonsense", "0", "0:", "0::", ":::", "4:memory", "\u{fffd}:\u{fffd}"] {
            assert_eq!(Machine::new(groups).cgroup(), None, "{groups}");
        }
        for limit in ["", "-1", "much", "99999999999999999999999", "1e9"] {
            let machine = Machine::new("0::/\n").file("sys/fs/cgroup/memory.max", limit);
            assert_eq!(machine.cgroup(), None, "{limit}");
        }
        let machine = Machine::new("0::/\n").file("proc/meminfo", "MemTotal: many kB\nMemAvailable: 5 MB\n");
        assert_eq!(SystemMemory::read(machine.0.path()), SystemMemory::default());
    }

    #[test]
    fn the_smallest_limit_holds_and_a_budget_stands_for_the_machine() {
        let machine = Machine::new("0::/\n").memory(1_600_000, 1_000_000);
        let limits = SystemMemory::read(machine.0.path());
        assert_eq!(limits.all(), Some(1_600_000 * 1024));
        // A sixteenth stays for the others.
        let spare = Limit { bytes: 900_000 * 1024, source: LimitSource::Machine };
        assert_eq!(limits.limit(None), Some(spare));
        let budget = |bytes| Some(Limit { bytes, source: LimitSource::Budget });
        assert_eq!(limits.limit(Some(1 << 40)), budget(1 << 40));

        let limits = SystemMemory::read(machine.file("sys/fs/cgroup/memory.max", "800000000").0.path());
        assert_eq!(limits.all(), Some(800_000_000));
        assert_eq!(limits.limit(Some(1 << 40)), limits.cgroup);
        assert_eq!(limits.limit(None), limits.cgroup);
        assert_eq!(limits.limit(Some(5)), budget(5));
    }

    #[test]
    fn what_is_swapped_is_the_swap_space_less_what_is_free() {
        let swapped = |text| {
            let machine = Machine::new("").file("proc/meminfo", text);
            SystemMemory::read(machine.0.path()).swapped
        };
        assert_eq!(swapped("SwapTotal: 100 kB\nSwapFree: 60 kB\n"), Some(40 * 1024));
        assert_eq!(swapped("SwapTotal: 0 kB\nSwapFree: 0 kB\n"), Some(0));
        assert_eq!(swapped("SwapTotal: 1 kB\nSwapFree: 2 kB\n"), None);
        assert_eq!(swapped("SwapTotal: 1 kB\n"), None);
    }

    #[test]
    fn nothing_to_spare_is_nothing() {
        let machine = Machine::new("").memory(1_600_000, 1000);
        assert_eq!(SystemMemory::read(machine.0.path()).limit(None).unwrap().bytes, 0);
    }
}
