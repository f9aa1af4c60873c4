//! The table for people: above it what was run on what, below it what has to be known.

use std::fmt::Write as _;

use crate::names::printable;
use crate::report::{Binds, Bound, Conditions, Peak, Quantiles, Readable, Report, Row};

use super::columns::{Align, Columns, markdown as escaped};

/// For a terminal.
pub(super) fn text(report: &Report) -> String {
    let mut text = String::new();
    for line in head(report) {
        let _ = writeln!(text, "{}", printable(&line));
    }
    let _ = write!(text, "\n{}\n", columns(report).text());
    for line in below(report) {
        let _ = writeln!(text, "{}", printable(&line));
    }
    text
}

/// As Markdown.
pub(super) fn markdown(report: &Report) -> String {
    let list = |lines: Vec<String>| {
        lines.iter().fold(String::new(), |text, line| text + "- " + &escaped(&printable(line)) + "\n")
    };
    format!("{}\n{}\n{}", list(head(report)), columns(report).markdown(), list(below(report)))
}

/// What was run, on what.
fn head(report: &Report) -> Vec<String> {
    let Report { date, build, machine, models, .. } = report;
    let cpu = machine.cpu.as_deref().or(machine.board.as_deref()).unwrap_or("a processor without a name");
    let mut lines = vec![
        format!("moli {} ({}), {date}", build.version, build.target),
        match &machine.gpu {
            Some(gpu) => format!("{}: {}, compute capability {}", gpu.device, gpu.name, gpu.capability),
            None => format!("{cpu}, {} processors usable, {} kernels", machine.usable_cpus, machine.isa),
        },
    ];
    for (name, model) in models {
        let synthetic = if model.synthetic { ", random weights" } else { "" };
        let size = model.weight_bytes as f64 / 1e6;
        lines.push(format!("{name}: {}, {size:.0} MB{synthetic}", model.description));
    }
    lines
}

fn columns(report: &Report) -> Columns {
    let heads = [
        ("model", Align::Left),
        ("test", Align::Left),
        ("threads", Align::Right),
        ("kv", Align::Left),
        ("context", Align::Right),
        ("tokens/s", Align::Right),
        ("±", Align::Right),
        ("min–max", Align::Right),
        ("of the machine", Align::Left),
        ("ttft p50/p95 ms", Align::Right),
        ("token p50/p95/p99 ms", Align::Right),
        ("MB (peak)", Align::Right),
        ("J/token", Align::Right),
    ];
    Columns::new(&heads, report.rows.iter().map(cells).collect())
}

fn cells(row: &Row) -> Vec<String> {
    let rate = &row.rate;
    let optional = |text: Option<String>| text.unwrap_or_default();
    let latency = row.latency.as_ref();
    vec![
        row.case.model.clone(),
        row.case.work.to_string(),
        row.case.threads.to_string(),
        row.case.kv_type.clone(),
        row.case.context.to_string(),
        speed(rate.median),
        format!("{:.1}%", rate.spread * 100.0),
        format!("{}–{}", speed(rate.min), speed(rate.max)),
        optional(row.bound.as_ref().map(bound)),
        optional(
            latency.map(|latency| format!("{:.0}/{:.0}", latency.ttft.p50 * 1e3, latency.ttft.p95 * 1e3)),
        ),
        optional(latency.map(|latency| milliseconds(&latency.inter_token))),
        optional(resident(&row.conditions)),
        optional(row.conditions.joules_per_token.map(|joules| format!("{joules:.3}"))),
    ]
}

/// Tokens per second, as precise as they are measured.
pub(super) fn speed(rate: f64) -> String {
    match rate {
        rate if rate >= 100.0 => format!("{rate:.0}"),
        rate if rate >= 10.0 => format!("{rate:.1}"),
        rate => format!("{rate:.2}"),
    }
}

