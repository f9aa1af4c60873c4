//! Models in several files.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod common;

use std::path::{Path, PathBuf};

use moli_format::{FormatError, Gguf, GgufWriter, ReadMode, TensorType};

struct Part {
    no: u16,
    count: u16,
    tensors: i32,
    tensor: &'static str,
}

fn write(folder: &Path, number: u32, of: u32, part: &Part) -> PathBuf {
    let path = folder.join(format!("m-{number:05}-of-{of:05}.gguf"));
    GgufWriter::new()
        .meta("split.no", part.no)
        .meta("split.count", part.count)
        .meta("split.tensors.count", part.tensors)
        .meta("only.in", number)
        .tensor(part.tensor, TensorType::F32, [2], vec![number as u8; 8])
        .write_file(&path)
        .unwrap();
    path
}

/// Three parts that belong together, but for what `change` does to the second.
fn three(change: impl FnOnce(&mut Part)) -> (tempfile::TempDir, Vec<PathBuf>) {
    let folder = tempfile::tempdir().unwrap();
    let part = |no, tensor| Part { no, count: 3, tensors: 3, tensor };
    let mut second = part(1, "b");
    change(&mut second);
    let parts = [part(0, "c"), second, part(2, "a")];
    let paths = (1..).zip(&parts).map(|(number, part)| write(folder.path(), number, 3, part)).collect();
    (folder, paths)
}

#[test]
fn any_part_opens_them_all() {
    let (_folder, paths) = three(|_| {});
    for path in &paths {
        for mode in [ReadMode::Map, ReadMode::Read] {
            let gguf = Gguf::open(path, mode).unwrap();
            assert_eq!(gguf.paths(), paths);
            assert_eq!(
                gguf.tensors().map(|tensor| tensor.name.as_str()).collect::<Vec<_>>(),
                ["c", "b", "a"]
            );
            assert_eq!(&gguf.tensor("a").unwrap().data[..], [3; 8]);
            assert_eq!(gguf.metadata().u32("only.in").unwrap(), 1);
            let bytes: u64 = paths.iter().map(|path| path.metadata().unwrap().len()).sum();
            assert_eq!(gguf.file_bytes(), bytes);
        }
    }
}

#[test]
fn a_missing_part_is_named() {
    let (_folder, paths) = three(|_| {});
    std::fs::remove_file(&paths[1]).unwrap();
    for path in [&paths[0], &paths[2]] {
        let error = Gguf::open(path, ReadMode::Map).unwrap_err();
        assert!(
            matches!(&error, FormatError::MissingPart { path, part: 2, count: 3 } if *path == paths[1]),
            "{error:?}"
        );
    }
    let error = Gguf::open(&paths[1], ReadMode::Map).unwrap_err();
    assert!(matches!(error, FormatError::NotFound { .. }), "{error:?}");
}

#[test]
fn a_part_whose_numbers_disagree() {
    for (change, key, expected, actual) in [
        ((|part| part.no = 2) as fn(&mut Part), "split.no", 1, 2),
        (|part| part.count = 4, "split.count", 3, 4),
    ] {
        let (_folder, paths) = three(change);
        let error = Gguf::open(&paths[0], ReadMode::Map).unwrap_err();
        let FormatError::Part { path, source } = &error else { panic!("{error:?}") };
        assert_eq!(*path, paths[1]);
        assert!(
            matches!(**source, FormatError::SplitMismatch { key: k, expected: e, actual: a }
                if (k, e, a) == (key, expected, actual)),
            "{error:?}"
        );
    }
}

#[test]
fn a_sum_of_tensors_that_disagrees() {
    let folder = tempfile::tempdir().unwrap();
    let part = |no, tensor| Part { no, count: 2, tensors: 3, tensor };
    let path = write(folder.path(), 1, 2, &part(0, "a"));
    write(folder.path(), 2, 2, &part(1, "b"));
    let error = Gguf::open(&path, ReadMode::Map).unwrap_err();
    assert!(
        matches!(error, FormatError::SplitMismatch { key: "split.tensors.count", expected: 2, actual: 3 }),
        "{error:?}"
    );
}

#[test]
fn a_tensor_in_two_parts() {
    let (_folder, paths) = three(|part| part.tensor = "c");
    let error = Gguf::open(&paths[0], ReadMode::Map).unwrap_err();
    assert!(matches!(&error, FormatError::DuplicateTensor { tensor } if tensor == "c"), "{error:?}");
}

#[test]
fn a_part_that_is_not_a_model() {
    let (_folder, paths) = three(|_| {});
    std::fs::write(&paths[1], b"version https://git-lfs.github.com/spec/v1\n").unwrap();
    let error = Gguf::open(&paths[2], ReadMode::Map).unwrap_err();
    let FormatError::Part { path, source } = &error else { panic!("{error:?}") };
    assert_eq!(*path, paths[1]);
    assert!(matches!(**source, FormatError::WrongKind { .. }));
    assert!(error.to_string().contains("git-lfs pointer"), "{error}");
}

#[test]
fn a_part_under_another_name() {
    let (folder, paths) = three(|_| {});
    let path = folder.path().join("renamed.gguf");
    std::fs::rename(&paths[0], &path).unwrap();
    let error = Gguf::open(&path, ReadMode::Map).unwrap_err();
    assert!(matches!(error, FormatError::SplitName { count: 3 }), "{error:?}");
    let error = common::open(&std::fs::read(&path).unwrap()).unwrap_err();
    assert!(matches!(error, FormatError::SplitName { count: 3 }), "{error:?}");
}

#[test]
fn a_whole_model_under_a_part_s_name() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m-00001-of-00002.gguf");
    GgufWriter::new().write_file(&path).unwrap();
    let error = Gguf::open(&path, ReadMode::Map).unwrap_err();
    let FormatError::Part { source, .. } = &error else { panic!("{error:?}") };
    assert!(matches!(&**source, FormatError::MissingKey { key } if key == "split.count"), "{error:?}");
}
