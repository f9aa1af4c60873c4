//! Keys and values in pages, and attention over them: see `kernels/attention.cu`.

use std::sync::Arc;

use cudarc::driver::{CudaStream, DeviceRepr};
use moli_kernels::{KV_BLOCK, KvSlot, PAGE_TOKENS};

use crate::activations::Buffer;
use crate::error::same;
use crate::gpu::{grid, int, launch};
use crate::memory::{Array, Number};
use crate::{CudaError, Gpu};

/// Positions whose result is computed by itself.
const SPAN: usize = 16 * PAGE_TOKENS;
/// Warps of a block.
const WARPS: usize = 4;
/// Bytes that the results of spans may take where each has a block of its own.
const PARTS: usize = 64 << 20;

/// Bytes that attention of `rows` rows over sequences of up to `context` positions works in, at most.
#[must_use]
pub fn attention_bytes(rows: usize, heads: usize, head_dim: usize, context: usize) -> u64 {
    let queries = (rows as u64).saturating_mul(heads as u64);
    let parts = queries.saturating_mul(context.div_ceil(SPAN) as u64).saturating_mul(4 * head_dim as u64 + 8);
    // Lists of rows, tiles and pages; arrays grow by doubling.
    let lists = queries.saturating_mul(16).saturating_add(context as u64);
    parts.min(PARTS as u64).saturating_add(lists).saturating_mul(2)
}

/// A form of the attention kernel.
pub(crate) struct Form {
    pub(crate) name: &'static str,
    /// Elements of the widest head.
    pub(crate) widest: usize,
    /// Queries of a warp.
    queries: usize,
}

impl Form {
    const fn new(name: &'static str, widest: usize, queries: usize) -> Self {
        Self { name, widest, queries }
    }

    /// Shared memory for heads of `dim` elements: of each query itself and its result, and a page.
    pub(crate) const fn shared_bytes(&self, dim: usize) -> usize {
        (2 * WARPS * self.queries * dim + PAGE_TOKENS * (dim | 1)) * size_of::<f32>()
    }
}

/// All forms, by the width that they take.
pub(crate) const FORMS: [Form; 4] = [
    Form::new("attention_64", 64, 4),
    Form::new("attention_128", 128, 4),
    Form::new("attention_256", 256, 2),
    Form::new("attention_608", 608, 1),
];

/// The type of keys and values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KvKind {
    /// As computed.
    F32 = 0,
    /// Half precision.
    F16 = 1,
    /// Bytes, and a scale in half precision for each 32 elements of a head.
    Q8_0 = 2,
}

/// Keys and values of all layers: `[layer][page][head][token][element]`.
pub struct Cache {
    keys: Part,
    values: Part,
    kind: KvKind,
    layers: Vec<Layer>,
    pages: usize,
}

/// What the keys of a layer are, and its values.
#[derive(Clone, Copy)]
struct Layer {
    kv_heads: usize,
    head_dim: usize,
    /// Where its first page is: its elements, its scales.
    first: [usize; 2],
    /// Bytes of a page: of its elements, of its scales.
    page: [usize; 2],
}

impl Layer {
    fn new((kv_heads, head_dim): (usize, usize), kind: KvKind, first: [usize; 2]) -> Self {
        let tokens = kv_heads.saturating_mul(PAGE_TOKENS);
        let bytes = |head: usize| tokens.saturating_mul(head);
        let page = match kind {
            KvKind::F32 => [bytes(head_dim.saturating_mul(4)), 0],
            KvKind::F16 => [bytes(head_dim.saturating_mul(2)), 0],
            KvKind::Q8_0 => [bytes(head_dim), bytes(head_dim.div_ceil(KV_BLOCK) * 2)],
        };
        Self { kv_heads, head_dim, first, page }
    }
}

/// The keys or the values: elements, and scales where there are any.
struct Part {
    elements: Array<u8>,
    scales: Array<u8>,
}

/// Keys or values of a layer, as kernels take them.
#[derive(Clone, Copy)]
#[repr(C)]
struct Pages {
    elements: u64,
    scales: u64,
    kind: u32,
    blocks: u32,
}

// SAFETY: the structure is that of the kernels, field by field, and may be copied.
#[allow(unsafe_code)]
unsafe impl DeviceRepr for Pages {}

