//! From MODEL, as a person types it, to a file and an engine.

use std::path::PathBuf;

use anyhow::{Context, Result};
use moli_engine::{Engine, MemoryPlan, PlanOptions};
use moli_format::{Gguf, ReadMode};
use moli_hub::{Hub, HubConfig, Sampling};
use moli_model::MAX_OUTPUTS;

use crate::affinity;
use crate::options::ComputeArgs;
use crate::output::{escape, note};
use crate::progress::Report;

/// The file of MODEL, which is pulled when it is not here yet.
pub(crate) fn resolve(model: &str) -> Result<PathBuf> {
    // A file needs no configuration and no home folder.
    if moli_hub::is_path(model) {
        return Ok(PathBuf::from(model));
    }
    let hub = Hub::new(HubConfig::from_env()?);
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

/// Loads MODEL with a context of so many tokens, `None`: the model's, within reason, 0: the model's. What had to be made
/// smaller to fit is said.
pub(crate) fn engine(
    model: &str,
    context: Option<usize>,
    compute: &ComputeArgs,
) -> Result<(Engine, MemoryPlan)> {
    load(model, context, compute, None)
}

/// Loads MODEL to score texts in pieces of so many tokens.
pub(crate) fn scorer(model: &str, context: usize, compute: &ComputeArgs) -> Result<Engine> {
    Ok(load(model, Some(context), compute, Some(MAX_OUTPUTS))?.0)
}

fn load(
    model: &str,
    context: Option<usize>,
    compute: &ComputeArgs,
    outputs: Option<usize>,
) -> Result<(Engine, MemoryPlan)> {
    // Before the threads are counted and started.
    if let Some(cpus) = &compute.cpu_affinity {
        affinity::restrict(cpus)?;
    }
    let path = resolve(model)?;
    let shown = || escape(&path.display().to_string()).into_owned();
    let mut options = compute.engine_options();
    let plan = {
        let gguf = Gguf::open(&path, ReadMode::Map).with_context(shown)?;
        let planned =
            PlanOptions { context: self::context(&gguf, context)?, outputs, ..compute.plan_options() };
        MemoryPlan::of(&gguf, &planned).with_context(shown)?
    };
    let limit = plan.limit.as_ref().map(ToString::to_string).unwrap_or_default();
    plan.changes.iter().for_each(|change| note!("to fit {}: {change}", escape(&limit)));
    options.context = Some(plan.context);
    options.kv_type = plan.kv_type;
    Ok((Engine::load(&path, &options).with_context(shown)?, plan))
}

/// A context as it is asked for: 0 is what the file says that its model was trained for.
pub(crate) fn context(gguf: &Gguf, context: Option<usize>) -> Result<Option<usize>> {
    if context != Some(0) {
        return Ok(context);
    }
    let metadata = gguf.metadata();
    let key = format!("{}.context_length", metadata.architecture()?);
    Ok(metadata.u64_opt(&key)?.and_then(|n| usize::try_from(n).ok()))
}
