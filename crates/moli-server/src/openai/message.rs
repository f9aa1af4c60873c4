//! The messages of a conversation, and the tools in it.

use moli_engine::{Message, Tool, ToolCall, ToolChoice};
use serde::de::{Error, IgnoredAny};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};
use utoipa::openapi::{ObjectBuilder, RefOr, Schema, Type};
use utoipa::{PartialSchema, ToSchema};

use crate::error::ApiError;

/// A message of a conversation.
#[derive(Debug, Deserialize, ToSchema)]
pub(crate) struct ChatMessage {
    role: Role,
    /// Text, alone or in parts.
    content: Option<Content>,
    /// The name of a tool whose answer this is.
    name: Option<String>,
    /// What the assistant thought.
    reasoning_content: Option<String>,
    /// The tools that the assistant called.
    tool_calls: Option<Vec<GivenCall>>,
    /// Which call this answers.
    tool_call_id: Option<String>,
    /// What the assistant refused with; it is content to the model.
    refusal: Option<String>,
    /// The content once more, as a client has read it.
    #[serde(rename = "parsed")]
    _parsed: Option<Value>,
    #[serde(rename = "annotations")]
    _annotations: Option<Vec<Absent>>,
    #[serde(rename = "audio", default)]
    _audio: Absent,
    #[serde(rename = "function_call", default)]
    _function_call: Absent,
}

/// What is not supported here. Clients that send answers back say of it that it is null.
#[derive(Debug, Default)]
pub(crate) struct Absent;

impl PartialSchema for Absent {
    fn schema() -> RefOr<Schema> {
        ObjectBuilder::new().schema_type(Type::Null).into()
    }
}

impl ToSchema for Absent {}

impl<'de> Deserialize<'de> for Absent {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Option::<IgnoredAny>::deserialize(deserializer)? {
            None => Ok(Self),
            Some(_) => Err(D::Error::custom("it is not supported, and may only be null")),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
enum Role {
    System,
    Developer,
    User,
    Assistant,
    Tool,
}

/// Text, alone or in parts.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(
    untagged,
    expecting = "must be a string or a list of parts {\"type\": \"text\", \"text\": …}: other kinds are not supported"
)]
pub(crate) enum Content {
    Text(String),
    Parts(Vec<Part>),
}

/// A part of a message.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Part {
    /// `text`.
    #[serde(rename = "type")]
    _kind: TextKind,
    text: String,
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum TextKind {
    Text,
    InputText,
    OutputText,
}

impl Content {
    pub(crate) fn into_text(self) -> String {
        match self {
            Self::Text(text) => text,
            Self::Parts(parts) => parts.into_iter().map(|part| part.text).collect(),
        }
    }
}

/// A call that the assistant made, as a client sends it back.
#[derive(Debug, Deserialize, ToSchema)]
struct GivenCall {
    id: String,
    #[serde(rename = "type")]
    _kind: FunctionKind,
    function: GivenFunction,
    /// Its place in a stream.
    #[serde(rename = "index")]
    _index: Option<usize>,
}

#[derive(Debug, Deserialize, ToSchema)]
struct GivenFunction {
    name: String,
    /// A JSON object, as text.
    arguments: String,
    /// The arguments once more, as a client has read them.
    #[serde(rename = "parsed_arguments")]
    _parsed: Option<Value>,
}

/// A call of a tool.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct FunctionCall {
    pub(crate) id: String,
    #[serde(rename = "type")]
    pub(crate) kind: FunctionKind,
    pub(crate) function: CalledFunction,
}

#[derive(Debug, Clone, Copy, Default, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum FunctionKind {
    #[default]
    Function,
}

/// The function that is called.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct CalledFunction {
    pub(crate) name: String,
    /// A JSON object, as text.
    pub(crate) arguments: String,
}

/// Messages as the chat template sees them.
pub(crate) fn messages(given: Vec<ChatMessage>) -> Result<Vec<Message>, ApiError> {
    let all = given.into_iter().enumerate();
    all.map(|(index, message)| message.read(&format!("messages[{index}]"))).collect()
}

