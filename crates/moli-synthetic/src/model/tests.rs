use std::collections::HashSet;

use moli_format::{HuggingFaceConfig, HuggingFaceError, ReadMode};
use moli_model::{BackendKind, Batch, KvType, LoadOptions, pages_of};
use serde_json::{Map, Value, json};

use super::*;
use crate::weights::DEVIATION;

/// A configuration with other values of some fields.
fn changed(config: &str, fields: &Value) -> String {
    let mut config: Map<String, Value> = serde_json::from_str(config).unwrap();
    config.extend(fields.as_object().unwrap().clone());
    Value::Object(config).to_string()
}

fn model(config: &str, mixture: &str) -> Result<Synthetic, SyntheticError> {
    let shape = Shape::of("test", HuggingFaceConfig::parse(config)?)?;
    Synthetic::new(shape, Mixture::named(mixture).unwrap())
}

/// The smallest configuration of a model type.
fn tiny(model_type: &str) -> String {
    json!({
        "model_type": model_type, "hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 64, "intermediate_size": 512, "moe_intermediate_size": 256,
        "vocab_size": 600, "max_position_embeddings": 512, "rms_norm_eps": 1e-5,
    })
    .to_string()
}

fn published(name: &str) -> String {
    std::fs::read_to_string(format!("{}/shapes/{name}.json", env!("CARGO_MANIFEST_DIR"))).unwrap()
}

fn assert_computes(gguf: &Gguf, what: &str) {
    let options = LoadOptions { threads: 2, isa: None, context: 64, max_rows: 8, kv_type: KvType::default() };
    let mut runtime = moli_model::load(gguf, BackendKind::Cpu, &options)
        .unwrap_or_else(|error| panic!("{what} does not load: {error}"));
    let pages: Vec<u32> = (0..pages_of(4) as u32).collect();
    let batch = Batch {
        tokens: &[1, 2, 3, 4],
        positions: &[0, 1, 2, 3],
        sequences: &[0; 4],
        types: &[],
        tables: &[&pages],
        adapters: &[],
        recurrent: &[],
        outputs: &[3],
        states: &[],
    };
    let logits = runtime.forward(&batch).unwrap().logits;
    assert!(logits.iter().all(|logit| logit.is_finite()), "{what}");
    assert!(logits.iter().any(|&logit| logit != logits[0]), "{what}: all the same");
}

/// Parameters in millions, as the publishers' model cards and the headers of their safetensors have them; bytes of the Q4_K_M
/// files that llama.cpp makes of them.
#[test]
fn parameters_and_sizes_are_the_published_ones() {
    let published = [
        ("qwen2.5-0.5b", 494.03, 397.8e6),
        ("qwen2.5-1.5b", 1543.71, 986.0e6),
        ("qwen2.5-3b", 3085.94, 1929.9e6),
        ("qwen2.5-7b", 7615.62, 4683.1e6),
        ("llama3.2-1b", 1235.81, 807.7e6),
        ("llama3.2-3b", 3212.75, 2019.4e6),
        ("llama3-8b", 8030.26, 4920.7e6),
        ("qwen3-4b", 4022.47, 2497.3e6),
        ("qwen3-30b-a3b", 30532.12, 18_556.7e6),
        ("smollm2-135m", 134.52, 105.5e6),
    ];
    assert_eq!(published.map(|(name, ..)| name), SHAPES);
    for (name, millions, bytes) in published {
        let model = Synthetic::parse(&format!("{name}:q4_k_m")).unwrap();
        let parameters = model.parameters() as f64 / 1e6 / millions;
        assert!((0.99..1.01).contains(&parameters), "{name}: {parameters} of the parameters");
        let size = model.size_bytes() as f64 / bytes;
        assert!((0.99..1.01).contains(&size), "{name}: {size} of the bytes");
    }
}

#[test]
fn every_shape_loads_and_computes() {
    for name in SHAPES {
        let config = changed(&published(name), &json!({ "num_hidden_layers": 1, "vocab_size": 600 }));
        let model = model(&config, "q4_k_m").unwrap();
        assert_computes(&model.in_memory().unwrap(), name);
    }
}

