//! The `moli` command: arguments in, answers to standard output, everything else to standard error.

mod affinity;
mod cli;
mod commands;
mod conversation;
mod failure;
mod interrupt;
mod load;
mod logging;
mod lora;
mod options;
mod output;
mod progress;
mod repl;
mod reply;
mod saved;
mod text_input;

fn main() -> std::process::ExitCode {
    cli::main()
}
