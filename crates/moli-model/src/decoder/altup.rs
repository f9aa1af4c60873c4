//! Streams beside each other, of which one goes through a layer (Gemma 3n): [`AltUp`].
//!
//! `s.x` is the active one while a layer computes. What streams are weighted with differs from row to row, so the host reads it.

use super::Scratch;
use crate::adapter::Adapters;
use crate::weights::{LayerStreams, Linear, Norm, Streams};
use crate::{AltUp, Backend, Config, ModelError};

/// The least mean square of a stream that is brought to the size of another.
const LEAST_SQUARE: f64 = 1e-5;

/// What the streams are computed in; every buffer is `[rows, …]`.
pub(crate) struct StreamScratch<B: Backend> {
    /// The streams, and what a layer predicts of them, `[hidden]` each.
    streams: Vec<B::Buffer>,
    predicted: Vec<B::Buffer>,
    /// What the router gives, `[streams]`, and coefficients of it, `[streams * streams]`.
    routed: B::Buffer,
    coefficients: B::Buffer,
    /// What a way around attention gives, `[hidden]`.
    around: B::Buffer,
    /// The size of each row, its number, and a weight for it.
    sizes: Vec<f32>,
    rows: Vec<u32>,
    weights: Vec<f32>,
}

impl<B: Backend> StreamScratch<B> {
    pub(super) fn new(b: &B, config: &Config, altup: AltUp, max_rows: usize) -> Result<Self, ModelError> {
        let n = altup.streams;
        let buffer = |cols: usize| b.buffer(max_rows, cols);
        let all = || (0..n).map(|_| buffer(config.hidden)).collect::<Result<Vec<_>, _>>();
        let list = || Vec::with_capacity(max_rows);
        Ok(Self {
            streams: all()?,
            predicted: all()?,
            routed: buffer(n)?,
            coefficients: buffer(n * n)?,
            around: buffer(config.hidden)?,
            sizes: list(),
            rows: Vec::with_capacity(max_rows),
            weights: list(),
        })
    }

    /// Columns of a row of all buffers.
    pub(crate) fn columns(config: &Config, altup: AltUp) -> usize {
        (2 * altup.streams + 1) * config.hidden + altup.streams * (altup.streams + 1)
    }
}

/// The root of the mean square of each row.
fn sizes(values: &[f32], cols: usize, least: f64, sizes: &mut Vec<f32>) {
    sizes.clear();
    let square = |row: &[f32]| row.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>();
    sizes.extend(values.chunks_exact(cols).map(|row| (square(row) / cols as f64).max(least).sqrt() as f32));
}

/// From the embeddings in `s.x` to all streams, each as large as they are.
pub(super) fn begin<B: Backend>(
    (b, a): (&mut B, &mut Adapters<B>),
    c: &Config,
    w: &Streams<B>,
    s: &mut Scratch<B>,
) -> Result<(), ModelError> {
    let Some(t) = &mut s.streams else { return Ok(()) };
    let count = b.rows(&s.x);
    t.rows.clear();
    t.rows.extend(0..count as u32);
    sizes(b.download(&s.x, &mut s.downloaded)?, c.hidden, 0.0, &mut t.sizes);
    if let Some(first) = t.streams.first_mut() {
        b.select(&s.x, &t.rows, first)?;
    }
    for (matrix, stream) in w.to.iter().zip(t.streams.iter_mut().skip(1)) {
        a.project(b, &s.x, None, &mut [(matrix, &mut s.h)])?;
        b.zero(stream, count, c.hidden)?;
        add_as_large(b, c, &s.h, (&t.sizes, &t.rows), (&mut t.weights, &mut s.downloaded), stream)?;
    }
    Ok(())
}

/// Back from all streams to `s.x`: the mean of them, each as large as the first is.
pub(super) fn end<B: Backend>(
    (b, a): (&mut B, &mut Adapters<B>),
    c: &Config,
    w: &Streams<B>,
    s: &mut Scratch<B>,
) -> Result<(), ModelError> {
    let Some(t) = &mut s.streams else { return Ok(()) };
    let Some(first) = t.streams.first() else { return Ok(()) };
    sizes(b.download(first, &mut s.downloaded)?, c.hidden, 0.0, &mut t.sizes);
    b.select(first, &t.rows, &mut s.x)?;
    for (matrix, stream) in w.from.iter().zip(t.streams.iter().skip(1)) {
        a.project(b, stream, None, &mut [(matrix, &mut s.h)])?;
        add_as_large(b, c, &s.h, (&t.sizes, &t.rows), (&mut t.weights, &mut s.downloaded), &mut s.x)?;
    }
    b.scale(&mut s.x, 1.0 / t.streams.len() as f32)
}

/// Adds `x` to `to`, each row of it made as large as `wanted` says.
fn add_as_large<B: Backend>(
    b: &mut B,
    c: &Config,
    x: &B::Buffer,
    (wanted, rows): (&[f32], &[u32]),
    (weights, downloaded): (&mut Vec<f32>, &mut Vec<f32>),
    to: &mut B::Buffer,
) -> Result<(), ModelError> {
    sizes(b.download(x, downloaded)?, c.hidden, LEAST_SQUARE, weights);
    weights.iter_mut().zip(wanted).for_each(|(size, wanted)| *size = wanted / *size);
    b.scatter_add(x, rows, weights, to)
}

