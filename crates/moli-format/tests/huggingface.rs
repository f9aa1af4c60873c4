//! Hugging Face folders: what they become, and what is refused.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::HashMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use moli_format::safetensors::Dtype;
use moli_format::{FormatError, Gguf, HuggingFaceConfig, HuggingFaceError, ReadMode, TensorType};
use safetensors::tensor::TensorView;
use serde_json::{Value, json};
use tempfile::TempDir;

const CONFIG: &str = "config.json";
const WEIGHTS: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// A tensor to write.
#[derive(Clone)]
struct Raw {
    name: String,
    dtype: Dtype,
    shape: Vec<usize>,
    data: Vec<u8>,
}

/// Elements 0, 1, 2 … in single precision.
fn floats(name: &str, shape: &[usize]) -> Raw {
    let count = shape.iter().product::<usize>();
    let data = (0..count).flat_map(|value| (value as f32).to_le_bytes()).collect();
    Raw { name: name.to_owned(), dtype: Dtype::F32, shape: shape.to_vec(), data }
}

fn write_weights(path: &Path, tensors: &[Raw]) {
    let views: HashMap<&str, TensorView<'_>> = tensors
        .iter()
        .map(|raw| (raw.name.as_str(), TensorView::new(raw.dtype, raw.shape.clone(), &raw.data).unwrap()))
        .collect();
    safetensors::serialize_to_file(views, None, path).unwrap();
}

/// A folder with a configuration and weights in one file.
fn folder(config: &Value, tensors: &[Raw]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join(CONFIG), config.to_string()).unwrap();
    write_weights(&folder.path().join(WEIGHTS), tensors);
    folder
}

fn llama() -> Value {
    json!({
        "model_type": "llama", "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 1,
        "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 6, "max_position_embeddings": 32,
        "rms_norm_eps": 1e-5, "rope_theta": 5000.0, "hidden_act": "silu", "tie_word_embeddings": true,
        "torch_dtype": "float32",
    })
}

fn with(mut config: Value, fields: &Value) -> Value {
    for (field, value) in fields.as_object().unwrap() {
        config[field] = value.clone();
    }
    config
}

/// The tensors of [`llama`] with this before their names.
fn llama_tensors(prefix: &str) -> Vec<Raw> {
    let layer = |name: &str, shape: &[usize]| floats(&format!("{prefix}layers.0.{name}.weight"), shape);
    vec![
        floats(&format!("{prefix}embed_tokens.weight"), &[6, 8]),
        floats(&format!("{prefix}norm.weight"), &[8]),
        layer("input_layernorm", &[8]),
        layer("post_attention_layernorm", &[8]),
        layer("self_attn.q_proj", &[8, 8]),
        layer("self_attn.k_proj", &[4, 8]),
        layer("self_attn.v_proj", &[4, 8]),
        layer("self_attn.o_proj", &[8, 8]),
        layer("mlp.gate_proj", &[12, 8]),
        layer("mlp.up_proj", &[12, 8]),
        layer("mlp.down_proj", &[8, 12]),
    ]
}

fn open(path: &Path) -> Gguf {
    Gguf::open(path, ReadMode::Map).unwrap()
}

fn refused(path: &Path) -> FormatError {
    let error = Gguf::open(path, ReadMode::Map).unwrap_err();
    assert_eq!(error.to_string(), Gguf::open(path, ReadMode::Read).unwrap_err().to_string());
    error
}

fn refused_as(path: &Path) -> HuggingFaceError {
    match refused(path) {
        FormatError::HuggingFace(error) => error,
        other => panic!("{other:?}"),
    }
}

/// The elements of a tensor in single precision.
fn elements(gguf: &Gguf, name: &str) -> Vec<f32> {
    let tensor = gguf.tensor(name).unwrap_or_else(|| panic!("no {name}"));
    assert_eq!(tensor.ttype, TensorType::F32);
    tensor.data.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

fn dims(gguf: &Gguf, name: &str) -> Vec<u64> {
    gguf.tensor(name).unwrap_or_else(|| panic!("no {name}")).dims.clone()
}

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/architectures")
}

#[test]
fn a_folder_is_the_model_that_a_converter_would_make() {
    let folder = folder(&llama(), &llama_tensors("model."));
    let gguf = open(folder.path());
    let metadata = gguf.metadata();
    assert_eq!(metadata.architecture().unwrap(), "llama");
    for (key, value) in [
        ("llama.block_count", 1),
        ("llama.context_length", 32),
        ("llama.embedding_length", 8),
        ("llama.feed_forward_length", 12),
        ("llama.attention.head_count", 2),
        ("llama.attention.head_count_kv", 1),
        ("llama.attention.key_length", 4),
        ("llama.rope.dimension_count", 4),
    ] {
        assert_eq!(metadata.u64(key).unwrap(), value, "{key}");
    }
    assert_eq!(metadata.f32("llama.rope.freq_base").unwrap(), 5000.0);
    assert_eq!(metadata.f32("llama.attention.layer_norm_rms_epsilon").unwrap(), 1e-5);
    assert!(metadata.bool("moli.rope.halves").unwrap());
    // The contiguous dimension first.
    assert_eq!(dims(&gguf, "blk.0.ffn_down.weight"), [12, 8]);
    assert_eq!(elements(&gguf, "blk.0.attn_k.weight"), (0..32).map(|value| value as f32).collect::<Vec<_>>());
    assert_eq!(gguf.tensors().len(), 11);
    assert_eq!(gguf.paths(), [folder.path().join(WEIGHTS)]);
    assert_eq!(gguf.file_bytes(), folder.path().join(WEIGHTS).metadata().unwrap().len());
    for tensor in gguf.tensors() {
        tensor.data.read_ahead();
    }
}

