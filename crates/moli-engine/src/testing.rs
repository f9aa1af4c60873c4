//! A toy model and a toy tokenizer for tests.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;
use std::time::Duration;

use moli_format::{Bytes, Gguf, GgufWriter};
use moli_model::{Batch, Computed, Config, ModelError, PAGE_TOKENS, Runtime, pages_of};
use moli_text::{ChatTemplate, Tokenizer};

use crate::{CancelToken, Engine, Scheduling};

/// What a test sees and sets of a [`Toy`] that an engine owns.
#[derive(Debug, Clone, Default)]
pub(crate) struct Probe {
    /// Rows computed, over all batches.
    pub(crate) rows: Arc<AtomicUsize>,
    /// Batches computed.
    pub(crate) batches: Arc<AtomicUsize>,
    /// The next logits have a NaN among them.
    pub(crate) damage: Arc<AtomicBool>,
    /// The next hidden states have a NaN among them.
    pub(crate) damage_states: Arc<AtomicBool>,
    /// The next forward pass panics.
    pub(crate) panic: Arc<AtomicBool>,
    /// Rows of the largest batch.
    pub(crate) largest: Arc<AtomicUsize>,
    /// Milliseconds that each batch takes.
    pub(crate) slow: Arc<AtomicUsize>,
    /// Held by a test that no batch may end.
    gate: Arc<Mutex<()>>,
    /// What is cancelled in which batch.
    cancel: Arc<Mutex<Option<(usize, CancelToken)>>>,
}

impl Probe {
    /// No batch ends until what this gives is dropped.
    pub(crate) fn hold(&self) -> MutexGuard<'_, ()> {
        self.gate.lock().unwrap()
    }

    /// Cancels while the `batch`th batch from now is computed.
    pub(crate) fn cancel_at_batch(&self, batch: usize, cancel: &CancelToken) {
        *self.cancel.lock().unwrap() = Some((batch, cancel.clone()));
    }
}

/// Logits and hidden states are a hash of all tokens so far, read back from the toy's own "KV cache", so that a wrong page, a stale page
/// or a wrong position changes them. A script, if there is one, makes the token at each position certain.
pub(crate) struct Toy {
    config: Config,
    /// One token per slot, in place of keys and values.
    cache: Vec<u32>,
    max_rows: usize,
    script: Vec<u32>,
    out: Vec<f32>,
    states: Vec<f32>,
    probe: Probe,
}

impl Toy {
    pub(crate) fn new(vocab: usize, context: usize, max_rows: usize, script: &[u32], probe: &Probe) -> Self {
        Self {
            cache: vec![u32::MAX; pages_of(context) * PAGE_TOKENS],
            config: config(vocab, context),
            max_rows,
            script: script.to_vec(),
            out: Vec::new(),
            states: Vec::new(),
            probe: probe.clone(),
        }
    }

    /// A hash of all tokens up to a row's, and its position.
    fn history(&self, batch: &Batch<'_>, row: usize) -> (u64, usize) {
        let table = batch.tables[batch.sequences[row] as usize];
        let position = batch.positions[row] as usize;
        let mix = |hash: u64, at| {
            (hash ^ u64::from(self.cache[slot(table, at)])).wrapping_mul(0x0000_0100_0000_01B3)
        };
        ((0..=position).fold(0xCBF2_9CE4_8422_2325, mix), position)
    }
}

impl Runtime for Toy {
    fn config(&self) -> &Config {
        &self.config
    }

    fn description(&self) -> String {
        "toy".to_owned()
    }

    fn max_rows(&self) -> usize {
        self.max_rows
    }

    fn pages(&self) -> usize {
        self.cache.len() / PAGE_TOKENS
    }

    fn page_bytes(&self) -> usize {
        PAGE_TOKENS * size_of::<u32>()
    }

    fn page_layout(&self) -> String {
        "toy".to_owned()
    }

    fn copy_page(&mut self, from: u32, to: u32) -> Result<(), ModelError> {
        self.cache.copy_within(page(from), page(to).start);
        Ok(())
    }

    fn read_page(&mut self, number: u32, out: &mut Vec<u8>) -> Result<(), ModelError> {
        out.extend(self.cache[page(number)].iter().flat_map(|token| token.to_le_bytes()));
        Ok(())
    }

    fn write_page(&mut self, number: u32, bytes: &[u8]) -> Result<(), ModelError> {
        for (to, from) in self.cache[page(number)].iter_mut().zip(bytes.as_chunks().0) {
            *to = u32::from_le_bytes(*from);
        }
        Ok(())
    }

