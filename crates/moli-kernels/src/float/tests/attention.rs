//! Attention on both types of pages, and what is stored in them.

use super::*;
use crate::{dequantize, quantize};
use moli_format::TensorType;

/// How keys and values are kept.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    F16,
    Q8_0,
}

const KINDS: [Kind; 2] = [Kind::F16, Kind::Q8_0];

/// The keys or the values of some pages, each page and head an entry, and how they lie in it.
#[derive(Clone, Debug, PartialEq)]
struct Stored {
    halves: Vec<f16>,
    quants: Vec<i8>,
    /// With `halves` empty; else empty, as `quants` are.
    scales: Vec<f16>,
    dim: usize,
    transposed: bool,
}

impl Stored {
    /// Zeros for `entries` pages and heads.
    fn new(kind: Kind, entries: usize, dim: usize, transposed: bool) -> Stored {
        let (elements, scales) =
            (entries * PAGE_TOKENS * dim, entries * PAGE_TOKENS * dim.div_ceil(KV_BLOCK));
        let (halves, quants, scales) = match kind {
            Kind::F16 => (elements, 0, 0),
            Kind::Q8_0 => (0, elements, scales),
        };
        Stored {
            halves: vec![f16::ZERO; halves],
            quants: vec![0; quants],
            scales: vec![f16::ZERO; scales],
            dim,
            transposed,
        }
    }

    /// Elements below 4; the 8 bits are used in full.
    fn fill(mut self, random: &mut Random) -> Stored {
        self.halves = random.halves(self.halves.len());
        self.quants.fill_with(|| (random.next() >> 40) as i8);
        self.scales.fill_with(|| f16::from_f32(random.float().abs() / 128.0));
        self
    }

    fn pages(&self) -> KvPages<'_> {
        match self.scales.is_empty() {
            true => KvPages::F16(&self.halves),
            false => KvPages::Q8_0 { quants: &self.quants, scales: &self.scales },
        }
    }

    fn pages_mut(&mut self) -> KvPagesMut<'_> {
        match self.scales.is_empty() {
            true => KvPagesMut::F16(&mut self.halves),
            false => KvPagesMut::Q8_0 { quants: &mut self.quants, scales: &mut self.scales },
        }
    }

    /// The places of an element and of its scale.
    fn places(&self, entry: usize, token: usize, d: usize) -> (usize, usize) {
        let (blocks, block) = (self.dim.div_ceil(KV_BLOCK), d / KV_BLOCK);
        let (element, scale) = if self.transposed {
            (d * PAGE_TOKENS + token, block * PAGE_TOKENS + token)
        } else {
            (token * self.dim + d, token * blocks + block)
        };
        (entry * PAGE_TOKENS * self.dim + element, entry * PAGE_TOKENS * blocks + scale)
    }

    fn get(&self, entry: usize, token: usize, d: usize) -> f64 {
        let (element, scale) = self.places(entry, token, d);
        match self.scales.get(scale) {
            Some(scale) => f64::from(self.quants[element]) * scale.to_f64(),
            None => self.halves[element].to_f64(),
        }
    }

    /// Zeros an element and its scale.
    fn clear(&mut self, entry: usize, token: usize, d: usize) {
        let (element, scale) = self.places(entry, token, d);
        self.spoil(entry, token, d, f16::ZERO);
        if scale < self.scales.len() {
            self.quants[element] = 0;
        }
    }

    /// Sets an element, or in q8_0 its block's scale.
    fn spoil(&mut self, entry: usize, token: usize, d: usize, value: f16) {
        let (element, scale) = self.places(entry, token, d);
        match self.scales.get_mut(scale) {
            Some(scale) => *scale = value,
            None => self.halves[element] = value,
        }
    }
}

/// A little model of a cache: sequences with shuffled pages.
struct Cache {
    k: Stored,
    v: Stored,
    tables: Vec<Vec<u32>>,
}

/// Three spans and a bit.
const SEQUENCE_PAGES: usize = 34;

impl Cache {
    fn new(kind: Kind, random: &mut Random, sequences: usize, kv_heads: usize, head_dim: usize) -> Cache {
        let pages = sequences * SEQUENCE_PAGES + 1;
        let mut order: Vec<u32> = (0..pages as u32).collect();
        for i in (1..pages).rev() {
            order.swap(i, random.next() as usize % (i + 1));
        }
        let tables = order.chunks_exact(SEQUENCE_PAGES).take(sequences).map(<[u32]>::to_vec).collect();
        let mut stored = |keys| Stored::new(kind, pages * kv_heads, head_dim, keys).fill(random);
        Cache { k: stored(true), v: stored(false), tables }
    }
}

