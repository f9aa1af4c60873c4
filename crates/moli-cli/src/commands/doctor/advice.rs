//! What would make it faster: each piece of advice comes from something that was seen.

use moli_bench::report::Machine;
use moli_engine::LimitSource;
use serde::Serialize;

use super::{Cuda, Seen};
use crate::output::bytes;

/// Shares of the processors' time from which on somebody else is in the way.
const MUCH_BUSY: f64 = 0.05;
const MUCH_STOLEN: f64 = 0.02;
/// The part of the memory that is swapped from which on memory was short; a little is swapped by every system.
const MUCH_SWAPPED: u64 = 64;

/// A piece of advice.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(super) struct Advice {
    /// What was seen.
    pub(super) fact: String,
    /// What to change, and what it is good for.
    pub(super) change: String,
    /// How to, in a shell.
    pub(super) command: Option<String>,
}

/// What would make it faster, the most certain first.
pub(super) fn advice(machine: &Machine, seen: &Seen) -> Vec<Advice> {
    let found = [
        isa(machine, seen),
        quota(machine, seen),
        affinity(machine),
        busy(seen),
        governor(machine),
        throttled(seen),
        memory(machine, seen),
        swap(machine, seen),
    ];
    found.into_iter().flatten().collect()
}

fn advise(fact: String, change: &str, command: Option<String>) -> Option<Advice> {
    Some(Advice { fact, change: change.to_owned(), command })
}

fn isa(machine: &Machine, seen: &Seen) -> Option<Advice> {
    let best = machine.isas.last()?;
    let wanted = seen.wanted_isa.as_ref().filter(|_| *best != machine.isa)?;
    advise(
        format!("MOLI_ISA={wanted} lowers the instruction set to {}; the processor has {best}", machine.isa),
        "leave the variable unset",
        Some("unset MOLI_ISA".to_owned()),
    )
}

fn quota(machine: &Machine, seen: &Seen) -> Option<Advice> {
    let quota = seen.quota.as_ref()?;
    let cores = machine.cores.unwrap_or(usize::MAX).min(machine.usable_cpus);
    if quota.cpus >= cores as f64 {
        return None;
    }
    let file = quota.file.display().to_string();
    let unlimited = if file.ends_with("cpu.max") { "max" } else { "-1" };
    advise(
        format!("the control group leaves {:.2} processors' time of {cores} cores ({file})", quota.cpus),
        "raise the quota: the processors are stopped when it is used up",
        Some(format!("echo {unlimited} | sudo tee {}", quoted(&file))),
    )
}

fn affinity(machine: &Machine) -> Option<Advice> {
    let all = machine.logical_cpus?;
    // A mask that leaves out hyper-threads only costs nothing.
    if machine.usable_cpus >= all || machine.usable_cpus >= machine.cores.unwrap_or(all) {
        return None;
    }
    advise(
        format!("this process may run on {} of {all} processors", machine.usable_cpus),
        "start it without taskset and in a container without a set of processors",
        Some(format!("taskset -c 0-{} moli …", all.saturating_sub(1))),
    )
}

fn busy(seen: &Seen) -> Option<Advice> {
    let share = seen.others.filter(|&share| share >= MUCH_BUSY)?;
    advise(
        format!("other processes use {} of the processors now", percent(share)),
        "stop them, or leave them processors of their own",
        Some("top".to_owned()),
    )
}

fn governor(machine: &Machine) -> Option<Advice> {
    let governor = machine.governor.as_ref().filter(|governor| *governor != "performance")?;
    advise(
        format!("the governor of the frequencies is {governor}"),
        "`performance` keeps them high, so that a measurement varies less",
        Some("echo performance | sudo tee /sys/devices/system/cpu/cpu*/cpufreq/scaling_governor".to_owned()),
    )
}

fn throttled(seen: &Seen) -> Option<Advice> {
    let times = seen.throttled_since_boot.filter(|&times| times > 0)?;
    let plural = if times == 1 { "" } else { "s" };
    advise(
        format!(
            "the processors slowed themselves down {times} time{plural} since the machine was started: too hot"
        ),
        "better cooling",
        None,
    )
}

fn memory(machine: &Machine, seen: &Seen) -> Option<Advice> {
    let (limit, all) = (seen.cgroup_memory.as_ref()?, machine.memory_bytes?);
    let LimitSource::Cgroup { path } = &limit.source else { return None };
    if limit.bytes >= all {
        return None;
    }
    let file = path.display().to_string();
    let unlimited = if file.ends_with("limit_in_bytes") { "-1" } else { "max" };
    advise(
        format!("the control group leaves {} of {} of memory ({file})", bytes(limit.bytes), bytes(all)),
        "raise the limit where a model comes near to it: weights that don't stay in memory are read again",
        Some(format!("echo {unlimited} | sudo tee {}", quoted(&file))),
    )
}

