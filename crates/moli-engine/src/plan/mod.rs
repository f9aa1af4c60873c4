//! The memory plan: what a model will take, computed from its file's header before anything is loaded, and how it is made
//! to fit.
//!
//! - [`MemoryBudget`]: what may be taken, as a person writes it;
//! - [`limits`]: what the system allows;
//! - [`table`]: the plan for a person;
//! - [`resident`]: what is really taken.

mod budget;
mod limits;
mod resident;
mod table;
#[cfg(test)]
mod tests;

use std::path::Path;

use moli_format::{Adapter, Gguf, ReadMode};
use moli_model::{
    BackendKind, Config, DeviceMemory, Footprint, KvType, Load, ModelError, PAGE_TOKENS, adapter_bytes,
    pages_of,
};

pub use budget::{BudgetError, MemoryBudget};
pub use limits::{Limit, LimitSource, SystemMemory};
pub use resident::{Resident, resident_bytes};
pub use table::{Change, PlanRow, Settings, Shortage};

use crate::options::{MAX_PREFILL_CHUNK, MAX_SESSIONS, MAX_THREADS, between, outputs};
use crate::{DEFAULT_CONTEXT, DEFAULT_PREFILL_CHUNK, EngineError, MAX_BATCH, Scheduling};

/// The shortest context that is chosen where memory is scarce, in tokens; less where it is asked for.
pub const LEAST_CONTEXT: usize = 256;

/// The program itself and its libraries, of which 9 MB were resident where this was measured, and what the allocator keeps
/// of the memory that loading needed for a moment.
const PROCESS: u64 = 12 << 20;
const PROCESS_ROW: &str = "process";
/// A thread: the part of its stack that is used, and its part of the allocator.
const THREAD: u64 = 256 << 10;
/// What the prefix cache notes about a page, twice the tokens that it is found by among it, and the lists that it is in.
const PAGE_NOTES: u64 = 512;
/// What an answer keeps for each token of its text: it is in the timeline, in what the penalties look at and in what is
/// searched for guesses, all of them grown by doubling, and DRY has a number for it.
const TOKEN_NOTES: u64 = 3 * 2 * 4 + 2 * 8;
/// What an answer keeps for each token of the vocabulary: the logits as its sampler changes them.
const CHANGED_LOGIT: u64 = 4;
/// A candidate of the sampler. All tokens are candidates where top-k is off; one such answer at a time is counted.
const CANDIDATE: u64 = 16;
/// Recurrent states of an answer: the one that a step reads, the one that it writes, and one for the prefix cache.
pub(crate) const STATES_OF_ANSWER: usize = 3;
/// The share of the limit that a prefix cache takes at most where nobody says.
const PREFIX_SHARE: u64 = 10;

/// What models on this backend may use of memory now, where that is known: the budget, what the system allows or the GPU has free,
/// whichever is less.
///
/// # Errors
/// [`EngineError::InvalidParameter`] for a share of a memory whose size is not known; why the GPU can't be used.
pub fn memory_limit(
    backend: BackendKind,
    budget: Option<MemoryBudget>,
) -> Result<Option<Limit>, EngineError> {
    match backend.memory()? {
        Some(device) => Ok(Some(SystemMemory::of_device(&device, budget))),
        None => SystemMemory::read(Path::new("/")).within(budget),
    }
}

