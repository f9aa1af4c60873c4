//! DRY, "don't repeat yourself": the penalty on continuing a sequence that was there before, as llama.cpp applies it.
//!
//! For each earlier place in the history, how many tokens before it equal the last tokens? A token that stood at such a
//! place would continue a repetition of that length. All lengths come from one pass of the Z-function over the reversed
//! history, so the cost is linear in it.

use std::collections::HashMap;
use std::sync::Arc;

use moli_text::{EncodeOptions, Tokenizer};

use crate::{DryParams, EngineError};

/// No logit goes further down than this: it stays finite whatever the multiplier and the length are.
const MAX_PENALTY: f64 = 1e30;
/// A breaker that takes more tokens than this after its first one is cut there.
const MAX_TAIL: usize = 20;

/// The tokens in which sequence breakers can appear: for each first token what must follow it. An empty rest means that
/// the token holds a whole breaker.
#[derive(Debug, Default)]
pub(crate) struct Breakers {
    tails: HashMap<u32, Vec<Vec<u32>>>,
}

impl Breakers {
    /// Looks at every token of the vocabulary: one that contains a breaker breaks by itself; one that ends with a
    /// beginning of a breaker does so when the tokens of the breaker's rest follow.
    pub(crate) fn new(tokenizer: &Tokenizer, texts: &[String]) -> Result<Self, EngineError> {
        let mut breakers = Self::default();
        // The rests of each text, by the number of bytes that the first token has taken.
        let mut rests: Vec<Vec<Option<Vec<u32>>>> = Vec::with_capacity(texts.len());
        for text in texts {
            let mut rest = vec![None; text.len() + 1];
            for (start, slot) in rest.iter_mut().enumerate().skip(1) {
                if let Some(tail) = text.get(start..).filter(|tail| !tail.is_empty()) {
                    let mut ids = tokenizer.encode(tail, EncodeOptions::default())?;
                    ids.truncate(MAX_TAIL);
                    *slot = Some(ids);
                }
            }
            rests.push(rest);
        }
        for id in 0..tokenizer.vocab_size() as u32 {
            let Some(bytes) = tokenizer.token_bytes(id) else { continue };
            for (text, rest) in texts.iter().zip(&rests) {
                let text = text.as_bytes();
                if bytes.windows(text.len()).any(|window| window == text) {
                    breakers.add(id, Vec::new());
                    continue;
                }
                for (start, tail) in rest.iter().enumerate().take(text.len()) {
                    if let (Some(tail), Some(head)) = (tail, text.get(..start))
                        && bytes.ends_with(head)
                    {
                        breakers.add(id, tail.clone());
                    }
                }
            }
        }
        Ok(breakers)
    }

    fn add(&mut self, id: u32, tail: Vec<u32>) {
        let tails = self.tails.entry(id).or_default();
        if !tails.contains(&tail) {
            tails.push(tail);
        }
    }

    /// Whether the token holds a whole breaker.
    fn is_single(&self, id: u32) -> bool {
        self.tails.get(&id).is_some_and(|tails| tails.iter().any(Vec::is_empty))
    }

    /// How many of the last tokens of `history` come after the latest breaker in it.
    fn since_latest(&self, history: &[u32]) -> usize {
        for after in 0..history.len() {
            let at = history.len() - 1 - after;
            let Some(tails) = history.get(at).and_then(|id| self.tails.get(id)) else { continue };
            let following = history.get(at + 1..).unwrap_or_default();
            let longest = tails.iter().filter(|tail| following.starts_with(tail)).map(Vec::len).max();
            if let Some(longest) = longest {
                return after - longest;
            }
        }
        history.len()
    }
}

/// The stage and its buffers.
#[derive(Debug)]
pub(crate) struct Dry {
    params: DryParams,
    breakers: Arc<Breakers>,
    matches: Vec<usize>,
    /// The longest repetition that each token would continue.
    longest: HashMap<u32, usize>,
}

impl Dry {
    pub(crate) fn new(params: DryParams, breakers: Arc<Breakers>) -> Self {
        Self { params, breakers, matches: Vec::new(), longest: HashMap::new() }
    }

    /// Subtracts the penalties of this history.
    pub(crate) fn apply(&mut self, history: &[u32], logits: &mut [f32]) {
        let start = history.len().saturating_sub(self.params.penalty_last_n);
        let history = history.get(start..).unwrap_or_default();
        if history.len() <= self.params.allowed_length {
            return;
        }
        let limit = self.breakers.since_latest(history);
        if limit < self.params.allowed_length {
            return;
        }
        suffix_matches(history, &mut self.matches);
        self.longest.clear();
        for (&length, &next) in self.matches.iter().zip(history.iter().skip(1)) {
            let length = length.min(limit);
            if length >= self.params.allowed_length {
                let longest = self.longest.entry(next).or_insert(0);
                *longest = length.max(*longest);
            }
        }
        for (&id, &length) in &self.longest {
            if self.breakers.is_single(id) {
                continue;
            }
            if let Some(logit) = logits.get_mut(id as usize) {
                *logit -= penalty(&self.params, length) as f32;
            }
        }
    }
}