#[test]
fn a_file_of_the_folder_is_the_folder() {
    let folder = folder(&llama(), &llama_tensors("model."));
    let expected: Vec<_> = open(folder.path()).tensors().cloned().collect();
    for name in [CONFIG, WEIGHTS] {
        for mode in [ReadMode::Map, ReadMode::Read] {
            let gguf = Gguf::open(&folder.path().join(name), mode).unwrap();
            assert_eq!(gguf.tensors().cloned().collect::<Vec<_>>(), expected, "{name}");
        }
    }
    // Alone it is what it was: a file of another kind.
    fs::remove_file(folder.path().join(CONFIG)).unwrap();
    let error = refused(&folder.path().join(WEIGHTS));
    assert!(matches!(error, FormatError::WrongKind { wanted: "GGUF", .. }), "{error:?}");
}

#[test]
fn names_with_any_prefix_and_parts_that_see() {
    for prefix in ["", "model.", "language_model.model.", "model.language_model."] {
        let folder = folder(&llama(), &llama_tensors(prefix));
        assert_eq!(open(folder.path()).tensors().len(), 11, "{prefix}");
    }
    let wrapper = json!({ "model_type": "llava", "text_config": llama(), "vision_config": {} });
    let mut tensors = llama_tensors("language_model.model.");
    tensors.push(floats("vision_tower.embeddings.weight", &[3, 3]));
    tensors.push(floats("multi_modal_projector.linear.bias", &[3]));
    assert_eq!(open(folder(&wrapper, &tensors).path()).tensors().len(), 11);
    // The two say otherwise, and what was saved tells.
    let wrapper = with(wrapper, &json!({ "tie_word_embeddings": false }));
    assert!(open(folder(&wrapper, &tensors).path()).tensor("output.weight").is_none());
    tensors.push(floats("language_model.lm_head.weight", &[6, 8]));
    assert!(open(folder(&wrapper, &tensors).path()).tensor("output.weight").is_some());
    // In a model that only reads, they are unknown.
    let error = refused_as(folder(&llama(), &tensors).path());
    assert!(matches!(error, HuggingFaceError::UnknownTensor { .. }), "{error:?}");
}

#[test]
fn several_files_with_an_index() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let tensors = llama_tensors("model.");
    let index = |second: &str| {
        let shard = |index: usize| if index < 5 { "a.safetensors" } else { second };
        let map: HashMap<&str, &str> =
            tensors.iter().enumerate().map(|(index, raw)| (raw.name.as_str(), shard(index))).collect();
        fs::write(path(INDEX), json!({ "metadata": {}, "weight_map": map }).to_string()).unwrap();
    };
    fs::write(path(CONFIG), llama().to_string()).unwrap();
    index("b.safetensors");
    write_weights(&path("a.safetensors"), &tensors[..5]);
    write_weights(&path("b.safetensors"), &tensors[5..]);
    let gguf = open(folder.path());
    assert_eq!(gguf.tensors().len(), 11);
    assert_eq!(gguf.paths(), [path("a.safetensors"), path("b.safetensors")]);
    let bytes: u64 = gguf.paths().iter().map(|path| path.metadata().unwrap().len()).sum();
    assert_eq!(gguf.file_bytes(), bytes);
    assert_eq!(open(&path(INDEX)).tensors().len(), 11);
    assert_eq!(open(&path("b.safetensors")).tensors().len(), 11);

    write_weights(&path("b.safetensors"), &tensors[6..]);
    let error = refused_as(folder.path());
    assert!(
        matches!(&error, HuggingFaceError::NotInShard { tensor, shard }
            if *tensor == tensors[5].name && shard == "b.safetensors"),
        "{error:?}"
    );
    write_weights(&path("b.safetensors"), &tensors[4..]);
    let error = refused_as(folder.path());
    assert!(
        matches!(&error, HuggingFaceError::InTwoShards { tensor, .. } if *tensor == tensors[4].name),
        "{error:?}"
    );
    fs::remove_file(path("b.safetensors")).unwrap();
    let error = refused_as(folder.path());
    assert!(
        matches!(&error, HuggingFaceError::MissingShard { path } if path.ends_with("b.safetensors")),
        "{error:?}"
    );
    let outside = path("../b.safetensors");
    for name in
        ["../b.safetensors", "sub/b.safetensors", "..", "", "./b.safetensors", outside.to_str().unwrap()]
    {
        index(name);
        let error = refused_as(folder.path());
        assert!(
            matches!(&error, HuggingFaceError::OutsideFolder { name: found } if found == name),
            "{error:?}"
        );
    }
    fs::write(path(INDEX), "{").unwrap();
    assert!(matches!(refused_as(folder.path()), HuggingFaceError::InvalidJson { .. }));
}

#[test]
fn a_folder_without_config_or_weights() {
    let folder = tempfile::tempdir().unwrap();
    assert!(matches!(refused_as(folder.path()), HuggingFaceError::NoConfig { .. }));
    fs::write(folder.path().join(CONFIG), llama().to_string()).unwrap();
    assert!(matches!(refused_as(folder.path()), HuggingFaceError::NoWeights { .. }));
}

#[test]
fn a_config_that_is_not_json() {
    let folder = folder(&llama(), &llama_tensors("model."));
    let path = folder.path().join(CONFIG);
    let deep = format!("{{\"a\":{}1{}}}", "[".repeat(100_000), "]".repeat(100_000));
    for text in ["{\"model_type\":", "[]", "7", "\u{0}", "{\"a\":1,}", deep.as_str()] {
        fs::write(&path, text).unwrap();
        let error = refused_as(folder.path());
        assert!(matches!(error, HuggingFaceError::InvalidJson { .. }), "{error:?}");
    }
    // Of two gigabytes nothing is read.
    File::create(&path).unwrap().set_len(2 << 30).unwrap();
    let error = refused_as(folder.path());
    assert!(matches!(error, HuggingFaceError::JsonTooLarge { bytes: 0x8000_0000, .. }), "{error:?}");
    fs::write(&path, "").unwrap();
    assert!(matches!(refused(folder.path()), FormatError::Empty { .. }));
}

