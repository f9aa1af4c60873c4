//! The thread that owns the model and computes, step by step.
//!
//! A step: take what callers sent, guess tokens, plan, run the batch, choose tokens from its logits and send them. Whatever
//! goes wrong with one request is that request's error; a panic ends the engine, and every caller is told.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use moli_model::{Batch, Computed, Runtime};

use crate::choice::{Choice, Next};
use crate::counters::Counters;
use crate::embed::Pool;
use crate::inbox::Inbox;
use crate::scheduler::{Ended, Id, Scheduler, Span, Timeline};
use crate::speculation::{Guesser, Speculator};
use crate::watchdog::Heartbeat;
use crate::{EngineError, FinishReason};

/// What callers and the computing thread share.
pub(crate) struct Shared {
    pub(crate) inbox: Inbox<Message>,
    pub(crate) counters: Mutex<Counters>,
    pub(crate) heartbeat: Heartbeat,
}

impl Shared {
    pub(crate) fn count(&self, change: impl FnOnce(&mut Counters)) {
        change(&mut self.counters.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

/// What the computing thread is asked for.
pub(crate) enum Message {
    Request {
        timeline: Box<Timeline>,
        task: Task,
    },
    /// Something that needs the model between two steps.
    Job(Box<dyn FnOnce(&mut Worker) + Send>),
}

/// What becomes of what is computed for a timeline.
pub(crate) enum Task {
    Answer(Box<Choice>),
    Score(Score),
    Embed(Pool),
}

/// Logits for a caller.
pub(crate) struct Score {
    pub(crate) rows: Sender<Result<(usize, Vec<f32>), EngineError>>,
    /// Rows that were sent and not yet taken.
    pub(crate) pending: Arc<AtomicUsize>,
    pub(crate) admitted: bool,
}

/// Rows of logits that may wait for the caller of a score: 32 rows of a vocabulary of 262,144 are 32 MiB.
const PENDING_ROWS: usize = 32;

pub(crate) struct Worker {
    pub(crate) runtime: Box<dyn Runtime>,
    pub(crate) scheduler: Scheduler,
    tasks: HashMap<Id, Task>,
    /// Those that came to their end in this step, and how.
    over: Vec<(Task, Result<(), EngineError>)>,
    speculator: Speculator,
    shared: Arc<Shared>,
    // Scratch of a batch.
    tokens: Vec<u32>,
    positions: Vec<u32>,
    sequences: Vec<u32>,
    types: Vec<u32>,
    outputs: Vec<u32>,
    states: Vec<u32>,
}

impl Worker {
    pub(crate) fn new(
        runtime: Box<dyn Runtime>,
        scheduler: Scheduler,
        speculator: Speculator,
        shared: Arc<Shared>,
    ) -> Self {
        Self {
            runtime,
            scheduler,
            tasks: HashMap::new(),
            over: Vec::new(),
            speculator,
            shared,
            tokens: Vec::new(),
            positions: Vec::new(),
            sequences: Vec::new(),
            types: Vec::new(),
            outputs: Vec::new(),
            states: Vec::new(),
        }
    }

    /// Works until the inbox is closed.
    pub(crate) fn run(mut self) {
        let shared = Arc::clone(&self.shared);
        let mut progress = false;
        while let Some(messages) = shared.inbox.take(!progress) {
            let worked = catch_unwind(AssertUnwindSafe(|| {
                messages.into_iter().for_each(|message| self.receive(message));
                self.step()
            }));
            shared.heartbeat.rest();
            match worked {
                Ok(made_progress) => progress = made_progress,
                // The state of the model is unknown: nobody gets anything more of it.
                Err(_) => break,
            }
        }
        shared.inbox.close();
        let left = shared.inbox.take(false).into_iter().flatten().filter_map(|message| match message {
            Message::Request { task, .. } => Some(task),
            Message::Job(_) => None,
        });
        // These had come to their end before.
        for (task, result) in self.over.drain(..) {
            task.report(result);
        }
        for task in std::mem::take(&mut self.tasks).into_values().chain(left) {
            shared.count(|counters| counters.failed += 1);
            task.report(Err(EngineError::Poisoned));
        }
    }

    fn receive(&mut self, message: Message) {
        match message {
            Message::Request { timeline, task } => {
                self.tasks.insert(timeline.id(), task);
                self.scheduler.submit(*timeline);
            }
            Message::Job(job) => job(self),
        }
    }

    /// One step; whether there may be another without a message.
    fn step(&mut self) -> bool {
        self.shared.heartbeat.begin();
        self.pause_scores();
        self.guess();
        let plan = self.scheduler.plan(Instant::now());
        let somebody_left = !plan.ended.is_empty();
        for &(id, cached) in &plan.admitted {
            self.shared.inbox.taken_on();
            self.admitted(id, cached);
        }
        for (id, ended) in plan.ended {
            self.ended(id, ended);
        }
        self.shared.count(|counters| counters.preempted += plan.preempted as u64);
        if somebody_left {
            // Before the others are computed, which may take long.
            self.settle();
        }
        if !plan.spans.is_empty() {
            let started = Instant::now();
            let copied = plan.copies.iter().try_for_each(|&(from, to)| self.runtime.copy_page(from, to));
            match copied {
                Ok(()) => {
                    if let Err(error) = self.compute(&plan.spans) {
                        self.isolate(&plan.spans, error);
                    }
                }
                // Whose page was not copied is not known, and none may be computed on a page that was not.
                Err(error) => {
                    let reason = error.to_string();
                    for span in &plan.spans {
                        self.failed(span.id, EngineError::CopyFailed { reason: reason.clone() });
                    }
                }
            }
            let rows = plan.spans.iter().map(|span| span.positions.len()).sum();
            let took = started.elapsed();
            if plan.spans.iter().all(|span| span.outputs.len() == span.positions.len()) {
                self.speculator.took(rows, took);
            }
            self.shared.count(|counters| counters.step(rows, took));
        }
        self.settle();
        // Where nothing happened, whoever is left waits for somebody to take logits.
        !self.scheduler.is_idle() && (somebody_left || !plan.spans.is_empty())
    }

    /// Counts what there is now, then tells those who came to their end: nobody who has an answer finds it counted as
    /// running, or its pages as held.
    fn settle(&mut self) {
        let Self { scheduler, speculator, tasks, shared, .. } = self;
        speculator.retain(|id| tasks.contains_key(&id));
        shared.inbox.set_places(scheduler.places());
        let (draft_pages, draft_pages_free) = speculator.draft_pages();
        shared.count(|counters| {
            counters.draft_pages = draft_pages;
            counters.draft_pages_free = draft_pages_free;
            counters.running = scheduler.running().count();
            counters.pages_free = scheduler.pool().available();
            counters.pages_cached = scheduler.cached_pages();
        });
        for (task, result) in self.over.drain(..) {
            task.report(result);
        }
    }

    /// Somebody whose logits nobody takes is not computed further.
    fn pause_scores(&mut self) {
        for (&id, task) in &self.tasks {
            if let Task::Score(score) = task {
                self.scheduler.pause(id, score.pending.load(Ordering::Acquire) >= PENDING_ROWS);
            }
        }
    }

    /// Guesses the next tokens of those who are at the answer.
    fn guess(&mut self) {
        // A wrong guess could not be taken out of a state again.
        if self.scheduler.is_stateful() {
            return;
        }
        let mut guessers: Vec<(Id, &mut Guesser)> =
            self.tasks.iter_mut().filter_map(|(&id, task)| Some((id, task.guesser()?))).collect();
        guessers.sort_unstable_by_key(|&(id, _)| id);
        if self.speculator.guess(&mut self.scheduler, guessers) {
            self.shared.count(|counters| counters.draft_errors += 1);
        }
        // What a grammar does not allow would only cost a row.
        let guessed = self.scheduler.running().filter(|timeline| !timeline.drafts().is_empty());
        let guessed: Vec<Id> = guessed.map(Timeline::id).collect();
        for id in guessed {
            let (Some(Task::Answer(choice)), Some(timeline)) =
                (self.tasks.get_mut(&id), self.scheduler.get(id))
            else {
                continue;
            };
            if let Some(count) =
                choice.permitted(timeline.drafts()).filter(|&count| count < timeline.drafts().len())
            {
                let drafts = timeline.drafts().get(..count).unwrap_or_default().to_vec();
                self.scheduler.draft(id, &drafts);
            }
        }
    }

    fn admitted(&mut self, id: Id, cached: usize) {
        match self.tasks.get_mut(&id) {
            Some(Task::Answer(choice)) => choice.start(cached),
            Some(Task::Score(score)) => score.admitted = true,
            Some(Task::Embed(pool)) => pool.cached = Some(cached),
            None => return,
        }
        let prompt = self.scheduler.get(id).map_or(0, |timeline| timeline.tokens().len());
        self.shared.count(|counters| {
            counters.prompt_tokens += prompt as u64;
            counters.cached_tokens += cached as u64;
        });
    }

    /// Reports the end of a timeline that did not end itself.
    fn ended(&mut self, id: Id, ended: Ended) {
        let Some(task) = self.tasks.remove(&id) else { return };
        if !task.was_admitted() {
            self.shared.inbox.left();
        }
        match ended {
            Ended::OutOfPages(error) => {
                self.shared.count(|counters| counters.failed += 1);
                self.over.push((task, Err(error.into())));
            }
            Ended::Cancelled => {
                self.shared.count(|counters| counters.cancelled += 1);
                self.over.push(task.ended(FinishReason::Cancelled));
            }
            Ended::Deadline => {
                self.shared.count(|counters| counters.expired += 1);
                self.over.push(task.ended(FinishReason::Deadline));
            }
        }
    }

    /// Computes the spans of a batch that failed one by one, so that only those fail that have to.
    fn isolate(&mut self, spans: &[Span], error: EngineError) {
        if let [span] = spans {
            return self.failed(span.id, error);
        }
        for span in spans {
            // What the failed batch wrote to the pages is written again.
            if let Err(error) = self.compute(std::slice::from_ref(span)) {
                self.failed(span.id, error);
            }
        }
    }

    fn failed(&mut self, id: Id, error: EngineError) {
        self.scheduler.finish(id);
        if let Some(task) = self.tasks.remove(&id) {
            self.shared.count(|counters| counters.failed += 1);
            self.over.push((task, Err(error)));
        }
    }

    /// Runs one batch, and hands its logits and hidden states to those who want them.
    fn compute(&mut self, spans: &[Span]) -> Result<(), EngineError> {
        let Self { runtime, scheduler, tokens, positions, sequences, types, outputs, states, .. } = self;
        tokens.clear();
        types.clear();
        positions.clear();
        sequences.clear();
        outputs.clear();
        states.clear();
        let mut tables: Vec<&[u32]> = Vec::with_capacity(spans.len());
        let mut adapters = Vec::with_capacity(spans.len());
        let mut recurrent = Vec::new();
        for span in spans {
            let Some(timeline) = scheduler.get(span.id) else { continue };
            let first = tokens.len() as u32;
            let start = span.positions.start;
            let rows = timeline.tokens().iter().chain(timeline.drafts());
            tokens.extend(rows.skip(start).take(span.positions.len()));
            positions.extend(span.positions.clone().map(|position| position as u32));
            sequences.resize(tokens.len(), tables.len() as u32);
            if runtime.config().token_types > 1 {
                types.extend(span.positions.clone().map(|position| timeline.kind(position)));
            }
            outputs.extend(span.outputs.iter().map(|&place| first + (place - start) as u32));
            states.extend(span.states.clone().map(|place| first + (place - start) as u32));
            tables.push(timeline.pages());
            adapters.push(timeline.adapters());
            recurrent.extend(span.recurrent);
        }
        let (vocab, hidden) = (runtime.config().vocab, runtime.config().hidden);
        let batch = Batch {
            tokens,
            positions,
            sequences,
            types,
            tables: &tables,
            adapters: &adapters,
            recurrent: &recurrent,
            outputs,
            states,
        };
        let Computed { logits, states: mut rest_of_states } = runtime.forward(&batch)?;
        let expected = outputs.len().saturating_mul(vocab);
        if logits.len() != expected {
            return Err(EngineError::LogitsLength { expected, actual: logits.len() });
        }
        let expected = states.len().saturating_mul(hidden);
        if rest_of_states.len() != expected {
            return Err(EngineError::StatesLength { expected, actual: rest_of_states.len() });
        }
        let mut rest = logits;
        let mut over = Vec::new();
        for span in spans {
            // Whether they are all looked at or not: the rest is the next one's.
            let (own, others) = rest.split_at(span.outputs.len() * vocab);
            rest = others;
            let rows = own.chunks_exact(vocab.max(1));
            let (own_states, others) = rest_of_states.split_at(span.states.len() * hidden);
            rest_of_states = others;
            match self.tasks.get_mut(&span.id) {
                Some(Task::Answer(choice)) => match answer(choice, scheduler, &self.shared, span, rows) {
                    Ok(false) => {}
                    Ok(true) => over.push((span.id, Ok(()))),
                    Err(error) => over.push((span.id, Err(error))),
                },
                Some(Task::Score(score)) => {
                    scheduler.advance(span.id, span.positions.end);
                    for (&place, row) in span.outputs.iter().zip(rows) {
                        score.pending.fetch_add(1, Ordering::AcqRel);
                        // Whoever does not listen any more has cancelled.
                        let _ = score.rows.send(Ok((place, row.to_vec())));
                    }
                    if scheduler.get(span.id).is_none_or(Timeline::is_computed) {
                        over.push((span.id, Ok(())));
                    }
                }
                Some(Task::Embed(pool)) => {
                    scheduler.advance(span.id, span.positions.end);
                    pool.add(own_states, hidden);
                    if scheduler.get(span.id).is_none_or(Timeline::is_computed) {
                        over.push((span.id, Ok(())));
                    }
                }
                None => {}
            }
        }
        // All at once: those who listen, often one thread for them all, would otherwise be woken for each, while others choose.
        for span in spans {
            if let Some(Task::Answer(choice)) = self.tasks.get_mut(&span.id) {
                choice.tell();
            }
        }
        for (id, result) in over {
            scheduler.finish(id);
            let task = self.tasks.remove(&id);
            if let Some(Task::Answer(_) | Task::Embed(_)) = task {
                self.shared.count(|counters| match result {
                    Ok(()) => counters.completed += 1,
                    Err(_) => counters.failed += 1,
                });
            }
            self.over.extend(task.map(|task| (task, result)));
        }
        Ok(())
    }
}

/// Chooses tokens from the rows of a span, as long as the drafts are what is chosen; whether the choice has ended.
fn answer<'a>(
    choice: &mut Choice,
    scheduler: &mut Scheduler,
    shared: &Shared,
    span: &Span,
    rows: impl Iterator<Item = &'a [f32]>,
) -> Result<bool, EngineError> {
    if span.outputs.is_empty() {
        scheduler.advance(span.id, span.positions.end);
        return Ok(false);
    }
    let Some(timeline) = scheduler.get(span.id) else { return Ok(false) };
    let mut total = timeline.tokens().len();
    let drafts = timeline.drafts().to_vec();
    if let Some(reason) = choice.ends_at_once(total) {
        scheduler.advance(span.id, span.positions.end);
        choice.end(reason);
        return Ok(true);
    }
    let (mut right, mut last) = (0, Next::Token);
    for (row, draft) in rows.zip(drafts.iter().map(Some).chain([None])) {
        let (is_decoding, waited) = choice.since_last();
        let (id, next) = choice.choose(row, total)?;
        shared.count(|counters| {
            counters.completion_tokens += 1;
            let times =
                if is_decoding { &mut counters.inter_token_seconds } else { &mut counters.ttft_seconds };
            times.record(waited.as_secs_f64());
        });
        scheduler.push(span.id, id);
        total += 1;
        match next {
            Next::Token if draft == Some(&id) => right += 1,
            _ => {
                last = next;
                break;
            }
        }
    }
    scheduler.advance(span.id, total - 1);
    if !drafts.is_empty() {
        choice.speculated(drafts.len(), right);
        shared.count(|counters| {
            counters.drafted += drafts.len() as u64;
            counters.accepted += right as u64;
        });
    }
    if let Next::Shift { from, to } = last {
        let tokens = scheduler.get(span.id).map(|timeline| timeline.tokens().to_vec());
        let mut tokens = tokens.unwrap_or_default();
        tokens.drain(from.min(tokens.len())..to.min(tokens.len()));
        scheduler.replace(span.id, tokens);
    }
    Ok(last == Next::End)
}

impl Task {
    fn was_admitted(&self) -> bool {
        match self {
            Self::Answer(choice) => choice.was_admitted(),
            Self::Score(score) => score.admitted,
            Self::Embed(pool) => pool.cached.is_some(),
        }
    }

    fn guesser(&mut self) -> Option<&mut Guesser> {
        match self {
            Self::Answer(choice) => choice.guesser.as_mut(),
            Self::Score(_) | Self::Embed(_) => None,
        }
    }

    /// Ends it from outside, for this reason.
    fn ended(mut self, reason: FinishReason) -> (Self, Result<(), EngineError>) {
        let result = match &mut self {
            Self::Answer(choice) => {
                choice.end(reason);
                Ok(())
            }
            Self::Embed(_) => Err(EngineError::Cancelled),
            // Nobody listens any more.
            Self::Score(_) => Ok(()),
        };
        (self, result)
    }

    /// Tells its caller how it ended.
    fn report(self, result: Result<(), EngineError>) {
        match self {
            Self::Answer(choice) => choice.report(result),
            Self::Embed(pool) => pool.report(result),
            Self::Score(score) => {
                if let Err(error) = result {
                    let _ = score.rows.send(Err(error));
                }
            }
        }
    }
}
