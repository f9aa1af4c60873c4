//! `/v1/chat/completions`: what is answered.

use moli_engine::{AnswerEvent, ChatChunk, FinishReason, Summary, TokenOutput, Tokenizer};
use serde::Serialize;
use utoipa::ToSchema;

use super::message::{CalledFunction, FunctionCall, FunctionKind};
use crate::answering::Answering;
use crate::collected::{Call, Collected};
use crate::error::ApiError;
use crate::respond;
use crate::stream::{Frames, Writer};

/// An answer.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Completion {
    id: String,
    object: &'static str,
    /// Seconds since 1970.
    created: u64,
    model: String,
    choices: Vec<CompletedChoice>,
    usage: Usage,
    /// What was computed with.
    system_fingerprint: String,
    #[serde(flatten)]
    receipt: Receipt,
}

#[derive(Debug, Serialize, ToSchema)]
struct CompletedChoice {
    index: usize,
    message: AnswerMessage,
    logprobs: Option<Logprobs>,
    finish_reason: &'static str,
    /// What ended it, in more words: the stop string, `context`, `deadline` or `cancelled`.
    stop_reason: Option<String>,
}

#[derive(Debug, Serialize, ToSchema)]
struct AnswerMessage {
    role: &'static str,
    /// Null where there are calls only.
    content: Option<String>,
    /// There are none: the model's words are its content.
    refusal: Option<String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    reasoning_content: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tool_calls: Vec<FunctionCall>,
}

/// Tokens of an answer, all choices together.
#[derive(Debug, Default, Serialize, ToSchema)]
pub(crate) struct Usage {
    prompt_tokens: usize,
    completion_tokens: usize,
    total_tokens: usize,
    prompt_tokens_details: PromptDetails,
}

#[derive(Debug, Default, Serialize, ToSchema)]
struct PromptDetails {
    /// Those that had been computed before.
    cached_tokens: usize,
}

/// What an answer took, and whether it is all there.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Receipt {
    timings: Timings,
    /// Whether the context was full, so that the answer ended early or its beginning was forgotten. A prompt is never cut.
    truncated: bool,
    /// What the same answer can be had with again.
    seed: u64,
}

/// Of the first choice.
#[derive(Debug, Serialize, ToSchema)]
struct Timings {
    /// Tokens of the prompt that were computed, and those that had been before.
    prompt_n: usize,
    cache_n: usize,
    predicted_n: usize,
    prompt_per_second: f64,
    predicted_per_second: f64,
    /// From the request to its admission, and to its first token.
    queued_ms: f64,
    ttft_ms: f64,
    /// Tokens that were guessed ahead, and those that were right.
    draft_n: usize,
    draft_n_accepted: usize,
}

impl Usage {
    pub(crate) fn of(answering: &Answering) -> Self {
        // The choices of a prompt share it.
        let choices = answering.choices_of_a_prompt();
        let prompts = answering.summaries().step_by(choices);
        let (mut prompt, mut cached) = (0, 0);
        for summary in prompts {
            prompt += summary.usage.prompt_tokens;
            cached += summary.usage.cached_tokens;
        }
        let completion = answering.summaries().map(|summary| summary.usage.completion_tokens).sum();
        Self {
            prompt_tokens: prompt,
            completion_tokens: completion,
            total_tokens: prompt + completion,
            prompt_tokens_details: PromptDetails { cached_tokens: cached },
        }
    }
}

impl Receipt {
    pub(crate) fn of(answering: &Answering) -> Option<Self> {
        let cut = |summary: &Summary| {
            summary.finish_reason == FinishReason::Context || summary.usage.dropped_tokens > 0
        };
        let truncated = answering.summaries().any(cut);
        let first = answering.summaries().next()?;
        let (usage, timings) = (first.usage, first.timings);
        let ms = |time: std::time::Duration| time.as_secs_f64() * 1e3;
        Some(Self {
            timings: Timings {
                prompt_n: usage.prompt_tokens - usage.cached_tokens,
                cache_n: usage.cached_tokens,
                predicted_n: usage.completion_tokens,
                prompt_per_second: timings.prompt_per_second,
                predicted_per_second: timings.decode_per_second,
                queued_ms: ms(timings.queued),
                ttft_ms: ms(timings.ttft),
                draft_n: usage.drafted_tokens,
                draft_n_accepted: usage.accepted_tokens,
            },
            truncated,
            seed: first.seed,
        })
    }
}

/// Log-probabilities of an answer's tokens.
#[derive(Debug, Serialize, ToSchema)]
struct Logprobs {
    content: Vec<TokenLogprob>,
    refusal: Option<String>,
}

