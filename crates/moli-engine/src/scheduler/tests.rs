//! Histories of arrivals, cancels and deadlines on few pages, against a model of what the pages hold.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::*;

const P: usize = PAGE_TOKENS;

/// What a history does before a step.
#[derive(Debug, Clone)]
enum Event {
    /// A text of `tokens` tokens, of which so many are those of the common beginning `family`, that chooses `answer` more.
    Arrive {
        family: u32,
        shared: usize,
        tokens: usize,
        answer: usize,
        priority: i32,
        deadline: Option<u64>,
        choices: usize,
    },
    /// Every third place of a text is scored.
    Score {
        family: u32,
        shared: usize,
        tokens: usize,
    },
    /// The hidden states of a text, from a place on.
    Embed {
        family: u32,
        shared: usize,
        tokens: usize,
        from: usize,
    },
    /// The one with this number, of those that live.
    Cancel(usize),
    /// Guesses, right or wrong, for the one with this number.
    Draft(usize, usize, bool),
    /// The context of the one with this number is shortened.
    Shorten(usize),
    Nothing,
}

fn event() -> impl Strategy<Value = Event> {
    let text = (0_u32..3, 0_usize..3 * P, 1_usize..3 * P);
    prop_oneof![
        4 => (text.clone(), 0_usize..70, -1..2_i32, prop::option::weighted(0.2, 0_u64..40), 1_usize..4).prop_map(
            |((family, shared, tokens), answer, priority, deadline, choices)| Event::Arrive {
                family, shared, tokens, answer, priority, deadline, choices
            }
        ),
        1 => text.clone().prop_map(|(family, shared, tokens)| Event::Score { family, shared, tokens }),
        1 => (text, 0_usize..6 * P).prop_map(
            |((family, shared, tokens), from)| Event::Embed { family, shared, tokens, from }
        ),
        1 => (0_usize..8).prop_map(Event::Cancel),
        3 => (0_usize..8, 1_usize..20, any::<bool>()).prop_map(|(of, length, right)| Event::Draft(of, length, right)),
        1 => (0_usize..8).prop_map(Event::Shorten),
        4 => Just(Event::Nothing),
    ]
}

/// The next token of a text, which decides all of its future.
fn next_token(tokens: &[u32], choice: u64) -> u32 {
    let hash = tokens.iter().fold(choice.wrapping_mul(77), |hash, &token| {
        (hash ^ u64::from(token)).wrapping_mul(0x100_0000_01B3)
    });
    (hash >> 33) as u32 % 5
}

struct Request {
    cancel: CancelToken,
    /// Tokens that it still chooses, or `None`: it is scored or embedded.
    answer: Option<usize>,
    choice: u64,
    places: VecDeque<usize>,
    /// Places whose hidden states it still waits for.
    states: Range<usize>,
}

/// Plays the part of the model and of its callers.
struct World {
    scheduler: Scheduler,
    limits: Limits,
    /// What each slot of each page holds.
    pages: Vec<[u32; P]>,
    /// The tokens that each state is after.
    states: Vec<Vec<u32>>,
    requests: HashMap<Id, Request>,
    arrivals: u64,
    start: Instant,
    /// Milliseconds.
    now: u64,
}

impl World {
    /// `states`: beyond two for each that runs; `None`: the model's layers carry none.
    fn new(
        pages: usize,
        states: Option<usize>,
        cache: usize,
        rows: usize,
        running: usize,
        chunk: usize,
    ) -> Self {
        let limits = Limits {
            rows,
            outputs: rows.min(8),
            running: running.min(rows),
            chunk,
            shared_chunk: chunk.div_ceil(2),
            context: pages * P,
            whole: false,
        };
        let states = states.map_or(0, |more| 2 * limits.running + more);
        let pool = |count| PagePool::new(count).unwrap();
        Self {
            scheduler: Scheduler::new(limits.clone(), pool(pages), pool(states), cache),
            states: vec![Vec::new(); states],
            limits,
            pages: vec![[u32::MAX; P]; pages],
            requests: HashMap::new(),
            arrivals: 0,
            start: Instant::now(),
            now: 0,
        }
    }

    fn text(&self, family: u32, shared: usize, tokens: usize) -> Vec<u32> {
        let most = self.limits.context - 1;
        let beginning = (0..shared as u32).map(|i| family * 100 + i % 7);
        beginning.chain((0..tokens as u32).map(|i| i * i % 11)).take(most.max(1)).collect()
    }

