//! The one error type of this crate.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use crate::{AdapterError, FileKind, HuggingFaceError};

/// What can be wrong with a model file.
///
/// Names that come from a file are printed escaped and shortened: a message is safe to show in a terminal.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FormatError {
    // The file as the operating system sees it.
    /// There is no such file.
    #[error("{}: no such file", path.display())]
    NotFound {
        /// The path that was asked for.
        path: PathBuf,
    },
    /// The file exists, and this user may not read (or write) it.
    #[error("{}: permission denied", path.display())]
    PermissionDenied {
        /// The path that was asked for.
        path: PathBuf,
    },
    /// The path is a folder.
    #[error("{}: this is a folder, not a model file", path.display())]
    Folder {
        /// The path that was asked for.
        path: PathBuf,
    },
    /// The path is a pipe, a socket or a device, which can't be mapped and may never end.
    #[error("{}: not a regular file (a pipe, a socket or a device)", path.display())]
    NotRegular {
        /// The path that was asked for.
        path: PathBuf,
    },
    /// The file has no bytes.
    #[error("{}: the file is empty", path.display())]
    Empty {
        /// The path that was asked for.
        path: PathBuf,
    },
    /// The file's length changed while it was being opened.
    #[error("{}: the file changed while it was read: {expected} bytes at first, then {actual}", path.display())]
    FileChanged {
        /// The path that was asked for.
        path: PathBuf,
        /// Bytes that the file had when it was opened.
        expected: u64,
        /// Bytes that could be read.
        actual: u64,
    },
    /// [`ReadMode::Read`](crate::ReadMode::Read) needs more memory than there is.
    #[error("not enough memory to read {bytes} bytes; map the file instead of reading it")]
    OutOfMemory {
        /// Bytes that were asked for.
        bytes: u64,
    },
    /// Any other failure of the operating system.
    #[error("{}: {source}", path.display())]
    Io {
        /// The path that was asked for.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// Writing to a stream failed.
    #[error("could not write the model: {source}")]
    Write {
        /// What the stream said.
        source: io::Error,
    },

    // What kind of file it is.
    /// The file is something else than the format asked for.
    #[error("not a {wanted} file: this is {kind}")]
    WrongKind {
        /// "GGUF" or "safetensors".
        wanted: &'static str,
        /// What its first bytes say that it is.
        kind: FileKind,
    },
    /// A GGUF written for a big-endian machine.
    #[error("this is a big-endian GGUF file (version {version}); only little-endian files are supported")]
    BigEndian {
        /// The version, read big-endian.
        version: u32,
    },
    /// A GGUF version that this crate does not read.
    #[error("GGUF version {version} is not supported: this reads versions 2 and 3{}", version_advice(*version))]
    UnsupportedVersion {
        /// The version in the file.
        version: u32,
    },

    // Lengths and counts.
    /// The file ends before something that it announces.
    #[error("the file is cut short: {what} at byte {offset} needs {needed} bytes and {available} are left")]
    Truncated {
        /// What was being read.
        what: String,
        /// Where it begins, in bytes from the start of the file.
        offset: u64,
        /// Bytes that it needs.
        needed: u64,
        /// Bytes that are left.
        available: u64,
    },
    /// The header announces more entries than its bytes can hold, or more than this crate reads.
    #[error("the file announces {count} {what}, and at most {limit} are possible")]
    TooMany {
        /// "metadata entries" or "tensors".
        what: &'static str,
        /// What the file says.
        count: u64,
        /// The limit: what the rest of the file can hold, or a fixed bound.
        limit: u64,
    },
    /// A key or a tensor's name that is longer than the format allows.
    #[error("{what} of {length} bytes is longer than the {limit} that are allowed")]
    NameTooLong {
        /// "metadata key" or "tensor name".
        what: &'static str,
        /// Its length in bytes.
        length: u64,
        /// The greatest length in bytes.
        limit: u64,
    },
    /// An array that announces more elements than the rest of the file can hold.
    #[error(
        "metadata {}: an array of {length} elements, and the rest of the file holds at most {limit}",
        Shown(key)
    )]
    ArrayTooLong {
        /// The key.
        key: String,
        /// Elements that it announces.
        length: u64,
        /// Elements that the rest of the file can hold.
        limit: u64,
    },

    // Names.
    /// Bytes that should be text and are not.
    #[error("{what} is not valid UTF-8")]
    InvalidUtf8 {
        /// What was being read.
        what: String,
    },
    /// A NUL character in a key or a tensor's name.
    #[error("{what} {} has a NUL character in it", Shown(name))]
    NulInName {
        /// "metadata key" or "tensor name".
        what: &'static str,
        /// The name with the NUL.
        name: String,
    },
    /// A key or a tensor's name of no characters.
    #[error("an empty {what}")]
    EmptyName {
        /// "metadata key" or "tensor name".
        what: &'static str,
    },
    /// A key that occurs twice.
    #[error("metadata key {} occurs twice", Shown(key))]
    DuplicateKey {
        /// The key.
        key: String,
    },
    /// A tensor's name that occurs twice.
    #[error("tensor {} occurs twice", Shown(tensor))]
    DuplicateTensor {
        /// The tensor.
        tensor: String,
    },

    // Metadata.
    /// A metadata value type that GGUF does not have.
    #[error("metadata {}: unknown value type {id}", Shown(key))]
    UnknownValueType {
        /// The key.
        key: String,
        /// The type's number.
        id: u32,
    },
    /// A truth value that is neither 0 nor 1.
    #[error("metadata {}: a bool must be 0 or 1, not {value}", Shown(key))]
    InvalidBool {
        /// The key.
        key: String,
        /// The byte in the file.
        value: u8,
    },
    /// Arrays of arrays, deeper than this crate follows.
    #[error("metadata {}: arrays are nested deeper than {limit}", Shown(key))]
    NestingTooDeep {
        /// The key.
        key: String,
        /// The greatest depth.
        limit: usize,
    },
    /// `general.alignment` is not a power of two in the allowed range.
    #[error("general.alignment is {value}: it must be a power of two from 8 to {limit}")]
    BadAlignment {
        /// What the file says, in bytes.
        value: u64,
        /// The greatest alignment, in bytes.
        limit: u64,
    },
    /// A key that was required is absent.
    #[error("metadata {} is missing", Shown(key))]
    MissingKey {
        /// The key.
        key: String,
    },
    /// A key has a value of another type than its reader wants.
    #[error("metadata {} is {actual}, not {expected}", Shown(key))]
    WrongType {
        /// The key.
        key: String,
        /// The type that was wanted: "an integer", "an array of f32".
        expected: &'static str,
        /// The type in the file.
        actual: String,
    },
    /// An integer that does not fit the type that its reader wants.
    #[error("metadata {} has the value {value}, which is not a {expected}", Shown(key))]
    OutOfRange {
        /// The key.
        key: String,
        /// The type that was wanted: "u32".
        expected: &'static str,
        /// The value in the file.
        value: i128,
    },

    // Tensors.
    /// A tensor type that this crate does not know.
    #[error("tensor {}: unknown type {id}", Shown(tensor))]
    UnknownTensorType {
        /// The tensor.
        tensor: String,
        /// The type's number.
        id: u32,
    },
    /// More dimensions than GGUF has.
    #[error("tensor {}: {actual} dimensions, and at most {limit} are allowed", Shown(tensor))]
    TooManyDimensions {
        /// The tensor.
        tensor: String,
        /// Dimensions in the file.
        actual: u64,
        /// The greatest number of dimensions.
        limit: u64,
    },
    /// A dimension of zero.
    #[error("tensor {}: a dimension is zero in {dims:?}", Shown(tensor))]
    ZeroDimension {
        /// The tensor.
        tensor: String,
        /// Its dimensions.
        dims: Vec<u64>,
    },
    /// Dimensions whose product is more than an address can count.
    #[error("tensor {}: the product of the dimensions {dims:?} overflows", Shown(tensor))]
    DimensionOverflow {
        /// The tensor.
        tensor: String,
        /// Its dimensions.
        dims: Vec<u64>,
    },
    /// A row that is not a whole number of blocks.
    #[error(
        "tensor {}: rows of {cols} elements are not whole blocks of {block_len} ({ttype})",
        Shown(tensor)
    )]
    PartialBlock {
        /// The tensor.
        tensor: String,
        /// Name of its type.
        ttype: &'static str,
        /// Elements of a row.
        cols: u64,
        /// Elements of a block.
        block_len: u64,
    },
    /// Data that does not begin at a multiple of the alignment.
    #[error(
        "tensor {}: its data begins at byte {offset}, which is not a multiple of {alignment}",
        Shown(tensor)
    )]
    MisalignedTensor {
        /// The tensor.
        tensor: String,
        /// Bytes from the start of the data section.
        offset: u64,
        /// The file's alignment in bytes.
        alignment: u64,
    },
    /// Data that ends after the file does.
    #[error(
        "tensor {}: its {bytes} bytes at {offset} end after the {available} bytes of data that the file has",
        Shown(tensor)
    )]
    TensorOutOfBounds {
        /// The tensor.
        tensor: String,
        /// Bytes from the start of the data section.
        offset: u64,
        /// Bytes of the tensor.
        bytes: u64,
        /// Bytes of the data section.
        available: u64,
    },
    /// Two tensors that share bytes.
    #[error("tensors {} and {} overlap", Shown(first), Shown(second))]
    OverlappingTensors {
        /// The tensor that begins first.
        first: String,
        /// The tensor that begins inside it.
        second: String,
    },
    /// A tensor's bytes are more or fewer than its type and dimensions need.
    #[error("tensor {}: {actual} bytes of data, and its type and shape need {expected}", Shown(tensor))]
    DataLength {
        /// The tensor.
        tensor: String,
        /// Bytes that type and shape need.
        expected: u64,
        /// Bytes that there are.
        actual: u64,
    },

    // Split files.
    /// A part of a split model is not there.
    #[error("part {part} of {count} is missing: {}", path.display())]
    MissingPart {
        /// Where it should be.
        path: PathBuf,
        /// Its number, from 1.
        part: u32,
        /// Number of parts.
        count: u32,
    },
    /// A file says that it is one of several, and its name does not say which are the others.
    #[error("this file is one part of {count}, and its name must end in -00001-of-{count:05}.gguf (or such)")]
    SplitName {
        /// Number of parts in the metadata.
        count: u64,
    },
    /// Parts whose numbers disagree with their names or with each other.
    #[error("split model: {key} is {actual} and should be {expected}")]
    SplitMismatch {
        /// The key in question.
        key: &'static str,
        /// What the names of the files say, or the sum over the parts.
        expected: u64,
        /// What the metadata says.
        actual: u64,
    },
    /// Something is wrong in one part of a split model.
    #[error("{}: {source}", path.display())]
    Part {
        /// The part's path.
        path: PathBuf,
        /// What is wrong with it.
        source: Box<FormatError>,
    },

    /// A Hugging Face folder that is not a model, or not one that can be read right.
    #[error(transparent)]
    HuggingFace(#[from] HuggingFaceError),
    /// An adapter that can't be computed, or one for another model.
    #[error(transparent)]
    Adapter(#[from] AdapterError),

    // Safetensors.
    /// A safetensors header that is longer than the file or than this crate reads.
    #[error("a safetensors header of {length} bytes, and at most {limit} are possible")]
    HeaderTooLarge {
        /// Bytes that the file announces.
        length: u64,
        /// Bytes that are left, or the fixed limit.
        limit: u64,
    },
    /// A safetensors header that is not the JSON it should be.
    #[error("the safetensors header is not valid: {reason}")]
    InvalidHeader {
        /// What is wrong, in the parser's words.
        reason: String,
    },
    /// A safetensors range that ends before it begins.
    #[error("tensor {}: its data ends at byte {end}, before it begins at {start}", Shown(tensor))]
    InvertedRange {
        /// The tensor.
        tensor: String,
        /// First byte.
        start: u64,
        /// One past the last byte.
        end: u64,
    },
    /// Bytes in a safetensors file that belong to no tensor.
    #[error("{bytes} bytes at {offset} of the safetensors data belong to no tensor")]
    UnusedBytes {
        /// Bytes from the start of the data section.
        offset: u64,
        /// How many there are.
        bytes: u64,
    },
}

impl FormatError {
    /// The variant for a failure of the operating system at `path`.
    pub fn from_io(path: &Path, source: io::Error) -> Self {
        let path = path.to_path_buf();
        match source.kind() {
            io::ErrorKind::NotFound => Self::NotFound { path },
            io::ErrorKind::PermissionDenied => Self::PermissionDenied { path },
            io::ErrorKind::IsADirectory => Self::Folder { path },
            _ => Self::Io { path, source },
        }
    }
}

fn version_advice(version: u32) -> &'static str {
    if version <= 1 { " (this one is from before August 2023: convert the model again)" } else { "" }
}

