//! The file of a session.
//!
//! All numbers are little-endian.
//!
//! | bytes | |
//! |---|---|
//! | 8 | `MOLISESS` |
//! | 4 | version of the format |
//! | 32 | fingerprint of the model |
//! | 4 | tokens of a page |
//! | 4 | L, bytes of the layout's name |
//! | 8 | B, bytes of a page |
//! | 8 | which adapters, scaled how; 0: none |
//! | 8 | N, tokens |
//! | 8 | P, pages: whole ones, of the first tokens |
//! | 8 | S, bytes of the recurrent state after these; 0: there is none |
//! | L | name of the pages' layout |
//! | 4 N | tokens |
//! | P B | pages |
//! | S | recurrent state |
//! | 32 | sha256 of all before the pages, followed by the sha256 of each page and of the state |
//!
//! The last is a checksum against damage. It is no signature: whoever can write the file can make it fit.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use moli_model::PAGE_TOKENS;
use sha2::{Digest as _, Sha256};
use tempfile::NamedTempFile;

use super::SnapshotError;
use crate::fingerprint::{Digest, hex};

const MAGIC: [u8; 8] = *b"MOLISESS";
/// The version that is written, and the only one that is read.
const VERSION: u32 = 2;
/// Bytes of magic and version, which every version begins with.
const START_BYTES: usize = 12;
/// Bytes before the layout's name.
const HEADER_BYTES: usize = 92;
/// Longer names of a layout are not read.
const MAX_LAYOUT_BYTES: u32 = 256;
const DIGEST_BYTES: usize = 32;

/// What the pages of a session belong to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Kind {
    /// The model's fingerprint.
    pub(super) model: Digest,
    /// The name of what a page's bytes are.
    pub(super) layout: String,
    pub(super) page_bytes: usize,
    /// Bytes of the state that goes with them; 0: the model has none.
    pub(super) state_bytes: usize,
}

/// What a session may hold.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    /// Tokens.
    pub(super) context: usize,
    /// Ids are below it.
    pub(super) vocab: usize,
    /// Which adapters it must have been computed with.
    pub(super) adapters: u64,
}

/// The numbers of a header.
#[derive(Debug)]
struct Header {
    model: Digest,
    page_tokens: u32,
    layout_bytes: u32,
    page_bytes: u64,
    adapter: u64,
    tokens: u64,
    pages: u64,
    state_bytes: u64,
}

impl Header {
    fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEADER_BYTES);
        bytes.extend(MAGIC);
        bytes.extend(VERSION.to_le_bytes());
        bytes.extend(self.model);
        bytes.extend(self.page_tokens.to_le_bytes());
        bytes.extend(self.layout_bytes.to_le_bytes());
        for number in [self.page_bytes, self.adapter, self.tokens, self.pages, self.state_bytes] {
            bytes.extend(number.to_le_bytes());
        }
        bytes
    }

    fn parse(bytes: &[u8; HEADER_BYTES]) -> Option<Self> {
        let mut rest = bytes.get(START_BYTES..)?;
        Some(Self {
            model: take(&mut rest)?,
            page_tokens: u32::from_le_bytes(take(&mut rest)?),
            layout_bytes: u32::from_le_bytes(take(&mut rest)?),
            page_bytes: u64::from_le_bytes(take(&mut rest)?),
            adapter: u64::from_le_bytes(take(&mut rest)?),
            tokens: u64::from_le_bytes(take(&mut rest)?),
            pages: u64::from_le_bytes(take(&mut rest)?),
            state_bytes: u64::from_le_bytes(take(&mut rest)?),
        })
    }

    /// Reads the first bytes of a file of `actual` bytes.
    fn check(bytes: &[u8], actual: u64) -> Result<Self, SnapshotError> {
        let (magic, version) = bytes.split_at(MAGIC.len().min(bytes.len()));
        if magic.is_empty() || !MAGIC.starts_with(magic) {
            return Err(SnapshotError::NotASession);
        }
        if let Some(found) = version.first_chunk().map(|version| u32::from_le_bytes(*version))
            && found != VERSION
        {
            return Err(SnapshotError::Version { found, supported: VERSION });
        }
        let length = |expected| SnapshotError::Length { expected, actual };
        let header = bytes.first_chunk().and_then(Self::parse);
        let header = header.ok_or_else(|| length((HEADER_BYTES + DIGEST_BYTES) as u64))?;
        if header.file_bytes() != actual {
            return Err(length(header.file_bytes()));
        }
        if header.layout_bytes > MAX_LAYOUT_BYTES {
            return Err(SnapshotError::LayoutName { bytes: header.layout_bytes, limit: MAX_LAYOUT_BYTES });
        }
        Ok(header)
    }

    fn check_kind(&self, layout: &[u8], kind: &Kind) -> Result<(), SnapshotError> {
        if self.model != kind.model {
            return Err(SnapshotError::OtherModel { found: hex(&self.model), expected: hex(&kind.model) });
        }
        let words = |name: &str, tokens: u32, bytes: u64, state: u64| {
            let pages = format!("{name}, pages of {tokens} tokens and {bytes} bytes");
            if state > 0 { format!("{pages}, states of {state} bytes") } else { pages }
        };
        // Pages and the state after them are there together or not at all.
        let state = if self.pages > 0 { kind.state_bytes as u64 } else { 0 };
        let layout = String::from_utf8_lossy(layout);
        let found = words(&layout, self.page_tokens, self.page_bytes, self.state_bytes);
        let expected = words(&kind.layout, PAGE_TOKENS as u32, kind.page_bytes as u64, state);
        if found == expected { Ok(()) } else { Err(SnapshotError::OtherLayout { found, expected }) }
    }

    fn check_counts(&self, bounds: Bounds) -> Result<(), SnapshotError> {
        if self.tokens > bounds.context as u64 {
            return Err(SnapshotError::ContextTooSmall { tokens: self.tokens, context: bounds.context });
        }
        if self.pages > self.tokens / PAGE_TOKENS as u64 {
            return Err(SnapshotError::TooManyPages { pages: self.pages, tokens: self.tokens });
        }
        if self.adapter != bounds.adapters {
            return Err(SnapshotError::Adapter { found: self.adapter, expected: bounds.adapters });
        }
        Ok(())
    }

    /// Where the pages begin. Numbers that no file can have are as large as can be, here and in [`file_bytes`](Self::file_bytes).
    fn pages_start(&self) -> u64 {
        let tokens = self.tokens.saturating_mul(size_of::<u32>() as u64);
        tokens.saturating_add(HEADER_BYTES as u64 + u64::from(self.layout_bytes))
    }

    fn file_bytes(&self) -> u64 {
        let pages = self.pages.saturating_mul(self.page_bytes).saturating_add(self.state_bytes);
        pages.saturating_add(self.pages_start()).saturating_add(DIGEST_BYTES as u64)
    }
}

