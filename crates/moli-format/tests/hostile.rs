//! Each malformed GGUF is an error of its own kind, whatever way the file is opened.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod common;

use common::{ARRAY, BOOL, F32, Raw, STRING, U8, U32, U64};
use moli_format::{Bytes, FileKind, FormatError, Gguf};

macro_rules! assert_error {
    ($raw:expr, $pattern:pat $(if $guard:expr)?) => {
        let error = $raw.error();
        assert!(matches!(&error, $pattern $(if $guard)?), "{error:?}: {error}");
    };
}

const WRAPS: u64 = 1 << 40;

#[test]
fn metadata_count_of_2_to_the_40() {
    assert_error!(
        Raw::new(0, WRAPS).data(1000),
        FormatError::TooMany { what: "metadata entries", count: WRAPS, .. }
    );
    assert_error!(Raw::new(0, u64::MAX), FormatError::TooMany { count: u64::MAX, limit: 0, .. });
}

#[test]
fn tensor_count_of_2_to_the_40() {
    assert_error!(Raw::new(WRAPS, 0).data(1000), FormatError::TooMany { what: "tensors", count: WRAPS, .. });
}

#[test]
fn array_length_of_2_to_the_63() {
    for item in [U8, F32, BOOL, STRING, ARRAY, U64] {
        for length in [1 << 63, u64::MAX, 1 << 61, 1 << 40] {
            assert_error!(
                Raw::new(0, 1).array("k", item, length, &[0; 64]),
                FormatError::ArrayTooLong { key, length: l, .. } if key == "k" && *l == length
            );
        }
    }
}

#[test]
fn string_length_of_2_to_the_63() {
    for length in [1 << 63, u64::MAX, 100] {
        assert_error!(
            Raw::new(0, 1).entry("k", STRING, &u64::to_le_bytes(length)),
            FormatError::Truncated { needed, available: 0, .. } if *needed == length
        );
        let mut raw = Raw::new(0, 1);
        raw.u64(length);
        raw.0.extend([b'x'; 20]);
        let error = raw.error();
        assert!(
            matches!(error, FormatError::NameTooLong { limit: 65_535, .. } | FormatError::Truncated { .. }),
            "{error:?}"
        );
        assert_error!(
            Raw::new(0, 1).array("k", STRING, 1, &u64::to_le_bytes(length)),
            FormatError::Truncated { .. }
        );
    }
}

#[test]
fn dimensions_whose_product_wraps() {
    for dims in [&[1 << 32, 1 << 32][..], &[u64::MAX], &[1 << 21, 1 << 21, 1 << 21, 2], &[1 << 63]] {
        assert_error!(
            Raw::new(1, 0).tensor("t", dims, 0, 0).data(64),
            FormatError::DimensionOverflow { tensor, dims: d } if tensor == "t" && d == dims
        );
    }
    // The elements fit and their bytes do not.
    assert_error!(
        Raw::new(1, 0).tensor("t", &[1 << 62], 28, 0).data(64),
        FormatError::DimensionOverflow { .. }
    );
}

#[test]
fn more_dimensions_than_allowed() {
    assert_error!(
        Raw::new(1, 0).tensor("t", &[1; 5], 0, 0).data(64),
        FormatError::TooManyDimensions { tensor, actual: 5, limit: 4 } if tensor == "t"
    );
    let mut raw = Raw::new(1, 0);
    raw.str(b"t");
    raw.u32(u32::MAX);
    assert_error!(raw.data(64), FormatError::TooManyDimensions { actual: 0xffff_ffff, .. });
}

#[test]
fn a_zero_dimension() {
    for dims in [&[0][..], &[32, 0], &[0, u64::MAX, u64::MAX]] {
        assert_error!(Raw::new(1, 0).tensor("t", dims, 0, 0).data(64), FormatError::ZeroDimension { .. });
    }
}

#[test]
fn no_dimensions_are_a_scalar() {
    let gguf = Raw::new(1, 0).tensor("t", &[], 0, 0).data(4).open().unwrap();
    let tensor = gguf.tensor("t").unwrap();
    assert_eq!((tensor.dims.as_slice(), tensor.rows(), tensor.cols()), (&[1][..], 1, 1));
}

