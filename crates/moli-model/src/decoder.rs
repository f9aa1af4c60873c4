//! The forward pass.
//!
//! One transformer, read top to bottom from `Decoder::compute`; what differs between architectures is a field of
//! [`Config`] or an optional tensor. Every buffer is allocated when the model is loaded.
//!
//! One arithmetic: a row's result depends on its own token, position and earlier keys and values only (of an encoder, on those
//! of its whole text), bit for bit, whatever else is in the batch and however the prompt was cut into batches.

pub(crate) mod altup;
mod latent;
pub(crate) mod recurrent;

use moli_format::{Adapter, Gguf};
use moli_kernels::{KvSlot, RopeAngles};

use crate::adapter::Adapters;
use crate::backend::{AttentionSpec, Rows};
use crate::experts::Routes;
use crate::weights::{
    FeedForward, KeyValue, Layer, LayerInput, LayerInputs, Mixer, Mixture, Mlp, Norm, Weights,
};
use crate::{
    Activation, Backend, Batch, Classifier, Computed, Config, LoadOptions, MAX_OUTPUTS, ModelError,
    PAGE_TOKENS, Rope, Runtime, pages_of,
};
use altup::StreamScratch;
use recurrent::Recurrence;

/// A model on a backend.
pub struct Decoder<B: Backend> {
    backend: B,
    config: Config,
    weights: Weights<B>,
    adapters: Adapters<B>,
    scratch: Scratch<B>,
    cache: B::Cache,
    recurrence: Option<Recurrence<B>>,
    /// Of each layer which keys and values of the cache it sees.
    kv_places: Vec<usize>,
    pages: usize,
    max_rows: usize,
    angles: RopeAngles,
    angles_local: RopeAngles,
    slots: Vec<KvSlot>,
    /// Of an encoder's batch: the tokens of each sequence, and each token's kind.
    lengths: Vec<u32>,
    types: Vec<u32>,
}

/// Activations of one batch; every buffer is `[rows, …]`.
struct Scratch<B: Backend> {
    /// The residual stream, `[hidden]`.
    x: B::Buffer,
    /// What a norm or a projection makes of it, `[hidden]`.
    h: B::Buffer,
    /// What attention or the feed-forward network gives, or the second norm makes of that, `[hidden]`.
    normed: B::Buffer,
    q: B::Buffer,
    /// Of each head its query and its gate; the gates, `[heads * head_dim]`.
    gated_q: Option<[B::Buffer; 2]>,
    k: B::Buffer,
    v: B::Buffer,
    /// What attention found, `[heads * head_dim]`.
    attended: B::Buffer,
    gate: B::Buffer,
    up: B::Buffer,
    streams: Option<StreamScratch<B>>,
    /// The vectors that layers have for the tokens, and a part of them on its way, `[layers * layer_inputs]`.
    inputs: Option<[B::Buffer; 2]>,
    experts: Option<ExpertScratch<B>>,
    /// What a network beside the experts gives, then they themselves, `[hidden]`.
    beside: Option<B::Buffer>,
    latent: Option<LatentScratch<B>>,
    /// Rows whose logits are wanted, `[hidden]`.
    last: B::Buffer,
    last_normed: B::Buffer,
    logits: B::Buffer,
    /// What the host reads of a device whose memory it does not see; the hidden states at the end.
    downloaded: Vec<f32>,
    downloaded_states: Vec<f32>,
}

/// What layers with experts need more.
struct ExpertScratch<B: Backend> {
    /// The router's logits, `[experts]`; the shared expert's weight, `[1]`.
    logits: B::Buffer,
    /// The rows of one expert, `[hidden]`.
    rows: B::Buffer,
    /// What it makes of them, `[hidden]`.
    out: B::Buffer,
    routes: Routes,
    /// All rows, and a weight for each.
    all: (Vec<u32>, Vec<f32>),
}

