//! `/v1/responses`, without a memory: each request brings the whole conversation.
//!
//! - this file: what is asked;
//! - [`write`]: what is answered.

mod write;

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use moli_engine::{ChatParams, Message, Tool, ToolCall, ToolChoice};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::chat::{Effort, MAX_TOP_LOGPROBS, ResponseFormat, SchemaFormat};
use super::message::{Absent, ChoiceMode, Content, FunctionKind, arguments};
use super::params::{Common, NAMES, Retention, Tier, Verbosity};
use crate::answering::Question;
use crate::app::App;
use crate::body::Strict;
use crate::error::ApiError;
use crate::models::Lease;
use crate::stream;
use write::{Asked, ResponseWriter};

/// A conversation that is to be continued.
#[derive(Debug, Deserialize, ToSchema)]
pub(crate) struct ResponseRequest {
    /// One of `/v1/models`.
    model: String,
    input: Input,
    /// How the model is to behave, before everything else.
    instructions: Option<String>,
    /// Most tokens of the answer, reasoning included.
    max_output_tokens: Option<usize>,
    #[schema(minimum = 0, maximum = 1000)]
    temperature: Option<f32>,
    #[schema(minimum = 0, maximum = 1)]
    top_p: Option<f32>,
    /// The same seed gives the same answer, whatever else is computed meanwhile.
    seed: Option<i64>,
    /// Who is served first where not everybody can be: the higher.
    priority: Option<i32>,
    /// The answer ends after so many milliseconds, finished or not.
    #[schema(minimum = 1, format = "uint64")]
    deadline_ms: Option<u64>,
    #[schema(maximum = 20)]
    top_logprobs: Option<usize>,
    tools: Option<Vec<FunctionTool>>,
    tool_choice: Option<FunctionChoice>,
    parallel_tool_calls: Option<bool>,
    /// What the answer must be.
    #[serde(default, deserialize_with = "crate::body::object")]
    text: Option<TextOptions>,
    #[serde(default, deserialize_with = "crate::body::object")]
    reasoning: Option<ReasoningOptions>,
    /// The answer comes as it is made, as server-sent events.
    stream: Option<bool>,
    #[serde(default, deserialize_with = "crate::body::object")]
    stream_options: Option<ResponseStreamOptions>,
    /// Nothing is stored, which an answer says: it may be absent or false.
    store: Option<bool>,
    /// `message.output_text.logprobs` is what can be had. Reasoning is given as it is and can be sent back, which is what
    /// `reasoning.encrypted_content` is for.
    include: Option<Vec<Include>>,
    /// A prompt is never cut: it may only be `disabled`.
    truncation: Option<Truncation>,
    /// Notes of whoever asks; they come back and change nothing.
    metadata: Option<Map<String, Value>>,
    #[serde(rename = "user")]
    _user: Option<String>,
    #[serde(rename = "safety_identifier")]
    _safety_identifier: Option<String>,
    #[serde(rename = "prompt_cache_key")]
    _prompt_cache_key: Option<String>,
    #[serde(rename = "prompt_cache_retention")]
    _prompt_cache_retention: Option<Retention>,
    #[serde(rename = "service_tier")]
    _service_tier: Option<Tier>,
}

