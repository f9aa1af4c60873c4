//! Who is computed next, and on which pages.
//!
//! Every step: [`Scheduler::plan`] admits, preempts and gives out the rows of one batch, its caller computes them, and
//! [`push`](Scheduler::push) and [`advance`](Scheduler::advance) say what came of it. All of this is bookkeeping: it sees
//! tokens and page numbers, never a tensor, and runs in tests without a model.
//!
//! * Whoever is at the answer gets a row in every step; what is left of the step, at most a chunk, goes to prompts. So a long
//!   prompt delays nobody by more than a chunk.
//! * A higher priority goes first, then who came first. Where pages run out, what the prefix cache has for nobody goes, then the
//!   last in that order is preempted: it waits again and keeps its place. Its pages go to the prefix cache; what is still
//!   there when it is admitted again need not be recomputed.
//! * A page that has another holder is copied before it is written to.
//! * Of a model whose layers carry a state, each batch reads a timeline's state from one slot and writes it to another. So a state
//!   never changes: the prefix cache keeps some, at the ends of pages, and a batch that fails can be repeated. A step of a prompt
//!   ends at the end of a page where it gets that far, for there to be such states; and an answer keeps the latest one.

mod timeline;
mod wanted;

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::ops::Range;
use std::time::Instant;

use moli_model::{ModelError, PAGE_TOKENS, PagePool, StateSlots, pages_of};

use crate::prefix::{Parent, Pools, PrefixCache};

pub(crate) use timeline::Timeline;
use timeline::{register, register_tail, remember};
pub(crate) use wanted::Wanted;

/// A timeline's number, and its place in the order: the least is served first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Id {
    priority: Reverse<i32>,
    arrival: u64,
}

impl Id {
    /// `arrival` counts up.
    pub(crate) fn new(priority: i32, arrival: u64) -> Self {
        Self { priority: Reverse(priority), arrival }
    }
}

/// What does not change.
#[derive(Debug, Clone)]
pub(crate) struct Limits {
    /// Rows of a batch.
    pub(crate) rows: usize,
    /// Rows of a batch whose logits are wanted.
    pub(crate) outputs: usize,
    /// Timelines that are computed in turns.
    pub(crate) running: usize,
    /// Rows of a batch that belong to prompts, where nobody is at the answer.
    pub(crate) chunk: usize,
    /// The same where somebody is.
    pub(crate) shared_chunk: usize,
    /// Tokens of a timeline.
    pub(crate) context: usize,
    /// Whether all rows of a timeline must be in one batch, as an encoder's: there, each token sees all.
    pub(crate) whole: bool,
}

/// Rows of one timeline.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Span {
    pub(crate) id: Id,
    /// Their positions; those beyond the known tokens are drafts.
    pub(crate) positions: Range<usize>,
    /// Positions whose logits are wanted.
    pub(crate) outputs: Vec<usize>,
    /// Positions whose hidden states are wanted.
    pub(crate) states: Range<usize>,
    /// Where its state is read and written, of a model whose layers carry one.
    pub(crate) recurrent: Option<StateSlots>,
}

/// Why a timeline ends that did not end itself.
#[derive(Debug)]
pub(crate) enum Ended {
    Cancelled,
    Deadline,
    /// It needs more pages than there are.
    OutOfPages(ModelError),
}

/// One step.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    /// To be done before the batch, in this order: from, to.
    pub(crate) copies: Vec<(u32, u32)>,
    pub(crate) spans: Vec<Span>,
    /// What is over; their pages are free already.
    pub(crate) ended: Vec<(Id, Ended)>,
    /// What was admitted for the first time, and how many of its tokens were cached.
    pub(crate) admitted: Vec<(Id, usize)>,
    /// Timelines that were preempted.
    pub(crate) preempted: usize,
}

/// What is left of a step.
struct Room {
    rows: usize,
    outputs: usize,
    /// Timelines at the answer that have had nothing yet: drafts leave them a row each.
    reserved: usize,
}

