//! One answer, token by token.

use std::iter::FusedIterator;
use std::time::{Duration, Instant};

use moli_text::TextStream;

use crate::logprob::Distribution;
use crate::sampler::Sampler;
use crate::sampler::stages::{self, Candidate};
use crate::stop::StopMatcher;
use crate::{CancelToken, EngineError, GenerateParams, Session};

/// What one step of an answer adds.
#[derive(Debug, Clone, PartialEq)]
pub struct Chunk {
    /// Text that can be shown now: whole characters, and nothing that may still become part of a stop string. May be
    /// empty. All chunks' texts joined are the answer.
    pub text: String,
    /// The token of this step; `None` only where cancelling released text that was held back.
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
    /// The natural logarithm of its probability in the model's own distribution, before bias, penalties and truncation.
    pub logprob: f32,
    /// The likeliest tokens and their log-probabilities, likeliest first; as many as
    /// [`GenerateParams::logprobs`](crate::GenerateParams::logprobs) asks for.
    pub top: Vec<(u32, f32)>,
}

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FinishReason {
    /// The model ended it, or a stop string was met.
    Stop,
    /// It has `max_tokens` tokens.
    Length,
    /// Prompt and answer fill the context.
    Context,
    /// It was cancelled; also the state of an answer whose iterator has not come to its end, or gave an error.
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
}

/// Where the time of an answer went. Time that the caller spends between two chunks counts nowhere.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Timings {
    /// How long the engine took to load.
    pub load: Duration,
    /// From asking for the first chunk to having it ("time to first token"); zero where there was none.
    pub ttft: Duration,
    /// Tokens of the prompt computed per second, cached ones not counted; 0 where none was.
    pub prompt_per_second: f64,
    /// Tokens chosen per second after the first; 0 where there were fewer than two.
    pub decode_per_second: f64,
}

/// What is known of an answer at its end.
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

/// What the next step does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Compute the prompt, then choose.
    Prompt,
    /// Compute the token that was chosen last, then choose.
    Answer(u32),
    Ended,
}

/// An answer as it comes: an iterator of chunks that ends with the answer, or with an error. Dropping it ends it too; the
/// session keeps what was computed.
#[derive(Debug)]
pub struct Generation<'s> {
    session: &'s mut Session,
    prompt: Vec<u32>,
    cancel: CancelToken,
    max_tokens: usize,
    logprobs: usize,
    stop_texts: Vec<String>,
    /// Tokens that are never chosen.
    forbidden: Vec<u32>,
    sampler: Sampler,
    stream: Stream,
    stops: StopMatcher,
    /// The logits as the sampler changes them, `[tokens of the tokenizer]`.
    work: Vec<f32>,
    candidates: Vec<Candidate>,
    state: State,
    finish_reason: FinishReason,
    stopped_by: Option<usize>,
    usage: Usage,
    prompt_time: Duration,
    ttft: Duration,
    decode_time: Duration,
}

/// The text stream, which has no `Debug` of its own.
struct Stream(TextStream);

impl std::fmt::Debug for Stream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TextStream")
    }
}

impl<'s> Generation<'s> {
    /// The prompt has been checked.
    pub(crate) fn new(
        session: &'s mut Session,
        prompt: &[u32],
        params: &GenerateParams,
        cancel: &CancelToken,
    ) -> Result<Self, EngineError> {
        let engine = session.engine().clone();
        let tokenizer = engine.tokenizer();
        let vocab = engine.config().vocab;
        params.sampling.validate(vocab)?;
        if let Some(k) = params.logprobs.filter(|k| *k > vocab) {
            return Err(EngineError::parameter(
                "logprobs",
                k,
                format!("at most the {vocab} of the vocabulary"),
            ));
        }
        let stops = StopMatcher::new(&params.stop)?;
        let dry = &params.sampling.dry;
        let breakers = if dry.is_on() { Some(engine.breakers(&dry.sequence_breakers)?) } else { None };
        let forbidden =
            if params.ignore_eos { tokenizer.end_of_generation_ids().collect() } else { Vec::new() };
        Ok(Self {
            prompt: prompt.to_vec(),
            cancel: cancel.clone(),
            max_tokens: params.max_tokens.unwrap_or(usize::MAX),
            logprobs: params.logprobs.unwrap_or(0),
            stop_texts: params.stop.clone(),
            forbidden,
            sampler: Sampler::new(params.sampling.clone(), breakers, prompt)?,
            stream: Stream(tokenizer.stream()),
            stops,
            work: Vec::new(),
            candidates: Vec::new(),
            state: State::Prompt,
            finish_reason: FinishReason::Cancelled,
            stopped_by: None,
            usage: Usage { prompt_tokens: prompt.len(), ..Usage::default() },
            prompt_time: Duration::ZERO,
            ttft: Duration::ZERO,
            decode_time: Duration::ZERO,
            session,
        })
    }

    /// Why the answer ended and what it took; before its end, what is known so far.
    pub fn summary(&self) -> Summary {
        let computed = self.usage.prompt_tokens - self.usage.cached_tokens;
        let decoded = self.usage.completion_tokens.saturating_sub(1);
        Summary {
            finish_reason: self.finish_reason,
            usage: self.usage,
            timings: Timings {
                load: self.session.engine().load_time(),
                ttft: self.ttft,
                prompt_per_second: per_second(computed, self.prompt_time),
                decode_per_second: per_second(decoded, self.decode_time),
            },
            seed: self.sampler.seed(),
            stop: self.stopped_by.and_then(|index| self.stop_texts.get(index)).cloned(),
        }
    }

