//! `/v1/chat/completions`: what is asked.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use moli_engine::{ChatParams, Grammar, ToolChoice};
use serde::Deserialize;
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::answer::{self, ChatWriter};
use super::message::{self, ChatMessage, Choice, OfferedTool};
use super::params::{self, NAMES, Retention, StreamOptions, Tier, Verbosity};
use crate::answering::Question;
use crate::app::App;
use crate::body::Strict;
use crate::error::ApiError;
use crate::models::Lease;
use crate::stream;

/// Most of the likeliest tokens that each token of an answer comes with.
pub(crate) const MAX_TOP_LOGPROBS: usize = 20;

params::request! {
    /// A conversation that is to be continued.
    struct ChatRequest {
        /// One of `/v1/models`.
        model: String,
        messages: Vec<ChatMessage>,
        /// Most tokens of the answer.
        max_completion_tokens: Option<usize>,
        /// The same, under its old name.
        max_tokens: Option<usize>,
        /// Tools that the model may call.
        tools: Option<Vec<OfferedTool>>,
        tool_choice: Option<Choice>,
        /// Whether an answer that has to call may call several tools.
        parallel_tool_calls: Option<bool>,
        /// What the answer must be.
        response_format: Option<ResponseFormat>,
        /// Each token comes with its log-probability.
        logprobs: Option<bool>,
        /// And with so many of the likeliest ones.
        #[schema(maximum = 20)]
        top_logprobs: Option<usize>,
        /// How long to think, for models that can be told: `none` turns thinking off.
        reasoning_effort: Option<Effort>,
        /// Most tokens of reasoning, for models that mark it.
        reasoning_budget: Option<usize>,
        /// Further variables of the model's chat template.
        chat_template_kwargs: Option<Map<String, Value>>,
        /// Nothing is stored: it may only be false.
        store: Option<bool>,
        #[serde(rename = "service_tier")]
        _service_tier: Option<Tier>,
        /// Whoever asks; it changes nothing.
        #[serde(rename = "safety_identifier")]
        _safety_identifier: Option<String>,
        /// Beginnings of prompts are cached by what they are; it changes nothing.
        #[serde(rename = "prompt_cache_key")]
        _prompt_cache_key: Option<String>,
        #[serde(rename = "prompt_cache_retention")]
        _prompt_cache_retention: Option<Retention>,
        #[serde(rename = "verbosity")]
        _verbosity: Option<Verbosity>,
        /// Text is all that there is.
        #[serde(rename = "modalities")]
        _modalities: Option<Vec<Modality>>,
    }
}

/// What an answer must be.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum ResponseFormat {
    /// Anything. (With braces: further fields of a variant without them would go unnoticed.)
    Text {},
    /// A JSON object.
    JsonObject {},
    /// JSON that a schema allows.
    JsonSchema { json_schema: SchemaFormat },
    /// What a regular expression matches.
    Regex { regex: String },
    /// A text of this grammar, in llama.cpp's notation.
    Gbnf { grammar: String },
    /// A text of this Lark grammar.
    Lark { grammar: String },
}

/// A schema and its name.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct SchemaFormat {
    /// For whoever asks.
    #[serde(rename = "name")]
    _name: Option<String>,
    #[serde(rename = "description")]
    _description: Option<String>,
    #[schema(value_type = Object)]
    schema: Map<String, Value>,
    /// The schema is always enforced.
    #[serde(rename = "strict")]
    _strict: Option<bool>,
}

impl SchemaFormat {
    pub(crate) fn new(
        name: Option<String>,
        description: Option<String>,
        schema: Map<String, Value>,
        strict: Option<bool>,
    ) -> Self {
        Self { _name: name, _description: description, schema, _strict: strict }
    }
}