impl Cache {
    /// Keys and values of `pages` pages in each of these layers: of each its heads, and the elements of one.
    ///
    /// # Errors
    /// [`CudaError::OutOfMemory`], [`CudaError::HeadTooWide`].
    pub fn new(gpu: &Gpu, layers: &[(usize, usize)], pages: usize, kind: KvKind) -> Result<Self, CudaError> {
        let widest = FORMS[FORMS.len() - 1].widest;
        if let Some(&(_, head_dim)) = layers.iter().find(|(_, head_dim)| *head_dim > widest) {
            return Err(CudaError::HeadTooWide { head_dim, widest });
        }
        let mut end = [0_usize; 2];
        let layers = layers.iter().map(|&shape| {
            let layer = Layer::new(shape, kind, end);
            for (end, bytes) in end.iter_mut().zip(layer.page) {
                *end = end.saturating_add(pages.saturating_mul(bytes));
            }
            layer
        });
        let layers = layers.collect();
        let part = || {
            let [elements, scales] = end.map(|bytes| gpu.array("the KV cache", bytes));
            Ok::<_, CudaError>(Part { elements: elements?, scales: scales? })
        };
        Ok(Self { keys: part()?, values: part()?, kind, layers, pages })
    }

    /// Bytes of a page in all layers.
    pub fn page_bytes(&self) -> usize {
        2 * self.layers.iter().flat_map(|layer| layer.page).sum::<usize>()
    }

    /// What its elements are.
    pub fn kind(&self) -> KvKind {
        self.kind
    }

    /// A layer, and its keys and values.
    fn layer(&self, layer: usize) -> Result<(Layer, [Pages; 2]), CudaError> {
        let (expected, actual) = (layer + 1, self.layers.len());
        let layer = self.layers.get(layer).copied();
        let layer = layer.ok_or(CudaError::Shape { what: "layers of the KV cache", expected, actual })?;
        let pages = [&self.keys, &self.values].map(|part| Pages {
            elements: part.elements.at(layer.first[0]),
            scales: part.scales.at(layer.first[1]),
            kind: self.kind as u32,
            blocks: layer.head_dim.div_ceil(KV_BLOCK) as u32,
        });
        Ok((layer, pages))
    }

    /// The arrays: keys' elements and scales, then the values'.
    fn arrays(&mut self) -> [&mut Array<u8>; 4] {
        let Self { keys, values, .. } = self;
        [&mut keys.elements, &mut keys.scales, &mut values.elements, &mut values.scales]
    }

    /// Where a page is: of each layer, of each of the four arrays, its first byte and how many there are.
    fn stretches(&self, page: u32) -> Result<Vec<[(usize, usize); 4]>, CudaError> {
        let at = page as usize;
        if at >= self.pages {
            return Err(CudaError::Shape { what: "a KV page", expected: self.pages, actual: at });
        }
        let layer = |layer: &Layer| {
            [0, 1, 0, 1].map(|kind| (layer.first[kind] + at * layer.page[kind], layer.page[kind]))
        };
        Ok(self.layers.iter().map(layer).collect())
    }
}

/// The shape of attention in one layer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Shape {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads, a divisor of `heads`.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Factor on the queries.
    pub scale: f32,
    /// `c` in `c * tanh(score / c)`.
    pub soft_cap: Option<f32>,
    /// Keys that a query sees; `None`: all.
    pub window: Option<usize>,
}

/// The rows of a batch. What they point to has been checked: every position has a page that exists.
#[derive(Debug, Clone, Copy)]
pub struct Rows<'a> {
    /// Position of each row.
    pub positions: &'a [u32],
    /// Index into `tables` of each row.
    pub sequences: &'a [u32],
    /// Tokens of each sequence where its rows attend to all of them; `None`: attention is causal.
    pub lengths: Option<&'a [u32]>,
    /// Pages of the sequences, in order of position.
    pub tables: &'a [&'a [u32]],
    /// Where each row's own key and value go.
    pub slots: &'a [KvSlot],
}

