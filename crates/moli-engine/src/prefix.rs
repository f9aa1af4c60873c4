//! Which pages hold the keys and values of which beginnings of texts.
//!
//! A tree of pages: a node is a page whose tokens follow its parent's. What two texts share is found by the tokens
//! themselves, so a hit is never a mistake; the keys of one adapter never meet those of another. The last page of a text may
//! be partly filled: a prompt that goes on differently in the middle of a page uses the beginning of that page too, and
//! copies it before it writes.
//!
//! The cache holds a reference to each of its pages and at most a fixed number of them. What was used longest ago goes
//! first, leaves before the pages that they stand on.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use moli_model::{PAGE_TOKENS, PagePool};

/// A node; the numbers are never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct NodeId(u64);

/// What a node stands on: the beginning of a text read with this adapter, or another page.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Parent {
    /// What tells the adapters and their scales from others; 0: none.
    Root(u64),
    Node(NodeId),
}

#[derive(Debug)]
struct Node {
    page: u32,
    parent: Parent,
    /// 1 to [`PAGE_TOKENS`] of them.
    tokens: Vec<u32>,
    children: usize,
    last_used: u64,
}

/// What a lookup found.
#[derive(Debug)]
pub(crate) struct Found {
    /// Tokens whose keys and values are in the pages.
    pub(crate) tokens: usize,
    /// What a further whole page would stand on.
    pub(crate) parent: Parent,
}

#[derive(Debug)]
pub(crate) struct PrefixCache {
    nodes: HashMap<NodeId, Node>,
    /// Sorted by tokens, so that the page that shares most of a text's next tokens is a neighbour of them.
    index: BTreeMap<(Parent, Vec<u32>), NodeId>,
    /// Nodes that nothing stands on, those used longest ago first.
    leaves: BTreeSet<(u64, NodeId)>,
    limit: usize,
    clock: u64,
    next_id: u64,
}

