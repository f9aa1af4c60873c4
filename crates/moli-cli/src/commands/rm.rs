//! `moli rm`.

use anyhow::{Result, bail};
use clap::Args;
use moli_hub::{Hub, HubConfig};

use crate::cli::Exit;
use crate::output::{bytes, escape, note};

/// Remove models from the cache
#[derive(Debug, Args)]
pub(crate) struct Rm {
    /// What `moli list` shows as present
    #[arg(value_name = "NAME", required = true)]
    names: Vec<String>,
}

impl Rm {
    pub(crate) fn run(self) -> Result<Exit> {
        let hub = Hub::new(HubConfig::from_env()?);
        for name in &self.names {
            if moli_hub::is_path(name) {
                bail!("{} is a file of yours; only models of the cache are removed", escape(name));
            }
            let freed = hub.cache().remove(&hub.cache_name(name)?)?;
            note!("removed {} ({})", escape(name), bytes(freed));
        }
        Ok(Exit::Done)
    }
}
