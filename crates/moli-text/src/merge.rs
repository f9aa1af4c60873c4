//! The loop of byte-pair encoding: again and again, the most urgent of the adjacent pairs becomes one symbol; of equals
//! the leftmost.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// A stretch of text that is one symbol by now.
pub(crate) struct Symbol {
    /// Its token, where it is one.
    pub(crate) id: Option<u32>,
    /// Where it begins, in bytes.
    pub(crate) start: usize,
    /// In bytes; 0 once it is part of its left neighbour.
    pub(crate) len: usize,
    previous: usize,
    next: usize,
}

/// A pair that may become one symbol, in the order of its fields.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Pair<U> {
    urgency: U,
    left: Reverse<usize>,
    right: usize,
    /// The joined length when the pair was seen: if it has changed since, the pair is out of date.
    len: usize,
    /// The token that it becomes.
    id: u32,
}

/// The symbols of one text. It is used again for the next one, so that its memory is.
pub(crate) struct Symbols<U> {
    symbols: Vec<Symbol>,
    queue: BinaryHeap<Pair<U>>,
}

impl<U: Ord> Symbols<U> {
    pub(crate) fn new() -> Self {
        Self { symbols: Vec::new(), queue: BinaryHeap::new() }
    }

    pub(crate) fn clear(&mut self) {
        self.symbols.clear();
    }

    /// Appends a symbol of so many bytes, at least one.
    pub(crate) fn push(&mut self, id: Option<u32>, len: usize) {
        let index = self.symbols.len();
        let start = self.symbols.last().map_or(0, |last| last.start + last.len);
        // Before the first and behind the last there is no index, which is how the loop ends.
        self.symbols.push(Symbol { id, start, len, previous: index.wrapping_sub(1), next: index + 1 });
    }

    /// Makes the last symbol longer.
    pub(crate) fn extend_last(&mut self, len: usize) {
        if let Some(last) = self.symbols.last_mut() {
            last.len += len;
        }
    }

    /// Merges all that `find` has a token for: how urgent the pair is, the greatest first, and the token.
    pub(crate) fn merge(&mut self, find: impl Fn(&Symbol, &Symbol) -> Option<(U, u32)>) {
        let Self { symbols, queue } = self;
        let pair = |symbols: &[Symbol], left: usize, right: usize| {
            let (first, second) = (symbols.get(left)?, symbols.get(right)?);
            let (urgency, id) = find(first, second)?;
            Some(Pair { urgency, left: Reverse(left), right, len: first.len + second.len, id })
        };
        queue.clear();
        queue.extend((1..symbols.len()).filter_map(|right| pair(symbols, right - 1, right)));
        while let Some(Pair { left: Reverse(left), right, len, id, .. }) = queue.pop() {
            let (Some(first), Some(second)) = (symbols.get(left), symbols.get(right)) else { continue };
            if first.len == 0 || second.len == 0 || first.len + second.len != len {
                continue;
            }
            let (previous, next) = (first.previous, second.next);
            if let Some(second) = symbols.get_mut(right) {
                second.len = 0;
            }
            if let Some(first) = symbols.get_mut(left) {
                (first.id, first.len, first.next) = (Some(id), len, next);
            }
            if let Some(after) = symbols.get_mut(next) {
                after.previous = left;
            }
            queue.extend(pair(symbols, previous, left));
            queue.extend(pair(symbols, left, next));
        }
    }

    /// The symbols that are left, in order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Symbol> {
        self.symbols.iter().filter(|symbol| symbol.len > 0)
    }
}
