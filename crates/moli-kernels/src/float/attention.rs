//! Attention over pages of half-precision keys and values.
//!
//! A page holds [`PAGE_TOKENS`] consecutive positions of one sequence, from a multiple of [`PAGE_TOKENS`] on. A query
//! visits the pages that it attends to in ascending order with a running maximum: the scores of a page, its maximum, the
//! sums so far rescaled, the exponentials, the weighted sum of the values in ascending order of keys. All of this
//! depends on absolute positions alone, so a row has the same bits in whatever batch, chunk or thread it is computed.
//!
//! A task takes some rows and the query heads that share one key head. It converts each page once, and while the page
//! is in the first-level cache uses it for all of them.

use super::FloatOps;
use super::parallel::Pieces;
use crate::{KernelError, Pool};
use half::f16;
use std::cell::Cell;
use std::ops::Range;

/// Positions in a page of the key-value cache.
pub const PAGE_TOKENS: usize = 32;

/// Queries (rows times heads) that a task holds at most: their sums share the cache with a page.
const QUERIES_PER_TASK: usize = 32;
/// Tasks per thread that are worth having.
const TASKS_PER_THREAD: usize = 4;
/// Work (multiply-adds) below which everything runs in the caller.
const INLINE: usize = 128 * 1024;

/// What [`Kernels::attention`](crate::Kernels::attention) reads.
#[derive(Clone, Copy, Debug)]
pub struct AttentionArgs<'a> {
    /// `[rows, heads, head_dim]`
    pub q: &'a [f32],
    /// The keys of this layer: `[pages, kv_heads, PAGE_TOKENS, head_dim]`.
    pub k_pages: &'a [f16],
    /// The values of this layer, laid out like the keys.
    pub v_pages: &'a [f16],
    /// For each sequence its pages in order: position `p` is in page `tables[s][p / PAGE_TOKENS]`.
    pub tables: &'a [&'a [u32]],
    /// `[rows]`: each row's sequence, an index into `tables`.
    pub sequences: &'a [u32],
    /// `[rows]`: a row attends to the keys at positions up to and including its own.
    pub positions: &'a [u32],
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
    /// A sliding window of this many positions, the row's own included; at least 1.
    pub window: Option<usize>,
}

