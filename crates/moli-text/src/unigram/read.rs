//! Unigram from a `tokenizer.json` and from a GGUF.

use super::charsmap::Charsmap;
use super::normalize::Step;
use super::{Metaspace, Preparation, Unigram, Words};
use crate::encoders;
use crate::gguf::{self, ADD_SPACE, SCORES, Special};
use crate::json::{self, Around, bad, flag, kind, sequence, special, unsupported};
use crate::special::{SpecialTokens, Strip};
use crate::tokenizer::{Inner, Merger, SpacePrefix};
use crate::vocab::{Spelling, TokenKind};
use crate::{TextError, eog};
use moli_format::Metadata;
use serde_json::Value;
use std::collections::HashMap;

pub(crate) const CHARSMAP: &str = "tokenizer.ggml.precompiled_charsmap";
pub(crate) const TRIM: &str = "tokenizer.ggml.remove_extra_whitespaces";
const SUFFIX: &str = "tokenizer.ggml.treat_whitespace_as_suffix";
const ESCAPE: &str = "tokenizer.ggml.escape_whitespaces";
/// These parts of a `tokenizer.json`, which does other things with a text than SentencePiece: the first without the table of
/// [`CHARSMAP`].
pub(crate) const NORMALIZER: &str = "moli.tokenizer.normalizer";
pub(crate) const PRE_TOKENIZER: &str = "moli.tokenizer.pre_tokenizer";

/// Unigram of a `tokenizer.json`, whose model this is.
pub(crate) fn of_json(
    root: &Value,
    model: &Value,
    config: &Value,
) -> Result<(Inner, HashMap<u32, Strip>), TextError> {
    let pieces = model.get("vocab").and_then(Value::as_array).ok_or_else(|| bad("no vocabulary"))?;
    let (mut texts, mut scores) = (Vec::with_capacity(pieces.len()), Vec::with_capacity(pieces.len()));
    for (id, piece) in pieces.iter().enumerate() {
        let Some((text, score)) =
            piece.get(0).and_then(Value::as_str).zip(piece.get(1).and_then(Value::as_f64))
        else {
            return Err(bad(format!("piece {id} is not a text with a score")));
        };
        texts.push(text);
        scores.push(score);
    }
    let fallback = flag(model, "byte_fallback", false);
    let tokens = texts.into_iter().enumerate().map(|(id, text)| (text, Some(id as u64)));
    let (mut vocab, strip) = json::collect_vocab(root, tokens, Spelling::SentencePiece, fallback)?;
    let unknown = match model.get("unk_id").filter(|id| !id.is_null()) {
        None => None,
        Some(id) => match id.as_u64().filter(|&id| id < scores.len() as u64) {
            Some(id) => Some(id as u32),
            None => return Err(bad(format!("unk_id is {id}, and there are {} pieces", scores.len()))),
        },
    };
    if let Some(id) = unknown.filter(|&id| vocab.kind(id) == Some(TokenKind::Normal)) {
        vocab.set_kind(id, TokenKind::Unknown);
    }
    let steps = Step::read(root.get("normalizer").unwrap_or(&Value::Null))?;
    let words = Words::read(root.get("pre_tokenizer").unwrap_or(&Value::Null))?;
    let bos = special(config, "bos_token", &vocab, &["<s>", "<bos>"])?;
    let eos = special(config, "eos_token", &vocab, &["</s>", "<eos>"])?;
    let ends = eog::find(&mut vocab, eos);
    let around = Around::read(root, &vocab);
    let space_prefix = space_prefix(&steps, &words);
    // Control tokens are found before, where they are wanted, and are never made of text.
    let is_piece = |kind| !matches!(kind, TokenKind::Control | TokenKind::Unknown);
    let least = scores.iter().copied().fold(f64::INFINITY, f64::min);
    let preparation = Preparation::Pipeline { steps, words };
    let unigram = Unigram::new(&vocab, scores, unknown, preparation, is_piece, least, fallback)?;
    let inner = Inner {
        special: SpecialTokens::new(&vocab, strip.clone())?,
        merger: Merger::Likely(unigram),
        add_bos: around.begins.is_some(),
        bos: around.begins.or(bos),
        eos,
        closing: around.finishes,
        between: around.between,
        space_prefix,
        ends,
        vocab,
    };
    Ok((inner, strip))
}

/// Whether a text of these words begins with an artificial space.
fn space_prefix(steps: &[Step], words: &Words) -> SpacePrefix {
    match words.metaspace {
        Some(Metaspace::Always) => SpacePrefix::Missing,
        Some(Metaspace::First) => SpacePrefix::First,
        Some(Metaspace::Never) => SpacePrefix::Never,
        None => SpacePrefix::always(steps.iter().any(|step| matches!(step, Step::Prepend(_)))),
    }
}

/// A normalizer whose table of replacements, if it has one, is this; `None`: none.
pub(crate) fn with_charsmap(mut normalizer: Value, charsmap: Option<&str>) -> Value {
    let put = |part: &mut Value| {
        if kind(part) == "Precompiled"
            && let Value::Object(part) = part
        {
            part.insert("precompiled_charsmap".to_owned(), charsmap.into());
        }
    };
    match normalizer.get_mut("normalizers").and_then(Value::as_array_mut) {
        Some(parts) => parts.iter_mut().for_each(put),
        None => put(&mut normalizer),
    }
    normalizer
}

