//! Files that are well-formed GGUF and impossible models: each a typed error that names the thing.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::path::Path;

use moli_format::{FormatError, Gguf, ReadMode, TensorType, Value};
use moli_model::{
    BackendKind, Batch, KvType, LoadOptions, MAX_OUTPUTS, ModelError, Runtime, StateSlots, load,
};
use moli_testkit::{TinyFile, TinyModel};

const OPTIONS: LoadOptions =
    LoadOptions { threads: 1, isa: None, context: 128, max_rows: 32, kv_type: KvType::F16 };

fn try_load(file: &TinyFile) -> Result<Box<dyn Runtime>, ModelError> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    file.write(&path).unwrap();
    load(&open(&path), BackendKind::Cpu, &OPTIONS)
}

fn open(path: &Path) -> Gguf {
    Gguf::open(path, ReadMode::Read).unwrap()
}

/// The error of loading a tiny llama whose metadata was changed.
fn error_with(key: &str, value: impl Into<moli_format::Value>) -> ModelError {
    let mut file = TinyModel::new("llama").file().unwrap();
    file.meta(key, value);
    try_load(&file).err().expect("the model must be refused")
}

fn assert_out_of_range(error: &ModelError, expected: &str) {
    match error {
        ModelError::OutOfRange { key, .. } => assert_eq!(key, expected),
        other => panic!("{other}"),
    }
}

/// Learned positions end with their table.
#[test]
fn a_position_beyond_the_table() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/architectures/gpt2");
    let mut runtime = load(&open(&root), BackendKind::Cpu, &OPTIONS).unwrap();
    let good = Batch {
        tokens: &[3],
        positions: &[23],
        sequences: &[0],
        types: &[],
        tables: &[&[0]],
        adapters: &[],
        recurrent: &[],
        outputs: &[0],
        states: &[],
    };
    runtime.forward(&good).unwrap();
    let error = runtime.forward(&Batch { positions: &[24], ..good }).unwrap_err();
    assert!(matches!(&error, ModelError::Batch { what: "position", actual: 24, .. }), "{error}");
    assert!(error.to_string().contains("context of 24"), "{error}");
}

#[test]
fn block_count_of_100_000() {
    assert_out_of_range(&error_with("llama.block_count", 100_000u32), "llama.block_count");
}

#[test]
fn block_count_beyond_the_file() {
    let error = error_with("llama.block_count", 1000u32);
    assert!(
        matches!(&error, ModelError::MissingTensor { name } if name == "blk.2.attn_norm.weight"),
        "{error}"
    );
}

#[test]
fn block_count_below_the_file() {
    let error = error_with("llama.block_count", 1u32);
    assert!(matches!(&error, ModelError::UnusedTensor { name, .. } if name.starts_with("blk.1.")), "{error}");
}

#[test]
fn head_count_0() {
    assert_out_of_range(&error_with("llama.attention.head_count", 0u32), "llama.attention.head_count");
    assert_out_of_range(&error_with("llama.attention.head_count_kv", 0u32), "llama.attention.head_count_kv");
}

#[test]
fn kv_heads_that_do_not_divide_the_heads() {
    assert_out_of_range(&error_with("llama.attention.head_count_kv", 3u32), "llama.attention.head_count_kv");
}

#[test]
fn odd_rotary_dimensions() {
    assert_out_of_range(&error_with("llama.rope.dimension_count", 63u32), "llama.rope.dimension_count");
}

#[test]
fn numbers_that_are_not() {
    let key = "llama.attention.layer_norm_rms_epsilon";
    assert_out_of_range(&error_with(key, f32::NAN), key);
    assert_out_of_range(&error_with(key, -1.0f32), key);
    assert_out_of_range(&error_with("llama.rope.freq_base", f32::INFINITY), "llama.rope.freq_base");
}

#[test]
fn a_key_of_a_wrong_type() {
    let error = error_with("llama.block_count", "two");
    assert!(matches!(error, ModelError::Format(FormatError::WrongType { .. })), "{error}");
}

#[test]
fn a_missing_key() {
    let mut file = TinyModel::new("llama").file().unwrap();
    file.remove("llama.embedding_length");
    let error = try_load(&file).err().unwrap();
    assert!(matches!(error, ModelError::Format(FormatError::MissingKey { .. })), "{error}");
}

