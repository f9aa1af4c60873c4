//! What shows in a compiled grammar only: whether it has any text at all, and whether it asks for what is not done.

use std::collections::{HashMap, HashSet};

use llguidance::earley::{CGrammar, CSymIdx};

use crate::EngineError;

/// Refuses a grammar whose start can never come to an end, as `a: "x" a`: its answers would be cut off at some length
/// and never be what they must be.
pub(super) fn check(kind: &'static str, grammar: &CGrammar) -> Result<(), EngineError> {
    let start = grammar.start();
    // Rules that wait for a symbol; a rule is left with the number of symbols that are still missing.
    let mut waiting: HashMap<CSymIdx, Vec<usize>> = HashMap::new();
    let mut missing: Vec<(CSymIdx, usize)> = Vec::new();
    let mut ended: HashSet<CSymIdx> = HashSet::new();
    let mut ready: Vec<CSymIdx> = Vec::new();
    let mut seen = HashSet::from([start]);
    let mut queue = vec![start];
    while let Some(symbol) = queue.pop() {
        let data = grammar.sym_data(symbol);
        if data.props.temperature != 0.0 {
            let reason = "temperature= is not supported".to_owned();
            return Err(EngineError::InvalidGrammar { kind, reason });
        }
        // Empty rules are no rules here but a flag.
        if data.is_terminal || data.is_nullable || !data.cond_nullable.is_empty() {
            ready.push(symbol);
            continue;
        }
        for &rule in grammar.rules_of(symbol) {
            let (right, _, _) = grammar.rule_rhs(rule);
            for &child in right {
                waiting.entry(child).or_default().push(missing.len());
                if seen.insert(child) {
                    queue.push(child);
                }
            }
            missing.push((symbol, right.len()));
        }
    }
    while let Some(symbol) = ready.pop() {
        if !ended.insert(symbol) {
            continue;
        }
        for rule in waiting.remove(&symbol).unwrap_or_default() {
            if let Some((left, missing)) = missing.get_mut(rule) {
                *missing = missing.saturating_sub(1);
                if *missing == 0 {
                    ready.push(*left);
                }
            }
        }
    }
    if ended.contains(&start) {
        return Ok(());
    }
    let reason = "it refers to itself without a case that ends, so no text matches it".to_owned();
    Err(EngineError::InvalidGrammar { kind, reason })
}
