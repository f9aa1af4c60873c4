//! Tokenizers from tiny files: what they do, and what they refuse.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

mod common;

use common::{Fixture, strings};
use moli_format::FormatError;
use moli_text::{EncodeOptions, TextError, Tokenizer};
use proptest::prelude::*;

const PLAIN: EncodeOptions = EncodeOptions { add_special: false, parse_special: false };
const SPECIAL: EncodeOptions = EncodeOptions { add_special: true, parse_special: true };

fn refused(fixture: Fixture) -> TextError {
    fixture.load().expect_err("the file is refused")
}

#[test]
fn byte_level_round_trip() {
    let tokenizer = Fixture::byte_level().load().unwrap();
    let ids = tokenizer.encode("hell hello", PLAIN).unwrap();
    assert_eq!(ids, [256, 257, 258, 257, u32::from(b'o')]);
    assert_eq!(tokenizer.decode(&ids, false).unwrap(), "hell hello");
    assert_eq!(tokenizer.encode("", PLAIN).unwrap(), [0u32; 0]);
    // The family adds no BOS by itself, and does when the file says so.
    assert_eq!(tokenizer.encode("", SPECIAL).unwrap(), [0u32; 0]);
    let tokenizer = Fixture::byte_level().set("tokenizer.ggml.add_bos_token", true).load().unwrap();
    assert_eq!(tokenizer.encode("", SPECIAL).unwrap(), [259]);
    assert_eq!(tokenizer.encode("", PLAIN).unwrap(), [0u32; 0]);
}

#[test]
fn control_tokens_only_on_request_and_user_defined_always() {
    let tokenizer = Fixture::byte_level().load().unwrap();
    let plain = tokenizer.encode("<|im_end|><think>", PLAIN).unwrap();
    assert!(!plain.contains(&260) && plain.ends_with(&[261]));
    assert_eq!(tokenizer.encode("<|im_end|><think>", SPECIAL).unwrap(), [260, 261]);
    assert_eq!(tokenizer.decode(&[260, 104], false).unwrap(), "h");
    assert_eq!(tokenizer.decode(&[260, 104], true).unwrap(), "<|im_end|>h");
    assert!(tokenizer.is_end_of_generation(260) && !tokenizer.is_end_of_generation(259));
    assert!(tokenizer.is_control(260) && !tokenizer.is_control(261));
}

#[test]
fn sentence_piece_merges_by_score() {
    let tokenizer = Fixture::sentence_piece().load().unwrap();
    let id = |token: &str| tokenizer.token_id(token).unwrap();
    // ▁a has a better score than ab, so it merges first; then ▁ab.
    assert_eq!(tokenizer.encode("ab", PLAIN).unwrap(), [id("▁ab")]);
    assert_eq!(tokenizer.encode("ab", SPECIAL).unwrap(), [1, id("▁ab")]);
    assert_eq!(tokenizer.decode(&[1, id("▁ab")], false).unwrap(), "ab");
    assert_eq!(tokenizer.encode("é", PLAIN).unwrap(), [id("▁"), id("<0xC3>"), id("<0xA9>")]);
    assert_eq!(tokenizer.encode("", SPECIAL).unwrap(), [1]);
    // Text never merges into a control or byte token.
    assert!(!tokenizer.encode("<s>", PLAIN).unwrap().contains(&1));
    assert!(!tokenizer.encode("<0x0A>", PLAIN).unwrap().contains(&id("<0x0A>")));
    // User-defined tokens come before merges, without being asked for.
    assert_eq!(tokenizer.encode("a\n\n", PLAIN).unwrap(), [id("▁a"), id("\n\n")]);
    let bare = Fixture::sentence_piece().set("tokenizer.ggml.add_space_prefix", false).load().unwrap();
    assert_eq!(bare.encode("ab", PLAIN).unwrap(), [id("ab")]);
}

#[test]
fn an_unknown_model_or_pre_tokenizer_is_named() {
    let mut fixture = Fixture::byte_level();
    fixture.model = "rwkv";
    assert!(matches!(refused(fixture), TextError::Unsupported { name, .. } if name == "rwkv"));
    let mut fixture = Fixture::byte_level();
    fixture.pre = Some("nonesuch");
    assert!(matches!(refused(fixture), TextError::UnknownPreTokenizer { name } if name == "nonesuch"));
}

