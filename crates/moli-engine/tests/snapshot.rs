//! Sessions that are saved and restored, with a tiny model on the CPU.

// Clippy takes helpers of tests for code outside tests.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::fs::File;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use moli_engine::{
    CancelToken, Engine, EngineError, EngineOptions, GenerateParams, KvType, SamplerParams, Scheduling,
    Session, SnapshotError,
};
use moli_testkit::TinyModel;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use tempfile::TempDir;

/// Tokens of a page.
const PAGE: usize = 32;
/// Bytes of the file before the layout's name.
const HEADER: usize = 92;
const CHECKSUM: usize = 32;

/// A folder with a model in it.
struct Place {
    folder: TempDir,
    model: TinyModel,
}

impl Place {
    fn new() -> Self {
        Self::of("llama", 2)
    }

    fn of(architecture: &'static str, layers: usize) -> Self {
        let model = TinyModel {
            layers,
            hidden: 64,
            heads: 2,
            kv_heads: 1,
            head_dim: 32,
            ffn: 64,
            context: 512,
            ..TinyModel::new(architecture)
        };
        let place = Self { folder: tempfile::tempdir().unwrap(), model };
        place.model.write(&place.path("model.gguf")).unwrap();
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn engine(&self) -> Engine {
        self.engine_with(|_| {})
    }

    fn engine_with(&self, change: impl FnOnce(&mut EngineOptions)) -> Engine {
        engine(&self.path("model.gguf"), change)
    }

    /// The file of a session of so many tokens.
    fn saved(&self, tokens: usize) -> PathBuf {
        let path = self.path("saved");
        let engine = self.engine();
        let mut session = engine.session();
        answer(&mut session, &text(1, tokens), &greedy(1));
        assert_eq!(session.save(&path).unwrap().tokens, tokens);
        path
    }

    /// Files in the folder.
    fn files(&self) -> usize {
        self.folder.path().read_dir().unwrap().count()
    }
}

fn engine(model: &Path, change: impl FnOnce(&mut EngineOptions)) -> Engine {
    let mut options =
        EngineOptions { threads: Some(1), context: Some(512), sessions: 2, ..EngineOptions::default() };
    change(&mut options);
    Engine::load(model, &options).unwrap()
}

fn greedy(max_tokens: usize) -> GenerateParams {
    GenerateParams {
        max_tokens: Some(max_tokens),
        sampling: SamplerParams::greedy(),
        ignore_eos: true,
        logprobs: Some(2),
        ..GenerateParams::default()
    }
}

fn seeded(max_tokens: usize) -> GenerateParams {
    let sampling = SamplerParams { seed: Some(7), temperature: 1.5, ..SamplerParams::default() };
    GenerateParams { sampling, ..greedy(max_tokens) }
}

/// Ids that no other seed has.
fn text(seed: u64, tokens: usize) -> Vec<u32> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    (0..tokens).map(|_| random.next_u32() % 256).collect()
}

/// A token with the bits of its log-probability, and the likeliest ones with theirs.
type Token = (u32, u32, Vec<(u32, u32)>);

/// An answer's tokens, and how many of its prompt were cached.
fn answer(session: &mut Session, prompt: &[u32], params: &GenerateParams) -> (Vec<Token>, usize) {
    let mut generation = session.generate(prompt, params, &CancelToken::new()).unwrap();
    let tokens = generation.by_ref().filter_map(|chunk| chunk.unwrap().token).map(|token| {
        let top = token.top.iter().map(|&(id, logprob)| (id, logprob.to_bits())).collect();
        (token.id, token.logprob.unwrap().to_bits(), top)
    });
    (tokens.collect(), generation.summary().usage.cached_tokens)
}

/// The session's tokens and a question more.
fn go_on(session: &Session) -> Vec<u32> {
    [session.tokens(), &text(2, 9)].concat()
}

