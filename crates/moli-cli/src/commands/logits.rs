//! `moli logits`.

use std::fmt::Write as _;
use std::num::NonZeroUsize;

use anyhow::{Context, Result, bail};
use clap::{ArgGroup, Args};
use moli_engine::EngineError;
use moli_format::{Gguf, ReadMode};
use moli_model::{Batch, Device, KvType, LoadOptions, MAX_OUTPUTS, Runtime, pages_of};
use moli_text::{EncodeOptions, Tokenizer};

use crate::affinity::{self, CpuList, cpu_list};
use crate::cli::Exit;
use crate::load;
use crate::options::backend;
use crate::output::{Answers, escape};

/// Tokens that are computed together while few logits are wanted.
const CHUNK: usize = 512;
/// Tokens that are shown for each position without `--json`.
const SHOWN: usize = 10;

/// Print a model's logits after the tokens of a text
#[derive(Debug, Args)]
#[command(group(ArgGroup::new("input").required(true)))]
pub(crate) struct Logits {
    /// A model file or a name of the catalogue
    #[arg(value_name = "MODEL")]
    model: String,
    /// The tokens' ids, such as 1,2,3; the model needs no tokenizer then
    #[arg(long, value_name = "IDS", value_delimiter = ',', allow_hyphen_values = true, group = "input")]
    ids: Option<Vec<u32>>,
    /// A text; the tokens that the model wants at the beginning and the end are added
    #[arg(short, long, value_name = "TEXT", allow_hyphen_values = true, group = "input")]
    prompt: Option<String>,
    /// The tokens after which: last, all, or a list of positions from 0, such as 0,5,9
    #[arg(long, value_name = "LIST", default_value = "last", value_parser = positions, allow_hyphen_values = true)]
    positions: Positions,
    /// What computes: cpu; cuda:N, the NVIDIA GPU of this number; or auto, a GPU if one can be used
    #[arg(long, value_name = "DEVICE", default_value_t)]
    device: Device,
    /// Print {"ids": [...], "positions": [...], "logits": [[...], ...]}, positions rising, each row with all the vocabulary
    #[arg(long)]
    json: bool,
    /// Threads that compute [default: one for each core, the fast ones where they differ]
    #[arg(short, long, value_name = "N")]
    threads: Option<NonZeroUsize>,
    /// Run on these processors only, such as 0-3,8 (Linux)
    #[arg(long, value_name = "LIST", value_parser = cpu_list, allow_negative_numbers = true)]
    cpu_affinity: Option<CpuList>,
    /// How keys and values are stored: f32, f16 as `moli run` has them, or q8_0
    #[arg(long, value_name = "TYPE", default_value = "f32")]
    kv_type: KvType,
}

/// Places whose logits are wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Positions {
    Last,
    All,
    List(Vec<usize>),
}