/// A text, or the items of a conversation.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(
    untagged,
    expecting = "must be a string or a list of messages, function calls, their outputs and reasoning"
)]
enum Input {
    Text(String),
    Items(Vec<Item>),
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(untagged)]
enum Item {
    Message(MessageItem),
    Call(CallItem),
    Output(OutputItem),
    Reasoning(ReasoningItem),
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct MessageItem {
    #[serde(rename = "type")]
    _kind: Option<MessageKind>,
    role: Role,
    content: ItemContent,
    #[serde(rename = "id")]
    _id: Option<String>,
    #[serde(rename = "status")]
    _status: Option<String>,
    #[serde(rename = "phase", default)]
    _phase: Absent,
}

/// Text, alone or in parts.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(untagged)]
enum ItemContent {
    Plain(Content),
    Answered(Vec<AnsweredPart>),
}

/// A part of an answer that comes back.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct AnsweredPart {
    #[serde(rename = "type")]
    _kind: OutputTextKind,
    text: String,
    #[serde(rename = "annotations")]
    _annotations: Option<Vec<Value>>,
    #[serde(rename = "logprobs")]
    _logprobs: Option<Vec<Value>>,
    /// The text once more, as a client has read it.
    #[serde(rename = "parsed")]
    _parsed: Option<Value>,
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum OutputTextKind {
    OutputText,
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
enum MessageKind {
    Message,
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
enum Role {
    User,
    Assistant,
    System,
    Developer,
}

/// A call that the model made.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct CallItem {
    #[serde(rename = "type")]
    _kind: CallKind,
    call_id: String,
    name: String,
    /// A JSON object, as text.
    arguments: String,
    #[serde(rename = "id")]
    _id: Option<String>,
    #[serde(rename = "status")]
    _status: Option<String>,
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum CallKind {
    FunctionCall,
}

/// What a call gave.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct OutputItem {
    #[serde(rename = "type")]
    _kind: OutputKind,
    call_id: String,
    output: Content,
    #[serde(rename = "id")]
    _id: Option<String>,
    #[serde(rename = "status")]
    _status: Option<String>,
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum OutputKind {
    FunctionCallOutput,
}

/// What the model thought: it goes to the message that follows.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct ReasoningItem {
    #[serde(rename = "type")]
    _kind: ReasoningKind,
    #[serde(default)]
    content: Vec<ReasoningText>,
    #[serde(rename = "summary")]
    _summary: Option<Vec<Value>>,
    #[serde(rename = "encrypted_content", default)]
    _encrypted_content: Absent,
    #[serde(rename = "id")]
    _id: Option<String>,
    #[serde(rename = "status")]
    _status: Option<String>,
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum ReasoningKind {
    Reasoning,
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct ReasoningText {
    #[serde(rename = "type")]
    _kind: ReasoningTextKind,
    text: String,
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum ReasoningTextKind {
    ReasoningText,
}

/// A function that the model may call.
#[derive(Debug, Clone, Deserialize, Serialize, ToSchema)]
pub(crate) struct FunctionTool {
    #[serde(rename = "type")]
    kind: FunctionKind,
    name: String,
    description: Option<String>,
    /// A JSON schema of an object.
    parameters: Option<Value>,
    /// Whether the arguments are held to the schema.
    strict: Option<bool>,
}

/// Whether a function is called.
#[derive(Debug, Clone, Deserialize, Serialize, ToSchema)]
#[serde(
    untagged,
    expecting = "must be \"none\", \"auto\", \"required\" or {\"type\": \"function\", \"name\": …}"
)]
pub(crate) enum FunctionChoice {
    Mode(ChoiceMode),
    Named(NamedFunction),
}

#[derive(Debug, Clone, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct NamedFunction {
    #[serde(rename = "type")]
    kind: FunctionKind,
    name: String,
}

#[derive(Debug, Deserialize, ToSchema)]
struct TextOptions {
    format: Option<TextFormat>,
    #[serde(rename = "verbosity")]
    _verbosity: Option<Verbosity>,
}

/// What the answer must be.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
enum TextFormat {
    Text {},
    JsonObject {},
    JsonSchema {
        name: Option<String>,
        description: Option<String>,
        schema: Map<String, Value>,
        strict: Option<bool>,
    },
}

#[derive(Debug, Deserialize, ToSchema)]
struct ReasoningOptions {
    effort: Option<Effort>,
    /// There are no summaries: what the model thinks is given as it is.
    summary: Option<String>,
}

#[derive(Debug, Deserialize, ToSchema)]
struct ResponseStreamOptions {
    include_obfuscation: Option<bool>,
}

#[derive(Debug, PartialEq, Eq, Deserialize, ToSchema)]
enum Include {
    #[serde(rename = "message.output_text.logprobs")]
    Logprobs,
    #[serde(rename = "reasoning.encrypted_content")]
    Reasoning,
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
enum Truncation {
    Disabled,
}

/// Answers a conversation.
#[utoipa::path(
    post,
    path = "/v1/responses",
    tag = "openai",
    request_body = ResponseRequest,
    responses(
        (status = 200, description = "The answer; with `stream: true` as server-sent events", content((write::ResponseObject = "application/json"), (crate::openapi::Event = "text/event-stream"))),
        (status = "4XX", response = crate::openapi::Refused)
    )
)]
pub(crate) async fn respond(
    State(app): State<Arc<App>>,
    Strict(request): Strict<ResponseRequest>,
) -> Result<Response, ApiError> {
    let lease = app.lease(&request.model).await?;
    let streams = request.stream.unwrap_or(false);
    let asked = request.asked();
    let grammar = if request.text.is_some() { "text.format" } else { "tools" };
    let question = request.read(&lease)?;
    let answering =
        app.answer(lease, question).await.map_err(|error| error.renamed(NAMES).in_grammar(grammar))?;
    let writer = ResponseWriter::new(asked, &answering);
    if streams {
        return Ok(stream::response(answering, writer));
    }
    Ok(Json(writer.whole(answering).await?).into_response())
}

impl ResponseRequest {
    /// What an answer repeats of its question.
    fn asked(&self) -> Asked {
        let mode = || FunctionChoice::Mode(ChoiceMode::Auto);
        Asked {
            instructions: self.instructions.clone(),
            max_output_tokens: self.max_output_tokens,
            temperature: self.temperature,
            top_p: self.top_p,
            parallel_tool_calls: self.parallel_tool_calls.unwrap_or(true),
            tool_choice: self.tool_choice.clone().unwrap_or_else(mode),
            tools: self.tools.clone().unwrap_or_default(),
            metadata: self.metadata.clone().unwrap_or_default(),
        }
    }

