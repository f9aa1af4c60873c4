//! The answer for a person.

use std::fmt::Write as _;

use moli_bench::report::{Cache, Machine, Readable};

use super::{Cuda, Report};
use crate::output::{bytes, escape};

impl Report {
    pub(super) fn describe(&self) -> String {
        let mut text = String::new();
        // Writing to a string cannot fail.
        for (label, value) in self.machine_lines() {
            let _ = writeln!(text, "{label:14} {}", escape(&value));
        }
        text.push_str("\nMoli uses\n");
        for (label, value) in self.uses_lines() {
            let _ = writeln!(text, "{label:14} {}", escape(&value));
        }
        text.push('\n');
        if self.advice.is_empty() {
            text.push_str("nothing found that would make it faster\n");
        } else {
            text.push_str("what would make it faster\n");
        }
        for advice in &self.advice {
            let _ = writeln!(text, "- {}\n  {}", escape(&advice.fact), escape(&advice.change));
            if let Some(command) = &advice.command {
                let _ = writeln!(text, "    {}", escape(command));
            }
        }
        if !self.notes.is_empty() {
            text.push_str("\ngood to know\n");
        }
        for note in &self.notes {
            let _ = writeln!(text, "- {}", escape(note));
        }
        text
    }

    fn machine_lines(&self) -> Vec<(&'static str, String)> {
        let machine = &self.machine;
        let unknown = || "?".to_owned();
        let mut lines = vec![("processor", machine.cpu.clone().unwrap_or_else(unknown))];
        lines.extend(machine.board.clone().map(|board| ("board", board)));
        lines.push(("cores", cores(machine)));
        let range = machine.frequency.map(|[low, high]| format!("{} to {} GHz", giga(low), giga(high)));
        let governor = machine.governor.as_ref().map(|governor| format!("governor {governor}"));
        let frequency: Vec<_> = [range, governor].into_iter().flatten().collect();
        if !frequency.is_empty() {
            lines.push(("frequency", frequency.join(", ")));
        }
        let mut label = "caches";
        for cache in &machine.caches {
            lines.push((label, describe_cache(cache)));
            label = "";
        }
        let all = machine.memory_bytes.map_or_else(unknown, bytes);
        let limit =
            machine.cgroup_memory_bytes.filter(|&limit| machine.memory_bytes.is_none_or(|all| limit < all));
        let limit = limit.map(|limit| format!(", the control group leaves {}", bytes(limit)));
        lines.push(("memory", all + &limit.unwrap_or_default()));
        lines.push(("instructions", machine.isas.join(", ")));
        lines.extend(machine.kernel.clone().map(|kernel| ("system", kernel)));
        lines.extend(machine.virtualised.clone().map(|kind| ("runs in", kind)));
        let gpus = if self.gpus.is_empty() { "none found".to_owned() } else { self.gpus.join(", ") };
        lines.push(("GPU", gpus));
        match &self.cuda {
            Cuda::Usable(devices) => lines.extend(devices.iter().map(|gpu| {
                let (total, free) = (bytes(gpu.total), bytes(gpu.free));
                ("CUDA", format!("{}: {}, {total}, of which {free} are free", gpu.device, gpu.name))
            })),
            Cuda::Not(reason) => lines.push(("CUDA", reason.clone())),
        }
        let sensors = &machine.sensors;
        let mut label = "sensors";
        for (what, sensor) in [
            ("frequency", &sensors.frequency),
            ("temperature", &sensors.temperature),
            ("energy", &sensors.energy),
            ("throttling", &sensors.throttling),
        ] {
            let place = match sensor {
                Readable::From(place) => place.clone(),
                Readable::Not(reason) => format!("not readable: {reason}"),
            };
            lines.push((label, format!("{what:11} {place}")));
            label = "";
        }
        lines
    }

