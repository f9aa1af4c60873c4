//! Every family's tokenizer against the reference implementations: `fixtures/tokenizers/make.py` has trained tiny ones
//! and written down what they make of nasty texts. The same tokenizer as a `tokenizer.json` and as a GGUF's metadata gives
//! the same ids.

#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod common;

use base64::Engine;
use common::Fixture;
use moli_format::{Bytes, Gguf, GgufWriter, Value as Meta};
use moli_text::{EncodeOptions, GgufTokenizer, TextError, Tokenizer, gguf_tokenizer, huggingface_tokenizer};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::path::PathBuf;

const ALL: EncodeOptions = EncodeOptions { add_special: false, parse_special: true };
const PLAIN: EncodeOptions = EncodeOptions { add_special: false, parse_special: false };

/// The folder of fixtures; another one holds more texts.
fn read<T: for<'a> Deserialize<'a>>(name: &str) -> T {
    let folder = std::env::var_os("MOLI_TOKENIZER_FIXTURES").map_or_else(
        || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tokenizers"),
        PathBuf::from,
    );
    let path = folder.join(name);
    let bytes = std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_slice(&bytes).unwrap()
}

#[derive(Deserialize)]
struct ByteLevel {
    tokens: Vec<String>,
    merges: Vec<String>,
    special: Vec<String>,
    user: Vec<String>,
    families: BTreeMap<String, Family>,
}

#[derive(Deserialize)]
struct Family {
    normalizer: Value,
    pre_tokenizer: Value,
    #[serde(default)]
    ignore_merges: bool,
}

#[derive(Deserialize)]
struct SentencePiece {
    pieces: Vec<(String, f32, i32)>,
    prefix: bool,
    forms: BTreeMap<String, Family>,
}

#[derive(Deserialize)]
struct Unigram {
    pieces: Vec<(String, f32, i32)>,
    charsmap: String,
    prefix: bool,
    trim: bool,
    fallback: bool,
    forms: BTreeMap<String, Family>,
}

/// A `tokenizer.json` of tokens with the kinds that a GGUF has for them.
fn json_file(tokens: &[(String, i32)], family: &Family, model: Value) -> Vec<u8> {
    let added = tokens.iter().zip(0..).filter(|((_, kind), _)| (2..=4).contains(kind)).map(
        |((token, kind), id)| json!({"id": id, "content": token, "special": *kind != 4, "normalized": false}),
    );
    let vocab: Map<String, Value> =
        tokens.iter().zip(0..).map(|((token, _), id)| (token.clone(), id.into())).collect();
    let mut all = json!({"type": "BPE", "vocab": vocab, "ignore_merges": family.ignore_merges});
    all.as_object_mut().unwrap().extend(model.as_object().unwrap().clone());
    let file = json!({
        "added_tokens": added.collect::<Vec<_>>(),
        "normalizer": family.normalizer,
        "pre_tokenizer": family.pre_tokenizer,
        "model": all,
    });
    file.to_string().into_bytes()
}

/// A model of these keys.
fn model<'a>(entries: impl IntoIterator<Item = (&'a str, Meta)>) -> Gguf {
    let mut writer = GgufWriter::new();
    writer.meta("general.architecture", "llama");
    for (key, value) in entries {
        writer.meta(key, value);
    }
    let mut bytes = Vec::new();
    writer.write(&mut bytes).unwrap();
    Gguf::from_bytes(&Bytes::from_vec(bytes)).unwrap()
}

/// A `tokenizer.json` in the keys of GGUF.
fn to_gguf(file: &[u8], rows: Option<usize>) -> Result<GgufTokenizer, TextError> {
    let json = std::str::from_utf8(file).unwrap();
    let folder =
        model([("tokenizer.huggingface.folder", "f".into()), ("tokenizer.huggingface.json", json.into())]);
    gguf_tokenizer(folder.metadata(), rows).map(Option::unwrap)
}

/// A `tokenizer.json` as a GGUF, the name of its kind there, and as a `tokenizer.json` again.
fn converted(file: &[u8]) -> (Tokenizer, String, Tokenizer) {
    let made = to_gguf(file, Some(4096)).unwrap();
    let gguf = model(made.entries.iter().map(|(key, value)| (key.as_str(), value.clone())));
    let kind = gguf.metadata().str("tokenizer.ggml.model").unwrap().to_owned();
    // A token for each row of the embeddings.
    assert_eq!(gguf.metadata().strings("tokenizer.ggml.tokens").unwrap().len(), 4096);
    let back = huggingface_tokenizer(gguf.metadata()).unwrap();
    let json = Tokenizer::from_json(back.tokenizer.as_bytes(), Some(back.config.as_bytes())).unwrap();
    (Tokenizer::from_gguf(gguf.metadata()).unwrap(), kind, json)
}

