//! `/api/chat` and `/api/generate`: what is answered.

use std::time::{Duration, Instant, SystemTime};

use moli_engine::{AnswerEvent, ChatChunk, FinishReason, Summary, TokenOutput};
use serde::Serialize;
use serde_json::{Value, json};
use utoipa::ToSchema;

use super::timestamp;
use crate::answering::Answering;
use crate::collected::{Call, Collected};
use crate::error::ApiError;
use crate::openai::answer::TokenLogprob;
use crate::stream::{Frames, Writer};

/// Which of the two is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Chat,
    Generate,
}

/// An answer, or a line of one.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = ollama::Answer)]
pub(crate) struct Part<'a> {
    /// As it was asked for.
    model: &'a str,
    created_at: String,
    #[serde(flatten)]
    said: Said,
    done: bool,
    /// `stop`, `length`, `cancelled` where the server stops, `load` or `unload`.
    #[serde(skip_serializing_if = "Option::is_none")]
    done_reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    logprobs: Vec<TokenLogprob>,
    /// Of the last line.
    #[serde(flatten)]
    #[schema(value_type = Metrics)]
    metrics: Option<Metrics>,
}

/// What is said, in the one form or the other.
#[derive(Debug, Serialize, ToSchema)]
#[serde(untagged)]
#[schema(as = ollama::Said)]
enum Said {
    Chat {
        message: AnsweredMessage,
    },
    Generate {
        response: String,
        #[serde(skip_serializing_if = "String::is_empty")]
        thinking: String,
    },
}

/// A message of the assistant.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = ollama::AnsweredMessage)]
struct AnsweredMessage {
    role: &'static str,
    content: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    thinking: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tool_calls: Vec<CalledTool>,
}

/// A call of a tool.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = ollama::AnsweredToolCall)]
struct CalledTool {
    id: String,
    function: Called,
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = ollama::AnsweredFunction)]
struct Called {
    /// Its place among the answer's calls.
    index: usize,
    name: String,
    /// By their names.
    arguments: Value,
}

/// Tokens and times, in nanoseconds.
#[derive(Debug, Default, Serialize, ToSchema)]
// Says in the schema that none of them has to be there.
#[serde(default)]
#[schema(as = ollama::Metrics)]
struct Metrics {
    /// From the request to its end.
    total_duration: u64,
    /// Until the model was there.
    load_duration: u64,
    /// Tokens of the prompt.
    prompt_eval_count: usize,
    /// From the admission to the first token.
    prompt_eval_duration: u64,
    /// Tokens of the answer.
    eval_count: usize,
    /// From the first token to the last.
    eval_duration: u64,
    /// Tokens of the prompt that had been computed before.
    cached_tokens: usize,
    /// Whether the context was full, so that the answer ended early or its beginning was forgotten. A prompt is never cut.
    truncated: bool,
    /// What the same answer can be had with again.
    seed: u64,
}

pub(super) fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

impl Metrics {
    /// `total`: from the request until now; `load`: until the model was there.
    fn of(summary: &Summary, total: Duration, load: Duration) -> Self {
        let (usage, timings) = (summary.usage, summary.timings);
        let later = usage.completion_tokens.saturating_sub(1) as f64;
        let decode = Duration::try_from_secs_f64(later / timings.decode_per_second).unwrap_or_default();
        Self {
            total_duration: nanos(total),
            load_duration: nanos(load),
            prompt_eval_count: usage.prompt_tokens,
            prompt_eval_duration: nanos(timings.ttft.saturating_sub(timings.queued)),
            eval_count: usage.completion_tokens,
            eval_duration: nanos(decode),
            cached_tokens: usage.cached_tokens,
            truncated: summary.finish_reason == FinishReason::Context || usage.dropped_tokens > 0,
            seed: summary.seed,
        }
    }
}

/// Why an answer ended.
fn reason(summary: &Summary) -> &'static str {
    match summary.finish_reason {
        FinishReason::Stop => "stop",
        FinishReason::Length | FinishReason::Context => "length",
        _ => "cancelled",
    }
}

/// What is said in a part of an answer.
#[derive(Debug, Default)]
struct Words {
    content: String,
    thinking: String,
    calls: Vec<CalledTool>,
}

impl Words {
    fn said(self, kind: Kind) -> Said {
        match kind {
            Kind::Chat => Said::Chat {
                message: AnsweredMessage {
                    role: "assistant",
                    content: self.content,
                    thinking: self.thinking,
                    tool_calls: self.calls,
                },
            },
            Kind::Generate => Said::Generate { response: self.content, thinking: self.thinking },
        }
    }
}

fn called(index: usize, call: Call) -> CalledTool {
    // A call that is told is whole; what could not be read would be told as it is.
    let arguments = serde_json::from_str(&call.arguments).unwrap_or_else(|_| json!(call.arguments));
    CalledTool { id: call.id, function: Called { index, name: call.name, arguments } }
}

