//! WordPiece against the `tokenizers` crate, and as a GGUF has it.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::path::PathBuf;

use moli_format::{Bytes, Gguf, GgufWriter};
use moli_text::{EncodeOptions, TextError, Tokenizer, gguf_tokenizer, huggingface_tokenizer};
use serde_json::{Value, json};

const SPECIAL: [&str; 5] = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"];
const WITH_SPECIAL: EncodeOptions = EncodeOptions { add_special: true, parse_special: true };

/// The texts of the recorded embeddings: of many scripts, with marks, control characters and emoji.
fn texts() -> Vec<String> {
    let all: Vec<Value> = serde_json::from_str(include_str!("../../../tests/fixtures/minilm.json")).unwrap();
    let mut texts: Vec<String> = all.iter().map(|case| case["text"].as_str().unwrap().to_owned()).collect();
    let more = [
        "",
        " ",
        "\u{85}\u{a0}\u{2028}x",
        "İI",
        "the\u{b}second\u{85}text\u{1c}and\u{c}more\u{2028}of\u{3000}it",
        "ǅ ΑΣ",
        "[CLS] in [SEP] text [MASK]",
        "\u{e000}\u{301}",
        "¿¡«»—…",
        "a\u{300}b",
    ];
    texts.extend(more.map(String::from));
    texts
}

/// The same and random ones: those that are committed for all families, or those of a folder that is named.
fn more_texts() -> Vec<String> {
    let named = std::env::var_os("MOLI_TOKENIZER_FIXTURES").map(PathBuf::from);
    let committed = || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tokenizers");
    let file = named.unwrap_or_else(committed).join("texts.json");
    let random: Vec<String> = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
    texts().into_iter().chain(random).collect()
}

/// Every second character that the texts have after cleaning and before, alone and behind others, and some words.
fn tokens() -> Vec<String> {
    let mut made = BTreeSet::new();
    for text in texts() {
        for c in text.chars().chain(text.to_lowercase().chars()) {
            if !c.is_whitespace() && u32::from(c) % 5 != 3 {
                made.extend([c.to_string(), format!("##{c}")]);
            }
        }
        for word in text.split_whitespace().filter(|word| word.is_ascii() && word.len() > 3) {
            made.extend([word.to_lowercase(), word[..3].to_owned(), format!("##{}", &word[1..3])]);
        }
    }
    made.retain(|token| !SPECIAL.contains(&token.as_str()) && token != "##");
    SPECIAL.iter().map(|token| (*token).to_owned()).chain(made).collect()
}

fn file(lowercase: bool, strip_accents: Option<bool>, longest: usize) -> String {
    let tokens = tokens();
    let vocab: serde_json::Map<String, Value> =
        tokens.iter().enumerate().map(|(id, token)| (token.clone(), json!(id))).collect();
    let added = |(id, token): (usize, &&str)| {
        json!({"id": id, "content": token, "special": true, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false})
    };
    json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": SPECIAL.iter().enumerate().map(added).collect::<Vec<_>>(),
        "normalizer": {"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true,
            "strip_accents": strip_accents, "lowercase": lowercase},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "[CLS]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
                {"SpecialToken": {"id": "[SEP]", "type_id": 0}}],
            "pair": [{"SpecialToken": {"id": "[CLS]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
                {"SpecialToken": {"id": "[SEP]", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}},
                {"SpecialToken": {"id": "[SEP]", "type_id": 1}}],
            "special_tokens": {"[CLS]": {"id": "[CLS]", "ids": [2], "tokens": ["[CLS]"]},
                "[SEP]": {"id": "[SEP]", "ids": [3], "tokens": ["[SEP]"]}}},
        "decoder": null,
        "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
            "max_input_chars_per_word": longest, "vocab": vocab},
    })
    .to_string()
}

