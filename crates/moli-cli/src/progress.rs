//! Progress on standard error: a bar where a person watches, plain lines elsewhere.

use std::io::{self, IsTerminal};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use moli_hub::{Phase, Progress};

use crate::output::{bytes, escape, note};

const BYTES: &str = "{msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}";
const BYTES_WITHOUT_END: &str = "{msg} {spinner} {bytes} {bytes_per_sec}";
const PIECES: &str = "{msg} {wide_bar} {pos}/{len} pieces {eta}";

/// A bar on a terminal.
fn bar(message: String, total: Option<u64>, template: &str) -> ProgressBar {
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    let bar = ProgressBar::with_draw_target(total, ProgressDrawTarget::stderr()).with_style(style);
    bar.set_message(message);
    bar
}

/// The progress of one step. The bar is gone when it is dropped.
pub(crate) struct Bar(Option<ProgressBar>);

impl Bar {
    /// Of so many bytes.
    pub(crate) fn new(step: &str, total: u64) -> Self {
        if io::stderr().is_terminal() {
            return Self(Some(bar(step.to_owned(), Some(total), BYTES)));
        }
        note!("{step} ({})", bytes(total));
        Self(None)
    }

    /// Of so many pieces of a text.
    pub(crate) fn pieces(step: &str, total: usize) -> Self {
        let shown = io::stderr().is_terminal();
        Self(shown.then(|| bar(step.to_owned(), Some(total as u64), PIECES)))
    }

    pub(crate) fn advance(&self, bytes: u64) {
        if let Some(bar) = &self.0 {
            bar.inc(bytes);
        }
    }

    /// So many are done.
    pub(crate) fn at(&self, done: usize) {
        if let Some(bar) = &self.0 {
            bar.set_position(done as u64);
        }
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        if let Some(bar) = &self.0 {
            bar.finish_and_clear();
        }
    }
}

/// Shows what the hub does.
pub(crate) struct Report {
    /// The bar of the present step; `None` before the first one and where standard error is not a terminal.
    bar: Option<ProgressBar>,
    terminal: bool,
    step: Option<(Phase, String)>,
}

impl Report {
    pub(crate) fn new() -> Self {
        Self { bar: None, terminal: io::stderr().is_terminal(), step: None }
    }

    fn start(&mut self, phase: Phase, file: &str, total: Option<u64>) {
        let verb = match phase {
            Phase::Downloading => "downloading",
            Phase::Unpacking => "unpacking",
            Phase::Verifying => "verifying",
        };
        self.clear();
        let file = escape(file);
        if self.terminal {
            let template = if total.is_some() { BYTES } else { BYTES_WITHOUT_END };
            self.bar = Some(bar(format!("{verb} {file}"), total, template));
        } else {
            match total {
                Some(total) => note!("{verb} {file} ({})", bytes(total)),
                None => note!("{verb} {file}"),
            }
        }
        self.step = Some((phase, file.into_owned()));
    }

    fn clear(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

impl Progress for Report {
    fn update(&mut self, phase: Phase, file: &str, done: u64, total: Option<u64>) {
        if !self.step.as_ref().is_some_and(|(p, f)| *p == phase && *f == escape(file)) {
            self.start(phase, file, total);
        }
        if let Some(bar) = &self.bar {
            if let Some(total) = total {
                bar.set_length(total);
            }
            bar.set_position(done);
        }
    }

    fn message(&mut self, text: &str) {
        let text = escape(text);
        match &self.bar {
            Some(bar) => bar.suspend(|| note!("{text}")),
            None => note!("{text}"),
        }
    }
}

impl Drop for Report {
    fn drop(&mut self) {
        self.clear();
    }
}