#[test]
fn an_empty_vocabulary() {
    let fixture = Fixture::byte_level().set("tokenizer.ggml.tokens", strings::<&str>(&[]));
    assert!(matches!(refused(fixture), TextError::EmptyVocabulary));
}

#[test]
fn a_scores_array_of_u8() {
    let fixture = Fixture::sentence_piece();
    let scores = vec![0u8; fixture.tokens.len()];
    let error = refused(fixture.set("tokenizer.ggml.scores", scores));
    assert!(
        matches!(error, TextError::Format(FormatError::WrongType { key, .. }) if key == "tokenizer.ggml.scores")
    );
}

#[test]
fn arrays_of_another_length() {
    let error = refused(Fixture::sentence_piece().set("tokenizer.ggml.scores", vec![0f32; 7]));
    assert!(matches!(error, TextError::LengthMismatch { key: "tokenizer.ggml.scores", actual: 7, .. }));
    let error = refused(Fixture::byte_level().set("tokenizer.ggml.token_type", vec![1i32; 9]));
    assert!(matches!(error, TextError::LengthMismatch { key: "tokenizer.ggml.token_type", actual: 9, .. }));
}

#[test]
fn an_unknown_token_type() {
    assert!(matches!(refused(Fixture::byte_level().token("x?", 99)), TextError::InvalidToken { .. }));
}

#[test]
fn duplicate_token_strings() {
    let error = refused(Fixture::byte_level().token("he", 1));
    assert!(matches!(error, TextError::DuplicateToken { token, first: 256, second: 262 } if token == "he"));
}

#[test]
fn byte_tokens_that_are_not_bytes() {
    for bad in ["<0x-1>", "<0xZZ>", "<0x1>", "byte"] {
        let error = refused(Fixture::sentence_piece().token(bad, 6));
        assert!(matches!(error, TextError::InvalidByteToken { token, .. } if token == bad));
    }
}

#[test]
fn a_missing_byte_token() {
    let mut fixture = Fixture::sentence_piece();
    if let Some(token) = fixture.tokens.get_mut(3 + 0x41) {
        *token = ("x".to_owned(), 1);
    }
    assert!(matches!(refused(fixture), TextError::MissingByteToken { byte: 0x41 }));
}

#[test]
fn bos_and_eos_outside_the_vocabulary() {
    for key in ["tokenizer.ggml.bos_token_id", "tokenizer.ggml.eos_token_id"] {
        let error = refused(Fixture::byte_level().set(key, 262u32));
        assert!(matches!(error, TextError::SpecialOutOfRange { key: k, id: 262, vocab: 262 } if k == key));
    }
}

#[test]
fn bos_wanted_but_not_named() {
    let fixture = Fixture::byte_level()
        .without("tokenizer.ggml.bos_token_id")
        .set("tokenizer.ggml.add_bos_token", true);
    assert!(matches!(refused(fixture), TextError::MissingSpecial { .. }));
}

#[test]
fn merges_that_name_no_token() {
    for bad in ["h q", "nospace", "he he", "", "h  e"] {
        let mut fixture = Fixture::byte_level();
        fixture.merges.push(bad.to_owned());
        assert!(matches!(refused(fixture), TextError::InvalidMerge { index: 3, .. }), "{bad:?}");
    }
}

#[test]
fn a_token_with_a_character_that_is_no_byte() {
    assert!(matches!(
        refused(Fixture::byte_level().token("a b", 1)),
        TextError::InvalidToken { id: 262, .. }
    ));
}

#[test]
fn a_byte_without_a_token_is_an_error_when_it_is_needed() {
    let mut fixture = Fixture::byte_level();
    if let Some(token) = fixture.tokens.get_mut(0xC3) {
        token.0 = "zz".to_owned();
    }
    let tokenizer = fixture.load().unwrap();
    assert!(tokenizer.encode("hello", PLAIN).is_ok());
    let error = tokenizer.encode("café", PLAIN).unwrap_err();
    assert!(matches!(error, TextError::Unrepresentable { text } if text == "é"));
}

#[test]
fn an_id_outside_the_vocabulary() {
    let tokenizer = Fixture::byte_level().load().unwrap();
    assert!(matches!(tokenizer.decode(&[262], false), Err(TextError::UnknownId { id: 262, vocab: 262 })));
    assert_eq!(tokenizer.stream().push(262), "\u{FFFD}");
    assert_eq!(tokenizer.token_bytes(262), None);
}

