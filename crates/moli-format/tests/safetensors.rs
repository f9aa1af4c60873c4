//! Safetensors files, good and bad.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod common;

use moli_format::safetensors::{Dtype, Safetensors};
use moli_format::{Bytes, FormatError, ReadMode};

/// A file with this header and `data` bytes after it.
fn file(header: &str, data: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.extend((0..data).map(|i| i as u8));
    bytes
}

/// A file of F32 tensors of one dimension.
fn tensors(entries: &[(&str, u64, u64, u64)], data: usize) -> Vec<u8> {
    let entries: Vec<String> = entries
        .iter()
        .map(|(name, n, start, end)| {
            format!(r#""{name}":{{"dtype":"F32","shape":[{n}],"data_offsets":[{start},{end}]}}"#)
        })
        .collect();
    file(&format!("{{{}}}", entries.join(",")), data)
}

fn error(bytes: &[u8]) -> FormatError {
    let (_folder, path) = common::file(bytes);
    let error = Safetensors::open(&path, ReadMode::Map).unwrap_err();
    let again = Safetensors::open(&path, ReadMode::Read).unwrap_err();
    assert_eq!(format!("{error:?}"), format!("{again:?}"));
    error
}

macro_rules! assert_error {
    ($bytes:expr, $pattern:pat $(if $guard:expr)?) => {
        let error = error(&$bytes);
        assert!(matches!(&error, $pattern $(if $guard)?), "{error:?}: {error}");
    };
}

#[test]
fn a_good_file() {
    let header = r#"{"__metadata__":{"format":"pt"},"b":{"dtype":"BF16","shape":[2,1],"data_offsets":[8,12]},
        "a":{"dtype":"F32","shape":[],"data_offsets":[0,4]},"z":{"dtype":"U8","shape":[0,3],"data_offsets":[4,4]},
        "c":{"dtype":"I8","shape":[4],"data_offsets":[4,8]}}"#;
    let model = Safetensors::from_bytes(&Bytes::from_vec(file(header, 12))).unwrap();
    assert_eq!(model.metadata()["format"], "pt");
    let names: Vec<_> = model.tensors().map(|tensor| tensor.name.as_str()).collect();
    assert_eq!(names, ["a", "b", "c", "z"]);
    let b = model.tensor("b").unwrap();
    assert_eq!((b.dtype, b.shape.as_slice(), &b.data[..]), (Dtype::BF16, &[2, 1][..], &[8, 9, 10, 11][..]));
    assert!(model.tensor("z").unwrap().data.is_empty() && model.tensor("none").is_none());
}

#[test]
fn what_the_crate_writes_is_read() {
    let data: Vec<u8> = (0..24).collect();
    let view = safetensors::tensor::TensorView::new(Dtype::F32, vec![2, 3], &data).unwrap();
    let bytes = safetensors::serialize([("w", view)], None).unwrap();
    let model = Safetensors::from_bytes(&bytes.into()).unwrap();
    assert_eq!(model.tensor("w").unwrap().data.as_slice(), data);
}

#[test]
fn a_header_larger_than_the_file() {
    for length in [u64::MAX, 1 << 63, 1 << 40, 3] {
        let mut bytes = u64::to_le_bytes(length).to_vec();
        bytes.extend(b"{}");
        assert_error!(bytes, FormatError::HeaderTooLarge { length: l, limit: 2 } if *l == length);
    }
}

#[test]
fn a_file_truncated_at_every_byte() {
    let whole = tensors(&[("a", 2, 0, 8), ("b", 1, 8, 12)], 12);
    Safetensors::from_bytes(&whole.clone().into()).unwrap();
    for len in 0..whole.len() {
        let error = Safetensors::from_bytes(&Bytes::from(&whole[..len])).unwrap_err();
        assert!(
            matches!(
                error,
                FormatError::Truncated { .. }
                    | FormatError::HeaderTooLarge { .. }
                    | FormatError::TensorOutOfBounds { .. }
            ),
            "{len}: {error:?}"
        );
    }
}

