//! Everything that is not a matrix product: norms, rotary embedding, attention, activations, elementwise steps.
//!
//! Each operation has one definition of its bits. A sum over a row is taken in 16 virtual lanes (see [`scalar`]), an
//! elementwise step is the same operations in the same order everywhere, and a parallel split never crosses a row's sum.
//! So neither the instruction set nor the thread count, the batch or the chunking changes a result. (The bits of a NaN
//! are the exception: a NaN stays a NaN, with whatever payload.)
//!
//! A wrong length is a mistake of the caller: it is asserted in debug builds, and otherwise the part that all
//! operands have is computed. Only attention and the writing of keys and values, which follow page tables, check and
//! return errors.

#![allow(unsafe_code)]

mod attention;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod heads;
mod math;
#[cfg(target_arch = "aarch64")]
mod neon;
mod pages;
mod parallel;
mod recurrent;
mod rope;
mod scalar;
#[cfg(test)]
mod tests;

pub use attention::{AttentionArgs, PAGE_TOKENS};
pub use pages::{KV_BLOCK, KvPages, KvPagesMut};
use parallel::EXPONENTIAL;
pub(crate) use parallel::Pieces;
pub use recurrent::{DeltaShape, StateRun};
pub use rope::{RopeAngles, RopeStyle};
pub(crate) use scalar::tree;

use crate::quant::eight_bits;
use crate::{Isa, KernelError, Kernels, Pool};
use attention::{Block, Scratch};
use half::f16;

pub use math::{gelu_erf, tanh};

/// A rotation of one row: `(row, head_dim, cos, sin)`.
type Rope = fn(&mut [f32], usize, &[f32], &[f32]);

/// See [`scalar::merge`].
type Merge = fn((&mut (f32, f32), &mut [f32]), (&(f32, f32), &[f32]));

