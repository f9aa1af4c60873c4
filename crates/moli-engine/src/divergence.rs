//! How far one model's predictions are from another's: what a smaller file has lost.

use std::time::{Duration, Instant};

use crate::logprob::Distribution;
use crate::math::exp;
use crate::perplexity::Pieces;
use crate::{Engine, EngineError};

/// Logits of the reference that are kept until the other model has its own, in bytes.
const KEPT_BYTES: usize = 32 << 20;

/// The two models at one token of the text.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Prediction {
    /// Kullback-Leibler divergence of the other model's distribution from the reference's, in nats:
    /// `sum of p ln(p / q)` over the vocabulary, `p` the reference's.
    pub divergence: f64,
    /// Negative log-likelihood of the token that followed, by the reference and by the other, in nats.
    pub loss: [f64; 2],
    /// Whether the same token is the likeliest for both.
    pub same_top: bool,
}

/// What [`divergence`] found.
#[derive(Debug, Clone, PartialEq)]
pub struct Divergence {
    /// Each scored token, in the order of the text.
    pub predictions: Vec<Prediction>,
    /// How long the reference and the other took to read the text.
    pub time: [Duration; 2],
}

/// Compares two models on the pieces and the tokens that [`perplexity`](crate::perplexity()) scores.
///
/// `progress` gets the pieces that are done and that there are; `false` ends the work, and what was compared until then is
/// the result.
///
/// # Errors
/// [`EngineError::OtherVocabulary`] unless both models have the same tokens, and as for
/// [`perplexity`](crate::perplexity()).
pub fn divergence(
    reference: &Engine,
    other: &Engine,
    ids: &[u32],
    context: usize,
    mut progress: impl FnMut(usize, usize) -> bool,
) -> Result<Divergence, EngineError> {
    if let Some((id, [reference, other])) = reference.tokenizer().first_difference(other.tokenizer()) {
        return Err(EngineError::OtherVocabulary { id, reference, other });
    }
    let pieces = Pieces::new(reference, ids, context)?;
    Pieces::new(other, ids, context)?;
    let places: Vec<usize> = pieces.places().collect();
    let group = KEPT_BYTES / size_of::<f32>() / reference.config().vocab.max(1);
    let mut found = Divergence { predictions: Vec::new(), time: [Duration::ZERO; 2] };
    let mut sessions = [reference.session(), other.session()];
    for (done, piece) in pieces.of(ids).enumerate() {
        if !progress(done, pieces.count(ids)) {
            return Ok(found);
        }
        // A later group's beginning is in the prefix cache.
        for places in places.chunks(group.max(1)) {
            let [reference_session, other_session] = &mut sessions;
            let start = Instant::now();
            let kept = reference_session.score(&piece.tokens, places)?;
            let between = Instant::now();
            let mut rows = places.iter().zip(&kept);
            let mut failed = None;
            other_session.score_with(&piece.tokens, places, |place, logits| {
                let Some((_, kept)) = rows.next() else { return };
                match piece.ids.get(place + 1).map(|&next| predict([reference, other], [kept, logits], next))
                {
                    Some(Ok(prediction)) => found.predictions.push(prediction),
                    Some(Err(error)) => failed = failed.take().or(Some(error)),
                    None => {}
                }
            })?;
            if let Some(error) = failed {
                return Err(error);
            }
            found.time[0] += between - start;
            found.time[1] += between.elapsed();
        }
    }
    progress(pieces.count(ids), pieces.count(ids));
    Ok(found)
}

/// Of logits `[vocab]` of both models, before the token `next`.
fn predict(engines: [&Engine; 2], logits: [&[f32]; 2], next: u32) -> Result<Prediction, EngineError> {
    let [p, q] = [0, 1].map(|of| Distribution::of(&engines[of].model().kernels, logits[of]));
    let (p, q) = (p?, q?);
    // Rows of padding that only one model has are no tokens.
    let both = logits[0].iter().zip(logits[1]);
    let divergence: f64 = both
        .map(|(&a, &b)| {
            let (a, b) = (p.logprob(a), q.logprob(b));
            exp(a) * (a - b)
        })
        .sum();
    let loss = |distribution: &Distribution, logits: &[f32]| {
        logits.get(next as usize).map_or(f64::INFINITY, |&logit| -distribution.logprob(logit))
    };
    let top =
        |logits: &[f32]| (0..).zip(logits).max_by(|a, b| a.1.total_cmp(b.1)).map(|(id, _): (u32, _)| id);
    Ok(Prediction {
        // Rounding makes equal distributions a little less than nothing apart.
        divergence: divergence.max(0.0),
        loss: [loss(&p, logits[0]), loss(&q, logits[1])],
        same_top: top(logits[0]) == top(logits[1]),
    })
}
