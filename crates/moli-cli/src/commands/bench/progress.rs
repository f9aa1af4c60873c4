//! A run's progress on standard error: a bar where a person watches, a line for each round elsewhere.

use std::io::{self, IsTerminal};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use moli_bench::run::Event;
use moli_bench::turns::Event as Turn;

use crate::output::{escape, note};

/// Shows what is measured.
pub(super) struct Progress {
    /// `None` where standard error is not a terminal.
    bar: Option<ProgressBar>,
    /// The last line where it is not.
    line: String,
}

impl Progress {
    pub(super) fn new() -> Self {
        let bar = io::stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template("{msg} {wide_bar} {pos}/{len} {eta}")
                .unwrap_or_else(|_| ProgressStyle::default_bar());
            ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr()).with_style(style)
        });
        Self { bar, line: String::new() }
    }

    pub(super) fn update(&mut self, event: &Event<'_>) {
        match event {
            Event::Loading { model } => self.say(format!("loading {}", escape(model))),
            Event::Measuring { case, round, done, total } => match &self.bar {
                Some(bar) => {
                    bar.set_length(*total as u64);
                    bar.set_position(*done as u64);
                    bar.set_message(format!(
                        "{} {}, {} threads",
                        escape(&case.model),
                        case.work,
                        case.threads
                    ));
                }
                None => self.say(match round {
                    0 => "warming up".to_owned(),
                    round => format!("round {round}"),
                }),
            },
            Event::Sustained { case, elapsed, time } => match &self.bar {
                Some(bar) => {
                    bar.set_length(time.as_secs());
                    bar.set_position(elapsed.as_secs());
                    bar.set_message(escape(&case.model).into_owned());
                }
                None => self.say("sustaining".to_owned()),
            },
        }
    }

    /// Shows whose turn it is.
    pub(super) fn turn(&mut self, event: &Turn<'_>) {
        let Turn { program, round, done, total } = event;
        match &self.bar {
            Some(bar) => {
                bar.set_length(*total as u64);
                bar.set_position(*done as u64);
                bar.set_message(escape(&program.display().to_string()).into_owned());
                // Between two events minutes may pass.
                bar.enable_steady_tick(Duration::from_secs(1));
            }
            None => self.say(format!("round {round}")),
        }
    }

    /// Writes a line, not twice in succession.
    fn say(&mut self, line: String) {
        match &self.bar {
            Some(bar) => bar.set_message(line),
            None if line != self.line => {
                note!("{line}");
                self.line = line;
            }
            None => {}
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