/// What is to be loaded. What is `None` is chosen, and may be lowered to fit; what is given holds or is refused.
#[derive(Debug, Clone, PartialEq)]
pub struct PlanOptions {
    /// Threads that compute, the caller's own included; `None`: as many as the machine has cores for it.
    pub threads: Option<usize>,
    /// Tokens that a session can hold; `None`: what the model was trained for, at most [`DEFAULT_CONTEXT`].
    pub context: Option<usize>,
    /// Sessions whose context can be full at the same time.
    pub sessions: usize,
    /// How keys and values are stored; `None`: in half precision.
    pub kv_type: Option<KvType>,
    /// Bytes of KV pages for the beginnings of earlier prompts, beyond those that the sessions need; `None`: as much as
    /// a context takes, at most a tenth of the limit.
    pub prefix_cache_bytes: Option<u64>,
    /// Tokens of a prompt that are computed at once.
    pub prefill_chunk: usize,
    /// Answers that are computed in turns, which may be more than `sessions` where they are short.
    pub max_batch: usize,
    /// Whether the file is mapped or read into memory.
    pub read_mode: ReadMode,
    /// What the model may take; `None`: what the system allows.
    pub budget: Option<MemoryBudget>,
    /// Bytes that a draft model beside it takes; see [`own_bytes`](MemoryPlan::own_bytes).
    pub draft_bytes: u64,
    /// Adapters that are loaded with it.
    pub adapters: Vec<Adapter>,
    /// The GPU whose memory it takes, instead of the process's own.
    pub device: Option<DeviceMemory>,
}

impl Default for PlanOptions {
    fn default() -> Self {
        Self {
            threads: None,
            context: None,
            sessions: 1,
            kv_type: None,
            prefix_cache_bytes: None,
            prefill_chunk: DEFAULT_PREFILL_CHUNK,
            max_batch: Scheduling::default().max_batch,
            read_mode: ReadMode::Map,
            budget: None,
            draft_bytes: 0,
            adapters: Vec::new(),
            device: None,
        }
    }
}

impl PlanOptions {
    /// Checks what can be checked without a file.
    pub(crate) fn validate(&self) -> Result<(), EngineError> {
        between("threads", self.threads.unwrap_or(1), MAX_THREADS)?;
        between("prefill_chunk", self.prefill_chunk, MAX_PREFILL_CHUNK)?;
        between("sessions", self.sessions, MAX_SESSIONS)?;
        between("max_batch", self.max_batch, MAX_BATCH)
    }
}

/// What a model will take of memory, and the settings with which it fits.
#[derive(Debug, Clone, PartialEq)]
pub struct MemoryPlan {
    /// The parts.
    pub rows: Vec<PlanRow>,
    /// Their sum.
    pub total_bytes: u64,
    /// What the sum is compared with, where a limit is known.
    pub limit: Option<Limit>,
    /// Tokens that a session can hold.
    pub context: usize,
    /// Sessions whose context can be full at the same time.
    pub sessions: usize,
    /// How keys and values are stored.
    pub kv_type: KvType,
    /// Bytes of the pages that are there for earlier prompts.
    pub prefix_cache_bytes: u64,
    /// KV pages in all: of the sessions and of the prefix cache.
    pub kv_pages: usize,
    /// Recurrent states, of a model whose layers carry one: three for each answer that is computed with others, but at most as many
    /// as take the memory of the sessions' keys and values, and no less than three for each session and one more.
    pub states: usize,
    /// Rows of a batch.
    pub max_rows: usize,
    /// Threads that compute.
    pub threads: usize,
    /// What had to be lowered, in the order in which it was.
    pub changes: Vec<Change>,
}

impl MemoryPlan {
    /// Plans for this model under the limits of this system.
    ///
    /// Where everything does not fit, it is made smaller in this order, and [`changes`](Self::changes) says so: the prefix
    /// cache, the keys and values (in q8_0), the context (down to [`LEAST_CONTEXT`]). What the options fix is not touched.
    ///
    /// # Errors
    /// [`EngineError::DoesNotFit`] with what is needed, what there is, and what would fit;
    /// [`EngineError::InvalidParameter`] for an option out of range; and whatever is wrong with the file's header.
    pub fn of(gguf: &Gguf, options: &PlanOptions) -> Result<Self, EngineError> {
        Self::within(gguf, options, &SystemMemory::read(Path::new("/")))
    }

    /// The plan of what is wished for, as if there were no limit.
    ///
    /// # Errors
    /// As [`of`](Self::of), but for what does not fit.
    pub fn unlimited(gguf: &Gguf, options: &PlanOptions) -> Result<Self, EngineError> {
        let device = options.device.clone().map(|device| DeviceMemory { free: u64::MAX, ..device });
        let options = PlanOptions { budget: None, device, ..options.clone() };
        Self::within(gguf, &options, &SystemMemory::default())
    }

