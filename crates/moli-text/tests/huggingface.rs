//! The tokenizer of a Hugging Face folder, as the metadata has it.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use common::byte_char;
use moli_format::{Bytes, Gguf, GgufWriter, Value};
use moli_text::{EncodeOptions, TextError, Tokenizer, tokenizer_bytes};
use serde_json::{Map, json};

/// 256 bytes, `he`, `<s>`, `</s>` and `<turn>`.
fn tokenizer_json() -> String {
    let mut vocab = Map::new();
    for byte in 0..=255_u8 {
        vocab.insert(byte_char(byte).to_string(), json!(byte));
    }
    vocab.insert("he".to_owned(), json!(256));
    let added = ["<s>", "</s>", "<turn>"].into_iter().enumerate().map(|(index, text)| {
        json!({ "id": 257 + index, "content": text, "special": true, "lstrip": false, "rstrip": false,
                "single_word": false, "normalized": false })
    });
    json!({
        "added_tokens": added.collect::<Vec<_>>(),
        "normalizer": null,
        "pre_tokenizer": { "type": "ByteLevel", "add_prefix_space": false, "use_regex": true },
        "post_processor": null,
        "decoder": { "type": "ByteLevel" },
        "model": { "type": "BPE", "vocab": vocab, "merges": [["h", "e"]] },
    })
    .to_string()
}

fn gguf(entries: &[(&str, Value)]) -> Gguf {
    let mut writer = GgufWriter::new();
    writer.meta("general.architecture", "llama");
    writer.meta("tokenizer.huggingface.folder", "some/folder");
    for (key, value) in entries {
        writer.meta(*key, value.clone());
    }
    let mut bytes = Vec::new();
    writer.write(&mut bytes).unwrap();
    Gguf::from_bytes(&Bytes::from_vec(bytes)).unwrap()
}

#[test]
fn it_is_the_tokenizer_of_the_file() {
    let json = tokenizer_json();
    let config = r#"{"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": true}"#;
    let gguf = gguf(&[
        ("tokenizer.huggingface.json", json.as_str().into()),
        ("tokenizer.huggingface.config", config.into()),
        // What the generation's configuration says: another token ends answers too.
        ("tokenizer.ggml.eos_token_id", 259_u32.into()),
        ("moli.eos_token_ids", vec![259_u32, 258].into()),
    ]);
    let tokenizer = Tokenizer::from_gguf(gguf.metadata()).unwrap();
    let direct = Tokenizer::from_json(json.as_bytes(), Some(config.as_bytes())).unwrap();
    let options = EncodeOptions { add_special: true, parse_special: true };
    let ids = tokenizer.encode("he<turn>x", options).unwrap();
    assert_eq!(ids, [257, 256, 259, u32::from(b'x')]);
    assert_eq!(ids, direct.encode("he<turn>x", options).unwrap());
    assert_eq!((tokenizer.bos(), tokenizer.eos()), (Some(257), Some(258)));
    assert_eq!(tokenizer.end_of_generation_ids().collect::<Vec<_>>(), [258, 259]);
    assert!(!direct.is_end_of_generation(259));
}

#[test]
fn ids_stand_in_for_names() {
    let entries = [
        ("tokenizer.huggingface.json", tokenizer_json().as_str().into()),
        ("tokenizer.huggingface.config", r#"{"padding_side": "left"}"#.into()),
        ("tokenizer.ggml.bos_token_id", 257_u32.into()),
        ("tokenizer.ggml.eos_token_id", 259_u32.into()),
    ];
    let tokenizer = Tokenizer::from_gguf(gguf(&entries).metadata()).unwrap();
    assert_eq!((tokenizer.bos(), tokenizer.eos()), (Some(257), Some(259)));
}

#[test]
fn a_folder_without_a_tokenizer() {
    let error = Tokenizer::from_gguf(gguf(&[]).metadata()).unwrap_err();
    assert!(
        matches!(&error, TextError::NoTokenizer { path } if path.ends_with("some/folder/tokenizer.json"))
    );
    assert!(error.to_string().contains("tokenizer.json"), "{error}");
    assert!(matches!(tokenizer_bytes(gguf(&[]).metadata()), Err(TextError::NoTokenizer { .. })));
}

#[test]
fn ids_outside_the_vocabulary() {
    let json = tokenizer_json();
    for (key, value) in [
        ("tokenizer.ggml.bos_token_id", Value::from(260_u32)),
        ("tokenizer.ggml.eos_token_id", 260_u32.into()),
        ("moli.eos_token_ids", vec![258_u32, 260].into()),
    ] {
        let entries = [
            ("tokenizer.huggingface.json", json.as_str().into()),
            ("tokenizer.huggingface.config", "{}".into()),
            (key, value),
        ];
        let error = Tokenizer::from_gguf(gguf(&entries).metadata()).unwrap_err();
        assert!(
            matches!(&error, TextError::SpecialOutOfRange { key: found, id: 260, vocab: 260 } if *found == key),
            "{error:?}"
        );
    }
}

#[test]
fn malformed_files() {
    for json in
        ["", "{", "[]", "{}", r#"{"model": 7}"#, r#"{"model": {"vocab": 7}}"#, r#"{"model": {"merges": {}}}"#]
    {
        let gguf = gguf(&[("tokenizer.huggingface.json", json.into())]);
        assert!(Tokenizer::from_gguf(gguf.metadata()).is_err(), "{json}");
        assert!(matches!(tokenizer_bytes(gguf.metadata()), Err(TextError::Json { .. })), "{json}");
    }
}