#[derive(Clone, Copy, Debug)]
struct Shape {
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    soft_cap: Option<f32>,
    window: Option<usize>,
    /// The first head's sink; each further head's is 1 more.
    sink: Option<f32>,
    /// Tokens of each sequence, where a row attends to all of them.
    whole: Option<u32>,
}

impl Shape {
    fn sinks(&self) -> Option<Vec<f32>> {
        self.sink.map(|sink| (0..self.heads).map(|head| sink + head as f32).collect())
    }
}

/// Rows `(sequence, position)` with queries `q`.
fn attend(k: &Kernels, pool: &Pool, cache: &Cache, shape: Shape, rows: &[(u32, u32)], q: &[f32]) -> Vec<f32> {
    let tables: Vec<&[u32]> = cache.tables.iter().map(Vec::as_slice).collect();
    let (sequences, positions): (Vec<u32>, Vec<u32>) = rows.iter().copied().unzip();
    let sinks = shape.sinks();
    let lengths = shape.whole.map(|length| vec![length; tables.len()]);
    let args = AttentionArgs {
        q,
        k_pages: cache.k.pages(),
        v_pages: cache.v.pages(),
        tables: &tables,
        sequences: &sequences,
        positions: &positions,
        lengths: lengths.as_deref(),
        heads: shape.heads,
        kv_heads: shape.kv_heads,
        head_dim: shape.head_dim,
        scale: 1.0 / (shape.head_dim as f32).sqrt(),
        soft_cap: shape.soft_cap,
        window: shape.window,
        sinks: sinks.as_deref(),
    };
    let mut out = vec![f32::MAX; q.len()];
    k.attention(pool, &args, &mut out).expect("the arguments fit");
    out
}

/// One row by the definition, in f64.
fn reference(cache: &Cache, shape: Shape, (sequence, position): (u32, u32), q: &[f32]) -> Vec<f64> {
    let Shape { heads, kv_heads, head_dim: dim, soft_cap, window, .. } = shape;
    let end = position as usize + 1;
    let start = window.map_or(0, |w| end.saturating_sub(w));
    let end =
        shape.whole.map_or(end, |length| window.map_or(usize::MAX, |w| end + w - 1).min(length as usize));
    let mut out = Vec::new();
    for head in 0..heads {
        let entry = |key: usize| {
            let page = cache.tables[sequence as usize][key / PAGE_TOKENS] as usize;
            page * kv_heads + head / (heads / kv_heads)
        };
        let q = &q[head * dim..(head + 1) * dim];
        let score = |key: usize| {
            let k = (0..dim).map(|d| cache.k.get(entry(key), key % PAGE_TOKENS, d));
            let dot: f64 = q.iter().zip(k).map(|(q, k)| f64::from(*q) * k).sum();
            let score = dot / (dim as f64).sqrt();
            soft_cap.map_or(score, |c| f64::from(c) * (score / f64::from(c)).tanh())
        };
        let scores: Vec<f64> = (start..end).map(score).collect();
        let max = scores.iter().copied().fold(f64::MIN, f64::max);
        let total: f64 = scores.iter().map(|s| (s - max).exp()).sum();
        let total = total + shape.sinks().map_or(0.0, |sinks| (f64::from(sinks[head]) - max).exp());
        for d in 0..dim {
            let sum: f64 = (start..end)
                .zip(&scores)
                .map(|(key, s)| (s - max).exp() * cache.v.get(entry(key), key % PAGE_TOKENS, d))
                .sum();
            out.push(sum / total);
        }
    }
    out
}

