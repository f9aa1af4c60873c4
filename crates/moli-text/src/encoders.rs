//! The tokenizers of encoders, of a `tokenizer.json` and of a GGUF.

use crate::json::{Around, bad, flag, kind, special, unsupported};
use crate::special::{SpecialTokens, Strip};
use crate::tokenizer::{Inner, Merger, SpacePrefix};
use crate::vocab::{SPACE, Spelling, TokenKind, Vocab};
use crate::wordpiece::{CONTINUES, Cleaning, LONGEST_WORD, WordPiece};
use crate::{TextError, eog, gguf, huggingface, json};
use moli_format::Metadata;
use serde_json::Value;
use std::collections::HashMap;

pub(crate) const CLS: &str = "tokenizer.ggml.cls_token_id";
/// Spelt so in the convention.
pub(crate) const SEPARATOR: &str = "tokenizer.ggml.seperator_token_id";
pub(crate) const ADD_SEPARATOR: &str = "tokenizer.ggml.add_sep_token";
pub(crate) const LOWERCASE: &str = "tokenizer.ggml.normalizer.lowercase";
pub(crate) const STRIP_ACCENTS: &str = "tokenizer.ggml.normalizer.strip_accents";
// What a `tokenizer.json` can say and the format has no place for.
pub(crate) const CLEAN: &str = "moli.tokenizer.clean_text";
pub(crate) const CHINESE: &str = "moli.tokenizer.handle_chinese_chars";
pub(crate) const LONGEST: &str = "moli.tokenizer.max_input_chars_per_word";
/// What comes between two texts, where it does not follow from EOS and separator.
pub(crate) const BETWEEN: &str = "moli.tokenizer.between";

/// What a GGUF has between two texts: EOS behind the first, where one comes behind a text, and a separator.
pub(crate) fn between(
    metadata: &Metadata,
    vocab: usize,
    closing: Option<u32>,
) -> Result<Option<Vec<u32>>, TextError> {
    let told = huggingface::ids(metadata, BETWEEN, vocab)?;
    if !told.is_empty() {
        return Ok(Some(told));
    }
    match metadata.u64_opt(SEPARATOR)? {
        None => Ok(None),
        Some(id) if id >= vocab as u64 => Err(TextError::SpecialOutOfRange { key: SEPARATOR, id, vocab }),
        Some(id) => Ok(Some(closing.into_iter().chain([id as u32]).collect())),
    }
}

/// WordPiece of a `tokenizer.json`, whose model this is.
pub(crate) fn word_piece_of_json(
    root: &Value,
    model: &Value,
    config: &Value,
) -> Result<(Inner, HashMap<u32, Strip>), TextError> {
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
    let inner = Inner {
        special: SpecialTokens::new(&vocab, strip.clone())?,
        merger: Merger::Words(WordPiece { cleaning, unknown, longest_word }),
        add_bos: around.begins.is_some(),
        bos: around.begins,
        eos,
        closing: around.finishes,
        between: around.between,
        space_prefix: SpacePrefix::Always,
        ends,
        vocab,
    };
    Ok((inner, strip))
}

/// WordPiece of a GGUF, whose tokens have `▁` before what begins a word and nothing before what continues one.
pub(crate) fn word_piece(metadata: &Metadata) -> Result<Inner, TextError> {
    let stored = gguf::vocab(metadata, Spelling::WordPiece)?;
    let mut vocab = Vocab::with_capacity(Spelling::WordPiece, stored.len(), stored.len() * 8);
    for (_, text, kind) in stored.iter() {
        vocab.push(&unmarked(text, kind), kind)?;
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
    let add_separator = metadata.bool_opt(ADD_SEPARATOR)?.unwrap_or(true);
    let unknown = id([gguf::UNKNOWN; 2], "[UNK]")?
        .ok_or(TextError::MissingSpecial { flag: gguf::MODEL, key: gguf::UNKNOWN })?;
    // A file that does not say whether text is lower-cased: a vocabulary without a capital letter does.
    let lowercase = metadata.bool_opt(LOWERCASE)?.unwrap_or_else(|| {
        !vocab.iter().any(|(_, text, kind)| {
            kind == TokenKind::Normal && !is_bracketed(text) && text.chars().any(char::is_uppercase)
        })
    });
    let cleaning = Cleaning {
        clean: metadata.bool_opt(CLEAN)?.unwrap_or(true),
        chinese: metadata.bool_opt(CHINESE)?.unwrap_or(true),
        strip_accents: metadata.bool_opt(STRIP_ACCENTS)?.unwrap_or(lowercase),
        lowercase,
    };
    let longest_word = metadata.u32_opt(LONGEST)?.map_or(LONGEST_WORD, |most| most as usize);
    let add_bos = metadata.bool_opt(gguf::ADD_BOS)?.unwrap_or(true) && cls.is_some();
    let closing = sep.filter(|_| add_separator);
    let between = match between(metadata, vocab.len(), None)? {
        Some(between) => Some(between),
        None => closing.map(|sep| vec![sep]),
    };
    // Some files have all of these as ordinary tokens.
    for id in [cls, sep, Some(unknown)].into_iter().flatten() {
        vocab.set_kind(id, TokenKind::Control);
    }
    let ends = eog::find(&mut vocab, None::<u32>);
    Ok(Inner {
        special: SpecialTokens::new(&vocab, gguf::strip(metadata, &vocab)?)?,
        merger: Merger::Words(WordPiece { cleaning, unknown, longest_word }),
        add_bos,
        bos: cls,
        eos: None,
        closing,
        between,
        space_prefix: SpacePrefix::Always,
        ends,
        vocab,
    })
}

/// A token as the convention has it, whose words begin with `▁` and go on without a mark.
pub(crate) fn marked(text: &str, kind: TokenKind) -> String {
    match (kind, text.strip_prefix(CONTINUES)) {
        (TokenKind::Normal, Some(rest)) => rest.to_owned(),
        (TokenKind::Normal, None) => format!("{SPACE}{text}"),
        _ => text.to_owned(),
    }
}

/// The inverse of [`marked`].
pub(crate) fn unmarked(text: &str, kind: TokenKind) -> String {
    match (kind, text.strip_prefix(SPACE)) {
        (TokenKind::Normal, Some(word)) => word.to_owned(),
        (TokenKind::Normal, None) if !is_bracketed(text) => format!("{CONTINUES}{text}"),
        _ => text.to_owned(),
    }
}

/// `[PAD]` and its like, which the convention leaves as they are.
pub(crate) fn is_bracketed(text: &str) -> bool {
    text.starts_with('[') && text.ends_with(']') && text.len() > 2
}