    /// One step: compute what is not yet computed, choose a token, see what it ends.
    fn step(&mut self) -> Result<Option<Chunk>, EngineError> {
        if self.cancel.is_cancelled() {
            return Ok(self.end_between_tokens(FinishReason::Cancelled));
        }
        match self.state {
            State::Ended => return Ok(None),
            State::Prompt => {
                let started = Instant::now();
                let whole = self.compute_prompt();
                self.prompt_time = started.elapsed();
                if !whole? {
                    return Ok(self.end_between_tokens(FinishReason::Cancelled));
                }
                // Both ends can be reached before the first token.
                if let Some(reason) = self.limit_reached() {
                    return Ok(self.end_between_tokens(reason));
                }
            }
            State::Answer(id) => self.session.extend(&[id], true)?,
        }
        self.choose().map(Some)
    }

    /// Whether the whole prompt is computed; not if it was cancelled. The last token is always computed, so that there
    /// are logits to choose by.
    fn compute_prompt(&mut self) -> Result<bool, EngineError> {
        let length = self.prompt.len();
        self.usage.cached_tokens = self.session.keep_common(&self.prompt, length.saturating_sub(1));
        let chunk = self.session.engine().prefill_chunk();
        let rest = self.prompt.get(self.usage.cached_tokens..).unwrap_or_default();
        let chunks = rest.chunks(chunk.max(1));
        let last = chunks.len().saturating_sub(1);
        for (index, tokens) in chunks.enumerate() {
            if index > 0 && self.cancel.is_cancelled() {
                return Ok(false);
            }
            self.session.extend(tokens, index == last)?;
        }
        Ok(true)
    }

    /// The end that the number of tokens has reached.
    fn limit_reached(&self) -> Option<FinishReason> {
        let total = self.usage.prompt_tokens + self.usage.completion_tokens;
        if self.usage.completion_tokens >= self.max_tokens {
            Some(FinishReason::Length)
        } else if total >= self.session.engine().context() {
            Some(FinishReason::Context)
        } else {
            None
        }
    }

    /// Chooses a token by the logits that are there, and finds out what it ends.
    fn choose(&mut self) -> Result<Chunk, EngineError> {
        let engine = self.session.engine().clone();
        let tokenizer = engine.tokenizer();
        // [vocab]: the model's own distribution, which log-probabilities are of.
        let logits = self.session.logits();
        let distribution = Distribution::of(&engine, logits)?;
        // Rows beyond the tokenizer's are padding of the embedding table: they are never chosen.
        self.work.clear();
        self.work.extend_from_slice(logits.get(..tokenizer.vocab_size()).unwrap_or(logits));
        for &id in &self.forbidden {
            if let Some(logit) = self.work.get_mut(id as usize) {
                *logit = f32::NEG_INFINITY;
            }
        }
        let id = self.sampler.sample(&mut self.work)?;
        self.sampler.accept(id);

        let mut top = Vec::new();
        if self.logprobs > 0 {
            stages::likeliest(logits, self.logprobs, &mut self.candidates);
            top.extend(self.candidates.iter().map(|c| (c.id, distribution.logprob(c.logit) as f32)));
        }
        let logit = logits.get(id as usize).copied().unwrap_or(f32::NEG_INFINITY);
        let token = TokenOutput {
            id,
            text: tokenizer.token_text(id).unwrap_or_default(),
            logprob: distribution.logprob(logit) as f32,
            top,
        };
        self.usage.completion_tokens += 1;
        self.state = State::Answer(id);

        let mut text = String::new();
        if tokenizer.is_end_of_generation(id) {
            self.end(FinishReason::Stop, &mut text);
            return Ok(Chunk { text, token: Some(token) });
        }
        self.stopped_by = self.stops.push(&self.stream.0.push(id), &mut text);
        if self.stopped_by.is_some() {
            self.state = State::Ended;
            self.finish_reason = FinishReason::Stop;
        } else if let Some(reason) = self.limit_reached() {
            self.end(reason, &mut text);
        }
        Ok(Chunk { text, token: Some(token) })
    }

    /// Ends the answer and releases the text that was held back: what has not become a stop string by now is text.
    fn end(&mut self, reason: FinishReason, text: &mut String) {
        self.state = State::Ended;
        self.finish_reason = reason;
        // Where the answer was cut, half a character is not shown; where the model ended it, it is the model's mistake.
        let rest = if reason == FinishReason::Stop { self.stream.0.finish() } else { String::new() };
        self.stopped_by = self.stops.push(&rest, text);
        if self.stopped_by.is_some() {
            self.finish_reason = FinishReason::Stop;
        } else {
            self.stops.finish(text);
        }
    }

    fn end_between_tokens(&mut self, reason: FinishReason) -> Option<Chunk> {
        if self.state == State::Ended {
            return None;
        }
        let mut text = String::new();
        self.end(reason, &mut text);
        (!text.is_empty()).then_some(Chunk { text, token: None })
    }
}

impl Iterator for Generation<'_> {
    type Item = Result<Chunk, EngineError>;

    fn next(&mut self) -> Option<Self::Item> {
        let started = Instant::now();
        let before = self.usage.completion_tokens;
        let result = self.step();
        match (before, self.usage.completion_tokens) {
            (0, 1) => self.ttft = started.elapsed(),
            (1.., after) if after > before => self.decode_time += started.elapsed(),
            _ => {}
        }
        if result.is_err() {
            self.state = State::Ended;
        }
        result.transpose()
    }
}

impl FusedIterator for Generation<'_> {}

fn per_second(count: usize, time: Duration) -> f64 {
    let seconds = time.as_secs_f64();
    if count == 0 || seconds <= 0.0 { 0.0 } else { count as f64 / seconds }
}
