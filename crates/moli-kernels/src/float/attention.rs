//! Attention over pages of keys and values.
//!
//! A page holds [`PAGE_TOKENS`] consecutive positions of one sequence, from a multiple of [`PAGE_TOKENS`] on. A query
//! visits the pages that it attends to in ascending order with a running maximum: the scores of a page, its maximum, the
//! sums so far rescaled, the exponentials, the weighted sum of the values in ascending order of keys. Every
//! [`SPAN`] pages, counted from the sequence's start, it begins anew, and the results of the spans are merged in ascending
//! order: so a long sequence can be split over threads. All of this depends on absolute positions alone: a row has the same
//! bits in whatever batch, chunk or thread it is computed.
//!
//! Keys are kept transposed (see [`super::pages`]): with a page's tokens as lanes a score is a plain sequence of multiply-adds,
//! and nothing is ever summed across lanes.
//!
//! A task takes some rows and the query heads that share one key head. It converts each page once, and while the page
//! is in the first-level cache uses it for all of them, several at a time.

use super::parallel::Pieces;
use super::{FloatOps, KvPages, math};
use crate::vector::{Vector, ask_for};
use crate::{KernelError, Pool};
use half::f16;
use std::cell::Cell;
use std::ops::Range;

/// Positions in a page of the key-value cache.
pub const PAGE_TOKENS: usize = 32;
/// Pages whose results are merged before those of the next.
const SPAN: usize = 16;

/// Queries (rows times heads) that a task holds at most: their sums share the cache with a page.
const QUERIES_PER_TASK: usize = 32;
/// Tasks per thread that are worth having.
const TASKS_PER_THREAD: usize = 4;
/// Work (multiply-adds) below which everything runs in the caller. Converting the pages takes longer than they do.
const INLINE: usize = 32 * 1024;

/// What [`Kernels::attention`](crate::Kernels::attention) reads.
#[derive(Clone, Copy, Debug)]
pub struct AttentionArgs<'a> {
    /// `[rows, heads, head_dim]`
    pub q: &'a [f32],
    /// The keys of this layer.
    pub k_pages: KvPages<'a>,
    /// The values of this layer, as many pages.
    pub v_pages: KvPages<'a>,
    /// For each sequence its pages in order: position `p` is in page `tables[s][p / PAGE_TOKENS]`.
    pub tables: &'a [&'a [u32]],
    /// `[rows]`: each row's sequence, an index into `tables`.
    pub sequences: &'a [u32],
    /// `[rows]`: a row attends to the keys at positions up to and including its own, if `lengths` does not say otherwise.
    pub positions: &'a [u32],
    /// For each sequence the number of its positions: each of its rows attends to all of them, those behind it too.
    pub lengths: Option<&'a [u32]>,
    /// Query heads; a multiple of `kv_heads`.
    pub heads: usize,
    /// Key and value heads; query head `h` uses key head `h / (heads / kv_heads)`.
    pub kv_heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// What a query is multiplied by, most often `1 / sqrt(head_dim)`.
    pub scale: f32,
    /// Scores become `cap * tanh(score / cap)`.
    pub soft_cap: Option<f32>,
    /// A sliding window of this many positions, the row's own included; at least 1. With `lengths`, so many on each side.
    pub window: Option<usize>,
    /// `[heads]`: scores of a further key of each head, whose value is 0 (attention sinks, arXiv:2508.10925).
    pub sinks: Option<&'a [f32]>,
}

