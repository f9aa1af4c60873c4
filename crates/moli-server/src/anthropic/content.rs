//! The blocks of messages, and the conversation that they are.

use std::collections::HashMap;
use std::fmt;
use std::marker::PhantomData;

use moli_engine::{Message, ToolCall};
use serde::de::value::SeqAccessDeserializer;
use serde::de::{SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use crate::error::ApiError;

/// Blocks; a string is one block of text.
#[derive(Debug)]
pub(crate) struct Blocks<B>(Vec<B>);

/// A text or a list of blocks.
#[derive(ToSchema)]
#[serde(untagged)]
#[schema(as = anthropic::Content)]
#[expect(dead_code, reason = "it describes `Blocks` to readers of the schema")]
pub(crate) enum TextOrBlocks<B> {
    Text(String),
    Blocks(Vec<B>),
}

/// Not by an untagged enum: of what is wrong inside a block it would say nothing.
impl<'de, B: Deserialize<'de> + From<String>> Deserialize<'de> for Blocks<B> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Either<B>(PhantomData<B>);
        impl<'de, B: Deserialize<'de> + From<String>> Visitor<'de> for Either<B> {
            type Value = Vec<B>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string or a list of blocks")
            }

            fn visit_str<E>(self, text: &str) -> Result<Vec<B>, E> {
                Ok(vec![B::from(text.to_owned())])
            }

            fn visit_seq<A: SeqAccess<'de>>(self, blocks: A) -> Result<Vec<B>, A::Error> {
                Vec::deserialize(SeqAccessDeserializer::new(blocks))
            }
        }
        from.deserialize_any(Either(PhantomData)).map(Self)
    }
}