#[test]
fn fields_that_ask_for_what_is_not_computed() {
    for (field, value) in [
        ("hidden_act", json!("xielu")),
        ("rope_scaling", json!({ "rope_type": "spiral", "factor": 2.0 })),
        ("rope_scaling", json!({ "type": "linear", "factor": 2.0, "mrope_section": [1, 1, 2] })),
        ("attn_logit_softcapping", json!(30.0)),
        ("final_logit_softcapping", json!(30.0)),
        ("num_local_experts", json!(4)),
        ("clip_qkv", json!(8)),
        ("alibi", json!(true)),
        ("logit_scale", json!(0.5)),
        ("use_bidirectional_attention", json!(true)),
        ("layer_types", json!(["chunked_attention"])),
    ] {
        let folder = folder(&with(llama(), &json!({ field: value })), &llama_tensors("model."));
        let error = refused_as(folder.path());
        assert!(matches!(&error, HuggingFaceError::Unsupported { .. }), "{error:?}");
        let text = error.to_string();
        let named = text.contains(field) || text.contains("rope_type") || text.contains("mrope_section");
        assert!(named, "{text}");
    }
    for (name, field, value) in [
        ("gpt2", "scale_attn_weights", json!(false)),
        ("gpt2", "scale_attn_by_inverse_layer_idx", json!(true)),
        ("gpt2", "add_cross_attention", json!(true)),
        ("falcon", "alibi", json!(true)),
        ("falcon", "parallel_attn", json!(false)),
        ("falcon", "n_embed", json!(44)),
        ("falcon", "num_ln_in_parallel_attn", json!(2)),
        ("falcon", "partial_rotary_factor", json!(0.5)),
        ("falcon_new", "parallel_attn", json!(false)),
        ("olmo", "clip_qkv", json!(8.0)),
        ("phimoe", "num_experts_per_tok", json!(3)),
        ("minimax_m2", "scoring_func", json!("softmax")),
    ] {
        let config: Value =
            serde_json::from_slice(&fs::read(fixtures().join(name).join(CONFIG)).unwrap()).unwrap();
        match HuggingFaceConfig::parse(&with(config, &json!({ field: value })).to_string()) {
            Err(FormatError::HuggingFace(HuggingFaceError::Unsupported { field: named, .. })) => {
                assert_eq!(named, field, "{name}");
            }
            other => panic!("{name}, {field}: {other:?}"),
        }
    }
    let config = with(llama(), &json!({ "quantization_config": { "quant_method": "quip" } }));
    let error = refused_as(folder(&config, &llama_tensors("model.")).path());
    assert!(matches!(&error, HuggingFaceError::Quantized { method } if method == "quip"), "{error:?}");
    let error = refused_as(folder(&with(llama(), &json!({ "model_type": "t5" })), &[]).path());
    assert!(matches!(&error, HuggingFaceError::UnknownModelType { model_type, .. } if model_type == "t5"));
}

#[test]
fn fields_of_other_types_and_sizes() {
    for (field, value) in [
        ("num_hidden_layers", json!(4_000_000_000_u64)),
        ("num_hidden_layers", json!(0)),
        ("num_hidden_layers", json!(1.5)),
        ("num_attention_heads", json!(0)),
        ("num_attention_heads", json!(3)),
        ("num_key_value_heads", json!(-1)),
        ("head_dim", json!("4")),
        ("hidden_size", json!([8])),
        ("rope_theta", json!(0)),
        ("rope_scaling", json!("linear")),
        ("partial_rotary_factor", json!(2)),
        ("tie_word_embeddings", json!("yes")),
        ("model_type", json!(7)),
        ("layer_types", json!(["full_attention", "full_attention"])),
    ] {
        let folder = folder(&with(llama(), &json!({ field: value })), &llama_tensors("model."));
        let error = refused_as(folder.path());
        assert!(
            matches!(&error, HuggingFaceError::WrongField { field: found, .. } if found == field),
            "{error:?}"
        );
    }
    for field in ["hidden_size", "num_hidden_layers", "max_position_embeddings", "vocab_size", "model_type"] {
        let folder = folder(&with(llama(), &json!({ field: null })), &llama_tensors("model."));
        let error = refused_as(folder.path());
        assert!(
            matches!(&error, HuggingFaceError::MissingField { field: found } if found == field),
            "{error:?}"
        );
    }
}

#[test]
fn weights_that_cannot_be_read() {
    let replaced = |dtype, bytes: usize| {
        let mut tensors = llama_tensors("model.");
        tensors[1] = Raw { dtype, data: vec![0; bytes], ..tensors[1].clone() };
        refused_as(folder(&llama(), &tensors).path())
    };
    for (dtype, bytes) in
        [(Dtype::I64, 64), (Dtype::F8_E4M3, 8), (Dtype::F8_E5M2, 8), (Dtype::F64, 64), (Dtype::BOOL, 8)]
    {
        let error = replaced(dtype, bytes);
        assert!(
            matches!(&error, HuggingFaceError::ElementType { tensor, .. } if tensor == "model.norm.weight"),
            "{error:?}"
        );
    }
    let mut tensors = llama_tensors("model.");
    tensors.push(floats("model.layers.0.self_attn.bonus.weight", &[2]));
    assert!(matches!(refused_as(folder(&llama(), &tensors).path()), HuggingFaceError::UnknownTensor { .. }));
    tensors.pop();
    tensors.push(floats("model.layers.1.input_layernorm.weight", &[8]));
    assert!(matches!(refused_as(folder(&llama(), &tensors).path()), HuggingFaceError::UnknownTensor { .. }));
    tensors.pop();
    tensors.push(floats("model.layers.0.mlp.up_proj.bias", &[0, 1 << 40]));
    assert!(matches!(refused(folder(&llama(), &tensors).path()), FormatError::ZeroDimension { .. }));
    tensors.pop();
    // Not tied, and without an output layer of its own.
    let config = with(llama(), &json!({ "tie_word_embeddings": false }));
    let error = refused_as(folder(&config, &tensors).path());
    assert!(matches!(&error, HuggingFaceError::MissingTensor { tensor } if tensor == "lm_head.weight"));
    tensors.push(floats("lm_head.weight", &[6, 8]));
    assert_eq!(dims(&open(folder(&config, &tensors).path()), "output.weight"), [8, 6]);
    // Tied, and the copy that some files have is not needed.
    assert!(open(folder(&llama(), &tensors).path()).tensor("output.weight").is_none());
}