    fn forward(&mut self, batch: &Batch<'_>) -> Result<Computed<'_>, ModelError> {
        assert!(!self.probe.panic.swap(false, Ordering::Relaxed), "as the test asked");
        assert!(batch.tokens.len() <= self.max_rows && !batch.tokens.is_empty());
        assert!(batch.outputs.len() <= moli_model::MAX_OUTPUTS);
        self.probe.rows.fetch_add(batch.tokens.len(), Ordering::Relaxed);
        self.probe.batches.fetch_add(1, Ordering::Relaxed);
        self.probe.largest.fetch_max(batch.tokens.len(), Ordering::Relaxed);
        drop(self.probe.gate.lock().unwrap());
        thread::sleep(Duration::from_millis(self.probe.slow.load(Ordering::Relaxed) as u64));
        if let Some((batches, cancel)) = self.probe.cancel.lock().unwrap().as_mut() {
            *batches = batches.saturating_sub(1);
            if *batches == 0 {
                cancel.cancel();
            }
        }
        for (row, &token) in batch.tokens.iter().enumerate() {
            let table = batch.tables[batch.sequences[row] as usize];
            self.cache[slot(table, batch.positions[row] as usize)] = token;
        }
        self.out.clear();
        for &row in batch.outputs {
            let (hash, position) = self.history(batch, row as usize);
            for id in 0..self.config.vocab as u64 {
                let mixed =
                    (hash ^ id.wrapping_mul(0x9E37_79B9_7F4A_7C15)).wrapping_mul(0xD6E8_FEB8_6659_FD93);
                self.out.push((mixed >> 40) as f32 / (1 << 21) as f32);
            }
            if let Some(&next) = self.script.get(position + 1) {
                let start = self.out.len() - self.config.vocab;
                self.out[start + next as usize] = 60.0;
            }
        }
        self.states.clear();
        for &row in batch.states {
            let (hash, _) = self.history(batch, row as usize);
            self.states.extend([(hash >> 40) as f32, (hash & 0xFF_FFFF) as f32]);
        }
        if !self.states.is_empty() && self.probe.damage_states.swap(false, Ordering::Relaxed) {
            return Err(ModelError::StateNotFinite { element: 1, value: f32::NAN });
        }
        if self.probe.damage.swap(false, Ordering::Relaxed)
            && let Some(logit) = self.out.get_mut(3)
        {
            *logit = f32::NAN;
            return Err(ModelError::NotFinite { token: 3, value: f32::NAN });
        }
        Ok(Computed { logits: &self.out, states: &self.states })
    }
}

/// Where the toy keeps the tokens of a page, and the token of a position.
fn page(number: u32) -> Range<usize> {
    let start = number as usize * PAGE_TOKENS;
    start..start + PAGE_TOKENS
}

fn slot(table: &[u32], position: usize) -> usize {
    page(table[position / PAGE_TOKENS]).start + position % PAGE_TOKENS
}

pub(crate) fn config(vocab: usize, context: usize) -> Config {
    let metadata = GgufWriter::new()
        .meta("general.architecture", "llama")
        .meta("llama.block_count", 1_u32)
        .meta("llama.embedding_length", 2_u32)
        .meta("llama.attention.head_count", 1_u32)
        .meta("llama.feed_forward_length", 2_u32)
        .meta("llama.context_length", context as u32)
        .meta("llama.attention.layer_norm_rms_epsilon", 1e-5_f32)
        .to_gguf();
    Config::from_metadata(metadata.metadata(), vocab).unwrap()
}

trait ToGguf {
    fn to_gguf(&self) -> Gguf;
}

impl ToGguf for GgufWriter {
    fn to_gguf(&self) -> Gguf {
        let mut file = Vec::new();
        self.write(&mut file).unwrap();
        Gguf::from_bytes(&Bytes::from_vec(file)).unwrap()
    }
}

/// Ids of the toy tokenizer: bytes as they are, then `<s>` (BOS), `</s>` (EOS) and `ab`.
pub(crate) const BOS: u32 = 256;
pub(crate) const EOS: u32 = 257;
pub(crate) const AB: u32 = 258;
pub(crate) const VOCAB: usize = 259;

/// Byte-level BPE with one merge; each id below 256 stands for the byte of that value.
pub(crate) fn tokenizer() -> Tokenizer {
    tokenizer_with(&["<s>", "</s>", "ab"])
}

/// The same with these tokens behind the bytes, the first two of which are BOS and EOS.
pub(crate) fn tokenizer_with(others: &[&str]) -> Tokenizer {
    // GPT-2's alphabet: printable bytes stand for themselves, the others for characters from U+0100 on.
    let printable = |byte: u8| matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    let mut next = 0x100;
    let mut tokens: Vec<String> = Vec::new();
    for byte in 0..=255_u8 {
        let letter = if printable(byte) {
            char::from(byte)
        } else {
            next += 1;
            char::from_u32(next - 1).unwrap()
        };
        tokens.push(letter.to_string());
    }
    tokens.extend(others.iter().copied().map(String::from));
    let mut types = vec![1_i32; tokens.len()];
    types[BOS as usize] = 3;
    types[EOS as usize] = 3;
    let gguf = GgufWriter::new()
        .meta("general.architecture", "llama")
        .meta("tokenizer.ggml.model", "gpt2")
        .meta("tokenizer.ggml.pre", "gpt-2")
        .meta("tokenizer.ggml.tokens", tokens)
        .meta("tokenizer.ggml.token_type", types)
        .meta("tokenizer.ggml.merges", ["a b"])
        .meta("tokenizer.ggml.bos_token_id", BOS)
        .meta("tokenizer.ggml.eos_token_id", EOS)
        .meta("tokenizer.ggml.add_bos_token", true)
        .to_gguf();
    Tokenizer::from_gguf(gguf.metadata()).unwrap()
}

/// An engine whose answers are the hash of what came before.
pub(crate) fn toy(context: usize, max_rows: usize) -> (Engine, Probe) {
    scripted(context, max_rows, &[])
}

/// An engine that is certain of `script[i]` at position `i`.
pub(crate) fn scripted(context: usize, max_rows: usize, script: &[u32]) -> (Engine, Probe) {
    let probe = Probe::default();
    let toy = Toy::new(VOCAB, context, max_rows, script, &probe);
    let template = ChatTemplate::new("{{ messages[0].content }}").ok();
    (Engine::from_parts(Box::new(toy), tokenizer(), template, &Scheduling::default()).unwrap(), probe)
}
