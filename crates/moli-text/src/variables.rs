//! What a template sees of a conversation: messages, tools and a client's variables, with the guard's marks in every
//! text of them.

use crate::guard::Guard;
use crate::tools::{self, Tool};
use crate::{Message, RenderOptions, TextError};
use minijinja::Environment;
use minijinja::value::Value;
use serde_json::{Map, Value as Json};

/// What a client's variables may not be called, besides the engine's functions.
const RESERVED: &[&str] = &[
    "messages",
    "tools",
    "add_generation_prompt",
    "bos_token",
    "eos_token",
    "raise_exception",
    "strftime_now",
    "loop",
    "self",
    "super",
    "caller",
    "varargs",
    "kwargs",
    "true",
    "false",
    "none",
    "True",
    "False",
    "None",
];
/// The most variables of a client.
const MAX_VARIABLES: usize = 64;
/// The most bytes of one as JSON.
const MAX_VARIABLE: usize = 64 << 10;

/// Checks what is bounded or reserved, before anything walks it by recursion.
pub(crate) fn check(
    environment: &Environment<'_>,
    messages: &[Message],
    options: &RenderOptions,
) -> Result<(), TextError> {
    Tool::validate(&options.tools)?;
    for call in messages.iter().flat_map(|message| &message.tool_calls) {
        if !call.arguments.values().all(|value| tools::nests_within(value, tools::MAX_DEPTH - 1)) {
            return Err(TextError::ArgumentsTooDeep { id: tools::shown(&call.id), limit: tools::MAX_DEPTH });
        }
    }
    for (index, (name, value)) in options.extra.iter().enumerate() {
        let refused = |reason: String| Err(TextError::TemplateVariable { name: tools::shown(name), reason });
        let mut characters = name.bytes();
        let word = characters.next().is_some_and(|first| first.is_ascii_alphabetic() || first == b'_')
            && characters.all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
        if !word {
            return refused("it is not a name".to_owned());
        }
        if RESERVED.contains(&name.as_str()) || environment.globals().any(|(global, _)| global == name) {
            return refused("the name is reserved".to_owned());
        }
        if index >= MAX_VARIABLES {
            return refused(format!("more than {MAX_VARIABLES} variables"));
        }
        if !tools::nests_within(value, tools::MAX_DEPTH) {
            return refused(format!("it nests deeper than {} levels", tools::MAX_DEPTH));
        }
        let bytes = value.to_string().len();
        if bytes > MAX_VARIABLE {
            return refused(format!("it has {bytes} bytes, the most is {MAX_VARIABLE}"));
        }
    }
    Ok(())
}

/// What is rendered.
pub(crate) struct Conversation<'a> {
    pub(crate) messages: &'a [Message],
    pub(crate) tools: &'a [Tool],
    pub(crate) extra: &'a Map<String, Json>,
    /// The template knows reasoning as `thinking`.
    pub(crate) thinking: bool,
}

impl<'a> Conversation<'a> {
    /// Messages, calls and tools, and the bytes of their texts. A value that isn't a text counts as a few bytes.
    pub(crate) fn size(&self) -> (usize, usize) {
        let calls: usize = self.messages.iter().map(|message| message.tool_calls.len()).sum();
        let mut bytes = 0usize;
        self.texts(|text| bytes = bytes.saturating_add(text.len()).saturating_add(8));
        (self.messages.len() + calls + self.tools.len(), bytes)
    }

    /// Every text of it.
    pub(crate) fn texts(&self, mut each: impl FnMut(&'a str)) {
        for message in self.messages {
            each(&message.role);
            each(&message.content);
            for text in [&message.reasoning_content, &message.tool_call_id, &message.name] {
                text.iter().for_each(|text| each(text));
            }
            for call in &message.tool_calls {
                each(&call.id);
                each(&call.name);
                walk_map(&call.arguments, &mut each);
            }
        }
        for tool in self.tools {
            each(&tool.name);
            each(&tool.description);
            walk(&tool.parameters, &mut each);
        }
        walk_map(self.extra, &mut each);
    }

    /// The variables by their names.
    pub(crate) fn variables(&self, guard: &Guard<'_>) -> Vec<(String, Value)> {
        let messages: Vec<Value> = self.messages.iter().map(|message| self.message(guard, message)).collect();
        let schema = |text: &str| guard.schema_word(text);
        let tools: Vec<Value> = self.tools.iter().map(|tool| marked(&tool.definition(), &schema)).collect();
        let mut out = vec![
            ("messages".to_owned(), Value::from(messages)),
            ("tools".to_owned(), if tools.is_empty() { Value::from(()) } else { Value::from(tools) }),
        ];
        if !self.extra.contains_key("documents") {
            out.push(("documents".to_owned(), Value::from(())));
        }
        let content = |text: &str| guard.content(text);
        out.extend(self.extra.iter().map(|(name, value)| (name.clone(), marked(value, &content))));
        out
    }

    fn message(&self, guard: &Guard<'_>, message: &Message) -> Value {
        let content = |text: &str| guard.content(text);
        let mut pairs = vec![
            ("role", Value::from(guard.role(&message.role))),
            ("content", Value::from(content(&message.content))),
        ];
        let reasoning = if self.thinking { "thinking" } else { "reasoning_content" };
        for (key, text) in [
            (reasoning, &message.reasoning_content),
            ("tool_call_id", &message.tool_call_id),
            ("name", &message.name),
        ] {
            pairs.extend(text.iter().map(|text| (key, Value::from(content(text)))));
        }
        // Templates ask whether a message has the key.
        if !message.tool_calls.is_empty() {
            let calls = message.tool_calls.iter().map(|call| {
                let function = Value::from_pairs([
                    ("name", Value::from(content(&call.name))),
                    ("arguments", marked_map(&call.arguments, &content)),
                ]);
                Value::from_pairs([
                    ("id", Value::from(content(&call.id))),
                    ("type", Value::from("function")),
                    ("function", function),
                ])
            });
            pairs.push(("tool_calls", Value::from(calls.collect::<Vec<_>>())));
        }
        Value::from_pairs(pairs)
    }
}

fn walk<'a>(value: &'a Json, each: &mut impl FnMut(&'a str)) {
    match value {
        Json::String(text) => each(text),
        Json::Array(items) => items.iter().for_each(|item| walk(item, each)),
        Json::Object(items) => walk_map(items, each),
        // It costs what a short text costs.
        _ => each(""),
    }
}

fn walk_map<'a>(items: &'a Map<String, Json>, each: &mut impl FnMut(&'a str)) {
    for (key, item) in items {
        each(key);
        walk(item, each);
    }
}

/// JSON as the template's value, with marks in its keys and texts.
fn marked(value: &Json, mark: &impl Fn(&str) -> String) -> Value {
    match value {
        Json::String(text) => Value::from(mark(text)),
        Json::Array(items) => items.iter().map(|item| marked(item, mark)).collect(),
        Json::Object(items) => marked_map(items, mark),
        Json::Null => Value::from(()),
        Json::Bool(value) => Value::from(*value),
        Json::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(number), _) => Value::from(number),
            (None, Some(number)) => Value::from(number),
            _ => number.as_f64().map_or(Value::from(()), Value::from),
        },
    }
}

fn marked_map(items: &Map<String, Json>, mark: &impl Fn(&str) -> String) -> Value {
    Value::from_pairs(items.iter().map(|(key, item)| (mark(key), marked(item, mark))))
}
