//! Records what one run of a build measures, as lines of `tests/samples.txt`: threads, how much longer its work was made, the share of
//! the processors that others had meanwhile, the test, and the seconds of its repetitions. Each run is a process of its own,
//! since where its memory lies is a part of what differs between runs. For Linux.
//!
//! `record MODEL.gguf THREADS REPETITIONS SLOWED`: SLOWED is 0, or 0.1 for work that takes 10% longer.

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
            types: &[],
            tables: &[&self.pages],
            adapters: &[],
            recurrent: &[],
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

    /// Behind what [`Self::prefill`] has left.
    fn decode(&mut self, tokens: &[u32]) -> Result<f64> {
        let start = Instant::now();
        for (step, token) in tokens.iter().take(ANSWER).enumerate() {
            self.forward(&[*token], tokens.len() + step)?;
        }
        Ok(start.elapsed().as_secs_f64())
    }
}

/// Ticks of all processors' time, of the part that was not idle, and of this process.
fn ticks() -> Result<[f64; 3]> {
    let machine = std::fs::read_to_string("/proc/stat")?;
    let line = machine.lines().next().ok_or("/proc/stat is empty")?;
    let all = line
        .split_whitespace()
        .skip(1)
        .take(8)
        .map(str::parse)
        .collect::<std::result::Result<Vec<f64>, _>>()?;
    let [_, _, _, idle, waiting, ..] = all.as_slice() else { return Err("/proc/stat is too short".into()) };
    let process = std::fs::read_to_string("/proc/self/stat")?;
    let (_, fields) = process.rsplit_once(") ").ok_or("/proc/self/stat has no name")?;
    let own: f64 = fields.split(' ').skip(11).take(2).filter_map(|field| field.parse::<f64>().ok()).sum();
    let total: f64 = all.iter().sum();
    Ok([total, total - idle - waiting, own])
}

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [model, threads, repetitions, slowed] = arguments.as_slice() else {
        return Err("record MODEL.gguf THREADS REPETITIONS SLOWED".into());
    };
    let gguf = Gguf::open(Path::new(model), ReadMode::Map)?;
    let options = LoadOptions {
        threads: threads.parse()?,
        isa: None,
        context: 512,
        max_rows: PROMPT,
        kv_type: KvType::F16,
    };
    let runtime = moli_model::load(&gguf, BackendKind::Cpu, &options)?;
    let mut work = Work { pages: (0..runtime.pages() as u32).collect(), runtime, slowed: slowed.parse()? };
    let tokens: Vec<u32> = (0..PROMPT as u32).map(|i| 1000 + i * 37 % 20000).collect();
    work.prefill(&tokens)?;
    work.decode(&tokens)?;
    // Interleaved, as the command measures.
    let mut seconds = [Vec::new(), Vec::new()];
    let before = ticks()?;
    for _ in 0..repetitions.parse::<usize>()? {
        seconds[0].push(format!("{:.6}", work.prefill(&tokens)?));
        seconds[1].push(format!("{:.6}", work.decode(&tokens)?));
    }
    let after = ticks()?;
    let [total, busy, own] = [0, 1, 2].map(|index| after[index] - before[index]);
    let others = ((busy - own) / total).clamp(0.0, 1.0);
    for (test, seconds) in ["pp128", "tg32"].iter().zip(seconds) {
        println!("{threads} {slowed} {others:.3} {test} {}", seconds.join(" "));
    }
    Ok(())
}