impl AttentionArgs<'_> {
    /// The positions that `row` attends to.
    fn keys(&self, row: usize) -> Range<usize> {
        let end = self.positions[row] as usize + 1;
        let first = self.window.map_or(0, |window| end.saturating_sub(window));
        let Some(lengths) = self.lengths else { return first..end };
        let last = self.window.map_or(usize::MAX, |window| end.saturating_add(window - 1));
        first..last.min(lengths[self.sequences[row] as usize] as usize)
    }

    /// The pages that `row` attends to, as indices into its sequence's table.
    fn pages(&self, row: usize) -> Range<usize> {
        let keys = self.keys(row);
        keys.start / PAGE_TOKENS..keys.end.div_ceil(PAGE_TOKENS)
    }

    /// True if `row` attends to one of these pages.
    fn sees(&self, row: usize, pages: &Range<usize>) -> bool {
        let seen = self.pages(row);
        seen.start < pages.end && pages.start < seen.end
    }

    /// Checks every shape and every page that the rows attend to. Returns the multiply-adds that they need.
    fn check(&self, out: &[f32]) -> Result<usize, KernelError> {
        let rows = self.positions.len();
        let shape = |what, expected, actual| KernelError::Length { what, expected, actual };
        let dims = [self.heads, self.kv_heads, self.head_dim, self.window.unwrap_or(1)];
        if dims.contains(&0) || !self.heads.is_multiple_of(self.kv_heads) {
            return Err(shape("attention heads", self.kv_heads, self.heads));
        }
        let overflow = || shape("attention rows", usize::MAX, rows);
        let row = self.heads.checked_mul(self.head_dim).ok_or_else(overflow)?;
        let all = row.checked_mul(rows).ok_or_else(overflow)?;
        let pages = self.k_pages.count(self.kv_heads, self.head_dim);
        for (what, expected, actual) in [
            ("attention queries", all, self.q.len()),
            ("attention output", all, out.len()),
            ("attention sequences", rows, self.sequences.len()),
            ("attention lengths", self.tables.len(), self.lengths.map_or(self.tables.len(), <[u32]>::len)),
            ("attention sinks", self.heads, self.sinks.map_or(self.heads, <[f32]>::len)),
            ("attention values", pages, self.v_pages.count(self.kv_heads, self.head_dim)),
        ] {
            if expected != actual {
                return Err(shape(what, expected, actual));
            }
        }
        let mut work = 0usize;
        // Rows of one sequence that follow each other are checked together: a prompt's rows share their pages.
        for run in runs(self.sequences, 0..rows) {
            let sequence = self.sequences[run.start] as usize;
            let table = self.tables.get(sequence);
            let table = table.ok_or_else(|| shape("attention sequence", self.tables.len(), sequence))?;
            let (mut first, mut end) = (usize::MAX, 0);
            for row in run {
                let position = self.positions[row];
                if let Some(length) = self.lengths.map(|all| all[sequence]).filter(|&end| position >= end) {
                    return Err(shape("attention position", length as usize, position as usize));
                }
                let pages = self.pages(row);
                (first, end) = (first.min(pages.start), end.max(pages.end));
                work =
                    work.saturating_add(self.keys(row).len().saturating_mul(self.heads * self.head_dim * 2));
            }
            let wanted =
                table.get(first..end).ok_or_else(|| shape("attention page table", end, table.len()))?;
            if let Some(bad) = wanted.iter().find(|index| **index as usize >= pages) {
                return Err(shape("attention page", pages, *bad as usize));
            }
        }
        Ok(work)
    }
}

/// The pages of a span.
fn pages_of(span: usize) -> Range<usize> {
    span * SPAN..(span + 1) * SPAN
}

/// The ranges of `rows` in which the sequence stays the same.
fn runs(sequences: &[u32], rows: Range<usize>) -> impl Iterator<Item = Range<usize>> {
    let mut start = rows.start;
    sequences[rows].chunk_by(|a, b| a == b).map(move |run| {
        let first = start;
        start += run.len();
        first..start
    })
}

/// The inner steps of attention, which have a form for each instruction set. `N` queries are computed together.
pub(super) trait Form {
    /// Up to so many queries read half precision as it is: converting a page once, for all of them, would take longer.
    const FEW: usize;

