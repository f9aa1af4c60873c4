//! Things that a path can be besides a model.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod common;

use std::path::Path;

use moli_format::{Bytes, FileKind, FormatError, Gguf, ReadMode, looks_like};

const MODES: [ReadMode; 2] = [ReadMode::Map, ReadMode::Read];

fn error(path: &Path, mode: ReadMode) -> FormatError {
    Gguf::open(path, mode).unwrap_err()
}

#[test]
fn an_empty_file() {
    let (_folder, path) = common::file(b"");
    for mode in MODES {
        assert!(matches!(error(&path, mode), FormatError::Empty { .. }));
    }
    assert_eq!(looks_like(&path), FileKind::Empty);
}

#[test]
fn a_folder() {
    let folder = tempfile::tempdir().unwrap();
    for mode in MODES {
        assert!(matches!(Bytes::open(folder.path(), mode), Err(FormatError::Folder { .. })));
    }
    assert_eq!(looks_like(folder.path()), FileKind::Folder);
}

#[test]
fn no_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("none.gguf");
    for mode in MODES {
        assert!(matches!(error(&path, mode), FormatError::NotFound { path: p } if p == path));
    }
    assert_eq!(looks_like(&path), FileKind::Missing);
}

#[test]
fn a_model_is_recognised() {
    let (_folder, path) = common::file(&common::small());
    assert_eq!(looks_like(&path), FileKind::Gguf);
}

#[test]
fn reading_ahead_changes_nothing() {
    let content: Vec<u8> = (0..300_000_u32).map(|i| i as u8).collect();
    let (_folder, path) = common::file(&content);
    for mode in MODES {
        let bytes = Bytes::open(&path, mode).unwrap();
        // Whole, within a page, across several requests, at the end and empty.
        for range in [0..300_000, 5000..5001, 4095..270_000, 299_999..300_000, 7..7] {
            let part = bytes.slice(range.clone()).unwrap();
            part.read_ahead();
            assert_eq!(part.as_slice(), &content[range]);
        }
    }
}

#[test]
fn a_file_that_was_shortened_after_it_was_read_is_still_whole() {
    let (_folder, path) = common::file(&common::small());
    let gguf = Gguf::open(&path, ReadMode::Read).unwrap();
    std::fs::write(&path, b"").unwrap();
    assert_eq!(&gguf.tensor("f").unwrap().data[..], [2; 12]);
}

#[test]
fn a_mapped_file_that_is_removed_stays() {
    let (_folder, path) = common::file(&common::small());
    let data = Bytes::open(&path, ReadMode::Map).unwrap();
    std::fs::remove_file(&path).unwrap();
    assert_eq!(data.as_slice(), common::small());
}

#[cfg(unix)]
mod unix {
    use super::*;
    use std::fs::{Permissions, set_permissions};
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::process::CommandExt;
    use std::process::Command;

    /// Opening a pipe that nobody writes to would wait for ever, and a device may have no end.
    #[test]
    fn a_pipe_and_a_device() {
        let folder = tempfile::tempdir().unwrap();
        let pipe = folder.path().join("pipe.gguf");
        assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        for path in [pipe.as_path(), Path::new("/dev/zero")] {
            for mode in MODES {
                assert!(matches!(error(path, mode), FormatError::NotRegular { .. }));
            }
            assert_eq!(looks_like(path), FileKind::NotRegular);
        }
    }

    const CHILD: &str = "MOLI_TEST_UNREADABLE_FILE";

    /// The superuser reads everything, so there the test runs itself again as nobody.
    #[test]
    fn a_file_without_read_permission() {
        let refused = |path: &Path| {
            for mode in MODES {
                let error = error(path, mode);
                assert!(matches!(error, FormatError::PermissionDenied { .. }), "{error:?}");
            }
            assert_eq!(looks_like(path), FileKind::Unreadable);
        };
        if let Some(path) = std::env::var_os(CHILD) {
            return refused(Path::new(&path));
        }
        let (folder, path) = common::file(&common::small());
        set_permissions(folder.path(), Permissions::from_mode(0o755)).unwrap();
        set_permissions(&path, Permissions::from_mode(0o000)).unwrap();
        if std::fs::File::open(&path).is_err() {
            return refused(&path);
        }
        // Nobody may not be able to reach the test where it was built, so a copy of it lies beside the file. Another process
        // writes it: a child that another test starts at that moment would inherit a handle of this one, and a program that
        // anybody has open for writing can't be run.
        let program = folder.path().join("test");
        let copied = Command::new("cp").arg(std::env::current_exe().unwrap()).arg(&program).status().unwrap();
        assert!(copied.success());
        let output = Command::new(&program)
            .args(["--exact", "unix::a_file_without_read_permission"])
            .env(CHILD, &path)
            .uid(65_534)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && said.contains("1 passed"), "{said}");
    }
}