#[derive(Debug)]
pub(crate) struct Scheduler {
    limits: Limits,
    pools: Pools,
    cache: PrefixCache,
    running: BTreeMap<Id, Timeline>,
    waiting: BTreeMap<Id, Timeline>,
}

impl Scheduler {
    /// `states`: slots of states, at least two for each timeline that runs; none of a model whose layers carry none.
    /// `cache_pages`: the most pages that the prefix cache holds.
    pub(crate) fn new(limits: Limits, pages: PagePool, states: PagePool, cache_pages: usize) -> Self {
        Self {
            limits,
            cache: PrefixCache::new(cache_pages.min(pages.total())),
            pools: Pools { pages, states },
            running: BTreeMap::new(),
            waiting: BTreeMap::new(),
        }
    }

    pub(crate) fn submit(&mut self, timeline: Timeline) {
        self.waiting.insert(timeline.id, timeline);
    }

    /// Timelines that are computed in turns.
    pub(crate) fn running(&self) -> impl Iterator<Item = &Timeline> {
        self.running.values()
    }

    /// Timelines that could be computed besides those that are.
    pub(crate) fn places(&self) -> usize {
        self.limits.running.saturating_sub(self.running.len())
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.running.is_empty() && self.waiting.is_empty()
    }

    pub(crate) fn get(&self, id: Id) -> Option<&Timeline> {
        self.running.get(&id).or_else(|| self.waiting.get(&id))
    }

    pub(crate) fn pool(&self) -> &PagePool {
        &self.pools.pages
    }

    /// Whether the model's layers carry a state: then nothing that was computed can be taken back.
    pub(crate) fn is_stateful(&self) -> bool {
        self.pools.stateful()
    }

    /// Pages that the prefix cache holds.
    pub(crate) fn cached_pages(&self) -> usize {
        self.cache.pages()
    }

    /// Guesses of a timeline's next tokens, for the next step.
    pub(crate) fn draft(&mut self, id: Id, drafts: &[u32]) {
        if let Some(timeline) = self.running.get_mut(&id) {
            timeline.drafts.clear();
            let room = self.limits.context.saturating_sub(timeline.tokens.len());
            timeline.drafts.extend(drafts.iter().take(room));
        }
    }

    /// A timeline whose logits nobody can take at the moment gets no rows.
    pub(crate) fn pause(&mut self, id: Id, paused: bool) {
        if let Some(timeline) = self.running.get_mut(&id) {
            timeline.paused = paused;
        }
    }

    /// Chooses the rows of the next step.
    pub(crate) fn plan(&mut self, now: Instant) -> Plan {
        let mut plan = Plan::default();
        self.end_what_is_over(now, &mut plan);
        while self.admit(&mut plan) {}
        let at_answer = self.ids(Timeline::is_at_answer);
        let mut room =
            Room { rows: self.limits.rows, outputs: self.limits.outputs, reserved: at_answer.len() };
        for id in at_answer {
            room.reserved -= 1;
            self.grant(id, &mut room, &mut plan);
        }
        let chunk = if plan.spans.is_empty() { self.limits.chunk } else { self.limits.shared_chunk };
        room.rows = room.rows.min(chunk.max(1));
        let served: Vec<Id> = plan.spans.iter().map(|span| span.id).collect();
        for id in self.ids(|timeline| !timeline.paused && !served.contains(&timeline.id)) {
            self.grant(id, &mut room, &mut plan);
        }
        plan
    }

    /// A token that was chosen.
    pub(crate) fn push(&mut self, id: Id, token: u32) {
        if let Some(timeline) = self.running.get_mut(&id) {
            timeline.tokens.push(token);
        }
    }

    /// The keys and values of the first `computed` tokens are in the pages.
    pub(crate) fn advance(&mut self, id: Id, computed: usize) {
        let Some(timeline) = self.running.get_mut(&id) else { return };
        timeline.drafts.clear();
        if let Some((next, tokens)) = timeline.next_state.take() {
            // There is no state in the middle of a step: what is not wanted to its end was computed in vain.
            let of_use = tokens == computed;
            let over = if of_use { timeline.state.replace(next) } else { Some(next) };
            over.into_iter().for_each(|state| self.pools.states.release(state));
            if !of_use {
                return;
            }
        }
        timeline.computed = computed.min(timeline.tokens.len());
        timeline.wanted.advance(computed);
        register(timeline, &mut self.cache, &mut self.pools);
        remember(timeline, &mut self.cache, &mut self.pools);
        if let Some(prompt) = timeline.leads.filter(|&prompt| timeline.computed >= prompt) {
            timeline.leads = None;
            register_tail(timeline, prompt, &mut self.cache, &mut self.pools);
        }
    }