/// The first `N` of some bytes, which are taken off the front.
fn take<const N: usize>(bytes: &mut &[u8]) -> Option<[u8; N]> {
    let (first, rest) = bytes.split_first_chunk()?;
    *bytes = rest;
    Some(*first)
}

/// A file that is being written, beside its place: until [`finish`](Self::finish) the place has what it had.
pub(super) struct Writer<'a> {
    file: NamedTempFile,
    path: &'a Path,
    kind: &'a Kind,
    tokens: &'a [u32],
    adapter: u64,
    /// Of each page.
    digests: Vec<Digest>,
    /// Of the state behind them, and its bytes.
    state: Option<(Digest, usize)>,
}

impl<'a> Writer<'a> {
    pub(super) fn create(
        path: &'a Path,
        kind: &'a Kind,
        adapter: u64,
        tokens: &'a [u32],
    ) -> io::Result<Self> {
        let file = NamedTempFile::new_in(folder(path))?;
        let mut writer = Self { file, path, kind, tokens, adapter, digests: Vec::new(), state: None };
        let beginning = writer.beginning();
        writer.file.write_all(&beginning)?;
        Ok(writer)
    }

    /// Everything before the pages, as many as there are by now.
    fn beginning(&self) -> Vec<u8> {
        let header = Header {
            model: self.kind.model,
            page_tokens: PAGE_TOKENS as u32,
            layout_bytes: self.kind.layout.len() as u32,
            page_bytes: self.kind.page_bytes as u64,
            adapter: self.adapter,
            tokens: self.tokens.len() as u64,
            pages: self.digests.len() as u64,
            state_bytes: self.state.map_or(0, |(_, bytes)| bytes as u64),
        };
        let mut bytes = header.to_bytes();
        bytes.extend_from_slice(self.kind.layout.as_bytes());
        bytes.extend(self.tokens.iter().flat_map(|token| token.to_le_bytes()));
        bytes
    }

    /// Appends the next page.
    pub(super) fn page(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)?;
        self.digests.push(Sha256::digest(bytes).into());
        Ok(())
    }

    /// Appends the state after the last of the pages.
    pub(super) fn state(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)?;
        self.state = Some((Sha256::digest(bytes).into(), bytes.len()));
        Ok(())
    }

    /// Puts the file into its place, once it is on the disk. Gives its pages and its bytes.
    pub(super) fn finish(mut self) -> io::Result<(usize, u64)> {
        let beginning = self.beginning();
        let digests = self.digests.iter().chain(self.state.as_ref().map(|(digest, _)| digest));
        self.file.write_all(&checksum(&beginning, digests))?;
        let bytes = self.file.stream_position()?;
        self.file.seek(SeekFrom::Start(0))?;
        self.file.write_all(&beginning)?;
        self.file.as_file().sync_all()?;
        self.file.persist(self.path)?;
        // The name, too, is then on the disk. Not every system can be asked for that, and the file is whole either way.
        let _ = File::open(folder(self.path)).and_then(|folder| folder.sync_all());
        Ok((self.digests.len(), bytes))
    }
}

