//! How a model is loaded and shared.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use moli_convert::Mixture;
use moli_format::ReadMode;
use moli_kernels::Isa;
use moli_model::{BackendKind, KvType, MAX_OUTPUTS};

use crate::adapters::AdapterFile;
use crate::speculation::SPECULATIVE_ROWS;
use crate::watchdog::Stall;
use crate::{EngineError, MemoryBudget, PlanOptions};

/// The context where none is asked for, in tokens; less where the model was trained for less.
pub const DEFAULT_CONTEXT: usize = 4096;

/// Tokens of a prompt that are computed at once where nothing else is asked for.
pub const DEFAULT_PREFILL_CHUNK: usize = 512;

pub(crate) const MAX_THREADS: usize = 1024;
pub(crate) const MAX_PREFILL_CHUNK: usize = 1 << 16;
pub(crate) const MAX_SESSIONS: usize = 1 << 12;
const MAX_QUEUE: usize = 1 << 20;

/// How a model is loaded.
#[derive(Debug, Clone)]
pub struct EngineOptions {
    /// Threads that compute; `None`: as many as the machine has cores for it.
    pub threads: Option<usize>,
    /// Tokens that a session can hold, prompt and answer together; `None`: what the model was trained for, at most
    /// [`DEFAULT_CONTEXT`], and less where memory is scarce. It can't be more than what the model was trained for.
    pub context: Option<usize>,
    /// Sessions whose context can be full at the same time: the KV pages of `context * sessions` tokens are
    /// preallocated, and all sessions share them.
    pub sessions: usize,
    /// Tokens of a prompt that are computed at once. More is faster, and a cancelled prompt ends later.
    pub prefill_chunk: usize,
    /// Whether the file is mapped or read into memory.
    pub read_mode: ReadMode,
    /// The mixture of formats that the weights are quantised to, in memory, when the model is loaded; `None`: they stay as they
    /// are.
    pub quantize: Option<Mixture>,
    /// What computes.
    pub backend: BackendKind,
    /// How keys and values are kept; `None`: in f16, or in q8_0, little more than half the memory, where that is scarce.
    pub kv_type: Option<KvType>,
    /// Bytes of KV pages for the beginnings of earlier prompts, beyond those that the sessions need; `None`: as much as a
    /// context takes, at most a tenth of the limit.
    pub prefix_cache_bytes: Option<u64>,
    /// What the model may take of memory; `None`: what the system allows.
    pub memory_budget: Option<MemoryBudget>,
    /// The instruction set of the CPU backend; `None`: the best that this processor has.
    pub isa: Option<Isa>,
    /// A smaller model with the same vocabulary, whose guesses are computed together; what is not right costs time, never
    /// changes an answer. It has the threads of the model, and KV pages for as many tokens.
    pub draft: Option<PathBuf>,
    /// LoRA adapters, which sessions choose by their names. A session without them is computed as if there were none.
    pub adapters: Vec<AdapterFile>,
    /// How answers share the model.
    pub scheduling: Scheduling,
}

/// How answers share a model.
#[derive(Clone)]
pub struct Scheduling {
    /// Answers that are computed in turns, at most [`MAX_BATCH`]; the others wait.
    pub max_batch: usize,
    /// Answers that may wait beyond those that the batch has free places for; one more is refused at once.
    pub max_queue: usize,
    /// Tokens of a prompt that are computed at once while others are at their answers: the longest that these wait for it.
    pub shared_chunk: usize,
    /// Most bytes of KV pages that the prefix cache holds; `None`: all that nobody else needs; 0: no cache.
    pub prefix_cache_limit: Option<u64>,
    /// A step that takes longer is counted and reported.
    pub stall_after: Duration,
    /// Called with each of these, on a thread of its own.
    pub on_stall: Option<Arc<dyn Fn(Stall) + Send + Sync>>,
}

/// Rows of a step whose logits may be wanted: one for each answer, and those of guesses.
pub(crate) fn outputs(max_batch: usize) -> usize {
    max_batch.clamp(SPECULATIVE_ROWS, MAX_OUTPUTS)
}

/// Most answers that are computed together.
pub const MAX_BATCH: usize = MAX_OUTPUTS;

impl Default for Scheduling {
    fn default() -> Self {
        Self {
            max_batch: 32,
            max_queue: 256,
            shared_chunk: 128,
            prefix_cache_limit: None,
            stall_after: Duration::from_secs(30),
            on_stall: None,
        }
    }
}

impl fmt::Debug for Scheduling {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scheduling")
            .field("max_batch", &self.max_batch)
            .field("max_queue", &self.max_queue)
            .field("shared_chunk", &self.shared_chunk)
            .field("prefix_cache_limit", &self.prefix_cache_limit)
            .field("stall_after", &self.stall_after)
            .finish_non_exhaustive()
    }
}

impl EngineOptions {
    pub(crate) fn plan(&self) -> PlanOptions {
        PlanOptions {
            threads: self.threads,
            context: self.context,
            sessions: self.sessions,
            // candle has f16 only.
            kv_type: self.kv_type.or((self.backend == BackendKind::Candle).then_some(KvType::F16)),
            prefix_cache_bytes: self.prefix_cache_bytes,
            prefill_chunk: self.prefill_chunk,
            max_batch: self.scheduling.max_batch,
            read_mode: self.read_mode,
            budget: self.memory_budget,
            draft_bytes: 0,
            adapters: Vec::new(),
            device: None,
        }
    }
}

impl Scheduling {
    /// Rows of a step whose logits may be wanted.
    pub(crate) fn outputs(&self) -> usize {
        outputs(self.max_batch)
    }

    pub(crate) fn validate(&self) -> Result<(), EngineError> {
        between("max_queue", self.max_queue, MAX_QUEUE)?;
        between("shared_chunk", self.shared_chunk, MAX_PREFILL_CHUNK)
    }
}

impl Default for EngineOptions {
    fn default() -> Self {
        Self {
            threads: None,
            context: None,
            sessions: 1,
            prefill_chunk: DEFAULT_PREFILL_CHUNK,
            read_mode: ReadMode::Map,
            quantize: None,
            backend: BackendKind::default(),
            kv_type: None,
            prefix_cache_bytes: None,
            memory_budget: None,
            isa: None,
            draft: None,
            adapters: Vec::new(),
            scheduling: Scheduling::default(),
        }
    }
}

/// A number that is at least 1.
pub(crate) fn between(name: &'static str, value: usize, high: usize) -> Result<(), EngineError> {
    if (1..=high).contains(&value) {
        return Ok(());
    }
    Err(EngineError::parameter(name, value, format!("between 1 and {high}")))
}
