//! Moli and candle's own models on the same file, behind one small trait.

use std::hint::black_box;
use std::ops::Range;
use std::path::Path;
use std::time::Instant;

use candle_core::quantized::gguf_file;
use candle_core::{Device, Tensor};
use candle_transformers::models::{quantized_llama, quantized_qwen2};
use moli_bench::report::Test;
use moli_bench::run::{CHUNK, Direct, token};
use moli_engine::CancelToken;
use moli_format::{Gguf, ReadMode};
use moli_model::{BackendKind, KvType, LoadOptions};

use super::Error;
use super::workload::Workload;

/// A model in this process. It computes the logits of the last token of each sequence and nothing else.
pub(crate) trait Peer {
    /// Runs the workload from an empty cache, or as if it were empty, and says how many seconds its timed part took.
    fn run(&mut self, workload: Workload) -> Result<f64, Error>;
}

/// What `moli bench` measures with.
pub(crate) struct Moli(Direct);

impl Moli {
    /// `context` is that of all sequences together.
    pub(crate) fn load(path: &Path, threads: usize, context: usize) -> Result<Self, Error> {
        let gguf = Gguf::open(path, ReadMode::Map)?;
        let options = LoadOptions { threads, isa: None, context, max_rows: CHUNK, kv_type: KvType::F16 };
        Ok(Self(Direct::new(moli_model::load(&gguf, BackendKind::Cpu, &options)?)))
    }
}

impl Peer for Moli {
    fn run(&mut self, workload: Workload) -> Result<f64, Error> {
        let seconds = self.0.repetition(&workload.test(), &CancelToken::new())?;
        Ok(seconds.ok_or("it was cancelled")?)
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
    fn run(&mut self, workload: Workload) -> Result<f64, Error> {
        // candle's models have larger vocabularies than the tokens that are read.
        let ids = |sequence: usize, positions: Range<usize>| {
            positions.map(|position| token(sequence, position, usize::MAX)).collect::<Vec<u32>>()
        };
        let (depth, steps, sequences) = match workload.test() {
            Test::Prefill { tokens, .. } => {
                let start = Instant::now();
                self.forward(&ids(0, 0..tokens), 1, 0)?;
                return Ok(start.elapsed().as_secs_f64());
            }
            Test::Decode { tokens, depth, batch } => (depth, tokens, batch),
            Test::EndToEnd { .. } => return Err("candle as a peer gives no whole answers".into()),
        };
        if depth > 0 {
            self.forward(&ids(0, 0..depth), 1, 0)?;
        }
        let start = Instant::now();
        for position in depth..depth + steps {
            let step: Vec<u32> =
                (0..sequences).map(|sequence| token(sequence, position, usize::MAX)).collect();
            self.forward(&step, sequences, position)?;
        }
        Ok(start.elapsed().as_secs_f64())
    }
}
