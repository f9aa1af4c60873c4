//! Opening a file as bytes: the one place of this crate with `unsafe`.
#![allow(unsafe_code)]

use std::fs::{self, File};
use std::io::Read;
use std::ops::Range;
use std::path::Path;

#[cfg(unix)]
use memmap2::{Advice, UncheckedAdvice};
use memmap2::{Mmap, MmapMut};

use crate::FormatError;

/// How a file's bytes come into memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ReadMode {
    /// Map the file: nothing is copied, pages are shared with other processes and come in when they are touched.
    ///
    /// While it is mapped the file must not be shortened or overwritten in place: a page that is gone ends the process
    /// with a signal. Replacing it by a rename, as `moli pull` does, is safe.
    #[default]
    Map,
    /// Read the whole file into memory, for file systems where a mapping can fault (network shares, removable disks).
    Read,
}

/// Bytes that are asked for at once: of a longer range, Linux reads the beginning only, at least this much.
#[cfg(unix)]
const READ_AHEAD: usize = 128 << 10;

/// The bytes of one open file.
pub(crate) enum Source {
    /// A file.
    Mapped(Mmap),
    /// Memory in pages, of no file.
    Filled(Mmap),
    Owned(Vec<u8>),
}

impl Source {
    pub(crate) fn as_slice(&self) -> &[u8] {
        match self {
            Self::Mapped(map) | Self::Filled(map) => map,
            Self::Owned(bytes) => bytes,
        }
    }

    /// Asks the system to read a range of a mapped file into its cache.
    #[cfg(unix)]
    pub(crate) fn read_ahead(&self, range: Range<usize>) {
        let Self::Mapped(map) = self else { return };
        for start in range.clone().step_by(READ_AHEAD) {
            // A hint: where it is refused, pages come in when they are touched.
            let _ = map.advise_range(Advice::WillNeed, start, READ_AHEAD.min(range.end - start));
        }
    }

    /// Takes the pages of a range of a mapped file out of this process's memory; they come back when they are touched.
    #[cfg(unix)]
    pub(crate) fn release(&self, range: Range<usize>) {
        let Self::Mapped(map) = self else { return };
        // SAFETY: the pages of a read-only mapping of a file hold what the file holds, and when they are touched again they are
        // read from it again, so nobody who has a reference to them sees a change.
        let advised = unsafe {
            map.unchecked_advise_range(UncheckedAdvice::DontNeed, range.start, range.end - range.start)
        };
        // A hint: where it is refused, they stay.
        let _ = advised;
    }

    #[cfg(not(unix))]
    pub(crate) fn read_ahead(&self, _: Range<usize>) {}

    #[cfg(not(unix))]
    pub(crate) fn release(&self, _: Range<usize>) {}
}

/// Opens a regular file that has bytes in it.
pub(crate) fn open(path: &Path, mode: ReadMode) -> Result<Source, FormatError> {
    let failed = |source| FormatError::from_io(path, source);
    // Opening a pipe would wait for its other end, so the kind is asked for first and again once the file is open.
    regular(path, &fs::metadata(path).map_err(failed)?)?;
    let mut file = File::open(path).map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    regular(path, &metadata)?;
    let expected = metadata.len();
    if expected == 0 {
        return Err(FormatError::Empty { path: path.to_path_buf() });
    }
    match mode {
        ReadMode::Read => read_exactly(&mut file, path, expected).map(Source::Owned),
        ReadMode::Map => {
            // SAFETY: the mapping is private to this process and read-only, and it is only ever lent as `&[u8]` whose
            // lifetime the mapping outlives. What can't be ruled out is another process that writes to or shortens the
            // file; that is the documented condition of `ReadMode::Map`, and `ReadMode::Read` is there for those who
            // can't promise it. All that is read from the bytes is bounds-checked, whatever they hold at that moment.
            let map = unsafe { Mmap::map(&file) }.map_err(failed)?;
            let actual = file.metadata().map_err(failed)?.len();
            if map.len() as u64 != expected || actual != expected {
                return Err(FormatError::FileChanged { path: path.to_path_buf(), expected, actual });
            }
            Ok(Source::Mapped(map))
        }
    }
}

/// Memory that `fill` has written, in pages of the usual size as a mapped file has.
pub(crate) fn filled<E: From<FormatError>>(
    len: usize,
    fill: impl FnOnce(&mut [u8]) -> Result<(), E>,
) -> Result<Source, E> {
    let refused = |_| FormatError::OutOfMemory { bytes: len as u64 };
    let mut map = MmapMut::map_anon(len).map_err(refused)?;
    fill(&mut map)?;
    Ok(Source::Filled(map.make_read_only().map_err(refused)?))
}

fn regular(path: &Path, metadata: &fs::Metadata) -> Result<(), FormatError> {
    if metadata.is_dir() {
        Err(FormatError::Folder { path: path.to_path_buf() })
    } else if !metadata.is_file() {
        Err(FormatError::NotRegular { path: path.to_path_buf() })
    } else {
        Ok(())
    }
}

/// All of `expected` bytes and no more, or an error if the file is not (or no longer) that long.
fn read_exactly(file: &mut impl Read, path: &Path, expected: u64) -> Result<Vec<u8>, FormatError> {
    let out_of_memory = || FormatError::OutOfMemory { bytes: expected };
    let mut bytes = Vec::new();
    bytes
        .try_reserve_exact(usize::try_from(expected).map_err(|_| out_of_memory())?)
        .map_err(|_| out_of_memory())?;
    let failed = |source| FormatError::from_io(path, source);
    let mut actual = file.by_ref().take(expected).read_to_end(&mut bytes).map_err(failed)? as u64;
    if actual == expected {
        actual += file.read(&mut [0]).map_err(failed)? as u64;
    }
    if actual != expected {
        return Err(FormatError::FileChanged { path: path.to_path_buf(), expected, actual });
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_shrinks_or_grows_while_it_is_read_is_refused() {
        let path = Path::new("m.gguf");
        let content = [7_u8; 100];
        assert_eq!(read_exactly(&mut content.as_slice(), path, 100).unwrap(), content);
        for (len, seen) in [(40, 40), (0, 0), (101, 101)] {
            let content = vec![7_u8; len];
            let error = read_exactly(&mut content.as_slice(), path, 100).unwrap_err();
            assert!(
                matches!(error, FormatError::FileChanged { expected: 100, actual, .. } if actual == seen),
                "{error:?}"
            );
        }
    }

    #[test]
    fn a_length_that_memory_cannot_hold_is_refused() {
        let error = read_exactly(&mut [].as_slice(), Path::new("m.gguf"), u64::MAX).unwrap_err();
        assert!(matches!(error, FormatError::OutOfMemory { bytes: u64::MAX }));
    }
}
