//! What is wrong with an adapter, or does not fit the model, is refused by name.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::Path;

use moli_format::{Adapter, AdapterError, Bytes, FormatError, Gguf, GgufWriter, ReadMode, TensorType};
use serde_json::{Value, json};

fn floats(count: u64) -> Vec<u8> {
    (0..count).flat_map(|i| (i as f32 * 0.25 - 1.0).to_le_bytes()).collect()
}

fn gguf(writer: &GgufWriter) -> Gguf {
    let mut file = Vec::new();
    writer.write(&mut file).unwrap();
    Gguf::from_bytes(&Bytes::from_vec(file)).unwrap()
}

/// A model with two heads of queries and one of keys, 4 elements each, and some experts.
fn base(architecture: &str) -> Gguf {
    let mut writer = GgufWriter::new();
    writer.meta("general.architecture", architecture);
    writer.meta(format!("{architecture}.attention.head_count"), 2_u32);
    writer.meta(format!("{architecture}.attention.head_count_kv"), 1_u32);
    for (name, dims) in [
        ("token_embd.weight", vec![6_u64, 10]),
        ("output_norm.weight", vec![6]),
        ("blk.0.attn_q.weight", vec![6, 8]),
        ("blk.0.attn_k.weight", vec![6, 4]),
        ("blk.0.ffn_up.weight", vec![6, 12]),
        ("blk.1.ffn_up_exps.weight", vec![6, 12, 3]),
        ("blk.1.attn_kv_b.weight", vec![6, 12]),
    ] {
        let data = floats(dims.iter().product());
        writer.tensor(name, TensorType::F32, dims, data);
    }
    gguf(&writer)
}

/// A good adapter as a file, with what `change` does to it.
fn file(change: impl FnOnce(&mut GgufWriter)) -> GgufWriter {
    let mut writer = GgufWriter::new();
    writer.meta("general.type", "adapter").meta("general.architecture", "llama");
    writer.meta("adapter.type", "lora").meta("adapter.lora.alpha", 4.0_f32);
    change(&mut writer);
    writer
}

fn add(writer: &mut GgufWriter, name: &str, dims: &[u64]) {
    writer.tensor(name, TensorType::F32, dims, floats(dims.iter().product()));
}

/// Both halves of a product.
fn pair(writer: &mut GgufWriter, name: &str, [cols, rank, rows]: [u64; 3]) {
    add(writer, &format!("{name}.lora_a"), &[cols, rank]);
    add(writer, &format!("{name}.lora_b"), &[rank, rows]);
}

fn refusal(writer: &GgufWriter) -> AdapterError {
    match Adapter::from_gguf(&gguf(writer), &base("llama")).unwrap_err() {
        FormatError::Adapter(error) => error,
        other => unreachable!("{other}"),
    }
}

macro_rules! refuses {
    ($error:expr, $pattern:pat $(if $guard:expr)?) => {
        let error = $error;
        assert!(matches!(&error, $pattern $(if $guard)?), "{error}");
    };
}

#[test]
fn a_good_file_is_read() {
    let adapter = file(|w| {
        pair(w, "blk.0.attn_q.weight", [6, 2, 8]);
        pair(w, "output.weight", [6, 3, 10]);
        add(w, "blk.1.ffn_up_exps.weight.lora_a", &[6, 2, 3]);
        add(w, "blk.1.ffn_up_exps.weight.lora_b", &[2, 12, 3]);
    });
    let adapter = Adapter::from_gguf(&gguf(&adapter), &base("llama")).unwrap();
    let found: Vec<_> = adapter.products().map(|p| (p.name.as_str(), p.rank(), p.factor)).collect();
    let experts = [0, 1, 2].map(|expert| format!("blk.1.ffn_up.{expert}.weight"));
    assert_eq!(
        found,
        [
            ("blk.0.attn_q.weight", 2, 2.0),
            (experts[0].as_str(), 2, 2.0),
            (experts[1].as_str(), 2, 2.0),
            (experts[2].as_str(), 2, 2.0),
            ("output.weight", 3, 4.0 / 3.0),
        ]
    );
    assert_eq!(adapter.rank(), 3);
    // The second expert's part is the second of three.
    let second = adapter.product("blk.1.ffn_up.1.weight").unwrap();
    assert_eq!(&second.a.data[..], &floats(36)[12 * 4..24 * 4]);
    // An alpha of 0 is none.
    let mut plain = GgufWriter::new();
    plain.meta("general.type", "adapter").meta("general.architecture", "llama");
    plain.meta("adapter.type", "lora").meta("adapter.lora.alpha", 0.0_f32);
    pair(&mut plain, "blk.0.attn_q.weight", [6, 2, 8]);
    let adapter = Adapter::from_gguf(&gguf(&plain), &base("llama")).unwrap();
    assert_eq!(adapter.products().next().unwrap().factor, 1.0);
}

