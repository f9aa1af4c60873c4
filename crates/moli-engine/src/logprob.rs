//! Log-probabilities of the model's own distribution.

use moli_kernels::{Kernels, LogSumExp};

use crate::EngineError;

/// What turns one row of logits into log-probabilities: `ln p = (logit - max) - ln(sum(e^(logit - max)))`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Distribution {
    row: LogSumExp,
}

impl Distribution {
    /// Of a row of logits, `[vocab]`.
    ///
    /// # Errors
    /// [`EngineError::NotFinite`] if one is not a number or infinite.
    pub(crate) fn of(kernels: &Kernels, logits: &[f32]) -> Result<Self, EngineError> {
        let row = kernels.log_sum_exp(logits);
        if row.max.is_finite() && row.log_sum.is_finite() {
            return Ok(Self { row });
        }
        let first = logits.iter().copied().enumerate().find(|(_, logit)| !logit.is_finite());
        let (token, value) = first.unwrap_or((0, f32::NAN));
        Err(EngineError::NotFinite { token, value })
    }

    /// The natural logarithm of the probability of a token with this logit. The difference of the two floats is exact in
    /// f64.
    pub(crate) fn logprob(&self, logit: f32) -> f64 {
        f64::from(logit) - f64::from(self.row.max) - self.row.log_sum
    }
}
