//! Unigram: what stands around a text, what comes back of it, and files and texts that are hostile. The ids themselves are compared in
//! `families` and `oracle`.

#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use common::Fixture;
use moli_format::{Bytes, Gguf, GgufWriter, Value as Meta};
use moli_text::{EncodeOptions, TextError, Tokenizer, gguf_tokenizer, huggingface_tokenizer};
use proptest::prelude::*;
use serde_json::{Value, json};
use std::time::{Duration, Instant};

const PLAIN: EncodeOptions = EncodeOptions { add_special: false, parse_special: false };
const SPECIAL: EncodeOptions = EncodeOptions { add_special: true, parse_special: true };

/// XLM-RoBERTa's four special tokens, a mask, and a few pieces.
fn file() -> Value {
    let special = ["<s>", "<pad>", "</s>", "<unk>"];
    let mut vocab: Vec<Value> = special.iter().map(|token| json!([token, 0.0])).collect();
    for (piece, score) in
        [("▁", -3.0), ("▁a", -2.0), ("a", -4.0), ("b", -4.5), ("ab", -4.0), ("▁ab", -5.0), ("é", -6.0)]
    {
        vocab.push(json!([piece, score]));
    }
    vocab.push(json!(["<mask>", 0.0]));
    let token = |id: usize, text: &str| json!({"id": id, "content": text, "special": true, "lstrip": text == "<mask>"});
    let part = |token: &str| json!({"SpecialToken": {"id": token, "type_id": 0}});
    let text = |name: &str| json!({"Sequence": {"id": name, "type_id": 0}});
    json!({
        "added_tokens": [token(0, "<s>"), token(1, "<pad>"), token(2, "</s>"), token(3, "<unk>"), token(11, "<mask>")],
        "normalizer": {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "},
        "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true},
        "post_processor": {"type": "TemplateProcessing",
            "single": [part("<s>"), text("A"), part("</s>")],
            "pair": [part("<s>"), text("A"), part("</s>"), part("</s>"), text("B"), part("</s>")]},
        "decoder": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true},
        "model": {"type": "Unigram", "unk_id": 3, "vocab": vocab},
    })
}

fn of_json(file: &Value) -> Result<Tokenizer, TextError> {
    Tokenizer::from_json(file.to_string().as_bytes(), None)
}

/// The same pieces as a GGUF.
fn fixture() -> Fixture<'static> {
    let file = file();
    let vocab = file["model"]["vocab"].as_array().unwrap();
    let kind = |id| match id {
        0..=2 | 11 => 3,
        3 => 2,
        _ => 1,
    };
    let tokens =
        vocab.iter().zip(0..).map(|(piece, id)| (piece[0].as_str().unwrap().to_owned(), kind(id))).collect();
    let scores: Vec<f32> = vocab.iter().map(|piece| piece[1].as_f64().unwrap() as f32).collect();
    let extra = vec![
        ("tokenizer.ggml.scores", Meta::from(scores)),
        ("tokenizer.ggml.bos_token_id", Meta::U32(0)),
        ("tokenizer.ggml.eos_token_id", Meta::U32(2)),
        ("tokenizer.ggml.seperator_token_id", Meta::U32(2)),
        ("tokenizer.ggml.unknown_token_id", Meta::U32(3)),
        ("tokenizer.ggml.add_bos_token", true.into()),
        ("tokenizer.ggml.add_eos_token", true.into()),
    ];
    Fixture { model: "t5", pre: Some("default"), tokens, merges: Vec::new(), extra, without: Vec::new() }
}

#[test]
fn what_stands_around_texts() {
    for tokenizer in [of_json(&file()).unwrap(), fixture().load().unwrap()] {
        assert_eq!(tokenizer.encode("ab  b", SPECIAL).unwrap(), [0, 9, 4, 7, 2]);
        assert_eq!(tokenizer.encode_pair("a", "b").unwrap(), (vec![0, 5, 2, 2, 4, 7, 2], 4));
        // Unknown characters are unknown together, a control token is one only where it is wanted.
        assert_eq!(tokenizer.encode("xy", PLAIN).unwrap(), [4, 3]);
        assert_eq!(tokenizer.encode("</s>", PLAIN).unwrap(), [4, 3]);
        assert_eq!(tokenizer.encode("a</s>", SPECIAL).unwrap(), [0, 5, 2, 2]);
        assert_eq!(tokenizer.encode("", SPECIAL).unwrap(), [0, 2]);
        assert_eq!(tokenizer.decode(&[0, 5, 4, 7, 2], false).unwrap(), "a b");
        assert_eq!((tokenizer.bos(), tokenizer.eos(), tokenizer.closing()), (Some(0), Some(2), Some(2)));
    }
    // White space before a mask belongs to it.
    assert_eq!(of_json(&file()).unwrap().encode("a  <mask>", SPECIAL).unwrap(), [0, 5, 11, 2]);
    // T5's own ids are what a file means that names none.
    let mut t5 = fixture();
    t5.tokens[1] = ("</s>".to_owned(), 3);
    t5.tokens[2] = ("<unk>".to_owned(), 2);
    t5.tokens[3] = ("<extra>".to_owned(), 3);
    for key in [
        "bos_token_id",
        "eos_token_id",
        "unknown_token_id",
        "seperator_token_id",
        "add_bos_token",
        "add_eos_token",
    ] {
        t5.extra.retain(|(other, _)| !other.ends_with(key));
    }
    let t5 = t5.load().unwrap();
    assert_eq!(t5.encode("a x", SPECIAL).unwrap(), [5, 4, 2, 1]);
    assert!(!t5.joins_pairs());
}

