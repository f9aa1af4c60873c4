//! The position automaton (Glushkov) of a regular node: a state for each place of a character.

use super::{CharSet, Node, NodeId, Rules};

/// Most states of one automaton. A larger expression is cut into lexemes.
const MAX_STATES: usize = 2_000;

/// What the automata of a grammar may cost.
pub(super) struct Budget {
    /// Transitions that may still be made.
    edges: usize,
    /// Steps that they may still be asked for.
    steps: usize,
}

impl Default for Budget {
    fn default() -> Self {
        Self { edges: 1_000_000, steps: 8_000_000 }
    }
}

impl Budget {
    fn spend(left: &mut usize, count: usize) -> Option<()> {
        let enough = count <= *left;
        *left = left.saturating_sub(count);
        enough.then_some(())
    }
}

/// Repetitions with bounds are read as ones without, so it accepts more than the expression does.
pub(super) struct Positions {
    /// What each state was entered with.
    chars: Vec<CharSet>,
    /// The states that may come after each.
    next: Vec<Vec<usize>>,
    /// Whether a text may end in each.
    last: Vec<bool>,
    first: Vec<usize>,
}

/// The states that a part of an expression begins and ends in.
struct Part {
    nullable: bool,
    first: Vec<usize>,
    last: Vec<usize>,
}

impl Positions {
    /// `None` where it would be too large.
    pub(super) fn new(rules: &Rules, node: NodeId, budget: &mut Budget) -> Option<Self> {
        let mut automaton = Self { chars: Vec::new(), next: Vec::new(), last: Vec::new(), first: Vec::new() };
        let part = automaton.part(rules, node, budget)?;
        automaton.last = vec![false; automaton.chars.len()];
        for state in part.last {
            if let Some(last) = automaton.last.get_mut(state) {
                *last = true;
            }
        }
        automaton.first = part.first;
        Some(automaton)
    }

    fn state(&mut self, chars: CharSet) -> Option<usize> {
        self.chars.push(chars);
        self.next.push(Vec::new());
        (self.chars.len() <= MAX_STATES).then_some(self.chars.len() - 1)
    }

    fn connect(&mut self, from: &[usize], to: &[usize], budget: &mut Budget) -> Option<()> {
        Budget::spend(&mut budget.edges, from.len() * to.len())?;
        for &from in from {
            self.next.get_mut(from)?.extend_from_slice(to);
        }
        Some(())
    }

    fn part(&mut self, rules: &Rules, id: NodeId, budget: &mut Budget) -> Option<Part> {
        Some(match rules.node(id) {
            Node::Chars(set) => {
                let state = self.state(set.clone())?;
                Part { nullable: false, first: vec![state], last: vec![state] }
            }
            Node::Rule(rule) => self.part(rules, rules.body(*rule), budget)?,
            Node::Sequence(items) => {
                let mut whole = Part { nullable: true, first: Vec::new(), last: Vec::new() };
                for &item in items {
                    let part = self.part(rules, item, budget)?;
                    whole = self.after(whole, part, budget)?;
                }
                whole
            }
            Node::Choice(options) => {
                let mut whole = Part { nullable: false, first: Vec::new(), last: Vec::new() };
                for &option in options {
                    let part = self.part(rules, option, budget)?;
                    whole.nullable |= part.nullable;
                    whole.first.extend(part.first);
                    whole.last.extend(part.last);
                }
                whole
            }
            Node::Repeat { node, least, most } => {
                let mut part = self.part(rules, *node, budget)?;
                if most.is_none_or(|most| most > 1) {
                    self.connect(&part.last, &part.first, budget)?;
                }
                part.nullable |= *least == 0;
                part
            }
        })
    }

    fn after(&mut self, left: Part, right: Part, budget: &mut Budget) -> Option<Part> {
        self.connect(&left.last, &right.first, budget)?;
        let Part { nullable, mut first, last } = left;
        if nullable {
            first.extend(right.first);
        }
        let mut ends = right.last;
        if right.nullable {
            ends.extend(last);
        }
        Some(Part { nullable: nullable && right.nullable, first, last: ends })
    }

    fn after_state(&self, state: Option<usize>) -> &[usize] {
        match state {
            None => &self.first,
            Some(state) => self.next.get(state).map(Vec::as_slice).unwrap_or_default(),
        }
    }

    /// Whether a text of `self` can be followed by one of the characters `follow` while `other` goes on with the same
    /// text and the same character: a lexer would then take the longer text for `other`, right or wrong. `None` where
    /// finding out costs too much.
    pub(super) fn is_cut_by(&self, other: &Self, follow: &CharSet, budget: &mut Budget) -> Option<bool> {
        let width = other.chars.len() + 1;
        let pairs = (self.chars.len() + 1) * width;
        Budget::spend(&mut budget.steps, pairs / 64)?;
        let mut seen = vec![false; pairs];
        let mut queue: Vec<(Option<usize>, Option<usize>)> = vec![(None, None)];
        while let Some((here, there)) = queue.pop() {
            let ends = here.and_then(|state| self.last.get(state)).copied().unwrap_or_default();
            for &next_there in other.after_state(there) {
                let Some(chars_there) = other.chars.get(next_there) else { continue };
                if ends && chars_there.intersects(follow) {
                    return Some(true);
                }
                let after_here = self.after_state(here);
                Budget::spend(&mut budget.steps, 1 + after_here.len())?;
                for &next_here in after_here {
                    let Some(chars_here) = self.chars.get(next_here) else { continue };
                    if chars_here.intersects(chars_there)
                        && let Some(seen @ false) = seen.get_mut((next_here + 1) * width + next_there + 1)
                    {
                        *seen = true;
                        queue.push((Some(next_here), Some(next_there)));
                    }
                }
            }
        }
        Some(false)
    }
}
