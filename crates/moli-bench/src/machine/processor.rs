//! What the processors are, as Linux describes them in `/proc/cpuinfo` and `/sys/devices/system/cpu`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use moli_kernels::parse_cpu_list;

use crate::files::{clean, name, number, text, values};
use crate::report::Cache;

/// Caches of a processor; none has as many.
const MOST_CACHES: usize = 16;

/// The processors of a machine.
pub(super) struct Processors {
    /// `/sys/devices/system/cpu`.
    folder: PathBuf,
    cpuinfo: String,
    /// Their numbers; empty where the system doesn't say.
    pub(super) online: Vec<u32>,
}

impl Processors {
    pub(super) fn read(root: &Path) -> Self {
        let folder = root.join("sys/devices/system/cpu");
        let cpuinfo = text(&root.join("proc/cpuinfo")).unwrap_or_default();
        let list = text(&folder.join("online")).and_then(|list| parse_cpu_list(&list));
        let online = list.unwrap_or_else(|| {
            values(&cpuinfo, "processor").filter_map(|number| number.parse().ok()).collect()
        });
        Self { folder, cpuinfo, online }
    }

    fn file(&self, cpu: u32, file: &str) -> PathBuf {
        self.folder.join(format!("cpu{cpu}")).join(file)
    }

    /// Whether a processor has this among its `flags` (x86).
    pub(super) fn has_flag(&self, flag: &str) -> bool {
        let flags = values(&self.cpuinfo, "flags").next();
        flags.is_some_and(|flags| flags.split_whitespace().any(|has| has == flag))
    }

    /// The name; of unequal processors, each kind's with how many there are.
    pub(super) fn name(&self) -> Option<String> {
        if let Some(name) = values(&self.cpuinfo, "model name").find_map(clean) {
            return Some(name);
        }
        // On Arm the device tree names each processor; where there is none, numbers tell who made it and what it is.
        let mut kinds: BTreeMap<String, usize> = BTreeMap::new();
        for &cpu in &self.online {
            if let Some(name) = name(&self.file(cpu, "of_node/compatible")) {
                *kinds.entry(name).or_default() += 1;
            }
        }
        if kinds.is_empty() {
            let parts = values(&self.cpuinfo, "CPU implementer").zip(values(&self.cpuinfo, "CPU part"));
            for (maker, part) in parts {
                if let Some(name) = clean(&format!("implementer {maker} part {part}")) {
                    *kinds.entry(name).or_default() += 1;
                }
            }
        }
        match Vec::from_iter(kinds).as_slice() {
            [] => None,
            [(one, _)] => Some(one.clone()),
            kinds => {
                let kinds: Vec<_> = kinds.iter().map(|(name, count)| format!("{count} x {name}")).collect();
                clean(&kinds.join(", "))
            }
        }
    }

    /// Cores; `None` where the system doesn't say which processors are hyper-threads of one.
    pub(super) fn cores(&self) -> Option<usize> {
        let siblings = |&cpu: &u32| {
            let list = text(&self.file(cpu, "topology/thread_siblings_list"))?;
            parse_cpu_list(&list)?.into_iter().min()
        };
        let cores: Option<BTreeSet<u32>> = self.online.iter().map(siblings).collect();
        cores.map(|cores| cores.len()).filter(|&count| count > 0)
    }

    /// The fastest processor: that of the highest frequency, else of the highest capacity, else the first.
    fn fastest(&self) -> Option<u32> {
        let speed = |&cpu: &u32| {
            let frequency: Option<u64> = number(&self.file(cpu, "cpufreq/cpuinfo_max_freq"));
            (frequency, number::<u64>(&self.file(cpu, "cpu_capacity")), std::cmp::Reverse(cpu))
        };
        self.online.iter().copied().max_by_key(speed)
    }

    /// The lowest and the highest frequency of the fastest processor, Hz.
    pub(super) fn frequency(&self) -> Option<[u64; 2]> {
        let fastest = self.fastest()?;
        let hertz = |file| number::<u64>(&self.file(fastest, file))?.checked_mul(1000);
        let (low, high) = (hertz("cpufreq/cpuinfo_min_freq")?, hertz("cpufreq/cpuinfo_max_freq")?);
        (0 < low && low <= high).then_some([low, high])
    }

    /// How frequencies are chosen, once for each way that there is.
    pub(super) fn governor(&self) -> Option<String> {
        let governors: BTreeSet<_> =
            self.online.iter().filter_map(|&cpu| name(&self.file(cpu, "cpufreq/scaling_governor"))).collect();
        clean(&Vec::from_iter(governors).join(", "))
    }

    /// The caches of the fastest processor, from the nearest.
    pub(super) fn caches(&self) -> Vec<Cache> {
        let caches = self.fastest().into_iter().flat_map(|fastest| self.caches_of(fastest));
        let mut caches: Vec<_> = caches.map(|(cache, _)| cache).collect();
        caches.sort_by_key(|cache| cache.level);
        caches
    }

    /// Bytes of all last-level caches together; `None` where the system says nothing of caches.
    pub(super) fn last_level_caches(&self) -> Option<u64> {
        let all: Vec<_> = self.online.iter().flat_map(|&cpu| self.caches_of(cpu)).collect();
        let last = all.iter().map(|(cache, _)| cache.level).max()?;
        // Each once, by the processors that share it.
        let each: BTreeMap<_, _> = all
            .iter()
            .filter(|(cache, _)| cache.level == last)
            .map(|(cache, shared)| (shared, cache.bytes))
            .collect();
        Some(each.values().fold(0, |sum: u64, bytes| sum.saturating_add(*bytes)))
    }

    /// The caches of a processor, each with the list of those that share it.
    fn caches_of(&self, cpu: u32) -> impl Iterator<Item = (Cache, String)> {
        (0..MOST_CACHES).filter_map(move |index| {
            let file = |file: &str| self.file(cpu, &format!("cache/index{index}/{file}"));
            let shared = text(&file("shared_cpu_list")).unwrap_or_default().trim().to_owned();
            let cache = Cache {
                level: number(&file("level")).filter(|level| (1..=9).contains(level))?,
                kind: name(&file("type"))?.to_lowercase(),
                bytes: size(&text(&file("size"))?)?,
                shared_by: parse_cpu_list(&shared).map(|cpus| cpus.len()),
            };
            // One that is shared with nobody is this processor's, whether the system says so or not.
            Some((cache, if shared.is_empty() { cpu.to_string() } else { shared }))
        })
    }
}

/// The bytes of a size such as `32K` or `8M`.
fn size(text: &str) -> Option<u64> {
    let text = text.trim();
    let (number, unit) = match text.strip_suffix('K') {
        Some(number) => (number, 1 << 10),
        None => text.strip_suffix('M').map_or((text, 1), |number| (number, 1 << 20)),
    };
    number.parse::<u64>().ok()?.checked_mul(unit).filter(|&bytes| bytes > 0)
}
