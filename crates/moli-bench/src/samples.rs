//! A report that has everything, for tests.

use std::collections::BTreeMap;

use crate::report::*;
use crate::statistics::{histogram, quantiles, row};

/// Repetitions around `seconds`, one of them an outlier.
fn repetitions(seconds: f64) -> Vec<f64> {
    [1.0, 1.004, 0.998, 1.3, 1.002, 0.997, 1.001].map(|factor| factor * seconds).to_vec()
}

fn conditions() -> Conditions {
    Conditions {
        cpu_seconds: Some(9.5),
        wall_seconds: 5.0,
        peak_resident_bytes: Some(1_300_000_000),
        resident_bytes: Some(1_200_000_000),
        major_faults: Some(0),
        minor_faults: Some(12),
        others: Some(0.01),
        stolen: None,
        frequency: Some([2.2e9, 2.9e9, 3.1e9]),
        temperature: Some(71.5),
        throttled: Some(0),
        joules: Some(61.0),
        joules_per_token: Some(0.12),
    }
}

/// Four models' worth of nothing, and every kind of row at two numbers of threads.
pub(crate) fn report() -> Report {
    let name = "qwen2.5-1.5b";
    let case = |work, threads| Case {
        model: name.to_owned(),
        work,
        threads,
        kv_type: "f16".to_owned(),
        context: 8192,
    };
    let mut rows = Vec::new();
    for threads in [1, 2, 4] {
        let speed = threads as f64;
        let compute =
            Some(Bound { of_memory: 0.06, of_compute: 0.57, compute: Peak::Int8, binds: Binds::Compute });
        let memory =
            Some(Bound { of_memory: 0.83, of_compute: 0.11, compute: Peak::Int8, binds: Binds::Memory });
        for depth in [0, 4096] {
            let slower = speed / (1.0 + depth as f64 / 8192.0);
            let prefill = case(Test::Prefill { tokens: 512, depth }, threads);
            rows.push(Row { bound: compute, ..row(prefill, 512, repetitions(10.0 / slower), conditions()) });
            for batch in [1, 8] {
                let decode = case(Test::Decode { tokens: 128, depth, batch }, threads);
                let seconds = repetitions(12.0 / slower * (batch as f64).sqrt());
                rows.push(Row { bound: memory, ..row(decode, 128 * batch, seconds, conditions()) });
            }
        }
    }
    for through in [Through::Engine, Through::Server] {
        let work = Test::EndToEnd { through, prompt: 64, tokens: 32, clients: 2 };
        let tail: Vec<f64> = (1..2000).map(|i| 0.02 + 0.002 / (f64::from(i) / 200.0)).collect();
        let latency = Latency {
            ttft: quantiles(&repetitions(0.4)),
            inter_token: quantiles(&tail),
            histogram: histogram(&tail),
        };
        let row = row(case(work, 2), 64, repetitions(2.0), conditions());
        rows.push(Row { latency: Some(latency), ..row });
    }
    let limits = [1, 2, 4].map(|threads| Limits {
        threads,
        read_bytes_per_second: 11e9 * (threads as f64).sqrt(),
        int8_macs_per_second: Some(160e9 * threads as f64),
        f32_macs_per_second: 42e9 * threads as f64,
    });
    let sustained = (0..60).map(|i| Moment {
        seconds: f64::from(i) * 10.0,
        rate: 11.0 - f64::from(i) / 60.0 * 2.0,
        frequency: Some(3e9 - f64::from(i) * 1e7),
        temperature: Some(45.0 + f64::from(i) / 1.5),
        watts: Some(15.0),
    });
    let not = |why: &str| Readable::Not(why.to_owned());
    Report {
        schema: SCHEMA.to_owned(),
        date: "2026-01-02T03:04:05Z".to_owned(),
        build: Build {
            version: "0.1.0".to_owned(),
            target: "x86_64-linux".to_owned(),
            sha256: Some("ab".repeat(32)),
        },
        machine: Machine {
            gpu: None,
            cpu: Some("A Processor, 4 cores \"X\"".to_owned()),
            board: None,
            arch: "x86_64".to_owned(),
            isa: "avx2".to_owned(),
            isas: vec!["scalar".to_owned(), "avx2".to_owned()],
            logical_cpus: Some(8),
            cores: Some(4),
            usable_cpus: 4,
            default_threads: 4,
            frequency: Some([800_000_000, 3_100_000_000]),
            governor: Some("schedutil".to_owned()),
            caches: vec![Cache { level: 1, kind: "data".to_owned(), bytes: 32768, shared_by: Some(2) }],
            memory_bytes: Some(16 << 30),
            cgroup_memory_bytes: None,
            cgroup_cpus: None,
            kernel: Some("Linux 6.8.0".to_owned()),
            virtualised: None,
            sensors: Sensors {
                frequency: Readable::From("/sys/devices/system/cpu".to_owned()),
                temperature: Readable::From("/sys/class/thermal".to_owned()),
                energy: not("no powercap"),
                throttling: not("no counter"),
            },
        },
        models: BTreeMap::from([(
            name.to_owned(),
            Model {
                source: "qwen2.5-1.5b:q4_k_m".to_owned(),
                synthetic: true,
                description: "qwen2 1.5B Q4_K_M".to_owned(),
                architecture: "qwen2".to_owned(),
                parameters: 1_543_714_304,
                weight_bytes: 1_100_000_000,
                bytes_per_token: 980_000_000,
                macs_per_token: 1_540_000_000,
                quantization: "Q4_K".to_owned(),
                fingerprint: "cd".repeat(32),
                load_seconds: 0.4,
            },
        )]),
        limits: limits.to_vec(),
        rows,
        sustained: sustained.collect(),
        turns: None,
        outlier_rule: crate::statistics::OUTLIER_RULE.to_owned(),
        notes: vec!["Another process was using the machine during 1 of 20 rows.".to_owned()],
    }
}
