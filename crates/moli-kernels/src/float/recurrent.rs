//! Layers that carry a state from token to token: the short convolution and the gated delta rule.
//!
//! Tokens of a sequence are taken one by one in their order, and each element of a state is changed by the same operations
//! for each token: so neither the chunking of a text nor the threads, which take channels, heads and columns, change a bit.

#![allow(clippy::needless_range_loop)]

use super::math;
use super::parallel::{self, Pieces};
use crate::{KernelError, Kernels, Pool};

/// Added to the sum of squares of a query or key.
const UNIT_EPS: f32 = 1e-6;

/// Consecutive rows of one sequence, and where its state is: slots of a buffer of states.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StateRun {
    /// The first row.
    pub first: usize,
    /// How many rows; at least one.
    pub rows: usize,
    /// The slot with the state before the first row; `None`: it is the beginning of a text, and the state is zero.
    pub from: Option<u32>,
    /// The slot for the state after the last row: the same, or one that no other run uses.
    pub to: u32,
}

/// The heads of a gated delta rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeltaShape {
    /// Heads of queries and keys.
    pub key_heads: usize,
    /// Heads of values and of the state, a multiple of `key_heads`.
    pub value_heads: usize,
    /// Elements of a query and a key.
    pub key_dim: usize,
    /// Elements of a value.
    pub value_dim: usize,
    /// Whether value head `h` has the key head `h mod key_heads`; otherwise it is `h / (value_heads / key_heads)`.
    pub tiled: bool,
}

impl DeltaShape {
    /// Elements of a row of queries, keys and values, one after the other.
    #[must_use]
    pub fn mixed(&self) -> usize {
        2 * self.key_heads * self.key_dim + self.value_heads * self.value_dim
    }

    /// Elements of a state.
    #[must_use]
    pub fn state(&self) -> usize {
        self.value_heads * self.key_dim * self.value_dim
    }

    /// The key head of a value head.
    fn key_head(&self, head: usize) -> usize {
        if self.tiled { head % self.key_heads } else { head / (self.value_heads / self.key_heads) }
    }
}

/// One head of the state, and the tokens that go through it.
pub(super) struct DeltaHead<'a> {
    /// `[key_dim, value_dim]`
    state: &'a mut [f32],
    shape: &'a DeltaShape,
    head: usize,
    /// The run's rows, `[rows, mixed]`, `[rows, value_heads]` and `[rows, value_heads]`.
    mixed: &'a [f32],
    decays: &'a [f32],
    rates: &'a [f32],
    /// `[rows, value_heads, value_dim]`, of which only this head's columns are written here.
    out: Pieces<f32>,
}

/// All tokens through one head.
#[inline(always)]
pub(super) fn delta_head(mut head: DeltaHead<'_>) {
    let (mut column, width) = (0, head.shape.value_dim);
    while width - column >= 32 {
        delta_columns::<32>(&mut head, column);
        column += 32;
    }
    while width - column >= 8 {
        delta_columns::<8>(&mut head, column);
        column += 8;
    }
    while column < width {
        delta_columns::<1>(&mut head, column);
        column += 1;
    }
}

/// `N` columns of a head's state, which no other column touches, through all tokens: they stay in the first-level cache
/// meanwhile.
#[inline(always)]
fn delta_columns<const N: usize>(all: &mut DeltaHead<'_>, first: usize) {
    let DeltaShape { key_heads, value_heads, key_dim, value_dim, .. } = *all.shape;
    let (head, key_head) = (all.head, all.shape.key_head(all.head));
    let keys = key_heads * key_dim;
    let gates = all.decays.chunks_exact(value_heads).zip(all.rates.chunks_exact(value_heads));
    for (row, (mixed, (decays, rates))) in all.mixed.chunks_exact(all.shape.mixed()).zip(gates).enumerate() {
        let query = &mixed[key_head * key_dim..][..key_dim];
        let key = &mixed[keys + key_head * key_dim..][..key_dim];
        let value = &mixed[2 * keys + head * value_dim + first..][..N];
        let (decay, rate) = (decays[head], rates[head]);
        let mut found = [0.0; N];
        for (state, key) in all.state.chunks_exact(value_dim).zip(key) {
            let state = &state[first..first + N];
            for n in 0..N {
                found[n] = state[n].mul_add(*key, found[n]);
            }
        }
        let mut delta = [0.0; N];
        for n in 0..N {
            delta[n] = found[n].mul_add(-decay, value[n]) * rate;
        }
        let mut out = [0.0; N];
        for ((state, key), query) in all.state.chunks_exact_mut(value_dim).zip(key).zip(query) {
            let state = &mut state[first..first + N];
            for n in 0..N {
                state[n] = delta[n].mul_add(*key, state[n] * decay);
                out[n] = state[n].mul_add(*query, out[n]);
            }
        }
        // SAFETY: `Kernels::delta_rule` checked that the rows are in the buffer, which it borrows mutably, and gives each head
        // to one task; these columns are this head's.
        let to = unsafe { all.out.slice((row * value_heads + head) * value_dim + first, N) };
        to.copy_from_slice(&out);
    }
}

