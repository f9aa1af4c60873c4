//! One choice of an answer: from rows of logits to tokens, to text, to its end.
//!
//! Everything that a choice depends on is in here or in its logits: what else is in the batch can't change it.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use moli_text::{AnswerParser, EncodeOptions, ParserOptions, ReasoningTags, TextStream, Tokenizer};

use crate::answer::{Chunk, Event, FinishReason, Summary, Timings, TokenOutput, Usage};
use crate::constraint::Constraint;
use crate::events::EventSender;
use crate::logprob::Distribution;
use crate::model::Model;
use crate::sampler::Sampler;
use crate::sampler::stages::{self, Candidate};
use crate::speculation::Guesser;
use crate::stop::StopMatcher;
use crate::{EngineError, GenerateParams};

/// What a choice does after a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Next {
    /// Go on.
    Token,
    /// It has ended.
    End,
    /// It goes on without the tokens of this range: the context was full.
    Shift { from: usize, to: usize },
}

/// What a chat adds to a request: how the model marks calls and reasoning.
#[derive(Debug, Default)]
pub(crate) struct Format {
    /// Marks that are shown, though they may be control tokens.
    pub(crate) shown: Vec<String>,
    /// How reasoning is marked, whether the prompt has begun it, and the most tokens of it.
    pub(crate) reasoning: Option<(ReasoningTags, bool, usize)>,
}

impl Format {
    /// The control tokens among the marks.
    fn marks(&self, tokenizer: &Tokenizer) -> Vec<u32> {
        let ids = self.shown.iter().filter_map(|mark| tokenizer.token_id(mark));
        ids.filter(|&id| tokenizer.is_control(id)).collect()
    }

    fn reasoning_budget(&self, tokenizer: &Tokenizer) -> Result<Option<ReasoningBudget>, EngineError> {
        let Some((tags, in_reasoning, left)) = &self.reasoning else { return Ok(None) };
        let options = EncodeOptions { add_special: false, parse_special: true };
        let close = tokenizer.encode(tags.close(), options)?;
        let options = ParserOptions {
            reasoning: Some(tags.clone()),
            in_reasoning: *in_reasoning,
            ..ParserOptions::default()
        };
        Ok(Some(ReasoningBudget {
            parser: AnswerParser::new(options),
            left: *left,
            close,
            forced: VecDeque::new(),
        }))
    }
}

/// Ends reasoning that has become too long, by the tokens of its closing tag.
struct ReasoningBudget {
    parser: AnswerParser,
    left: usize,
    close: Vec<u32>,
    forced: VecDeque<u32>,
}

impl ReasoningBudget {
    /// The token that has to come next.
    fn next(&mut self) -> Option<u32> {
        if self.forced.is_empty() && self.left == 0 && self.parser.in_reasoning() {
            self.forced.extend(&self.close);
        }
        self.forced.pop_front()
    }

    /// Takes note of a token's text.
    fn push(&mut self, piece: &str) {
        self.left = self.left.saturating_sub(usize::from(self.parser.in_reasoning()));
        self.parser.push(piece);
    }
}

pub(crate) struct Choice {
    model: Arc<Model>,
    index: usize,
    events: EventSender,
    /// What this step has added so far.
    said: Vec<Chunk>,
    max_tokens: usize,
    logprobs: Option<usize>,
    /// The tokens at the beginning that stay when the context is full; `None`: the answer ends there.
    context_shift: Option<usize>,
    stop_texts: Vec<String>,
    /// Tokens that are never chosen.
    forbidden: Vec<u32>,
    sampler: Sampler,
    constraint: Option<Constraint>,
    reasoning: Option<ReasoningBudget>,
    stream: TextStream,
    stops: StopMatcher,
    pub(crate) guesser: Option<Guesser>,
    /// The logits as the sampler changes them, `[tokens of the tokenizer]`.
    work: Vec<f32>,
    candidates: Vec<Candidate>,
    finish_reason: Option<FinishReason>,
    stopped_by: Option<usize>,
    usage: Usage,
    submitted: Instant,
    admitted: Option<Instant>,
    first: Option<Instant>,
    latest: Option<Instant>,
}

