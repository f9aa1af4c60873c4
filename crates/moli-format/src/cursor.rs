//! Reading little-endian numbers and counted strings from a file's header.

use std::fmt::Display;

use crate::{Bytes, FormatError};

/// A place in a header. Nothing is read past the end, and nothing is allocated before its length has been checked.
pub(crate) struct Cursor<'a> {
    bytes: &'a Bytes,
    /// All of `bytes`, found once: there are two reads for each of some 100,000 strings.
    data: &'a [u8],
    position: usize,
}

impl<'a> Cursor<'a> {
    pub(crate) fn new(bytes: &'a Bytes) -> Self {
        Self::at(bytes, 0)
    }

    /// The same bytes from `position` on.
    pub(crate) fn at(bytes: &'a Bytes, position: usize) -> Self {
        Self { bytes, data: bytes.as_slice(), position }
    }

    /// The same bytes from an earlier `position` on.
    pub(crate) fn back_to(&self, position: usize) -> Self {
        Self { position, ..*self }
    }

    /// Bytes from the start.
    pub(crate) fn position(&self) -> usize {
        self.position
    }

    /// All the bytes that are left, without moving on.
    pub(crate) fn rest(&self) -> &'a [u8] {
        self.data.get(self.position..).unwrap_or_default()
    }

    /// Bytes that are left.
    pub(crate) fn remaining(&self) -> u64 {
        self.data.len().saturating_sub(self.position) as u64
    }

    /// The next `len` bytes; `what` names them if they are not there.
    #[inline]
    pub(crate) fn take(&mut self, len: u64, what: &dyn Display) -> Result<&'a [u8], FormatError> {
        let slice = usize::try_from(len)
            .ok()
            .and_then(|len| self.position.checked_add(len))
            .and_then(|end| self.data.get(self.position..end));
        match slice {
            Some(slice) => {
                self.position += slice.len();
                Ok(slice)
            }
            None => Err(FormatError::Truncated {
                what: what.to_string(),
                offset: self.position as u64,
                needed: len,
                available: self.remaining(),
            }),
        }
    }

    /// The next `len` bytes as a range that keeps the file open.
    pub(crate) fn take_bytes(&mut self, len: u64, what: &dyn Display) -> Result<Bytes, FormatError> {
        let start = self.position;
        self.take(len, what)?;
        // `take` has checked the range, so the default is never used.
        Ok(self.bytes.slice(start..self.position).unwrap_or_else(|| Bytes::from_vec(Vec::new())))
    }

    /// The next `N` bytes as an array.
    pub(crate) fn array<const N: usize>(&mut self, what: &dyn Display) -> Result<[u8; N], FormatError> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N as u64, what)?);
        Ok(array)
    }

    pub(crate) fn u32(&mut self, what: &dyn Display) -> Result<u32, FormatError> {
        self.array(what).map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self, what: &dyn Display) -> Result<u64, FormatError> {
        self.array(what).map(u64::from_le_bytes)
    }

    /// A length and that many bytes of text.
    pub(crate) fn string(&mut self, what: &dyn Display) -> Result<&'a str, FormatError> {
        let len = self.u64(what)?;
        let bytes = self.take(len, what)?;
        std::str::from_utf8(bytes).map_err(|_| FormatError::InvalidUtf8 { what: what.to_string() })
    }

    /// A metadata key or a tensor's name: text of 1 to `limit` bytes without NUL.
    pub(crate) fn name(&mut self, what: &'static str, limit: u64) -> Result<&'a str, FormatError> {
        let length = self.u64(&what)?;
        if length > limit {
            return Err(FormatError::NameTooLong { what, length, limit });
        }
        let bytes = self.take(length, &what)?;
        let name =
            std::str::from_utf8(bytes).map_err(|_| FormatError::InvalidUtf8 { what: what.to_string() })?;
        check_name(what, name, limit)?;
        Ok(name)
    }
}

/// What reader and writer ask of a metadata key or a tensor's name.
pub(crate) fn check_name(what: &'static str, name: &str, limit: u64) -> Result<(), FormatError> {
    if name.is_empty() {
        return Err(FormatError::EmptyName { what });
    }
    if name.len() as u64 > limit {
        return Err(FormatError::NameTooLong { what, length: name.len() as u64, limit });
    }
    if name.contains('\0') {
        return Err(FormatError::NulInName { what, name: name.to_string() });
    }
    Ok(())
}
