//! The models that are served: loaded when they are asked for, together within one memory budget, unloaded when idle.

use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use axum::http::StatusCode;
use moli_engine::{Engine, EngineError, MemoryBudget, SamplerParams};
use tokio::sync::OnceCell;
use tokio::task::spawn_blocking;

use crate::doors::visit;
use crate::error::{ApiError, ServerError};
use crate::facts::Facts;

/// Loads a model within this much memory.
pub type Loader = Arc<dyn Fn(Option<MemoryBudget>) -> Result<Engine, EngineError> + Send + Sync>;

/// A model that a server offers.
#[derive(Clone)]
pub struct ModelSpec {
    /// What clients call it.
    pub name: String,
    /// How it is loaded, as often as it is needed.
    pub load: Loader,
    /// How its answers are sampled where a request does not say.
    pub sampling: SamplerParams,
    /// The file or folder, for those who list models.
    pub path: Option<PathBuf>,
    /// It is loaded when the server starts, and stays.
    pub keep: bool,
    /// Names of adapters that the engine is loaded with: clients choose one by `model:adapter`.
    pub adapters: Vec<String>,
}

impl ModelSpec {
    /// A model that is loaded when it is asked for.
    pub fn new(name: impl Into<String>, load: Loader) -> Self {
        let sampling = SamplerParams::default();
        Self { name: name.into(), load, sampling, path: None, keep: false, adapters: Vec::new() }
    }
}

impl fmt::Debug for ModelSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ModelSpec")
            .field("name", &self.name)
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}

/// All of them.
#[derive(Debug)]
pub(crate) struct Models {
    slots: Vec<Arc<Slot>>,
    memory: Option<u64>,
    /// Held while one is loaded: what is left of the memory is known to one at a time.
    loading: Arc<tokio::sync::Mutex<()>>,
}

/// One of them.
#[derive(Debug)]
pub(crate) struct Slot {
    pub(crate) spec: ModelSpec,
    state: Mutex<State>,
    facts: OnceCell<Arc<Facts>>,
}

#[derive(Debug)]
struct State {
    engine: Option<Engine>,
    /// Requests that are at it.
    users: usize,
    last_used: Instant,
    /// How long it stays unused, where a client has said so.
    stays: Option<Duration>,
}

impl Slot {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The engine, where it is loaded.
    pub(crate) fn engine(&self) -> Option<Engine> {
        self.state().engine.clone()
    }

    /// What clients call it: its name, and that of each adapter behind it.
    pub(crate) fn names(&self) -> Vec<String> {
        let spec = &self.spec;
        let adapted = spec.adapters.iter().map(|adapter| adapted_name(&spec.name, Some(adapter)));
        [spec.name.clone()].into_iter().chain(adapted).collect()
    }

    /// Since when nobody has used it, where it is loaded and nobody does.
    fn idle_since(&self) -> Option<Instant> {
        let state = self.state();
        (state.engine.is_some() && state.users == 0 && !self.spec.keep).then_some(state.last_used)
    }

    /// When it is unloaded if nobody uses it before; `None`: not of itself, or it is not loaded. `after`: how long models
    /// stay where no client says.
    pub(crate) fn expires(&self, after: Option<Duration>) -> Option<Instant> {
        let state = self.state();
        if state.engine.is_none() || self.spec.keep {
            return None;
        }
        state.last_used.checked_add(state.stays.or(after)?)
    }

    /// How long it stays while nobody uses it, where it is loaded, and until it is unloaded.
    pub(crate) fn stay(&self, long: Duration) {
        let mut state = self.state();
        state.stays = state.engine.as_ref().map(|_| long);
    }

    /// Takes the engine out, unless somebody is at it by now.
    fn take_idle(&self) -> Option<Engine> {
        let mut state = self.state();
        if state.users > 0 {
            return None;
        }
        state.stays = None;
        state.engine.take()
    }

    /// What its file says of it, read once; of a model without one, that nothing is known.
    pub(crate) async fn facts(&self) -> Result<Arc<Facts>, ApiError> {
        let read = || async {
            let Some(path) = self.spec.path.clone() else { return Ok(Arc::default()) };
            let read = spawn_blocking(move || Facts::read(&path)).await;
            let read =
                read.map_err(|_| ApiError::internal("the model's file met a mistake in the server"))?;
            let name = &self.spec.name;
            read.map(Arc::new).map_err(|error| ApiError::internal(format!("the file of {name:?}: {error}")))
        };
        self.facts.get_or_try_init(read).await.cloned()
    }