#[test]
fn an_unknown_architecture() {
    let error = error_with("general.architecture", "mamba");
    assert!(
        matches!(&error, ModelError::UnsupportedArchitecture { found, .. } if found == "mamba"),
        "{error}"
    );
}

#[test]
fn features_that_would_be_ignored() {
    for (key, value) in [
        ("llama.rope.scaling.type", Value::from("dynamic")),
        ("llama.rope.scaling.yarn_ext_factor", Value::from(0.5f32)),
        ("llama.hidden_activation", Value::from("xielu")),
        ("llama.logit_scale", Value::from(0.5f32)),
        ("llama.residual_scale", Value::from(0.5f32)),
        ("llama.embedding_scale", Value::from(12.0f32)),
        ("llama.attention.clamp_kqv", Value::from(8.0f32)),
        ("llama.attention.max_alibi_bias", Value::from(8.0f32)),
        ("llama.attention.head_count_kv", Value::from(vec![2u32, 4])),
    ] {
        let error = error_with(key, value);
        assert!(
            matches!(&error, ModelError::UnsupportedFeature { key: found, .. } if found == key),
            "{error}"
        );
    }
}

/// The error of the tiny model with experts, with one key changed.
fn expert_error_with(key: &str, value: impl Into<Value>) -> ModelError {
    let mut file = TinyModel::new("qwen3moe").file().unwrap();
    file.meta(key, value);
    try_load(&file).err().unwrap()
}

#[test]
fn more_experts_for_a_token_than_there_are() {
    let key = "qwen3moe.expert_used_count";
    assert_out_of_range(&expert_error_with(key, 5u32), key);
    assert_out_of_range(&expert_error_with(key, 0u32), key);
    assert_out_of_range(&expert_error_with("qwen3moe.expert_count", u32::MAX), "qwen3moe.expert_count");
}

#[test]
fn experts_that_are_not_those_of_the_tensors() {
    // Without experts, the network of the others is missing.
    let error = expert_error_with("qwen3moe.expert_count", 0u32);
    assert!(matches!(&error, ModelError::MissingTensor { name } if name.contains("ffn_")), "{error}");
    let error = expert_error_with("qwen3moe.expert_count", 3u32);
    assert!(matches!(&error, ModelError::TensorShape { name, .. } if name.contains("_exps")), "{error}");
}

#[test]
fn a_vocabulary_of_another_size_than_the_embeddings() {
    for size in [0u32, 100, 260] {
        assert_out_of_range(&error_with("llama.vocab_size", size), "llama.vocab_size");
    }
}

#[test]
fn neutral_values_and_uniform_lists_are_no_features() {
    let mut file = TinyModel::new("llama").file().unwrap();
    file.meta("llama.logit_scale", 1.0f32);
    file.meta("llama.residual_scale", 0.0f32);
    file.meta("llama.rope.scaling.type", "none");
    file.meta("llama.rope.scaling.factor", 0.0f32);
    file.meta("llama.attention.head_count_kv", vec![2u32, 2]);
    file.meta("llama.attention.sliding_window", 1u32 << 20);
    let runtime = try_load(&file).unwrap();
    assert_eq!((runtime.config().kv_heads, &runtime.config().window), (2, &None));
}

#[test]
fn a_window_or_a_scale_changes_the_answer() {
    let logits = |change: &dyn Fn(&mut TinyFile)| {
        let mut file = TinyModel::new("llama").file().unwrap();
        change(&mut file);
        let tokens: Vec<u32> = (0..32).collect();
        forward(try_load(&file).unwrap().as_mut(), &tokens, &[31]).unwrap()
    };
    let plain = logits(&|_| {});
    let default_scale = 0.125f32; // 1 / sqrt(64)
    assert_eq!(plain, logits(&|file| file.meta("llama.attention.scale", default_scale)));
    assert_ne!(plain, logits(&|file| file.meta("llama.attention.scale", 0.5f32)));
    assert_ne!(plain, logits(&|file| file.meta("llama.attention.sliding_window", 8u32)));
}

#[test]
fn a_tensor_of_another_shape() {
    let error = error_with("llama.feed_forward_length", 500u32);
    match error {
        ModelError::TensorShape { name, expected, actual } => {
            assert_eq!(
                (name.as_str(), expected, actual),
                ("blk.0.ffn_gate.weight", vec![256, 500], vec![256, 512])
            );
        }
        other => panic!("{other}"),
    }
}

