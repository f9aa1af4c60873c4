//! `moli merge`.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::Args;
use moli_convert::{Output, merge};
use moli_format::{Adapter, Gguf, ReadMode};

use crate::cli::Exit;
use crate::load;
use crate::lora::scaled;
use crate::output::{escape, note};

/// Write a model with LoRA adapters merged into its weights
#[derive(Debug, Args)]
pub(crate) struct Merge {
    /// A model file, a folder, a name of the catalogue, a repository or a URL
    #[arg(value_name = "MODEL")]
    model: String,
    /// Adapters, GGUF files or folders of peft's, each scaled by SCALE, 1 unless given
    #[arg(value_name = "ADAPTER[=SCALE]", required = true, value_parser = scaled)]
    adapters: Vec<(String, f32)>,
    /// Where it goes, in the types that the model has: a name that ends in .gguf for a file, any other for a Hugging Face folder
    #[arg(short, long, value_name = "OUT")]
    output: PathBuf,
    /// Replace OUT if it is there
    #[arg(long)]
    force: bool,
}

impl Merge {
    pub(crate) fn run(self) -> Result<Exit> {
        let path = load::resolve(&self.model)?;
        let base = Gguf::open(&path, ReadMode::Map).with_context(|| path.display().to_string())?;
        let mut inputs: Vec<&Path> = base.paths().iter().map(PathBuf::as_path).collect();
        inputs.push(&path);
        inputs.extend(self.adapters.iter().map(|(adapter, _)| Path::new(adapter)));
        let output = Output::new(&self.output, &inputs, self.force)?;
        let mut adapters = Vec::new();
        for (path, scale) in &self.adapters {
            let adapter =
                Adapter::open(Path::new(path), &base, ReadMode::Map).with_context(|| path.clone())?;
            adapters.push((adapter, *scale));
        }
        let merged = merge(&base, &adapters, &output)?;
        note!("merged into {} tensors of {}", merged.changed, escape(&self.output.display().to_string()));
        merged.notes.iter().for_each(|about| note!("note: {}", escape(about)));
        if merged.untied {
            note!("the output layer was the embeddings, and is a tensor of its own now");
        }
        for (name, count) in &merged.requantized {
            note!("{count} of them were rounded to {name} again: an unquantised model loses less");
        }
        Ok(Exit::Done)
    }
}
