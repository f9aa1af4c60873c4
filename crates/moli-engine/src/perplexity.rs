//! How well a model predicts a text.

use std::ops::Range;

use crate::logprob::Distribution;
use crate::{Engine, EngineError};

/// The result of [`perplexity`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Perplexity {
    /// `e` to the mean negative log-likelihood of the scored tokens.
    pub perplexity: f64,
    /// Tokens that were scored.
    pub tokens: usize,
}

/// Perplexity by llama.cpp's method, so that the numbers can be compared.
///
/// The text's ids, special tokens added as the model wants them, are cut into pieces of `context` tokens that do not
/// overlap; what is left over is not used. In each piece, whose first token is replaced by BOS where the model adds one,
/// the places from `context / 2` to the last but one predict the token after them: each has at least half a context
/// before it.
///
/// # Errors
/// [`EngineError::InvalidParameter`] for a context below 3 or above the engine's, [`EngineError::TextTooShort`] for a
/// text of fewer than two contexts, and whatever computing says.
pub fn perplexity(engine: &Engine, ids: &[u32], context: usize) -> Result<Perplexity, EngineError> {
    let pieces = Pieces::new(engine, ids, context)?;
    let places: Vec<usize> = pieces.places().collect();
    let mut session = engine.session();
    let (mut loss, mut tokens) = (0.0_f64, 0_usize);
    for piece in pieces.of(ids) {
        let mut failed = None;
        session.score_with(&piece.tokens, &places, |place, logits| {
            let next = piece.ids.get(place + 1).and_then(|id| logits.get(*id as usize));
            match (Distribution::of(&engine.model().kernels, logits), next) {
                (Ok(distribution), Some(&logit)) => {
                    loss -= distribution.logprob(logit);
                    tokens += 1;
                }
                (Ok(_), None) => {}
                (Err(error), _) => {
                    failed.get_or_insert(error);
                }
            }
        })?;
        if let Some(error) = failed {
            return Err(error);
        }
    }
    Ok(Perplexity { perplexity: (loss / tokens.max(1) as f64).exp(), tokens })
}

/// How a text is cut.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pieces {
    context: usize,
    /// What each piece begins with.
    bos: Option<u32>,
}

/// A piece of a text.
pub(crate) struct Piece<'a> {
    /// As the model reads it.
    pub(crate) tokens: Vec<u32>,
    /// As it stands in the text.
    pub(crate) ids: &'a [u32],
}

impl Pieces {
    /// # Errors
    /// As for [`perplexity`].
    pub(crate) fn new(engine: &Engine, ids: &[u32], context: usize) -> Result<Self, EngineError> {
        if !(3..=engine.context()).contains(&context) {
            let allowed = format!("between 3 and the engine's {}", engine.context());
            return Err(EngineError::parameter("context", context, allowed));
        }
        let needed = context.saturating_mul(2);
        if ids.len() < needed {
            return Err(EngineError::TextTooShort { tokens: ids.len(), needed });
        }
        Ok(Self { context, bos: engine.tokenizer().bos().filter(|_| engine.tokenizer().adds_bos()) })
    }

    /// The places in a piece after which the next token is scored.
    pub(crate) fn places(&self) -> Range<usize> {
        self.context / 2..self.context - 1
    }

    pub(crate) fn count(&self, ids: &[u32]) -> usize {
        ids.len() / self.context
    }

    pub(crate) fn of<'a>(&self, ids: &'a [u32]) -> impl Iterator<Item = Piece<'a>> + use<'a> {
        let bos = self.bos;
        ids.chunks_exact(self.context).map(move |ids| {
            let mut tokens = ids.to_vec();
            if let (Some(first), Some(bos)) = (tokens.first_mut(), bos) {
                *first = bos;
            }
            Piece { tokens, ids }
        })
    }
}