#[test]
fn fused_matrices_whose_shape_contradicts_the_config() {
    let config = with(
        llama(),
        &json!({ "model_type": "internlm2", "num_attention_heads": 4, "num_key_value_heads": 2 }),
    );
    // Heads of 2: for each key head two queries, the key and the value.
    let wqkv = floats("model.layers.0.attention.wqkv.weight", &[16, 1]);
    let gguf = open(folder(&config, std::slice::from_ref(&wqkv)).path());
    assert_eq!(elements(&gguf, "blk.0.attn_q.weight"), [0., 1., 2., 3., 8., 9., 10., 11.]);
    assert_eq!(elements(&gguf, "blk.0.attn_k.weight"), [4., 5., 12., 13.]);
    assert_eq!(elements(&gguf, "blk.0.attn_v.weight"), [6., 7., 14., 15.]);
    for heads in [8, 2] {
        let config = with(config.clone(), &json!({ "num_attention_heads": heads }));
        let error = refused_as(folder(&config, std::slice::from_ref(&wqkv)).path());
        assert!(matches!(error, HuggingFaceError::Shape { .. }), "{error:?}");
    }
}

#[test]
fn experts_stay_where_they_are_and_fused_ones_are_cut() {
    let config = with(
        llama(),
        &json!({ "model_type": "qwen3_moe", "num_experts": 2, "num_experts_per_tok": 1,
        "moe_intermediate_size": 3 }),
    );
    let expert = |name: &str, shape: &[usize]| floats(&format!("model.layers.0.mlp.experts.{name}"), shape);
    let all = [expert("gate_up_proj", &[2, 6, 8]), expert("down_proj", &[2, 8, 3])];
    let gguf = open(folder(&config, &all).path());
    for (name, first) in [("ffn_gate.0", 0.0), ("ffn_up.0", 24.0), ("ffn_gate.1", 48.0), ("ffn_up.1", 72.0)] {
        let name = format!("blk.0.{name}.weight");
        assert_eq!((elements(&gguf, &name)[0], dims(&gguf, &name)), (first, vec![8, 3]), "{name}");
    }
    assert_eq!(dims(&gguf, "blk.0.ffn_down_exps.weight"), [3, 8, 2]);
    let gguf = open(folder(&config, &[expert("1.down_proj.weight", &[8, 3])]).path());
    assert_eq!(dims(&gguf, "blk.0.ffn_down.1.weight"), [3, 8]);
    for shape in [[2, 5, 8].as_slice(), &[2, 6]] {
        refused_as(folder(&config, &[expert("gate_up_proj", shape)]).path());
    }
}

/// What a folder of Gemma 4 may not say, or not say so.
#[test]
fn layers_of_two_kinds() {
    let source = fixtures().join("gemma4_dense");
    let config: Value = serde_json::from_slice(&fs::read(source.join(CONFIG)).unwrap()).unwrap();
    let opened = |fields: Value| {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(CONFIG), with(config.clone(), &fields).to_string()).unwrap();
        fs::copy(source.join(WEIGHTS), folder.path().join(WEIGHTS)).unwrap();
        Gguf::open(folder.path(), ReadMode::Map)
    };
    let (full, sliding) = (&config["rope_parameters"]["full_attention"], json!({ "rope_theta": 100.0 }));
    for (named, fields) in [
        ("use_bidirectional_attention", json!({ "use_bidirectional_attention": "all" })),
        ("num_kv_shared_layers", json!({ "num_kv_shared_layers": 2 })),
        ("num_kv_shared_layers", json!({ "num_kv_shared_layers": 3 })),
        ("vocab_size_per_layer_input", json!({ "hidden_size_per_layer_input": 4 })),
        ("per_layer_config", json!({ "per_layer_config": { "1": { "head_dim": 20 } } })),
        ("per_layer_config", json!({ "per_layer_config": { "7": { "head_dim": 20 } } })),
        ("sliding_window", json!({ "per_layer_config": { "1": { "sliding_window": 20 } } })),
        (
            "layer_types",
            json!({ "layer_types": ["sliding_attention", "chunked_attention", "full_attention"] }),
        ),
        ("rope_parameters", json!({ "rope_parameters": { "sliding_attention": sliding } })),
        ("rope_parameters", json!({ "rope_parameters": { "full_attention": full } })),
        (
            "rope_type",
            json!({ "rope_parameters": { "full_attention": {
            "rope_type": "yarn", "rope_theta": 100.0, "factor": 2.0 }, "sliding_attention": sliding } }),
        ),
        (
            "rope_type",
            json!({ "rope_parameters": { "full_attention": full, "sliding_attention": {
            "rope_type": "linear", "rope_theta": 100.0, "factor": 2.0 } } }),
        ),
        // The weights have no values for these layers.
        ("v_proj", json!({ "attention_k_eq_v": false })),
    ] {
        let error = opened(fields).err().unwrap().to_string();
        assert!(error.contains(named), "{named}: {error}");
    }
    // The last layer has global attention whatever is said of it, and the spelling of older configurations means the same.
    let mut older = json!({ "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        "global_head_dim": 20, "num_global_key_value_heads": 2 });
    let kept = opened(json!({})).unwrap();
    let mut config_without = config.clone();
    config_without.as_object_mut().unwrap().remove("per_layer_config");
    older = with(config_without, &older);
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join(CONFIG), older.to_string()).unwrap();
    fs::copy(source.join(WEIGHTS), folder.path().join(WEIGHTS)).unwrap();
    let again = open(folder.path());
    let keys = |gguf: &Gguf| -> Vec<String> {
        gguf.metadata()
            .iter()
            .filter(|(key, _)| key.starts_with("gemma4."))
            .map(|entry| format!("{entry:?}"))
            .collect()
    };
    assert_eq!(keys(&again), keys(&kept));
    assert_eq!(dims(&kept, "blk.1.attn_k.weight"), [28, 40]);
    let factors = elements(&kept, "rope_freqs.weight");
    assert_eq!(factors, [1.0, 1.0, 1.0, 1.0, 1e30, 1e30, 1e30, 1e30, 1e30, 1e30]);
}

