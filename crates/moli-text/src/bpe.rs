//! Byte-pair encoding by ranked merges (Sennrich and others, arXiv:1508.07909).
//!
//! Tokens are numbers from the start: a merge is looked up by the ids of its two sides, and no text is kept beside the
//! vocabulary's own. Each merge is checked, and those of control tokens are left out: no merge can make one from text.

use std::cmp::Reverse;

use crate::TextError;
use crate::merge::Symbols;
use crate::vocab::{Spelling, TokenKind, Vocab, char_of_byte};
use hashbrown::HashMap;

/// A ranked-merge model over pieces of text.
pub(crate) struct RankedBpe {
    /// From the ids of two neighbours to what they become.
    merges: HashMap<(u32, u32), Merge, ahash::RandomState>,
    /// The token of each byte: what byte-level text is made of, and what stands for an unknown character elsewhere.
    bytes: Box<[Option<u32>; 256]>,
    options: BpeOptions,
}

#[derive(Clone, Copy)]
struct Merge {
    /// The lower, the more urgent.
    rank: u32,
    id: u32,
}

/// How to build a [`RankedBpe`].
pub(crate) struct BpeOptions {
    pub(crate) ignore_merges: bool,
    /// SentencePiece spelling: an unknown character becomes its `<0xHH>` tokens.
    pub(crate) byte_fallback: bool,
    /// The token of an unknown character, where there is one and no byte fallback.
    pub(crate) unknown: Option<u32>,
    pub(crate) fuse_unknown: bool,
}

/// What encoding works in, used again from piece to piece.
pub(crate) struct BpeScratch {
    symbols: Symbols<Reverse<u32>>,
    spelled: String,
}

impl BpeScratch {
    pub(crate) fn new() -> Self {
        Self { symbols: Symbols::new(), spelled: String::new() }
    }
}

impl RankedBpe {
    /// `pairs` are merges as pairs of token texts, the first the most urgent.
    pub(crate) fn new<'a>(
        vocab: &Vocab,
        pairs: impl ExactSizeIterator<Item = (&'a str, &'a str)>,
        options: BpeOptions,
    ) -> Result<Self, TextError> {
        let mut merges = HashMap::with_capacity_and_hasher(pairs.len(), ahash::RandomState::new());
        let mut joined = String::new();
        for (index, (left, right)) in pairs.enumerate() {
            joined.clear();
            joined.push_str(left);
            joined.push_str(right);
            let (Some(first), Some(second), Some(id)) = (vocab.id(left), vocab.id(right), vocab.id(&joined))
            else {
                return Err(TextError::InvalidMerge { index, merge: format!("{left} {right}") });
            };
            if [first, second, id].iter().all(|&id| is_text(vocab, id)) {
                merges.insert((first, second), Merge { rank: index as u32, id });
            }
        }
        let mut bytes = Box::new([None; 256]);
        for (byte, slot) in (0..=255).zip(bytes.iter_mut()) {
            *slot = match vocab.spelling() {
                Spelling::ByteLevel => token(vocab, char_of_byte(byte).encode_utf8(&mut [0; 4])),
                Spelling::SentencePiece if options.byte_fallback => token(vocab, &format!("<0x{byte:02X}>")),
                Spelling::SentencePiece | Spelling::WordPiece => None,
            };
        }
        Ok(Self { merges, bytes, options })
    }

    /// Whether a piece that is a token is that token, whatever the merges make of it.
    pub(crate) fn ignores_merges(&self) -> bool {
        self.options.ignore_merges
    }

    /// Appends the ids of one piece.
    pub(crate) fn encode(
        &self,
        vocab: &Vocab,
        piece: &str,
        scratch: &mut BpeScratch,
        out: &mut Vec<u32>,
    ) -> Result<(), TextError> {
        let BpeScratch { symbols, spelled } = scratch;
        symbols.clear();
        if self.options.ignore_merges {
            spelled.clear();
            match vocab.spelling() {
                Spelling::ByteLevel => spelled.extend(piece.bytes().map(char_of_byte)),
                Spelling::SentencePiece | Spelling::WordPiece => spelled.push_str(piece),
            }
            if let Some(id) = token(vocab, spelled) {
                out.push(id);
                return Ok(());
            }
        }
        let mut after_unknown = false;
        for (start, c) in piece.char_indices() {
            let text = piece.get(start..start + c.len_utf8()).unwrap_or("");
            let whole = if vocab.spelling() == Spelling::ByteLevel { None } else { token(vocab, text) };
            let byte = |byte| self.bytes.get(usize::from(byte)).copied().flatten();
            if let Some(id) = whole {
                symbols.push(Some(id), text.len());
            } else if text.bytes().all(|b| byte(b).is_some()) {
                text.bytes().for_each(|b| symbols.push(byte(b), 1));
            } else if let Some(unknown) = self.options.unknown {
                if after_unknown && self.options.fuse_unknown {
                    symbols.extend_last(text.len());
                } else {
                    symbols.push(Some(unknown), text.len());
                }
                after_unknown = true;
                continue;
            } else {
                return Err(TextError::Unrepresentable { text: text.to_owned() });
            }
            after_unknown = false;
        }
        symbols.merge(|left, right| {
            let merge = self.merges.get(&(left.id?, right.id?))?;
            Some((Reverse(merge.rank), merge.id))
        });
        out.extend(symbols.iter().filter_map(|symbol| symbol.id));
        Ok(())
    }
}

/// The token of this text, if text may become it.
fn token(vocab: &Vocab, text: &str) -> Option<u32> {
    vocab.id(text).filter(|&id| is_text(vocab, id))
}

fn is_text(vocab: &Vocab, id: u32) -> bool {
    !matches!(vocab.kind(id), Some(TokenKind::Control | TokenKind::Unknown))
}
