//! Guesses of what comes next. They are computed together with the last token, in one pass over the weights, and each is
//! compared with what the sampler chooses from the same logits: a guess can save time, never change an answer.
//!
//! Guesses come from what came before ([`lookup`]) and, where that has none, from a draft model ([`draft`]). How many are
//! made, if any, is a matter of expected gain and cost:
//!
//! * a source gives the probability `p` that a guess is right if those before it are, from this answer's experience. The
//!   first `k` guesses give `p1 + p1 p2 + ... + p1...pk` tokens more;
//! * each costs a further row of the step, and a pass of the draft model where it guesses, at measured times ([`times`]);
//! * the `k` with the most tokens per second is taken, if its gain is worth its cost by a margin, which is larger after a
//!   guess that failed. Lookup learns from what it did not guess too; a draft model has to be tried now and then.

mod draft;
mod lookup;
#[cfg(test)]
mod tests;
mod times;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

pub(crate) use self::draft::DraftModel;
use self::draft::Wanted;
use self::lookup::Lookup;
use self::times::StepTimes;
use crate::scheduler::{Id, Scheduler};

/// Most rows of a step that is guessed for: with more they cost their full price.
pub(crate) const SPECULATIVE_ROWS: usize = 16;
/// How much more a guess must gain than it costs, after one that was right and after one that was not.
const MARGIN: f64 = 1.1;
const WARY_MARGIN: f64 = 1.4;
/// Weight of a new experience with a probability.
const EXPERIENCE: f64 = 0.1;
/// The share of a draft model's guesses that is assumed to be right before there is experience.
const DRAFT_CHANCE: f64 = 0.7;
/// Steps until a draft model that does not pay is tried again; twice as many each time.
const PATIENCE: usize = 32;
const MOST_PATIENCE: usize = 1024;

/// A probability, learnt from what happened.
#[derive(Debug, Clone, Copy)]
struct Chance(f64);

impl Chance {
    fn new(probability: f64) -> Self {
        Self(probability)
    }

    fn probability(&self) -> f64 {
        self.0
    }

    fn learn(&mut self, happened: bool) {
        self.0 += EXPERIENCE * (f64::from(u8::from(happened)) - self.0);
    }
}

/// What one answer's guesses are made by.
#[derive(Debug)]
pub(crate) struct Guesser {
    lookup: Lookup,
    draft: DraftChance,
    /// Whether the latest guesses are the draft model's.
    is_draft: bool,
    /// Whether the latest guesses failed.
    is_wary: bool,
}

/// How well a draft model guesses an answer.
#[derive(Debug)]
struct DraftChance {
    chance: Chance,
    /// Steps since it was used, and after how many it is tried again.
    idle: usize,
    patience: usize,
}

impl Guesser {
    pub(crate) fn new() -> Self {
        Self {
            lookup: Lookup::new(),
            draft: DraftChance { chance: Chance::new(DRAFT_CHANCE), idle: 0, patience: PATIENCE },
            is_draft: false,
            is_wary: false,
        }
    }

    /// The timeline's tokens are others now.
    pub(crate) fn reset(&mut self) {
        self.lookup.reset();
    }

    /// Takes note of how many guesses of a step were right.
    pub(crate) fn learn(&mut self, guessed: usize, right: usize) {
        self.is_wary = right == 0;
        if self.is_draft {
            self.draft.learn(guessed, right);
        }
    }

    fn margin(&self) -> f64 {
        if self.is_wary { WARY_MARGIN } else { MARGIN }
    }
}

impl DraftChance {
    fn learn(&mut self, guessed: usize, right: usize) {
        (0..right).for_each(|_| self.chance.learn(true));
        if right < guessed {
            self.chance.learn(false);
        } else {
            self.idle = self.patience;
        }
    }

    /// How many guesses to ask of the draft model, where `paying` would pay.
    fn count(&mut self, paying: usize, most: usize) -> usize {
        if paying > 0 {
            (self.idle, self.patience) = (0, PATIENCE);
            return paying;
        }
        if self.idle < self.patience {
            self.idle += 1;
            return 0;
        }
        (self.idle, self.patience) = (0, (self.patience * 2).min(MOST_PATIENCE));
        most.min(1)
    }
}

/// What the next step is expected to give and to take, in steps of one row.
struct Step {
    tokens: f64,
    time: f64,
    /// Rows that it may still have.
    room: usize,
}

impl Step {
    /// How many guesses to add, if guess `i` is right with probability `chances[i]` after those before it and each costs
    /// `cost`.
    fn paying(&self, chances: impl Iterator<Item = f64>, cost: f64, margin: f64) -> (usize, f64) {
        let (mut reached, mut gain) = (1.0, 0.0);
        let mut best = (0, 0.0);
        let mut speed = self.tokens / self.time;
        for (guesses, chance) in (1..=self.room).zip(chances) {
            reached *= chance;
            gain += reached;
            let time = self.time + cost * guesses as f64;
            if (self.tokens + gain) / time > speed {
                speed = (self.tokens + gain) / time;
                best = (guesses, gain);
            }
        }
        let (guesses, gain) = best;
        let worth = gain * self.time > margin * self.tokens * cost * guesses as f64;
        if worth { best } else { (0, 0.0) }
    }

