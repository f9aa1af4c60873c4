//! `moli rm`.

use anyhow::Result;
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
            let freed = hub.cache().remove(&hub.cache_name(name)?)?;
            note!("removed {} ({})", escape(name), bytes(freed));
        }
        Ok(Exit::Done)
    }
}
