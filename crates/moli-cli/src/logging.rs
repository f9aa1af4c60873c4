//! The log of `moli serve`, on standard error.

use std::io;

use clap::ValueEnum;
use tracing_subscriber::EnvFilter;

/// What of the log is written: as RUST_LOG elsewhere.
const FILTER: &str = "MOLI_LOG";

/// How the log is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    /// A line for each event.
    Text,
    /// A JSON object for each event.
    Json,
    /// Not at all.
    Off,
}

/// Has events written from now on.
pub(crate) fn start(format: LogFormat) {
    let filter = || {
        EnvFilter::builder().with_env_var(FILTER).try_from_env().unwrap_or_else(|_| EnvFilter::new("info"))
    };
    let log = || tracing_subscriber::fmt().with_env_filter(filter()).with_writer(io::stderr).with_ansi(false);
    // Only a second one could fail, and there is none.
    let _ = match format {
        LogFormat::Text => log().try_init(),
        LogFormat::Json => log().json().flatten_event(true).try_init(),
        LogFormat::Off => Ok(()),
    };
}
