//! Folders whose layers are partly recurrent: what their configurations say, and what contradicts itself.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::fs;
use std::path::{Path, PathBuf};

use moli_format::{FormatError, Gguf, HuggingFaceConfig, HuggingFaceError, Metadata, ReadMode};
use serde_json::{Value, json};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/architectures").join(name)
}

/// The configuration of a fixture with other fields; `null` removes one.
fn config(name: &str, fields: &Value) -> Value {
    let text = fs::read(fixture(name).join("config.json")).unwrap();
    let mut config: Value = serde_json::from_slice(&text).unwrap();
    for (field, value) in fields.as_object().unwrap() {
        match value {
            Value::Null => drop(config.as_object_mut().unwrap().remove(field)),
            value => config[field] = value.clone(),
        }
    }
    config
}

fn metadata(name: &str, fields: &Value) -> Metadata {
    HuggingFaceConfig::parse(&config(name, fields).to_string()).unwrap().metadata
}

fn refused(name: &str, fields: &Value) -> HuggingFaceError {
    match HuggingFaceConfig::parse(&config(name, fields).to_string()).map(|_| ()) {
        Err(FormatError::HuggingFace(error)) => error,
        other => panic!("{fields}: {other:?}"),
    }
}

#[test]
fn lfm2_computes_its_width_and_lists_its_layers() {
    let width = |fields: Value| metadata("lfm2", &fields).u32("lfm2.feed_forward_length").unwrap();
    // Two thirds of 88 in multiples of 8.
    assert_eq!(width(json!({})), 64);
    assert_eq!(width(json!({ "block_ff_dim": 12288, "block_multiple_of": 256 })), 8192);
    assert_eq!(width(json!({ "block_ffn_dim_multiplier": 1.3 })), 80);
    assert_eq!(width(json!({ "block_auto_adjust_ff_dim": false })), 88);
    assert_eq!(width(json!({ "block_ff_dim": null, "intermediate_size": 96 })), 64);
    let heads = |fields: Value| {
        metadata("lfm2", &fields)
            .u32s("lfm2.attention.head_count_kv")
            .unwrap()
            .iter()
            .copied()
            .collect::<Vec<u32>>()
    };
    assert_eq!(heads(json!({})), [0, 1, 0]);
    assert_eq!(heads(json!({ "full_attn_idxs": [0, 2] })), [1, 0, 1]);
    assert_eq!(heads(json!({ "layer_types": ["full_attention", "conv", "conv"] })), [1, 0, 0]);
    let parsed =
        |tied: bool| HuggingFaceConfig::parse(&config("lfm2", &json!({ "tie_embedding": tied })).to_string());
    assert_eq!([true, false].map(|tied| parsed(tied).unwrap().tied), [Some(true), Some(false)]);
}

#[test]
fn delta_nets_list_their_layers() {
    let layers = |fields: Value| {
        metadata("qwen3_next", &fields).bools("qwen3next.attention.recurrent_layers").unwrap()
    };
    assert_eq!(layers(json!({})), [true, false]);
    assert_eq!(layers(json!({ "layer_types": null, "full_attention_interval": 1 })), [false, false]);
    // Each fourth, where nothing says it.
    let more = json!({ "layer_types": null, "num_hidden_layers": 8 });
    assert_eq!(layers(more), [true, true, true, false, true, true, true, false]);
}

#[test]
fn configurations_that_contradict_themselves() {
    for (name, field, value) in [
        ("lfm2", "conv_bias", json!(true)),
        ("lfm2", "layer_types", json!(["conv", "sliding_attention", "conv"])),
        ("qwen3_next", "layer_types", json!(["linear_attention", "mamba"])),
        ("qwen3_next", "attn_output_gate", json!(false)),
        ("qwen3_next", "hidden_act", json!("gelu")),
    ] {
        let error = refused(name, &json!({ field: value }));
        assert!(matches!(&error, HuggingFaceError::Unsupported { .. }), "{error:?}");
        assert!(error.to_string().contains(field), "{error}");
    }
    for (name, field, value) in [
        ("lfm2", "conv_L_cache", json!(0)),
        ("lfm2", "conv_L_cache", json!(1e9)),
        ("lfm2", "layer_types", json!(["conv"])),
        ("lfm2", "block_multiple_of", json!(0)),
        ("lfm2", "block_ffn_dim_multiplier", json!(-1)),
        ("lfm2", "block_ffn_dim_multiplier", json!(1e300)),
        ("qwen3_next", "linear_num_key_heads", json!(4)),
        ("qwen3_next", "linear_num_key_heads", json!(0)),
        ("qwen3_next", "linear_key_head_dim", json!(-1)),
        ("qwen3_next", "linear_conv_kernel_dim", json!(0)),
        ("qwen3_next", "layer_types", json!(["linear_attention"])),
    ] {
        let error = refused(name, &json!({ field: value }));
        assert!(error.to_string().contains(field), "{name} {field} {value}: {error}");
    }
    let error = refused("qwen3_next", &json!({ "layer_types": null, "full_attention_interval": 0 }));
    assert!(error.to_string().contains("full_attention_interval"), "{error}");
}

/// Heads of another number or size than the tensors have.
#[test]
fn tensors_that_contradict_the_configuration() {
    let folder = tempfile::tempdir().unwrap();
    for (name, fields) in [
        ("qwen3_next", json!({ "linear_num_value_heads": 3 })),
        ("qwen3_next", json!({ "linear_value_head_dim": 11 })),
        ("qwen3_next", json!({ "linear_key_head_dim": 7 })),
        ("qwen3_next", json!({ "linear_num_value_heads": 65_535, "linear_value_head_dim": 65_535 })),
    ] {
        fs::copy(fixture(name).join("model.safetensors"), folder.path().join("model.safetensors")).unwrap();
        fs::write(folder.path().join("config.json"), config(name, &fields).to_string()).unwrap();
        match Gguf::open(folder.path(), ReadMode::Map).map(|_| ()) {
            Err(FormatError::HuggingFace(HuggingFaceError::Shape { tensor, .. })) => {
                assert!(tensor.contains(".linear_attn."), "{fields}: {tensor}");
            }
            other => panic!("{fields}: {other:?}"),
        }
    }
}
