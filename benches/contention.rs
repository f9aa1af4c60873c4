//! How fast a model generates while other programs keep the processor busy, as they do on most devices.
//!
//! ```sh
//! cargo bench -p moli --bench contention -- MODEL.gguf --llama-bench path/to/llama-bench
//! ```
//!
//! The busy programs are copies of this one that do nothing but count. Rounds interleave the quiet and the busy measurements,
//! and each percentage is the median of the rounds' own.

mod common;

use std::path::PathBuf;
use std::process::{Child, Command, ExitCode};
use std::thread;
use std::time::{Duration, Instant};

use clap::Parser;
use common::Error;
use common::llama_bench::LlamaBench;
use common::options::Shared;
use common::peer::Moli;
use common::report::{Machine, end, median, print_table, rounded};
use common::workload::{Contender, InProcess, Workload};
use moli_model::PAGE_TOKENS;

/// Busy programs beside the model.
const COMPETITORS: [usize; 3] = [0, 1, 2];
/// A busy program ends after this long even if nobody ends it.
const LONGEST: Duration = Duration::from_secs(600);
/// Busy programs run this long before anything is measured, so that the scheduler has got used to them.
const SETTLE: Duration = Duration::from_millis(500);

/// Measures generation beside busy programs.
#[derive(Parser)]
struct Options {
    /// A GGUF file; without one, the default model.
    model: Option<PathBuf>,
    /// What is timed: tg128 generates 128 tokens.
    #[arg(long, default_value = "tg128")]
    workload: Workload,
    #[command(flatten)]
    shared: Shared,
    /// Be a busy program.
    #[arg(long, hide = true)]
    spin: bool,
}

fn main() -> ExitCode {
    let options = Options::parse();
    if options.spin {
        spin();
        return ExitCode::SUCCESS;
    }
    end(run(options))
}

fn run(options: Options) -> Result<(), Error> {
    let path = match options.model {
        Some(path) => path,
        None => moli_testkit::real_model("smollm2-135m-instruct")?,
    };
    let (sequences, tokens) = options.workload.context();
    let moli = Moli::load(&path, options.shared.threads, sequences * tokens.next_multiple_of(PAGE_TOKENS))?;
    let mut contenders: Vec<Box<dyn Contender>> = vec![Box::new(InProcess::new("Moli", moli))];
    for program in &options.shared.llama_bench {
        contenders.push(Box::new(LlamaBench::new(program, &path, options.shared.threads)?));
    }

    println!("{}", Machine::here(options.shared.threads));
    println!(
        "{}, {}, tokens per second, medians of {} rounds\n",
        path.display(),
        options.workload,
        options.shared.rounds
    );
    // Speeds by contender and competitors, one of each round.
    let mut speeds = vec![COMPETITORS.map(|_| Vec::new()); contenders.len()];
    for round in 1..=options.shared.rounds {
        for (contender, speeds) in contenders.iter_mut().zip(&mut speeds) {
            for (count, speeds) in COMPETITORS.into_iter().zip(speeds) {
                let busy = Busy::start(count)?;
                let speed = options.workload.tokens() as f64 / contender.seconds(options.workload)?;
                drop(busy);
                eprintln!("round {round}, {count} busy: {} {}", contender.name(), rounded(speed));
                speeds.push(speed);
            }
        }
    }
    let mut head = vec!["busy programs".to_owned()];
    head.extend(COMPETITORS.map(|count| count.to_string()));
    let mut rows = vec![fair_shares(options.shared.threads)];
    rows.extend(contenders.iter().zip(&speeds).map(|(contender, speeds)| row(contender.name(), speeds)));
    print_table(&head, &rows);
    Ok(())
}

/// What the processor would give each program if it shared itself out evenly among all their threads.
fn fair_shares(threads: usize) -> Vec<String> {
    let processors = thread::available_parallelism().map_or(threads, usize::from);
    let share = |count: usize| (processors as f64 / (threads + count) as f64).min(1.0);
    let mut cells = vec!["fair share".to_owned()];
    cells.extend(COMPETITORS.map(|count| format!("{:.0}%", share(count) * 100.0)));
    cells
}

fn row(name: &str, speeds: &[Vec<f64>; COMPETITORS.len()]) -> Vec<String> {
    let quiet = &speeds[0];
    let mut cells = vec![name.to_owned()];
    cells.extend(speeds.iter().map(|speeds| {
        let shares = speeds.iter().zip(quiet).map(|(speed, quiet)| speed / quiet);
        format!("{} ({:.0}%)", rounded(median(speeds.iter().copied())), median(shares) * 100.0)
    }));
    cells
}

/// Busy programs that end with it.
struct Busy(Vec<Child>);

impl Busy {
    fn start(count: usize) -> Result<Self, Error> {
        let mut busy = Self(Vec::new());
        for _ in 0..count {
            busy.0.push(Command::new(std::env::current_exe()?).arg("--spin").spawn()?);
        }
        thread::sleep(SETTLE);
        Ok(busy)
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        for child in &mut self.0 {
            // It may have ended by itself.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn spin() {
    let start = Instant::now();
    let mut count = 0u64;
    while start.elapsed() < LONGEST {
        for _ in 0..1_000_000 {
            count = std::hint::black_box(count.wrapping_add(1));
        }
    }
}
