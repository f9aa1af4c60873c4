//! A loaded model.

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::thread;
use std::time::{Duration, Instant};

use moli_format::{Bytes, Gguf, ReadMode};
use moli_kernels::{Isa, Kernels};
use moli_model::{BackendKind, Config, KvType, LoadOptions, ModelError, PAGE_TOKENS, Runtime};
use moli_text::{ChatTemplate, EncodeOptions, Message, RenderOptions, RenderedPrompt, Tokenizer};

use crate::sampler::Breakers;
use crate::{EngineError, Session};

/// The context where none is asked for, in tokens; less where the model was trained for less.
pub const DEFAULT_CONTEXT: usize = 4096;

/// Tokens of a prompt that are computed at once where nothing else is asked for.
pub const DEFAULT_PREFILL_CHUNK: usize = 512;

const MAX_THREADS: usize = 1024;
const MAX_PREFILL_CHUNK: usize = 1 << 16;
const MAX_SESSIONS: usize = 1 << 12;

/// How a model is loaded.
#[derive(Debug, Clone)]
pub struct EngineOptions {
    /// Threads that compute, the caller's own included; `None`: as many as the machine has cores for it.
    pub threads: Option<usize>,
    /// Tokens that a session can hold, prompt and answer together; `None`: what the model was trained for, at most
    /// [`DEFAULT_CONTEXT`]. It can't be more than what the model was trained for.
    pub context: Option<usize>,
    /// Sessions whose context can be full at the same time: the KV pages of `context * sessions` tokens are
    /// preallocated, and all sessions share them.
    pub sessions: usize,
    /// Tokens of a prompt that are computed at once. More is faster, and a cancelled prompt ends later.
    pub prefill_chunk: usize,
    /// Whether the file is mapped or read into memory.
    pub read_mode: ReadMode,
    /// What computes.
    pub backend: BackendKind,
    /// The instruction set of the CPU backend; `None`: the best that this processor has.
    pub isa: Option<Isa>,
}

impl Default for EngineOptions {
    fn default() -> Self {
        Self {
            threads: None,
            context: None,
            sessions: 1,
            prefill_chunk: DEFAULT_PREFILL_CHUNK,
            read_mode: ReadMode::Map,
            backend: BackendKind::default(),
            isa: None,
        }
    }
}

/// A loaded model: a cheap handle, shared between threads. One forward pass runs at a time; sessions take turns.
#[derive(Clone)]
pub struct Engine {
    inner: Arc<Inner>,
}

struct Inner {
    runtime: Mutex<Box<dyn Runtime>>,
    tokenizer: Tokenizer,
    template: Result<Option<ChatTemplate>, String>,
    // What never changes is kept outside the lock.
    kernels: Kernels,
    config: Config,
    description: String,
    context: usize,
    prefill_chunk: usize,
    load_time: Duration,
    breakers: Mutex<Option<BreakerCache>>,
}

/// The latest sequence breakers: deriving them walks the whole vocabulary.
struct BreakerCache {
    texts: Vec<String>,
    breakers: Arc<Breakers>,
}

impl Engine {
    /// Opens a model file with its tokenizer, its chat template and its weights.
    ///
    /// # Errors
    /// [`EngineError::InvalidParameter`] for an option out of range, and whatever is wrong with the file.
    pub fn load(path: &Path, options: &EngineOptions) -> Result<Self, EngineError> {
        let started = Instant::now();
        let threads = options.threads.unwrap_or_else(moli_kernels::default_threads);
        between("threads", threads, MAX_THREADS)?;
        between("prefill_chunk", options.prefill_chunk, MAX_PREFILL_CHUNK)?;
        between("sessions", options.sessions, MAX_SESSIONS)?;

        let gguf = Gguf::open(path, options.read_mode)?;
        let metadata = gguf.metadata();
        // The runtime needs the context before it has a config to ask: the key is the same for every architecture.
        let trained = trained_context(metadata)?;
        let context = match options.context {
            None => DEFAULT_CONTEXT.min(trained.unwrap_or(DEFAULT_CONTEXT)),
            Some(context) => {
                between("context", context, trained.unwrap_or(usize::MAX))?;
                context
            }
        };
        let pages = context.div_ceil(PAGE_TOKENS).checked_mul(options.sessions);
        let pool = pages.and_then(|pages| pages.checked_mul(PAGE_TOKENS)).ok_or_else(|| {
            EngineError::parameter(
                "sessions",
                options.sessions,
                "fewer, so that the context's pages can be counted",
            )
        })?;
        let load = LoadOptions {
            threads,
            isa: options.isa,
            context: pool,
            max_rows: options.prefill_chunk.min(context),
            kv_type: KvType::F16,
        };
        // The small parts first: a model without a tokenizer is refused before its weights are looked at.
        let tokenizer = Tokenizer::from_gguf(metadata)?;
        // A broken template spoils chats, nothing else: the error is kept until one is asked for.
        let template = ChatTemplate::from_gguf(metadata).map_err(|error| error.to_string());
        let runtime = moli_model::load(&gguf, options.backend, &load)?;
        let mut inner = Inner::new(runtime, tokenizer, template, options.isa.unwrap_or_else(Isa::detect))?;
        inner.context = context;
        inner.load_time = started.elapsed();
        let inner = Arc::new(inner);
        read_ahead(&gguf, Arc::downgrade(&inner));
        Ok(Self { inner })
    }

