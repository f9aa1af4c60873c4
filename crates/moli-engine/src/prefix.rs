//! Which pages hold the keys and values of which beginnings of texts.
//!
//! A tree of pages: a node is a page whose tokens follow its parent's. What two texts share is found by the tokens
//! themselves, so a hit is never a mistake; the keys of one adapter never meet those of another. The last page of a text may
//! be partly filled: a prompt that goes on differently in the middle of a page uses the beginning of that page too, and
//! copies it before it writes.
//!
//! The cache holds a reference to each of its pages and at most a fixed number of them. What was used longest ago goes
//! first, leaves before the pages that they stand on.
//!
//! Of a model whose layers carry a state, the beginning of a text is of use only where the state at its end is known. A state
//! is large, so only some nodes have one: that after all of their tokens. Such a model finds the longest beginning that ends
//! at one of these.

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

/// What the nodes' pages and states are of.
#[derive(Debug)]
pub(crate) struct Pools {
    /// KV pages.
    pub(crate) pages: PagePool,
    /// Slots of states; none of a model whose layers carry none.
    pub(crate) states: PagePool,
}

impl Pools {
    /// Whether there is something to remember at the end of a text beside its pages.
    pub(crate) fn stateful(&self) -> bool {
        self.states.total() > 0
    }
}

#[derive(Debug)]
struct Node {
    page: u32,
    /// The state after its tokens.
    state: Option<u32>,
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
    /// The state after them, with a holder more, where it was asked for and there are any.
    pub(crate) state: Option<u32>,
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

