//! `moli completions`.

use anyhow::Result;
use clap::{Args, CommandFactory};
use clap_complete::Shell;

use crate::cli::{Cli, Exit};
use crate::output::Answers;

/// Print completions for a shell
#[derive(Debug, Args)]
pub(crate) struct Completions {
    /// The shell
    #[arg(value_name = "SHELL")]
    shell: Shell,
}

impl Completions {
    pub(crate) fn run(self) -> Result<Exit> {
        // Into memory first: a reader that goes away must not end in a panic.
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut Cli::command(), "moli", &mut script);
        Answers::new().text(&String::from_utf8_lossy(&script))?;
        Ok(Exit::Done)
    }
}
