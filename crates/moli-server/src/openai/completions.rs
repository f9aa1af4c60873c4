//! `/v1/completions`: texts that are continued as they stand.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use moli_engine::{AnswerEvent, ChatChunk, Summary, TokenOutput, Tokenizer};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::answer::{Receipt, Usage, fingerprint, finish, finite};
use super::chat::ResponseFormat;
use super::params::{self, NAMES, StreamOptions};
use crate::answering::{Answering, Prompt, Question};
use crate::app::App;
use crate::body::Strict;
use crate::collected::Collected;
use crate::error::ApiError;
use crate::models::Lease;
use crate::respond;
use crate::stream::{self, Frames, Writer};

/// Most texts of a request.
const MAX_PROMPTS: usize = 128;
/// Most of the likeliest tokens that each token of an answer comes with.
const MAX_LOGPROBS: usize = 20;

params::request! {
    /// Texts that are to be continued.
    struct CompletionRequest {
        /// One of `/v1/models`.
        model: String,
        prompt: Prompts,
        /// Most tokens of each answer.
        max_tokens: Option<usize>,
        /// Each token comes with its log-probability and those of so many of the likeliest.
        #[schema(maximum = 20)]
        logprobs: Option<usize>,
        /// What the answer must be.
        response_format: Option<ResponseFormat>,
        /// The text comes back before its answer; not with logprobs, which prompts have none of.
        echo: Option<bool>,
        /// All that are made are given, so it may only be `n`.
        best_of: Option<usize>,
    }
}

/// Texts, or the ids of their tokens.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(
    untagged,
    expecting = "must be a string, a list of strings, a list of token ids or a list of such lists"
)]
pub(crate) enum Prompts {
    Text(String),
    Texts(Vec<String>),
    Ids(Vec<u32>),
    IdLists(Vec<Vec<u32>>),
}

impl Prompts {
    pub(crate) fn into_list(self) -> Vec<Prompt> {
        match self {
            Self::Text(text) => vec![Prompt::Text(text)],
            Self::Texts(texts) => texts.into_iter().map(Prompt::Text).collect(),
            Self::Ids(ids) => vec![Prompt::Ids(ids)],
            Self::IdLists(lists) => lists.into_iter().map(Prompt::Ids).collect(),
        }
    }
}

/// Continues texts.
#[utoipa::path(
    post,
    path = "/v1/completions",
    tag = "openai",
    request_body = CompletionRequest,
    responses(
        (status = 200, description = "The continuations; with `stream: true` as server-sent events", content((Completions = "application/json"), (crate::openapi::Event = "text/event-stream"))),
        (status = "4XX", response = crate::openapi::Refused)
    )
)]
pub(crate) async fn complete(
    State(app): State<Arc<App>>,
    Strict(request): Strict<CompletionRequest>,
) -> Result<Response, ApiError> {
    let lease = app.lease(&request.model).await?;
    let streams = request.stream.unwrap_or(false);
    let include_usage = StreamOptions::include_usage(request.stream_options.as_ref(), streams)?;
    let (question, echoes) = request.read(&lease)?;
    let mut answering = app
        .answer(lease, question)
        .await
        .map_err(|error| error.renamed(NAMES).in_grammar("response_format"))?;
    let pieces = answering.summaries().map(|_| Pieces::default()).collect();
    let mut writer =
        CompletionWriter { include_usage, id: String::new(), fingerprint: String::new(), echoes, pieces };
    if streams {
        return Ok(stream::response(answering, writer));
    }
    let choices = answering.collect().await?;
    writer.id = answering.id("cmpl-");
    Ok(Json(writer.whole(&answering, choices)).into_response())
}

