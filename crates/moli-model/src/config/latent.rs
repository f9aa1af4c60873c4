//! Attention whose keys and values come from one latent vector.

use super::keys::Keys;
use super::{MAX_HEAD_DIM, MAX_WIDTH};
use crate::ModelError;

/// Multi-head latent attention (arXiv:2405.04434), in the form that keeps the latent vector itself as key and value: a query is
/// taken to the latent space, and what it found is taken back.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Latent {
    /// Width of the latent vector.
    pub kv_rank: usize,
    /// Width of the query's bottleneck; `None`: there is none.
    pub q_rank: Option<usize>,
    /// Elements of a query or key head that are not rotated.
    pub plain: usize,
    /// Elements that are, the same for all key heads.
    pub rotated: usize,
    /// Elements of a value head.
    pub value: usize,
    /// Added to the mean square in the norms of the bottlenecks.
    pub norm_eps: f32,
}

impl Latent {
    /// What the file says. Files of two ages: in the newer ones `key_length` is that of the latent form.
    /// Files have the epsilon of all norms; that of folders is the one of the library's code.
    pub(super) fn read(keys: &Keys<'_>, norm_eps: f32) -> Result<Self, ModelError> {
        let norm_eps = keys.metadata.f32_opt("moli.latent_norm_epsilon")?.unwrap_or(norm_eps);
        let kv_rank = keys.size("attention.kv_lora_rank", None, MAX_HEAD_DIM)?;
        let q_rank = keys.count("attention.q_lora_rank", MAX_WIDTH)?.filter(|&rank| rank > 0);
        let rotated = keys.size("rope.dimension_count", None, MAX_HEAD_DIM)?;
        let (key, value) = match keys.count("attention.key_length_mla", MAX_HEAD_DIM)? {
            Some(key) => (key, keys.size("attention.value_length_mla", None, MAX_HEAD_DIM)?),
            None => (
                keys.size("attention.key_length", None, MAX_HEAD_DIM)?,
                keys.size("attention.value_length", None, MAX_HEAD_DIM)?,
            ),
        };
        if key <= rotated {
            return Err(keys.out_of_range(
                "attention.key_length",
                key,
                format!("above rope.dimension_count, {rotated}"),
            ));
        }
        Ok(Self { kv_rank, q_rank, plain: key - rotated, rotated, value, norm_eps })
    }

    /// Elements of a key in the cache.
    #[must_use]
    pub fn width(&self) -> usize {
        self.kv_rank + self.rotated
    }

    /// Elements of a query head before it is taken to the latent space.
    #[must_use]
    pub fn head_dim(&self) -> usize {
        self.plain + self.rotated
    }
}