fn shapes() -> Vec<Shape> {
    let base =
        Shape { heads: 9, kv_heads: 3, head_dim: 64, soft_cap: None, window: None, sink: None, whole: None };
    let mut shapes = vec![base];
    shapes.extend([80, 96, 128, 256, 40, 5].map(|head_dim| Shape {
        heads: 4,
        kv_heads: 2,
        head_dim,
        ..base
    }));
    shapes.extend([1, 31, 32, 33, 1000].map(|w| Shape { heads: 2, kv_heads: 1, window: Some(w), ..base }));
    shapes.push(Shape {
        heads: 4,
        kv_heads: 1,
        head_dim: 256,
        soft_cap: Some(2.0),
        window: Some(40),
        ..base
    });
    shapes.push(Shape { heads: 6, kv_heads: 2, sink: Some(-1.5), ..base });
    shapes.push(Shape { heads: 2, kv_heads: 1, sink: Some(6.0), window: Some(40), ..base });
    shapes.push(Shape { heads: 2, kv_heads: 2, soft_cap: Some(30.0), ..base });
    shapes.extend([None, Some(1), Some(33), Some(600)].map(|window| Shape {
        heads: 4,
        kv_heads: 2,
        window,
        whole: Some(1045),
        ..base
    }));
    shapes
}

/// Positions around the edges of pages and spans, of two sequences.
fn edge_rows() -> Vec<(u32, u32)> {
    let positions = [0, 1, 2, 30, 31, 32, 33, 63, 64, 95, 96, 127, 510, 511, 512, 513, 1023, 1024, 1087];
    [1, 0].into_iter().flat_map(|s| positions.map(|p| (s, p))).collect()
}

#[test]
fn attention_is_near_f64_and_agrees_between_instruction_sets() {
    let (plain, others) = kernels();
    let mut random = Random(17);
    for (kind, shape) in KINDS.into_iter().flat_map(|kind| shapes().into_iter().map(move |s| (kind, s))) {
        let cache = Cache::new(kind, &mut random, 2, shape.kv_heads, shape.head_dim);
        let mut rows = edge_rows();
        rows.retain(|&(_, position)| shape.whole.is_none_or(|length| position < length));
        let row_len = shape.heads * shape.head_dim;
        let q = random.floats(rows.len() * row_len, 2.0);
        let got = attend(&plain, &Pool::new(1), &cache, shape, &rows, &q);
        for (r, row) in rows.iter().enumerate() {
            let columns = r * row_len..(r + 1) * row_len;
            let want = reference(&cache, shape, *row, &q[columns.clone()]);
            for (got, want) in got[columns].iter().zip(want) {
                // Scores of a size up to 10 in f32, values below 4: a few roundings of 6e-8 each.
                assert!((f64::from(*got) - want).abs() < 1e-5, "{kind:?} {shape:?} {row:?}: {got} {want}");
            }
        }
        for k in &others {
            assert_same(
                &got,
                &attend(k, &Pool::new(1), &cache, shape, &rows, &q),
                &format!("{kind:?} {shape:?}"),
            );
        }
    }
}

#[test]
fn attention_has_the_same_bits_in_any_batch_and_on_any_threads() {
    let (plain, others) = kernels();
    let k = others.first().unwrap_or(&plain);
    let pools = [1, 2, 3, 4].map(Pool::new);
    let mut random = Random(19);
    for (kind, shape) in KINDS.into_iter().flat_map(|kind| shapes().into_iter().map(move |s| (kind, s))) {
        let cache = Cache::new(kind, &mut random, 2, shape.kv_heads, shape.head_dim);
        let positions = || (0..40).chain(504..520).chain(1020..1030);
        let rows: Vec<(u32, u32)> = (0..2).flat_map(|s| positions().map(move |p| (s, p))).collect();
        let row_len = shape.heads * shape.head_dim;
        let q = random.floats(rows.len() * row_len, 2.0);
        let want = attend(k, &pools[0], &cache, shape, &rows, &q);
        for (threads, chunk) in [(2, 132), (3, 132), (1, 1), (2, 1), (4, 2), (2, 7), (3, 32), (2, 100)] {
            let mut got = Vec::new();
            for (rows, q) in rows.chunks(chunk).zip(q.chunks(chunk * row_len)) {
                got.extend(attend(k, &pools[threads - 1], &cache, shape, rows, q));
            }
            assert_same(&want, &got, &format!("{kind:?} {shape:?}, {threads} threads, {chunk} rows at once"));
        }
    }
}

