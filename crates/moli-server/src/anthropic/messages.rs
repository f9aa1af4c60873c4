//! `/v1/messages` and `/v1/messages/count_tokens`: what is asked.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use moli_engine::{ChatParams, Grammar, Message, Tool, ToolChoice};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::answer::{self, Blocks as AnsweredBlocks, MessageWriter};
use super::content::{self, Blocks, CacheControl, GivenMessage, TextBlock, TextOrBlocks};
use crate::answering::Question;
use crate::app::App;
use crate::body::Strict;
use crate::error::ApiError;
use crate::models::Lease;
use crate::openai::Effort;
use crate::openai::params::Common;
use crate::{stream, thinking};

/// What the engine's parameters are called here.
const NAMES: &[(&str, &str)] = &[
    ("stop", "stop_sequences"),
    ("grammar", "output_config.format"),
    ("reasoning_effort", "output_config.effort"),
];

/// A conversation that is to be continued.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(as = anthropic::MessageRequest)]
pub(crate) struct MessageRequest {
    /// One of `/v1/models`.
    model: String,
    /// Most tokens of the answer, thinking included; 0: the prompt is computed and kept for later.
    max_tokens: usize,
    messages: Vec<GivenMessage>,
    /// How the model is to behave.
    #[schema(value_type = Option<TextOrBlocks<TextBlock>>)]
    system: Option<Blocks<TextBlock>>,
    tools: Option<Vec<OfferedTool>>,
    tool_choice: Option<Choice>,
    thinking: Option<Thinking>,
    output_config: Option<OutputConfig>,
    /// 0: always the likeliest token.
    #[schema(minimum = 0, maximum = 1000)]
    temperature: Option<f32>,
    /// Only the likeliest tokens that together have this probability.
    #[schema(minimum = 0, maximum = 1)]
    top_p: Option<f32>,
    /// Only so many of the likeliest tokens.
    top_k: Option<usize>,
    /// Texts that end the answer.
    stop_sequences: Option<Vec<String>>,
    /// The answer comes as it is made, as server-sent events.
    stream: Option<bool>,
    /// Whoever asks; it changes nothing.
    #[serde(rename = "metadata")]
    _metadata: Option<Metadata>,
    /// There is one.
    #[serde(rename = "service_tier")]
    _service_tier: Option<Tier>,
    #[serde(rename = "cache_control")]
    _cache_control: Option<CacheControl>,
}

/// A conversation whose tokens are to be counted.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(as = anthropic::CountRequest)]
pub(crate) struct CountRequest {
    /// One of `/v1/models`.
    model: String,
    messages: Vec<GivenMessage>,
    /// How the model is to behave.
    #[schema(value_type = Option<TextOrBlocks<TextBlock>>)]
    system: Option<Blocks<TextBlock>>,
    tools: Option<Vec<OfferedTool>>,
    tool_choice: Option<Choice>,
    thinking: Option<Thinking>,
    output_config: Option<OutputConfig>,
    #[serde(rename = "cache_control")]
    _cache_control: Option<CacheControl>,
}

