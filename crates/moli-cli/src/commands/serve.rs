//! `moli serve`.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::Args;
use moli_engine::{AdapterFile, BackendKind, Engine, EngineOptions, MemoryBudget, memory_limit};
use moli_server::{ModelSpec, Server, ServerOptions};

use super::doors::DoorArgs;
use crate::affinity;
use crate::cli::Exit;
use crate::failure::UsageError;
use crate::load;
use crate::logging::{self, LogFormat};
use crate::options::{ComputeArgs, DEFAULT_MODEL, SamplingArgs};
use crate::output::{escape, note};

/// Serve models over HTTP: the APIs of OpenAI, Ollama and Anthropic, and a page for a browser
#[derive(Debug, Args)]
pub(crate) struct Serve {
    /// A model file, a name of the catalogue, a repository or a URL; it is loaded at once and stays loaded
    /// [default: smollm2-135m-instruct, where no --model is given]
    #[arg(value_name = "MODEL")]
    model: Option<String>,
    /// A further model under a name of its own, loaded when it is asked for (repeatable)
    #[arg(long = "model", value_name = "NAME=MODEL", value_parser = named)]
    models: Vec<(String, String)>,
    /// A LoRA adapter of MODEL, or of the further model NAME: clients choose it by the model's name, a colon and its own, or by
    /// the field lora of a request (repeatable)
    #[arg(long, value_name = "[NAME:]ADAPTER=FILE", value_parser = named)]
    lora: Vec<(String, String)>,
    #[command(flatten)]
    listen: ListenArgs,
    #[command(flatten)]
    doors: DoorArgs,
    #[command(flatten)]
    share: ShareArgs,
    /// Context of an answer in tokens, prompt and answer together; 0: all that the model was trained for
    /// [default: the model's, at most 4096]
    #[arg(short, long, value_name = "N", help_heading = "Model and memory")]
    context: Option<usize>,
    #[command(flatten)]
    compute: ComputeArgs,
    /// Sampling where a request says nothing of it
    #[command(flatten)]
    sampling: SamplingArgs,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Connections")]
struct ListenArgs {
    /// Address to listen at
    #[arg(long, value_name = "ADDRESS", default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST))]
    host: IpAddr,
    /// Port to listen at; 0: one that is free, which is said
    #[arg(long, value_name = "PORT", default_value = "8080")]
    port: u16,
    /// Ignore unknown fields of requests, and name them in the header moli-ignored, instead of refusing them
    #[arg(long)]
    lenient: bool,
    /// Most bytes of a request, such as 8MiB
    #[arg(long, value_name = "SIZE", default_value = "8MiB")]
    max_body: MemoryBudget,
    /// Seconds that answers under way have to finish when the server is told to stop
    #[arg(long, value_name = "SECONDS", default_value = "30")]
    grace: u64,
    /// Fetch nothing: a model that is not here is an error
    #[arg(long)]
    offline: bool,
    /// How the log is written to standard error, a line for each request; MOLI_LOG=warn has less of it
    #[arg(long, value_name = "FORMAT", value_enum, default_value_t = LogFormat::Text)]
    log_format: LogFormat,
    /// Have the log say what is asked, which it does not otherwise
    #[arg(long)]
    log_prompts: bool,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Sharing")]
struct ShareArgs {
    /// Answers of a model that are computed together; further ones wait
    #[arg(long, value_name = "N", default_value = "8")]
    parallel: usize,
    /// Answers of a model that may wait; the next is refused at once [default: as many as --parallel]
    #[arg(long, value_name = "N")]
    queue: Option<usize>,
    /// Full contexts that there is memory for; shorter answers share it
    #[arg(long, value_name = "N", default_value = "2")]
    sessions: usize,
    /// Seconds after which a model of --model that nobody uses is unloaded; 0: never
    #[arg(long, value_name = "SECONDS", default_value = "300")]
    unload_after: u64,
}

/// Parses `NAME=MODEL`.
fn named(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, model)) if !name.is_empty() && !model.is_empty() => {
            Ok((name.to_owned(), model.to_owned()))
        }
        _ => Err("NAME=MODEL is needed".to_owned()),
    }
}