/// A mark where the client would like the prompt to be cached, which it is in any case.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = anthropic::CacheControl)]
pub(crate) struct CacheControl {
    #[serde(rename = "type")]
    _kind: CacheKind,
    #[serde(rename = "ttl")]
    _ttl: Option<CacheTime>,
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
#[schema(as = anthropic::CacheKind)]
enum CacheKind {
    Ephemeral,
}

#[derive(Debug, Deserialize, ToSchema)]
#[schema(as = anthropic::CacheTime)]
enum CacheTime {
    #[serde(rename = "5m")]
    Minutes,
    #[serde(rename = "1h")]
    Hour,
}

/// A block where only text may stand.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
#[schema(as = anthropic::TextBlock)]
pub(crate) enum TextBlock {
    Text {
        text: String,
        #[serde(rename = "cache_control")]
        _cache_control: Option<CacheControl>,
        /// Not supported: the list may only be empty.
        #[serde(default)]
        citations: Option<Vec<Value>>,
    },
}

/// A block of a message.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
#[schema(as = anthropic::Block)]
pub(crate) enum Block {
    Text {
        text: String,
        #[serde(rename = "cache_control")]
        _cache_control: Option<CacheControl>,
        /// Not supported: the list may only be empty.
        #[serde(default)]
        citations: Option<Vec<Value>>,
    },
    /// What the assistant thought, as it was answered.
    Thinking {
        thinking: String,
        /// It is not checked: whatever a client says may be thought here.
        #[serde(rename = "signature")]
        _signature: Option<String>,
    },
    /// A tool that the assistant called.
    ToolUse {
        id: String,
        name: String,
        /// The arguments by their names.
        #[schema(value_type = Object)]
        input: Map<String, Value>,
        #[serde(rename = "cache_control")]
        _cache_control: Option<CacheControl>,
        #[serde(rename = "caller")]
        _caller: Option<Caller>,
    },
    /// What a tool gave.
    ToolResult {
        tool_use_id: String,
        #[serde(default)]
        #[schema(value_type = Option<TextOrBlocks<TextBlock>>)]
        content: Option<Blocks<TextBlock>>,
        /// The model is told by `Error: ` before the content.
        #[serde(default)]
        is_error: Option<bool>,
        #[serde(rename = "cache_control")]
        _cache_control: Option<CacheControl>,
    },
}

/// Who called a tool: the model itself.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
#[schema(as = anthropic::Caller)]
pub(crate) enum Caller {
    Direct,
}

impl From<String> for TextBlock {
    fn from(text: String) -> Self {
        Self::Text { text, _cache_control: None, citations: None }
    }
}

impl From<String> for Block {
    fn from(text: String) -> Self {
        Self::Text { text, _cache_control: None, citations: None }
    }
}

/// A message of a conversation.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(as = anthropic::Message)]
pub(crate) struct GivenMessage {
    role: Role,
    #[schema(value_type = TextOrBlocks<Block>)]
    content: Blocks<Block>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
#[schema(as = anthropic::Role)]
enum Role {
    User,
    Assistant,
    System,
}

impl Role {
    fn name(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Assistant => "assistant",
            Self::System => "system",
        }
    }
}

/// Texts of a turn, a line each.
fn join(text: &mut String, more: &str) {
    if !text.is_empty() {
        text.push('\n');
    }
    text.push_str(more);
}

fn refuse_citations(citations: Option<Vec<Value>>, at: &str) -> Result<(), ApiError> {
    match citations {
        Some(citations) if !citations.is_empty() => {
            let field = format!("{at}.citations");
            Err(ApiError::unsupported(field.clone(), format!("{field} are not supported")))
        }
        _ => Ok(()),
    }
}

impl Blocks<TextBlock> {
    fn into_text(self, at: &str) -> Result<String, ApiError> {
        let mut all = String::new();
        for (index, TextBlock::Text { text, citations, .. }) in self.0.into_iter().enumerate() {
            refuse_citations(citations, &format!("{at}[{index}]"))?;
            join(&mut all, &text);
        }
        Ok(all)
    }
}

/// The conversation as the chat template sees it. What follows each other in one role is one turn; what a tool gave is a
/// message of its own.
pub(crate) fn messages(
    system: Option<Blocks<TextBlock>>,
    given: Vec<GivenMessage>,
) -> Result<Vec<Message>, ApiError> {
    if given.is_empty() {
        return Err(ApiError::invalid("messages", "messages is empty, and must have one at least"));
    }
    let mut conversation = Conversation::default();
    if let Some(system) = system {
        let text = system.into_text("system")?;
        if !text.is_empty() {
            conversation.messages.push(Message::new("system", text));
        }
    }
    for (index, message) in given.into_iter().enumerate() {
        for (place, block) in message.content.0.into_iter().enumerate() {
            conversation.add(message.role, block, &format!("messages[{index}].content[{place}]"))?;
        }
    }
    match conversation.messages.last() {
        Some(last) if last.role == "assistant" => {
            let message =
                "messages end with the assistant's words, which are not continued here: end with the user's";
            Err(ApiError::unsupported("messages", message))
        }
        _ => Ok(conversation.messages),
    }
}

#[derive(Debug, Default)]
struct Conversation {
    messages: Vec<Message>,
    /// The names of the tools that were called, by the calls' ids.
    calls: HashMap<String, String>,
}

impl Conversation {
    /// The message at the end, a new one where another role has spoken last.
    fn turn(&mut self, role: &str) -> &mut Message {
        if self.messages.last().is_none_or(|last| last.role != role) {
            self.messages.push(Message::new(role, ""));
        }
        let last = self.messages.len() - 1;
        &mut self.messages[last]
    }

