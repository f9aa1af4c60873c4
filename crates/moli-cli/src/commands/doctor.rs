//! `moli doctor`.

mod advice;
mod table;

use std::path::Path;
use std::thread;
use std::time::Duration;

use anyhow::Result;
use clap::Args;
use moli_bench::machine::{CpuQuota, cpu_quota, describe, gpus};
use moli_bench::report::Machine;
use moli_bench::watch::{Computes, Watch, throttled_since_boot};
use moli_engine::{BackendKind, Isa, Limit, SystemMemory, memory_limit};
use serde::Serialize;

use crate::cli::Exit;
use crate::output::Answers;
use advice::Advice;

/// For how long others are watched.
const LOOK: Duration = Duration::from_millis(500);

/// Say what this machine offers, what of it is used, and what would make it faster
#[derive(Debug, Args)]
pub(crate) struct Doctor {
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// The answer, as `--json` prints it. What is not known is null.
#[derive(Debug, Serialize)]
struct Report {
    machine: Machine,
    /// In words.
    gpus: Vec<String>,
    /// Those that Moli can compute on, or why there are none.
    cuda: Cuda,
    uses: Uses,
    /// What would make it faster.
    advice: Vec<Advice>,
    /// What people ask about, and what can't be changed.
    notes: Vec<String>,
}

/// NVIDIA GPUs that can be used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(not(feature = "cuda"), allow(dead_code, reason = "a build without GPUs finds none"))]
enum Cuda {
    /// These.
    Usable(Vec<CudaDevice>),
    /// None, for that reason.
    Not(String),
}

/// A GPU that can be used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct CudaDevice {
    /// As `--device` calls it.
    device: String,
    name: String,
    /// Bytes of its memory, and those that nobody uses.
    total: u64,
    free: u64,
}

impl Cuda {
    #[cfg(feature = "cuda")]
    fn look() -> Self {
        let usable = moli_model::devices().and_then(|all| {
            let each = all.into_iter().map(|device| moli_model::usable(device.index));
            each.collect::<Result<Vec<_>, _>>()
        });
        match usable {
            Ok(all) => Self::Usable(
                all.into_iter()
                    .map(|info| CudaDevice {
                        device: format!("cuda:{}", info.index),
                        name: info.name,
                        total: info.total_bytes,
                        free: info.free_bytes,
                    })
                    .collect(),
            ),
            Err(error) => Self::Not(error.to_string()),
        }
    }

    #[cfg(not(feature = "cuda"))]
    fn look() -> Self {
        Self::Not("this build is without the `cuda` feature".to_owned())
    }
}

/// What is used where nobody says.
#[derive(Debug, Serialize)]
struct Uses {
    isa: String,
    threads: usize,
    /// Bytes that a model may take.
    memory: Option<u64>,
    /// What sets that.
    memory_source: Option<String>,
}

/// What was seen beside the machine's description.
#[derive(Debug, Clone, Default)]
struct Seen {
    quota: Option<CpuQuota>,
    cgroup_memory: Option<Limit>,
    /// Bytes in the swap space.
    swapped: Option<u64>,
    /// Shares of the processors that others had, and that the hypervisor gave away.
    others: Option<f64>,
    stolen: Option<f64>,
    throttled_since_boot: Option<u64>,
    /// `MOLI_ISA`.
    wanted_isa: Option<String>,
}

impl Doctor {
    pub(crate) fn run(self) -> Result<Exit> {
        let report = report();
        Answers::new().report(self.json, &report, Report::describe)?;
        Ok(Exit::Done)
    }
}

fn report() -> Report {
    let root = Path::new("/");
    let watch = Watch::start(&Computes::Processor);
    thread::sleep(LOOK);
    let (conditions, _) = watch.finish(0);
    let memory = SystemMemory::read(root);
    let seen = Seen {
        quota: cpu_quota(root),
        cgroup_memory: memory.cgroup,
        swapped: memory.swapped,
        others: conditions.others,
        stolen: conditions.stolen,
        throttled_since_boot: throttled_since_boot(root),
        wanted_isa: std::env::var("MOLI_ISA").ok(),
    };
    let machine = describe(Isa::detect(), &Computes::Processor);
    let (gpus, cuda) = (gpus(root), Cuda::look());
    // Without a budget there is nothing to refuse.
    let limit = memory_limit(BackendKind::Cpu, None).ok().flatten();
    Report {
        advice: advice::advice(&machine, &seen),
        notes: advice::notes(&machine, &seen, &gpus, &cuda),
        uses: Uses {
            isa: machine.isa.clone(),
            threads: machine.default_threads,
            memory_source: limit.as_ref().map(ToString::to_string),
            memory: limit.map(|limit| limit.bytes),
        },
        gpus,
        cuda,
        machine,
    }
}