    /// What the model adds to a process that has another already.
    pub fn own_bytes(&self) -> u64 {
        self.rows
            .iter()
            .filter(|row| row.name != PROCESS_ROW)
            .fold(0, |sum, row| sum.saturating_add(row.bytes))
    }

    fn within(gguf: &Gguf, options: &PlanOptions, limits: &SystemMemory) -> Result<Self, EngineError> {
        let model = Model::new(gguf, options)?;
        let limit = match &options.device {
            Some(device) => Some(SystemMemory::of_device(device, options.budget)),
            None => limits.within(options.budget)?,
        };
        let bytes = limit.as_ref().map_or(u64::MAX, |limit| limit.bytes);
        let wished = model.wished(bytes);
        // More than a process can address is more than any limit.
        let Some(settings) = model.settle(wished, bytes.min(isize::MAX as u64)) else {
            return Err(match limit {
                Some(limit) => EngineError::DoesNotFit(Box::new(model.shortage(&wished, limit))),
                None => {
                    let bytes = model.total(&wished).into();
                    ModelError::TooLarge { what: "the model with its KV pages", bytes }.into()
                }
            });
        };
        let rows = model.rows(&settings);
        Ok(Self {
            total_bytes: total(&rows),
            rows,
            limit,
            context: settings.context,
            sessions: settings.sessions,
            kv_type: settings.kv_type,
            prefix_cache_bytes: model.page_bytes(settings.kv_type).saturating_mul(settings.prefix_pages),
            kv_pages: usize::try_from(settings.pages()).unwrap_or(usize::MAX),
            states: model.states(&settings),
            max_rows: model.max_rows(&settings),
            threads: model.threads,
            changes: model.changes(&wished, &settings),
        })
    }
}

fn total(rows: &[PlanRow]) -> u64 {
    rows.iter().fold(0, |sum, row| sum.saturating_add(row.bytes))
}

/// The greatest number for which `fits` holds, which does up to some number; `None` where it does not even for `low`.
fn greatest(low: u64, high: u64, fits: impl Fn(u64) -> bool) -> Option<u64> {
    if !fits(low) {
        return None;
    }
    let (mut fit, mut too_much) = (low, high.saturating_add(1));
    while too_much - fit > 1 {
        let middle = fit + (too_much - fit) / 2;
        if fits(middle) {
            fit = middle;
        } else {
            too_much = middle;
        }
    }
    Some(fit)
}

/// What does not depend on the settings.
struct Model<'a> {
    gguf: &'a Gguf,
    options: &'a PlanOptions,
    config: Config,
    threads: usize,
    tokenizer: u64,
}

impl<'a> Model<'a> {
    fn new(gguf: &'a Gguf, options: &'a PlanOptions) -> Result<Self, EngineError> {
        let threads = options.threads.unwrap_or_else(moli_kernels::default_threads);
        options.validate()?;
        let vocab = gguf.tensor("token_embd.weight").map_or(0, moli_format::Tensor::rows);
        let config = Config::from_metadata(gguf.metadata(), vocab)?;
        if let Some(context) = options.context {
            between("context", context, config.context_train)?;
        }
        Ok(Self { tokenizer: moli_text::tokenizer_bytes(gguf.metadata())?, gguf, options, config, threads })
    }

    /// Bytes of a page of keys and values in all layers.
    fn page_bytes(&self, kv_type: KvType) -> u64 {
        self.config.page_bytes(kv_type)
    }

    /// Recurrent states for these settings.
    fn states(&self, settings: &Settings) -> usize {
        let Some(affordable) = self
            .page_bytes(settings.kv_type)
            .saturating_mul(settings.session_pages())
            .checked_div(self.config.state_bytes())
        else {
            return 0;
        };
        let least = settings.sessions.saturating_mul(STATES_OF_ANSWER).saturating_add(1);
        let most = self.options.max_batch.saturating_mul(STATES_OF_ANSWER).max(least);
        usize::try_from(affordable).unwrap_or(usize::MAX).clamp(least, most)
    }

