//! What a file claims never decides how much memory is asked for: its own size does.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]
#![allow(unsafe_code, reason = "a global allocator that counts is an unsafe trait")]

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use common::{ARRAY, F32, Raw, STRING, U8, U64};
use moli_format::safetensors::Safetensors;
use moli_format::{FormatError, Gguf, GgufWriter, ReadMode};

struct Counting;

static LIVE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call is handed to the system's allocator unchanged; only numbers are kept.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let live = LIVE.fetch_add(layout.size(), Relaxed) + layout.size();
        PEAK.fetch_max(live, Relaxed);
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Relaxed);
        // SAFETY: the caller keeps the contract of `dealloc`.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Peak bytes that `run` had on the heap beyond those that were there before it.
fn peak<T>(run: impl FnOnce() -> T) -> (usize, T) {
    let before = LIVE.load(Relaxed);
    PEAK.store(before, Relaxed);
    let result = run();
    (PEAK.load(Relaxed) - before, result)
}

const SLACK: usize = 64 << 10;

/// Opens the bytes both ways and gives the error after the peak has been checked.
fn bounded<T>(
    name: &str,
    bytes: &[u8],
    open: impl Fn(&Path, ReadMode) -> Result<T, FormatError>,
) -> Option<FormatError> {
    let (_folder, path) = common::file(bytes);
    let mut result = None;
    for mode in [ReadMode::Map, ReadMode::Read] {
        let (used, opened) = peak(|| open(&path, mode));
        // A file that is read and is good stays in memory, beside the places of its strings and arrays.
        let allowed = if mode == ReadMode::Read && opened.is_ok() { 2 * bytes.len() } else { bytes.len() };
        assert!(used <= allowed + SLACK, "{name}, {mode:?}: {used} bytes for a file of {}", bytes.len());
        result = opened.err();
    }
    result
}

/// One test, so that no other allocates at the same time.
#[test]
fn no_allocation_beyond_the_size_of_the_file() {
    const HUGE: u64 = 1 << 63;
    let megabyte = vec![0; 1 << 20];
    let mut cases: Vec<(String, Raw)> = vec![
        ("2^40 entries".into(), Raw::new(0, 1 << 40)),
        ("2^40 tensors".into(), Raw::new(1 << 40, 0)),
        ("2^40 of both, and a megabyte".into(), Raw::new(1 << 40, 1 << 40).data(1 << 20)),
        ("as many entries as fit".into(), Raw::new(0, (1 << 20) / 14).data(1 << 20)),
        ("as many tensors as fit".into(), Raw::new((1 << 20) / 25, 0).data(1 << 20)),
        ("a string of 2^63".into(), Raw::new(0, 1).entry("k", STRING, &HUGE.to_le_bytes())),
        ("a wrapping product".into(), Raw::new(1, 0).tensor("t", &[1 << 32, 1 << 32], 0, 0).data(64)),
        ("a tensor of 2^61".into(), Raw::new(1, 0).tensor("t", &[1 << 61], 24, 0).data(64)),
        ("2^32 dimensions".into(), {
            let mut raw = Raw::new(1, 0);
            raw.str(b"t");
            raw.u32(u32::MAX);
            raw.data(64)
        }),
        ("alignment 2^31".into(), Raw::new(0, 1).entry("general.alignment", 4, &[0, 0, 0, 0x80])),
    ];
    for item in [U8, F32, U64, STRING, ARRAY] {
        for length in [HUGE, u64::MAX, 1 << 40] {
            cases.push((
                format!("an array of {length} of {item}"),
                Raw::new(0, 1).array("k", item, length, &megabyte),
            ));
        }
    }
    // The lengths fit, the strings or arrays in them do not.
    let ones = vec![1; 1 << 20];
    cases.push(("as many strings as fit".into(), Raw::new(0, 1).array("k", STRING, (1 << 20) / 8, &ones)));
    cases.push(("as many arrays as fit".into(), Raw::new(0, 1).array("k", ARRAY, (1 << 20) / 12, &megabyte)));
    for (name, raw) in &cases {
        let error = bounded(name, &raw.0, Gguf::open);
        assert!(error.is_some() || name == "as many arrays as fit", "{name} was opened");
    }

    for length in [u64::MAX, HUGE, 1 << 40, 100_000_000, 1000] {
        let mut bytes = length.to_le_bytes().to_vec();
        bytes.extend(br#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#);
        let error = bounded("a safetensors header", &bytes, Safetensors::open);
        assert!(matches!(error, Some(FormatError::HeaderTooLarge { .. })), "{error:?}");
    }

    // A good file with many strings and numbers costs no more than its size too.
    let strings: Vec<String> = (0..100_000).map(|i| format!("tok{i}")).collect();
    let mut bytes = Vec::new();
    GgufWriter::new()
        .meta("tokens", strings)
        .meta("scores", vec![1.0_f32; 100_000])
        .write(&mut bytes)
        .unwrap();
    assert!(bounded("many tokens", &bytes, Gguf::open).is_none());
}
