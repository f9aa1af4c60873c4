//! What a comparison found, for programs and for people.

use std::fmt::Write as _;

use moli_bench::statistics::{median, quantile};
use moli_engine::Divergence;
use serde::Serialize;

use crate::output::bytes;

/// What `--json` prints.
#[derive(Debug, Serialize)]
pub(super) struct Comparison {
    pub(super) a: Side,
    pub(super) b: Side,
    /// Tokens that were predicted.
    pub(super) tokens: usize,
    /// Of A's predictions from B's, in nats.
    pub(super) kl_divergence: Spread,
    /// The share of tokens at which both find the same token likeliest, and its standard error.
    pub(super) same_top: Estimate,
    /// By how much B's perplexity is above A's, as a share of A's.
    pub(super) perplexity_rise: Estimate,
    /// Whether `--max-kl` and `--max-ppl-rise` are kept; absent where neither is given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) within: Option<bool>,
}

/// One of the two models.
#[derive(Debug, Serialize)]
pub(super) struct Side {
    pub(super) model: String,
    /// Of the file, or of a folder's weights.
    pub(super) file_bytes: u64,
    /// By which the process grew when the model was loaded and had run; absent where the system does not say.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) resident_bytes: Option<u64>,
    pub(super) perplexity: f64,
    /// Tokens per second.
    pub(super) prompt_speed: f64,
    pub(super) answer_speed: f64,
}

#[derive(Debug, Clone, Copy, Serialize)]
pub(super) struct Spread {
    pub(super) mean: f64,
    /// Of the mean.
    pub(super) standard_error: f64,
    pub(super) median: f64,
    pub(super) p99: f64,
    pub(super) most: f64,
}

#[derive(Debug, Clone, Copy, Serialize)]
pub(super) struct Estimate {
    pub(super) value: f64,
    pub(super) standard_error: f64,
}

impl Comparison {
    pub(super) fn of(a: Side, b: Side, found: &Divergence) -> Self {
        let nats: Vec<f64> = found.predictions.iter().map(|p| p.divergence).collect();
        let kl = estimate(nats.iter().copied());
        let same = estimate(found.predictions.iter().map(|p| f64::from(u8::from(p.same_top))));
        // The ratio of perplexities is e to the mean difference of losses; near its error is that of the mean times it.
        let rise = estimate(found.predictions.iter().map(|p| p.loss[1] - p.loss[0]));
        let ratio = rise.value.exp();
        Self {
            a,
            b,
            tokens: found.predictions.len(),
            kl_divergence: Spread {
                mean: kl.value,
                standard_error: kl.standard_error,
                median: median(&nats),
                p99: quantile(&nats, 0.99),
                most: nats.iter().copied().fold(0.0, f64::max),
            },
            same_top: same,
            perplexity_rise: Estimate { value: ratio - 1.0, standard_error: ratio * rise.standard_error },
            within: None,
        }
    }

