//! Where keys and values live: fixed-size pages, counted references to them, one pool.
//!
//! This is bookkeeping only; the tensors belong to the backend. A sequence is a list of pages, the first of which holds
//! positions 0 to [`PAGE_TOKENS`] - 1 and so on: attention walks the same chunks whatever the batch was when they were
//! written. Sequences that begin alike hold the same pages; who writes to a page that another holds too, copies it first.

use crate::ModelError;

/// Tokens in one page.
pub const PAGE_TOKENS: usize = moli_kernels::PAGE_TOKENS;

/// The pages that `tokens` tokens need.
pub const fn pages_of(tokens: usize) -> usize {
    tokens.div_ceil(PAGE_TOKENS)
}

/// Who holds which page: a count for each, and the list of those that nobody holds.
#[derive(Debug)]
pub struct PagePool {
    /// References to each page; 0: it is free.
    holders: Vec<u32>,
    free: Vec<u32>,
}

impl PagePool {
    /// A pool of pages that nobody holds.
    ///
    /// # Errors
    /// [`ModelError::TooLarge`] when the pages can't be numbered or their lists can't be had.
    pub fn new(pages: usize) -> Result<Self, ModelError> {
        let bytes = pages as u128 * 2 * size_of::<u32>() as u128;
        let too_large = || ModelError::TooLarge { what: "the list of KV pages", bytes };
        let count = u32::try_from(pages).map_err(|_| too_large())?;
        let (mut free, mut holders) = (Vec::new(), Vec::new());
        free.try_reserve_exact(pages).map_err(|_| too_large())?;
        holders.try_reserve_exact(pages).map_err(|_| too_large())?;
        // Popped from the end: low pages first, so that a short sequence touches little memory.
        free.extend((0..count).rev());
        holders.resize(pages, 0);
        Ok(Self { holders, free })
    }

    /// Pages in all.
    pub fn total(&self) -> usize {
        self.holders.len()
    }

    /// Pages that nobody holds.
    pub fn available(&self) -> usize {
        self.free.len()
    }

    /// References to a page; 0 for one that does not exist.
    pub fn holders(&self, page: u32) -> u32 {
        self.holders.get(page as usize).copied().unwrap_or(0)
    }

    /// Appends `count` free pages, now held once, to `pages`: all or none.
    ///
    /// # Errors
    /// [`ModelError::OutOfPages`] when too few are free.
    pub fn take(&mut self, count: usize, pages: &mut Vec<u32>) -> Result<(), ModelError> {
        let Some(rest) = self.free.len().checked_sub(count) else {
            let free = self.free.len();
            return Err(ModelError::OutOfPages { needed: count, free, page_tokens: PAGE_TOKENS });
        };
        for page in self.free.drain(rest..).rev() {
            if let Some(holders) = self.holders.get_mut(page as usize) {
                *holders = 1;
            }
            pages.push(page);
        }
        Ok(())
    }

    /// One more holder of a page that somebody holds.
    pub fn share(&mut self, page: u32) {
        debug_assert!(self.holders(page) > 0, "page {page} is free");
        if let Some(holders) = self.holders.get_mut(page as usize) {
            *holders += 1;
        }
    }

    /// One holder less; the last one's page is free again.
    pub fn release(&mut self, page: u32) {
        debug_assert!(self.holders(page) > 0, "page {page} is free");
        if let Some(holders) = self.holders.get_mut(page as usize).filter(|holders| **holders > 0) {
            *holders -= 1;
            if *holders == 0 {
                self.free.push(page);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_taken_low_first_and_come_back_with_their_last_holder() {
        let mut pool = PagePool::new(3).unwrap();
        let mut pages = Vec::new();
        pool.take(2, &mut pages).unwrap();
        assert_eq!((pages.as_slice(), pool.available(), pool.total()), (&[0, 1][..], 1, 3));
        pool.share(1);
        assert_eq!((pool.holders(0), pool.holders(1), pool.holders(2), pool.holders(9)), (1, 2, 0, 0));
        pool.release(1);
        assert_eq!(pool.available(), 1);
        pool.release(1);
        pool.release(0);
        assert_eq!(pool.available(), 3);
    }

    #[test]
    fn taking_more_than_is_free_takes_nothing() {
        let mut pool = PagePool::new(2).unwrap();
        let mut pages = vec![7];
        let error = pool.take(3, &mut pages).unwrap_err();
        assert!(matches!(error, ModelError::OutOfPages { needed: 3, free: 2, page_tokens: PAGE_TOKENS }));
        assert_eq!((pages.as_slice(), pool.available()), (&[7][..], 2));
    }

    #[test]
    fn pages_that_cannot_be_numbered_are_refused() {
        let error = PagePool::new(1 << 33).unwrap_err();
        assert!(matches!(error, ModelError::TooLarge { .. }));
    }
}
