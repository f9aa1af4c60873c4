//! Pages of keys and of values: what they hold, how rows are stored in them, and how attention reads them.
//!
//! Keys are kept transposed, `[head_dim, PAGE_TOKENS]`: the tokens of a page are the lanes of a register. Values are
//! `[PAGE_TOKENS, head_dim]`.
//!
//! In q8_0 the [`KV_BLOCK`] elements of a token's head that follow each other share a scale in half precision, as in a file's
//! blocks; a head's last block may be shorter. Integers and scales are apart, and the scales lie as the elements do: those of
//! keys `[blocks, PAGE_TOKENS]`, those of values `[PAGE_TOKENS, blocks]`.
//!
//! What was stored is read exactly, as f32: an integer of 8 bits times a scale of 11 has no more than the 24 bits of its
//! mantissa. From there on attention computes with all types alike.

use super::attention::{Ahead, Form, PAGE_TOKENS};
use super::{FloatOps, KvSlot};
use crate::KernelError;
use half::f16;

/// Elements of a head that share a scale in q8_0.
pub const KV_BLOCK: usize = 32;

/// The keys or the values of one layer.
#[derive(Clone, Copy, Debug)]
pub enum KvPages<'a> {
    /// As computed, in the order of [`KvPages::F16`].
    F32(&'a [f32]),
    /// Half precision. Keys: `[pages, kv_heads, head_dim, PAGE_TOKENS]`; values: `[pages, kv_heads, PAGE_TOKENS, head_dim]`.
    F16(&'a [f16]),
    /// An element is its integer times its block's scale.
    Q8_0 {
        /// In the order of [`KvPages::F16`].
        quants: &'a [i8],
        /// Keys: `[pages, kv_heads, blocks, PAGE_TOKENS]`; values: `[pages, kv_heads, PAGE_TOKENS, blocks]`; `blocks` is
        /// `head_dim / KV_BLOCK`, rounded up.
        scales: &'a [f16],
    },
}

/// [`KvPages`] to write to.
#[derive(Debug)]
pub enum KvPagesMut<'a> {
    /// See [`KvPages::F32`].
    F32(&'a mut [f32]),
    /// See [`KvPages::F16`].
    F16(&'a mut [f16]),
    /// See [`KvPages::Q8_0`].
    Q8_0 {
        /// As there.
        quants: &'a mut [i8],
        /// As there.
        scales: &'a mut [f16],
    },
}

/// The part of `at` among parts of `len` elements.
fn part(at: usize, len: usize) -> std::ops::Range<usize> {
    at * len..(at + 1) * len
}

impl KvPages<'_> {
    /// Whole pages.
    pub(super) fn count(&self, kv_heads: usize, head_dim: usize) -> usize {
        let pages = |len: usize, width: usize| {
            len / kv_heads.saturating_mul(width).saturating_mul(PAGE_TOKENS).max(1)
        };
        match self {
            Self::F32(all) => pages(all.len(), head_dim),
            Self::F16(all) => pages(all.len(), head_dim),
            Self::Q8_0 { quants, scales } => {
                pages(quants.len(), head_dim).min(pages(scales.len(), head_dim.div_ceil(KV_BLOCK)))
            }
        }
    }

    /// One head's part of one page, the `at`-th of all, to be asked for in so many steps; of q8_0 the integers.
    pub(super) fn ahead(&self, at: usize, dim: usize, steps: usize) -> Ahead {
        let page = part(at, dim * PAGE_TOKENS);
        match self {
            Self::F32(all) => Ahead::of(&all[page], steps),
            Self::F16(all) => Ahead::of(&all[page], steps),
            Self::Q8_0 { quants, .. } => Ahead::of(&quants[page], steps),
        }
    }

    /// The keys of one head in one page, the `at`-th of all, to `[dim, PAGE_TOKENS]`.
    pub(super) fn load_keys<F: Form>(&self, at: usize, dim: usize, to: &mut [f32]) {
        match self {
            Self::F32(all) => to.copy_from_slice(&all[part(at, dim * PAGE_TOKENS)]),
            Self::F16(all) => F::to_f32(&all[part(at, dim * PAGE_TOKENS)], to),
            Self::Q8_0 { quants, scales } => {
                let scales = &scales[part(at, dim.div_ceil(KV_BLOCK) * PAGE_TOKENS)];
                F::q8_keys(&quants[part(at, dim * PAGE_TOKENS)], scales, to);
            }
        }
    }

    /// The values of the first `tokens` tokens of one head in one page, the `at`-th of all, to `[tokens, padded]`. What pads
    /// stays.
    pub(super) fn load_values<F: Form>(
        &self,
        at: usize,
        tokens: usize,
        dim: usize,
        padded: usize,
        to: &mut [f32],
    ) {
        let to = &mut to[..tokens * padded];
        match self {
            Self::F32(all) => {
                let from = &all[part(at, PAGE_TOKENS * dim)];
                for (from, to) in from.chunks_exact(dim).zip(to.chunks_exact_mut(padded)) {
                    to[..dim].copy_from_slice(from);
                }
            }
            Self::F16(all) => {
                let from = &all[part(at, PAGE_TOKENS * dim)];
                // Without padding all rows are one.
                let (from_row, to_row) = if dim == padded { (to.len(), to.len()) } else { (dim, padded) };
                for (from, to) in from.chunks_exact(from_row).zip(to.chunks_exact_mut(to_row)) {
                    F::to_f32(from, &mut to[..from_row]);
                }
            }
            Self::Q8_0 { quants, scales } => {
                let blocks = dim.div_ceil(KV_BLOCK);
                let quants = &quants[part(at, PAGE_TOKENS * dim)];
                let scales = &scales[part(at, PAGE_TOKENS * blocks)];
                if dim.is_multiple_of(KV_BLOCK) {
                    F::q8_row(quants, scales, to);
                    return;
                }
                let rows = quants.chunks_exact(dim).zip(scales.chunks_exact(blocks));
                for ((quants, scales), to) in rows.zip(to.chunks_exact_mut(padded)) {
                    F::q8_row(quants, scales, &mut to[..dim]);
                }
            }
        }
    }
}

impl KvPagesMut<'_> {
    /// The same to read.
    fn reborrow(&self) -> KvPages<'_> {
        match self {
            Self::F32(all) => KvPages::F32(all),
            Self::F16(all) => KvPages::F16(all),
            Self::Q8_0 { quants, scales } => KvPages::Q8_0 { quants, scales },
        }
    }

    /// Stores the key of a token of one head in one page, the `at`-th of all.
    fn store_key(&mut self, ops: &FloatOps, at: usize, token: usize, key: &[f32]) {
        let page = part(at, key.len() * PAGE_TOKENS);
        match self {
            Self::F32(all) => {
                for (to, key) in all[page].chunks_exact_mut(PAGE_TOKENS).zip(key) {
                    to[token] = *key;
                }
            }
            Self::F16(all) => {
                let mut halves = [f16::ZERO; KV_BLOCK];
                for (key, columns) in key.chunks(KV_BLOCK).zip(all[page].chunks_mut(KV_BLOCK * PAGE_TOKENS)) {
                    (ops.to_f16)(key, &mut halves[..key.len()]);
                    for (to, half) in columns.chunks_exact_mut(PAGE_TOKENS).zip(halves) {
                        to[token] = half;
                    }
                }
            }
            Self::Q8_0 { quants, scales } => {
                let scales = &mut scales[part(at, key.len().div_ceil(KV_BLOCK) * PAGE_TOKENS)];
                let quants = quants[page].chunks_mut(KV_BLOCK * PAGE_TOKENS);
                let to = quants.zip(scales.chunks_exact_mut(PAGE_TOKENS));
                for (key, (quants, scales)) in key.chunks(KV_BLOCK).zip(to) {
                    let mut block = [0; KV_BLOCK];
                    scales[token] = (ops.to_q8)(key, &mut block);
                    for (to, quant) in quants.chunks_exact_mut(PAGE_TOKENS).zip(block) {
                        to[token] = quant;
                    }
                }
            }
        }
    }

    /// Stores the value of a token of one head in one page, the `at`-th of all.
    fn store_value(&mut self, ops: &FloatOps, at: usize, token: usize, value: &[f32]) {
        let row = at * PAGE_TOKENS + token;
        match self {
            Self::F32(all) => all[part(row, value.len())].copy_from_slice(value),
            Self::F16(all) => (ops.to_f16)(value, &mut all[part(row, value.len())]),
            Self::Q8_0 { quants, scales } => {
                let quants = quants[part(row, value.len())].chunks_mut(KV_BLOCK);
                let scales = &mut scales[part(row, value.len().div_ceil(KV_BLOCK))];
                for ((value, quants), scale) in value.chunks(KV_BLOCK).zip(quants).zip(scales) {
                    *scale = (ops.to_q8)(value, quants);
                }
            }
        }
    }
}

