//! Where numbers come from, and the few that stand for many.

use std::fs;
use std::process::{Command, ExitCode};

use moli_bench::watch::Computes;
use moli_kernels::Isa;
use serde_json::{Value, json};

use super::Error;

/// The machine of a measurement. Without it a number means nothing.
pub(crate) struct Machine {
    processor: String,
    threads: usize,
    date: String,
    load: String,
}

impl Machine {
    /// This one, now, for work on that many threads.
    pub(crate) fn here(threads: usize) -> Self {
        let machine = moli_bench::machine::describe(Isa::detect(), &Computes::Processor);
        let date = Command::new("date").args(["-u", "+%Y-%m-%d %H:%M UTC"]).output().ok();
        let load = fs::read_to_string("/proc/loadavg").ok();
        let unknown = || "unknown".to_owned();
        Self {
            processor: machine.cpu.unwrap_or(machine.arch),
            threads,
            date: date.map_or_else(unknown, |date| String::from_utf8_lossy(&date.stdout).trim().to_owned()),
            load: load.and_then(|load| Some(load.split(' ').next()?.to_owned())).unwrap_or_else(unknown),
        }
    }

    pub(crate) fn json(&self) -> Value {
        json!({
            "processor": self.processor,
            "isa": Isa::detect().name(),
            "threads": self.threads,
            "date": self.date,
            "load": self.load,
        })
    }
}

impl std::fmt::Display for Machine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { processor, threads, date, load } = self;
        write!(f, "{processor}, {}, {threads} threads, {date}; load before: {load}", Isa::detect())
    }
}

/// Ends a bench, with the words of its error if it has one.
pub(crate) fn end(result: Result<(), Error>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// The middle one, or the mean of the middle two; 0 of none.
pub(crate) fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    moli_bench::statistics::median(&values.into_iter().collect::<Vec<_>>())
}

/// Three digits that count.
pub(crate) fn rounded(value: f64) -> String {
    let digits = if value >= 100.0 {
        0
    } else if value >= 10.0 {
        1
    } else {
        2
    };
    format!("{value:.digits$}")
}

/// A table of Markdown.
pub(crate) fn print_table(head: &[String], rows: &[Vec<String>]) {
    let line = |cells: &[String]| println!("| {} |", cells.join(" | "));
    line(head);
    println!("|{}", "---|".repeat(head.len()));
    rows.iter().for_each(|row| line(row));
}
