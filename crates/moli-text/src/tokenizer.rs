//! Text to ids and back.

use crate::bpe::{BpeScratch, RankedBpe};
use crate::pretokenize::PreTokenizer;
use crate::special::{Fragment, SpecialTokens};
use crate::spm::ScoredBpe;
use crate::unigram::Unigram;
use crate::vocab::{SPACE, Spelling, TokenKind, Vocab};
use crate::wordpiece::WordPiece;
use crate::{RenderedPrompt, TextError, TextStream};
use moli_format::Metadata;
use std::borrow::Cow;
use std::collections::BTreeSet;
use std::sync::Arc;

/// What [`Tokenizer::encode`] adds and recognises.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EncodeOptions {
    /// Puts BOS before the text and [`closing`](Tokenizer::closing) behind it, as far as the model wants them.
    pub add_special: bool,
    /// Control tokens that are spelt out in the text become their ids. Without it they are ordinary text.
    /// User-defined tokens are recognised either way.
    pub parse_special: bool,
}

/// A tokenizer: a cheap handle, shared between threads.
#[derive(Clone)]
pub struct Tokenizer {
    inner: Arc<Inner>,
}

/// The part that merges.
pub(crate) enum Merger {
    /// Pieces of a pre-tokenizer, by ranked merges.
    Pieces { pre: PreTokenizer, bpe: RankedBpe, nfc: bool },
    /// Whole stretches of text with `▁` for spaces, by scores.
    Scored(ScoredBpe),
    /// Whole stretches of text with `▁` for spaces, by ranked merges.
    Ranked(RankedBpe),
    /// Words, by their longest beginnings.
    Words(WordPiece),
    /// Words or whole texts, by the greatest sum of scores.
    Likely(Unigram),
}

pub(crate) struct Inner {
    pub(crate) vocab: Vocab,
    pub(crate) merger: Merger,
    pub(crate) special: SpecialTokens,
    pub(crate) bos: Option<u32>,
    pub(crate) eos: Option<u32>,
    pub(crate) add_bos: bool,
    /// What comes behind a text: EOS in most models, where there is something.
    pub(crate) closing: Option<u32>,
    /// What comes between two texts that a model reads together; `None`: nothing says it.
    pub(crate) between: Option<Vec<u32>>,
    pub(crate) space_prefix: SpacePrefix,
    pub(crate) ends: BTreeSet<u32>,
}

/// Which stretches of text get a space in front.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SpacePrefix {
    Never,
    /// The text's beginning, unless it has one there.
    First,
    /// The beginning and what follows a special token, unless it has one there.
    Missing,
    /// The beginning and what follows a special token.
    Always,
}

impl SpacePrefix {
    pub(crate) fn always(yes: bool) -> Self {
        if yes { Self::Always } else { Self::Never }
    }
}

impl Tokenizer {
    pub(crate) fn new(inner: Inner) -> Self {
        Self { inner: Arc::new(inner) }
    }

    /// Builds the tokenizer that a GGUF's `tokenizer.ggml.*` keys describe: byte-level BPE (`gpt2`), SentencePiece
    /// BPE (`llama`), the ranked merges with spaces of `gemma4`, WordPiece (`bert`) and Unigram (`t5`).
    ///
    /// # Errors
    /// Every way in which the metadata can be incomplete, contradictory or unknown; see [`TextError`].
    pub fn from_gguf(metadata: &Metadata) -> Result<Self, TextError> {
        crate::gguf::load(metadata).map(Self::new)
    }

    /// Builds the tokenizer of a `tokenizer.json`, with BOS, EOS and their use from a `tokenizer_config.json`.
    ///
    /// # Errors
    /// Malformed JSON, and kinds of models, normalisers or pre-tokenizers that are not supported.
    pub fn from_json(tokenizer: &[u8], config: Option<&[u8]>) -> Result<Self, TextError> {
        crate::json::load(tokenizer, config).map(Self::new)
    }

    /// The ids of a text.
    ///
    /// # Errors
    /// [`TextError::Unrepresentable`] where the vocabulary has no token for a part of the text.
    pub fn encode(&self, text: &str, options: EncodeOptions) -> Result<Vec<u32>, TextError> {
        let inner = &*self.inner;
        let mut ids = Vec::with_capacity(text.len() / 3 + 2);
        if options.add_special && inner.add_bos {
            ids.extend(inner.bos);
        }
        inner.encode(text, options.parse_special, &[], &mut ids)?;
        if options.add_special {
            ids.extend(inner.closing);
        }
        Ok(ids)
    }

