//! A byte-level tokenizer with the kinds of tokens that real ones have, made on the spot.

use std::collections::{HashMap, HashSet};

use moli_format::{Bytes, Gguf, GgufWriter};
use moli_text::Tokenizer;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// GPT-2's character for a byte.
fn letter(byte: u8) -> char {
    let code = match byte {
        0x00..=0x20 => 0x100 + u32::from(byte),
        0x7F..=0xA0 => 0x121 + u32::from(byte) - 0x7F,
        0xAD => 0x143,
        _ => u32::from(byte),
    };
    char::from_u32(code).unwrap()
}

fn spelt(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| letter(*byte)).collect()
}

/// Control tokens, of which the first four end an answer.
pub(super) const CONTROL: [&str; 7] =
    ["<|endoftext|>", "<|im_end|>", "</s>", "<|eot_id|>", "<|im_start|>", "<|fim_prefix|>", "<unk>"];

/// `size` tokens: all bytes, JSON's punctuation in combinations, numbers, words with and without a space in front,
/// whitespace, Chinese characters whole and in parts, and control tokens among which several end an answer.
pub(super) fn realistic(size: usize) -> Tokenizer {
    let mut rng = ChaCha8Rng::seed_from_u64(7);
    let mut seen = HashSet::new();
    let mut tokens: Vec<String> = Vec::with_capacity(size);
    let mut add = |tokens: &mut Vec<String>, bytes: &[u8]| {
        let token = spelt(bytes);
        if !bytes.is_empty() && seen.insert(token.clone()) {
            tokens.push(token);
        }
    };
    for byte in 0..=255 {
        add(&mut tokens, &[byte]);
    }
    for token in [
        "{\"", "\":", "\": ", "\":\"", "\": \"", "\",", "\", \"", "\",\"", "\"}", "\"]", "\"},", "},", "],",
        "}]", "}}", "[[", "]]", "[{", "{}", "[]", "{\n", ",\n", "\n\n", "\r\n", "  ", "    ", "        ",
        "\t\t", "null", "true", "false", "\\n", "\\\"", "\\u", "\\\\", "00", "10", "100", "2024", "-1", "-0",
        "0.", ".5", "e-", "E+", "://", "http", "www", ".com", "@", "::=", "();", "//", "/*", "*/", "\"a",
        "a\"", "\"1", "1,", " {", " \"", " [", " 1", " -",
    ] {
        add(&mut tokens, token.as_bytes());
    }
    for number in 0..100 {
        add(&mut tokens, number.to_string().as_bytes());
    }
    for c in ('一'..='丿')
        .chain("中文名字年龄城市东西南北你好世界数据类型的是不了在有我他这个上来到时大地为子".chars())
    {
        let mut buffer = [0; 4];
        let bytes = c.encode_utf8(&mut buffer).as_bytes().to_vec();
        add(&mut tokens, &bytes);
        add(&mut tokens, &bytes[..2]);
        add(&mut tokens, &bytes[1..]);
        add(&mut tokens, &[b" \"", &bytes[..]].concat());
    }
    for word in ["名字", "你好", "世界", "，", "。", "é", "ü", "😀", "\u{200B}"] {
        add(&mut tokens, word.as_bytes());
    }
    let text = size - CONTROL.len();
    while tokens.len() < text {
        let length = rng.random_range(1..=9);
        let mut word: Vec<u8> =
            (0..length).map(|_| b"etaoinshrdlucmfwypvbgkjqxz"[skewed(&mut rng)]).collect();
        match rng.random_range(0..8) {
            0..=2 => word.insert(0, b' '),
            3 => word[0] = word[0].to_ascii_uppercase(),
            4 => word = word.iter().map(|b| b'0' + b % 10).take(3).collect(),
            _ => {}
        }
        add(&mut tokens, &word);
    }
    tokens.truncate(text);
    tokens.extend(CONTROL.map(str::to_owned));
    build(tokens)
}

/// These tokens only, of which the last is EOS.
pub(super) fn words_only(words: &[&str]) -> Tokenizer {
    build(words.iter().map(|word| (*word).to_owned()).collect())
}

/// A tokenizer of these; those of [`CONTROL`] are control tokens, and the first of them in the list is EOS.
fn build(tokens: Vec<String>) -> Tokenizer {
    let control = |token: &String| CONTROL.contains(&token.as_str());
    let types: Vec<i32> = tokens.iter().map(|token| if control(token) { 3 } else { 1 }).collect();
    let eos = tokens.iter().position(control).unwrap();
    let mut file = Vec::new();
    GgufWriter::new()
        .meta("general.architecture", "llama")
        .meta("tokenizer.ggml.model", "gpt2")
        .meta("tokenizer.ggml.pre", "gpt-2")
        .meta("tokenizer.ggml.tokens", tokens)
        .meta("tokenizer.ggml.token_type", types)
        .meta("tokenizer.ggml.merges", Vec::<String>::new())
        .meta("tokenizer.ggml.eos_token_id", eos as u32)
        .write(&mut file)
        .unwrap();
    let gguf = Gguf::from_bytes(&Bytes::from_vec(file)).unwrap();
    Tokenizer::from_gguf(gguf.metadata()).unwrap()
}

/// The token of each text.
pub(super) fn words(tokenizer: &Tokenizer) -> HashMap<Vec<u8>, u32> {
    let ids = (0..tokenizer.vocab_size() as u32).filter(|id| !tokenizer.is_control(*id));
    ids.map(|id| (tokenizer.token_bytes(id).unwrap().into_owned(), id)).collect()
}

/// Small numbers more often than large ones.
fn skewed(rng: &mut ChaCha8Rng) -> usize {
    rng.random_range(0..26).min(rng.random_range(0..26))
}
