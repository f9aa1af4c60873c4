//! Rows with the field names of llama.cpp's `llama-bench -o jsonl`, for programs that read those.

use std::io::{self, Write};

use serde::Serialize;

use crate::report::{Model, Report, Row, Test};

/// What llama-bench documents, in its order, and what it has since put in the place of `use_mmap` and `use_direct_io`. What is of
/// placing threads, or of dividing a model between devices, says that there is none of it.
#[derive(Serialize)]
struct Record<'a> {
    build_commit: String,
    build_number: u64,
    cpu_info: &'a str,
    gpu_info: &'a str,
    backends: &'static str,
    model_filename: &'a str,
    model_type: &'a str,
    model_size: u64,
    model_n_params: u64,
    n_batch: usize,
    n_ubatch: usize,
    n_threads: usize,
    cpu_mask: &'static str,
    cpu_strict: bool,
    poll: u64,
    type_k: &'a str,
    type_v: &'a str,
    n_gpu_layers: i64,
    n_cpu_moe: u64,
    split_mode: &'static str,
    main_gpu: u64,
    no_kv_offload: bool,
    flash_attn: i64,
    devices: &'static str,
    tensor_split: &'static str,
    tensor_buft_overrides: &'static str,
    use_mmap: bool,
    use_direct_io: bool,
    load_mode: &'static str,
    lazy_mode: &'static str,
    embeddings: bool,
    no_op_offload: u64,
    no_host: bool,
    repack: bool,
    fit_target: u64,
    fit_min_ctx: u64,
    n_prompt: usize,
    n_gen: usize,
    n_depth: usize,
    test_time: &'a str,
    avg_ns: u64,
    stddev_ns: u64,
    avg_ts: f64,
    stddev_ts: f64,
    samples_ns: Vec<u64>,
    samples_ts: Vec<f64>,
}

/// All layers of any model, as llama-bench's default has it.
const ALL_LAYERS: i64 = 99;
/// Tokens that are read together at most.
const BATCH: usize = 512;

/// Writes the rows that llama-bench has a form for.
pub(super) fn write(report: &Report, out: &mut dyn Write) -> io::Result<()> {
    let records = report.rows.iter().filter_map(|row| record(report, row));
    records.into_iter().try_for_each(|record| super::line(&record, out))
}

/// Says which rows it has none for.
pub(super) fn left_out(report: &Report) -> Option<String> {
    let out: Vec<String> =
        report.rows.iter().filter(|row| test(row).is_none()).map(|row| row.case.work.to_string()).collect();
    (!out.is_empty()).then(|| format!("llama-bench has no form for {} rows: {}", out.len(), out.join(", ")))
}

/// `n_prompt`, `n_gen` and `n_depth`.
fn test(row: &Row) -> Option<[usize; 3]> {
    match row.case.work {
        Test::Prefill { tokens, depth } => Some([tokens, 0, depth]),
        Test::Decode { tokens, depth, batch: 1 } => Some([0, tokens, depth]),
        Test::Decode { .. } | Test::EndToEnd { .. } => None,
    }
}

fn record<'a>(report: &'a Report, row: &'a Row) -> Option<Record<'a>> {
    let [n_prompt, n_gen, n_depth] = test(row)?;
    let gpu = report.machine.gpu.as_ref();
    let model: Option<&Model> = report.models.get(&row.case.model);
    // It leaves no repetition out, and has means.
    let samples_ns: Vec<u64> = row.seconds.iter().map(|seconds| (seconds * 1e9).round() as u64).collect();
    let samples_ts: Vec<f64> =
        row.seconds.iter().map(|seconds| row.tokens_per_repetition as f64 / seconds).collect();
    let nanoseconds: Vec<f64> = row.seconds.iter().map(|seconds| seconds * 1e9).collect();
    let [(avg_ns, stddev_ns), (avg_ts, stddev_ts)] = [&nanoseconds, &samples_ts].map(|samples| mean(samples));
    Some(Record {
        build_commit: format!("moli-{}", report.build.version),
        build_number: 0,
        cpu_info: report.machine.cpu.as_deref().unwrap_or_default(),
        gpu_info: gpu.map_or("", |gpu| gpu.name.as_str()),
        backends: if gpu.is_some() { "CUDA" } else { "CPU" },
        model_filename: model.map_or("", |model| model.source.as_str()),
        model_type: model.map_or("", |model| model.description.as_str()),
        model_size: model.map_or(0, |model| model.weight_bytes),
        model_n_params: model.map_or(0, |model| model.parameters),
        n_batch: BATCH,
        n_ubatch: BATCH,
        n_threads: row.case.threads,
        cpu_mask: "0x0",
        cpu_strict: false,
        poll: 0,
        type_k: &row.case.kv_type,
        type_v: &row.case.kv_type,
        n_gpu_layers: if gpu.is_some() { ALL_LAYERS } else { 0 },
        n_cpu_moe: 0,
        split_mode: "none",
        main_gpu: 0,
        no_kv_offload: false,
        flash_attn: 1,
        devices: "none",
        tensor_split: "0.00",
        tensor_buft_overrides: "none",
        use_mmap: true,
        use_direct_io: false,
        load_mode: "mmap",
        lazy_mode: "auto",
        embeddings: false,
        no_op_offload: 0,
        no_host: false,
        repack: false,
        fit_target: 0,
        fit_min_ctx: 0,
        n_prompt,
        n_gen,
        n_depth,
        test_time: &report.date,
        avg_ns: avg_ns.round() as u64,
        stddev_ns: stddev_ns.round() as u64,
        avg_ts,
        stddev_ts,
        samples_ns,
        samples_ts,
    })
}

/// Mean and standard deviation; of one sample, which has none, 0.
fn mean(samples: &[f64]) -> (f64, f64) {
    let count = samples.len() as f64;
    let mean = samples.iter().sum::<f64>() / count;
    if samples.len() < 2 {
        return (mean, 0.0);
    }
    let squares: f64 = samples.iter().map(|sample| (sample - mean).powi(2)).sum();
    (mean, (squares / (count - 1.0)).sqrt())
}
