//! Moli and candle's own models on the same file, behind one small trait.

use std::hint::black_box;
use std::path::Path;

use candle_core::quantized::gguf_file;
use candle_core::{Device, Tensor};
use candle_transformers::models::{quantized_llama, quantized_qwen2};
use moli_format::{Gguf, ReadMode};
use moli_model::{BackendKind, Batch, KvType, LoadOptions, Runtime};

use super::Error;

/// Most tokens of a prompt that are read at once, as llama.cpp does.
const CHUNK: usize = 512;

/// A model that reads tokens and keeps their keys and values. It computes the logits of the last token of each sequence and
/// nothing else.
pub(crate) trait Peer {
    /// Forgets everything, then reads `ids` as one sequence.
    fn prefill(&mut self, ids: &[u32]) -> Result<(), Error>;
    /// Reads one token of each sequence, all at `position`. At 0 it forgets everything first.
    fn step(&mut self, ids: &[u32], position: usize) -> Result<(), Error>;
}

pub(crate) struct Moli {
    runtime: Box<dyn Runtime>,
    /// All pages; each sequence has its share of them.
    pages: Vec<u32>,
}

impl Moli {
    /// `context` is that of all sequences together.
    pub(crate) fn load(path: &Path, threads: usize, context: usize) -> Result<Self, Error> {
        let gguf = Gguf::open(path, ReadMode::Map)?;
        let options = LoadOptions { threads, isa: None, context, max_rows: CHUNK, kv_type: KvType::F16 };
        let runtime = moli_model::load(&gguf, BackendKind::Cpu, &options)?;
        Ok(Self { pages: (0..runtime.pages() as u32).collect(), runtime })
    }

    /// Each sequence reads as many of the tokens as the others, from position `first` on.
    fn forward(&mut self, ids: &[u32], sequences: usize, first: usize) -> Result<(), Error> {
        let each = ids.len() / sequences;
        let rows = 0..ids.len();
        let batch = Batch {
            tokens: ids,
            positions: &rows.clone().map(|row| (first + row % each) as u32).collect::<Vec<_>>(),
            sequences: &rows.map(|row| (row / each) as u32).collect::<Vec<_>>(),
            tables: &self.pages.chunks_exact(self.pages.len() / sequences).collect::<Vec<_>>(),
            outputs: &(1..=sequences).map(|count| (count * each - 1) as u32).collect::<Vec<_>>(),
            states: &[],
        };
        black_box(self.runtime.forward(&batch)?);
        Ok(())
    }
}

impl Peer for Moli {
    fn prefill(&mut self, ids: &[u32]) -> Result<(), Error> {
        for (index, chunk) in ids.chunks(CHUNK).enumerate() {
            self.forward(chunk, 1, index * CHUNK)?;
        }
        Ok(())
    }

    fn step(&mut self, ids: &[u32], position: usize) -> Result<(), Error> {
        self.forward(ids, ids.len(), position)
    }
}

/// It takes its threads from the environment variable `RAYON_NUM_THREADS`.
pub(crate) enum Candle {
    Llama(quantized_llama::ModelWeights),
    Qwen2(quantized_qwen2::ModelWeights),
}

impl Candle {
    pub(crate) fn load(path: &Path) -> Result<Self, Error> {
        let mut file = std::fs::File::open(path)?;
        let content = gguf_file::Content::read(&mut file)?;
        let architecture = content.metadata.get("general.architecture").ok_or("no general.architecture")?;
        match architecture.to_string()?.as_str() {
            "llama" => {
                let model = quantized_llama::ModelWeights::from_gguf(content, &mut file, &Device::Cpu)?;
                Ok(Self::Llama(model))
            }
            "qwen2" => {
                let model = quantized_qwen2::ModelWeights::from_gguf(content, &mut file, &Device::Cpu)?;
                Ok(Self::Qwen2(model))
            }
            other => Err(format!("candle as a peer has llama and qwen2, this is {other}").into()),
        }
    }

    /// At position 0 both models forget what they have read.
    fn forward(&mut self, ids: &[u32], sequences: usize, first: usize) -> Result<(), Error> {
        let input = Tensor::new(ids, &Device::Cpu)?.reshape((sequences, ids.len() / sequences))?;
        black_box(match self {
            Self::Llama(model) => model.forward(&input, first)?,
            Self::Qwen2(model) => model.forward(&input, first)?,
        });
        Ok(())
    }
}

impl Peer for Candle {
    fn prefill(&mut self, ids: &[u32]) -> Result<(), Error> {
        self.forward(ids, 1, 0)
    }

    fn step(&mut self, ids: &[u32], position: usize) -> Result<(), Error> {
        self.forward(ids, ids.len(), position)
    }
}
