//! The decoder on a GPU beside the processor's path: on the mock driver where there is no GPU, on the real one where there is.

#![cfg(feature = "cuda")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::path::Path;

use moli_format::{Gguf, ReadMode, TensorType};
use moli_model::{BackendKind, Batch, KvType, LoadOptions, Runtime, load, pages_of};
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
            outputs: &outputs,
            states: &[],
        };
        rows.extend_from_slice(runtime.forward(&batch).unwrap().logits);
    }
    rows
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
    assert!(count >= 39, "{count} folders");
}

/// Every format, and every type of keys and values: the same bits in any batch, and near the processor's, which rounds activations
/// in other blocks.
#[test]
fn formats_agree_with_the_processor() {
    mock_cuda().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    let ids: Vec<u32> = (0..45).map(|i| (i * 89 + i * i * 7) % 256).collect();
    for architecture in TinyModel::ARCHITECTURES {
        for matrix in moli_kernels::QUANTIZABLE {
            let float = matrix.block_len() == 1;
            let embedding = if float { TensorType::F32 } else { TensorType::Q8_0 };
            let model = TinyModel { matrix, embedding, ..TinyModel::new(architecture) };
            // Where inputs are rounded in two ways, two experts may change places: then all are used.
            let experts_used = if float { model.experts_used } else { model.experts };
            let model = TinyModel { experts_used, ..model };
            model.write(&path).unwrap();
            let gguf = Gguf::open(&path, ReadMode::Read).unwrap();
            for kv_type in KvType::ALL {
                let what = format!("{architecture} {matrix:?} {kv_type}");
                let mut gpu = runtime(&gguf, GPU, 64, kv_type);
                let found = logits(gpu.as_mut(), &ids, ids.len());
                if kv_type != KvType::F32 || matrix == TensorType::Q8_0 {
                    for chunk in [1, 7] {
                        let chunked = logits(gpu.as_mut(), &ids, chunk);
                        assert_eq!(bits(&found), bits(&chunked), "{what} in chunks of {chunk}");
                    }
                }
                let mut cpu = runtime(&gguf, BackendKind::Cpu, 64, kv_type);
                let difference = difference(&found, &logits(cpu.as_mut(), &ids, ids.len()), model.vocab());
                println!("{what}: {difference:.1e}");
                assert!(difference < if float { 5e-3 } else { 0.06 }, "{what}: {difference}");
            }
        }
    }
}