/// Ids as they were written down, and what decoding gives back: at once, and token by token.
#[track_caller]
fn check(what: &str, tokenizer: &Tokenizer, options: EncodeOptions, texts: &[String], expected: &[Vec<u32>]) {
    assert_eq!(texts.len(), expected.len());
    let mut wrong = 0;
    for (text, expected) in texts.iter().zip(expected) {
        let ids = tokenizer.encode(text, options).unwrap();
        if &ids != expected {
            wrong += 1;
            if wrong <= 3 {
                let show =
                    |ids: &[u32]| ids.iter().map(|&id| tokenizer.token_text(id).unwrap()).collect::<Vec<_>>();
                eprintln!("{what}: {text:?}\n  expected {:?}\n  is       {:?}", show(expected), show(&ids));
            }
        }
    }
    assert_eq!(wrong, 0, "{what}: {wrong} of {} texts", texts.len());
}

/// Texts that are the `same` come back as they were, and a stream is never ahead of the whole.
#[track_caller]
fn round_trip(
    what: &str,
    tokenizer: &Tokenizer,
    options: EncodeOptions,
    texts: &[String],
    same: impl Fn(&str) -> bool,
) {
    for text in texts {
        let ids = tokenizer.encode(text, options).unwrap();
        let whole = tokenizer.decode(&ids, true).unwrap();
        if same(text) {
            assert_eq!(&whole, text, "{what}");
        }
        let mut stream = tokenizer.stream().keep_special(true);
        let mut streamed = String::new();
        for &id in &ids {
            streamed.push_str(&stream.push(id));
            let continued = whole.starts_with(&streamed)
                || streamed.strip_prefix(' ').is_some_and(|rest| whole.starts_with(rest));
            assert!(continued, "{what}: {streamed:?} of {whole:?}");
        }
        streamed.push_str(&stream.finish());
        assert!(streamed == whole || streamed == format!(" {whole}"), "{what}: {streamed:?} {whole:?}");
    }
}

#[test]
fn byte_level() {
    let base: ByteLevel = read("byte-level.json");
    let texts: Vec<String> = read("texts.json");
    let mut tokens: Vec<(String, i32)> = base.tokens.iter().map(|token| (token.clone(), 1)).collect();
    tokens.extend(base.special.iter().map(|token| (token.clone(), 3)));
    tokens.extend(base.user.iter().map(|token| (token.clone(), 4)));
    for (pre, family) in &base.families {
        let expected: Vec<Vec<u32>> = read(&format!("{pre}.ids.json"));
        let file = json_file(&tokens, family, json!({"merges": base.merges}));
        let from_json = Tokenizer::from_json(&file, None).unwrap();
        check(&format!("{pre}, JSON"), &from_json, ALL, &texts, &expected);
        let (gguf, kind, json) = converted(&file);
        assert_eq!(kind, "gpt2");
        check(&format!("{pre}, JSON to GGUF"), &gguf, ALL, &texts, &expected);
        check(&format!("{pre}, JSON to GGUF and back"), &json, ALL, &texts, &expected);
        let fixture = Fixture {
            model: "gpt2",
            pre: Some(pre),
            tokens: tokens.clone(),
            merges: base.merges.clone(),
            extra: Vec::new(),
            without: Vec::new(),
        };
        let from_gguf = fixture.load().unwrap();
        check(&format!("{pre}, GGUF"), &from_gguf, ALL, &texts, &expected);
        let composed = |text: &str| family.normalizer.is_null() || unicode_normalization::is_nfc(text);
        round_trip(pre, &from_gguf, ALL, &texts, composed);
    }
}