#[test]
fn long_runs_in_bounded_time() {
    let start = std::time::Instant::now();
    let texts = ["a".repeat(131_072), " ".repeat(1 << 20), "\n".repeat(1 << 20), "😀".repeat(1 << 18)];
    for tokenizer in [Fixture::byte_level().load().unwrap(), Fixture::sentence_piece().load().unwrap()] {
        for text in &texts {
            let ids = tokenizer.encode(text, SPECIAL).unwrap();
            assert_eq!(tokenizer.decode(&ids, false).unwrap(), *text);
        }
    }
    // Some 6 MB: a second or two. What is quadratic takes hours.
    assert!(start.elapsed() < std::time::Duration::from_secs(60), "{:?}", start.elapsed());
}

const JSON: &str = r#"{"added_tokens":[{"id":4,"content":"<|end|>","special":true,"lstrip":false,"rstrip":false,"single_word":false}],
 "normalizer":{"type":"NFC"},
 "pre_tokenizer":{"type":"Sequence","pretokenizers":[{"type":"Split","pattern":{"Regex":"\\p{N}"},"behavior":"Isolated","invert":false},
   {"type":"ByteLevel","add_prefix_space":false,"trim_offsets":true,"use_regex":true}]},
 "model":{"type":"BPE","vocab":{"h":0,"e":1,"he":2,"Ġ":3},"merges":[["h","e"]]}}"#;

#[test]
fn tokenizer_json() {
    let tokenizer = Tokenizer::from_json(JSON.as_bytes(), None).unwrap();
    assert_eq!(tokenizer.encode("he h<|end|>", SPECIAL).unwrap(), [2, 3, 0, 4]);
    assert!(matches!(tokenizer.encode("<|end|>", PLAIN), Err(TextError::Unrepresentable { .. })));
    assert!(tokenizer.is_end_of_generation(4));
    let config = br#"{"bos_token":{"content":"<|end|>"},"add_bos_token":true,"eos_token":"<|end|>"}"#;
    let tokenizer = Tokenizer::from_json(JSON.as_bytes(), Some(config)).unwrap();
    assert_eq!(tokenizer.encode("he", SPECIAL).unwrap(), [4, 2]);
}

#[test]
fn hostile_tokenizer_json() {
    let json =
        |from: &str, to: &str| Tokenizer::from_json(JSON.replace(from, to).as_bytes(), None).err().unwrap();
    assert!(matches!(Tokenizer::from_json(b"{", None), Err(TextError::Json { .. })));
    assert!(matches!(Tokenizer::from_json(b"{}", None), Err(TextError::Json { .. })));
    assert!(matches!(json(r#"["h","e"]"#, r#"["h","x"]"#), TextError::InvalidMerge { index: 0, .. }));
    assert!(matches!(json(r#"["h","e"]"#, r#"["e","he"]"#), TextError::InvalidMerge { index: 0, .. }));
    assert!(matches!(json(r#""BPE""#, r#""WordPiece""#), TextError::Unsupported { .. }));
    assert!(matches!(json("NFC", "BertNormalizer"), TextError::Unsupported { .. }));
    assert!(matches!(json(r#""Ġ":3"#, r#""Ġ":4000000000"#), TextError::Json { .. }));
    assert!(matches!(json(r#""Ġ":3"#, r#""Ġ":2"#), TextError::Json { .. }));
    assert!(matches!(json(r#""\\p{N}""#, r#""(?<=a)b""#), TextError::Unsupported { .. }));
}

proptest! {
    /// Any ids: what a stream gives, joined, is the decoding of them all.
    #[test]
    fn a_stream_is_the_whole_in_pieces(ids in prop::collection::vec(0u32..270, 0..64)) {
        let tokenizer = Fixture::sentence_piece().set("tokenizer.ggml.add_space_prefix", false).load().unwrap();
        let ids: Vec<u32> = ids.into_iter().filter(|&id| (id as usize) < tokenizer.vocab_size()).collect();
        let mut stream = tokenizer.stream();
        let mut text: String = ids.iter().map(|&id| stream.push(id)).collect();
        text.push_str(&stream.finish());
        prop_assert_eq!(text, tokenizer.decode(&ids, false).unwrap());
    }
}