impl PrefixCache {
    /// A cache of at most `limit` pages.
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            nodes: HashMap::new(),
            index: BTreeMap::new(),
            leaves: BTreeSet::new(),
            limit,
            clock: 0,
            next_id: 0,
        }
    }

    /// Pages that it holds.
    pub(crate) fn pages(&self) -> usize {
        self.nodes.len()
    }

    /// The pages that it holds.
    #[cfg(test)]
    pub(crate) fn held(&self) -> impl Iterator<Item = u32> + '_ {
        self.nodes.values().map(|node| node.page)
    }

    /// The most pages that it holds.
    #[cfg(test)]
    pub(crate) fn limit(&self) -> usize {
        self.limit
    }

    /// Pages that it alone holds: they could be had by evicting.
    pub(crate) fn evictable(&self, pool: &PagePool) -> usize {
        self.nodes.values().filter(|node| pool.holders(node.page) == 1).count()
    }

    /// Finds the longest beginning of `tokens` that is here, and appends its pages, each with a holder more, to `pages`.
    pub(crate) fn find(
        &mut self,
        adapter: u64,
        tokens: &[u32],
        pool: &mut PagePool,
        pages: &mut Vec<u32>,
    ) -> Found {
        let mut found = Found { tokens: 0, parent: Parent::Root(adapter) };
        while let Some(rest) = tokens.get(found.tokens..).filter(|rest| !rest.is_empty()) {
            let next = rest.get(..PAGE_TOKENS).unwrap_or(rest);
            let Some((id, common)) = self.nearest(found.parent, next) else { break };
            let Some(page) = self.touch(id) else { break };
            pool.share(page);
            pages.push(page);
            found.tokens += common;
            if common < PAGE_TOKENS {
                break;
            }
            found.parent = Parent::Node(id);
        }
        found
    }

    /// The child that shares most of these tokens, and how many; at least one.
    fn nearest(&self, parent: Parent, tokens: &[u32]) -> Option<(NodeId, usize)> {
        let key = (parent, tokens.to_vec());
        let before = self.index.range(..=&key).next_back();
        let after = self.index.range(&key..).next();
        let shared = |((its_parent, its_tokens), &id): (&(Parent, Vec<u32>), &NodeId)| {
            let common = its_tokens.iter().zip(tokens).take_while(|(a, b)| a == b).count();
            (*its_parent == parent && common > 0).then_some((id, common))
        };
        before.into_iter().chain(after).filter_map(shared).max_by_key(|&(_, common)| common)
    }

    /// Marks a node as just used; gives its page.
    fn touch(&mut self, id: NodeId) -> Option<u32> {
        self.clock += 1;
        let node = self.nodes.get_mut(&id)?;
        if self.leaves.remove(&(node.last_used, id)) {
            self.leaves.insert((self.clock, id));
        }
        node.last_used = self.clock;
        Some(node.page)
    }

    /// Takes note of a page that holds `tokens` after those of `parent`; a page that holds them already stays instead. Gives
    /// what the next page stands on, and its page; `None` where it is not here: the parent is gone, or there is no room.
    pub(crate) fn insert(
        &mut self,
        parent: Parent,
        tokens: &[u32],
        page: u32,
        pool: &mut PagePool,
    ) -> Option<(Parent, u32)> {
        if tokens.is_empty() || tokens.len() > PAGE_TOKENS {
            return None;
        }
        if let Parent::Node(id) = parent {
            self.touch(id)?;
        }
        if let Some((id, common)) = self.nearest(parent, tokens) {
            let theirs = self.nodes.get(&id).map_or(0, |node| node.tokens.len());
            if common == tokens.len() {
                let page = self.touch(id)?;
                return (theirs == tokens.len()).then_some((Parent::Node(id), page));
            }
            if common == theirs {
                // Its tokens are the beginning of these.
                self.remove(id, pool);
            }
        }
        while self.nodes.len() >= self.limit {
            let &(_, oldest) = self.leaves.first()?;
            if Parent::Node(oldest) == parent {
                return None;
            }
            self.remove(oldest, pool);
        }
        let id = NodeId(self.next_id);
        self.next_id += 1;
        self.clock += 1;
        if let Parent::Node(parent) = parent
            && let Some(node) = self.nodes.get_mut(&parent)
        {
            node.children += 1;
            self.leaves.remove(&(node.last_used, parent));
        }
        pool.share(page);
        self.index.insert((parent, tokens.to_vec()), id);
        self.leaves.insert((self.clock, id));
        let node = Node { page, parent, tokens: tokens.to_vec(), children: 0, last_used: self.clock };
        self.nodes.insert(id, node);
        Some((Parent::Node(id), page))
    }

    /// Frees the page, of those that nobody else holds and nothing stands on, that was used longest ago; whether there was one.
    pub(crate) fn evict(&mut self, pool: &mut PagePool) -> bool {
        let unused = |id: &NodeId| self.nodes.get(id).is_some_and(|node| pool.holders(node.page) == 1);
        let oldest = self.leaves.iter().map(|&(_, id)| id).find(unused);
        oldest.inspect(|&id| self.remove(id, pool)).is_some()
    }

    /// Gives up a page that something else holds and nothing stands on; whether it was here.
    pub(crate) fn give_up(&mut self, page: u32, pool: &mut PagePool) -> bool {
        let holds = |id: &NodeId| self.nodes.get(id).is_some_and(|node| node.page == page);
        let leaf = self.leaves.iter().map(|&(_, id)| id).find(holds);
        leaf.inspect(|&id| self.remove(id, pool)).is_some()
    }

    /// Removes a leaf.
    fn remove(&mut self, id: NodeId, pool: &mut PagePool) {
        let Some(node) = self.nodes.remove(&id) else { return };
        self.leaves.remove(&(node.last_used, id));
        self.index.remove(&(node.parent, node.tokens));
        pool.release(node.page);
        if let Parent::Node(parent) = node.parent
            && let Some(above) = self.nodes.get_mut(&parent)
        {
            above.children -= 1;
            if above.children == 0 {
                self.leaves.insert((above.last_used, parent));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const P: usize = PAGE_TOKENS;

    fn text(seed: u32, tokens: usize) -> Vec<u32> {
        (0..tokens as u32).map(|i| seed * 1000 + i).collect()
    }

    /// Puts a text into the cache, on pages of its own where it has none yet, as a sequence that ends does.
    fn keep(cache: &mut PrefixCache, pool: &mut PagePool, adapter: u64, tokens: &[u32]) {
        let mut pages = Vec::new();
        pool.take(tokens.len().div_ceil(P), &mut pages).unwrap();
        let mut parent = Some(Parent::Root(adapter));
        for (tokens, &page) in tokens.chunks(P).zip(&pages) {
            let inserted = parent.and_then(|parent| cache.insert(parent, tokens, page, pool));
            parent = inserted.map(|(parent, _)| parent);
        }
        pages.iter().for_each(|&page| pool.release(page));
    }

    fn found(cache: &mut PrefixCache, pool: &mut PagePool, adapter: u64, tokens: &[u32]) -> usize {
        let mut pages = Vec::new();
        let found = cache.find(adapter, tokens, pool, &mut pages);
        assert_eq!(pages.len(), found.tokens.div_ceil(P));
        pages.iter().for_each(|&page| pool.release(page));
        found.tokens
    }

    #[test]
    fn the_longest_beginning_is_found_to_the_token() {
        let (mut cache, mut pool) = (PrefixCache::new(100), PagePool::new(100).unwrap());
        let long = text(1, 3 * P + 5);
        keep(&mut cache, &mut pool, 0, &long);
        assert_eq!((cache.pages(), pool.available()), (4, 96));
        for tokens in [1, P - 1, P, P + 1, 2 * P + 7, 3 * P + 5] {
            assert_eq!(found(&mut cache, &mut pool, 0, &long[..tokens]), tokens);
        }
        let mut longer = long.clone();
        longer.extend([7; 40]);
        assert_eq!(found(&mut cache, &mut pool, 0, &longer), long.len());
        let mut other = long.clone();
        other[P + 3] = 9;
        assert_eq!(found(&mut cache, &mut pool, 0, &other), P + 3);
        assert_eq!(found(&mut cache, &mut pool, 1, &long), 0);
        assert_eq!(found(&mut cache, &mut pool, 0, &text(2, 9)), 0);
        assert_eq!(pool.available(), 96);
    }

    #[test]
    fn the_neighbour_that_shares_most_is_found() {
        let (mut cache, mut pool) = (PrefixCache::new(100), PagePool::new(100).unwrap());
        for text in [[1, 2, 3], [1, 2, 5], [1, 2, 9], [1, 3, 0], [0, 0, 0]] {
            keep(&mut cache, &mut pool, 0, &text);
        }
        assert_eq!(found(&mut cache, &mut pool, 0, &[1, 2, 5, 7]), 3);
        assert_eq!(found(&mut cache, &mut pool, 0, &[1, 2, 4, 7]), 2);
        assert_eq!(found(&mut cache, &mut pool, 0, &[1, 9]), 1);
        assert_eq!(found(&mut cache, &mut pool, 0, &[2]), 0);
    }

    #[test]
    fn a_page_that_another_begins_with_goes() {
        let (mut cache, mut pool) = (PrefixCache::new(100), PagePool::new(100).unwrap());
        let all = text(1, P);
        keep(&mut cache, &mut pool, 0, &all[..3]);
        keep(&mut cache, &mut pool, 0, &all[..9]);
        assert_eq!(cache.pages(), 1);
        keep(&mut cache, &mut pool, 0, &all[..4]);
        assert_eq!((cache.pages(), found(&mut cache, &mut pool, 0, &all)), (1, 9));
        keep(&mut cache, &mut pool, 0, &all);
        assert_eq!((cache.pages(), found(&mut cache, &mut pool, 0, &all)), (1, P));
        assert_eq!(pool.available(), 99);
    }

    #[test]
    fn the_limit_holds_and_the_oldest_goes_first() {
        let (mut cache, mut pool) = (PrefixCache::new(4), PagePool::new(100).unwrap());
        let (a, b, c) = (text(1, 2 * P), text(2, 2 * P), text(3, P));
        keep(&mut cache, &mut pool, 0, &a);
        keep(&mut cache, &mut pool, 0, &b);
        assert_eq!(found(&mut cache, &mut pool, 0, &a), 2 * P);
        keep(&mut cache, &mut pool, 0, &c);
        assert_eq!((cache.pages(), pool.available()), (4, 96));
        assert_eq!(found(&mut cache, &mut pool, 0, &b), P, "its second page went, the first stays");
        assert_eq!(found(&mut cache, &mut pool, 0, &a), 2 * P);
        // A text longer than the limit keeps its beginning.
        keep(&mut cache, &mut pool, 0, &text(4, 9 * P));
        assert_eq!((cache.pages(), pool.available()), (4, 96));
        assert_eq!(found(&mut cache, &mut pool, 0, &text(4, 9 * P)), 4 * P);
        let mut none = PrefixCache::new(0);
        keep(&mut none, &mut pool, 0, &a);
        assert_eq!((none.pages(), pool.available()), (0, 96));
    }

    #[test]
    fn pages_in_use_are_not_evicted() {
        let (mut cache, mut pool) = (PrefixCache::new(100), PagePool::new(4).unwrap());
        let (a, b) = (text(1, 2 * P), text(2, 2 * P));
        keep(&mut cache, &mut pool, 0, &a);
        keep(&mut cache, &mut pool, 0, &b);
        let mut pages = Vec::new();
        cache.find(0, &a, &mut pool, &mut pages);
        assert_eq!(cache.evictable(&pool), 2);
        assert!(cache.evict(&mut pool) && cache.evict(&mut pool) && !cache.evict(&mut pool));
        assert_eq!(pool.available(), 2);
        assert!(!cache.give_up(pages[0], &mut pool), "the second page stands on it");
        assert!(cache.give_up(pages[1], &mut pool) && cache.give_up(pages[0], &mut pool));
        assert_eq!((cache.pages(), pool.available(), pool.holders(pages[0])), (0, 2, 1));
    }

    #[test]
    fn nothing_stands_on_a_page_that_is_gone() {
        let (mut cache, mut pool) = (PrefixCache::new(1), PagePool::new(9).unwrap());
        let a = text(1, 2 * P);
        let mut pages = Vec::new();
        pool.take(2, &mut pages).unwrap();
        let (first, _) = cache.insert(Parent::Root(0), &a[..P], pages[0], &mut pool).unwrap();
        keep(&mut cache, &mut pool, 0, &text(2, 5));
        assert_eq!(cache.insert(first, &a[P..], pages[1], &mut pool), None);
    }
}
