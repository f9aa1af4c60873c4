//! What may be in a Lark grammar, and a regular expression as one.

use llguidance::TokenParser;

use super::at_most;
use super::compiler::invalid;
use crate::EngineError;

const KIND: &str = "Lark grammar";

/// Every rule begins a line, and the compiler recurses from rule to rule and from group to group.
const MAX_LINES_AND_BRACKETS: usize = 10_000;

/// Looks at the text before it is parsed.
pub(super) fn check(text: &str) -> Result<(), EngineError> {
    let recursed = text.bytes().filter(|byte| matches!(byte, b'\n' | b'(' | b'[')).count();
    at_most(KIND, "lines and brackets", recursed, MAX_LINES_AND_BRACKETS)?;
    // Its options turn checks off, among them the one on UTF-8. An empty one is how many grammars begin.
    for (at, found) in text.match_indices("%llguidance") {
        let rest = text.get(at + found.len()..).unwrap_or_default().trim_start();
        if !rest.strip_prefix('{').is_some_and(|rest| rest.trim_start().starts_with('}')) {
            return Err(invalid(KIND, "options of %llguidance are not supported"));
        }
    }
    Ok(())
}

/// Refuses what would be ignored, or enforced in part only. Schemas inside a grammar may have asked for that too.
pub(super) fn check_enforced(kind: &'static str, parser: &mut TokenParser) -> Result<(), EngineError> {
    if let Some(warning) = parser.grammar_warnings().first() {
        return Err(invalid(kind, warning));
    }
    let spec = parser.parser.grammar().lexer_spec();
    let refused = [
        (spec.has_stop, "stop= and a rest that is cut off are not supported"),
        (spec.has_max_tokens, "max_tokens= is not supported"),
        (spec.special_token_rx.is_some(), "tokens can't be named, only text"),
    ];
    match refused.iter().find(|(found, _)| *found) {
        Some((_, reason)) => Err(invalid(kind, reason)),
        None => Ok(()),
    }
}

/// A grammar of one terminal.
pub(super) fn from_regex(regex: &str) -> Result<String, EngineError> {
    if regex.is_empty() {
        return Ok("start: \"\"".to_owned());
    }
    let mut lark = String::with_capacity(regex.len() + 16);
    lark.push_str("start: /");
    let mut chars = regex.chars();
    while let Some(c) = chars.next() {
        match c {
            '/' => lark.push_str("\\/"),
            // A line break would end the terminal here, and no expression may escape one.
            '\\' => match chars.next().filter(|c| *c != '\n') {
                Some(escaped) => lark.extend(['\\', escaped]),
                None => return Err(invalid("regular expression", "a backslash with nothing to escape")),
            },
            _ => lark.push(c),
        }
    }
    lark.push('/');
    Ok(lark)
}