    /// An engine of parts that exist already: another runtime, or another tokenizer than the file's. The context of a
    /// session is what the runtime's pages hold, at most what the model was trained for; prompts are computed in chunks
    /// of the runtime's [`max_rows`](Runtime::max_rows).
    ///
    /// # Errors
    /// [`EngineError::VocabularyMismatch`] when the tokenizer has ids that the model has no rows for.
    pub fn from_parts(
        runtime: Box<dyn Runtime>,
        tokenizer: Tokenizer,
        template: Option<ChatTemplate>,
    ) -> Result<Self, EngineError> {
        Ok(Self { inner: Arc::new(Inner::new(runtime, tokenizer, Ok(template), Isa::detect())?) })
    }

    /// A new, empty timeline.
    pub fn session(&self) -> Session {
        Session::new(self.clone())
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.inner.tokenizer
    }

    /// The chat template, where the model has one.
    ///
    /// # Errors
    /// [`EngineError::BrokenChatTemplate`] when it has one that can't be used.
    pub fn chat_template(&self) -> Result<Option<&ChatTemplate>, EngineError> {
        match &self.inner.template {
            Ok(template) => Ok(template.as_ref()),
            Err(reason) => Err(EngineError::BrokenChatTemplate { reason: reason.clone() }),
        }
    }

    /// The model's hyperparameters.
    pub fn config(&self) -> &Config {
        &self.inner.config
    }

    /// Tokens that a session can hold, prompt and answer together.
    pub fn context(&self) -> usize {
        self.inner.context
    }

    /// How long [`load`](Self::load) took.
    pub fn load_time(&self) -> Duration {
        self.inner.load_time
    }

    /// What computes, in words: `cpu, avx2, 2 threads`.
    pub fn description(&self) -> String {
        self.inner.description.clone()
    }

