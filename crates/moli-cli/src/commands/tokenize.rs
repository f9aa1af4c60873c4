//! `moli tokenize`.

use std::fmt::Write as _;
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;
use moli_format::{Gguf, ReadMode};
use moli_text::{EncodeOptions, Tokenizer};
use serde::Serialize;

use crate::cli::Exit;
use crate::output::{Answers, escape};
use crate::{load, text_input};

/// Print the tokens of a text
#[derive(Debug, Args)]
pub(crate) struct Tokenize {
    /// A model file or a name of the catalogue
    #[arg(value_name = "MODEL")]
    model: String,
    /// The text [default: standard input, to its end]
    #[arg(short, long, value_name = "TEXT", allow_hyphen_values = true)]
    prompt: Option<String>,
    /// Take the text from a file
    #[arg(short, long, value_name = "FILE", conflicts_with = "prompt")]
    file: Option<PathBuf>,
    /// Add the tokens that the model wants at the beginning and the end, and read control tokens in the text as such
    #[arg(long)]
    special: bool,
    /// Print {"ids": [...]}
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Ids {
    ids: Vec<u32>,
}

impl Tokenize {
    pub(crate) fn run(self) -> Result<Exit> {
        let path = load::resolve(&self.model)?;
        let text = match (self.prompt, self.file) {
            (Some(text), _) => text,
            (None, Some(file)) => text_input::from_file(&file)?,
            (None, None) => text_input::from_stdin()?,
        };
        let gguf = Gguf::open(&path, ReadMode::Map).with_context(|| path.display().to_string())?;
        let tokenizer = Tokenizer::from_gguf(gguf.metadata())?;
        let options = EncodeOptions { add_special: self.special, parse_special: self.special };
        let ids = tokenizer.encode(&text, options)?;
        let mut answers = Answers::new();
        if self.json {
            answers.json(&Ids { ids })?;
        } else {
            let mut lines = String::new();
            for id in ids {
                let text = tokenizer.token_text(id).unwrap_or_default();
                let _ = writeln!(lines, "{id:>6}  '{}'", escape(&text));
            }
            answers.text(&lines)?;
        }
        Ok(Exit::Done)
    }
}
