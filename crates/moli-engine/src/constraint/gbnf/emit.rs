//! From rules and lexemes to Lark.

use std::collections::BTreeSet;
use std::fmt::Write;

use super::{Node, NodeId, Rules};

/// Every node becomes a rule or a terminal of its own: nothing is nested, however deep the grammar is.
pub(super) fn emit(rules: &Rules, lexemes: &BTreeSet<NodeId>) -> String {
    let mut lark = format!("start: {}\n", Name { id: rules.root, lexeme: lexemes.contains(&rules.root) });
    let mut seen = BTreeSet::new();
    let mut queue = vec![(rules.root, lexemes.contains(&rules.root))];
    while let Some((id, lexeme)) = queue.pop() {
        if !seen.insert((id, lexeme)) {
            continue;
        }
        let mut name = |child: NodeId| {
            let lexeme = lexeme || lexemes.contains(&child);
            queue.push((child, lexeme));
            Name { id: child, lexeme }
        };
        let body = match rules.node(id) {
            Node::Chars(set) => format!("/{}/", set.to_class()),
            Node::Literal(text) if lexeme => string(text),
            // One lexeme for each character.
            Node::Literal(text) => text.iter().map(|c| string(&[*c])).collect::<Vec<_>>().join(" "),
            Node::Rule(rule) => name(rules.body(*rule)).to_string(),
            Node::Sequence(items) if items.is_empty() => "\"\"".to_owned(),
            Node::Sequence(items) => joined(items.iter().map(|item| name(*item)), " "),
            Node::Choice(options) => joined(options.iter().map(|option| name(*option)), " | "),
            Node::Repeat { most: Some(0), .. } => "\"\"".to_owned(),
            Node::Repeat { node, least, most } => {
                let child = name(*node);
                match (least, most) {
                    (0, None) => format!("{child}*"),
                    (1, None) => format!("{child}+"),
                    (0, Some(1)) => format!("{child}?"),
                    (least, None) => format!("{child}{{{least},}}"),
                    (least, Some(most)) => format!("{child}{{{least},{most}}}"),
                }
            }
        };
        // Writing to a string does not fail.
        let _ = writeln!(lark, "{}: {body}", Name { id, lexeme });
    }
    lark
}

/// A rule's name or a terminal's.
struct Name {
    id: NodeId,
    lexeme: bool,
}

impl std::fmt::Display for Name {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}{}", if self.lexeme { "T" } else { "r" }, self.id)
    }
}

/// Text as a terminal. JSON's notation of strings is also Lark's, but for DEL.
fn string(text: &[char]) -> String {
    let text: String = text.iter().collect();
    serde_json::Value::String(text).to_string().replace('\u{7F}', "\\u007f")
}

fn joined(names: impl Iterator<Item = Name>, between: &str) -> String {
    names.map(|name| name.to_string()).collect::<Vec<_>>().join(between)
}
