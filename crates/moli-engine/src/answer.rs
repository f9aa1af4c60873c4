//! An answer as its caller sees it.

use std::collections::VecDeque;
use std::iter::FusedIterator;
use std::task::{Context, Poll};
use std::time::Duration;

use crate::events::Events;
use crate::{CancelToken, Engine, EngineError};

/// What one step of an answer adds.
#[derive(Debug, Clone, PartialEq)]
pub struct Chunk {
    /// Which of the answer's choices; 0 where one was asked for.
    pub choice: usize,
    /// Text that can be shown now: whole characters, and nothing that may still become part of a stop string. May be
    /// empty. All chunks' texts of a choice joined are the answer.
    pub text: String,
    /// The token of this step; `None` only where an end from outside released text that was held back.
    pub token: Option<TokenOutput>,
}

/// A token of an answer.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenOutput {
    /// Its id.
    pub id: u32,
    /// Its own text, with U+FFFD for parts of characters; control tokens as they are spelt. Not all of it need be shown
    /// in the answer: the token that ends an answer and stop strings are not.
    pub text: String,
    /// The natural logarithm of its probability in the model's own distribution, before bias, penalties and truncation;
    /// `None` unless [`GenerateParams::logprobs`](crate::GenerateParams::logprobs) asks for it.
    pub logprob: Option<f32>,
    /// The likeliest tokens and their log-probabilities, likeliest first; as many as were asked for.
    pub top: Vec<(u32, f32)>,
}

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum FinishReason {
    /// The model ended it, or a stop string was met.
    Stop,
    /// It has `max_tokens` tokens.
    Length,
    /// Prompt and answer fill the context.
    Context,
    /// Its deadline came.
    Deadline,
    /// It was cancelled; also the state of an answer that has not come to its end, or gave an error.
    Cancelled,
}

/// Tokens of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// Tokens of the prompt, the cached ones included.
    pub prompt_tokens: usize,
    /// Tokens that were chosen, the one that ended the answer included.
    pub completion_tokens: usize,
    /// Tokens of the prompt whose keys and values were there already.
    pub cached_tokens: usize,
    /// Tokens that a full context made it forget: only where
    /// [`context_shift`](crate::GenerateParams::context_shift) allows it.
    pub dropped_tokens: usize,
    /// Tokens that were guessed.
    pub drafted_tokens: usize,
    /// Guesses that the model chose too.
    pub accepted_tokens: usize,
}

/// Where the time of an answer went.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Timings {
    /// How long the engine took to load.
    pub load: Duration,
    /// From the request to its admission.
    pub queued: Duration,
    /// From the request to the first token ("time to first token"); zero where there was none.
    pub ttft: Duration,
    /// Tokens of the prompt computed per second, cached ones not counted; 0 where none was.
    pub prompt_per_second: f64,
    /// Tokens chosen per second after the first; 0 where there were fewer than two.
    pub decode_per_second: f64,
}

/// What is known of a choice at its end.
#[derive(Debug, Clone, PartialEq)]
pub struct Summary {
    /// Why it ended.
    pub finish_reason: FinishReason,
    /// Tokens.
    pub usage: Usage,
    /// Times.
    pub timings: Timings,
    /// The seed that the choices can be replayed with, given or drawn.
    pub seed: u64,
    /// The stop string that ended it, if one did.
    pub stop: Option<String>,
}

/// What the computing thread sends.
#[derive(Debug)]
pub(crate) enum Event {
    Chunk(Chunk),
    End { choice: usize, end: Result<Summary, EngineError> },
}

/// An answer as it comes: an iterator of chunks that ends with the answer, or with an error. Dropping it ends it too, within
/// one step; what was computed stays in the prefix cache.
#[derive(Debug)]
pub struct Answer {
    // The engine outlives the answers that it owes.
    _engine: Engine,
    events: Events,
    cancel: CancelToken,
    summaries: Vec<Summary>,
    /// Choices that have not ended.
    open: usize,
    /// Errors of later choices, where the first has ended the iterator already.
    errors: VecDeque<EngineError>,
}

impl Answer {
    /// `seeds` are those of the choices.
    pub(crate) fn new(
        engine: Engine,
        events: Events,
        cancel: CancelToken,
        prompt_tokens: usize,
        seeds: Vec<u64>,
    ) -> Self {
        let unknown = |seed| Summary {
            finish_reason: FinishReason::Cancelled,
            usage: Usage { prompt_tokens, ..Usage::default() },
            timings: Timings { load: engine.load_time(), ..Timings::default() },
            seed,
            stop: None,
        };
        let summaries: Vec<Summary> = seeds.into_iter().map(unknown).collect();
        Self { open: summaries.len(), summaries, events, cancel, errors: VecDeque::new(), _engine: engine }
    }

    /// Ends it within one step.
    pub fn cancel(&self) {
        self.cancel.cancel();
    }

    /// Why each choice ended and what it took. Before its end, what is known so far: its seed and the tokens that were taken
    /// from this iterator.
    pub fn summaries(&self) -> &[Summary] {
        &self.summaries
    }

    /// The first choice's; see [`summaries`](Self::summaries).
    pub fn summary(&self) -> Summary {
        let none = || Summary {
            finish_reason: FinishReason::Cancelled,
            usage: Usage::default(),
            timings: Timings::default(),
            seed: 0,
            stop: None,
        };
        self.summaries.first().cloned().unwrap_or_else(none)
    }
}

impl Answer {
    /// The next chunk, for whoever can't wait on a thread of its own: what [`next`](Iterator::next) gives, or
    /// [`Poll::Pending`], and the task is woken when there is more. Any async runtime will do.
    pub fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Chunk, EngineError>>> {
        while self.open > 0 {
            match self.events.poll(context) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(event) => {
                    if let Some(item) = self.take(event) {
                        return Poll::Ready(Some(item));
                    }
                }
            }
        }
        Poll::Ready(self.errors.pop_front().map(Err))
    }

    /// What an event gives to the caller; `None`: the computing thread is gone.
    fn take(&mut self, event: Option<Event>) -> Option<Result<Chunk, EngineError>> {
        match event {
            Some(Event::Chunk(chunk)) => {
                if let Some(summary) = self.summaries.get_mut(chunk.choice) {
                    summary.usage.completion_tokens += usize::from(chunk.token.is_some());
                }
                return Some(Ok(chunk));
            }
            Some(Event::End { choice, end }) => {
                self.open -= 1;
                match end {
                    Ok(end) => {
                        if let Some(summary) = self.summaries.get_mut(choice) {
                            *summary = end;
                        }
                    }
                    // The other choices still come to their end.
                    Err(error) => self.errors.push_back(error),
                }
            }
            None => {
                self.open = 0;
                return Some(Err(EngineError::Poisoned));
            }
        }
        None
    }
}

impl Iterator for Answer {
    type Item = Result<Chunk, EngineError>;

    fn next(&mut self) -> Option<Self::Item> {
        while self.open > 0 {
            let event = self.events.next();
            if let Some(item) = self.take(event) {
                return Some(item);
            }
        }
        self.errors.pop_front().map(Err)
    }
}

impl FusedIterator for Answer {}

impl Drop for Answer {
    fn drop(&mut self) {
        if self.open > 0 {
            self.cancel.cancel();
        }
    }
}