impl CompletionRequest {
    /// The question, and the texts that come back before their answers.
    fn read(mut self, lease: &Lease) -> Result<(Question, Vec<String>), ApiError> {
        let mut generate = self.common().generate(&lease.spec().sampling)?;
        generate.adapters = params::adapters(self.lora.take(), lease)?;
        generate.max_tokens = self.max_tokens.or(Some(DEFAULT_MAX_TOKENS));
        generate.grammar = self.response_format.and_then(ResponseFormat::into_grammar);
        generate.logprobs = self.logprobs;
        if let Some(top) = self.logprobs.filter(|&top| top > MAX_LOGPROBS) {
            let message = format!("logprobs is {top}, and must be at most {MAX_LOGPROBS}");
            return Err(ApiError::invalid("logprobs", message));
        }
        if let Some(best_of) = self.best_of.filter(|&best_of| best_of != generate.choices) {
            let message =
                format!("best_of is {best_of} and n is {}: all answers are given", generate.choices);
            return Err(ApiError::unsupported("best_of", message));
        }
        let prompts = self.prompt.into_list();
        if prompts.is_empty() || prompts.len() > MAX_PROMPTS {
            let message = format!("prompt has {} texts, and must have 1 to {MAX_PROMPTS}", prompts.len());
            return Err(ApiError::invalid("prompt", message));
        }
        let mut echoes = Vec::new();
        if self.echo == Some(true) {
            if generate.logprobs.is_some() {
                return Err(ApiError::unsupported("echo", "echo with logprobs is not supported"));
            }
            let tokenizer = lease.engine.tokenizer();
            for prompt in &prompts {
                echoes.push(match prompt {
                    Prompt::Text(text) => text.clone(),
                    Prompt::Ids(ids) => {
                        tokenizer.decode(ids, false).map_err(moli_engine::EngineError::from)?
                    }
                });
            }
        }
        Ok((Question::Continue(prompts, Box::new(generate)), echoes))
    }
}

/// The limit of an answer that was given none, as OpenAI has it.
const DEFAULT_MAX_TOKENS: usize = 16;

/// Answers, or a part of them.
#[derive(Debug, Serialize, ToSchema)]
struct Completions<'a> {
    id: &'a str,
    object: &'static str,
    /// Seconds since 1970.
    created: u64,
    model: &'a str,
    choices: Vec<CompletionChoice>,
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Usage>,
    system_fingerprint: &'a str,
    #[serde(flatten)]
    receipt: Option<Receipt>,
}

#[derive(Debug, Serialize, ToSchema)]
struct CompletionChoice {
    index: usize,
    text: String,
    logprobs: Option<TextLogprobs>,
    finish_reason: Option<&'static str>,
    /// What ended it, in more words.
    #[serde(skip_serializing_if = "Option::is_none")]
    stop_reason: Option<String>,
}

/// Log-probabilities in the older form.
#[derive(Debug, Default, Serialize, ToSchema)]
struct TextLogprobs {
    tokens: Vec<String>,
    token_logprobs: Vec<f32>,
    top_logprobs: Vec<BTreeMap<String, f32>>,
    /// Where each token's text begins, in characters of the answer.
    text_offset: Vec<usize>,
}

/// What was not told of a choice's log-probabilities, and where its next token begins.
#[derive(Debug, Default)]
struct Pieces {
    untold: TextLogprobs,
    offset: usize,
}

impl Pieces {
    fn add(&mut self, token: &TokenOutput, tokenizer: &Tokenizer) {
        let Some(logprob) = token.logprob.filter(|_| !tokenizer.is_end_of_generation(token.id)) else {
            return;
        };
        let text = |id| tokenizer.token_text(id).unwrap_or_default();
        self.untold.tokens.push(token.text.clone());
        self.untold.token_logprobs.push(finite(logprob));
        self.untold
            .top_logprobs
            .push(token.top.iter().map(|&(id, logprob)| (text(id), finite(logprob))).collect());
        self.untold.text_offset.push(self.offset);
        self.offset += token.text.chars().count();
    }

    fn take(&mut self) -> Option<TextLogprobs> {
        let told = std::mem::take(&mut self.untold);
        (!told.tokens.is_empty()).then_some(told)
    }
}

