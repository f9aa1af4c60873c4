//! The float operations in their plainest form: what every other form must equal bit for bit.
//!
//! A sum over a row has 16 *virtual lanes*: lane `l` takes the elements `k` with `k mod 16 = l`, in ascending order and
//! with a fused multiply-add where a product is added; [`tree`] then adds lane `l` and `l + 8`, `l + 4`, `l + 2`,
//! `l + 1`. That order is a definition, not a consequence of a vector's width, so that two 8-wide registers, one
//! 16-wide one and this plain code all give the same bits.
//!
//! Functions marked `inline(always)` are compiled again with wider instructions in [`super::avx2`]: a compiler may turn
//! their loops into vectors, but never change what a loop computes.

#![allow(clippy::needless_range_loop)]

use super::attention::{Ahead, Element, Form, PAGE_TOKENS, Scores};
use super::{KV_BLOCK, math};
use half::f16;
use std::ops::Range;

/// Joins 16 lanes in the fixed order: those that are 8 apart, then 4, 2 and 1.
#[inline(always)]
fn join(lanes: [f32; 16], two: impl Fn(f32, f32) -> f32) -> f32 {
    // Each step has a length of its own, so that compilers make vectors of it.
    let lanes: [f32; 8] = std::array::from_fn(|i| two(lanes[i], lanes[i + 8]));
    let lanes: [f32; 4] = std::array::from_fn(|i| two(lanes[i], lanes[i + 4]));
    let lanes: [f32; 2] = std::array::from_fn(|i| two(lanes[i], lanes[i + 2]));
    two(lanes[0], lanes[1])
}

/// Adds 16 lanes in the fixed order.
#[inline(always)]
pub(crate) fn tree(lanes: [f32; 16]) -> f32 {
    join(lanes, |a, b| a + b)
}

/// The sum of squares of `x`.
pub(super) fn sum_of_squares(x: &[f32]) -> f32 {
    let mut lanes = [0.0; 16];
    for (k, &v) in x.iter().enumerate() {
        lanes[k % 16] = v.mul_add(v, lanes[k % 16]);
    }
    tree(lanes)
}

/// x: `[rows, gain.len()]`; each row times gain / sqrt(mean square + eps).
pub(super) fn rms_norm(x: &mut [f32], gain: &[f32], eps: f32) {
    for row in x.chunks_exact_mut(gain.len().max(1)) {
        let scale = rms_scale(sum_of_squares(row), row.len(), eps);
        mul_gain(row, gain, scale);
    }
}

/// 1 / sqrt(mean square + eps).
#[inline(always)]
pub(super) fn rms_scale(sum_of_squares: f32, n: usize, eps: f32) -> f32 {
    1.0 / (sum_of_squares / n as f32 + eps).sqrt()
}

/// row = (row * scale) * gain.
#[inline(always)]
pub(super) fn mul_gain(row: &mut [f32], gain: &[f32], scale: f32) {
    for (x, g) in row.iter_mut().zip(gain) {
        *x = (*x * scale) * g;
    }
}

/// LayerNorm: each row less its mean, divided by its standard deviation, times gain, plus bias.
///
/// x: `[rows, gain.len()]`; bias: `[gain.len()]`, or empty for none.
#[inline(always)]
pub(super) fn layer_norm(x: &mut [f32], gain: &[f32], bias: &[f32], eps: f32) {
    for row in x.chunks_exact_mut(gain.len().max(1)) {
        let n = row.len() as f32;
        let mean = lanes(row, |x, sum| sum + x) / n;
        let variance = lanes(row, |x, sum| (x - mean).mul_add(x - mean, sum)) / n;
        let scale = 1.0 / (variance + eps).sqrt();
        for (x, g) in row.iter_mut().zip(gain) {
            *x = ((*x - mean) * scale) * g;
        }
        add(row, bias);
    }
}

/// A sum over a row in the 16 lanes.
#[inline(always)]
fn lanes(row: &[f32], add: impl Fn(f32, f32) -> f32) -> f32 {
    let mut lanes = [0.0; 16];
    let (blocks, rest) = row.as_chunks::<16>();
    for block in blocks {
        for (lane, x) in lanes.iter_mut().zip(block) {
            *lane = add(*x, *lane);
        }
    }
    for (lane, x) in lanes.iter_mut().zip(rest) {
        *lane = add(*x, *lane);
    }
    tree(lanes)
}

