//! `moli inspect`.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use anyhow::{Context, Result};
use clap::Args;
use moli_engine::{EngineError, MemoryPlan, PlanOptions};
use moli_format::{Gguf, Metadata, ReadMode};
use moli_model::{BackendKind, Config, KvType, LoadOptions, PAGE_TOKENS, RecurrentKind};
use moli_text::{ChatTemplate, Tokenizer};
use serde::Serialize;

use crate::cli::Exit;
use crate::failure;
use crate::load;
use crate::options::MemoryArgs;
use crate::output::{Answers, bytes, count, escape};

/// Say what a model file is, what it costs and whether this build runs it
#[derive(Debug, Args)]
pub(crate) struct Inspect {
    /// A model file or a name of the catalogue
    #[arg(value_name = "MODEL")]
    model: String,
    /// Context in tokens to compute the memory for; 0: all that the model was trained for
    /// [default: the model's, at most 4096]
    #[arg(short, long, value_name = "N")]
    context: Option<usize>,
    /// Sessions to compute the memory for: so many contexts can be full at the same time
    #[arg(long, value_name = "N", default_value = "1")]
    sessions: usize,
    #[command(flatten)]
    memory: MemoryArgs,
    /// List the tensors too
    #[arg(long)]
    tensors: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// The answer, as `--json` prints it. What the file does not say is null.
#[derive(Debug, Serialize)]
struct Report {
    path: String,
    /// Bytes of all the model's files.
    size: u64,
    files: usize,
    /// What the model comes in: "GGUF" or "Hugging Face folder".
    container: &'static str,
    /// The version that it has, or would have as a GGUF.
    gguf_version: u32,
    architecture: Option<String>,
    name: Option<String>,
    parameters: u64,
    bits_per_weight: f64,
    types: Vec<TypeShare>,
    /// How a folder has its weights packed, and what that became here.
    unpacked: Option<String>,
    config: Option<Shape>,
    tokenizer: TokenizerReport,
    chat_template: bool,
    chat_template_error: Option<String>,
    /// Which template a chat uses, and why.
    chat_template_used: Option<String>,
    memory: Option<Memory>,
    /// Why the model does not fit, or no memory can be computed.
    memory_error: Option<String>,
    supported: bool,
    /// Why this build does not run it.
    reason: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tensors: Option<Vec<TensorReport>>,
}

#[derive(Debug, Serialize)]
struct TypeShare {
    r#type: &'static str,
    tensors: usize,
    parameters: u64,
    bytes: u64,
}

#[derive(Debug, Serialize)]
struct Shape {
    context: usize,
    layers: usize,
    hidden: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    ffn: usize,
    vocab: usize,
    /// Tokens that a layer with a sliding window sees.
    window: Option<usize>,
    /// Layers that carry a state instead of keys and values.
    recurrent: Option<RecurrentLayers>,
}

#[derive(Debug, Serialize)]
struct RecurrentLayers {
    layers: usize,
    kind: &'static str,
    /// Bytes of the state of a sequence, in all of them.
    state: u64,
}

#[derive(Debug, Serialize)]
struct TokenizerReport {
    kind: Option<String>,
    pre: Option<String>,
    tokens: Option<usize>,
}

/// The memory plan. Sizes are in bytes.
#[derive(Debug, Serialize)]
struct Memory {
    context: usize,
    sessions: usize,
    kv_type: &'static str,
    prefix_cache: u64,
    total: u64,
    parts: Vec<Part>,
    limit: Option<u64>,
    limit_source: Option<String>,
    /// What was made smaller to fit, in words.
    changes: Vec<String>,
    /// For a person.
    #[serde(skip)]
    table: String,
}

#[derive(Debug, Serialize)]
struct Part {
    name: &'static str,
    bytes: u64,
    note: String,
}

#[derive(Debug, Serialize)]
struct TensorReport {
    name: String,
    r#type: &'static str,
    /// The contiguous dimension first.
    dims: Vec<u64>,
    bytes: usize,
}

impl Inspect {
    pub(crate) fn run(self) -> Result<Exit> {
        let path = load::resolve(&self.model)?;
        let gguf = Gguf::open(&path, ReadMode::Map).with_context(|| path.display().to_string())?;
        let mut report = report(&gguf, path.display().to_string());
        let options = PlanOptions {
            context: load::context(&gguf, self.context)?,
            ..self.memory.plan_options(self.sessions)
        };
        // Of a model that the decoder does not know, nothing is known.
        if report.config.is_some() {
            let planned = MemoryPlan::of(&gguf, &options);
            report.memory_error = planned.as_ref().err().map(ToString::to_string);
            let plan = match planned {
                Err(EngineError::DoesNotFit(_)) => MemoryPlan::unlimited(&gguf, &options),
                planned => planned,
            };
            report.memory = plan.ok().map(Memory::from);
        }
        if self.tensors {
            report.tensors = Some(gguf.tensors().map(tensor).collect());
        }
        Answers::new().report(self.json, &report, Report::describe)?;
        Ok(Exit::Done)
    }
}

impl From<MemoryPlan> for Memory {
    fn from(plan: MemoryPlan) -> Self {
        Self {
            table: plan.to_string(),
            context: plan.context,
            sessions: plan.sessions,
            kv_type: plan.kv_type.name(),
            prefix_cache: plan.prefix_cache_bytes,
            total: plan.total_bytes,
            parts: plan
                .rows
                .into_iter()
                .map(|row| Part { name: row.name, bytes: row.bytes, note: row.note })
                .collect(),
            limit_source: plan.limit.as_ref().map(ToString::to_string),
            limit: plan.limit.map(|limit| limit.bytes),
            changes: plan.changes.iter().map(ToString::to_string).collect(),
        }
    }
}

fn tensor(tensor: &moli_format::Tensor) -> TensorReport {
    TensorReport {
        name: tensor.name.clone(),
        r#type: tensor.ttype.name(),
        dims: tensor.dims.clone(),
        bytes: tensor.data.len(),
    }
}

fn report(gguf: &Gguf, path: String) -> Report {
    let metadata = gguf.metadata();
    let mut shares: BTreeMap<&'static str, TypeShare> = BTreeMap::new();
    for tensor in gguf.tensors() {
        let name = tensor.ttype.name();
        let share =
            shares.entry(name).or_insert(TypeShare { r#type: name, tensors: 0, parameters: 0, bytes: 0 });
        share.tensors += 1;
        share.parameters += tensor.elements() as u64;
        share.bytes += tensor.data.len() as u64;
    }
    let mut types: Vec<_> = shares.into_values().collect();
    types.sort_by_key(|share| std::cmp::Reverse(share.bytes));
    let parameters: u64 = types.iter().map(|share| share.parameters).sum();
    let weights: u64 = types.iter().map(|share| share.bytes).sum();

    let vocab = gguf.tensor("token_embd.weight").map_or(0, moli_format::Tensor::rows);
    let config = Config::from_metadata(metadata, vocab);
    let used = Tokenizer::from_gguf(metadata)
        .and_then(|tokenizer| ChatTemplate::for_model(metadata, &tokenizer))
        .ok()
        .flatten();
    let reason = unsupported(gguf).map(|error| failure::one_line(&error));
    Report {
        path,
        size: gguf.file_bytes(),
        files: gguf.paths().len(),
        container: match metadata.get("tokenizer.huggingface.folder") {
            Some(_) => "Hugging Face folder",
            None => "GGUF",
        },
        gguf_version: gguf.version(),
        architecture: text(metadata, "general.architecture"),
        name: text(metadata, "general.name"),
        parameters,
        bits_per_weight: if parameters == 0 { 0.0 } else { weights as f64 * 8.0 / parameters as f64 },
        types,
        unpacked: text(metadata, "moli.unpacked"),
        config: config.ok().map(|config| Shape {
            context: config.context_train,
            layers: config.layers,
            hidden: config.hidden,
            heads: config.heads,
            kv_heads: config.kv_heads,
            head_dim: config.head_dim,
            ffn: config.ffn.iter().copied().max().unwrap_or(0),
            vocab: config.vocab,
            window: config.window.as_ref().map(|window| window.tokens),
            recurrent: config.recurrent.as_ref().map(|recurrent| RecurrentLayers {
                layers: recurrent.count(),
                kind: match recurrent.kind {
                    RecurrentKind::ShortConv { .. } => "short convolutions",
                    RecurrentKind::DeltaNet { .. } => "gated delta nets",
                },
                state: config.state_bytes(),
            }),
        }),
        tokenizer: tokenizer(metadata),
        chat_template: metadata.get("tokenizer.chat_template").is_some(),
        chat_template_error: ChatTemplate::from_gguf(metadata).err().map(|error| error.to_string()),
        chat_template_used: used.map(|template| template.origin().to_string()),
        memory: None,
        memory_error: None,
        supported: reason.is_none(),
        reason,
        tensors: None,
    }
}

/// What the metadata says of the tokenizer: the lists of a GGUF, or the file of a folder.
fn tokenizer(metadata: &Metadata) -> TokenizerReport {
    if metadata.get("tokenizer.huggingface.json").is_some() {
        let tokens = Tokenizer::from_gguf(metadata).ok().map(|tokenizer| tokenizer.vocab_size());
        return TokenizerReport { kind: Some("tokenizer.json".to_owned()), pre: None, tokens };
    }
    TokenizerReport {
        kind: text(metadata, "tokenizer.ggml.model"),
        pre: text(metadata, "tokenizer.ggml.pre"),
        tokens: metadata.strings_opt("tokenizer.ggml.tokens").ok().flatten().map(|tokens| tokens.len()),
    }
}

/// Why this build cannot run the model, found out by loading it with the smallest context that there is.
fn unsupported(gguf: &Gguf) -> Option<anyhow::Error> {
    let options =
        LoadOptions { threads: 1, isa: None, context: PAGE_TOKENS, max_rows: 1, kv_type: KvType::F16 };
    let vocab = gguf.tensor("token_embd.weight").map_or(0, moli_format::Tensor::rows);
    // The architecture first: what else is wrong with a file of another one says little.
    let tried = Config::from_metadata(gguf.metadata(), vocab)
        .and_then(|_| moli_model::load(gguf, BackendKind::Cpu, &options))
        .map_err(anyhow::Error::from)
        .and_then(|_| Ok(Tokenizer::from_gguf(gguf.metadata())?));
    tried.err()
}

fn text(metadata: &Metadata, key: &str) -> Option<String> {
    metadata.str_opt(key).ok().flatten().map(str::to_owned)
}

impl Report {
    /// The report for a person.
    fn describe(&self) -> String {
        let mut lines = Vec::new();
        let mut line = |label: &str, value: String| lines.push(format!("{label:14} {value}"));
        let or_unknown = |text: &Option<String>| text.clone().unwrap_or_else(|| "?".to_owned());

        let container = match self.container {
            "GGUF" => format!("GGUF v{}", self.gguf_version),
            folder => folder.to_owned(),
        };
        line("file", format!("{} ({}, {container})", escape(&self.path), self.files()));
        line("name", escape(&or_unknown(&self.name)).into_owned());
        line("architecture", escape(&or_unknown(&self.architecture)).into_owned());
        line("parameters", format!("{}, {:.2} bits each", count(self.parameters), self.bits_per_weight));
        let mut label = "weights";
        for share in &self.types {
            let plural = if share.tensors == 1 { "" } else { "s" };
            line(
                label,
                format!("{:8} {:>9} in {} tensor{plural}", share.r#type, bytes(share.bytes), share.tensors),
            );
            label = "";
        }
        if let Some(unpacked) = &self.unpacked {
            line("packed by", escape(unpacked).into_owned());
        }
        if let Some(shape) = &self.config {
            line("context", format!("{} tokens", shape.context));
            line("layers", shape.layers.to_string());
            if let Some(recurrent) = &shape.recurrent {
                let RecurrentLayers { layers, kind, state } = recurrent;
                line(
                    "",
                    format!("{layers} of them {kind}, with a state of {} for each sequence", bytes(*state)),
                );
            }
            line("hidden", format!("{}, {} in the feed-forward network", shape.hidden, shape.ffn));
            let (heads, kv) = (shape.heads, shape.kv_heads);
            line("heads", format!("{heads}, {kv} for keys and values, {} wide", shape.head_dim));
            if let Some(window) = shape.window {
                line("window", format!("{window} tokens in some layers"));
            }
        }
        let tokenizer = &self.tokenizer;
        let kind = or_unknown(&tokenizer.kind);
        let pre = tokenizer.pre.as_ref().map(|pre| format!(", {pre}")).unwrap_or_default();
        let tokens = tokenizer.tokens.map(|n| format!(", {n} tokens")).unwrap_or_default();
        line("tokenizer", escape(&format!("{kind}{pre}{tokens}")).into_owned());
        let template = match (&self.chat_template_error, self.chat_template) {
            (_, false) | (Some(_), _) if self.chat_template_used.is_some() => {
                escape(&or_unknown(&self.chat_template_used)).into_owned()
            }
            (Some(error), _) => format!("cannot be used: {}", escape(error)),
            (None, true) => "yes".to_owned(),
            (None, false) => "no".to_owned(),
        };
        line("chat template", template);
        line(
            "runs here",
            match &self.reason {
                None => "yes".to_owned(),
                Some(reason) => format!("no: {}", escape(reason)),
            },
        );
        let mut text = lines.join("\n");
        text.push('\n');
        if self.memory.is_some() || self.memory_error.is_some() {
            text.push_str("\nmemory\n");
        }
        // Writing to a string cannot fail.
        for part in [self.memory.as_ref().map(|memory| &memory.table), self.memory_error.as_ref()]
            .into_iter()
            .flatten()
        {
            let _ = writeln!(text, "{part}");
        }
        if let Some(tensors) = &self.tensors {
            text.push('\n');
            for tensor in tensors {
                let dims = tensor.dims.iter().map(u64::to_string).collect::<Vec<_>>().join(" x ");
                let (kind, size) = (tensor.r#type, bytes(tensor.bytes as u64));
                let _ = writeln!(text, "{kind:8} {size:>9}  {dims:>16}  {}", escape(&tensor.name));
            }
        }
        text
    }

    fn files(&self) -> String {
        match self.files {
            0 | 1 => bytes(self.size),
            files => format!("{} in {files} files", bytes(self.size)),
        }
    }
}
