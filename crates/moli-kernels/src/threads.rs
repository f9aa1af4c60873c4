//! How many threads are worth starting.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::thread;

/// The number of threads to use when nobody says: one for each core that this process may use, as far as the system tells.
///
/// - Its affinity mask and its cgroup's quota hold (whole cores of it, at least one).
/// - Hyper-threads of one core count once: they share the units that multiply.
/// - Of unequal cores, the fast ones count. A loop is over when its last task is, and a slow core ends one that the fast
///   cores have to wait for; the small cores are left to everything else that runs.
#[must_use]
pub fn default_threads() -> usize {
    // The standard library reads the mask, and the quotas of cgroups v1 and v2 up to the root of the hierarchy.
    let available = thread::available_parallelism().map_or(1, usize::from);
    threads(&Topology::read(Path::new("/")), available)
}

/// The part of the threads that the processors can run at once that is worth starting.
fn threads(topology: &Topology, available: usize) -> usize {
    topology.fast_cores().unwrap_or(available).min(available).max(1)
}

/// The processors that this process may use, as Linux describes them; empty where it does not.
#[derive(Debug, Default)]
struct Topology {
    cpus: Vec<Cpu>,
}

#[derive(Debug)]
struct Cpu {
    /// The lowest of its hyper-threads stands for a core.
    core: u32,
    /// How much it computes, relative to the others: 1024 is the most of the machine (Arm; newer kernels on Intel too).
    capacity: Option<u32>,
    /// Whether it is of the fast kind on an Intel processor of two kinds.
    performance: bool,
}

impl Topology {
    /// Reads `/proc` and `/sys` under `root`. What is missing or makes no sense is left out: each processor that nothing
    /// is known of is a core, as good as the others.
    fn read(root: &Path) -> Self {
        let text = |path: &str| fs::read_to_string(root.join(path)).ok();
        let list = |path: &str| parse_cpu_list(&text(path)?);
        let allowed = allowed_cpus(root).unwrap_or_default();
        let performance = list("sys/devices/cpu_core/cpus").unwrap_or_default();
        let cpu = |id: u32| {
            let folder = format!("sys/devices/system/cpu/cpu{id}");
            let siblings = list(&format!("{folder}/topology/thread_siblings_list"));
            let capacity = text(&format!("{folder}/cpu_capacity"));
            Cpu {
                core: siblings.and_then(|siblings| siblings.into_iter().min()).unwrap_or(id),
                capacity: capacity.and_then(|capacity| capacity.trim().parse().ok()),
                performance: performance.contains(&id),
            }
        };
        Self { cpus: allowed.into_iter().map(cpu).collect() }
    }

    /// The cores that are not much slower than the fastest; `None` where nothing is known.
    fn fast_cores(&self) -> Option<usize> {
        // The best of a core's hyper-threads stands for it: one of them may be unknown.
        let mut cores: BTreeMap<u32, (Option<u32>, bool)> = BTreeMap::new();
        for cpu in &self.cpus {
            let (capacity, performance) = cores.entry(cpu.core).or_default();
            *capacity = (*capacity).max(cpu.capacity);
            *performance |= cpu.performance;
        }
        let most = cores.values().filter_map(|(capacity, _)| *capacity).max().unwrap_or(0);
        // Three quarters: a phone's prime core and its big ones, which differ in little but the clock, work together, and
        // small cores are below it. The end of a loop then waits for a third of a task more at most.
        let fast = |capacity: u32| u64::from(capacity) * 4 >= u64::from(most) * 3;
        let performance = cores.values().any(|(_, performance)| *performance);
        let of_use = |&&(capacity, kind): &&(Option<u32>, bool)| match capacity {
            Some(capacity) => fast(capacity),
            // Without capacities, the kind; a mask may have left none of the fast kind.
            None => kind || !performance,
        };
        Some(cores.values().filter(of_use).count()).filter(|&count| count > 0)
    }
}