/// A tool that the model may call. Those that a server runs are not supported.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(as = anthropic::Tool)]
pub(crate) struct OfferedTool {
    #[serde(rename = "type")]
    _kind: Option<ToolKind>,
    /// 1 to 64 letters, digits, `_` and `-`.
    name: String,
    description: Option<String>,
    /// A JSON schema of an object.
    input_schema: Value,
    /// Whether the input is held to the schema.
    strict: Option<bool>,
    /// A call is told when it is whole, in any case.
    #[serde(rename = "eager_input_streaming")]
    _eager_input_streaming: Option<bool>,
    #[serde(rename = "cache_control")]
    _cache_control: Option<CacheControl>,
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
#[schema(as = anthropic::ToolKind)]
enum ToolKind {
    Custom,
}

/// Whether a tool is called.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "lowercase", deny_unknown_fields)]
#[schema(as = anthropic::ToolChoice)]
pub(crate) enum Choice {
    /// As the model likes.
    Auto {
        /// One call at most. The calls follow their tools' schemas then.
        disable_parallel_tool_use: Option<bool>,
    },
    /// At least one, whichever.
    Any { disable_parallel_tool_use: Option<bool> },
    /// This one, once.
    Tool {
        name: String,
        #[serde(rename = "disable_parallel_tool_use")]
        _disable_parallel_tool_use: Option<bool>,
    },
    /// None.
    None,
}

/// Whether to think first.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "lowercase", deny_unknown_fields)]
#[schema(as = anthropic::Thinking)]
pub(crate) enum Thinking {
    Enabled {
        /// Most tokens of it.
        #[schema(minimum = 1)]
        budget_tokens: usize,
        #[serde(rename = "display")]
        _display: Option<Display>,
    },
    /// As the model likes.
    Adaptive {
        #[serde(rename = "display")]
        _display: Option<Display>,
    },
    Disabled,
}

/// What is shown of what the model thinks: it is shown as it is.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
#[schema(as = anthropic::ThinkingDisplay)]
pub(crate) enum Display {
    Summarized,
}

/// What the answer must be, and how much thought goes into it.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(as = anthropic::OutputConfig)]
pub(crate) struct OutputConfig {
    effort: Option<EffortLevel>,
    format: Option<OutputFormat>,
}

#[derive(Debug, Clone, Copy, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
#[schema(as = anthropic::Effort)]
enum EffortLevel {
    Low,
    Medium,
    High,
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
#[schema(as = anthropic::OutputFormat)]
enum OutputFormat {
    /// JSON that a schema allows.
    JsonSchema {
        #[schema(value_type = Object)]
        schema: Map<String, Value>,
    },
}

#[derive(Debug, Deserialize, ToSchema)]
#[schema(as = anthropic::Metadata)]
struct Metadata {
    #[serde(rename = "user_id")]
    _user_id: Option<String>,
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = anthropic::ServiceTier)]
enum Tier {
    Auto,
    StandardOnly,
}

/// Tokens of a prompt.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = anthropic::TokenCount)]
struct Count {
    /// Those that an answer would be charged with, cached or not.
    input_tokens: usize,
}

/// Answers a conversation.
#[utoipa::path(
    post,
    path = "/v1/messages",
    tag = "anthropic",
    request_body = MessageRequest,
    responses(
        (status = 200, description = "The answer; with `stream: true` as server-sent events", content((answer::Answered = "application/json"), (crate::openapi::Event = "text/event-stream"))),
        (status = "4XX", response = super::AnthropicRefused)
    )
)]
pub(crate) async fn create(
    State(app): State<Arc<App>>,
    Strict(request): Strict<MessageRequest>,
) -> Result<Response, ApiError> {
    let lease = app.lease(&request.model).await?;
    let streams = request.stream.unwrap_or(false);
    let question = request.read(&lease).map_err(|error| error.renamed(NAMES))?;
    let mut answering = app.answer(lease, question).await.map_err(|error| error.renamed(NAMES))?;
    if streams {
        return Ok(stream::response(answering, MessageWriter::default()));
    }
    let mut blocks = AnsweredBlocks::default();
    while let Some(chunk) = answering.next().await {
        chunk?.events.into_iter().for_each(|event| blocks.add(event));
    }
    Ok(Json(answer::whole(&answering, blocks)?).into_response())
}

/// Counts the tokens of the prompt that a conversation becomes.
#[utoipa::path(
    post,
    path = "/v1/messages/count_tokens",
    tag = "anthropic",
    request_body = CountRequest,
    responses((status = 200, description = "So many", body = Count), (status = "4XX", response = super::AnthropicRefused))
)]
pub(crate) async fn count(
    State(app): State<Arc<App>>,
    Strict(request): Strict<CountRequest>,
) -> Result<Response, ApiError> {
    let lease = app.lease(&request.model).await?;
    let asked = Asked {
        messages: request.messages,
        system: request.system,
        tools: request.tools.unwrap_or_default(),
        tool_choice: request.tool_choice,
        thinking: request.thinking,
        output_config: request.output_config,
    };
    let (messages, params) = asked.read(&lease).map_err(|error| error.renamed(NAMES))?;
    let count = move |engine: &moli_engine::Engine| Ok(engine.chat_prompt(&messages, &params)?.len());
    Ok(Json(Count { input_tokens: app.prepare(&lease, count).await? }).into_response())
}

