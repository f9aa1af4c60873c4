//! A conversation on the disk: what was said, and in a file beside it what the model has computed of it.
//!
//! The second file saves time and nothing else. Where it is missing, damaged or another model's, the conversation is read anew.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use moli_engine::{Engine, EngineError, Saved, Session, SnapshotError};

use crate::conversation::Conversation;
use crate::output::{escape, note};

/// What the name of the second file has behind that of the first.
const SUFFIX: &str = ".kv";

/// Where the keys and values of this conversation are.
pub(crate) fn beside(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(SUFFIX);
    name.into()
}

/// Writes both files.
pub(crate) fn save(conversation: &Conversation, session: &Session, path: &Path) -> Result<Saved> {
    conversation.save(path)?;
    session
        .save(&beside(path))
        .with_context(|| format!("{} is saved, but not its keys and values", path.display()))
}

/// Reads both files, the second if it is of use.
pub(crate) fn load(engine: &Engine, path: &Path) -> Result<(Conversation, Session)> {
    let conversation = Conversation::load(path)?;
    let session = engine.restore(&beside(path)).or_else(|error| match error {
        EngineError::Snapshot { error: SnapshotError::Io(io), .. } if io.kind() == ErrorKind::NotFound => {
            Ok(engine.session())
        }
        EngineError::Snapshot { .. } => {
            note!("{}", escape(&format!("{error}: the conversation is read anew")));
            Ok(engine.session())
        }
        error => Err(error),
    })?;
    Ok((conversation, session))
}

/// [`load`], or a new conversation where there is no file of this name.
pub(crate) fn load_or_begin(engine: &Engine, path: Option<&Path>) -> Result<(Conversation, Session)> {
    match path {
        Some(path) if path.try_exists().unwrap_or(true) => load(engine, path),
        _ => Ok((Conversation::default(), engine.session())),
    }
}