    fn uses_lines(&self) -> [(&'static str, String); 3] {
        let uses = &self.uses;
        let memory = uses.memory_source.clone().unwrap_or_else(|| "as much as there is".to_owned());
        [("instructions", uses.isa.clone()), ("threads", uses.threads.to_string()), ("memory", memory)]
    }
}

/// Cores and logical processors, and those that this process may use where they are fewer.
fn cores(machine: &Machine) -> String {
    let count = |count: Option<usize>| count.map_or_else(|| "?".to_owned(), |count| count.to_string());
    let mut text = count(machine.cores);
    if machine.logical_cpus != machine.cores {
        let _ = write!(text, ", {} logical processors", count(machine.logical_cpus));
    }
    if Some(machine.usable_cpus) != machine.logical_cpus {
        let _ = write!(text, ", {} for this process", machine.usable_cpus);
    }
    if let Some(quota) = machine.cgroup_cpus {
        let _ = write!(text, ", the control group leaves the time of {quota:.2}");
    }
    text
}

/// Such as `L1 data 32 KiB, shared by 2`.
fn describe_cache(cache: &Cache) -> String {
    let size = match cache.bytes {
        bytes if bytes >= 1 << 20 => format!("{} MiB", bytes as f64 / f64::from(1 << 20)),
        bytes => format!("{} KiB", bytes >> 10),
    };
    let shared = cache.shared_by.filter(|&cpus| cpus > 1).map(|cpus| format!(", shared by {cpus}"));
    format!("L{} {} {size}{}", cache.level, cache.kind, shared.unwrap_or_default())
}

fn giga(hertz: u64) -> String {
    format!("{:.2}", hertz as f64 / 1e9)
}

#[cfg(test)]
mod tests {
    use super::super::{Uses, advice};
    use super::*;

    fn report() -> Report {
        let uses = Uses {
            isa: "avx2".to_owned(),
            threads: 4,
            memory: Some(1 << 30),
            memory_source: Some("a test".to_owned()),
        };
        Report {
            machine: advice::tests::machine(),
            gpus: Vec::new(),
            cuda: Cuda::Not("no driver".to_owned()),
            uses,
            advice: Vec::new(),
            notes: Vec::new(),
        }
    }

    #[test]
    fn where_nothing_is_to_be_improved_it_says_so() {
        let text = report().describe();
        assert!(text.ends_with("\nnothing found that would make it faster\n"), "{text}");
        assert!(
            text.contains("\nGPU            none found\n") && text.contains("\nthreads        4\n"),
            "{text}"
        );
        assert!(!text.contains("good to know") && !text.contains("board"), "{text}");
    }

    #[test]
    fn what_the_system_says_stays_on_its_line() {
        let mut report = report();
        report.machine.cpu = Some("x\u{1b}[2J\ny".to_owned());
        report.uses.memory_source = Some("\u{202e}evil\r".to_owned());
        let fact = "a\u{7}b".to_owned();
        report.advice.push(advice::Advice { fact, change: "c".to_owned(), command: Some("d\ne".to_owned()) });
        let text = report.describe();
        assert!(!text.contains(['\u{1b}', '\u{7}', '\r', '\u{202e}']), "{text}");
        assert!(text.starts_with("processor      x\\u{1b}[2J\\ny\n"), "{text}");
        assert!(text.contains("what would make it faster\n- a\\u{7}b\n  c\n    d\\ne\n"), "{text}");
    }

    #[test]
    fn caches_and_cores_in_words() {
        let cache = |level, kind: &str, bytes, shared_by| {
            describe_cache(&Cache { level, kind: kind.to_owned(), bytes, shared_by })
        };
        assert_eq!(cache(1, "data", 32 << 10, Some(2)), "L1 data 32 KiB, shared by 2");
        assert_eq!(cache(3, "unified", 3 << 19, Some(1)), "L3 unified 1.5 MiB");
        let mut machine = advice::tests::machine();
        assert_eq!(cores(&machine), "4");
        machine.logical_cpus = Some(8);
        machine.cgroup_cpus = Some(1.5);
        assert_eq!(
            cores(&machine),
            "4, 8 logical processors, 4 for this process, the control group leaves the time of 1.50"
        );
    }
}
