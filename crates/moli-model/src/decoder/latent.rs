//! Attention by latent vectors: the way there, and back.

use moli_kernels::RopeAngles;

use super::Scratch;
use crate::adapter::Adapters;
use crate::weights::LatentAttention;
use crate::{Backend, Config, Latent, ModelError};

/// Queries and the key of latent attention into `s.q` and `s.k`: what is compared is `[latent vector, rotated part]`.
pub(super) fn queries<B: Backend>(
    (b, a): (&mut B, &mut Adapters<B>),
    c: &Config,
    w: &LatentAttention<B>,
    angles: Option<&RopeAngles>,
    s: &mut Scratch<B>,
) -> Result<(), ModelError> {
    let (Some(l), Some(Latent { kv_rank, plain, rotated, norm_eps, .. })) = (&mut s.latent, c.latent) else {
        return Ok(());
    };
    let (width, head_dim) = (kv_rank + rotated, plain + rotated);
    let x = if c.pre_norm { &s.h } else { &s.x };
    let [part, made] = &mut l.parts;

    // The key: the normed latent vector, and its rotated part, the same for all heads.
    a.project(b, x, None, &mut [(&w.kv_down, &mut l.kv)])?;
    let count = b.rows(&l.kv);
    b.zero(part, count, kv_rank)?;
    b.copy_columns(&l.kv, 0, part, 0, kv_rank)?;
    b.norm(part, &w.kv_norm, norm_eps, made)?;
    b.zero(&mut l.rotated, count, rotated)?;
    b.copy_columns(&l.kv, kv_rank, &mut l.rotated, 0, rotated)?;
    if let Some(angles) = angles {
        b.rope(&mut l.rotated, angles, c.rope.style, rotated)?;
    }
    b.zero(&mut s.k, count, width)?;
    b.copy_columns(made, 0, &mut s.k, 0, kv_rank)?;
    b.copy_columns(&l.rotated, 0, &mut s.k, kv_rank, rotated)?;

    // The queries: the plain part of each goes to the latent space.
    match &w.q_down {
        Some((down, norm)) => {
            let [low, low_normed] = &mut l.q_down;
            a.project(b, x, None, &mut [(down, &mut *low)])?;
            b.norm(low, norm, norm_eps, low_normed)?;
            a.project(b, low_normed, None, &mut [(&w.q, &mut l.heads)])?;
        }
        None => a.project(b, x, None, &mut [(&w.q, &mut l.heads)])?,
    }
    b.zero(&mut l.rotated, count, c.heads * rotated)?;
    for head in 0..c.heads {
        b.copy_columns(&l.heads, head * head_dim + plain, &mut l.rotated, head * rotated, rotated)?;
    }
    if let Some(angles) = angles {
        b.rope(&mut l.rotated, angles, c.rope.style, rotated)?;
    }
    b.zero(&mut s.q, count, c.heads * width)?;
    for (head, to_latent) in w.to_latent.iter().enumerate() {
        b.zero(part, count, plain)?;
        b.copy_columns(&l.heads, head * head_dim, part, 0, plain)?;
        b.project(part, &mut [(to_latent, &mut *made)])?;
        b.copy_columns(made, 0, &mut s.q, head * width, kv_rank)?;
        b.copy_columns(&l.rotated, head * rotated, &mut s.q, head * width + kv_rank, rotated)?;
    }
    Ok(())
}

/// `s.attended`, what latent attention found, of each head from the latent space to its value.
pub(super) fn values<B: Backend>(
    b: &mut B,
    c: &Config,
    w: &LatentAttention<B>,
    s: &mut Scratch<B>,
) -> Result<(), ModelError> {
    let (Some(l), Some(Latent { kv_rank, rotated, value, .. })) = (&mut s.latent, c.latent) else {
        return Ok(());
    };
    let count = b.rows(&s.attended);
    let [part, made] = &mut l.parts;
    b.zero(&mut l.heads, count, c.heads * value)?;
    for (head, to_value) in w.to_value.iter().enumerate() {
        b.zero(part, count, kv_rank)?;
        b.copy_columns(&s.attended, head * (kv_rank + rotated), part, 0, kv_rank)?;
        b.project(part, &mut [(to_value, &mut *made)])?;
        b.copy_columns(made, 0, &mut l.heads, head * value, value)?;
    }
    std::mem::swap(&mut s.attended, &mut l.heads);
    Ok(())
}