#[test]
fn sentence_piece() {
    let models: BTreeMap<String, SentencePiece> = read("spaced.json");
    let texts: Vec<String> = read("texts.json");
    for (name, model) in &models {
        let tokens: Vec<(String, i32)> =
            model.pieces.iter().map(|(piece, _, kind)| (piece.clone(), *kind)).collect();
        let scores: Vec<f32> = model.pieces.iter().map(|&(_, score, _)| score).collect();
        let expected: Vec<Vec<u32>> = read(&format!("{name}.sentencepiece.ids.json"));
        // `▁` is a space to SentencePiece, and only here something else in user-defined tokens.
        let (plain, expected): (Vec<String>, Vec<Vec<u32>>) =
            texts.iter().cloned().zip(expected).filter(|(text, _)| !text.contains('▁')).unzip();
        // Converters write the spaces of user-defined tokens as such, and others as they are.
        let spaced = |(token, kind): &(String, i32)| match kind {
            4 => (token.replace('▁', " "), 4),
            kind => (token.clone(), *kind),
        };
        for tokens in [tokens.clone(), tokens.iter().map(spaced).collect()] {
            let fixture = Fixture {
                model: "llama",
                pre: None,
                tokens,
                merges: Vec::new(),
                extra: vec![
                    ("tokenizer.ggml.scores", Meta::from(scores.clone())),
                    ("tokenizer.ggml.add_space_prefix", model.prefix.into()),
                ],
                without: Vec::new(),
            };
            let from_gguf = fixture.load().unwrap();
            check(&format!("{name}, GGUF"), &from_gguf, PLAIN, &plain, &expected);
            round_trip(name, &from_gguf, PLAIN, &plain, |_| true);
        }
        let merges = merges(&model.pieces);
        for (form, family) in &model.forms {
            let expected: Vec<Vec<u32>> = read(&format!("{form}.ids.json"));
            let options = json!({
                "merges": merges, "unk_token": "<unk>", "fuse_unk": true, "byte_fallback": true,
            });
            let file = json_file(&tokens, family, options);
            let from_json = Tokenizer::from_json(&file, None).unwrap();
            check(&format!("{form}, JSON"), &from_json, ALL, &texts, &expected);
            let (gguf, kind, json) = converted(&file);
            // Gemma's has a run of spaces that the user defined, and that merges don't give.
            assert_eq!(kind, if model.prefix { "llama" } else { "gemma4" });
            check(&format!("{form}, JSON to GGUF"), &gguf, ALL, &texts, &expected);
            check(&format!("{form}, JSON to GGUF and back"), &json, ALL, &texts, &expected);
            // Merges that no scores give: all of a token's are there, or none.
            let options = json!({
                "merges": merges[1..], "unk_token": "<unk>", "fuse_unk": true, "byte_fallback": true,
            });
            let file = json_file(&tokens, family, options);
            let from_json = Tokenizer::from_json(&file, None).unwrap();
            let (gguf, kind, json) = converted(&file);
            assert_eq!(kind, "gemma4");
            let ids = |tokenizer: &Tokenizer| -> Vec<Vec<u32>> {
                texts.iter().map(|text| tokenizer.encode(text, ALL).unwrap()).collect()
            };
            assert_eq!(ids(&gguf), ids(&from_json), "{form}, some merges to GGUF");
            assert_eq!(ids(&json), ids(&from_json), "{form}, some merges to GGUF and back");
        }
        // The same merges as Gemma 4's files have them.
        if !model.prefix {
            let merges = merges.iter().map(|(left, right)| format!("{left} {right}")).collect();
            let fixture = Fixture {
                model: "gemma4",
                pre: None,
                tokens,
                merges,
                extra: vec![("tokenizer.ggml.unknown_token_id", Meta::U32(0))],
                without: Vec::new(),
            };
            let expected: Vec<Vec<u32>> = read(&format!("{name}.ids.json"));
            check("gemma4, GGUF", &fixture.load().unwrap(), ALL, &texts, &expected);
        }
    }
}