    /// `at`: where the block is in the request.
    fn add(&mut self, role: Role, block: Block, at: &str) -> Result<(), ApiError> {
        let (kind, only) = match block {
            Block::Text { .. } => ("text", role),
            Block::Thinking { .. } => ("thinking", Role::Assistant),
            Block::ToolUse { .. } => ("tool_use", Role::Assistant),
            Block::ToolResult { .. } => ("tool_result", Role::User),
        };
        if role != only {
            let role = role.name();
            let message = format!("{at} is of type {kind}, which a message of the role {role} can't have");
            return Err(ApiError::invalid(at, message));
        }
        match block {
            Block::Text { text, citations, .. } => {
                refuse_citations(citations, at)?;
                join(&mut self.turn(role.name()).content, &text);
            }
            Block::Thinking { thinking, .. } => {
                join(self.turn("assistant").reasoning_content.get_or_insert_default(), &thinking);
            }
            Block::ToolUse { id, name, input, .. } => {
                self.calls.insert(id.clone(), name.clone());
                self.turn("assistant").tool_calls.push(ToolCall { id, name, arguments: input });
            }
            Block::ToolResult { tool_use_id, content, is_error, .. } => {
                let Some(name) = self.calls.get(&tool_use_id).cloned() else {
                    let shown: String = tool_use_id.chars().take(80).collect();
                    let field = format!("{at}.tool_use_id");
                    let message = format!("{field} is {shown:?}, and no tool_use before it has this id");
                    return Err(ApiError::invalid(field, message));
                };
                let content = content.unwrap_or(Blocks(Vec::new())).into_text(&format!("{at}.content"))?;
                let content = if is_error == Some(true) { format!("Error: {content}") } else { content };
                let result = Message::tool_result(tool_use_id, content);
                self.messages.push(Message { name: Some(name), ..result });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(system: Value, given: Value) -> Result<Vec<Message>, ApiError> {
        messages(serde_json::from_value(system).unwrap(), serde_json::from_value(given).unwrap())
    }

    #[test]
    fn turns_and_results_of_tools() {
        let text = |text: &str| json!({"type": "text", "text": text, "cache_control": {"type": "ephemeral"}});
        let call = |id: &str| json!({"type": "tool_use", "id": id, "name": format!("f{id}"), "input": {"b": 1, "a": 2}});
        let result = |id: &str, more: Value| {
            let mut result = json!({"type": "tool_result", "tool_use_id": id});
            result.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            result
        };
        let thinking = json!({"type": "thinking", "thinking": "hm", "signature": "x"});
        let messages = read(
            json!([text("be"), text("brief")]),
            json!([
                {"role": "user", "content": "one"},
                {"role": "user", "content": [text("two"), text("three")]},
                {"role": "assistant", "content": [thinking, text("Let me see."), call("1")]},
                {"role": "assistant", "content": [call("2")]},
                {"role": "user", "content": [
                    result("2", json!({"content": [text("a"), text("b")]})),
                    result("1", json!({"content": "broken", "is_error": true})),
                    text("and?")
                ]},
                {"role": "assistant", "content": [call("3")]},
                {"role": "user", "content": [result("3", json!({}))]},
            ]),
        )
        .unwrap();
        let told: Vec<(&str, &str)> =
            messages.iter().map(|m| (m.role.as_str(), m.content.as_str())).collect();
        assert_eq!(
            told,
            [
                ("system", "be\nbrief"),
                ("user", "one\ntwo\nthree"),
                ("assistant", "Let me see."),
                ("tool", "a\nb"),
                ("tool", "Error: broken"),
                ("user", "and?"),
                ("assistant", ""),
                ("tool", ""),
            ]
        );
        assert_eq!(messages[2].reasoning_content.as_deref(), Some("hm"));
        let calls: Vec<&str> = messages[2].tool_calls.iter().map(|call| call.name.as_str()).collect();
        assert_eq!(calls, ["f1", "f2"]);
        assert_eq!(serde_json::to_string(&messages[2].tool_calls[0].arguments).unwrap(), r#"{"b":1,"a":2}"#);
        assert_eq!(
            (messages[3].tool_call_id.as_deref(), messages[3].name.as_deref()),
            (Some("2"), Some("f2"))
        );
    }

    #[test]
    fn what_cannot_be_is_named() {
        let user = |block: Value| json!([{"role": "user", "content": [block]}]);
        for (given, param) in [
            (json!([]), "messages"),
            (json!([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]), "messages"),
            (user(json!({"type": "thinking", "thinking": "", "signature": ""})), "messages[0].content[0]"),
            (
                user(json!({"type": "tool_use", "id": "1", "name": "f", "input": {}})),
                "messages[0].content[0]",
            ),
            (user(json!({"type": "tool_result", "tool_use_id": "1"})), "messages[0].content[0].tool_use_id"),
            (user(json!({"type": "text", "text": "", "citations": [1]})), "messages[0].content[0].citations"),
        ] {
            assert_eq!(read(Value::Null, given).unwrap_err().param.as_deref(), Some(param));
        }
    }
}