#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct TokenLogprob {
    token: String,
    logprob: f32,
    bytes: Vec<u8>,
    top_logprobs: Vec<TopLogprob>,
}

#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct TopLogprob {
    token: String,
    logprob: f32,
    bytes: Vec<u8>,
}

impl TokenLogprob {
    pub(crate) fn of(token: &TokenOutput, tokenizer: &Tokenizer) -> Option<Self> {
        // The mark that ends an answer is not part of it.
        let logprob = token.logprob.filter(|_| !tokenizer.is_end_of_generation(token.id))?;
        let bytes = |id| tokenizer.token_bytes(id).map(|bytes| bytes.into_owned()).unwrap_or_default();
        let top = token.top.iter().map(|&(id, logprob)| TopLogprob {
            token: tokenizer.token_text(id).unwrap_or_default(),
            logprob: finite(logprob),
            bytes: bytes(id),
        });
        Some(Self {
            token: token.text.clone(),
            logprob: finite(logprob),
            bytes: bytes(token.id),
            top_logprobs: top.collect(),
        })
    }
}

/// JSON has no infinities; clients know this number as the least there is.
pub(crate) fn finite(logprob: f32) -> f32 {
    logprob.max(-9999.0)
}

/// The mark of an answer's making.
pub(crate) fn fingerprint(answering: &Answering) -> String {
    format!("moli {}, {}", env!("CARGO_PKG_VERSION"), answering.lease.engine.description())
}

/// Why a choice ended, as this API says it and in more words.
pub(crate) fn finish(summary: &Summary, calls: bool) -> (&'static str, Option<String>) {
    match summary.finish_reason {
        FinishReason::Stop if calls => ("tool_calls", None),
        FinishReason::Stop => ("stop", summary.stop.clone()),
        FinishReason::Length => ("length", None),
        FinishReason::Context => ("length", Some("context".to_owned())),
        FinishReason::Deadline => ("length", Some("deadline".to_owned())),
        _ => ("length", Some("cancelled".to_owned())),
    }
}

/// An answer that is whole.
pub(crate) fn completion(answering: &Answering, choices: Vec<Collected>) -> Result<Completion, ApiError> {
    let tokenizer = answering.lease.engine.tokenizer();
    let choices = choices.into_iter().enumerate().map(|(index, choice)| {
        let (finish_reason, stop_reason) = finish(&choice.summary, !choice.calls.is_empty());
        let tokens: Vec<_> =
            choice.tokens.iter().filter_map(|token| TokenLogprob::of(token, tokenizer)).collect();
        let wanted = !choice.tokens.is_empty();
        let only_calls = choice.content.is_empty() && !choice.calls.is_empty();
        CompletedChoice {
            index,
            message: AnswerMessage {
                role: "assistant",
                content: (!only_calls).then_some(choice.content),
                refusal: None,
                reasoning_content: choice.reasoning,
                tool_calls: choice.calls.into_iter().map(called).collect(),
            },
            logprobs: wanted.then_some(Logprobs { content: tokens, refusal: None }),
            finish_reason,
            stop_reason,
        }
    });
    Ok(Completion {
        id: answering.id("chatcmpl-"),
        object: "chat.completion",
        created: answering.created,
        model: answering.model().to_owned(),
        choices: choices.collect(),
        usage: Usage::of(answering),
        system_fingerprint: fingerprint(answering),
        receipt: Receipt::of(answering).ok_or_else(|| ApiError::internal("an answer without choices"))?,
    })
}

fn called(call: Call) -> FunctionCall {
    FunctionCall {
        id: call.id,
        kind: FunctionKind::Function,
        function: CalledFunction { name: call.name, arguments: call.arguments },
    }
}

/// A part of an answer.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Chunk<'a> {
    id: &'a str,
    object: &'static str,
    created: u64,
    model: &'a str,
    system_fingerprint: &'a str,
    choices: Vec<ChunkChoice>,
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Usage>,
    #[serde(flatten)]
    receipt: Option<Receipt>,
}

#[derive(Debug, Default, Serialize, ToSchema)]
struct ChunkChoice {
    index: usize,
    delta: Delta,
    #[serde(skip_serializing_if = "Option::is_none")]
    logprobs: Option<Logprobs>,
    finish_reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stop_reason: Option<String>,
}

#[derive(Debug, Default, Serialize, ToSchema)]
struct Delta {
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reasoning_content: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tool_calls: Vec<CallDelta>,
}

