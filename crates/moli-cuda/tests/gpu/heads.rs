//! Sequences whose keys and values lie in a cache, and what attention to them should be: softmax in f64.

use half::f16;
use moli_cuda::{Cache, Gpu, KvKind, Rows, Shape};
use moli_kernels::{KV_BLOCK, KvSlot, PAGE_TOKENS};

use crate::common::{Random, buffer, empty, gpu_for, read};

/// The most that an element may be off, in terms of the greatest value: the roundings of a score, its exponential, and of sums.
pub(crate) const TOLERANCE: f64 = 3e-6;

/// A row of a batch: its sequence and its position.
pub(crate) type Row = (u32, u32);

/// Some sequences in a cache of two layers, of which the second is theirs.
pub(crate) struct Sequences {
    pub(crate) gpu: Gpu,
    pub(crate) cache: Cache,
    kind: KvKind,
    kv_heads: usize,
    dim: usize,
    /// Pages of each sequence, which lie among those of the others, the last first; and one that is never written.
    tables: Vec<Vec<u32>>,
    /// Of each sequence `[token, kv_head, element]`.
    pub(crate) keys: Vec<Vec<f32>>,
    pub(crate) values: Vec<Vec<f32>>,
}

/// Of which layer the sequences are.
const LAYER: usize = 1;

impl Sequences {
    pub(crate) fn new(
        kind: KvKind,
        kv_heads: usize,
        dim: usize,
        tokens: &[usize],
        random: &mut Random,
    ) -> Self {
        let pages = |tokens: &usize| tokens.div_ceil(PAGE_TOKENS) + 1;
        let count: usize = tokens.iter().map(pages).sum();
        let mut tables = vec![Vec::new(); tokens.len()];
        let (mut page, mut sequence) = (count as u32, 0);
        while page > 0 {
            if tables[sequence].len() < pages(&tokens[sequence]) {
                page -= 1;
                tables[sequence].push(page);
            }
            sequence = (sequence + 1) % tokens.len();
        }
        let gpu = gpu_for(tokens.iter().sum::<usize>().max(80), kv_heads * dim);
        let cache = Cache::new(&gpu, &[(kv_heads, dim); LAYER + 1], count, kind).unwrap();
        let mut floats = || tokens.iter().map(|tokens| random.floats(tokens * kv_heads * dim)).collect();
        let (keys, values) = (floats(), floats());
        let mut all = Self { gpu, cache, kind, kv_heads, dim, tables, keys, values };
        all.store();
        all
    }

    fn tokens(&self, sequence: usize) -> usize {
        self.keys[sequence].len() / (self.kv_heads * self.dim)
    }

    /// Writes all keys and values.
    pub(crate) fn store(&mut self) {
        let rows: Vec<Row> = (0..self.tables.len())
            .flat_map(|sequence| {
                (0..self.tokens(sequence)).map(move |position| (sequence as u32, position as u32))
            })
            .collect();
        self.begin(&rows, None);
        let keys = buffer(&mut self.gpu, rows.len(), &self.keys.concat());
        let values = buffer(&mut self.gpu, rows.len(), &self.values.concat());
        self.gpu.store(&mut self.cache, LAYER, &keys, &values).unwrap();
    }

    fn begin(&mut self, rows: &[Row], lengths: Option<&[u32]>) {
        let (sequences, positions): (Vec<u32>, Vec<u32>) = rows.iter().copied().unzip();
        let slot = |&(sequence, position): &Row| KvSlot {
            page: self.tables[sequence as usize][position as usize / PAGE_TOKENS],
            token: position % PAGE_TOKENS as u32,
        };
        let slots: Vec<KvSlot> = rows.iter().map(slot).collect();
        let tables: Vec<&[u32]> = self.tables.iter().map(Vec::as_slice).collect();
        let rows =
            Rows { positions: &positions, sequences: &sequences, lengths, tables: &tables, slots: &slots };
        self.gpu.begin(&rows).unwrap();
    }

    /// The query of a row, the same whenever it is asked for.
    pub(crate) fn query(&self, (sequence, position): Row, heads: usize) -> Vec<f32> {
        Random::new(u64::from(sequence) << 32 | u64::from(position) | 1 << 60).floats(heads * self.dim)
    }

    pub(crate) fn attend(&mut self, rows: &[Row], spec: &Spec) -> Vec<f32> {
        let queries: Vec<f32> = rows.iter().flat_map(|&row| self.query(row, spec.heads)).collect();
        self.attend_to(&queries, rows, spec)
    }

    pub(crate) fn attend_to(&mut self, queries: &[f32], rows: &[Row], spec: &Spec) -> Vec<f32> {
        let lengths: Vec<u32> = (0..self.tables.len()).map(|sequence| self.tokens(sequence) as u32).collect();
        self.begin(rows, spec.whole.then_some(&lengths));
        let q = buffer(&mut self.gpu, rows.len(), queries);
        let sinks = spec.sinks.as_ref().map(|sinks| self.gpu.vector(sinks).unwrap());
        let shape = self.shape(spec);
        let mut out = empty(&self.gpu);
        self.gpu.attention(&q, sinks.as_ref(), &self.cache, LAYER, &shape, &mut out).unwrap();
        read(&self.gpu, &out)
    }