/// What latent attention needs more.
struct LatentScratch<B: Backend> {
    /// The query's bottleneck, and that normed, `[q_rank]`.
    q_down: [B::Buffer; 2],
    /// The queries of all heads, `[heads * (plain + rotated)]`; the values later, `[heads * value]`.
    heads: B::Buffer,
    /// Their rotated parts, `[heads * rotated]`.
    rotated: B::Buffer,
    /// The latent vector and the key's rotated part, `[kv_rank + rotated]`.
    kv: B::Buffer,
    /// A part of one head, and what a matrix makes of it.
    parts: [B::Buffer; 2],
}

impl<B: Backend> Scratch<B> {
    fn new(backend: &B, config: &Config, max_rows: usize) -> Result<Self, ModelError> {
        let buffer = |cols: usize| backend.buffer(max_rows, cols);
        let [q, kv] = config.widest_heads();
        let (hidden, ffn) = (config.hidden, config.widest_ffn());
        let outputs = MAX_OUTPUTS.min(max_rows);
        let experts = config.experts.as_ref().map(|experts| {
            Ok::<_, ModelError>(ExpertScratch {
                logits: buffer(experts.count)?,
                rows: buffer(hidden)?,
                out: buffer(hidden)?,
                routes: Routes::default(),
                all: (Vec::with_capacity(max_rows), Vec::with_capacity(max_rows)),
            })
        });
        let latent = config.latent.map(|latent| {
            let part = latent.kv_rank.max(latent.plain).max(latent.value);
            let q_rank = latent.q_rank.unwrap_or(1);
            Ok::<_, ModelError>(LatentScratch {
                q_down: [buffer(q_rank)?, buffer(q_rank)?],
                heads: buffer(config.q_width().max(config.attended_width(0)).max(q))?,
                rotated: buffer(config.heads * latent.rotated)?,
                kv: buffer(latent.width())?,
                parts: [buffer(part)?, buffer(part)?],
            })
        });
        Ok(Self {
            x: buffer(hidden)?,
            h: buffer(hidden)?,
            normed: buffer(hidden)?,
            q: buffer(q)?,
            gated_q: match config.gated_attention {
                true => Some([buffer(2 * q)?, buffer(q)?]),
                false => None,
            },
            k: buffer(kv)?,
            v: buffer(kv)?,
            attended: buffer(q)?,
            gate: buffer(ffn)?,
            up: buffer(ffn)?,
            streams: match config.altup {
                Some(altup) => Some(StreamScratch::new(backend, config, altup, max_rows)?),
                None => None,
            },
            inputs: match config.layers * config.layer_inputs {
                0 => None,
                width => Some([buffer(width)?, buffer(width)?]),
            },
            experts: experts.transpose()?,
            beside: match &config.experts {
                Some(experts) if experts.beside => Some(buffer(hidden)?),
                _ => None,
            },
            latent: latent.transpose()?,
            last: backend.buffer(outputs, hidden)?,
            last_normed: backend.buffer(outputs, hidden)?,
            logits: backend.buffer(1, config.vocab)?,
            downloaded: Vec::new(),
            downloaded_states: Vec::new(),
        })
    }
}

impl<B: Backend> Decoder<B> {
    /// Loads the weights of a model and of adapters for it, and allocates what a forward pass needs.
    ///
    /// # Errors
    /// Each names the metadata key, the tensor or the allocation.
    pub fn load(
        gguf: &Gguf,
        adapters: &[Adapter],
        mut backend: B,
        options: &LoadOptions,
    ) -> Result<Self, ModelError> {
        let embeddings = "token_embd.weight";
        let vocab = gguf
            .tensor(embeddings)
            .ok_or_else(|| ModelError::MissingTensor { name: embeddings.to_owned() })?
            .rows();
        let config = Config::from_metadata(gguf.metadata(), vocab)?;
        let weights = Weights::load(gguf, adapters, &config, options.context, &backend)?;

        let max_rows = options.max_rows.max(1);
        backend.reserve(max_rows, Adapters::<B>::widest_input(adapters, &config))?;
        let adapters = Adapters::new(&backend, &config, adapters, max_rows)?;
        let scratch = Scratch::new(&backend, &config, max_rows)?;
        let whole_rows = if config.causal { 0 } else { max_rows };
        let pages = pages_of(options.context);
        let recurrence = Recurrence::new(&backend, &config, max_rows)?;
        let cache = backend.cache(&config.kv_shapes(), pages, options.kv_type)?;
        Ok(Self {
            angles: rope_angles(&config.rope, weights.rope_factors.as_deref(), max_rows)?,
            angles_local: rope_angles(&config.rope_local, weights.rope_factors.as_deref(), max_rows)?,
            backend,
            kv_places: config.kv_places(),
            config,
            weights,
            adapters,
            scratch,
            cache,
            recurrence,
            pages,
            max_rows,
            slots: Vec::with_capacity(max_rows),
            lengths: Vec::with_capacity(whole_rows),
            types: Vec::with_capacity(whole_rows),
        })
    }

