//! `/v1/messages`: what is answered.

use moli_engine::{AnswerEvent, ChatChunk, FinishReason, Summary};
use serde::Serialize;
use serde_json::{Value, json};
use utoipa::ToSchema;

use crate::answering::Answering;
use crate::error::ApiError;
use crate::respond;
use crate::stream::{Frames, Writer};

/// What stands where a signature is expected: nothing is signed here, and clients that find none forget what was thought.
const SIGNATURE: &str = "unsigned";

/// An answer.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = anthropic::Answer)]
pub(crate) struct Answered<'a> {
    id: String,
    /// `message`.
    r#type: &'static str,
    /// `assistant`.
    role: &'static str,
    model: &'a str,
    content: Vec<Block>,
    /// `end_turn`, `max_tokens`, `stop_sequence`, `tool_use` or `model_context_window_exceeded`.
    stop_reason: Option<&'static str>,
    stop_sequence: Option<String>,
    usage: Usage,
}

/// A block of an answer.
#[derive(Debug, Serialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
#[schema(as = anthropic::AnswerBlock)]
enum Block {
    Text {
        text: String,
    },
    Thinking {
        thinking: String,
        signature: &'static str,
    },
    ToolUse {
        id: String,
        name: String,
        /// The arguments by their names.
        input: Value,
    },
}

/// Tokens.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = anthropic::Usage)]
struct Usage {
    /// Of the prompt, those that had to be computed.
    input_tokens: usize,
    /// None is charged for being kept.
    cache_creation_input_tokens: usize,
    /// Of the prompt, those that had been computed before.
    cache_read_input_tokens: usize,
    output_tokens: usize,
}

impl Usage {
    fn of(summary: &Summary) -> Self {
        let usage = summary.usage;
        Self {
            input_tokens: usage.prompt_tokens.saturating_sub(usage.cached_tokens),
            cache_creation_input_tokens: 0,
            cache_read_input_tokens: usage.cached_tokens,
            output_tokens: usage.completion_tokens,
        }
    }
}

/// Why an answer ended, and the text that ended it.
///
/// # Errors
/// Where the server ended it: nobody gets half an answer for a whole one.
fn stop(summary: &Summary, calls: bool) -> Result<(&'static str, Option<String>), ApiError> {
    match summary.finish_reason {
        FinishReason::Stop if summary.stop.is_some() => Ok(("stop_sequence", summary.stop.clone())),
        FinishReason::Stop if calls => Ok(("tool_use", None)),
        FinishReason::Stop => Ok(("end_turn", None)),
        FinishReason::Length => Ok(("max_tokens", None)),
        FinishReason::Context => Ok(("model_context_window_exceeded", None)),
        _ => Err(ApiError::overloaded("stopping", "the server stops, and the answer is not finished")),
    }
}

/// The blocks of an answer, in the order in which they came.
#[derive(Debug, Default)]
pub(crate) struct Blocks(Vec<Block>);

impl Blocks {
    pub(crate) fn add(&mut self, event: AnswerEvent) {
        match (event, self.0.last_mut()) {
            (AnswerEvent::Content(more), Some(Block::Text { text })) => text.push_str(&more),
            (AnswerEvent::Content(text), _) => self.0.push(Block::Text { text }),
            (AnswerEvent::Reasoning(more), Some(Block::Thinking { thinking, .. })) => {
                thinking.push_str(&more)
            }
            (AnswerEvent::Reasoning(thinking), _) => {
                self.0.push(Block::Thinking { thinking, signature: SIGNATURE });
            }
            (AnswerEvent::ToolCallStart { id, name, .. }, _) => {
                self.0.push(Block::ToolUse { id, name, input: Value::String(String::new()) });
            }
            // Text until it is whole.
            (
                AnswerEvent::ToolCallArguments { json_fragment, .. },
                Some(Block::ToolUse { input: Value::String(text), .. }),
            ) => text.push_str(&json_fragment),
            (AnswerEvent::ToolCallEnd { .. }, Some(Block::ToolUse { input, .. })) => {
                let text = input.as_str().unwrap_or_default();
                if let Ok(read) = serde_json::from_str(text) {
                    *input = read;
                }
            }
            (AnswerEvent::ToolCallArguments { .. } | AnswerEvent::ToolCallEnd { .. }, _) => {}
        }
    }
}

fn id(answering: &Answering) -> String {
    answering.id("msg_")
}