    fn shape(&self, spec: &Spec) -> Shape {
        Shape {
            heads: spec.heads,
            kv_heads: self.kv_heads,
            head_dim: self.dim,
            scale: 2.0 / (self.dim as f32).sqrt(),
            soft_cap: spec.soft_cap,
            window: spec.window,
        }
    }

    /// A head as the cache keeps it.
    fn kept(&self, head: &[f32]) -> Vec<f64> {
        match self.kind {
            KvKind::F32 => head.iter().map(|&x| f64::from(x)).collect(),
            KvKind::F16 => head.iter().map(|&x| f16::from_f32(x).to_f64()).collect(),
            KvKind::Q8_0 => head.chunks(KV_BLOCK).flat_map(kept_as_bytes).collect(),
        }
    }

    /// What a row's attention should be.
    pub(crate) fn expected(&self, (sequence, position): Row, spec: &Spec) -> Vec<f64> {
        let (sequence, position) = (sequence as usize, position as usize);
        let shape = self.shape(spec);
        let window = spec.window.unwrap_or(usize::MAX);
        let first = (position + 1).saturating_sub(window);
        let end = if spec.whole {
            self.tokens(sequence).min(position.saturating_add(window))
        } else {
            position + 1
        };
        let query = self.query((sequence as u32, position as u32), spec.heads);
        let mut out = Vec::new();
        for (head, query) in query.chunks(self.dim).enumerate() {
            let kv_head = head / (spec.heads / self.kv_heads);
            let of = |all: &[Vec<f32>], token: usize| {
                self.kept(&all[sequence][(token * self.kv_heads + kv_head) * self.dim..][..self.dim])
            };
            let score = |token: usize| {
                let key = of(&self.keys, token);
                let dot: f64 = query.iter().zip(key).map(|(&q, key)| f64::from(q) * key).sum();
                let score = dot * f64::from(shape.scale);
                shape.soft_cap.map_or(score, |cap| f64::from(cap) * (score / f64::from(cap)).tanh())
            };
            let scores: Vec<f64> = (first..end).map(score).collect();
            let sink = spec.sinks.as_ref().map(|sinks| f64::from(sinks[head]));
            let max = scores.iter().copied().chain(sink).fold(f64::NEG_INFINITY, f64::max);
            let weights: Vec<f64> = scores.iter().map(|score| (score - max).exp()).collect();
            let sum: f64 = weights.iter().sum::<f64>() + sink.map_or(0.0, |sink| (sink - max).exp());
            let mut total = vec![0.0; self.dim];
            for (weight, token) in weights.iter().zip(first..) {
                for (total, value) in total.iter_mut().zip(of(&self.values, token)) {
                    *total += weight / sum * value;
                }
            }
            out.extend(total);
        }
        out
    }

    /// Attention of these rows, which is compared with what it should be.
    pub(crate) fn check(&mut self, rows: &[Row], spec: &Spec) -> Vec<f32> {
        let found = self.attend(rows, spec);
        for (&row, found) in rows.iter().zip(found.chunks(spec.heads * self.dim)) {
            for (at, (found, expected)) in found.iter().zip(self.expected(row, spec)).enumerate() {
                let off = (f64::from(*found) - expected).abs();
                assert!(
                    off <= TOLERANCE,
                    "{:?}, {} heads to {} of {}, {spec:?}, row {row:?}, element {at}: {found} for {expected}, off by {off:e}",
                    self.kind,
                    spec.heads,
                    self.kv_heads,
                    self.dim
                );
            }
        }
        found
    }
}

/// A block of a head as q8_0 keeps it.
pub(crate) fn kept_as_bytes(block: &[f32]) -> Vec<f64> {
    let (scale, bytes) = as_bytes(block);
    bytes.into_iter().map(|byte| f64::from(byte) * scale.to_f64()).collect()
}

/// The scale and the bytes.
pub(crate) fn as_bytes(block: &[f32]) -> (f16, Vec<i8>) {
    let step = block.iter().fold(0.0_f32, |max, x| max.max(x.abs())) / 127.0;
    let inverse = 1.0 / step;
    let byte = |x: &f32| if inverse.is_finite() { (x * inverse).round_ties_even() as i8 } else { 0 };
    (f16::from_f32(step), block.iter().map(byte).collect())
}

/// How a layer attends.
#[derive(Debug, Clone, Default)]
pub(crate) struct Spec {
    pub(crate) heads: usize,
    pub(crate) soft_cap: Option<f32>,
    pub(crate) window: Option<usize>,
    pub(crate) sinks: Option<Vec<f32>>,
    /// Whether rows see their whole sequence.
    pub(crate) whole: bool,
}

impl Spec {
    pub(crate) fn new(heads: usize) -> Self {
        Self { heads, ..Self::default() }
    }
}
