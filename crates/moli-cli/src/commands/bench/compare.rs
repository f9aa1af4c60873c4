//! `moli bench compare`.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use clap::{Args, Parser};
use moli_bench::compare::{Options, compare};
use moli_bench::format::{Format, write_comparison};
use moli_bench::read::read;
use moli_bench::{Report, turns};

use super::Measure;
use super::outputs::Outputs;
use super::progress::Progress;
use crate::cli::Exit;
use crate::failure::UsageError;
use crate::interrupt;
use crate::options::share;
use crate::output::{Answers, note};

/// Say whether the second of two measurements, or of two programs, is faster or slower than the first
///
/// Rows with the same model, test, threads, type of keys and values, and context are compared; anything unlike is refused with the
/// field and both values. Machines and builds may differ, and it is said in what.
///
/// With --run, A and B are two `moli` programs: both measure in turns, round by round, and the rounds' ratios are compared, which shows
/// far smaller differences than two reports of different minutes do.
#[derive(Debug, Args)]
#[command(
    override_usage = "moli bench compare [OPTIONS] <A.json> <B.json>\n       \
                      moli bench compare [OPTIONS] --run <A> <B> [-- BENCH_ARGUMENTS...]",
    after_help = "Exit status: 0 compared, 1 an error, 2 wrong usage, 3 slower than --fail-if-slower allows, 130 interrupted."
)]
pub(crate) struct Compare {
    /// What is compared with: a report of `moli bench --format json`, with --run a program
    a: PathBuf,
    /// What is compared
    b: PathBuf,
    /// Run the programs A and B in turns, with the arguments of `moli bench` that come behind --
    #[arg(long)]
    run: bool,
    /// Times that each program is run, 6 to 100
    #[arg(long, value_name = "N", default_value_t = 12, requires = "run", allow_negative_numbers = true)]
    rounds: usize,
    /// Write both reports, which `moli bench compare` compares again as it does now
    #[arg(long, num_args = 2, value_names = ["A.json", "B.json"], requires = "run")]
    reports: Vec<PathBuf>,
    /// What both programs measure, as `moli bench` has it, such as: qwen2.5-7b-q4_k_m.gguf -p 256 -n 64
    #[arg(last = true, requires = "run", value_name = "BENCH_ARGUMENTS")]
    arguments: Vec<OsString>,
    /// Exit with status 3 if a row is shown to be slower, and by more than P, such as 5%
    #[arg(long, value_name = "P", value_parser = share)]
    fail_if_slower: Option<f64>,
    /// Compare the rows that both have, where some are in one only
    #[arg(long, conflicts_with = "run")]
    common: bool,
    /// What runs of one build differ by on such a machine (a standard deviation), such as 1% where nothing else runs; otherwise what
    /// a shared virtual machine shows, 2%, and 5% of a model that was loaded once
    #[arg(long, value_name = "P", value_parser = share, conflicts_with = "run")]
    run_to_run: Option<f64>,
    /// table, json or md
    #[arg(long, value_name = "FORMAT", default_value = "table", value_parser = format)]
    format: Format,
}

fn format(text: &str) -> Result<Format, String> {
    match text.parse()? {
        format @ (Format::Table | Format::Json | Format::Md) => Ok(format),
        _ => Err("a comparison is a table, json or md".to_owned()),
    }
}

impl Compare {
    pub(crate) fn run(self) -> Result<Exit> {
        let (reports, interrupted) = if self.run { self.in_turns()? } else { (self.read()?, false) };
        let [a, b] = &reports;
        let options = Options { common: self.common, run_to_run: self.run_to_run };
        let comparison = compare(a, b, &options)?;
        let mut text = Vec::new();
        write_comparison(&comparison, self.format, &mut text)?;
        Answers::new().text(&String::from_utf8_lossy(&text))?;
        if interrupted {
            return Ok(Exit::Interrupted);
        }
        let Some(allowed) = self.fail_if_slower else { return Ok(Exit::Done) };
        let slower = comparison.rows.iter().filter(|row| row.slower_by_more_than(allowed)).count();
        if slower == 0 {
            return Ok(Exit::Done);
        }
        note!("{slower} of {} rows are slower by more than {}%", comparison.rows.len(), allowed * 100.0);
        Ok(Exit::Worse)
    }

    fn read(&self) -> Result<[Report; 2]> {
        let read = |path: &Path| read(path).with_context(|| path.display().to_string());
        Ok([read(&self.a)?, read(&self.b)?])
    }

    /// Has both programs measure; whether that was interrupted after enough rounds.
    fn in_turns(&self) -> Result<([Report; 2], bool)> {
        let outputs = self.reports.iter().map(|path| Outputs::open(Some(path), Some(Format::Json), &[]));
        let outputs = outputs.collect::<Result<Vec<_>>>()?;
        let options = turns::Options {
            programs: [self.a.clone(), self.b.clone()],
            arguments: Passed::check(&self.arguments)?,
            rounds: self.rounds,
        };
        let mut progress = Progress::new();
        let (reports, cancelled) = interrupt::cancellable(|cancel| {
            (turns::run(&options, cancel, &mut |event| progress.turn(&event)), cancel.is_cancelled())
        });
        drop(progress);
        let reports = reports?;
        for (output, report) in outputs.into_iter().zip(&reports) {
            output.write(report)?;
        }
        Ok((reports, cancelled))
    }
}

/// What two programs are called with.
#[derive(Debug, Parser)]
#[command(name = "moli bench", no_binary_name = true, disable_help_flag = true)]
struct Passed {
    #[command(flatten)]
    measure: Measure,
}

impl Passed {
    /// The arguments, and those that they need for being compared; wrong ones are told before anything runs.
    fn check(arguments: &[OsString]) -> Result<Vec<OsString>> {
        let Self { measure } = Self::try_parse_from(arguments).map_err(|error| {
            let text = error.to_string();
            let line = text.lines().next().unwrap_or_default();
            anyhow::Error::new(UsageError(
                format!("behind --: {}", line.trim_start_matches("error: ")).into(),
            ))
        })?;
        let mut all = arguments.to_vec();
        all.extend(measure.compared()?.into_iter().map(OsString::from));
        Ok(all)
    }
}
