//! `moli bench`.

mod compare;

use anyhow::Result;
use clap::{Args, Subcommand};

use crate::cli::Exit;

/// Measure what this machine does with a model, and compare measurements
#[derive(Debug, Args)]
pub(crate) struct Bench {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    Compare(compare::Compare),
}

impl Bench {
    pub(crate) fn run(self) -> Result<Exit> {
        match self.action {
            Action::Compare(command) => command.run(),
        }
    }
}