/// The float operations in the form for one instruction set.
#[derive(Clone, Copy)]
pub(crate) struct FloatOps {
    rms_norm: fn(&mut [f32], &[f32], f32),
    layer_norm: fn(&mut [f32], &[f32], &[f32], f32),
    add_scaled: fn(&mut [f32], &[f32], f32),
    add: fn(&mut [f32], &[f32]),
    scale: fn(&mut [f32], f32),
    soft_cap: fn(&mut [f32], f32),
    multiply: fn(&mut [f32], &[f32]),
    multiply_add: fn(&mut [f32], &[f32], &[f32]),
    gate_sigmoid: fn(&mut [f32], &[f32]),
    unit: fn(&mut [f32], f32, f32),
    delta_head: fn(recurrent::DeltaHead<'_>),
    swiglu: fn(&mut [f32], &[f32]),
    geglu: fn(&mut [f32], &[f32]),
    swiglu_clamped: fn(&mut [f32], &[f32]),
    silu: fn(&mut [f32]),
    gelu: fn(&mut [f32]),
    relu: fn(&mut [f32]),
    relu_squared: fn(&mut [f32]),
    xielu: fn(&mut [f32], [f32; 4]),
    geglu_erf: fn(&mut [f32], &[f32]),
    gelu_erf: fn(&mut [f32]),
    rope_halves: Rope,
    rope_interleaved: Rope,
    max: fn(&[f32]) -> f32,
    sum_exp: fn(&[f32], f32) -> f64,
    to_f16: fn(&[f32], &mut [f16]),
    /// See [`eight_bits`].
    to_q8: fn(&[f32], &mut [i8]) -> f16,
    attend: fn(&AttentionArgs<'_>, &Block, &mut Scratch),
    merge: Merge,
}

impl FloatOps {
    /// The table for `isa`, which must be one that this processor has: [`Kernels::new`] checks it.
    ///
    /// AVX-512 machines use the AVX2 forms, but for attention.
    pub(crate) fn new(isa: Isa) -> FloatOps {
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 | Isa::Avx512Vnni | Isa::Avx512Amx => FloatOps {
                rms_norm: avx2::rms_norm,
                layer_norm: avx2::layer_norm,
                add_scaled: avx2::add_scaled,
                add: avx2::add,
                scale: avx2::scale,
                soft_cap: avx2::soft_cap,
                multiply: avx2::multiply,
                multiply_add: avx2::multiply_add,
                gate_sigmoid: avx2::gate_sigmoid,
                unit: avx2::unit,
                delta_head: avx2::delta_head,
                swiglu: avx2::swiglu,
                geglu: avx2::geglu,
                swiglu_clamped: avx2::swiglu_clamped,
                silu: avx2::silu,
                gelu: avx2::gelu,
                relu: avx2::relu,
                relu_squared: avx2::relu_squared,
                xielu: avx2::xielu,
                geglu_erf: avx2::geglu_erf,
                gelu_erf: avx2::gelu_erf,
                rope_halves: avx2::rope_halves,
                rope_interleaved: avx2::rope_interleaved,
                max: avx2::max,
                sum_exp: avx2::sum_exp,
                to_f16: avx2::to_f16,
                to_q8: avx2::to_q8,
                merge: avx2::merge,
                attend: if isa == Isa::Avx2 {
                    attention::attend::<avx2::Avx2>
                } else {
                    attention::attend::<avx512::Avx512>
                },
            },
            #[cfg(target_arch = "aarch64")]
            Isa::Neon | Isa::NeonDot | Isa::NeonI8mm => FloatOps {
                rms_norm: neon::rms_norm,
                to_f16: neon::to_f16,
                attend: attention::attend::<neon::Neon>,
                ..Self::new(Isa::Scalar)
            },
            _ => FloatOps {
                rms_norm: scalar::rms_norm,
                layer_norm: scalar::layer_norm,
                add_scaled: scalar::add_scaled,
                add: scalar::add,
                scale: scalar::scale,
                soft_cap: scalar::soft_cap,
                multiply: scalar::multiply,
                multiply_add: scalar::multiply_add,
                gate_sigmoid: scalar::gate_sigmoid,
                unit: scalar::unit,
                delta_head: recurrent::delta_head,
                swiglu: scalar::swiglu,
                geglu: scalar::geglu,
                swiglu_clamped: scalar::swiglu_clamped,
                silu: scalar::silu,
                gelu: scalar::gelu,
                relu: scalar::relu,
                relu_squared: scalar::relu_squared,
                xielu: scalar::xielu,
                geglu_erf: scalar::geglu_erf,
                gelu_erf: scalar::gelu_erf,
                rope_halves: scalar::rope_halves,
                rope_interleaved: scalar::rope_interleaved,
                max: scalar::max,
                sum_exp: scalar::sum_exp,
                to_f16: scalar::to_f16,
                to_q8: eight_bits,
                merge: scalar::merge,
                attend: attention::attend::<scalar::Scalar>,
            },
        }
    }
}

impl std::fmt::Debug for FloatOps {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("FloatOps")
    }
}

/// Where one row's keys or values go in a layer's pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvSlot {
    /// The page, an index into the layer's pages.
    pub page: u32,
    /// The token within the page, below [`PAGE_TOKENS`].
    pub token: u32,
}

/// What a row of logits needs to become log-probabilities: `log p(i) = x[i] - max - log_sum`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LogSumExp {
    /// The greatest element.
    pub max: f32,
    /// `ln(sum(e^(x - max)))`; NaN when an element is NaN or infinite upwards.
    pub log_sum: f64,
}

impl Kernels {
    /// out = RMS norm of each row of x (Zhang and Sennrich, arXiv:1910.07467): `x / sqrt(mean(x^2) + eps) * gain`.
    ///
    /// x, out: `[rows, n]`; gain: `[n]`.
    pub fn rms_norm(&self, pool: &Pool, x: &[f32], gain: &[f32], eps: f32, out: &mut [f32]) {
        debug_assert_eq!(x.len(), out.len());
        parallel::pieces(pool, out, gain.len(), &|start, out| {
            // The copy is in cache when the norm reads it.
            for (o, x) in out.iter_mut().zip(x.get(start..).unwrap_or_default()) {
                *o = *x;
            }
            (self.float.rms_norm)(out, gain, eps);
        });
    }

