//! Prompt lookup (arXiv:2304.04487): where the last tokens stood before, what followed them then follows them now.

use std::collections::HashMap;

use super::Chance;

/// Tokens by which an earlier place is found.
const KEY: usize = 3;
/// Most tokens that are compared backwards, and most places that are compared.
const CONTEXT: usize = 16;
const PLACES: usize = 8;

/// Repetitions are told apart by their length, since a longer one is likelier to go on: the shortest of each kind, with the
/// probability that is assumed before there is experience.
const KINDS: [(usize, f64); 6] = [(KEY, 0.2), (4, 0.3), (5, 0.4), (7, 0.5), (10, 0.65), (CONTEXT, 0.8)];

/// The places of one timeline's tokens, and how often what followed once followed again.
#[derive(Debug)]
pub(super) struct Lookup {
    /// The latest place after each run of [`KEY`] tokens.
    latest: HashMap<[u32; KEY], u32>,
    /// For each place the one before after the same run; `u32::MAX`: none.
    previous: Vec<u32>,
    chances: [Chance; KINDS.len()],
    /// The latest repetition that was found.
    found: Option<Repetition>,
}

#[derive(Debug, Clone, Copy)]
struct Repetition {
    /// Tokens there were.
    end: usize,
    /// The place before which the same tokens stand, and how many.
    place: usize,
    common: usize,
}

impl Lookup {
    pub(super) fn new() -> Self {
        Self {
            latest: HashMap::new(),
            previous: Vec::new(),
            chances: KINDS.map(|(_, probability)| Chance::new(probability)),
            found: None,
        }
    }

    /// Forgets all places: the tokens are others now.
    pub(super) fn reset(&mut self) {
        self.latest.clear();
        self.previous.clear();
        self.found = None;
    }

    /// Looks for a repetition at the end of `tokens`, the timeline so far, and gives the probability that each of its next
    /// `most` tokens is chosen if all before it are.
    pub(super) fn find(&mut self, tokens: &[u32], most: usize) -> impl Iterator<Item = f64> + '_ {
        self.learn(tokens);
        self.found = self.longest(tokens);
        let common = self.found.map(|found| found.common);
        let chances = &self.chances;
        common
            .into_iter()
            .flat_map(move |common| (common..common + most).map(move |common| chance_of(chances, common)))
    }

    /// The next `count` tokens of the repetition that was found.
    pub(super) fn guess(&self, tokens: &[u32], count: usize, drafts: &mut Vec<u32>) {
        let Some(found) = self.found else { return };
        for place in found.place..found.place + count {
            // A repetition that reaches the end goes round.
            let token = tokens.get(place).or_else(|| drafts.get(place.checked_sub(tokens.len())?)).copied();
            drafts.extend(token);
        }
    }

    /// Compares what followed with what was found, guessed or not: experience costs nothing.
    fn learn(&mut self, tokens: &[u32]) {
        let Some(found) = self.found.take() else { return };
        let came = tokens.get(found.end..).unwrap_or_default();
        let expected = tokens.get(found.place..).unwrap_or_default();
        for (i, (came, expected)) in came.iter().zip(expected).enumerate() {
            if let Some(chance) = self.chances.get_mut(kind(found.common + i)) {
                chance.learn(came == expected);
            }
            if came != expected {
                break;
            }
        }
    }

    /// The place after the earlier run that shares most tokens with the end.
    fn longest(&mut self, tokens: &[u32]) -> Option<Repetition> {
        // Place `p` follows tokens `p - KEY..p`; the end itself is not a place yet.
        if self.previous.len() > tokens.len() {
            self.reset();
        }
        for place in self.previous.len()..tokens.len() {
            let run = place.checked_sub(KEY).and_then(|start| tokens.get(start..place));
            let before = run.and_then(|run| self.latest.insert(run.try_into().ok()?, place as u32));
            self.previous.push(before.unwrap_or(u32::MAX));
        }
        let end: [u32; KEY] = tokens.last_chunk().copied()?;
        let mut place = self.latest.get(&end).copied();
        let mut best: Option<Repetition> = None;
        for _ in 0..PLACES {
            let Some(at) = place.map(|place| place as usize) else { break };
            let common = common_end(tokens.get(..at).unwrap_or_default(), tokens);
            if best.is_none_or(|best| common > best.common) {
                best = Some(Repetition { end: tokens.len(), place: at, common });
            }
            place = self.previous.get(at).copied().filter(|&place| place != u32::MAX);
        }
        best
    }
}

