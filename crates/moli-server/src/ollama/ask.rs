//! `/api/chat` and `/api/generate`: what is asked.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use moli_engine::{ChatParams, Message};
use serde::Deserialize;
use serde_json::Map;
use utoipa::ToSchema;

use super::answer::{self, AnswerWriter, Kind};
use super::message::{self, GivenMessage};
use super::options::{Format, KeepAlive, Manner, NAMES, Options, Think};
use crate::answering::{Prompt, Question};
use crate::app::App;
use crate::body::Strict;
use crate::error::ApiError;
use crate::models::Lease;
use crate::openai::{OfferedTool, tools};
use crate::stream;

/// A conversation that is to be continued. Without messages the model is loaded, or unloaded.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(as = ollama::ChatRequest)]
pub(crate) struct ChatRequest {
    /// One of `/api/tags`.
    model: String,
    messages: Option<Vec<GivenMessage>>,
    /// Tools that the model may call.
    tools: Option<Vec<OfferedTool>>,
    /// The answer comes as it is made, a JSON object a line; true.
    stream: Option<bool>,
    format: Option<Format>,
    options: Option<Options>,
    keep_alive: Option<KeepAlive>,
    think: Option<Think>,
    /// A prompt beyond the context is refused, whatever this says.
    #[serde(rename = "truncate")]
    _truncate: Option<bool>,
    /// Where the context is full, the middle is forgotten and the answer goes on; false.
    shift: Option<bool>,
    /// Each token comes with its log-probability.
    logprobs: Option<bool>,
    /// And with so many of the likeliest ones.
    #[schema(maximum = 20)]
    top_logprobs: Option<usize>,
}

/// A text that is to be answered. Without one the model is loaded, or unloaded.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(as = ollama::GenerateRequest)]
pub(crate) struct GenerateRequest {
    /// One of `/api/tags`.
    model: String,
    prompt: Option<String>,
    /// How the model is to behave.
    system: Option<String>,
    /// The prompt is continued as it stands, without the model's chat format; so it is where the model has none.
    raw: Option<bool>,
    /// The answer comes as it is made, a JSON object a line; true.
    stream: Option<bool>,
    format: Option<Format>,
    options: Option<Options>,
    keep_alive: Option<KeepAlive>,
    think: Option<Think>,
    /// A prompt beyond the context is refused, whatever this says.
    #[serde(rename = "truncate")]
    _truncate: Option<bool>,
    /// Where the context is full, the middle is forgotten and the answer goes on; false.
    shift: Option<bool>,
    /// Each token comes with its log-probability.
    logprobs: Option<bool>,
    /// And with so many of the likeliest ones.
    #[schema(maximum = 20)]
    top_logprobs: Option<usize>,
    /// Not supported: it may only be empty.
    suffix: Option<String>,
    /// Not supported: the model's own is used.
    template: Option<String>,
    /// Not supported: the list may only be empty. What was computed for an earlier prompt is found by the prompt's beginning.
    context: Option<Vec<u32>>,
    /// Not supported: the list may only be empty.
    images: Option<Vec<String>>,
}

/// Answers a conversation.
#[utoipa::path(
    post,
    path = "/api/chat",
    tag = "ollama",
    request_body = ChatRequest,
    responses((status = 200, description = "The answer, as lines of it unless `stream` is false", content((answer::Part = "application/json"), (answer::Part = "application/x-ndjson"))), (status = "4XX", response = super::OllamaRefused))
)]
pub(crate) async fn chat(
    State(app): State<Arc<App>>,
    Strict(request): Strict<ChatRequest>,
) -> Result<Response, ApiError> {
    let asked = Instant::now();
    let messages = request.messages.unwrap_or_default();
    let keep_alive = request.keep_alive.as_ref().map(KeepAlive::duration).transpose()?;
    let manner = Manner {
        options: request.options.unwrap_or_default(),
        format: request.format,
        shift: request.shift.unwrap_or(false),
        logprobs: request.logprobs,
        top_logprobs: request.top_logprobs,
    };
    if messages.is_empty() {
        return load(&app, Kind::Chat, &request.model, keep_alive, manner).await;
    }
    let lease = lease(&app, &request.model, keep_alive).await?;
    let writer = AnswerWriter::new(Kind::Chat, request.model, asked, asked.elapsed());
    let tools = tools(request.tools.unwrap_or_default());
    let question = manner.generate(&lease).and_then(|generate| {
        let mut params = ChatParams { tools, generate, ..ChatParams::default() };
        if let Some(think) = request.think {
            think.tell(&lease, &mut params.variables)?;
        }
        Ok(Question::Chat(message::messages(messages)?, Box::new(params)))
    });
    answer(&app, lease, question, writer, request.stream).await
}