    pub(super) fn table(&self) -> String {
        let (a, b) = (&self.a, &self.b);
        let width = a.model.chars().count().max(b.model.chars().count()).max(12);
        let mut text = String::new();
        let mut row = |what: &str, a: &str, b: &str, ratio: Option<f64>| {
            let ratio = ratio.map(|ratio| format!("{ratio:>8.3}")).unwrap_or_default();
            let line = format!("{what:<22} {a:>width$}  {b:>width$} {ratio}");
            let _ = writeln!(text, "{}", line.trim_end());
        };
        row("", &a.model, &b.model, None);
        let ratio = |of: fn(&Side) -> f64| Some(of(b) / of(a)).filter(|ratio| ratio.is_finite());
        row("size", &bytes(a.file_bytes), &bytes(b.file_bytes), ratio(|side| side.file_bytes as f64));
        if let (Some(in_a), Some(in_b)) = (a.resident_bytes, b.resident_bytes) {
            row("resident memory", &bytes(in_a), &bytes(in_b), Some(in_b as f64 / in_a as f64));
        }
        let number =
            |of: fn(&Side) -> f64, digits: usize| [a, b].map(|side| format!("{:.digits$}", of(side)));
        for (what, of, digits) in [
            ("perplexity", (|side| side.perplexity) as fn(&Side) -> f64, 4),
            ("prompt, tokens/s", |side| side.prompt_speed, 1),
            ("answer, tokens/s", |side| side.answer_speed, 1),
        ] {
            let [in_a, in_b] = number(of, digits);
            row(what, &in_a, &in_b, ratio(of));
        }
        let kl = &self.kl_divergence;
        let percent = |estimate: Estimate| {
            format!("{:.2}% ± {:.2}", 100.0 * estimate.value, 100.0 * estimate.standard_error)
        };
        let _ = write!(
            text,
            "\nover {} tokens\n\
             KL divergence          mean {:.5} ± {:.5}, median {:.5}, 99% below {:.4}, most {:.3} nats\n\
             same likeliest token   {}\n\
             perplexity rises by    {}\n",
            self.tokens,
            kl.mean,
            kl.standard_error,
            kl.median,
            kl.p99,
            kl.most,
            percent(self.same_top),
            percent(self.perplexity_rise),
        );
        if let Some(within) = self.within {
            text.push_str(if within { "within the bounds\n" } else { "NOT within the bounds\n" });
        }
        text
    }
}

pub(super) fn mean(values: impl Iterator<Item = f64>) -> f64 {
    let (sum, count) = values.fold((0.0, 0_u32), |(sum, count), value| (sum + value, count + 1));
    sum / f64::from(count.max(1))
}

/// The mean, and its standard error as if the values were independent.
fn estimate(values: impl Iterator<Item = f64> + Clone) -> Estimate {
    let value = mean(values.clone());
    let count = values.clone().count();
    let variance =
        values.map(|x| (x - value) * (x - value)).sum::<f64>() / count.saturating_sub(1).max(1) as f64;
    Estimate { value, standard_error: (variance / count.max(1) as f64).sqrt() }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use moli_engine::Prediction;

    use super::*;

    fn side(model: &str, file_bytes: u64) -> Side {
        Side {
            model: model.to_owned(),
            file_bytes,
            resident_bytes: Some(file_bytes + 1000),
            perplexity: 10.0,
            prompt_speed: 100.0,
            answer_speed: 20.0,
        }
    }

    #[test]
    fn what_is_told_follows_from_the_predictions() {
        let prediction =
            |divergence, before, after, same_top| Prediction { divergence, loss: [before, after], same_top };
        let found = Divergence {
            predictions: vec![
                prediction(0.1, 1.0, 1.2, true),
                prediction(0.3, 2.0, 2.0, false),
                prediction(0.2, 3.0, 3.1, true),
                prediction(0.2, 0.0, 0.1, true),
            ],
            time: [Duration::ZERO; 2],
        };
        let comparison = Comparison::of(side("a", 4000), side("b", 1000), &found);
        assert!((comparison.kl_divergence.mean - 0.2).abs() < 1e-12);
        // sqrt((0.01 + 0.01) / 3 / 4)
        assert!((comparison.kl_divergence.standard_error - 0.040_824_829).abs() < 1e-8);
        assert_eq!([comparison.kl_divergence.median, comparison.kl_divergence.most], [0.2, 0.3]);
        assert!((comparison.same_top.value - 0.75).abs() < 1e-12);
        assert!((comparison.perplexity_rise.value - (0.1_f64.exp() - 1.0)).abs() < 1e-12);
        let table = comparison.table();
        for part in ["75.00% ± 25.00", "10.52% ± ", "over 4 tokens", "0.250"] {
            assert!(table.contains(part), "{part}\n{table}");
        }
        assert!(!table.contains("bounds"));
    }
}
