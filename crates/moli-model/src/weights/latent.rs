//! The tensors of latent attention.

use moli_format::{Bytes, Tensor, TensorType};

use super::{Bias, Linear, Loader, Norm, rows};
use crate::{Backend, Latent, ModelError};

/// The matrices of latent attention.
pub struct LatentAttention<B: Backend> {
    /// The query's bottleneck, `[q_rank, hidden]`, and the norm in it.
    pub q_down: Option<(Linear<B>, Norm<B::Vector>)>,
    /// Queries, `[heads * head_dim, hidden or q_rank]`.
    pub q: Linear<B>,
    /// The latent vector and the rotated part of the key, `[kv_rank + rotated, hidden]`.
    pub kv_down: Linear<B>,
    /// The norm of the latent vector.
    pub kv_norm: Norm<B::Vector>,
    /// Of each head: the plain part of a query to the latent space, `[kv_rank, plain]`.
    pub to_latent: Vec<Linear<B>>,
    /// Of each head: what was found there to the value, `[value, kv_rank]`.
    pub to_value: Vec<Linear<B>>,
}

impl<B: Backend> Loader<'_, B> {
    /// What is behind queries, keys and values of a layer.
    pub(super) fn latent(&mut self, i: usize, latent: &Latent) -> Result<LatentAttention<B>, ModelError> {
        let config = self.config;
        let name = |suffix: &str| format!("blk.{i}.{suffix}");
        let (hidden, rank) = (config.hidden, latent.kv_rank);
        let q_down = match latent.q_rank {
            Some(rank) => Some((
                self.linear(&name("attn_q_a"), rank, hidden, Bias::Optional)?,
                self.norm(&name("attn_q_a_norm"), rank)?,
            )),
            None => None,
        };
        let q = if q_down.is_some() { "attn_q_b" } else { "attn_q" };
        let [to_latent, to_value] = if self.has(&name("attn_kv_b.weight")) {
            self.latent_of_old(&name("attn_kv_b"), latent)?
        } else {
            let mut each = |stem: &str, rows: usize, cols: usize| {
                (0..config.heads)
                    .map(|head| self.slice(&name(stem), head, rows, [cols, rows, config.heads]))
                    .collect::<Result<Vec<_>, _>>()
            };
            [each("attn_k_b", rank, latent.plain)?, each("attn_v_b", latent.value, rank)?]
        };
        Ok(LatentAttention {
            q: self.linear(&name(q), config.q_width(), latent.q_rank.unwrap_or(hidden), Bias::Optional)?,
            q_down,
            kv_down: self.linear(&name("attn_kv_a_mqa"), latent.width(), hidden, Bias::Optional)?,
            kv_norm: self.norm(&name("attn_kv_a_norm"), rank)?,
            to_latent,
            to_value,
        })
    }

    /// Files of before the latent form have, head after head, the matrix from the latent vector to the key above that to the
    /// value. The first is needed the other way round.
    fn latent_of_old(&mut self, stem: &str, latent: &Latent) -> Result<[Vec<Linear<B>>; 2], ModelError> {
        let (heads, rank) = (self.config.heads, latent.kv_rank);
        let head_rows = latent.plain + latent.value;
        let tensor = self.tensor(&format!("{stem}.weight"), &[rank, heads * head_rows])?;
        let (mut to_latent, mut to_value) = (Vec::new(), Vec::new());
        for head in 0..heads {
            let first = head * head_rows;
            let keys = rows(tensor, first..first + latent.plain)?;
            let mut values = vec![0.0; latent.plain * rank];
            moli_kernels::dequantize(keys.ttype, &keys.data, &mut values)?;
            let turned = (0..rank).flat_map(|r| (0..latent.plain).map(move |p| (p, r)));
            let data = turned.flat_map(|(p, r)| values[p * rank + r].to_le_bytes()).collect();
            to_latent.push(Tensor {
                ttype: TensorType::F32,
                dims: vec![latent.plain as u64, rank as u64],
                data: Bytes::from_vec(data),
                ..keys
            });
            to_value.push(rows(tensor, first + latent.plain..first + head_rows)?);
        }
        let linear = |tensor: Tensor| {
            Ok(Linear {
                weight: self.backend.matrix(&tensor)?,
                bias: None,
                scale: None,
                adapters: Vec::new(),
            })
        };
        let all = |tensors: Vec<Tensor>| tensors.into_iter().map(linear).collect::<Result<_, ModelError>>();
        Ok([all(to_latent)?, all(to_value)?])
    }
}
