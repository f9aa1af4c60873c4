//! Folders whose weights GPTQ and AWQ have packed: the weights to the bit, and the logits that transformers gives with them.
//!
//! The folders are made by `tests/fixtures/packed.py`.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::{Path, PathBuf};

use moli_format::{Bytes, FormatError, Gguf, ReadMode, Tensor, TensorType};
use moli_model::{BackendKind, Batch, KvType, LoadOptions, load, pages_of};
use serde_json::Value as Json;

/// Greatest difference, relative to the largest logit, where only the order of sums differs.
const BOUND: f32 = 5e-6;
/// The same where activations are rounded to 8 bits in blocks, as they are for every quantised format.
const ROUNDED: f32 = 2e-2;

/// What the parts of a layer are called in either form.
const NAMES: [(&str, &str); 9] = [
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.qkv_proj", "attn_qkv"),
    ("self_attn.o_proj", "attn_output"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
    ("mlp.gate_up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
];

fn folders() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/packed");
    let mut folders: Vec<PathBuf> =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    folders.sort();
    assert!(folders.len() >= 8, "{folders:?}");
    folders
}

fn expected(folder: &Path) -> Json {
    serde_json::from_slice(&fs::read(folder.join("expected.json")).unwrap()).unwrap()
}

fn floats(tensor: &Tensor) -> Vec<f32> {
    let mut values = vec![0.0; tensor.elements()];
    moli_kernels::dequantize(tensor.ttype, &tensor.data, &mut values).unwrap();
    values
}

/// FNV-1a.
fn hash(values: &[f32]) -> String {
    let bytes = values.iter().flat_map(|value| value.to_le_bytes());
    let state = bytes.fold(0xCBF2_9CE4_8422_2325, |state: u64, byte| {
        (state ^ u64::from(byte)).wrapping_mul(0x100_0000_01B3)
    });
    format!("{state:016x}")
}

/// The greatest difference from the logits of a folder, relative to the largest of them.
fn difference(gguf: &Gguf, expected: &Json) -> f32 {
    let ids: Vec<u32> = serde_json::from_value(expected["ids"].clone()).unwrap();
    let logits: Vec<Vec<f32>> = serde_json::from_value(expected["logits"].clone()).unwrap();
    let options = LoadOptions { threads: 2, isa: None, context: 64, max_rows: 32, kv_type: KvType::F32 };
    let mut runtime = load(gguf, BackendKind::Cpu, &options).unwrap();
    let rows: Vec<u32> = (0..ids.len() as u32).collect();
    let pages: Vec<u32> = (0..pages_of(ids.len()) as u32).collect();
    let batch = Batch {
        tokens: &ids,
        positions: &rows,
        sequences: &vec![0; ids.len()],
        types: &[],
        tables: &[&pages],
        adapters: &[],
        recurrent: &[],
        outputs: &rows,
        states: &[],
    };
    let found = runtime.forward(&batch).unwrap().logits.to_vec();
    let expected: Vec<f32> = logits.into_iter().flatten().collect();
    assert_eq!(found.len(), expected.len());
    let largest = expected.iter().fold(0.0_f32, |largest, logit| largest.max(logit.abs()));
    found.iter().zip(&expected).fold(0.0_f32, |worst, (a, b)| worst.max((a - b).abs())) / largest
}

#[test]
fn weights_are_unpacked_to_the_bit() {
    for folder in folders() {
        let name = folder.file_name().unwrap().to_string_lossy().into_owned();
        let expected = expected(&folder);
        let gguf = Gguf::open(&folder, ReadMode::Map).unwrap();
        let mut bytes = 0;
        for (key, told) in expected["weights"].as_object().unwrap() {
            let (_, part) = NAMES.iter().find(|(part, _)| key.contains(part)).unwrap();
            let tensor = gguf.tensor(&format!("blk.0.{part}.weight")).unwrap();
            assert_eq!(tensor.ttype.name(), expected["form"], "{name}, {key}");
            assert_eq!(hash(&floats(tensor)), *told, "{name}, {key}");
            bytes += tensor.data.len() as u64;
        }
        assert_eq!(gguf.unpacked_bytes(), bytes, "{name}");
        let said = gguf.metadata().str("moli.unpacked").unwrap();
        let count = expected["weights"].as_object().unwrap().len();
        assert!(said.contains(&format!("{count} as {}", expected["form"].as_str().unwrap())), "{said}");
        assert_eq!(said.contains("rounded"), expected["form"] == "F16", "{said}");
    }
}

#[test]
fn logits_are_those_of_transformers() {
    for folder in folders() {
        let name = folder.file_name().unwrap().to_string_lossy().into_owned();
        let expected = expected(&folder);
        let gguf = Gguf::open(&folder, ReadMode::Map).unwrap();
        let wide = gguf.with_weights(|tensor| {
            let data = floats(tensor).iter().flat_map(|value| value.to_le_bytes()).collect();
            Ok::<_, FormatError>((TensorType::F32, Bytes::from_vec(data)))
        });
        let (exact, own) = (difference(&wide.unwrap(), &expected), difference(&gguf, &expected));
        println!("{name}: {exact:.1e} in F32, {own:.1e} as it is");
        assert!(exact <= BOUND, "{name}: off by {exact:.1e}");
        assert!(own <= ROUNDED, "{name}: off by {own:.1e}");
    }
}
