//! Where words go: answers to standard output, all else to standard error, and neither ends in a panic when its reader
//! has gone.

use std::borrow::Cow;
use std::fmt::{self, Write as _};
use std::io::{self, IsTerminal as _, Write as _};

use anyhow::{Context, Result};
use serde::Serialize;

pub(crate) use moli_engine::units::{bytes, count};

/// Writes one line to standard error. A closed standard error is nobody's problem.
pub(crate) fn note_line(line: fmt::Arguments<'_>) {
    let _ = writeln!(io::stderr().lock(), "{line}");
}

/// [`note_line`] with a format string.
macro_rules! note {
    ($($argument:tt)*) => { $crate::output::note_line(format_args!($($argument)*)) };
}
pub(crate) use note;

/// Standard output failed; when the reader has gone (`| head -1`), that is a quiet end and no error.
#[derive(Debug)]
pub(crate) struct StdoutError(io::Error);

impl StdoutError {
    /// Whether the reader has closed its end.
    pub(crate) fn reader_has_gone(&self) -> bool {
        self.0.kind() == io::ErrorKind::BrokenPipe
    }
}

impl fmt::Display for StdoutError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot write to standard output: {}", self.0)
    }
}

impl std::error::Error for StdoutError {}

/// Standard output, for answers and nothing else.
#[derive(Debug)]
pub(crate) struct Answers {
    terminal: bool,
    line_open: bool,
}

impl Answers {
    pub(crate) fn new() -> Self {
        Self { terminal: io::stdout().is_terminal(), line_open: false }
    }

    /// Writes a piece of a model's answer at once: as it is into a file or a pipe, without control sequences to a
    /// terminal.
    pub(crate) fn stream(&mut self, text: &str) -> Result<(), StdoutError> {
        if text.is_empty() {
            return Ok(());
        }
        let text = if self.terminal { harmless(text) } else { Cow::Borrowed(text) };
        if let Some(last) = text.chars().last() {
            self.line_open = last != '\n';
        }
        self.write(text.as_bytes())
    }

    /// Ends the line that an answer left open on a terminal; a file or a pipe gets the answer's own bytes only.
    pub(crate) fn end_answer(&mut self) -> Result<(), StdoutError> {
        let open = std::mem::take(&mut self.line_open);
        if self.terminal && open { self.write(b"\n") } else { Ok(()) }
    }

    /// Writes text that this program made itself.
    pub(crate) fn text(&mut self, text: &str) -> Result<(), StdoutError> {
        self.write(text.as_bytes())
    }

    /// Writes one JSON object and a newline.
    pub(crate) fn json(&mut self, value: &impl Serialize) -> Result<()> {
        let mut text = serde_json::to_string(value).context("cannot write JSON")?;
        text.push('\n');
        Ok(self.write(text.as_bytes())?)
    }

    /// Writes a report, for programs or for people.
    pub(crate) fn report<R: Serialize>(
        &mut self,
        json: bool,
        report: &R,
        people: impl FnOnce(&R) -> String,
    ) -> Result<()> {
        if json { self.json(report) } else { Ok(self.text(&people(report))?) }
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), StdoutError> {
        let mut out = io::stdout().lock();
        out.write_all(bytes).and_then(|()| out.flush()).map_err(StdoutError)
    }
}

/// A model's text for a terminal: control characters become pictures of themselves, so that no answer can move the
/// cursor, retitle the window or paste. Newlines and tabs stay; carriage returns go, most belong to a newline.
pub(crate) fn harmless(text: &str) -> Cow<'_, str> {
    if !text.chars().any(|c| c.is_control() && c != '\n' && c != '\t') {
        return Cow::Borrowed(text);
    }
    let picture = |c: char| match c {
        '\n' | '\t' => Some(c),
        '\r' => None,
        '\u{7f}' => Some('\u{2421}'),
        '\0'..='\u{1f}' => char::from_u32(0x2400 + u32::from(c)),
        c if c.is_control() => Some(char::REPLACEMENT_CHARACTER),
        c => Some(c),
    };
    Cow::Owned(text.chars().filter_map(picture).collect())
}

/// A string from a file as one line for a person: control characters, line separators and marks that reorder text are
/// written as escapes.
pub(crate) fn escape(text: &str) -> Cow<'_, str> {
    let hidden = |c: char| {
        c.is_control()
            || matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
    };
    if !text.chars().any(hidden) {
        return Cow::Borrowed(text);
    }
    let mut escaped = String::with_capacity(text.len() + 8);
    for c in text.chars() {
        if hidden(c) {
            let _ = write!(escaped, "{}", c.escape_default());
        } else {
            escaped.push(c);
        }
    }
    Cow::Owned(escaped)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escape_sequences_from_a_model_are_harmless_on_a_terminal() {
        assert_eq!(harmless("a\tb\nc\r\n"), "a\tb\nc\n");
        assert_eq!(harmless("\u{1b}[2J\u{7}\u{7f}\u{9b}1m"), "␛[2J␇␡\u{fffd}1m");
        assert!(matches!(harmless("plain 中文 🙂\n"), Cow::Borrowed(_)));
    }

    #[test]
    fn strings_from_files_stay_on_one_line() {
        assert_eq!(escape("name\n\u{1b}[31m\u{202e}x"), "name\\n\\u{1b}[31m\\u{202e}x");
        assert!(matches!(escape("SmolLM2 中文"), Cow::Borrowed(_)));
    }
}
