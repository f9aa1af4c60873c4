//! How much memory the process really takes, as Linux says it.

use std::fs;
use std::io::Write as _;
use std::path::Path;

use super::limits::kilobytes;

/// Bytes in memory that belong to this process, files that it has mapped included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resident {
    /// Now.
    pub bytes: u64,
    /// The most so far, or since [`reset_peak`](Self::reset_peak).
    pub peak: u64,
}

/// What of this process is in memory; `None` where the system does not say.
#[must_use]
pub fn resident_bytes() -> Option<Resident> {
    Resident::read(Path::new("/"))
}

impl Resident {
    /// What `/proc` under `root` says of this process.
    #[must_use]
    pub fn read(root: &Path) -> Option<Self> {
        Self::parse(&fs::read_to_string(root.join("proc/self/status")).ok()?)
    }

    /// Has the system begin anew with the most, for the process whose `/proc` is under `root`; whether it did, which Linux does.
    #[must_use]
    pub fn reset_peak(root: &Path) -> bool {
        /// What `clear_refs` takes for the peak.
        const PEAK: &str = "5";
        // Not made where it isn't.
        let file = fs::OpenOptions::new().write(true).open(root.join("proc/self/clear_refs"));
        file.and_then(|mut file| file.write_all(PEAK.as_bytes())).is_ok()
    }

    fn parse(status: &str) -> Option<Self> {
        Some(Self { bytes: kilobytes(status, "VmRSS")?, peak: kilobytes(status, "VmHWM")? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_two_lines_are_found() {
        let status = "Name:\tmoli\nVmPeak:\t  999 kB\nVmHWM:\t   2048 kB\nVmRSS:\t   1024 kB\nThreads:\t2\n";
        assert_eq!(Resident::parse(status), Some(Resident { bytes: 1 << 20, peak: 2 << 20 }));
        for bad in
            ["", "VmRSS: 5 kB", "VmRSS: x kB\nVmHWM: 1 kB", "VmRSS: 5\nVmHWM: 6", "VmRSS: -5 kB\nVmHWM: 1 kB"]
        {
            assert_eq!(Resident::parse(bad), None, "{bad}");
        }
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn this_process_takes_some() {
        let resident = resident_bytes().unwrap();
        assert!(resident.bytes > 1 << 20 && resident.bytes <= resident.peak);
    }
}
