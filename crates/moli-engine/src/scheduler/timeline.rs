//! One request: its tokens, where their keys and values and its state are, and what the prefix cache is told of them.

use std::time::Instant;

use moli_model::{Adapted, PAGE_TOKENS};

use super::{Id, Wanted};
use crate::CancelToken;
use crate::adapters::Chosen;
use crate::prefix::{Parent, Pools, PrefixCache};

/// The tokens of one request and where their keys and values are.
#[derive(Debug)]
pub(crate) struct Timeline {
    pub(super) id: Id,
    pub(super) tokens: Vec<u32>,
    /// Tokens whose keys and values are in the pages.
    pub(super) computed: usize,
    pub(super) pages: Vec<u32>,
    /// The state after the computed tokens.
    pub(super) state: Option<u32>,
    /// The slot for that after the step that is computed, and how many tokens it is after.
    pub(super) next_state: Option<(u32, usize)>,
    /// What has the latest state of the answer in the prefix cache.
    pub(super) kept: Option<Parent>,
    /// Whole pages that the prefix cache knows, and what the next would stand on; `None`: the cache has lost them.
    pub(super) registered: usize,
    pub(super) parent: Option<Parent>,
    /// Guesses of the next tokens, for the next step only.
    pub(super) drafts: Vec<u32>,
    pub(super) adapters: Chosen,
    /// Where the second of two texts begins, if there are two.
    pub(super) second: Option<usize>,
    pub(super) wanted: Wanted,
    pub(super) deadline: Option<Instant>,
    pub(super) cancel: CancelToken,
    /// Whose prompt, the same as this one's, is waited for.
    pub(super) after: Option<Id>,
    /// Tokens of the prompt, where others wait for it.
    pub(super) leads: Option<usize>,
    /// Whether nobody can take more logits at the moment.
    pub(super) paused: bool,
    /// Whether it has been admitted before.
    pub(super) admitted: bool,
}

impl Timeline {
    pub(crate) fn new(id: Id, tokens: Vec<u32>, wanted: Wanted, cancel: CancelToken) -> Self {
        Self {
            id,
            tokens,
            computed: 0,
            pages: Vec::new(),
            state: None,
            next_state: None,
            kept: None,
            registered: 0,
            parent: None,
            drafts: Vec::new(),
            adapters: Chosen::default(),
            second: None,
            wanted,
            deadline: None,
            cancel,
            after: None,
            leads: None,
            paused: false,
            admitted: false,
        }
    }

    /// Two texts, the second of which begins here.
    pub(crate) fn with_second(mut self, second: Option<usize>) -> Self {
        self.second = second;
        self
    }

    /// The kind of the token at a position: which of two texts it is in.
    pub(crate) fn kind(&self, position: usize) -> u32 {
        u32::from(self.second.is_some_and(|second| position >= second))
    }

    pub(crate) fn with_deadline(mut self, deadline: Option<Instant>) -> Self {
        self.deadline = deadline;
        self
    }

    /// What it is computed with.
    pub(crate) fn with_adapters(mut self, adapters: Chosen) -> Self {
        self.adapters = adapters;
        self
    }

    /// The first of several with the same prompt, which the others need not compute.
    pub(crate) fn leading(mut self) -> Self {
        self.leads = Some(self.tokens.len());
        self
    }

    /// Another with the prompt of the one that leads.
    pub(crate) fn following(mut self, leader: Id) -> Self {
        self.after = Some(leader);
        self
    }

    pub(crate) fn id(&self) -> Id {
        self.id
    }

    pub(crate) fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    pub(crate) fn pages(&self) -> &[u32] {
        &self.pages
    }

    pub(crate) fn adapters(&self) -> &[Adapted] {
        &self.adapters.list
    }

    pub(crate) fn drafts(&self) -> &[u32] {
        &self.drafts
    }

    /// Whether the keys and values of all its tokens are in the pages.
    pub(crate) fn is_computed(&self) -> bool {
        self.computed >= self.tokens.len()
    }

    /// Whether the next row is the last token, to choose the next by.
    pub(crate) fn is_at_answer(&self) -> bool {
        matches!(self.wanted, Wanted::Last) && self.tokens.len() - self.computed == 1
    }
}

/// Tells the prefix cache of pages that have become full.
pub(super) fn register(timeline: &mut Timeline, cache: &mut PrefixCache, pools: &mut Pools) {
    while let Some(parent) = timeline.parent {
        let start = timeline.registered * PAGE_TOKENS;
        let end = start + PAGE_TOKENS;
        let (Some(tokens), Some(&page)) =
            (timeline.tokens.get(start..end), timeline.pages.get(timeline.registered))
        else {
            return;
        };
        if end > timeline.computed {
            return;
        }
        let inserted = cache.insert(parent, tokens, page, pools);
        // Another text has the same page: one of the two is enough. What stands on it keeps it from being evicted, so that
        // nobody may hold a later page without it.
        if let Some((_, theirs)) = inserted.filter(|&(_, theirs)| theirs != page) {
            pools.pages.share(theirs);
            pools.pages.release(page);
            if let Some(page) = timeline.pages.get_mut(timeline.registered) {
                *page = theirs;
            }
        }
        timeline.parent = inserted.map(|(parent, _)| parent);
        timeline.registered += 1;
    }
}

/// Tells the prefix cache of the state at the end of a page. Of an answer it keeps the latest.
pub(super) fn remember(timeline: &mut Timeline, cache: &mut PrefixCache, pools: &mut Pools) {
    let ends_page = timeline.computed == timeline.registered * PAGE_TOKENS;
    let (Some(state), Some(parent)) = (timeline.state, timeline.parent.filter(|_| ends_page)) else { return };
    cache.remember(parent, Some(state), pools);
    if timeline.is_at_answer()
        && let Some(before) = timeline.kept.replace(parent)
    {
        cache.remember(before, None, pools);
    }
}

/// Tells the prefix cache of the page that tokens up to `end` fill in part.
pub(super) fn register_tail(timeline: &Timeline, end: usize, cache: &mut PrefixCache, pools: &mut Pools) {
    let start = timeline.registered * PAGE_TOKENS;
    if let (Some(parent), Some(tokens), Some(&page)) =
        (timeline.parent, timeline.tokens.get(start..end), timeline.pages.get(timeline.registered))
        && let Some((tail, _)) = cache.insert(parent, tokens, page, pools)
        && timeline.computed == end
    {
        cache.remember(tail, timeline.state, pools);
    }
}
