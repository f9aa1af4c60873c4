//! A range of a file that is cheap to clone and keeps the file open.

use std::fmt;
use std::ops::{Deref, Range};
use std::path::Path;
use std::sync::Arc;

use crate::mapping::{self, Source};
use crate::{FormatError, ReadMode};

/// A range of a mapped or read file, or of a buffer.
///
/// A clone costs a reference count; the file stays mapped until its last range is dropped. No alignment in memory is
/// promised: a GGUF aligns its tensors in the file, but a buffer or a read file begins where the allocator put it.
#[derive(Clone)]
pub struct Bytes {
    source: Arc<Source>,
    start: usize,
    len: usize,
}

impl Bytes {
    /// The whole of a regular file.
    ///
    /// # Errors
    /// If the file is absent, unreadable, a folder, not a regular file, empty, or changes while it is read.
    pub fn open(path: &Path, mode: ReadMode) -> Result<Self, FormatError> {
        mapping::open(path, mode).map(Self::whole)
    }

    /// A buffer of one's own.
    pub fn from_vec(bytes: Vec<u8>) -> Self {
        Self::whole(Source::Owned(bytes))
    }

    /// Memory of one's own, which begins where a page does as a mapped file does; `fill` writes it.
    ///
    /// # Errors
    /// [`FormatError::OutOfMemory`] if the system refuses it, or what `fill` says.
    pub fn filled<E: From<FormatError>>(
        len: usize,
        fill: impl FnOnce(&mut [u8]) -> Result<(), E>,
    ) -> Result<Self, E> {
        mapping::filled(len, fill).map(Self::whole)
    }

    fn whole(source: Source) -> Self {
        let len = source.as_slice().len();
        Self { source: Arc::new(source), start: 0, len }
    }

    /// The bytes themselves.
    pub fn as_slice(&self) -> &[u8] {
        // The range was checked when it was made, so this is never the empty default.
        self.source.as_slice().get(self.start..self.start + self.len).unwrap_or_default()
    }

    /// Asks the system to read this range of a mapped file into its cache, as it will be needed soon. It returns when the
    /// reads are on their way, which for a large range is about as long as they take.
    pub fn read_ahead(&self) {
        self.source.read_ahead(self.start..self.start + self.len);
    }

    /// Takes this range of a mapped file out of the process's memory, as it won't be needed soon. What is touched later is read
    /// from the file again.
    pub fn release(&self) {
        self.source.release(self.start..self.start + self.len);
    }

    /// A part of this range, counted from its start; `None` if it is not inside.
    pub fn slice(&self, range: Range<usize>) -> Option<Self> {
        if range.start > range.end || range.end > self.len {
            return None;
        }
        let start = self.start + range.start;
        Some(Self { source: Arc::clone(&self.source), start, len: range.end - range.start })
    }
}

impl Deref for Bytes {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        self.as_slice()
    }
}

impl AsRef<[u8]> for Bytes {
    fn as_ref(&self) -> &[u8] {
        self.as_slice()
    }
}

impl fmt::Debug for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Bytes({} bytes)", self.len)
    }
}

impl PartialEq for Bytes {
    fn eq(&self, other: &Self) -> bool {
        self.as_slice() == other.as_slice()
    }
}

impl From<Vec<u8>> for Bytes {
    fn from(bytes: Vec<u8>) -> Self {
        Self::from_vec(bytes)
    }
}

impl From<&[u8]> for Bytes {
    fn from(bytes: &[u8]) -> Self {
        Self::from_vec(bytes.to_vec())
    }
}

impl From<&Vec<u8>> for Bytes {
    fn from(bytes: &Vec<u8>) -> Self {
        Self::from_vec(bytes.clone())
    }
}

impl<const N: usize> From<&[u8; N]> for Bytes {
    fn from(bytes: &[u8; N]) -> Self {
        Self::from_vec(bytes.to_vec())
    }
}

impl From<&Bytes> for Bytes {
    fn from(bytes: &Bytes) -> Self {
        bytes.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_memory_is_filled_or_refused() {
        let counted = |out: &mut [u8]| -> Result<(), FormatError> {
            out.iter_mut().zip(0..).for_each(|(byte, n)| *byte = n);
            Ok(())
        };
        let bytes = Bytes::filled(100, counted).unwrap();
        assert_eq!(&bytes[..], (0..100).collect::<Vec<u8>>());
        assert!(bytes.as_ptr().addr().is_multiple_of(4096));
        assert_eq!(Bytes::filled(0, counted).unwrap().len(), 0);
        let refused = Bytes::filled(usize::MAX / 2, counted).unwrap_err();
        assert!(matches!(refused, FormatError::OutOfMemory { bytes } if bytes == u64::MAX / 2), "{refused}");
        let failed = Bytes::filled(1, |_| Err(FormatError::OutOfMemory { bytes: 7 })).unwrap_err();
        assert!(matches!(failed, FormatError::OutOfMemory { bytes: 7 }));
    }

    #[test]
    fn what_is_released_is_there_when_it_is_touched_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("bytes");
        let content: Vec<u8> = (0..40_000u32).map(|n| n as u8).collect();
        std::fs::write(&path, &content).unwrap();
        let filled = Bytes::filled(content.len(), |out| -> Result<(), FormatError> {
            out.copy_from_slice(&content);
            Ok(())
        });
        let mapped = Bytes::open(&path, ReadMode::Map).unwrap();
        for bytes in [mapped, filled.unwrap(), Bytes::from_vec(content.clone())] {
            let inner = bytes.slice(5000..30_000).unwrap();
            assert_eq!(bytes.as_slice(), content);
            inner.release();
            assert_eq!(bytes.as_slice(), content);
        }
    }

    #[test]
    fn slices_are_checked() {
        let bytes = Bytes::from_vec((0..10).collect());
        let inner = bytes.slice(2..8).unwrap();
        assert_eq!(&inner[..], [2, 3, 4, 5, 6, 7]);
        assert_eq!(inner.slice(5..6).unwrap().as_slice(), [7]);
        assert_eq!(inner.slice(6..6).unwrap().len(), 0);
        assert!(inner.slice(0..7).is_none());
        #[expect(clippy::reversed_empty_ranges)]
        let reversed = 4..3;
        assert!(inner.slice(reversed).is_none());
        assert!(inner.slice(usize::MAX..usize::MAX).is_none());
    }
}