#[test]
fn an_offset_past_the_end() {
    for offset in [64, 1 << 40, u64::MAX - 31] {
        assert_error!(
            Raw::new(1, 0).tensor("t", &[8], 0, offset).data(64),
            FormatError::TensorOutOfBounds { tensor, offset: o, bytes: 32, available: 64 }
                if tensor == "t" && *o == offset
        );
    }
    assert_error!(
        Raw::new(1, 0).tensor("t", &[17], 0, 0).data(64),
        FormatError::TensorOutOfBounds { bytes: 68, available: 64, .. }
    );
}

#[test]
fn a_file_truncated_at_every_byte() {
    let whole = common::small();
    common::open(&whole).unwrap();
    // The last tensor has 12 bytes and 20 of padding.
    for len in 0..whole.len() - 20 {
        let error = Gguf::from_bytes(&Bytes::from_vec(whole[..len].to_vec())).unwrap_err();
        assert!(
            matches!(
                error,
                FormatError::Truncated { .. }
                    | FormatError::TooMany { .. }
                    | FormatError::ArrayTooLong { .. }
                    | FormatError::TensorOutOfBounds { .. }
            ),
            "{len}: {error:?}"
        );
        if len % 37 == 0 {
            common::open(&whole[..len]).unwrap_err();
        }
    }
    for len in whole.len() - 20..whole.len() {
        common::open(&whole[..len]).unwrap();
    }
}

#[test]
fn alignment_0_and_2_to_the_31_and_others() {
    for value in [0, 1 << 31, 1, 4, 24, 33, u32::MAX, 1 << 21] {
        assert_error!(
            Raw::new(0, 1).entry("general.alignment", U32, &value.to_le_bytes()),
            FormatError::BadAlignment { value: v, .. } if *v == u64::from(value)
        );
    }
}

#[test]
fn alignment_of_a_wrong_type() {
    for (id, name) in [(U64, "u64"), (5, "i32"), (F32, "f32"), (U8, "u8")] {
        assert_error!(
            Raw::new(0, 1).entry("general.alignment", id, &32_u64.to_le_bytes()),
            FormatError::WrongType { key, expected: "u32", actual } if key == "general.alignment" && actual == name
        );
    }
}

#[test]
fn a_tensor_off_the_alignment() {
    assert_error!(
        Raw::new(1, 0).tensor("t", &[1], 0, 16).data(64),
        FormatError::MisalignedTensor { tensor, offset: 16, alignment: 32 } if tensor == "t"
    );
}

#[test]
fn duplicate_keys() {
    assert_error!(
        Raw::new(0, 3).entry("k", U8, &[1]).entry("j", U8, &[1]).entry("k", U32, &[1; 4]),
        FormatError::DuplicateKey { key } if key == "k"
    );
}

#[test]
fn duplicate_tensors() {
    assert_error!(
        Raw::new(3, 0).tensor("t", &[8], 0, 0).tensor("u", &[8], 0, 32).tensor("t", &[8], 0, 64).data(96),
        FormatError::DuplicateTensor { tensor } if tensor == "t"
    );
}

#[test]
fn overlapping_tensors() {
    assert_error!(
        Raw::new(2, 0).tensor("b", &[8], 0, 32).tensor("a", &[9], 0, 0).data(96),
        FormatError::OverlappingTensors { first, second } if first == "a" && second == "b"
    );
    assert_error!(
        Raw::new(2, 0).tensor("a", &[8], 0, 0).tensor("b", &[8], 0, 0).data(96),
        FormatError::OverlappingTensors { .. }
    );
}

#[test]
fn an_unknown_tensor_type() {
    for id in [4, 5, 31, 36, 42, u32::MAX] {
        let raw = Raw::new(1, 0).tensor("blk.0.w", &[32], id, 0).data(64);
        assert_error!(raw, FormatError::UnknownTensorType { tensor, id: i } if tensor == "blk.0.w" && *i == id);
        let text = raw.error().to_string();
        assert!(text.contains("blk.0.w") && text.contains(&id.to_string()), "{text}");
    }
}