impl Logits {
    pub(crate) fn run(self) -> Result<Exit> {
        // Before the threads are counted and started.
        if let Some(cpus) = &self.cpu_affinity {
            affinity::restrict(cpus)?;
        }
        let path = load::resolve(&self.model)?;
        let shown = || escape(&path.display().to_string()).into_owned();
        let gguf = Gguf::open(&path, ReadMode::Map).with_context(shown)?;
        let mut ids = self.ids.unwrap_or_default();
        let tokenizer = match (self.prompt, Tokenizer::from_gguf(gguf.metadata())) {
            (None, tokenizer) => tokenizer.ok(),
            (Some(text), tokenizer) => {
                // Control tokens that the text happens to spell out are text here.
                let options = EncodeOptions { add_special: true, parse_special: false };
                let tokenizer = tokenizer.with_context(shown)?;
                ids = tokenizer.encode(&text, options)?;
                Some(tokenizer)
            }
        };
        if ids.is_empty() {
            return Err(EngineError::EmptyPrompt.into());
        }
        let wanted = self.positions.of(ids.len())?;
        let options = LoadOptions {
            threads: self.threads.map_or_else(moli_kernels::default_threads, NonZeroUsize::get),
            isa: None,
            context: ids.len(),
            max_rows: CHUNK.min(ids.len()),
            kv_type: self.kv_type,
        };
        let mut runtime = moli_model::load(&gguf, backend(self.device)?, &options).with_context(shown)?;
        check(&ids, runtime.as_ref())?;

        let mut answers = Answers::new();
        if self.json {
            answers.text(&format!(r#"{{"ids":{},"positions":{},"logits":["#, json(&ids)?, json(&wanted)?))?;
        }
        let mut first = true;
        each(runtime.as_mut(), &ids, &wanted, |position, logits| {
            if self.json {
                let comma = if first { "" } else { "," };
                answers.text(&format!("{comma}{}", json(logits)?))?;
            } else {
                let space = if first { "" } else { "\n" };
                let table = table(position, &ids, logits, tokenizer.as_ref());
                answers.text(&format!("{space}{table}"))?;
            }
            first = false;
            Ok(())
        })?;
        if self.json {
            answers.text("]}\n")?;
        }
        Ok(Exit::Done)
    }
}

impl Positions {
    /// The places among so many tokens, rising.
    fn of(&self, tokens: usize) -> Result<Vec<usize>> {
        Ok(match self {
            Self::Last => vec![tokens.saturating_sub(1)],
            Self::All => (0..tokens).collect(),
            Self::List(list) => {
                if let Some(position) = list.iter().find(|&&position| position >= tokens) {
                    bail!("position {position} is not below the number of tokens, {tokens}");
                }
                let mut list = list.clone();
                list.sort_unstable();
                list.dedup();
                list
            }
        })
    }
}

/// What must be right with the tokens before anything is computed or printed.
fn check(ids: &[u32], runtime: &dyn Runtime) -> Result<()> {
    let (vocab, context) = (runtime.config().vocab, runtime.config().context_train);
    if let Some(&id) = ids.iter().find(|id| **id as usize >= vocab) {
        return Err(EngineError::TokenOutOfVocabulary { id, vocab }.into());
    }
    if ids.len() > context {
        bail!("there are {} tokens, and the model was trained for {context}", ids.len());
    }
    Ok(())
}

/// Computes the tokens and hands over the logits, `[vocab]`, after each of the places.
fn each(
    runtime: &mut dyn Runtime,
    ids: &[u32],
    wanted: &[usize],
    mut row: impl FnMut(usize, &[f32]) -> Result<()>,
) -> Result<()> {
    let pages: Vec<u32> = (0..u32::try_from(pages_of(ids.len()))?).collect();
    let vocab = runtime.config().vocab;
    // The bits of a row are the same however the tokens are cut.
    let chunk = if wanted.len() > MAX_OUTPUTS { MAX_OUTPUTS } else { runtime.max_rows() };
    let mut wanted = wanted.iter().copied().peekable();
    for (index, tokens) in ids.chunks(chunk).enumerate() {
        // What follows the last place isn't computed.
        if wanted.peek().is_none() {
            break;
        }
        let start = index * chunk;
        let places: Vec<usize> =
            std::iter::from_fn(|| wanted.next_if(|&place| place < start + tokens.len())).collect();
        let positions = numbers(start..start + tokens.len())?;
        let outputs = numbers(places.iter().map(|place| place - start))?;
        let batch = Batch {
            tokens,
            positions: &positions,
            sequences: &vec![0; tokens.len()],
            types: &[],
            tables: &[&pages],
            adapters: &[],
            recurrent: &[],
            outputs: &outputs,
            states: &[],
        };
        let logits = runtime.forward(&batch)?.logits;
        for (place, logits) in places.into_iter().zip(logits.chunks_exact(vocab)) {
            row(place, logits)?;
        }
    }
    Ok(())
}

fn numbers(places: impl IntoIterator<Item = usize>) -> Result<Vec<u32>> {
    Ok(places.into_iter().map(u32::try_from).collect::<Result<_, _>>()?)
}

/// The likeliest tokens after a position, for a person.
fn table(position: usize, ids: &[u32], logits: &[f32], tokenizer: Option<&Tokenizer>) -> String {
    let quoted = |id: u32| {
        let text = tokenizer.and_then(|tokenizer| tokenizer.token_text(id));
        text.map(|text| format!("  '{}'", escape(&text))).unwrap_or_default()
    };
    let id = ids.get(position).copied().unwrap_or_default();
    let mut text = format!("position {position}, after {id}{}\n", quoted(id));
    let mut order: Vec<(u32, f32)> = (0..).zip(logits.iter().copied()).collect();
    // Among equals the lower id comes first.
    order.sort_by(|a, b| b.1.total_cmp(&a.1));
    for (id, logit) in order.into_iter().take(SHOWN) {
        let _ = writeln!(text, "{logit:>12.5}  {id:>6}{}", quoted(id));
    }
    text
}

fn json(value: &(impl serde::Serialize + ?Sized)) -> Result<String> {
    serde_json::to_string(value).context("cannot write JSON")
}

fn positions(text: &str) -> Result<Positions, String> {
    match text {
        "last" => Ok(Positions::Last),
        "all" => Ok(Positions::All),
        list => {
            let numbers = list.split(',').map(|number| {
                number
                    .parse()
                    .map_err(|_| format!("`{number}` is no position: last, all or numbers are needed"))
            });
            numbers.collect::<Result<_, _>>().map(Positions::List)
        }
    }
}
