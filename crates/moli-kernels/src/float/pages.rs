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
use super::parallel::Pieces;
use super::{FloatOps, KvSlot};
use crate::{KernelError, Pool};
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

    /// The same for several threads, each of which writes other heads.
    fn shared(&mut self) -> SharedPages {
        match self {
            Self::F32(all) => SharedPages::F32(Pieces(all.as_mut_ptr())),
            Self::F16(all) => SharedPages::F16(Pieces(all.as_mut_ptr())),
            Self::Q8_0 { quants, scales } => {
                SharedPages::Q8_0 { quants: Pieces(quants.as_mut_ptr()), scales: Pieces(scales.as_mut_ptr()) }
            }
        }
    }
}

/// [`KvPagesMut`] without its lifetime and lengths.
#[derive(Clone, Copy)]
enum SharedPages {
    F32(Pieces<f32>),
    F16(Pieces<f16>),
    Q8_0 { quants: Pieces<i8>, scales: Pieces<f16> },
}

impl SharedPages {
    /// One head's part of one page, the `at`-th of all, of heads of `dim` elements.
    ///
    /// # Safety
    /// The pages have so many parts, they are borrowed mutably for `'a`, and nothing else uses this one meanwhile.
    unsafe fn part<'a>(self, at: usize, dim: usize) -> KvPagesMut<'a> {
        let (len, blocks) = (dim * PAGE_TOKENS, dim.div_ceil(KV_BLOCK) * PAGE_TOKENS);
        // SAFETY: the caller's promise; parts lie behind each other, each as long as these.
        unsafe {
            match self {
                Self::F32(all) => KvPagesMut::F32(all.slice(at * len, len)),
                Self::F16(all) => KvPagesMut::F16(all.slice(at * len, len)),
                Self::Q8_0 { quants, scales } => KvPagesMut::Q8_0 {
                    quants: quants.slice(at * len, len),
                    scales: scales.slice(at * blocks, blocks),
                },
            }
        }
    }
}

/// Stores the key of a token in one head's part of a page.
fn store_key(ops: &FloatOps, page: KvPagesMut<'_>, token: usize, key: &[f32]) {
    match page {
        KvPagesMut::F32(page) => {
            for (to, key) in page.chunks_exact_mut(PAGE_TOKENS).zip(key) {
                to[token] = *key;
            }
        }
        KvPagesMut::F16(page) => {
            let mut halves = [f16::ZERO; KV_BLOCK];
            for (key, columns) in key.chunks(KV_BLOCK).zip(page.chunks_mut(KV_BLOCK * PAGE_TOKENS)) {
                (ops.to_f16)(key, &mut halves[..key.len()]);
                for (to, half) in columns.chunks_exact_mut(PAGE_TOKENS).zip(halves) {
                    to[token] = half;
                }
            }
        }
        KvPagesMut::Q8_0 { quants, scales } => {
            let to = quants.chunks_mut(KV_BLOCK * PAGE_TOKENS).zip(scales.chunks_exact_mut(PAGE_TOKENS));
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

/// Stores the value of a token in one head's part of a page.
fn store_value(ops: &FloatOps, page: KvPagesMut<'_>, token: usize, value: &[f32]) {
    match page {
        KvPagesMut::F32(page) => page[part(token, value.len())].copy_from_slice(value),
        KvPagesMut::F16(page) => (ops.to_f16)(value, &mut page[part(token, value.len())]),
        KvPagesMut::Q8_0 { quants, scales } => {
            let quants = quants[part(token, value.len())].chunks_mut(KV_BLOCK);
            let scales = &mut scales[part(token, value.len().div_ceil(KV_BLOCK))];
            for ((value, quants), scale) in value.chunks(KV_BLOCK).zip(quants).zip(scales) {
                *scale = (ops.to_q8)(value, quants);
            }
        }
    }
}

/// Elements of keys that are worth a second thread: each goes to a cache line of its own.
const INLINE: usize = 1024;

/// See [`Kernels::store_kv`](crate::Kernels::store_kv).
pub(super) fn store(
    ops: &FloatOps,
    pool: &Pool,
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
    for slot in slots {
        if slot.page as usize >= count {
            return shape("page of a slot", count, slot.page as usize);
        }
        if slot.token as usize >= PAGE_TOKENS {
            return shape("token of a slot", PAGE_TOKENS, slot.token as usize);
        }
    }
    let (k_pages, v_pages) = (k_pages.shared(), v_pages.shared());
    // The keys of one head, or its values.
    let task = |task: usize, _: usize| {
        let (head, is_key) = (task / 2, task.is_multiple_of(2));
        let (rows, pages) = if is_key { (keys, k_pages) } else { (values, v_pages) };
        for (row, slot) in rows.chunks_exact(row_len).zip(slots) {
            // SAFETY: the slot's page is one of `count`, of which each has `kv_heads` parts; both are borrowed mutably until
            // this function returns, after all tasks, and only this task has this head of keys or of values.
            let page = unsafe { pages.part(slot.page as usize * kv_heads + head, head_dim) };
            let store = if is_key { store_key } else { store_value };
            store(ops, page, slot.token as usize, &row[part(head, head_dim)]);
        }
    };
    if wanted < INLINE {
        (0..2 * kv_heads).for_each(|index| task(index, 0));
    } else {
        pool.run(2 * kv_heads, &task);
    }
    Ok(())
}
