//! A comparison, for people and programs.

use std::io::{self, Write};

use crate::compare::{Comparison, Ratio};
use crate::names::printable;

use super::Format;
use super::columns::{Align, Columns, markdown};
use super::people::speed;

/// Writes a comparison as a table, as JSON or as Markdown.
///
/// # Errors
/// What `out` gives, and `InvalidInput` for another form.
pub fn write_comparison(comparison: &Comparison, format: Format, out: &mut dyn Write) -> io::Result<()> {
    match format {
        Format::Table => {
            writeln!(out, "{}", columns(comparison).text())?;
            lines(comparison).iter().try_for_each(|line| writeln!(out, "{}", printable(line)))
        }
        Format::Md => {
            writeln!(out, "{}", columns(comparison).markdown())?;
            lines(comparison).iter().try_for_each(|line| writeln!(out, "- {}", markdown(&printable(line))))
        }
        Format::Json => {
            serde_json::to_writer_pretty(&mut *out, comparison)?;
            writeln!(out)
        }
        Format::Jsonl | Format::Csv | Format::LlamaBenchJsonl => {
            Err(io::Error::new(io::ErrorKind::InvalidInput, "a comparison is a table, json or md"))
        }
    }
}

fn columns(comparison: &Comparison) -> Columns {
    let heads = [
        ("row", Align::Left),
        ("A tokens/s", Align::Right),
        ("B tokens/s", Align::Right),
        ("B/A", Align::Right),
        ("interval", Align::Right),
        ("verdict", Align::Left),
    ];
    let cells = |row: &Ratio| {
        let [low, high] = row.interval;
        let [a, b] = row.rates.map(speed);
        vec![
            row.row.clone(),
            a,
            b,
            format!("{:.3}", row.ratio),
            format!("{low:.3}–{high:.3}"),
            row.verdict.to_string(),
        ]
    };
    Columns::new(&heads, comparison.rows.iter().map(cells).collect())
}

fn lines(comparison: &Comparison) -> Vec<String> {
    let confidence = comparison.confidence * 100.0;
    let fastest = "the speed that the fastest tenth of the repetitions reaches";
    let mut lines = vec![match comparison.rounds {
        None => format!("compared: {fastest}; interval: {confidence:.0}% confidence"),
        Some(rounds) => format!(
            "compared: {fastest}, in each of {rounds} rounds in which both took turns; B/A: the middle of the rounds' ratios; \
             interval: {confidence:.0}% confidence"
        ),
    }];
    lines.extend(comparison.differences.iter().map(|difference| format!("differs: {difference}")));
    lines.extend(comparison.unmatched.iter().map(|unmatched| format!("not compared: {unmatched}")));
    lines.extend(comparison.notes.iter().map(|note| format!("note: {note}")));
    lines
}
