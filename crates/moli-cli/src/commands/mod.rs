//! The subcommands, one file each.

mod completions;
mod inspect;
mod list;
mod logits;
mod perplexity;
mod pull;
mod rm;
mod run;
mod tokenize;

use anyhow::Result;
use clap::Subcommand;

use crate::cli::Exit;

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Run(Box<run::Run>),
    Pull(pull::Pull),
    List(list::List),
    Rm(rm::Rm),
    Inspect(inspect::Inspect),
    Tokenize(tokenize::Tokenize),
    Perplexity(perplexity::Perplexity),
    Logits(logits::Logits),
    Completions(completions::Completions),
}

impl Command {
    pub(crate) fn run(self) -> Result<Exit> {
        match self {
            Self::Run(command) => command.run(),
            Self::Pull(command) => command.run(),
            Self::List(command) => command.run(),
            Self::Rm(command) => command.run(),
            Self::Inspect(command) => command.run(),
            Self::Tokenize(command) => command.run(),
            Self::Perplexity(command) => command.run(),
            Self::Logits(command) => command.run(),
            Self::Completions(command) => command.run(),
        }
    }
}
