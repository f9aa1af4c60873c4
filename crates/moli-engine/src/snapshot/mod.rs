//! Saving a session to a file, and going on with it in another process.
//!
//! What is saved is the tokens, and the keys and values that the prefix cache has of them. The computing thread reads and writes a
//! few pages at a time between two steps, and holds none in between: nobody else's pages become scarce meanwhile.
//! What has been evicted by then is left out, and is computed again when it is needed.

mod format;
#[cfg(test)]
mod tests;

use std::io;
use std::path::Path;
use std::sync::Arc;

use moli_model::{ModelError, PAGE_TOKENS};

use crate::worker::Worker;
use crate::{AdapterScale, Engine, EngineError, Session};
use format::{Bounds, Kind, Snapshot, Writer};

/// Bytes of pages that the computing thread copies at once, at least a page: a small part of what a step reads of the weights.
const JOB_BYTES: usize = 8 << 20;
/// Pages of these bytes, at most.
const JOB_PAGES: usize = 64;

/// What was saved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Saved {
    /// Tokens of the session.
    pub tokens: usize,
    /// The first of them, those whose keys and values are in the file: whole pages of 32 tokens, as far as the prefix cache
    /// had them.
    pub cached_tokens: usize,
    /// Bytes of the file.
    pub bytes: u64,
}

/// Why a session can't be saved or restored.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SnapshotError {
    /// The file can't be read or written.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The file is something else.
    #[error("this is not a saved session")]
    NotASession,
    /// Another version of the format.
    #[error("the session is in version {found} of the format, and this build reads version {supported}")]
    Version {
        /// The file's.
        found: u32,
        /// This build's.
        supported: u32,
    },
    /// The file was cut short, or has more than it should.
    #[error("the file has {actual} bytes and its header asks for {expected}")]
    Length {
        /// What the header says; at least the header's own length where there is none.
        expected: u64,
        /// The file's.
        actual: u64,
    },
    /// Its bytes are not those that were saved.
    #[error("the file is damaged: its checksum is {actual} and should be {expected}")]
    Checksum {
        /// What the file says.
        expected: String,
        /// What it is.
        actual: String,
    },
    /// It was saved with another model.
    #[error("the session is of another model: its fingerprint is {found}, and this model's {expected}")]
    OtherModel {
        /// The file's.
        found: String,
        /// This model's.
        expected: String,
    },
    /// Keys and values are kept differently here.
    #[error("the session's keys and values are kept differently: {found}; here {expected}")]
    OtherLayout {
        /// The file's.
        found: String,
        /// This engine's.
        expected: String,
    },
    /// The name of how keys and values are kept is too long.
    #[error("the name of the layout has {bytes} bytes, and may have {limit}")]
    LayoutName {
        /// Its bytes.
        bytes: u32,
        /// The most there may be.
        limit: u32,
    },
    /// It was computed with other adapters, in another order or scaled otherwise.
    #[error(
        "the session is of the adapters {found:016x}, and those that are chosen are {expected:016x} (0: none)"
    )]
    Adapter {
        /// What tells the file's adapters and their scales from others; 0: none.
        found: u64,
        /// That of the chosen ones.
        expected: u64,
    },
    /// More tokens than a session of this engine can hold.
    #[error("the session has {tokens} tokens and the context has room for {context}")]
    ContextTooSmall {
        /// Tokens of the file.
        tokens: u64,
        /// Tokens that fit.
        context: usize,
    },
    /// More pages than its tokens fill.
    #[error("the session has {pages} pages of keys and values, and only {tokens} tokens")]
    TooManyPages {
        /// Pages.
        pages: u64,
        /// Tokens.
        tokens: u64,
    },
    /// A token id that the model does not have.
    #[error("token {id} is outside the vocabulary of {vocab}")]
    TokenOutOfVocabulary {
        /// The id.
        id: u32,
        /// Tokens in the vocabulary.
        vocab: usize,
    },
}