#[test]
fn attention_shows_nan_where_it_is_seen_and_only_there() {
    let (plain, others) = kernels();
    let shape =
        Shape { heads: 2, kv_heads: 1, head_dim: 64, soft_cap: None, window: None, sink: None, whole: None };
    for k in others.iter().chain([&plain]) {
        for (kind, soft_cap) in KINDS.into_iter().flat_map(|kind| [(kind, None), (kind, Some(5.0))]) {
            let shape = Shape { soft_cap, ..shape };
            let mut random = Random(23);
            let mut cache = Cache::new(kind, &mut random, 1, 1, 64);
            let rows: Vec<(u32, u32)> = (0..70).map(|p| (0, p)).collect();
            let mut q = random.floats(70 * 128, 1.0);
            // A key at position 40 and a value at position 50, the page's remainder as a freed page may leave it.
            let page = cache.tables[0][1] as usize;
            cache.k.spoil(page, 40 - 32, 3, f16::NAN);
            cache.v.spoil(page, 50 - 32, 5, f16::INFINITY);
            q[20 * 128 + 7] = f32::NAN;
            let out = attend(k, &Pool::new(2), &cache, shape, &rows, &q);
            for (p, row) in out.chunks_exact(128).enumerate() {
                for head in 0..2 {
                    let nan = row[head * 64..][..64].iter().all(|v| v.is_nan());
                    let finite = row[head * 64..][..64].iter().all(|v| v.is_finite());
                    assert!(
                        if p >= 40 || (p == 20 && head == 0) { nan } else { finite },
                        "{kind:?}, position {p}, head {head}"
                    );
                }
            }
        }
    }
}

#[test]
fn attention_refuses_what_does_not_fit() {
    let (plain, _) = kernels();
    let mut random = Random(29);
    let cache = Cache::new(Kind::F16, &mut random, 1, 1, 16);
    let pool = Pool::new(1);
    let q = vec![0.0; 32];
    let (table, short, bad) = ([0u32, 1, 2], [0u32], [0u32, 99]);
    let args = AttentionArgs {
        q: &q,
        k_pages: cache.k.pages(),
        v_pages: cache.v.pages(),
        tables: &[&table],
        sequences: &[0, 0],
        positions: &[0, 40],
        lengths: None,
        heads: 1,
        kv_heads: 1,
        head_dim: 16,
        scale: 1.0,
        soft_cap: None,
        window: None,
        sinks: None,
    };
    let mut out = vec![0.0; 32];
    let mut what = |args: AttentionArgs<'_>| match plain.attention(&pool, &args, &mut out) {
        Ok(()) => "fits",
        Err(KernelError::Length { what, .. }) => what,
        #[allow(unreachable_patterns)]
        Err(_) => "another error",
    };
    assert_eq!(what(args), "fits");
    assert_eq!(what(AttentionArgs { tables: &[&short], ..args }), "attention page table");
    assert_eq!(what(AttentionArgs { tables: &[&bad], ..args }), "attention page");
    assert_eq!(what(AttentionArgs { positions: &[0, u32::MAX], ..args }), "attention page table");
    assert_eq!(what(AttentionArgs { sequences: &[0, 1], ..args }), "attention sequence");
    assert_eq!(what(AttentionArgs { sequences: &[0], ..args }), "attention sequences");
    assert_eq!(what(AttentionArgs { q: &q[1..], ..args }), "attention queries");
    let fewer = KvPages::F16(&cache.v.halves[1..]);
    assert_eq!(what(AttentionArgs { v_pages: fewer, ..args }), "attention values");
    let Stored { quants, scales, .. } = Stored::new(Kind::Q8_0, SEQUENCE_PAGES + 1, 16, false);
    let fewer = KvPages::Q8_0 { quants: &quants, scales: &scales[1..] };
    assert_eq!(what(AttentionArgs { v_pages: fewer, ..args }), "attention values");
    assert_eq!(what(AttentionArgs { window: Some(0), ..args }), "attention heads");
    assert_eq!(what(AttentionArgs { lengths: Some(&[41]), ..args }), "fits");
    assert_eq!(what(AttentionArgs { lengths: Some(&[40]), ..args }), "attention position");
    assert_eq!(what(AttentionArgs { lengths: Some(&[97]), ..args }), "attention page table");
    assert_eq!(what(AttentionArgs { lengths: Some(&[]), ..args }), "attention lengths");
    assert_eq!(what(AttentionArgs { kv_heads: 0, ..args }), "attention heads");
    assert_eq!(what(AttentionArgs { sinks: Some(&[]), ..args }), "attention sinks");
    assert_eq!(what(AttentionArgs { head_dim: usize::MAX, heads: 2, ..args }), "attention rows");
    // A page before the window may be gone.
    let gone = [99u32, 1];
    assert_eq!(
        what(AttentionArgs { tables: &[&gone], positions: &[40, 41], window: Some(9), ..args }),
        "fits"
    );
}

