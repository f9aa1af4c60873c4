//! The decoder on a GPU beside the processor's path: on the mock driver where there is no GPU, on the real one where there is.

#![cfg(feature = "cuda")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::path::Path;

use moli_format::{Gguf, ReadMode, TensorType};
use moli_model::{BackendKind, Batch, KvType, LoadOptions, ModelError, Runtime, load, pages_of};
use moli_testkit::{TinyModel, mock_cuda};

const GPU: BackendKind = BackendKind::Cuda(0);

fn runtime(gguf: &Gguf, backend: BackendKind, context: usize, kv_type: KvType) -> Box<dyn Runtime> {
    let options = LoadOptions { threads: 2, isa: None, context, max_rows: 128, kv_type };
    load(gguf, backend, &options).unwrap()
}

/// The logits after each token, the text read in chunks.
fn logits(runtime: &mut dyn Runtime, ids: &[u32], chunk: usize) -> Vec<f32> {
    let pages: Vec<u32> = (0..pages_of(ids.len()) as u32).rev().collect();
    let mut rows = Vec::new();
    for (index, tokens) in ids.chunks(chunk).enumerate() {
        let outputs: Vec<u32> = (0..tokens.len() as u32).collect();
        let positions: Vec<u32> = outputs.iter().map(|row| (index * chunk) as u32 + row).collect();
        let batch = Batch {
            tokens,
            positions: &positions,
            sequences: &vec![0; tokens.len()],
            types: &[],
            tables: &[&pages],
            adapters: &[],
            recurrent: &[],
            outputs: &outputs,
            states: &[],
        };
        rows.extend_from_slice(runtime.forward(&batch).unwrap().logits);
    }
    rows
}

/// Computes one token.
fn one(runtime: &mut dyn Runtime) -> Result<(), ModelError> {
    let batch = Batch {
        tokens: &[3],
        positions: &[0],
        sequences: &[0],
        types: &[],
        tables: &[&[0]],
        adapters: &[],
        recurrent: &[],
        outputs: &[0],
        states: &[],
    };
    runtime.forward(&batch).map(|_| ())
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

/// The greatest difference of a row, relative to its largest logit.
fn difference(found: &[f32], expected: &[f32], vocab: usize) -> f32 {
    assert!(!expected.is_empty() && found.len() == expected.len());
    let row = |(found, expected): (&[f32], &[f32])| {
        let largest = expected.iter().fold(0.0_f32, |largest, logit| largest.max(logit.abs()));
        found.iter().zip(expected).fold(0.0_f32, |worst, (a, b)| worst.max((a - b).abs())) / largest
    };
    found.chunks(vocab).zip(expected.chunks(vocab)).map(row).fold(0.0, f32::max)
}

/// Every architecture in f32: what is left is the order of sums.
#[test]
fn architectures_in_f32_agree_with_the_processor() {
    mock_cuda().unwrap();
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/architectures");
    let mut folders: Vec<_> = std::fs::read_dir(root).unwrap().map(|entry| entry.unwrap().path()).collect();
    folders.sort();
    let (mut count, mut wrong) = (0, Vec::new());
    for folder in folders {
        let name = folder.file_name().unwrap().to_str().unwrap().to_owned();
        let Ok(gguf) = Gguf::open(&folder, ReadMode::Map) else { continue };
        let options = LoadOptions { threads: 2, isa: None, context: 64, max_rows: 128, kv_type: KvType::F32 };
        let Ok(mut cpu) = load(&gguf, BackendKind::Cpu, &options) else { continue };
        let vocab = cpu.config().vocab;
        let ids: Vec<u32> = (0..20).map(|i| (i * 89 + i * i * 7) % vocab as u32).collect();
        let expected = logits(cpu.as_mut(), &ids, ids.len());
        // Has an activation that only the processor computes.
        if name == "apertus" {
            let mut gpu = runtime(&gguf, GPU, 64, KvType::F32);
            let error = one(gpu.as_mut()).unwrap_err();
            assert!(matches!(error, ModelError::UnsupportedOperation { operation: "xIELU", .. }), "{error}");
            continue;
        }
        let mut gpu = runtime(&gguf, GPU, 64, KvType::F32);
        let together = logits(gpu.as_mut(), &ids, ids.len());
        let singly = logits(gpu.as_mut(), &ids, 1);
        if bits(&together) != bits(&singly) {
            wrong.push(format!("{name}: token by token is not what all at once is"));
        }
        let difference = difference(&together, &expected, vocab);
        println!("{name}: {difference:.1e}");
        if difference > 5e-6 {
            wrong.push(format!("{name}: {difference:.1e}"));
        }
        count += 1;
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(count >= 44, "{count} folders");
}

/// The root mean square of the difference, relative to that of what is expected.
fn relative_difference(found: &[f32], expected: &[f32]) -> f64 {
    assert!(!expected.is_empty() && found.len() == expected.len());
    let square = |x: f32| f64::from(x) * f64::from(x);
    let difference: f64 = found.iter().zip(expected).map(|(a, b)| square(a - b)).sum();
    (difference / expected.iter().map(|&x| square(x)).sum::<f64>()).sqrt()
}

/// The same bits in any batch, and near the processor's.
fn compare(model: &TinyModel, kv_types: &[KvType]) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    model.write(&path).unwrap();
    let gguf = Gguf::open(&path, ReadMode::Read).unwrap();
    // Beyond a page.
    let ids: Vec<u32> = (0..36).map(|i| (i * 89 + i * i * 7) % 256).collect();
    for &kv_type in kv_types {
        let what = format!("{} {:?} {kv_type}", model.architecture, model.matrix);
        let mut gpu = runtime(&gguf, GPU, 64, kv_type);
        let found = logits(gpu.as_mut(), &ids, ids.len());
        for chunk in [3, 20] {
            let chunked = logits(gpu.as_mut(), &ids, chunk);
            assert_eq!(bits(&found), bits(&chunked), "{what} in chunks of {chunk}");
        }
        let mut cpu = runtime(&gguf, BackendKind::Cpu, 64, kv_type);
        let difference = relative_difference(&found, &logits(cpu.as_mut(), &ids, ids.len()));
        println!("{what}: {difference:.1e}");
        // Both round activations to 8 bits, each in its own blocks, as the parity of the processor's path with candle: see
        // tests/parity.rs.
        let float = model.matrix.block_len() == 1;
        let bound = if float { 1e-3 } else { 0.03 };
        assert!(difference < bound, "{what}: {difference}, allowed {bound}");
    }
}

#[test]
fn every_format_agrees_with_the_processor() {
    mock_cuda().unwrap();
    for matrix in moli_kernels::QUANTIZABLE {
        let embedding = if matrix.block_len() == 1 { TensorType::F32 } else { TensorType::Q8_0 };
        compare(&TinyModel { matrix, embedding, ..TinyModel::new("llama") }, &[KvType::F16]);
    }
}

#[test]
fn every_architecture_agrees_with_the_processor_whatever_its_keys_and_values_are() {
    mock_cuda().unwrap();
    let computed = |architecture: &&str| !TinyModel::RECURRENT.contains(architecture);
    for architecture in TinyModel::ARCHITECTURES.into_iter().filter(computed) {
        let model = TinyModel::new(architecture);
        // Where inputs are rounded in two ways, two experts may change places: then all are used.
        compare(&TinyModel { experts_used: model.experts, ..model }, &KvType::ALL);
    }
}