fn checksum<'a>(beginning: &[u8], digests: impl Iterator<Item = &'a Digest>) -> Digest {
    let mut hash = Sha256::new_with_prefix(beginning);
    digests.for_each(|digest| hash.update(digest));
    hash.finalize().into()
}

/// The folder that a file is in.
fn folder(path: &Path) -> PathBuf {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new(".")).to_owned()
}

/// A file that has been checked.
#[derive(Debug)]
pub(super) struct Snapshot {
    pub(super) tokens: Vec<u32>,
    file: File,
    pages_start: u64,
    page_bytes: usize,
    state_bytes: usize,
    /// Of each page, and of the state behind them.
    digests: Vec<Digest>,
    state: Option<Digest>,
}

impl Snapshot {
    /// Opens a file and checks all of it. Nothing is allocated for a number of the file that its size and these bounds don't
    /// allow.
    pub(super) fn open(path: &Path, kind: &Kind, bounds: Bounds) -> Result<Self, SnapshotError> {
        // A pipe would be waited for, and a device may have no end.
        if !path.metadata()?.is_file() {
            return Err(SnapshotError::NotASession);
        }
        let mut file = File::open(path)?;
        let actual = file.metadata()?.len();
        let mut bytes = Vec::with_capacity(HEADER_BYTES);
        Read::by_ref(&mut file).take(HEADER_BYTES as u64).read_to_end(&mut bytes)?;
        let header = Header::check(&bytes, actual)?;
        let mut layout = vec![0; header.layout_bytes as usize];
        file.read_exact(&mut layout)?;
        header.check_kind(&layout, kind)?;
        header.check_counts(bounds)?;
        let mut ids = vec![0; header.tokens as usize * size_of::<u32>()];
        file.read_exact(&mut ids)?;
        let tokens: Vec<u32> = ids.as_chunks().0.iter().map(|id| u32::from_le_bytes(*id)).collect();
        bytes.append(&mut layout);
        bytes.append(&mut ids);

        let mut page = vec![0; kind.page_bytes];
        let mut digests = Vec::new();
        for _ in 0..header.pages {
            file.read_exact(&mut page)?;
            digests.push(Sha256::digest(&page).into());
        }
        let mut state = None;
        if header.state_bytes > 0 {
            let mut bytes = vec![0; kind.state_bytes];
            file.read_exact(&mut bytes)?;
            state = Some(Sha256::digest(&bytes).into());
        }
        let mut expected = Digest::default();
        file.read_exact(&mut expected)?;
        same_digest(&expected, &checksum(&bytes, digests.iter().chain(&state)))?;
        if let Some(&id) = tokens.iter().find(|&&id| id as usize >= bounds.vocab) {
            return Err(SnapshotError::TokenOutOfVocabulary { id, vocab: bounds.vocab });
        }
        Ok(Self {
            tokens,
            file,
            pages_start: header.pages_start(),
            page_bytes: kind.page_bytes,
            state_bytes: kind.state_bytes,
            digests,
            state,
        })
    }

    /// Pages of the first tokens.
    pub(super) fn pages(&self) -> usize {
        self.digests.len()
    }

    /// Pages from `first` on, at most `count`, one after the other: what was checked, or an error.
    pub(super) fn read(&mut self, first: usize, count: usize) -> Result<Vec<u8>, SnapshotError> {
        let digests = self.digests.iter().skip(first).take(count);
        let start = self.pages_start + first as u64 * self.page_bytes as u64;
        self.file.seek(SeekFrom::Start(start))?;
        let mut bytes = vec![0; digests.len() * self.page_bytes];
        self.file.read_exact(&mut bytes)?;
        for (page, digest) in bytes.chunks_exact(self.page_bytes.max(1)).zip(digests) {
            same_digest(digest, &Sha256::digest(page).into())?;
        }
        Ok(bytes)
    }

    /// The state after the pages, where there is one: what was checked, or an error.
    pub(super) fn read_state(&mut self) -> Result<Option<Vec<u8>>, SnapshotError> {
        let Some(digest) = &self.state else { return Ok(None) };
        let start = self.pages_start + self.digests.len() as u64 * self.page_bytes as u64;
        self.file.seek(SeekFrom::Start(start))?;
        let mut bytes = vec![0; self.state_bytes];
        self.file.read_exact(&mut bytes)?;
        same_digest(digest, &Sha256::digest(&bytes).into())?;
        Ok(Some(bytes))
    }
}

fn same_digest(expected: &Digest, actual: &Digest) -> Result<(), SnapshotError> {
    if expected == actual {
        return Ok(());
    }
    Err(SnapshotError::Checksum { expected: hex(expected), actual: hex(actual) })
}
