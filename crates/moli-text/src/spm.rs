//! SentencePiece's BPE: again and again, the adjacent pair whose joined text is the token of the highest score
//! becomes one; of equals the leftmost.
//!
//! The `tokenizers` crate has ranked merges only. They could be derived from the scores, every way to cut each token
//! in two, but that is a million pairs and about a second at load for the 262,144 tokens of Gemma, and two cuts of
//! one token would have different ranks where SentencePiece knows one score. This loop needs nothing but the table
//! from text to id.

use crate::TextError;
use crate::vocab::{TokenKind, Vocab, parse_byte_token};
use std::cmp::Ordering;
use std::collections::BinaryHeap;

/// Scores and byte tokens of a SentencePiece vocabulary.
pub(crate) struct ScoredBpe {
    scores: Vec<f32>,
    bytes: Box<[Option<u32>; 256]>,
    /// For vocabularies without byte tokens.
    unknown: Option<u32>,
    longest: usize,
}

/// A stretch of text that is one symbol by now.
struct Symbol {
    start: usize,
    /// In bytes; 0 once it is part of its left neighbour.
    len: usize,
    previous: usize,
    next: usize,
}

const NONE: usize = usize::MAX;

struct Pair {
    score: f32,
    left: usize,
    right: usize,
    /// The joined length when the pair was seen: if it has changed since, the pair is out of date.
    len: usize,
}

impl Ord for Pair {
    fn cmp(&self, other: &Self) -> Ordering {
        self.score.total_cmp(&other.score).then(other.left.cmp(&self.left)).then(self.len.cmp(&other.len))
    }
}

impl PartialOrd for Pair {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Pair {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Pair {}

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
        let mut symbols: Vec<Symbol> = text
            .char_indices()
            .enumerate()
            .map(|(i, (start, c))| Symbol {
                start,
                len: c.len_utf8(),
                previous: if i == 0 { NONE } else { i - 1 },
                next: i + 1,
            })
            .collect();
        let Some(last) = symbols.last_mut() else { return };
        last.next = NONE;

        let mut queue = BinaryHeap::with_capacity(symbols.len());
        for right in 1..symbols.len() {
            queue.extend(self.pair(vocab, text, &symbols, right - 1, right));
        }
        while let Some(pair) = queue.pop() {
            let (Some(left), Some(right)) = (symbols.get(pair.left), symbols.get(pair.right)) else {
                continue;
            };
            if left.len == 0 || right.len == 0 || left.len + right.len != pair.len {
                continue;
            }
            let (previous, next) = (left.previous, right.next);
            if let Some(right) = symbols.get_mut(pair.right) {
                right.len = 0;
            }
            if let Some(left) = symbols.get_mut(pair.left) {
                left.len = pair.len;
                left.next = next;
            }
            if let Some(after) = symbols.get_mut(next) {
                after.previous = pair.left;
            }
            queue.extend(self.pair(vocab, text, &symbols, previous, pair.left));
            queue.extend(self.pair(vocab, text, &symbols, pair.left, next));
        }

        let mut at = 0;
        while let Some(symbol) = symbols.get(at) {
            let piece = text.get(symbol.start..symbol.start + symbol.len).unwrap_or("");
            match self.token(vocab, piece) {
                Some(id) => out.push(id),
                None => {
                    // A single character without a token of its own.
                    let ids =
                        piece.bytes().filter_map(|byte| self.bytes.get(usize::from(byte)).copied().flatten());
                    let before = out.len();
                    out.extend(ids);
                    if out.len() == before {
                        out.extend(self.unknown);
                    }
                }
            }
            at = symbol.next;
        }
    }

    fn token(&self, vocab: &Vocab, text: &str) -> Option<u32> {
        vocab.id(text).filter(|&id| vocab.kind(id).is_some_and(may_merge))
    }

    fn pair(&self, vocab: &Vocab, text: &str, symbols: &[Symbol], left: usize, right: usize) -> Option<Pair> {
        let (first, second) = (symbols.get(left)?, symbols.get(right)?);
        let len = first.len + second.len;
        if len > self.longest {
            return None;
        }
        let id = self.token(vocab, text.get(first.start..first.start + len)?)?;
        Some(Pair { score: *self.scores.get(id as usize)?, left, right, len })
    }
}

/// Control, unknown and byte tokens are never made from text by merging.
fn may_merge(kind: TokenKind) -> bool {
    matches!(kind, TokenKind::Normal | TokenKind::UserDefined | TokenKind::Unused)
}
