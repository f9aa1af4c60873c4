//! What a timeline is computed for.

use std::collections::VecDeque;
use std::ops::Range;

/// Logits or hidden states, and of which tokens.
#[derive(Debug)]
pub(crate) enum Wanted {
    /// The logits after the last token, to choose the next by.
    Last,
    /// The logits after these places, which rise; the ones computed are taken off the front.
    Places(VecDeque<usize>),
    /// The hidden states of these places, likewise.
    States(Range<usize>),
}

/// `tokens`: how many the timeline has.
impl Wanted {
    /// Tokens of which at most so many may come from the cache: there must be rows left for what is wanted.
    pub(super) fn reusable(&self, tokens: usize) -> usize {
        match self {
            Self::Last => tokens.saturating_sub(1),
            Self::Places(places) => places.front().copied().unwrap_or(0),
            Self::States(places) => places.start,
        }
    }

    /// Places from `start` to `end` whose logits are wanted.
    pub(super) fn outputs(&self, tokens: usize, start: usize, end: usize) -> Vec<usize> {
        match self {
            Self::Last => (tokens.saturating_sub(1).max(start)..end).collect(),
            Self::Places(places) => places.iter().copied().take_while(|&place| place < end).collect(),
            Self::States(_) => Vec::new(),
        }
    }

    /// Places from `start` to `end` whose hidden states are wanted.
    pub(super) fn states(&self, start: usize, end: usize) -> Range<usize> {
        match self {
            Self::States(places) => {
                let first = places.start.clamp(start, end);
                first..places.end.clamp(first, end)
            }
            Self::Last | Self::Places(_) => start..start,
        }
    }

    /// Where a run of rows from `start` on has to end so that no more than `outputs` logits are wanted.
    pub(super) fn end_within(&self, tokens: usize, start: usize, rows: usize, outputs: usize) -> usize {
        let end = (start + rows).min(tokens);
        match self {
            Self::Last if outputs == 0 => end.min(tokens.saturating_sub(1)),
            Self::Last | Self::States(_) => end,
            Self::Places(places) => places.get(outputs).map_or(end, |&place| end.min(place)),
        }
    }

    /// Takes off what the first `computed` tokens gave.
    pub(super) fn advance(&mut self, computed: usize) {
        match self {
            Self::Last => {}
            Self::Places(places) => {
                while places.front().is_some_and(|&place| place < computed) {
                    places.pop_front();
                }
            }
            Self::States(places) => places.start = places.start.max(computed).min(places.end),
        }
    }
}