/// Answers a text.
#[utoipa::path(
    post,
    path = "/api/generate",
    tag = "ollama",
    request_body = GenerateRequest,
    responses((status = 200, description = "The answer, as lines of it unless `stream` is false", content((answer::Part = "application/json"), (answer::Part = "application/x-ndjson"))), (status = "4XX", response = super::OllamaRefused))
)]
pub(crate) async fn generate(
    State(app): State<Arc<App>>,
    Strict(request): Strict<GenerateRequest>,
) -> Result<Response, ApiError> {
    let asked = Instant::now();
    request.refuse_unsupported()?;
    let keep_alive = request.keep_alive.as_ref().map(KeepAlive::duration).transpose()?;
    let manner = Manner {
        options: request.options.unwrap_or_default(),
        format: request.format,
        shift: request.shift.unwrap_or(false),
        logprobs: request.logprobs,
        top_logprobs: request.top_logprobs,
    };
    let Some(prompt) = request.prompt.filter(|prompt| !prompt.is_empty()) else {
        return load(&app, Kind::Generate, &request.model, keep_alive, manner).await;
    };
    let lease = lease(&app, &request.model, keep_alive).await?;
    let writer = AnswerWriter::new(Kind::Generate, request.model, asked, asked.elapsed());
    let text = Text {
        prompt,
        system: request.system.filter(|system| !system.is_empty()),
        raw: request.raw.unwrap_or(false),
        think: request.think,
    };
    let question = manner.generate(&lease).and_then(|generate| text.question(&lease, generate));
    answer(&app, lease, question, writer, request.stream).await
}

impl GenerateRequest {
    fn refuse_unsupported(&self) -> Result<(), ApiError> {
        let text = |text: &Option<String>| text.as_ref().is_some_and(|text| !text.is_empty());
        for (set, name) in [
            (text(&self.suffix), "suffix"),
            (text(&self.template), "template"),
            (self.context.as_ref().is_some_and(|context| !context.is_empty()), "context"),
            (self.images.as_ref().is_some_and(|images| !images.is_empty()), "images"),
        ] {
            if set {
                return Err(ApiError::unsupported(name, format!("{name} is not supported")));
            }
        }
        Ok(())
    }
}

/// What `/api/generate` is asked.
struct Text {
    prompt: String,
    system: Option<String>,
    raw: bool,
    think: Option<Think>,
}

impl Text {
    fn question(self, lease: &Lease, generate: moli_engine::GenerateParams) -> Result<Question, ApiError> {
        for (set, name) in [(self.system.is_some(), "system"), (self.think.is_some(), "think")] {
            if self.raw && set {
                let message = format!("{name} is for prompts in the model's chat format, not for raw: true");
                return Err(ApiError::invalid(name, message));
            }
        }
        let plain = self.system.is_none() && self.think.is_none() && lease.engine.chat_template()?.is_none();
        if self.raw || plain {
            return Ok(Question::Continue(vec![Prompt::Text(self.prompt)], Box::new(generate)));
        }
        let mut variables = Map::new();
        if let Some(think) = self.think {
            think.tell(lease, &mut variables)?;
        }
        let system = self.system.map(|system| Message::new("system", system));
        let messages = system.into_iter().chain([Message::new("user", self.prompt)]).collect();
        let params = ChatParams { variables, generate, ..ChatParams::default() };
        Ok(Question::Chat(messages, Box::new(params)))
    }
}

/// The model, loaded, for as long as the client says. One that the server keeps stays whatever it says.
pub(super) async fn lease(app: &App, model: &str, keep_alive: Option<Duration>) -> Result<Lease, ApiError> {
    let lease = app.lease(model).await?;
    if let Some(long) = keep_alive {
        lease.stay(long);
    }
    Ok(lease)
}

/// Loads a model, or unloads it where it is to stay no longer. What else is asked has to be right all the same.
async fn load(
    app: &App,
    kind: Kind,
    model: &str,
    keep_alive: Option<Duration>,
    manner: Manner,
) -> Result<Response, ApiError> {
    let reason = if keep_alive == Some(Duration::ZERO) {
        let slot = app.models.find(model)?;
        // Without the model there is no telling which tokens and how many.
        manner.check(&slot.spec.sampling, usize::MAX, usize::MAX)?;
        if slot.spec.keep {
            let message = format!("{:?} stays loaded as long as the server runs", slot.spec.name);
            return Err(ApiError::unsupported("keep_alive", message));
        }
        // Whoever is at it still gets an answer.
        slot.stay(Duration::ZERO);
        while app.models.unload_expired(app.options.unload_after).await {}
        "unload"
    } else {
        let lease = lease(app, model, keep_alive).await?;
        manner.options.check_context(&lease)?;
        manner.check(&lease.spec().sampling, lease.engine.config().vocab, lease.engine.context())?;
        "load"
    };
    Ok(Json(answer::loaded(kind, model, reason)).into_response())
}

async fn answer(
    app: &Arc<App>,
    lease: Lease,
    question: Result<Question, ApiError>,
    writer: AnswerWriter,
    stream: Option<bool>,
) -> Result<Response, ApiError> {
    let question = question.map_err(|error| error.renamed(NAMES))?;
    let mut answering = app.answer(lease, question).await.map_err(|error| error.renamed(NAMES))?;
    if stream.unwrap_or(true) {
        return Ok(stream::response(answering, writer));
    }
    let mut choices = answering.collect().await?;
    let choice = choices.pop().ok_or_else(|| ApiError::internal("an answer without choices"))?;
    Ok(Json(writer.whole(&answering, choice)).into_response())
}
