//! A loaded model.

use std::fmt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use moli_format::{Bytes, Gguf};
use moli_kernels::Isa;
use moli_model::{Config, DeviceMemory, LoadOptions, PAGE_TOKENS, PagePool, Runtime};
use moli_text::{
    ChatTemplate, EncodeOptions, Message as ChatMessage, RenderOptions, RenderedPrompt, Tokenizer,
};

use crate::adapters::Known;
use crate::answer::Answer;
use crate::choice::{Choice, Format};
use crate::counters::Counters;
use crate::embed::Declared;
use crate::events;
use crate::inbox::{Inbox, Refused};
use crate::model::Model;
use crate::options::{EngineOptions, MAX_BATCH, Scheduling, between};
use crate::plan::STATES_OF_ANSWER;
use crate::rank::Ranker;
use crate::scheduler::{Id, Limits, Scheduler, Timeline, Wanted};
use crate::speculation::{DraftModel, Speculator};
use crate::watchdog::{self, Heartbeat};
use crate::worker::{Message, Shared, Task, Worker};
use crate::{CancelToken, EngineError, GenerateParams, MemoryPlan, PlanOptions, Session, quantized};

/// A loaded model: a cheap handle, shared between threads. One thread of its own computes the answers, all of them in turns;
/// it ends with the last handle.
#[derive(Clone)]
pub struct Engine {
    inner: Arc<Inner>,
}

struct Inner {
    model: Arc<Model>,
    shared: Arc<Shared>,
    arrivals: AtomicU64,
    max_queue: usize,
    worker: Mutex<Option<JoinHandle<()>>>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.shared.inbox.close();
        self.shared.heartbeat.close();
        let worker = self.worker.get_mut().unwrap_or_else(PoisonError::into_inner);
        // Its weights and pages are gone when the engine is. A panic of its has been told to whom it concerned.
        if let Some(worker) = worker.take() {
            let _ = worker.join();
        }
    }
}

impl Engine {
    /// Opens a model file with its tokenizer, its chat template and its weights.
    ///
    /// # Errors
    /// [`EngineError::InvalidParameter`] for an option out of range, and whatever is wrong with the file;
    /// [`EngineError::Draft`], [`EngineError::DraftVocabulary`] and [`EngineError::NoSpeculation`] for the draft model; [`EngineError::Adapter`] and
    /// [`EngineError::DuplicateAdapter`] for the adapters.
    pub fn load(path: &Path, options: &EngineOptions) -> Result<Self, EngineError> {
        let started = Instant::now();
        options.scheduling.validate()?;
        options.plan().validate()?;
        Self::of(&Gguf::open(path, options.read_mode)?, options, started)
    }

    /// The same for a model that is open already, which may be in memory: other engines can share its weights.
    ///
    /// # Errors
    /// As those of [`load`](Self::load).
    pub fn from_gguf(gguf: &Gguf, options: &EngineOptions) -> Result<Self, EngineError> {
        let started = Instant::now();
        options.scheduling.validate()?;
        Self::of(gguf, options, started)
    }

