//! Telling what a file is from its first bytes, so that an error can say what was given instead of a model.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;

/// What a file looks like. Its `Display` completes the sentence "this is …".
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum FileKind {
    /// A GGUF file of any version, little-endian.
    Gguf,
    /// A GGUF file for big-endian machines.
    GgufBigEndian,
    /// The first format of ggml, before GGUF.
    Ggml,
    /// The second one.
    Ggmf,
    /// The third one.
    Ggjt,
    /// A LoRA adapter of the time before GGUF.
    Ggla,
    /// A safetensors file.
    Safetensors,
    /// A checkpoint written by `torch.save`: a zip with a pickle in it.
    PyTorch,
    /// A bare Python pickle.
    Pickle,
    /// An ONNX model.
    Onnx,
    /// A TensorFlow Lite model.
    TfLite,
    /// An HDF5 file, as Keras writes.
    Hdf5,
    /// A zip archive, which Python wheels are too.
    Zip,
    /// A gzip archive.
    Gzip,
    /// A Zstandard archive.
    Zstd,
    /// A web page.
    Html,
    /// An XML document, as object stores answer an error.
    Xml,
    /// A JSON document.
    Json,
    /// The small text file that stands for a large one in a git repository.
    GitLfsPointer,
    /// Some other text.
    Text,
    /// Nothing that this crate knows.
    Unknown,
    /// No bytes at all.
    Empty,
    /// A folder.
    Folder,
    /// A pipe, a socket or a device.
    NotRegular,
    /// There is no such file.
    Missing,
    /// It is there and can't be read.
    Unreadable,
}

impl FileKind {
    /// What the file is, with an article.
    pub const fn description(self) -> &'static str {
        match self {
            Self::Gguf => "a GGUF file",
            Self::GgufBigEndian => "a big-endian GGUF file",
            Self::Ggml => "a GGML file from before GGUF (magic \"ggml\"): convert the original model to GGUF",
            Self::Ggmf => "a GGML file from before GGUF (magic \"ggmf\"): convert the original model to GGUF",
            Self::Ggjt => "a GGML file from before GGUF (magic \"ggjt\"): convert the original model to GGUF",
            Self::Ggla => "a GGML LoRA adapter from before GGUF (magic \"ggla\"), not a model",
            Self::Safetensors => "a safetensors file",
            Self::PyTorch => "a PyTorch checkpoint: convert it to GGUF",
            Self::Pickle => "a Python pickle: convert the model to GGUF",
            Self::Onnx => "an ONNX model",
            Self::TfLite => "a TensorFlow Lite model",
            Self::Hdf5 => "an HDF5 file",
            Self::Zip => "a zip archive: unpack it first",
            Self::Gzip => "a gzip archive: unpack it first",
            Self::Zstd => "a Zstandard archive: unpack it first",
            Self::Html => "a web page, not the model: the download went to a page about it",
            Self::Xml => "an XML document, not the model: the download probably answered an error",
            Self::Json => "a JSON document",
            Self::GitLfsPointer => "a git-lfs pointer, not the model: run `git lfs pull` in its repository",
            Self::Text => "a text file",
            Self::Unknown => "no known kind of model file",
            Self::Empty => "an empty file",
            Self::Folder => "a folder",
            Self::NotRegular => "a pipe, a socket or a device",
            Self::Missing => "no file at all",
            Self::Unreadable => "a file that can't be read",
        }
    }
}

impl fmt::Display for FileKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.description())
    }
}

/// Bytes from the start of a file that are enough to tell.
const HEAD: usize = 512;

/// What the file at `path` looks like. This reads its first bytes only, and never waits for a pipe.
pub fn looks_like(path: &Path) -> FileKind {
    fn head(path: &Path) -> io::Result<Vec<u8>> {
        let mut head = Vec::with_capacity(HEAD);
        File::open(path)?.take(HEAD as u64).read_to_end(&mut head)?;
        Ok(head)
    }
    match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => FileKind::Missing,
        Err(_) => FileKind::Unreadable,
        Ok(metadata) if metadata.is_dir() => FileKind::Folder,
        Ok(metadata) if !metadata.is_file() => FileKind::NotRegular,
        Ok(_) => head(path).map_or(FileKind::Unreadable, |head| sniff(&head)),
    }
}