#[test]
fn what_is_no_lora_adapter_in_gguf() {
    let model = base("llama");
    let error = Adapter::from_gguf(&model, &model).unwrap_err();
    refuses!(error, FormatError::Adapter(AdapterError::NotAnAdapter { found }) if found == "model");
    let with = |key: &str, value: moli_format::Value| {
        let mut writer = GgufWriter::new();
        for (own, default) in [
            ("general.type", moli_format::Value::from("adapter")),
            ("general.architecture", "llama".into()),
            ("adapter.type", "lora".into()),
            ("adapter.lora.alpha", 4.0_f32.into()),
        ] {
            writer.meta(own, if own == key { value.clone() } else { default });
        }
        if key == "adapter.alora.invocation_tokens" {
            writer.meta(key, value);
        }
        pair(&mut writer, "blk.0.attn_q.weight", [6, 2, 8]);
        refusal(&writer)
    };
    refuses!(with("adapter.type", "control_vector".into()), AdapterError::Kind { field: "adapter.type", .. });
    refuses!(
        with("general.architecture", "qwen2".into()),
        AdapterError::Architecture { adapter, base } if adapter == "qwen2" && base == "llama"
    );
    for alpha in [f32::NAN, f32::INFINITY] {
        refuses!(with("adapter.lora.alpha", alpha.into()), AdapterError::WrongField { field, .. } if field == "adapter.lora.alpha");
    }
    refuses!(
        with("adapter.alora.invocation_tokens", 7_u32.into()),
        AdapterError::Unsupported { field, .. } if field == "adapter.alora.invocation_tokens"
    );
    refuses!(refusal(&file(|_| ())), AdapterError::Empty);
}

#[test]
fn tensors_that_are_wrong_or_for_another_model() {
    refuses!(
        refusal(&file(|w| pair(w, "blk.7.attn_q.weight", [6, 2, 8]))),
        AdapterError::NoTensor { name, .. } if name == "blk.7.attn_q.weight"
    );
    refuses!(
        refusal(&file(|w| pair(w, "blk.1.ffn_up.3.weight", [6, 2, 12]))),
        AdapterError::NoTensor { name, .. } if name == "blk.1.ffn_up.3.weight"
    );
    for name in ["token_embd.weight", "output_norm.weight", "blk.1.attn_kv_b.weight"] {
        let rows = if name == "token_embd.weight" { 10 } else { 12 };
        refuses!(
            refusal(&file(|w| pair(w, name, [6, 2, rows]))),
            AdapterError::NotAdaptable { name: found, .. } if found == name
        );
    }
    for (shape, tensor) in [([5, 2, 8], "a"), ([6, 2, 7], "b")] {
        refuses!(
            refusal(&file(|w| pair(w, "blk.0.attn_q.weight", shape))),
            AdapterError::Shape { tensor: found, .. } if found.ends_with(tensor)
        );
    }
    refuses!(
        refusal(&file(|w| {
            add(w, "blk.0.attn_q.weight.lora_a", &[6, 2]);
            add(w, "blk.0.attn_q.weight.lora_b", &[3, 8]);
        })),
        AdapterError::Rank { expected: 2, actual: 3, .. }
    );
    for (there, missing) in [("lora_a", "lora_b"), ("lora_b", "lora_a")] {
        refuses!(
            refusal(&file(|w| add(w, &format!("blk.0.attn_q.weight.{there}"), &[6, 2]))),
            AdapterError::Unpaired { missing: found, .. } if found.ends_with(missing)
        );
    }
    refuses!(
        refusal(&file(|w| add(w, "blk.0.attn_q.weight", &[6, 8]))),
        AdapterError::UnknownTensor { tensor } if tensor == "blk.0.attn_q.weight"
    );
    // Experts: another number of them in the two halves.
    refuses!(
        refusal(&file(|w| {
            add(w, "blk.1.ffn_up_exps.weight.lora_a", &[6, 2, 3]);
            add(w, "blk.1.ffn_up_exps.weight.lora_b", &[2, 12, 2]);
        })),
        AdapterError::Shape { expected, .. } if *expected == [2, 12, 3]
    );
    // More of them than the model has.
    refuses!(
        refusal(&file(|w| {
            add(w, "blk.1.ffn_up_exps.weight.lora_a", &[6, 2, 4]);
            add(w, "blk.1.ffn_up_exps.weight.lora_b", &[2, 12, 4]);
        })),
        AdapterError::NoTensor { name, .. } if name == "blk.1.ffn_up.3.weight"
    );
    refuses!(
        refusal(&file(|w| {
            w.tensor("blk.0.attn_q.weight.lora_a", TensorType::Q8_0, [32, 2], vec![0; 68]);
            add(w, "blk.0.attn_q.weight.lora_b", &[2, 8]);
        })),
        AdapterError::Shape { .. }
    );
}