impl MessageRequest {
    fn read(self, lease: &Lease) -> Result<Question, ApiError> {
        let common = Common {
            temperature: self.temperature,
            top_p: self.top_p,
            top_k: self.top_k,
            ..Common::default()
        };
        let asked = Asked {
            messages: self.messages,
            system: self.system,
            tools: self.tools.unwrap_or_default(),
            tool_choice: self.tool_choice,
            thinking: self.thinking,
            output_config: self.output_config,
        };
        let (messages, mut params) = asked.read(lease)?;
        let mut generate = common.generate(&lease.spec().sampling)?;
        generate.grammar = params.generate.grammar.take();
        generate.max_tokens = Some(self.max_tokens);
        generate.stop = self.stop_sequences.unwrap_or_default();
        params.generate = generate;
        Ok(Question::Chat(messages, Box::new(params)))
    }
}

/// The conversation of a request, and what else becomes part of its prompt.
struct Asked {
    messages: Vec<GivenMessage>,
    system: Option<Blocks<TextBlock>>,
    tools: Vec<OfferedTool>,
    tool_choice: Option<Choice>,
    thinking: Option<Thinking>,
    output_config: Option<OutputConfig>,
}

impl Asked {
    fn read(self, lease: &Lease) -> Result<(Vec<Message>, ChatParams), ApiError> {
        let mut params =
            ChatParams { tools: self.tools.into_iter().map(Tool::from).collect(), ..ChatParams::default() };
        match self.tool_choice {
            Some(Choice::Any { .. } | Choice::Tool { .. }) if params.tools.is_empty() => {
                let message = "tool_choice asks for a call, and there are no tools";
                return Err(ApiError::invalid("tool_choice", message));
            }
            Some(choice) => (params.tool_choice, params.single_tool_call) = choice.into(),
            None => {}
        }
        match self.thinking {
            Some(Thinking::Enabled { budget_tokens: 0, .. }) => {
                let at = "thinking.budget_tokens";
                return Err(ApiError::invalid(at, format!("{at} is 0, and must be at least 1")));
            }
            Some(Thinking::Enabled { budget_tokens, .. }) => {
                thinking::think(true, lease, &mut params.variables, "thinking")?;
                params.reasoning_budget = Some(budget_tokens);
            }
            Some(Thinking::Disabled) => {
                thinking::think(false, lease, &mut params.variables, "thinking")?;
            }
            Some(Thinking::Adaptive { .. }) | None => {}
        }
        if let Some(config) = self.output_config {
            match config.effort {
                Some(EffortLevel::Low) => Effort::Low.tell(lease, &mut params.variables)?,
                Some(EffortLevel::Medium) => Effort::Medium.tell(lease, &mut params.variables)?,
                Some(EffortLevel::High) => Effort::High.tell(lease, &mut params.variables)?,
                None => {}
            }
            let schema = config.format.map(|OutputFormat::JsonSchema { schema }| schema);
            params.generate.grammar =
                schema.map(|schema| Grammar::JsonSchema(Value::Object(schema).to_string()));
        }
        Ok((content::messages(self.system, self.messages)?, params))
    }
}

impl From<OfferedTool> for Tool {
    fn from(tool: OfferedTool) -> Self {
        Self {
            name: tool.name,
            description: tool.description.unwrap_or_default(),
            parameters: tool.input_schema,
            strict: tool.strict.unwrap_or(false),
        }
    }
}

impl From<Choice> for (ToolChoice, bool) {
    /// And whether one call is the most.
    fn from(choice: Choice) -> Self {
        match choice {
            Choice::Auto { disable_parallel_tool_use } => {
                (ToolChoice::Auto, disable_parallel_tool_use == Some(true))
            }
            Choice::Any { disable_parallel_tool_use } => {
                (ToolChoice::Required, disable_parallel_tool_use == Some(true))
            }
            Choice::Tool { name, .. } => (ToolChoice::Named(name), true),
            Choice::None => (ToolChoice::None, false),
        }
    }
}
