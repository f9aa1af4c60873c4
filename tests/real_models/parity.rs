//! The CPU backend against candle on the same file.

use moli_engine::{BackendKind, Engine, EngineOptions};

use crate::golden::{Golden, log_probability};
use crate::{Outcome, load};

/// Mean absolute difference of the log-probability of a continuation's tokens between the two backends. Both round
/// activations to 8 bits, each in its own way, and each may be 0.05 away from the reference (`golden::greedy_steps`); so
/// they may be twice that apart. A wrong operation would differ by whole units.
const MEAN_LOG_PROBABILITY_BOUND: f64 = 2.0 * 0.05;

pub(crate) fn candle_agrees(engine: &Engine, model: &str, golden: &str) -> Outcome {
    let options =
        EngineOptions { backend: BackendKind::Candle, context: Some(256), ..EngineOptions::default() };
    let oracle = load(model, &options)?;
    let (mut steps, mut difference) = (0usize, 0f64);
    for case in Golden::parse(golden)?.greedy.iter().take(2) {
        let prompt = engine.encode(&case.prompt).map_err(|error| error.to_string())?;
        let forced = case.steps.iter().take(16).map(|step| step.id);
        let ids: Vec<u32> = prompt.iter().copied().chain(forced).collect();
        let positions: Vec<usize> = (0..ids.len() - 1).collect();
        let score =
            |engine: &Engine| engine.session().score(&ids, &positions).map_err(|error| error.to_string());
        for ((ours, theirs), &next) in score(engine)?.iter().zip(&score(&oracle)?).zip(&ids[1..]) {
            steps += 1;
            difference += (log_probability(ours, next) - log_probability(theirs, next)).abs();
        }
    }
    let difference = difference / steps as f64;
    println!("  {steps} steps: mean |Δ log p| {difference:.4}");
    if steps < 32 || difference > MEAN_LOG_PROBABILITY_BOUND {
        return Err(format!(
            "mean |Δ log p| over {steps} steps is {difference:.4}, allowed {MEAN_LOG_PROBABILITY_BOUND}"
        ));
    }
    Ok(())
}
