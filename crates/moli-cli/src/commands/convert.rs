//! `moli convert`.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use moli_convert::{ConvertError, Dtype, Options, Output, Watch, to_folder, to_gguf};
use moli_engine::CancelToken;
use moli_format::{Gguf, ReadMode};
use serde::Serialize;

use crate::cli::Exit;
use crate::failure::UsageError;
use crate::output::{Answers, bytes, escape, note};
use crate::progress::Bar;
use crate::{interrupt, load};

/// Write a model in the other form: a Hugging Face folder as a GGUF file, a GGUF file as a folder
#[derive(Debug, Args)]
pub(crate) struct Convert {
    /// A Hugging Face folder, a GGUF file or a name of the catalogue
    #[arg(value_name = "MODEL")]
    model: String,
    /// Where it goes: a name that ends in .gguf for a file, any other for a folder
    #[arg(value_name = "OUT")]
    output: PathBuf,
    /// Type of the matrices [default: as they are, and f32 for quantised ones in a folder]
    #[arg(long, value_name = "TYPE")]
    dtype: Option<Float>,
    /// Leave out the tokenizer
    #[arg(long)]
    no_tokenizer: bool,
    /// Replace what is there
    #[arg(long)]
    force: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Float {
    F32,
    F16,
    Bf16,
}

/// The answer, as `--json` prints it.
#[derive(Debug, Serialize)]
struct Answer {
    output: String,
    tensors: usize,
    /// Bytes: of the file, or of a folder's weights.
    bytes: u64,
    notes: Vec<String>,
}

impl Convert {
    pub(crate) fn run(self) -> Result<Exit> {
        if self.output.extension().is_some_and(|end| end == "safetensors") {
            return Err(UsageError(
                "OUT is a folder, in which the weights get their name, or ends in .gguf".into(),
            )
            .into());
        }
        let path = load::resolve(&self.model)?;
        let shown = |path: &Path| escape(&path.display().to_string()).into_owned();
        let model = Gguf::open(&path, ReadMode::Map).with_context(|| shown(&path))?;
        let inputs: Vec<&Path> = model.paths().iter().chain([&path]).map(PathBuf::as_path).collect();
        let output = Output::new(&self.output, &inputs, self.force)?;
        let dtype = self.dtype.map(|dtype| match dtype {
            Float::F32 => Dtype::F32,
            Float::F16 => Dtype::F16,
            Float::Bf16 => Dtype::BF16,
        });
        let options = Options { dtype, tokenizer: !self.no_tokenizer };
        let convert =
            if self.output.extension().is_some_and(|end| end == "gguf") { to_gguf } else { to_folder };
        let bar = Bar::new("converting", model.file_bytes());
        let written =
            interrupt::cancellable(|token| convert(&model, &output, &options, watch(bar, token.clone())));
        let report = match written {
            Err(ConvertError::Cancelled) => {
                note!("called off: nothing was written");
                return Ok(Exit::Interrupted);
            }
            other => other.with_context(|| shown(&path))?,
        };
        report.notes.iter().for_each(|text| note!("note: {}", escape(text)));
        let output = self.output.display().to_string();
        let mut answers = Answers::new();
        if self.json {
            let (tensors, bytes, notes) = (report.tensors, report.bytes, report.notes);
            answers.json(&Answer { output, tensors, bytes, notes })?;
        } else {
            note!("{} tensors, {}", report.tensors, bytes(report.bytes));
            answers.text(&format!("{output}\n"))?;
        }
        Ok(Exit::Done)
    }
}

/// Counts the bytes that were read, until it is called off.
fn watch(bar: Bar, token: CancelToken) -> Arc<Watch> {
    Arc::new(move |bytes| {
        bar.advance(bytes);
        !token.is_cancelled()
    })
}