#[test]
fn weights_that_are_no_finite_numbers() {
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for half in [0, 1] {
            refuses!(
                refusal(&file(|w| {
                    for (index, (end, dims)) in
                        [("lora_a", [6, 2]), ("lora_b", [2, 8])].into_iter().enumerate()
                    {
                        let mut data = floats(dims.iter().product());
                        if index == half {
                            data[12..16].copy_from_slice(&bad.to_le_bytes());
                        }
                        w.tensor(format!("blk.0.attn_q.weight.{end}"), TensorType::F32, dims, data);
                    }
                })),
                AdapterError::NotFinite { index: 3, .. }
            );
        }
    }
}

/// A folder of peft's for the queries of the first layer, its configuration with what `change` does to it.
fn folder(at: &Path, change: impl FnOnce(&mut Value), tensors: &[(&str, [u64; 2])]) {
    let mut config = json!({
        "peft_type": "LORA", "r": 2, "lora_alpha": 6, "bias": "none", "target_modules": ["q_proj"],
        "task_type": "CAUSAL_LM", "lora_dropout": 0.1, "init_lora_weights": true, "modules_to_save": null,
        "use_dora": false, "loftq_config": {}, "layers_to_transform": [0], "base_model_name_or_path": "some/model",
    });
    change(&mut config);
    fs::write(at.join("adapter_config.json"), config.to_string()).unwrap();
    let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
    for (name, shape) in tensors {
        let start = data.len();
        data.extend(floats(shape.iter().product()));
        header.insert(
            (*name).to_owned(),
            json!({"dtype": "F32", "shape": shape, "data_offsets": [start, data.len()]}),
        );
    }
    let header = Value::Object(header).to_string();
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.as_bytes());
    file.extend(data);
    fs::write(at.join("adapter_model.safetensors"), file).unwrap();
}

const A: &str = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight";
const B: &str = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight";
const GOOD: &[(&str, [u64; 2])] = &[(A, [2, 6]), (B, [8, 2])];

fn opened(change: impl FnOnce(&mut Value), tensors: &[(&str, [u64; 2])]) -> Result<Adapter, AdapterError> {
    let at = tempfile::tempdir().unwrap();
    folder(at.path(), change, tensors);
    Adapter::open(at.path(), &base("llama"), ReadMode::Read).map_err(|error| match error {
        FormatError::Adapter(error) => error,
        other => unreachable!("{other}"),
    })
}

#[test]
fn a_good_folder_is_read_whatever_of_it_is_named() {
    let at = tempfile::tempdir().unwrap();
    folder(at.path(), |_| (), GOOD);
    for name in ["", "adapter_config.json", "adapter_model.safetensors"] {
        let adapter = Adapter::open(&at.path().join(name), &base("llama"), ReadMode::Map).unwrap();
        let product = adapter.products().next().unwrap();
        assert_eq!((product.name.as_str(), product.rank(), product.factor), ("blk.0.attn_q.weight", 2, 3.0));
    }
    fs::remove_file(at.path().join("adapter_model.safetensors")).unwrap();
    let error = Adapter::open(at.path(), &base("llama"), ReadMode::Map).unwrap_err();
    refuses!(error, FormatError::Adapter(AdapterError::NoWeights { .. }));
}

#[test]
fn factors_of_peft() {
    let factor = |change: fn(&mut Value)| opened(change, GOOD).unwrap().products().next().unwrap().factor;
    assert_eq!(factor(|c| c["use_rslora"] = json!(true)), (6.0 / 2.0_f64.sqrt()) as f32);
    assert_eq!(factor(|c| c["alpha_pattern"] = json!({"q_proj": 1})), 0.5);
    assert_eq!(factor(|c| c["alpha_pattern"] = json!({"_proj": 1, "self_attn.q_proj": 8})), 4.0);
    assert_eq!(factor(|c| c["alpha_pattern"] = json!({"^model.layers.0.self_attn.q_proj": 5})), 2.5);
    assert_eq!(factor(|c| c["alpha_pattern"] = json!({"^q_proj": 5})), 3.0);
    assert_eq!(
        factor(|c| {
            c["r"] = json!(7);
            c["rank_pattern"] = json!({"q_proj": 2});
        }),
        3.0
    );
}

