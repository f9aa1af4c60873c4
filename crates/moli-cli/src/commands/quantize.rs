//! `moli quantize`.

use std::fmt::Write as _;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result};
use clap::Args;
use moli_convert::{
    ConvertError, Imatrix, Keep, Mixture, Output, PlannedTensor, Quantization, QuantizeOptions, Watch,
};
use moli_format::{Gguf, ReadMode};
use moli_kernels::{Pool, default_threads};
use serde::Serialize;

use crate::cli::Exit;
use crate::output::{Answers, bytes, escape, note};
use crate::progress::Bar;
use crate::{interrupt, load};

/// Write a model in fewer bits, in one of llama.cpp's mixtures of formats
#[derive(Debug, Args)]
pub(crate) struct Quantize {
    /// A model file, a Hugging Face folder or a name of the catalogue
    #[arg(value_name = "IN")]
    model: String,
    /// The GGUF file to write
    #[arg(value_name = "OUT", required_unless_present = "dry_run")]
    output: Option<PathBuf>,
    /// The mixture, by llama.cpp's name, such as Q4_K_M or Q8_0
    #[arg(long = "type", value_name = "TYPE", value_parser = Mixture::named)]
    mixture: Mixture,
    /// An importance matrix, which says how much each column matters
    #[arg(long, value_name = "FILE")]
    imatrix: Option<PathBuf>,
    /// Store the tensors whose names match a regular expression in another type, such as ffn_down=q6_k (repeatable)
    #[arg(long, value_name = "PATTERN=TYPE")]
    keep: Vec<Keep>,
    /// Threads that compute [default: one for each core, the fast ones where they differ]
    #[arg(short, long, value_name = "N")]
    threads: Option<NonZeroUsize>,
    /// Replace OUT if it is there
    #[arg(long)]
    force: bool,
    /// Show each tensor's type and size, and write nothing
    #[arg(long)]
    dry_run: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// What `--json` prints. Sizes are in bytes.
#[derive(Serialize)]
struct Report {
    input: String,
    /// Null if nothing was written.
    output: Option<String>,
    r#type: &'static str,
    /// Of the model's tensors before, and of the file.
    input_bytes: u64,
    output_bytes: u64,
    bits_per_weight: f64,
    seconds: Option<f64>,
    notes: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tensors: Option<Vec<Row>>,
}

#[derive(Serialize)]
struct Row {
    name: String,
    /// The contiguous dimension first.
    dims: Vec<u64>,
    from: &'static str,
    to: &'static str,
    /// What its rows are no whole blocks of.
    #[serde(skip_serializing_if = "Option::is_none")]
    instead_of: Option<&'static str>,
    from_bytes: u64,
    to_bytes: u64,
}

impl Quantize {
    pub(crate) fn run(self) -> Result<Exit> {
        let input = load::resolve(&self.model)?;
        let shown = || escape(&input.display().to_string()).into_owned();
        let gguf = Gguf::open(&input, ReadMode::Map).with_context(shown)?;
        let output = self.output.as_ref().filter(|_| !self.dry_run);
        let output = output.map(|path| self.checked(path, &input, &gguf)).transpose()?;
        let imatrix =
            self.imatrix.as_ref().map(|path| Ok::<_, ConvertError>((path.clone(), Imatrix::open(path)?)));
        let options =
            QuantizeOptions { mixture: self.mixture, keep: self.keep, imatrix: imatrix.transpose()? };
        let quantization = Quantization::new(&gguf, &options).with_context(shown)?;
        quantization.notes().iter().for_each(|about| note!("note: {}", escape(&about.to_string())));
        let started = Instant::now();
        if let Some(output) = &output
            && !write(&quantization, output, self.mixture, self.threads)?
        {
            note!("interrupted; nothing was written");
            return Ok(Exit::Interrupted);
        }
        let weights: u64 = quantization.tensors().map(|tensor| tensor.dims.iter().product::<u64>()).sum();
        let stored: u64 = quantization.tensors().map(|tensor| tensor.to_bytes).sum();
        let report = Report {
            input: input.display().to_string(),
            output: output.as_ref().map(|output| output.path().display().to_string()),
            r#type: self.mixture.name(),
            input_bytes: quantization.input_bytes(),
            output_bytes: quantization.file_bytes()?,
            bits_per_weight: 8.0 * stored as f64 / weights as f64,
            seconds: output.is_some().then(|| started.elapsed().as_secs_f64()),
            notes: quantization.notes().iter().map(ToString::to_string).collect(),
            tensors: self.dry_run.then(|| quantization.tensors().map(row).collect()),
        };
        Answers::new().report(self.json, &report, people)?;
        Ok(Exit::Done)
    }

    /// The output, which is none of the files that are read.
    fn checked(&self, path: &Path, input: &Path, gguf: &Gguf) -> Result<Output> {
        let files = gguf.paths().iter().map(PathBuf::as_path);
        let inputs: Vec<&Path> = files.chain([input]).chain(self.imatrix.as_deref()).collect();
        Ok(Output::new(path, &inputs, self.force)?)
    }
}

/// Writes the model under a bar. Whether it was written to its end, and not called off.
fn write(
    quantization: &Quantization,
    output: &Output,
    mixture: Mixture,
    threads: Option<NonZeroUsize>,
) -> Result<bool> {
    let pool = Arc::new(Pool::new(threads.map_or_else(default_threads, NonZeroUsize::get)));
    let written = interrupt::cancellable(|token| {
        let bar = Bar::new(&format!("quantising to {mixture}"), quantization.input_bytes());
        let token = token.clone();
        let watch: Arc<Watch> = Arc::new(move |read| {
            bar.advance(read);
            !token.is_cancelled()
        });
        quantization.write(output, &pool, &watch)
    });
    match written {
        Err(ConvertError::Cancelled) => Ok(false),
        written => Ok(written.map(|()| true)?),
    }
}

fn row(tensor: &PlannedTensor) -> Row {
    Row {
        name: tensor.name.clone(),
        dims: tensor.dims.clone(),
        from: tensor.from.name(),
        to: tensor.to.name(),
        instead_of: (tensor.wanted != tensor.to).then(|| tensor.wanted.name()),
        from_bytes: tensor.from_bytes,
        to_bytes: tensor.to_bytes,
    }
}

fn people(report: &Report) -> String {
    let mut text = String::new();
    for row in report.tensors.iter().flatten() {
        let Row { name, dims, from, to, instead_of, from_bytes, to_bytes } = row;
        let dims = dims.iter().map(ToString::to_string).collect::<Vec<_>>().join(" x ");
        let sizes = (bytes(*from_bytes), bytes(*to_bytes));
        let instead = instead_of.map(|wanted| format!(" (instead of {wanted})")).unwrap_or_default();
        let _ = writeln!(
            text,
            "{from:>6} {:>9}  {to:>6} {:>9}  {dims:>16}  {}{instead}",
            sizes.0,
            sizes.1,
            escape(name)
        );
    }
    let (before, after) = (bytes(report.input_bytes), bytes(report.output_bytes));
    let of = report.output.as_deref().map(|path| format!("{}: ", escape(path))).unwrap_or_default();
    let took = report.seconds.map(|seconds| format!(", in {seconds:.1} s")).unwrap_or_default();
    let _ = writeln!(text, "{of}{before} -> {after}, {:.2} bits per weight{took}", report.bits_per_weight);
    text
}