/// A name from a file as it may be printed: escaped, and cut at 96 characters.
pub(crate) struct Shown<'a>(pub(crate) &'a str);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const LIMIT: usize = 96;
        match self.0.char_indices().nth(LIMIT) {
            None => write!(f, "{:?}", self.0),
            Some((end, _)) => write!(f, "{:?}…", self.0.get(..end).unwrap_or_default()),
        }
    }
}

/// A name from a file inside a sentence that an error keeps.
pub(crate) fn shown(name: &str) -> impl fmt::Display + '_ {
    Shown(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_escaped_and_shortened() {
        let error = FormatError::DuplicateKey { key: "\x1b[2Jé".to_string() + &"x".repeat(70_000) };
        let text = error.to_string();
        assert!(!text.contains('\x1b'));
        assert!(text.len() < 200, "{}", text.len());
    }

    #[test]
    fn permission_denied_has_its_own_variant() {
        let path = Path::new("m.gguf");
        let error = FormatError::from_io(path, io::ErrorKind::PermissionDenied.into());
        assert!(matches!(error, FormatError::PermissionDenied { .. }));
        assert!(matches!(
            FormatError::from_io(path, io::ErrorKind::NotFound.into()),
            FormatError::NotFound { .. }
        ));
        assert!(matches!(
            FormatError::from_io(path, io::ErrorKind::StorageFull.into()),
            FormatError::Io { .. }
        ));
    }
}
