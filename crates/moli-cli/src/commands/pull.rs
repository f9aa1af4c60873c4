//! `moli pull`.

use std::path::Path;

use anyhow::Result;
use clap::Args;
use moli_hub::{Hub, HubConfig};

use crate::cli::Exit;
use crate::output::{Answers, bytes, escape, note};
use crate::progress::Report;

/// Fetch a model into the cache and print its path
#[derive(Debug, Args)]
pub(crate) struct Pull {
    /// A name of the catalogue, a repository (owner/name) or a URL
    #[arg(value_name = "NAME")]
    name: String,
}

impl Pull {
    pub(crate) fn run(self) -> Result<Exit> {
        let mut answers = Answers::new();
        if Path::new(&self.name).is_file() {
            note!("{} is a file: nothing to pull", escape(&self.name));
            answers.text(&format!("{}\n", self.name))?;
            return Ok(Exit::Done);
        }
        let hub = Hub::new(HubConfig::from_env()?);
        let cached = hub.pull(&self.name, &mut Report::new())?;
        note!("{} is here ({})", escape(cached.name()), bytes(cached.size()));
        answers.text(&format!("{}\n", cached.path.display()))?;
        Ok(Exit::Done)
    }
}