/// Coefficients by what the router makes of `x`, into `t.coefficients`.
fn coefficients<B: Backend>(
    (b, a): (&mut B, &mut Adapters<B>),
    c: &Config,
    (router_norm, router, matrix): (&Norm<B::Vector>, &Linear<B>, &Linear<B>),
    (x, h): (&B::Buffer, &mut B::Buffer),
    (routed, coefficients): (&mut B::Buffer, &mut B::Buffer),
) -> Result<(), ModelError> {
    b.norm(x, router_norm, c.norm_eps, h)?;
    a.project(b, h, None, &mut [(router, &mut *routed)])?;
    // The hyperbolic tangent.
    b.soft_cap(routed, 1.0)?;
    a.project(b, routed, None, &mut [(matrix, coefficients)])
}

/// What the layer predicts of each stream, a mixture of all; the active one into `s.x`.
pub(super) fn predict<B: Backend>(
    (b, a): (&mut B, &mut Adapters<B>),
    c: &Config,
    w: &LayerStreams<B>,
    s: &mut Scratch<B>,
) -> Result<(), ModelError> {
    let (Some(t), Some(AltUp { streams: n, active })) = (&mut s.streams, c.altup) else { return Ok(()) };
    let by = (&w.router_norm, &w.router, &w.predict);
    let into = (&mut t.routed, &mut t.coefficients);
    coefficients((&mut *b, a), c, by, (&t.streams[active], &mut s.h), into)?;
    let found = b.download(&t.coefficients, &mut s.downloaded)?;
    for (to, predicted) in t.predicted.iter_mut().enumerate() {
        b.select(&t.streams[to], &t.rows, predicted)?;
        for (from, stream) in t.streams.iter().enumerate() {
            t.weights.clear();
            t.weights.extend(found.iter().skip(to * n + from).step_by(n * n));
            b.scatter_add(stream, &t.rows, &t.weights, predicted)?;
        }
    }
    b.select(&t.predicted[active], &t.rows, &mut s.x)
}

/// A way around attention, of what it reads, `s.h`.
pub(super) fn around<B: Backend>(
    (b, a): (&mut B, &mut Adapters<B>),
    c: &Config,
    w: &LayerStreams<B>,
    s: &mut Scratch<B>,
) -> Result<(), ModelError> {
    let (Some(t), [there, back]) = (&mut s.streams, &w.around) else { return Ok(()) };
    a.project(b, &s.h, None, &mut [(there, &mut s.gate)])?;
    a.project(b, &s.gate, None, &mut [(back, &mut s.normed)])?;
    b.norm(&s.normed, &w.around_norm, c.norm_eps, &mut t.around)?;
    b.add(&mut t.around, &s.h)
}

/// Adds what the way around attention gave to what attention made of `s.x`.
pub(super) fn join<B: Backend>(b: &mut B, s: &mut Scratch<B>) -> Result<(), ModelError> {
    let Some(t) = &mut s.streams else { return Ok(()) };
    b.add(&mut s.x, &t.around)?;
    b.scale(&mut s.x, std::f32::consts::FRAC_1_SQRT_2)
}

/// Corrects each stream by how far the layer came from what it had predicted of the active one, `s.x`, which gets the factors that
/// the layer's own vectors of tokens meet.
pub(super) fn correct<B: Backend>(
    (b, a): (&mut B, &mut Adapters<B>),
    c: &Config,
    w: &LayerStreams<B>,
    s: &mut Scratch<B>,
) -> Result<(), ModelError> {
    let (Some(t), Some(AltUp { streams: n, active })) = (&mut s.streams, c.altup) else { return Ok(()) };
    let by = (&w.router_norm, &w.router, &w.correct);
    let into = (&mut t.routed, &mut t.coefficients);
    coefficients((&mut *b, a), c, by, (&s.x, &mut s.h), into)?;
    let found = b.download(&t.coefficients, &mut s.downloaded)?;
    t.weights.clear();
    t.weights.resize(t.rows.len(), -1.0);
    b.scatter_add(&t.predicted[active], &t.rows, &t.weights, &mut s.x)?;
    for (i, (stream, predicted)) in t.streams.iter_mut().zip(&t.predicted).enumerate() {
        t.weights.clear();
        t.weights.extend(found.iter().skip(i).step_by(n).map(|coefficient| 1.0 + coefficient));
        b.select(predicted, &t.rows, stream)?;
        b.scatter_add(&s.x, &t.rows, &t.weights, stream)?;
    }
    b.select(&t.streams[active], &t.rows, &mut s.x)?;
    b.norm(&s.x, &w.scale, c.norm_eps, &mut s.h)?;
    b.multiply(&mut s.x, &s.h)
}

/// Adds what the layer made of its own vector of a token, `s.normed`, to all streams but the first.
pub(super) fn add_input<B: Backend>(
    b: &mut B,
    c: &Config,
    norm: &Norm<B::Vector>,
    s: &mut Scratch<B>,
) -> Result<(), ModelError> {
    let Some(t) = &mut s.streams else { return Ok(()) };
    b.norm(&s.normed, norm, c.norm_eps, &mut s.h)?;
    t.streams.iter_mut().skip(1).try_for_each(|stream| b.add(stream, &s.h))
}