/// Writes answers, whole or as they come.
#[derive(Debug)]
struct CompletionWriter {
    include_usage: bool,
    id: String,
    fingerprint: String,
    echoes: Vec<String>,
    pieces: Vec<Pieces>,
}

impl CompletionWriter {
    /// The text that comes back before a choice.
    fn echo(&self, answering: &Answering, index: usize) -> String {
        self.echoes.get(index / answering.choices_of_a_prompt()).cloned().unwrap_or_default()
    }

    fn object<'a>(&'a self, answering: &'a Answering, choices: Vec<CompletionChoice>) -> Completions<'a> {
        Completions {
            id: &self.id,
            object: "text_completion",
            created: answering.created,
            model: answering.model(),
            choices,
            usage: None,
            system_fingerprint: &self.fingerprint,
            receipt: None,
        }
    }

    fn whole<'a>(&'a mut self, answering: &'a Answering, choices: Vec<Collected>) -> Completions<'a> {
        let tokenizer = answering.lease.engine.tokenizer();
        self.fingerprint = fingerprint(answering);
        let choices = choices.into_iter().enumerate().map(|(index, choice)| {
            let mut pieces = Pieces::default();
            choice.tokens.iter().for_each(|token| pieces.add(token, tokenizer));
            let text = self.echo(answering, index) + &choice.content;
            ended(index, text, pieces.take(), &choice.summary)
        });
        let choices = choices.collect();
        Completions {
            usage: Some(Usage::of(answering)),
            receipt: Receipt::of(answering),
            ..self.object(answering, choices)
        }
    }
}

fn ended(index: usize, text: String, logprobs: Option<TextLogprobs>, summary: &Summary) -> CompletionChoice {
    let (reason, stop_reason) = finish(summary, false);
    CompletionChoice { index, text, logprobs, finish_reason: Some(reason), stop_reason }
}

impl Writer for CompletionWriter {
    fn begin(&mut self, answering: &Answering, out: &mut Frames) {
        self.id = answering.id("cmpl-");
        self.fingerprint = fingerprint(answering);
        for index in 0..self.pieces.len() {
            let text = self.echo(answering, index);
            if !text.is_empty() {
                let choice =
                    CompletionChoice { index, text, logprobs: None, finish_reason: None, stop_reason: None };
                out.data(&self.object(answering, vec![choice]));
            }
        }
    }

    fn chunk(&mut self, answering: &Answering, chunk: ChatChunk, out: &mut Frames) {
        let index = chunk.choice;
        let Some(pieces) = self.pieces.get_mut(index) else { return };
        if let Some(token) = &chunk.token {
            pieces.add(token, answering.lease.engine.tokenizer());
        }
        for event in chunk.events {
            let AnswerEvent::Content(text) = event else { continue };
            let logprobs = self.pieces.get_mut(index).and_then(Pieces::take);
            let choice = CompletionChoice { index, text, logprobs, finish_reason: None, stop_reason: None };
            out.data(&self.object(answering, vec![choice]));
        }
    }

    fn end(&mut self, answering: &Answering, out: &mut Frames) {
        let mut pieces = std::mem::take(&mut self.pieces);
        let last = pieces.len().saturating_sub(1);
        for (index, (summary, pieces)) in answering.summaries().zip(&mut pieces).enumerate() {
            let choice = ended(index, String::new(), pieces.take(), summary);
            let receipt = if index == last && !self.include_usage { Receipt::of(answering) } else { None };
            out.data(&Completions { receipt, ..self.object(answering, vec![choice]) });
        }
        if self.include_usage {
            let (usage, receipt) = (Some(Usage::of(answering)), Receipt::of(answering));
            out.data(&Completions { usage, receipt, ..self.object(answering, Vec::new()) });
        }
        out.done();
    }

    fn fail(&mut self, error: &ApiError, out: &mut Frames) {
        out.data(&respond::openai(error));
    }
}