#[test]
fn unigram() {
    let models: BTreeMap<String, Unigram> = read("unigram.json");
    let texts: Vec<String> = read("texts.json");
    for (name, model) in &models {
        let tokens: Vec<(String, i32)> =
            model.pieces.iter().map(|(piece, _, kind)| (piece.clone(), *kind)).collect();
        let scores: Vec<f32> = model.pieces.iter().map(|&(_, score, _)| score).collect();
        let charsmap = base64::engine::general_purpose::STANDARD.decode(&model.charsmap).unwrap();
        let fixture = Fixture {
            model: "t5",
            pre: Some("default"),
            tokens: tokens.clone(),
            merges: Vec::new(),
            extra: vec![
                ("tokenizer.ggml.scores", Meta::from(scores)),
                ("tokenizer.ggml.precompiled_charsmap", Meta::from(charsmap.as_slice())),
                ("tokenizer.ggml.add_space_prefix", model.prefix.into()),
                ("tokenizer.ggml.remove_extra_whitespaces", model.trim.into()),
                ("tokenizer.ggml.unknown_token_id", Meta::U32(0)),
                ("tokenizer.ggml.eos_token_id", Meta::U32(2)),
            ],
            without: Vec::new(),
        };
        // Null where rounding decides.
        let expected: Vec<Option<Vec<u32>>> = read(&format!("{name}.sentencepiece.ids.json"));
        let certain = texts.iter().cloned().zip(expected).filter_map(|(text, ids)| Some((text, ids?)));
        let (plain, expected): (Vec<String>, Vec<Vec<u32>>) = certain.unzip();
        assert!(expected.len() * 100 > texts.len() * 99, "{name}: {} texts", expected.len());
        let from_gguf = fixture.load().unwrap();
        check(&format!("{name}, GGUF"), &from_gguf, PLAIN, &plain, &expected);
        round_trip(name, &from_gguf, PLAIN, &texts, |_| false);
        let files = huggingface_tokenizer(fixture.gguf().metadata()).unwrap();
        let from_json =
            Tokenizer::from_json(files.tokenizer.as_bytes(), Some(files.config.as_bytes())).unwrap();
        // The library that it is for replaces the shortest stretch, SentencePiece the longest (of "\r\n", or of a letter and its
        // accent): that is all that differs, so nothing does where each character stands for itself.
        let oracle = tokenizers::Tokenizer::from_bytes(&files.tokenizer).unwrap();
        let mut plainest = 0;
        for (text, expected) in plain.iter().zip(&expected) {
            // It takes the names of special tokens in a text for these.
            let ids = from_json.encode(text, ALL).unwrap();
            assert_eq!(ids, oracle.encode(text.as_str(), false).unwrap().get_ids(), "{name}, {text:?}");
            if text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b' ') {
                assert_eq!(from_json.encode(text, PLAIN).unwrap(), *expected, "{name}, {text:?}");
                plainest += 1;
            }
        }
        assert!(plainest > 0, "{name}: no plain text");
        for (form, family) in &model.forms {
            let expected: Vec<Vec<u32>> = read(&format!("{form}.ids.json"));
            let vocab: Vec<Value> =
                model.pieces.iter().map(|(piece, score, _)| json!([piece, f64::from(*score)])).collect();
            let options =
                json!({"type": "Unigram", "unk_id": 0, "byte_fallback": model.fallback, "vocab": vocab});
            let file = json_file(&tokens, family, options);
            let from_json = Tokenizer::from_json(&file, None).unwrap();
            check(&format!("{form}, JSON"), &from_json, ALL, &texts, &expected);
            round_trip(form, &from_json, ALL, &texts, |_| false);
            let (gguf, kind, json) = converted(&file);
            assert_eq!(kind, "t5");
            check(&format!("{form}, JSON to GGUF"), &gguf, ALL, &texts, &expected);
            check(&format!("{form}, JSON to GGUF and back"), &json, ALL, &texts, &expected);
        }
    }
}

#[test]
fn what_gguf_cannot_say_is_named() {
    let base: ByteLevel = read("byte-level.json");
    let tokens: Vec<(String, i32)> = base.tokens.iter().map(|token| (token.clone(), 1)).collect();
    let file = |pattern: &str| {
        let pre_tokenizer = json!({"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false},
            {"type": "ByteLevel", "add_prefix_space": false, "use_regex": false},
        ]});
        let family = Family { normalizer: Value::Null, pre_tokenizer, ignore_merges: false };
        json_file(&tokens, &family, json!({"merges": base.merges}))
    };
    let error = to_gguf(&file(r"\p{L}+|\P{L}"), None).unwrap_err();
    assert!(matches!(&error, TextError::Inexpressible { form: "GGUF", .. }), "{error}");
    assert!(error.to_string().contains(r"\p{L}+|\P{L}"), "{error}");
    let models: BTreeMap<String, SentencePiece> = read("spaced.json");
    let (_, model) = models.iter().next().unwrap();
    let (_, family) = model.forms.iter().next().unwrap();
    let tokens: Vec<(String, i32)> =
        model.pieces.iter().map(|(piece, _, kind)| (piece.clone(), *kind)).collect();
    let options = |fallback: bool| json!({"merges": merges(&model.pieces), "unk_token": "<unk>", "fuse_unk": true, "byte_fallback": fallback});
    let error = to_gguf(&json_file(&tokens, family, options(false)), None).unwrap_err();
    assert!(matches!(&error, TextError::Inexpressible { what, .. } if what.contains("each byte")), "{error}");
    let error = to_gguf(&json_file(&tokens, family, options(true)), Some(7)).unwrap_err();
    assert!(
        matches!(error, TextError::TooManyTokens { tokens: all, rows: 7 } if all == tokens.len()),
        "{error}"
    );
}