/// An answer that is whole.
pub(crate) fn whole(answering: &Answering, blocks: Blocks) -> Result<Answered<'_>, ApiError> {
    let summary = answering.summaries().next();
    let summary = summary.ok_or_else(|| ApiError::internal("an answer without choices"))?;
    let calls = blocks.0.iter().any(|block| matches!(block, Block::ToolUse { .. }));
    let (reason, stop_sequence) = stop(summary, calls)?;
    Ok(Answered {
        id: id(answering),
        r#type: "message",
        role: "assistant",
        model: answering.model(),
        content: blocks.0,
        stop_reason: Some(reason),
        stop_sequence,
        usage: Usage::of(summary),
    })
}

/// What kind of block is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Open {
    Text,
    Thinking,
    ToolUse,
}

/// Writes an answer as it comes.
#[derive(Debug, Default)]
pub(crate) struct MessageWriter {
    open: Option<Open>,
    /// Blocks that were begun.
    blocks: usize,
    calls: bool,
}

impl MessageWriter {
    /// Begins a block, after the end of the one before it. Text and thoughts that go on are no new block.
    fn open(&mut self, kind: Open, block: &Block, out: &mut Frames) {
        if self.open == Some(kind) && kind != Open::ToolUse {
            return;
        }
        self.close(out);
        self.open = Some(kind);
        let start = json!({"type": "content_block_start", "index": self.blocks, "content_block": block});
        out.event("content_block_start", &start);
        self.blocks += 1;
    }

    fn delta(&self, delta: &Value, out: &mut Frames) {
        let index = self.blocks.saturating_sub(1);
        let delta = json!({"type": "content_block_delta", "index": index, "delta": delta});
        out.event("content_block_delta", &delta);
    }

    fn close(&mut self, out: &mut Frames) {
        let Some(open) = self.open.take() else { return };
        if open == Open::Thinking {
            self.delta(&json!({"type": "signature_delta", "signature": SIGNATURE}), out);
        }
        let index = self.blocks.saturating_sub(1);
        out.event("content_block_stop", &json!({"type": "content_block_stop", "index": index}));
    }
}

impl Writer for MessageWriter {
    fn begin(&mut self, answering: &Answering, out: &mut Frames) {
        let Some(summary) = answering.summaries().next() else { return };
        let message = Answered {
            id: id(answering),
            r#type: "message",
            role: "assistant",
            model: answering.model(),
            content: Vec::new(),
            stop_reason: None,
            stop_sequence: None,
            usage: Usage::of(summary),
        };
        out.event("message_start", &json!({"type": "message_start", "message": message}));
        out.event("ping", &json!({"type": "ping"}));
    }

    fn chunk(&mut self, _answering: &Answering, chunk: ChatChunk, out: &mut Frames) {
        for event in chunk.events {
            match event {
                AnswerEvent::Content(text) => {
                    self.open(Open::Text, &Block::Text { text: String::new() }, out);
                    self.delta(&json!({"type": "text_delta", "text": text}), out);
                }
                AnswerEvent::Reasoning(thinking) => {
                    let block = Block::Thinking { thinking: String::new(), signature: "" };
                    self.open(Open::Thinking, &block, out);
                    self.delta(&json!({"type": "thinking_delta", "thinking": thinking}), out);
                }
                AnswerEvent::ToolCallStart { id, name, .. } => {
                    self.calls = true;
                    self.open(Open::ToolUse, &Block::ToolUse { id, name, input: json!({}) }, out);
                }
                AnswerEvent::ToolCallArguments { json_fragment, .. } => {
                    self.delta(&json!({"type": "input_json_delta", "partial_json": json_fragment}), out);
                }
                AnswerEvent::ToolCallEnd { .. } => self.close(out),
            }
        }
    }

    fn end(&mut self, answering: &Answering, out: &mut Frames) {
        self.close(out);
        let Some(summary) = answering.summaries().next() else { return };
        match stop(summary, self.calls) {
            Ok((stop_reason, stop_sequence)) => {
                let delta = json!({"stop_reason": stop_reason, "stop_sequence": stop_sequence});
                let delta = json!({"type": "message_delta", "delta": delta, "usage": Usage::of(summary)});
                out.event("message_delta", &delta);
                out.event("message_stop", &json!({"type": "message_stop"}));
            }
            Err(error) => self.fail(&error, out),
        }
    }

    fn fail(&mut self, error: &ApiError, out: &mut Frames) {
        out.event("error", &respond::anthropic(error));
    }
}
