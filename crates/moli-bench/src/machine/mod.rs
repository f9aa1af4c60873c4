//! The machine: what it is, and what this process may use of it.
//!
//! All is read from `/proc` and `/sys`; what is missing there or makes no sense is not known. On other systems than Linux
//! that is most of it.

mod build;
mod gpu;
mod place;
mod processor;
#[cfg(test)]
mod tests;

use std::env::consts;
use std::path::Path;
use std::thread;

use moli_engine::SystemMemory;
use moli_kernels::{Isa, allowed_cpus, default_threads};

pub use build::build;
pub use gpu::gpus;
pub use place::{CpuQuota, cpu_quota};

use crate::report::Machine;
use crate::watch::{self, Computes};

/// This machine, on which the processors' kernels use `isa`, with the sensors of what computes.
#[must_use]
pub fn describe(isa: Isa, computes: &Computes) -> Machine {
    describe_under(Path::new("/"), isa, computes)
}

/// Bytes of all last-level caches of the machine that `/proc` and `/sys` under `root` describe.
pub(crate) fn last_level_caches(root: &Path) -> Option<u64> {
    processor::Processors::read(root).last_level_caches()
}

/// The machine that `/proc` and `/sys` under `root` describe.
#[must_use]
pub fn describe_under(root: &Path, isa: Isa, computes: &Computes) -> Machine {
    let processors = processor::Processors::read(root);
    let memory = SystemMemory::read(root);
    let available = thread::available_parallelism().map_or(1, usize::from);
    Machine {
        gpu: None,
        cpu: processors.name(),
        board: place::board(root),
        arch: consts::ARCH.to_owned(),
        isa: isa.name().to_owned(),
        isas: Isa::available().into_iter().map(|isa| isa.name().to_owned()).collect(),
        logical_cpus: Some(processors.online.len()).filter(|&count| count > 0),
        cores: processors.cores(),
        usable_cpus: allowed_cpus(root).map_or(available, |allowed| allowed.len()),
        default_threads: default_threads(),
        frequency: processors.frequency(),
        governor: processors.governor(),
        caches: processors.caches(),
        memory_bytes: memory.machine,
        cgroup_memory_bytes: memory.cgroup.map(|limit| limit.bytes),
        cgroup_cpus: cpu_quota(root).map(|quota| quota.cpus),
        kernel: place::kernel(root),
        virtualised: place::virtualised(root, processors.has_flag("hypervisor")),
        sensors: watch::sensors(root, computes),
    }
}
