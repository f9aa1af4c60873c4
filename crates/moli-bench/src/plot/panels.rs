//! The charts that a report has data for.

use std::collections::BTreeMap;

use crate::report::{Case, Moment, Peak, Report, Row, Test};

use super::chart::{Axis, Chart, Series, number};

/// All of them, from the limits to the long run.
pub(super) fn charts(report: &Report) -> Vec<Chart> {
    let mut charts: Vec<Chart> = roofline(report).into_iter().collect();
    for kind in [Kind::Prefill, Kind::Decode] {
        charts.extend(by(report, kind, Along::Depth));
        charts.extend(by(report, kind, Along::Threads));
    }
    charts.extend(latency(report));
    charts.extend(sustained(report));
    charts
}

/// What was run where, for a subtitle.
fn setting(report: &Report) -> String {
    let mut models = report.models.keys();
    let model = match (models.next(), models.len()) {
        (Some(one), 0) => one.clone(),
        (Some(_), more) => format!("{} models", more + 1),
        (None, _) => "no model".to_owned(),
    };
    let cpu =
        report.machine.cpu.as_deref().or(report.machine.board.as_deref()).unwrap_or("unnamed processor");
    format!(
        "{model} on {cpu}, {} kernels, moli {}, {}",
        report.machine.isa, report.build.version, report.date
    )
}

fn threads(count: usize) -> String {
    format!("{count} thread{}", if count == 1 { "" } else { "s" })
}

/// The name of a row among others: what all rows share is left out.
fn name(report: &Report, row: &Row, work: &str, with_threads: bool) -> String {
    let differ = |part: fn(&Row) -> &str| report.rows.iter().any(|other| part(other) != part(row));
    let mut name = work.to_owned();
    if differ(|row| &row.case.model) {
        name = format!("{} {name}", row.case.model);
    }
    if differ(|row| &row.case.kv_type) {
        name = format!("{name}, kv {}", row.case.kv_type);
    }
    // Most contexts are what the test needs, and only those that were asked for tell rows apart.
    let otherwise_equal = |other: &&Row| Case { context: row.case.context, ..other.case.clone() } == row.case;
    if report.rows.iter().filter(otherwise_equal).any(|other| other.case.context != row.case.context) {
        name = format!("{name}, ctx {}", row.case.context);
    }
    if with_threads && report.rows.iter().any(|other| other.case.threads != row.case.threads) {
        name = format!("{name}, {}", threads(row.case.threads));
    }
    name
}

fn roofline(report: &Report) -> Option<Chart> {
    const GIGA: f64 = 1e9;
    let mut used: Vec<usize> =
        report.rows.iter().filter(|row| row.bound.is_some()).map(|row| row.case.threads).collect();
    used.sort_unstable();
    // The fewest and the most threads; all roofs would hide the points.
    let shown = |threads: usize| used.first() == Some(&threads) || used.last() == Some(&threads);
    let mut series: Vec<Series> = Vec::new();
    for row in report.rows.iter().filter(|row| shown(row.case.threads)) {
        let Some(bound) = row.bound else { continue };
        let Some(limits) = report.limits.iter().find(|limits| limits.threads == row.case.threads) else {
            continue;
        };
        let peak = match bound.compute {
            Peak::Int8 => limits.int8_macs_per_second,
            Peak::F32 => Some(limits.f32_macs_per_second),
        };
        let Some(peak) = peak else { continue };
        let (bytes, macs) = (bound.of_memory * limits.read_bytes_per_second, bound.of_compute * peak);
        if !(bytes > 0.0 && macs > 0.0 && bytes.is_finite() && macs.is_finite()) {
            continue;
        }
        let name = name(report, row, &row.case.work.to_string(), false);
        let point = (macs / bytes, macs / GIGA);
        match series.iter_mut().find(|series| series.name == name) {
            Some(series) => series.points.push(point),
            None => series.push(points(name, vec![point])),
        }
    }
    let limits: Vec<_> = report.limits.iter().filter(|limits| shown(limits.threads)).collect();
    let all = || series.iter().flat_map(|series| &series.points);
    all().next()?;
    let ridges = || {
        limits.iter().filter_map(|limits| Some(limits.int8_macs_per_second? / limits.read_bytes_per_second))
    };
    let x = Axis::logarithmic("multiply-adds per byte read", all().map(|point| point.0).chain(ridges()), 2.0);
    let tops = || {
        limits.iter().map(|limits| limits.int8_macs_per_second.unwrap_or(limits.f32_macs_per_second) / GIGA)
    };
    let y = Axis::logarithmic("G multiply-adds per second", all().map(|point| point.1).chain(tops()), 1.7);
    let mut references = Vec::new();
    for limits in limits {
        let peaks = [(limits.int8_macs_per_second, "int8"), (Some(limits.f32_macs_per_second), "f32")];
        for (peak, kind) in peaks {
            let Some(peak) = peak else { continue };
            let ridge = peak / limits.read_bytes_per_second;
            let bandwidth = limits.read_bytes_per_second / GIGA;
            // The lower one branches off the slope of the higher one.
            let mut line = vec![(ridge, peak / GIGA), (x.to, peak / GIGA)];
            if kind == "int8" || limits.int8_macs_per_second.is_none() {
                line.insert(0, (x.from, x.from * bandwidth));
            }
            let line = clip(line, &y, bandwidth);
            let name = format!("{}: {kind} peak, {} GB/s", threads(limits.threads), number(bandwidth));
            references.push(Series { joined: true, ..points(name, line) });
        }
    }
    Some(Chart {
        title: "Roofline: how near to what the machine can do".to_owned(),
        subtitle: format!("a point for each number of threads that has a roof here; {}", setting(report)),
        x,
        y,
        series,
        references,
    })
}