    /// The ids of a plain prompt: BOS as the model wants it, control tokens that are spelt out are recognised.
    ///
    /// # Errors
    /// [`TextError::Unrepresentable`](moli_text::TextError::Unrepresentable) where the vocabulary lacks a token.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, EngineError> {
        let tokenizer = self.tokenizer();
        // Not `add_special`: a model that closes its texts with EOS would have nothing to continue.
        let mut ids = tokenizer.encode(text, EncodeOptions { add_special: false, parse_special: true })?;
        if let Some(bos) = tokenizer.bos().filter(|_| tokenizer.adds_bos()) {
            ids.insert(0, bos);
        }
        Ok(ids)
    }

    /// The prompt that the chat template makes of messages, ready for the assistant's answer.
    ///
    /// # Errors
    /// [`EngineError::NoChatTemplate`], [`EngineError::BrokenChatTemplate`], or what the template says.
    pub fn render_chat(&self, messages: &[Message]) -> Result<RenderedPrompt, EngineError> {
        let template = self.chat_template()?.ok_or(EngineError::NoChatTemplate)?;
        let options = RenderOptions { add_generation_prompt: true, ..RenderOptions::default() };
        Ok(template.render(self.tokenizer(), messages, &options)?)
    }

    /// The ids of messages in the model's chat format, ready for the assistant's answer. What a message says never
    /// becomes a control token.
    ///
    /// # Errors
    /// [`EngineError::NoChatTemplate`], [`EngineError::BrokenChatTemplate`], or what the template or the tokenizer says.
    pub fn encode_chat(&self, messages: &[Message]) -> Result<Vec<u32>, EngineError> {
        Ok(self.tokenizer().encode_prompt(&self.render_chat(messages)?)?)
    }

    /// Tokens of a prompt that are computed at once.
    pub(crate) fn prefill_chunk(&self) -> usize {
        self.inner.prefill_chunk
    }

    pub(crate) fn runtime(&self) -> Result<MutexGuard<'_, Box<dyn Runtime>>, EngineError> {
        self.inner.runtime.lock().map_err(|_| EngineError::Poisoned)
    }

    /// The kernels that log-probabilities are computed with: the same bits on every instruction set.
    pub(crate) fn kernels(&self) -> &Kernels {
        &self.inner.kernels
    }

    /// The token sequences of these breaker texts.
    pub(crate) fn breakers(&self, texts: &[String]) -> Result<Arc<Breakers>, EngineError> {
        if let Ok(cache) = self.inner.breakers.lock()
            && let Some(cache) = cache.as_ref().filter(|cache| cache.texts == texts)
        {
            return Ok(Arc::clone(&cache.breakers));
        }
        let breakers = Arc::new(Breakers::new(self.tokenizer(), texts)?);
        if let Ok(mut cache) = self.inner.breakers.lock() {
            *cache = Some(BreakerCache { texts: texts.to_vec(), breakers: Arc::clone(&breakers) });
        }
        Ok(breakers)
    }
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine")
            .field("architecture", &self.inner.config.architecture)
            .field("context", &self.inner.context)
            .field("runtime", &self.inner.description)
            .finish_non_exhaustive()
    }
}

impl Inner {
    fn new(
        runtime: Box<dyn Runtime>,
        tokenizer: Tokenizer,
        template: Result<Option<ChatTemplate>, String>,
        isa: Isa,
    ) -> Result<Self, EngineError> {
        let config = runtime.config().clone();
        if tokenizer.vocab_size() > config.vocab {
            return Err(EngineError::VocabularyMismatch {
                tokenizer: tokenizer.vocab_size(),
                model: config.vocab,
            });
        }
        Ok(Self {
            description: runtime.description(),
            context: runtime.context().min(config.context_train),
            prefill_chunk: runtime.max_rows().max(1),
            runtime: Mutex::new(runtime),
            tokenizer,
            template,
            config,
            load_time: Duration::ZERO,
            breakers: Mutex::new(None),
            kernels: Kernels::new(isa).map_err(ModelError::from)?,
        })
    }
}

/// Has the weights read into the system's cache, on a thread of its own and for as long as the engine lives.
///
/// The first forward pass touches them all. Left to its faults, a file that is not in the cache comes in small pieces, one
/// for each thread: with a readahead of 128 KB, as most systems have it, the first token took a third longer. This begins
/// after loading, whose own few reads are all over the file and would wait behind these.
///
/// Mapping the pages beforehand too (`MADV_POPULATE_READ`) does not pay: it takes longer than the faults that it saves, and
/// holds a lock that allocating needs.
fn read_ahead(gguf: &Gguf, engine: Weak<Inner>) {
    let weights: Vec<Bytes> = gguf.tensors().map(|tensor| tensor.data.clone()).collect();
    let read = move || {
        weights.iter().take_while(|_| engine.strong_count() > 0).for_each(Bytes::read_ahead);
    };
    // Without the thread it is slower, nothing else.
    let _ = thread::Builder::new().name("moli-read-ahead".to_owned()).spawn(read);
}

/// `{architecture}.context_length`; what is wrong with it is said when the configuration is read.
fn trained_context(metadata: &moli_format::Metadata) -> Result<Option<usize>, EngineError> {
    let key = format!("{}.context_length", metadata.architecture()?);
    Ok(metadata.u64_opt(&key)?.map(|tokens| usize::try_from(tokens).unwrap_or(usize::MAX)))
}

fn between(name: &'static str, value: usize, high: usize) -> Result<(), EngineError> {
    if (1..=high).contains(&value) {
        return Ok(());
    }
    Err(EngineError::parameter(name, value, format!("between 1 and {high}")))
}
