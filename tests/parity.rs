//! The two backends on tiny models of every architecture and format. The CPU path and candle share the decoder's order of
//! operations and nothing below it: a wrong kernel, rotary style, mask or page shows here.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use moli_format::{Gguf, ReadMode, TensorType};
use moli_model::{BackendKind, Batch, KvType, LoadOptions, ModelError, PAGE_TOKENS, load};
use moli_testkit::TinyModel;

/// Longer than a KV page and than the tiny Gemma's window.
const TOKENS: usize = 45;

/// Root mean square of the logits' difference, relative to that of the logits. Both sides round activations to 8 bits, each
/// in its own blocks, which is a relative error of about 1/250 per product; through two layers it stays below this.
const QUANTIZED_BOUND: f64 = 0.03;

/// The same for weights that are floats: f32 arithmetic in another order, and keys and values in f16 on both sides.
const FLOAT_BOUND: f64 = 1e-3;

/// Logits and hidden states of all rows.
fn computed(gguf: &Gguf, backend: BackendKind) -> [Vec<f32>; 2] {
    let options = LoadOptions { threads: 2, isa: None, context: 128, max_rows: TOKENS, kv_type: KvType::F16 };
    let mut runtime = load(gguf, backend, &options).unwrap();
    let tokens: Vec<u32> = (0..TOKENS as u32).map(|i| (i * 89 + i * i * 7) % 256).collect();
    let positions: Vec<u32> = (0..TOKENS as u32).collect();
    // Two sequences in one batch: the second is a copy of the first's beginning.
    let pages: Vec<u32> = (0..runtime.pages() as u32).collect();
    let tables = pages.split_at(TOKENS.div_ceil(PAGE_TOKENS));
    let half = TOKENS / 2;
    let mut all = [Vec::new(), Vec::new()];
    for (sequence, range) in [(0, 0..half), (1, 0..half), (0, half..TOKENS)] {
        let outputs: Vec<u32> = (0..range.len() as u32).collect();
        let batch = Batch {
            tokens: &tokens[range.clone()],
            positions: &positions[range.clone()],
            sequences: &vec![sequence; range.len()],
            types: &[],
            tables: &[tables.0, tables.1],
            adapters: &[],
            recurrent: &[],
            outputs: &outputs,
            states: &outputs,
        };
        let computed = runtime.forward(&batch).unwrap();
        all[0].extend_from_slice(computed.logits);
        all[1].extend_from_slice(computed.states);
    }
    all
}

fn relative_difference(ours: &[f32], theirs: &[f32]) -> f64 {
    let square = |x: f32| f64::from(x) * f64::from(x);
    let difference: f64 = ours.iter().zip(theirs).map(|(a, b)| square(a - b)).sum();
    let size: f64 = theirs.iter().map(|&x| square(x)).sum();
    (difference / size).sqrt()
}

#[test]
fn cpu_and_candle_agree_on_every_architecture_and_format() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    let compared = |architecture: &&str| !TinyModel::RECURRENT.contains(architecture);
    for architecture in TinyModel::ARCHITECTURES.into_iter().filter(compared) {
        // candle has no kernels for those with levels.
        let levels = [TensorType::IQ4NL, TensorType::IQ4XS];
        for matrix in moli_kernels::QUANTIZABLE.into_iter().filter(|matrix| !levels.contains(matrix)) {
            let float = matrix.block_len() == 1;
            let embedding = if float { TensorType::F32 } else { TensorType::Q8_0 };
            let model = TinyModel { matrix, embedding, ..TinyModel::new(architecture) };
            // Where inputs are rounded in two ways, two experts may change places: then all are used.
            let experts_used = if float { model.experts_used } else { model.experts };
            TinyModel { experts_used, ..model }.write(&path).unwrap();
            let gguf = Gguf::open(&path, ReadMode::Read).unwrap();
            let (ours, theirs) = (computed(&gguf, BackendKind::Cpu), computed(&gguf, BackendKind::Candle));
            for ((what, ours), theirs) in ["logits", "hidden states"].into_iter().zip(ours).zip(theirs) {
                assert!(!ours.is_empty() && ours.len() == theirs.len());
                let difference = relative_difference(&ours, &theirs);
                let bound = if float { FLOAT_BOUND } else { QUANTIZED_BOUND };
                println!("{architecture} {matrix:?}, {what}: {difference:.5}");
                assert!(
                    difference < bound,
                    "{architecture} {matrix:?}, {what}: relative difference {difference}, allowed {bound}"
                );
            }
        }
    }
}

/// They have transformers' logits to be compared with, and each other's bits.
#[test]
fn candle_refuses_layers_that_carry_a_state() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    let options = LoadOptions { threads: 1, isa: None, context: 128, max_rows: 8, kv_type: KvType::F16 };
    for architecture in TinyModel::RECURRENT {
        TinyModel::new(architecture).write(&path).unwrap();
        let gguf = Gguf::open(&path, ReadMode::Read).unwrap();
        let error = load(&gguf, BackendKind::Candle, &options).err().unwrap();
        assert!(
            matches!(error, ModelError::UnsupportedOperation { operation: "recurrent layers", .. }),
            "{architecture}: {error}"
        );
    }
}

#[test]
fn candle_refuses_keys_and_values_in_q8_0() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    TinyModel::new("llama").write(&path).unwrap();
    let gguf = Gguf::open(&path, ReadMode::Read).unwrap();
    let options =
        LoadOptions { threads: 1, isa: None, context: 128, max_rows: TOKENS, kv_type: KvType::Q8_0 };
    let error = load(&gguf, BackendKind::Candle, &options).err().unwrap();
    assert!(
        matches!(error, ModelError::UnsupportedKvType { backend: "candle", kv_type: KvType::Q8_0, .. }),
        "{error}"
    );
}

#[test]
fn candle_copies_pages_and_writes_them_back() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    TinyModel::new("llama").write(&path).unwrap();
    let gguf = Gguf::open(&path, ReadMode::Read).unwrap();
    let options = LoadOptions { threads: 1, isa: None, context: 192, max_rows: TOKENS, kv_type: KvType::F16 };
    let mut runtime = load(&gguf, BackendKind::Candle, &options).unwrap();
    let tokens: Vec<u32> = (0..TOKENS as u32).collect();
    runtime
        .forward(&Batch {
            tokens: &tokens,
            positions: &tokens,
            sequences: &[0; TOKENS],
            types: &[],
            tables: &[&[1, 0]],
            adapters: &[],
            recurrent: &[],
            outputs: &[],
            states: &[],
        })
        .unwrap();
    for (from, copy, restored) in [(1, 2, 4), (0, 3, 5)] {
        runtime.copy_page(from, copy).unwrap();
        let mut bytes = Vec::new();
        runtime.read_page(from, &mut bytes).unwrap();
        assert_eq!(bytes.len(), runtime.page_bytes());
        runtime.write_page(restored, &bytes).unwrap();
    }
    // The last token again, which sees all that came before it.
    let [original, copied, restored] = [[1, 0], [2, 3], [4, 5]].map(|pages: [u32; 2]| {
        let batch = Batch {
            tokens: &tokens[TOKENS - 1..],
            positions: &tokens[TOKENS - 1..],
            sequences: &[0],
            types: &[],
            tables: &[&pages],
            adapters: &[],
            recurrent: &[],
            outputs: &[0],
            states: &[],
        };
        runtime.forward(&batch).unwrap().logits.to_vec()
    });
    assert_eq!(copied, original);
    assert_eq!(restored, original);
}
