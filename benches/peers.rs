//! Moli beside llama.cpp, its forks and candle, on the same files, interleaved.
//!
//! ```sh
//! cargo run --release -p moli-synthetic --example synthetic -- qwen2.5-0.5b:q4_k_m target/0.5b.gguf
//! cargo bench -p moli --bench peers -- target/0.5b.gguf --llama-bench ik=path/to/llama-bench --llama-cpp-venv target/peers
//! ```
//!
//! A machine's speed changes from minute to minute, so the contenders take turns, round after round, and what is reported is
//! the median of the rounds' ratios, with the least and the greatest. All of them read the same number of tokens, compute the
//! logits of the last one and sample nothing.

mod common;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;
use common::Error;
use common::llama_bench::LlamaBench;
use common::llama_python::LlamaPython;
use common::options::Shared;
use common::peer::{Candle, Moli};
use common::report::{Machine, end, median, print_table, rounded};
use common::workload::{Contender, InProcess, Workload};
use moli_model::PAGE_TOKENS;
use serde_json::{Value, json};

/// Measures Moli beside others, interleaved.
#[derive(Parser)]
struct Options {
    /// GGUF files; without any, the default model.
    models: Vec<PathBuf>,
    /// What is timed, separated by commas: pp512 reads a prompt of 512, tg64 then generates 64, tg64@4096 does so behind 4096
    /// tokens that aren't timed, batch8 generates 32 for each of 8 sequences together.
    #[arg(long, value_delimiter = ',', default_value = "pp512,tg64,tg64@4096,batch8")]
    workloads: Vec<Workload>,
    #[command(flatten)]
    shared: Shared,
    /// The environment that scripts/peers-venv.sh has made.
    #[arg(long, value_name = "FOLDER")]
    llama_cpp_venv: Option<PathBuf>,
    /// candle's own model too.
    #[arg(long)]
    candle: bool,
    /// Where every sample goes.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

fn main() -> ExitCode {
    end(run(Options::parse()))
}

fn run(mut options: Options) -> Result<(), Error> {
    if options.models.is_empty() {
        options.models.push(moli_testkit::real_model("smollm2-135m-instruct")?);
    }
    let machine = Machine::here(options.shared.threads);
    println!("{machine}");
    println!(
        "tokens per second, medians of {} rounds; ratios are Moli's speed to the other's",
        options.shared.rounds
    );
    println!("pp: reading a prompt. tg: generating, behind the tokens after @, whose reading isn't timed.");
    println!("batch: generating for so many sequences together.\n");
    let mut models = Vec::new();
    for path in &options.models {
        models.push(model(path, &options)?);
    }
    if let Some(path) = &options.json {
        let report = json!({ "machine": machine.json(), "rounds": options.shared.rounds, "models": models });
        std::fs::write(path, serde_json::to_string_pretty(&report)?)?;
    }
    Ok(())
}

/// Measures one model, prints its table and returns its samples.
fn model(path: &Path, options: &Options) -> Result<Value, Error> {
    let mut contenders = contenders(path, options)?;
    let mut rows = Vec::new();
    let mut workloads = Vec::new();
    for &workload in &options.workloads {
        let samples = measure(&mut contenders, workload, options.shared.rounds);
        rows.push(row(workload, &samples));
        let by_name: serde_json::Map<String, Value> = contenders
            .iter()
            .zip(&samples)
            .map(|(contender, speeds)| (contender.name().to_owned(), json!(speeds)))
            .collect();
        workloads.push(json!({ "workload": workload.to_string(), "tokens_per_second": by_name }));
    }
    let bytes = std::fs::metadata(path)?.len();
    let file = path.file_name().unwrap_or_default().display().to_string();
    println!("{file}, {} MB\n", bytes / 1_000_000);
    let mut head = vec!["".to_owned()];
    head.extend(contenders.iter().map(|contender| contender.name().to_owned()));
    head.extend(contenders.iter().skip(1).map(|contender| format!("to {}", contender.name())));
    print_table(&head, &rows);
    println!();
    Ok(json!({ "file": file, "bytes": bytes, "workloads": workloads }))
}

/// All that the options ask for, Moli first.
fn contenders(path: &Path, options: &Options) -> Result<Vec<Box<dyn Contender>>, Error> {
    let pages = |workload: &Workload| {
        let (sequences, tokens) = workload.context();
        sequences * tokens.next_multiple_of(PAGE_TOKENS)
    };
    let context = options.workloads.iter().map(pages).max().unwrap_or_default();
    let moli = Moli::load(path, options.shared.threads, context)?;
    let mut contenders: Vec<Box<dyn Contender>> = vec![Box::new(InProcess::new("Moli", moli))];
    for program in &options.shared.llama_bench {
        contenders.push(Box::new(LlamaBench::new(program, path, options.shared.threads)?));
    }
    if let Some(venv) = &options.llama_cpp_venv {
        contenders.push(Box::new(LlamaPython::start(venv, path, options.shared.threads)?));
    }
    if options.candle {
        if std::env::var("RAYON_NUM_THREADS").ok() != Some(options.shared.threads.to_string()) {
            return Err(format!(
                "candle needs RAYON_NUM_THREADS={} in the environment",
                options.shared.threads
            )
            .into());
        }
        contenders.push(Box::new(InProcess::new("candle", Candle::load(path)?)));
    }
    Ok(contenders)
}

/// Tokens per second of each contender and round. Who fails says why and is left out from then on.
fn measure(contenders: &mut [Box<dyn Contender>], workload: Workload, rounds: usize) -> Vec<Vec<f64>> {
    let mut samples = vec![Some(Vec::new()); contenders.len()];
    for round in 1..=rounds {
        for (contender, slot) in contenders.iter_mut().zip(&mut samples) {
            let Some(speeds) = slot else { continue };
            match contender.seconds(workload) {
                Ok(seconds) => {
                    let speed = workload.tokens() as f64 / seconds;
                    eprintln!("{workload}, round {round}: {} {}", contender.name(), rounded(speed));
                    speeds.push(speed);
                }
                Err(error) => {
                    eprintln!("{workload}: {} is left out: {error}", contender.name());
                    *slot = None;
                }
            }
        }
    }
    samples.into_iter().map(Option::unwrap_or_default).collect()
}

/// Medians of all, then the ratios to all but the first.
fn row(workload: Workload, samples: &[Vec<f64>]) -> Vec<String> {
    let mut cells = vec![workload.to_string()];
    cells.extend(samples.iter().map(|speeds| match speeds.as_slice() {
        [] => "–".to_owned(),
        speeds => rounded(median(speeds.iter().copied())),
    }));
    let (moli, others) = samples.split_first().unwrap_or((const { &Vec::new() }, &[]));
    for other in others {
        let ratios: Vec<f64> = moli.iter().zip(other).map(|(moli, other)| moli / other).collect();
        let least = ratios.iter().copied().fold(f64::INFINITY, f64::min);
        let greatest = ratios.iter().copied().fold(0.0, f64::max);
        cells.push(match ratios.len() {
            0 => "–".to_owned(),
            _ => format!("{:.2} ({least:.2} to {greatest:.2})", median(ratios)),
        });
    }
    cells
}
