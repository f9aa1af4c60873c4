//! `--cpu-affinity`: the processors that the process runs on.
//!
//! All threads get the one mask, not a core each: the system still moves them to wherever nobody else is running.

use anyhow::Result;
use moli_kernels::parse_cpu_list;

/// Processors by their numbers, ascending.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CpuList(Vec<u32>);

impl CpuList {
    fn new(mut cpus: Vec<u32>) -> Self {
        cpus.sort_unstable();
        cpus.dedup();
        Self(cpus)
    }
}

impl std::fmt::Display for CpuList {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (index, run) in self.0.chunk_by(|a, b| a + 1 == *b).enumerate() {
            let comma = if index == 0 { "" } else { "," };
            match run {
                [first, .., last] => write!(f, "{comma}{first}-{last}")?,
                one => one.iter().try_for_each(|cpu| write!(f, "{comma}{cpu}"))?,
            }
        }
        Ok(())
    }
}

/// Parses a list of processors.
pub(crate) fn cpu_list(text: &str) -> Result<CpuList, String> {
    parse_cpu_list(text)
        .map(CpuList::new)
        .ok_or_else(|| "a list of processors is needed, such as 0-3,8".to_owned())
}

/// Restricts this thread, and those that it will start, to these processors.
#[cfg(target_os = "linux")]
pub(crate) fn restrict(asked: &CpuList) -> Result<()> {
    use anyhow::bail;
    use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

    let online = std::fs::read_to_string("/sys/devices/system/cpu/online").unwrap_or_default();
    // A mask has no place for more; no kernel for its machines has either, today.
    let exists = |cpu: u32| {
        (cpu as usize) < CpuSet::MAX_CPU && parse_cpu_list(&online).is_none_or(|online| online.contains(&cpu))
    };
    let missing = CpuList(asked.0.iter().copied().filter(|&cpu| !exists(cpu)).collect());
    if !missing.0.is_empty() {
        bail!("--cpu-affinity {asked}: there is no processor {missing}; this machine has {}", online.trim());
    }
    let mask = |cpus: &CpuList| {
        let mut set = CpuSet::new();
        cpus.0.iter().for_each(|&cpu| set.set(cpu as usize));
        set
    };
    // A container may have some of the machine's processors only. The system takes the part of a mask that it allows, and
    // refuses one of which it allows nothing.
    let refused = sched_setaffinity(None, &mask(asked)).is_err();
    let set = sched_getaffinity(None)?;
    let allowed = CpuList((0..).take(CpuSet::MAX_CPU).filter(|&cpu| set.is_set(cpu as usize)).collect());
    if refused || allowed != *asked {
        bail!(
            "--cpu-affinity {asked}: of the machine's processors, the system lets this process have {allowed}"
        );
    }
    Ok(())
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn restrict(_: &CpuList) -> Result<()> {
    Err(crate::failure::UsageError("--cpu-affinity needs Linux".into()).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_sorted_and_written_short() {
        for (text, written) in [("0", "0"), ("8,0-3", "0-3,8"), ("3,2,1,1-2", "1-3"), (" 5 , 7 ", "5,7")] {
            assert_eq!(cpu_list(text).unwrap().to_string(), written);
        }
        for bad in ["", ",", "a", "3-1", "1-", "-1", "0x1", "0-99999999"] {
            assert!(cpu_list(bad).is_err(), "{bad}");
        }
    }
}
