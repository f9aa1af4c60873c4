//! Frequencies: those of cpufreq, else those that `/proc/cpuinfo` has measured.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::{Found, lost};
use crate::files::{number, text, values};

/// Frequencies that are read at once, at most: a read may ask another processor.
const MOST: usize = 16;

/// The clocks of the processors that this process may use.
pub(in crate::watch) enum Frequency {
    /// A file for each set of processors with one clock.
    Cpufreq(Vec<PathBuf>),
    /// `/proc/cpuinfo`, and the processors.
    Cpuinfo(PathBuf, Vec<u32>),
}

impl Frequency {
    pub(super) fn find(root: &Path, cpus: &[u32]) -> Found<Self> {
        // Processors with one clock have one folder.
        let folder =
            |cpu: &u32| root.join(format!("sys/devices/system/cpu/cpu{cpu}/cpufreq")).canonicalize().ok();
        let folders: BTreeSet<_> = cpus.iter().filter_map(folder).collect();
        let files: Vec<_> = folders.into_iter().map(|folder| folder.join("scaling_cur_freq")).collect();
        let every = files.len().div_ceil(MOST).max(1);
        let some = Self::Cpufreq(files.into_iter().step_by(every).collect());
        if some.read().is_ok() {
            return Ok(some);
        }
        let path = root.join("proc/cpuinfo");
        let cpuinfo = text(&path).unwrap_or_default();
        // Without these counters the field is the nominal clock, whatever the real one is: so in virtual machines.
        let measured = values(&cpuinfo, "flags").next().is_some_and(|flags| flags.contains("aperfmperf"));
        let some = Self::Cpuinfo(path, cpus.to_vec());
        if measured && some.read().is_ok() {
            return Ok(some);
        }
        Err("there is no cpufreq in /sys, and /proc/cpuinfo has no measured clock".to_owned())
    }

    pub(super) fn source(&self) -> &str {
        match self {
            Self::Cpufreq(_) => "scaling_cur_freq of cpufreq",
            Self::Cpuinfo(..) => "cpu MHz of /proc/cpuinfo",
        }
    }

    /// Now, Hz, ascending; at least one.
    pub(in crate::watch) fn read(&self) -> Found<Vec<f64>> {
        let mut hertz = Vec::new();
        match self {
            Self::Cpufreq(files) => {
                for path in files {
                    let khz: Option<f64> = number(path);
                    hertz.push(plausible(khz.map(|khz| khz * 1e3)).ok_or_else(|| lost(path, khz))?);
                }
            }
            Self::Cpuinfo(path, cpus) => {
                let cpuinfo = text(path).unwrap_or_default();
                let numbers = values(&cpuinfo, "processor").map(str::parse::<u32>);
                for (cpu, mhz) in numbers.zip(values(&cpuinfo, "cpu MHz")) {
                    if cpu.is_ok_and(|cpu| cpus.contains(&cpu)) {
                        let parsed = mhz.parse::<f64>().ok().map(|mhz| mhz * 1e6);
                        hertz.push(plausible(parsed).ok_or_else(|| lost(path, parsed))?);
                    }
                }
            }
        }
        hertz.sort_by(f64::total_cmp);
        if hertz.is_empty() { Err("no processor has a clock any more".to_owned()) } else { Ok(hertz) }
    }
}

/// A frequency that a processor can have, Hz.
fn plausible(hertz: Option<f64>) -> Option<f64> {
    hertz.filter(|hertz| (1e6..2e10).contains(hertz))
}
