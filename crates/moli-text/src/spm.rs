//! SentencePiece's BPE: again and again, the adjacent pair whose joined text is the token of the highest score
//! becomes one; of equals the leftmost.
//!
//! Ranked merges could be derived from the scores, every way to cut each token in two, but that is a million pairs and
//! about a second at load for the 262,144 tokens of Gemma, and two cuts of one token would have different ranks where
//! SentencePiece knows one score. This needs nothing but the table from text to id.

use crate::TextError;
use crate::merge::Symbols;
use crate::vocab::{TokenKind, Vocab, parse_byte_token};
use std::cmp::Ordering;

/// Scores and byte tokens of a SentencePiece vocabulary.
pub(crate) struct ScoredBpe {
    scores: Vec<f32>,
    bytes: Box<[Option<u32>; 256]>,
    /// For vocabularies without byte tokens.
    unknown: Option<u32>,
    longest: usize,
}

/// How good a merge is: the greater, the more urgent.
struct Score(f32);

impl Ord for Score {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.total_cmp(&other.0)
    }
}

impl PartialOrd for Score {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Score {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Score {}

impl ScoredBpe {
    /// `scores`: one for each token. A vocabulary has all 256 byte tokens, or none and an unknown token.
    pub(crate) fn new(vocab: &Vocab, scores: Vec<f32>, unknown: Option<u32>) -> Result<Self, TextError> {
        let mut bytes = Box::new([None; 256]);
        let mut longest = 0;
        for (id, text, kind) in vocab.iter() {
            if kind == TokenKind::Byte {
                if let Some(slot) = parse_byte_token(text).and_then(|byte| bytes.get_mut(usize::from(byte))) {
                    *slot = Some(id);
                }
            } else if may_merge(kind) {
                longest = longest.max(text.len());
            }
        }
        let none = bytes.iter().all(Option::is_none);
        if let Some(byte) = bytes.iter().position(Option::is_none).filter(|_| !(none && unknown.is_some())) {
            return Err(TextError::MissingByteToken { byte: byte as u8 });
        }
        Ok(Self { scores, bytes, unknown, longest })
    }

    /// Appends the ids of `text`, whose spaces are `▁` already.
    pub(crate) fn encode(&self, vocab: &Vocab, text: &str, out: &mut Vec<u32>) {
        let token = |start: usize, len: usize| {
            let id = vocab.id(text.get(start..start + len)?)?;
            vocab.kind(id).is_some_and(may_merge).then_some(id)
        };
        let mut symbols = Symbols::new();
        for (start, c) in text.char_indices() {
            symbols.push(token(start, c.len_utf8()), c.len_utf8());
        }
        symbols.merge(|left, right| {
            let len = left.len + right.len;
            let id = if len <= self.longest { token(left.start, len)? } else { return None };
            Some((Score(*self.scores.get(id as usize)?), id))
        });
        for symbol in symbols.iter() {
            if symbol.id.is_some() {
                out.extend(symbol.id);
                continue;
            }
            // A single character without a token of its own.
            let piece = text.get(symbol.start..symbol.start + symbol.len).unwrap_or("");
            let before = out.len();
            out.extend(piece.bytes().filter_map(|byte| self.bytes.get(usize::from(byte)).copied().flatten()));
            if out.len() == before {
                out.extend(self.unknown);
            }
        }
    }
}

/// Control, unknown and byte tokens are never made from text by merging.
fn may_merge(kind: TokenKind) -> bool {
    matches!(kind, TokenKind::Normal | TokenKind::UserDefined | TokenKind::Unused)
}