/// See [`Kernels::store_kv`](crate::Kernels::store_kv).
pub(super) fn store(
    ops: &FloatOps,
    (keys, values): (&[f32], &[f32]),
    kv_heads: usize,
    head_dim: usize,
    slots: &[KvSlot],
    (mut k_pages, mut v_pages): (KvPagesMut<'_>, KvPagesMut<'_>),
) -> Result<(), KernelError> {
    let shape = |what, expected, actual| Err(KernelError::Length { what, expected, actual });
    let row_len = kv_heads.saturating_mul(head_dim);
    let wanted = row_len.saturating_mul(slots.len());
    if row_len == 0 || keys.len() != wanted || values.len() != wanted {
        return shape("key and value rows", wanted, keys.len().min(values.len()));
    }
    let count = |pages: &KvPagesMut<'_>| pages.reborrow().count(kv_heads, head_dim);
    let count = count(&k_pages).min(count(&v_pages));
    let rows = keys.chunks_exact(row_len).zip(values.chunks_exact(row_len));
    for ((keys, values), slot) in rows.zip(slots) {
        let (page, token) = (slot.page as usize, slot.token as usize);
        if page >= count {
            return shape("page of a slot", count, page);
        }
        if token >= PAGE_TOKENS {
            return shape("token of a slot", PAGE_TOKENS, token);
        }
        let heads = keys.chunks_exact(head_dim).zip(values.chunks_exact(head_dim));
        for (head, (key, value)) in heads.enumerate() {
            k_pages.store_key(ops, page * kv_heads + head, token, key);
            v_pages.store_value(ops, page * kv_heads + head, token, value);
        }
    }
    Ok(())
}
