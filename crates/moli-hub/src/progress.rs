//! What a pull tells its caller while it works.

/// What is being done with a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Bytes arrive from a source.
    Downloading,
    /// A wheel's members are written out.
    Unpacking,
    /// The sha256 is computed.
    Verifying,
}

/// Receives the progress of a pull, on the calling thread.
pub trait Progress {
    /// `done` of `total` bytes of `file` (the total is unknown for some sources). Called often: draw sparingly.
    fn update(&mut self, phase: Phase, file: &str, done: u64, total: Option<u64>) {
        let _ = (phase, file, done, total);
    }

    /// One line for a person: which source is tried, what is waited for.
    fn message(&mut self, text: &str) {
        let _ = text;
    }
}

/// Says nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct Quiet;

impl Progress for Quiet {}
