//! A model while it is measured: its weights once, and a runtime or an engine for each way in which it is computed.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use moli_convert::{ConvertError, InMemory, Watch};
use moli_engine::{
    AdapterFile, CancelToken, Engine, EngineOptions, MemoryBudget, MemoryPlan, PlanOptions, Scheduling,
    weights_fingerprint,
};
use moli_format::{Adapter, Gguf, ReadMode};
use moli_kernels::{Pool, default_threads};
use moli_model::{
    Adapted, BackendKind, Config, DeviceMemory, Footprint, KvType, Load, LoadOptions, PAGE_TOKENS,
    adapter_bytes, load_adapted,
};
use moli_synthetic::{Synthetic, SyntheticError};
use sha2::{Digest as _, Sha256};

use super::clients::{self, Served};
use super::cost::Cost;
use super::direct::{CHUNK, Direct};
use super::options::{Source, sequences};
use super::{Outcome, RunError};
use crate::report::{Case, Model, Test, Through};

/// A model, what it costs, and what computes it.
pub(super) struct Loaded {
    /// As it was named.
    name: String,
    gguf: Gguf,
    /// What is loaded beside it, as the runtime and as an engine load it.
    adapters: Vec<Adapter>,
    files: Vec<AdapterFile>,
    pub(super) config: Config,
    pub(super) cost: Cost,
    synthetic: bool,
    backend: BackendKind,
    /// Seconds that opening or making it took, and then loading it for the first case.
    opened: f64,
    loaded: Option<f64>,
    direct: HashMap<Setup, Direct>,
    engines: HashMap<Setup, Engine>,
    servers: HashMap<Setup, Served>,
}

/// What a model is loaded for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Setup {
    threads: usize,
    kv_type: KvType,
    /// Tokens that there are pages for in all.
    pool: usize,
    /// Sequences at once; of whole answers each has its share of the pool, of others it doesn't matter.
    sequences: usize,
    /// Tokens of the longest sequence.
    longest: usize,
}

impl Loaded {
    /// What is to be planned for: a model whose weights aren't made yet where they are to be in memory.
    pub(super) fn outline(source: &Source, backend: BackendKind) -> Result<Self, RunError> {
        Self::with(source, backend, Synthetic::outline, |model| model.outline())
    }

    /// Opens a model, or makes it. No page and no scratch is allocated.
    pub(super) fn open(source: &Source, backend: BackendKind) -> Result<Self, RunError> {
        Self::with(source, backend, Synthetic::in_memory, |model| {
            let watch: Arc<Watch> = Arc::new(|_| true);
            model.make(&Arc::new(Pool::new(default_threads())), &watch)
        })
    }

