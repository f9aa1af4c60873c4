//! A report, in the forms that people and programs read.

mod columns;
mod comparison;
mod csv;
mod llama_bench;
mod people;

use std::io::{self, Write};
use std::str::FromStr;

use serde::Serialize;

use crate::report::{Build, Machine, Model, Report, Row};

pub use comparison::write_comparison;

/// A form of a report.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// A table for a terminal, what has to be known about it below.
    Table,
    /// The report itself.
    Json,
    /// A row a line, each with the run, the machine and the model.
    Jsonl,
    /// A row a line, under a line of names.
    Csv,
    /// [`Self::Table`] as Markdown.
    Md,
    /// A row a line with the field names of llama-bench; rows that it has no form for are left out.
    LlamaBenchJsonl,
}

impl Format {
    /// All of them, by their names.
    pub const NAMES: [(&'static str, Self); 6] = [
        ("table", Self::Table),
        ("json", Self::Json),
        ("jsonl", Self::Jsonl),
        ("csv", Self::Csv),
        ("md", Self::Md),
        ("llama-bench-jsonl", Self::LlamaBenchJsonl),
    ];
}

impl FromStr for Format {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::NAMES.iter().find(|(name, _)| *name == text).map(|(_, format)| *format);
        found.ok_or_else(|| {
            let names: Vec<&str> = Self::NAMES.iter().map(|(name, _)| *name).collect();
            format!("no format {text:?}; there are {}", names.join(", "))
        })
    }
}

/// Writes a report.
///
/// # Errors
/// What `out` gives. The report's own rows make none.
pub fn write(report: &Report, format: Format, out: &mut dyn Write) -> io::Result<()> {
    match format {
        Format::Table => out.write_all(people::text(report).as_bytes()),
        Format::Md => out.write_all(people::markdown(report).as_bytes()),
        Format::Json => {
            serde_json::to_writer_pretty(&mut *out, report)?;
            writeln!(out)
        }
        Format::Jsonl => report.rows.iter().try_for_each(|row| line(&Line::new(report, row), out)),
        Format::Csv => csv::write(report, out),
        Format::LlamaBenchJsonl => llama_bench::write(report, out),
    }
}

/// Which of a report's rows a form has no place for, in words; `None`: it has all of them.
pub fn left_out(report: &Report, format: Format) -> Option<String> {
    (format == Format::LlamaBenchJsonl).then(|| llama_bench::left_out(report)).flatten()
}

fn line(value: &impl Serialize, out: &mut dyn Write) -> io::Result<()> {
    serde_json::to_writer(&mut *out, value)?;
    writeln!(out)
}

/// A row on its own.
#[derive(Serialize)]
struct Line<'a> {
    schema: &'a str,
    date: &'a str,
    build: &'a Build,
    machine: &'a Machine,
    /// Of the row, by its name.
    model_is: Option<&'a Model>,
    #[serde(flatten)]
    row: &'a Row,
}

impl<'a> Line<'a> {
    fn new(report: &'a Report, row: &'a Row) -> Self {
        let Report { schema, date, build, machine, models, .. } = report;
        Self { schema, date, build, machine, model_is: models.get(&row.case.model), row }
    }
}

#[cfg(test)]
mod tests;
