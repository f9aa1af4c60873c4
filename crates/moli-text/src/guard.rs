//! Keeping the text of messages apart from a template's control tokens.
//!
//! A template joins its own control tokens with what users wrote, and the result is one string. So before rendering,
//! every place in a text of theirs where a control token is spelt out, wholly or in part, gets a marker: a private-use
//! character that nothing else contains. After rendering the markers come out again, and their positions are
//! barriers that no control token may reach across.
//!
//! What gets a marker in a message's text:
//! - a whole control token, behind its first character;
//! - its beginning (behind white space that a template may trim) where that could complete a control token of the
//!   template, and its end likewise;
//! - all of it, on both sides, where it could be the middle of a control token.
//!
//! Tools, the arguments of calls and a client's variables are marked like messages, each text and each key by itself.
//! Their numbers can't be marked.
//!
//! A text without any of these reaches the template unchanged, so a template that measures, splits or compares texts
//! sees them as they are.

use crate::special::SpecialTokens;

/// The roles that templates know. They are the template's vocabulary rather than the user's: some templates build
/// their control tokens from them (`<|` + role + `|>`).
const ROLES: &[&str] = &[
    "system",
    "user",
    "assistant",
    "tool",
    "developer",
    "function",
    "model",
    "ipython",
    "context",
    "environment",
];

/// The words of tools' definitions that templates compare with. Like roles, they are the template's vocabulary, even where a
/// control token has one of them in its middle (`<|object_ref_start|>`).
const SCHEMA_WORDS: &[&str] = &[
    "function",
    "name",
    "parameters",
    "type",
    "object",
    "array",
    "string",
    "number",
    "integer",
    "boolean",
    "null",
    "properties",
    "required",
    "description",
    "enum",
    "const",
    "items",
    "default",
    "title",
    "format",
    "additionalProperties",
    "anyOf",
    "oneOf",
    "allOf",
    "$ref",
    "$defs",
];

/// Marks the texts of one rendering.
pub(crate) struct Guard<'a> {
    special: &'a SpecialTokens,
    marker: char,
}

impl<'a> Guard<'a> {
    /// Picks a marker that none of the texts contain. `None` if there is none, which takes 65,534 characters of
    /// private use in the input.
    pub(crate) fn new<'t>(special: &'a SpecialTokens, texts: impl Iterator<Item = &'t str>) -> Option<Self> {
        let mut used = std::collections::HashSet::new();
        let private = '\u{F0000}'..='\u{FFFFD}';
        let mut note = |text: &str| used.extend(text.chars().filter(|c| private.contains(c)));
        texts.for_each(&mut note);
        special.control_texts().for_each(&mut note);
        let marker = private.into_iter().find(|c| !used.contains(c))?;
        Some(Self { special, marker })
    }

    pub(crate) fn role(&self, role: &str) -> String {
        if ROLES.contains(&role) { role.to_owned() } else { self.content(role) }
    }

    /// A key or a text of a tool's definition.
    pub(crate) fn schema_word(&self, text: &str) -> String {
        if SCHEMA_WORDS.contains(&text) { text.to_owned() } else { self.content(text) }
    }

    pub(crate) fn content(&self, text: &str) -> String {
        let mut at = Vec::new();
        for range in self.special.control_occurrences(text) {
            let first =
                text.get(range.clone()).and_then(|token| token.chars().next()).map_or(0, char::len_utf8);
            if range.start + first == range.end {
                // One character has no inside: barriers on both sides tell it apart.
                at.extend([range.start, range.end]);
            } else {
                at.push(range.start + first);
            }
        }
        let start = text.len() - text.trim_start().len();
        let end = text.trim_end().len();
        for (from, to) in [(start, end), (0, text.len())] {
            let Some(inner) = text.get(from..to).filter(|inner| !inner.is_empty()) else { continue };
            let middle = self.special.is_inside_control(inner);
            if middle || self.special.completes_control(inner) {
                at.push(from);
            }
            if middle || self.special.begins_control(inner) {
                at.push(to);
            }
        }
        at.sort_unstable();
        at.dedup();
        let mut marked = String::with_capacity(text.len() + at.len() * self.marker.len_utf8());
        let mut done = 0;
        for position in at {
            marked.push_str(text.get(done..position).unwrap_or(""));
            marked.push(self.marker);
            done = position;
        }
        marked.push_str(text.get(done..).unwrap_or(""));
        marked
    }

    /// Takes the markers out: the text and their byte positions in it, in ascending order.
    pub(crate) fn clean(&self, rendered: &str) -> (String, Vec<usize>) {
        let (mut text, mut barriers) = (String::with_capacity(rendered.len()), Vec::new());
        for (i, part) in rendered.split(self.marker).enumerate() {
            if i > 0 && barriers.last() != Some(&text.len()) {
                barriers.push(text.len());
            }
            text.push_str(part);
        }
        (text, barriers)
    }
}