/// A batch's rows on the device, and what attention works in.
pub(crate) struct Scratch {
    /// All of the numbers below, one after the other, and where each begins.
    numbers: Array<u32>,
    positions: u64,
    sequences: u64,
    slots: u64,
    offsets: u64,
    tables: u64,
    /// 0 where attention is causal.
    lengths: u64,
    /// Rows, and positions of the longest sequence.
    rows: usize,
    longest: usize,
    /// Rows of a sequence that follow each other: the first, and how many.
    runs: Vec<(usize, usize)>,
    /// The tiles of queries for so many heads to a key head and so many queries to a tile.
    tiles: Array<u32>,
    tiled: Option<(usize, usize)>,
    tile_count: usize,
    /// The results of spans, and their states.
    parts: Array<f32>,
    states: Array<f32>,
    staged: Vec<u32>,
}

impl Scratch {
    pub(crate) fn new(stream: &Arc<CudaStream>) -> Result<Self, CudaError> {
        let what = "what attention works in";
        Ok(Self {
            numbers: Array::new(stream, what, 0)?,
            positions: 0,
            sequences: 0,
            slots: 0,
            offsets: 0,
            tables: 0,
            lengths: 0,
            rows: 0,
            longest: 0,
            runs: Vec::new(),
            tiles: Array::new(stream, what, 0)?,
            tiled: None,
            tile_count: 0,
            parts: Array::new(stream, what, 0)?,
            states: Array::new(stream, what, 0)?,
            staged: Vec::new(),
        })
    }
}

/// A longer array, where this one is too short.
fn longer<T: Number>(gpu: &Gpu, array: &Array<T>, len: usize) -> Result<Option<Array<T>>, CudaError> {
    let short = array.len() < len;
    short.then(|| gpu.array("what attention works in", len.next_power_of_two())).transpose()
}

impl Gpu {
    /// Brings a batch's rows to the device: what [`store`](Self::store) and [`attention`](Self::attention) of every layer read.
    ///
    /// # Errors
    /// [`CudaError::Shape`] for lists of other lengths, or what the driver reports.
    pub fn begin(&mut self, rows: &Rows<'_>) -> Result<(), CudaError> {
        let count = rows.positions.len();
        same("sequences of a batch", count, rows.sequences.len())?;
        same("slots of a batch", count, rows.slots.len())?;
        same(
            "lengths of sequences",
            rows.tables.len(),
            rows.lengths.map_or(rows.tables.len(), <[u32]>::len),
        )?;
        if let Some(&sequence) =
            rows.sequences.iter().find(|&&sequence| sequence as usize >= rows.tables.len())
        {
            return Err(CudaError::Shape {
                what: "a sequence of a batch",
                expected: rows.tables.len(),
                actual: sequence as usize,
            });
        }
        let mut staged = std::mem::take(&mut self.attention.staged);
        staged.clear();
        let mut starts = [0; 6];
        starts[0] = staged.len();
        staged.extend(rows.positions);
        starts[1] = staged.len();
        staged.extend(rows.sequences);
        // A slot is two numbers that are read as one.
        staged.resize(staged.len().next_multiple_of(2), 0);
        starts[2] = staged.len();
        staged.extend(rows.slots.iter().flat_map(|slot| [slot.page, slot.token]));
        starts[3] = staged.len();
        let mut offset = 0u32;
        for table in rows.tables {
            staged.push(offset);
            offset = offset.saturating_add(table.len() as u32);
        }
        starts[4] = staged.len();
        staged.extend(rows.tables.iter().copied().flatten());
        starts[5] = staged.len();
        staged.extend(rows.lengths.unwrap_or_default());

        if let Some(numbers) = longer(self, &self.attention.numbers, staged.len())? {
            self.attention.numbers = numbers;
        }
        let scratch = &mut self.attention;
        scratch.numbers.write(&self.stream, 0, &staged)?;
        scratch.staged = staged;
        [
            scratch.positions,
            scratch.sequences,
            scratch.slots,
            scratch.offsets,
            scratch.tables,
            scratch.lengths,
        ] = starts.map(|start| scratch.numbers.at(start));
        if rows.lengths.is_none() {
            scratch.lengths = 0;
        }
        scratch.rows = count;
        let longest_row = rows.positions.iter().max().map_or(0, |&position| position as usize + 1);
        scratch.longest =
            rows.lengths.map_or(longest_row, |all| all.iter().max().map_or(0, |&length| length as usize));
        scratch.tiled = None;
        scratch.runs.clear();
        let mut first = 0;
        for run in rows.sequences.chunk_by(|a, b| a == b) {
            scratch.runs.push((first, run.len()));
            first += run.len();
        }
        Ok(())
    }