#[test]
fn an_unknown_value_type() {
    for id in [13, u32::MAX] {
        assert_error!(
            Raw::new(0, 1).entry("k", id, &[0; 32]),
            FormatError::UnknownValueType { key, id: i } if key == "k" && *i == id
        );
        assert_error!(
            Raw::new(0, 1).array("k", id, 1, &[0; 32]),
            FormatError::UnknownValueType { key, .. } if key == "k"
        );
    }
}

#[test]
fn invalid_utf8_in_keys_names_and_strings() {
    assert_error!(Raw::new(0, 1).entry(b"k\xff", U8, &[1]), FormatError::InvalidUtf8 { what } if what == "metadata key");
    assert_error!(
        Raw::new(1, 0).tensor(b"\xc3", &[1], 0, 0).data(4),
        FormatError::InvalidUtf8 { what } if what == "tensor name"
    );
    assert_error!(
        Raw::new(0, 1).entry("k", STRING, b"\x01\0\0\0\0\0\0\0\xff"),
        FormatError::InvalidUtf8 { what } if what.contains("\"k\"")
    );
    let strings = |parts: &[&[u8]]| {
        let mut values = Raw(Vec::new());
        parts.iter().for_each(|part| values.str(part));
        Raw::new(0, 1).array("k", STRING, parts.len() as u64, &values.0)
    };
    for (parts, wrong) in [
        (&[&b"a"[..], b"", b"b\xff", b"c"][..], "string 2 of"),
        // Together they are valid UTF-8, each for itself is not.
        (&[b"a", b"\xc3", b"\xa9"], "string 1 of"),
    ] {
        assert_error!(strings(parts), FormatError::InvalidUtf8 { what } if what.starts_with(wrong));
    }
    let gguf = strings(&[b"\xc3\xa9", b"", b"x\0"]).open().unwrap();
    let array = gguf.metadata().strings("k").unwrap();
    assert_eq!(array.iter().collect::<Vec<_>>(), ["é", "", "x\0"]);
    assert_eq!((array.get(0), array.get(3)), (Some("é"), None));
}

#[test]
fn nul_in_keys_and_names() {
    assert_error!(
        Raw::new(0, 1).entry("k\0x", U8, &[1]),
        FormatError::NulInName { what: "metadata key", name } if name == "k\0x"
    );
    assert_error!(
        Raw::new(1, 0).tensor("\0", &[1], 0, 0).data(4),
        FormatError::NulInName { what: "tensor name", .. }
    );
}

#[test]
fn empty_and_long_names() {
    assert_error!(Raw::new(0, 1).entry("", U8, &[1; 8]), FormatError::EmptyName { what: "metadata key" });
    assert_error!(
        Raw::new(1, 0).tensor("", &[1], 0, 0).data(64),
        FormatError::EmptyName { what: "tensor name" }
    );
    assert_error!(
        Raw::new(1, 0).tensor([b'x'; 1025], &[1], 0, 0).data(64),
        FormatError::NameTooLong { what: "tensor name", length: 1025, limit: 1024 }
    );
    assert_error!(
        Raw::new(0, 1).entry(vec![b'x'; 70_000], U8, &[1]),
        FormatError::NameTooLong { what: "metadata key", length: 70_000, limit: 65_535 }
    );
}

#[test]
fn nested_arrays_have_a_greatest_depth() {
    let nest = |depth: usize| {
        // Each level is an array of one array; the innermost is one of a u8.
        let mut values = Vec::new();
        for level in 0..depth {
            values.extend(if level + 1 == depth { U8 } else { ARRAY }.to_le_bytes());
            values.extend(1_u64.to_le_bytes());
        }
        values.push(5);
        Raw::new(0, 1).entry("k", ARRAY, &values)
    };
    let gguf = nest(4).open().unwrap();
    let mut array = gguf.metadata().array("k").unwrap().clone();
    for _ in 0..3 {
        array = array.get(0).unwrap().as_array().unwrap().clone();
    }
    assert_eq!(array.as_scalars().unwrap().as_bytes(), [5]);
    for depth in [5, 100_000] {
        assert_error!(nest(depth), FormatError::NestingTooDeep { key, limit: 4 } if key == "k");
    }
}