/// An error unless a slice is as long as the other arguments imply.
fn expect(what: &'static str, expected: usize, actual: usize) -> Result<(), KernelError> {
    if expected == actual { Ok(()) } else { Err(KernelError::Length { what, expected, actual }) }
}

/// Refuses runs that are not in `rows` rows or in `slots` slots.
fn check(runs: &[StateRun], rows: usize, slots: usize) -> Result<(), KernelError> {
    for run in runs {
        let end = run.first.saturating_add(run.rows);
        if end > rows {
            return Err(KernelError::Length { what: "rows of a run", expected: rows, actual: end });
        }
        for slot in run.from.into_iter().chain([run.to]) {
            if slot as usize >= slots {
                return Err(KernelError::Limit { what: "slot", limit: slots, actual: slot as usize });
            }
        }
    }
    Ok(())
}

impl Kernels {
    /// A causal convolution over the rows of each run, channel by channel: `out[t] = sum over j of taps[j] * x[t - n + 1 + j]`,
    /// where what is before a run's first row comes from its state.
    ///
    /// x, out: `[rows, channels]`; taps: `[n, channels]`; states: `[slots, n - 1, channels]`, the inputs of the latest
    /// `n - 1` tokens.
    ///
    /// # Errors
    /// [`KernelError::Length`] or [`KernelError::Limit`] for a length, a run or a slot that does not fit the others.
    pub fn short_conv(
        &self,
        pool: &Pool,
        x: &[f32],
        (taps, channels): (&[f32], usize),
        states: &mut [f32],
        runs: &[StateRun],
        out: &mut [f32],
    ) -> Result<(), KernelError> {
        let channels = channels.max(1);
        let (rows, count) = (x.len() / channels, taps.len() / channels);
        let before = count.saturating_sub(1);
        let state = before * channels;
        expect("the result of a convolution", x.len(), out.len())?;
        expect("taps", count.max(1) * channels, taps.len())?;
        check(runs, rows, states.len().checked_div(state).unwrap_or(usize::MAX))?;
        for run in runs {
            let to = run.to as usize * state;
            match run.from {
                Some(from) => states.copy_within(from as usize * state..(from as usize + 1) * state, to),
                None => states[to..to + state].fill(0.0),
            }
            let old = &mut states[to..to + state];
            let x = &x[run.first * channels..(run.first + run.rows) * channels];
            let out = &mut out[run.first * channels..(run.first + run.rows) * channels];
            // Input `at` of a text that begins with the state.
            let input = |at: usize| match at.checked_sub(before) {
                Some(row) => &x[row * channels..(row + 1) * channels],
                None => &old[at * channels..(at + 1) * channels],
            };
            parallel::pieces(pool, out, channels, &|start, out| {
                for (row, out) in out.chunks_exact_mut(channels).enumerate() {
                    let row = start / channels + row;
                    out.fill(0.0);
                    for (tap, weights) in taps.chunks_exact(channels).enumerate() {
                        (self.float.multiply_add)(out, input(row + tap), weights);
                    }
                }
            });
            // The latest inputs, of which some may be the state's own.
            let kept = before.saturating_sub(run.rows);
            old.copy_within((before - kept) * channels.., 0);
            old[kept * channels..].copy_from_slice(&x[x.len() - (before - kept) * channels..]);
        }
        Ok(())
    }

