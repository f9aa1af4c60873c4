//! Constraints that have been compiled, the latest used ones.

use std::collections::HashMap;
use std::sync::Arc;

use super::Grammar;
use super::matcher::Constraint;

/// Most constraints that are kept, and most bytes of their grammars and automata together.
const MAX_ENTRIES: usize = 64;
const MAX_BYTES: usize = 64 << 20;

struct Entry {
    constraint: Arc<Constraint>,
    bytes: usize,
    /// When it was last used.
    tick: u64,
}

/// Where there is no room, the one that has not been used for the longest time goes. Errors are not kept.
#[derive(Default)]
pub(super) struct Cache {
    entries: HashMap<Grammar, Entry>,
    bytes: usize,
    tick: u64,
}

impl Cache {
    pub(super) fn get(&mut self, grammar: &Grammar) -> Option<Arc<Constraint>> {
        self.tick += 1;
        let entry = self.entries.get_mut(grammar)?;
        entry.tick = self.tick;
        Some(Arc::clone(&entry.constraint))
    }

    /// `bytes`: what the constraint holds, besides the grammar's text.
    pub(super) fn insert(&mut self, grammar: Grammar, constraint: Arc<Constraint>, bytes: usize) {
        let bytes = bytes.saturating_add(grammar.text().len());
        if bytes > MAX_BYTES {
            return;
        }
        self.tick += 1;
        let entry = Entry { constraint, bytes, tick: self.tick };
        if let Some(old) = self.entries.insert(grammar, entry) {
            self.bytes -= old.bytes;
        }
        self.bytes += bytes;
        while self.entries.len() > MAX_ENTRIES || self.bytes > MAX_BYTES {
            let oldest = self.entries.iter().min_by_key(|(_, entry)| entry.tick);
            let Some(grammar) = oldest.map(|(grammar, _)| grammar.clone()) else { return };
            if let Some(old) = self.entries.remove(&grammar) {
                self.bytes -= old.bytes;
            }
        }
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }
}