/// Special tokens, templates of both ends and white space that tokens take along, there and back.
#[test]
fn what_stands_around_a_text() {
    let mut tokens: Vec<(String, i32)> =
        (0..=255_u8).map(|byte| (common::byte_char(byte).to_string(), 1)).collect();
    for token in ["<s>", "</s>", "<end>", "<mask>", "<turn>", "<other>"] {
        tokens.push((token.to_owned(), 3));
    }
    let pre_tokenizer = json!({"type": "ByteLevel", "add_prefix_space": false, "use_regex": true});
    let family = Family { normalizer: json!({"type": "NFC"}), pre_tokenizer, ignore_merges: true };
    let mut file: Value =
        serde_json::from_slice(&json_file(&tokens, &family, json!({"merges": []}))).unwrap();
    file["added_tokens"][3]["lstrip"] = true.into();
    let part = |token: &str| json!({"SpecialToken": {"id": token, "type_id": 0}});
    file["post_processor"] = json!({
        "type": "TemplateProcessing",
        "single": [part("<s>"), {"Sequence": {"id": "A", "type_id": 0}}, part("<end>")],
    });
    let json = file.to_string();
    let config = r#"{"bos_token": "<s>", "eos_token": "</s>"}"#;
    let folder = model([
        ("tokenizer.huggingface.folder", "f".into()),
        ("tokenizer.huggingface.json", json.as_str().into()),
        ("tokenizer.huggingface.config", config.into()),
        ("tokenizer.chat_template", "{{ messages }}".into()),
        ("tokenizer.ggml.padding_token_id", 7_u32.into()),
        ("moli.eos_token_ids", vec![257_u32, 260, 261].into()),
    ]);
    let direct = Tokenizer::from_gguf(folder.metadata()).unwrap();
    let made = gguf_tokenizer(folder.metadata(), None).unwrap().unwrap();
    // NFC and whole words are not what `gpt-2` means; white space and ends are more than GGUF says.
    assert_eq!(made.notes.len(), 3, "{:?}", made.notes);
    let mut entries: Vec<_> = made.entries.iter().map(|(key, value)| (key.as_str(), value.clone())).collect();
    entries.push(("tokenizer.chat_template", "{{ messages }}".into()));
    let gguf = model(entries);
    let from_gguf = Tokenizer::from_gguf(gguf.metadata()).unwrap();
    let files = huggingface_tokenizer(gguf.metadata()).unwrap();
    let back: Value = serde_json::from_str(&files.config).unwrap();
    assert_eq!(back["chat_template"], "{{ messages }}");
    assert_eq!(back["pad_token"], tokens[7].0.as_str());
    let generation: Value = serde_json::from_str(&files.generation).unwrap();
    assert_eq!(generation["eos_token_id"], json!([258, 257, 260, 261]));
    let from_json = Tokenizer::from_json(files.tokenizer.as_bytes(), Some(files.config.as_bytes())).unwrap();
    let options = EncodeOptions { add_special: true, parse_special: true };
    for text in ["a  <mask> b", "e\u{301}", "<s>x", ""] {
        let ids = direct.encode(text, options).unwrap();
        assert_eq!((ids.first(), ids.last()), (Some(&256), Some(&258)));
        assert_eq!(from_gguf.encode(text, options).unwrap(), ids, "{text}");
        assert_eq!(from_json.encode(text, options).unwrap(), ids, "{text}");
    }
    for id in 256..262 {
        assert_eq!(from_gguf.is_end_of_generation(id), direct.is_end_of_generation(id) || id == 258, "{id}");
    }
    // A folder's own files stay what they are.
    let own = huggingface_tokenizer(folder.metadata()).unwrap();
    assert_eq!(own.tokenizer, json);
    assert!(own.config.contains("chat_template"));
}

/// Every way to cut each piece into two others, the best piece first: what converters write for SentencePiece.
fn merges(pieces: &[(String, f32, i32)]) -> Vec<(&str, &str)> {
    let ids: BTreeMap<&str, usize> = pieces
        .iter()
        .zip(0..)
        .filter(|((_, _, kind), _)| *kind == 1)
        .map(|((piece, ..), id)| (&**piece, id))
        .collect();
    let mut merges = Vec::new();
    for (piece, score, _) in pieces.iter().filter(|(_, _, kind)| *kind == 1) {
        let cuts = piece.char_indices().skip(1).map(|(at, _)| piece.split_at(at));
        let mut cuts: Vec<_> = cuts
            .filter_map(|(left, right)| Some(((*ids.get(left)?, *ids.get(right)?), (left, right))))
            .collect();
        cuts.sort_unstable();
        merges.extend(cuts.into_iter().map(|(_, cut)| (*score, cut)));
    }
    merges.sort_by(|(one, _), (other, _)| other.total_cmp(one));
    merges.into_iter().map(|(_, cut)| cut).collect()
}
