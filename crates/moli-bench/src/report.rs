//! The receipt of a run: what was measured, of what, on what, and how well. Its JSON form is versioned ([`SCHEMA`]).
//!
//! Units: seconds, bytes, bytes and multiply-adds per second, degrees Celsius, hertz, joules. What could not be read is
//! `null`, never 0.

use std::collections::BTreeMap;

#[cfg(test)]
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The version of the JSON form: another one is refused, not guessed at.
pub const SCHEMA: &str = "moli-bench/1";

/// A run of the benchmark.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Report {
    /// [`SCHEMA`].
    pub schema: String,
    /// When it began, RFC 3339, UTC.
    pub date: String,
    /// What measured.
    pub build: Build,
    /// What it ran on.
    pub machine: Machine,
    /// What was run, by the name that the rows use.
    pub models: BTreeMap<String, Model>,
    /// What the machine can do at most, measured in the same run, by number of threads.
    pub limits: Vec<Limits>,
    /// What was measured.
    pub rows: Vec<Row>,
    /// Speed, frequency and temperature over time, of a sustained run.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sustained: Vec<Moment>,
    /// Of several runs that took turns with another program's, joined: each row's `seconds` has equally many of each run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub turns: Option<Turns>,
    /// The rule by which repetitions are left out of a summary, in words.
    pub outlier_rule: String,
    /// What a reader has to know before trusting the numbers: another process was busy, the run was interrupted, the
    /// processor was throttled.
    pub notes: Vec<String>,
}

/// Runs of one program in turns with those of another: reports with equal values are of one measurement, and are compared
/// round by round.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Turns {
    /// The measurement's.
    pub id: String,
    /// Runs of each program.
    pub rounds: usize,
}

/// The program that measured.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Build {
    /// Moli's version.
    pub version: String,
    /// The target triple's processor and system, such as `x86_64-linux`.
    pub target: String,
    /// SHA-256 of the program's file: two builds of one version are told apart by it.
    pub sha256: Option<String>,
}

/// A machine, and what this process may use of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Machine {
    /// The processor's name.
    pub cpu: Option<String>,
    /// What the board says it is (device tree, DMI).
    pub board: Option<String>,
    /// `x86_64`, `aarch64`.
    pub arch: String,
    /// The instruction set that the kernels use.
    pub isa: String,
    /// Instruction sets that the kernels could use here, from the plainest.
    pub isas: Vec<String>,
    /// Logical processors of the machine.
    pub logical_cpus: Option<usize>,
    /// Cores; hyper-threads of one core count once.
    pub cores: Option<usize>,
    /// Logical processors that this process may run on.
    pub usable_cpus: usize,
    /// Threads where nobody says.
    pub default_threads: usize,
    /// Lowest and highest frequency of the fastest processor, Hz.
    pub frequency: Option<[u64; 2]>,
    /// How the system chooses frequencies (`performance`, `schedutil`).
    pub governor: Option<String>,
    /// Caches of a processor, from the nearest.
    pub caches: Vec<Cache>,
    /// Physical memory, bytes.
    pub memory_bytes: Option<u64>,
    /// What the cgroup leaves of it, bytes; `None`: all.
    pub cgroup_memory_bytes: Option<u64>,
    /// Processors' worth of time that the cgroup leaves; `None`: all.
    pub cgroup_cpus: Option<f64>,
    /// The system and its version, such as `Linux 6.8.0`.
    pub kernel: Option<String>,
    /// Whether it is a virtual machine or container, and which, as far as can be seen.
    pub virtualised: Option<String>,
    /// The GPU that computed; `None`: the processor did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpu: Option<Gpu>,
    /// What can be read during a run, or why not.
    pub sensors: Sensors,
}

/// A GPU.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Gpu {
    /// Its name.
    pub name: String,
    /// As `--device` calls it.
    pub device: String,
    /// Compute capability, such as `9.0`.
    pub capability: String,
    /// Streaming multiprocessors.
    pub multiprocessors: usize,
    /// Bytes of its memory.
    pub memory_bytes: u64,
}