fn milliseconds(Quantiles { p50, p95, p99, .. }: &Quantiles) -> String {
    format!("{:.1}/{:.1}/{:.1}", p50 * 1e3, p95 * 1e3, p99 * 1e3)
}

/// Resident memory as it was most of the time, and the most of it.
fn resident(conditions: &Conditions) -> Option<String> {
    let [steady, peak] =
        [conditions.resident_bytes?, conditions.peak_resident_bytes?].map(|bytes| bytes as f64 / 1e6);
    Some(format!("{steady:.0} ({peak:.0})"))
}

/// The limit that binds.
fn bound(bound: &Bound) -> String {
    match (bound.binds, bound.compute) {
        (Binds::Memory, _) => format!("{:.0}% of the memory limit", bound.of_memory * 100.0),
        (Binds::Compute, Peak::Int8) => format!("{:.0}% of the int8 peak", bound.of_compute * 100.0),
        (Binds::Compute, Peak::F32) => format!("{:.0}% of the f32 peak", bound.of_compute * 100.0),
    }
}

/// What has to be known about the numbers.
fn below(report: &Report) -> Vec<String> {
    let mut lines = Vec::new();
    for limits in &report.limits {
        let int8 = limits
            .int8_macs_per_second
            .map_or_else(String::new, |macs| format!("{:.0} G int8 and ", macs / 1e9));
        lines.push(format!(
            "limits, threads {}: {:.1} GB/s read, {int8}{:.0} G f32 multiply-adds/s",
            limits.threads,
            limits.read_bytes_per_second / 1e9,
            limits.f32_macs_per_second / 1e9
        ));
    }
    lines.extend(conditions(report));
    let (outliers, repetitions) = report.rows.iter().fold((0, 0), |(outliers, repetitions), row| {
        (outliers + row.outliers.len(), repetitions + row.seconds.len())
    });
    lines.push(format!("tokens/s: median ± half the distance of the quartiles; {repetitions} repetitions, {outliers} left out"));
    lines.push(format!("outliers: {}", report.outlier_rule));
    lines.extend(report.notes.iter().map(|note| format!("note: {note}")));
    lines
}

/// How the machine was, over all rows, and what of it can't be read.
fn conditions(report: &Report) -> Vec<String> {
    let all = || report.rows.iter().map(|row| &row.conditions);
    let most = |values: Vec<f64>| values.into_iter().reduce(f64::max);
    let mut parts = Vec::new();
    let frequencies: Vec<[f64; 3]> = all().filter_map(|conditions| conditions.frequency).collect();
    let low = frequencies.iter().map(|three| three[0]).reduce(f64::min);
    if let (Some(low), Some(high)) = (low, most(frequencies.iter().map(|three| three[2]).collect())) {
        parts.push(format!("{:.2}–{:.2} GHz", low / 1e9, high / 1e9));
    }
    if let Some(temperature) = most(all().filter_map(|conditions| conditions.temperature).collect()) {
        parts.push(format!("up to {temperature:.0} °C"));
    }
    if let Some(others) = most(all().filter_map(|conditions| conditions.others).collect()) {
        parts.push(format!("others had up to {:.0}% of the processors", others * 100.0));
    }
    let throttled: u64 = all().filter_map(|conditions| conditions.throttled).fold(0, u64::saturating_add);
    if throttled > 0 {
        parts.push(format!("throttled {throttled} times"));
    }
    let mut lines = Vec::new();
    if !parts.is_empty() {
        lines.push(format!("meanwhile: {}", parts.join(", ")));
    }
    let sensors = &report.machine.sensors;
    for (name, sensor) in [
        ("frequency", &sensors.frequency),
        ("temperature", &sensors.temperature),
        ("energy", &sensors.energy),
        ("throttling", &sensors.throttling),
    ] {
        if let Readable::Not(reason) = sensor {
            lines.push(format!("{name}: not readable: {reason}"));
        }
    }
    lines
}
