//! A row a line. What a row hasn't is empty.

use std::io::{self, Write};

use serde::Serialize;

use crate::report::{Report, Row, Test};

/// The columns.
#[derive(Default, Serialize)]
struct Record<'a> {
    date: &'a str,
    version: &'a str,
    cpu: Option<&'a str>,
    isa: &'a str,
    model: &'a str,
    fingerprint: Option<&'a str>,
    quantization: Option<&'a str>,
    test: String,
    tokens: usize,
    depth: Option<usize>,
    batch: Option<usize>,
    prompt: Option<usize>,
    clients: Option<usize>,
    threads: usize,
    kv_type: &'a str,
    context: usize,
    repetitions: usize,
    left_out: usize,
    tokens_per_second: f64,
    tokens_per_second_min: f64,
    tokens_per_second_max: f64,
    spread: f64,
    of_memory: Option<f64>,
    of_compute: Option<f64>,
    ttft_p50_seconds: Option<f64>,
    ttft_p95_seconds: Option<f64>,
    ttft_p99_seconds: Option<f64>,
    inter_token_p50_seconds: Option<f64>,
    inter_token_p95_seconds: Option<f64>,
    inter_token_p99_seconds: Option<f64>,
    resident_bytes: Option<u64>,
    peak_resident_bytes: Option<u64>,
    others: Option<f64>,
    temperature: Option<f64>,
    throttled: Option<u64>,
    joules_per_token: Option<f64>,
}

/// Writes the names, then a line for each row.
pub(super) fn write(report: &Report, out: &mut dyn Write) -> io::Result<()> {
    let mut writer = csv::Writer::from_writer(out);
    for row in &report.rows {
        writer.serialize(record(report, row)).map_err(io::Error::other)?;
    }
    writer.flush()
}

fn record<'a>(report: &'a Report, row: &'a Row) -> Record<'a> {
    let model = report.models.get(&row.case.model);
    let [ttft, inter_token] = match &row.latency {
        Some(latency) => [Some(latency.ttft), Some(latency.inter_token)],
        None => [None; 2],
    };
    let record = Record {
        date: &report.date,
        version: &report.build.version,
        cpu: report.machine.cpu.as_deref(),
        isa: &report.machine.isa,
        model: &row.case.model,
        fingerprint: model.map(|model| model.fingerprint.as_str()),
        quantization: model.map(|model| model.quantization.as_str()),
        test: row.case.work.to_string(),
        threads: row.case.threads,
        kv_type: &row.case.kv_type,
        context: row.case.context,
        repetitions: row.seconds.len(),
        left_out: row.outliers.len(),
        tokens_per_second: row.rate.median,
        tokens_per_second_min: row.rate.min,
        tokens_per_second_max: row.rate.max,
        spread: row.rate.spread,
        of_memory: row.bound.map(|bound| bound.of_memory),
        of_compute: row.bound.map(|bound| bound.of_compute),
        ttft_p50_seconds: ttft.map(|quantiles| quantiles.p50),
        ttft_p95_seconds: ttft.map(|quantiles| quantiles.p95),
        ttft_p99_seconds: ttft.map(|quantiles| quantiles.p99),
        inter_token_p50_seconds: inter_token.map(|quantiles| quantiles.p50),
        inter_token_p95_seconds: inter_token.map(|quantiles| quantiles.p95),
        inter_token_p99_seconds: inter_token.map(|quantiles| quantiles.p99),
        resident_bytes: row.conditions.resident_bytes,
        peak_resident_bytes: row.conditions.peak_resident_bytes,
        others: row.conditions.others,
        temperature: row.conditions.temperature,
        throttled: row.conditions.throttled,
        joules_per_token: row.conditions.joules_per_token,
        ..Record::default()
    };
    match row.case.work {
        Test::Prefill { tokens, depth } => Record { tokens, depth: Some(depth), ..record },
        Test::Decode { tokens, depth, batch } => {
            Record { tokens, depth: Some(depth), batch: Some(batch), ..record }
        }
        Test::EndToEnd { prompt, tokens, clients, .. } => {
            Record { tokens, prompt: Some(prompt), clients: Some(clients), ..record }
        }
    }
}