#[test]
fn ids_are_those_of_the_tokenizers_crate() {
    for (lowercase, strip_accents, longest) in
        [(true, None, 100), (false, None, 100), (true, Some(false), 100), (false, Some(true), 7)]
    {
        let json = file(lowercase, strip_accents, longest);
        let oracle = tokenizers::Tokenizer::from_bytes(json.as_bytes()).unwrap();
        let own = Tokenizer::from_json(json.as_bytes(), None).unwrap();
        let mut unknown = 0;
        for text in more_texts() {
            let expected = oracle.encode(text.as_str(), true).unwrap();
            let found = own.encode(&text, WITH_SPECIAL).unwrap();
            assert_eq!(found, expected.get_ids(), "{text:?}, lowercase {lowercase}");
            unknown += found.iter().filter(|&&id| id == 1).count();
            let pair = oracle.encode((text.as_str(), "the second, text"), true).unwrap();
            if !text.contains('[') {
                let (found, second) = own.encode_pair(&text, "the second, text").unwrap();
                assert_eq!(found, pair.get_ids(), "{text:?}");
                let kinds: Vec<u32> = (0..found.len()).map(|at| u32::from(at >= second)).collect();
                assert_eq!(kinds, pair.get_type_ids(), "{text:?}");
            }
        }
        assert!(unknown > 100, "{unknown}");
    }
}

#[test]
fn a_gguf_gives_the_same_ids() {
    let json = file(true, None, 100);
    let own = Tokenizer::from_json(json.as_bytes(), None).unwrap();
    // No capital letters: with them, a vocabulary is taken for one of text that keeps its case.
    let tokens = tokens();
    let has_capitals = |token: &String| token.chars().any(char::is_uppercase);
    let stored: Vec<String> = tokens
        .iter()
        .enumerate()
        .map(|(id, token)| match token.strip_prefix("##") {
            _ if id < SPECIAL.len() => token.clone(),
            _ if has_capitals(token) => format!("[unused{id}]"),
            Some(rest) => rest.to_owned(),
            None => format!("▁{token}"),
        })
        .collect();
    let mut file = Vec::new();
    GgufWriter::new()
        .meta("general.architecture", "bert")
        .meta("tokenizer.ggml.model", "bert")
        .meta("tokenizer.ggml.tokens", stored.clone())
        .meta(
            "tokenizer.ggml.token_type",
            (0..stored.len()).map(|id| if id < 5 { 3 } else { 1 }).collect::<Vec<i32>>(),
        )
        .write(&mut file)
        .unwrap();
    let gguf = Gguf::from_bytes(&Bytes::from_vec(file)).unwrap();
    let converted = Tokenizer::from_gguf(gguf.metadata()).unwrap();
    for text in more_texts() {
        let ids = converted.encode(&text, WITH_SPECIAL).unwrap();
        assert_eq!(ids, own.encode(&text, WITH_SPECIAL).unwrap(), "{text:?}");
    }
    let (ids, second) = converted.encode_pair("a", "b").unwrap();
    assert_eq!((ids.len(), second), (5, 3));
}