impl Session {
    /// Writes the session to a file for [`Engine::restore`]: its [`tokens`](Self::tokens), and the keys and values of as many
    /// of them as the prefix cache still has. Until all of it is on the disk, the file is what it was before. Of a model whose layers
    /// carry a state, that is as far as the last end of a page at which its state is known.
    ///
    /// A page of keys and values is as large as in memory. Other answers go on meanwhile.
    ///
    /// # Errors
    /// [`EngineError::Snapshot`] when the file can't be written, [`EngineError::Poisoned`].
    pub fn save(&self, path: &Path) -> Result<Saved, EngineError> {
        let engine = self.engine();
        let kind = engine.kind();
        let failed = |error: io::Error| snapshot_error(path, error.into());
        let adapters = self.chosen().key;
        let mut writer = Writer::create(path, &kind, adapters, self.tokens()).map_err(failed)?;
        let whole = self.tokens().len() / PAGE_TOKENS * PAGE_TOKENS;
        let tokens: Arc<[u32]> = self.tokens().get(..whole).unwrap_or_default().into();
        // Held until all of them are written: the state is that after the last of them.
        let (pages, state) = engine.between_steps(move |worker| hold(worker, (adapters, &tokens)))??;
        let held: Arc<[u32]> = pages.into();
        let written = (|| {
            let step = kind.pages_at_once();
            for first in (0..held.len()).step_by(step) {
                let pages = Arc::clone(&held);
                let bytes = engine
                    .between_steps(move |worker| read(worker, pages.iter().skip(first).take(step)))??;
                for page in bytes.chunks_exact(kind.page_bytes.max(1)) {
                    writer.page(page).map_err(failed)?;
                }
            }
            match state {
                Some(state) => writer.state(&state).map_err(failed),
                None => Ok(()),
            }
        })();
        let pages = Arc::clone(&held);
        let released = engine.between_steps(move |worker| worker.scheduler.release_pages(&pages));
        written.and(released)?;
        let (pages, bytes) = writer.finish().map_err(failed)?;
        Ok(Saved { tokens: self.tokens().len(), cached_tokens: pages * PAGE_TOKENS, bytes })
    }
}

impl Engine {
    /// Goes on with a session that was [saved](Session::save), in this process or another one, with the same model and keys and
    /// values of the same type. All of the file is checked before anything of it is used. Then its keys and values go into
    /// the prefix cache, as far as there is room without taking what somebody needs: a prompt that goes on from the session's tokens need not compute these again, and gets the
    /// same answer as if it did.
    ///
    /// The checksum finds damage, not malice: the keys and values of a forged file would be taken for those of its tokens, in
    /// every prompt of this engine that begins like them.
    ///
    /// # Errors
    /// [`EngineError::Snapshot`] with a [`SnapshotError`] for each thing that can be wrong with the file,
    /// [`EngineError::Poisoned`].
    pub fn restore(&self, path: &Path) -> Result<Session, EngineError> {
        self.restore_adapted(path, self.model().adapters.defaults())
    }

    /// The same for a session that was computed with these adapters.
    ///
    /// # Errors
    /// As [`restore`](Self::restore) and [`Session::choose_adapters`]; [`SnapshotError::Adapter`] where it was computed with others.
    pub fn restore_adapted(&self, path: &Path, adapters: &[AdapterScale]) -> Result<Session, EngineError> {
        let mut session = self.session();
        session.choose_adapters(adapters)?;
        let adapters = session.chosen().key;
        let kind = self.kind();
        let bounds = Bounds { context: self.context(), vocab: self.config().vocab, adapters };
        let failed = |error| snapshot_error(path, error);
        let mut snapshot = Snapshot::open(path, &kind, bounds).map_err(failed)?;
        let tokens: Arc<[u32]> = snapshot.tokens.as_slice().into();
        let pages = snapshot.pages();
        let whole: Arc<[u32]> = tokens.get(..pages * PAGE_TOKENS).unwrap_or_default().into();
        let known = Arc::clone(&whole);
        let mut first = self.between_steps(move |worker| cached_pages(worker, (adapters, &known)))?;
        while first < pages {
            let bytes = snapshot.read(first, kind.pages_at_once()).map_err(failed)?;
            let (tokens, page_bytes) = (Arc::clone(&tokens), kind.page_bytes);
            let count = bytes.len() / page_bytes.max(1);
            if !self.between_steps(move |worker| {
                write(worker, (adapters, &tokens), first, &bytes, page_bytes)
            })?? {
                break;
            }
            first += count;
        }
        if let Some(state) = snapshot.read_state().map_err(failed)? {
            self.between_steps(move |worker| keep_state(worker, (adapters, &whole), &state))??;
        }
        Ok(session.with_tokens(snapshot.tokens))
    }

