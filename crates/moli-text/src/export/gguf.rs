//! `tokenizer.ggml.*` for a `tokenizer.json`.
//!
//! What the format has no place for is said in keys of Moli's own, and in a note where other programs would read a text
//! otherwise.

use std::collections::HashMap;

use moli_format::{Metadata, StringArray, Value};

use super::{MASK, PADDING, merges_from_text};
use crate::gguf::{
    ADD_BOS, ADD_EOS, ADD_SPACE, BOS, EOM, EOS, EOT, IGNORE_MERGES, LEFT_STRIP, MERGES, MODEL, NFC, PRE,
    RIGHT_STRIP, SCORES, SPACE_PREFIX, TOKENS, TYPES, UNKNOWN,
};
use crate::json::Parts;
use crate::special::Strip;
use crate::tokenizer::{Inner, Merger, SpacePrefix};
use crate::vocab::{Spelling, TokenKind, Vocab};
use crate::{TextError, encoders, eog, huggingface, json, pretokenize};
use serde_json::Value as Json;

pub(super) const FORM: &str = "GGUF";

/// A tokenizer as GGUF has it.
#[derive(Debug, Clone)]
pub struct GgufTokenizer {
    /// Keys and values.
    pub entries: Vec<(String, Value)>,
    /// Sentences about what other programs do otherwise.
    pub notes: Vec<String>,
}

/// The tokenizer of metadata that was a Hugging Face folder; `None` if it was not, and has the keys. `rows`: of the model's
/// embeddings, each of which gets a token.
///
/// # Errors
/// [`TextError::NoTokenizer`] if the folder has none, [`TextError::TooManyTokens`], [`TextError::Inexpressible`] with what GGUF
/// can't say, and all that can be wrong with a `tokenizer.json`.
pub fn gguf_tokenizer(metadata: &Metadata, rows: Option<usize>) -> Result<Option<GgufTokenizer>, TextError> {
    let Some((root, config)) = huggingface::files(metadata)? else { return Ok(None) };
    let (mut inner, parts) = json::read(&root, &config)?;
    huggingface::complete(metadata, &mut inner)?;
    let mut made = GgufTokenizer { entries: Vec::new(), notes: Vec::new() };
    let mut unknown = parts.unknown;
    match (&inner.merger, inner.vocab.spelling()) {
        (Merger::Words(words), _) => made.word_piece(&inner, words)?,
        (Merger::Likely(unigram), _) => {
            unknown = unigram.unknown();
            made.unigram(&root, &inner, unigram, rows)?;
        }
        (_, Spelling::ByteLevel) => made.byte_level(&parts)?,
        (_, Spelling::SentencePiece | Spelling::WordPiece) => made.sentence_piece(&inner, &parts, rows)?,
    }
    made.tokens(&inner.vocab, unknown, rows)?;
    if inner.vocab.spelling() == Spelling::WordPiece {
        made.around_words(&inner);
    } else {
        made.special(&mut inner);
    }
    made.between(&inner, metadata)?;
    made.fillers(&inner.vocab, metadata, &config)?;
    made.strip(&parts.strip);
    Ok(Some(made))
}

impl GgufTokenizer {
    pub(super) fn put(&mut self, key: &str, value: impl Into<Value>) {
        self.entries.push((key.to_owned(), value.into()));
    }

    pub(super) fn note(&mut self, text: &str) {
        self.notes.push(text.to_owned());
    }

    /// Byte-level BPE: the name of the pre-tokenizer, and merges.
    fn byte_level(&mut self, parts: &Parts<'_>) -> Result<(), TextError> {
        let cuts = parts.cuts.as_deref().unwrap_or_default();
        let Some((name, spec)) = pretokenize::named(cuts, parts.ignore_merges, parts.nfc) else {
            let what = match &parts.cuts {
                Some(cuts) => format!("a pre-tokenizer of its own, {}", cuts.join(" then ")),
                None => "a pre-tokenizer that does more than cut at the matches of expressions".to_owned(),
            };
            return Err(TextError::Inexpressible { form: FORM, what });
        };
        self.put(MODEL, "gpt2");
        self.put(PRE, name);
        self.put(MERGES, merges(&parts.merges)?);
        if spec.nfc != parts.nfc {
            self.put(NFC, parts.nfc);
        }
        if spec.ignore_merges != parts.ignore_merges {
            self.put(IGNORE_MERGES, parts.ignore_merges);
            self.note("words that are tokens by themselves: other programs may merge some of them otherwise");
        }
        Ok(())
    }

