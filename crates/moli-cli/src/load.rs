//! From MODEL, as a person types it, to a file and an engine.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use moli_engine::{Engine, EngineOptions, Scheduling};
use moli_format::{Gguf, ReadMode};
use moli_hub::{Hub, HubConfig, Sampling};

use crate::affinity;
use crate::lora::LoraArgs;
use crate::options::ComputeArgs;
use crate::output::{escape, note};
use crate::progress::Report;

/// The file of MODEL, which is pulled when it is not here yet.
pub(crate) fn resolve(model: &str) -> Result<PathBuf> {
    resolve_within(model, false)
}

/// The same; `offline`: nothing is fetched, whatever the environment says.
pub(crate) fn resolve_within(model: &str, offline: bool) -> Result<PathBuf> {
    // A file needs no configuration and no home folder.
    if moli_hub::is_path(model) {
        return Ok(PathBuf::from(model));
    }
    let config = HubConfig::from_env()?;
    let hub = Hub::new(HubConfig { offline: offline || config.offline, ..config });
    if hub.catalogue().find(model).is_some() && hub.cache().get(model).is_none() {
        note!("{} is not here yet: pulling it", escape(model));
    }
    Ok(hub.resolve(model, &mut Report::new())?)
}

/// The sampling settings that the catalogue has for MODEL.
pub(crate) fn sampling(model: &str) -> Result<Sampling> {
    if moli_hub::is_path(model) {
        return Ok(Sampling::default());
    }
    let hub = Hub::new(HubConfig::from_env()?);
    Ok(hub.catalogue().find(model).map(|entry| entry.sampling).unwrap_or_default())
}

/// Loads MODEL, with the draft model where one is named and with adapters, and a context of so many tokens; `None`: the model's, within
/// reason, 0: the model's. What had to be made smaller to fit is said.
pub(crate) fn engine(
    model: &str,
    draft: Option<&str>,
    context: Option<usize>,
    compute: &ComputeArgs,
    lora: &LoraArgs,
) -> Result<Engine> {
    let draft = draft.map(resolve).transpose()?;
    engine_with(
        model,
        context,
        compute,
        EngineOptions { draft, adapters: lora.adapters(), ..compute.engine_options() },
    )
}

/// The same for many short texts, so many of which are computed together.
pub(crate) fn engine_for_texts(
    model: &str,
    context: Option<usize>,
    compute: &ComputeArgs,
    together: usize,
) -> Result<Engine> {
    let options = compute.engine_options();
    let scheduling = Scheduling { max_batch: together, ..options.scheduling };
    engine_with(model, context, compute, EngineOptions { scheduling, ..options })
}

fn engine_with(
    model: &str,
    context: Option<usize>,
    compute: &ComputeArgs,
    options: EngineOptions,
) -> Result<Engine> {
    // Before the threads are counted and started.
    if let Some(cpus) = &compute.cpu_affinity {
        affinity::restrict(cpus)?;
    }
    let path = resolve(model)?;
    let shown = || escape(&path.display().to_string()).into_owned();
    let context = context_of(&path, context).with_context(shown)?;
    let options = EngineOptions { context, backend: compute.backend()?, ..options };
    if let Some(mixture) = options.quantize {
        note!("quantising the weights to {mixture}");
    }
    let engine = compute.load(&path, &options).with_context(shown)?;
    if let Some(plan) = engine.plan() {
        let limit = plan.limit.as_ref().map(ToString::to_string).unwrap_or_default();
        plan.changes.iter().for_each(|change| note!("to fit {}: {change}", escape(&limit)));
    }
    Ok(engine)
}

/// [`context`] of a file, which is opened only where it has to say.
pub(crate) fn context_of(path: &Path, context: Option<usize>) -> Result<Option<usize>> {
    match context {
        Some(0) => self::context(&Gguf::open(path, ReadMode::Map)?, context),
        context => Ok(context),
    }
}

/// A context as it is asked for: 0 is what the file says that its model was trained for.
pub(crate) fn context(gguf: &Gguf, context: Option<usize>) -> Result<Option<usize>> {
    if context != Some(0) {
        return Ok(context);
    }
    Ok(gguf.metadata().context_length()?.and_then(|n| usize::try_from(n).ok()))
}
