//! Guesses of what comes next, by what came before: prompt lookup (arXiv:2304.04487).
//!
//! A text that repeats its prompt, as code that is edited or a summary that quotes does, goes on where the same tokens went
//! before. The guesses are computed together with the last token, in one pass over the weights, and each is compared with
//! what the sampler chooses from the same logits: a guess can save time, never change an answer.

use std::collections::HashMap;

/// Tokens by which an earlier place is found.
const KEY: usize = 3;
/// Most tokens that are compared backwards, and most places that are compared.
const CONTEXT: usize = 16;
const PLACES: usize = 8;
/// Most guesses of a step.
pub(crate) const MAX_DRAFTS: usize = 15;

/// The places of one timeline's tokens, and how well guessing has gone.
#[derive(Debug)]
pub(crate) struct Lookup {
    /// The latest place after each run of [`KEY`] tokens.
    latest: HashMap<[u32; KEY], u32>,
    /// For each place the one before after the same run; `u32::MAX`: none.
    previous: Vec<u32>,
    /// Guesses of the next step.
    length: usize,
    /// Steps that are still left out, and how many were left out after the last failure.
    pause: usize,
    pauses: usize,
}

impl Lookup {
    pub(crate) fn new() -> Self {
        Self { latest: HashMap::new(), previous: Vec::new(), length: 2, pause: 0, pauses: 0 }
    }

    /// Guesses what follows `tokens`, the timeline so far, into `drafts`.
    pub(crate) fn guess(&mut self, tokens: &[u32], drafts: &mut Vec<u32>) {
        drafts.clear();
        let found = self.find(tokens);
        if self.pause > 0 {
            self.pause -= 1;
            return;
        }
        // After failures only a longer repetition counts.
        let Some((place, common)) = found else { return };
        if common < KEY + self.pauses.min(CONTEXT - KEY) {
            return;
        }
        drafts.extend(tokens.iter().skip(place).take(self.length));
    }

    /// Takes note of how many of the guesses were right.
    pub(crate) fn learn(&mut self, guessed: usize, right: usize) {
        if guessed == 0 {
            return;
        }
        if right == guessed {
            self.length = (self.length * 2).min(MAX_DRAFTS);
            self.pauses = 0;
        } else if right * 2 >= guessed {
            self.length = (right + 1).clamp(2, MAX_DRAFTS);
            self.pauses = 0;
        } else {
            self.length = 2;
            self.pauses = (self.pauses * 2 + 1).min(64);
            self.pause = self.pauses;
        }
    }

    /// The place after the earlier run that shares most tokens with the end, and how many.
    fn find(&mut self, tokens: &[u32]) -> Option<(usize, usize)> {
        // Place `p` follows tokens `p - KEY..p`; the end itself is not a place yet.
        if self.previous.len() > tokens.len() {
            self.latest.clear();
            self.previous.clear();
        }
        for place in self.previous.len()..tokens.len() {
            let run = place.checked_sub(KEY).and_then(|start| tokens.get(start..place));
            let before = run.and_then(|run| self.latest.insert(run.try_into().ok()?, place as u32));
            self.previous.push(before.unwrap_or(u32::MAX));
        }
        let end: [u32; KEY] = tokens.last_chunk().copied()?;
        let mut place = self.latest.get(&end).copied();
        let mut best = None;
        for _ in 0..PLACES {
            let Some(at) = place.map(|place| place as usize) else { break };
            let common = common_end(tokens.get(..at).unwrap_or_default(), tokens);
            if best.is_none_or(|(_, most)| common > most) {
                best = Some((at, common));
            }
            place = self.previous.get(at).copied().filter(|&place| place != u32::MAX);
        }
        best
    }
}

/// How many tokens the ends share.
fn common_end(a: &[u32], b: &[u32]) -> usize {
    a.iter().rev().zip(b.iter().rev()).take(CONTEXT).take_while(|(a, b)| a == b).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guess(lookup: &mut Lookup, tokens: &[u32]) -> Vec<u32> {
        let mut drafts = Vec::new();
        lookup.guess(tokens, &mut drafts);
        drafts
    }

    #[test]
    fn a_repetition_goes_on_as_before() {
        let mut lookup = Lookup::new();
        assert_eq!(guess(&mut lookup, &[1, 2, 3, 4, 5, 9, 1, 2, 3]), [4, 5]);
        lookup.learn(2, 2);
        assert_eq!(guess(&mut lookup, &[1, 2, 3, 4, 5, 9, 1, 2, 3, 4, 5, 9]), [1, 2, 3, 4]);
        assert!(guess(&mut lookup, &[1, 2, 3, 4, 5, 9, 1, 2, 3, 4, 5, 7]).is_empty());
        assert!(guess(&mut Lookup::new(), &[1, 2]).is_empty());
        assert!(guess(&mut Lookup::new(), &[]).is_empty());
    }

    #[test]
    fn the_longer_repetition_wins() {
        let tokens = [8, 1, 2, 3, 100, 7, 1, 2, 3, 200, 8, 1, 2, 3];
        assert_eq!(guess(&mut Lookup::new(), &tokens)[0], 100);
    }

    #[test]
    fn failures_make_it_pause_and_want_more() {
        let mut lookup = Lookup::new();
        let mut tokens = vec![9, 1, 2, 3, 4, 5, 1, 2, 3];
        assert_eq!(guess(&mut lookup, &tokens), [4, 5]);
        lookup.learn(2, 0);
        assert!(guess(&mut lookup, &tokens).is_empty(), "it pauses");
        assert!(guess(&mut lookup, &tokens).is_empty(), "three tokens are not enough now");
        tokens.extend([7, 9, 1, 2, 3]);
        assert_eq!(guess(&mut lookup, &tokens)[..2], [4, 5]);
    }

    #[test]
    fn tokens_that_became_fewer_are_read_anew() {
        let mut lookup = Lookup::new();
        guess(&mut lookup, &[1, 2, 3, 4, 5, 6, 7, 8, 9]);
        assert_eq!(guess(&mut lookup, &[5, 6, 7, 1, 5, 6, 7]), [1, 5]);
    }
}