    fn submit(
        &mut self,
        tokens: Vec<u32>,
        priority: i32,
        deadline: Option<u64>,
        answer: Option<usize>,
        choices: usize,
    ) {
        let mut leader = None;
        let cancel = CancelToken::new();
        for choice in 0..choices {
            let id = Id::new(priority, self.arrivals);
            self.arrivals += 1;
            let places: VecDeque<usize> =
                (0..tokens.len()).rev().step_by(3).collect::<Vec<_>>().into_iter().rev().collect();
            let wanted = if answer.is_some() { Wanted::Last } else { Wanted::Places(places.clone()) };
            let deadline = deadline.map(|ms| self.start + Duration::from_millis(self.now + ms));
            let timeline = Timeline::new(id, tokens.clone(), wanted, cancel.clone()).with_deadline(deadline);
            let timeline = match leader {
                None if choices > 1 => timeline.leading(),
                None => timeline,
                Some(leader) => timeline.following(leader),
            };
            leader.get_or_insert(id);
            let request =
                Request { cancel: cancel.clone(), answer, choice: choice as u64, places, states: 0..0 };
            self.requests.insert(id, request);
            self.scheduler.submit(timeline);
        }
    }

    fn embed(&mut self, tokens: Vec<u32>, from: usize) {
        let id = Id::new(0, self.arrivals);
        self.arrivals += 1;
        let states = from.min(tokens.len() - 1)..tokens.len();
        let cancel = CancelToken::new();
        self.scheduler.submit(Timeline::new(id, tokens, Wanted::States(states.clone()), cancel.clone()));
        self.requests
            .insert(id, Request { cancel, answer: None, choice: 0, places: VecDeque::new(), states });
    }

    fn happen(&mut self, event: Event) {
        let living: Vec<Id> = self.scheduler.running.keys().copied().collect();
        let pick = |index: usize| living.get(index % living.len().max(1)).copied();
        match event {
            Event::Arrive { family, shared, tokens, answer, priority, deadline, choices } => {
                let tokens = self.text(family, shared, tokens);
                self.submit(tokens, priority, deadline, Some(answer), choices);
            }
            Event::Score { family, shared, tokens } => {
                let tokens = self.text(family, shared, tokens);
                self.submit(tokens, 0, None, None, 1);
            }
            Event::Embed { family, shared, tokens, from } => {
                let tokens = self.text(family, shared, tokens);
                self.embed(tokens, from);
            }
            Event::Cancel(index) => {
                if let Some(request) = pick(index).and_then(|id| self.requests.get(&id)) {
                    request.cancel.cancel();
                }
            }
            Event::Draft(index, length, right) => {
                let Some(id) = pick(index) else { return };
                let (Some(timeline), Some(request)) = (self.scheduler.get(id), self.requests.get(&id)) else {
                    return;
                };
                let mut text = timeline.tokens().to_vec();
                let known = text.len();
                for _ in 0..length {
                    let next = next_token(&text, request.choice);
                    text.push(if right { next } else { next + 1 });
                }
                self.scheduler.draft(id, &text[known..]);
            }
            Event::Shorten(index) => {
                let Some(id) = pick(index) else { return };
                let (Some(timeline), Some(request)) = (self.scheduler.get(id), self.requests.get(&id)) else {
                    return;
                };
                if timeline.is_at_answer() && request.answer.is_some() {
                    let tokens = timeline.tokens()[timeline.tokens().len() / 2..].to_vec();
                    self.scheduler.replace(id, tokens);
                }
            }
            Event::Nothing => {}
        }
    }

