//! `moli perplexity`.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use moli_text::EncodeOptions;
use serde::Serialize;

use crate::cli::Exit;
use crate::lora::LoraArgs;
use crate::options::{ComputeArgs, piece};
use crate::output::{Answers, note};
use crate::{load, text_input};

/// Measure how well a model predicts a text
#[derive(Debug, Args)]
pub(crate) struct Perplexity {
    /// A model file or a name of the catalogue
    #[arg(value_name = "MODEL")]
    model: String,
    /// The text
    #[arg(short, long, value_name = "FILE")]
    file: PathBuf,
    /// The text is cut into pieces of N tokens; the second half of each is predicted
    #[arg(short, long, value_name = "N", default_value = "512", value_parser = piece)]
    context: usize,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    compute: ComputeArgs,
    #[command(flatten)]
    lora: LoraArgs,
}

/// What `--json` prints.
#[derive(Serialize)]
struct Measured {
    perplexity: f64,
    /// Tokens that were predicted.
    tokens: usize,
}

impl Perplexity {
    pub(crate) fn run(self) -> Result<Exit> {
        let text = text_input::from_file(&self.file)?;
        let engine = load::engine(&self.model, None, Some(self.context), &self.compute, &self.lora)?;
        // Control tokens that the text happens to spell out are text here.
        let options = EncodeOptions { add_special: true, parse_special: false };
        let ids = engine.tokenizer().encode(&text, options)?;
        note!("{} tokens, {} pieces of {}", ids.len(), ids.len() / self.context, self.context);
        let measured = moli_engine::perplexity(&engine, &ids, self.context)?;
        let measured = Measured { perplexity: measured.perplexity, tokens: measured.tokens };
        let people = |measured: &Measured| {
            format!("perplexity {:.4} over {} tokens\n", measured.perplexity, measured.tokens)
        };
        Answers::new().report(self.json, &measured, people)?;
        Ok(Exit::Done)
    }
}
