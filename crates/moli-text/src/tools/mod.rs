//! Tools: what a client offers, how a model calls them, and what makes a call well-formed.

mod call;
mod fallback;
mod format;
mod grammar;
mod parser;
mod scanner;

pub(crate) use fallback::{describe, write_calls};
pub use format::ToolFormat;
pub use grammar::{CallOptions, JSON_WHITESPACE};
pub use parser::{AnswerEvent, AnswerParser, ParserOptions};

use crate::TextError;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value, json};
use std::collections::HashSet;

/// Levels of lists and objects in a tool's schema or a call's arguments.
pub(crate) const MAX_DEPTH: usize = 64;

/// A function that the model may call: the `function` of an entry of `tools` in OpenAI's schema.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tool {
    /// 1 to 64 letters, digits, `_` and `-`.
    pub name: String,
    /// When to call it and what it does, for the model; may be empty.
    #[serde(default, deserialize_with = "or_default")]
    pub description: String,
    /// A JSON schema of an object, the arguments by their names; null for a function without any.
    #[serde(default)]
    pub parameters: Value,
    /// Whether each call's arguments have to follow the schema. It is for the constraint, not for the model: a template
    /// doesn't see it.
    #[serde(default, deserialize_with = "or_default")]
    pub strict: bool,
}

/// OpenAI's clients write null for what they leave out.
fn or_default<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(from: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or_default())
}

impl Tool {
    /// The most tools at once.
    pub const MAX_COUNT: usize = 128;
    /// The most bytes of a description.
    pub const MAX_DESCRIPTION: usize = 64 << 10;
    /// The most bytes of all tools' schemas as JSON.
    pub const MAX_SCHEMAS: usize = 256 << 10;

    /// Checks tools: their names, their schemas' kind, depth and size, and how many there are.
    ///
    /// # Errors
    /// [`TextError::TooManyTools`], and [`TextError::InvalidTool`], which names the tool.
    pub fn validate(tools: &[Self]) -> Result<(), TextError> {
        if tools.len() > Self::MAX_COUNT {
            return Err(TextError::TooManyTools { limit: Self::MAX_COUNT, actual: tools.len() });
        }
        let (mut names, mut bytes) = (HashSet::new(), 0usize);
        for tool in tools {
            let invalid = |reason| Err(TextError::InvalidTool { name: shown(&tool.name), reason });
            if !is_name(&tool.name) {
                return invalid("a name has 1 to 64 letters, digits, _ and -".to_owned());
            }
            if !names.insert(tool.name.as_str()) {
                return invalid("two tools have this name".to_owned());
            }
            if tool.description.len() > Self::MAX_DESCRIPTION {
                let (actual, limit) = (tool.description.len(), Self::MAX_DESCRIPTION);
                return invalid(format!("its description has {actual} bytes, the most is {limit}"));
            }
            let kind = match &tool.parameters {
                Value::Null => None,
                Value::Object(schema) => schema.get("type"),
                _ => return invalid("its parameters are not a JSON schema: an object".to_owned()),
            };
            if kind.is_some_and(|kind| kind != "object") {
                return invalid("its parameters are a schema of something else than an object".to_owned());
            }
            // Before anything walks it by recursion.
            if !nests_within(&tool.parameters, MAX_DEPTH) {
                return invalid(format!("its parameters nest deeper than {MAX_DEPTH} levels"));
            }
            bytes = bytes.saturating_add(tool.parameters.to_string().len());
            if bytes > Self::MAX_SCHEMAS {
                let limit = Self::MAX_SCHEMAS;
                return invalid(format!("with it, the schemas have {bytes} bytes, the most is {limit}"));
            }
        }
        Ok(())
    }

    /// What a model is told of it.
    pub(crate) fn definition(&self) -> Value {
        let mut function = Map::from_iter([("name".to_owned(), Value::from(self.name.as_str()))]);
        if !self.description.is_empty() {
            function.insert("description".to_owned(), Value::from(self.description.as_str()));
        }
        function.insert("parameters".to_owned(), Value::Object(self.schema()));
        json!({"type": "function", "function": function})
    }

    /// The schema of its arguments.
    pub(crate) fn schema(&self) -> Map<String, Value> {
        match &self.parameters {
            Value::Object(schema) => schema.clone(),
            _ => Map::from_iter([
                ("type".to_owned(), Value::from("object")),
                ("properties".to_owned(), Value::Object(Map::new())),
            ]),
        }
    }
}

/// Whether the model has to call a tool.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ToolChoice {
    /// As it likes.
    #[default]
    Auto,
    /// It doesn't: leave the tools out of the prompt and of the parser.
    None,
    /// At least one, whichever.
    Required,
    /// This one.
    Named(String),
}

/// Whether a text can be a tool's name.
pub(crate) fn is_name(name: &str) -> bool {
    (1..=64).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-'))
}

/// As much of a client's text as an error message shows.
pub(crate) fn shown(text: &str) -> String {
    text.chars().take(80).collect()
}

/// Whether a value nests no deeper than this, found without recursion.
pub(crate) fn nests_within(value: &Value, limit: usize) -> bool {
    let mut rest = vec![(value, 0)];
    while let Some((value, depth)) = rest.pop() {
        if depth > limit {
            return false;
        }
        match value {
            Value::Array(items) => rest.extend(items.iter().map(|item| (item, depth + 1))),
            Value::Object(items) => rest.extend(items.values().map(|item| (item, depth + 1))),
            _ => {}
        }
    }
    true
}
