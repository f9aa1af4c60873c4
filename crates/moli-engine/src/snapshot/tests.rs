//! What only a file that was made on purpose can have, and what needs a model that a test controls.

use std::fs;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use super::format::{Bounds, Kind, Snapshot, Writer};
use super::*;
use crate::testing::{Probe, VOCAB, toy};
use crate::{CancelToken, GenerateParams, SamplerParams};

const P: usize = PAGE_TOKENS;

fn kind() -> Kind {
    Kind { model: [3; 32], layout: "words".to_owned(), page_bytes: 100, state_bytes: 0 }
}

/// Writes a file with pages of these bytes.
fn write_file(path: &Path, kind: &Kind, adapter: u64, tokens: &[u32], pages: &[u8]) {
    let mut writer = Writer::create(path, kind, adapter, tokens).unwrap();
    pages.iter().for_each(|&byte| writer.page(&vec![byte; kind.page_bytes]).unwrap());
    assert_eq!(writer.finish().unwrap(), (pages.len(), fs::metadata(path).unwrap().len()));
}

fn open(path: &Path) -> Result<Snapshot, SnapshotError> {
    Snapshot::open(path, &kind(), Bounds { context: 100, vocab: 50, adapters: 0 })
}

#[test]
fn what_was_written_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("session");
    let tokens: Vec<u32> = (0..3 * P as u32 + 4).map(|i| i % 50).collect();
    write_file(&path, &kind(), 0, &tokens, &[7, 8, 9]);
    let mut snapshot = open(&path).unwrap();
    assert_eq!((snapshot.tokens.as_slice(), snapshot.pages()), (tokens.as_slice(), 3));
    let all: Vec<u8> = [7, 8, 9].into_iter().flat_map(|byte| [byte; 100]).collect();
    for (first, count) in [(0, 3), (1, 1), (1, 9), (2, 1), (0, 0), (3, 1)] {
        assert_eq!(snapshot.read(first, count).unwrap(), all[first * 100..3.min(first + count) * 100]);
    }
}

#[test]
fn a_page_that_changes_after_the_check_is_not_used() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("session");
    write_file(&path, &kind(), 0, &[1; 70], &[7, 8]);
    let mut snapshot = open(&path).unwrap();
    let mut bytes = fs::read(&path).unwrap();
    let at = bytes.len() - 32 - 50;
    bytes[at] ^= 1;
    fs::write(&path, bytes).unwrap();
    assert_eq!(snapshot.read(0, 1).unwrap(), [7; 100]);
    assert!(matches!(snapshot.read(0, 2), Err(SnapshotError::Checksum { .. })));
}

#[test]
fn files_whose_checksum_fits_and_whose_content_does_not() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("session");
    write_file(&path, &kind(), 0, &[1, 50, 2], &[]);
    let error = open(&path).unwrap_err();
    assert!(matches!(error, SnapshotError::TokenOutOfVocabulary { id: 50, vocab: 50 }), "{error}");
    write_file(&path, &kind(), 9, &[1], &[]);
    assert!(matches!(open(&path).unwrap_err(), SnapshotError::Adapter { found: 9, expected: 0 }));
    write_file(&path, &kind(), 0, &[1; P - 1], &[7]);
    let error = open(&path).unwrap_err();
    assert!(matches!(error, SnapshotError::TooManyPages { pages: 1, tokens: 31 }), "{error}");
    for (layout, page_bytes) in [("word", 100), ("words", 101), ("Words", 100)] {
        write_file(&path, &Kind { layout: layout.to_owned(), page_bytes, ..kind() }, 0, &[1; 70], &[7]);
        match open(&path).unwrap_err() {
            SnapshotError::OtherLayout { found, expected } => {
                assert_eq!(expected, "words, pages of 32 tokens and 100 bytes");
                assert_eq!(found, format!("{layout}, pages of 32 tokens and {page_bytes} bytes"));
            }
            error => panic!("{error}"),
        }
    }
    write_file(&path, &Kind { layout: "x".repeat(257), ..kind() }, 0, &[1; 70], &[7]);
    assert!(matches!(open(&path).unwrap_err(), SnapshotError::LayoutName { bytes: 257, limit: 256 }));
}

