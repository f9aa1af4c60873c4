//! Streams beside each other, of which one goes through a layer (Gemma 3n).

use super::keys::Keys;
use crate::ModelError;

/// Streams, at most.
const MAX_STREAMS: usize = 1 << 6;

/// Alternating updates (arXiv:2301.13310): the residual stream is several, whose mixtures a layer predicts; it computes one of
/// them, and corrects the others by what came of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AltUp {
    /// How many streams there are.
    pub streams: usize,
    /// The one that goes through the layers.
    pub active: usize,
}

impl AltUp {
    pub(super) fn read(keys: &Keys<'_>) -> Result<Self, ModelError> {
        let streams = keys.size("altup.num_inputs", None, MAX_STREAMS)?;
        let active = keys.count("altup.active_idx", streams - 1)?.unwrap_or(0);
        Ok(Self { streams, active })
    }
}

/// Per layer how many standard deviations above the mean of a row the gates begin; `None`: all of them count.
pub(super) fn cutoffs(keys: &Keys<'_>, layers: usize) -> Result<Vec<Option<f32>>, ModelError> {
    let suffix = "activation_sparsity_scale";
    let Some(cutoffs) = keys.floats(suffix)? else {
        return Err(keys.missing(suffix));
    };
    if cutoffs.len() != layers {
        let allowed = format!("as long as block_count, {layers}");
        return Err(keys.out_of_range(suffix, format!("{} long", cutoffs.len()), allowed));
    }
    let cutoff = |cutoff: f32| match cutoff {
        // No share of the gates is 0.
        f32::NEG_INFINITY => Ok(None),
        cutoff if cutoff.is_finite() => Ok(Some(cutoff)),
        other => Err(keys.out_of_range(suffix, other, "a finite number, or -inf")),
    };
    cutoffs.into_iter().map(cutoff).collect()
}
