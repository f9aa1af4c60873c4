//! The state of one constrained answer.

use std::sync::Arc;

use llguidance::Matcher;
use toktrie::TokenizerEnv;

use super::vocabulary::Vocabulary;
use crate::EngineError;

/// Nodes of the vocabulary's tree from which on a mask is a long walk, some 50 microseconds: to look at the likeliest tokens one by
/// one is faster then.
const WALKED: usize = 8_000;
/// Tokens that may be chosen without a mask before there is one again: a mask renews what the matcher may spend on new states
/// (200,000), and tells whether the walk is still long.
const LOOKS: u32 = 7;
/// What may have been spent since the mask before, and with the last one, so that the looks until the next one will not use up what
/// there is.
const SPENT: u64 = 20_000;

/// How far an answer has got in its grammar. A clone goes on from the same place, and shares what has been computed of
/// the automata; it does not share its state.
#[derive(Clone)]
pub(crate) struct Constraint {
    matcher: Matcher,
    vocabulary: Arc<Vocabulary>,
    /// Control tokens that may come where the grammar names them.
    permitted: Vec<u32>,
    /// Tokens that may still be chosen without a mask.
    looks: u32,
}

impl Constraint {
    pub(super) fn new(matcher: Matcher, vocabulary: Arc<Vocabulary>) -> Self {
        Self { matcher, vocabulary, permitted: Vec::new(), looks: 0 }
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
        let step = self.matcher.last_step_stats().map_err(failed)?;
        let is_worth_it = step.trie_nodes_walked >= WALKED && step.lexer_cost <= SPENT;
        self.looks = if is_worth_it { LOOKS } else { 0 };
        Ok(())
    }

    /// Whether the next token may be found by looking at the likeliest with [`allows`](Self::allows), which is worth trying before
    /// a [`mask`](Self::mask). What is allowed is the same either way.
    pub(crate) fn takes_a_look(&mut self) -> bool {
        let looks = self.looks > 0;
        self.looks = self.looks.saturating_sub(1);
        looks
    }

    /// Whether a token may come next.
    ///
    /// # Errors
    /// [`EngineError::ConstraintFailed`] where the matcher failed.
    pub(crate) fn allows(&mut self, id: u32) -> Result<bool, EngineError> {
        Ok(self.allowed(&[id])? > 0)
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
