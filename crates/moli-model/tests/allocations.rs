//! Nothing is allocated while a model runs: not on any thread, for one sequence or several, nor where a sequence grows into
//! its next page.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(unsafe_code, reason = "a global allocator that counts is an unsafe trait")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use moli_format::{Adapter, Bytes, Gguf, GgufWriter, ReadMode, TensorType};
use moli_model::{
    Adapted, BackendKind, Batch, KvType, LoadOptions, PAGE_TOKENS, Runtime, StateSlots, load_adapted,
};
use moli_testkit::TinyModel;

struct Counting;

/// Allocations so far, on all threads.
static COUNT: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call is handed to the system's allocator unchanged; only a number is kept.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.fetch_add(1, Relaxed);
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps the contract of `dealloc`.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The allocations of what `run` does.
fn allocations(run: impl FnOnce()) -> usize {
    let before = COUNT.load(Relaxed);
    run();
    COUNT.load(Relaxed) - before
}

/// Rows of a chunk of a prompt; enough for attention to be worth several threads.
const CHUNK: usize = 64;
/// Tokens that are decoded: over several pages, from one that has just begun.
const STEPS: usize = 3 * PAGE_TOKENS;
const SEQUENCES: usize = 4;
const CONTEXT: usize = 4096;

fn runtime(
    architecture: &'static str,
    matrix: TensorType,
    threads: usize,
    kv_type: KvType,
) -> Box<dyn Runtime> {
    let model = TinyModel { matrix, ..TinyModel::new(architecture) };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    model.write(&path).unwrap();
    let gguf = Gguf::open(&path, ReadMode::Read).unwrap();
    let options = LoadOptions { threads, isa: None, context: CONTEXT, max_rows: CHUNK, kv_type };
    let adapters = [adapter(&gguf, 5), adapter(&gguf, 16)];
    let mut runtime = load_adapted(&gguf, &adapters, BackendKind::Cpu, &options).unwrap();
    runtime.reserve_states(1 + SEQUENCES).unwrap();
    runtime
}

/// An adapter of this rank for matrices of a layer, and for the head.
fn adapter(base: &Gguf, rank: u64) -> Adapter {
    let mut writer = GgufWriter::new();
    writer.meta("general.type", "adapter").meta("adapter.type", "lora");
    writer.meta("general.architecture", base.metadata().architecture().unwrap());
    writer.meta("adapter.lora.alpha", 1.0_f32);
    // The second layer has attention or a state.
    let second = ["attn_output", "shortconv.out_proj", "ssm_out"].map(|stem| format!("blk.1.{stem}.weight"));
    let second = second.iter().find(|name| base.tensor(name).is_some()).unwrap();
    for name in ["blk.0.attn_q.weight", second, "output.weight"] {
        let matrix = base.tensor(name).or_else(|| base.tensor("token_embd.weight")).unwrap();
        for (end, dims) in [("lora_a", [matrix.dims[0], rank]), ("lora_b", [rank, matrix.dims[1]])] {
            let data = vec![0; (4 * dims[0] * dims[1]) as usize];
            writer.tensor(format!("{name}.{end}"), TensorType::F32, dims, data);
        }
    }
    let mut file = Vec::new();
    writer.write(&mut file).unwrap();
    Adapter::from_gguf(&Gguf::from_bytes(&Bytes::from_vec(file)).unwrap(), base).unwrap()
}

const FIRST: Adapted = Adapted { adapter: 0, scale: 1.0 };
const SECOND: Adapted = Adapted { adapter: 1, scale: 0.5 };
/// The adapters of sequences, by their numbers.
const ADAPTED: [&[Adapted]; SEQUENCES] = [&[FIRST, SECOND], &[], &[SECOND], &[FIRST]];

/// A sequence on pages of its own.
struct Sequence {
    pages: Vec<u32>,
    tokens: u32,
    /// Its number, and the slot of its state.
    index: u32,
}