#[track_caller]
fn refusal(engine: &Engine, path: &Path) -> SnapshotError {
    match engine.restore(path).unwrap_err() {
        EngineError::Snapshot { path: named, error } => {
            assert_eq!(named, path);
            error
        }
        other => panic!("{other}"),
    }
}

#[test]
fn a_restored_session_answers_as_if_it_had_never_ended() {
    // Layers that keep keys and values of one width, and of two, and layers that see those of others.
    let places = [Place::new(), Place::of("gemma3n", 4), Place::of("gemma4", 4)];
    for (place, kv_type) in places.iter().flat_map(|place| KvType::ALL.map(|kv_type| (place, kv_type))) {
        let load = || place.engine_with(|options| options.kv_type = Some(kv_type));
        let file = place.path("saved");
        let first = load();
        let mut session = first.session();
        answer(&mut session, &text(1, 130), &greedy(45));
        let saved = session.save(&file).unwrap();
        // The last token has not been computed.
        assert_eq!((saved.tokens, saved.cached_tokens), (174, 160));
        assert_eq!(saved.bytes, file.metadata().unwrap().len());
        let (prompt, tokens) = (go_on(&session), session.tokens().to_vec());
        let expected = [greedy(40), seeded(40)].map(|params| answer(&mut session, &prompt, &params).0);

        let second = load();
        let mut restored = second.restore(&file).unwrap();
        assert_eq!(restored.tokens(), tokens);
        assert_eq!(answer(&mut restored, &prompt, &greedy(40)), (expected[0].clone(), 160));
        let mut restored = load().restore(&file).unwrap();
        assert_eq!(answer(&mut restored, &prompt, &seeded(40)), (expected[1].clone(), 160));
        // Where its pages are cached already they are not put there again, and it can be saved again: the same file.
        let again = place.path("again");
        let cached = second.counters().pages_cached;
        second.restore(&file).unwrap().save(&again).unwrap();
        assert_eq!(second.counters().pages_cached, cached);
        assert_eq!(std::fs::read(&again).unwrap(), std::fs::read(&file).unwrap());
        // An engine that computes all of it.
        assert_eq!(answer(&mut load().session(), &prompt, &greedy(40)), (expected[0].clone(), 0));
    }
}

#[test]
fn sessions_without_a_whole_page() {
    let place = Place::new();
    let (engine, file) = (place.engine(), place.path("saved"));
    let mut session = engine.session();
    let saved = session.save(&file).unwrap();
    assert_eq!((saved.tokens, saved.cached_tokens), (0, 0));
    assert!(place.engine().restore(&file).unwrap().tokens().is_empty());
    answer(&mut session, &text(1, PAGE - 1), &greedy(1));
    assert_eq!(session.save(&file).unwrap().cached_tokens, 0);
    assert_eq!(place.engine().restore(&file).unwrap().tokens(), session.tokens());
}

#[test]
fn a_page_that_others_go_on_in_is_not_in_the_file() {
    let place = Place::new();
    let (engine, file) = (place.engine(), place.path("saved"));
    let (mine, theirs) = (text(1, PAGE + 9), text(3, 40));
    let mut session = engine.session();
    answer(&mut engine.session(), &[&mine[..], &theirs].concat(), &greedy(1));
    answer(&mut session, &mine, &greedy(1));
    assert_eq!(session.save(&file).unwrap().cached_tokens, PAGE);
    let alone = place.engine();
    let mut session = alone.session();
    answer(&mut session, &mine, &greedy(1));
    session.save(&place.path("alone")).unwrap();
    assert_eq!(std::fs::read(file).unwrap(), std::fs::read(place.path("alone")).unwrap());
}