    fn add(&mut self, guesses: usize, gain: f64, cost: f64) {
        self.tokens += gain;
        self.time += cost * guesses as f64;
        self.room -= guesses.min(self.room);
    }
}

/// Guesses for all timelines of an engine.
pub(crate) struct Speculator {
    times: StepTimes,
    draft: Option<DraftModel>,
    drafts: Vec<u32>,
}

impl Speculator {
    pub(crate) fn new(draft: Option<DraftModel>) -> Self {
        Self { times: StepTimes::new(), draft, drafts: Vec::new() }
    }

    /// Pages of the draft model in all, and those that nobody holds.
    pub(crate) fn draft_pages(&self) -> (usize, usize) {
        self.draft.as_ref().map_or((0, 0), DraftModel::pages)
    }

    /// A step of so many rows, all of them at answers, was computed.
    pub(crate) fn took(&mut self, rows: usize, time: Duration) {
        self.times.learn(rows, time);
    }

    /// Forgets all timelines but these.
    pub(crate) fn retain(&mut self, is_alive: impl Fn(Id) -> bool) {
        if let Some(draft) = &mut self.draft {
            draft.retain(is_alive);
        }
    }

    /// Guesses the next tokens of those who are at the answer, as far as it pays; whether the draft model failed, which
    /// is the last time that it is asked. `guessers` are those of timelines that may be guessed for.
    pub(crate) fn guess(&mut self, scheduler: &mut Scheduler, guessers: Vec<(Id, &mut Guesser)>) -> bool {
        let at_answer = scheduler.running().filter(|timeline| timeline.is_at_answer()).count();
        let mut step = Step {
            tokens: at_answer as f64,
            time: self.times.rows(at_answer),
            room: SPECULATIVE_ROWS.saturating_sub(at_answer),
        };
        let row = self.times.extra_row();
        let mut left = Vec::new();
        for (id, guesser) in guessers {
            let Some(timeline) = scheduler.get(id).filter(|timeline| timeline.is_at_answer()) else {
                continue;
            };
            let margin = guesser.margin();
            let chances = guesser.lookup.find(timeline.tokens(), step.room);
            let (count, gain) = step.paying(chances, row, margin);
            if count == 0 {
                left.push((id, guesser));
                continue;
            }
            step.add(count, gain, row);
            guesser.is_draft = false;
            self.drafts.clear();
            guesser.lookup.guess(timeline.tokens(), count, &mut self.drafts);
            scheduler.draft(id, &self.drafts);
        }
        self.ask_draft(scheduler, left, step)
    }

    /// Has the draft model guess for those whom lookup has nothing for; whether it failed.
    fn ask_draft(
        &mut self,
        scheduler: &mut Scheduler,
        left: Vec<(Id, &mut Guesser)>,
        mut step: Step,
    ) -> bool {
        let Some(draft) = self.draft.as_mut().filter(|_| !left.is_empty()) else { return false };
        let single = self.times.single();
        let pass = if single > 0.0 { draft.pass_seconds(left.len()) / single } else { 0.0 };
        let cost = self.times.extra_row() + pass / left.len() as f64;
        let mut wanted = Vec::new();
        for (id, guesser) in left {
            let Some(timeline) = scheduler.get(id) else { continue };
            let chance = guesser.draft.chance.probability();
            let (paying, gain) = step.paying(std::iter::repeat(chance), cost, guesser.margin());
            // Where not even certain guesses would pay, trying teaches nothing.
            let hopeless = step.paying(std::iter::repeat(1.0), cost, guesser.margin()).0 == 0;
            let count = if hopeless { 0 } else { guesser.draft.count(paying, step.room) };
            if count == 0 {
                continue;
            }
            step.add(count, gain, cost);
            guesser.is_draft = true;
            wanted.push(Wanted { id, tokens: timeline.tokens(), count, guesses: Vec::new() });
        }
        if wanted.is_empty() {
            draft.rest();
            return false;
        }
        // Its panics are nobody else's: nothing of it is used any more.
        match catch_unwind(AssertUnwindSafe(|| draft.guess(&mut wanted))) {
            Ok(Ok(())) => {}
            Ok(Err(_)) | Err(_) => {
                self.draft = None;
                return true;
            }
        }
        let guesses: Vec<(Id, Vec<u32>)> =
            wanted.into_iter().map(|wanted| (wanted.id, wanted.guesses)).collect();
        for (id, guesses) in guesses {
            scheduler.draft(id, &guesses);
        }
        false
    }
}
