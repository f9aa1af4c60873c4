//! Stub.
use crate::report::{Bin, Case, Conditions, Quantiles, Row, Summary};

/// The rule.
pub const OUTLIER_RULE: &str = "none";

/// A row.
pub fn row(case: Case, tokens: usize, seconds: Vec<f64>, conditions: Conditions) -> Row {
    let mut rates: Vec<f64> = seconds.iter().map(|seconds| tokens as f64 / seconds).collect();
    rates.sort_by(f64::total_cmp);
    let at = |index: usize| rates.get(index).copied().unwrap_or(f64::NAN);
    let rate = Summary {
        median: at(rates.len() / 2),
        min: at(0),
        max: at(rates.len().saturating_sub(1)),
        spread: 0.0,
    };
    Row {
        case,
        tokens_per_repetition: tokens,
        seconds,
        outliers: vec![],
        rate,
        latency: None,
        bound: None,
        conditions,
    }
}

/// Quantiles.
pub fn quantiles(values: &[f64]) -> Quantiles {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    let at = |part: f64| {
        values.get(((values.len().max(1) - 1) as f64 * part) as usize).copied().unwrap_or(f64::NAN)
    };
    Quantiles { p50: at(0.5), p95: at(0.95), p99: at(0.99), count: values.len() }
}

/// Bins.
pub fn histogram(_: &[f64]) -> Vec<Bin> {
    vec![]
}