#[derive(Debug, Serialize, ToSchema)]
struct CallDelta {
    index: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<String>,
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    kind: Option<FunctionKind>,
    function: FunctionDelta,
}

#[derive(Debug, Default, Serialize, ToSchema)]
struct FunctionDelta {
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    arguments: Option<String>,
}

/// Writes an answer as it comes.
#[derive(Debug)]
pub(crate) struct ChatWriter {
    include_usage: bool,
    id: String,
    fingerprint: String,
    /// Of each choice: whether it calls, and what was not told of its tokens' log-probabilities.
    choices: Vec<(bool, Vec<TokenLogprob>)>,
}

impl ChatWriter {
    /// `include_usage`: a last chunk counts the tokens.
    pub(crate) fn new(include_usage: bool) -> Self {
        Self { include_usage, id: String::new(), fingerprint: String::new(), choices: Vec::new() }
    }

    fn write(&self, answering: &Answering, choices: Vec<ChunkChoice>, last: bool, out: &mut Frames) {
        out.data(&Chunk {
            id: &self.id,
            object: "chat.completion.chunk",
            created: answering.created,
            model: answering.model(),
            system_fingerprint: &self.fingerprint,
            choices,
            usage: (last && self.include_usage).then(|| Usage::of(answering)),
            receipt: if last { Receipt::of(answering) } else { None },
        });
    }
}

impl Writer for ChatWriter {
    fn begin(&mut self, answering: &Answering, out: &mut Frames) {
        self.id = answering.id("chatcmpl-");
        self.fingerprint = fingerprint(answering);
        for index in 0..answering.summaries().count() {
            self.choices.push((false, Vec::new()));
            let delta = Delta { role: Some("assistant"), content: Some(String::new()), ..Delta::default() };
            self.write(answering, vec![ChunkChoice { index, delta, ..ChunkChoice::default() }], false, out);
        }
    }

    fn chunk(&mut self, answering: &Answering, chunk: ChatChunk, out: &mut Frames) {
        let index = chunk.choice;
        let Some((calls, untold)) = self.choices.get_mut(index) else { return };
        let tokenizer = answering.lease.engine.tokenizer();
        untold.extend(chunk.token.and_then(|token| TokenLogprob::of(&token, tokenizer)));
        let mut deltas = Vec::new();
        for event in chunk.events {
            let mut delta = Delta::default();
            match event {
                AnswerEvent::Content(text) => delta.content = Some(text),
                AnswerEvent::Reasoning(text) => delta.reasoning_content = Some(text),
                AnswerEvent::ToolCallStart { index, id, name } => {
                    *calls = true;
                    let function = FunctionDelta { name: Some(name), arguments: Some(String::new()) };
                    let kind = Some(FunctionKind::Function);
                    delta.tool_calls.push(CallDelta { index, id: Some(id), kind, function });
                }
                AnswerEvent::ToolCallArguments { index, json_fragment } => {
                    let function = FunctionDelta { name: None, arguments: Some(json_fragment) };
                    delta.tool_calls.push(CallDelta { index, id: None, kind: None, function });
                }
                AnswerEvent::ToolCallEnd { .. } => continue,
            }
            let told = std::mem::take(untold);
            let logprobs = (!told.is_empty()).then_some(Logprobs { content: told, refusal: None });
            deltas.push(ChunkChoice { index, delta, logprobs, ..ChunkChoice::default() });
        }
        for delta in deltas {
            self.write(answering, vec![delta], false, out);
        }
    }

    fn end(&mut self, answering: &Answering, out: &mut Frames) {
        let ends: Vec<ChunkChoice> = answering
            .summaries()
            .zip(std::mem::take(&mut self.choices))
            .enumerate()
            .map(|(index, (summary, (calls, untold)))| {
                let (reason, stop_reason) = finish(summary, calls);
                let logprobs = (!untold.is_empty()).then_some(Logprobs { content: untold, refusal: None });
                ChunkChoice {
                    index,
                    logprobs,
                    finish_reason: Some(reason),
                    stop_reason,
                    ..ChunkChoice::default()
                }
            })
            .collect();
        let last = ends.len().saturating_sub(1);
        for (place, end) in ends.into_iter().enumerate() {
            self.write(answering, vec![end], place == last && !self.include_usage, out);
        }
        if self.include_usage {
            self.write(answering, Vec::new(), true, out);
        }
        out.done();
    }

    fn fail(&mut self, error: &ApiError, out: &mut Frames) {
        out.data(&respond::openai(error));
    }
}
