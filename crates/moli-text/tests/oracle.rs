//! The same ids as the `tokenizers` crate, on random vocabularies, merges and texts.

#![allow(missing_docs, clippy::unwrap_used)]

use std::collections::BTreeSet;

use moli_text::{EncodeOptions, TextError, Tokenizer};
use proptest::prelude::*;
use serde_json::{Map, Value, json};

/// Letters that a random text is made of; few, so that merges meet. The accent composes with the letter before it.
const LETTERS: [&str; 9] = ["a", "b", "e", "\u{301}", "é", "中", " ", "\n", "😀"];

/// A BPE model: an alphabet, and tokens that pairs of earlier ones make.
fn model(alphabet: Vec<String>, pairs: &[(usize, usize)], known: usize, options: Value) -> Value {
    let mut tokens = alphabet;
    let (mut seen, mut merges) = (BTreeSet::new(), Vec::new());
    // Merges are made of the last `known` of the alphabet and what came of them.
    let first = tokens.len() - known;
    for &(left, right) in pairs {
        let pick = |index: usize| tokens[first + index % (tokens.len() - first)].clone();
        let (left, right) = (pick(left), pick(right));
        let joined = format!("{left}{right}");
        if joined.len() <= 24 && seen.insert((left.clone(), right.clone())) {
            merges.push(json!([left, right]));
            if !tokens.contains(&joined) {
                tokens.push(joined);
            }
        }
    }
    let vocab: Map<String, Value> =
        tokens.into_iter().zip(0..).map(|(token, id)| (token, id.into())).collect();
    let mut model = json!({"type": "BPE", "vocab": vocab, "merges": merges});
    model.as_object_mut().unwrap().extend(options.as_object().unwrap().clone());
    model
}

fn same_ids(file: &Value, text: &str) -> Result<(), TestCaseError> {
    let bytes = file.to_string().into_bytes();
    let ours = Tokenizer::from_json(&bytes, None).unwrap().encode(text, EncodeOptions::default());
    match tokenizers::Tokenizer::from_bytes(&bytes).unwrap().encode(text, false) {
        Ok(theirs) => prop_assert_eq!(ours.unwrap(), theirs.get_ids()),
        // No token for what is unknown: it refuses a text even where that is not on the best way, or has bytes.
        Err(_) => match ours {
            Ok(ids) => prop_assert!(!ids.contains(&0)),
            Err(error) => prop_assert!(matches!(error, TextError::Unrepresentable { .. }), "{error}"),
        },
    }
    Ok(())
}

fn file(normalizer: Value, pre_tokenizer: Value, model: Value) -> Value {
    json!({"version": "1.0", "added_tokens": [], "normalizer": normalizer, "pre_tokenizer": pre_tokenizer, "model": model})
}

fn byte_chars(bytes: impl IntoIterator<Item = u8>) -> Vec<String> {
    let alphabet: Vec<char> = {
        let printable: Vec<u8> = (b'!'..=b'~').chain(0xa1..=0xac).chain(0xae..=0xff).collect();
        let mut others = 0x100..;
        let other = |byte: u8| printable.contains(&byte).then(|| char::from(byte));
        (0..=255)
            .map(|byte| other(byte).unwrap_or_else(|| others.next().and_then(char::from_u32).unwrap()))
            .collect()
    };
    bytes.into_iter().map(|byte| alphabet[usize::from(byte)].to_string()).collect()
}

/// Texts of these characters.
fn texts_of(chars: &str, length: std::ops::Range<usize>) -> impl Strategy<Value = String> + use<> {
    let chars: Vec<char> = chars.chars().collect();
    prop::collection::vec(prop::sample::select(chars), length).prop_map(String::from_iter)
}

fn texts() -> impl Strategy<Value = String> {
    prop::collection::vec(prop::sample::select(&LETTERS[..]), 0..48).prop_map(|letters| letters.concat())
}