    /// Logits and hidden states of the wanted rows, all of them finite. What `check` finds out of the batch is there.
    fn compute(&mut self, batch: &Batch<'_>) -> Result<Computed<'_>, ModelError> {
        let Self { backend: b, config: c, weights: w, adapters: a, scratch: s, cache, recurrence, .. } = self;
        let (angles, angles_local, kv_places) = (&mut self.angles, &mut self.angles_local, &self.kv_places);
        let rows = Rows {
            positions: batch.positions,
            sequences: batch.sequences,
            tables: batch.tables,
            lengths: (!c.causal).then_some(&*self.lengths),
            slots: &self.slots,
        };
        a.set(batch);
        angles.set(batch.positions);
        if c.window.is_some() {
            angles_local.set(batch.positions);
        }
        b.begin(&rows, [&*angles, &*angles_local])?;

        b.embed(&w.token_embd, batch.tokens, c.embedding_scale, &mut s.x)?;
        for (table, indices) in [(&w.token_types, &*self.types), (&w.position_embd, batch.positions)] {
            if let Some(table) = table {
                b.embed(table, indices, 1.0, &mut s.h)?;
                b.add(&mut s.x, &s.h)?;
            }
        }
        if let Some(norm) = &w.embedding_norm {
            b.norm(&s.x, norm, c.norm_eps, &mut s.h)?;
            std::mem::swap(&mut s.x, &mut s.h);
        }
        if let Some(inputs) = &w.layer_inputs {
            layer_inputs((b, a), c, inputs, batch.tokens, s)?;
        }
        if let Some(streams) = &w.streams {
            altup::begin((b, a), c, streams, s)?;
        }
        // Layers so far with a state.
        let mut carried = 0;
        for ((i, layer), &place) in w.layers.iter().enumerate().zip(kv_places) {
            // Attention: which earlier tokens matter here, and what they say. Or what a state keeps of them.
            let angles = if c.window_of(i).is_some() { &*angles_local } else { &*angles };
            let angles = c.rotated[i].then_some(angles);
            if let Some(streams) = &layer.streams {
                altup::predict((b, a), c, streams, s)?;
            }
            let input = normed(b, &s.x, layer.attn_norm.as_ref(), c.norm_eps, &mut s.h)?;
            let found = match (&layer.mixer, recurrence.as_mut()) {
                (Mixer::ShortConv(conv), Some(recurrence)) => {
                    carried += 1;
                    recurrence.short_conv((b, a), conv, input, carried - 1)?
                }
                (Mixer::DeltaNet(net), Some(recurrence)) => {
                    carried += 1;
                    recurrence.delta_net((b, a), c, net, input, carried - 1)?
                }
                _ => {
                    if let Some(streams) = &layer.streams {
                        altup::around((b, a), c, streams, s)?;
                    }
                    attend((b, a), c, layer, i, (cache, place), angles, &rows, s)?;
                    &s.attended
                }
            };
            a.project(b, found, None, &mut [(&layer.o, &mut s.normed)])?;
            if layer.parallel && layer.ffn_norm.is_some() {
                normed(b, &s.x, layer.ffn_norm.as_ref(), c.norm_eps, &mut s.h)?;
            }
            add_to_stream(b, c, layer.post_attn_norm.as_ref(), s)?;
            altup::join(b, s)?;

            // Feed-forward: what each token makes of it by itself.
            feed_forward((b, a), c, layer, c.activation_of(i), s)?;
            add_to_stream(b, c, layer.post_ffn_norm.as_ref(), s)?;

            // What the token itself means to this layer.
            if let Some(streams) = &layer.streams {
                altup::correct((b, a), c, streams, s)?;
            }
            if let Some(input) = &layer.input {
                own_input((b, a), c, input, i, s)?;
                match layer.streams {
                    Some(_) => altup::add_input(b, c, &input.norm, s)?,
                    None => add_to_stream(b, c, Some(&input.norm), s)?,
                }
            }
            if let Some(scale) = layer.scale {
                b.scale(&mut s.x, scale)?;
            }
        }

        if let Some(streams) = &w.streams {
            altup::end((b, a), c, streams, s)?;
        }
        let mut computed = Computed { logits: &[], states: &[] };
        if !batch.states.is_empty() {
            // The layers' buffers are free by now.
            b.select(&s.x, batch.states, &mut s.h)?;
            let states = normed(b, &s.h, w.output_norm.as_ref(), c.norm_eps, &mut s.normed)?;
            computed.states = b.download(states, &mut s.downloaded_states)?;
        }
        if !batch.outputs.is_empty() {
            // The output head is a large matrix: only the rows that were asked for go through it.
            b.select(&s.x, batch.outputs, &mut s.last)?;
            let last = normed(b, &s.last, w.output_norm.as_ref(), c.norm_eps, &mut s.last_normed)?;
            a.project(b, last, Some(batch.outputs), &mut [(&w.output, &mut s.logits)])?;
            if c.logit_scale != 1.0 {
                b.scale(&mut s.logits, c.logit_scale)?;
            }
            if let Some(cap) = c.logit_soft_cap {
                b.soft_cap(&mut s.logits, cap)?;
            }
            computed.logits = b.download(&s.logits, &mut s.downloaded)?;
        }
        if let Some(i) = odd(computed.logits) {
            return Err(ModelError::NotFinite { token: i % c.vocab, value: computed.logits[i] });
        }
        if let Some(i) = odd(computed.states) {
            return Err(ModelError::StateNotFinite { element: i % c.hidden, value: computed.states[i] });
        }
        if let Some(recurrence) = recurrence {
            recurrence.end(batch.positions);
        }
        Ok(computed)
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
        if batch.states.len() > rows {
            return bad("states", batch.states.len(), format!("at most the {rows} rows"));
        }
        for (what, wanted) in [("output", batch.outputs), ("state", batch.states)] {
            if let Some(&row) = wanted.iter().find(|&&row| row as usize >= rows) {
                return bad(what, row as usize, format!("below the {rows} rows"));
            }
        }
        let (learned, context) = (self.config.learned_positions, self.config.context_train);
        let beyond = |&&position: &&u32| learned && position as usize >= context;
        if let Some(&position) = batch.positions.iter().find(beyond) {
            return bad("position", position as usize, format!("below the model's context of {context}"));
        }
        self.adapters.check(batch)?;
        self.check_whole(batch)?;
        match &mut self.recurrence {
            Some(recurrence) => recurrence.check(batch)?,
            None if batch.recurrent.is_empty() => {}
            None => return bad("recurrent", batch.recurrent.len(), "none: no layer has a state".to_owned()),
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

    /// What is said of the tokens of an encoder, whose texts have to be whole.
    fn check_whole(&mut self, batch: &Batch<'_>) -> Result<(), ModelError> {
        let Self { config, lengths, types, .. } = self;
        let bad = |what, actual, allowed: String| Err(ModelError::Batch { what, actual, allowed });
        let rows = batch.tokens.len();
        if ![0, rows].contains(&batch.types.len()) {
            return bad("types", batch.types.len(), format!("as long as tokens, {rows}, or empty"));
        }
        if let Some(&kind) = batch.types.iter().find(|&&kind| kind as usize >= config.token_types) {
            return bad("type", kind as usize, format!("below the model's {} kinds", config.token_types));
        }
        if config.causal {
            return Ok(());
        }
        types.clear();
        types.extend(batch.types);
        types.resize(rows, 0);
        lengths.clear();
        if !batch.outputs.is_empty() {
            return bad("outputs", batch.outputs.len(), "none: an encoder has no output head".to_owned());
        }
        lengths.resize(batch.tables.len(), 0);
        for (&position, &sequence) in batch.positions.iter().zip(batch.sequences) {
            let Some(length) = lengths.get_mut(sequence as usize) else { continue };
            if position != *length {
                return bad("position", position as usize, format!("{length}: an encoder's text is whole"));
            }
            *length += 1;
            if *length as usize > config.context_train {
                let allowed = format!("below the model's context of {}", config.context_train);
                return bad("position", position as usize, allowed);
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

    fn state_bytes(&self) -> usize {
        self.recurrence.as_ref().map_or(0, Recurrence::state_bytes)
    }

    fn states(&self) -> usize {
        self.recurrence.as_ref().map_or(0, Recurrence::slots)
    }

    fn reserve_states(&mut self, states: usize) -> Result<(), ModelError> {
        match &mut self.recurrence {
            Some(recurrence) => recurrence.reserve(&self.backend, recurrence.layers(), states),
            None => Ok(()),
        }
    }

    fn read_state(&mut self, state: u32, out: &mut Vec<u8>) -> Result<(), ModelError> {
        let Some(recurrence) = &mut self.recurrence else {
            return Err(ModelError::State { state, states: 0 });
        };
        recurrence.check_slot(state)?;
        recurrence.read(&mut self.backend, state, out)
    }

    fn write_state(&mut self, state: u32, tokens: u32, bytes: &[u8]) -> Result<(), ModelError> {
        let Some(recurrence) = &mut self.recurrence else {
            return Err(ModelError::State { state, states: 0 });
        };
        recurrence.check_slot(state)?;
        let expected = recurrence.state_bytes();
        if bytes.len() != expected {
            return Err(ModelError::StateBytes { expected, actual: bytes.len() });
        }
        recurrence.write(&mut self.backend, state, tokens, bytes)
    }

    fn classifier(&self) -> Option<&Classifier> {
        self.weights.classifier.as_ref()
    }

    fn forward(&mut self, batch: &Batch<'_>) -> Result<Computed<'_>, ModelError> {
        self.check(batch)?;
        if let Some(recurrence) = &mut self.recurrence {
            recurrence.begin();
        }
        self.compute(batch)
    }
}

/// The first value that is not finite.
fn odd(values: &[f32]) -> Option<usize> {
    let is_odd = |value: &f32| !value.is_finite();
    // A chunk is looked through without a branch for each value: there are hundreds of thousands.
    let chunk = |chunk: &[f32]| chunk.iter().map(|value| u32::from(is_odd(value))).sum::<u32>() > 0;
    let start = values.chunks(64).position(chunk)? * 64;
    values[start..].iter().position(is_odd).map(|at| start + at)
}

/// The vectors that all layers have for the tokens, into the first of `s.inputs`; `s.x`: the embeddings.
fn layer_inputs<B: Backend>(
    (b, a): (&mut B, &mut Adapters<B>),
    c: &Config,
    w: &LayerInputs<B>,
    tokens: &[u32],
    s: &mut Scratch<B>,
) -> Result<(), ModelError> {
    let Some([inputs, projected]) = &mut s.inputs else { return Ok(()) };
    let root = |n: usize| (n as f32).sqrt();
    a.project(b, &s.x, None, &mut [(&w.projection, &mut *projected)])?;
    b.scale(projected, root(c.hidden).recip())?;
    b.rms_norm_heads(projected, &w.gain, c.norm_eps)?;
    let mut of_table = Vec::new();
    let tokens = match tokens.iter().all(|&token| (token as usize) < w.tokens) {
        true => tokens,
        false => {
            of_table.extend(tokens.iter().map(|&token| if (token as usize) < w.tokens { token } else { 0 }));
            &of_table
        }
    };
    b.embed(&w.table, tokens, root(c.layer_inputs), inputs)?;
    b.add(inputs, projected)?;
    b.scale(inputs, std::f32::consts::FRAC_1_SQRT_2)
}

/// What layer `i` makes of its own vector of each token and of `s.x`, into `s.normed`.
fn own_input<B: Backend>(
    (b, a): (&mut B, &mut Adapters<B>),
    c: &Config,
    w: &LayerInput<B>,
    i: usize,
    s: &mut Scratch<B>,
) -> Result<(), ModelError> {
    let Some([inputs, own]) = &mut s.inputs else { return Ok(()) };
    let rows = b.rows(inputs);
    b.zero(own, rows, c.layer_inputs)?;
    b.copy_columns(inputs, i * c.layer_inputs, own, 0, c.layer_inputs)?;
    a.project(b, &s.x, None, &mut [(&w.gate, &mut s.gate)])?;
    b.gated(&mut s.gate, own, c.activation)?;
    a.project(b, &s.gate, None, &mut [(&w.up, &mut s.normed)])
}

/// Attention of a layer into `s.attended`; `kv`: the cache, and which of its layers this one sees.
#[allow(clippy::too_many_arguments, reason = "they are what attention is of")]
fn attend<B: Backend>(
    (b, a): (&mut B, &mut Adapters<B>),
    c: &Config,
    layer: &Layer<B>,
    i: usize,
    (cache, place): (&mut B::Cache, usize),
    angles: Option<&RopeAngles>,
    rows: &Rows<'_>,
    s: &mut Scratch<B>,
) -> Result<(), ModelError> {
    let shape = c.kv_of(i);
    let mut keeps_kv = true;
    match &layer.mixer {
        Mixer::Heads { q, q_norm, kv } => {
            let input = if layer.attn_norm.is_some() { &s.h } else { &s.x };
            let queries = match &mut s.gated_q {
                Some([both, _]) => both,
                None => &mut s.q,
            };
            match kv {
                Some(KeyValue { k, v: Some(v), .. }) => {
                    a.project(b, input, None, &mut [(q, queries), (k, &mut s.k), (v, &mut s.v)])?;
                }
                Some(KeyValue { k, v: None, .. }) => {
                    a.project(b, input, None, &mut [(q, queries), (k, &mut s.k)])?;
                    let rows = b.rows(&s.k);
                    b.zero(&mut s.v, rows, shape.width())?;
                    b.add(&mut s.v, &s.k)?;
                }
                None => a.project(b, input, None, &mut [(q, queries)])?,
            }
            if let Some([both, gates]) = &mut s.gated_q {
                let (rows, width) = (b.rows(both), shape.head_dim);
                b.zero(&mut s.q, rows, c.heads * width)?;
                b.zero(gates, rows, c.heads * width)?;
                for head in 0..c.heads {
                    b.copy_columns(both, 2 * head * width, &mut s.q, head * width, width)?;
                    b.copy_columns(both, (2 * head + 1) * width, gates, head * width, width)?;
                }
            }
            let keys = kv.as_ref().map(|kv| (&mut s.k, &kv.k_norm));
            for (x, gain) in [(&mut s.q, q_norm)].into_iter().chain(keys) {
                if let Some(angles) = angles.filter(|_| c.rope_first) {
                    b.rope(x, angles, c.rope.style, shape.head_dim)?;
                }
                if let Some(gain) = gain {
                    b.rms_norm_heads(x, gain, c.norm_eps)?;
                }
                if let Some(angles) = angles.filter(|_| !c.rope_first) {
                    b.rope(x, angles, c.rope.style, shape.head_dim)?;
                }
            }
            if let Some(gain) = kv.as_ref().and_then(|kv| kv.v_norm.as_ref()) {
                b.rms_norm_heads(&mut s.v, gain, c.norm_eps)?;
            }
            keeps_kv = kv.is_some();
        }
        Mixer::Latent(attention) => latent::queries((b, a), c, attention, angles, s)?,
        // These have no keys and values.
        Mixer::ShortConv(_) | Mixer::DeltaNet(_) => return Ok(()),
    }
    let spec = AttentionSpec {
        heads: c.heads,
        kv_heads: shape.heads,
        head_dim: shape.head_dim,
        scale: c.attention_scale,
        soft_cap: c.attention_soft_cap,
        window: c.window_of(i),
    };
    // A latent vector is key and value.
    let values = if c.latent.is_some() { &s.k } else { &s.v };
    if keeps_kv {
        b.store(cache, place, &spec, &s.k, values, rows)?;
    }
    b.attention(&s.q, layer.sinks.as_ref(), cache, place, &spec, rows, &mut s.attended)?;
    if let Some([_, gates]) = &s.gated_q {
        b.gate_sigmoid(&mut s.attended, gates)?;
    }
    match &layer.mixer {
        Mixer::Latent(attention) => latent::values(b, c, attention, s),
        _ => Ok(()),
    }
}

/// `x` through a norm into `h`, or itself where there is none.
fn normed<'a, B: Backend>(
    b: &mut B,
    x: &'a B::Buffer,
    norm: Option<&Norm<B::Vector>>,
    eps: f32,
    h: &'a mut B::Buffer,
) -> Result<&'a B::Buffer, ModelError> {
    match norm {
        Some(norm) => b.norm(x, norm, eps, h).map(|()| &*h),
        None => Ok(x),
    }
}

/// Adds `s.normed` to the residual stream, through its norm where there is one, or the sum through it.
fn add_to_stream<B: Backend>(
    b: &mut B,
    c: &Config,
    norm: Option<&Norm<B::Vector>>,
    s: &mut Scratch<B>,
) -> Result<(), ModelError> {
    if let Some(norm) = norm
        && !c.sum_norm
    {
        b.norm(&s.normed, norm, c.norm_eps, &mut s.h)?;
        std::mem::swap(&mut s.h, &mut s.normed);
    }
    if c.residual_scale != 1.0 {
        b.scale(&mut s.normed, c.residual_scale)?;
    }
    b.add(&mut s.x, &s.normed)?;
    if let Some(norm) = norm
        && c.sum_norm
    {
        b.norm(&s.x, norm, c.norm_eps, &mut s.h)?;
        std::mem::swap(&mut s.x, &mut s.h);
    }
    Ok(())
}

/// The feed-forward network of a layer, of `s.x` into `s.normed`.
fn feed_forward<B: Backend>(
    (b, a): (&mut B, &mut Adapters<B>),
    c: &Config,
    layer: &Layer<B>,
    activation: Activation,
    s: &mut Scratch<B>,
) -> Result<(), ModelError> {
    let Scratch { x, h, normed: out, gate, up, experts, beside, downloaded, .. } = s;
    let input = match layer.parallel {
        // What it reads is there already, of its own norm or of attention's.
        true => &*h,
        false => normed(b, x, layer.ffn_norm.as_ref(), c.norm_eps, h)?,
    };
    match (&layer.ffn, experts, beside) {
        (FeedForward::Dense(network), ..) => mlp((b, a), activation, network, (input, None), (gate, up), out),
        (FeedForward::Experts(mixture), Some(scratch), _) => {
            route((&mut *b, &mut *a), c, mixture, input, scratch, downloaded)?;
            mix((b, a), (c, activation), mixture, input, scratch, (gate, up, downloaded), out)
        }
        (FeedForward::Both(both), Some(scratch), Some(beside)) => {
            mlp((&mut *b, &mut *a), activation, &both.dense, (input, None), (gate, up), beside)?;
            b.norm(beside, &both.dense_norm, c.norm_eps, h)?;
            b.norm(x, &both.router_norm, c.norm_eps, out)?;
            route((&mut *b, &mut *a), c, &both.mixture, out, scratch, downloaded)?;
            b.norm(x, &both.mixture_norm, c.norm_eps, out)?;
            mix(
                (&mut *b, &mut *a),
                (c, activation),
                &both.mixture,
                out,
                scratch,
                (gate, up, downloaded),
                beside,
            )?;
            b.norm(beside, &both.mixed_norm, c.norm_eps, out)?;
            b.add(out, h)
        }
        // The scratch is made for the configuration that the layers follow.
        (FeedForward::Experts(_) | FeedForward::Both(_), ..) => Ok(()),
    }
}

/// `down · (activation(gate · x) * (up · x))`, or without a gate `down · activation(up · x)`, of these rows of the batch.
fn mlp<B: Backend>(
    (b, a): (&mut B, &mut Adapters<B>),
    activation: Activation,
    network: &Mlp<B>,
    (x, rows): (&B::Buffer, Option<&[u32]>),
    (gate, up): (&mut B::Buffer, &mut B::Buffer),
    out: &mut B::Buffer,
) -> Result<(), ModelError> {
    match &network.gate {
        Some(matrix) => {
            a.project(b, x, rows, &mut [(matrix, &mut *gate), (&network.up, &mut *up)])?;
            if let Some(cutoff) = network.cutoff {
                b.cut_off(gate, cutoff)?;
            }
            b.gated(gate, up, activation)?;
            a.project(b, gate, rows, &mut [(&network.down, out)])
        }
        None => {
            a.project(b, x, rows, &mut [(&network.up, &mut *up)])?;
            b.activate(up, activation)?;
            a.project(b, up, rows, &mut [(&network.down, out)])
        }
    }
}

/// Which experts each row goes through, by what the router makes of it.
fn route<B: Backend>(
    (b, a): (&mut B, &mut Adapters<B>),
    c: &Config,
    mixture: &Mixture<B>,
    x: &B::Buffer,
    s: &mut ExpertScratch<B>,
    downloaded: &mut Vec<f32>,
) -> Result<(), ModelError> {
    let Some(experts) = &c.experts else { return Ok(()) };
    a.project(b, x, None, &mut [(&mixture.router, &mut s.logits)])?;
    s.routes.choose(experts, b.download(&s.logits, downloaded)?, mixture.choice_bias.as_deref());
    Ok(())
}

/// Each row through the experts that were chosen for it, weighted and added up.
fn mix<B: Backend>(
    (b, a): (&mut B, &mut Adapters<B>),
    (c, activation): (&Config, Activation),
    mixture: &Mixture<B>,
    x: &B::Buffer,
    s: &mut ExpertScratch<B>,
    (gate, up, downloaded): (&mut B::Buffer, &mut B::Buffer, &mut Vec<f32>),
    out: &mut B::Buffer,
) -> Result<(), ModelError> {
    let count = b.rows(x);
    b.zero(out, count, c.hidden)?;
    s.routes.each(|expert, rows, weights| {
        b.select(x, rows, &mut s.rows)?;
        let chosen = (&s.rows, Some(rows));
        mlp(
            (&mut *b, &mut *a),
            activation,
            &mixture.experts[expert],
            chosen,
            (&mut *gate, &mut *up),
            &mut s.out,
        )?;
        b.scatter_add(&s.out, rows, weights, out)
    })?;
    let Some(shared) = &mixture.shared else { return Ok(()) };
    mlp((&mut *b, &mut *a), activation, shared, (x, None), (gate, up), &mut s.out)?;
    let Some(gate) = &mixture.shared_gate else { return b.add(out, &s.out) };
    a.project(b, x, None, &mut [(gate, &mut s.logits)])?;
    let (rows, weights) = &mut s.all;
    rows.clear();
    rows.extend(0..count as u32);
    weights.clear();
    weights.extend(b.download(&s.logits, downloaded)?.iter().map(|x| 1.0 / (1.0 + (-x).exp())));
    b.scatter_add(&s.out, rows, weights, out)
}

/// The angles of one kind of layer, with room for the largest batch.
fn rope_angles(rope: &Rope, factors: Option<&[f32]>, max_rows: usize) -> Result<RopeAngles, ModelError> {
    let mut angles = rope.angles(factors);
    angles.reserve(max_rows)?;
    Ok(angles)
}
