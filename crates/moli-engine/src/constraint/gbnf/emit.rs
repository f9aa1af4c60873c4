//! From rules and lexemes to Lark.

use std::collections::BTreeSet;
use std::fmt::Write;

use super::{Node, NodeId, Rules};

/// Every node becomes a rule or a terminal of its own: nothing is nested, however deep the grammar is.
pub(super) fn emit(rules: &Rules, lexemes: &BTreeSet<NodeId>) -> String {
    let mut emitter = Emitter { rules, lexemes, queue: Vec::new() };
    let root = emitter.name(rules.root, false);
    let mut lark = format!("start: {root}\n");
    let mut seen = BTreeSet::new();
    while let Some((id, lexeme)) = emitter.queue.pop() {
        if seen.insert((id, lexeme)) {
            let body = emitter.body(id, lexeme);
            // Writing to a string does not fail.
            let _ = writeln!(lark, "{}: {body}", label(id, lexeme));
        }
    }
    lark
}

struct Emitter<'a> {
    rules: &'a Rules,
    lexemes: &'a BTreeSet<NodeId>,
    /// Nodes that have been named, and whether as terminals.
    queue: Vec<(NodeId, bool)>,
}

impl Emitter<'_> {
    /// How a node is called inside another one, which may be a terminal.
    fn name(&mut self, id: NodeId, in_lexeme: bool) -> String {
        if let Node::Chars(set) = self.rules.node(id) {
            return format!("/{}/", set.to_class());
        }
        let lexeme = in_lexeme || self.lexemes.contains(&id);
        self.queue.push((id, lexeme));
        label(id, lexeme)
    }

    fn names(&mut self, ids: &[NodeId], lexeme: bool, between: &str) -> String {
        ids.iter().map(|id| self.name(*id, lexeme)).collect::<Vec<_>>().join(between)
    }

    fn body(&mut self, id: NodeId, lexeme: bool) -> String {
        const EMPTY: &str = "\"\"";
        match self.rules.node(id) {
            Node::Chars(_) => self.name(id, lexeme),
            Node::Rule(rule) => self.name(self.rules.body(*rule), lexeme),
            Node::Sequence(items) if items.is_empty() => EMPTY.to_owned(),
            Node::Sequence(items) => self.names(items, lexeme, " "),
            Node::Choice(options) => self.names(options, lexeme, " | "),
            Node::Repeat { most: Some(0), .. } => EMPTY.to_owned(),
            Node::Repeat { node, least, most } => {
                let child = self.name(*node, lexeme);
                match (least, most) {
                    (0, None) => format!("{child}*"),
                    (1, None) => format!("{child}+"),
                    (0, Some(1)) => format!("{child}?"),
                    (least, None) => format!("{child}{{{least},}}"),
                    (least, Some(most)) => format!("{child}{{{least},{most}}}"),
                }
            }
        }
    }
}

/// A rule's name or a terminal's.
fn label(id: NodeId, lexeme: bool) -> String {
    format!("{}{id}", if lexeme { "T" } else { "r" })
}