    /// The ids of two texts that a model reads together, and where the second begins: with the tokens that the model wants
    /// before, between and behind them. Control tokens that are spelt out are ordinary text.
    ///
    /// # Errors
    /// [`TextError::NoPairs`] where nothing says how they are joined; else as [`encode`](Self::encode).
    pub fn encode_pair(&self, first: &str, second: &str) -> Result<(Vec<u32>, usize), TextError> {
        let inner = &*self.inner;
        let between = inner.between.as_ref().ok_or(TextError::NoPairs)?;
        let mut ids = Vec::with_capacity((first.len() + second.len()) / 3 + 4);
        ids.extend(inner.bos.filter(|_| inner.add_bos));
        inner.encode(first, false, &[], &mut ids)?;
        ids.extend(between);
        let start = ids.len();
        inner.encode(second, false, &[], &mut ids)?;
        ids.extend(inner.closing);
        Ok((ids, start))
    }

    /// Whether it is known how a model wants two texts: see [`encode_pair`](Self::encode_pair).
    pub fn joins_pairs(&self) -> bool {
        self.inner.between.is_some()
    }

    /// The ids of a chat prompt: control tokens where the template wrote them and nowhere else. BOS comes first where
    /// the model wants one, once, whether or not the template wrote it; EOS is not added, since the answer follows.
    ///
    /// # Errors
    /// As [`encode`](Self::encode).
    pub fn encode_prompt(&self, prompt: &RenderedPrompt) -> Result<Vec<u32>, TextError> {
        let inner = &*self.inner;
        let mut ids = Vec::with_capacity(prompt.text().len() / 3 + 2);
        if inner.add_bos {
            ids.extend(inner.bos);
        }
        inner.encode(prompt.text(), true, prompt.barriers(), &mut ids)?;
        if inner.add_bos && ids.len() >= 2 && ids.first() == ids.get(1) {
            ids.remove(0);
        }
        Ok(ids)
    }

    /// The text of ids, as a whole: where the tokenizer puts an artificial space before a text, it is left out here.
    /// Control tokens show their text with `keep_special`, else nothing. Bytes that are not UTF-8 become U+FFFD.
    ///
    /// # Errors
    /// [`TextError::UnknownId`] for an id outside the vocabulary.
    pub fn decode(&self, ids: &[u32], keep_special: bool) -> Result<String, TextError> {
        let inner = &*self.inner;
        let mut bytes = Vec::with_capacity(ids.len() * 4);
        let mut first_is_text = None;
        for &id in ids {
            let before = bytes.len();
            if self.is_control(id) {
                if keep_special {
                    inner.vocab.push_bytes(id, &mut bytes);
                    first_is_text.get_or_insert(false);
                }
            } else if !inner.vocab.push_bytes(id, &mut bytes) {
                return Err(TextError::UnknownId { id, vocab: inner.vocab.len() });
            }
            if bytes.len() > before {
                first_is_text.get_or_insert(true);
            }
        }
        let start = usize::from(
            inner.space_prefix != SpacePrefix::Never
                && first_is_text == Some(true)
                && bytes.first() == Some(&b' '),
        );
        Ok(String::from_utf8_lossy(bytes.get(start..).unwrap_or_default()).into_owned())
    }

