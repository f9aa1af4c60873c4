//! Records what one run of a build measures, as a line of `tests/samples.txt`: the name of the run, the test and the seconds of
//! its repetitions. Each run is a process of its own, since where its memory lies is a part of what differs between runs.
//!
//! `record MODEL.gguf REPETITIONS SLOWED`: SLOWED is 0, or 0.1 for work that takes 10% longer.

use std::hint::{black_box, spin_loop};
use std::path::Path;
use std::time::Instant;

use moli_format::{Gguf, ReadMode};
use moli_model::{BackendKind, Batch, KvType, LoadOptions, Runtime};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// Tokens of a prompt, and of an answer behind as many.
const PROMPT: usize = 128;
const ANSWER: usize = 32;

struct Work {
    runtime: Box<dyn Runtime>,
    pages: Vec<u32>,
    slowed: f64,
}

impl Work {
    /// Reads tokens at `first` and takes as much longer as was asked.
    fn forward(&mut self, tokens: &[u32], first: usize) -> Result<()> {
        let start = Instant::now();
        let positions: Vec<u32> = (first as u32..).take(tokens.len()).collect();
        let batch = Batch {
            tokens,
            positions: &positions,
            sequences: &vec![0; tokens.len()],
            tables: &[&self.pages],
            outputs: &[tokens.len() as u32 - 1],
            states: &[],
        };
        black_box(self.runtime.forward(&batch)?);
        let until = start.elapsed().mul_f64(1.0 + self.slowed);
        while start.elapsed() < until {
            spin_loop();
        }
        Ok(())
    }

    fn prefill(&mut self, tokens: &[u32]) -> Result<f64> {
        let start = Instant::now();
        self.forward(tokens, 0)?;
        Ok(start.elapsed().as_secs_f64())
    }

    fn decode(&mut self, tokens: &[u32]) -> Result<f64> {
        self.forward(tokens, 0)?;
        let start = Instant::now();
        for (step, token) in tokens.iter().take(ANSWER).enumerate() {
            self.forward(&[*token], tokens.len() + step)?;
        }
        Ok(start.elapsed().as_secs_f64())
    }
}

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [model, repetitions, slowed] = arguments.as_slice() else {
        return Err("record MODEL.gguf REPETITIONS SLOWED".into());
    };
    let gguf = Gguf::open(Path::new(model), ReadMode::Map)?;
    let threads = moli_kernels::default_threads();
    let options =
        LoadOptions { threads, isa: None, context: 512, max_rows: PROMPT, kv_type: KvType::F16 };
    let runtime = moli_model::load(&gguf, BackendKind::Cpu, &options)?;
    let mut work = Work { pages: (0..runtime.pages() as u32).collect(), runtime, slowed: slowed.parse()? };
    let tokens: Vec<u32> = (0..PROMPT as u32).map(|i| 1000 + i * 37 % 20000).collect();
    work.prefill(&tokens)?;
    work.decode(&tokens)?;
    // Interleaved, as the command measures.
    let mut seconds = [Vec::new(), Vec::new()];
    for _ in 0..repetitions.parse::<usize>()? {
        seconds[0].push(format!("{:.6}", work.prefill(&tokens)?));
        seconds[1].push(format!("{:.6}", work.decode(&tokens)?));
    }
    for (test, seconds) in ["pp128", "tg32"].iter().zip(seconds) {
        println!("{slowed} {test} {}", seconds.join(" "));
    }
    Ok(())
}
