//! Commands on a Hugging Face folder.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use serde_json::{Map, Value, json};
use support::World;

const HIDDEN: usize = 32;
const VOCAB: usize = 259;

/// Tensors of a small Llama as one safetensors file: a header, then the elements.
fn weights() -> Vec<u8> {
    let layer = |name: &str| format!("model.layers.0.{name}.weight");
    let tensors = [
        ("model.embed_tokens.weight".to_owned(), vec![VOCAB, HIDDEN]),
        ("model.norm.weight".to_owned(), vec![HIDDEN]),
        (layer("input_layernorm"), vec![HIDDEN]),
        (layer("post_attention_layernorm"), vec![HIDDEN]),
        (layer("self_attn.q_proj"), vec![HIDDEN, HIDDEN]),
        (layer("self_attn.k_proj"), vec![HIDDEN, HIDDEN]),
        (layer("self_attn.v_proj"), vec![HIDDEN, HIDDEN]),
        (layer("self_attn.o_proj"), vec![HIDDEN, HIDDEN]),
        (layer("mlp.gate_proj"), vec![64, HIDDEN]),
        (layer("mlp.up_proj"), vec![64, HIDDEN]),
        (layer("mlp.down_proj"), vec![HIDDEN, 64]),
    ];
    let (mut header, mut data) = (Map::new(), Vec::new());
    for (name, shape) in tensors {
        let start = data.len();
        for element in 0..shape.iter().product::<usize>() {
            let value = ((element * 7919 + start) % 101) as f32 / 101.0 - 0.5;
            data.extend(value.to_le_bytes());
        }
        header.insert(name, json!({ "dtype": "F32", "shape": shape, "data_offsets": [start, data.len()] }));
    }
    let header = Value::Object(header).to_string();
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.into_bytes());
    file.extend(data);
    file
}

/// GPT-2's character for a byte.
fn byte_char(byte: u8) -> char {
    match byte {
        b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF => char::from(byte),
        _ => {
            let before = (0..byte).filter(|byte| !matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF));
            char::from_u32(256 + before.count() as u32).unwrap()
        }
    }
}

fn tokenizer() -> String {
    let vocab: Map<String, Value> =
        (0..=255_u8).map(|byte| (byte_char(byte).to_string(), json!(byte))).collect();
    let added = ["<s>", "</s>", "<turn>"].into_iter().enumerate();
    let added: Vec<Value> =
        added.map(|(index, text)| json!({ "id": 256 + index, "content": text, "special": true })).collect();
    json!({
        "added_tokens": added,
        "pre_tokenizer": { "type": "ByteLevel", "add_prefix_space": false },
        "model": { "type": "BPE", "vocab": vocab, "merges": [] },
    })
    .to_string()
}

/// A whole folder, and its path as an argument.
fn folder(world: &World) -> String {
    let config = json!({
        "model_type": "llama", "hidden_size": HIDDEN, "intermediate_size": 64, "num_hidden_layers": 1,
        "num_attention_heads": 2, "vocab_size": VOCAB, "max_position_embeddings": 256, "rms_norm_eps": 1e-5,
        "tie_word_embeddings": true, "eos_token_id": 257,
    });
    world.file("model/config.json", config.to_string());
    world.file("model/model.safetensors", weights());
    world.file("model/tokenizer.json", tokenizer());
    world.file(
        "model/tokenizer_config.json",
        r#"{"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": true}"#,
    );
    world.file("model/generation_config.json", r#"{"eos_token_id": [257, 258]}"#);
    world.file("model/chat_template.jinja", "{% for m in messages %}{{ m.content }}<turn>{% endfor %}");
    world.path("model").display().to_string()
}

#[test]
fn a_folder_is_a_model() {
    let world = World::new();
    let model = &folder(&world);
    let report = world.run(&["inspect", model, "--json"]).json();
    assert_eq!((&report["supported"], &report["reason"]), (&Value::Bool(true), &Value::Null));
    assert_eq!(report["container"], "Hugging Face folder");
    assert_eq!((&report["architecture"], &report["name"]), (&Value::from("llama"), &Value::from("model")));
    assert_eq!(report["tokenizer"]["tokens"], VOCAB);
    assert_eq!(
        (&report["chat_template"], &report["chat_template_error"]),
        (&Value::Bool(true), &Value::Null)
    );
    assert!(report["memory"]["total"].as_u64().unwrap() > report["size"].as_u64().unwrap());
    let text = world.run(&["inspect", model]).ok();
    assert!(text.contains("Hugging Face folder") && text.contains("runs here      yes"), "{text}");

    let ids = world.run(&["tokenize", model, "--special", "-p", "hi<turn>", "--json"]).json();
    assert_eq!(ids["ids"], json!([256, b'h', b'i', 258]));
    for more in [&["--raw"][..], &[]] {
        let arguments = [&["run", model, "-p", "hi", "-n", "3", "--temp", "0", "--json"], more].concat();
        let answer = world.run(&arguments).json();
        assert!(answer.is_object(), "{answer}");
    }
}

#[test]
fn a_folder_without_a_tokenizer_says_so() {
    let world = World::new();
    let model = &folder(&world);
    std::fs::remove_file(world.path("model/tokenizer.json")).unwrap();
    let report = world.run(&["inspect", model, "--json"]).json();
    assert_eq!(report["supported"], false);
    assert!(report["reason"].as_str().unwrap().contains("tokenizer.json"), "{report}");
}

/// A folder whose weights are packed: what they are, what they become, and where that is counted.
#[test]
fn inspect_says_what_packed_weights_become() {
    let world = World::new();
    let fixtures = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/packed");
    let tokenizer = json!({"model": {"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0.0], ["a", -1.0], ["b", -1.0]]}});
    for (name, said) in [
        ("awq", "AWQ, 4 bits, a scale for 32 inputs; matrices: 7 as Q5_0 (exact)"),
        (
            "gptq_order",
            "GPTQ, 4 bits, a scale for 32 inputs; matrices: 7 as F16 (rounded, as groups are mixed",
        ),
    ] {
        for file in ["config.json", "model.safetensors"] {
            world.file(&format!("{name}/{file}"), std::fs::read(fixtures.join(name).join(file)).unwrap());
        }
        world.file(&format!("{name}/tokenizer.json"), tokenizer.to_string());
        let path = world.path(name);
        let text = world.run(&["inspect", path.to_str().unwrap()]).ok();
        for part in [said, "unpacked weights", "runs here      yes"] {
            assert!(text.contains(part), "{part}: {text}");
        }
        let json = world.run(&["inspect", path.to_str().unwrap(), "--json"]).json();
        assert!(json["unpacked"].as_str().unwrap().starts_with(said), "{json}");
    }
}