#[test]
fn places_that_cannot_be_written_or_read() {
    let place = Place::new();
    let engine = place.engine();
    let mut session = engine.session();
    answer(&mut session, &text(1, 40), &greedy(1));
    let (missing, folder) = (place.path("no/such/folder"), place.folder.path());
    match session.save(&missing).unwrap_err() {
        EngineError::Snapshot { error: SnapshotError::Io(io), path } => {
            assert_eq!((io.kind(), path), (ErrorKind::NotFound, missing.clone()));
        }
        error => panic!("{error}"),
    }
    let error = session.save(folder).unwrap_err();
    assert!(matches!(error, EngineError::Snapshot { error: SnapshotError::Io(_), .. }));
    assert_eq!(place.files(), 1, "nothing is left of them");
    assert!(matches!(refusal(&engine, &missing), SnapshotError::Io(io) if io.kind() == ErrorKind::NotFound));
    assert!(matches!(refusal(&engine, folder), SnapshotError::NotASession));
    #[cfg(unix)]
    assert!(matches!(refusal(&engine, Path::new("/dev/zero")), SnapshotError::NotASession));
}

#[test]
fn every_flipped_bit_is_noticed() {
    let place = Place::new();
    let path = place.saved(70);
    let good = std::fs::read(&path).unwrap();
    let engine = place.engine();
    let mut random = ChaCha8Rng::seed_from_u64(5);
    // All of the header and of the checksum, and 200 bits anywhere.
    let edges = (0..HEADER * 8).chain((good.len() - CHECKSUM) * 8..good.len() * 8);
    let anywhere = (0..200).map(|_| random.next_u64() as usize % (good.len() * 8));
    for bit in edges.chain(anywhere) {
        let mut bad = good.clone();
        let byte = bit / 8;
        bad[byte] ^= 1 << (bit % 8);
        std::fs::write(&path, &bad).unwrap();
        let error = refusal(&engine, &path);
        let expected = match error {
            SnapshotError::NotASession => byte < 8,
            SnapshotError::Version { found, supported: 2 } => (8..12).contains(&byte) && found != 2,
            SnapshotError::OtherModel { .. } => (12..44).contains(&byte),
            SnapshotError::OtherLayout { .. } => (44..48).contains(&byte) || byte >= HEADER,
            SnapshotError::Length { .. } => (48..60).contains(&byte) || (68..HEADER).contains(&byte),
            SnapshotError::Adapter { .. } => (60..68).contains(&byte),
            SnapshotError::Checksum { .. } => byte >= HEADER,
            _ => false,
        };
        assert!(expected, "bit {bit}: {error}");
    }
    assert_eq!(engine.counters().pages_cached, 0);
    std::fs::write(&path, &good).unwrap();
    engine.restore(&path).unwrap();
}

#[test]
fn every_truncation_is_noticed() {
    let place = Place::new();
    let path = place.saved(PAGE + 1);
    let good = std::fs::read(&path).unwrap();
    let engine = place.engine();
    let file = File::options().write(true).open(&path).unwrap();
    for length in (0..good.len()).rev() {
        file.set_len(length as u64).unwrap();
        match refusal(&engine, &path) {
            SnapshotError::NotASession => assert_eq!(length, 0),
            SnapshotError::Length { expected, actual } => {
                assert_eq!(actual, length as u64);
                assert_eq!(expected, (if length < HEADER { HEADER + CHECKSUM } else { good.len() }) as u64);
            }
            other => panic!("{length}: {other}"),
        }
    }
    std::fs::write(&path, [&good[..], &[0]].concat()).unwrap();
    assert!(matches!(refusal(&engine, &path), SnapshotError::Length { .. }));
}

#[test]
fn numbers_that_no_file_has() {
    let place = Place::new();
    let path = place.saved(PAGE + 1);
    let good = std::fs::read(&path).unwrap();
    let engine = place.engine();
    // Bytes of a page, tokens, pages, bytes of a state.
    for at in [52, 68, 76, 84] {
        for value in [u64::MAX, 1 << 63, 1 << 40, 0] {
            if good[at..at + 8] == u64::to_le_bytes(value) {
                continue;
            }
            let mut bad = good.clone();
            bad[at..at + 8].copy_from_slice(&value.to_le_bytes());
            std::fs::write(&path, &bad).unwrap();
            assert!(matches!(refusal(&engine, &path), SnapshotError::Length { .. }), "{at}: {value}");
        }
    }
}

