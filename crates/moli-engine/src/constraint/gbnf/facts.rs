//! What is known of each node.

use super::{CharSet, Node, NodeId, Rules};

/// Each by node.
pub(super) struct Facts {
    /// It has no part in a recursion: it is a regular expression.
    pub(super) regular: Vec<bool>,
    /// It matches the empty text.
    pub(super) nullable: Vec<bool>,
    /// What its texts begin with.
    pub(super) first: Vec<CharSet>,
    /// What may come after it, wherever in the grammar it is.
    pub(super) follow: Vec<CharSet>,
    /// Characters and classes of a regular expression with its references written out, `usize::MAX` if they are more.
    /// A repetition counts once. 0 where it is none.
    written: Vec<usize>,
}

impl Facts {
    /// Least fixed points, by passes over all nodes. A rule that is used before it is defined takes one pass more.
    pub(super) fn new(rules: &Rules) -> Self {
        let count = rules.nodes.len();
        let mut facts = Self {
            regular: vec![false; count],
            nullable: vec![false; count],
            first: vec![CharSet::default(); count],
            follow: vec![CharSet::default(); count],
            written: vec![0; count],
        };
        while changed((0..count).map(|id| facts.rise(rules, id))) {}
        while changed((0..count).rev().map(|id| facts.sink(rules, id))) {}
        facts
    }

    fn is(flags: &[bool], id: NodeId) -> bool {
        flags.get(id).copied().unwrap_or_default()
    }

    fn first_of(&self, id: NodeId) -> CharSet {
        self.first.get(id).cloned().unwrap_or_default()
    }

    pub(super) fn written(&self, id: NodeId) -> usize {
        self.written.get(id).copied().unwrap_or_default()
    }

    /// What a node takes from its children; whether that changed anything.
    fn rise(&mut self, rules: &Rules, id: NodeId) -> bool {
        let regular = |id: &NodeId| Self::is(&self.regular, *id);
        let nullable = |id: &NodeId| Self::is(&self.nullable, *id);
        let children = rules.children(id);
        let written = match rules.node(id) {
            Node::Chars(_) => 1,
            _ => children.iter().fold(0, |sum: usize, child| sum.saturating_add(self.written(*child))),
        };
        let mut first = CharSet::default();
        let (is_regular, is_nullable) = match rules.node(id) {
            Node::Chars(set) => {
                first.add(set);
                (true, false)
            }
            Node::Rule(rule) => {
                let body = rules.body(*rule);
                first.add(&self.first_of(body));
                (regular(&body), nullable(&body))
            }
            Node::Sequence(items) => {
                for item in items {
                    first.add(&self.first_of(*item));
                    if !nullable(item) {
                        break;
                    }
                }
                (items.iter().all(regular), items.iter().all(nullable))
            }
            Node::Choice(options) => {
                for option in options {
                    first.add(&self.first_of(*option));
                }
                (options.iter().all(regular), options.iter().any(nullable))
            }
            Node::Repeat { node, least, most } => {
                if *most != Some(0) {
                    first.add(&self.first_of(*node));
                }
                (regular(node), *least == 0 || nullable(node))
            }
        };
        let new = set(&mut self.regular, id, is_regular);
        // Its children were regular before it, so that what they count is final.
        if new && let Some(slot) = self.written.get_mut(id) {
            *slot = written;
        }
        new | set(&mut self.nullable, id, is_nullable)
            | self.first.get_mut(id).is_some_and(|slot| slot.add(&first))
    }

    /// What a node tells its children; whether that changed anything.
    fn sink(&mut self, rules: &Rules, id: NodeId) -> bool {
        let mut follow = self.follow.get(id).cloned().unwrap_or_default();
        match rules.node(id) {
            Node::Chars(_) => false,
            Node::Rule(rule) => self.add_follow(rules.body(*rule), &follow),
            Node::Sequence(items) => {
                let mut changed = false;
                for &item in items.iter().rev() {
                    changed |= self.add_follow(item, &follow);
                    let first = self.first_of(item);
                    if Self::is(&self.nullable, item) {
                        follow.add(&first);
                    } else {
                        follow = first;
                    }
                }
                changed
            }
            Node::Choice(options) => changed(options.iter().map(|option| self.add_follow(*option, &follow))),
            Node::Repeat { node, most, .. } => {
                if most.is_none_or(|most| most > 1) {
                    follow.add(&self.first_of(*node));
                }
                self.add_follow(*node, &follow)
            }
        }
    }

    fn add_follow(&mut self, id: NodeId, follow: &CharSet) -> bool {
        self.follow.get_mut(id).is_some_and(|slot| slot.add(follow))
    }
}

/// Takes every step, and says whether any changed something.
fn changed(steps: impl Iterator<Item = bool>) -> bool {
    steps.filter(|changed| *changed).count() > 0
}

fn set(flags: &mut [bool], id: NodeId, value: bool) -> bool {
    flags.get_mut(id).is_some_and(|flag| value && !std::mem::replace(flag, true))
}
