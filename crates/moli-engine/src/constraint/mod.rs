//! Constrained decoding: answers that are JSON, match a schema or a regular expression, or follow a grammar.
//!
//! A [`Grammar`] is text from a client. The [`Compiler`] checks it and makes a [`Constraint`] of it, which says before
//! each token which ones may come next. Nothing is ignored: a grammar that can't be followed to the letter is an error,
//! and an error on the way ends the answer instead of letting it go on unconstrained.
//!
//! The automata are those of the crate `llguidance`. It splits a grammar into lexemes and takes the longest one that it
//! can, as a lexer does: in a Lark grammar, a terminal never stops short for what follows it. Schemas and regular
//! expressions are not affected, and the reader of GBNF cuts its lexemes so that it makes no difference.

mod cache;
mod compiler;
mod gbnf;
mod lark;
mod matcher;
mod productive;
mod schema;
#[cfg(test)]
mod tests;
mod vocabulary;

pub(crate) use compiler::Compiler;
pub(crate) use matcher::Constraint;

use crate::EngineError;

/// Most bytes of a grammar's text.
pub const MAX_GRAMMAR_BYTES: usize = 1 << 20;

/// What an answer must be.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Grammar {
    /// A JSON object.
    Json,
    /// JSON that a schema (draft 4 to 2020-12, the text of it) allows. Properties come in the schema's order. Keywords
    /// that can't be enforced are an error; keywords that no draft knows say nothing, as the specification has it.
    JsonSchema(String),
    /// Text that this regular expression matches as a whole, in the syntax of the crate `regex` without anchors and
    /// word boundaries.
    Regex(String),
    /// Text of this Lark grammar, from its rule `start`.
    Lark(String),
    /// Text of this grammar in llama.cpp's notation, from its rule `root`.
    Gbnf(String),
}

impl Grammar {
    /// What it is, as errors call it.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Json | Self::JsonSchema(_) => "JSON schema",
            Self::Regex(_) => "regular expression",
            Self::Lark(_) => "Lark grammar",
            Self::Gbnf(_) => "GBNF grammar",
        }
    }

    fn text(&self) -> &str {
        match self {
            Self::Json => r#"{"type":"object"}"#,
            Self::JsonSchema(text) | Self::Regex(text) | Self::Lark(text) | Self::Gbnf(text) => text,
        }
    }

    fn check_size(&self) -> Result<(), EngineError> {
        at_most(self.kind(), "bytes", self.text().len(), MAX_GRAMMAR_BYTES)
    }
}

/// A bound on one thing that a grammar has many of.
fn at_most(kind: &'static str, what: &'static str, value: usize, limit: usize) -> Result<(), EngineError> {
    if value <= limit {
        return Ok(());
    }
    Err(EngineError::GrammarTooLarge { kind, what, value, limit })
}