/// As GGUF and as a `tokenizer.json` again: what stands around texts and between them, and white space that a mask takes along.
#[test]
fn there_and_back() {
    let json = file().to_string();
    let own = of_json(&file()).unwrap();
    let gguf = |entries: Vec<(String, Meta)>| {
        let mut writer = GgufWriter::new();
        writer.meta("general.architecture", "bert").meta("bert.attention.causal", false);
        writer.meta("tokenizer.ggml.token_type_count", 1_u32);
        for (key, value) in entries {
            writer.meta(key, value);
        }
        let mut bytes = Vec::new();
        writer.write(&mut bytes).unwrap();
        Gguf::from_bytes(&Bytes::from_vec(bytes)).unwrap()
    };
    let keys = [("folder", "f"), ("json", json.as_str()), ("config", r#"{"mask_token": "<mask>"}"#)];
    let folder = gguf(
        keys.map(|(key, text)| (format!("tokenizer.huggingface.{key}"), text.into())).into_iter().collect(),
    );
    let made = gguf_tokenizer(folder.metadata(), Some(20)).unwrap().unwrap();
    assert_eq!(made.notes.len(), 2, "{:?}", made.notes);
    let file = gguf(made.entries);
    let metadata = file.metadata();
    assert_eq!(metadata.u32("tokenizer.ggml.mask_token_id").unwrap(), 11);
    assert_eq!(metadata.f32s("tokenizer.ggml.scores").unwrap().len(), 20);
    let back = huggingface_tokenizer(metadata).unwrap();
    let from_json = Tokenizer::from_json(back.tokenizer.as_bytes(), Some(back.config.as_bytes())).unwrap();
    let parsed: Value = serde_json::from_str(&back.tokenizer).unwrap();
    // Rows without a token are none of its pieces, and an encoder with one kind of tokens has no other.
    assert_eq!(parsed["model"]["vocab"].as_array().unwrap().len(), 12);
    assert!(!back.tokenizer.contains(r#""type_id":1"#));
    for tokenizer in [Tokenizer::from_gguf(metadata).unwrap(), from_json] {
        for text in ["ab  b", "xy", "</s>", "a  <mask>", "", " é"] {
            for options in [PLAIN, SPECIAL] {
                assert_eq!(
                    tokenizer.encode(text, options).unwrap(),
                    own.encode(text, options).unwrap(),
                    "{text}"
                );
            }
        }
        assert_eq!(tokenizer.encode_pair("a", "b").unwrap(), own.encode_pair("a", "b").unwrap());
    }
    // What SentencePiece can do and a `tokenizer.json` can't.
    let behind = fixture().set("tokenizer.ggml.treat_whitespace_as_suffix", true).gguf();
    let error = huggingface_tokenizer(behind.metadata()).unwrap_err();
    assert!(matches!(&error, TextError::Inexpressible { form: "tokenizer.json", .. }), "{error}");
    // Spaces that are kept, as a `tokenizer.json` keeps them.
    for (trim, prefix) in [(false, true), (false, false), (true, false), (true, true)] {
        let fixture = fixture()
            .set("tokenizer.ggml.remove_extra_whitespaces", trim)
            .set("tokenizer.ggml.add_space_prefix", prefix);
        let files = huggingface_tokenizer(fixture.gguf().metadata()).unwrap();
        let made = Tokenizer::from_json(files.tokenizer.as_bytes(), Some(files.config.as_bytes())).unwrap();
        let kept = fixture.load().unwrap();
        for text in ["a", " a", "a  b ", "   ", "  ab é", ""] {
            assert_eq!(
                made.encode(text, PLAIN).unwrap(),
                kept.encode(text, PLAIN).unwrap(),
                "{text:?} {trim} {prefix}"
            );
        }
    }
}

#[test]
fn spaces_at_either_end() {
    let ids = |tokenizer: &Tokenizer, text| tokenizer.encode(text, PLAIN).unwrap();
    let trimmed = fixture().load().unwrap();
    assert_eq!(ids(&trimmed, "  a   b "), [5, 4, 7]);
    assert_eq!(ids(&trimmed, "   "), [0; 0]);
    let kept = fixture().set("tokenizer.ggml.remove_extra_whitespaces", false).load().unwrap();
    assert_eq!(ids(&kept, " a "), [4, 5, 4]);
    let bare = fixture().set("tokenizer.ggml.add_space_prefix", false).load().unwrap();
    assert_eq!(ids(&bare, " a b "), [6, 4, 7]);
    assert_eq!(bare.decode(&[6, 4, 7], false).unwrap(), "a b");
    let behind = fixture().set("tokenizer.ggml.treat_whitespace_as_suffix", true).load().unwrap();
    assert_eq!(ids(&behind, "b"), [7, 4]);
}

/// Runs of one letter, which every piece of the vocabulary begins with, and the longest piece that is allowed.
#[test]
fn long_runs_in_bounded_time() {
    let start = Instant::now();
    let mut file = file();
    let vocab = file["model"]["vocab"].as_array_mut().unwrap();
    for length in (2..=200).chain([1024]) {
        vocab.push(json!(["a".repeat(length), -4.0 - length as f64 / 2.0]));
    }
    let tokenizer = of_json(&file).unwrap();
    for text in [
        "a".repeat(131_072),
        "b".repeat(131_072),
        "😀".repeat(32_768),
        " ".repeat(131_072),
        "é ".repeat(65_536),
    ] {
        let ids = tokenizer.encode(&text, PLAIN).unwrap();
        assert!(!ids.is_empty() && ids.len() <= 131_073);
    }
    // Some 200 places to end at for each of the letters, and a second or two. What is quadratic takes hours.
    assert!(start.elapsed() < Duration::from_secs(60), "{:?}", start.elapsed());
}

#[test]
fn files_that_contradict_themselves() {
    let refused = |change: &dyn Fn(&mut Value)| {
        let mut file = file();
        change(&mut file);
        of_json(&file).unwrap_err()
    };
    let json_error = |change: &dyn Fn(&mut Value), part: &str| {
        let error = refused(change);
        assert!(matches!(error, TextError::Json { .. }) && error.to_string().contains(part), "{error}");
    };
    json_error(&|file| file["model"]["vocab"] = json!({"a": 1}), "no vocabulary");
    json_error(&|file| file["model"]["vocab"][4] = json!(["a", "b"]), "piece 4");
    json_error(&|file| file["model"]["unk_id"] = json!(12), "unk_id is 12");
    json_error(
        &|file| file["normalizer"] = json!({"type": "Precompiled", "precompiled_charsmap": "a!"}),
        "base 64",
    );
    json_error(&|file| file["normalizer"] = json!({"type": "Replace", "content": ""}), "Replace without");
    let error = refused(&|file| file["model"]["vocab"][4] = json!(["a".repeat(1025), 0.0]));
    assert!(matches!(error, TextError::InvalidToken { id: 4, .. }), "{error}");
    let error = refused(&|file| file["model"]["vocab"][5] = json!(["▁", 0.0]));
    assert!(matches!(error, TextError::DuplicateToken { first: 4, second: 5, .. }), "{error}");
    for (part, value) in [
        ("normalizer", json!({"type": "BertNormalizer"})),
        ("normalizer", json!({"type": "Replace", "pattern": {"String": ""}, "content": "a"})),
        ("normalizer", json!({"type": "Replace", "pattern": {"Regex": "a*"}, "content": "a"})),
        ("pre_tokenizer", json!({"type": "ByteLevel"})),
        ("pre_tokenizer", json!({"type": "Metaspace", "replacement": "_"})),
        (
            "pre_tokenizer",
            json!({"type": "Sequence", "pretokenizers": [{"type": "Metaspace"}, {"type": "WhitespaceSplit"}]}),
        ),
    ] {
        let error = refused(&|file| file[part] = value.clone());
        assert!(matches!(error, TextError::Unsupported { .. }), "{part} {value}: {error}");
    }
    // A few kilobytes of rules that would make a text of petabytes.
    let tenfold = json!({"type": "Replace", "pattern": {"String": "a"}, "content": "aaaaaaaaaa"});
    let mut file = file();
    file["normalizer"] = json!({"type": "Sequence", "normalizers": vec![tenfold; 15]});
    let error = of_json(&file).unwrap().encode(&"a".repeat(100), PLAIN).unwrap_err();
    assert!(matches!(error, TextError::GrowsTooMuch { limit: 10_496 }), "{error}");
    // Nothing stands for what is unknown.
    file["normalizer"] = Value::Null;
    file["model"]["unk_id"] = Value::Null;
    let error = of_json(&file).unwrap().encode("axy", PLAIN).unwrap_err();
    assert!(matches!(&error, TextError::Unrepresentable { text } if text == "xy"), "{error}");
}

#[test]
fn metadata_that_contradicts_itself() {
    let refused = |fixture: Fixture<'_>| fixture.load().unwrap_err();
    let scores = |values: Vec<f32>| fixture().set("tokenizer.ggml.scores", values);
    let error = refused(scores(vec![0.0; 7]));
    assert!(matches!(error, TextError::LengthMismatch { expected: 12, actual: 7, .. }), "{error}");
    let error = refused(scores([vec![0.0; 11], vec![f32::NAN]].concat()));
    assert!(matches!(error, TextError::InvalidToken { id: 11, .. }), "{error}");
    let error = refused(fixture().without("tokenizer.ggml.scores"));
    assert!(matches!(error, TextError::Format(_)), "{error}");
    let error = refused(fixture().set("tokenizer.ggml.escape_whitespaces", false));
    assert!(matches!(error, TextError::Unsupported { .. }), "{error}");
    let error = refused(fixture().set("tokenizer.ggml.seperator_token_id", 12_u32));
    assert!(matches!(error, TextError::SpecialOutOfRange { id: 12, vocab: 12, .. }), "{error}");
    let table = |units: &[u32], text: &[u8]| {
        let mut bytes = (units.len() as u32 * 4).to_le_bytes().to_vec();
        bytes.extend(units.iter().flat_map(|unit| unit.to_le_bytes()));
        bytes.extend(text);
        bytes
    };
    for (blob, why) in [
        (vec![1, 0], "not even its length"),
        (vec![9, 0, 0, 0, 1], "9 bytes in 5"),
        (vec![2, 0, 0, 0, 1, 1], "units of four"),
        (table(&[], b""), "units of four"),
        (table(&[0], &[0xFF]), "utf-8"),
        (table(&[0], &[b'a'; 1025]), "1025 bytes"),
    ] {
        let error = refused(fixture().set("tokenizer.ggml.precompiled_charsmap", blob.as_slice()));
        assert!(matches!(error, TextError::Charsmap { .. }) && error.to_string().contains(why), "{error}");
    }
}

fn units() -> impl Strategy<Value = Vec<u32>> {
    // Units that lead to others, with and without a leaf, and values.
    let link = (prop::sample::select(&b"ab c"[..]), 0..16u32, any::<bool>())
        .prop_map(|(label, offset, leaf)| u32::from(label) | offset << 10 | u32::from(leaf) << 8);
    let unit = prop_oneof![8 => link, 2 => (0..40u32).prop_map(|value| value | 1 << 31), 1 => any::<u32>()];
    prop::collection::vec(unit, 1..128)
}

proptest! {
    /// Any table: none leads out of itself, nor on forever.
    #[test]
    fn any_table_of_replacements(units in units(), text in "[ab cé]{0,40}", trim: bool) {
        let mut blob = (units.len() as u32 * 4).to_le_bytes().to_vec();
        blob.extend(units.iter().flat_map(|unit| unit.to_le_bytes()));
        blob.extend("a\0é\0 b\0\0x".bytes());
        let tokenizer = fixture()
            .set("tokenizer.ggml.precompiled_charsmap", blob.as_slice())
            .set("tokenizer.ggml.remove_extra_whitespaces", trim)
            .load()
            .unwrap();
        let ids = tokenizer.encode(&text, PLAIN).unwrap();
        prop_assert!(ids.iter().all(|&id| (id as usize) < tokenizer.vocab_size()));
    }

    /// A vocabulary with all bytes and no normalizer: any text comes back, at once and in pieces.
    #[test]
    fn any_text_comes_back(text in "[ab éx中😀\\n\\t\u{0}\u{301}\u{2028}]{0,40}") {
        let mut file = file();
        let vocab = file["model"]["vocab"].as_array_mut().unwrap();
        vocab.extend((0..=255).map(|byte| json!([format!("<0x{byte:02X}>"), 0.0])));
        file["model"]["byte_fallback"] = true.into();
        file["normalizer"] = Value::Null;
        file["pre_tokenizer"]["prepend_scheme"] = "never".into();
        let tokenizer = of_json(&file).unwrap();
        let ids = tokenizer.encode(&text, PLAIN).unwrap();
        prop_assert_eq!(&tokenizer.decode(&ids, false).unwrap(), &text);
        let mut stream = tokenizer.stream();
        let mut streamed: String = ids.iter().map(|&id| stream.push(id)).collect();
        streamed.push_str(&stream.finish());
        prop_assert_eq!(streamed, text);
    }
}