/// x += y.
#[inline(always)]
pub(super) fn add(x: &mut [f32], y: &[f32]) {
    for (x, y) in x.iter_mut().zip(y) {
        *x += y;
    }
}

/// x *= s.
#[inline(always)]
pub(super) fn scale(x: &mut [f32], s: f32) {
    for x in x {
        *x *= s;
    }
}

/// x = cap * tanh(x / cap).
#[inline(always)]
pub(super) fn soft_cap(x: &mut [f32], cap: f32) {
    for x in x {
        *x = cap * math::tanh(*x / cap);
    }
}

/// gate = silu(gate) * up.
#[inline(always)]
pub(super) fn swiglu(gate: &mut [f32], up: &[f32]) {
    for (g, u) in gate.iter_mut().zip(up) {
        *g = math::silu(*g) * u;
    }
}

/// gate = gelu(gate) * up.
#[inline(always)]
pub(super) fn geglu(gate: &mut [f32], up: &[f32]) {
    for (g, u) in gate.iter_mut().zip(up) {
        *g = math::gelu(*g) * u;
    }
}

/// gate = min(gate, 7) * sigmoid(1.702 gate) * (1 + up), with up between -7 and 7.
#[inline(always)]
pub(super) fn swiglu_clamped(gate: &mut [f32], up: &[f32]) {
    const LIMIT: f32 = 7.0;
    const ALPHA: f32 = 1.702;
    for (g, u) in gate.iter_mut().zip(up) {
        // A NaN stays one: `clamp` and the comparison keep it.
        let gate = if *g > LIMIT { LIMIT } else { *g };
        *g = math::silu(ALPHA * gate) / ALPHA * (1.0 + u.clamp(-LIMIT, LIMIT));
    }
}

/// gate = gelu(gate) * up, gelu by erf.
#[inline(always)]
pub(super) fn geglu_erf(gate: &mut [f32], up: &[f32]) {
    for (g, u) in gate.iter_mut().zip(up) {
        *g = math::gelu_erf(*g) * u;
    }
}

/// x = gelu(x), by erf.
#[inline(always)]
pub(super) fn gelu_erf(x: &mut [f32]) {
    for x in x {
        *x = math::gelu_erf(*x);
    }
}

/// x = silu(x).
#[inline(always)]
pub(super) fn silu(x: &mut [f32]) {
    for x in x {
        *x = math::silu(*x);
    }
}

/// x = max(x, 0).
#[inline(always)]
pub(super) fn relu(x: &mut [f32]) {
    for x in x {
        *x = math::relu(*x);
    }
}

/// x = max(x, 0)².
#[inline(always)]
pub(super) fn relu_squared(x: &mut [f32]) {
    for x in x {
        let positive = math::relu(*x);
        *x = positive * positive;
    }
}

/// x = gelu(x).
#[inline(always)]
pub(super) fn gelu(x: &mut [f32]) {
    for x in x {
        *x = math::gelu(*x);
    }
}

/// x = xielu(x), of its four numbers.
#[inline(always)]
pub(super) fn xielu(x: &mut [f32], [positive, negative, linear, limit]: [f32; 4]) {
    for x in x {
        let at = *x;
        // Written so that a NaN stays one.
        let below = if at > limit { limit } else { at };
        let curve = if at > 0.0 { positive * at * at } else { (math::exp_m1(below) - at) * negative };
        *x = curve + linear * at;
    }
}

/// to += from * factor.
#[inline(always)]
pub(super) fn add_scaled(to: &mut [f32], from: &[f32], factor: f32) {
    for (to, from) in to.iter_mut().zip(from) {
        *to = from.mul_add(factor, *to);
    }
}

/// x *= y.
#[inline(always)]
pub(super) fn multiply(x: &mut [f32], y: &[f32]) {
    for (x, y) in x.iter_mut().zip(y) {
        *x *= y;
    }
}

/// x *= sigmoid(gate).
#[inline(always)]
pub(super) fn gate_sigmoid(x: &mut [f32], gate: &[f32]) {
    for (x, gate) in x.iter_mut().zip(gate) {
        *x *= math::sigmoid(*gate);
    }
}

/// out += x * y.
#[inline(always)]
pub(super) fn multiply_add(out: &mut [f32], x: &[f32], y: &[f32]) {
    for ((out, x), y) in out.iter_mut().zip(x).zip(y) {
        *out = x.mul_add(*y, *out);
    }
}