    /// Ends a timeline: its pages go to the prefix cache. Gives what was computed of it.
    pub(crate) fn finish(&mut self, id: Id) -> Option<Timeline> {
        let mut timeline = self.running.remove(&id).or_else(|| self.waiting.remove(&id))?;
        self.release(&mut timeline);
        Some(timeline)
    }

    /// Gives a timeline other tokens, which are computed anew as far as they are not cached.
    pub(crate) fn replace(&mut self, id: Id, tokens: Vec<u32>) {
        if let Some(mut timeline) = self.running.remove(&id) {
            self.release(&mut timeline);
            timeline.tokens = tokens;
            self.waiting.insert(id, timeline);
        }
    }

    /// The pages of the longest cached beginning of `tokens`, each with a holder more, and its length; whatever is known of
    /// states.
    pub(crate) fn cached(&mut self, adapter: u64, tokens: &[u32]) -> (Vec<u32>, usize) {
        let mut pages = Vec::new();
        let found = self.cache.find_pages(adapter, tokens, &mut self.pools, &mut pages);
        (pages, found.tokens)
    }

    /// The same of the longest that a timeline could go on from, and the state at its end, with a holder more.
    pub(crate) fn resumable(&mut self, adapter: u64, tokens: &[u32]) -> (Vec<u32>, usize, Option<u32>) {
        let mut pages = Vec::new();
        let found = self.cache.find(adapter, tokens, &mut self.pools, &mut pages);
        (pages, found.tokens, found.state)
    }

    /// A slot for a state, held once, where one can be had without preempting anybody.
    pub(crate) fn take_state(&mut self) -> Option<u32> {
        let mut state = Vec::new();
        while self.pools.states.take(1, &mut state).is_err() {
            if !self.cache.evict_state(&mut self.pools) {
                return None;
            }
        }
        state.pop()
    }

    /// Gives up a hold on a state.
    pub(crate) fn release_state(&mut self, state: u32) {
        self.pools.states.release(state);
    }

    /// Keeps the state after whole pages of `tokens` that are all cached; whether they are.
    pub(crate) fn keep_state(&mut self, adapter: u64, tokens: &[u32], state: u32) -> bool {
        let mut pages = Vec::new();
        let found = self.cache.find_pages(adapter, tokens, &mut self.pools, &mut pages);
        self.release_pages(&pages);
        let all = found.tokens == tokens.len() && tokens.len().is_multiple_of(PAGE_TOKENS);
        if all {
            self.cache.remember(found.parent, Some(state), &mut self.pools);
        }
        all
    }

    /// As many pages as can be had without preempting anybody, at most `count`, each held once.
    pub(crate) fn take_pages(&mut self, count: usize) -> Vec<u32> {
        let mut pages = Vec::new();
        while pages.len() < count && (self.pools.pages.available() > 0 || self.cache.evict(&mut self.pools)) {
            if self.pools.pages.take(1, &mut pages).is_err() {
                break;
            }
        }
        pages
    }

    /// Puts pages that hold `tokens` into the prefix cache, and gives up the caller's hold on them.
    pub(crate) fn keep_pages(&mut self, adapter: u64, tokens: &[u32], pages: &[u32]) {
        let mut parent = Some(Parent::Root(adapter));
        for (tokens, &page) in tokens.chunks(PAGE_TOKENS).zip(pages) {
            let inserted = parent.and_then(|parent| self.cache.insert(parent, tokens, page, &mut self.pools));
            parent = inserted.map(|(parent, _)| parent);
        }
        self.release_pages(pages);
    }