    fn lease(self: &Arc<Self>) -> Option<Lease> {
        let mut state = self.state();
        let engine = state.engine.clone()?;
        state.users += 1;
        Some(Lease { engine, slot: Arc::clone(self), name: self.spec.name.clone(), adapter: None })
    }
}

/// The right to use a loaded model: it is not unloaded meanwhile.
#[derive(Debug)]
pub(crate) struct Lease {
    pub(crate) engine: Engine,
    slot: Arc<Slot>,
    /// What the client calls the model, and the adapter that this name chooses.
    name: String,
    adapter: Option<String>,
}

impl Lease {
    pub(crate) fn spec(&self) -> &ModelSpec {
        &self.slot.spec
    }

    pub(crate) fn adapter(&self) -> Option<&str> {
        self.adapter.as_deref()
    }

    /// The same, for a request whose name of the model chooses this adapter.
    pub(crate) fn adapted(mut self, adapter: Option<&String>) -> Self {
        self.adapter = adapter.cloned();
        self.name = adapted_name(&self.slot.spec.name, self.adapter());
        self
    }

    /// An error for what no adapter can be chosen for.
    pub(crate) fn refuse_adapter(&self, what: &str) -> Result<(), ApiError> {
        match self.adapter() {
            Some(adapter) => Err(ApiError::unsupported(
                "model",
                format!("{what} with the adapter {adapter:?}: choose the model by itself"),
            )),
            None => Ok(()),
        }
    }

    /// What the client calls the model.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// See [`Slot::stay`].
    pub(crate) fn stay(&self, long: Duration) {
        self.slot.stay(long);
    }

    /// Has the model loaded anew for the next request: this engine can't be used any more.
    pub(crate) fn give_up(&self) {
        self.slot.state().engine = None;
    }
}

impl Clone for Lease {
    fn clone(&self) -> Self {
        self.slot.state().users += 1;
        Self {
            engine: self.engine.clone(),
            slot: Arc::clone(&self.slot),
            name: self.name.clone(),
            adapter: self.adapter.clone(),
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let mut state = self.slot.state();
        state.users = state.users.saturating_sub(1);
        state.last_used = Instant::now();
    }
}

/// What clients call a model with an adapter.
pub(crate) fn adapted_name(model: &str, adapter: Option<&str>) -> String {
    adapter.map_or_else(|| model.to_owned(), |adapter| format!("{model}:{adapter}"))
}

impl Models {
    /// # Errors
    /// [`ServerError::DuplicateModel`].
    pub(crate) fn new(specs: Vec<ModelSpec>, memory: Option<u64>) -> Result<Self, ServerError> {
        let mut slots: Vec<Arc<Slot>> = Vec::new();
        for spec in specs {
            if slots.iter().any(|slot| slot.spec.name == spec.name) {
                return Err(ServerError::DuplicateModel { name: spec.name });
            }
            let state = State { engine: None, users: 0, last_used: Instant::now(), stays: None };
            slots.push(Arc::new(Slot { spec, state: Mutex::new(state), facts: OnceCell::new() }));
        }
        Ok(Self { slots, memory, loading: Arc::default() })
    }

    /// Those that the request which is answered here may use.
    pub(crate) fn slots(&self) -> impl Iterator<Item = &Arc<Slot>> {
        self.slots.iter().filter(|slot| visit::may_use(&slot.spec.name))
    }

    /// All, whoever asks.
    pub(crate) fn all(&self) -> &[Arc<Slot>] {
        &self.slots
    }

    /// Requests that are being answered.
    pub(crate) fn users(&self) -> usize {
        self.slots.iter().map(|slot| slot.state().users).sum()
    }

    /// The model of this name, if the request which is answered here may use it; Ollama's clients may add `:latest` to it.
    pub(crate) fn find(&self, name: &str) -> Result<&Arc<Slot>, ApiError> {
        self.find_adapted(name).map(|(slot, _)| slot)
    }