    /// The bytes that a token stands for; for a control token its text.
    pub fn token_bytes(&self, id: u32) -> Option<Cow<'_, [u8]>> {
        let mut bytes = Vec::new();
        self.inner.vocab.push_bytes(id, &mut bytes).then_some(Cow::Owned(bytes))
    }

    /// A token's text for display: bytes that are not UTF-8 by themselves become U+FFFD.
    pub fn token_text(&self, id: u32) -> Option<String> {
        self.token_bytes(id).map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
    }

    /// The first id whose token another tokenizer spells differently or does not have, and the token in each.
    pub fn first_difference(&self, other: &Self) -> Option<(u32, [Option<String>; 2])> {
        let all = self.vocab_size().max(other.vocab_size()) as u32;
        let id = (0..all).find(|&id| self.token_bytes(id) != other.token_bytes(id))?;
        Some((id, [self, other].map(|tokenizer| tokenizer.token_text(id))))
    }

    /// The id of a token, spelt as in the file (`Ġthe`, `▁the`, `<|im_end|>`).
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.inner.vocab.id(token)
    }

    /// The number of tokens; ids are below it.
    pub fn vocab_size(&self) -> usize {
        self.inner.vocab.len()
    }

    /// The token that begins a text, where the model has one.
    pub fn bos(&self) -> Option<u32> {
        self.inner.bos
    }

    /// The token that ends a text, where the model has one. More than this one may end an answer:
    /// see [`is_end_of_generation`](Self::is_end_of_generation).
    pub fn eos(&self) -> Option<u32> {
        self.inner.eos
    }

    /// Whether `encode` with `add_special` puts BOS first.
    pub fn adds_bos(&self) -> bool {
        self.inner.add_bos && self.inner.bos.is_some()
    }

    /// The token that `encode` with `add_special` puts behind a text, where the model wants one. Mostly EOS; where a
    /// `tokenizer.json` names another, that one.
    pub fn closing(&self) -> Option<u32> {
        self.inner.closing
    }

    /// Whether an answer is over with this token: EOS, and the end-of-turn tokens of all common families.
    pub fn is_end_of_generation(&self, id: u32) -> bool {
        self.inner.ends.contains(&id)
    }

    /// All tokens that end an answer, in ascending order.
    pub fn end_of_generation_ids(&self) -> impl Iterator<Item = u32> + '_ {
        self.inner.ends.iter().copied()
    }

    /// Whether the token is a control token (or the unknown token): it has no text of its own in an answer, and
    /// ordinary text never becomes it.
    pub fn is_control(&self, id: u32) -> bool {
        matches!(self.inner.vocab.kind(id), Some(TokenKind::Control | TokenKind::Unknown))
    }

    /// A new stream of text for ids.
    pub fn stream(&self) -> TextStream {
        TextStream::new(self.clone())
    }

    pub(crate) fn special(&self) -> &SpecialTokens {
        &self.inner.special
    }

    pub(crate) fn vocab(&self) -> &Vocab {
        &self.inner.vocab
    }
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer").field("vocab_size", &self.vocab_size()).finish_non_exhaustive()
    }
}

impl Inner {
    fn encode(
        &self,
        text: &str,
        control: bool,
        barriers: &[usize],
        ids: &mut Vec<u32>,
    ) -> Result<(), TextError> {
        let mut scratch = BpeScratch::new();
        let mut after_special = true;
        for fragment in self.special.split(text, control, barriers) {
            match fragment {
                Fragment::Token(id) => {
                    ids.push(id);
                    after_special = true;
                }
                Fragment::Text(range) => {
                    let begins = range.start == 0;
                    let text = text.get(range).unwrap_or("");
                    if let Merger::Likely(unigram) = &self.merger {
                        unigram.encode(&self.vocab, text, begins, ids)?;
                        continue;
                    }
                    let prefix = match self.space_prefix {
                        SpacePrefix::Never => false,
                        SpacePrefix::First => begins && !text.starts_with([' ', SPACE]),
                        SpacePrefix::Missing => after_special && !text.starts_with([' ', SPACE]),
                        SpacePrefix::Always => after_special,
                    };
                    self.encode_text(text, prefix, &mut scratch, ids)?;
                    after_special = false;
                }
            }
        }
        Ok(())
    }

    fn encode_text(
        &self,
        text: &str,
        prefix: bool,
        scratch: &mut BpeScratch,
        ids: &mut Vec<u32>,
    ) -> Result<(), TextError> {
        match &self.merger {
            Merger::Pieces { pre, bpe, nfc } => {
                let text = if *nfc { crate::json::nfc(text) } else { Cow::Borrowed(text) };
                for piece in pre.pieces(&text, 0..text.len()) {
                    bpe.encode(&self.vocab, text.get(piece).unwrap_or(""), scratch, ids)?;
                }
                Ok(())
            }
            Merger::Scored(merger) => {
                merger.encode(&self.vocab, &self.escape(text, prefix), ids);
                Ok(())
            }
            Merger::Words(words) => {
                words.encode(&self.vocab, text, ids);
                Ok(())
            }
            Merger::Ranked(bpe) => bpe.encode(&self.vocab, &self.escape(text, prefix), scratch, ids),
            Merger::Likely(unigram) => unigram.encode(&self.vocab, text, prefix, ids),
        }
    }

    /// Spaces to `▁`, and one in front where `prefix` says so.
    fn escape(&self, text: &str, prefix: bool) -> String {
        debug_assert_eq!(self.vocab.spelling(), Spelling::SentencePiece);
        let mut escaped = String::with_capacity(text.len() + text.len() / 2);
        if prefix {
            escaped.push(SPACE);
        }
        escaped.extend(text.chars().map(|c| if c == ' ' { SPACE } else { c }));
        escaped
    }
}
