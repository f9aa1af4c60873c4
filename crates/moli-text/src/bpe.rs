//! Byte-pair encoding by ranked merges, on the `tokenizers` crate's model.
//!
//! The crate trusts its input: a merge whose result is longer than every token, or a result without an id, would be
//! a panic. So each merge is checked here first, and control tokens are left out: no merge can make one from text.

use crate::TextError;
use crate::vocab::{Spelling, TokenKind, Vocab, char_of_byte};
use ahash::AHashMap;
use tokenizers::Model;
use tokenizers::models::bpe::BPE;

/// A ranked-merge model over pieces of text.
pub(crate) struct RankedBpe {
    model: BPE,
    /// For byte-level vocabularies: the bytes that have no token.
    missing: Vec<u8>,
    spelling: Spelling,
    byte_fallback: bool,
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

impl RankedBpe {
    /// `merges` are pairs of token texts, the first the most urgent.
    pub(crate) fn new<'a>(
        vocab: &Vocab,
        merges: impl ExactSizeIterator<Item = (&'a str, &'a str)>,
        options: &BpeOptions,
    ) -> Result<Self, TextError> {
        let text_kinds = |kind| !matches!(kind, Some(TokenKind::Control | TokenKind::Unknown));
        let mut pairs = Vec::with_capacity(merges.len());
        let mut joined = String::new();
        for (index, (left, right)) in merges.enumerate() {
            joined.clear();
            joined.push_str(left);
            joined.push_str(right);
            let ids = [vocab.id(left), vocab.id(right), vocab.id(&joined)];
            if left.is_empty() || right.is_empty() || ids.contains(&None) {
                return Err(TextError::InvalidMerge { index, merge: format!("{left} {right}") });
            }
            if ids.iter().all(|id| id.is_some_and(|id| text_kinds(vocab.kind(id)))) {
                pairs.push((left.to_owned(), right.to_owned()));
            }
        }
        let mut table: AHashMap<String, u32> = AHashMap::with_capacity(vocab.len());
        for (id, text, kind) in vocab.iter() {
            let unknown = options.unknown == Some(id);
            if !text.is_empty() && (unknown || text_kinds(Some(kind))) {
                table.insert(text.to_owned(), id);
            }
        }
        let spelling = vocab.spelling();
        let missing = match spelling {
            Spelling::ByteLevel => {
                let has = |byte: &u8| vocab.id(char_of_byte(*byte).encode_utf8(&mut [0; 4])).is_some();
                (0..=255).filter(|byte| !has(byte)).collect()
            }
            Spelling::SentencePiece => Vec::new(),
        };
        let mut builder = BPE::builder()
            .vocab_and_merges(table, pairs)
            // The crate's cache lives in each thread for as long as the thread does.
            .cache_capacity(0)
            .fuse_unk(options.fuse_unknown)
            .byte_fallback(options.byte_fallback)
            .ignore_merges(options.ignore_merges);
        if let Some(unknown) = options.unknown.and_then(|id| vocab.get(id)) {
            builder = builder.unk_token(unknown.to_owned());
        }
        let model = builder.build().map_err(|error| TextError::Json { message: error.to_string() })?;
        Ok(Self { model, missing, spelling, byte_fallback: options.byte_fallback })
    }

    /// Appends the ids of one piece. `scratch` is for its byte-level spelling.
    pub(crate) fn encode(
        &self,
        piece: &str,
        scratch: &mut String,
        out: &mut Vec<u32>,
    ) -> Result<(), TextError> {
        let spelled = match self.spelling {
            Spelling::ByteLevel => {
                scratch.clear();
                for byte in piece.bytes() {
                    // The crate would drop it in silence.
                    if self.missing.contains(&byte) {
                        return Err(unrepresentable(piece, &self.missing));
                    }
                    scratch.push(char_of_byte(byte));
                }
                scratch.as_str()
            }
            Spelling::SentencePiece => piece,
        };
        let tokens =
            self.model.tokenize(spelled).map_err(|error| TextError::Json { message: error.to_string() })?;
        if self.spelling == Spelling::SentencePiece && self.model.unk_token.is_none() && !self.byte_fallback {
            let covered: usize = tokens.iter().map(|token| token.offsets.1 - token.offsets.0).sum();
            if covered != spelled.len() {
                return Err(TextError::Unrepresentable { text: piece.chars().take(32).collect() });
            }
        }
        out.extend(tokens.into_iter().map(|token| token.id));
        Ok(())
    }
}

fn unrepresentable(piece: &str, missing: &[u8]) -> TextError {
    let character =
        piece.chars().find(|c| c.encode_utf8(&mut [0; 4]).bytes().any(|byte| missing.contains(&byte)));
    TextError::Unrepresentable { text: character.map(String::from).unwrap_or_default() }
}
