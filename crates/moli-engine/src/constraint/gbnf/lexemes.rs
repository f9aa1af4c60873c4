//! Which nodes become lexemes.
//!
//! A lexer takes the longest text that any lexeme matches. That is harmless where what follows a lexeme can't be taken
//! for more of it, or of another lexeme that begins alike. Nodes that are regular expressions become lexemes, the
//! largest ones first; one for which it is not harmless is cut into its parts, down to single characters if need be.

use std::collections::{BTreeSet, HashMap};

use super::facts::Facts;
use super::positions::{Budget, Positions};
use super::{KIND, Node, NodeId, Rules};
use crate::EngineError;
use crate::constraint::at_most;

/// Each is compared with each.
const MAX_LEXEMES: usize = 5_000;

/// Most characters of a lexeme with its references written out: a lexer keeps each of them, and rules that each name
/// the next one twice have 2^n.
const MAX_WRITTEN: usize = 200_000;

/// The nodes that are lexemes. Everything that is reached from the root without passing through one is a rule.
pub(super) fn choose(rules: &Rules, facts: &Facts) -> Result<BTreeSet<NodeId>, EngineError> {
    let mut cut: BTreeSet<NodeId> =
        (0..rules.nodes.len()).filter(|id| facts.written(*id) > MAX_WRITTEN).collect();
    let mut automata: HashMap<NodeId, Option<Positions>> = HashMap::new();
    let mut budget = Budget::default();
    loop {
        let lexemes = reachable(rules, facts, &cut);
        at_most(KIND, "lexemes", lexemes.len(), MAX_LEXEMES)?;
        for &id in &lexemes {
            automata.entry(id).or_insert_with(|| Positions::new(rules, id, &mut budget));
        }
        let before = cut.len();
        for &id in &lexemes {
            let Some(follow) = facts.follow.get(id) else { continue };
            for &other in &lexemes {
                let alike = facts.first.get(id).zip(facts.first.get(other));
                let single = matches!(rules.node(other), Node::Chars(_));
                if single || follow.is_empty() || !alike.is_some_and(|(a, b)| a.intersects(b)) {
                    continue;
                }
                let cuts = match (automata.get(&id), automata.get(&other)) {
                    (Some(Some(lexeme)), Some(Some(other))) => lexeme.is_cut_by(other, follow, &mut budget),
                    _ => None,
                };
                // What can't be found out counts as harm.
                if cuts != Some(false) {
                    cut.insert(other);
                }
            }
        }
        if cut.len() == before {
            return Ok(lexemes);
        }
    }
}

/// The lexemes, if the nodes of `cut` are none.
fn reachable(rules: &Rules, facts: &Facts, cut: &BTreeSet<NodeId>) -> BTreeSet<NodeId> {
    let mut lexemes = BTreeSet::new();
    let mut seen = BTreeSet::from([rules.root]);
    let mut queue = vec![rules.root];
    while let Some(id) = queue.pop() {
        let regular = facts.regular.get(id).copied().unwrap_or_default();
        let node = rules.node(id);
        // A reference stands for the body, so that all references to it are one lexeme.
        if regular && !matches!(node, Node::Rule(_)) && !cut.contains(&id) {
            lexemes.insert(id);
            continue;
        }
        for child in rules.children(id) {
            if seen.insert(child) {
                queue.push(child);
            }
        }
    }
    lexemes
}