/// Gemma 3n: what its folders may not say, and what shares become.
#[test]
fn streams_and_shares() {
    let source = fixtures().join("gemma3n");
    let config: Value = serde_json::from_slice(&fs::read(source.join(CONFIG)).unwrap()).unwrap();
    let opened = |fields: Value| {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(CONFIG), with(config.clone(), &fields).to_string()).unwrap();
        fs::copy(source.join(WEIGHTS), folder.path().join(WEIGHTS)).unwrap();
        Gguf::open(folder.path(), ReadMode::Map)
    };
    for (named, fields) in [
        ("altup_correct_scale", json!({ "altup_correct_scale": false })),
        ("altup_active_idx", json!({ "altup_active_idx": 4 })),
        ("altup_active_idx", json!({ "altup_num_inputs": 1, "altup_active_idx": 0 })),
        ("altup_projections", json!({ "altup_num_inputs": 3 })),
        ("altup_projections", json!({ "altup_num_inputs": 5 })),
        ("activation_sparsity_pattern", json!({ "activation_sparsity_pattern": [0.5] })),
        ("activation_sparsity_pattern", json!({ "activation_sparsity_pattern": 0.5 })),
        ("activation_sparsity_pattern", json!({ "activation_sparsity_pattern": [0.5, 0.0, 1.0, 0.0] })),
        ("intermediate_size", json!({ "intermediate_size": [24, 40] })),
        ("intermediate_size", json!({ "intermediate_size": [24, 40, 24, 0.5] })),
        ("num_kv_shared_layers", json!({ "num_kv_shared_layers": 3 })),
    ] {
        let error = opened(fields).err().unwrap().to_string();
        assert!(error.contains(named), "{named}: {error}");
    }
    // By torch.distributions.Normal(0, 1).icdf of these in single precision.
    let shares = json!({ "activation_sparsity_pattern": [0.95, 0.5, 0.0, 0.3] });
    let gguf = opened(shares).unwrap();
    let cutoffs = gguf.metadata().f32s_opt("gemma3n.activation_sparsity_scale").unwrap().unwrap();
    for (found, expected) in cutoffs.iter().zip([1.644_853_6, 0.0, f32::NEG_INFINITY, -0.524_400_5]) {
        assert!(*found == expected || (found - expected).abs() < 2e-7, "{found} {expected}");
    }
    assert_eq!(dims(&gguf, "altup_proj.weight"), [30, 30, 3]);
}

#[test]
fn the_experts_of_gpt_oss() {
    let config = with(
        llama(),
        &json!({ "model_type": "gpt_oss", "num_local_experts": 2, "num_experts_per_tok": 1,
        "sliding_window": 4 }),
    );
    let expert = |name: &str, shape: &[usize]| floats(&format!("model.layers.0.mlp.experts.{name}"), shape);
    // Two inputs and two gates with what they gate: columns gate, up, gate, up.
    let gguf = open(
        folder(&config, &[expert("gate_up_proj", &[2, 2, 4]), expert("gate_up_proj_bias", &[2, 4])]).path(),
    );
    assert_eq!(elements(&gguf, "blk.0.ffn_gate_exps.weight"), [0., 4., 2., 6., 8., 12., 10., 14.]);
    assert_eq!(elements(&gguf, "blk.0.ffn_up_exps.weight"), [1., 5., 3., 7., 9., 13., 11., 15.]);
    assert_eq!(elements(&gguf, "blk.0.ffn_gate_exps.bias"), [0., 2., 4., 6.]);
    assert_eq!(elements(&gguf, "blk.0.ffn_up_exps.bias"), [1., 3., 5., 7.]);

    // Blocks of 32 elements, two to a byte: element 0 is the lower half of byte 0, element 1 the upper.
    let blocks: Vec<u8> = (0..32).map(|byte| byte | (15 - byte % 16) << 4).collect();
    let raw =
        |name: &str, shape: &[usize], data: Vec<u8>| Raw { dtype: Dtype::U8, data, ..expert(name, shape) };
    let config = with(config, &json!({ "quantization_config": { "quant_method": "mxfp4" } }));
    let tensors = [
        raw("down_proj_blocks", &[1, 2, 1, 16], blocks.clone()),
        raw("down_proj_scales", &[1, 2, 1], vec![100, 101]),
        raw("gate_up_proj_blocks", &[1, 2, 1, 16], blocks.clone()),
        raw("gate_up_proj_scales", &[1, 2, 1], vec![102, 103]),
    ];
    let gguf = open(folder(&config, &tensors).path());
    let down = gguf.tensor("blk.0.ffn_down_exps.weight").unwrap();
    assert_eq!((down.ttype, down.dims.as_slice()), (TensorType::MXFP4, [32, 2, 1].as_slice()));
    let element = |block: &[u8], index: usize| block[index / 2] >> (index % 2 * 4) & 15;
    let block = |row: &[u8], scale: u8| {
        let mut block = vec![scale];
        block.extend((0..16).map(|index| element(row, index) | element(row, index + 16) << 4));
        block
    };
    assert_eq!(&down.data[..17], block(&blocks[..16], 100));
    assert_eq!(&down.data[17..], block(&blocks[16..], 101));
    assert_eq!(&gguf.tensor("blk.0.ffn_gate_exps.weight").unwrap().data[..], block(&blocks[..16], 102));
    assert_eq!(&gguf.tensor("blk.0.ffn_up_exps.weight").unwrap().data[..], block(&blocks[16..], 103));

    let error = refused_as(folder(&config, &tensors[..1]).path());
    assert!(
        matches!(&error, HuggingFaceError::MissingTensor { tensor } if tensor.ends_with("down_proj_scales"))
    );
    let odd = [raw("gate_up_proj_blocks", &[1, 1, 1, 16], blocks[..16].to_vec()), tensors[3].clone()];
    assert!(matches!(refused_as(folder(&config, &odd).path()), HuggingFaceError::Shape { .. }));
    let short = [tensors[0].clone(), raw("down_proj_scales", &[1, 1, 1], vec![1])];
    assert!(matches!(refused_as(folder(&config, &short).path()), HuggingFaceError::Shape { .. }));
}