    fn of(gguf: &Gguf, options: &EngineOptions, started: Instant) -> Result<Self, EngineError> {
        if let Some(mixture) = options.quantize {
            let (gguf, options) = quantized::model(gguf, mixture, options)?;
            return Self::of(&gguf, &options, started);
        }
        let device = options.backend.memory()?;
        let on_device = device.is_some();
        let draft_file = options.draft.as_deref().map(|path| DraftFile::open(path, options, device.clone()));
        let draft_file = draft_file.transpose()?;
        let draft_bytes = draft_file.as_ref().map_or(0, |draft| draft.plan.own_bytes());
        let (known, adapters) = Known::open(&options.adapters, gguf, options.read_mode)?;
        let wished = PlanOptions { draft_bytes, adapters, device, ..options.plan() };
        let plan = MemoryPlan::of(gguf, &wished)?;
        let metadata = gguf.metadata();
        let load = LoadOptions {
            threads: plan.threads,
            isa: options.isa,
            context: plan.kv_pages.saturating_mul(PAGE_TOKENS),
            max_rows: plan.max_rows,
            kv_type: plan.kv_type,
        };
        // The small parts first: a model without a tokenizer is refused before its weights are looked at.
        let tokenizer = Tokenizer::from_gguf(metadata)?;
        let template = ChatTemplate::for_model(metadata, &tokenizer).map_err(|error| error.to_string());
        let runtime = moli_model::load_adapted(gguf, &wished.adapters, options.backend, &load)?;
        let draft = draft_file.as_ref().map(|draft| draft.load(&tokenizer, options)).transpose()?;
        let declared = Declared::of(metadata)?;
        let ranker = Ranker::of(gguf, runtime.as_ref(), &tokenizer, &declared)?;
        let isa = options.isa.unwrap_or_else(Isa::detect);
        let mut model = Model::new(runtime.as_ref(), tokenizer, template, isa)?;
        model.declared = declared;
        model.ranker = ranker;
        model.adapters = known;
        model.context = plan.context;
        model.plan = Some(plan);
        model.weights = gguf.tensors().cloned().collect();
        model.load_time = started.elapsed();
        let engine = Self::start(runtime, model, draft, options.prefill_chunk, &options.scheduling)?;
        // What a GPU computes with has been read.
        if !on_device {
            read_ahead(gguf, &engine.inner.shared);
            if let Some(draft) = draft_file {
                read_ahead(&draft.gguf, &engine.inner.shared);
            }
        }
        Ok(engine)
    }

    /// An engine of parts that exist already: another runtime, or another tokenizer than the file's. The context of a
    /// session is what the runtime's pages hold, at most what the model was trained for; prompts are computed in chunks
    /// of the runtime's [`max_rows`](Runtime::max_rows).
    ///
    /// # Errors
    /// [`EngineError::VocabularyMismatch`] when the tokenizer has ids that the model has no rows for,
    /// [`EngineError::InvalidParameter`] for what is wrong with `scheduling`.
    pub fn from_parts(
        runtime: Box<dyn Runtime>,
        tokenizer: Tokenizer,
        template: Option<ChatTemplate>,
        scheduling: &Scheduling,
    ) -> Result<Self, EngineError> {
        Self::from_parts_and_draft(runtime, tokenizer, template, None, scheduling)
    }

    /// The same, with a draft model and its tokenizer.
    pub(crate) fn from_parts_and_draft(
        runtime: Box<dyn Runtime>,
        tokenizer: Tokenizer,
        template: Option<ChatTemplate>,
        draft: Option<(Box<dyn Runtime>, Tokenizer)>,
        scheduling: &Scheduling,
    ) -> Result<Self, EngineError> {
        scheduling.validate()?;
        between("max_batch", scheduling.max_batch, MAX_BATCH)?;
        let model = Model::new(runtime.as_ref(), tokenizer, Ok(template), Isa::detect())?;
        let chunk = runtime.max_rows();
        let draft = draft.map(|(runtime, own)| DraftModel::new(runtime, &own, &model.tokenizer));
        Self::start(runtime, model, draft.transpose()?, chunk, scheduling)
    }