/// A cache of a processor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Cache {
    /// 1, 2, 3.
    pub level: u8,
    /// `data`, `instruction`, `unified`.
    pub kind: String,
    /// Size in bytes.
    pub bytes: u64,
    /// Logical processors that share it.
    pub shared_by: Option<usize>,
}

/// Where each sensor is read, or why it isn't: `ok: …` or `not readable: …`, in words.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Sensors {
    /// Of the processors.
    pub frequency: Readable,
    /// Of the processor, the board or the GPU that computes.
    pub temperature: Readable,
    /// Of the processor, the GPU that computes, the board or the battery.
    pub energy: Readable,
    /// Whether the processor slowed itself down.
    pub throttling: Readable,
}

/// Whether something can be read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Readable {
    /// From there.
    From(String),
    /// For that reason.
    Not(String),
}

/// A model that was run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Model {
    /// The file as it was named, or the synthetic shape and mixture.
    pub source: String,
    /// Whether its weights are random.
    pub synthetic: bool,
    /// What it says it is, such as `qwen2 1.5B Q4_K_M`.
    pub description: String,
    /// `general.architecture`.
    pub architecture: String,
    /// Parameters.
    pub parameters: u64,
    /// Bytes of its tensors.
    pub weight_bytes: u64,
    /// Bytes of weights that one token reads; of a mixture of experts, those that it chooses.
    pub bytes_per_token: u64,
    /// Multiply-adds with weights for one token.
    pub macs_per_token: u64,
    /// The format of most of its weights.
    pub quantization: String,
    /// SHA-256 over the tensors' names, types, shapes and a sample of their bytes: equal for equal models.
    pub fingerprint: String,
    /// From the start of loading until it could compute, seconds.
    pub load_seconds: f64,
}

/// What the machine, or the GPU that computes, can do at most with so many threads, medians of the measurements between the rows.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// Threads.
    pub threads: usize,
    /// Bytes read per second from memory beyond the caches.
    pub read_bytes_per_second: f64,
    /// 8-bit multiply-adds per second of the instruction set in use; `None`: it has no instruction for them.
    pub int8_macs_per_second: Option<f64>,
    /// f32 multiply-adds per second of the instruction set in use.
    pub f32_macs_per_second: f64,
}

/// What is measured.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(tag = "test", rename_all = "snake_case", deny_unknown_fields)]
pub enum Test {
    /// Tokens of one prompt are read, behind so many that were read before.
    Prefill {
        /// Tokens that are read.
        tokens: usize,
        /// Tokens before them.
        depth: usize,
    },
    /// Tokens are generated one by one, in so many sequences at once.
    Decode {
        /// Tokens of each sequence.
        tokens: usize,
        /// Tokens before them, in each sequence.
        depth: usize,
        /// Sequences.
        batch: usize,
    },
    /// Whole answers, from the request to the last token.
    EndToEnd {
        /// What stands between the request and the model.
        through: Through,
        /// Tokens of each prompt.
        prompt: usize,
        /// Tokens of each answer.
        tokens: usize,
        /// Requests at once.
        clients: usize,
    },
}

/// The way of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Through {
    /// The engine, called as a library.
    Engine,
    /// The HTTP server, over the loopback.
    Server,
}

/// What is measured and how: rows of two runs with equal cases can be compared.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
pub struct Case {
    /// The model's name in [`Report::models`].
    pub model: String,
    /// The work.
    #[serde(flatten)]
    pub work: Test,
    /// Threads that compute.
    pub threads: usize,
    /// How keys and values are kept.
    pub kv_type: String,
    /// Tokens that there are pages for.
    pub context: usize,
}