/// The slope of a roof begins where it enters the chart.
fn clip(mut line: Vec<(f64, f64)>, y: &Axis, bandwidth: f64) -> Vec<(f64, f64)> {
    if let Some(first) = line.first_mut()
        && first.1 < y.from
    {
        *first = (y.from / bandwidth, y.from);
    }
    line
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Prefill,
    Decode,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Along {
    Depth,
    Threads,
}

/// Speed along the depth or the threads, if there are two of them at least.
fn by(report: &Report, kind: Kind, along: Along) -> Option<Chart> {
    let mut lines: BTreeMap<String, Vec<(f64, &Row)>> = BTreeMap::new();
    for row in &report.rows {
        let (depth, flat) = match row.case.work {
            Test::Prefill { tokens, depth } if kind == Kind::Prefill => {
                (depth, Test::Prefill { tokens, depth: 0 })
            }
            Test::Decode { tokens, depth, batch } if kind == Kind::Decode => {
                (depth, Test::Decode { tokens, depth: 0, batch })
            }
            _ => continue,
        };
        let (at, work) = match along {
            Along::Depth => (depth, flat.to_string()),
            Along::Threads => (row.case.threads, row.case.work.to_string()),
        };
        let name = name(report, row, &work, along == Along::Depth);
        lines.entry(name).or_default().push((at as f64, row));
    }
    lines.retain(|_, line| line.iter().any(|(at, _)| line.first().is_some_and(|(first, _)| at != first)));
    let series: Vec<Series> = lines
        .into_iter()
        .map(|(name, mut line)| {
            line.sort_by(|a, b| a.0.total_cmp(&b.0));
            let ranges = line.iter().map(|(_, row)| [row.rate.min, row.rate.max]).collect();
            let line = line.iter().map(|(at, row)| (*at, row.rate.median)).collect();
            Series { ranges, joined: true, ..points(name, line) }
        })
        .collect();
    if series.is_empty() {
        return None;
    }
    let what = if kind == Kind::Prefill { "Prompt processing" } else { "Generation" };
    let (how, label) = match along {
        Along::Depth => ("by depth", "tokens before"),
        Along::Threads => ("by threads", "threads"),
    };
    let tops = series.iter().flat_map(|series| &series.ranges).map(|range| range[1]);
    Some(Chart {
        title: format!("{what} {how}"),
        subtitle: format!("medians, lines from the slowest to the fastest repetition; {}", setting(report)),
        x: Axis::at(label, series.iter().flat_map(|series| &series.points).map(|point| point.0).collect()),
        y: Axis::from_zero("tokens per second", tops),
        series,
        references: Vec::new(),
    })
}

/// The longest time between two tokens that is shown, to the shortest: what is guessed right comes with the token before it.
const LATENCIES: f64 = 1000.0;

/// Times between two tokens, of every end-to-end row.
fn latency(report: &Report) -> Option<Chart> {
    let mut series = Vec::new();
    let ends = report.rows.iter().filter_map(|row| row.latency.as_ref()?.histogram.last());
    let least = ends.map(|bin| bin.to * 1e3).fold(0.0, f64::max) / LATENCIES;
    for row in &report.rows {
        let Some(latency) = &row.latency else { continue };
        let total: usize = latency.histogram.iter().map(|bin| bin.count).sum();
        let bins =
            latency.histogram.iter().filter(|bin| bin.from > 0.0 && bin.to > bin.from && bin.to.is_finite());
        let mut line = Vec::new();
        for bin in bins {
            let share = 100.0 * bin.count as f64 / total.max(1) as f64;
            line.extend([(least.max(bin.from * 1e3), share), (least.max(bin.to * 1e3), share)]);
        }
        let (Some(first), Some(last)) = (line.first().copied(), line.last().copied()) else { continue };
        line.insert(0, (first.0, 0.0));
        line.push((last.0, 0.0));
        let name = name(report, row, &row.case.work.to_string(), true);
        series.push(Series { joined: true, marked: false, ..points(name, line) });
    }
    let all = || series.iter().flat_map(|series| &series.points);
    all().next()?;
    Some(Chart {
        title: "Time between two tokens".to_owned(),
        subtitle: format!("tokens that came together are at the left; {}", setting(report)),
        x: Axis::logarithmic("milliseconds", all().map(|point| point.0), 1.03),
        y: Axis::from_zero("% of the tokens", all().map(|point| point.1)),
        series,
        references: Vec::new(),
    })
}

/// Speed over time, and below it on the same axis what could be read of the machine.
fn sustained(report: &Report) -> Vec<Chart> {
    /// Title, label of the axis, and what it shows.
    type Trace = (&'static str, &'static str, fn(&Moment) -> Option<f64>);
    let traces: [Trace; 4] = [
        ("Sustained speed", "tokens per second", |moment| Some(moment.rate)),
        ("Temperature meanwhile", "°C", |moment| moment.temperature),
        ("Frequency meanwhile", "GHz", |moment| moment.frequency.map(|hertz| hertz / 1e9)),
        ("Power meanwhile", "watts", |moment| moment.watts),
    ];
    let mut charts = Vec::new();
    for (title, label, read) in traces {
        let line: Vec<(f64, f64)> = report
            .sustained
            .iter()
            .filter_map(|moment| Some((moment.seconds / 60.0, read(moment)?)))
            .filter(|(x, y)| x.is_finite() && y.is_finite())
            .collect();
        if line.len() < 2 {
            continue;
        }
        let values = || line.iter().map(|point| point.1);
        // Temperatures begin somewhere; all else at 0.
        let y = if label == "°C" { Axis::around(label, values()) } else { Axis::from_zero(label, values()) };
        let last = report.sustained.last().map_or(0.0, |moment| moment.seconds / 60.0);
        charts.push(Chart {
            title: title.to_owned(),
            subtitle: setting(report),
            x: Axis { to: last.max(1e-3), ..Axis::from_zero("minutes", [last].into_iter()) },
            y,
            series: vec![Series { joined: true, marked: false, ..points(String::new(), line.clone()) }],
            references: Vec::new(),
        });
    }
    charts
}

/// The quantiles of a divergence; what is next to nothing lies on the lower edge. `None` where there is nothing but that.
pub(super) fn divergence(subtitle: &str, nats: &[f64]) -> Option<Chart> {
    /// Nats below which two distributions are the same for all purposes.
    const LEAST: f64 = 1e-6;
    const STEPS: usize = 200;
    let mut sorted: Vec<f64> = nats.iter().copied().filter(|nats| nats.is_finite()).collect();
    sorted.sort_by(f64::total_cmp);
    let line: Vec<(f64, f64)> = (0..=STEPS)
        .filter_map(|step| {
            let nats = sorted.get(step * sorted.len().saturating_sub(1) / STEPS)?;
            Some((step as f64 * 100.0 / STEPS as f64, nats.max(LEAST)))
        })
        .collect();
    let most = line.last().filter(|point| point.1 > LEAST)?.1;
    let least = line.first()?.1;
    Some(Chart {
        title: "KL divergence at the tokens of a text".to_owned(),
        subtitle: subtitle.to_owned(),
        x: Axis {
            to: 100.0,
            ..Axis::from_zero("% of the tokens, which differ at most so much", [100.0].into_iter())
        },
        y: Axis::logarithmic("nats", [least, most].into_iter(), 1.5),
        series: vec![Series { joined: true, marked: false, ..points(String::new(), line) }],
        references: Vec::new(),
    })
}

fn points(name: String, points: Vec<(f64, f64)>) -> Series {
    Series { name, points, ranges: Vec::new(), joined: false, marked: true }
}