#[test]
fn keys_and_values_go_to_their_slots() {
    let (plain, others) = kernels();
    // The last head ends with a shorter block.
    for ((k, kind), dim) in others
        .iter()
        .chain([&plain])
        .flat_map(|k| KINDS.map(|kind| (k, kind)))
        .flat_map(|what| [24, 64, 80].map(|dim| (what, dim)))
    {
        let (kv_heads, pages, pool) = (2, 3, Pool::new(1));
        let stored = |keys| Stored::new(kind, pages * kv_heads, dim, keys);
        let (mut k_pages, mut v_pages) = (stored(true), stored(false));
        let (mut keys, mut values) =
            (Random(31).floats(2 * kv_heads * dim, 1.0), Random(41).floats(2 * kv_heads * dim, 1.0));
        for x in [&mut keys, &mut values] {
            x[0] = 1e9;
            x[1] = 1.0 + 0.75 / 1024.0;
            // A block of zeros.
            x[dim..].iter_mut().take(KV_BLOCK).for_each(|x| *x = 0.0);
        }
        let slots = [KvSlot { page: 2, token: 31 }, KvSlot { page: 0, token: 0 }];
        let pages = (k_pages.pages_mut(), v_pages.pages_mut());
        k.store_kv(&pool, (&keys, &values), kv_heads, dim, &slots, pages).expect("the slots exist");
        for (from, pages) in [(&keys, &k_pages), (&values, &v_pages)] {
            let mut found = pages.clone();
            for (head, x) in from.chunks_exact(dim).enumerate() {
                let slot = slots[head / kv_heads];
                let entry = slot.page as usize * kv_heads + head % kv_heads;
                for (d, want) in expected(kind, x).into_iter().enumerate() {
                    let got = pages.get(entry, slot.token as usize, d);
                    assert!(got == want || got.is_nan() && want.is_nan(), "{kind:?} {dim} {d}: {got} {want}");
                    found.clear(entry, slot.token as usize, d);
                }
            }
            assert_eq!(found, stored(found.transposed), "nothing is written elsewhere");
        }
        let mut refused = |keys: &[f32], values: &[f32], slots: &[KvSlot]| {
            let pages = (k_pages.pages_mut(), v_pages.pages_mut());
            k.store_kv(&pool, (keys, values), kv_heads, dim, slots, pages).is_err()
        };
        for slot in [KvSlot { page: 3, token: 0 }, KvSlot { page: 0, token: 32 }] {
            assert!(refused(&keys[..kv_heads * dim], &values[..kv_heads * dim], &[slot]));
        }
        assert!(refused(&keys[1..], &values, &slots));
        assert!(refused(&keys, &values[1..], &slots));
    }
}

#[test]
fn threads_store_what_one_does_row_by_row() {
    let (k, _) = kernels();
    let (kv_heads, dim, rows) = (3, 40, 50);
    let width = kv_heads * dim;
    let (keys, values) = (Random(61).floats(rows * width, 1.0), Random(67).floats(rows * width, 1.0));
    // Every page of four, in no order.
    let slot = |row: usize| KvSlot { page: (row * 7 % 4) as u32, token: (row / 4 + row * 7 % 4) as u32 };
    let slots: Vec<KvSlot> = (0..rows).map(slot).collect();
    for kind in KINDS {
        let [whole, by_row] = [true, false].map(|at_once| {
            let (mut k_pages, mut v_pages) =
                (Stored::new(kind, 4 * kv_heads, dim, true), Stored::new(kind, 4 * kv_heads, dim, false));
            for (index, slots) in slots.chunks(if at_once { rows } else { 1 }).enumerate() {
                let part = index * width..(index + slots.len()) * width;
                let pages = (k_pages.pages_mut(), v_pages.pages_mut());
                let pool = Pool::new(if at_once { 3 } else { 1 });
                k.store_kv(&pool, (&keys[part.clone()], &values[part]), kv_heads, dim, slots, pages)
                    .expect("the slots exist");
            }
            (k_pages, v_pages)
        });
        assert_eq!(whole, by_row);
        assert_ne!(whole.0, Stored::new(kind, 4 * kv_heads, dim, true));
    }
}