#[test]
fn overlapping_offsets() {
    assert_error!(
        tensors(&[("b", 2, 4, 12), ("a", 2, 0, 8)], 12),
        FormatError::OverlappingTensors { first, second } if first == "a" && second == "b"
    );
    assert_error!(tensors(&[("b", 1, 0, 4), ("a", 1, 0, 4)], 4), FormatError::OverlappingTensors { .. });
}

#[test]
fn wrapping_offsets() {
    assert_error!(
        tensors(&[("a", 1, 8, 4)], 12),
        FormatError::InvertedRange { tensor, start: 8, end: 4 } if tensor == "a"
    );
    assert_error!(tensors(&[("a", 1, u64::MAX - 3, 0)], 12), FormatError::InvertedRange { .. });
    assert_error!(
        tensors(&[("a", 1, 0, u64::MAX)], 12),
        FormatError::TensorOutOfBounds { tensor, offset: 0, bytes: u64::MAX, available: 12 } if tensor == "a"
    );
    assert_error!(tensors(&[("a", 4, 0, 16)], 12), FormatError::TensorOutOfBounds { .. });
}

#[test]
fn a_hole_and_a_tail() {
    assert_error!(
        tensors(&[("a", 1, 0, 4), ("b", 1, 8, 12)], 12),
        FormatError::UnusedBytes { offset: 4, bytes: 4 }
    );
    assert_error!(tensors(&[("a", 1, 0, 4)], 12), FormatError::UnusedBytes { offset: 4, bytes: 8 });
}

#[test]
fn a_type_that_disagrees_with_the_bytes() {
    assert_error!(
        tensors(&[("a", 2, 0, 4)], 4),
        FormatError::DataLength { tensor, expected: 8, actual: 4 } if tensor == "a"
    );
}

#[test]
fn a_shape_whose_product_wraps() {
    let header = r#"{"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]}}"#;
    assert_error!(file(header, 0), FormatError::DimensionOverflow { tensor, .. } if tensor == "a");
    assert_error!(tensors(&[("a", 1 << 62, 0, 4)], 4), FormatError::DimensionOverflow { .. });
}

#[test]
fn duplicate_names() {
    assert_error!(
        tensors(&[("a", 1, 0, 4), ("a", 1, 4, 8)], 8),
        FormatError::DuplicateTensor { tensor } if tensor == "a"
    );
}

#[test]
fn headers_that_are_not_the_right_json() {
    for header in [
        "",
        "[]",
        "{",
        r#"{"a":1}"#,
        r#"{"a":{"dtype":"F33","shape":[1],"data_offsets":[0,4]}}"#,
        r#"{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}"#,
        r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,18446744073709551616]}}"#,
        r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0]}}"#,
        r#"{"__metadata__":{"a":1}}"#,
    ] {
        assert_error!(file(header, 4), FormatError::InvalidHeader { .. } | FormatError::UnusedBytes { .. });
    }
    let deep = format!(r#"{{"__metadata__":{}1{}}}"#, "[".repeat(100_000), "]".repeat(100_000));
    assert_error!(file(&deep, 0), FormatError::InvalidHeader { .. });
    let mut bytes = file(r#"{"?":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#, 4);
    bytes[10] = 0xff;
    assert_error!(bytes, FormatError::InvalidHeader { .. });
}

#[test]
fn nul_in_a_name() {
    assert_error!(tensors(&[("a\\u0000", 1, 0, 4)], 4), FormatError::NulInName { .. });
}

#[test]
fn a_file_of_another_kind() {
    assert_error!(common::small(), FormatError::WrongKind { wanted: "safetensors", .. });
}

proptest::proptest! {
    #[test]
    fn changed_bytes_never_panic(changes in proptest::collection::vec((0_usize..1000, 0_u8..), 1..6)) {
        let mut bytes = tensors(&[("a", 2, 0, 8), ("b", 1, 8, 12)], 12);
        for (at, value) in changes {
            let at = at % bytes.len();
            bytes[at] = value;
        }
        let _ = Safetensors::from_bytes(&bytes.into());
    }
}