    /// The same, and the adapter of it that `model:adapter` names.
    pub(crate) fn find_adapted(&self, name: &str) -> Result<(&Arc<Slot>, Option<&String>), ApiError> {
        let plain = |name: &str| self.slots.iter().find(|slot| slot.spec.name == name);
        let adapted = |name: &str| {
            let (model, adapter) = name.rsplit_once(':')?;
            let slot = plain(model)?;
            Some((slot, Some(slot.spec.adapters.iter().find(|known| *known == adapter)?)))
        };
        let is = |name: &str| plain(name).map(|slot| (slot, None)).or_else(|| adapted(name));
        let found = is(name).or_else(|| is(name.strip_suffix(":latest")?));
        if let Some((slot, _)) = found {
            let name = &slot.spec.name;
            if !visit::may_use(name) {
                let message = format!("this key is not for the model {name:?}");
                let error = ApiError::new(StatusCode::FORBIDDEN, "model_not_allowed", message);
                return Err(ApiError { param: Some("model".to_owned()), ..error });
            }
            visit::note_model(name);
        }
        found.ok_or_else(|| {
            let names: Vec<String> = self.slots().flat_map(|slot| slot.names()).collect();
            let shown: String = name.chars().take(80).collect();
            let message = format!("there is no model {shown:?} here; there is {}", names.join(", "));
            let error = ApiError::new(StatusCode::NOT_FOUND, "model_not_found", message);
            ApiError { param: Some("model".to_owned()), ..error }
        })
    }

    /// The model, loaded. Whoever leaves meanwhile does not stop the loading: two at a time would want the same memory.
    pub(crate) async fn lease(self: &Arc<Self>, slot: &Arc<Slot>) -> Result<Lease, EngineError> {
        loop {
            if let Some(lease) = slot.lease() {
                return Ok(lease);
            }
            let turn = Arc::clone(&self.loading).lock_owned().await;
            if slot.engine().is_none() {
                let (models, slot) = (Arc::clone(self), Arc::clone(slot));
                let loading = tokio::spawn(async move {
                    let loaded = models.load(&slot).await;
                    drop(turn);
                    loaded
                });
                loading.await.unwrap_or(Err(EngineError::Poisoned))?;
            }
        }
    }

    /// Loads a model into what is left of the memory. Idle ones go before this one is made smaller or refused.
    async fn load(&self, slot: &Arc<Slot>) -> Result<(), EngineError> {
        loop {
            let loaded = self.slots.iter().filter_map(|other| other.engine());
            let taken: u64 = loaded.filter_map(|engine| Some(engine.plan()?.own_bytes())).sum();
            let left = self.memory.map(|memory| MemoryBudget::Bytes(memory.saturating_sub(taken)));
            let load = Arc::clone(&slot.spec.load);
            let outcome = spawn_blocking(move || load(left)).await.unwrap_or(Err(EngineError::Poisoned));
            let small = match &outcome {
                Ok(engine) => engine.plan().is_some_and(|plan| !plan.changes.is_empty()),
                Err(EngineError::DoesNotFit(_)) => true,
                Err(_) => false,
            };
            if small && self.unload_idle().await {
                continue;
            }
            let engine = outcome?;
            tracing::info!(model = slot.spec.name, ms = engine.load_time().as_millis(), "loaded");
            if let Some(plan) = engine.plan() {
                for change in &plan.changes {
                    tracing::warn!(model = slot.spec.name, "to fit the memory: {change}");
                }
            }
            slot.state().engine = Some(engine);
            return Ok(());
        }
    }

    /// Unloads a model that has stayed unused for its time; whether there was one. `after`: that time where no client says;
    /// `None`: for ever.
    pub(crate) async fn unload_expired(&self, after: Option<Duration>) -> bool {
        let now = Instant::now();
        let over = |slot: &&Arc<Slot>| {
            slot.idle_since().is_some() && slot.expires(after).is_some_and(|expires| expires <= now)
        };
        match self.slots.iter().find(over) {
            Some(slot) => unload(slot).await,
            None => false,
        }
    }

    /// Unloads the model that nobody has used for the longest time; whether there was one.
    async fn unload_idle(&self) -> bool {
        let idle = self.slots.iter().filter_map(|slot| Some((slot.idle_since()?, slot)));
        match idle.min_by_key(|(since, _)| *since) {
            Some((_, slot)) => unload(slot).await,
            None => false,
        }
    }
}

/// Unloads a model unless somebody is at it; whether it was done.
async fn unload(slot: &Slot) -> bool {
    let Some(engine) = slot.take_idle() else { return false };
    // It ends with a thread, which is waited for.
    let _ = spawn_blocking(move || drop(engine)).await;
    tracing::info!(model = slot.spec.name, "unloaded");
    true
}