#[test]
fn norms_that_count_from_one() {
    let config = with(llama(), &json!({ "model_type": "gemma", "head_dim": 4, "hidden_act": "gelu" }));
    let mut tensors = llama_tensors("model.");
    let gguf = open(folder(&config, &tensors).path());
    for name in ["output_norm.weight", "blk.0.attn_norm.weight", "blk.0.ffn_norm.weight"] {
        assert_eq!(elements(&gguf, name), [1., 2., 3., 4., 5., 6., 7., 8.], "{name}");
    }
    assert_eq!(elements(&gguf, "blk.0.attn_q.weight")[..2], [0., 1.]);
    // In half precision, 1, -2 and the smallest number.
    for (dtype, ones) in [
        (Dtype::F16, [0x00, 0x3C, 0x00, 0xC0, 0x01, 0x00]),
        (Dtype::BF16, [0x80, 0x3F, 0x00, 0xC0, 0x01, 0x00]),
    ] {
        let data = ones.into_iter().chain([0; 10]).collect();
        tensors[1] = Raw { dtype, data, ..tensors[1].clone() };
        let norm = elements(&open(folder(&config, &tensors).path()), "output_norm.weight");
        assert_eq!(norm[..4], [2., -1., 1., 1.], "{dtype:?}");
    }
}