    /// Gives up a hold on pages.
    pub(crate) fn release_pages(&mut self, pages: &[u32]) {
        pages.iter().for_each(|&page| self.pools.pages.release(page));
    }

    fn ids(&self, filter: impl Fn(&Timeline) -> bool) -> Vec<Id> {
        self.running.values().filter(|timeline| filter(timeline)).map(|timeline| timeline.id).collect()
    }

    fn end_what_is_over(&mut self, now: Instant, plan: &mut Plan) {
        for timeline in self.running.values().chain(self.waiting.values()) {
            if timeline.cancel.is_cancelled() {
                plan.ended.push((timeline.id, Ended::Cancelled));
            } else if timeline.deadline.is_some_and(|deadline| deadline <= now) {
                plan.ended.push((timeline.id, Ended::Deadline));
            }
        }
        for (id, _) in &plan.ended {
            self.finish(*id);
        }
    }

    /// Gives a running timeline rows of this step, and the pages that they need.
    fn grant(&mut self, id: Id, room: &mut Room, plan: &mut Plan) {
        loop {
            let Some(timeline) = self.running.get(&id) else { return };
            let start = timeline.computed;
            let known = timeline.wanted.end_within(timeline.tokens.len(), start, room.rows, room.outputs);
            if known <= start || self.limits.whole && known < timeline.tokens.len() {
                return;
            }
            let known =
                if self.pools.stateful() { at_page_end(start, known, timeline.tokens.len()) } else { known };
            // Drafts follow where all that is known is computed in this step.
            let spare = (room.rows - (known - start)).min(room.outputs.saturating_sub(1));
            let spare = spare.saturating_sub(room.reserved);
            let may_guess = timeline.is_at_answer() && !self.pools.stateful();
            let drafts = if may_guess { timeline.drafts.len().min(spare) } else { 0 };
            let end = known + drafts;
            if let Err(error) = self.make_room(id, start, end, drafts == 0, plan) {
                if drafts > 0 {
                    self.draft(id, &[]);
                    continue;
                }
                // Nobody who comes after it is left to be preempted: it waits for those who came before.
                if self.running.len() > 1 {
                    self.preempt(id, plan);
                } else {
                    self.finish(id);
                    plan.ended.push((id, Ended::OutOfPages(error)));
                }
                return;
            }
            let next = if self.pools.stateful() { self.take_state() } else { None };
            let Some(timeline) = self.running.get_mut(&id) else { return };
            let recurrent = next.map(|to| StateSlots { from: timeline.state, to });
            timeline.next_state = next.map(|to| (to, end));
            timeline.drafts.truncate(drafts);
            let outputs = timeline.wanted.outputs(timeline.tokens.len(), start, end);
            let states = timeline.wanted.states(start, end);
            room.rows -= end - start;
            room.outputs -= outputs.len().min(room.outputs);
            plan.spans.push(Span { id, positions: start..end, outputs, states, recurrent });
            return;
        }
    }

    /// Pages of its own for positions `start` to `end` of a timeline; where `preempts`, from those who come after it too.
    fn make_room(
        &mut self,
        id: Id,
        start: usize,
        end: usize,
        preempts: bool,
        plan: &mut Plan,
    ) -> Result<(), ModelError> {
        loop {
            let Some(timeline) = self.running.get_mut(&id) else { return Ok(()) };
            let first = start / PAGE_TOKENS;
            let shared =
                timeline.pages.get(first).copied().filter(|&page| self.pools.pages.holders(page) > 1);
            let new = pages_of(end).saturating_sub(timeline.pages.len());
            let mut pages = Vec::with_capacity(new + 1);
            let error = match self.pools.pages.take(new + usize::from(shared.is_some()), &mut pages) {
                Ok(()) => {
                    if let (Some(from), Some(to)) = (shared, pages.last().copied()) {
                        pages.pop();
                        if let Some(page) = timeline.pages.get_mut(first) {
                            *page = to;
                        }
                        self.pools.pages.release(from);
                        plan.copies.push((from, to));
                    }
                    timeline.pages.append(&mut pages);
                    return Ok(());
                }
                Err(error) => error,
            };
            if self.cache.evict(&mut self.pools) {
                continue;
            }
            if shared.is_some_and(|page| self.cache.give_up(page, &mut self.pools)) {
                continue;
            }
            match self.running.keys().next_back().copied() {
                Some(last) if preempts && last != id => self.preempt(last, plan),
                _ => return Err(error),
            }
        }
    }

