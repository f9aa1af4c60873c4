//! Every family's tokenizer against the reference implementations: `fixtures/tokenizers/make.py` has trained tiny ones
//! and written down what they make of nasty texts. The same tokenizer as a `tokenizer.json` and as a GGUF's metadata gives
//! the same ids.

#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod common;

use common::Fixture;
use moli_format::Value as Meta;
use moli_text::{EncodeOptions, Tokenizer};
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
            let from_json = Tokenizer::from_json(&json_file(&tokens, family, options), None).unwrap();
            check(&format!("{form}, JSON"), &from_json, ALL, &texts, &expected);
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