    /// The states that it holds.
    #[cfg(test)]
    pub(crate) fn held_states(&self) -> impl Iterator<Item = u32> + '_ {
        self.nodes.values().filter_map(|node| node.state)
    }

    /// The most pages that it holds.
    #[cfg(test)]
    pub(crate) fn limit(&self) -> usize {
        self.limit
    }

    /// Pages that it alone holds: they could be had by evicting.
    pub(crate) fn evictable(&self, pools: &Pools) -> usize {
        self.nodes.values().filter(|node| pools.pages.holders(node.page) == 1).count()
    }

    /// Finds the longest beginning of `tokens` that is here, and appends its pages, each with a holder more, to `pages`. Of
    /// a model whose layers carry a state, it ends where that is known.
    pub(crate) fn find(
        &mut self,
        adapter: u64,
        tokens: &[u32],
        pools: &mut Pools,
        pages: &mut Vec<u32>,
    ) -> Found {
        let mut path = self.path(adapter, tokens);
        let mut state = None;
        if pools.stateful() {
            // The state of a node is that after all of its tokens.
            let known = |&(id, common): &(NodeId, usize)| {
                self.nodes.get(&id).filter(|node| node.tokens.len() == common).and_then(|node| node.state)
            };
            let last = path.iter().rposition(|step| known(step).is_some());
            path.truncate(last.map_or(0, |last| last + 1));
            state = path.last().and_then(known);
        }
        if let Some(state) = state {
            pools.states.share(state);
        }
        Found { state, ..self.hold(adapter, &path, pools, pages) }
    }

    /// [`find`](Self::find) without regard to states: what there is of pages.
    pub(crate) fn find_pages(
        &mut self,
        adapter: u64,
        tokens: &[u32],
        pools: &mut Pools,
        pages: &mut Vec<u32>,
    ) -> Found {
        let path = self.path(adapter, tokens);
        self.hold(adapter, &path, pools, pages)
    }

    /// The nodes that hold the beginning of these tokens, and how many of each node's are among them: all but of the last.
    fn path(&self, adapter: u64, tokens: &[u32]) -> Vec<(NodeId, usize)> {
        let (mut path, mut parent, mut found) = (Vec::new(), Parent::Root(adapter), 0);
        while let Some(rest) = tokens.get(found..).filter(|rest| !rest.is_empty()) {
            let next = rest.get(..PAGE_TOKENS).unwrap_or(rest);
            let Some((id, common)) = self.nearest(parent, next) else { break };
            path.push((id, common));
            found += common;
            if common < PAGE_TOKENS {
                break;
            }
            parent = Parent::Node(id);
        }
        path
    }

    /// Marks the nodes of a path as just used, and appends their pages, each with a holder more.
    fn hold(
        &mut self,
        adapter: u64,
        path: &[(NodeId, usize)],
        pools: &mut Pools,
        pages: &mut Vec<u32>,
    ) -> Found {
        let mut found = Found { tokens: 0, state: None, parent: Parent::Root(adapter) };
        for &(id, common) in path {
            let Some(page) = self.touch(id) else { break };
            pools.pages.share(page);
            pages.push(page);
            found.tokens += common;
            if common == PAGE_TOKENS {
                found.parent = Parent::Node(id);
            }
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
        pools: &mut Pools,
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
                self.remove(id, pools);
            }
        }
        while self.nodes.len() >= self.limit {
            let &(_, oldest) = self.leaves.first()?;
            if Parent::Node(oldest) == parent {
                return None;
            }
            self.remove(oldest, pools);
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
        pools.pages.share(page);
        self.index.insert((parent, tokens.to_vec()), id);
        self.leaves.insert((self.clock, id));
        let node =
            Node { page, state: None, parent, tokens: tokens.to_vec(), children: 0, last_used: self.clock };
        self.nodes.insert(id, node);
        Some((Parent::Node(id), page))
    }

    /// Takes note of the state after a node's tokens, or that it is not to be kept any longer.
    pub(crate) fn remember(&mut self, node: Parent, state: Option<u32>, pools: &mut Pools) {
        let Parent::Node(id) = node else { return };
        let Some(node) = self.nodes.get_mut(&id) else { return };
        // Who comes first: they are the same bits.
        if state.is_some() && node.state.is_some() {
            return;
        }
        if let Some(state) = state {
            pools.states.share(state);
        }
        if let Some(old) = std::mem::replace(&mut node.state, state) {
            pools.states.release(old);
        }
    }

    /// Frees the state, of those that nobody else holds, that was used longest ago; whether there was one.
    pub(crate) fn evict_state(&mut self, pools: &mut Pools) -> bool {
        let alone = |node: &Node| node.state.is_some_and(|state| pools.states.holders(state) == 1);
        let oldest = self.nodes.iter().filter(|(_, node)| alone(node)).min_by_key(|(_, node)| node.last_used);
        let Some(id) = oldest.map(|(&id, _)| id) else { return false };
        self.remember(Parent::Node(id), None, pools);
        true
    }

    /// Frees the page, of those that nobody else holds and nothing stands on, that was used longest ago; whether there was one.
    pub(crate) fn evict(&mut self, pools: &mut Pools) -> bool {
        let unused = |id: &NodeId| self.nodes.get(id).is_some_and(|node| pools.pages.holders(node.page) == 1);
        let oldest = self.leaves.iter().map(|&(_, id)| id).find(unused);
        oldest.inspect(|&id| self.remove(id, pools)).is_some()
    }

    /// Gives up a page that something else holds and nothing stands on; whether it was here.
    pub(crate) fn give_up(&mut self, page: u32, pools: &mut Pools) -> bool {
        let holds = |id: &NodeId| self.nodes.get(id).is_some_and(|node| node.page == page);
        let leaf = self.leaves.iter().map(|&(_, id)| id).find(holds);
        leaf.inspect(|&id| self.remove(id, pools)).is_some()
    }

    /// Removes a leaf.
    fn remove(&mut self, id: NodeId, pools: &mut Pools) {
        let Some(node) = self.nodes.remove(&id) else { return };
        self.leaves.remove(&(node.last_used, id));
        self.index.remove(&(node.parent, node.tokens));
        pools.pages.release(node.page);
        if let Some(state) = node.state {
            pools.states.release(state);
        }
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

    fn pools(pages: usize, states: usize) -> Pools {
        Pools { pages: PagePool::new(pages).unwrap(), states: PagePool::new(states).unwrap() }
    }

    fn text(seed: u32, tokens: usize) -> Vec<u32> {
        (0..tokens as u32).map(|i| seed * 1000 + i).collect()
    }

    /// Puts a text into the cache, on pages of its own where it has none yet, as a sequence that ends does.
    fn keep(cache: &mut PrefixCache, pools: &mut Pools, adapter: u64, tokens: &[u32]) {
        let mut pages = Vec::new();
        pools.pages.take(tokens.len().div_ceil(P), &mut pages).unwrap();
        let mut parent = Some(Parent::Root(adapter));
        for (tokens, &page) in tokens.chunks(P).zip(&pages) {
            let inserted = parent.and_then(|parent| cache.insert(parent, tokens, page, pools));
            parent = inserted.map(|(parent, _)| parent);
        }
        pages.iter().for_each(|&page| pools.pages.release(page));
    }

    fn found(cache: &mut PrefixCache, pools: &mut Pools, adapter: u64, tokens: &[u32]) -> usize {
        let mut pages = Vec::new();
        let found = cache.find(adapter, tokens, pools, &mut pages);
        assert_eq!(pages.len(), found.tokens.div_ceil(P));
        pages.iter().for_each(|&page| pools.pages.release(page));
        found.tokens
    }

    #[test]
    fn the_longest_beginning_is_found_to_the_token() {
        let (mut cache, mut pools) = (PrefixCache::new(100), pools(100, 0));
        let long = text(1, 3 * P + 5);
        keep(&mut cache, &mut pools, 0, &long);
        assert_eq!((cache.pages(), pools.pages.available()), (4, 96));
        for tokens in [1, P - 1, P, P + 1, 2 * P + 7, 3 * P + 5] {
            assert_eq!(found(&mut cache, &mut pools, 0, &long[..tokens]), tokens);
        }
        let mut longer = long.clone();
        longer.extend([7; 40]);
        assert_eq!(found(&mut cache, &mut pools, 0, &longer), long.len());
        let mut other = long.clone();
        other[P + 3] = 9;
        assert_eq!(found(&mut cache, &mut pools, 0, &other), P + 3);
        assert_eq!(found(&mut cache, &mut pools, 1, &long), 0);
        assert_eq!(found(&mut cache, &mut pools, 0, &text(2, 9)), 0);
        assert_eq!(pools.pages.available(), 96);
    }

    #[test]
    fn the_neighbour_that_shares_most_is_found() {
        let (mut cache, mut pools) = (PrefixCache::new(100), pools(100, 0));
        for text in [[1, 2, 3], [1, 2, 5], [1, 2, 9], [1, 3, 0], [0, 0, 0]] {
            keep(&mut cache, &mut pools, 0, &text);
        }
        assert_eq!(found(&mut cache, &mut pools, 0, &[1, 2, 5, 7]), 3);
        assert_eq!(found(&mut cache, &mut pools, 0, &[1, 2, 4, 7]), 2);
        assert_eq!(found(&mut cache, &mut pools, 0, &[1, 9]), 1);
        assert_eq!(found(&mut cache, &mut pools, 0, &[2]), 0);
    }

    #[test]
    fn a_page_that_another_begins_with_goes() {
        let (mut cache, mut pools) = (PrefixCache::new(100), pools(100, 0));
        let all = text(1, P);
        keep(&mut cache, &mut pools, 0, &all[..3]);
        keep(&mut cache, &mut pools, 0, &all[..9]);
        assert_eq!(cache.pages(), 1);
        keep(&mut cache, &mut pools, 0, &all[..4]);
        assert_eq!((cache.pages(), found(&mut cache, &mut pools, 0, &all)), (1, 9));
        keep(&mut cache, &mut pools, 0, &all);
        assert_eq!((cache.pages(), found(&mut cache, &mut pools, 0, &all)), (1, P));
        assert_eq!(pools.pages.available(), 99);
    }

    #[test]
    fn the_limit_holds_and_the_oldest_goes_first() {
        let (mut cache, mut pools) = (PrefixCache::new(4), pools(100, 0));
        let (a, b, c) = (text(1, 2 * P), text(2, 2 * P), text(3, P));
        keep(&mut cache, &mut pools, 0, &a);
        keep(&mut cache, &mut pools, 0, &b);
        assert_eq!(found(&mut cache, &mut pools, 0, &a), 2 * P);
        keep(&mut cache, &mut pools, 0, &c);
        assert_eq!((cache.pages(), pools.pages.available()), (4, 96));
        assert_eq!(found(&mut cache, &mut pools, 0, &b), P, "its second page went, the first stays");
        assert_eq!(found(&mut cache, &mut pools, 0, &a), 2 * P);
        // A text longer than the limit keeps its beginning.
        keep(&mut cache, &mut pools, 0, &text(4, 9 * P));
        assert_eq!((cache.pages(), pools.pages.available()), (4, 96));
        assert_eq!(found(&mut cache, &mut pools, 0, &text(4, 9 * P)), 4 * P);
        let mut none = PrefixCache::new(0);
        keep(&mut none, &mut pools, 0, &a);
        assert_eq!((none.pages(), pools.pages.available()), (0, 96));
    }

    #[test]
    fn pages_in_use_are_not_evicted() {
        let (mut cache, mut pools) = (PrefixCache::new(100), pools(4, 0));
        let (a, b) = (text(1, 2 * P), text(2, 2 * P));
        keep(&mut cache, &mut pools, 0, &a);
        keep(&mut cache, &mut pools, 0, &b);
        let mut pages = Vec::new();
        cache.find(0, &a, &mut pools, &mut pages);
        assert_eq!(cache.evictable(&pools), 2);
        assert!(cache.evict(&mut pools) && cache.evict(&mut pools) && !cache.evict(&mut pools));
        assert_eq!(pools.pages.available(), 2);
        assert!(!cache.give_up(pages[0], &mut pools), "the second page stands on it");
        assert!(cache.give_up(pages[1], &mut pools) && cache.give_up(pages[0], &mut pools));
        assert_eq!((cache.pages(), pools.pages.available(), pools.pages.holders(pages[0])), (0, 2, 1));
    }

    #[test]
    fn nothing_stands_on_a_page_that_is_gone() {
        let (mut cache, mut pools) = (PrefixCache::new(1), pools(9, 0));
        let a = text(1, 2 * P);
        let mut pages = Vec::new();
        pools.pages.take(2, &mut pages).unwrap();
        let (first, _) = cache.insert(Parent::Root(0), &a[..P], pages[0], &mut pools).unwrap();
        keep(&mut cache, &mut pools, 0, &text(2, 5));
        assert_eq!(cache.insert(first, &a[P..], pages[1], &mut pools), None);
    }

    /// Puts a text into the cache with states after so many of its pages, whole or not.
    fn keep_with_states(cache: &mut PrefixCache, pools: &mut Pools, tokens: &[u32], after: &[usize]) {
        let mut pages = Vec::new();
        pools.pages.take(tokens.len().div_ceil(P), &mut pages).unwrap();
        let mut parent = Parent::Root(0);
        for ((tokens, &page), count) in tokens.chunks(P).zip(&pages).zip(1..) {
            (parent, _) = cache.insert(parent, tokens, page, pools).unwrap();
            if after.contains(&count) {
                let mut state = Vec::new();
                pools.states.take(1, &mut state).unwrap();
                cache.remember(parent, Some(state[0]), pools);
                pools.states.release(state[0]);
            }
        }
        pages.iter().for_each(|&page| pools.pages.release(page));
    }

    /// Tokens that are found, and the state after them.
    fn found_state(cache: &mut PrefixCache, pools: &mut Pools, tokens: &[u32]) -> (usize, Option<u32>) {
        let mut pages = Vec::new();
        let found = cache.find(0, tokens, pools, &mut pages);
        assert_eq!(pages.len(), found.tokens.div_ceil(P));
        pages.iter().for_each(|&page| pools.pages.release(page));
        found.state.inspect(|&state| pools.states.release(state));
        (found.tokens, found.state)
    }

    #[test]
    fn a_beginning_ends_where_its_state_is_known() {
        let (mut cache, mut pools) = (PrefixCache::new(100), pools(100, 4));
        let long = text(1, 4 * P + 5);
        keep_with_states(&mut cache, &mut pools, &long, &[2, 5]);
        assert_eq!(pools.states.available(), 2);
        for (tokens, known) in [
            (P, (0, None)),
            (2 * P - 1, (0, None)),
            (2 * P, (2 * P, Some(0))),
            (4 * P, (2 * P, Some(0))),
            // The last page's state is after all five of its tokens.
            (4 * P + 4, (2 * P, Some(0))),
            (4 * P + 5, (4 * P + 5, Some(1))),
        ] {
            assert_eq!(found_state(&mut cache, &mut pools, &long[..tokens]), known, "{tokens} tokens");
        }
        let longer = [long.as_slice(), &[7; 40]].concat();
        assert_eq!(found_state(&mut cache, &mut pools, &longer), (4 * P + 5, Some(1)));
        let mut pages = Vec::new();
        assert_eq!(cache.find_pages(0, &longer, &mut pools, &mut pages).tokens, 4 * P + 5);
        pages.drain(..).for_each(|page| pools.pages.release(page));
        // A second state of the same tokens changes nothing.
        let mut other = Vec::new();
        pools.states.take(1, &mut other).unwrap();
        let found = cache.find_pages(0, &long[..2 * P], &mut pools, &mut pages);
        cache.remember(found.parent, Some(other[0]), &mut pools);
        pools.states.release(other[0]);
        assert_eq!(
            (found_state(&mut cache, &mut pools, &long[..2 * P]).1, pools.states.available()),
            (Some(0), 2)
        );
    }

    #[test]
    fn states_in_use_are_not_evicted_and_the_oldest_goes_first() {
        let (mut cache, mut pools) = (PrefixCache::new(100), pools(100, 3));
        let (a, b) = (text(1, 3 * P), text(2, 2 * P));
        keep_with_states(&mut cache, &mut pools, &a, &[1, 3]);
        keep_with_states(&mut cache, &mut pools, &b, &[2]);
        assert_eq!(pools.states.available(), 0);
        let mut pages = Vec::new();
        let held = cache.find(0, &a, &mut pools, &mut pages);
        assert_eq!((held.tokens, held.state), (3 * P, Some(1)));
        assert!(cache.evict_state(&mut pools));
        assert_eq!(found_state(&mut cache, &mut pools, &b), (0, None), "it was used longest ago");
        assert!(cache.evict_state(&mut pools) && !cache.evict_state(&mut pools));
        assert_eq!(
            (pools.states.available(), found_state(&mut cache, &mut pools, &a)),
            (2, (3 * P, Some(1)))
        );
        pools.states.release(1);
        pages.iter().for_each(|&page| pools.pages.release(page));
        assert!(cache.evict_state(&mut pools));
        assert_eq!((pools.states.available(), found_state(&mut cache, &mut pools, &a)), (3, (0, None)));
        // A page takes its state along.
        keep_with_states(&mut cache, &mut pools, &text(3, 5), &[1]);
        while cache.evict(&mut pools) {}
        assert_eq!((cache.pages(), pools.states.available(), pools.pages.available()), (0, 3, 100));
    }
}