    /// [`rms_norm`](Kernels::rms_norm) in place; x: `[rows, n]`, or `[rows * heads, head_dim]` for a norm per head.
    pub fn rms_norm_in_place(&self, pool: &Pool, x: &mut [f32], gain: &[f32], eps: f32) {
        debug_assert!(x.len().is_multiple_of(gain.len().max(1)));
        parallel::pieces(pool, x, gain.len(), &|_, x| (self.float.rms_norm)(x, gain, eps));
    }

    /// out = LayerNorm of each row of x (Ba et al., arXiv:1607.06450): `(x - mean) / sqrt(variance + eps) * gain + bias`.
    ///
    /// x, out: `[rows, n]`; gain: `[n]`; bias: `[n]`, or empty for none.
    pub fn layer_norm(
        &self,
        pool: &Pool,
        x: &[f32],
        (gain, bias): (&[f32], &[f32]),
        eps: f32,
        out: &mut [f32],
    ) {
        debug_assert_eq!(x.len(), out.len());
        parallel::pieces(pool, out, gain.len(), &|start, out| {
            for (o, x) in out.iter_mut().zip(x.get(start..).unwrap_or_default()) {
                *o = *x;
            }
            (self.float.layer_norm)(out, gain, bias, eps);
        });
    }

    /// Rotates the first `2 * angles.half()` elements of each head; x: `[rows, heads, head_dim]`, row `r` by the angles'
    /// row `r`. The rest of a head stays.
    pub fn rope(
        &self,
        pool: &Pool,
        x: &mut [f32],
        heads: usize,
        head_dim: usize,
        angles: &RopeAngles,
        style: RopeStyle,
    ) {
        let (half, row_len) = (angles.half(), heads * head_dim);
        debug_assert!(2 * half <= head_dim && x.len() <= angles.rows() * row_len);
        if half == 0 || row_len == 0 || 2 * half > head_dim {
            return;
        }
        let rotate = match style {
            RopeStyle::Interleaved => self.float.rope_interleaved,
            RopeStyle::Halves | RopeStyle::HalvesToInterleaved => self.float.rope_halves,
        };
        let reorder = style == RopeStyle::HalvesToInterleaved;
        parallel::pieces(pool, x, row_len, &|start, x| {
            let angle = (start / row_len * half).min(angles.cos().len());
            let angles =
                angles.cos()[angle..].chunks_exact(half).zip(angles.sin()[angle..].chunks_exact(half));
            for (row, (cos, sin)) in x.chunks_exact_mut(row_len).zip(angles) {
                rotate(row, head_dim, cos, sin);
                if reorder {
                    row.chunks_exact_mut(head_dim).for_each(|head| rope::interleave(&mut head[..2 * half]));
                }
            }
        });
    }

    /// Attention of each row over its sequence's pages; out: `[rows, heads, head_dim]`.
    ///
    /// A NaN in a row's query, or in a key that it attends to, makes its output NaN; one in a value, that column.
    ///
    /// # Errors
    /// [`KernelError::Length`] when a shape, a sequence, a page table or a page that is needed does not fit.
    pub fn attention(
        &self,
        pool: &Pool,
        args: &AttentionArgs<'_>,
        out: &mut [f32],
    ) -> Result<(), KernelError> {
        attention::attention(&self.float, pool, args, out)
    }

    /// Has each thread of the pool make room for attention to heads of so many elements, so that it allocates nothing later
    /// (but for models with more than 32 query heads to a key head, and now and then as a sequence grows beyond
    /// thousands of tokens).
    pub fn reserve_attention(&self, pool: &Pool, head_dim: usize) {
        pool.on_each_thread(&|| attention::reserve(head_dim));
    }