fn greedy(max_tokens: usize) -> GenerateParams {
    let sampling = SamplerParams::greedy();
    GenerateParams {
        max_tokens: Some(max_tokens),
        sampling,
        ignore_eos: true,
        speculation: false,
        ..GenerateParams::default()
    }
}

fn ids(engine: &Engine, prompt: &[u32], max_tokens: usize) -> Vec<u32> {
    let answer = engine.submit(prompt, &greedy(max_tokens), &CancelToken::new()).unwrap();
    answer.filter_map(|chunk| chunk.unwrap().token).map(|token| token.id).collect()
}

#[test]
fn more_pages_than_one_job_copies() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("session");
    let (tokens, pages) = (JOB_PAGES * P * 2 + 5, JOB_PAGES * 2);
    let text: Vec<u32> = (0..tokens as u32).map(|i| i * 7 % 251).collect();
    let (first, _) = toy(3 * JOB_PAGES * P, 64);
    let mut session = first.session();
    session.generate(&text, &greedy(1), &CancelToken::new()).unwrap().for_each(|chunk| drop(chunk.unwrap()));
    let saved = session.save(&path).unwrap();
    assert_eq!((saved.tokens, saved.cached_tokens), (tokens, pages * P));
    let (second, probe) = toy(3 * JOB_PAGES * P, 64);
    let prompt = [second.restore(&path).unwrap().tokens(), &[9]].concat();
    assert_eq!(ids(&second, &prompt, 9), ids(&first, &prompt, 9));
    // The rows of the prompt, and of the answer but for its last token.
    assert_eq!(probe.rows.load(Relaxed), prompt.len() - pages * P + 8);
}

#[test]
fn an_engine_without_a_file_knows_its_sessions_too() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("session");
    let session = toy(64, 64).0.session().with_tokens(vec![1, 2, 3]);
    session.save(&path).unwrap();
    assert_eq!(toy(64, 64).0.restore(&path).unwrap().tokens(), [1, 2, 3]);
    // The toy's configuration has the context in it.
    let error = toy(96, 64).0.restore(&path).unwrap_err();
    assert!(
        matches!(error, EngineError::Snapshot { error: SnapshotError::OtherModel { .. }, .. }),
        "{error}"
    );
    toy(64, 64).0.session().with_tokens(vec![VOCAB as u32]).save(&path).unwrap();
    let error = toy(64, 64).0.restore(&path).unwrap_err();
    assert!(
        matches!(error, EngineError::Snapshot { error: SnapshotError::TokenOutOfVocabulary { .. }, .. }),
        "{error}"
    );
}

/// Saves in the middle of an answer whose every step takes a while.
fn between(probe: &Probe, engine: &Engine, path: &Path) -> Saved {
    probe.slow.store(2, Relaxed);
    let mut answer = engine.submit(&[5; 40], &greedy(60), &CancelToken::new()).unwrap();
    answer.next().unwrap().unwrap();
    let saved = engine.clone().session().with_tokens(vec![5; 40]).save(path).unwrap();
    assert!(engine.counters().running == 1, "it went on meanwhile");
    answer.for_each(|chunk| drop(chunk.unwrap()));
    saved
}

#[test]
fn pages_of_a_running_answer_can_be_saved() {
    let folder = tempfile::tempdir().unwrap();
    let (engine, probe) = toy(256, 64);
    let saved = between(&probe, &engine, &folder.path().join("session"));
    assert_eq!((saved.tokens, saved.cached_tokens), (40, P));
}

#[test]
fn an_engine_that_has_failed_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("session");
    let (engine, probe) = toy(256, 64);
    let session = engine.clone().session().with_tokens(vec![5; 40]);
    session.save(&path).unwrap();
    probe.panic.store(true, Relaxed);
    let mut answer = engine.submit(&[1], &greedy(2), &CancelToken::new()).unwrap();
    assert!(matches!(answer.next(), Some(Err(EngineError::Poisoned))));
    std::thread::sleep(Duration::from_millis(20));
    let before = fs::read(&path).unwrap();
    assert!(matches!(session.save(&path), Err(EngineError::Poisoned)));
    assert!(matches!(engine.restore(&path), Err(EngineError::Poisoned)));
    assert_eq!(fs::read(&path).unwrap(), before);
    assert_eq!(folder.path().read_dir().unwrap().count(), 1);
}
