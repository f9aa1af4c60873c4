//! `/v1/responses`: what is answered, whole or as events.

use moli_engine::{AnswerEvent, ChatChunk, FinishReason};
use serde::Serialize;
use serde_json::{Map, Value, json};
use utoipa::ToSchema;

use super::super::answer::{Receipt, TokenLogprob};
use super::{FunctionChoice, FunctionTool};
use crate::answering::Answering;
use crate::error::ApiError;
use crate::respond;
use crate::stream::{Frames, Writer};

/// What an answer repeats of its question.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub(super) struct Asked {
    pub(super) instructions: Option<String>,
    pub(super) max_output_tokens: Option<usize>,
    pub(super) temperature: Option<f32>,
    pub(super) top_p: Option<f32>,
    pub(super) parallel_tool_calls: bool,
    pub(super) tool_choice: FunctionChoice,
    pub(super) tools: Vec<FunctionTool>,
    pub(super) metadata: Map<String, Value>,
}

/// An answer.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ResponseObject<'a> {
    id: &'a str,
    object: &'static str,
    /// Seconds since 1970.
    created_at: u64,
    model: &'a str,
    status: &'static str,
    /// `{"reason": "max_output_tokens"}` where it is.
    incomplete_details: Option<Value>,
    error: Option<Value>,
    /// Reasoning, a message and calls, in the order in which they came.
    output: &'a [Value],
    previous_response_id: Option<String>,
    store: bool,
    truncation: &'static str,
    usage: Option<ResponseUsage>,
    #[serde(flatten)]
    asked: &'a Asked,
    #[serde(flatten)]
    receipt: Option<Receipt>,
}

#[derive(Debug, Serialize, ToSchema)]
struct ResponseUsage {
    input_tokens: usize,
    input_tokens_details: InputDetails,
    output_tokens: usize,
    output_tokens_details: OutputDetails,
    total_tokens: usize,
}

#[derive(Debug, Serialize, ToSchema)]
struct InputDetails {
    cached_tokens: usize,
}

#[derive(Debug, Serialize, ToSchema)]
struct OutputDetails {
    /// Steps in which something was thought.
    reasoning_tokens: usize,
}

/// An item that is being written.
#[derive(Debug)]
enum Open {
    Reasoning(String),
    Message(String, Vec<TokenLogprob>),
    Call { id: String, name: String, arguments: String },
}

/// Writes an answer. Both forms come from the same events, so they can't differ.
#[derive(Debug)]
pub(super) struct ResponseWriter {
    asked: Asked,
    id: String,
    sequence: u64,
    output: Vec<Value>,
    open: Option<Open>,
    reasoning_tokens: usize,
    untold: Vec<TokenLogprob>,
}

impl ResponseWriter {
    pub(super) fn new(asked: Asked, answering: &Answering) -> Self {
        Self {
            asked,
            id: answering.id("resp_"),
            sequence: 0,
            output: Vec::new(),
            open: None,
            reasoning_tokens: 0,
            untold: Vec::new(),
        }
    }

    /// The answer as one object.
    pub(super) async fn whole(mut self, mut answering: Answering) -> Result<Value, ApiError> {
        // Nobody reads these: it is the state behind them that counts.
        let mut unread = Frames::default();
        while let Some(chunk) = answering.next().await {
            self.chunk(&answering, chunk?, &mut unread);
            unread.clear();
        }
        self.close(&mut unread);
        Ok(json!(self.object(&answering, true)))
    }

    fn object<'a>(&'a self, answering: &'a Answering, over: bool) -> ResponseObject<'a> {
        let summary = answering.summaries().next().filter(|_| over);
        let reason = match summary.map(|summary| summary.finish_reason) {
            Some(FinishReason::Stop) | None => None,
            Some(FinishReason::Length | FinishReason::Context) => Some("max_output_tokens"),
            Some(FinishReason::Deadline) => Some("deadline"),
            Some(_) => Some("cancelled"),
        };
        ResponseObject {
            id: &self.id,
            object: "response",
            created_at: answering.created,
            model: answering.model(),
            status: match (over, reason) {
                (false, _) => "in_progress",
                (true, None) => "completed",
                (true, Some(_)) => "incomplete",
            },
            incomplete_details: reason.map(|reason| json!({"reason": reason})),
            error: None,
            output: &self.output,
            previous_response_id: None,
            store: false,
            truncation: "disabled",
            usage: summary.map(|summary| {
                let (input, output) = (summary.usage.prompt_tokens, summary.usage.completion_tokens);
                ResponseUsage {
                    input_tokens: input,
                    input_tokens_details: InputDetails { cached_tokens: summary.usage.cached_tokens },
                    output_tokens: output,
                    output_tokens_details: OutputDetails { reasoning_tokens: self.reasoning_tokens },
                    total_tokens: input + output,
                }
            }),
            asked: &self.asked,
            receipt: if over { Receipt::of(answering) } else { None },
        }
    }

    /// An event, numbered.
    fn event(&mut self, name: &str, mut value: Value, out: &mut Frames) {
        if let Some(fields) = value.as_object_mut() {
            fields.insert("type".to_owned(), name.into());
            fields.insert("sequence_number".to_owned(), self.sequence.into());
        }
        self.sequence += 1;
        out.event(name, &value);
    }

    /// An event about the item that is open.
    fn about(&mut self, name: &str, mut value: Value, out: &mut Frames) {
        let index = self.output.len();
        if let Some(fields) = value.as_object_mut() {
            fields.insert("output_index".to_owned(), index.into());
            fields.insert("item_id".to_owned(), self.item_id(index).into());
        }
        self.event(name, value, out);
    }

    fn item_id(&self, index: usize) -> String {
        format!("{}_{index}", self.id.replacen("resp", "item", 1))
    }

