//! Stub.
use crate::report::{Build, Machine, Readable, Sensors};

/// This one.
pub fn describe(isa: moli_kernels::Isa) -> Machine {
    let not = || Readable::Not("stub".to_owned());
    Machine {
        cpu: None,
        board: None,
        arch: std::env::consts::ARCH.to_owned(),
        isa: isa.name().to_owned(),
        isas: vec![],
        logical_cpus: None,
        cores: None,
        usable_cpus: 1,
        default_threads: moli_kernels::default_threads(),
        frequency: None,
        governor: None,
        caches: vec![],
        memory_bytes: None,
        cgroup_memory_bytes: None,
        cgroup_cpus: None,
        kernel: None,
        virtualised: None,
        sensors: Sensors { frequency: not(), temperature: not(), energy: not(), throttling: not() },
    }
}

/// This one.
pub fn build() -> Build {
    Build { version: env!("CARGO_PKG_VERSION").to_owned(), target: "x86_64-linux".to_owned(), sha256: None }
}