    /// Starts the thread that computes.
    fn start(
        mut runtime: Box<dyn Runtime>,
        model: Model,
        draft: Option<DraftModel>,
        chunk: usize,
        scheduling: &Scheduling,
    ) -> Result<Self, EngineError> {
        let (pages, page_bytes, rows) = (runtime.pages(), runtime.page_bytes(), runtime.max_rows());
        let causal = model.config.causal;
        if runtime.state_bytes() > 0 && draft.is_some() {
            return Err(EngineError::NoSpeculation { architecture: model.config.architecture.clone() });
        }
        // Where nobody planned them there are as many as all who run can have.
        let most = scheduling.max_batch.min(rows);
        let (states, running) = match runtime.state_bytes() {
            0 => (0, most),
            _ => {
                let planned = model.plan.as_ref().map_or(STATES_OF_ANSWER * most, |plan| plan.states);
                (planned, (planned / STATES_OF_ANSWER).clamp(1, most))
            }
        };
        runtime.reserve_states(states)?;
        let cache_pages = match scheduling.prefix_cache_limit {
            // The keys of an encoder's texts depend on what follows: no other text can have them.
            _ if !causal => 0,
            None => pages,
            Some(bytes) => usize::try_from(bytes).unwrap_or(usize::MAX).checked_div(page_bytes).unwrap_or(0),
        };
        let limits = Limits {
            rows,
            outputs: scheduling.outputs().min(rows),
            running,
            chunk: if causal { chunk } else { rows },
            shared_chunk: scheduling.shared_chunk.min(chunk),
            whole: !causal,
            context: model.context,
        };
        let scheduler = Scheduler::new(limits, PagePool::new(pages)?, PagePool::new(states)?, cache_pages);
        let shared = Arc::new(Shared {
            inbox: Inbox::new(scheduling.max_queue, scheduler.places()),
            counters: Mutex::new(Counters::new(pages, page_bytes)),
            heartbeat: Heartbeat::default(),
        });
        let worker = Worker::new(runtime, scheduler, Speculator::new(draft), Arc::clone(&shared));
        let worker = thread::Builder::new()
            .name("moli-engine".to_owned())
            .spawn(|| worker.run())
            .map_err(|error| EngineError::NoThread { reason: error.to_string() })?;
        watchdog::watch(&shared, scheduling);
        Ok(Self {
            inner: Arc::new(Inner {
                model: Arc::new(model),
                shared,
                arrivals: AtomicU64::new(0),
                max_queue: scheduling.max_queue,
                worker: Mutex::new(Some(worker)),
            }),
        })
    }

    /// Asks for an answer, which comes as an iterator. Any number of answers can be under way; what one says does not depend
    /// on the others, on what is cached or on how the prompt is cut.
    ///
    /// # Errors
    /// Nothing is computed where there is one: [`EngineError::EmptyPrompt`], [`EngineError::PromptTooLong`],
    /// [`EngineError::TokenOutOfVocabulary`], [`EngineError::InvalidParameter`] for what is wrong with `params`,
    /// [`EngineError::UnknownAdapter`], [`EngineError::QueueFull`], [`EngineError::Poisoned`].
    pub fn submit(
        &self,
        prompt: &[u32],
        params: &GenerateParams,
        cancel: &CancelToken,
    ) -> Result<Answer, EngineError> {
        self.submit_chat(prompt, params, &Format::default(), cancel)
    }

    /// As [`submit`](Self::submit), for a chat whose answers are marked in this way.
    pub(crate) fn submit_chat(
        &self,
        prompt: &[u32],
        params: &GenerateParams,
        format: &Format,
        cancel: &CancelToken,
    ) -> Result<Answer, EngineError> {
        let model = self.model();
        let (sender, events) = events::channel();
        // Dropping the answer must not cancel what else the caller's token is for.
        let cancel = cancel.child();
        let checked = model
            .check_head()
            .and_then(|()| model.check_prompt(prompt))
            .and_then(|()| params.validate(model.config.vocab, model.context))
            .and_then(|()| {
                let adapters =
                    model.adapters.choose(params.adapters.as_deref().unwrap_or(model.adapters.defaults()))?;
                let choice = |index| Choice::new(model, index, prompt, params, format, sender.clone());
                let choices = (0..params.choices).map(choice).collect::<Result<Vec<_>, _>>()?;
                Ok((choices, adapters))
            });
        let (choices, adapters) = match checked {
            Ok(checked) => checked,
            Err(error) => {
                self.count_invalid();
                return Err(error);
            }
        };
        let seeds = choices.iter().map(Choice::seed).collect();
        let deadline = params.deadline.and_then(|deadline| Instant::now().checked_add(deadline));
        let mut leader = None;
        let requests = choices.into_iter().map(|choice| {
            let id = self.next_id(params.priority);
            let timeline = Timeline::new(id, prompt.to_vec(), Wanted::Last, cancel.clone());
            let timeline = timeline.with_deadline(deadline).with_adapters(adapters.clone());
            let timeline = match leader {
                None if params.choices > 1 => timeline.leading(),
                None => timeline,
                Some(leader) => timeline.following(leader),
            };
            leader.get_or_insert(id);
            Message::Request { timeline: Box::new(timeline), task: Task::Answer(Box::new(choice)) }
        });
        self.send(requests.collect())?;
        Ok(Answer::new(self.clone(), events, cancel, prompt.len(), seeds))
    }