/// x times factor / sqrt(sum of squares + eps).
#[inline(always)]
pub(super) fn unit(x: &mut [f32], eps: f32, factor: f32) {
    let squares = lanes(x, |x, sum| x.mul_add(x, sum));
    scale(x, factor / (squares + eps).sqrt());
}

/// Rotates each head of one row; the pair of angle `i` is (i, i + half).
#[inline(always)]
pub(super) fn rope_halves(row: &mut [f32], head_dim: usize, cos: &[f32], sin: &[f32]) {
    let half = cos.len();
    for head in row.chunks_exact_mut(head_dim) {
        let (first, second) = head.split_at_mut(half);
        for (((a, b), c), s) in first.iter_mut().zip(second).zip(cos).zip(sin) {
            (*a, *b) = (a.mul_add(*c, -(*b * s)), a.mul_add(*s, *b * c));
        }
    }
}

/// Rotates each head of one row; the pair of angle `i` is (2 i, 2 i + 1).
#[inline(always)]
pub(super) fn rope_interleaved(row: &mut [f32], head_dim: usize, cos: &[f32], sin: &[f32]) {
    for head in row.chunks_exact_mut(head_dim) {
        for ((pair, c), s) in head.chunks_exact_mut(2).zip(cos).zip(sin) {
            let (a, b) = (pair[0], pair[1]);
            pair[0] = a.mul_add(*c, -(b * s));
            pair[1] = a.mul_add(*s, b * c);
        }
    }
}

/// The greatest element; -inf for none. A NaN is passed over: the sum of exponentials shows it.
#[inline(always)]
pub(super) fn max(x: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; 16];
    let (blocks, rest) = x.as_chunks::<16>();
    for block in blocks {
        for (lane, v) in lanes.iter_mut().zip(block) {
            *lane = math::max(*v, *lane);
        }
    }
    rest.iter().chain(&lanes).fold(f32::NEG_INFINITY, |m, v| math::max(*v, m))
}

/// The sum of e^(x - max), in 16 virtual lanes of f64.
#[inline(always)]
pub(super) fn sum_exp(x: &[f32], max: f32) -> f64 {
    let mut lanes = [0f64; 16];
    let (blocks, rest) = x.as_chunks::<16>();
    for block in blocks {
        for (lane, v) in lanes.iter_mut().zip(block) {
            *lane += f64::from(math::exp(v - max));
        }
    }
    for (lane, v) in lanes.iter_mut().zip(rest) {
        *lane += f64::from(math::exp(v - max));
    }
    for width in [8, 4, 2, 1] {
        for lane in 0..width {
            lanes[lane] += lanes[lane + width];
        }
    }
    lanes[0]
}

/// To half precision, to the nearest with ties to even; infinity beyond its range.
pub(super) fn to_f16(x: &[f32], out: &mut [f16]) {
    for (o, x) in out.iter_mut().zip(x) {
        *o = f16::from_f32(*x);
    }
}

/// From half precision, exactly.
pub(super) fn to_f32(x: &[f16], out: &mut [f32]) {
    for (o, x) in out.iter_mut().zip(x) {
        *o = x.to_f32();
    }
}

/// Blocks of q8_0, exactly; the last may be shorter.
#[inline(always)]
pub(super) fn q8_row(quants: &[i8], scales: &[f16], out: &mut [f32]) {
    for (i, (quant, out)) in quants.iter().zip(out).enumerate() {
        *out = f32::from(*quant) * scales[i / KV_BLOCK].to_f32();
    }
}