    /// SentencePiece: scores if the merges follow from some, else the merges.
    fn sentence_piece(
        &mut self,
        inner: &Inner,
        parts: &Parts<'_>,
        rows: Option<usize>,
    ) -> Result<(), TextError> {
        let vocab = &inner.vocab;
        let bytes = vocab.iter().filter(|(_, _, kind)| *kind == TokenKind::Byte).count();
        if !parts.byte_fallback || bytes != 256 {
            let what = "SentencePiece without a token for each byte".to_owned();
            return Err(TextError::Inexpressible { form: FORM, what });
        }
        if parts.ignore_merges {
            let what = "SentencePiece with ignore_merges".to_owned();
            return Err(TextError::Inexpressible { form: FORM, what });
        }
        match scores(vocab, &parts.merges) {
            Some(mut scores) => {
                scores.resize(rows.unwrap_or(vocab.len()), LEAST);
                self.put(MODEL, "llama");
                self.put(PRE, "default");
                self.put(SCORES, scores);
            }
            None => {
                self.put(MODEL, "gemma4");
                self.put(MERGES, merges(&parts.merges)?);
                self.note(
                    "merges that no scores give: programs that don't know the tokenizer gemma4 can't read it",
                );
            }
        }
        self.put(ADD_SPACE, inner.space_prefix != SpacePrefix::Never);
        let prefix = match inner.space_prefix {
            SpacePrefix::Never | SpacePrefix::Always => return Ok(()),
            SpacePrefix::First => "first",
            SpacePrefix::Missing => "missing",
        };
        self.put(SPACE_PREFIX, prefix);
        self.note("a space before a text: other programs put one behind special tokens too");
        Ok(())
    }

    /// Texts and kinds; holes and what is missing to the rows of the embeddings are filled.
    fn tokens(&mut self, vocab: &Vocab, unknown: Option<u32>, rows: Option<usize>) -> Result<(), TextError> {
        let count = rows.unwrap_or(vocab.len());
        if vocab.len() > count {
            return Err(TextError::TooManyTokens { tokens: vocab.len(), rows: count });
        }
        let unused = |id: usize| {
            let name = format!("[PAD{id}]");
            if vocab.id(&name).is_none() { name } else { format!("[PAD{id}_]") }
        };
        let (mut texts, mut kinds) = (Vec::with_capacity(count), Vec::with_capacity(count));
        for id in 0..count {
            let text = vocab.get(id as u32).filter(|text| !text.is_empty());
            let kind = match vocab.kind(id as u32) {
                Some(_) if Some(id as u32) == unknown => TokenKind::Unknown,
                Some(kind) if text.is_some() => kind,
                _ => TokenKind::Unused,
            };
            let text = text.map(|text| match vocab.spelling() {
                Spelling::WordPiece => encoders::marked(text, kind),
                _ => text.to_owned(),
            });
            texts.push(text.unwrap_or_else(|| unused(id)));
            kinds.push(kind as i32);
        }
        if let Some(id) = unknown {
            self.put(UNKNOWN, id);
        }
        self.put(TOKENS, texts);
        self.put(TYPES, kinds);
        Ok(())
    }

    /// The tokens that begin, end and fill texts.
    fn special(&mut self, inner: &mut Inner) {
        // What comes behind a text is EOS in GGUF. If it is another token, EOS goes where that of turns is.
        let eos = inner.closing.or(inner.eos);
        let mut named: Vec<u32> = inner.eos.filter(|_| inner.closing.is_some()).into_iter().collect();
        named.retain(|&id| Some(id) != eos);
        let known = eog::find(&mut inner.vocab, eos);
        named.extend(inner.ends.iter().filter(|id| !known.contains(id)));
        named.dedup();
        for (key, id) in
            [(BOS, inner.bos), (EOS, eos), (EOT, named.first().copied()), (EOM, named.get(1).copied())]
        {
            if let Some(id) = id {
                self.put(key, id);
            }
        }
        if named.len() > 2 {
            self.put(huggingface::ENDS, inner.ends.iter().copied().collect::<Vec<_>>());
            self.note("more than three tokens end an answer: other programs know the first three");
        }
        self.put(ADD_BOS, inner.add_bos);
        self.put(ADD_EOS, inner.closing.is_some());
    }

