//! `moli rerank`.

use std::fmt::Write as _;
use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use moli_engine::CancelToken;
use serde::Serialize;

use super::embed::{Format, TOGETHER, in_turns, texts};
use crate::cli::Exit;
use crate::load;
use crate::options::ComputeArgs;
use crate::output::{Answers, escape};

/// Sort documents by how well they answer a query
#[derive(Debug, Args)]
pub(crate) struct Rerank {
    /// A model file or folder, or a name of the catalogue
    #[arg(value_name = "MODEL")]
    model: String,
    /// The query
    #[arg(value_name = "QUERY")]
    query: String,
    /// The documents [default: the lines of standard input]
    #[arg(value_name = "DOC")]
    documents: Vec<String>,
    /// Take the lines of a file as documents
    #[arg(short, long, value_name = "FILE", conflicts_with = "documents")]
    file: Option<PathBuf>,
    /// Cut documents that are longer than the context, of a cross-encoder
    #[arg(long)]
    truncate: bool,
    /// text: score, index and document in a line for each; json: one object; jsonl: an object for each
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    format: Format,
    /// Context in tokens; 0: all that the model was trained for [default: the model's, at most 4096]
    #[arg(short, long, value_name = "N", help_heading = "Model and memory")]
    context: Option<usize>,
    #[command(flatten)]
    compute: ComputeArgs,
}

/// What `--format json` prints.
#[derive(Serialize)]
struct All<'a> {
    model: &'a str,
    query: &'a str,
    results: Vec<Ranked<'a>>,
}

/// A line of `--format jsonl`.
#[derive(Serialize)]
struct Ranked<'a> {
    /// The document's place among those given, from 0.
    index: usize,
    /// From 0 to 1.
    score: f32,
    document: &'a str,
}

impl Rerank {
    pub(crate) fn run(self) -> Result<Exit> {
        let documents = texts(&self.documents, self.file.as_deref())?;
        let engine = load::engine_for_texts(&self.model, self.context, &self.compute, TOGETHER)?;
        let cancel = CancelToken::new();
        let submit = |document: &str| engine.submit_rank(&self.query, document, self.truncate, &cancel);
        let mut results = Vec::with_capacity(documents.len());
        in_turns(
            &documents,
            submit,
            |pending| pending.wait(),
            |index, rank| {
                let document = documents.get(index).map_or("", String::as_str);
                results.push(Ranked { index, score: rank.score, document });
                Ok(())
            },
        )?;
        // Equals stay in the order in which they were given.
        results.sort_by(|a, b| b.score.total_cmp(&a.score));
        let mut answers = Answers::new();
        match self.format {
            Format::Text => {
                let mut lines = String::new();
                for Ranked { index, score, document } in &results {
                    let _ = writeln!(lines, "{score:.6}\t{index}\t{}", escape(document));
                }
                answers.text(&lines)?;
            }
            Format::Json => answers.json(&All { model: &self.model, query: &self.query, results })?,
            Format::Jsonl => results.iter().try_for_each(|ranked| answers.json(ranked))?,
        }
        Ok(Exit::Done)
    }
}