/// The error of a tiny qwen3 with a classifier of so many rows, and labels.
fn classifier_error(rows: u64, labels: &[&str]) -> ModelError {
    let mut file = TinyModel::new("qwen3").file().unwrap();
    file.tensor("cls.output.weight", TensorType::F32, &[256, rows], vec![0u8; 256 * 4 * rows as usize]);
    let labels: Vec<String> = labels.iter().copied().map(String::from).collect();
    file.meta("qwen3.classifier.output_labels", labels);
    try_load(&file).err().unwrap()
}

#[test]
fn classifiers_that_contradict_themselves() {
    assert_out_of_range(&classifier_error(2, &["yes"]), "qwen3.classifier.output_labels");
    assert_out_of_range(&classifier_error(5000, &["yes", "no"]), "cls.output.weight");
    let mut file = TinyModel::new("qwen3").file().unwrap();
    file.tensor("cls.output.weight", TensorType::F32, &[128, 2], vec![0u8; 128 * 2 * 4]);
    let error = try_load(&file).err().unwrap();
    assert!(matches!(&error, ModelError::TensorShape { name, .. } if name == "cls.output.weight"), "{error}");
    let mut file = TinyModel::new("qwen3").file().unwrap();
    file.tensor("cls.output.weight", TensorType::F32, &[256, 2], vec![0xff; 256 * 2 * 4]);
    let error = try_load(&file).err().unwrap();
    assert!(matches!(&error, ModelError::WeightNotFinite { index: 0, .. }), "{error}");
}

#[test]
fn a_tensor_that_nothing_uses() {
    let mut file = TinyModel::new("llama").file().unwrap();
    file.tensor("blk.0.attn_sinks.weight", TensorType::F32, &[4], vec![0u8; 16]);
    let error = try_load(&file).err().unwrap();
    assert!(
        matches!(&error, ModelError::UnusedTensor { name, .. } if name == "blk.0.attn_sinks.weight"),
        "{error}"
    );
}

#[test]
fn a_matrix_of_a_type_without_kernels() {
    let mut model = TinyModel::new("llama");
    model.matrix = TensorType::F32;
    let mut file = model.file().unwrap();
    file.tensor("blk.0.attn_q.weight", TensorType::I32, &[256, 256], vec![0u8; 256 * 256 * 4]);
    let error = try_load(&file).err().unwrap();
    assert!(matches!(&error, ModelError::TensorType { found: "I32", .. }), "{error}");
}

#[test]
fn nan_in_a_norm_is_found_at_load() {
    let mut file = TinyModel::new("llama").file().unwrap();
    let gain: Vec<u8> = (0..256).flat_map(|i| if i == 7 { f32::NAN } else { 1.0 }.to_le_bytes()).collect();
    file.tensor("output_norm.weight", TensorType::F32, &[256], gain);
    let error = try_load(&file).err().unwrap();
    assert!(matches!(&error, ModelError::WeightNotFinite { index: 7, .. }), "{error}");
}

#[test]
fn nan_in_a_matrix_is_found_in_the_logits() {
    for (ttype, nan) in [(TensorType::F32, vec![0xff; 4]), (TensorType::Q8_0, vec![0xff; 34])] {
        let mut model = TinyModel::new("llama");
        model.matrix = ttype;
        let mut file = model.file().unwrap();
        let name = "blk.0.ffn_down.weight";
        let mut data = file.tensor_data(name).unwrap().to_vec();
        data[..nan.len()].copy_from_slice(&nan);
        file.tensor(name, ttype, &[512, 256], data);
        let mut runtime = try_load(&file).unwrap();
        let error = forward(runtime.as_mut(), &[1, 2, 3], &[2]).unwrap_err();
        assert!(matches!(error, ModelError::NotFinite { .. }), "{ttype:?}: {error}");
        let batch = Batch {
            tokens: &[1],
            positions: &[0],
            sequences: &[0],
            types: &[],
            tables: &[&[0]],
            adapters: &[],
            recurrent: &[],
            outputs: &[],
            states: &[0],
        };
        let error = runtime.forward(&batch).unwrap_err();
        assert!(matches!(error, ModelError::StateNotFinite { .. }), "{ttype:?}: {error}");
    }
}