/// One page's step of the running softmax, for each query.
///
/// `scores` of the keys in `low..high` become e^(score - m), those of the others 0, where `m` is the running maximum
/// with this page's. `running` is `(m, sum)`; `rescale` becomes what the sums so far must be multiplied by.
#[inline(always)]
pub(super) fn softmax_page(
    scores: &mut [Scores],
    low: usize,
    high: usize,
    running: &mut [(f32, f32)],
    rescale: &mut [f32],
) {
    // Several queries together, so that one need not wait for the other's sums, and their factors are one vector.
    const TOGETHER: usize = 8;
    let queries = scores.chunks_mut(TOGETHER).zip(running.chunks_mut(TOGETHER));
    for ((scores, running), rescale) in queries.zip(rescale.chunks_mut(TOGETHER)) {
        let (mut before, mut now) = ([0.0; TOGETHER], [0.0; TOGETHER]);
        for (((scores, running), before), now) in
            scores.iter_mut().zip(&*running).zip(&mut before).zip(&mut now)
        {
            // Most pages are whole, and then there is nothing to do.
            scores[..low].fill(f32::NEG_INFINITY);
            scores[high..].fill(f32::NEG_INFINITY);
            *before = running.0;
            *now = math::max(join(halves(scores, math::max), math::max), running.0);
        }
        let factors: [f32; TOGETHER] = std::array::from_fn(|query| math::exp(before[query] - now[query]));
        for ((scores, running), (now, factor)) in
            scores.iter_mut().zip(&mut *running).zip(now.iter().zip(&factors))
        {
            for score in scores.iter_mut() {
                *score = math::exp(*score - now);
            }
            *running = (*now, running.1.mul_add(*factor, tree(halves(scores, |a, b| a + b))));
        }
        rescale.copy_from_slice(&factors[..rescale.len()]);
    }
}

/// A page's tokens joined with those 16 further on.
#[inline(always)]
fn halves(scores: &Scores, two: impl Fn(f32, f32) -> f32) -> [f32; 16] {
    std::array::from_fn(|lane| two(scores[lane], scores[lane + 16]))
}

/// Adds a span's result for one query, `(maximum and sum of the exponentials, weighted values)`, to that of the spans
/// before it.
#[inline(always)]
pub(super) fn merge(
    (running, sums): (&mut (f32, f32), &mut [f32]),
    (part, part_sums): (&(f32, f32), &[f32]),
) {
    let max = math::max(running.0, part.0);
    let (before, now) = (math::exp(running.0 - max), math::exp(part.0 - max));
    *running = (max, part.1.mul_add(now, running.1 * before));
    for (sum, part) in sums.iter_mut().zip(part_sums) {
        *sum = part.mul_add(now, *sum * before);
    }
}

/// The scalar form of attention's inner steps.
pub(super) struct Scalar;

impl Form for Scalar {
    const FEW: usize = 0;

    fn to_f32(x: &[f16], out: &mut [f32]) {
        to_f32(x, out);
    }

    fn q8_keys(quants: &[i8], scales: &[f16], keys: &mut [f32]) {
        let rows = quants.chunks_exact(PAGE_TOKENS).zip(keys.chunks_exact_mut(PAGE_TOKENS));
        for (d, (quants, keys)) in rows.enumerate() {
            for token in 0..PAGE_TOKENS {
                let scale = scales[d / KV_BLOCK * PAGE_TOKENS + token];
                keys[token] = f32::from(quants[token]) * scale.to_f32();
            }
        }
    }

    fn q8_row(quants: &[i8], scales: &[f16], out: &mut [f32]) {
        q8_row(quants, scales, out);
    }

    fn scores<E: Element>(q: &[f32], dim: usize, keys: &[E], _: Ahead, scores: &mut [Scores]) {
        for (scores, q) in scores.iter_mut().zip(q.chunks_exact(dim)) {
            for (token, score) in scores.iter_mut().enumerate() {
                *score =
                    (0..dim).fold(0.0, |sum, d| q[d].mul_add(keys[d * PAGE_TOKENS + token].value(), sum));
            }
        }
    }

    fn soft_cap(scores: &mut Scores, cap: f32) {
        soft_cap(scores, cap);
    }

    fn softmax_page(
        scores: &mut [Scores],
        low: usize,
        high: usize,
        running: &mut [(f32, f32)],
        rescale: &mut [f32],
    ) {
        softmax_page(scores, low, high, running, rescale);
    }

    fn values<E: Element>(
        weights: &[Scores],
        keys: Range<usize>,
        values: &[E],
        _: Ahead,
        rescale: &[f32],
        sums: &mut [f32],
    ) {
        let dim = sums.len() / weights.len().max(1);
        for ((sums, weights), rescale) in sums.chunks_exact_mut(dim).zip(weights).zip(rescale) {
            for (d, sum) in sums.iter_mut().enumerate() {
                *sum *= rescale;
                for key in keys.clone() {
                    *sum = weights[key].mul_add(values[key * dim + d].value(), *sum);
                }
            }
        }
    }

    fn merge(total: (&mut (f32, f32), &mut [f32]), part: (&(f32, f32), &[f32])) {
        merge(total, part);
    }
}
