//! What only the decoder can say of a Hugging Face folder.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::Path;

use moli_format::{Gguf, ReadMode};
use moli_model::{BackendKind, KvType, LoadOptions, ModelError, load};

#[test]
fn a_config_that_contradicts_the_weights() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/architectures/llama");
    let config = fs::read_to_string(source.join("config.json")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    fs::copy(source.join("model.safetensors"), folder.path().join("model.safetensors")).unwrap();
    let options = LoadOptions { threads: 1, isa: None, context: 32, max_rows: 1, kv_type: KvType::F16 };
    let result = |from: &str, to: &str| {
        assert!(config.contains(from), "{from}");
        fs::write(folder.path().join("config.json"), config.replace(from, to)).unwrap();
        let gguf = Gguf::open(folder.path(), ReadMode::Map).unwrap();
        load(&gguf, BackendKind::Cpu, &options).map(drop)
    };
    result("silu", "silu").unwrap();
    for (from, to) in [
        ("\"hidden_size\": 40", "\"hidden_size\": 44"),
        ("\"intermediate_size\": 88", "\"intermediate_size\": 96"),
        ("\"num_attention_heads\": 5", "\"num_attention_heads\": 4"),
        ("\"head_dim\": 12", "\"head_dim\": 16"),
    ] {
        let error = result(from, to).unwrap_err();
        assert!(matches!(error, ModelError::TensorShape { .. }), "{to}: {error:?}");
    }
    let error = result("\"num_hidden_layers\": 2", "\"num_hidden_layers\": 3").unwrap_err();
    assert!(matches!(error, ModelError::MissingTensor { .. }), "{error:?}");
}
