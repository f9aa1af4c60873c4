//! llama.cpp's grammar notation, turned into a Lark grammar.
//!
//! `name ::= …` defines a rule and `root` is the start. A rule has alternatives (`|`), literals (`"…"`), character
//! classes (`[a-z]`, `[^…]`, `.`), references, groups, and `*`, `+`, `?`, `{m}`, `{m,}`, `{m,n}`. Comments run from `#`
//! to the end of the line.

mod chars;
mod emit;
mod facts;
mod lexemes;
mod parse;
mod positions;

use chars::CharSet;

use crate::EngineError;

const KIND: &str = "GBNF grammar";

/// A node's index in [`Rules::nodes`]. Children have lower ones than their parents; only [`Node::Rule`] points up.
type NodeId = usize;

enum Node {
    /// One of these characters; a literal is a sequence of them.
    Chars(CharSet),
    /// An index in [`Rules::rules`].
    Rule(usize),
    Sequence(Vec<NodeId>),
    Choice(Vec<NodeId>),
    Repeat {
        node: NodeId,
        least: u32,
        most: Option<u32>,
    },
}

/// A grammar as it is written, its references resolved.
struct Rules {
    nodes: Vec<Node>,
    /// The body of each rule.
    rules: Vec<NodeId>,
    root: NodeId,
}

impl Rules {
    fn node(&self, id: NodeId) -> &Node {
        const NOTHING: &Node = &Node::Sequence(Vec::new());
        self.nodes.get(id).unwrap_or(NOTHING)
    }

    fn body(&self, rule: usize) -> NodeId {
        self.rules.get(rule).copied().unwrap_or(self.root)
    }

    fn children(&self, id: NodeId) -> Vec<NodeId> {
        match self.node(id) {
            Node::Chars(_) => Vec::new(),
            Node::Rule(rule) => vec![self.body(*rule)],
            Node::Sequence(items) | Node::Choice(items) => items.clone(),
            Node::Repeat { node, .. } => vec![*node],
        }
    }
}

/// The grammar in Lark's notation, in lexemes that lose nothing of it by being taken as long as they can be.
pub(super) fn to_lark(text: &str) -> Result<String, EngineError> {
    let rules = parse::parse(text)?;
    let facts = facts::Facts::new(&rules);
    let lexemes = lexemes::choose(&rules, &facts)?;
    Ok(emit::emit(&rules, &lexemes))
}
