//! Where a sequence's keys and values live: fixed-size pages, handed out from one preallocated pool.
//!
//! This is bookkeeping only; the tensors belong to the backend. Pages start at absolute positions that are multiples of
//! [`PAGE_TOKENS`], so attention walks the same chunks whatever the batch was when they were written.

use moli_kernels::KvSlot;

use crate::ModelError;

/// Tokens in one page.
pub const PAGE_TOKENS: usize = moli_kernels::PAGE_TOKENS;

/// The pages of one sequence, in order of position.
///
/// A table belongs to the runtime that filled it; give its pages back with `truncate(table, 0)` before it is dropped.
#[derive(Debug, Default)]
pub struct PageTable {
    pages: Vec<u32>,
    tokens: usize,
}

impl PageTable {
    /// An empty sequence.
    pub const fn new() -> Self {
        Self { pages: Vec::new(), tokens: 0 }
    }

    /// Tokens that have a place reserved.
    pub fn len(&self) -> usize {
        self.tokens
    }

    /// Whether nothing is reserved.
    pub fn is_empty(&self) -> bool {
        self.tokens == 0
    }

    /// Page numbers, in order of position.
    pub fn pages(&self) -> &[u32] {
        &self.pages
    }

    /// The place of a position, or `None` where nothing is reserved.
    pub fn slot(&self, position: usize) -> Option<KvSlot> {
        if position >= self.tokens {
            return None;
        }
        let page = *self.pages.get(position / PAGE_TOKENS)?;
        Some(KvSlot { page, token: (position % PAGE_TOKENS) as u32 })
    }
}

/// The free pages.
#[derive(Debug)]
pub struct PagePool {
    free: Vec<u32>,
    total: usize,
}

impl PagePool {
    /// A pool for this many tokens, rounded up to whole pages.
    ///
    /// # Errors
    /// [`ModelError::TooLarge`] when the pages can't be numbered or their list can't be had.
    pub fn new(tokens: usize) -> Result<Self, ModelError> {
        let total = tokens.div_ceil(PAGE_TOKENS);
        let bytes = total as u128 * size_of::<u32>() as u128;
        let too_large = || ModelError::TooLarge { what: "the list of free KV pages", bytes };
        let pages = u32::try_from(total).map_err(|_| too_large())?;
        let mut free = Vec::new();
        free.try_reserve_exact(total).map_err(|_| too_large())?;
        // Popped from the end: low pages first, so that a short session touches little memory.
        free.extend((0..pages).rev());
        Ok(Self { free, total })
    }

    /// Pages in all.
    pub fn total(&self) -> usize {
        self.total
    }

    /// Pages that no sequence holds.
    pub fn available(&self) -> usize {
        self.free.len()
    }

    /// Makes room for a sequence of `tokens`; takes all the pages that it needs or none.
    ///
    /// # Errors
    /// [`ModelError::OutOfPages`] when too few are free.
    pub fn reserve(&mut self, table: &mut PageTable, tokens: usize) -> Result<(), ModelError> {
        let needed = tokens.div_ceil(PAGE_TOKENS).saturating_sub(table.pages.len());
        if needed > self.free.len() {
            return Err(ModelError::OutOfPages { needed, free: self.free.len(), page_tokens: PAGE_TOKENS });
        }
        // Room for all that there is, so that a growing sequence allocates nothing later.
        table.pages.reserve_exact(self.total.saturating_sub(table.pages.len()));
        let rest = self.free.len() - needed;
        table.pages.extend(self.free.drain(rest..).rev());
        table.tokens = table.tokens.max(tokens);
        Ok(())
    }

    /// Cuts a sequence down to `tokens` and takes the pages behind them back.
    pub fn truncate(&mut self, table: &mut PageTable, tokens: usize) {
        if tokens >= table.tokens {
            return;
        }
        table.tokens = tokens;
        self.free.extend(table.pages.drain(tokens.div_ceil(PAGE_TOKENS)..).rev());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reserve_takes_whole_pages_and_truncate_gives_them_back() {
        let mut pool = PagePool::new(3 * PAGE_TOKENS - 1).unwrap();
        let mut table = PageTable::new();
        assert_eq!(pool.available(), 3);
        pool.reserve(&mut table, PAGE_TOKENS).unwrap();
        assert_eq!((table.pages(), pool.available()), (&[0][..], 2));
        pool.reserve(&mut table, PAGE_TOKENS + 1).unwrap();
        assert_eq!((table.pages(), pool.available()), (&[0, 1][..], 1));
        assert_eq!(table.slot(PAGE_TOKENS), Some(KvSlot { page: 1, token: 0 }));
        assert_eq!(table.slot(PAGE_TOKENS + 1), None);
        pool.truncate(&mut table, 1);
        assert_eq!((table.len(), table.pages(), pool.available()), (1, &[0][..], 2));
        pool.truncate(&mut table, 0);
        assert_eq!((table.is_empty(), pool.available()), (true, 3));
    }

    #[test]
    fn a_reservation_that_does_not_fit_takes_nothing() {
        let mut pool = PagePool::new(2 * PAGE_TOKENS).unwrap();
        let (mut one, mut other) = (PageTable::new(), PageTable::new());
        pool.reserve(&mut one, PAGE_TOKENS).unwrap();
        let error = pool.reserve(&mut other, 2 * PAGE_TOKENS).unwrap_err();
        assert!(matches!(error, ModelError::OutOfPages { needed: 2, free: 1, page_tokens: PAGE_TOKENS }));
        assert!(other.is_empty());
        assert_eq!(pool.available(), 1);
    }

    #[test]
    fn pages_of_interleaved_sequences_are_disjoint() {
        let mut pool = PagePool::new(64 * PAGE_TOKENS).unwrap();
        let mut tables: Vec<PageTable> = (0..4).map(|_| PageTable::new()).collect();
        for step in 1..=16 {
            for table in &mut tables {
                pool.reserve(table, step * PAGE_TOKENS).unwrap();
            }
        }
        let mut seen: Vec<u32> = tables.iter().flat_map(|t| t.pages().to_vec()).collect();
        seen.sort_unstable();
        assert_eq!(seen, (0..64).collect::<Vec<u32>>());
    }
}