    /// Half precision to f32.
    fn to_f32(x: &[f16], out: &mut [f32]);
    /// A page of keys: `quants` `[dim, PAGE_TOKENS]`, each times the scale of its block and token in `scales`
    /// `[blocks, PAGE_TOKENS]`.
    fn q8_keys(quants: &[i8], scales: &[f16], keys: &mut [f32]);
    /// Blocks of values: `quants`, each times its block's scale in `scales` `[blocks]`.
    fn q8_row(quants: &[i8], scales: &[f16], out: &mut [f32]);
    /// The products of queries `[N, dim]` and a page of keys `[dim, PAGE_TOKENS]`, in ascending order of `dim`. Meanwhile, a step
    /// for each of `dim`, what is ahead is asked for.
    fn scores<E: Element>(q: &[f32], dim: usize, keys: &[E], ahead: Ahead, scores: &mut [Scores]);
    /// Caps the scores.
    fn soft_cap(scores: &mut Scores, cap: f32);
    /// See [`super::scalar::softmax_page`].
    fn softmax_page(
        scores: &mut [Scores],
        low: usize,
        high: usize,
        running: &mut [(f32, f32)],
        rescale: &mut [f32],
    );
    /// sums `[N, dim]` = sums * rescale, then + weight * value `[PAGE_TOKENS, dim]` for each key in `keys`, ascending.
    /// `dim` is a multiple of 16. Meanwhile, a step for each key, what is ahead is asked for.
    fn values<E: Element>(
        weights: &[Scores],
        keys: Range<usize>,
        values: &[E],
        ahead: Ahead,
        rescale: &[f32],
        sums: &mut [f32],
    );
    /// See [`super::scalar::merge`].
    fn merge(total: (&mut (f32, f32), &mut [f32]), part: (&(f32, f32), &[f32]));
}

/// What keys and values are read from.
pub(super) trait Element: Copy {
    /// Exactly.
    fn value(self) -> f32;
    /// As many as a register has, exactly.
    ///
    /// # Safety
    /// Those of [`Vector`]'s methods.
    unsafe fn load<V: Vector>(from: *const Self) -> V;
}

impl Element for f32 {
    fn value(self) -> f32 {
        self
    }

    #[inline(always)]
    unsafe fn load<V: Vector>(from: *const Self) -> V {
        // SAFETY: the caller's promise.
        unsafe { V::load(from) }
    }
}

impl Element for f16 {
    fn value(self) -> f32 {
        self.to_f32()
    }

    #[inline(always)]
    unsafe fn load<V: Vector>(from: *const Self) -> V {
        // SAFETY: the caller's promise.
        unsafe { V::load_f16(from.cast()) }
    }
}

/// Memory that is read next, and is asked for in steps while something else is computed: pages lie anywhere, so that the processor
/// by itself would wait for the first lines of each.
#[derive(Clone, Copy)]
pub(super) struct Ahead {
    from: *const u8,
    /// Bytes of a step.
    step: usize,
}

impl Ahead {
    /// Nothing is read next.
    pub(super) const NOTHING: Self = Self { from: std::ptr::null(), step: 0 };

    /// What is read next, in so many steps.
    pub(super) fn of<T>(next: &[T], steps: usize) -> Self {
        Self { from: next.as_ptr().cast(), step: size_of_val(next) / steps.max(1) }
    }

    /// The same for the first of several times that the steps are made, and nothing for those that begin further on.
    #[inline(always)]
    pub(super) fn at(self, first: usize) -> Self {
        if first == 0 { self } else { Self::NOTHING }
    }

    /// Asks for what belongs to a step.
    #[inline(always)]
    pub(super) fn ask(self, step: usize) {
        for line in (0..self.step).step_by(64) {
            ask_for(self.from.wrapping_add(step * self.step + line));
        }
    }
}

/// The scores of one query with a page, and then its weights.
pub(super) type Scores = [f32; PAGE_TOKENS];