    /// What was planned for its memory; `None` for one of parts.
    pub fn plan(&self) -> Option<&MemoryPlan> {
        self.inner.model.plan.as_ref()
    }

    /// The names of the adapters that were loaded with the model.
    pub fn adapters(&self) -> &[String] {
        self.inner.model.adapters.names()
    }

    /// What the engine has done and is doing.
    pub fn counters(&self) -> Counters {
        let shared = &self.inner.shared;
        let mut counters = shared.counters.lock().unwrap_or_else(PoisonError::into_inner).clone();
        counters.waiting = shared.inbox.waiting();
        counters
    }

    /// Whether another answer would be taken now: a cheap look that spares preparing a request that is refused anyway.
    pub fn has_room(&self) -> bool {
        self.inner.shared.inbox.has_room()
    }

    /// Most answers that may wait, and so most that can be asked for together whatever else is computed.
    pub fn max_queue(&self) -> usize {
        self.inner.max_queue
    }

    /// A new, empty timeline.
    pub fn session(&self) -> Session {
        Session::new(self.clone())
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.inner.model.tokenizer
    }

    /// The chat template, where the model has one or is of a family whose format is known: see
    /// [`ChatTemplate::origin`].
    ///
    /// # Errors
    /// [`EngineError::BrokenChatTemplate`] when it has one that can't be used.
    pub fn chat_template(&self) -> Result<Option<&ChatTemplate>, EngineError> {
        match &self.inner.model.template {
            Ok(template) => Ok(template.as_ref()),
            Err(reason) => Err(EngineError::BrokenChatTemplate { reason: reason.clone() }),
        }
    }

    /// The model's hyperparameters.
    pub fn config(&self) -> &Config {
        &self.inner.model.config
    }

    /// Tokens that a session can hold, prompt and answer together.
    pub fn context(&self) -> usize {
        self.inner.model.context
    }

    /// How long [`load`](Self::load) took.
    pub fn load_time(&self) -> Duration {
        self.inner.model.load_time
    }

    /// What computes, in words: `cpu, avx2, 2 threads`.
    pub fn description(&self) -> String {
        self.inner.model.description.clone()
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
    pub fn render_chat(&self, messages: &[ChatMessage]) -> Result<RenderedPrompt, EngineError> {
        let template = self.chat_template()?.ok_or(EngineError::NoChatTemplate)?;
        let options = RenderOptions { add_generation_prompt: true, ..RenderOptions::default() };
        Ok(template.render(self.tokenizer(), messages, &options)?)
    }

    /// The ids of messages in the model's chat format, ready for the assistant's answer. What a message says never
    /// becomes a control token.
    ///
    /// # Errors
    /// [`EngineError::NoChatTemplate`], [`EngineError::BrokenChatTemplate`], or what the template or the tokenizer says.
    pub fn encode_chat(&self, messages: &[ChatMessage]) -> Result<Vec<u32>, EngineError> {
        Ok(self.tokenizer().encode_prompt(&self.render_chat(messages)?)?)
    }

    pub(crate) fn model(&self) -> &Arc<Model> {
        &self.inner.model
    }

    /// The number of a new timeline.
    pub(crate) fn next_id(&self, priority: i32) -> Id {
        Id::new(priority, self.inner.arrivals.fetch_add(1, Ordering::Relaxed))
    }

    /// Sends requests that belong together.
    pub(crate) fn send(&self, requests: Vec<Message>) -> Result<(), EngineError> {
        let shared = &self.inner.shared;
        let count = requests.len() as u64;
        match shared.inbox.submit(requests.into_iter()) {
            Ok(()) => {
                shared.count(|counters| counters.submitted += count);
                Ok(())
            }
            Err(Refused::Closed) => Err(EngineError::Poisoned),
            Err(Refused::Full { waiting }) => {
                shared.count(|counters| counters.rejected_queue_full += 1);
                Err(EngineError::QueueFull { waiting, limit: self.inner.max_queue })
            }
        }
    }

    /// Counts a request that was refused for what is in it.
    pub(crate) fn count_invalid(&self) {
        self.inner.shared.count(|counters| counters.rejected_invalid += 1);
    }

    /// Has the computing thread do something between two steps, and waits for what it gives.
    pub(crate) fn between_steps<T: Send + 'static>(
        &self,
        job: impl FnOnce(&mut Worker) -> T + Send + 'static,
    ) -> Result<T, EngineError> {
        let (sender, given) = mpsc::channel();
        let job = move |worker: &mut Worker| {
            let _ = sender.send(job(worker));
        };
        let sent = self.inner.shared.inbox.send(Message::Job(Box::new(job)));
        sent.ok().and_then(|()| given.recv().ok()).ok_or(EngineError::Poisoned)
    }