    /// The tokens that fill texts and that stand for what is to be guessed.
    fn fillers(&mut self, vocab: &Vocab, metadata: &Metadata, config: &Json) -> Result<(), TextError> {
        let named = |field: &str| {
            let token = config.get(field)?;
            vocab.id(token.as_str().or_else(|| token.get("content")?.as_str())?)
        };
        let padding = metadata.u32_opt(PADDING)?.filter(|&id| (id as usize) < vocab.len());
        for (key, id) in [(PADDING, padding.or_else(|| named("pad_token"))), (MASK, named("mask_token"))] {
            if let Some(id) = id {
                self.put(key, id);
            }
        }
        Ok(())
    }

    fn strip(&mut self, strip: &HashMap<u32, Strip>) {
        let mut put = |key: &str, side: fn(&Strip) -> bool| {
            let mut ids: Vec<u32> =
                strip.iter().filter(|(_, strip)| side(strip)).map(|(&id, _)| id).collect();
            if !ids.is_empty() {
                ids.sort_unstable();
                self.put(key, ids);
            }
        };
        put(LEFT_STRIP, |strip| strip.left);
        put(RIGHT_STRIP, |strip| strip.right);
        if !strip.is_empty() {
            self.note("tokens that take white space along: other programs leave it");
        }
    }
}

/// The score of a token that nothing merges into.
pub(super) const LEAST: f32 = -1e9;

/// Merges as pairs with a space between them.
fn merges(pairs: &[(&str, &str)]) -> Result<StringArray, TextError> {
    if let Some((left, right)) = pairs.iter().find(|(left, right)| left.contains(' ') || right.contains(' '))
    {
        let what = format!("the merge of {left:?} and {right:?}, one of which has a space");
        return Err(TextError::Inexpressible { form: FORM, what });
    }
    Ok(pairs.iter().map(|(left, right)| format!("{left} {right}")).collect())
}

/// Scores that make the same of each text as the merges; `None` if there are none.
///
/// With scores, two neighbours merge whenever they are a token together, and its score says when. So each way to cut a token
/// into two others must be a merge, and those of one token must be as urgent as each other. Runs of spaces that the user defined
/// may take turns: each pair of their parts merges anyway, and the text's end decides where.
fn scores(vocab: &Vocab, merges: &[(&str, &str)]) -> Option<Vec<f32>> {
    let part = |text: &str| vocab.id(text).filter(|&id| merges_from_text(vocab, id));
    let mut scores = vec![LEAST; vocab.len()];
    let mut cuts: HashMap<u32, usize> = HashMap::new();
    let (mut last, mut joined) = (None, String::new());
    for (left, right) in merges {
        joined.clear();
        joined.push_str(left);
        joined.push_str(right);
        let (Some(_), Some(_), Some(id)) = (part(left), part(right), part(&joined)) else { continue };
        let again = cuts.contains_key(&id);
        if last.replace(id) != Some(id) && again && vocab.kind(id) == Some(TokenKind::Normal) {
            return None;
        }
        if !again {
            *scores.get_mut(id as usize)? = -(cuts.len() as f32);
        }
        *cuts.entry(id).or_insert(0) += 1;
    }
    let complete = vocab.iter().filter(|(id, ..)| merges_from_text(vocab, *id)).all(|(id, text, _)| {
        let ways = text.char_indices().skip(1).map(|(at, _)| text.split_at(at));
        let ways = ways.filter(|(left, right)| part(left).is_some() && part(right).is_some()).count();
        ways == cuts.get(&id).copied().unwrap_or(0)
    });
    (complete && cuts.len() < 1 << 24).then_some(scores)
}
