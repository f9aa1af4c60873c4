//! A second, smaller model with the same vocabulary that guesses what the first will choose (arXiv:2211.17192, greedily).

use std::collections::HashMap;
use std::time::Instant;

use moli_model::{Batch, ModelError, PAGE_TOKENS, PagePool, Runtime, pages_of};
use moli_text::Tokenizer;

use super::times::StepTimes;
use crate::EngineError;
use crate::sampler::stages::{self, Candidate};
use crate::scheduler::Id;

/// The draft model and what it has computed of which timeline.
pub(crate) struct DraftModel {
    runtime: Box<dyn Runtime>,
    pool: PagePool,
    timelines: HashMap<Id, Known>,
    /// Tokens of a timeline.
    context: usize,
    /// Ids that the tokenizer knows; rows beyond them are padding.
    vocab: usize,
    times: StepTimes,
    candidates: Vec<Candidate>,
    /// Counts calls, to tell which timeline was not needed for longest.
    clock: u64,
}

/// What is computed of a timeline.
#[derive(Default)]
struct Known {
    tokens: Vec<u32>,
    pages: Vec<u32>,
    used: u64,
}

/// A timeline whose next tokens are to be guessed.
pub(crate) struct Wanted<'a> {
    pub(crate) id: Id,
    pub(crate) tokens: &'a [u32],
    /// Guesses that are wanted.
    pub(crate) count: usize,
    /// The guesses: fewer, or none, where its text is still being read or there is no room.
    pub(crate) guesses: Vec<u32>,
}

impl DraftModel {
    /// Rows of one pass. A longer text is read over several steps, so that nobody waits for the draft model for long.
    pub(crate) const ROWS: usize = 128;

    /// `tokenizer` is the draft model's own, `model` that of the model that it guesses for.
    ///
    /// # Errors
    /// [`EngineError::DraftVocabulary`] unless both have the same tokens, [`EngineError::VocabularyMismatch`] where its
    /// own has more than it has rows for, [`EngineError::NoSpeculation`] where its layers carry a state.
    pub(crate) fn new(
        runtime: Box<dyn Runtime>,
        tokenizer: &Tokenizer,
        model: &Tokenizer,
    ) -> Result<Self, EngineError> {
        if runtime.state_bytes() > 0 {
            return Err(EngineError::NoSpeculation { architecture: runtime.config().architecture.clone() });
        }
        let vocab = tokenizer.vocab_size();
        let rows = runtime.config().vocab;
        if vocab > rows {
            return Err(EngineError::VocabularyMismatch { tokenizer: vocab, model: rows });
        }
        if let Some((id, [model, draft])) = model.first_difference(tokenizer) {
            return Err(EngineError::DraftVocabulary { id, model, draft });
        }
        Ok(Self {
            context: (runtime.pages() * PAGE_TOKENS).min(runtime.config().context_train),
            pool: PagePool::new(runtime.pages())?,
            runtime,
            timelines: HashMap::new(),
            vocab,
            times: StepTimes::new(),
            candidates: Vec::new(),
            clock: 0,
        })
    }

    /// Pages in all, and those that nobody holds.
    pub(crate) fn pages(&self) -> (usize, usize) {
        (self.pool.total(), self.pool.available())
    }

    /// Seconds of a pass that guesses for `timelines` of them; 0 before there was one.
    pub(crate) fn pass_seconds(&self, timelines: usize) -> f64 {
        self.times.single() * self.times.rows(timelines)
    }

    /// It was not asked in a step.
    pub(crate) fn rest(&mut self) {
        self.times.fade();
    }

    /// Gives back the pages of all timelines but these.
    pub(crate) fn retain(&mut self, is_alive: impl Fn(Id) -> bool) {
        let pool = &mut self.pool;
        self.timelines.retain(|&id, known| {
            let alive = is_alive(id);
            if !alive {
                known.rewind(0, pool);
            }
            alive
        });
    }