    fn read(self, lease: &Lease) -> Result<Question, ApiError> {
        let _: Option<Truncation> = self.truncation;
        if self.store == Some(true) {
            return Err(ApiError::unsupported("store", "nothing is stored here: store can't be true"));
        }
        if self.stream_options.and_then(|options| options.include_obfuscation) == Some(true) {
            let at = "stream_options.include_obfuscation";
            return Err(ApiError::unsupported(at, format!("{at} is not supported")));
        }
        let mut variables = Map::new();
        if let Some(reasoning) = self.reasoning {
            if reasoning.summary.is_some() {
                let message = "reasoning is not summarised here: it is given as it is";
                return Err(ApiError::unsupported("reasoning.summary", message));
            }
            if let Some(effort) = reasoning.effort {
                effort.tell(lease, &mut variables)?;
            }
        }
        let common = Common {
            temperature: self.temperature,
            top_p: self.top_p,
            seed: self.seed,
            priority: self.priority,
            deadline_ms: self.deadline_ms,
            ..Common::default()
        };
        let mut generate = common.generate(&lease.spec().sampling)?;
        generate.max_tokens = self.max_output_tokens;
        generate.grammar = self.text.and_then(|text| text.format).and_then(TextFormat::into_grammar);
        let wanted = self.include.is_some_and(|include| include.contains(&Include::Logprobs));
        generate.logprobs = match self.top_logprobs {
            Some(top) if top > MAX_TOP_LOGPROBS => {
                let message = format!("top_logprobs is {top}, and must be at most {MAX_TOP_LOGPROBS}");
                return Err(ApiError::invalid("top_logprobs", message));
            }
            top => top.or(wanted.then_some(0)),
        };
        let tools: Vec<Tool> = self.tools.unwrap_or_default().into_iter().map(Into::into).collect();
        let tool_choice = self.tool_choice.map(Into::into).unwrap_or_default();
        if tools.is_empty() && !matches!(tool_choice, ToolChoice::Auto | ToolChoice::None) {
            return Err(ApiError::invalid(
                "tool_choice",
                "tool_choice asks for a call, and there are no tools",
            ));
        }
        let single_tool_call = self.parallel_tool_calls == Some(false);
        let params =
            ChatParams { tools, tool_choice, single_tool_call, variables, generate, ..ChatParams::default() };
        Ok(Question::Chat(messages(self.instructions, self.input)?, Box::new(params)))
    }
}

impl TextFormat {
    fn into_grammar(self) -> Option<moli_engine::Grammar> {
        match self {
            Self::Text {} => ResponseFormat::Text {},
            Self::JsonObject {} => ResponseFormat::JsonObject {},
            Self::JsonSchema { name, description, schema, strict } => ResponseFormat::JsonSchema {
                json_schema: SchemaFormat::new(name, description, schema, strict),
            },
        }
        .into_grammar()
    }
}

impl From<FunctionTool> for Tool {
    fn from(tool: FunctionTool) -> Self {
        Self {
            name: tool.name,
            description: tool.description.unwrap_or_default(),
            parameters: tool.parameters.unwrap_or_default(),
            strict: tool.strict.unwrap_or(false),
        }
    }
}

impl From<FunctionChoice> for ToolChoice {
    fn from(choice: FunctionChoice) -> Self {
        match choice {
            FunctionChoice::Mode(mode) => mode.into(),
            FunctionChoice::Named(named) => Self::Named(named.name),
        }
    }
}

impl ItemContent {
    fn into_text(self) -> String {
        match self {
            Self::Plain(content) => content.into_text(),
            Self::Answered(parts) => parts.into_iter().map(|part| part.text).collect(),
        }
    }
}

/// The conversation as the chat template sees it: what the assistant thought, said and called in one turn is one message.
fn messages(instructions: Option<String>, input: Input) -> Result<Vec<Message>, ApiError> {
    let mut messages: Vec<Message> =
        instructions.into_iter().map(|text| Message::new("system", text)).collect();
    let items = match input {
        Input::Text(text) => {
            messages.push(Message::new("user", text));
            return Ok(messages);
        }
        Input::Items(items) => items,
    };
    for (index, item) in items.into_iter().enumerate() {
        match item {
            Item::Message(MessageItem { role: Role::Assistant, content, .. }) => {
                turn(&mut messages).content.push_str(&content.into_text());
            }
            Item::Message(MessageItem { role, content, .. }) => {
                let role = if matches!(role, Role::User) { "user" } else { "system" };
                messages.push(Message::new(role, content.into_text()));
            }
            Item::Call(call) => {
                let at = format!("input[{index}].arguments");
                let arguments = arguments(&call.arguments, &at)?;
                turn(&mut messages).tool_calls.push(ToolCall {
                    id: call.call_id,
                    name: call.name,
                    arguments,
                });
            }
            Item::Output(output) => {
                messages.push(Message::tool_result(output.call_id, output.output.into_text()));
            }
            Item::Reasoning(reasoning) => {
                let thought: String = reasoning.content.into_iter().map(|part| part.text).collect();
                turn(&mut messages).reasoning_content.get_or_insert_default().push_str(&thought);
            }
        }
    }
    Ok(messages)
}

/// The assistant's message at the end, a new one where there is none.
fn turn(messages: &mut Vec<Message>) -> &mut Message {
    if messages.last().is_none_or(|last| last.role != "assistant") {
        messages.push(Message::new("assistant", ""));
    }
    let last = messages.len() - 1;
    &mut messages[last]
}