/// As GGUF and as a `tokenizer.json` again: the same ids, of two texts too, whatever is done with a text before.
#[test]
fn there_and_back() {
    for (lowercase, strip_accents, longest, notes) in
        [(true, None, 100, 0), (false, None, 100, 0), (true, Some(false), 100, 0), (false, Some(true), 7, 1)]
    {
        let json = file(lowercase, strip_accents, longest);
        let own = Tokenizer::from_json(json.as_bytes(), None).unwrap();
        let gguf = |entries: &mut dyn Iterator<Item = (String, moli_format::Value)>| {
            let mut file = Vec::new();
            let mut writer = GgufWriter::new();
            writer.meta("general.architecture", "bert").meta("bert.attention.causal", false);
            entries.for_each(|(key, value)| {
                writer.meta(key, value);
            });
            writer.write(&mut file).unwrap();
            Gguf::from_bytes(&Bytes::from_vec(file)).unwrap()
        };
        let config = r#"{"pad_token": "[PAD]", "mask_token": {"content": "[MASK]"}}"#;
        let keys = [("folder", "f"), ("json", json.as_str()), ("config", config)];
        let folder = gguf(
            &mut keys.into_iter().map(|(key, text)| (format!("tokenizer.huggingface.{key}"), text.into())),
        );
        let rows = own.vocab_size() + 3;
        let made = gguf_tokenizer(folder.metadata(), Some(rows)).unwrap().unwrap();
        assert_eq!(made.notes.len(), notes, "{:?}", made.notes);
        let file = gguf(&mut made.entries.into_iter());
        let metadata = file.metadata();
        assert_eq!(metadata.strings("tokenizer.ggml.tokens").unwrap().len(), rows);
        for (key, id) in
            [("bos", 2), ("cls", 2), ("seperator", 3), ("padding", 0), ("mask", 4), ("unknown", 1)]
        {
            assert_eq!(metadata.u32(&format!("tokenizer.ggml.{key}_token_id")).unwrap(), id, "{key}");
        }
        let from_gguf = Tokenizer::from_gguf(metadata).unwrap();
        let back = huggingface_tokenizer(metadata).unwrap();
        let from_json =
            Tokenizer::from_json(back.tokenizer.as_bytes(), Some(back.config.as_bytes())).unwrap();
        let oracle = tokenizers::Tokenizer::from_bytes(back.tokenizer.as_bytes()).unwrap();
        for text in texts() {
            let ids = own.encode(&text, WITH_SPECIAL).unwrap();
            assert_eq!(from_gguf.encode(&text, WITH_SPECIAL).unwrap(), ids, "{text:?} of GGUF");
            assert_eq!(from_json.encode(&text, WITH_SPECIAL).unwrap(), ids, "{text:?} of JSON");
            assert_eq!(oracle.encode(text.as_str(), true).unwrap().get_ids(), ids, "{text:?} of the crate");
            let pair = own.encode_pair(&text, "the second, text").unwrap();
            assert_eq!(from_gguf.encode_pair(&text, "the second, text").unwrap(), pair, "{text:?}");
            assert_eq!(from_json.encode_pair(&text, "the second, text").unwrap(), pair, "{text:?}");
        }
        let config: Value = serde_json::from_str(&back.config).unwrap();
        for (key, token) in
            [("pad", "[PAD]"), ("mask", "[MASK]"), ("cls", "[CLS]"), ("sep", "[SEP]"), ("unk", "[UNK]")]
        {
            assert_eq!(config[format!("{key}_token")], token);
        }
    }
}

#[test]
fn a_token_that_needs_its_mark_is_named() {
    let mut json: Value = serde_json::from_str(&file(true, None, 100)).unwrap();
    let next = json["model"]["vocab"].as_object().unwrap().len();
    json["model"]["vocab"]["##▁"] = next.into();
    let mut writer = GgufWriter::new();
    writer.meta("general.architecture", "bert").meta("tokenizer.huggingface.folder", "f");
    writer.meta("tokenizer.huggingface.json", json.to_string());
    let mut file = Vec::new();
    writer.write(&mut file).unwrap();
    let folder = Gguf::from_bytes(&Bytes::from_vec(file)).unwrap();
    let error = gguf_tokenizer(folder.metadata(), None).unwrap_err();
    assert!(matches!(&error, TextError::Inexpressible { what, .. } if what.contains("##▁")), "{error}");
}

#[test]
fn parts_that_are_not_computed_are_named() {
    let json: Value = serde_json::from_str(&file(true, None, 100)).unwrap();
    for (part, value) in [
        ("normalizer", json!({"type": "NFKC"})),
        ("pre_tokenizer", json!({"type": "Whitespace"})),
        (
            "model",
            json!({"type": "WordPiece", "vocab": {"a": 0}, "unk_token": "a", "continuing_subword_prefix": "@@"}),
        ),
    ] {
        let mut json = json.clone();
        json[part] = value;
        let error = Tokenizer::from_json(json.to_string().as_bytes(), None).unwrap_err();
        assert!(matches!(error, TextError::Unsupported { .. }), "{part}: {error}");
    }
    let mut json = json;
    json["model"]["unk_token"] = json!("[NONE]");
    let error = Tokenizer::from_json(json.to_string().as_bytes(), None).unwrap_err();
    assert!(error.to_string().contains("[NONE]"), "{error}");
    json["model"]["unk_token"] = json!("[UNK]");
    json["post_processor"] = Value::Null;
    let tokenizer = Tokenizer::from_json(json.to_string().as_bytes(), None).unwrap();
    assert!(!tokenizer.joins_pairs());
    assert!(matches!(tokenizer.encode_pair("a", "b").unwrap_err(), TextError::NoPairs));
}
