//! The forward pass.
//!
//! One pre-norm transformer decoder, read top to bottom in `Decoder::compute`; what differs between architectures is a
//! field of [`Config`] or an optional tensor. Every buffer is allocated when the model is loaded.
//!
//! One arithmetic: a row's result depends on its own token, position and earlier keys and values only, bit for bit,
//! whatever else is in the batch and however the prompt was cut into batches.

use moli_format::Gguf;
use moli_kernels::{KvSlot, RopeAngles};

use crate::backend::{AttentionSpec, Rows};
use crate::weights::Weights;
use crate::{
    Backend, Batch, Config, LoadOptions, MAX_OUTPUTS, ModelError, PAGE_TOKENS, Rope, Runtime, pages_of,
};

/// A model on a backend.
pub struct Decoder<B: Backend> {
    backend: B,
    config: Config,
    weights: Weights<B>,
    scratch: Scratch<B>,
    cache: B::Cache,
    pages: usize,
    max_rows: usize,
    angles: RopeAngles,
    angles_local: RopeAngles,
    slots: Vec<KvSlot>,
    /// The logits, of a device whose memory the host does not read.
    downloaded: Vec<f32>,
}

/// Activations of one batch; every buffer is `[rows, …]`.
struct Scratch<B: Backend> {
    /// The residual stream, `[hidden]`.
    x: B::Buffer,
    /// What a norm or a projection makes of it, `[hidden]`.
    h: B::Buffer,
    /// What the second norm makes of that, `[hidden]`.
    normed: B::Buffer,
    q: B::Buffer,
    k: B::Buffer,
    v: B::Buffer,
    /// What attention found, `[heads * head_dim]`.
    attended: B::Buffer,
    gate: B::Buffer,
    up: B::Buffer,
    /// Rows whose logits are wanted, `[hidden]`.
    last: B::Buffer,
    last_normed: B::Buffer,
    logits: B::Buffer,
}

impl<B: Backend> Decoder<B> {
    /// Loads a model's weights and allocates what a forward pass needs.
    ///
    /// # Errors
    /// Each names the metadata key, the tensor or the allocation.
    pub fn load(gguf: &Gguf, mut backend: B, options: &LoadOptions) -> Result<Self, ModelError> {
        let embeddings = "token_embd.weight";
        let vocab = gguf
            .tensor(embeddings)
            .ok_or_else(|| ModelError::MissingTensor { name: embeddings.to_owned() })?
            .rows();
        let config = Config::from_metadata(gguf.metadata(), vocab)?;
        let weights = Weights::load(gguf, &config, &backend)?;

        let max_rows = options.max_rows.max(1);
        let kv_width = config.kv_heads * config.head_dim;
        backend.reserve(max_rows, config.hidden.max(config.heads * config.head_dim).max(config.ffn))?;
        let buffer = |cols: usize| backend.buffer(max_rows, cols);
        let outputs = MAX_OUTPUTS.min(max_rows);
        let scratch = Scratch {
            x: buffer(config.hidden)?,
            h: buffer(config.hidden)?,
            normed: buffer(config.hidden)?,
            q: buffer(config.heads * config.head_dim)?,
            k: buffer(kv_width)?,
            v: buffer(kv_width)?,
            attended: buffer(config.heads * config.head_dim)?,
            gate: buffer(config.ffn)?,
            up: buffer(config.ffn)?,
            last: backend.buffer(outputs, config.hidden)?,
            last_normed: backend.buffer(outputs, config.hidden)?,
            logits: backend.buffer(1, config.vocab)?,
        };
        let pages = pages_of(options.context);
        let cache = backend.cache(config.layers, pages, config.kv_heads, config.head_dim, options.kv_type)?;
        Ok(Self {
            angles: rope_angles(&config.rope, weights.rope_factors.as_deref(), max_rows)?,
            angles_local: rope_angles(&config.rope_local, weights.rope_factors.as_deref(), max_rows)?,
            backend,
            config,
            weights,
            scratch,
            cache,
            pages,
            max_rows,
            slots: Vec::with_capacity(max_rows),
            downloaded: Vec::new(),
        })
    }