#[test]
fn every_family_loads_and_computes() {
    let special = |model_type: &str| match model_type {
        "mixtral" => json!({ "num_local_experts": 4, "num_experts_per_tok": 2 }),
        "qwen3_moe" => {
            json!({ "num_experts": 4, "num_experts_per_tok": 2, "decoder_sparse_step": 2 })
        }
        "granitemoe" => json!({ "num_local_experts": 4, "num_experts_per_tok": 2 }),
        _ => json!({}),
    };
    let mut made = HashSet::new();
    for model_type in [
        "llama",
        "mistral",
        "mixtral",
        "qwen2",
        "qwen3",
        "qwen3_moe",
        "gemma",
        "gemma2",
        "gemma3_text",
        "phi3",
        "smollm3",
        "granite",
        "granitemoe",
        "olmo2",
        "internlm2",
        "minicpm",
        "exaone4",
    ] {
        let config = changed(&tiny(model_type), &special(model_type));
        let model = model(&config, "q4_k_m").unwrap_or_else(|error| panic!("{model_type}: {error}"));
        let gguf = model.in_memory().unwrap();
        assert_computes(&gguf, model_type);
        made.insert(gguf.metadata().architecture().unwrap().to_owned());
    }
    let error = model(&tiny("baichuan"), "q4_0").unwrap_err();
    let SyntheticError::UnknownArchitecture { architecture, known } = error else { panic!("{error}") };
    assert_eq!(architecture, "baichuan");
    assert_eq!(made, known.split(", ").map(str::to_owned).collect());
}

#[test]
fn memory_and_file_hold_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("config.json");
    // Neither rows nor matrices are whole units, and only some layers have experts.
    let odd = json!({
        "hidden_size": 96, "num_experts": 3, "num_experts_per_tok": 1, "moe_intermediate_size": 40,
        "decoder_sparse_step": 2,
    });
    std::fs::write(&config, changed(&tiny("qwen3_moe"), &odd)).unwrap();
    for asked in ["smollm2-135m:q4_k_m".to_owned(), format!("{}:q4_k_m", config.display())] {
        let model = Synthetic::parse(&asked).unwrap();
        assert_eq!(model.name(), asked);
        let file = folder.path().join("model.gguf");
        model.write(&file).unwrap();
        let (mapped, made) = (Gguf::open(&file, ReadMode::Map).unwrap(), model.in_memory().unwrap());
        assert_eq!(made.file_bytes(), model.size_bytes());
        assert_eq!(mapped.file_bytes(), model.size_bytes());
        assert_eq!(made.metadata(), mapped.metadata());
        assert!(made.tensors().eq(mapped.tensors()), "{asked}");
        // As a mapping is.
        let aligned = |gguf: &Gguf| gguf.tensors().map(|t| t.data.as_ptr().addr() % 4096).collect::<Vec<_>>();
        assert_eq!(aligned(&made), aligned(&mapped));
    }
}

#[test]
fn an_outline_is_the_model_but_for_its_weights() {
    let model = model(&tiny("qwen3"), "q4_k_m").unwrap();
    let (outline, whole) = (model.outline().unwrap(), model.in_memory().unwrap());
    assert!(outline.metadata().iter().eq(whole.metadata().iter()));
    assert_eq!(outline.file_bytes(), whole.file_bytes());
    for (planned, made) in outline.tensors().zip(whole.tensors()) {
        assert_eq!((&planned.name, planned.ttype, &planned.dims), (&made.name, made.ttype, &made.dims));
        assert_eq!(planned.data.len(), made.data.len());
        assert!(planned.data.as_slice().iter().all(|&byte| byte == 0), "{}", planned.name);
    }
}

#[test]
fn every_mixture_has_weights_of_the_right_size() {
    for mixture in Mixture::ALL {
        let name = mixture.name();
        let gguf = model(&tiny("llama"), name).unwrap().in_memory().unwrap();
        for tensor in gguf.tensors().filter(|tensor| tensor.dims.len() == 2) {
            let mut values = vec![0.0; tensor.elements()];
            moli_kernels::dequantize(tensor.ttype, &tensor.data, &mut values).unwrap();
            let square = values.iter().map(|value| value * value).sum::<f32>() / values.len() as f32;
            let deviation = square.sqrt() / DEVIATION;
            // Two bits a weight lose some of it.
            assert!((0.9..1.1).contains(&deviation), "{name} {}: {deviation}", tensor.name);
        }
    }
}