/// What a file with these first bytes looks like.
pub(crate) fn sniff(bytes: &[u8]) -> FileKind {
    let head = bytes.get(..HEAD).unwrap_or(bytes);
    let magics: [(&[u8], FileKind); 11] = [
        (b"lmgg", FileKind::Ggml),
        (b"fmgg", FileKind::Ggmf),
        (b"tjgg", FileKind::Ggjt),
        (b"algg", FileKind::Ggla),
        (b"\x89HDF\r\n\x1a\n", FileKind::Hdf5),
        (b"\x1f\x8b", FileKind::Gzip),
        (b"\x28\xb5\x2f\xfd", FileKind::Zstd),
        (b"version https://git-lfs", FileKind::GitLfsPointer),
        (b"version https://hawser", FileKind::GitLfsPointer),
        (b"PK\x05\x06", FileKind::Zip),
        (b"PK\x07\x08", FileKind::Zip),
    ];
    if head.is_empty() {
        return FileKind::Empty;
    }
    if head.starts_with(&crate::gguf::MAGIC) {
        // A big-endian version 3 reads as 0x03000000.
        return match head.get(4..8) {
            Some(&[0, 0, high, low]) if (high, low) != (0, 0) => FileKind::GgufBigEndian,
            _ => FileKind::Gguf,
        };
    }
    if let Some((_, kind)) = magics.iter().find(|(magic, _)| head.starts_with(magic)) {
        return *kind;
    }
    if head.starts_with(b"PK\x03\x04") {
        // The name of the first member begins at byte 30; torch.save puts `NAME/data.pkl` first.
        let torch = head.get(30..).unwrap_or_default().windows(8).take(256).any(|name| name == b"data.pkl");
        return if torch { FileKind::PyTorch } else { FileKind::Zip };
    }
    if head.get(4..8) == Some(b"TFL3") {
        return FileKind::TfLite;
    }
    // A header length and the JSON object that it measures.
    if let (Some(length), Some(b'{')) = (head.first_chunk(), head.get(8))
        && u64::from_le_bytes(*length) <= crate::safetensors::MAX_HEADER
    {
        return FileKind::Safetensors;
    }
    match head {
        // Protocol 2 to 5.
        [0x80, 2..=5, ..] => return FileKind::Pickle,
        // Protocol buffer: field 1 (the version of the format) as a number, then the producer's name or the graph.
        [0x08, 1..=32, 0x12 | 0x1a | 0x22 | 0x2a | 0x32 | 0x3a | 0x42, ..] => return FileKind::Onnx,
        _ => {}
    }
    sniff_text(head)
}

fn sniff_text(head: &[u8]) -> FileKind {
    // The last character may be cut at the end of what was read.
    let text = match std::str::from_utf8(head) {
        Ok(text) => text,
        Err(error) if error.error_len().is_none() => head
            .get(..error.valid_up_to())
            .and_then(|head| std::str::from_utf8(head).ok())
            .unwrap_or_default(),
        Err(_) => return FileKind::Unknown,
    };
    let text = text.trim_start_matches('\u{feff}').trim_start();
    if text.is_empty()
        || text.chars().any(|c| c.is_control() && !matches!(c, '\n' | '\r' | '\t' | '\x0c' | '\x1b'))
    {
        return FileKind::Unknown;
    }
    let start = text.get(..text.len().min(64)).unwrap_or(text).to_ascii_lowercase();
    if ["<!doctype html", "<html", "<head", "<body"].iter().any(|tag| start.starts_with(tag)) {
        FileKind::Html
    } else if start.starts_with("<?xml") {
        FileKind::Xml
    } else if start.starts_with('{') || start.starts_with('[') {
        FileKind::Json
    } else {
        FileKind::Text
    }
}