fn swap(machine: &Machine, seen: &Seen) -> Option<Advice> {
    let swapped = seen.swapped.filter(|&swapped| swapped > 0)?;
    if swapped < machine.memory_bytes? / MUCH_SWAPPED {
        return None;
    }
    advise(
        format!("{} are in the swap space: memory was short", bytes(swapped)),
        "end what takes memory",
        Some("ps -eo pid,rss,comm --sort=-rss | head".to_owned()),
    )
}

/// What people ask about, and what can't be changed.
pub(super) fn notes(machine: &Machine, seen: &Seen, gpus: &[String], cuda: &Cuda) -> Vec<String> {
    let has = |isa: &str| machine.isas.iter().any(|has| has == isa);
    let lacks = match machine.arch.as_str() {
        "x86_64" if !has("avx2") => Some("AVX2"),
        "aarch64" if !has("neon-dotprod") => Some("dot products of bytes (dotprod)"),
        _ => None,
    };
    let mut notes = Vec::new();
    if let Some(lacks) = lacks {
        notes.push(format!("the processor has no {lacks}; nothing on this machine changes that"));
    }
    if let Some(share) = seen.stolen.filter(|&share| share >= MUCH_STOLEN) {
        notes.push(format!("the hypervisor gives {} of the processors' time to others", percent(share)));
    }
    if let (Some(cores), Some(logical)) = (machine.cores, machine.logical_cpus) {
        if cores < logical {
            notes.push(
                "of a core's hyper-threads one is used, on purpose: they share the units that multiply"
                    .to_owned(),
            );
        }
        let free = seen.quota.is_none() && machine.usable_cpus == logical;
        if free && machine.default_threads < cores {
            let used = machine.default_threads;
            notes.push(format!("{used} of {cores} cores are used, on purpose: the others are slower, and all would wait for them"));
        }
    }
    match cuda {
        Cuda::Usable(devices) => {
            let names: Vec<&str> = devices.iter().map(|device| device.device.as_str()).collect();
            notes.push(format!("Moli computes on the processor unless --device says {} or auto", names.join(", ")));
        }
        Cuda::Not(reason) if !gpus.is_empty() => {
            notes.push(format!("Moli computes on the processor; the GPU can't be used: {reason}"));
        }
        Cuda::Not(_) => {}
    }
    notes
}

fn percent(share: f64) -> String {
    format!("{:.0}%", share * 100.0)
}

/// A path as a shell's word.
fn quoted(path: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-:@".contains(c);
    if path.chars().all(plain) { path.to_owned() } else { format!("'{}'", path.replace('\'', "'\\''")) }
}

#[cfg(test)]
pub(super) mod tests {
    use moli_bench::machine::CpuQuota;
    use moli_bench::report::{Readable, Sensors};
    use moli_engine::Limit;

    use super::super::CudaDevice;
    use super::*;

    /// A machine that has nothing to be improved.
    pub(in super::super) fn machine() -> Machine {
        let not = || Readable::Not("of a test".to_owned());
        Machine {
            gpu: None,
            cpu: Some("Processor".to_owned()),
            board: None,
            arch: "x86_64".to_owned(),
            isa: "avx2".to_owned(),
            isas: ["scalar", "avx2"].map(str::to_owned).to_vec(),
            logical_cpus: Some(4),
            cores: Some(4),
            usable_cpus: 4,
            default_threads: 4,
            frequency: None,
            governor: Some("performance".to_owned()),
            caches: Vec::new(),
            memory_bytes: Some(16_000_000_000),
            cgroup_memory_bytes: None,
            cgroup_cpus: None,
            kernel: None,
            virtualised: None,
            sensors: Sensors { frequency: not(), temperature: not(), energy: not(), throttling: not() },
        }
    }

    /// The only piece of advice: its fact and its command.
    #[track_caller]
    fn only(machine: &Machine, seen: &Seen) -> (String, Option<String>) {
        let mut advice = advice(machine, seen);
        assert_eq!(advice.len(), 1, "{advice:?}");
        let Advice { fact, command, .. } = advice.remove(0);
        (fact, command)
    }

    #[test]
    fn where_all_is_well_nothing_is_said() {
        let mut all_well = Seen {
            quota: Some(CpuQuota { cpus: 4.0, file: "/x/cpu.max".into() }),
            cgroup_memory: Some(Limit {
                bytes: 16_000_000_000,
                source: LimitSource::Cgroup { path: "/x/memory.max".into() },
            }),
            swapped: Some(1000),
            others: Some(0.01),
            stolen: Some(0.0),
            throttled_since_boot: Some(0),
            wanted_isa: Some("avx2".to_owned()),
        };
        assert_eq!(advice(&machine(), &all_well), []);
        assert_eq!(advice(&machine(), &Seen::default()), []);
        let cuda = Cuda::Not("no driver".to_owned());
        assert_eq!(notes(&machine(), &all_well, &[], &cuda), Vec::<String>::new());
        // Asking for what the processor doesn't have lowers nothing.
        all_well.wanted_isa = Some("neon".to_owned());
        assert_eq!(advice(&machine(), &all_well), []);
        // Of nothing known, nothing follows.
        let unknown = Machine {
            logical_cpus: None,
            cores: None,
            governor: None,
            memory_bytes: None,
            isas: Vec::new(),
            ..machine()
        };
        assert_eq!(advice(&unknown, &all_well), []);
    }