impl Sequence {
    /// Number `index`, of at most 8.
    fn new(index: u32) -> Self {
        let pages = (CONTEXT / PAGE_TOKENS) as u32 / 8;
        Self { pages: (index * pages..(index + 1) * pages).collect(), tokens: 0, index }
    }

    fn slots(&self) -> StateSlots {
        StateSlots { from: (self.tokens > 0).then_some(self.index), to: self.index }
    }
}

/// Computes `CHUNK` more tokens of one sequence, with the hidden state of each.
fn prefill(runtime: &mut dyn Runtime, sequence: &mut Sequence) {
    let first = sequence.tokens;
    let slots = [sequence.slots()];
    let mut positions = [0; CHUNK];
    for (position, row) in positions.iter_mut().zip(0..) {
        *position = first + row;
    }
    sequence.tokens += CHUNK as u32;
    let batch = Batch {
        tokens: &positions.map(|position| position % 256),
        positions: &positions,
        sequences: &[0; CHUNK],
        types: &[],
        tables: &[&sequence.pages],
        adapters: if sequence.tokens.is_multiple_of(128) { &[] } else { &ADAPTED[..1] },
        recurrent: if runtime.state_bytes() > 0 { &slots } else { &[] },
        outputs: &[CHUNK as u32 - 1],
        states: &std::array::from_fn::<u32, CHUNK, _>(|row| row as u32),
    };
    runtime.forward(&batch).unwrap();
}

/// Computes a token of each sequence, with adapters or without.
fn decode<const N: usize>(runtime: &mut dyn Runtime, sequences: &mut [Sequence; N], adapted: bool) {
    let rows = std::array::from_fn::<u32, N, _>(|row| row as u32);
    let batch = Batch {
        tokens: &rows,
        positions: &sequences.each_ref().map(|sequence| sequence.tokens),
        sequences: &rows,
        types: &[],
        tables: &sequences.each_ref().map(|sequence| sequence.pages.as_slice()),
        adapters: if adapted { &ADAPTED[..N] } else { &[] },
        recurrent: if runtime.state_bytes() > 0 { &sequences.each_ref().map(Sequence::slots) } else { &[] },
        outputs: &rows,
        states: &[],
    };
    runtime.forward(&batch).unwrap();
    sequences.iter_mut().for_each(|sequence| sequence.tokens += 1);
}

/// One test, so that no other allocates at the same time.
#[test]
fn a_running_model_allocates_nothing() {
    let models = TinyModel::ARCHITECTURES.iter().map(|&architecture| (architecture, TensorType::Q8_0));
    let models = models.chain([("llama", TensorType::Q4K), ("llama", TensorType::F16)]);
    let models = models.flat_map(|model| KvType::ALL.map(|kv_type| (model, kv_type)));
    for (((architecture, matrix), kv_type), threads) in models.flat_map(|model| [(model, 1), (model, 2)]) {
        let what = format!("{architecture}, {matrix:?}, {kv_type} keys and values, {threads} threads");
        let runtime = &mut *runtime(architecture, matrix, threads, kv_type);
        let mut one = [Sequence::new(0)];
        let mut several: [Sequence; SEQUENCES] = std::array::from_fn(|index| Sequence::new(1 + index as u32));
        // The first of each: the logits get their size.
        prefill(runtime, &mut one[0]);
        decode(runtime, &mut several, true);

        assert_eq!(allocations(|| (0..2).for_each(|_| prefill(runtime, &mut one[0]))), 0, "{what}: prompt");
        let steps = 0..STEPS;
        let alone = allocations(|| steps.clone().for_each(|i| decode(runtime, &mut one, i % 2 == 0)));
        assert_eq!(alone, 0, "{what}: one");
        let together = allocations(|| steps.clone().for_each(|i| decode(runtime, &mut several, i % 2 == 0)));
        assert_eq!(together, 0, "{what}: several");
    }
}
