//! The state of one constrained answer.

use std::sync::Arc;
use std::time::{Duration, Instant};

use llguidance::Matcher;
use toktrie::TokenizerEnv;

use super::vocabulary::Vocabulary;
use crate::EngineError;

/// A mask that takes this long is a walk through much of the vocabulary: to look at the likeliest tokens one by one is faster.
const LONG: Duration = Duration::from_micros(80);
/// Tokens that are chosen without a mask before there is one again, and the time that looking may take meanwhile. A mask renews
/// what the matcher may spend, 200,000 steps of about 100 ns, and tells whether masks still take long.
const UNMASKED: (u32, Duration) = (8, Duration::from_millis(1));

/// How far an answer has got in its grammar. A clone goes on from the same place, and shares what has been computed of
/// the automata; it does not share its state.
#[derive(Clone)]
pub(crate) struct Constraint {
    matcher: Matcher,
    vocabulary: Arc<Vocabulary>,
    /// Control tokens that may come where the grammar names them.
    permitted: Vec<u32>,
    /// How long the last mask took.
    mask_took: Duration,
    /// Tokens since, and how long looking took.
    unmasked: (u32, Duration),
}

impl Constraint {
    pub(super) fn new(matcher: Matcher, vocabulary: Arc<Vocabulary>) -> Self {
        let (mask_took, unmasked) = (Duration::ZERO, (0, Duration::ZERO));
        Self { matcher, vocabulary, permitted: Vec::new(), mask_took, unmasked }
    }

    /// Lets these control tokens come where the grammar names them; no other ever comes.
    pub(crate) fn permitting(mut self, control: &[u32]) -> Self {
        self.permitted = control.to_vec();
        self
    }

    /// A clone that shares nothing: what one answer computes is no cost and no limit to another.
    pub(super) fn fresh(&self) -> Self {
        Self {
            matcher: self.matcher.deep_clone(),
            vocabulary: Arc::clone(&self.vocabulary),
            permitted: self.permitted.clone(),
            ..*self
        }
    }

    /// Sets the logits of tokens that can't come next to minus infinity. `logits`: `[vocab]` of the model; rows that
    /// the tokenizer has no tokens for are never allowed.
    ///
    /// # Errors
    /// [`EngineError::ConstraintFailed`] where the grammar leaves no token at all, or takes too much time or memory.
    pub(crate) fn mask(&mut self, logits: &mut [f32]) -> Result<(), EngineError> {
        let started = Instant::now();
        let mut allowed = self.matcher.compute_mask_or_eos().map_err(failed)?;
        let ends = self.matcher.is_stopped() || self.matcher.is_accepting().map_err(failed)?;
        // Whatever the matcher says: control tokens only where they are meant, and ends only where the grammar ends.
        let named: Vec<u32> = self.permitted.iter().copied().filter(|&id| allowed.is_allowed(id)).collect();
        allowed.and(self.vocabulary.text());
        named.into_iter().for_each(|id| allowed.allow_token(id));
        if ends {
            self.vocabulary.ends().iter().for_each(|&id| allowed.allow_token(id));
        }
        if allowed.first_bit_set().is_none_or(|first| first >= logits.len()) {
            return Err(failed("no token can come next"));
        }
        let words = allowed.as_slice().iter().copied().chain(std::iter::repeat(0));
        for (logits, word) in logits.chunks_mut(u32::BITS as usize).zip(words) {
            if word == u32::MAX {
                continue;
            }
            for (bit, logit) in logits.iter_mut().enumerate() {
                if word & (1 << bit) == 0 {
                    *logit = f32::NEG_INFINITY;
                }
            }
        }
        self.mask_took = started.elapsed();
        self.unmasked = (0, Duration::ZERO);
        Ok(())
    }

    /// Whether looking at a few tokens with [`allows`](Self::allows) is worth trying before a [`mask`](Self::mask). What is
    /// allowed is the same either way.
    pub(crate) fn is_worth_looking(&self) -> bool {
        let (tokens, took) = UNMASKED;
        self.mask_took >= LONG && self.unmasked.0 < tokens && self.unmasked.1 < took
    }

    /// Whether a token may come next.
    ///
    /// # Errors
    /// [`EngineError::ConstraintFailed`] where the matcher failed.
    pub(crate) fn allows(&mut self, id: u32) -> Result<bool, EngineError> {
        let started = Instant::now();
        let allows = self.allowed(&[id])? > 0;
        self.unmasked.1 += started.elapsed();
        Ok(allows)
    }

    /// Goes on by a token that was chosen.
    ///
    /// # Errors
    /// [`EngineError::TokenNotAllowed`] for one that [`mask`](Self::mask) forbids, after which the state is what it was;
    /// [`EngineError::ConstraintFailed`] where the matcher failed.
    pub(crate) fn accept(&mut self, id: u32) -> Result<(), EngineError> {
        if self.allowed(&[id])? == 0 {
            return Err(EngineError::TokenNotAllowed { id });
        }
        if self.matcher.is_stopped() {
            return Ok(());
        }
        self.unmasked.0 += 1;
        self.matcher.consume_token(id).map_err(failed)
    }

    /// Whether the answer is complete and nothing but its end may follow.
    pub(crate) fn is_complete(&self) -> bool {
        !self.matcher.is_error() && self.matcher.is_stopped()
    }

    /// How many of these tokens, taken one after the other, may come next. The state stays what it is. A token that ends
    /// the answer is the last that counts.
    ///
    /// # Errors
    /// [`EngineError::ConstraintFailed`] where the matcher failed.
    pub(crate) fn allowed(&mut self, ids: &[u32]) -> Result<usize, EngineError> {
        let ends = self.vocabulary.ends();
        if self.matcher.is_stopped() && !self.matcher.is_error() {
            return Ok(usize::from(ids.first().is_some_and(|id| ends.contains(id))));
        }
        // Ids that are no text, or none of this vocabulary, must not reach the matcher.
        let tokens = self.vocabulary.tok_trie().vocab_size();
        let known = |id: &u32| {
            (*id as usize) < tokens
                && (ends.contains(id)
                    || self.permitted.contains(id)
                    || self.vocabulary.text().is_allowed(*id))
        };
        let count = ids.iter().take_while(|id| known(id)).count();
        self.matcher.validate_tokens(ids.get(..count).unwrap_or_default()).map_err(failed)
    }
}

/// The matcher's errors go on with its whole state; the reason comes first.
fn failed(error: impl ToString) -> EngineError {
    EngineError::ConstraintFailed { reason: super::compiler::reason(&error.to_string()) }
}
