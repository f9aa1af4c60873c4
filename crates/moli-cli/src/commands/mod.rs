//! The subcommands, one file each.

mod bench;
mod compare;
mod completions;
mod convert;
mod doctor;
mod doors;
mod embed;
mod health;
mod imatrix;
mod inspect;
mod list;
mod logits;
mod merge;
mod perplexity;
mod pull;
mod quantize;
mod rerank;
mod rm;
mod run;
mod serve;
mod tokenize;

use anyhow::Result;
use clap::Subcommand;

use crate::cli::Exit;

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Run(Box<run::Run>),
    Serve(Box<serve::Serve>),
    Health(health::Health),
    Embed(Box<embed::Embed>),
    Rerank(Box<rerank::Rerank>),
    Pull(pull::Pull),
    List(list::List),
    Rm(rm::Rm),
    Inspect(inspect::Inspect),
    Doctor(doctor::Doctor),
    Convert(convert::Convert),
    Quantize(Box<quantize::Quantize>),
    Imatrix(imatrix::ImatrixCommand),
    Merge(merge::Merge),
    Compare(Box<compare::Compare>),
    Bench(Box<bench::Bench>),
    Perplexity(perplexity::Perplexity),
    Logits(logits::Logits),
    Tokenize(tokenize::Tokenize),
    Completions(completions::Completions),
}

impl Command {
    /// Whether it is told to stop by signals of its own.
    pub(crate) fn handles_signals(&self) -> bool {
        matches!(self, Self::Serve(_))
    }

    pub(crate) fn run(self) -> Result<Exit> {
        match self {
            Self::Run(command) => command.run(),
            Self::Serve(command) => command.run(),
            Self::Health(command) => command.run(),
            Self::Embed(command) => command.run(),
            Self::Rerank(command) => command.run(),
            Self::Pull(command) => command.run(),
            Self::List(command) => command.run(),
            Self::Rm(command) => command.run(),
            Self::Inspect(command) => command.run(),
            Self::Doctor(command) => command.run(),
            Self::Convert(command) => command.run(),
            Self::Quantize(command) => command.run(),
            Self::Imatrix(command) => command.run(),
            Self::Merge(command) => command.run(),
            Self::Compare(command) => command.run(),
            Self::Bench(command) => command.run(),
            Self::Perplexity(command) => command.run(),
            Self::Logits(command) => command.run(),
            Self::Tokenize(command) => command.run(),
            Self::Completions(command) => command.run(),
        }
    }
}