impl Choice {
    /// Choice `index` of an answer; `params` must be valid. Later choices have later seeds.
    pub(crate) fn new(
        model: &Arc<Model>,
        index: usize,
        prompt: &[u32],
        params: &GenerateParams,
        format: &Format,
        events: EventSender,
    ) -> Result<Self, EngineError> {
        let tokenizer = &model.tokenizer;
        let dry = &params.sampling.dry;
        let breakers = if dry.is_on() { Some(model.breakers(&dry.sequence_breakers)?) } else { None };
        let forbidden =
            if params.ignore_eos { tokenizer.end_of_generation_ids().collect() } else { Vec::new() };
        let mut sampling = params.sampling.clone();
        sampling.seed = sampling.seed.map(|seed| seed.wrapping_add(index as u64));
        Ok(Self {
            index,
            events,
            said: Vec::new(),
            max_tokens: params.max_tokens.unwrap_or(usize::MAX),
            logprobs: params.logprobs,
            context_shift: params.context_shift,
            stop_texts: params.stop.clone(),
            forbidden,
            sampler: Sampler::new(sampling, breakers, prompt)?,
            constraint: match &params.grammar {
                Some(grammar) => Some(model.constraint(grammar)?.permitting(&format.marks(tokenizer))),
                None => None,
            },
            reasoning: format.reasoning_budget(tokenizer)?,
            stream: tokenizer.stream().show(format.shown.iter().map(String::as_str)),
            stops: StopMatcher::new(&params.stop)?,
            guesser: params.speculation.then(Guesser::new),
            work: Vec::new(),
            candidates: Vec::new(),
            finish_reason: None,
            stopped_by: None,
            usage: Usage { prompt_tokens: prompt.len(), ..Usage::default() },
            submitted: Instant::now(),
            admitted: None,
            first: None,
            latest: None,
            model: Arc::clone(model),
        })
    }

    /// The seed that its choices can be replayed with.
    pub(crate) fn seed(&self) -> u64 {
        self.sampler.seed()
    }

    /// It is computed from now on; `cached` tokens of its prompt need not be.
    pub(crate) fn start(&mut self, cached: usize) {
        self.usage.cached_tokens = cached;
        self.admitted = Some(Instant::now());
    }

    /// The end that is reached before the first token of a prompt of `total` tokens, if one is.
    pub(crate) fn ends_at_once(&self, total: usize) -> Option<FinishReason> {
        if self.max_tokens == 0 {
            Some(FinishReason::Length)
        } else if total >= self.model.context && self.context_shift.is_none() {
            Some(FinishReason::Context)
        } else {
            None
        }
    }

    /// Seconds since its last token, or, for the first, since it was asked for.
    pub(crate) fn since_last(&self) -> (bool, Duration) {
        (self.latest.is_some(), self.latest.unwrap_or(self.submitted).elapsed())
    }

    /// Chooses a token by a row of logits, `[vocab]`, sends it and finds out what it ends. `total`: the tokens of the timeline
    /// so far.
    pub(crate) fn choose(&mut self, logits: &[f32], total: usize) -> Result<(u32, Next), EngineError> {
        let model = Arc::clone(&self.model);
        let tokenizer = &model.tokenizer;
        let id = match self.reasoning.as_mut().and_then(ReasoningBudget::next) {
            Some(id) => id,
            // Rows beyond the tokenizer's are padding of the embedding table: they are never chosen.
            None => self.sample(logits.get(..tokenizer.vocab_size()).unwrap_or(logits))?,
        };
        self.sampler.accept(id);
        if let Some(constraint) = &mut self.constraint {
            constraint.accept(id)?;
        }

        // Of the model's own distribution, `[vocab]`.
        let (mut logprob, mut top) = (None, Vec::new());
        if let Some(count) = self.logprobs {
            let distribution = Distribution::of(&model.kernels, logits)?;
            let of = |logit| distribution.logprob(logit) as f32;
            logprob = Some(of(logits.get(id as usize).copied().unwrap_or(f32::NEG_INFINITY)));
            if count > 0 {
                stages::likeliest(logits, count, &mut self.candidates);
                top.extend(self.candidates.iter().map(|c| (c.id, of(c.logit))));
            }
        }
        let token = TokenOutput { id, text: tokenizer.token_text(id).unwrap_or_default(), logprob, top };
        self.usage.completion_tokens += 1;
        let now = Instant::now();
        self.first.get_or_insert(now);
        self.latest = Some(now);

        let (mut text, mut next) = (String::new(), Next::Token);
        if tokenizer.is_end_of_generation(id) {
            self.finish(FinishReason::Stop, &mut text);
        } else {
            let piece = self.stream.push(id);
            if let Some(reasoning) = &mut self.reasoning {
                reasoning.push(&piece);
            }
            self.stopped_by = self.stops.push(&piece, &mut text);
            if self.stopped_by.is_some() {
                self.finish_reason = Some(FinishReason::Stop);
            } else if self.constraint.as_ref().is_some_and(Constraint::is_complete) {
                self.finish(FinishReason::Stop, &mut text);
            } else if self.usage.completion_tokens >= self.max_tokens {
                self.finish(FinishReason::Length, &mut text);
            } else if total + 1 >= model.context {
                match self.context_shift {
                    Some(keep) => {
                        let to = keep + (total + 1 - keep).div_ceil(2);
                        self.usage.dropped_tokens += to - keep;
                        next = Next::Shift { from: keep, to };
                        if let Some(guesser) = &mut self.guesser {
                            guesser.reset();
                        }
                    }
                    None => self.finish(FinishReason::Context, &mut text),
                }
            }
        }
        self.say(text, Some(token));
        Ok((id, if self.finish_reason.is_some() { Next::End } else { next }))
    }