fn forward(runtime: &mut dyn Runtime, tokens: &[u32], outputs: &[u32]) -> Result<Vec<f32>, ModelError> {
    let pages: Vec<u32> = (0..runtime.pages() as u32).collect();
    let positions: Vec<u32> = (0..tokens.len() as u32).collect();
    let sequences = vec![0; tokens.len()];
    let batch = Batch {
        tokens,
        positions: &positions,
        sequences: &sequences,
        types: &[],
        tables: &[&pages],
        adapters: &[],
        recurrent: &[],
        outputs,
        states: &[],
    };
    runtime.forward(&batch).map(|computed| computed.logits.to_vec())
}

#[test]
fn batches_that_contradict_themselves_or_the_model() {
    let mut runtime = try_load(&TinyModel::new("llama").file().unwrap()).unwrap();
    let field = |error: ModelError| match error {
        ModelError::Batch { what, .. } => what,
        other => panic!("{other}"),
    };
    assert_eq!(field(forward(runtime.as_mut(), &[], &[]).unwrap_err()), "rows");
    assert_eq!(field(forward(runtime.as_mut(), &[0; 33], &[]).unwrap_err()), "rows");
    assert_eq!(field(forward(runtime.as_mut(), &[1, 259], &[]).unwrap_err()), "token");
    assert_eq!(field(forward(runtime.as_mut(), &[1], &[1]).unwrap_err()), "output");
    assert_eq!(field(forward(runtime.as_mut(), &[1], &[0; MAX_OUTPUTS + 1]).unwrap_err()), "outputs");

    let good = Batch {
        tokens: &[1],
        positions: &[127],
        sequences: &[0],
        types: &[],
        tables: &[&[3, 2, 1, 0]],
        adapters: &[],
        recurrent: &[],
        outputs: &[],
        states: &[],
    };
    runtime.forward(&good).unwrap();
    assert_eq!(field(runtime.forward(&Batch { tables: &[&[3, 2, 1, 4]], ..good }).unwrap_err()), "page");
    assert_eq!(field(runtime.forward(&Batch { positions: &[128], ..good }).unwrap_err()), "position");
    assert_eq!(field(runtime.forward(&Batch { positions: &[], ..good }).unwrap_err()), "positions");
    assert_eq!(field(runtime.forward(&Batch { sequences: &[1], ..good }).unwrap_err()), "sequence");
    assert_eq!(field(runtime.forward(&Batch { states: &[1], ..good }).unwrap_err()), "state");
    assert_eq!(field(runtime.forward(&Batch { states: &[0, 0], ..good }).unwrap_err()), "states");
}

#[test]
fn pages_that_do_not_exist_or_do_not_fit() {
    let mut runtime = try_load(&TinyModel::new("llama").file().unwrap()).unwrap();
    let page = |result: Result<(), ModelError>| match result.unwrap_err() {
        ModelError::Page { page, pages: 4 } => page,
        other => panic!("{other}"),
    };
    assert_eq!(page(runtime.copy_page(0, 4)), 4);
    assert_eq!(page(runtime.copy_page(u32::MAX, 0)), u32::MAX);
    assert_eq!(page(runtime.read_page(5, &mut Vec::new())), 5);
    assert_eq!(page(runtime.write_page(6, &[])), 6);
    let expected = runtime.page_bytes();
    for actual in [0, expected - 1, expected + 1] {
        let error = runtime.write_page(0, &vec![0; actual]).unwrap_err();
        assert!(
            matches!(error, ModelError::PageBytes { expected: e, actual: a } if (e, a) == (expected, actual))
        );
    }
}

#[test]
fn a_context_that_no_memory_holds() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    TinyModel::new("llama").write(&path).unwrap();
    let options = LoadOptions { context: usize::MAX / 64, ..OPTIONS };
    let error = load(&open(&path), BackendKind::Cpu, &options).err().unwrap();
    assert!(matches!(error, ModelError::TooLarge { .. }), "{error}");
}

/// The error of loading a tiny model of another architecture whose metadata was changed.
fn error_of(architecture: &'static str, key: &str, value: impl Into<Value>) -> ModelError {
    let mut file = TinyModel::new(architecture).file().unwrap();
    file.meta(&format!("{architecture}.{key}"), value);
    try_load(&file).err().expect("the model must be refused")
}