fn pairs() -> impl Strategy<Value = Vec<(usize, usize)>> {
    prop::collection::vec((0usize..64, 0usize..64), 0..40)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(1000) })]

    #[test]
    fn byte_level(text in texts(), pairs in pairs(), ignore_merges: bool) {
        let used: BTreeSet<u8> = LETTERS.concat().into_bytes().into_iter().collect();
        let others = (0..=255).filter(|byte| !used.contains(byte));
        let alphabet: Vec<String> = byte_chars(others).into_iter().chain(byte_chars(used.iter().copied())).collect();
        let model = model(alphabet, &pairs, used.len(), json!({"ignore_merges": ignore_merges}));
        let pre = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
        same_ids(&file(json!({"type": "NFC"}), pre, model), &text)?;
    }

    #[test]
    fn sentence_piece(text in texts(), pairs in pairs(), fuse_unk: bool, byte_fallback: bool, ignore_merges: bool) {
        let mut alphabet = vec!["<unk>".to_owned()];
        alphabet.extend((0..=255).map(|byte| format!("<0x{byte:02X}>")));
        // Not all letters: the others are unknown.
        alphabet.extend(["a", "b", "▁", "é"].map(str::to_owned));
        let options = json!({
            "unk_token": "<unk>", "fuse_unk": fuse_unk, "byte_fallback": byte_fallback, "ignore_merges": ignore_merges,
        });
        let model = model(alphabet, &pairs, 4, options);
        let normalizer = json!({"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        ]});
        same_ids(&file(normalizer, Value::Null, model), &text)?;
    }

    /// Few scores, so that many ways to cut are as good as each other, and positive ones too.
    #[test]
    fn unigram(
        text in texts(),
        pieces in prop::collection::vec((texts_of("ab e\u{301}é中😀", 1..6), -6i32..2), 1..40),
        unknown: bool,
        byte_fallback: bool,
        with_bytes: bool,
        words in 0..6usize,
        normalizer in 0..5usize,
    ) {
        let mut vocab = vec![json!(["<unk>", 0.0])];
        let mut seen = BTreeSet::new();
        for (piece, score) in pieces {
            let piece = piece.replace(' ', "▁");
            if seen.insert(piece.clone()) {
                vocab.push(json!([piece, f64::from(score) / 2.0]));
            }
        }
        if with_bytes {
            vocab.extend((0..=255).map(|byte| json!([format!("<0x{byte:02X}>"), 0.0])));
        }
        let unk_id = if unknown { json!(0) } else { Value::Null };
        let metaspace = |scheme: &str, split: bool| json!({
            "type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": split,
        });
        let replace = |from: Value, to: &str| json!({"type": "Replace", "pattern": from, "content": to});
        let sequence = |parts: Value| json!({"type": "Sequence", "pretokenizers": parts});
        let pre = match words {
            0 => Value::Null,
            1 => metaspace("always", true),
            2 => metaspace("first", false),
            3 => metaspace("never", true),
            4 => sequence(json!([{"type": "WhitespaceSplit"}, metaspace("always", true)])),
            _ => sequence(json!([{"type": "WhitespaceSplit"}, metaspace("first", true)])),
        };
        let normalizer = match normalizer {
            0 => Value::Null,
            1 => json!({"type": "NFKC"}),
            2 => json!({"type": "Sequence", "normalizers": [
                {"type": "Nmt"}, {"type": "Strip", "strip_left": true, "strip_right": true},
                replace(json!({"Regex": " {2,}"}), "▁")]}),
            3 => json!({"type": "Sequence", "normalizers": [
                {"type": "NFKD"}, {"type": "StripAccents"}, {"type": "Lowercase"}, {"type": "Prepend", "prepend": "▁"},
                replace(json!({"String": " "}), "▁")]}),
            _ => replace(json!({"String": "ab"}), "b a"),
        };
        let model = json!({"type": "Unigram", "unk_id": unk_id, "byte_fallback": byte_fallback, "vocab": vocab});
        same_ids(&file(normalizer, pre, model), &text)?;
    }
}