#[test]
fn sessions_of_others_are_refused() {
    let place = Place::new();
    let path = place.saved(70);
    let other = place.path("other.gguf");
    TinyModel { seed: 2, ..place.model.clone() }.write(&other).unwrap();
    match refusal(&engine(&other, |_| {}), &path) {
        SnapshotError::OtherModel { found, expected } => assert_ne!(found, expected),
        error => panic!("{error}"),
    }
    match refusal(&place.engine_with(|options| options.kv_type = Some(KvType::Q8_0)), &path) {
        SnapshotError::OtherLayout { found, expected } => {
            assert!(found.starts_with("cpu f16 v1, pages of 32 tokens and "), "{found}");
            assert!(expected.starts_with("cpu q8_0 v1, pages of 32 tokens and "), "{expected}");
        }
        error => panic!("{error}"),
    }
    let error = refusal(&place.engine_with(|options| options.context = Some(69)), &path);
    assert!(matches!(error, SnapshotError::ContextTooSmall { tokens: 70, context: 69 }), "{error}");
    place.engine_with(|options| options.context = Some(70)).restore(&path).unwrap();
    let mut newer = std::fs::read(&path).unwrap();
    newer[8] = 3;
    std::fs::write(&path, &newer).unwrap();
    let error = refusal(&place.engine(), &path);
    assert!(matches!(error, SnapshotError::Version { found: 3, supported: 2 }), "{error}");
    let error = refusal(&place.engine(), &place.path("model.gguf"));
    assert!(matches!(error, SnapshotError::NotASession), "{error}");
}

#[test]
fn a_prefix_cache_that_is_smaller_than_the_session() {
    let place = Place::new();
    let first = place.engine();
    let mut session = first.session();
    answer(&mut session, &text(1, 200), &greedy(9));
    let path = place.path("saved");
    assert_eq!(session.save(&path).unwrap().cached_tokens, 192);
    let prompt = go_on(&session);
    let (expected, _) = answer(&mut session, &prompt, &greedy(20));
    for pages in [0, 1, 3, 5] {
        let bytes = Some((pages * first.counters().page_bytes) as u64);
        let small = place.engine_with(|options| {
            options.scheduling = Scheduling { prefix_cache_limit: bytes, ..Scheduling::default() };
        });
        let mut restored = small.restore(&path).unwrap();
        // What is not cached can't be saved, and is computed again.
        let saved = restored.save(&place.path("less")).unwrap();
        assert_eq!((saved.tokens, saved.cached_tokens), (208, pages * PAGE));
        assert_eq!(answer(&mut restored, &prompt, &greedy(20)), (expected.clone(), pages * PAGE));
    }
}

#[test]
fn saving_and_restoring_change_nothing_for_others() {
    let place = Place::new();
    let path = place.saved(300);
    // The pages of one context for all: each answer needs nearly all of them, whatever is being saved and restored.
    let engine = place.engine_with(|options| options.sessions = 1);
    let prompts: Vec<Vec<u32>> = (0..6).map(|i| text(10 + i, 400)).collect();
    let answers = || -> Vec<Vec<Token>> {
        let all = prompts.iter().flat_map(|prompt| [greedy(90), seeded(90)].map(|params| (prompt, params)));
        all.map(|(prompt, params)| answer(&mut engine.session(), prompt, &params).0).collect()
    };
    let expected = answers();
    let over = AtomicBool::new(false);
    let rounds = thread::scope(|scope| {
        let saver = scope.spawn(|| {
            let mut rounds = 0;
            while !over.load(Ordering::Relaxed) {
                let restored = engine.restore(&path).unwrap();
                restored.save(&place.path("again")).unwrap();
                engine.restore(&place.path("again")).unwrap();
                rounds += 1;
            }
            rounds
        });
        let said = answers();
        over.store(true, Ordering::Relaxed);
        assert_eq!(said, expected);
        saver.join().unwrap()
    });
    assert!(rounds > 1);
    let counters = engine.counters();
    assert_eq!((counters.failed, counters.preempted), (0, 0));
}