    /// What is loaded where there is no lack of memory.
    fn wished(&self, limit: u64) -> Settings {
        let options = self.options;
        let kv_type = options.kv_type.unwrap_or_default();
        let context = options.context.unwrap_or(DEFAULT_CONTEXT.min(self.config.context_train));
        let settings = Settings { context, sessions: options.sessions, kv_type, prefix_pages: 0 };
        Settings { prefix_pages: self.prefix_pages(&settings, limit), ..settings }
    }

    /// Pages of the prefix cache that are wished for beside these settings.
    fn prefix_pages(&self, settings: &Settings, limit: u64) -> u64 {
        let page = self.page_bytes(settings.kv_type).max(1);
        match self.options.prefix_cache_bytes {
            // A prefix cache would never have anything.
            _ if !self.config.causal => 0,
            Some(bytes) => bytes / page,
            None => (pages_of(settings.context) as u64).min(limit / PREFIX_SHARE / page),
        }
    }

    /// The settings nearest to the wish that fit.
    fn settle(&self, wished: Settings, limit: u64) -> Option<Settings> {
        let fits = |settings: &Settings| self.total(settings) <= limit;
        for &kv_type in self.kv_types() {
            let settings = Settings { kv_type, ..wished };
            let most = self.prefix_pages(&settings, limit);
            let least = if self.options.prefix_cache_bytes.is_some() { most } else { 0 };
            let with = |prefix_pages| Settings { prefix_pages, ..settings };
            if let Some(pages) = greatest(least, most, |pages| fits(&with(pages))) {
                return Some(with(pages));
            }
        }
        self.options.context.is_none().then(|| self.shorter(wished, limit)).flatten()
    }

    /// These settings with everything lowered that may be but the context, and that no more than is needed.
    fn shorter(&self, wished: Settings, limit: u64) -> Option<Settings> {
        let kv_type = self.smallest_kv_type();
        let mut settings = Settings { kv_type, prefix_pages: 0, ..wished };
        if self.options.prefix_cache_bytes.is_some() {
            settings.prefix_pages = self.prefix_pages(&settings, limit);
        }
        let page = PAGE_TOKENS as u64;
        let least = LEAST_CONTEXT.min(wished.context) as u64;
        let with = |pages: u64| {
            let context = usize::try_from(pages.saturating_mul(page)).unwrap_or(usize::MAX);
            Settings { context: context.min(wished.context), ..settings }
        };
        let (low, high) = (least.div_ceil(page), (wished.context as u64).div_ceil(page));
        greatest(low, high, |pages| self.total(&with(pages)) <= limit).map(with)
    }

    /// The types of keys and values that may be chosen, the best first.
    fn kv_types(&self) -> &[KvType] {
        match &self.options.kv_type {
            Some(kv_type) => std::slice::from_ref(kv_type),
            None => &[KvType::F16, KvType::Q8_0],
        }
    }

    /// The last of them.
    fn smallest_kv_type(&self) -> KvType {
        self.options.kv_type.unwrap_or(KvType::Q8_0)
    }

    fn total(&self, settings: &Settings) -> u64 {
        total(&self.rows(settings))
    }

    /// Rows of a batch: a chunk of a prompt, and a row for each who is at the answer.
    fn max_rows(&self, settings: &Settings) -> usize {
        let tokens = settings.pages().saturating_mul(PAGE_TOKENS as u64);
        // The text of an encoder has to be whole in one batch, and has no outputs.
        let rows = match self.config.causal {
            true => self.options.prefill_chunk.saturating_add(outputs(self.options.max_batch)),
            false => self.options.prefill_chunk.max(settings.context),
        };
        rows.min(usize::try_from(tokens).unwrap_or(usize::MAX))
    }