    /// One step, with every rule checked.
    fn step(&mut self) {
        self.now += 1;
        let plan = self.scheduler.plan(self.start + Duration::from_millis(self.now));
        for (id, ended) in &plan.ended {
            assert!(self.requests.remove(id).is_some(), "{id:?} ended twice");
            assert!(self.scheduler.get(*id).is_none());
            assert!(!matches!(ended, Ended::OutOfPages(_)), "the context fits the pages");
        }
        let rows: usize = plan.spans.iter().map(|span| span.positions.len()).sum();
        let outputs: usize = plan.spans.iter().map(|span| span.outputs.len()).sum();
        assert!(rows <= self.limits.rows && outputs <= self.limits.outputs, "{rows} rows, {outputs} outputs");
        assert!(self.scheduler.running.len() <= self.limits.running);
        assert!(self.scheduler.cached_pages() <= self.scheduler.cache.limit());
        if plan.spans.is_empty() {
            assert!(self.scheduler.is_idle() || !plan.ended.is_empty(), "nobody is served");
        }
        // Who waits has no claim over who runs, but where it waits for another's prompt.
        let last = self.scheduler.running.keys().next_back().copied();
        let waiting = self.scheduler.waiting.values();
        for timeline in waiting.filter(|timeline| !self.scheduler.waits_for_prompt(timeline)) {
            assert!(last.is_none_or(|last| last.priority <= timeline.id.priority), "a lower priority runs");
        }

        for &(from, to) in &plan.copies {
            self.pages[to as usize] = self.pages[from as usize];
        }
        let known = |timeline: &Timeline, position: usize| -> u32 {
            *timeline.tokens().iter().chain(timeline.drafts()).nth(position).unwrap()
        };
        // Every row is written before any is read, as in a forward pass.
        for span in &plan.spans {
            let timeline = self.scheduler.get(span.id).unwrap();
            for position in span.positions.clone() {
                let page = timeline.pages()[position / P];
                assert_eq!(self.scheduler.pool().holders(page), 1, "a shared page is written to");
                self.pages[page as usize][position % P] = known(timeline, position);
            }
        }
        let mut written = Vec::new();
        for span in &plan.spans {
            let Some(StateSlots { from, to }) = span.recurrent else {
                assert!(self.states.is_empty());
                continue;
            };
            let timeline = self.scheduler.get(span.id).unwrap();
            let before = from.map_or(&[][..], |from| &self.states[from as usize]);
            assert_eq!(before, &timeline.tokens()[..span.positions.start], "the state is of other tokens");
            assert_eq!(self.scheduler.pools.states.holders(to), 1, "a shared state is written to");
            assert!(plan.spans.iter().all(|span| span.recurrent.and_then(|slots| slots.from) != Some(to)));
            written.push((to, timeline.tokens()[..span.positions.end].to_vec()));
        }
        written.into_iter().for_each(|(to, tokens)| self.states[to as usize] = tokens);
        let mut over = Vec::new();
        for span in &plan.spans {
            let timeline = self.scheduler.get(span.id).unwrap();
            for position in 0..span.positions.end {
                let page = timeline.pages()[position / P];
                assert!(self.scheduler.pool().holders(page) > 0);
                assert_eq!(
                    self.pages[page as usize][position % P],
                    known(timeline, position),
                    "position {position}"
                );
            }
            let request = self.requests.get_mut(&span.id).unwrap();
            match &mut request.answer {
                None => {
                    for &place in &span.outputs {
                        assert_eq!(request.places.pop_front(), Some(place));
                    }
                    if !span.states.is_empty() {
                        assert_eq!(span.states.start, request.states.start);
                        request.states.start = span.states.end;
                    }
                    self.scheduler.advance(span.id, span.positions.end);
                    if request.places.is_empty() && request.states.is_empty() {
                        over.push(span.id);
                    }
                }
                Some(left) => {
                    let mut text = timeline.tokens().to_vec();
                    let drafts = timeline.drafts().to_vec();
                    if span.outputs.is_empty() {
                        self.scheduler.advance(span.id, span.positions.end);
                        continue;
                    }
                    assert_eq!(span.outputs[0], text.len() - 1);
                    for index in 0..span.outputs.len() {
                        if *left == 0 || text.len() >= self.limits.context {
                            over.push(span.id);
                            break;
                        }
                        *left -= 1;
                        let chosen = next_token(&text, request.choice);
                        self.scheduler.push(span.id, chosen);
                        text.push(chosen);
                        if drafts.get(index) != Some(&chosen) {
                            break;
                        }
                    }
                    self.scheduler.advance(span.id, (text.len() - 1).max(span.positions.start));
                }
            }
        }
        for id in over {
            assert!(self.scheduler.finish(id).is_some());
            self.requests.remove(&id);
        }
        self.count_holders();
    }

