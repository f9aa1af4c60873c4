//! Moli and candle's own model on the same file, behind one small trait: for the bench of generation and for the test that
//! holds its claim.

use std::hint::black_box;
use std::path::Path;

use candle_core::quantized::gguf_file;
use candle_core::{Device, Tensor};
use candle_transformers::models::quantized_llama;
use moli_format::{Gguf, ReadMode};
use moli_model::{BackendKind, Batch, LoadOptions, PageTable, Runtime};

pub(crate) type Error = Box<dyn std::error::Error>;

/// A model that reads tokens at a position and keeps their keys and values.
pub(crate) trait Peer {
    /// Forgets everything, then reads `ids`.
    fn prefill(&mut self, ids: &[u32]) -> Result<(), Error>;
    /// Reads one token at `position`.
    fn decode(&mut self, id: u32, position: usize) -> Result<(), Error>;
}

pub(crate) struct Moli {
    runtime: Box<dyn Runtime>,
    table: PageTable,
}

impl Moli {
    pub(crate) fn load(path: &Path) -> Result<Self, Error> {
        let gguf = Gguf::open(path, ReadMode::Map)?;
        let options =
            LoadOptions { threads: moli_kernels::default_threads(), isa: None, context: 4096, max_rows: 512 };
        let runtime = moli_model::load(&gguf, BackendKind::Cpu, &options)?;
        Ok(Self { runtime, table: PageTable::new() })
    }

    fn forward(&mut self, ids: &[u32], first: usize) -> Result<(), Error> {
        self.runtime.reserve(&mut self.table, first + ids.len())?;
        let positions: Vec<u32> = (first..first + ids.len()).map(|position| position as u32).collect();
        let batch = Batch {
            tokens: ids,
            positions: &positions,
            sequences: &vec![0; ids.len()],
            tables: &[&self.table],
            outputs: &[ids.len() as u32 - 1],
        };
        black_box(self.runtime.forward(&batch)?);
        Ok(())
    }
}

impl Peer for Moli {
    fn prefill(&mut self, ids: &[u32]) -> Result<(), Error> {
        self.forward(ids, 0)
    }

    fn decode(&mut self, id: u32, position: usize) -> Result<(), Error> {
        self.forward(&[id], position)
    }
}

pub(crate) struct Candle(quantized_llama::ModelWeights);

impl Candle {
    pub(crate) fn load(path: &Path) -> Result<Self, Error> {
        let mut file = std::fs::File::open(path)?;
        let content = gguf_file::Content::read(&mut file)?;
        Ok(Self(quantized_llama::ModelWeights::from_gguf(content, &mut file, &Device::Cpu)?))
    }

    fn forward(&mut self, ids: &[u32], first: usize) -> Result<(), Error> {
        let input = Tensor::new(ids, &Device::Cpu)?.unsqueeze(0)?;
        black_box(self.0.forward(&input, first)?);
        Ok(())
    }
}

impl Peer for Candle {
    fn prefill(&mut self, ids: &[u32]) -> Result<(), Error> {
        self.forward(ids, 0)
    }

    fn decode(&mut self, id: u32, position: usize) -> Result<(), Error> {
        self.forward(&[id], position)
    }
}
