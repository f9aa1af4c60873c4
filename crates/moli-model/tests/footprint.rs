//! What `Footprint` says beforehand is what is then on the heap, or a little more.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(unsafe_code, reason = "a global allocator that counts is an unsafe trait")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use moli_format::{Adapter, Bytes, Gguf, GgufWriter, ReadMode, TensorType};
use moli_model::{
    Adapted, BackendKind, Batch, Config, Footprint, KvType, Load, LoadOptions, PAGE_TOKENS, adapter_bytes,
    load_adapted, pages_of,
};
use moli_testkit::TinyModel;

struct Counting;

static LIVE: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call is handed to the system's allocator unchanged; only a number is kept.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LIVE.fetch_add(layout.size(), Relaxed);
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        LIVE.fetch_add(layout.size(), Relaxed);
        // SAFETY: the caller keeps the contract of `alloc_zeroed`.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Relaxed);
        // SAFETY: the caller keeps the contract of `dealloc`.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Computes so many rows of one sequence and one row of each of `outputs` others.
fn used(gguf: &Gguf, adapters: &[Adapter], what: Load, kv_type: KvType) -> usize {
    let before = LIVE.load(Relaxed);
    let pages = pages_of(what.context) + what.outputs;
    let options = LoadOptions {
        threads: what.threads,
        isa: None,
        context: pages * PAGE_TOKENS,
        max_rows: what.max_rows,
        kv_type,
    };
    let adapted: Vec<Adapted> =
        (0..adapters.len() as u32).map(|adapter| Adapted { adapter, scale: 1.0 }).collect();
    let mut runtime = load_adapted(gguf, adapters, BackendKind::Cpu, &options).unwrap();
    runtime.reserve_states(what.outputs).unwrap();
    let long: Vec<u32> = (0..).take(pages_of(what.context)).collect();
    for start in (0..what.context).step_by(what.max_rows) {
        let positions: Vec<u32> = (start as u32..what.context as u32).take(what.max_rows).collect();
        let batch = Batch {
            tokens: &vec![7; positions.len()],
            positions: &positions,
            sequences: &vec![0; positions.len()],
            types: &[],
            tables: &[&long],
            adapters: &[&adapted],
            recurrent: &[],
            outputs: &[0],
            // Hidden states take nothing of their own.
            states: &(0..positions.len() as u32).collect::<Vec<_>>(),
        };
        runtime.forward(&batch).unwrap();
    }
    let rows: Vec<u32> = (0..what.outputs as u32).collect();
    let tables: Vec<[u32; 1]> = (long.len() as u32..).take(what.outputs).map(|page| [page]).collect();
    let batch = Batch {
        tokens: &rows,
        positions: &vec![0; what.outputs],
        sequences: &rows,
        types: &[],
        tables: &tables.iter().map(<[u32; 1]>::as_slice).collect::<Vec<_>>(),
        adapters: &vec![adapted.as_slice(); what.outputs],
        recurrent: &[],
        outputs: &rows,
        states: &[],
    };
    runtime.forward(&batch).unwrap();
    drop((long, rows, tables, adapted));
    LIVE.load(Relaxed) - before
}

/// One test, so that no other allocates at the same time.
#[test]
fn a_model_takes_what_was_said_beforehand() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    let small = Load { threads: 1, max_rows: 16, outputs: 1, context: 64 };
    let wide = Load { threads: 2, max_rows: 512, outputs: 5, context: 1600 };
    for architecture in TinyModel::ARCHITECTURES {
        for matrix in [TensorType::Q8_0, TensorType::Q4K, TensorType::F16] {
            let model = TinyModel { matrix, layers: 6, ..TinyModel::new(architecture) };
            model.write(&path).unwrap();
            let gguf = Gguf::open(&path, ReadMode::Map).unwrap();
            let config = Config::from_metadata(gguf.metadata(), model.vocab()).unwrap();
            let cases = [
                (small, KvType::F16),
                (wide, KvType::F16),
                (wide, KvType::Q8_0),
                (Load { threads: 4, ..small }, KvType::F16),
            ];
            for (what, kv_type) in cases {
                let footprint = Footprint::of(&gguf, &config, &what);
                let mapped = footprint.weights + footprint.embeddings;
                assert_eq!(mapped, std::fs::metadata(&path).unwrap().len());
                let pages = pages_of(what.context) + what.outputs;
                let page = config.page_bytes(kv_type);
                let states = what.outputs as u64 * config.state_bytes();
                let said = footprint.total() - mapped + pages as u64 * page + states;
                // On a thread of its own, since a thread keeps what attention works in.
                let used = std::thread::scope(|scope| {
                    scope.spawn(|| used(&gguf, &[], what, kv_type)).join().unwrap()
                }) as u64;
                let what = format!("{architecture}, {matrix:?}, {kv_type}, {what:?}");
                println!("{what}: said {said}, used {used}");
                assert!(used <= said, "{what}: {used} bytes where {said} were said");
                assert!(said <= used + used / 25, "{what}: {said} bytes were said for {used}");
            }
        }
    }
    adapters_take_what_was_said(&path, small);
    adapters_take_what_was_said(&path, wide);
}

/// What adapters add to the heap of a model; their matrices are there before.
fn adapters_take_what_was_said(path: &Path, what: Load) {
    let model = TinyModel::new("llama");
    model.write(path).unwrap();
    let gguf = Gguf::open(path, ReadMode::Map).unwrap();
    let config = Config::from_metadata(gguf.metadata(), model.vocab()).unwrap();
    for names in [&["blk.0.attn_q.weight"][..], &["blk.1.ffn_up.weight", "output.weight"]] {
        let mut writer = GgufWriter::new();
        writer.meta("general.type", "adapter").meta("adapter.type", "lora");
        writer.meta("general.architecture", "llama").meta("adapter.lora.alpha", 1.0_f32);
        for name in names {
            let matrix = gguf.tensor(name).or_else(|| gguf.tensor("token_embd.weight")).unwrap();
            for (end, dims) in [("lora_a", [matrix.dims[0], 700]), ("lora_b", [700, matrix.dims[1]])] {
                let data = vec![0; (4 * dims[0] * dims[1]) as usize];
                writer.tensor(format!("{name}.{end}"), TensorType::F32, dims, data);
            }
        }
        let mut file = Vec::new();
        writer.write(&mut file).unwrap();
        let adapter = Gguf::from_bytes(&Bytes::from_vec(file)).unwrap();
        let adapters = [Adapter::from_gguf(&adapter, &gguf).unwrap()];
        let of = |adapters: &[Adapter]| {
            std::thread::scope(|scope| {
                scope.spawn(|| used(&gguf, adapters, what, KvType::F16)).join().unwrap()
            }) as u64
        };
        let used = of(&adapters) - of(&[]);
        let said = adapter_bytes(&adapters, &config, what.max_rows) - adapters[0].bytes();
        println!("{names:?}, {what:?}: said {said}, used {used}");
        // The lists of products, one for each matrix of the model, are not counted.
        assert!(used <= said + (4 << 10), "{names:?}, {what:?}: {used} bytes where {said} were said");
        assert!(said <= used + used / 10, "{names:?}, {what:?}: {said} bytes were said for {used}");
    }
}