    /// Samples a token by `logits`, `[tokens of the tokenizer]`, which are copied only where something changes them: most
    /// answers take them as they are, and the copy would be a part of the step that only one thread works at.
    fn sample(&mut self, logits: &[f32]) -> Result<u32, EngineError> {
        if self.constraint.is_none() && !self.sampler.changes() {
            if self.forbidden.is_empty() {
                return self.sampler.choose(logits);
            }
            if let Some(id) = self.sampler.choose_allowed(logits, |id| Ok(!self.forbidden.contains(&id)))? {
                return Ok(id);
            }
        }
        self.work.clear();
        self.work.extend_from_slice(logits);
        for &id in &self.forbidden {
            if let Some(logit) = self.work.get_mut(id as usize) {
                *logit = f32::NEG_INFINITY;
            }
        }
        self.sampler.change(&mut self.work);
        let Some(constraint) = &mut self.constraint else { return self.sampler.choose(&self.work) };
        if constraint.takes_a_look()
            && let Some(id) = self.sampler.choose_allowed(&self.work, |id| constraint.allows(id))?
        {
            return Ok(id);
        }
        constraint.mask(&mut self.work)?;
        self.sampler.choose(&self.work)
    }

    /// Ends it from outside, between two tokens.
    pub(crate) fn end(&mut self, reason: FinishReason) {
        let mut text = String::new();
        self.finish(reason, &mut text);
        if !text.is_empty() {
            self.say(text, None);
        }
    }

    fn say(&mut self, text: String, token: Option<TokenOutput>) {
        self.said.push(Chunk { choice: self.index, text, token });
    }

    /// Hands over what a step has added.
    pub(crate) fn tell(&mut self) {
        for chunk in self.said.drain(..) {
            self.events.send(Event::Chunk(chunk));
        }
    }

    /// Says that it is over.
    pub(crate) fn report(mut self, result: Result<(), EngineError>) {
        self.tell();
        let end = result.map(|()| self.summary());
        self.events.send(Event::End { choice: self.index, end });
    }

    fn summary(&self) -> Summary {
        let computed = self.usage.prompt_tokens - self.usage.cached_tokens;
        let decoded = self.usage.completion_tokens.saturating_sub(1);
        let span = |from: Option<Instant>, to: Option<Instant>| match (from, to) {
            (Some(from), Some(to)) => to.duration_since(from),
            _ => Duration::ZERO,
        };
        Summary {
            finish_reason: self.finish_reason.unwrap_or(FinishReason::Cancelled),
            usage: self.usage,
            timings: Timings {
                load: self.model.load_time,
                queued: span(Some(self.submitted), self.admitted),
                ttft: span(Some(self.submitted), self.first),
                prompt_per_second: per_second(computed, span(self.admitted, self.first)),
                decode_per_second: per_second(decoded, span(self.first, self.latest)),
            },
            seed: self.seed(),
            stop: self.stopped_by.and_then(|index| self.stop_texts.get(index)).cloned(),
        }
    }

    /// Releases the text that was held back: what has not become a stop string by now is text.
    fn finish(&mut self, reason: FinishReason, text: &mut String) {
        // Where the answer was cut, half a character is not shown; where the model ended it, it is the model's mistake.
        let rest = if reason == FinishReason::Stop { self.stream.finish() } else { String::new() };
        self.stopped_by = self.stops.push(&rest, text);
        if self.stopped_by.is_some() {
            self.finish_reason = Some(FinishReason::Stop);
        } else {
            self.stops.finish(text);
            self.finish_reason = Some(reason);
        }
    }

    /// How many of these guesses the answer may have, where it is not free.
    pub(crate) fn permitted(&mut self, drafts: &[u32]) -> Option<usize> {
        self.constraint.as_mut().map(|constraint| constraint.allowed(drafts).unwrap_or(0))
    }

    /// Guesses that were made for a step, and how many were right.
    pub(crate) fn speculated(&mut self, guessed: usize, right: usize) {
        self.usage.drafted_tokens += guessed;
        self.usage.accepted_tokens += right;
        if let Some(guesser) = &mut self.guesser {
            guesser.learn(guessed, right);
        }
    }

    pub(crate) fn was_admitted(&self) -> bool {
        self.admitted.is_some()
    }
}

fn per_second(count: usize, time: Duration) -> f64 {
    let seconds = time.as_secs_f64();
    if count == 0 || seconds <= 0.0 { 0.0 } else { count as f64 / seconds }
}
