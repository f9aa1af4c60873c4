//! Files made byte by byte, so that they can be wrong in ways that the writer refuses.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses its own part")]

use std::path::PathBuf;

use moli_format::{Bytes, FormatError, Gguf, GgufWriter, ReadMode, TensorType};

pub const U8: u32 = 0;
pub const U32: u32 = 4;
pub const F32: u32 = 6;
pub const BOOL: u32 = 7;
pub const STRING: u32 = 8;
pub const ARRAY: u32 = 9;
pub const U64: u32 = 10;

/// A GGUF under construction.
#[derive(Clone)]
pub struct Raw(pub Vec<u8>);

impl Raw {
    /// Magic, version 3 and the two counts.
    pub fn new(tensors: u64, entries: u64) -> Self {
        let mut raw = Self(b"GGUF".to_vec());
        raw.u32(3);
        raw.u64(tensors);
        raw.u64(entries);
        raw
    }

    pub fn u32(&mut self, value: u32) {
        self.0.extend(value.to_le_bytes());
    }

    pub fn u64(&mut self, value: u64) {
        self.0.extend(value.to_le_bytes());
    }

    pub fn str(&mut self, text: &[u8]) {
        self.u64(text.len() as u64);
        self.0.extend(text);
    }

    /// A key, a type and whatever bytes come after it.
    pub fn entry(mut self, key: impl AsRef<[u8]>, id: u32, value: &[u8]) -> Self {
        self.str(key.as_ref());
        self.u32(id);
        self.0.extend(value);
        self
    }

    /// An array's element type, its length and whatever bytes come after it.
    pub fn array(self, key: &str, item: u32, length: u64, values: &[u8]) -> Self {
        let mut value = item.to_le_bytes().to_vec();
        value.extend(length.to_le_bytes());
        value.extend(values);
        self.entry(key, ARRAY, &value)
    }

    pub fn tensor(mut self, name: impl AsRef<[u8]>, dims: &[u64], id: u32, offset: u64) -> Self {
        self.str(name.as_ref());
        self.u32(dims.len() as u32);
        dims.iter().for_each(|&dim| self.u64(dim));
        self.u32(id);
        self.u64(offset);
        self
    }

    /// Padding to 32 bytes and `len` bytes of data.
    pub fn data(mut self, len: usize) -> Self {
        self.0.resize(self.0.len().next_multiple_of(32), 0);
        self.0.resize(self.0.len() + len, 7);
        self
    }

    pub fn open(&self) -> Result<Gguf, FormatError> {
        open(&self.0)
    }

    pub fn error(&self) -> FormatError {
        self.open().unwrap_err()
    }
}

/// A file of these bytes in a folder that is removed with the first of the pair.
pub fn file(bytes: &[u8]) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.gguf");
    std::fs::write(&path, bytes).unwrap();
    (folder, path)
}

/// Opens the bytes mapped, read and from memory, which must agree.
pub fn open(bytes: &[u8]) -> Result<Gguf, FormatError> {
    let (_folder, path) = file(bytes);
    let mapped = Gguf::open(&path, ReadMode::Map);
    let read = Gguf::open(&path, ReadMode::Read);
    let memory = Gguf::from_bytes(&Bytes::from_vec(bytes.to_vec()));
    match (&mapped, &read, &memory) {
        (Ok(mapped), Ok(read), Ok(memory)) => {
            assert!(mapped.tensors().eq(read.tensors()) && mapped.tensors().eq(memory.tensors()));
            assert_eq!(mapped.metadata(), read.metadata());
        }
        (Err(mapped), Err(read), Err(memory)) => {
            assert_eq!(format!("{mapped:?}"), format!("{read:?}"));
            if !bytes.is_empty() {
                assert_eq!(format!("{mapped:?}"), format!("{memory:?}"));
            }
        }
        other => panic!("mapped, read and in memory disagree: {other:?}"),
    }
    mapped
}

/// A small valid file with a value of each type and three tensors.
pub fn small() -> Vec<u8> {
    let mut file = Vec::new();
    let nested: moli_format::NestedArray = [vec![1_u32, 2], vec![]]
        .iter()
        .map(|v| moli_format::Value::from(v.as_slice()).as_array().unwrap().clone())
        .collect();
    GgufWriter::new()
        .meta("general.architecture", "llama")
        .meta("a.u8", 1_u8)
        .meta("a.i8", -1_i8)
        .meta("a.u16", 2_u16)
        .meta("a.i16", -2_i16)
        .meta("a.u32", 3_u32)
        .meta("a.i32", -3_i32)
        .meta("a.u64", u64::MAX)
        .meta("a.i64", i64::MIN)
        .meta("a.f32", 0.5_f32)
        .meta("a.f64", 0.25_f64)
        .meta("a.bool", true)
        .meta("a.strings", ["", "é", "ab\0c"])
        .meta("a.f32s", [1.0_f32, -2.0])
        .meta("a.u8s", [1_u8, 2, 3])
        .meta("a.bools", [true, false])
        .meta("a.nested", nested)
        .meta("a.none", Vec::<i32>::new())
        .tensor("q", TensorType::Q8_0, [32, 2], vec![1; 68])
        .tensor("f", TensorType::F32, [3], vec![2; 12])
        .tensor("b", TensorType::BF16, [1, 2, 1, 3], vec![3; 12])
        .write(&mut file)
        .unwrap();
    file
}
