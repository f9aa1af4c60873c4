//! `moli embed`.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::num::NonZeroUsize;
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use moli_engine::{CancelToken, EmbedOptions, Embedding, Pooling};
use serde::Serialize;

use crate::cli::Exit;
use crate::options::ComputeArgs;
use crate::output::Answers;
use crate::{load, text_input};

/// Texts that are with the engine at the same time.
pub(super) const TOGETHER: usize = 32;

/// Turn texts into embeddings
#[derive(Debug, Args)]
pub(crate) struct Embed {
    /// A model file or folder, or a name of the catalogue
    #[arg(value_name = "MODEL")]
    model: String,
    /// The texts [default: the lines of standard input]
    #[arg(value_name = "TEXT")]
    texts: Vec<String>,
    /// Take the lines of a file as texts
    #[arg(short, long, value_name = "FILE", conflicts_with = "texts")]
    file: Option<PathBuf>,
    /// Put one of the model's own prompts before each text, such as query
    #[arg(long, value_name = "NAME")]
    prompt_name: Option<String>,
    /// Put this before each text
    #[arg(long, value_name = "TEXT", conflicts_with = "prompt_name", allow_hyphen_values = true)]
    prefix: Option<String>,
    /// How tokens become one vector [default: as the model says]
    #[arg(long, value_name = "HOW")]
    pooling: Option<PoolingArg>,
    /// Leave vectors as long as they are
    #[arg(long)]
    no_normalize: bool,
    /// Keep the first N elements, of a model that was trained for it
    #[arg(long, value_name = "N")]
    dimensions: Option<NonZeroUsize>,
    /// Cut texts that are longer than the context
    #[arg(long)]
    truncate: bool,
    /// text: a line of numbers for each; json: one object; jsonl: an object for each
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    format: Format,
    /// Context in tokens; 0: all that the model was trained for [default: the model's, at most 4096]
    #[arg(short, long, value_name = "N", help_heading = "Model and memory")]
    context: Option<usize>,
    #[command(flatten)]
    compute: ComputeArgs,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum PoolingArg {
    Mean,
    Cls,
    Last,
}

impl From<PoolingArg> for Pooling {
    fn from(pooling: PoolingArg) -> Self {
        match pooling {
            PoolingArg::Mean => Self::Mean,
            PoolingArg::Cls => Self::Cls,
            PoolingArg::Last => Self::Last,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    Text,
    Json,
    Jsonl,
}

/// What `--format json` prints.
#[derive(Serialize)]
struct All<'a> {
    model: &'a str,
    embeddings: Vec<Vec<f32>>,
    /// Tokens of all texts.
    tokens: usize,
}

/// A line of `--format jsonl`.
#[derive(Serialize)]
struct One<'a> {
    index: usize,
    tokens: usize,
    embedding: &'a [f32],
}

impl Embed {
    pub(crate) fn run(self) -> Result<Exit> {
        let texts = texts(&self.texts, self.file.as_deref())?;
        let engine = load::engine_for_texts(&self.model, self.context, &self.compute, TOGETHER)?;
        let prefix = match &self.prompt_name {
            Some(name) => engine.prompt(name)?,
            None => self.prefix.as_deref().unwrap_or_default(),
        };
        let options = EmbedOptions {
            pooling: self.pooling.map(Pooling::from),
            normalize: !self.no_normalize,
            dimensions: self.dimensions.map(NonZeroUsize::get),
            truncate: self.truncate,
        };
        let cancel = CancelToken::new();
        let submit = |text: &str| {
            // An empty text stays one, whatever is put before it.
            let text = if text.is_empty() { String::new() } else { format!("{prefix}{text}") };
            engine.submit_embedding(&engine.encode_for_embedding(&text)?, &options, &cancel)
        };
        let mut printed = Printed::new(&self.model, self.format);
        in_turns(&texts, submit, |pending| pending.wait(), |index, made| printed.add(index, made))?;
        printed.end()?;
        Ok(Exit::Done)
    }
}

/// The texts of the arguments, or the lines of a file or of standard input.
pub(super) fn texts(given: &[String], file: Option<&std::path::Path>) -> Result<Vec<String>> {
    let lines = match file {
        _ if !given.is_empty() => return Ok(given.to_vec()),
        Some(file) => text_input::from_file(file)?,
        None => text_input::from_stdin()?,
    };
    Ok(lines.lines().map(str::to_owned).collect())
}

/// Submits texts, so many at a time, and hands over what comes of them in their order. Errors name the text.
pub(super) fn in_turns<P, T, E>(
    texts: &[String],
    submit: impl Fn(&str) -> Result<P, E>,
    wait: impl Fn(P) -> Result<T, E>,
    mut done: impl FnMut(usize, T) -> Result<()>,
) -> Result<()>
where
    E: std::error::Error + Send + Sync + 'static,
{
    let named = |index: usize| format!("text {}", index + 1);
    let mut pending = VecDeque::new();
    let mut finish = |(index, first): (usize, P)| -> Result<()> {
        done(index, wait(first).with_context(|| named(index))?)
    };
    for (index, text) in texts.iter().enumerate() {
        if pending.len() == TOGETHER
            && let Some(first) = pending.pop_front()
        {
            finish(first)?;
        }
        pending.push_back((index, submit(text).with_context(|| named(index))?));
    }
    pending.into_iter().try_for_each(finish)
}

/// Embeddings on their way to standard output.
struct Printed<'a> {
    answers: Answers,
    format: Format,
    all: All<'a>,
}

impl<'a> Printed<'a> {
    fn new(model: &'a str, format: Format) -> Self {
        Self { answers: Answers::new(), format, all: All { model, embeddings: Vec::new(), tokens: 0 } }
    }

    fn add(&mut self, index: usize, made: Embedding) -> Result<()> {
        match self.format {
            Format::Text => {
                let mut line = String::new();
                for (i, value) in made.values.iter().enumerate() {
                    let _ = write!(line, "{}{value}", if i == 0 { "" } else { " " });
                }
                line.push('\n');
                Ok(self.answers.text(&line)?)
            }
            Format::Jsonl => self.answers.json(&One { index, tokens: made.tokens, embedding: &made.values }),
            Format::Json => {
                self.all.tokens += made.tokens;
                self.all.embeddings.push(made.values);
                Ok(())
            }
        }
    }

    fn end(mut self) -> Result<()> {
        if self.format == Format::Json { self.answers.json(&self.all) } else { Ok(()) }
    }
}