    /// The pool's counts are those of the timelines and the cache.
    fn count_holders(&self) {
        let mut holders = vec![0; self.pages.len()];
        let timelines = self.scheduler.running.values().chain(self.scheduler.waiting.values());
        let held = timelines.flat_map(|timeline| timeline.pages().iter().copied());
        for page in held.chain(self.scheduler.cache.held()) {
            holders[page as usize] += 1;
        }
        for (page, &count) in holders.iter().enumerate() {
            assert_eq!(self.scheduler.pool().holders(page as u32), count, "page {page}");
        }
        let free = holders.iter().filter(|&&count| count == 0).count();
        assert_eq!(self.scheduler.pool().available(), free);
        assert!(self.scheduler.waiting.values().all(|timeline| timeline.pages().is_empty()));

        let mut holders = vec![0; self.states.len()];
        let timelines = self.scheduler.running.values().chain(self.scheduler.waiting.values());
        let held = timelines
            .flat_map(|timeline| timeline.state.into_iter().chain(timeline.next_state.map(|next| next.0)));
        held.chain(self.scheduler.cache.held_states()).for_each(|state| holders[state as usize] += 1);
        for (state, &count) in holders.iter().enumerate() {
            assert_eq!(self.scheduler.pools.states.holders(state as u32), count, "state {state}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(10_000))]
    /// Whatever comes in which order: no page leaks, none is used after it was given up or written to while it is shared,
    /// every request ends, and a higher priority never waits for a lower.
    #[test]
    fn histories(
        events in prop::collection::vec(event(), 1..40),
        pages in 1_usize..12,
        states in prop::option::of(0_usize..6),
        cache in 0_usize..14,
        rows in 1_usize..40,
        running in 1_usize..6,
        chunk in 1_usize..40,
    ) {
        let mut world = World::new(pages, states, cache, rows, running, chunk);
        for event in events {
            world.happen(event);
            world.step();
        }
        let mut steps = 0;
        while !world.scheduler.is_idle() {
            world.step();
            steps += 1;
            prop_assert!(steps < 200_000, "it never ends");
        }
        prop_assert!(world.requests.is_empty());
    }
}

/// Whoever makes way leaves the rows of the step to those it makes way for.
#[test]
fn a_higher_priority_is_served_in_the_step_that_it_comes() {
    let mut world = World::new(1, None, 0, 1, 1, 1);
    world.submit(vec![1], -1, None, Some(7), 1);
    world.step();
    world.submit(vec![2], 0, None, Some(2), 1);
    let plan = world.scheduler.plan(world.start);
    assert_eq!((plan.preempted, plan.spans.len()), (1, 1));
    assert_eq!(plan.spans[0].id.priority, Reverse(0));
}

/// A text of which nothing is ever computed needs nothing.
#[test]
fn an_empty_scheduler_plans_nothing() {
    let mut world = World::new(1, None, 1, 1, 1, 1);
    world.step();
    assert!(world.scheduler.is_idle());
}

#[test]
fn whole_texts_share_a_step_and_are_never_cut() {
    let limits =
        Limits { rows: 10, outputs: 8, running: 8, chunk: 10, shared_chunk: 5, context: 10, whole: true };
    let mut scheduler = Scheduler::new(limits, PagePool::new(16).unwrap(), PagePool::new(0).unwrap(), 0);
    for (arrival, length) in [4, 9, 5, 10, 1].into_iter().enumerate() {
        let id = Id::new(0, arrival as u64);
        let wanted = Wanted::States(0..length);
        scheduler.submit(Timeline::new(id, vec![1; length], wanted, CancelToken::new()));
    }
    let mut steps = Vec::new();
    while !scheduler.is_idle() && steps.len() < 9 {
        let spans = scheduler.plan(Instant::now()).spans;
        for span in &spans {
            assert_eq!(
                (span.positions.clone(), span.states.clone()),
                (0..span.positions.end, 0..span.positions.end)
            );
            scheduler.advance(span.id, span.positions.end);
            assert!(scheduler.get(span.id).unwrap().is_computed());
            scheduler.finish(span.id).unwrap();
        }
        steps.push(spans.iter().map(|span| span.positions.end).collect::<Vec<_>>());
    }
    assert_eq!(steps, [vec![4, 5, 1], vec![9], vec![10]]);
    assert_eq!((scheduler.cached_pages(), scheduler.pool().available()), (0, 16));
}

/// Of a model whose layers carry a state.
#[test]
fn a_prompt_goes_on_from_the_state_at_the_end_of_a_page() {
    let mut world = World::new(20, Some(6), 20, 3 * P, 2, 2 * P + 5);
    let text: Vec<u32> = (0..4 * P as u32 + 3).map(|i| i % 5).collect();
    let starts = |world: &mut World, tokens: &[u32]| {
        world.submit(tokens.to_vec(), 0, None, Some(1), 1);
        let mut starts = Vec::new();
        while !world.scheduler.is_idle() {
            starts.push(world.scheduler.running().next().map_or(0, |timeline| timeline.computed));
            world.step();
        }
        starts
    };
    // Steps end at pages, but for the last of the prompt and that of the answer.
    assert_eq!(starts(&mut world, &text), [0, 2 * P, 4 * P, 4 * P + 3]);
    // The same text once more, and one that goes on from it.
    let mut planned = |tokens: &[u32]| {
        world.submit(tokens.to_vec(), 0, None, Some(1), 1);
        let plan = world.scheduler.plan(world.start);
        let span = plan.spans.into_iter().next().unwrap();
        world.scheduler.finish(span.id);
        world.requests.clear();
        (span.positions.start, span.recurrent.unwrap().from.is_some())
    };
    assert_eq!(planned(&text), (4 * P, true));
    assert_eq!(planned(&[text.as_slice(), &[3; P]].concat()), (4 * P + 3, true));
    // One that leaves it within the fourth page, and one within the first.
    let mut other = text.clone();
    other[3 * P + 1] = 9;
    assert_eq!(planned(&other), (2 * P, true));
    other[1] = 9;
    assert_eq!(planned(&other), (0, false));
}