#[test]
fn what_peft_has_and_is_not_computed() {
    for (field, value) in [
        ("use_dora", json!(true)),
        ("modules_to_save", json!(["lm_head"])),
        ("bias", json!("lora_only")),
        ("lora_bias", json!(true)),
        ("fan_in_fan_out", json!(true)),
        ("init_lora_weights", json!("pissa_niter_16")),
        ("target_parameters", json!(["mlp.experts.gate_up_proj"])),
        ("trainable_token_indices", json!([1, 2])),
        ("layer_replication", json!([[0, 1], [0, 1]])),
        ("use_qalora", json!(true)),
        ("alora_invocation_tokens", json!([5])),
        ("rank_pattern", json!({"layers.[0-9].q_proj": 2})),
        ("something_new", json!({"that": "matters"})),
    ] {
        let refused = opened(|config| config[field] = value.clone(), GOOD).unwrap_err();
        refuses!(refused, AdapterError::Unsupported { field: found, .. } if found == field);
    }
    for kind in [json!("IA3"), json!("LOHA"), Value::Null] {
        let refused = opened(|config| config["peft_type"] = kind, GOOD).unwrap_err();
        refuses!(refused, AdapterError::Kind { field: "peft_type", .. });
    }
    for (field, value) in [
        ("r", json!(0)),
        ("r", json!(1.5)),
        ("r", Value::Null),
        ("lora_alpha", json!("much")),
        ("use_rslora", json!(1)),
        ("rank_pattern", json!([])),
        ("rank_pattern", json!({"q_proj": -1})),
        ("alpha_pattern", json!({"q_proj": "x"})),
    ] {
        let refused = opened(|config| config[field] = value.clone(), GOOD).unwrap_err();
        refuses!(refused, AdapterError::WrongField { field: found, .. } if found == field);
    }
}

#[test]
fn tensors_of_peft_that_are_wrong_or_for_another_model() {
    for (tensors, rank) in [([(A, [3, 6]), (B, [8, 3])], 3), ([(A, [2, 6]), (B, [8, 4])], 4)] {
        let refused = opened(|_| (), &tensors).unwrap_err();
        refuses!(refused, AdapterError::Rank { expected: 2, actual, .. } if *actual == rank);
    }
    for tensors in [[(A, [2, 5]), (B, [8, 2])], [(A, [2, 6]), (B, [6, 2])]] {
        refuses!(opened(|_| (), &tensors).unwrap_err(), AdapterError::Shape { .. });
    }
    refuses!(opened(|_| (), &GOOD[..1]).unwrap_err(), AdapterError::Unpaired { missing, .. } if missing == B);
    refuses!(opened(|_| (), &GOOD[1..]).unwrap_err(), AdapterError::Unpaired { missing, .. } if missing == A);
    refuses!(opened(|_| (), &[]).unwrap_err(), AdapterError::Empty);
    let module = |module: &str, [rows, cols]: [u64; 2]| {
        let name = |half| format!("base_model.model.{module}.lora_{half}.weight");
        opened(|_| (), &[(&name("A"), [2, cols]), (&name("B"), [rows, 2])]).unwrap_err()
    };
    refuses!(
        module("model.layers.9.self_attn.q_proj", [8, 6]),
        AdapterError::NoTensor { name, .. } if name == "blk.9.attn_q.weight"
    );
    for unknown in
        ["model.layers.0.self_attn.query", "transformer.h.0.attn.c_attn", "model.layers.x.mlp.up_proj"]
    {
        refuses!(module(unknown, [8, 6]), AdapterError::UnknownTensor { .. });
    }
    for extra in ["base_model.model.lm_head.weight", "model.layers.0.self_attn.q_proj.lora_A.weight"] {
        let refused = opened(|_| (), &[GOOD[0], GOOD[1], (extra, [2, 6])]).unwrap_err();
        refuses!(refused, AdapterError::UnknownTensor { tensor } if tensor == extra);
    }
    let magnitude = "base_model.model.model.layers.0.self_attn.q_proj.lora_magnitude_vector";
    let refused = opened(|_| (), &[GOOD[0], GOOD[1], (magnitude, [1, 8])]).unwrap_err();
    refuses!(refused, AdapterError::UnknownTensor { .. });
}

#[test]
fn every_truncation_and_every_byte_of_an_adapter_is_read_or_refused() {
    let mut good = Vec::new();
    file(|w| pair(w, "blk.0.attn_q.weight", [6, 2, 8])).write(&mut good).unwrap();
    let base = base("llama");
    let open = |bytes: Vec<u8>| {
        Gguf::from_bytes(&Bytes::from_vec(bytes)).and_then(|gguf| Adapter::from_gguf(&gguf, &base))
    };
    assert!(open(good.clone()).is_ok());
    for length in 0..good.len() - 64 {
        assert!(open(good[..length].to_vec()).is_err(), "{length}");
    }
    for at in 0..good.len() {
        for flip in [0x01, 0x80, 0xff] {
            let mut bad = good.clone();
            bad[at] ^= flip;
            // Whatever comes of it, it is no panic, and its numbers are finite.
            if let Ok(adapter) = open(bad) {
                assert!(adapter.products().all(|product| product.factor.is_finite()), "{at}");
            }
        }
    }
}