#[test]
fn states_of_impossible_shapes() {
    for (architecture, key, value) in [
        ("lfm2", "shortconv.l_cache", 0u32),
        ("lfm2", "shortconv.l_cache", 1000),
        ("qwen35", "ssm.conv_kernel", 0),
        ("qwen35", "ssm.state_size", 0),
        ("qwen35", "ssm.state_size", 1 << 20),
        ("qwen35", "ssm.group_count", 0),
        ("qwen35", "ssm.group_count", 3),
        ("qwen35", "ssm.time_step_rank", 0),
        ("qwen35", "ssm.inner_size", 0),
        ("qwen35", "ssm.inner_size", 255),
        ("qwen35", "ssm.inner_size", 1 << 21),
        ("qwen35", "nextn_predict_layers", 2),
    ] {
        let error = error_of(architecture, key, value);
        assert!(
            matches!(&error, ModelError::OutOfRange { key: found, .. } if found == &format!("{architecture}.{key}")),
            "{architecture} {key} = {value}: {error}"
        );
    }
    let mut file = TinyModel::new("lfm2").file().unwrap();
    file.remove("lfm2.shortconv.l_cache");
    let error = try_load(&file).err().unwrap();
    assert!(
        matches!(&error, ModelError::Format(FormatError::MissingKey { key }) if key == "lfm2.shortconv.l_cache"),
        "{error}"
    );
    // Where there is no list every layer has attention, and the second has no queries.
    let error = error_of("lfm2", "attention.head_count_kv", 2u32);
    assert!(matches!(&error, ModelError::MissingTensor { name } if name == "blk.1.attn_q.weight"), "{error}");
}

#[test]
fn layers_that_are_not_said_or_all_the_same() {
    let counts = |counts: &[u32]| Value::from(counts.to_vec());
    let error = error_of("lfm2", "attention.head_count_kv", counts(&[2]));
    assert_out_of_range(&error, "lfm2.attention.head_count_kv");
    let error = error_of("lfm2", "attention.head_count_kv", counts(&[1 << 20, 0]));
    assert_out_of_range(&error, "lfm2.attention.head_count_kv");
    let error = error_of("qwen35", "attention.recurrent_layers", vec![true]);
    assert_out_of_range(&error, "qwen35.attention.recurrent_layers");
    for error in [
        error_of("lfm2", "attention.head_count_kv", counts(&[0, 0])),
        error_of("qwen35", "attention.recurrent_layers", vec![true, true]),
    ] {
        assert!(
            matches!(&error, ModelError::UnsupportedFeature { key, .. } if key.ends_with(".block_count")),
            "{error}"
        );
    }
    let mut file = TinyModel { layers: 3, ..TinyModel::new("lfm2") }.file().unwrap();
    file.meta("lfm2.attention.head_count_kv", counts(&[2, 0, 4]));
    let error = try_load(&file).err().unwrap();
    assert!(
        matches!(&error, ModelError::UnsupportedFeature { key, .. } if key == "lfm2.attention.head_count_kv"),
        "{error}"
    );
    // The period that files without a list have, which leaves no layer of two with attention.
    let mut file = TinyModel::new("qwen35").file().unwrap();
    file.remove("qwen35.attention.recurrent_layers");
    assert!(matches!(try_load(&file).err().unwrap(), ModelError::UnsupportedFeature { .. }));
}

#[test]
fn states_that_contradict_the_tensors() {
    for (architecture, key, value, tensor) in [
        ("lfm2", "shortconv.l_cache", 4u32, "blk.1.shortconv.conv.weight"),
        ("qwen35", "ssm.conv_kernel", 4, "blk.1.ssm_conv1d.weight"),
        ("qwen35", "ssm.state_size", 16, "blk.1.attn_qkv.weight"),
        ("qwen35", "ssm.inner_size", 512, "blk.1.attn_qkv.weight"),
        ("qwen35", "ssm.group_count", 1, "blk.1.attn_qkv.weight"),
        ("qwen35", "ssm.time_step_rank", 2, "blk.1.ssm_beta.weight"),
    ] {
        let error = error_of(architecture, key, value);
        assert!(
            matches!(&error, ModelError::TensorShape { name, .. } if name == tensor),
            "{architecture} {key} = {value}: {error}"
        );
    }
    let mut file = TinyModel::new("qwen35").file().unwrap();
    let slopes = [-1.0f32, 0.5, -1.0, -1.0].iter().flat_map(|slope| slope.to_le_bytes()).collect();
    file.tensor("blk.1.ssm_a", TensorType::F32, &[4], slopes);
    assert_out_of_range(&try_load(&file).err().unwrap(), "blk.1.ssm_a[1]");
    let mut file = TinyModel::new("lfm2").file().unwrap();
    let taps = vec![f32::NAN; 3 * 256].iter().flat_map(|tap| tap.to_le_bytes()).collect();
    file.tensor("blk.1.shortconv.conv.weight", TensorType::F32, &[3, 256], taps);
    let error = try_load(&file).err().unwrap();
    assert!(
        matches!(&error, ModelError::WeightNotFinite { name, .. } if name == "blk.1.shortconv.conv.weight"),
        "{error}"
    );
}