/// The processors that the calling thread may run on, as `/proc` under `root` says; `None` where it does not.
#[must_use]
pub fn allowed_cpus(root: &Path) -> Option<Vec<u32>> {
    // The thread's, not the process's: the standard library looks at the same.
    let status = fs::read_to_string(root.join("proc/thread-self/status")).ok()?;
    parse_cpu_list(status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"))?)
}

/// The processors of a list as Linux writes it, such as `0-3,8,10-11`; `None` when it is not one, or names a processor
/// beyond any real machine.
#[must_use]
pub fn parse_cpu_list(list: &str) -> Option<Vec<u32>> {
    const MOST: u32 = 1 << 16;
    let mut cpus = Vec::new();
    for part in list.trim().split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (u32, u32) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
        if last >= MOST || first > last {
            return None;
        }
        cpus.extend(first..=last);
    }
    Some(cpus)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A machine as files: each is a path under the root and its content.
    struct Machine(tempfile::TempDir);

    impl Machine {
        fn new(allowed: &str) -> Self {
            let machine = Self(tempfile::tempdir().unwrap());
            let status =
                format!("Name:\tmoli\nCpus_allowed:\tff\nCpus_allowed_list:\t{allowed}\nMems_allowed:\t1\n");
            machine.file("proc/thread-self/status", &status)
        }

        fn file(self, path: &str, content: &str) -> Self {
            let path = self.0.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
            self
        }

        fn cpu(self, cpu: u32, file: &str, content: &str) -> Self {
            self.file(&format!("sys/devices/system/cpu/cpu{cpu}/{file}"), content)
        }

        /// One core for each capacity.
        fn capacities(mut self, capacities: &[u32]) -> Self {
            for (cpu, capacity) in (0..).zip(capacities) {
                self = self.cpu(cpu, "cpu_capacity", &format!("{capacity}\n")).cpu(
                    cpu,
                    "topology/thread_siblings_list",
                    &format!("{cpu}\n"),
                );
            }
            self
        }

        fn siblings(mut self, cpus: &[u32], siblings: &str) -> Self {
            for &cpu in cpus {
                self = self.cpu(cpu, "topology/thread_siblings_list", siblings);
            }
            self
        }

        fn threads(&self, available: usize) -> usize {
            threads(&Topology::read(self.0.path()), available)
        }
    }

    #[test]
    fn big_cores_without_the_little_ones() {
        let four_and_four = [446, 446, 446, 446, 1024, 1024, 1024, 1024];
        assert_eq!(Machine::new("0-7").capacities(&four_and_four).threads(8), 4);
        // A mask of little cores leaves those.
        assert_eq!(Machine::new("0-2").capacities(&four_and_four).threads(3), 3);
        assert_eq!(Machine::new("3-4").capacities(&four_and_four).threads(2), 1);
        // A prime core, three big ones at a lower clock, four little ones.
        assert_eq!(Machine::new("0-7").capacities(&[325, 325, 325, 325, 828, 828, 828, 1024]).threads(8), 4);
        // Two that are far ahead of the rest.
        assert_eq!(Machine::new("0-7").capacities(&[250, 250, 250, 250, 620, 620, 1024, 1024]).threads(8), 2);
        assert_eq!(Machine::new("0-3").capacities(&[1024; 4]).threads(4), 4);
        // At the limit and below it.
        assert_eq!(Machine::new("0-1").capacities(&[768, 1024]).threads(2), 2);
        assert_eq!(Machine::new("0-1").capacities(&[767, 1024]).threads(2), 1);
    }

    #[test]
    fn performance_cores_of_two_kinds() {
        // Two performance cores with two hyper-threads each, four efficiency cores.
        let hybrid = |allowed| {
            Machine::new(allowed)
                .siblings(&[0, 1], "0-1\n")
                .siblings(&[2, 3], "2-3\n")
                .siblings(&[4], "4")
                .siblings(&[5], "5")
                .siblings(&[6], "6")
                .siblings(&[7], "7")
        };
        let lists = |machine: Machine| {
            machine.file("sys/devices/cpu_core/cpus", "0-3\n").file("sys/devices/cpu_atom/cpus", "4-7\n")
        };
        assert_eq!(lists(hybrid("0-7")).threads(8), 2);
        assert_eq!(lists(hybrid("1-4")).threads(4), 2);
        assert_eq!(lists(hybrid("4-6")).threads(3), 3);
        // Newer kernels have capacities too.
        let mut machine = lists(hybrid("0-7"));
        for cpu in 0..8 {
            machine = machine.cpu(cpu, "cpu_capacity", if cpu < 4 { "1024" } else { "620" });
        }
        assert_eq!(machine.threads(8), 2);
        // All that is known is the hyper-threads.
        assert_eq!(hybrid("0-7").threads(8), 6);
    }

    #[test]
    fn hyper_threads_count_once() {
        let machine = |allowed| Machine::new(allowed).siblings(&[0, 2], "0,2").siblings(&[1, 3], "1,3");
        assert_eq!(machine("0-3").threads(4), 2);
        assert_eq!(machine("0,2").threads(2), 1);
        assert_eq!(machine("2-3").threads(2), 2);
    }

    #[test]
    fn never_more_than_is_available_and_never_none() {
        let machine = Machine::new("0-7").capacities(&[1024; 8]);
        // A quota of two processors.
        assert_eq!(machine.threads(2), 2);
        assert_eq!(machine.threads(0), 1);
        assert!(default_threads() >= 1);
        assert!(default_threads() <= thread::available_parallelism().map_or(1, usize::from));
    }

    #[test]
    fn what_is_missing_or_garbage_is_not_counted_on() {
        let empty = tempfile::tempdir().unwrap();
        assert_eq!(threads(&Topology::read(empty.path()), 6), 6);
        for allowed in ["", "none", "3-1", "0-4294967295"] {
            assert_eq!(Machine::new(allowed).threads(6), 6, "{allowed}");
        }
        // Processors without a word about them.
        assert_eq!(Machine::new("0-3").threads(4), 4);
        let garbage = Machine::new("0-3")
            .cpu(0, "cpu_capacity", "very much")
            .cpu(1, "cpu_capacity", "-1")
            .cpu(2, "cpu_capacity", "99999999999999999999")
            .cpu(3, "cpu_capacity", "")
            .siblings(&[0, 1, 2], "\u{fffd}")
            .file("sys/devices/cpu_core/cpus", "all of them");
        assert_eq!(garbage.threads(4), 4);
        // Capacities of nothing; and a processor without one, which is not known to be slow.
        assert_eq!(Machine::new("0-1").capacities(&[0, 0]).threads(2), 2);
        assert_eq!(Machine::new("0-1").capacities(&[u32::MAX]).threads(2), 2);
    }

    #[test]
    fn cpu_lists_are_read() {
        assert_eq!(parse_cpu_list("\t0-2,5\n"), Some(vec![0, 1, 2, 5]));
        assert_eq!(parse_cpu_list("7"), Some(vec![7]));
        for bad in ["", "a", "3-1", "0-", "0-4294967295", "1,,2", "-1"] {
            assert_eq!(parse_cpu_list(bad), None, "{bad}");
        }
    }
}
