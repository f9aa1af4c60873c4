//! Stub.
use std::io::{self, Write};

use crate::Report;

/// A form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// For people.
    Table,
    /// One object.
    Json,
    /// An object a row.
    Jsonl,
    /// Comma-separated.
    Csv,
    /// Markdown.
    Md,
    /// llama-bench's.
    LlamaBenchJsonl,
}

impl std::str::FromStr for Format {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "table" => Ok(Self::Table),
            "json" => Ok(Self::Json),
            "jsonl" => Ok(Self::Jsonl),
            "csv" => Ok(Self::Csv),
            "md" => Ok(Self::Md),
            "llama-bench-jsonl" => Ok(Self::LlamaBenchJsonl),
            _ => Err(format!("no format {text}")),
        }
    }
}

/// Writes it.
///
/// # Errors
/// When it can't be written.
pub fn write(report: &Report, format: Format, out: &mut dyn Write) -> io::Result<()> {
    if format == Format::Json {
        serde_json::to_writer(&mut *out, report)?;
        return writeln!(out);
    }
    for row in &report.rows {
        writeln!(out, "{:?} {:.2} ± {:.1}%", row.case, row.rate.median, row.rate.spread * 100.0)?;
    }
    Ok(())
}