#[test]
fn a_bool_that_is_neither_0_nor_1() {
    assert_error!(
        Raw::new(0, 1).entry("k", BOOL, &[2]),
        FormatError::InvalidBool { key, value: 2 } if key == "k"
    );
    assert_error!(
        Raw::new(0, 1).array("k", BOOL, 3, &[0, 1, 255]),
        FormatError::InvalidBool { value: 255, .. }
    );
}

#[test]
fn a_row_that_is_not_whole_blocks() {
    // 8 by 4 elements are one block, and still no row is.
    assert_error!(
        Raw::new(1, 0).tensor("t", &[8, 4], 2, 0).data(64),
        FormatError::PartialBlock { tensor, ttype: "Q4_0", cols: 8, block_len: 32 } if tensor == "t"
    );
    assert_error!(Raw::new(1, 0).tensor("t", &[288], 12, 0).data(512), FormatError::PartialBlock { .. });
}

#[test]
fn a_big_endian_file() {
    let mut raw = Raw::new(0, 0);
    raw.0[4..8].copy_from_slice(&3_u32.to_be_bytes());
    assert_error!(raw, FormatError::BigEndian { version: 3 });
}

#[test]
fn versions_other_than_2_and_3() {
    for version in [0, 1, 4, 99] {
        let mut raw = Raw::new(0, 0);
        raw.0[4..8].copy_from_slice(&u32::to_le_bytes(version));
        assert_error!(raw, FormatError::UnsupportedVersion { version: v } if *v == version);
    }
    let mut raw = Raw::new(0, 0);
    raw.0[4..8].copy_from_slice(&2_u32.to_le_bytes());
    assert_eq!(raw.open().unwrap().version(), 2);
}

#[test]
fn files_of_other_kinds_are_named() {
    let mut zip = b"PK\x03\x04".to_vec();
    zip.resize(30, 0);
    let torch = [zip.as_slice(), b"archive/data.pkl"].concat();
    let cases: [(&[u8], FileKind, &str); 20] = [
        (b"lmgg\x01\0\0\0\0\0\0\0", FileKind::Ggml, "ggml"),
        (b"fmgg\x01\0\0\0", FileKind::Ggmf, "ggmf"),
        (b"tjgg\x03\0\0\0", FileKind::Ggjt, "ggjt"),
        (b"algg\x01\0\0\0", FileKind::Ggla, "adapter"),
        (b"\x08\x07\x12\x07pytorch\x1a\x031.0", FileKind::Onnx, "ONNX"),
        (&zip, FileKind::Zip, "zip archive"),
        (&torch, FileKind::PyTorch, "PyTorch"),
        (b"\x80\x02\x8a\x0al\xfc\x9c", FileKind::Pickle, "pickle"),
        (b"\x02\0\0\0\0\0\0\0{}", FileKind::Safetensors, "safetensors"),
        (b"<!DOCTYPE html>\n<html lang=\"en\">", FileKind::Html, "web page"),
        (b"\xef\xbb\xbf\n <HTML>", FileKind::Html, "web page"),
        (b"<?xml version=\"1.0\"?><Error>", FileKind::Xml, "XML"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:b179\nsize 98362432\n",
            FileKind::GitLfsPointer,
            "this is a git-lfs pointer, not the model",
        ),
        (b"{\"error\": \"not found\"}", FileKind::Json, "JSON"),
        (b"Invalid username or password.", FileKind::Text, "text"),
        (b"\x1f\x8b\x08", FileKind::Gzip, "gzip"),
        (b"\x28\xb5\x2f\xfd", FileKind::Zstd, "Zstandard"),
        (b"\x89HDF\r\n\x1a\n", FileKind::Hdf5, "HDF5"),
        (b"\x1c\0\0\0TFL3", FileKind::TfLite, "TensorFlow"),
        (b"\0\0\0\0\0\0\0\0\0\0\0\0", FileKind::Unknown, "no known kind"),
    ];
    for (bytes, kind, word) in cases {
        let error = common::open(bytes).unwrap_err();
        assert!(
            matches!(error, FormatError::WrongKind { wanted: "GGUF", kind: k } if k == kind),
            "{error:?}, not {kind:?}"
        );
        assert!(error.to_string().contains(word), "{error}");
    }
}