    /// Stores the rows' keys and values in their slots, rounded to the cache's type.
    ///
    /// # Errors
    /// [`CudaError::Shape`], or what the driver reports.
    pub fn store(
        &self,
        cache: &mut Cache,
        layer: usize,
        keys: &Buffer,
        values: &Buffer,
    ) -> Result<(), CudaError> {
        let (Layer { kv_heads, head_dim: dim, .. }, pages) = cache.layer(layer)?;
        let warps = match cache.kind {
            KvKind::Q8_0 => kv_heads * dim.div_ceil(KV_BLOCK) * 32,
            _ => kv_heads * dim,
        };
        for (x, pages) in [keys, values].into_iter().zip(pages) {
            same("columns of keys or values", kv_heads * dim, x.cols)?;
            same("rows of keys or values", self.attention.rows, x.rows)?;
            if x.rows == 0 || warps == 0 {
                continue;
            }
            // The rows are the second dimension of the grid, which has a limit that no batch reaches.
            let grid = grid((warps.div_ceil(256), x.rows, 1), 256, 0)?;
            let kernel = match cache.kind {
                KvKind::Q8_0 => &self.kernels.store_kv_q8_0,
                _ => &self.kernels.store_kv,
            };
            launch!(self, kernel, grid;
                x.address(), self.attention.slots, int("heads", kv_heads)?, int("columns", dim)?, pages)?;
        }
        Ok(())
    }

    /// Attention of each row over its own sequence, `out: [rows, heads * head_dim]`. `sinks`, `[heads]`: the score of a further
    /// key of each head, whose value is 0.
    ///
    /// # Errors
    /// [`CudaError::Shape`], or what the driver reports.
    pub fn attention(
        &mut self,
        q: &Buffer,
        sinks: Option<&Array<f32>>,
        cache: &Cache,
        layer: usize,
        shape: &Shape,
        out: &mut Buffer,
    ) -> Result<(), CudaError> {
        let Shape { heads, kv_heads, head_dim: dim, .. } = *shape;
        let (kept, [keys, values]) = cache.layer(layer)?;
        same("key heads", kept.kv_heads, kv_heads)?;
        let group = heads.checked_div(kv_heads).unwrap_or(0);
        same("query heads", group * kv_heads, heads)?;
        same("elements of a head", kept.head_dim, dim)?;
        same("columns of queries", heads * dim, q.cols)?;
        same("rows of queries", self.attention.rows, q.rows)?;
        same("sinks", heads, sinks.map_or(heads, Array::len))?;
        out.resize(self, q.rows, q.cols)?;
        if q.rows == 0 || q.cols == 0 {
            return Ok(());
        }
        let found = FORMS.iter().zip(&self.kernels.attention).find(|(form, _)| dim <= form.widest);
        let Some((form, kernel)) = found else {
            return Err(CudaError::HeadTooWide { head_dim: dim, widest: FORMS[FORMS.len() - 1].widest });
        };
        let (shared, kernel) = (form.shared_bytes(dim), kernel.clone());
        self.tile(group, WARPS * form.queries)?;

        // Where the tiles alone would leave much of the device idle, each span of a long sequence gets a block of its own.
        let spans = self.attention.longest.div_ceil(SPAN).max(1);
        let queries = q.rows * heads;
        let bytes = queries.saturating_mul(spans).saturating_mul(dim * size_of::<f32>());
        let idle = self.attention.tile_count * kv_heads < 2 * self.info().multiprocessors;
        let split = spans > 1 && idle && bytes <= PARTS;
        if split {
            if let Some(parts) = longer(self, &self.attention.parts, queries * spans * dim)? {
                self.attention.parts = parts;
            }
            if let Some(states) = longer(self, &self.attention.states, queries * spans * 2)? {
                self.attention.states = states;
            }
        }
        let scratch = &self.attention;
        let grid_of = |spans: usize| grid((scratch.tile_count, kv_heads, spans), 32 * WARPS, shared);
        let sinks = sinks.map_or(0, Array::address);
        let (heads, kv_heads, width) = (int("heads", heads)?, int("heads", kv_heads)?, int("columns", dim)?);
        let window = shape
            .window
            .map_or(0, |window| u32::try_from(window).unwrap_or(u32::MAX >> 1).min(u32::MAX >> 1));
        let launched = if split { spans } else { 1 };
        launch!(self, kernel, grid_of(launched)?;
            q.address(), sinks, keys, values, scratch.tables, scratch.offsets, scratch.tiles.address(), scratch.positions,
            scratch.sequences, scratch.lengths, heads, kv_heads, width, shape.scale, shape.soft_cap.unwrap_or(0.0), window,
            out.address(), i32::from(split), int("spans", spans)?, scratch.parts.address(), scratch.states.address())?;
        if split {
            launch!(self, self.kernels.merge_spans, grid((queries, 1, 1), dim.next_multiple_of(32).min(256), 0)?;
                scratch.parts.address(), scratch.states.address(), sinks, heads, width, int("spans", spans)?, out.address())?;
        }
        Ok(())
    }