    /// Bytes that attention works in, with all of its threads and for sequences of up to `tokens`: what
    /// [`reserve_attention`](Self::reserve_attention) makes room for, and the partial results of long sequences. `heads`
    /// are those of queries and of keys. Saturating.
    #[must_use]
    pub fn attention_bytes(threads: usize, heads: (usize, usize), head_dim: usize, tokens: usize) -> u64 {
        attention::bytes(threads, heads, head_dim, tokens)
    }

    /// Writes keys and values into their pages: rounded to half precision (to the nearest, ties to even; infinity beyond
    /// its range), or to q8_0 (halves away from zero; a block with a value that is not finite, or of 8.3 million and more,
    /// has no finite element).
    ///
    /// keys, values: `[rows, kv_heads, head_dim]`; slots: `[rows]`.
    ///
    /// # Errors
    /// [`KernelError::Length`] when there is not one row for each slot, or a slot is outside the pages: nothing is written
    /// then.
    pub fn store_kv(
        &self,
        pool: &Pool,
        rows: (&[f32], &[f32]),
        kv_heads: usize,
        head_dim: usize,
        slots: &[KvSlot],
        (k_pages, v_pages): (KvPagesMut<'_>, KvPagesMut<'_>),
    ) -> Result<(), KernelError> {
        pages::store(&self.float, pool, rows, kv_heads, head_dim, slots, (k_pages, v_pages))
    }

    /// gate = silu(gate) * up, elementwise (SwiGLU; Shazeer, arXiv:2002.05202).
    pub fn swiglu(&self, pool: &Pool, gate: &mut [f32], up: &[f32]) {
        self.pairwise(pool, gate, up, EXPONENTIAL, self.float.swiglu);
    }

    /// gate = gelu(gate) * up, elementwise, with the tanh form of GELU (GeGLU; Shazeer, arXiv:2002.05202).
    pub fn geglu(&self, pool: &Pool, gate: &mut [f32], up: &[f32]) {
        self.pairwise(pool, gate, up, EXPONENTIAL, self.float.geglu);
    }

    /// gate = min(gate, 7) * sigmoid(1.702 gate) * (1 + up), up between -7 and 7, elementwise: gpt-oss's activation
    /// (arXiv:2508.10925).
    pub fn swiglu_clamped(&self, pool: &Pool, gate: &mut [f32], up: &[f32]) {
        self.pairwise(pool, gate, up, EXPONENTIAL, self.float.swiglu_clamped);
    }

    /// x = silu(x), elementwise.
    pub fn silu(&self, pool: &Pool, x: &mut [f32]) {
        parallel::costly_pieces(pool, x, 64, EXPONENTIAL, &|_, x| (self.float.silu)(x));
    }

    /// x = gelu(x), elementwise, by its tanh form.
    pub fn gelu(&self, pool: &Pool, x: &mut [f32]) {
        parallel::costly_pieces(pool, x, 64, EXPONENTIAL, &|_, x| (self.float.gelu)(x));
    }

    /// x = max(x, 0), elementwise.
    pub fn relu(&self, pool: &Pool, x: &mut [f32]) {
        parallel::pieces(pool, x, 64, &|_, x| (self.float.relu)(x));
    }

    /// x = max(x, 0)², elementwise (arXiv:2109.08668).
    pub fn relu_squared(&self, pool: &Pool, x: &mut [f32]) {
        parallel::pieces(pool, x, 64, &|_, x| (self.float.relu_squared)(x));
    }

    /// x = p x² + l x where x is above 0, n (e^min(x, e) - 1 - x) + l x elsewhere, elementwise (arXiv:2411.13010); the numbers: p, n,
    /// l and e, which is not above 0.
    pub fn xielu(&self, pool: &Pool, x: &mut [f32], numbers: [f32; 4]) {
        parallel::costly_pieces(pool, x, 64, EXPONENTIAL, &|_, x| (self.float.xielu)(x, numbers));
    }