    /// The gated delta rule (arXiv:2412.06464) over the rows of each run. For each token and head, with the state `S`
    /// `[key_dim, value_dim]`, unit query `q` (times `1 / sqrt(key_dim)`), unit key `k` and value `v`:
    ///
    /// `S = decay * S; S = S + k ⊗ (rate * (v - Sᵀk)); out = Sᵀq`
    ///
    /// where `decay = exp(slope * softplus(a + bias))` and `rate = sigmoid(b)`.
    ///
    /// mixed: `[rows, shape.mixed()]`, queries, keys, values, the first two of which become unit vectors; a, b:
    /// `[rows, value_heads]`, which become decay and rate; slope, bias: `[value_heads]`; states: `[slots, shape.state()]`; out:
    /// `[rows, value_heads, value_dim]`.
    ///
    /// # Errors
    /// [`KernelError::Length`] or [`KernelError::Limit`] for a length, a run or a slot that does not fit the others.
    #[allow(clippy::too_many_arguments, reason = "they are what the rule is of")]
    pub fn delta_rule(
        &self,
        pool: &Pool,
        shape: &DeltaShape,
        mixed: &mut [f32],
        (a, b): (&mut [f32], &mut [f32]),
        (slope, bias): (&[f32], &[f32]),
        states: &mut [f32],
        runs: &[StateRun],
        out: &mut [f32],
    ) -> Result<(), KernelError> {
        let DeltaShape { key_heads, value_heads, key_dim, value_dim, .. } = *shape;
        if key_heads == 0 || key_dim == 0 || !value_heads.is_multiple_of(key_heads) {
            return Err(KernelError::Limit { what: "key heads", limit: value_heads, actual: key_heads });
        }
        let (row, state) = (shape.mixed(), shape.state());
        let rows = mixed.len() / row;
        for (what, expected, actual) in [
            ("queries, keys and values", rows * row, mixed.len()),
            ("decays", rows * value_heads, a.len()),
            ("rates", rows * value_heads, b.len()),
            ("slopes", value_heads, slope.len()),
            ("biases", value_heads, bias.len()),
            ("the result of a delta rule", rows * value_heads * value_dim, out.len()),
        ] {
            expect(what, expected, actual)?;
        }
        check(runs, rows, states.len().checked_div(state).unwrap_or(usize::MAX))?;

        for (a, b) in a.chunks_exact_mut(value_heads).zip(b.chunks_exact_mut(value_heads)) {
            for ((a, b), (slope, bias)) in a.iter_mut().zip(b).zip(slope.iter().zip(bias)) {
                *a = math::exp(slope * math::softplus(*a + bias));
                *b = math::sigmoid(*b);
            }
        }
        let keys = key_heads * key_dim;
        parallel::pieces(pool, mixed, row, &|_, mixed| {
            for row in mixed.chunks_exact_mut(row) {
                let (queries, rest) = row.split_at_mut(keys);
                let factor = 1.0 / (key_dim as f32).sqrt();
                queries.chunks_exact_mut(key_dim).for_each(|q| (self.float.unit)(q, UNIT_EPS, factor));
                rest[..keys].chunks_exact_mut(key_dim).for_each(|k| (self.float.unit)(k, UNIT_EPS, 1.0));
            }
        });
        let (mixed, decays, rates) = (&*mixed, &*a, &*b);
        let (size, width) = (key_dim * value_dim, value_heads * value_dim);
        for run in runs {
            let rows = run.first..run.first + run.rows;
            let mixed = &mixed[rows.start * row..rows.end * row];
            let decays = &decays[rows.start * value_heads..rows.end * value_heads];
            let rates = &rates[rows.start * value_heads..rows.end * value_heads];
            let out = Pieces(out[rows.start * width..rows.end * width].as_mut_ptr());
            let all = Pieces(states.as_mut_ptr());
            pool.run(value_heads, &|head, _| {
                let at = |slot: u32| slot as usize * state + head * size;
                // SAFETY: the slots were checked to be in `states`, which is borrowed for the whole run; the pool gives each
                // head out once, and of a slot a head's task uses its own part only.
                let to = unsafe { all.slice(at(run.to), size) };
                match run.from.filter(|from| *from != run.to) {
                    // SAFETY: as above, and it is another slot than the one that is written.
                    Some(from) => to.copy_from_slice(unsafe { all.slice(at(from), size) }),
                    None if run.from.is_none() => to.fill(0.0),
                    None => {}
                }
                (self.float.delta_head)(DeltaHead { state: to, shape, head, mixed, decays, rates, out });
            });
        }
        Ok(())
    }
}