    /// Admits the first of those who wait; whether there was room for it.
    fn admit(&mut self, plan: &mut Plan) -> bool {
        let mut waiting = self.waiting.values();
        let Some(id) = waiting.find(|timeline| !self.waits_for_prompt(timeline)).map(Timeline::id) else {
            return false;
        };
        while !self.try_admit(id, plan) {
            // Only somebody of a lower priority makes way.
            match self.running.keys().next_back().copied() {
                Some(last) if last.priority > id.priority => self.preempt(last, plan),
                _ => return false,
            }
        }
        true
    }

    /// Admits a timeline, if there is room without preempting anybody.
    fn try_admit(&mut self, id: Id, plan: &mut Plan) -> bool {
        if self.places() == 0 {
            return false;
        }
        let Some(mut timeline) = self.waiting.remove(&id) else { return false };
        let reusable =
            timeline.tokens.get(..timeline.wanted.reusable(timeline.tokens.len())).unwrap_or_default();
        let found = self.cache.find(timeline.adapters.key, reusable, &mut self.pools, &mut timeline.pages);
        let whole = found.tokens / PAGE_TOKENS;
        // All tokens and the first of the answer, a copy of the page that begins alike included. What the others still need, and
        // a page more for each, is left to them, so that nobody has to be preempted at once.
        let needed = pages_of(timeline.tokens.len() + 1).saturating_sub(whole);
        let owed = |other: &Timeline| pages_of(other.tokens.len() + 1).saturating_sub(other.pages.len()) + 1;
        let owed: usize = self.running.values().map(owed).sum();
        if owed > 0 && needed + owed > self.pools.pages.available() + self.cache.evictable(&self.pools) {
            self.release_pages(&timeline.pages);
            found.state.into_iter().for_each(|state| self.release_state(state));
            timeline.pages.clear();
            self.waiting.insert(id, timeline);
            return false;
        }
        timeline.computed = found.tokens;
        timeline.state = found.state;
        timeline.registered = whole;
        timeline.parent = Some(found.parent);
        if !timeline.admitted {
            timeline.admitted = true;
            plan.admitted.push((id, found.tokens));
        }
        self.running.insert(id, timeline);
        true
    }

    fn waits_for_prompt(&self, timeline: &Timeline) -> bool {
        timeline.after.and_then(|leader| self.get(leader)).is_some_and(|leader| leader.leads.is_some())
    }

    /// Sends a running timeline back to those who wait.
    fn preempt(&mut self, id: Id, plan: &mut Plan) {
        if let Some(mut timeline) = self.running.remove(&id) {
            self.release(&mut timeline);
            plan.spans.retain(|span| span.id != id);
            plan.preempted += 1;
            self.waiting.insert(id, timeline);
        }
    }

    /// Leaves a timeline's pages to the prefix cache.
    fn release(&mut self, timeline: &mut Timeline) {
        register_tail(timeline, timeline.computed, &mut self.cache, &mut self.pools);
        self.release_pages(&timeline.pages);
        timeline.pages.clear();
        let next = timeline.next_state.take().map(|(state, _)| state);
        timeline.state.take().into_iter().chain(next).for_each(|state| self.release_state(state));
        timeline.kept = None;
        timeline.drafts.clear();
        timeline.computed = 0;
        timeline.registered = 0;
        timeline.parent = None;
    }
}

/// Where a step that could go to `end` ends so that it ends a page: where it reads more than a token, the last place before the end
/// of the text.
fn at_page_end(start: usize, end: usize, tokens: usize) -> usize {
    let place = end.min(tokens.saturating_sub(1)) / PAGE_TOKENS * PAGE_TOKENS;
    if place > start { place } else { end }
}

#[cfg(test)]
mod tests;