/// One head's keys or values of a page, as they are or converted.
#[derive(Clone, Copy)]
enum Read<'a> {
    F32(&'a [f32]),
    F16(&'a [f16]),
}

/// The queries of one task.
pub(super) struct Block {
    rows: Range<usize>,
    heads: Range<usize>,
    kv_head: usize,
    /// A span whose result is wanted by itself; `None`: that of all spans.
    span: Option<usize>,
}

/// What a task works in; each thread keeps its own from call to call.
#[derive(Default)]
pub(super) struct Scratch {
    /// `[head_dim, PAGE_TOKENS]`
    keys: Vec<f32>,
    /// `[PAGE_TOKENS, padded]`
    values: Vec<f32>,
    /// `[rows, heads, head_dim]` of the block, already scaled.
    q: Vec<f32>,
    /// The page's scores of each query.
    scores: Vec<Scores>,
    /// What each query's sums are multiplied by.
    rescale: Vec<f32>,
    /// Of the span so far.
    span: Partial,
    /// Of the spans before.
    total: Partial,
    /// `[rows, heads, spans]` of all tasks' queries, where the spans are computed by several.
    partials: Partial,
}

/// Softmax and weighted values over some of the keys, not yet divided by the sum; an entry for each query.
#[derive(Default)]
pub(super) struct Partial {
    /// The greatest score and the sum of the exponentials.
    running: Vec<(f32, f32)>,
    /// `[queries, padded]`
    sums: Vec<f32>,
}

impl Partial {
    fn reset(&mut self, queries: usize, padded: usize) {
        self.running.clear();
        self.running.resize(queries, (f32::NEG_INFINITY, 0.0));
        self.sums.clear();
        self.sums.resize(queries * padded, 0.0);
    }
}

thread_local! {
    static SCRATCH: Cell<Scratch> = Cell::default();
}

/// Makes room in the scratch of the calling thread for blocks with heads of so many elements.
pub(super) fn reserve(head_dim: usize) {
    let padded = head_dim.next_multiple_of(16);
    let mut scratch = SCRATCH.take();
    let Scratch { keys, values, q, scores, rescale, span, total, .. } = &mut scratch;
    let room = |buffer: &mut Vec<f32>, len: usize| buffer.reserve(len.saturating_sub(buffer.len()));
    room(keys, PAGE_TOKENS * head_dim);
    room(values, PAGE_TOKENS * padded);
    room(q, QUERIES_PER_TASK * head_dim);
    room(rescale, QUERIES_PER_TASK);
    scores.reserve(QUERIES_PER_TASK.saturating_sub(scores.len()));
    for Partial { running, sums } in [span, total] {
        running.reserve(QUERIES_PER_TASK.saturating_sub(running.len()));
        room(sums, QUERIES_PER_TASK * padded);
    }
    SCRATCH.set(scratch);
}

/// What [`Kernels::attention_bytes`](crate::Kernels::attention_bytes) says.
pub(super) fn bytes(threads: usize, heads: (usize, usize), head_dim: usize, tokens: usize) -> u64 {
    let (heads, kv_heads) = heads;
    let float = size_of::<f32>();
    let padded = head_dim.next_multiple_of(16);
    let partial = size_of::<(f32, f32)>() + padded * float;
    let query = head_dim * float + size_of::<Scores>() + float + 2 * partial;
    let thread = PAGE_TOKENS * (head_dim + padded) * float + QUERIES_PER_TASK * query;
    // Rows are cut into spans while they and the key heads are fewer than this, by several threads only.
    let tasks = if threads > 1 { threads.saturating_mul(TASKS_PER_THREAD) } else { 0 };
    let rows = tasks.div_ceil(kv_heads.max(1));
    let spans = tokens.div_ceil(SPAN * PAGE_TOKENS);
    let product = |factors: [usize; 4]| factors.iter().fold(1u64, |n, &m| n.saturating_mul(m as u64));
    product([thread, threads.max(1), 1, 1]).saturating_add(product([rows, heads, spans, partial]))
}

/// Computes a block of rows, all of one sequence, into `scratch.total`, or `scratch.span` for a span by itself.
pub(super) fn attend<F: Form>(args: &AttentionArgs<'_>, block: &Block, scratch: &mut Scratch) {
    let dim = args.head_dim;
    let padded = dim.next_multiple_of(16);
    let heads = block.heads.len();
    let queries = block.rows.len() * heads;
    let Scratch { keys, values, q, scores, rescale, span, total, .. } = scratch;
    keys.resize(PAGE_TOKENS * dim, 0.0);
    values.resize(PAGE_TOKENS * padded, 0.0);
    scores.resize(queries, [0.0; PAGE_TOKENS]);
    rescale.resize(queries, 0.0);
    total.reset(queries, padded);
    if dim != padded {
        // The columns that pad must be 0, whatever an earlier call left.
        values.fill(0.0);
    }

    q.clear();
    for row in block.rows.clone() {
        let from = (row * args.heads + block.heads.start) * dim;
        q.extend(args.q[from..from + heads * dim].iter().map(|q| q * args.scale));
    }

    let table = args.tables[args.sequences[block.rows.start] as usize];
    let all = block.rows.clone().map(|row| args.pages(row));
    let (first, end) = all.fold((usize::MAX, 0), |(first, end), p| (first.min(p.start), end.max(p.end)));
    let spans = block.span.map_or(first / SPAN..end.div_ceil(SPAN), |span| span..span + 1);
    for pages in spans.map(pages_of) {
        span.reset(queries, padded);
        for (page, index) in table.iter().enumerate().take(pages.end.min(end)).skip(pages.start.max(first)) {
            let base = page * PAGE_TOKENS;
            let part = |row: usize| {
                let keys = args.keys(row);
                let clip = |position: usize| position.saturating_sub(base).min(PAGE_TOKENS);
                clip(keys.start)..clip(keys.end)
            };
            // Positions of this page that some row of the block attends to: up to `used`.
            let used =
                block.rows.clone().map(part).filter(|p| !p.is_empty()).map(|p| p.end).max().unwrap_or(0);
            if used == 0 {
                continue;
            }
            let at = *index as usize * args.kv_heads + block.kv_head;
            // The page that comes next.
            let next = table.get(page + 1).filter(|_| page + 1 < end);
            let next = next.map(|index| *index as usize * args.kv_heads + block.kv_head);
            let mut keys_ahead = next.map_or(Ahead::NOTHING, |at| args.k_pages.ahead(at, dim, dim));
            let mut values_ahead = next.map_or(Ahead::NOTHING, |at| args.v_pages.ahead(at, dim, PAGE_TOKENS));
            // Keys that nobody attends to have scores too, which the softmax leaves out.
            let (keys, values) = match (&args.k_pages, &args.v_pages) {
                (KvPages::F16(keys), KvPages::F16(values)) if queries <= F::FEW && dim == padded => {
                    let page = at * PAGE_TOKENS * dim..(at + 1) * PAGE_TOKENS * dim;
                    (Read::F16(&keys[page.clone()]), Read::F16(&values[page]))
                }
                (from_keys, from_values) => {
                    from_keys.load_keys::<F>(at, dim, keys);
                    from_values.load_values::<F>(at, used, dim, padded, values);
                    (Read::F32(&*keys), Read::F32(&*values))
                }
            };

            // Rows that attend to the same part of the page are computed together.
            let mut row = block.rows.start;
            while row < block.rows.end {
                let keys_of_rows = part(row);
                let same = (row..block.rows.end).take_while(|row| part(*row) == keys_of_rows).count();
                let these = (row - block.rows.start) * heads..(row - block.rows.start + same) * heads;
                row += same;
                if keys_of_rows.is_empty() {
                    continue;
                }
                let scores = &mut scores[these.clone()];
                let ahead = std::mem::replace(&mut keys_ahead, Ahead::NOTHING);
                let q = &q[these.start * dim..these.end * dim];
                match keys {
                    Read::F32(keys) => F::scores(q, dim, keys, ahead, scores),
                    Read::F16(keys) => F::scores(q, dim, keys, ahead, scores),
                }
                if let Some(cap) = args.soft_cap {
                    scores.iter_mut().for_each(|scores| F::soft_cap(scores, cap));
                }
                let Range { start: low, end: high } = keys_of_rows;
                let rescale = &mut rescale[these.clone()];
                F::softmax_page(scores, low, high, &mut span.running[these.clone()], rescale);
                let sums = &mut span.sums[these.start * padded..these.end * padded];
                let ahead = std::mem::replace(&mut values_ahead, Ahead::NOTHING);
                match values {
                    Read::F32(values) => F::values(scores, low..high, values, ahead, rescale, sums),
                    Read::F16(values) => F::values(scores, low..high, values, ahead, rescale, sums),
                }
            }
        }
        if block.span.is_some() {
            return;
        }
        let parts = span.running.iter().zip(span.sums.chunks_exact(padded));
        let totals = total.running.iter_mut().zip(total.sums.chunks_exact_mut(padded));
        for (query, (total, part)) in totals.zip(parts).enumerate() {
            if args.sees(block.rows.start + query / heads, &pages) {
                F::merge(total, part);
            }
        }
    }
}

/// Divides by the sum of the exponentials, the sink's included.
fn finish((max, total): (f32, f32), sink: Option<f32>, sums: &[f32], out: &mut [f32]) {
    let inverse = match sink {
        None => 1.0 / total,
        Some(sink) => {
            let greatest = math::max(max, sink);
            let rescale = math::exp(max - greatest);
            rescale / total.mul_add(rescale, math::exp(sink - greatest))
        }
    };
    for (out, sum) in out.iter_mut().zip(sums) {
        *out = sum * inverse;
    }
}

/// How the work is cut into tasks. No cut changes a bit: a query is computed by itself, and so is a span.
struct Cut {
    /// Rows of a task.
    rows: usize,
    blocks: usize,
    /// Tasks that share the heads of a group; each converts the pages for itself.
    parts: usize,
    part_heads: usize,
    /// Tasks that share the spans of a row, with a span each; 1 if a task computes all of them.
    spans: usize,
}

impl Cut {
    fn new(threads: usize, args: &AttentionArgs<'_>, work: usize) -> Self {
        let rows = args.positions.len();
        let group = args.heads / args.kv_heads;
        let most = (QUERIES_PER_TASK / group).max(1);
        let whole = Self { rows: most, blocks: rows.div_ceil(most), parts: 1, part_heads: group, spans: 1 };
        if threads == 1 || work < INLINE {
            return whole;
        }
        let spans = (0..rows).map(|row| args.pages(row).end.div_ceil(SPAN)).max().unwrap_or(1);
        if rows * args.kv_heads < threads * TASKS_PER_THREAD && spans > 1 {
            return Self { rows: 1, blocks: rows, spans, ..whole };
        }
        // Rows of different sequences are computed one by one in any case.
        let alone = runs(args.sequences, 0..rows).count() == rows;
        let most_rows = if alone { 1 } else { most };
        let block_rows = (rows * args.kv_heads / (threads * TASKS_PER_THREAD)).clamp(1, most_rows);
        let blocks = rows.div_ceil(block_rows);
        // Few rows and few key heads: the heads of a group are split too.
        let part_heads = group.div_ceil(threads.div_ceil(blocks * args.kv_heads).clamp(1, group));
        Self { rows: block_rows, blocks, parts: group.div_ceil(part_heads), part_heads, spans: 1 }
    }
}

/// Checks `args`, and computes all rows into `out` `[rows, heads, head_dim]`.
pub(super) fn attention(
    ops: &FloatOps,
    pool: &Pool,
    args: &AttentionArgs<'_>,
    out: &mut [f32],
) -> Result<(), KernelError> {
    let work = args.check(out)?;
    let rows = args.positions.len();
    if rows == 0 {
        return Ok(());
    }
    let cut = Cut::new(pool.threads(), args, work);
    let group = args.heads / args.kv_heads;
    let dim = args.head_dim;
    let padded = dim.next_multiple_of(16);
    let queries = rows * args.heads;

    // The caller's own scratch may be taken by a task of this run meanwhile, so the partials leave it first.
    let mut scratch = SCRATCH.take();
    let mut partials = std::mem::take(&mut scratch.partials);
    SCRATCH.set(scratch);
    if cut.spans > 1 {
        partials.reset(queries * cut.spans, padded);
    }
    let to_out = Pieces(out.as_mut_ptr());
    let (to_running, to_sums) = (Pieces(partials.running.as_mut_ptr()), Pieces(partials.sums.as_mut_ptr()));

    let sink = |query: usize| args.sinks.and_then(|sinks| sinks.get(query % args.heads)).copied();
    let tasks = cut.blocks * args.kv_heads * cut.parts * cut.spans;
    let task = |task: usize, _: usize| {
        let (task, span) = (task / cut.spans, task % cut.spans);
        // The last rows attend to the most keys: they come first, so that the run ends evenly.
        let block = cut.blocks - 1 - task / (args.kv_heads * cut.parts);
        let kv_head = task / cut.parts % args.kv_heads;
        let first_head = kv_head * group + task % cut.parts * cut.part_heads;
        let heads = first_head..(first_head + cut.part_heads).min((kv_head + 1) * group);
        let start = block * cut.rows;
        let mut scratch = SCRATCH.take();
        for rows in runs(args.sequences, start..(start + cut.rows).min(rows)) {
            let span = (cut.spans > 1).then_some(span);
            if span.is_some_and(|span| !rows.clone().any(|row| args.sees(row, &pages_of(span)))) {
                continue;
            }
            let block = Block { rows, heads: heads.clone(), kv_head, span };
            (ops.attend)(args, &block, &mut scratch);
            let Partial { running, sums } = if span.is_some() { &scratch.span } else { &scratch.total };
            for (query, (running, sums)) in running.iter().zip(sums.chunks_exact(padded)).enumerate() {
                let row = block.rows.start + query / heads.len();
                let query = row * args.heads + heads.start + query % heads.len();
                if let Some(span) = span {
                    let at = query * cut.spans + span;
                    // SAFETY: the partials were made for each query and span, they are borrowed for the whole run, and
                    // only this task has this query and span.
                    unsafe {
                        to_running.slice(at, 1)[0] = *running;
                        to_sums.slice(at * padded, padded).copy_from_slice(sums);
                    }
                } else {
                    // SAFETY: `check` has seen that `out` is [rows, heads, dim], which holds this row and head; it is
                    // borrowed for the whole run, and only this task has this row and this head.
                    finish(*running, sink(query), sums, unsafe { to_out.slice(query * dim, dim) });
                }
            }
        }
        SCRATCH.set(scratch);
    };
    if work < INLINE {
        (0..tasks).for_each(|index| task(index, 0));
    } else {
        pool.run(tasks, &task);
    }

    let mut scratch = SCRATCH.take();
    if cut.spans > 1 {
        let parts = partials.running.iter().zip(partials.sums.chunks_exact(padded));
        let mut parts = parts.enumerate();
        for (query, out) in out.chunks_exact_mut(dim).enumerate() {
            scratch.total.reset(1, padded);
            let Partial { running, sums } = &mut scratch.total;
            for (at, part) in parts.by_ref().take(cut.spans) {
                let span = at % cut.spans;
                if args.sees(query / args.heads, &pages_of(span)) {
                    (ops.merge)((&mut running[0], sums), part);
                }
            }
            finish(running[0], sink(query), sums, out);
        }
    }
    scratch.partials = partials;
    SCRATCH.set(scratch);
    Ok(())
}