#[test]
fn batches_that_do_not_go_on_from_their_states() {
    let mut runtime = try_load(&TinyModel::new("lfm2").file().unwrap()).unwrap();
    runtime.reserve_states(3).unwrap();
    let slots = |from: Option<u32>, to: u32| StateSlots { from, to };
    let good = Batch {
        tokens: &[1, 2, 3],
        positions: &[0, 1, 2],
        sequences: &[0, 0, 0],
        types: &[],
        tables: &[&[0]],
        adapters: &[],
        recurrent: &[slots(None, 1)],
        outputs: &[2],
        states: &[],
    };
    let what = |result: Result<moli_model::Computed<'_>, ModelError>| match result.map(|_| ()) {
        Err(ModelError::Batch { what, .. }) => what,
        other => panic!("{other:?}"),
    };
    assert_eq!(what(runtime.forward(&Batch { positions: &[0, 2, 3], ..good })), "position");
    assert_eq!(what(runtime.forward(&Batch { positions: &[1, 2, 3], ..good })), "position");
    assert_eq!(what(runtime.forward(&Batch { recurrent: &[slots(None, 3)], ..good })), "state");
    assert_eq!(what(runtime.forward(&Batch { recurrent: &[slots(Some(0), 1)], ..good })), "state");
    assert_eq!(what(runtime.forward(&Batch { recurrent: &[slots(Some(9), 1)], ..good })), "state");
    assert_eq!(what(runtime.forward(&Batch { recurrent: &[slots(None, 1); 2], ..good })), "recurrent");
    let two: Batch<'_> = Batch { tables: &[&[0], &[1]], ..good };
    // A sequence in two pieces, and two sequences with one slot.
    let pieces = Batch { sequences: &[0, 1, 0], positions: &[0, 0, 1], recurrent: &[], ..two };
    assert_eq!(what(runtime.forward(&pieces)), "state");
    let shared =
        Batch { sequences: &[0, 0, 1], positions: &[0, 1, 0], recurrent: &[slots(None, 1); 2], ..two };
    assert_eq!(what(runtime.forward(&shared)), "state");

    runtime.forward(&good).unwrap();
    let next = Batch { tokens: &[4], positions: &[3], sequences: &[0], outputs: &[0], ..good };
    assert_eq!(what(runtime.forward(&Batch { recurrent: &[slots(Some(0), 0)], ..next })), "state");
    // One reads what the other writes.
    let recurrent = &[slots(Some(1), 2), slots(None, 1)];
    let crossed = Batch { tokens: &[4, 1], positions: &[3, 0], sequences: &[0, 1], recurrent, ..two };
    assert_eq!(what(runtime.forward(&Batch { outputs: &[0], ..crossed })), "state");
    assert_eq!(
        what(runtime.forward(&Batch { positions: &[4], recurrent: &[slots(Some(1), 2)], ..next })),
        "state"
    );
    runtime.forward(&Batch { recurrent: &[slots(Some(1), 2)], ..next }).unwrap();

    assert!(matches!(
        runtime.read_state(3, &mut Vec::new()).unwrap_err(),
        ModelError::State { state: 3, states: 3 }
    ));
    let expected = runtime.state_bytes();
    assert_eq!(expected, 2 * 256 * size_of::<f32>());
    for actual in [0, expected - 1, expected + 1] {
        let error = runtime.write_state(0, 3, &vec![0; actual]).unwrap_err();
        assert!(
            matches!(&error, ModelError::StateBytes { expected: e, actual: a } if (*e, *a) == (expected, actual))
        );
    }
    let mut without = try_load(&TinyModel::new("llama").file().unwrap()).unwrap();
    assert_eq!((without.state_bytes(), without.states()), (0, 0));
    assert_eq!(what(without.forward(&good)), "recurrent");
    assert!(matches!(without.write_state(0, 0, &[]).unwrap_err(), ModelError::State { states: 0, .. }));
}