/// A head as it is read again: in q8_0 by the blocks of a file.
fn expected(kind: Kind, x: &[f32]) -> Vec<f64> {
    if kind == Kind::F16 {
        return x.iter().map(|x| f16::from_f32(*x).to_f64()).collect();
    }
    // A shorter block is as one that ends in zeros.
    let mut whole = x.to_vec();
    whole.resize(x.len().next_multiple_of(KV_BLOCK), 0.0);
    let (mut bytes, mut out) = (Vec::new(), whole.clone());
    quantize(TensorType::Q8_0, &whole, &mut bytes).expect("whole blocks");
    dequantize(TensorType::Q8_0, &bytes, &mut out).expect("whole blocks");
    out.iter().take(x.len()).map(|x| f64::from(*x)).collect()
}

#[test]
fn q8_0_shows_what_is_not_finite() {
    let (plain, others) = kernels();
    for k in others.iter().chain([&plain]) {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 1e9] {
            for place in [0, 7, 31, 32, 39] {
                let mut stored = [true, false].map(|keys| Stored::new(Kind::Q8_0, 1, 40, keys));
                let mut x = Random(43).floats(40, 1.0);
                x[place] = bad;
                let [keys, values] = &mut stored;
                let pages = (keys.pages_mut(), values.pages_mut());
                k.store_kv(&Pool::new(1), (&x, &x), 1, 40, &[KvSlot { page: 0, token: 5 }], pages)
                    .expect("it fits");
                for d in 0..40 {
                    let finite = stored.each_ref().map(|stored| stored.get(0, 5, d).is_finite());
                    let same_block = d / KV_BLOCK == place / KV_BLOCK;
                    assert_eq!(finite, [!same_block; 2], "{bad} at {place}: element {d}");
                }
            }
        }
    }
}

/// What q8_0 costs beside f16, where both hold the same keys and values.
#[test]
fn q8_0_is_near_f16() {
    let (plain, others) = kernels();
    let k = others.last().unwrap_or(&plain);
    let mut random = Random(47);
    for head_dim in [64, 80, 128] {
        let shape =
            Shape { heads: 4, kv_heads: 2, head_dim, soft_cap: None, window: None, sink: None, whole: None };
        let mut caches = KINDS.map(|kind| Cache::new(kind, &mut Random(53), 1, 2, head_dim));
        let tokens = SEQUENCE_PAGES * PAGE_TOKENS;
        let slot =
            |i: usize| KvSlot { page: caches[0].tables[0][i / PAGE_TOKENS], token: (i % PAGE_TOKENS) as u32 };
        let slots: Vec<KvSlot> = (0..tokens).map(slot).collect();
        let (keys, values) =
            (random.floats(tokens * 2 * head_dim, 1.0), random.floats(tokens * 2 * head_dim, 1.0));
        for Cache { k: k_pages, v: v_pages, .. } in &mut caches {
            let pages = (k_pages.pages_mut(), v_pages.pages_mut());
            k.store_kv(&Pool::new(2), (&keys, &values), 2, head_dim, &slots, pages).expect("the slots exist");
        }
        let rows: Vec<(u32, u32)> = edge_rows().into_iter().map(|(_, p)| (0, p)).collect();
        let q = random.floats(rows.len() * 4 * head_dim, 2.0);
        let [f16, q8_0] = caches.each_ref().map(|cache| attend(k, &Pool::new(1), cache, shape, &rows, &q));
        // A block's step is its greatest element / 127, here at most 3.5 / 127; an element's error is even in half a step
        // either way, 0.29 steps in the mean (1 / sqrt(12)): 0.008. A score, 1 / sqrt(dim) times dim products with
        // queries of deviation 2, is off by 0.016 in the mean, and so is a weight, as a share of itself. Were all the
        // weight on few keys, their values (deviation 1) would be off by as much: together 0.018 in the mean, 6 of those
        // at most. f16 itself is off by a hundredth of it.
        let errors: Vec<f32> = f16.iter().zip(&q8_0).map(|(a, b)| (a - b).abs()).collect();
        let mean = (errors.iter().map(|e| e * e).sum::<f32>() / errors.len() as f32).sqrt();
        let most = errors.iter().copied().fold(0.0, f32::max);
        assert!(mean > 0.0 && mean < 0.018 && most < 0.108, "{head_dim}: {mean} in the mean, {most} at most");
    }
}