    fn kind(&self) -> Kind {
        let model = self.model();
        Kind {
            model: model.fingerprint(),
            layout: model.page_layout.clone(),
            page_bytes: model.page_bytes,
            state_bytes: model.state_bytes,
        }
    }
}

impl Kind {
    fn pages_at_once(&self) -> usize {
        (JOB_BYTES / self.page_bytes.max(1)).clamp(1, JOB_PAGES)
    }
}

fn snapshot_error(path: &Path, error: SnapshotError) -> EngineError {
    EngineError::Snapshot { path: path.to_owned(), error }
}

/// How many of the pages of a text are cached, as read with these adapters.
fn cached_pages(worker: &mut Worker, (adapters, tokens): (u64, &[u32])) -> usize {
    let (held, found) = worker.scheduler.cached(adapters, tokens);
    worker.scheduler.release_pages(&held);
    found / PAGE_TOKENS
}

/// The whole pages of a text that are cached, each with a holder more, and the state after them where the model has one. What
/// follows in a page that is filled in part may be somebody else's.
fn hold(
    worker: &mut Worker,
    (adapters, tokens): (u64, &[u32]),
) -> Result<(Vec<u32>, Option<Vec<u8>>), ModelError> {
    let (mut held, found, state) = worker.scheduler.resumable(adapters, tokens);
    let partly = held.split_off((found / PAGE_TOKENS).min(held.len()));
    worker.scheduler.release_pages(&partly);
    let Some(state) = state else { return Ok((held, None)) };
    let mut bytes = Vec::new();
    let read = worker.runtime.read_state(state, &mut bytes);
    worker.scheduler.release_state(state);
    match read {
        Ok(()) => Ok((held, Some(bytes))),
        Err(error) => {
            worker.scheduler.release_pages(&held);
            Err(error)
        }
    }
}

/// The bytes of some pages.
fn read<'a>(worker: &mut Worker, mut pages: impl Iterator<Item = &'a u32>) -> Result<Vec<u8>, ModelError> {
    let mut bytes = Vec::new();
    pages.try_for_each(|&page| worker.runtime.read_page(page, &mut bytes)).map(|()| bytes)
}

/// Keeps the state after the whole pages of a text, where these are cached and there is room for it.
fn keep_state(
    worker: &mut Worker,
    (adapters, tokens): (u64, &[u32]),
    bytes: &[u8],
) -> Result<(), ModelError> {
    let Some(state) = worker.scheduler.take_state() else { return Ok(()) };
    let written = worker.runtime.write_state(state, tokens.len() as u32, bytes);
    if written.is_ok() {
        worker.scheduler.keep_state(adapters, tokens, state);
    }
    worker.scheduler.release_state(state);
    written
}

/// Caches the pages of a text from `first` on, as far as there is room; whether there may be room for more.
fn write(
    worker: &mut Worker,
    (adapters, tokens): (u64, &[u32]),
    first: usize,
    bytes: &[u8],
    page_bytes: usize,
) -> Result<bool, ModelError> {
    let before = tokens.get(..first * PAGE_TOKENS).unwrap_or_default();
    let (mut held, found) = worker.scheduler.cached(adapters, before);
    let count = bytes.len() / page_bytes.max(1);
    if found < before.len() {
        worker.scheduler.release_pages(&held);
        return Ok(false);
    }
    let new = worker.scheduler.take_pages(count);
    let mut pairs = new.iter().zip(bytes.chunks_exact(page_bytes.max(1)));
    let written = pairs.try_for_each(|(&page, bytes)| worker.runtime.write_page(page, bytes));
    let there_was_room = new.len() == count;
    held.extend(new);
    match written {
        Ok(()) => {
            let known = tokens.get(..held.len() * PAGE_TOKENS).unwrap_or_default();
            worker.scheduler.keep_pages(adapters, known, &held);
            Ok(there_was_room)
        }
        Err(error) => {
            worker.scheduler.release_pages(&held);
            Err(error)
        }
    }
}