/// A case and what came out.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
pub struct Row {
    /// What was measured.
    #[serde(flatten)]
    pub case: Case,
    /// Tokens that one repetition computes and its time is divided by, in all sequences together.
    pub tokens_per_repetition: usize,
    /// Seconds of each repetition, in the order in which they were measured.
    pub seconds: Vec<f64>,
    /// How many times the model was loaded for them: what one loading happens to get, of memory and processors, stays with all
    /// its repetitions.
    #[serde(default = "once")]
    pub loads: usize,
    /// Which of `seconds` the outlier rule leaves out, from 0.
    pub outliers: Vec<usize>,
    /// Tokens per second, without the outliers.
    pub rate: Summary,
    /// Of end-to-end rows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latency: Option<Latency>,
    /// What the machine allows, of prefill and decode rows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bound: Option<Bound>,
    /// How the machine was meanwhile.
    pub conditions: Conditions,
}

fn once() -> usize {
    1
}

/// Samples in a few numbers.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Summary {
    /// The middle one.
    pub median: f64,
    /// The lowest.
    pub min: f64,
    /// The highest.
    pub max: f64,
    /// Half the distance of the quartiles, to the median: 0.01 is ± 1%.
    pub spread: f64,
}

/// Times of answers, seconds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Latency {
    /// From the request to the first token.
    pub ttft: Quantiles,
    /// Between two tokens.
    pub inter_token: Quantiles,
    /// Of the times between two tokens: how many fell between the bounds, for a plot.
    pub histogram: Vec<Bin>,
}

/// A part of a histogram.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Bin {
    /// From this, seconds.
    pub from: f64,
    /// To below this, seconds.
    pub to: f64,
    /// So many.
    pub count: usize,
}

/// The middle and the end of a distribution, seconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Quantiles {
    /// Half are below.
    pub p50: f64,
    /// 95 of 100 are below.
    pub p95: f64,
    /// 99 of 100 are below.
    pub p99: f64,
    /// Samples.
    pub count: usize,
}

/// How near the median came to what the machine can do, 0 to 1 and a little beyond.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Bound {
    /// Bytes of weights, keys and values per second, to what is read at most.
    pub of_memory: f64,
    /// Multiply-adds per second, to the peak of the kind that the formats are multiplied with.
    pub of_compute: f64,
    /// Which peak that is.
    pub compute: Peak,
    /// The limit that is nearer.
    pub binds: Binds,
}

/// A peak of multiply-adds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Peak {
    /// Of 8-bit numbers.
    Int8,
    /// Of single-precision numbers.
    F32,
}

/// What a speed is bound by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Binds {
    /// Reading.
    Memory,
    /// Multiplying.
    Compute,
}

/// How the machine was during the repetitions of a row.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Conditions {
    /// Processor time of this process, seconds, and the time that passed.
    pub cpu_seconds: Option<f64>,
    /// The time that passed, seconds.
    pub wall_seconds: f64,
    /// Highest resident memory of this process meanwhile, bytes: all models that take turns, and of files what is mapped and was read.
    pub peak_resident_bytes: Option<u64>,
    /// Resident memory of this process as it was most of the time (the median of several looks per second), bytes.
    pub resident_bytes: Option<u64>,
    /// Page faults that read a disk.
    pub major_faults: Option<u64>,
    /// Page faults that did not.
    pub minor_faults: Option<u64>,
    /// Processor time that others had on the processors that this process may use, as a share of them, 0 to 1.
    pub others: Option<f64>,
    /// Time that the hypervisor gave to others, as a share, 0 to 1.
    pub stolen: Option<f64>,
    /// Lowest, median and highest frequency, Hz.
    pub frequency: Option<[f64; 3]>,
    /// Highest temperature, °C.
    pub temperature: Option<f64>,
    /// Times that the processor reported to have slowed itself down, or had been kept from running by its quota.
    pub throttled: Option<u64>,
    /// Energy, joules.
    pub joules: Option<f64>,
    /// Energy of a token.
    pub joules_per_token: Option<f64>,
}

/// A moment of a sustained run.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Moment {
    /// Since the beginning, seconds.
    pub seconds: f64,
    /// Tokens per second since the moment before.
    pub rate: f64,
    /// Median frequency, Hz.
    pub frequency: Option<f64>,
    /// Highest temperature, °C.
    pub temperature: Option<f64>,
    /// Power, watts.
    pub watts: Option<f64>,
}