/// `multiplier * base ^ (length - allowed_length)`, at most [`MAX_PENALTY`].
fn penalty(params: &DryParams, length: usize) -> f64 {
    let base = f64::from(params.base);
    let mut penalty = f64::from(params.multiplier);
    // A base of 1 never grows; any other reaches the end in as many steps as an f64 has exponents, or a history tokens.
    if base > 1.0 {
        for _ in params.allowed_length..length {
            penalty *= base;
            if penalty >= MAX_PENALTY {
                return MAX_PENALTY;
            }
        }
    }
    penalty
}

/// `out[i]`: how many tokens up to and including `history[i]` equal the last tokens of the history, for all but the last
/// place. The Z-function of the reversed history.
fn suffix_matches(history: &[u32], out: &mut Vec<usize>) {
    let n = history.len();
    out.clear();
    out.resize(n.saturating_sub(1), 0);
    let reversed = |i: usize| n.checked_sub(i + 1).and_then(|i| history.get(i));
    // reversed[left..right] equals the beginning of the reversed history.
    let (mut left, mut right) = (0, 0);
    for i in 1..n {
        let mut length = 0;
        if i < right {
            // reversed place i - left is index n - 1 - (i - left).
            length = out.get(n - 1 - (i - left)).copied().unwrap_or(0).min(right - i);
        }
        while i + length < n && reversed(length) == reversed(i + length) {
            length += 1;
        }
        if i + length > right {
            (left, right) = (i, i + length);
        }
        if let Some(slot) = out.get_mut(n - 1 - i) {
            *slot = length;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn dry(params: DryParams, breakers: &[(u32, &[u32])]) -> Dry {
        let mut set = Breakers::default();
        for (head, tail) in breakers {
            set.add(*head, tail.to_vec());
        }
        Dry::new(params, Arc::new(set))
    }

    fn on() -> DryParams {
        DryParams { multiplier: 1.0, base: 2.0, ..DryParams::default() }
    }

    fn applied(mut dry: Dry, history: &[u32]) -> Vec<f32> {
        let mut logits = vec![0.0; 8];
        dry.apply(history, &mut logits);
        logits
    }

    #[test]
    fn by_hand() {
        // 1 2 3 4 … 1 2 3: a 4 would continue a repetition of three.
        assert_eq!(
            applied(dry(on(), &[]), &[1, 2, 3, 4, 5, 1, 2, 3]),
            [0.0, 0.0, 0.0, 0.0, -2.0, 0.0, 0.0, 0.0]
        );
        // Two are allowed and cost the multiplier; one costs nothing.
        assert_eq!(applied(dry(on(), &[]), &[1, 2, 4, 5, 1, 2])[4], -1.0);
        assert_eq!(applied(dry(on(), &[]), &[2, 4, 5, 2]), [0.0; 8]);
        // The longest counts where a token would continue several.
        let history = [1, 2, 3, 4, 7, 2, 3, 4, 6, 1, 2, 3];
        assert_eq!(applied(dry(on(), &[]), &history)[4], -2.0);
    }

    #[test]
    fn only_the_last_n_are_searched() {
        let history = [1, 2, 3, 4, 5, 1, 2, 3];
        let params = DryParams { penalty_last_n: 6, ..on() };
        assert_eq!(applied(dry(params, &[]), &history), [0.0; 8]);
    }

    #[test]
    fn breakers_end_a_repetition() {
        let history = [1, 2, 3, 4, 5, 1, 2, 3];
        // A breaker at 1: only the two tokens after it count.
        assert_eq!(applied(dry(on(), &[(1, &[])]), &history)[4], -1.0);
        // At 2: one token is left, fewer than allowed.
        assert_eq!(applied(dry(on(), &[(2, &[])]), &history), [0.0; 8]);
        // The sequence 1 2 is a breaker, the sequence 1 3 is not there.
        assert_eq!(applied(dry(on(), &[(1, &[2])]), &history), [0.0; 8]);
        assert_eq!(applied(dry(on(), &[(1, &[3])]), &history)[4], -2.0);
        // A token that is a breaker itself is never penalised.
        assert_eq!(applied(dry(on(), &[(4, &[])]), &history), [0.0; 8]);
    }

    #[test]
    fn a_long_repetition_stays_finite() {
        let params = DryParams { multiplier: 1000.0, base: 100.0, ..DryParams::default() };
        let logits = applied(dry(params, &[]), &[3; 5000]);
        assert!(logits[3].is_finite() && logits[3] < -1e29, "{logits:?}");
    }

    proptest! {
        #[test]
        fn matches_agree_with_counting(history in prop::collection::vec(0_u32..3, 0..60)) {
            let mut out = Vec::new();
            suffix_matches(&history, &mut out);
            let expected: Vec<usize> = (0..history.len().saturating_sub(1)).map(|i| {
                history[..=i].iter().rev().zip(history.iter().rev()).take_while(|(a, b)| a == b).count()
            }).collect();
            prop_assert_eq!(out, expected);
        }
    }
}