#[test]
fn rotary_scaling_of_llama_3() {
    let scaling = json!({ "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 60 });
    let config = with(llama(), &json!({ "head_dim": 16, "rope_theta": 10_000.0, "rope_scaling": scaling }));
    let factors = elements(&open(folder(&config, &llama_tensors("model.")).path()), "rope_freqs.weight");
    // Wavelengths of 6.3, 19.9, 62.8 tokens …: the first is below 60 / 4, from the third on they are above 60.
    assert_eq!(factors.len(), 8);
    assert_eq!(factors[0], 1.0);
    let smooth = (60.0 / 19.869_177 - 1.0) / 3.0;
    assert!((factors[1] - 1.0 / ((1.0 - smooth) / 8.0 + smooth)).abs() < 1e-5, "{factors:?}");
    assert_eq!(factors[2..], [8.0; 6]);
}

#[test]
fn configurations_of_two_ages_say_the_same() {
    let without_folder = |gguf: &Gguf| {
        let own = |key: &str| key.contains("folder") || key == "general.name";
        gguf.metadata()
            .iter()
            .filter(|(key, _)| !own(key))
            .map(|(key, value)| format!("{key}: {value:?}"))
            .collect::<Vec<_>>()
    };
    let tensors = llama_tensors("model.");
    let scaling =
        json!({ "type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8, "beta_fast": 16 });
    let old = with(llama(), &json!({ "rope_scaling": scaling }));
    let mut new = llama();
    for field in ["rope_theta", "torch_dtype"] {
        new.as_object_mut().unwrap().remove(field);
    }
    let mut parameters = with(scaling, &json!({ "rope_type": "yarn", "rope_theta": 5000.0 }));
    parameters.as_object_mut().unwrap().remove("type");
    let new = with(
        new,
        &json!({ "rope_parameters": parameters, "dtype": "float32", "layer_types": ["full_attention"] }),
    );
    let old = without_folder(&open(folder(&old, &tensors).path()));
    assert_eq!(old, without_folder(&open(folder(&new, &tensors).path())));
    assert!(old.iter().any(|entry| entry.contains("yarn_beta_fast")), "{old:?}");
}

#[test]
fn windows() {
    let tensors = |layers: usize| {
        let mut tensors = llama_tensors("model.");
        for layer in 1..layers {
            let more: Vec<_> = tensors.iter().filter(|raw| raw.name.contains("layers.0.")).cloned().collect();
            tensors.extend(
                more.into_iter()
                    .map(|raw| Raw { name: raw.name.replace(".0.", &format!(".{layer}.")), ..raw }),
            );
        }
        tensors
    };
    let window = |fields: Value| {
        let config = with(with(llama(), &json!({ "num_hidden_layers": 4, "head_dim": 4 })), &fields);
        let gguf = open(folder(&config, &tensors(4)).path());
        let metadata = gguf.metadata();
        let key = |key: &str| format!("{}.attention.{key}", metadata.architecture().unwrap());
        let tokens = metadata.u64_opt(&key("sliding_window")).unwrap();
        (tokens, metadata.bools_opt(&key("sliding_window_pattern")).unwrap())
    };
    let no = (None, None);
    assert_eq!(window(json!({})), no);
    assert_eq!(window(json!({ "model_type": "mistral", "sliding_window": 16 })), (Some(16), None));
    assert_eq!(window(json!({ "model_type": "mistral" })), (Some(4096), None));
    assert_eq!(window(json!({ "model_type": "mistral", "sliding_window": null })), no);
    // Said, and not used.
    assert_eq!(window(json!({ "model_type": "qwen2", "sliding_window": 16, "max_window_layers": 1 })), no);
    let qwen = json!({ "model_type": "qwen2", "sliding_window": 16, "max_window_layers": 1, "use_sliding_window": true });
    assert_eq!(window(qwen), (Some(16), Some(vec![false, true, true, true])));
    let kinds = ["sliding_attention", "full_attention", "full_attention", "sliding_attention"];
    // From the 28th layer on, where nothing says it.
    assert_eq!(
        window(json!({ "model_type": "qwen2", "sliding_window": 16, "use_sliding_window": true })),
        no
    );
    let exaone = json!({ "model_type": "mistral", "sliding_window": 16, "layer_types": kinds });
    assert_eq!(window(exaone), (Some(16), Some(vec![true, false, false, true])));
}

/// A field that is absent is what transformers takes for it.
#[test]
fn what_a_configuration_leaves_out() {
    let parsed = |model_type: &str, fields: Value| {
        let mut config =
            with(llama(), &json!({ "model_type": model_type, "num_hidden_layers": 4, "head_dim": 4 }));
        config.as_object_mut().unwrap().remove("max_position_embeddings");
        config.as_object_mut().unwrap().remove("rope_theta");
        HuggingFaceConfig::parse(&with(config, &fields).to_string()).unwrap().metadata
    };
    let metadata = parsed("qwen3_moe", json!({ "num_experts": 4, "use_sliding_window": true }));
    for (key, value) in
        [("context_length", 32_768), ("expert_used_count", 8), ("attention.sliding_window", 4096)]
    {
        assert_eq!(metadata.u64(&format!("qwen3moe.{key}")).unwrap(), value, "{key}");
    }
    assert!(!metadata.bool("qwen3moe.expert_weights_norm").unwrap());
    let moe =
        json!({ "num_experts": 4, "use_sliding_window": true, "sliding_window": 8, "max_window_layers": 3 });
    let metadata = parsed("qwen2_moe", moe);
    let slides = metadata.bools("qwen2moe.attention.sliding_window_pattern").unwrap();
    assert_eq!(slides, [true, false, true, false]);
    let metadata = parsed("smollm3", json!({ "use_sliding_window": true, "sliding_window": 8 }));
    let slides = metadata.bools("smollm3.attention.sliding_window_pattern").unwrap();
    assert_eq!(slides, [false, false, false, true]);
    let metadata = parsed("exaone4", json!({ "sliding_window": 16, "sliding_window_pattern": "LG" }));
    let slides = metadata.bools("exaone4.attention.sliding_window_pattern").unwrap();
    assert_eq!(slides, [true, false, true, false]);
    let metadata = parsed("gpt_oss", json!({ "num_local_experts": 4, "layer_types": null }));
    assert_eq!(metadata.str("gpt-oss.rope.scaling.type").unwrap(), "yarn");
    assert_eq!(metadata.f32("gpt-oss.rope.freq_base").unwrap(), 150_000.0);
    // Configurations that call their fields by names of their own.
    let metadata = HuggingFaceConfig::parse(
        r#"{"model_type": "gpt2", "n_embd": 24, "n_layer": 2, "n_head": 3, "n_inner": null, "vocab_size": 30}"#,
    );
    let metadata = metadata.unwrap().metadata;
    for (key, value) in
        [("context_length", 1024), ("feed_forward_length", 96), ("attention.head_count_kv", 3)]
    {
        assert_eq!(metadata.u64(&format!("gpt2.{key}")).unwrap(), value, "{key}");
    }
    let metadata = parsed("gpt_neox", json!({ "rope_theta": 5.0, "num_key_value_heads": 1 }));
    assert_eq!(metadata.f32("gptneox.rope.freq_base").unwrap(), 1e4);
    assert_eq!(metadata.u64("gptneox.attention.head_count_kv").unwrap(), 2);
    assert!(metadata.bool("gptneox.use_parallel_residual").unwrap());
    for (fields, heads) in [
        (json!({ "num_kv_heads": 2 }), 1),
        (json!({ "multi_query": false, "num_kv_heads": null }), 2),
        (json!({ "new_decoder_architecture": true, "num_kv_heads": null }), 2),
        (json!({ "new_decoder_architecture": true, "num_kv_heads": 1 }), 1),
    ] {
        let metadata = parsed("falcon", fields.clone());
        assert_eq!(metadata.u64("falcon.attention.head_count_kv").unwrap(), heads, "{fields}");
    }
    let metadata = parsed("deepseek_v3", json!({}));
    for (key, value) in [
        ("attention.kv_lora_rank", 512),
        ("expert_count", 256),
        ("expert_group_used_count", 4),
        ("leading_dense_block_count", 3),
    ] {
        assert_eq!(metadata.u64(&format!("deepseek2.{key}")).unwrap(), value, "{key}");
    }
    assert!(metadata.bool("deepseek2.expert_weights_norm").unwrap());
    let scaling = json!({ "type": "yarn", "factor": null, "original_max_position_embeddings": 512 });
    let metadata = parsed("llama", json!({ "rope_scaling": scaling }));
    assert_eq!(metadata.f32("llama.rope.scaling.factor").unwrap(), 4.0);
}

#[test]
fn biases_that_contradict_the_configuration() {
    let mut tensors = llama_tensors("model.");
    let config = with(llama(), &json!({ "attention_bias": true }));
    let error = refused_as(folder(&config, &tensors).path());
    assert!(
        matches!(&error, HuggingFaceError::Biases { field: "attention_bias", value: true, tensor }
            if tensor.ends_with("_proj.bias")),
        "{error:?}"
    );
    let weight = tensors.iter().find(|raw| raw.name.ends_with("q_proj.weight")).unwrap();
    let (name, rows) = (weight.name.replace("weight", "bias"), weight.shape[0]);
    tensors.push(floats(&name, &[rows]));
    open(folder(&config, &tensors).path());
    // A configuration that says nothing leaves it to the tensors.
    open(folder(&llama(), &tensors).path());
    let config = with(llama(), &json!({ "attention_bias": false }));
    let error = refused_as(folder(&config, &tensors).path());
    assert!(
        matches!(&error, HuggingFaceError::Biases { field: "attention_bias", value: false, tensor }
            if *tensor == name),
        "{error:?}"
    );
    // What packs weights may add biases of zeros.
    let packed = json!({ "attention_bias": false, "quantization_config": { "quant_method": "gptq", "bits": 4, "group_size": 8 } });
    let error = HuggingFaceConfig::parse(&with(llama(), &packed).to_string()).err();
    assert!(error.is_none(), "{error:?}");
}

#[test]
fn output_layers_that_contradict_the_configuration() {
    let mut tensors = llama_tensors("model.");
    let embeddings = tensors.iter().find(|raw| raw.name.contains("embed_tokens")).unwrap().clone();
    let head = |raw: Raw| Raw { name: "lm_head.weight".to_owned(), ..raw };
    let has_output =
        |tensors: &[Raw]| open(folder(&llama(), tensors).path()).tensor("output.weight").is_some();
    tensors.push(head(embeddings.clone()));
    assert!(!has_output(&tensors), "saved twice");
    let mut other = floats("other", &embeddings.shape);
    other.data.reverse();
    assert_ne!(other.data, embeddings.data);
    tensors.pop();
    tensors.push(head(other));
    assert!(has_output(&tensors), "not tied, whatever the configuration says");
}

#[test]
fn activations() {
    let key = |fields: Value| {
        let config = HuggingFaceConfig::parse(&with(llama(), &fields).to_string()).unwrap();
        config.metadata.str_opt("llama.hidden_activation").unwrap().map(str::to_owned)
    };
    assert_eq!(key(json!({})), None);
    assert_eq!(key(json!({ "hidden_act": "swish" })), None);
    assert_eq!(key(json!({ "hidden_act": "gelu" })).as_deref(), Some("gelu"));
    assert_eq!(key(json!({ "hidden_act": "gelu_new" })).as_deref(), Some("gelu_tanh"));
    assert_eq!(key(json!({ "hidden_act": "relu2" })).as_deref(), Some("relu2"));
}

#[test]
fn templates_and_ends() {
    let folder =
        folder(&with(llama(), &json!({ "eos_token_id": 2, "bos_token_id": 1 })), &llama_tensors("model."));
    let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
    let read = |key: &str| open(folder.path()).metadata().str_opt(key).unwrap().map(str::to_owned);
    let ends = || open(folder.path()).metadata().u32s("moli.eos_token_ids").unwrap().into_owned();
    assert_eq!(read("tokenizer.chat_template"), None);
    assert_eq!(read("tokenizer.huggingface.json"), None);
    assert_eq!(ends(), [2]);
    write("generation_config.json", r#"{"eos_token_id": [3, 4]}"#);
    assert_eq!(ends(), [3, 4]);
    assert_eq!(open(folder.path()).metadata().u32("tokenizer.ggml.eos_token_id").unwrap(), 3);
    assert_eq!(open(folder.path()).metadata().u32("tokenizer.ggml.bos_token_id").unwrap(), 1);

    write(
        "tokenizer_config.json",
        r#"{"chat_template": "A", "bos_token": "<s>", "added_tokens_decoder": {"0": {}}}"#,
    );
    assert_eq!(read("tokenizer.chat_template").as_deref(), Some("A"));
    assert_eq!(read("tokenizer.huggingface.config").as_deref(), Some(r#"{"bos_token":"<s>"}"#));
    let list =
        r#"{"chat_template": [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}]}"#;
    write("tokenizer_config.json", list);
    assert_eq!(read("tokenizer.chat_template").as_deref(), Some("D"));
    write("chat_template.jinja", "J");
    assert_eq!(read("tokenizer.chat_template").as_deref(), Some("J"));
    write("tokenizer.json", "{}");
    assert_eq!(read("tokenizer.huggingface.json").as_deref(), Some("{}"));

    fs::write(folder.path().join("tokenizer.json"), [0xFF, 0xFE]).unwrap();
    assert!(matches!(refused_as(folder.path()), HuggingFaceError::InvalidText { .. }));
    write("tokenizer.json", "{}");
    write("tokenizer_config.json", "[");
    assert!(matches!(refused_as(folder.path()), HuggingFaceError::InvalidJson { .. }));
    File::create(folder.path().join("tokenizer.json")).unwrap().set_len(2 << 30).unwrap();
    assert!(matches!(refused_as(folder.path()), HuggingFaceError::JsonTooLarge { .. }));
}

#[test]
fn no_field_of_any_value_makes_it_panic() {
    let odd = [
        json!(null),
        json!(true),
        json!(-1),
        json!(0),
        json!(1),
        json!(3.5),
        json!(1e300),
        json!(u64::MAX),
        json!(""),
        json!("x"),
        json!([]),
        json!([0, 1, "x"]),
        json!({}),
        json!({ "rope_type": "llama3" }),
    ];
    let (mut opened, mut refused) = (0, 0);
    for entry in fs::read_dir(fixtures()).unwrap() {
        let source = entry.unwrap().path();
        let config: Value = serde_json::from_slice(&fs::read(source.join(CONFIG)).unwrap()).unwrap();
        let folder = tempfile::tempdir().unwrap();
        fs::copy(source.join(WEIGHTS), folder.path().join(WEIGHTS)).unwrap();
        let mut open = |config: &Value| {
            fs::write(folder.path().join(CONFIG), config.to_string()).unwrap();
            match Gguf::open(folder.path(), ReadMode::Map) {
                Ok(_) => opened += 1,
                Err(error) => {
                    assert!(!error.to_string().is_empty());
                    refused += 1;
                }
            }
        };
        for (field, value) in config.as_object().unwrap() {
            for other in &odd {
                open(&with(config.clone(), &json!({ field.as_str(): other })));
            }
            for inner in value.as_object().into_iter().flat_map(|fields| fields.keys()) {
                for other in &odd {
                    let changed = with(value.clone(), &json!({ inner.as_str(): other }));
                    open(&with(config.clone(), &json!({ field.as_str(): changed })));
                }
            }
        }
    }
    assert!(opened > 1000 && refused > 1000, "{opened} {refused}");
}
