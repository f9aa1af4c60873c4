//! The command line as a whole: parsing, and what the process exits with.

use std::process::ExitCode;
use std::sync::OnceLock;
use std::thread::available_parallelism;

use clap::Parser;
use moli_kernels::Isa;

use crate::commands::Command;
use crate::{failure, interrupt};

/// Runs quantised language models on the device in front of you.
#[derive(Debug, Parser)]
#[command(name = "moli", version = version(), max_term_width = 100, arg_required_else_help = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    command: Command,
}

/// How a command that did not fail came to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    /// It did what it was asked.
    Done,
    /// Ctrl-C ended it early.
    Interrupted,
    /// A comparison came out worse than was allowed.
    Worse,
}

/// Parses the arguments, runs the command and reports how it went: 0 done, 1 an error, 2 wrong usage, 3 worse than
/// allowed, 130 interrupted.
pub(crate) fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version come this way too; a closed pipe is no reason to complain about either.
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(failure::USAGE));
        }
    };
    let installed = if cli.command.handles_signals() { Ok(()) } else { interrupt::install() };
    match installed.and_then(|()| cli.command.run()) {
        Ok(Exit::Done) => ExitCode::SUCCESS,
        Ok(Exit::Worse) => ExitCode::from(failure::WORSE),
        Ok(Exit::Interrupted) => ExitCode::from(interrupt::EXIT_CODE),
        Err(error) => failure::report(&error),
    }
}

/// `0.1.0 (avx2, 2 threads available)`.
fn version() -> &'static str {
    static VERSION: OnceLock<String> = OnceLock::new();
    VERSION.get_or_init(|| {
        let threads = available_parallelism().map_or(1, usize::from);
        let plural = if threads == 1 { "" } else { "s" };
        format!(
            "{} ({}, {threads} thread{plural} available)",
            env!("CARGO_PKG_VERSION"),
            Isa::detect().name()
        )
    })
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_arguments_are_consistent() {
        super::Cli::command().debug_assert();
    }
}
