//! `moli imatrix`.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};
use clap::Args;
use moli_convert::{Imatrix, ImatrixEntry, Output};
use moli_format::{Gguf, ReadMode};
use moli_model::{ActivationSquares, KvType, LoadOptions};
use moli_text::{EncodeOptions, Tokenizer};

use crate::affinity::{self, CpuList, cpu_list};
use crate::cli::Exit;
use crate::options::piece;
use crate::output::{escape, note};
use crate::progress::Bar;
use crate::{interrupt, load, text_input};

/// Tokens that are computed together, at most.
const ROWS: usize = 512;

/// Measure which columns of a model's weights a text uses most, for `moli quantize --imatrix`
///
/// The file is the GGUF that llama.cpp's llama-imatrix writes and llama-quantize reads.
#[derive(Debug, Args)]
pub(crate) struct ImatrixCommand {
    /// A model file, a folder or a name of the catalogue; the less it is quantised, the better
    #[arg(value_name = "MODEL")]
    model: String,
    /// A text of the kind that the model is for, some hundred kilobytes
    #[arg(short, long, value_name = "FILE")]
    file: PathBuf,
    /// Where the matrix goes
    #[arg(short, long, value_name = "FILE", default_value = "imatrix.gguf")]
    output: PathBuf,
    /// The text is cut into pieces of N tokens
    #[arg(short, long, value_name = "N", default_value = "512", value_parser = piece)]
    context: usize,
    /// Read the first N pieces only
    #[arg(long, value_name = "N")]
    chunks: Option<NonZeroUsize>,
    /// Replace the output if it exists
    #[arg(long)]
    force: bool,
    /// Threads that compute [default: one for each core, the fast ones where they differ]
    #[arg(short, long, value_name = "N")]
    threads: Option<NonZeroUsize>,
    /// Run on these processors only, such as 0-3,8 (Linux)
    #[arg(long, value_name = "LIST", value_parser = cpu_list, allow_negative_numbers = true)]
    cpu_affinity: Option<CpuList>,
}

impl ImatrixCommand {
    pub(crate) fn run(self) -> Result<Exit> {
        // Before the threads are counted and started.
        if let Some(cpus) = &self.cpu_affinity {
            affinity::restrict(cpus)?;
        }
        let path = load::resolve(&self.model)?;
        let shown = || escape(&path.display().to_string()).into_owned();
        let output = Output::new(&self.output, &[&path, &self.file], self.force)?;
        let text = text_input::from_file(&self.file)?;
        let gguf = Gguf::open(&path, ReadMode::Map).with_context(shown)?;
        let tokenizer = Tokenizer::from_gguf(gguf.metadata()).with_context(shown)?;
        // Control tokens that the text happens to spell out are text here.
        let mut ids = tokenizer.encode(&text, EncodeOptions { add_special: true, parse_special: false })?;
        if let Some(chunks) = self.chunks {
            ids.truncate(chunks.get().saturating_mul(self.context));
        }
        let options = LoadOptions {
            threads: self.threads.map_or_else(moli_kernels::default_threads, NonZeroUsize::get),
            isa: None,
            context: self.context,
            max_rows: self.context.min(ROWS),
            kv_type: KvType::F16,
        };
        let bos = tokenizer.bos().filter(|_| tokenizer.adds_bos());
        let bar = Bar::pieces("reading", ids.len() / self.context);
        let observed = interrupt::cancellable(|cancel| {
            moli_engine::observe(&gguf, &ids, bos, &options, |done, _| {
                bar.at(done);
                !cancel.is_cancelled()
            })
        });
        drop(bar);
        let (squares, pieces) = observed.with_context(shown)?;
        if pieces < ids.len() / self.context {
            note!("interrupted: nothing was written");
            return Ok(Exit::Interrupted);
        }
        let (entries, unused) = entries(&squares);
        if entries.is_empty() {
            bail!("the model has no matrices that an importance matrix is of");
        }
        for (name, experts) in unused {
            note!("{}: the text used {experts} of its matrices never", escape(&name));
        }
        let dataset = self.file.file_name().map(|name| name.to_string_lossy().into_owned());
        let (chunk_count, chunk_size) = (u32::try_from(pieces)?, u32::try_from(self.context)?);
        let matrix = Imatrix { datasets: dataset.into_iter().collect(), chunk_count, chunk_size, entries };
        matrix.write(&output)?;
        note!(
            "{}: {} tensors, from {pieces} pieces of {chunk_size} tokens",
            output.path().display(),
            matrix.entries.len()
        );
        Ok(Exit::Done)
    }
}

type Entries = std::collections::BTreeMap<String, ImatrixEntry>;

/// The tensors that the text used, and those of which it used some experts never.
fn entries(squares: &ActivationSquares) -> (Entries, Vec<(String, usize)>) {
    let mut entries = Entries::new();
    let mut unused = Vec::new();
    for tensor in squares.get() {
        let never = tensor.rows.iter().filter(|&&rows| rows == 0).count();
        if never > 0 {
            unused.push((tensor.name.clone(), never));
        }
        if never < tensor.rows.len() {
            let in_sum2 = tensor.sums.iter().map(|&sum| sum as f32).collect();
            let counts = tensor.rows.iter().map(|&rows| rows as f32).collect();
            entries.insert(tensor.name, ImatrixEntry { in_sum2, counts });
        }
    }
    (entries, unused)
}