    /// Logits of the wanted rows. `self.slots` and the batch have been checked.
    fn compute(&mut self, batch: &Batch<'_>) -> Result<&[f32], ModelError> {
        let Self {
            backend: b,
            config: c,
            weights: w,
            scratch: s,
            cache,
            angles,
            angles_local,
            downloaded,
            ..
        } = self;
        let eps = c.norm_eps;
        let rows = Rows {
            positions: batch.positions,
            sequences: batch.sequences,
            tables: batch.tables,
            slots: &self.slots,
        };
        angles.set(batch.positions);
        if c.window.is_some() {
            angles_local.set(batch.positions);
        }

        b.embed(&w.token_embd, batch.tokens, c.embedding_scale, &mut s.x)?;
        for (i, layer) in w.layers.iter().enumerate() {
            // Attention: which earlier tokens matter here, and what they say.
            b.rms_norm(&s.x, &layer.attn_norm, eps, &mut s.h)?;
            b.project(&s.h, &mut [(&layer.q, &mut s.q), (&layer.k, &mut s.k), (&layer.v, &mut s.v)])?;
            if let Some(gain) = &layer.q_norm {
                b.rms_norm_heads(&mut s.q, gain, eps)?;
            }
            if let Some(gain) = &layer.k_norm {
                b.rms_norm_heads(&mut s.k, gain, eps)?;
            }
            let window = c.window_of(i);
            let angles = if window.is_some() { &*angles_local } else { &*angles };
            b.rope(&mut s.q, angles, c.rope.style, c.head_dim)?;
            b.rope(&mut s.k, angles, c.rope.style, c.head_dim)?;
            let spec = AttentionSpec {
                heads: c.heads,
                kv_heads: c.kv_heads,
                head_dim: c.head_dim,
                scale: c.attention_scale,
                window,
            };
            b.store(cache, i, &spec, &s.k, &s.v, &rows)?;
            b.attention(&s.q, cache, i, &spec, &rows, &mut s.attended)?;
            b.project(&s.attended, &mut [(&layer.o, &mut s.h)])?;
            if let Some(gain) = &layer.post_attn_norm {
                b.rms_norm(&s.h, gain, eps, &mut s.normed)?;
                std::mem::swap(&mut s.h, &mut s.normed);
            }
            b.add(&mut s.x, &s.h)?;

            // Feed-forward: what each token makes of it by itself.
            b.rms_norm(&s.x, &layer.ffn_norm, eps, &mut s.h)?;
            b.project(&s.h, &mut [(&layer.gate, &mut s.gate), (&layer.up, &mut s.up)])?;
            b.gated(&mut s.gate, &s.up, c.activation)?;
            b.project(&s.gate, &mut [(&layer.down, &mut s.h)])?;
            if let Some(gain) = &layer.post_ffn_norm {
                b.rms_norm(&s.h, gain, eps, &mut s.normed)?;
                std::mem::swap(&mut s.h, &mut s.normed);
            }
            b.add(&mut s.x, &s.h)?;
        }

        if batch.outputs.is_empty() {
            return Ok(&[]);
        }
        // The output head is a large matrix: only the rows that were asked for go through it.
        b.select(&s.x, batch.outputs, &mut s.last)?;
        b.rms_norm(&s.last, &w.output_norm, eps, &mut s.last_normed)?;
        b.project(&s.last_normed, &mut [(&w.output, &mut s.logits)])?;
        if let Some(cap) = c.logit_soft_cap {
            b.soft_cap(&mut s.logits, cap)?;
        }
        b.download(&s.logits, downloaded)
    }