    /// gate = gelu(gate) * up, elementwise, with GELU by its error function (arXiv:1606.08415).
    pub fn geglu_erf(&self, pool: &Pool, gate: &mut [f32], up: &[f32]) {
        self.pairwise(pool, gate, up, EXPONENTIAL, self.float.geglu_erf);
    }

    /// x = gelu(x), elementwise, by its error function.
    pub fn gelu_erf(&self, pool: &Pool, x: &mut [f32]) {
        parallel::costly_pieces(pool, x, 64, EXPONENTIAL, &|_, x| (self.float.gelu_erf)(x));
    }

    /// to += from * factor, elementwise, each product and sum rounded once.
    pub fn add_scaled(&self, to: &mut [f32], from: &[f32], factor: f32) {
        debug_assert_eq!(to.len(), from.len());
        (self.float.add_scaled)(to, from, factor);
    }

    /// Adds columns to rows: to\[t\] += factors\[t\] * low\[t\]\[r\] * columns\[r\], r rising, each product and sum rounded once.
    /// to: `[tokens, cols]`, low: `[tokens, rank]`, columns: `[rank, cols]`, factors: `[tokens]`.
    pub fn add_columns(&self, pool: &Pool, to: &mut [f32], low: &[f32], columns: &[f32], factors: &[f32]) {
        let tokens = factors.len().max(1);
        let (cols, rank) = ((to.len() / tokens).max(1), (low.len() / tokens).max(1));
        debug_assert_eq!((to.len(), low.len(), columns.len()), (tokens * cols, tokens * rank, rank * cols));
        parallel::pieces(pool, to, cols, &|start, to| {
            let first = start / cols;
            let low = low.get(first * rank..).unwrap_or_default();
            let factors = factors.get(first..).unwrap_or_default();
            for ((to, low), factor) in to.chunks_exact_mut(cols).zip(low.chunks_exact(rank)).zip(factors) {
                for (low, column) in low.iter().zip(columns.chunks_exact(cols)) {
                    (self.float.add_scaled)(to, column, factor * low);
                }
            }
        });
    }

    /// x += y, elementwise.
    pub fn add(&self, pool: &Pool, x: &mut [f32], y: &[f32]) {
        self.pairwise(pool, x, y, 1, self.float.add);
    }

    /// x *= y, elementwise.
    pub fn multiply(&self, pool: &Pool, x: &mut [f32], y: &[f32]) {
        self.pairwise(pool, x, y, 1, self.float.multiply);
    }

    /// x *= sigmoid(gate), elementwise.
    pub fn gate_sigmoid(&self, pool: &Pool, x: &mut [f32], gate: &[f32]) {
        self.pairwise(pool, x, gate, EXPONENTIAL, self.float.gate_sigmoid);
    }

    /// x *= factor.
    pub fn scale(&self, pool: &Pool, x: &mut [f32], factor: f32) {
        parallel::pieces(pool, x, 64, &|_, x| (self.float.scale)(x, factor));
    }

    /// x = cap * tanh(x / cap).
    pub fn soft_cap(&self, pool: &Pool, x: &mut [f32], cap: f32) {
        parallel::costly_pieces(pool, x, 64, EXPONENTIAL, &|_, x| (self.float.soft_cap)(x, cap));
    }

    /// The maximum of `x` and the logarithm of its sum of exponentials. The sum is in f64 and in a fixed order; for the
    /// logarithm the platform's own f64 function is used. An empty `x` gives -inf and -inf.
    #[must_use]
    pub fn log_sum_exp(&self, x: &[f32]) -> LogSumExp {
        let max = (self.float.max)(x);
        LogSumExp { max, log_sum: (self.float.sum_exp)(x, max).ln() }
    }

    fn pairwise(&self, pool: &Pool, x: &mut [f32], y: &[f32], cost: usize, op: fn(&mut [f32], &[f32])) {
        debug_assert_eq!(x.len(), y.len());
        parallel::costly_pieces(pool, x, 64, cost, &|start, x| op(x, y.get(start..).unwrap_or_default()));
    }
}
