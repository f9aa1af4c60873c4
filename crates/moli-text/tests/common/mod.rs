//! Tiny vocabularies as GGUF files.

#![allow(dead_code, clippy::unwrap_used, missing_docs)]

use moli_format::{Gguf, GgufWriter, ReadMode, StringArray, Value};
use moli_text::{TextError, Tokenizer};

pub(crate) fn strings<S: AsRef<str>>(items: &[S]) -> Value {
    items.iter().collect::<StringArray>().into()
}

/// GPT-2's character for a byte.
pub(crate) fn byte_char(byte: u8) -> char {
    let shifted = match byte {
        0x00..=0x20 => u32::from(byte),
        0x7F..=0xA0 => u32::from(byte) - 0x7F + 0x21,
        0xAD => 0x43,
        _ => return char::from(byte),
    };
    char::from_u32(0x100 + shifted).unwrap()
}

pub(crate) struct Fixture<'a> {
    pub(crate) model: &'static str,
    pub(crate) pre: Option<&'a str>,
    pub(crate) tokens: Vec<(String, i32)>,
    pub(crate) merges: Vec<String>,
    pub(crate) extra: Vec<(&'static str, Value)>,
    /// Keys to leave out.
    pub(crate) without: Vec<&'static str>,
}

impl Fixture<'_> {
    /// 256 bytes, three merges, two control tokens and a user-defined one.
    pub(crate) fn byte_level() -> Self {
        let mut tokens: Vec<_> = (0..=255).map(|byte| (byte_char(byte).to_string(), 1)).collect();
        for (token, kind) in
            [("he", 1), ("ll", 1), ("Ġhe", 1), ("<|im_start|>", 3), ("<|im_end|>", 3), ("<think>", 4)]
        {
            tokens.push((token.to_owned(), kind));
        }
        let merges = ["h e", "l l", "Ġ he"].map(str::to_owned).to_vec();
        let extra = vec![
            ("tokenizer.ggml.bos_token_id", Value::U32(259)),
            ("tokenizer.ggml.eos_token_id", Value::U32(260)),
        ];
        Self { model: "gpt2", pre: Some("gpt-2"), tokens, merges, extra, without: Vec::new() }
    }

    /// Unknown, BOS, EOS, 256 bytes and a few pieces.
    pub(crate) fn sentence_piece() -> Self {
        let mut tokens = vec![("<unk>".to_owned(), 2), ("<s>".to_owned(), 3), ("</s>".to_owned(), 3)];
        tokens.extend((0..=255).map(|byte: u8| (format!("<0x{byte:02X}>"), 6)));
        for token in ["▁", "a", "b", "▁a", "ab", "▁ab", "s", "<", ">", "\n"] {
            tokens.push((token.to_owned(), 1));
        }
        tokens.push(("\n\n".to_owned(), 4));
        let scores: Vec<f32> = (0..tokens.len()).map(|i| -(i as f32)).collect();
        let extra = vec![("tokenizer.ggml.scores", Value::from(scores))];
        Self { model: "llama", pre: None, tokens, merges: Vec::new(), extra, without: Vec::new() }
    }

    pub(crate) fn set(mut self, key: &'static str, value: impl Into<Value>) -> Self {
        self.extra.retain(|(other, _)| *other != key);
        self.extra.push((key, value.into()));
        self
    }

    pub(crate) fn without(mut self, key: &'static str) -> Self {
        self.without.push(key);
        self
    }

    pub(crate) fn token(mut self, text: &str, kind: i32) -> Self {
        self.tokens.push((text.to_owned(), kind));
        if self.model == "llama" {
            let scores: Vec<f32> = (0..self.tokens.len()).map(|i| -(i as f32)).collect();
            return self.set("tokenizer.ggml.scores", scores);
        }
        self
    }

    pub(crate) fn load(&self) -> Result<Tokenizer, TextError> {
        Tokenizer::from_gguf(self.gguf().metadata())
    }

    pub(crate) fn gguf(&self) -> Gguf {
        let texts: Vec<&str> = self.tokens.iter().map(|(text, _)| text.as_str()).collect();
        let kinds: Vec<i32> = self.tokens.iter().map(|&(_, kind)| kind).collect();
        let mut meta: Vec<(&str, Value)> = vec![
            ("general.architecture", "llama".into()),
            ("tokenizer.ggml.model", self.model.into()),
            ("tokenizer.ggml.tokens", strings(&texts)),
            ("tokenizer.ggml.token_type", Value::from(kinds)),
        ];
        meta.extend(self.pre.map(|pre| ("tokenizer.ggml.pre", pre.into())));
        if self.model != "llama" {
            meta.push(("tokenizer.ggml.merges", strings(&self.merges)));
        }
        for (key, value) in &self.extra {
            meta.retain(|(other, _)| other != key);
            meta.push((*key, value.clone()));
        }
        let mut writer = GgufWriter::new();
        for (key, value) in meta.into_iter().filter(|(key, _)| !self.without.contains(key)) {
            writer.meta(key, value);
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tiny.gguf");
        writer.write_file(&path).unwrap();
        Gguf::open(&path, ReadMode::Read).unwrap()
    }
}
