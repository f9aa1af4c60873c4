//! The tokenizers of encoders, of a `tokenizer.json` and of a GGUF.

use crate::json::{Around, bad, flag, kind, special, unsupported};
use crate::special::SpecialTokens;
use crate::tokenizer::{Inner, Merger, SpacePrefix};
use crate::vocab::{SPACE, Spelling, TokenKind, Vocab};
use crate::wordpiece::{CONTINUES, Cleaning, LONGEST_WORD, WordPiece};
use crate::{TextError, eog, gguf, json};
use moli_format::Metadata;
use serde_json::Value;
use std::collections::HashMap;

const CLS: &str = "tokenizer.ggml.cls_token_id";
/// Spelt so in the convention.
pub(crate) const SEPARATOR: &str = "tokenizer.ggml.seperator_token_id";

/// WordPiece of a `tokenizer.json`, whose model this is.
pub(crate) fn word_piece_of_json(root: &Value, model: &Value, config: &Value) -> Result<Inner, TextError> {
    if model.get("continuing_subword_prefix").and_then(Value::as_str).is_some_and(|text| text != CONTINUES) {
        return Err(unsupported("tokenizer.json model part", "continuing_subword_prefix"));
    }
    let cleaning = root.get("normalizer").unwrap_or(&Value::Null);
    if kind(cleaning) != "BertNormalizer" {
        return Err(unsupported("tokenizer.json normalizer", kind(cleaning)));
    }
    let words = root.get("pre_tokenizer").map_or("", kind);
    if words != "BertPreTokenizer" {
        return Err(unsupported("tokenizer.json pre_tokenizer", words));
    }
    let lowercase = flag(cleaning, "lowercase", true);
    let cleaning = Cleaning {
        clean: flag(cleaning, "clean_text", true),
        chinese: flag(cleaning, "handle_chinese_chars", true),
        strip_accents: flag(cleaning, "strip_accents", lowercase),
        lowercase,
    };
    let (mut vocab, strip) = json::vocab(root, model, Spelling::WordPiece)?;
    let unknown = model.get("unk_token").and_then(Value::as_str).unwrap_or("[UNK]");
    let unknown =
        vocab.id(unknown).ok_or_else(|| bad(format!("unk_token {unknown:?} is not in the vocabulary")))?;
    let longest_word = match model.get("max_input_chars_per_word") {
        None => LONGEST_WORD,
        Some(most) => most
            .as_u64()
            .and_then(|most| usize::try_from(most).ok())
            .ok_or_else(|| bad(format!("max_input_chars_per_word is {most}, not a number of characters")))?,
    };
    let around = Around::read(root, &vocab);
    let eos = special(config, "eos_token", &vocab, &[])?;
    let ends = eog::find(&mut vocab, eos);
    Ok(Inner {
        special: SpecialTokens::new(&vocab, strip)?,
        merger: Merger::Words(WordPiece { cleaning, unknown, longest_word }),
        add_bos: around.begins.is_some(),
        bos: around.begins,
        eos,
        closing: around.finishes,
        between: around.between,
        space_prefix: SpacePrefix::Always,
        ends,
        vocab,
    })
}

/// WordPiece of a GGUF, whose tokens have `▁` before what begins a word and nothing before what continues one.
pub(crate) fn word_piece(metadata: &Metadata) -> Result<Inner, TextError> {
    let stored = gguf::vocab(metadata, Spelling::WordPiece)?;
    let mut vocab = Vocab::with_capacity(Spelling::WordPiece, stored.len(), stored.len() * 8);
    for (_, text, kind) in stored.iter() {
        match (kind, text.strip_prefix(SPACE)) {
            (TokenKind::Normal, Some(word)) => vocab.push(word, kind)?,
            (TokenKind::Normal, None) if !is_bracketed(text) => {
                vocab.push(&format!("{CONTINUES}{text}"), kind)?
            }
            _ => vocab.push(text, kind)?,
        };
    }
    let id = |keys: [&'static str; 2], text: &str| {
        for key in keys {
            match metadata.u64_opt(key)? {
                Some(id) if id >= vocab.len() as u64 => {
                    return Err(TextError::SpecialOutOfRange { key, id, vocab: vocab.len() });
                }
                Some(id) => return Ok(Some(id as u32)),
                None => {}
            }
        }
        Ok(vocab.id(text))
    };
    let (cls, sep) = (id([CLS, gguf::BOS], "[CLS]")?, id([SEPARATOR, gguf::EOS], "[SEP]")?);
    let unknown = id([gguf::UNKNOWN; 2], "[UNK]")?
        .ok_or(TextError::MissingSpecial { flag: gguf::MODEL, key: gguf::UNKNOWN })?;
    // The format does not say whether text is lower-cased: a vocabulary without a capital letter does.
    let lowercase = !vocab.iter().any(|(_, text, kind)| {
        kind == TokenKind::Normal && !is_bracketed(text) && text.chars().any(char::is_uppercase)
    });
    let cleaning = Cleaning { clean: true, chinese: true, strip_accents: lowercase, lowercase };
    // Some files have all of these as ordinary tokens.
    for id in [cls, sep, Some(unknown)].into_iter().flatten() {
        vocab.set_kind(id, TokenKind::Control);
    }
    let ends = eog::find(&mut vocab, None::<u32>);
    Ok(Inner {
        special: SpecialTokens::new(&vocab, HashMap::new())?,
        merger: Merger::Words(WordPiece { cleaning, unknown, longest_word: LONGEST_WORD }),
        add_bos: cls.is_some(),
        bos: cls,
        eos: None,
        closing: sep,
        between: sep.map(|sep| vec![sep]),
        space_prefix: SpacePrefix::Always,
        ends,
        vocab,
    })
}

/// `[PAD]` and its like, which the convention leaves as they are.
fn is_bracketed(text: &str) -> bool {
    text.starts_with('[') && text.ends_with(']') && text.len() > 2
}
