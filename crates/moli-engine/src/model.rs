//! What a loaded model is, but for its weights: everything that never changes.

use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use moli_format::Tensor;
use moli_kernels::{Isa, Kernels};
use moli_model::{Config, ModelError, PAGE_TOKENS, Runtime};
use moli_text::{ChatTemplate, Tokenizer};

use crate::adapters::Known;
use crate::constraint::{Compiler, Constraint, Grammar};
use crate::embed::Declared;
use crate::fingerprint::{Digest, fingerprint};
use crate::rank::Ranker;
use crate::sampler::Breakers;
use crate::{EngineError, MemoryPlan};

pub(crate) struct Model {
    pub(crate) tokenizer: Tokenizer,
    /// A broken template spoils chats, nothing else: the error is kept until one is asked for.
    pub(crate) template: Result<Option<ChatTemplate>, String>,
    /// What the file says of embeddings.
    pub(crate) declared: Declared,
    /// Or why it is none.
    pub(crate) ranker: Result<Ranker, String>,
    /// The same bits on every instruction set.
    pub(crate) kernels: Kernels,
    pub(crate) config: Config,
    pub(crate) description: String,
    /// Tokens of a timeline.
    pub(crate) context: usize,
    pub(crate) load_time: Duration,
    pub(crate) plan: Option<MemoryPlan>,
    pub(crate) adapters: Known,
    /// Of a page of keys and values.
    pub(crate) page_bytes: usize,
    pub(crate) page_layout: String,
    /// Of a recurrent state; 0: the model has none.
    pub(crate) state_bytes: usize,
    /// The file's tensors, to know the model by; empty where there is no file.
    pub(crate) weights: Vec<Tensor>,
    fingerprint: OnceLock<Digest>,
    breakers: Mutex<Option<BreakerCache>>,
    /// Made for the first grammar: it knows every token.
    compiler: OnceLock<Compiler>,
}

/// The latest sequence breakers: deriving them walks the whole vocabulary.
struct BreakerCache {
    texts: Vec<String>,
    breakers: Arc<Breakers>,
}

impl Model {
    /// The context is what the runtime's pages hold, at most what the model was trained for.
    pub(crate) fn new(
        runtime: &dyn Runtime,
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
        // The texts of an encoder have to be whole in one batch.
        let whole_rows = if config.causal { usize::MAX } else { runtime.max_rows() };
        Ok(Self {
            description: runtime.description(),
            context: (runtime.pages() * PAGE_TOKENS).min(config.context_train).min(whole_rows),
            tokenizer,
            template,
            declared: Declared::default(),
            ranker: Err("it was not opened from a file".to_owned()),
            config,
            load_time: Duration::ZERO,
            plan: None,
            adapters: Known::default(),
            page_bytes: runtime.page_bytes(),
            page_layout: runtime.page_layout(),
            state_bytes: runtime.state_bytes(),
            weights: Vec::new(),
            fingerprint: OnceLock::new(),
            breakers: Mutex::new(None),
            compiler: OnceLock::new(),
            kernels: Kernels::new(isa).map_err(ModelError::from)?,
        })
    }

    /// What tells this model from others; found out when it is first asked for.
    pub(crate) fn fingerprint(&self) -> Digest {
        *self.fingerprint.get_or_init(|| fingerprint(&self.config, &self.tokenizer, &self.weights))
    }

    /// The token sequences of these breaker texts.
    pub(crate) fn breakers(&self, texts: &[String]) -> Result<Arc<Breakers>, EngineError> {
        if let Ok(cache) = self.breakers.lock()
            && let Some(cache) = cache.as_ref().filter(|cache| cache.texts == texts)
        {
            return Ok(Arc::clone(&cache.breakers));
        }
        let breakers = Arc::new(Breakers::new(&self.tokenizer, texts)?);
        if let Ok(mut cache) = self.breakers.lock() {
            *cache = Some(BreakerCache { texts: texts.to_vec(), breakers: Arc::clone(&breakers) });
        }
        Ok(breakers)
    }

    /// The constraint of an answer that must follow a grammar. Takes as long as compiling takes, on the caller's thread.
    pub(crate) fn constraint(&self, grammar: &Grammar) -> Result<Constraint, EngineError> {
        let compiler = match self.compiler.get() {
            Some(compiler) => compiler,
            None => {
                let made = Compiler::new(&self.tokenizer)?;
                self.compiler.get_or_init(|| made)
            }
        };
        compiler.compile(grammar)
    }

    /// Refuses logits of a model that has none.
    pub(crate) fn check_head(&self) -> Result<(), EngineError> {
        if self.config.causal { Ok(()) } else { Err(EngineError::Encoder) }
    }

    /// What must be right with a prompt before anything is computed.
    pub(crate) fn check_prompt(&self, prompt: &[u32]) -> Result<(), EngineError> {
        if prompt.is_empty() {
            return Err(EngineError::EmptyPrompt);
        }
        if prompt.len() > self.context {
            return Err(EngineError::PromptTooLong { prompt_tokens: prompt.len(), context: self.context });
        }
        let vocab = self.config.vocab;
        match prompt.iter().find(|id| **id as usize >= vocab) {
            Some(&id) => Err(EngineError::TokenOutOfVocabulary { id, vocab }),
            None => Ok(()),
        }
    }
}
