//! A model that a test can slow down, break and look into.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use moli_engine::{Counters, Engine, Scheduling};
use moli_format::{Gguf, ReadMode};
use moli_model::{BackendKind, Batch, Computed, Config, KvType, LoadOptions, ModelError, Runtime};
use moli_server::ModelSpec;
use moli_testkit::TinyModel;
use moli_text::{ChatTemplate, Tokenizer};

/// What a test sees and sets.
#[derive(Default)]
pub(crate) struct Probe {
    /// Microseconds that each step takes besides.
    pub(crate) slow: AtomicU64,
    /// The next step panics.
    pub(crate) panic: AtomicBool,
    /// The next loading panics.
    pub(crate) panic_loading: AtomicBool,
    /// Milliseconds that loading takes besides.
    pub(crate) slow_loading: AtomicU64,
    /// How often it was loaded.
    pub(crate) loaded: AtomicUsize,
    engine: Mutex<Option<Engine>>,
}

impl Probe {
    /// Of the engine that was loaded last.
    pub(crate) fn counters(&self) -> Counters {
        self.engine.lock().unwrap().as_ref().unwrap().counters()
    }

    /// KV pages that answers hold.
    pub(crate) fn pages_in_use(&self) -> usize {
        let counters = self.counters();
        counters.pages - counters.pages_free - counters.pages_cached
    }
}

struct Probed {
    inner: Box<dyn Runtime>,
    probe: Arc<Probe>,
}

impl Runtime for Probed {
    fn config(&self) -> &Config {
        self.inner.config()
    }

    fn description(&self) -> String {
        self.inner.description()
    }

    fn max_rows(&self) -> usize {
        self.inner.max_rows()
    }

    fn pages(&self) -> usize {
        self.inner.pages()
    }

    fn page_bytes(&self) -> usize {
        self.inner.page_bytes()
    }

    fn page_layout(&self) -> String {
        self.inner.page_layout()
    }

    fn copy_page(&mut self, from: u32, to: u32) -> Result<(), ModelError> {
        self.inner.copy_page(from, to)
    }

    fn read_page(&mut self, page: u32, out: &mut Vec<u8>) -> Result<(), ModelError> {
        self.inner.read_page(page, out)
    }

    fn write_page(&mut self, page: u32, bytes: &[u8]) -> Result<(), ModelError> {
        self.inner.write_page(page, bytes)
    }

    fn forward(&mut self, batch: &Batch<'_>) -> Result<Computed<'_>, ModelError> {
        assert!(!self.probe.panic.swap(false, Ordering::Relaxed), "as the test asked");
        thread::sleep(Duration::from_micros(self.probe.slow.load(Ordering::Relaxed)));
        self.inner.forward(batch)
    }
}

/// Tokens of the probed model's context.
pub(crate) const CONTEXT: usize = 2048;

/// A tiny model under a name, with room for 4 full contexts. It is loaded at once where `keep` is set.
pub(crate) fn probed(name: &str, keep: bool, scheduling: Scheduling) -> (ModelSpec, Arc<Probe>) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tiny.gguf");
    let mut file = TinyModel::new("llama").file().unwrap();
    file.meta("tokenizer.chat_template", moli_testkit::CHAT_TEMPLATE);
    file.write(&path).unwrap();
    let probe = Arc::new(Probe::default());
    let own = Arc::clone(&probe);
    let load = move |_| {
        own.loaded.fetch_add(1, Ordering::Relaxed);
        thread::sleep(Duration::from_millis(own.slow_loading.load(Ordering::Relaxed)));
        assert!(!own.panic_loading.swap(false, Ordering::Relaxed), "as the test asked");
        let gguf = Gguf::open(&folder.path().join("tiny.gguf"), ReadMode::Map)?;
        let tokenizer = Tokenizer::from_gguf(gguf.metadata())?;
        let template = ChatTemplate::for_model(gguf.metadata(), &tokenizer)?;
        let options =
            LoadOptions { threads: 1, isa: None, context: 4 * CONTEXT, max_rows: 256, kv_type: KvType::F16 };
        let inner = moli_model::load(&gguf, BackendKind::Cpu, &options)?;
        let runtime = Probed { inner, probe: Arc::clone(&own) };
        let engine = Engine::from_parts(Box::new(runtime), tokenizer, template, &scheduling)?;
        *own.engine.lock().unwrap() = Some(engine.clone());
        Ok(engine)
    };
    (ModelSpec { keep, ..ModelSpec::new(name, Arc::new(load)) }, probe)
}