    /// Has the computing thread look whether there is something to do.
    pub(crate) fn wake(&self) {
        self.inner.shared.inbox.wake();
    }
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine")
            .field("architecture", &self.inner.model.config.architecture)
            .field("context", &self.inner.model.context)
            .field("runtime", &self.inner.model.description)
            .finish_non_exhaustive()
    }
}

/// A draft model that is not loaded yet.
struct DraftFile<'a> {
    path: &'a Path,
    gguf: Gguf,
    plan: MemoryPlan,
}

impl<'a> DraftFile<'a> {
    /// Opens the one that the options name. Its context is the model's, as far as it was trained for that.
    fn open(path: &'a Path, options: &EngineOptions, device: Option<DeviceMemory>) -> Result<Self, EngineError> {
        let open = || {
            let gguf = Gguf::open(path, options.read_mode)?;
            let plan = PlanOptions {
                context: None,
                prefix_cache_bytes: Some(0),
                prefill_chunk: DraftModel::ROWS,
                max_batch: 1,
                device,
                ..options.plan()
            };
            let longest = MemoryPlan::unlimited(&gguf, &plan)?.context;
            let context = options.context.map_or(longest, |context| context.min(longest));
            let plan = MemoryPlan::unlimited(&gguf, &PlanOptions { context: Some(context), ..plan })?;
            Ok((gguf, plan))
        };
        let (gguf, plan) = open().map_err(|error| Self::failed(path, error))?;
        Ok(Self { path, gguf, plan })
    }

    /// Loads it for a model with this tokenizer.
    fn load(&self, tokenizer: &Tokenizer, options: &EngineOptions) -> Result<DraftModel, EngineError> {
        let load = || {
            let pool = self.plan.kv_pages.saturating_mul(PAGE_TOKENS);
            let load = LoadOptions {
                threads: self.plan.threads,
                isa: options.isa,
                context: pool,
                max_rows: DraftModel::ROWS.min(pool),
                kv_type: self.plan.kv_type,
            };
            let own = Tokenizer::from_gguf(self.gguf.metadata())?;
            Ok((moli_model::load(&self.gguf, options.backend, &load)?, own))
        };
        let (runtime, own) = load().map_err(|error| Self::failed(self.path, error))?;
        DraftModel::new(runtime, &own, tokenizer)
    }

    fn failed(path: &Path, source: EngineError) -> EngineError {
        EngineError::Draft { path: path.to_owned(), source: Box::new(source) }
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
fn read_ahead(gguf: &Gguf, shared: &Arc<Shared>) {
    let weights: Vec<Bytes> = gguf.tensors().map(|tensor| tensor.data.clone()).collect();
    let engine = Arc::downgrade(shared);
    let read = move || {
        weights.iter().take_while(|_| engine.strong_count() > 0).for_each(Bytes::read_ahead);
    };
    // Without the thread it is slower, nothing else.
    let _ = thread::Builder::new().name("moli-read-ahead".to_owned()).spawn(read);
}