impl ChatMessage {
    /// `at`: where it is in the request.
    fn read(self, at: &str) -> Result<Message, ApiError> {
        let role = match self.role {
            Role::System | Role::Developer => "system",
            Role::User => "user",
            Role::Assistant => "assistant",
            Role::Tool => "tool",
        };
        let calls = self.tool_calls.unwrap_or_default();
        let content = match (self.content, self.refusal) {
            (Some(content), _) => content.into_text(),
            (None, Some(refusal)) => refusal,
            (None, None) if self.role == Role::Assistant && !calls.is_empty() => String::new(),
            (None, None) => {
                return Err(ApiError::invalid(format!("{at}.content"), format!("{at} has no content")));
            }
        };
        for (set, name, only) in [
            (!calls.is_empty(), "tool_calls", Role::Assistant),
            (self.reasoning_content.is_some(), "reasoning_content", Role::Assistant),
            (self.tool_call_id.is_some(), "tool_call_id", Role::Tool),
        ] {
            if set && self.role != only {
                let message = format!("{at} has {name}, which a message of the role {role} can't have");
                return Err(ApiError::invalid(format!("{at}.{name}"), message));
            }
        }
        let calls = calls.into_iter().enumerate().map(|(place, call)| {
            let at = format!("{at}.tool_calls[{place}].function.arguments");
            Ok(ToolCall {
                id: call.id,
                name: call.function.name,
                arguments: arguments(&call.function.arguments, &at)?,
            })
        });
        Ok(Message {
            role: role.to_owned(),
            content,
            reasoning_content: self.reasoning_content,
            tool_calls: calls.collect::<Result<_, ApiError>>()?,
            tool_call_id: self.tool_call_id,
            name: self.name,
        })
    }
}

/// The arguments of a call, which stands at `at`. Clients write nothing for none.
pub(crate) fn arguments(text: &str, at: &str) -> Result<Map<String, Value>, ApiError> {
    if text.trim().is_empty() {
        return Ok(Map::new());
    }
    serde_json::from_str(text)
        .map_err(|error| ApiError::invalid(at, format!("{at} is not a JSON object: {error}")))
}

/// A tool that is offered.
#[derive(Debug, Deserialize, ToSchema)]
pub(crate) struct OfferedTool {
    #[serde(rename = "type")]
    _kind: FunctionKind,
    #[schema(value_type = OfferedFunction)]
    function: Tool,
}

/// A function that the model may call.
#[derive(ToSchema)]
#[expect(dead_code, reason = "it describes `Tool` to readers of the schema")]
struct OfferedFunction {
    /// 1 to 64 letters, digits, `_` and `-`.
    name: String,
    description: Option<String>,
    /// A JSON schema of an object.
    parameters: Option<Value>,
    /// Whether the arguments are held to the schema.
    strict: Option<bool>,
}

/// The tools that are offered.
pub(crate) fn tools(offered: Vec<OfferedTool>) -> Vec<Tool> {
    offered.into_iter().map(|tool| tool.function).collect()
}

/// Whether a tool is called.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(
    untagged,
    expecting = "must be \"none\", \"auto\", \"required\" or {\"type\": \"function\", \"function\": {\"name\": …}}"
)]
pub(crate) enum Choice {
    Mode(ChoiceMode),
    Named(NamedChoice),
}

#[derive(Debug, Clone, Copy, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum ChoiceMode {
    None,
    Auto,
    Required,
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct NamedChoice {
    #[serde(rename = "type")]
    _kind: FunctionKind,
    function: ChosenFunction,
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct ChosenFunction {
    name: String,
}

impl From<ChoiceMode> for ToolChoice {
    fn from(mode: ChoiceMode) -> Self {
        match mode {
            ChoiceMode::None => Self::None,
            ChoiceMode::Auto => Self::Auto,
            ChoiceMode::Required => Self::Required,
        }
    }
}

impl From<Choice> for ToolChoice {
    fn from(choice: Choice) -> Self {
        match choice {
            Choice::Mode(mode) => mode.into(),
            Choice::Named(named) => Self::Named(named.function.name),
        }
    }
}