/// That a model was loaded or unloaded.
pub(crate) fn loaded<'a>(kind: Kind, model: &'a str, reason: &'static str) -> Part<'a> {
    Part {
        model,
        created_at: timestamp(SystemTime::now()),
        said: Words::default().said(kind),
        done: true,
        done_reason: Some(reason),
        logprobs: Vec::new(),
        metrics: None,
    }
}

/// Writes an answer, whole or as it comes.
#[derive(Debug)]
pub(crate) struct AnswerWriter {
    kind: Kind,
    model: String,
    asked: Instant,
    /// From then until the model was there.
    load: Duration,
    /// The call that is told, and how many were.
    call: Call,
    calls: usize,
    /// What was not told of the tokens' log-probabilities.
    untold: Vec<TokenLogprob>,
}

impl AnswerWriter {
    /// `model`: as it was asked for, at `asked`; it was there `load` later.
    pub(crate) fn new(kind: Kind, model: String, asked: Instant, load: Duration) -> Self {
        Self { kind, model, asked, load, call: Call::default(), calls: 0, untold: Vec::new() }
    }

    /// An answer that is whole.
    pub(crate) fn whole(&self, answering: &Answering, choice: Collected) -> Part<'_> {
        let calls = choice.calls.into_iter().enumerate().map(|(index, call)| called(index, call)).collect();
        let words = Words { content: choice.content, thinking: choice.reasoning, calls };
        let logprobs = choice.tokens.iter().filter_map(|token| logprob(answering, token)).collect();
        self.last(words, logprobs, &choice.summary)
    }

    fn last(&self, words: Words, logprobs: Vec<TokenLogprob>, summary: &Summary) -> Part<'_> {
        Part {
            done: true,
            done_reason: Some(reason(summary)),
            metrics: Some(Metrics::of(summary, self.asked.elapsed(), self.load)),
            ..self.part(words, logprobs)
        }
    }

    fn part(&self, words: Words, logprobs: Vec<TokenLogprob>) -> Part<'_> {
        Part {
            model: &self.model,
            created_at: timestamp(SystemTime::now()),
            said: words.said(self.kind),
            done: false,
            done_reason: None,
            logprobs,
            metrics: None,
        }
    }

    /// What an event says, if it is told now.
    fn words(&mut self, event: AnswerEvent) -> Option<Words> {
        match event {
            AnswerEvent::Content(content) => Some(Words { content, ..Words::default() }),
            AnswerEvent::Reasoning(thinking) => Some(Words { thinking, ..Words::default() }),
            AnswerEvent::ToolCallStart { id, name, .. } => {
                self.call = Call { id, name, arguments: String::new() };
                None
            }
            AnswerEvent::ToolCallArguments { json_fragment, .. } => {
                self.call.arguments.push_str(&json_fragment);
                None
            }
            AnswerEvent::ToolCallEnd { .. } => {
                let call = called(self.calls, std::mem::take(&mut self.call));
                self.calls += 1;
                Some(Words { calls: vec![call], ..Words::default() })
            }
        }
    }
}

fn logprob(answering: &Answering, token: &TokenOutput) -> Option<TokenLogprob> {
    TokenLogprob::of(token, answering.lease.engine.tokenizer())
}

impl Writer for AnswerWriter {
    const EVENTS: bool = false;

    fn begin(&mut self, _answering: &Answering, _out: &mut Frames) {}

    fn chunk(&mut self, answering: &Answering, chunk: ChatChunk, out: &mut Frames) {
        self.untold.extend(chunk.token.and_then(|token| logprob(answering, &token)));
        for event in chunk.events {
            if let Some(words) = self.words(event) {
                let told = std::mem::take(&mut self.untold);
                out.line(&self.part(words, told));
            }
        }
    }

    fn end(&mut self, answering: &Answering, out: &mut Frames) {
        let told = std::mem::take(&mut self.untold);
        if let Some(summary) = answering.summaries().next() {
            out.line(&self.last(Words::default(), told, summary));
        }
    }

    fn fail(&mut self, error: &ApiError, out: &mut Frames) {
        out.line(&json!({"error": error.message}));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_is_told_when_it_is_whole() {
        let mut writer = AnswerWriter::new(Kind::Chat, "m".to_owned(), Instant::now(), Duration::ZERO);
        let mut told = Vec::new();
        for index in 0..2 {
            let arguments =
                |json: &str| AnswerEvent::ToolCallArguments { index, json_fragment: json.to_owned() };
            for event in [
                AnswerEvent::ToolCallStart { index, id: format!("id{index}"), name: "look".to_owned() },
                arguments("{\"b\": \"é"),
                arguments("\", \"a\": 2}"),
                AnswerEvent::ToolCallEnd { index },
            ] {
                told.extend(writer.words(event));
            }
        }
        let told: Vec<Value> = told.into_iter().map(|words| json!(writer.part(words, Vec::new()))).collect();
        assert_eq!(told.len(), 2);
        for (index, part) in told.iter().enumerate() {
            let function = json!({"index": index, "name": "look", "arguments": {"b": "é", "a": 2}});
            let call = json!({"id": format!("id{index}"), "function": function});
            assert_eq!(part["message"], json!({"role": "assistant", "content": "", "tool_calls": [call]}));
        }
    }
}