    fn with(
        source: &Source,
        backend: BackendKind,
        make: impl FnOnce(&Synthetic) -> Result<Gguf, SyntheticError>,
        quantise: impl FnOnce(&InMemory<'_>) -> Result<Gguf, ConvertError>,
    ) -> Result<Self, RunError> {
        let started = Instant::now();
        let name = source.name();
        let open = |path: &Path| {
            Gguf::open(path, ReadMode::Map).map_err(|source| RunError::Open { model: name.clone(), source })
        };
        let gguf = match source {
            Source::File { path, .. } | Source::Adapted { path, .. } => open(path)?,
            Source::Quantised { path, mixture, .. } => {
                let whole = open(path)?;
                let made = InMemory::new(&whole, *mixture).and_then(|model| quantise(&model));
                made.map_err(|source| RunError::Quantize { model: name.clone(), source })?
            }
            Source::Memory(model) => make(model)?,
        };
        let vocab = gguf.tensor("token_embd.weight").map_or(0, moli_format::Tensor::rows);
        let config = Config::from_metadata(gguf.metadata(), vocab)
            .map_err(|source| RunError::Model { model: name.clone(), source })?;
        let files = adapter_files(source);
        let adapter = |file: &AdapterFile| {
            let failed = |source| RunError::Adapter { path: file.path.clone(), source };
            Adapter::open(&file.path, &gguf, ReadMode::Map).map_err(failed)
        };
        Ok(Self {
            cost: Cost::of(&gguf, &config),
            adapters: files.iter().map(adapter).collect::<Result<_, _>>()?,
            files,
            gguf,
            config,
            synthetic: source.is_synthetic(),
            backend,
            name,
            opened: started.elapsed().as_secs_f64(),
            loaded: None,
            direct: HashMap::new(),
            engines: HashMap::new(),
            servers: HashMap::new(),
        })
    }

    /// What the receipt says of it.
    pub(super) fn describe(&self) -> Model {
        let Config { architecture, .. } = &self.config;
        let (cost, format) = (&self.cost, self.cost.format.name());
        let parameters = moli_engine::units::count(cost.parameters).replace(' ', "");
        Model {
            source: self.name.clone(),
            synthetic: self.synthetic,
            description: format!("{architecture} {} {format}", parameters.replace('G', "B")),
            architecture: architecture.clone(),
            parameters: cost.parameters,
            weight_bytes: cost.weight_bytes,
            bytes_per_token: cost.bytes_per_token(),
            macs_per_token: cost.macs_per_token(),
            quantization: format.to_owned(),
            fingerprint: self.fingerprint(),
            load_seconds: self.opened + self.loaded.unwrap_or(0.0),
        }
    }

    /// That of the weights; with adapters, another for each choice of them.
    fn fingerprint(&self) -> String {
        let weights = weights_fingerprint(&self.gguf);
        if self.adapters.is_empty() {
            return weights;
        }
        let mut hash = Sha256::new();
        hash.update(weights);
        for (adapter, file) in self.adapters.iter().zip(&self.files) {
            hash.update(file.scale.to_le_bytes());
            for product in adapter.products() {
                hash.update(&product.name);
                hash.update(&*product.a.data);
                hash.update(&*product.b.data);
                hash.update(product.factor.to_le_bytes());
            }
        }
        hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// What sequences go through.
    fn adapted(&self) -> Vec<Adapted> {
        let used = self.files.iter().zip(0..).filter(|(file, _)| file.scale != 0.0);
        used.map(|(file, adapter)| Adapted { adapter, scale: file.scale }).collect()
    }

    /// Checks that the model's context and the pages suffice for all of these.
    pub(super) fn check(&self, cases: &[Case]) -> Result<(), RunError> {
        for case in cases {
            let test = || case.work.to_string();
            let (_, tokens) = sequences(&case.work);
            if tokens > self.config.context_train {
                let (model, context) = (self.name.clone(), self.config.context_train);
                return Err(RunError::Context { test: test(), tokens, model, context });
            }
            let need = super::options::need(&case.work);
            if need > case.context {
                return Err(RunError::Pages { test: test(), tokens: need, context: case.context });
            }
        }
        Ok(())
    }

    /// Bytes that all of these take together, the weights once.
    pub(super) fn bytes(&self, cases: &[Case]) -> Result<u64, RunError> {
        // A GPU has its own copy of the weights for each of them.
        let mut sum = if self.on_gpu() { 0 } else { self.gguf.weight_bytes() };
        let mut setups: Vec<(Setup, bool)> = Vec::new();
        for case in cases {
            let setup = (self.setup(case, cases), is_direct(case));
            if !setups.contains(&setup) {
                setups.push(setup);
            }
        }
        for (setup, direct) in setups {
            let bytes = if direct { self.direct_bytes(&setup) } else { self.engine_bytes(&setup)? };
            sum = sum.saturating_add(bytes);
        }
        Ok(sum)
    }

    fn direct_bytes(&self, setup: &Setup) -> u64 {
        let load = Load {
            threads: setup.threads,
            max_rows: rows(setup),
            outputs: setup.sequences,
            context: setup.longest,
        };
        let footprint = self.footprint(&load);
        let page = self.config.page_bytes(setup.kv_type);
        let pages = page.saturating_mul((setup.pool / PAGE_TOKENS) as u64);
        let states = self.config.state_bytes().saturating_mul(setup.sequences.max(1) as u64);
        let weights = if self.on_gpu() { 0 } else { footprint.weights + footprint.embeddings };
        let adapters = adapter_bytes(&self.adapters, &self.config, rows(setup));
        let parts = [pages, states, adapters];
        parts.iter().fold(footprint.total() - weights, |sum, &part| sum.saturating_add(part))
    }

    fn on_gpu(&self) -> bool {
        matches!(self.backend, BackendKind::Cuda(_))
    }

    #[cfg(feature = "cuda")]
    fn footprint(&self, load: &Load) -> Footprint {
        let of = if self.on_gpu() { Footprint::on_gpu } else { Footprint::of };
        of(&self.gguf, &self.config, load)
    }

    #[cfg(not(feature = "cuda"))]
    fn footprint(&self, load: &Load) -> Footprint {
        Footprint::of(&self.gguf, &self.config, load)
    }

    fn engine_bytes(&self, setup: &Setup) -> Result<u64, RunError> {
        let options = self.engine_options(setup);
        let plan = PlanOptions {
            threads: options.threads,
            context: options.context,
            sessions: options.sessions,
            kv_type: options.kv_type,
            prefix_cache_bytes: options.prefix_cache_bytes,
            max_batch: options.scheduling.max_batch,
            adapters: self.adapters.clone(),
            device: self.on_gpu().then(|| DeviceMemory { name: String::new(), free: u64::MAX }),
            ..PlanOptions::default()
        };
        let failed = |source| RunError::Engine { model: self.name.clone(), source };
        let plan = MemoryPlan::unlimited(&self.gguf, &plan).map_err(failed)?;
        let weights = if self.on_gpu() { 0 } else { self.gguf.weight_bytes() };
        Ok(plan.own_bytes().saturating_sub(weights))
    }

    /// What a case is computed with: those that differ in nothing but their tests share it.
    fn setup(&self, case: &Case, cases: &[Case]) -> Setup {
        let kv_type = case.kv_type.parse().unwrap_or_default();
        let (sequences, longest) = sequences(&case.work);
        let own = Setup { threads: case.threads, kv_type, pool: whole(case.context), sequences, longest };
        if !is_direct(case) {
            return own;
        }
        let shared = |other: &&Case| {
            is_direct(other) && other.threads == case.threads && other.kv_type == case.kv_type
        };
        cases.iter().filter(shared).fold(own, |setup, other| {
            let (sequences, longest) = super::options::sequences(&other.work);
            Setup {
                pool: setup.pool.max(whole(other.context)),
                sequences: setup.sequences.max(sequences),
                longest: setup.longest.max(longest),
                ..setup
            }
        })
    }

    fn engine_options(&self, setup: &Setup) -> EngineOptions {
        let sequences = setup.sequences.max(1);
        let context = (setup.pool / sequences / PAGE_TOKENS * PAGE_TOKENS).min(self.config.context_train);
        EngineOptions {
            threads: Some(setup.threads),
            adapters: self.files.clone(),
            backend: self.backend,
            context: Some(context),
            sessions: sequences,
            kv_type: Some(setup.kv_type),
            // Each answer reads its whole prompt.
            prefix_cache_bytes: Some(0),
            // What there is has been compared, and weights that are in memory already would count twice.
            memory_budget: Some(MemoryBudget::Bytes(u64::MAX)),
            scheduling: Scheduling {
                max_batch: sequences,
                prefix_cache_limit: Some(0),
                ..Scheduling::default()
            },
            ..EngineOptions::default()
        }
    }

    /// Drops all that computes; the weights stay.
    pub(super) fn unload(&mut self) {
        self.servers.clear();
        self.engines.clear();
        self.direct.clear();
    }

    /// Loads what these need, so that nothing is loaded between two measurements.
    pub(super) fn load(&mut self, cases: &[Case]) -> Result<(), RunError> {
        for case in cases {
            let setup = self.setup(case, cases);
            let started = Instant::now();
            let failed = |source| RunError::Model { model: self.name.clone(), source };
            if is_direct(case) {
                if !self.direct.contains_key(&setup) {
                    let load = LoadOptions {
                        threads: setup.threads,
                        isa: None,
                        context: setup.pool,
                        max_rows: rows(&setup),
                        kv_type: setup.kv_type,
                    };
                    let runtime =
                        load_adapted(&self.gguf, &self.adapters, self.backend, &load).map_err(failed)?;
                    self.direct.insert(setup, Direct::adapted(runtime, self.adapted()));
                }
            } else if !self.engines.contains_key(&setup) {
                let engine = Engine::from_gguf(&self.gguf, &self.engine_options(&setup))
                    .map_err(|source| RunError::Engine { model: self.name.clone(), source })?;
                self.engines.insert(setup, engine);
            }
            self.loaded.get_or_insert_with(|| started.elapsed().as_secs_f64());
            if let Test::EndToEnd { through: Through::Server, .. } = case.work
                && !self.servers.contains_key(&setup)
                && let Some(engine) = self.engines.get(&setup)
            {
                self.servers.insert(setup, Served::start(engine)?);
            }
        }
        Ok(())
    }

    /// Runs a case that [`load`](Self::load) has loaded once; `None` when it was cancelled meanwhile.
    pub(super) fn repetition(
        &mut self,
        case: &Case,
        cases: &[Case],
        cancel: &CancelToken,
    ) -> Result<Option<Outcome>, RunError> {
        let setup = self.setup(case, cases);
        let Test::EndToEnd { through, prompt, tokens, clients } = case.work else {
            let Some(direct) = self.direct.get_mut(&setup) else { return Ok(None) };
            let seconds = direct
                .repetition(&case.work, cancel)
                .map_err(|source| RunError::Model { model: self.name.clone(), source })?;
            return Ok(seconds.map(Outcome::of));
        };
        let prompts = clients::prompts(clients, prompt, self.config.vocab);
        match through {
            Through::Engine => {
                let Some(engine) = self.engines.get(&setup) else { return Ok(None) };
                clients::through_engine(engine, &prompts, tokens, cancel)
                    .map_err(|source| RunError::Engine { model: self.name.clone(), source })
            }
            Through::Server => {
                let Some(server) = self.servers.get(&setup) else { return Ok(None) };
                server.answers(&prompts, tokens, cancel)
            }
        }
    }
}

/// The adapters of a source; those that are only there have no scale.
fn adapter_files(source: &Source) -> Vec<AdapterFile> {
    let Source::Adapted { adapters, used, .. } = source else { return Vec::new() };
    let file = |(path, scale): &(PathBuf, f32)| AdapterFile {
        name: path.display().to_string(),
        path: path.clone(),
        scale: if *used { *scale } else { 0.0 },
    };
    adapters.iter().map(file).collect()
}

fn is_direct(case: &Case) -> bool {
    !matches!(case.work, Test::EndToEnd { .. })
}

/// Tokens in whole pages.
fn whole(tokens: usize) -> usize {
    tokens.div_ceil(PAGE_TOKENS).saturating_mul(PAGE_TOKENS)
}

/// Rows of a batch.
fn rows(setup: &Setup) -> usize {
    CHUNK.min(setup.pool).max(setup.sequences)
}