impl ResponseFormat {
    pub(crate) fn into_grammar(self) -> Option<Grammar> {
        match self {
            Self::Text {} => None,
            Self::JsonObject {} => Some(Grammar::Json),
            Self::JsonSchema { json_schema } => {
                Some(Grammar::JsonSchema(Value::Object(json_schema.schema).to_string()))
            }
            Self::Regex { regex } => Some(Grammar::Regex(regex)),
            Self::Gbnf { grammar } => Some(Grammar::Gbnf(grammar)),
            Self::Lark { grammar } => Some(Grammar::Lark(grammar)),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Effort {
    None,
    Minimal,
    Low,
    Medium,
    High,
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
enum Modality {
    Text,
}

/// Answers a conversation.
#[utoipa::path(
    post,
    path = "/v1/chat/completions",
    tag = "openai",
    request_body = ChatRequest,
    responses(
        (status = 200, description = "The answer; with `stream: true` as server-sent events of chunks", content((answer::Completion = "application/json"), (crate::openapi::Event = "text/event-stream"))),
        (status = "4XX", response = crate::openapi::Refused)
    )
)]
pub(crate) async fn complete(
    State(app): State<Arc<App>>,
    Strict(request): Strict<ChatRequest>,
) -> Result<Response, ApiError> {
    let lease = app.lease(&request.model).await?;
    let streams = request.stream.unwrap_or(false);
    let include_usage = StreamOptions::include_usage(request.stream_options.as_ref(), streams)?;
    // Either has a grammar made, never both.
    let grammar = if request.response_format.is_some() { "response_format" } else { "tools" };
    let question = request.read(&lease)?;
    let mut answering =
        app.answer(lease, question).await.map_err(|error| error.renamed(NAMES).in_grammar(grammar))?;
    if streams {
        return Ok(stream::response(answering, ChatWriter::new(include_usage)));
    }
    let choices = answering.collect().await?;
    Ok(Json(answer::completion(&answering, choices)?).into_response())
}

impl ChatRequest {
    fn read(mut self, lease: &Lease) -> Result<Question, ApiError> {
        let mut generate = self.common().generate(&lease.spec().sampling)?;
        generate.adapters = params::adapters(self.lora.take(), lease)?;
        generate.max_tokens = params::max_tokens(self.max_tokens, self.max_completion_tokens)?;
        generate.grammar = self.response_format.and_then(ResponseFormat::into_grammar);
        generate.logprobs = logprobs(self.logprobs, self.top_logprobs)?;
        if self.store == Some(true) {
            return Err(ApiError::unsupported("store", "nothing is stored here: store can't be true"));
        }
        let tools = message::tools(self.tools.unwrap_or_default());
        let tool_choice: ToolChoice = self.tool_choice.map(Into::into).unwrap_or_default();
        if tools.is_empty() && !matches!(tool_choice, ToolChoice::Auto | ToolChoice::None) {
            return Err(ApiError::invalid(
                "tool_choice",
                "tool_choice asks for a call, and there are no tools",
            ));
        }
        let mut variables = self.chat_template_kwargs.unwrap_or_default();
        if let Some(effort) = self.reasoning_effort {
            effort.tell(lease, &mut variables)?;
        }
        let params = ChatParams {
            tools,
            tool_choice,
            single_tool_call: self.parallel_tool_calls == Some(false),
            reasoning_budget: self.reasoning_budget,
            variables,
            generate,
        };
        Ok(Question::Chat(message::messages(self.messages)?, Box::new(params)))
    }
}

/// How many of the likeliest tokens are wanted; `None`: no log-probabilities at all.
pub(crate) fn logprobs(wanted: Option<bool>, top: Option<usize>) -> Result<Option<usize>, ApiError> {
    match (wanted.unwrap_or(false), top) {
        (_, Some(top)) if top > MAX_TOP_LOGPROBS => {
            let message = format!("top_logprobs is {top}, and must be at most {MAX_TOP_LOGPROBS}");
            Err(ApiError::invalid("top_logprobs", message))
        }
        (false, Some(_)) => Err(ApiError::invalid("top_logprobs", "top_logprobs needs logprobs: true")),
        (false, None) => Ok(None),
        (true, top) => Ok(Some(top.unwrap_or(0))),
    }
}

impl Effort {
    /// Tells the model's chat template, in the words that it knows.
    pub(crate) fn tell(self, lease: &Lease, variables: &mut Map<String, Value>) -> Result<(), ApiError> {
        let template = lease.engine.chat_template()?.map(|template| template.source()).unwrap_or_default();
        let word = match self {
            Self::None => "none",
            Self::Minimal => "minimal",
            Self::Low => "low",
            Self::Medium => "medium",
            Self::High => "high",
        };
        if template.contains("reasoning_effort") {
            variables.entry("reasoning_effort").or_insert_with(|| word.into());
        } else if template.contains("enable_thinking") {
            variables.entry("enable_thinking").or_insert_with(|| (self != Self::None).into());
        } else if self != Self::None {
            let message =
                format!("reasoning_effort is {word:?}, and this model can't be told how long to think");
            return Err(ApiError::unsupported("reasoning_effort", message));
        }
        Ok(())
    }
}