/// What is done before pieces are looked for, of a GGUF, and whether a text begins with an artificial space.
fn preparation(metadata: &Metadata) -> Result<(Preparation, SpacePrefix), TextError> {
    let map = match metadata.bytes_opt(CHARSMAP)? {
        Some(blob) if !blob.is_empty() => Some(Charsmap::new(blob)?),
        _ => None,
    };
    if let Some(normalizer) = metadata.str_opt(NORMALIZER)? {
        let table = map.as_ref().map(Charsmap::to_base64);
        let normalizer = with_charsmap(json::parse(normalizer.as_bytes())?, table.as_deref());
        let words = metadata.str_opt(PRE_TOKENIZER)?.unwrap_or("null");
        let (steps, words) = (Step::read(&normalizer)?, Words::read(&json::parse(words.as_bytes())?)?);
        let prefix = space_prefix(&steps, &words);
        return Ok((Preparation::Pipeline { steps, words }, prefix));
    }
    let prefix = metadata.bool_opt(ADD_SPACE)?.unwrap_or(true);
    let preparation = Preparation::SentencePiece {
        map,
        trim: metadata.bool_opt(TRIM)?.unwrap_or(true),
        prefix,
        suffix: metadata.bool_opt(SUFFIX)?.unwrap_or(false),
    };
    Ok((preparation, SpacePrefix::always(prefix)))
}

impl Words {
    /// The words of a `pre_tokenizer`.
    fn read(value: &Value) -> Result<Self, TextError> {
        const WHAT: &str = "tokenizer.json pre_tokenizer";
        let mut words = Self { white_space: false, metaspace: None, split: false };
        for part in sequence(value, "pretokenizers") {
            match kind(part) {
                "" => {}
                "WhitespaceSplit" if words.metaspace.is_none() => words.white_space = true,
                "Metaspace" if words.metaspace.is_none() => {
                    if part.get("replacement").and_then(Value::as_str).is_some_and(|text| text != "▁") {
                        return Err(unsupported(WHAT, "Metaspace with another character"));
                    }
                    words.split = flag(part, "split", true);
                    words.metaspace = Some(match part.get("prepend_scheme").and_then(Value::as_str) {
                        Some("first") => Metaspace::First,
                        Some("never") => Metaspace::Never,
                        None if !flag(part, "add_prefix_space", true) => Metaspace::Never,
                        _ => Metaspace::Always,
                    });
                }
                other => return Err(unsupported(WHAT, other)),
            }
        }
        Ok(words)
    }
}

/// Unigram of a GGUF: what a SentencePiece model says.
pub(crate) fn of_gguf(metadata: &Metadata) -> Result<Inner, TextError> {
    if metadata.bool_opt(ESCAPE)? == Some(false) {
        return Err(unsupported(ESCAPE, "false"));
    }
    let mut vocab = gguf::vocab(metadata, Spelling::SentencePiece)?;
    let scores: Vec<f64> = metadata.f32s(SCORES)?.iter().map(|&score| score.into()).collect();
    if scores.len() != vocab.len() {
        return Err(TextError::LengthMismatch { key: SCORES, expected: vocab.len(), actual: scores.len() });
    }
    // T5's own ids, which its files don't name.
    let special = Special::read(metadata, &vocab, None, Some(1), Some(2))?;
    if let Some(id) = special.unknown {
        vocab.set_kind(id, TokenKind::Unknown);
    }
    let ends = eog::find(&mut vocab, special.ends());
    // A file of T5 names no BOS, one of XLM-RoBERTa does, and may leave out that it comes first.
    let (add_bos, add_eos) = special.flags(metadata, [true, true])?;
    let closing = special.eos.filter(|_| add_eos);
    let between = encoders::between(metadata, vocab.len(), closing)?;
    let (preparation, space_prefix) = preparation(metadata)?;
    let is_piece: fn(TokenKind) -> bool = match preparation {
        // As of the file that it was. Rows without a token are none of its pieces.
        Preparation::Pipeline { .. } => {
            |kind| !matches!(kind, TokenKind::Control | TokenKind::Unknown | TokenKind::Unused)
        }
        Preparation::SentencePiece { .. } => {
            |kind| matches!(kind, TokenKind::Normal | TokenKind::UserDefined)
        }
    };
    let fallback = vocab.iter().any(|(.., kind)| kind == TokenKind::Byte);
    let counted = vocab.iter().zip(&scores).filter(|((.., kind), _)| *kind == TokenKind::Normal);
    let least = counted.map(|(_, &score)| score).fold(f64::INFINITY, f64::min);
    let unigram = Unigram::new(&vocab, scores, special.unknown, preparation, is_piece, least, fallback)?;
    Ok(Inner {
        special: SpecialTokens::new(&vocab, gguf::strip(metadata, &vocab)?)?,
        merger: Merger::Likely(unigram),
        bos: special.bos,
        eos: special.eos,
        add_bos,
        closing,
        between,
        space_prefix,
        ends,
        vocab,
    })
}