    fn rows(&self, settings: &Settings) -> Vec<PlanRow> {
        let Settings { context, sessions, kv_type, prefix_pages } = *settings;
        let vocab = self.config.vocab as u64;
        let pages = settings.pages();
        let most_tokens = pages.saturating_mul(PAGE_TOKENS as u64);
        let max_rows = self.max_rows(settings);
        let outputs = outputs(self.options.max_batch);
        let load = Load { threads: self.threads, max_rows, outputs, context };
        if self.options.device.is_some() {
            return self.device_rows(settings, &load);
        }
        let footprint = Footprint::of(self.gguf, &self.config, &load);
        let page = self.page_bytes(kv_type);
        let max_batch = self.options.max_batch;
        let changed = vocab.saturating_mul(CHANGED_LOGIT).saturating_mul(max_batch as u64);
        let state = [footprint.logits, changed, vocab.saturating_mul(CANDIDATE)];
        let state = state.iter().fold(0u64, |sum, &part| sum.saturating_add(part));
        let notes = most_tokens.saturating_mul(TOKEN_NOTES).saturating_add(pages.saturating_mul(PAGE_NOTES));
        let (tokens, name) = (prefix_pages.saturating_mul(PAGE_TOKENS as u64), kv_type.name());
        let plural = |n: usize| if n == 1 { "" } else { "s" };
        let answers = format!("{max_batch} answer{} at a time", plural(max_batch));
        let unpacked = self.gguf.unpacked_bytes();
        let weights = match self.options.read_mode {
            ReadMode::Map => "mapped: the system can drop them under pressure, and reads them again",
            ReadMode::Read => "read into memory",
        };
        let row = |name, bytes, note: String| PlanRow { name, bytes, note };
        let rows = [
            row("weights", footprint.weights.saturating_sub(unpacked), weights.to_owned()),
            row("unpacked weights", unpacked, "in memory: the folder has them packed".to_owned()),
            row(
                "embeddings",
                footprint.embeddings,
                "less while few different tokens have occurred".to_owned(),
            ),
            row("norms and biases", footprint.vectors, "in single precision".to_owned()),
            row(
                "keys and values",
                page.saturating_mul(settings.session_pages()),
                format!("{sessions} session{} of {context} tokens, {name}", plural(sessions)),
            ),
            row("prefix cache", page.saturating_mul(prefix_pages), format!("{tokens} tokens, {name}")),
            row(
                "recurrent states",
                self.config.state_bytes().saturating_mul(self.states(settings) as u64),
                format!("{} states", self.states(settings)),
            ),
            row("token lists", notes, format!("{pages} pages of {PAGE_TOKENS}")),
            row(
                "scratch",
                footprint.activations.saturating_add(footprint.threads),
                format!("batches of {max_rows} tokens, {} thread{}", self.threads, plural(self.threads)),
            ),
            row("logits", state, format!("{answers}, {outputs} row{} of {vocab}", plural(outputs))),
            row("tokenizer", self.tokenizer, "and chat template".to_owned()),
            row(
                "adapters",
                adapter_bytes(&self.options.adapters, &self.config, max_rows),
                "with what they are computed in".to_owned(),
            ),
            row("draft model", self.options.draft_bytes, "with its keys and values".to_owned()),
            row(
                PROCESS_ROW,
                PROCESS.saturating_add(THREAD.saturating_mul(self.threads as u64)),
                "the program, its stacks and its allocator".to_owned(),
            ),
        ];
        // What a model has not, or its files hold already, is not listed.
        rows.into_iter().filter(|row| row.bytes > 0).collect()
    }