/// Tests that run themselves again as a process of its own.
#[cfg(unix)]
mod unix {
    use super::*;
    use std::process::{Command, Output};

    const CHILD: &str = "MOLI_SNAPSHOT_TEST_CHILD";

    /// Runs a test of this module in the place of a shell that has done something first.
    fn child(test: &str, place: &Place, shell: &str) -> Output {
        let mut command = Command::new("sh");
        command.args(["-c", &format!("{shell} exec \"$0\" \"$@\"")]).arg(std::env::current_exe().unwrap());
        command.args(["--exact", "--nocapture", test]).env(CHILD, place.folder.path()).output().unwrap()
    }

    /// The folder, in a child.
    fn folder() -> Option<PathBuf> {
        std::env::var_os(CHILD).map(PathBuf::from)
    }

    /// Not a test of its own: the process of the next test.
    #[test]
    fn child_that_restores() {
        let Some(folder) = folder() else { return };
        let mut session = engine(&folder.join("model.gguf"), |_| {}).restore(&folder.join("saved")).unwrap();
        let prompt = go_on(&session);
        println!("answer: {:?}", answer(&mut session, &prompt, &seeded(30)));
    }

    #[test]
    fn another_process_goes_on() {
        let place = Place::new();
        let engine = place.engine();
        let mut session = engine.session();
        answer(&mut session, &text(1, 100), &seeded(30));
        assert_eq!(session.save(&place.path("saved")).unwrap().cached_tokens, 128);
        let prompt = go_on(&session);
        let (expected, _) = answer(&mut session, &prompt, &seeded(30));
        let output = child("unix::child_that_restores", &place, "");
        let stdout = String::from_utf8(output.stdout).unwrap();
        let said = format!("answer: {:?}", (expected, 128));
        assert!(stdout.contains(&said), "{said}\nis not in\n{stdout}");
    }

    /// Not a test of its own: the process of the next test. It may write less than six pages.
    #[test]
    fn child_that_saves() {
        let Some(folder) = folder() else { return };
        let engine = engine(&folder.join("model.gguf"), |_| {});
        let mut session = engine.session();
        answer(&mut session, &text(3, 200), &greedy(1));
        println!("saving");
        println!("{}", session.save(&folder.join("saved")).unwrap_err());
    }

    #[test]
    fn a_save_that_fails_or_is_killed_leaves_the_file_as_it_was() {
        let place = Place::new();
        let path = place.saved(70);
        let before = std::fs::read(&path).unwrap();
        let files = place.files();
        // As on a full disk: a file can have 8 or 16 KiB, as the shell counts, and no more.
        let output = child("unix::child_that_saves", &place, "trap '' XFSZ; ulimit -f 16;");
        let stdout = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success(), "{stdout}");
        assert!(stdout.contains(&format!("{}: ", path.display())) && stdout.contains("os error"), "{stdout}");
        assert_eq!(std::fs::read(&path).unwrap(), before);
        assert_eq!(place.files(), files, "and nothing else is left");
        // Now the system kills the process in the middle of it.
        let output = child("unix::child_that_saves", &place, "ulimit -f 16;");
        let stdout = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.code().is_none() && stdout.contains("saving"), "{stdout}");
        assert_eq!(std::fs::read(&path).unwrap(), before);
        assert_eq!(place.engine().restore(&path).unwrap().tokens().len(), 70);
    }
}