impl Serve {
    pub(crate) fn run(self) -> Result<Exit> {
        logging::start(self.listen.log_format);
        // Before the threads are counted and started.
        if let Some(cpus) = &self.compute.cpu_affinity {
            affinity::restrict(cpus)?;
        }
        let first = self.model.clone().or_else(|| self.models.is_empty().then(|| DEFAULT_MODEL.to_owned()));
        for (adapter, _) in &self.lora {
            match adapter.rsplit_once(':') {
                None if first.is_none() => {
                    return Err(
                        UsageError("--lora NAME:ADAPTER=FILE says of which --model it is".into()).into()
                    );
                }
                Some((model, _)) if !self.models.iter().any(|(name, _)| name == model) => {
                    bail!("--lora {}: there is no --model {}", escape(adapter), escape(model));
                }
                _ => {}
            }
        }
        let backend = self.compute.backend()?;
        let mut models = Vec::new();
        if let Some(model) = first {
            let spec = self.spec(&name(&model), &model, self.adapters(None), backend)?;
            models.push(ModelSpec { keep: true, ..spec });
        }
        for (name, model) in &self.models {
            models.push(self.spec(name, model, self.adapters(Some(name)), backend)?);
        }
        let MemoryBudget::Bytes(max_body) = self.listen.max_body else {
            return Err(UsageError("--max-body is a size such as 8MiB".into()).into());
        };
        let options = ServerOptions {
            address: SocketAddr::new(self.listen.host, self.listen.port),
            models,
            memory: memory_limit(backend, self.compute.memory_budget())?.map(|limit| limit.bytes),
            unload_after: (self.share.unload_after > 0).then(|| Duration::from_secs(self.share.unload_after)),
            lenient: self.listen.lenient,
            max_body: usize::try_from(max_body).unwrap_or(usize::MAX),
            grace: Duration::from_secs(self.listen.grace),
            log_prompts: self.listen.log_prompts,
            ..self.doors.options(self.listen.host)?
        };
        let names: Vec<&str> = options.models.iter().map(|model| model.name.as_str()).collect();
        let names = names.join(", ");
        let scheme = if options.tls.is_some() { "https" } else { "http" };
        let server = Server::bind(options)?;
        note!("serving {} at {scheme}://{}", escape(&names), server.address());
        if let Some(health) = server.health_address() {
            note!("answering /health at http://{health}");
        }
        server.run()?;
        Ok(Exit::Done)
    }

    /// The adapters of a further model; `None`: of the first.
    fn adapters(&self, model: Option<&str>) -> Vec<AdapterFile> {
        let of = |(name, path): &(String, String)| {
            let (own, adapter) = match name.rsplit_once(':') {
                Some((model, adapter)) => (Some(model), adapter),
                None => (None, name.as_str()),
            };
            (own == model).then(|| AdapterFile { name: adapter.to_owned(), path: path.into(), scale: 0.0 })
        };
        self.lora.iter().filter_map(of).collect()
    }

    /// How a model is loaded. What is not here yet is fetched now, not when somebody waits for it.
    fn spec(
        &self,
        name: &str,
        model: &str,
        adapters: Vec<AdapterFile>,
        backend: BackendKind,
    ) -> Result<ModelSpec> {
        let path = load::resolve_within(model, self.listen.offline)?;
        let share = &self.share;
        let options = self.compute.shared_options(
            share.sessions,
            share.parallel,
            share.queue.unwrap_or(share.parallel),
        );
        let context = load::context_of(&path, self.context)
            .with_context(|| escape(&path.display().to_string()).into_owned())?;
        let names = adapters.iter().map(|adapter| adapter.name.clone()).collect();
        let options = EngineOptions { context, adapters, backend, ..options };
        let file: PathBuf = path.clone();
        let load = move |memory_budget: Option<MemoryBudget>| {
            Engine::load(&file, &EngineOptions { memory_budget, ..options.clone() })
        };
        let sampling = self.sampling.sampler_params(&load::sampling(model)?);
        Ok(ModelSpec { sampling, path: Some(path), adapters: names, ..ModelSpec::new(name, Arc::new(load)) })
    }
}

/// What clients call a model that was given no name: its catalogue name, or its file's without the ending.
fn name(model: &str) -> String {
    if !moli_hub::is_path(model) {
        return model.to_owned();
    }
    let path = std::path::Path::new(model);
    let stem = if path.is_dir() { path.file_name() } else { path.file_stem() };
    stem.map_or_else(|| model.to_owned(), |stem| stem.to_string_lossy().into_owned())
}
