//! `/metrics`: what the server and its engines have done and are doing, in the text form of OpenMetrics that Prometheus
//! reads.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use axum::extract::State;
use axum::http::header;
use axum::response::IntoResponse;
use moli_engine::{Counters, Histogram, resident_bytes};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, NoLabelSet, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

use crate::app::App;
use crate::error::ApiError;

/// What the server itself counts.
#[derive(Debug, Default)]
pub(crate) struct Metrics {
    answered: Mutex<BTreeMap<u16, u64>>,
    rejected: Mutex<BTreeMap<&'static str, u64>>,
}

impl Metrics {
    /// Takes note of a response, and of why it is none.
    pub(crate) fn responded(&self, status: u16, error: Option<&ApiError>) {
        *self.answered.lock().unwrap_or_else(PoisonError::into_inner).entry(status).or_default() += 1;
        if let Some(error) = error {
            self.rejected(error.code);
        }
    }

    /// Takes note of something that was turned away; reasons are few.
    pub(crate) fn rejected(&self, reason: &'static str) {
        *self.rejected.lock().unwrap_or_else(PoisonError::into_inner).entry(reason).or_default() += 1;
    }
}

/// Writes all of it.
#[utoipa::path(get, path = "/metrics", tag = "moli", responses((status = 200, description = "OpenMetrics", body = String, content_type = "application/openmetrics-text")))]
pub(crate) async fn export(State(app): State<Arc<App>>) -> Result<impl IntoResponse, ApiError> {
    let loaded = app.models.slots();
    let loaded = loaded.filter_map(|slot| Some((slot.spec.name.clone(), slot.engine()?.counters())));
    let answered = app.metrics.answered.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let rejected = app.metrics.rejected.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let mut registry = Registry::with_prefix("moli");
    let connections = (app.limits.open(), app.limits.refused());
    let engines = loaded.collect();
    registry.register_collector(Box::new(Snapshot { engines, answered, rejected, connections }));
    let mut text = String::new();
    text::encode(&mut text, &registry).map_err(|_| ApiError::internal("the metrics can't be written"))?;
    Ok(([(header::CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")], text))
}

/// All of it at a moment.
#[derive(Debug)]
struct Snapshot {
    /// By the models' names.
    engines: Vec<(String, Counters)>,
    answered: BTreeMap<u16, u64>,
    rejected: BTreeMap<&'static str, u64>,
    /// Those that are open, and those that were too many.
    connections: (usize, u64),
}

impl Collector for Snapshot {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut out = Out(encoder);
        let answered = self.answered.iter().map(|(status, n)| ([("status", status.to_string())], *n));
        out.counters("responses", "Responses by their status", answered)?;
        let rejected = self.rejected.iter().map(|(reason, n)| ([("reason", (*reason).to_owned())], *n));
        out.counters("rejected", "Requests that were not answered, by the reason", rejected)?;
        let (open, refused) = self.connections;
        out.gauges("connections", "Connections that are open", [(none(), open as i64)].into_iter())?;
        let refused = [(none(), refused)].into_iter();
        out.counters("connections_refused", "Connections that were too many", refused)?;
        if let Some(resident) = resident_bytes() {
            let bytes = [(none(), resident.bytes as i64)].into_iter();
            out.gauges("resident_bytes", "Memory of the process", bytes)?;
        }
        for (name, help, value) in GAUGES {
            out.gauges(name, help, self.engines.iter().map(|(model, c)| (labels(model), value(c))))?;
        }
        for (name, help, value) in COUNTERS {
            out.counters(name, help, self.engines.iter().map(|(model, c)| (labels(model), value(c))))?;
        }
        let ended = self.engines.iter().flat_map(|(model, c)| {
            let ends = [
                ("done", c.completed),
                ("cancelled", c.cancelled),
                ("deadline", c.expired),
                ("error", c.failed),
            ];
            ends.map(|(how, n)| ([("model", model.clone()), ("how", how.to_owned())], n))
        });
        out.counters("answers", "Answers that came to their end, by how", ended)?;
        for (name, help, value) in HISTOGRAMS {
            out.histograms(name, help, self.engines.iter().map(|(model, c)| (labels(model), value(c))))?;
        }
        Ok(())
    }
}

fn none() -> [(&'static str, String); 0] {
    []
}

fn labels(model: &str) -> [(&'static str, String); 1] {
    [("model", model.to_owned())]
}

type HistogramRow = (&'static str, &'static str, fn(&Counters) -> &Histogram);
type Row<T> = (&'static str, &'static str, fn(&Counters) -> T);

const GAUGES: [Row<i64>; 6] = [
    ("requests_running", "Answers that are computed", |c| c.running as i64),
    ("requests_waiting", "Answers that wait", |c| c.waiting as i64),
    ("kv_pages", "Pages for keys and values", |c| c.pages as i64),
    ("kv_pages_free", "Pages that nobody holds", |c| c.pages_free as i64),
    ("kv_pages_cached", "Pages that the prefix cache holds", |c| c.pages_cached as i64),
    ("kv_page_bytes", "Bytes of a page", |c| c.page_bytes as i64),
];

const COUNTERS: [Row<u64>; 9] = [
    ("requests", "Answers that were taken on", |c| c.submitted),
    ("prompt_tokens", "Tokens of prompts", |c| c.prompt_tokens),
    ("cached_tokens", "Tokens of prompts that the prefix cache had", |c| c.cached_tokens),
    ("completion_tokens", "Tokens of answers", |c| c.completion_tokens),
    ("steps", "Forward passes", |c| c.steps),
    ("preempted", "Answers that had to wait again", |c| c.preempted),
    ("drafted_tokens", "Tokens that were guessed", |c| c.drafted),
    ("accepted_tokens", "Guesses that were right", |c| c.accepted),
    ("stalls", "Steps that took too long", |c| c.stalls),
];

const HISTOGRAMS: [HistogramRow; 4] = [
    ("ttft_seconds", "From a request to its first token", |c| &c.ttft_seconds),
    ("inter_token_seconds", "From one token of an answer to the next", |c| &c.inter_token_seconds),
    ("step_seconds", "Time of a forward pass", |c| &c.step_seconds),
    ("step_rows", "Rows of a forward pass: tokens of prompts and answers", |c| &c.step_rows),
];

/// Families of metrics.
struct Out<'a>(DescriptorEncoder<'a>);

impl Out<'_> {
    fn counters<L: EncodeLabelSet>(
        &mut self,
        name: &str,
        help: &str,
        values: impl Iterator<Item = (L, u64)>,
    ) -> fmt::Result {
        let mut family = self.0.encode_descriptor(name, help, None, MetricType::Counter)?;
        for (labels, value) in values {
            family.encode_family(&labels)?.encode_counter::<NoLabelSet, _, u64>(&value, None)?;
        }
        Ok(())
    }

    fn gauges<L: EncodeLabelSet>(
        &mut self,
        name: &str,
        help: &str,
        values: impl Iterator<Item = (L, i64)>,
    ) -> fmt::Result {
        let mut family = self.0.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for (labels, value) in values {
            family.encode_family(&labels)?.encode_gauge(&value)?;
        }
        Ok(())
    }

    fn histograms<'h, L: EncodeLabelSet>(
        &mut self,
        name: &str,
        help: &str,
        values: impl Iterator<Item = (L, &'h Histogram)>,
    ) -> fmt::Result {
        let mut family = self.0.encode_descriptor(name, help, None, MetricType::Histogram)?;
        for (labels, histogram) in values {
            let bins: Vec<(f64, u64)> = histogram.bins().collect();
            let mut metric = family.encode_family(&labels)?;
            metric.encode_histogram::<NoLabelSet>(histogram.sum(), histogram.count(), &bins, None)?;
        }
        Ok(())
    }
}