#[test]
fn layers_of_two_kinds_that_contradict_themselves() {
    let range = |key: &str, value: Value| {
        let error = error_of("gemma4", key, value);
        assert_out_of_range(&error, &format!("gemma4.{key}"));
    };
    // Both layers, so that none is left whose keys they could see; and more than there are.
    range("attention.shared_kv_layers", Value::from(2u32));
    range("attention.shared_kv_layers", Value::from(1u32));
    range("attention.shared_kv_layers", Value::from(3u32));
    range("attention.value_length_swa", Value::from(32u32));
    range("attention.key_length_swa", Value::from(0u32));
    range("rope.dimension_count_swa", Value::from(63u32));
    range("attention.head_count_kv", Value::from(vec![2u32, 3]));
    range("attention.head_count_kv", Value::from(vec![2u32, 0]));
    range("attention.head_count_kv", Value::from(vec![2u32, 1, 1]));
    range("feed_forward_length", Value::from(vec![512u32, 1024, 512]));
    range("embedding_length_per_layer_input", Value::from(u32::MAX));
    for key in ["attention.sliding_window", "rope.dimension_count_swa"] {
        let mut file = TinyModel::new("gemma4").file().unwrap();
        file.remove(&format!("gemma4.{key}"));
        let error = try_load(&file).err().unwrap();
        assert!(
            matches!(&error, ModelError::Format(FormatError::MissingKey { key: found }) if found.ends_with(key)),
            "{error}"
        );
    }
    // Without the list, which layers are of which kind is not said.
    let mut file = TinyModel::new("gemma4").file().unwrap();
    file.remove("gemma4.attention.sliding_window_pattern");
    let error = try_load(&file).err().unwrap();
    assert!(
        matches!(&error, ModelError::UnsupportedFeature { key, .. } if key == "gemma4.attention.sliding_window"),
        "{error}"
    );
    // Layers of one kind have the same heads.
    let mut file = TinyModel { layers: 3, ..TinyModel::new("gemma4") }.file().unwrap();
    file.meta("gemma4.attention.head_count_kv", vec![2u32, 1, 4]);
    let error = try_load(&file).err().unwrap();
    assert!(
        matches!(&error, ModelError::UnsupportedFeature { key, .. } if key == "gemma4.attention.head_count_kv"),
        "{error}"
    );
    // A vector of another number of layers for each token.
    let mut file = TinyModel::new("gemma4").file().unwrap();
    file.meta("gemma4.embedding_length_per_layer_input", 128u32);
    let error = try_load(&file).err().unwrap();
    assert!(matches!(&error, ModelError::TensorShape { .. }), "{error}");
}

#[test]
fn streams_that_contradict_themselves() {
    for (key, value) in [
        ("altup.num_inputs", Value::from(0u32)),
        ("altup.num_inputs", Value::from(1u32 << 20)),
        ("altup.active_idx", Value::from(4u32)),
        ("activation_sparsity_scale", Value::from(vec![0.5f32])),
        ("activation_sparsity_scale", Value::from(vec![0.5f32, f32::NAN])),
        ("activation_sparsity_scale", Value::from(vec![0.5f32, f32::INFINITY])),
    ] {
        assert_out_of_range(&error_of("gemma3n", key, value), &format!("gemma3n.{key}"));
    }
    for key in ["gemma3n.altup.num_inputs", "gemma3n.activation_sparsity_scale"] {
        let mut file = TinyModel::new("gemma3n").file().unwrap();
        file.remove(key);
        let error = try_load(&file).err().unwrap();
        assert!(
            matches!(&error, ModelError::Format(FormatError::MissingKey { key: found }) if found == key),
            "{error}"
        );
    }
    // Ways for another number of streams.
    let error = error_of("gemma3n", "altup.num_inputs", Value::from(3u32));
    assert!(matches!(&error, ModelError::TensorShape { .. }), "{error}");
}