/// The index of the kind of a repetition of `common` tokens.
fn kind(common: usize) -> usize {
    KINDS.partition_point(|&(shortest, _)| shortest <= common).saturating_sub(1)
}

fn chance_of(chances: &[Chance], common: usize) -> f64 {
    chances.get(kind(common)).map_or(0.0, Chance::probability)
}

/// How many tokens the ends share.
fn common_end(a: &[u32], b: &[u32]) -> usize {
    a.iter().rev().zip(b.iter().rev()).take(CONTEXT).take_while(|(a, b)| a == b).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guess(lookup: &mut Lookup, tokens: &[u32], count: usize) -> Vec<u32> {
        lookup.find(tokens, count).for_each(drop);
        let mut drafts = Vec::new();
        lookup.guess(tokens, count, &mut drafts);
        drafts
    }

    fn chances(lookup: &mut Lookup, tokens: &[u32]) -> Vec<f64> {
        lookup.find(tokens, 2).collect()
    }

    #[test]
    fn a_repetition_goes_on_as_before() {
        let mut lookup = Lookup::new();
        assert_eq!(guess(&mut lookup, &[1, 2, 3, 4, 5, 9, 1, 2, 3], 2), [4, 5]);
        assert_eq!(guess(&mut lookup, &[1, 2, 3, 4, 5, 9, 1, 2, 3, 4, 5, 9], 4), [1, 2, 3, 4]);
        assert!(guess(&mut lookup, &[1, 2, 3, 4, 5, 9, 1, 2, 3, 4, 5, 7], 4).is_empty());
        assert!(guess(&mut Lookup::new(), &[1, 2], 4).is_empty());
        assert!(guess(&mut Lookup::new(), &[], 4).is_empty());
    }

    #[test]
    fn a_loop_goes_round() {
        assert_eq!(guess(&mut Lookup::new(), &[7, 8, 9, 7, 8, 9], 7), [7, 8, 9, 7, 8, 9, 7]);
        assert_eq!(guess(&mut Lookup::new(), &[7, 7, 7, 7], 3), [7, 7, 7]);
    }

    #[test]
    fn the_longer_repetition_wins() {
        let tokens = [8, 1, 2, 3, 100, 7, 1, 2, 3, 200, 8, 1, 2, 3];
        assert_eq!(guess(&mut Lookup::new(), &tokens, 1), [100]);
    }

    #[test]
    fn it_learns_from_what_it_did_not_guess() {
        let mut lookup = Lookup::new();
        let mut tokens = vec![1, 2, 3, 4, 5, 9, 1, 2, 3];
        let at_first = chances(&mut lookup, &tokens);
        assert!(at_first[0] < at_first[1], "a longer repetition is likelier to go on: {at_first:?}");
        // It goes on for two tokens, then ends.
        tokens.extend([4, 5, 8]);
        assert!(chances(&mut lookup, &tokens).is_empty());
        tokens.extend([1, 2, 3]);
        let later = chances(&mut lookup, &tokens);
        assert!(later[0] > at_first[0] && later[1] > at_first[1], "{at_first:?} {later:?}");
        // It does not go on at all.
        tokens.extend([7, 7, 1, 2, 3]);
        let last = chances(&mut lookup, &tokens);
        assert!(last[0] < later[0] && last[1] == later[1], "{later:?} {last:?}");
    }

    #[test]
    fn tokens_that_became_fewer_are_read_anew() {
        let mut lookup = Lookup::new();
        guess(&mut lookup, &[1, 2, 3, 4, 5, 6, 7, 8, 9], 2);
        assert_eq!(guess(&mut lookup, &[5, 6, 7, 1, 5, 6, 7], 2), [1, 5]);
    }
}
