//! One answer: from the tokens of a prompt to text, pushed to whoever shows it as it comes.

use std::time::Duration;

use anyhow::Result;
use moli_engine::{Counters, FinishReason, GenerateParams, Session, Summary, TokenOutput};

use crate::interrupt;
use crate::output::note;

/// A whole answer.
pub(crate) struct Reply {
    pub(crate) text: String,
    pub(crate) tokens: Vec<TokenOutput>,
    pub(crate) summary: Summary,
}

impl Reply {
    /// Whether Ctrl-C stopped it.
    pub(crate) fn was_cancelled(&self) -> bool {
        matches!(self.summary.finish_reason, FinishReason::Cancelled)
    }
}

/// Generates an answer and hands each new piece of text to `show`, whose failure ends it.
pub(crate) fn reply<E>(
    session: &mut Session,
    prompt: &[u32],
    params: &GenerateParams,
    mut show: impl FnMut(&str) -> Result<(), E>,
) -> Result<Reply>
where
    anyhow::Error: From<E>,
{
    let draft_errors = session.engine().counters().draft_errors;
    let replied = interrupt::cancellable(|cancel| {
        let mut generation = session.generate(prompt, params, cancel)?;
        let mut text = String::new();
        let mut tokens = Vec::new();
        for chunk in &mut generation {
            let chunk = chunk?;
            show(&chunk.text)?;
            text.push_str(&chunk.text);
            tokens.extend(chunk.token);
        }
        Ok(Reply { text, tokens, summary: generation.summary() })
    });
    if session.engine().counters().draft_errors > draft_errors {
        note!("the draft model failed: from here on tokens are guessed without it");
    }
    replied
}

/// How an answer ended, in the words of OpenAI's interface where it has one.
pub(crate) fn finish_reason(reason: FinishReason) -> &'static str {
    match reason {
        FinishReason::Stop => "stop",
        FinishReason::Length => "length",
        FinishReason::Context => "context",
        FinishReason::Deadline => "deadline",
        _ => "cancelled",
    }
}

/// The numbers of an answer for a person, in two lines.
pub(crate) fn stats(summary: &Summary) -> String {
    let (usage, timings) = (&summary.usage, &summary.timings);
    let cached = match usage.cached_tokens {
        0 => String::new(),
        n => format!(" ({n} of them kept from before)"),
    };
    let guessed = match usage.drafted_tokens {
        0 => String::new(),
        n => format!(" ({} of {n} guesses were right)", usage.accepted_tokens),
    };
    format!(
        "prompt: {} tokens{cached}, {:.1} tokens/s, first token after {:.0} ms\n\
         answer: {} tokens{guessed}, {:.1} tokens/s, ended by {}",
        usage.prompt_tokens,
        timings.prompt_per_second,
        milliseconds(timings.ttft),
        usage.completion_tokens,
        timings.decode_per_second,
        match summary.finish_reason {
            FinishReason::Stop => "the model or a stop text",
            FinishReason::Length => "the limit of -n",
            FinishReason::Context => "the end of the context",
            FinishReason::Deadline => "its deadline",
            _ => "Ctrl-C",
        },
    )
}

/// What the engine has done, in a line.
pub(crate) fn engine_stats(counters: &Counters) -> String {
    format!(
        "engine: {} steps of {:.1} rows, {} of {} KV pages free, {} with earlier beginnings",
        counters.steps,
        counters.step_rows.mean(),
        counters.pages_free,
        counters.pages,
        counters.pages_cached,
    )
}

/// A duration in milliseconds.
pub(crate) fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}