    /// Cuts the batch's queries into tiles, once for all layers of a shape: at most `most` queries of one sequence and key head.
    fn tile(&mut self, group: usize, most: usize) -> Result<(), CudaError> {
        if self.attention.tiled == Some((group, most)) {
            return Ok(());
        }
        let mut staged = std::mem::take(&mut self.attention.staged);
        staged.clear();
        let heads = group.clamp(1, most);
        for &(first, count) in &self.attention.runs {
            for row in (first..first + count).step_by(most / heads) {
                let rows = (most / heads).min(first + count - row);
                for head in (0..group).step_by(heads) {
                    staged.extend([row, rows, head, heads.min(group - head)].map(|number| number as u32));
                }
            }
        }
        if let Some(tiles) = longer(self, &self.attention.tiles, staged.len())? {
            self.attention.tiles = tiles;
        }
        let scratch = &mut self.attention;
        scratch.tiles.write(&self.stream, 0, &staged)?;
        scratch.tile_count = staged.len() / 4;
        scratch.staged = staged;
        scratch.tiled = Some((group, most));
        Ok(())
    }

    /// Copies a page's keys and values, in all layers, to another page.
    ///
    /// # Errors
    /// [`CudaError::Shape`] for a page that does not exist, or what the driver reports.
    pub fn copy_page(&self, cache: &mut Cache, from: u32, to: u32) -> Result<(), CudaError> {
        let pairs = cache.stretches(from)?.into_iter().zip(cache.stretches(to)?);
        for (from, to) in pairs.filter(|_| from != to) {
            for ((array, (from, bytes)), (to, _)) in cache.arrays().into_iter().zip(from).zip(to) {
                array.copy_within(&self.stream, from, to, bytes)?;
            }
        }
        Ok(())
    }

    /// Appends a page's bytes: of each layer the keys' elements and scales, then the values'.
    ///
    /// # Errors
    /// [`CudaError::Shape`] for a page that does not exist, or what the driver reports.
    pub fn read_page(&self, cache: &Cache, page: u32, out: &mut Vec<u8>) -> Result<(), CudaError> {
        let Cache { keys, values, .. } = cache;
        for stretches in cache.stretches(page)? {
            let arrays = [&keys.elements, &keys.scales, &values.elements, &values.scales];
            for (array, (at, bytes)) in arrays.into_iter().zip(stretches) {
                let start = out.len();
                out.resize(start + bytes, 0);
                array.read(&self.stream, at, &mut out[start..])?;
            }
        }
        Ok(())
    }

    /// Puts bytes that [`read_page`](Self::read_page) gave into a page.
    ///
    /// # Errors
    /// [`CudaError::Shape`] for a page that does not exist or another number of bytes, or what the driver reports.
    pub fn write_page(&self, cache: &mut Cache, page: u32, mut bytes: &[u8]) -> Result<(), CudaError> {
        same("bytes of a KV page", cache.page_bytes(), bytes.len())?;
        for stretches in cache.stretches(page)? {
            for (array, (at, len)) in cache.arrays().into_iter().zip(stretches) {
                let (own, rest) = bytes.split_at(len);
                bytes = rest;
                array.write(&self.stream, at, own)?;
            }
        }
        self.wait()
    }
}