#[test]
fn every_token_is_a_byte_a_merge_or_control() {
    let gguf = model(&tiny("llama"), "q4_0").unwrap().in_memory().unwrap();
    let tokens: Vec<&str> = gguf.metadata().strings("tokenizer.ggml.tokens").unwrap().iter().collect();
    let merges = gguf.metadata().strings("tokenizer.ggml.merges").unwrap();
    assert_eq!(tokens.len(), 600);
    assert_eq!(tokens.len(), 256 + merges.len() + 3);
    let mut known: HashSet<String> = tokens[..256].iter().map(|&token| token.to_owned()).collect();
    for (token, merge) in tokens[256..].iter().zip(merges.iter()) {
        let (left, right) = merge.split_once(' ').unwrap();
        assert!(known.contains(left) && known.contains(right), "{merge}");
        assert_eq!(*token, format!("{left}{right}"));
        assert!(known.insert((*token).to_owned()), "{token} twice");
    }
    assert_eq!(gguf.metadata().u64("tokenizer.ggml.bos_token_id").unwrap(), 597);
}

#[test]
fn an_unknown_name_is_answered_with_the_known_ones() {
    let error = Synthetic::parse("gpt-5:q4_0").unwrap_err();
    assert!(matches!(&error, SyntheticError::UnknownShape { shape, .. } if shape == "gpt-5"));
    assert!(error.to_string().contains("llama3-8b"));
    let error = Synthetic::parse("llama3-8b:q9_0").unwrap_err();
    assert!(matches!(&error, SyntheticError::UnknownMixture { mixture, .. } if mixture == "q9_0"));
    let error = Synthetic::parse("llama3-8b").unwrap_err();
    assert!(matches!(&error, SyntheticError::NoMixture { asked, .. } if asked == "llama3-8b"));
    let error = Synthetic::parse("nowhere/config.json:q4_0").unwrap_err();
    assert!(matches!(error, SyntheticError::Format(FormatError::NotFound { .. })), "{error}");
}

#[test]
fn hostile_configurations_are_refused_by_name() {
    let of = |fields: Value| model(&changed(&tiny("llama"), &fields), "q4_k_m").unwrap_err();
    for (field, value, key) in [
        ("num_hidden_layers", 65_536u64, "llama.block_count"),
        ("hidden_size", 1 << 30, "llama.embedding_length"),
        ("intermediate_size", 1 << 21, "llama.feed_forward_length"),
        ("intermediate_size", 0, "llama.feed_forward_length"),
        ("num_attention_heads", 65_536, "llama.attention.head_count"),
        ("head_dim", 65_536, "llama.attention.key_length"),
        ("vocab_size", 258, "llama.vocab_size"),
        ("vocab_size", u64::from(u32::MAX), "llama.vocab_size"),
    ] {
        match of(json!({ field: value })) {
            SyntheticError::OutOfRange { key: named, value: said, .. } => {
                assert_eq!((&*named, said), (key, value))
            }
            error => panic!("{field} {value}: {error}"),
        }
    }
    let wrong = of(json!({ "hidden_size": -1 }));
    assert!(wrong.to_string().contains("\"hidden_size\" is \"-1\""), "{wrong}");
    let missing = of(json!({ "vocab_size": null }));
    assert!(missing.to_string().contains("\"vocab_size\" is missing"), "{missing}");
    let unknown = of(json!({ "model_type": "rwkv" }));
    assert!(matches!(
        unknown,
        SyntheticError::Format(FormatError::HuggingFace(HuggingFaceError::UnknownModelType { .. }))
    ));
}

#[test]
fn memory_that_nobody_has_is_refused() {
    // Of dimensions that are each allowed; the second is more than there are addresses for.
    for (layers, mixture) in [(1, "q4_0"), (1024, "f32")] {
        let large = json!({
            "model_type": "mixtral", "hidden_size": 1 << 20, "intermediate_size": 1 << 20, "num_hidden_layers": layers,
            "num_local_experts": 1024, "moe_intermediate_size": 1 << 20,
        });
        let model = model(&changed(&tiny("llama"), &large), mixture).unwrap();
        let error = model.in_memory().unwrap_err();
        assert!(
            matches!(error, SyntheticError::OutOfMemory { bytes } if bytes == model.size_bytes()),
            "{error}"
        );
    }
}