    /// What a GPU's memory holds. What stays on the host (the tokenizer, lists of tokens, the samplers' logits) is not among it.
    #[cfg(feature = "cuda")]
    fn device_rows(&self, settings: &Settings, load: &Load) -> Vec<PlanRow> {
        let Settings { context, sessions, kv_type, prefix_pages } = *settings;
        let footprint = Footprint::on_gpu(self.gguf, &self.config, load);
        let page = self.page_bytes(kv_type);
        let (tokens, name) = (prefix_pages.saturating_mul(PAGE_TOKENS as u64), kv_type.name());
        let plural = if sessions == 1 { "" } else { "s" };
        let row = |name, bytes, note: String| PlanRow { name, bytes, note };
        let rows = [
            row("weights", footprint.weights, "in the file's own blocks".to_owned()),
            row("norms and biases", footprint.vectors, "in single precision".to_owned()),
            row(
                "keys and values",
                page.saturating_mul(settings.session_pages()),
                format!("{sessions} session{plural} of {context} tokens, {name}"),
            ),
            row(
                "recurrent states",
                self.config.state_bytes().saturating_mul(self.states(settings) as u64),
                format!("{} states", self.states(settings)),
            ),
            row("prefix cache", page.saturating_mul(prefix_pages), format!("{tokens} tokens, {name}")),
            row(
                "scratch",
                footprint.activations.saturating_add(footprint.threads),
                format!("batches of {} tokens", load.max_rows),
            ),
            row("logits", footprint.logits, format!("{} rows of {}", load.outputs, self.config.vocab)),
            row(
                "adapters",
                adapter_bytes(&self.options.adapters, &self.config, load.max_rows),
                "with what they are computed in".to_owned(),
            ),
            row("draft model", self.options.draft_bytes, "with its keys and values".to_owned()),
        ];
        rows.into_iter().filter(|row| row.bytes > 0).collect()
    }

    /// A build without GPUs has none to plan for.
    #[cfg(not(feature = "cuda"))]
    fn device_rows(&self, _: &Settings, _: &Load) -> Vec<PlanRow> {
        Vec::new()
    }

    /// What was lowered, and what that saves.
    fn changes(&self, wished: &Settings, settings: &Settings) -> Vec<Change> {
        let mut changes = Vec::new();
        let cache =
            |settings: &Settings| self.page_bytes(settings.kv_type).saturating_mul(settings.prefix_pages);
        if cache(settings) < cache(wished) {
            changes.push(Change::PrefixCache { from: cache(wished), to: cache(settings) });
        }
        // What the cache saves is said, so it is left out of the rest.
        let wished = Settings { prefix_pages: 0, ..*wished };
        let stored = Settings { kv_type: settings.kv_type, ..wished };
        let shorter = Settings { context: settings.context, ..stored };
        let saved = |from, to| self.total(from).saturating_sub(self.total(to));
        if stored != wished {
            let (from, to) = (wished.kv_type, stored.kv_type);
            changes.push(Change::KvType { from, to, saved: saved(&wished, &stored) });
        }
        if shorter != stored {
            let (from, to) = (stored.context, shorter.context);
            changes.push(Change::Context { from, to, saved: saved(&stored, &shorter) });
        }
        changes
    }

    /// Why nothing fits, and what would.
    fn shortage(&self, wished: &Settings, limit: Limit) -> Shortage {
        let free =
            PlanOptions { context: None, kv_type: None, prefix_cache_bytes: None, ..self.options.clone() };
        let free = Model { options: &free, config: self.config.clone(), ..*self };
        let one = Settings { sessions: 1, ..*wished };
        let fits = free.shorter(*wished, limit.bytes).or_else(|| free.shorter(one, limit.bytes));
        let least = Settings {
            context: LEAST_CONTEXT.min(wished.context),
            sessions: 1,
            kv_type: free.smallest_kv_type(),
            prefix_pages: 0,
        };
        Shortage {
            // What remains when everything that may be lowered is.
            needed: self.total(&self.lowered(wished)),
            weights: self.gguf.weight_bytes(),
            least: free.total(&least),
            limit,
            fits,
        }
    }

    /// The wish with everything lowered that may be.
    fn lowered(&self, wished: &Settings) -> Settings {
        let kv_type = self.smallest_kv_type();
        let fixed = self.options.prefix_cache_bytes.is_some();
        Settings {
            context: self.options.context.unwrap_or(LEAST_CONTEXT.min(wished.context)),
            kv_type,
            prefix_pages: if fixed { self.prefix_pages(&Settings { kv_type, ..*wished }, 0) } else { 0 },
            ..*wished
        }
    }
}
