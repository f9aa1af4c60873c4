//! Attention's inner loops, written once for every vector width.
//!
//! Several queries are computed together, so that a key or a value is loaded once for all of them, in as many registers as
//! hide the latency of a multiply-add.

use super::KV_BLOCK;
use super::attention::{Ahead, Element, PAGE_TOKENS, Scores};
use super::scalar;
use crate::vector::Vector;
use half::f16;
use std::ops::Range;

/// Calls `$run::<V, E, N>(first)` for groups of `N` of the queries, as many at a time as leave the registers of `V` room for keys or
/// values.
macro_rules! in_groups {
    ($queries:expr, $V:ident, |$first:ident| $run:ident($($value:expr),*)) => {
        let mut $first = 0;
        while $first < $queries {
            let left = $queries - $first;
            // Of what is left no group is of one query, which would wait for its own sums, if it can be helped.
            let count = match (V::LANES, left) {
                (16, 4 | 8) => 4,
                (16, 7) => 7,
                (16, 6..) => 6,
                (_, 4) => 2,
                (_, 3..) => 3,
                _ => left,
            };
            match count {
                7 => $run::<$V, E, 7>($($value),*),
                6 => $run::<$V, E, 6>($($value),*),
                4 => $run::<$V, E, 4>($($value),*),
                3 => $run::<$V, E, 3>($($value),*),
                2 => $run::<$V, E, 2>($($value),*),
                _ => $run::<$V, E, 1>($($value),*),
            }
            $first += count;
        }
    };
}

/// [`Form::q8_keys`](super::attention::Form::q8_keys).
///
/// # Safety
/// The instructions of `V`.
#[inline(always)]
pub(super) unsafe fn q8_keys<V: Vector>(quants: &[i8], scales: &[f16], keys: &mut [f32]) {
    let (quants, keys) = (quants.as_chunks::<PAGE_TOKENS>().0, keys.as_chunks_mut::<PAGE_TOKENS>().0);
    let blocks = quants.chunks(KV_BLOCK).zip(keys.chunks_mut(KV_BLOCK));
    for ((quants, keys), scales) in blocks.zip(scales.as_chunks::<PAGE_TOKENS>().0) {
        let mut column = 0;
        // As in `scores`: all tokens at once, but with 4 lanes half of them.
        while column < PAGE_TOKENS {
            macro_rules! tokens {
                ($c:literal) => {{
                    // SAFETY: the caller's promise; each row has PAGE_TOKENS elements, whole registers.
                    let by: [V; $c] = std::array::from_fn(|c| unsafe {
                        V::load_f16(scales.as_ptr().add(column + c * V::LANES).cast())
                    });
                    for (quants, keys) in quants.iter().zip(&mut *keys) {
                        for (c, by) in by.iter().enumerate() {
                            let at = column + c * V::LANES;
                            // SAFETY: as above.
                            unsafe {
                                V::load_i8(quants.as_ptr().add(at)).mul(*by).store(keys.as_mut_ptr().add(at));
                            }
                        }
                    }
                    column += $c * V::LANES;
                }};
            }
            if V::LANES == 16 { tokens!(2) } else { tokens!(4) }
        }
    }
}

/// [`Form::q8_row`](super::attention::Form::q8_row).
///
/// # Safety
/// The instructions of `V`.
#[inline(always)]
pub(super) unsafe fn q8_row<V: Vector>(quants: &[i8], scales: &[f16], out: &mut [f32]) {
    let ((quants, q_rest), (out, o_rest)) = (quants.as_chunks::<KV_BLOCK>(), out.as_chunks_mut::<KV_BLOCK>());
    for ((quants, scale), out) in quants.iter().zip(scales).zip(&mut *out) {
        // SAFETY: the caller's promise; a scale is a half, and a block is whole registers.
        unsafe {
            let by = V::splat_f16(std::ptr::from_ref(scale).cast());
            for at in (0..KV_BLOCK).step_by(V::LANES) {
                V::load_i8(quants.as_ptr().add(at)).mul(by).store(out.as_mut_ptr().add(at));
            }
        }
    }
    scalar::q8_row(q_rest, scales.get(quants.len()..).unwrap_or_default(), o_rest);
}