    #[test]
    fn each_fact_has_its_advice() {
        let none = Seen::default();
        let powersave = Machine { governor: Some("powersave".to_owned()), ..machine() };
        let (fact, command) = only(&powersave, &none);
        assert!(fact.contains("powersave") && command.unwrap().contains("scaling_governor"));

        let masked = Machine { usable_cpus: 2, default_threads: 2, ..machine() };
        let (fact, command) = only(&masked, &none);
        assert!(fact.contains("2 of 4 processors"), "{fact}");
        assert_eq!(command.unwrap(), "taskset -c 0-3 moli …");
        // Only hyper-threads are masked.
        let half = Machine { usable_cpus: 2, cores: Some(2), default_threads: 2, ..machine() };
        assert_eq!(advice(&half, &none), []);

        let quota =
            |file: &str| Seen { quota: Some(CpuQuota { cpus: 1.5, file: file.into() }), ..Seen::default() };
        let (fact, command) = only(&machine(), &quota("/sys/fs/cgroup/a\\x2db it's/cpu.max"));
        assert!(fact.contains("1.50 processors' time of 4 cores"), "{fact}");
        assert_eq!(command.unwrap(), r"echo max | sudo tee '/sys/fs/cgroup/a\x2db it'\''s/cpu.max'");
        let (_, command) = only(&machine(), &quota("/sys/fs/cgroup/cpu/cpu.cfs_quota_us"));
        assert_eq!(command.unwrap(), "echo -1 | sudo tee /sys/fs/cgroup/cpu/cpu.cfs_quota_us");

        let source = LimitSource::Cgroup { path: "/x/memory.max".into() };
        let limited = Seen { cgroup_memory: Some(Limit { bytes: 2_000_000_000, source }), ..Seen::default() };
        let (fact, command) = only(&machine(), &limited);
        assert!(fact.contains("2.0 GB of 16.0 GB"), "{fact}");
        assert_eq!(command.unwrap(), "echo max | sudo tee /x/memory.max");

        let (fact, _) = only(&machine(), &Seen { others: Some(0.42), ..Seen::default() });
        assert!(fact.contains("42%"), "{fact}");
        let (fact, command) = only(&machine(), &Seen { throttled_since_boot: Some(12), ..Seen::default() });
        assert!(fact.contains("12 times") && command.is_none(), "{fact}");
        let (fact, _) = only(&machine(), &Seen { swapped: Some(3_000_000_000), ..Seen::default() });
        assert!(fact.contains("3.0 GB"), "{fact}");

        let lowered = Machine { isa: "scalar".to_owned(), ..machine() };
        let (fact, command) =
            only(&lowered, &Seen { wanted_isa: Some("scalar".to_owned()), ..Seen::default() });
        assert!(fact.contains("MOLI_ISA=scalar") && fact.contains("avx2"), "{fact}");
        assert_eq!(command.unwrap(), "unset MOLI_ISA");
    }

    #[test]
    fn what_cant_be_changed_is_a_note() {
        let note = |machine: &Machine, seen: &Seen, gpus: &[String]| {
            let notes = notes(machine, seen, gpus, &Cuda::Not("no driver".to_owned()));
            assert_eq!(notes.len(), 1, "{notes:?}");
            notes.concat()
        };
        let plain = ["scalar".to_owned()];
        let old = Machine { isa: "scalar".to_owned(), isas: plain.to_vec(), ..machine() };
        assert!(note(&old, &Seen::default(), &[]).contains("no AVX2"));
        assert_eq!(advice(&old, &Seen::default()), []);
        let old = Machine { arch: "aarch64".to_owned(), isas: plain.to_vec(), ..machine() };
        assert!(note(&old, &Seen::default(), &[]).contains("dotprod"));
        let threads = Machine { cores: Some(2), default_threads: 2, ..machine() };
        assert!(note(&threads, &Seen::default(), &[]).contains("hyper-threads"));
        let little = Machine { default_threads: 2, ..machine() };
        assert!(note(&little, &Seen::default(), &[]).contains("2 of 4 cores"));
        assert!(note(&machine(), &Seen { stolen: Some(0.3), ..Seen::default() }, &[]).contains("30%"));
        assert!(note(&machine(), &Seen::default(), &["NVIDIA".to_owned()]).contains("can't be used: no driver"));
        let device = CudaDevice { device: "cuda:0".to_owned(), name: "A".to_owned(), total: 2, free: 1 };
        let notes = notes(&machine(), &Seen::default(), &[], &Cuda::Usable(vec![device]));
        assert!(notes.concat().contains("unless --device says cuda:0 or auto"), "{notes:?}");
    }
}