    fn item(&self, open: &Open, status: &str) -> Value {
        let id = self.item_id(self.output.len());
        match open {
            Open::Reasoning(text) => json!({
                "id": id, "type": "reasoning", "status": status, "summary": [],
                "content": [{"type": "reasoning_text", "text": text}],
            }),
            Open::Message(text, logprobs) => json!({
                "id": id, "type": "message", "status": status, "role": "assistant",
                "content": [part(text, logprobs)],
            }),
            Open::Call { id: call_id, name, arguments } => json!({
                "id": id, "type": "function_call", "status": status, "call_id": call_id, "name": name,
                "arguments": arguments,
            }),
        }
    }

    /// Begins an item, after the one that is open.
    fn begin_item(&mut self, open: Open, out: &mut Frames) {
        self.close(out);
        let mut item = self.item(&open, "in_progress");
        if let (Open::Message(..) | Open::Reasoning(_), Some(fields)) = (&open, item.as_object_mut()) {
            fields.insert("content".to_owned(), json!([]));
        }
        let index = self.output.len();
        self.event("response.output_item.added", json!({"output_index": index, "item": item}), out);
        match &open {
            Open::Message(..) => {
                let part = part("", &[]);
                self.about("response.content_part.added", json!({"content_index": 0, "part": part}), out);
            }
            Open::Reasoning(_) => {
                let part = json!({"type": "reasoning_text", "text": ""});
                self.about("response.content_part.added", json!({"content_index": 0, "part": part}), out);
            }
            Open::Call { .. } => {}
        }
        self.open = Some(open);
    }

    /// Ends the item that is open.
    fn close(&mut self, out: &mut Frames) {
        let Some(mut open) = self.open.take() else { return };
        match &mut open {
            Open::Reasoning(text) => {
                let done = json!({"content_index": 0, "text": text});
                self.about("response.reasoning_text.done", done, out);
                let part = json!({"type": "reasoning_text", "text": text});
                self.about("response.content_part.done", json!({"content_index": 0, "part": part}), out);
            }
            Open::Message(text, logprobs) => {
                logprobs.append(&mut self.untold);
                let done = json!({"content_index": 0, "text": text, "logprobs": logprobs});
                self.about("response.output_text.done", done, out);
                let part = part(text, logprobs);
                self.about("response.content_part.done", json!({"content_index": 0, "part": part}), out);
            }
            Open::Call { name, arguments, .. } => {
                let done = json!({"name": name, "arguments": arguments});
                self.about("response.function_call_arguments.done", done, out);
            }
        }
        let item = self.item(&open, "completed");
        let index = self.output.len();
        self.event("response.output_item.done", json!({"output_index": index, "item": item}), out);
        self.output.push(item);
    }
}

/// A message's text.
fn part(text: &str, logprobs: &[TokenLogprob]) -> Value {
    json!({"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs})
}

impl Writer for ResponseWriter {
    fn begin(&mut self, answering: &Answering, out: &mut Frames) {
        for name in ["response.created", "response.in_progress"] {
            let response = json!(self.object(answering, false));
            self.event(name, json!({"response": response}), out);
        }
    }

    fn chunk(&mut self, answering: &Answering, chunk: ChatChunk, out: &mut Frames) {
        let tokenizer = answering.lease.engine.tokenizer();
        self.untold.extend(chunk.token.and_then(|token| TokenLogprob::of(&token, tokenizer)));
        if chunk.events.iter().any(|event| matches!(event, AnswerEvent::Reasoning(_))) {
            self.reasoning_tokens += 1;
        }
        for event in chunk.events {
            match event {
                AnswerEvent::Content(text) => {
                    if !matches!(self.open, Some(Open::Message(..))) {
                        self.begin_item(Open::Message(String::new(), Vec::new()), out);
                    }
                    let told = std::mem::take(&mut self.untold);
                    let delta = json!({"content_index": 0, "delta": text, "logprobs": told});
                    self.about("response.output_text.delta", delta, out);
                    if let Some(Open::Message(all, logprobs)) = &mut self.open {
                        all.push_str(&text);
                        logprobs.extend(told);
                    }
                }
                AnswerEvent::Reasoning(text) => {
                    if !matches!(self.open, Some(Open::Reasoning(_))) {
                        self.begin_item(Open::Reasoning(String::new()), out);
                    }
                    let delta = json!({"content_index": 0, "delta": text});
                    self.about("response.reasoning_text.delta", delta, out);
                    if let Some(Open::Reasoning(all)) = &mut self.open {
                        all.push_str(&text);
                    }
                }
                AnswerEvent::ToolCallStart { id, name, .. } => {
                    self.begin_item(Open::Call { id, name, arguments: String::new() }, out);
                }
                AnswerEvent::ToolCallArguments { json_fragment, .. } => {
                    let delta = json!({"delta": json_fragment});
                    self.about("response.function_call_arguments.delta", delta, out);
                    if let Some(Open::Call { arguments, .. }) = &mut self.open {
                        arguments.push_str(&json_fragment);
                    }
                }
                AnswerEvent::ToolCallEnd { .. } => self.close(out),
            }
        }
    }

    fn end(&mut self, answering: &Answering, out: &mut Frames) {
        self.close(out);
        let response = self.object(answering, true);
        let name = if response.status == "completed" { "response.completed" } else { "response.incomplete" };
        let response = json!(response);
        self.event(name, json!({"response": response}), out);
    }

    fn fail(&mut self, error: &ApiError, out: &mut Frames) {
        let mut value = respond::openai(error)["error"].take();
        if let Some(fields) = value.as_object_mut() {
            fields.remove("type");
        }
        self.event("error", value, out);
    }
}
