//! `moli bench compare`.

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use clap::Args;
use moli_bench::compare::{Options, compare};
use moli_bench::format::{Format, write_comparison};
use moli_bench::read::read;

use crate::cli::Exit;
use crate::options::share;
use crate::output::{Answers, note};

/// Say whether the second of two measurements is faster or slower than the first
///
/// Rows with the same model, test, threads, type of keys and values, and context are compared; anything unlike is refused with the
/// field and both values. Machines and builds may differ, and it is said in what.
#[derive(Debug, Args)]
#[command(
    after_help = "Exit status: 0 compared, 1 an error, 2 wrong usage, 3 slower than --fail-if-slower allows."
)]
pub(crate) struct Compare {
    /// What is compared with, from `moli bench --format json`
    #[arg(value_name = "A.json")]
    a: PathBuf,
    /// What is compared
    #[arg(value_name = "B.json")]
    b: PathBuf,
    /// Exit with status 3 if a row is shown to be slower, and by more than P, such as 5%
    #[arg(long, value_name = "P", value_parser = share)]
    fail_if_slower: Option<f64>,
    /// Compare the rows that both have, where some are in one only
    #[arg(long)]
    common: bool,
    /// What runs of one build differ by on such a machine (a standard deviation), such as 1% where nothing else runs; otherwise what
    /// a shared virtual machine shows, 2%, and 5% of a model that was loaded once
    #[arg(long, value_name = "P", value_parser = share)]
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
        let reports = [&self.a, &self.b].map(|path| read(path).with_context(|| path.display().to_string()));
        let [a, b] = reports;
        let options = Options { common: self.common, run_to_run: self.run_to_run };
        let comparison = compare(&a?, &b?, &options)?;
        let mut text = Vec::new();
        write_comparison(&comparison, self.format, &mut text)?;
        Answers::new().text(&String::from_utf8_lossy(&text))?;
        let Some(allowed) = self.fail_if_slower else { return Ok(Exit::Done) };
        let slower = comparison.rows.iter().filter(|row| row.slower_by_more_than(allowed)).count();
        if slower == 0 {
            return Ok(Exit::Done);
        }
        note!("{slower} of {} rows are slower by more than {}%", comparison.rows.len(), allowed * 100.0);
        Ok(Exit::Worse)
    }
}