    /// Refuses a batch that contradicts itself or the model, and finds the rows' slots.
    fn check(&mut self, batch: &Batch<'_>) -> Result<(), ModelError> {
        let rows = batch.tokens.len();
        let bad = |what, actual, allowed: String| Err(ModelError::Batch { what, actual, allowed });
        if rows == 0 || rows > self.max_rows {
            return bad("rows", rows, format!("between 1 and {}", self.max_rows));
        }
        for (what, len) in [("positions", batch.positions.len()), ("sequences", batch.sequences.len())] {
            if len != rows {
                return bad(what, len, format!("as long as tokens, {rows}"));
            }
        }
        if let Some(&token) = batch.tokens.iter().find(|&&token| token as usize >= self.config.vocab) {
            return bad("token", token as usize, format!("below the vocabulary's {}", self.config.vocab));
        }
        let most = MAX_OUTPUTS.min(self.max_rows);
        if batch.outputs.len() > most {
            return bad("outputs", batch.outputs.len(), format!("at most {most}"));
        }
        if let Some(&row) = batch.outputs.iter().find(|&&row| row as usize >= rows) {
            return bad("output", row as usize, format!("below the {rows} rows"));
        }
        self.slots.clear();
        for (&position, &sequence) in batch.positions.iter().zip(batch.sequences) {
            let Some(table) = batch.tables.get(sequence as usize) else {
                return bad(
                    "sequence",
                    sequence as usize,
                    format!("below the {} tables", batch.tables.len()),
                );
            };
            match table.get(position as usize / PAGE_TOKENS) {
                Some(&page) if (page as usize) < self.pages => {
                    self.slots.push(KvSlot { page, token: position % PAGE_TOKENS as u32 });
                }
                Some(&page) => return bad("page", page as usize, format!("below the {} pages", self.pages)),
                None => {
                    let allowed = format!("below the {} of its pages", table.len() * PAGE_TOKENS);
                    return bad("position", position as usize, allowed);
                }
            }
        }
        Ok(())
    }

    fn check_page(&self, page: u32) -> Result<(), ModelError> {
        if (page as usize) < self.pages { Ok(()) } else { Err(ModelError::Page { page, pages: self.pages }) }
    }
}

impl<B: Backend> Runtime for Decoder<B> {
    fn config(&self) -> &Config {
        &self.config
    }

    fn description(&self) -> String {
        self.backend.description()
    }

    fn max_rows(&self) -> usize {
        self.max_rows
    }

    fn pages(&self) -> usize {
        self.pages
    }

    fn page_bytes(&self) -> usize {
        self.backend.page_bytes(&self.cache)
    }

    fn page_layout(&self) -> String {
        self.backend.page_layout(&self.cache)
    }

    fn copy_page(&mut self, from: u32, to: u32) -> Result<(), ModelError> {
        self.check_page(from)?;
        self.check_page(to)?;
        self.backend.copy_page(&mut self.cache, from, to)
    }

    fn read_page(&mut self, page: u32, out: &mut Vec<u8>) -> Result<(), ModelError> {
        self.check_page(page)?;
        self.backend.read_page(&self.cache, page, out)
    }

    fn write_page(&mut self, page: u32, bytes: &[u8]) -> Result<(), ModelError> {
        self.check_page(page)?;
        let expected = self.page_bytes();
        if bytes.len() != expected {
            return Err(ModelError::PageBytes { expected, actual: bytes.len() });
        }
        self.backend.write_page(&mut self.cache, page, bytes)
    }

    fn forward(&mut self, batch: &Batch<'_>) -> Result<&[f32], ModelError> {
        self.check(batch)?;
        let vocab = self.config.vocab;
        let logits = self.compute(batch)?;
        match logits.iter().position(|logit| !logit.is_finite()) {
            Some(i) => Err(ModelError::NotFinite { token: i % vocab, value: logits[i] }),
            None => Ok(logits),
        }
    }
}

/// The angles of one kind of layer, with room for the largest batch.
fn rope_angles(rope: &Rope, factors: Option<&[f32]>, max_rows: usize) -> Result<RopeAngles, ModelError> {
    // Linear scaling is one factor for all pairs; Llama 3.1 has a factor of its own for each.
    let scaled = |pair: usize| factors.and_then(|all| all.get(pair)).unwrap_or(&1.0) * rope.position_divisor;
    let factors: Vec<f32> = (0..rope.dims / 2).map(scaled).collect();
    let mut angles = RopeAngles::new(rope.dims, rope.base, Some(&factors));
    angles.reserve(max_rows)?;
    Ok(angles)
}
