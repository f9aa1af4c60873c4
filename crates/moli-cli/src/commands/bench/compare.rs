//! `moli bench compare`.

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::Args;

use crate::cli::Exit;

/// Compare two measurements
#[derive(Debug, Args)]
pub(crate) struct Compare {
    /// The first
    a: PathBuf,
    /// The second
    b: PathBuf,
}

impl Compare {
    pub(crate) fn run(self) -> Result<Exit> {
        bail!("cannot compare {} with {}", self.a.display(), self.b.display())
    }
}
