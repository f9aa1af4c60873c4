//! Feed-forward networks of which each token goes through a few.

use super::keys::Keys;
use super::{Family, MAX_EXPERTS, MAX_WIDTH};
use crate::ModelError;

/// A mixture of experts (arXiv:1701.06538), in the layers whose tensors include a router.
#[derive(Debug, Clone, PartialEq)]
pub struct Experts {
    /// Experts of a layer.
    pub count: usize,
    /// Experts that a token goes through.
    pub used: usize,
    /// Width inside an expert.
    pub ffn: usize,
    /// Width inside the expert that every token goes through; 0: there is none.
    pub shared_ffn: usize,
    /// What the router's logits mean.
    pub gating: Gating,
    /// Whether the chosen experts' weights are divided by their sum.
    pub normalised: bool,
    /// Factor on the weights.
    pub scale: f32,
    /// Whether there is a dense network beside the experts, and norms for the one and the others.
    pub beside: bool,
    /// How far below the greatest, relative to it, a logit may be that [`Gating::SparseMixer`] counts.
    pub tolerance: f32,
    /// Groups of experts, and how many of them a token's experts may come from (arXiv:2405.04434); `None`: all.
    pub groups: Option<(usize, usize)>,
}

/// How a router's logits become weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gating {
    /// `softmax(logits)`.
    Softmax,
    /// `sigmoid(logit)`.
    Sigmoid,
    /// One after the other, each by a softmax over those near the greatest that is left (arXiv:2409.12136).
    SparseMixer,
}

impl Experts {
    /// What the file says; `None` if the model has no experts.
    pub(super) fn read(
        keys: &Keys<'_>,
        family: &Family,
        dense_ffn: Option<usize>,
    ) -> Result<Option<Self>, ModelError> {
        let Some(count) = keys.count("expert_count", MAX_EXPERTS)?.filter(|&count| count > 0) else {
            return Ok(None);
        };
        let used = keys.size("expert_used_count", None, MAX_EXPERTS)?;
        if used > count {
            return Err(keys.out_of_range(
                "expert_used_count",
                used,
                format!("at most expert_count, {count}"),
            ));
        }
        let ffn = keys.size("expert_feed_forward_length", dense_ffn, MAX_WIDTH)?;
        let shared = keys.count("expert_shared_count", MAX_EXPERTS)?.unwrap_or(0);
        let shared_ffn = match keys.count("expert_shared_feed_forward_length", MAX_WIDTH)? {
            Some(width) => width,
            None => shared.saturating_mul(ffn),
        };
        if shared_ffn > MAX_WIDTH {
            return Err(keys.out_of_range(
                "expert_shared_count",
                shared,
                format!("at most {MAX_WIDTH} wide"),
            ));
        }
        let gating = match keys.count("expert_gating_func", u32::MAX as usize)? {
            None | Some(0) => family.gating,
            // 3: softmax over the chosen experts' logits, which is softmax over all divided by the sum of the chosen.
            Some(1 | 3) => Gating::Softmax,
            Some(2) => Gating::Sigmoid,
            Some(other) => return Err(keys.unsupported("expert_gating_func", other)),
        };
        let groups =
            match (keys.count("expert_group_count", count)?, keys.count("expert_group_used_count", count)?) {
                (Some(groups), Some(used)) if groups > 1 && used > 0 && used < groups => {
                    if count % groups != 0 {
                        let allowed = format!("a divisor of expert_count, {count}");
                        return Err(keys.out_of_range("expert_group_count", groups, allowed));
                    }
                    Some((groups, used))
                }
                _ => None,
            };
        if let Some((all, few)) = groups
            && count / all * few < used
        {
            let allowed = format!("enough for expert_used_count, {used}");
            return Err(keys.out_of_range("expert_group_used_count", few, allowed));
        }
        Ok(Some(Self {
            count,
            used,
            ffn,
            shared_ffn,
            gating,
            normalised: keys.flag("expert_weights_norm")?.unwrap_or(family.normalised),
            scale: keys.factor("expert_weights_scale")?.unwrap_or(1.0),
            beside: family.beside,
            // The convention has no key for it. Published models have 0.01, of which this is twice.
            tolerance: 2.0 * keys.metadata.f32_opt("moli.router_jitter")?.unwrap_or(0.01),
            groups,
        }))
    }
}