    /// Guesses the next tokens of timelines, all in the same passes: first each one's text as far as it is not computed,
    /// then a token of each at a time.
    ///
    /// # Errors
    /// Whatever the model reports. What it has computed is unknown then.
    pub(crate) fn guess(&mut self, wanted: &mut [Wanted<'_>]) -> Result<(), ModelError> {
        self.clock += 1;
        wanted.iter_mut().for_each(|wanted| {
            wanted.count = self.make_room(wanted);
        });
        while self.pass(wanted)? {}
        Ok(())
    }

    /// Rewinds a timeline to what it still has in common with its tokens, and takes the pages for so many guesses; how many
    /// there is room for.
    fn make_room(&mut self, wanted: &Wanted<'_>) -> usize {
        let known = self.timelines.entry(wanted.id).or_default();
        let common = known.tokens.iter().zip(wanted.tokens).take_while(|(a, b)| a == b).count();
        // The last token is computed again, for its logits.
        known.rewind(common.min(wanted.tokens.len().saturating_sub(1)), &mut self.pool);
        known.used = self.clock;
        let have = known.pages.len();
        let count = wanted.count.min(self.context.saturating_sub(wanted.tokens.len()));
        if count == 0 {
            return 0;
        }
        // The last guess need not be computed.
        let needed = pages_of(wanted.tokens.len() + count - 1).saturating_sub(have);
        while self.pool.available() < needed {
            let idle = self.timelines.iter().filter(|(_, known)| known.used < self.clock);
            let Some(oldest) = idle.min_by_key(|(_, known)| known.used).map(|(&id, _)| id) else { return 0 };
            if let Some(mut known) = self.timelines.remove(&oldest) {
                known.rewind(0, &mut self.pool);
            }
        }
        let Some(known) = self.timelines.get_mut(&wanted.id) else { return 0 };
        if self.pool.take(needed, &mut known.pages).is_err() { 0 } else { count }
    }

    /// One pass over those who still want something; whether there may be another.
    fn pass(&mut self, wanted: &mut [Wanted<'_>]) -> Result<bool, ModelError> {
        let (mut tokens, mut positions, mut sequences, mut outputs) = (vec![], vec![], vec![], vec![]);
        let mut tables: Vec<&[u32]> = Vec::new();
        // Who has how many rows.
        let mut spans = Vec::new();
        let mut room = self.runtime.max_rows().min(Self::ROWS);
        for (index, wanted) in wanted.iter_mut().enumerate() {
            let Some(known) = self.timelines.get(&wanted.id) else { continue };
            if wanted.guesses.len() >= wanted.count {
                continue;
            }
            let start = known.tokens.len();
            let left = (wanted.tokens.len() + wanted.guesses.len()).saturating_sub(start);
            let rows = left.min(room);
            if rows < left {
                // The rest is read in the next steps.
                wanted.count = 0;
            }
            if rows == 0 {
                continue;
            }
            room -= rows;
            tokens.extend(wanted.tokens.iter().chain(&wanted.guesses).skip(start).take(rows).copied());
            positions.extend((start..start + rows).map(|position| position as u32));
            sequences.resize(tokens.len(), tables.len() as u32);
            if rows == left {
                outputs.push(tokens.len().saturating_sub(1) as u32);
            }
            tables.push(&known.pages);
            spans.push((index, rows));
        }
        if spans.is_empty() {
            return Ok(false);
        }
        let batch = Batch {
            tokens: &tokens,
            positions: &positions,
            sequences: &sequences,
            types: &[],
            tables: &tables,
            adapters: &[],
            recurrent: &[],
            outputs: &outputs,
            states: &[],
        };
        let started = Instant::now();
        let logits = self.runtime.forward(&batch)?.logits;
        let mut logits = logits.chunks_exact((logits.len() / outputs.len().max(1)).max(1));
        let mut computed = tokens.iter();
        for (index, rows) in spans {
            let Some(wanted) = wanted.get_mut(index) else { continue };
            if let Some(known) = self.timelines.get_mut(&wanted.id) {
                known.tokens.extend(computed.by_ref().take(rows));
            }
            if wanted.guesses.len() < wanted.count {
                let row = logits.next().unwrap_or_default();
                stages::likeliest(row.get(..self.vocab).unwrap_or(row), 1, &mut self.candidates);
                wanted.guesses.extend(self.candidates.first().map(|candidate| candidate.id));
            }
        }
        self.times.learn(tokens.len(), started.elapsed());
        Ok(wanted.iter().any(|wanted| wanted.guesses.len() < wanted.count))
    }
}

impl Known {
    /// Keeps the first `tokens` tokens.
    fn rewind(&mut self, tokens: usize, pool: &mut PagePool) {
        self.tokens.truncate(tokens);
        let kept = pages_of(self.tokens.len()).min(self.pages.len());
        self.pages.drain(kept..).for_each(|page| pool.release(page));
    }
}
