//! How well a model predicts a text.

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
    if !(3..=engine.context()).contains(&context) {
        let allowed = format!("between 3 and the engine's {}", engine.context());
        return Err(EngineError::parameter("context", context, allowed));
    }
    let needed = context.saturating_mul(2);
    if ids.len() < needed {
        return Err(EngineError::TextTooShort { tokens: ids.len(), needed });
    }
    let bos = engine.tokenizer().bos().filter(|_| engine.tokenizer().adds_bos());
    let places: Vec<usize> = (context / 2..context - 1).collect();
    let mut session = engine.session();
    let mut piece = Vec::with_capacity(context);
    let (mut loss, mut tokens) = (0.0_f64, 0_usize);
    for ids in ids.chunks_exact(context) {
        piece.clear();
        piece.extend_from_slice(ids);
        if let (Some(first), Some(bos)) = (piece.first_mut(), bos) {
            *first = bos;
        }
        let mut failed = None;
        session.score_with(&piece, &places, |place, logits| {
            let next = ids.get(place + 1).and_then(|id| logits.get(*id as usize));
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