impl AttentionArgs<'_> {
    /// The positions that `row` attends to.
    fn keys(&self, row: usize) -> Range<usize> {
        let end = self.positions[row] as usize + 1;
        self.window.map_or(0, |window| end.saturating_sub(window))..end
    }

    /// The pages that `row` attends to, as indices into its sequence's table.
    fn pages(&self, row: usize) -> Range<usize> {
        let keys = self.keys(row);
        keys.start / PAGE_TOKENS..keys.end.div_ceil(PAGE_TOKENS)
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
        let page = self.kv_heads.checked_mul(self.head_dim).and_then(|n| n.checked_mul(PAGE_TOKENS));
        let page = page.ok_or_else(overflow)?;
        for (what, expected, actual) in [
            ("attention queries", all, self.q.len()),
            ("attention output", all, out.len()),
            ("attention sequences", rows, self.sequences.len()),
            ("attention values", self.k_pages.len(), self.v_pages.len()),
        ] {
            if expected != actual {
                return Err(shape(what, expected, actual));
            }
        }
        let pages = self.k_pages.len() / page;
        let mut work = 0usize;
        // Rows of one sequence that follow each other are checked together: a prompt's rows share their pages.
        for run in runs(self.sequences, 0..rows) {
            let sequence = self.sequences[run.start] as usize;
            let table = self.tables.get(sequence);
            let table = table.ok_or_else(|| shape("attention sequence", self.tables.len(), sequence))?;
            let (mut first, mut end) = (usize::MAX, 0);
            for row in run {
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

/// The ranges of `rows` in which the sequence stays the same.
fn runs(sequences: &[u32], rows: Range<usize>) -> impl Iterator<Item = Range<usize>> {
    let mut start = rows.start;
    sequences[rows].chunk_by(|a, b| a == b).map(move |run| {
        let first = start;
        start += run.len();
        first..start
    })
}

/// The inner steps of attention, which have a form for each instruction set. Dimensions are padded to 16 elements.
pub(super) trait Form {
    /// Half precision to f32.
    fn to_f32(x: &[f16], out: &mut [f32]);
    /// The products of `q` and each row of `keys` `[PAGE_TOKENS, q.len()]`.
    fn scores(q: &[f32], keys: &[f32], scores: &mut [f32; PAGE_TOKENS]);
    /// Caps the scores.
    fn soft_cap(scores: &mut [f32; PAGE_TOKENS], cap: f32);
    /// See [`super::scalar::softmax_page`].
    fn softmax_page(
        scores: &mut [f32; PAGE_TOKENS],
        low: usize,
        high: usize,
        running: &mut (f32, f32),
    ) -> f32;
    /// sums `[dim]` = sums * rescale, then + weight * value `[PAGE_TOKENS, dim]` for each key in `low..high`, ascending.
    fn values(
        weights: &[f32; PAGE_TOKENS],
        low: usize,
        high: usize,
        values: &[f32],
        rescale: f32,
        sums: &mut [f32],
    );
}

/// The queries of one task.
pub(super) struct Block {
    rows: Range<usize>,
    heads: Range<usize>,
    kv_head: usize,
}

/// What a task works in; each thread keeps its own from call to call.
#[derive(Default)]
pub(super) struct Scratch {
    keys: Vec<f32>,
    values: Vec<f32>,
    /// `[rows, heads, padded]` of the block, already scaled.
    q: Vec<f32>,
    /// Like `q`; the result when the block is done.
    sums: Vec<f32>,
    /// `[rows, heads]`: the running maximum and sum of each query.
    running: Vec<(f32, f32)>,
}

thread_local! {
    static SCRATCH: Cell<Scratch> = Cell::default();
}

/// Makes room in the scratch of the calling thread for blocks with heads of so many elements.
pub(super) fn reserve(head_dim: usize) {
    let padded = head_dim.next_multiple_of(16);
    let mut scratch = SCRATCH.take();
    let Scratch { keys, values, q, sums, running } = &mut scratch;
    for (buffer, rows) in
        [(keys, PAGE_TOKENS), (values, PAGE_TOKENS), (q, QUERIES_PER_TASK), (sums, QUERIES_PER_TASK)]
    {
        buffer.reserve((rows * padded).saturating_sub(buffer.len()));
    }
    running.reserve(QUERIES_PER_TASK.saturating_sub(running.len()));
    SCRATCH.set(scratch);
}

/// Computes a block of rows, all of one sequence, into `scratch.sums`.
pub(super) fn attend<F: Form>(args: &AttentionArgs<'_>, block: &Block, scratch: &mut Scratch) {
    let dim = args.head_dim;
    let padded = dim.next_multiple_of(16);
    let heads = block.heads.len();
    let queries = block.rows.len() * heads;
    let Scratch { keys, values, q, sums, running } = scratch;
    keys.resize(PAGE_TOKENS * padded, 0.0);
    values.resize(PAGE_TOKENS * padded, 0.0);
    q.clear();
    q.resize(queries * padded, 0.0);
    sums.clear();
    sums.resize(queries * padded, 0.0);
    running.clear();
    running.resize(queries, (f32::NEG_INFINITY, 0.0));
    if dim != padded {
        // The columns that pad must be 0, whatever an earlier call left.
        keys.fill(0.0);
        values.fill(0.0);
    }

    let row_stride = args.heads * dim;
    for (to, query) in q.chunks_exact_mut(padded).zip(0..) {
        let head = block.heads.start + query % heads;
        let from = (block.rows.start + query / heads) * row_stride + head * dim;
        for (to, from) in to.iter_mut().zip(&args.q[from..from + dim]) {
            *to = from * args.scale;
        }
    }

    let table = args.tables[args.sequences[block.rows.start] as usize];
    let all = block.rows.clone().map(|row| args.pages(row));
    let (first, end) = all.fold((usize::MAX, 0), |(first, end), p| (first.min(p.start), end.max(p.end)));
    for (page, index) in table.iter().enumerate().take(end).skip(first) {
        let base = page * PAGE_TOKENS;
        let part = |row: usize| {
            let keys = args.keys(row);
            let clip = |position: usize| position.saturating_sub(base).min(PAGE_TOKENS);
            clip(keys.start)..clip(keys.end)
        };
        // Positions of this page that some row of the block attends to: up to `used`.
        let used = block.rows.clone().map(part).filter(|p| !p.is_empty()).map(|p| p.end).max().unwrap_or(0);
        if used == 0 {
            continue;
        }
        let start = (*index as usize * args.kv_heads + block.kv_head) * PAGE_TOKENS * dim;
        load::<F>(&args.k_pages[start..start + used * dim], dim, padded, keys);
        load::<F>(&args.v_pages[start..start + used * dim], dim, padded, values);
        for (nth, row) in block.rows.clone().enumerate() {
            let Range { start: low, end: high } = part(row);
            if low >= high {
                continue;
            }
            for (query, running) in running.iter_mut().enumerate().skip(nth * heads).take(heads) {
                let columns = query * padded..(query + 1) * padded;
                let mut scores = [0.0; PAGE_TOKENS];
                F::scores(&q[columns.clone()], keys, &mut scores);
                if let Some(cap) = args.soft_cap {
                    F::soft_cap(&mut scores, cap);
                }
                let rescale = F::softmax_page(&mut scores, low, high, running);
                F::values(&scores, low, high, values, rescale, &mut sums[columns]);
            }
        }
    }
    for (sums, (_, total)) in sums.chunks_exact_mut(padded).zip(running) {
        let inverse = 1.0 / *total;
        for sum in sums {
            *sum *= inverse;
        }
    }
}

/// Rows of `dim` halves to rows of `padded` floats.
fn load<F: Form>(from: &[f16], dim: usize, padded: usize, to: &mut [f32]) {
    if dim == padded {
        F::to_f32(from, &mut to[..from.len()]);
        return;
    }
    for (from, to) in from.chunks_exact(dim).zip(to.chunks_exact_mut(padded)) {
        F::to_f32(from, &mut to[..dim]);
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
    let group = args.heads / args.kv_heads;
    // Neither split changes a bit: a query is computed by itself.
    let wanted = pool.threads() * TASKS_PER_THREAD;
    let alone = pool.threads() == 1 || work < INLINE;
    let most = (QUERIES_PER_TASK / group).max(1);
    let block_rows = if alone { most } else { (rows * args.kv_heads / wanted).clamp(1, most) };
    let blocks = rows.div_ceil(block_rows);
    // Few rows and few key heads: the heads of a group are split too, and each part converts the pages for itself.
    let parts = if alone { 1 } else { pool.threads().div_ceil(blocks * args.kv_heads).clamp(1, group) };
    let part_heads = group.div_ceil(parts);
    let parts = group.div_ceil(part_heads);

    let dim = args.head_dim;
    let padded = dim.next_multiple_of(16);
    let base = Pieces(out.as_mut_ptr());
    let tasks = blocks * args.kv_heads * parts;
    let task = |task: usize, _: usize| {
        // The last rows attend to the most keys: they come first, so that the run ends evenly.
        let rows_of_block = blocks - 1 - task / (args.kv_heads * parts);
        let kv_head = task / parts % args.kv_heads;
        let first_head = kv_head * group + task % parts * part_heads;
        let heads = first_head..(first_head + part_heads).min((kv_head + 1) * group);
        let start = rows_of_block * block_rows;
        let mut scratch = SCRATCH.take();
        for rows in runs(args.sequences, start..(start + block_rows).min(rows)) {
            let block = Block { rows, heads: heads.clone(), kv_head };
            (ops.attend)(args, &block, &mut scratch);
            for (query, sums) in scratch.sums.chunks_exact(padded).enumerate() {
                let row = block.rows.start + query / heads.len();
                let head = heads.start + query % heads.len();
                // SAFETY: `check` has seen that `out` is [rows, heads, dim], which holds this row and head; it is
                // borrowed for the whole run, and only this task has this row and this head.
                let out = unsafe { base.slice((row * args.heads + head) * dim, dim) };
                out.copy_from_slice(&sums[..dim]);
            }
        }
        SCRATCH.set(scratch);
    };
    if alone {
        (0..tasks).for_each(|index| task(index, 0));
    } else {
        pool.run(tasks, &task);
    }
    Ok(())
}