/// [`Form::scores`](super::attention::Form::scores).
///
/// # Safety
/// The instructions of `V`.
#[inline(always)]
pub(super) unsafe fn scores<V: Vector, E: Element>(
    q: &[f32],
    dim: usize,
    keys: &[E],
    ahead: Ahead,
    scores: &mut [Scores],
) {
    assert!(keys.len() >= dim * PAGE_TOKENS && q.len() >= dim * scores.len());
    /// # Safety
    /// As [`scores`]; `N` queries and scores from `first`.
    #[inline(always)]
    unsafe fn some<V: Vector, E: Element, const N: usize>(
        first: usize,
        q: &[f32],
        dim: usize,
        keys: &[E],
        ahead: Ahead,
        scores: &mut [Scores],
    ) {
        // SAFETY: the assertion above; a page's tokens are whole registers.
        unsafe {
            let q = q.as_ptr().add(first * dim);
            let mut column = 0;
            // 32 tokens in 2 registers of 16 lanes or 4 of 8; with 4 lanes, in two rounds.
            while column < PAGE_TOKENS {
                macro_rules! tokens {
                    ($c:literal) => {{
                        let mut acc = [[V::splat(0.0); $c]; N];
                        let ahead = ahead.at(column);
                        for d in 0..dim {
                            ahead.ask(d);
                            let mut k = [V::splat(0.0); $c];
                            for (c, k) in k.iter_mut().enumerate() {
                                *k = E::load(keys.as_ptr().add(d * PAGE_TOKENS + column + c * V::LANES));
                            }
                            for (n, acc) in acc.iter_mut().enumerate() {
                                let q = V::splat(*q.add(n * dim + d));
                                for (acc, k) in acc.iter_mut().zip(k) {
                                    *acc = q.fma(k, *acc);
                                }
                            }
                        }
                        for (n, acc) in acc.iter().enumerate() {
                            let to = scores.as_mut_ptr().add(first + n).cast::<f32>().add(column);
                            for (c, acc) in acc.iter().enumerate() {
                                acc.store(to.add(c * V::LANES));
                            }
                        }
                        column += $c * V::LANES;
                    }};
                }
                if V::LANES == 16 { tokens!(2) } else { tokens!(4) }
            }
        }
    }
    // SAFETY: the caller's promise; the groups are inside the queries.
    unsafe {
        in_groups!(scores.len(), V, |first| some(first, q, dim, keys, ahead.at(first), scores));
    }
}

/// [`Form::values`](super::attention::Form::values).
///
/// # Safety
/// The instructions of `V`.
#[inline(always)]
pub(super) unsafe fn values<V: Vector, E: Element>(
    weights: &[Scores],
    keys: Range<usize>,
    values: &[E],
    ahead: Ahead,
    rescale: &[f32],
    sums: &mut [f32],
) {
    let queries = weights.len();
    let dim = sums.len() / queries.max(1);
    assert!(keys.end <= PAGE_TOKENS && values.len() >= keys.end * dim && rescale.len() >= queries);
    assert!(dim.is_multiple_of(16));
    /// `C` registers of columns from `column`.
    ///
    /// # Safety
    /// As [`values`]; the columns are inside `dim`, and there are `N` queries from `first`.
    #[inline(always)]
    #[allow(clippy::too_many_arguments)]
    unsafe fn columns<V: Vector, E: Element, const N: usize, const C: usize>(
        first: usize,
        column: usize,
        dim: usize,
        weights: &[Scores],
        keys: &Range<usize>,
        values: &[E],
        ahead: Ahead,
        rescale: &[f32],
        sums: &mut [f32],
    ) {
        // SAFETY: the assertions above.
        unsafe {
            let at = |n: usize, c: usize| (first + n) * dim + column + c * V::LANES;
            let mut acc = [[V::splat(0.0); C]; N];
            for (n, acc) in acc.iter_mut().enumerate() {
                let rescale = V::splat(*rescale.as_ptr().add(first + n));
                for (c, acc) in acc.iter_mut().enumerate() {
                    *acc = V::load(sums.as_ptr().add(at(n, c))).mul(rescale);
                }
            }
            let ahead = ahead.at(column);
            for key in keys.clone() {
                ahead.ask(key);
                let mut v = [V::splat(0.0); C];
                for (c, v) in v.iter_mut().enumerate() {
                    *v = E::load(values.as_ptr().add(key * dim + column + c * V::LANES));
                }
                for (n, acc) in acc.iter_mut().enumerate() {
                    let weight = V::splat(*weights.as_ptr().add(first + n).cast::<f32>().add(key));
                    for (acc, v) in acc.iter_mut().zip(v) {
                        *acc = weight.fma(v, *acc);
                    }
                }
            }
            for (n, acc) in acc.iter().enumerate() {
                for (c, acc) in acc.iter().enumerate() {
                    acc.store(sums.as_mut_ptr().add(at(n, c)));
                }
            }
        }
    }
    /// # Safety
    /// As [`columns`].
    #[inline(always)]
    #[allow(clippy::too_many_arguments)]
    unsafe fn some<V: Vector, E: Element, const N: usize>(
        first: usize,
        dim: usize,
        weights: &[Scores],
        keys: &Range<usize>,
        values: &[E],
        ahead: Ahead,
        rescale: &[f32],
        sums: &mut [f32],
    ) {
        let mut column = 0;
        // SAFETY: the columns are inside `dim`, a multiple of 16 and so of the lanes.
        unsafe {
            // Seven queries leave the registers room for half as many columns.
            while N < 7 && dim - column >= 4 * V::LANES {
                columns::<V, E, N, 4>(first, column, dim, weights, keys, values, ahead, rescale, sums);
                column += 4 * V::LANES;
            }
            while dim - column >= 2 * V::LANES {
                columns::<V, E, N, 2>(first, column, dim, weights, keys, values, ahead, rescale, sums);
                column += 2 * V::LANES;
            }
            while column < dim {
                columns::<V, E, N, 1>(first, column, dim, weights, keys, values, ahead, rescale, sums);
                column += V::LANES;
            }
        }
    }
    // SAFETY: the caller's promise; the groups are inside the queries.
    unsafe {
        in_groups!(queries, V, |first| some(
            first,
            dim,
            weights,
            &keys,
            values,
            ahead.at(first),
            rescale,
            sums
        ));
    }
}
