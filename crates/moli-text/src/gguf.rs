//! A tokenizer from `tokenizer.ggml.*`.

use crate::bpe::{BpeOptions, RankedBpe};
use crate::pretokenize::{self, PreTokenizer};
use crate::special::{SpecialTokens, Strip};
use crate::spm::ScoredBpe;
use crate::tokenizer::{Inner, Merger, SpacePrefix};
use crate::vocab::{Spelling, TokenKind, Vocab};
use crate::{TextError, encoders, eog, huggingface, unigram};
use moli_format::Metadata;
use std::collections::HashMap;

pub(crate) const MODEL: &str = "tokenizer.ggml.model";
pub(crate) const PRE: &str = "tokenizer.ggml.pre";
pub(crate) const TOKENS: &str = "tokenizer.ggml.tokens";
pub(crate) const SCORES: &str = "tokenizer.ggml.scores";
pub(crate) const TYPES: &str = "tokenizer.ggml.token_type";
pub(crate) const MERGES: &str = "tokenizer.ggml.merges";
pub(crate) const BOS: &str = "tokenizer.ggml.bos_token_id";
pub(crate) const EOS: &str = "tokenizer.ggml.eos_token_id";
pub(crate) const EOT: &str = "tokenizer.ggml.eot_token_id";
pub(crate) const EOM: &str = "tokenizer.ggml.eom_token_id";
pub(crate) const UNKNOWN: &str = "tokenizer.ggml.unknown_token_id";
pub(crate) const ADD_BOS: &str = "tokenizer.ggml.add_bos_token";
pub(crate) const ADD_EOS: &str = "tokenizer.ggml.add_eos_token";
pub(crate) const ADD_SPACE: &str = "tokenizer.ggml.add_space_prefix";

// What a `tokenizer.json` can say and the format has no place for.
pub(crate) const NFC: &str = "moli.tokenizer.nfc";
pub(crate) const IGNORE_MERGES: &str = "moli.tokenizer.ignore_merges";
pub(crate) const SPACE_PREFIX: &str = "moli.tokenizer.space_prefix";
pub(crate) const LEFT_STRIP: &str = "moli.tokenizer.lstrip";
pub(crate) const RIGHT_STRIP: &str = "moli.tokenizer.rstrip";

/// Reads the keys; `model` decides the rest.
pub(crate) fn load(metadata: &Metadata) -> Result<Inner, TextError> {
    if let Some(inner) = huggingface::load(metadata)? {
        return Ok(inner);
    }
    let mut inner = match metadata.str(MODEL)? {
        "gpt2" => match metadata.str_opt(PRE)? {
            Some("gemma4" | "granite-embed-multi-311m" | "sarvam-moe") => spaced(metadata),
            // A file without a name was made before there were names; it means the default.
            pre => byte_level(metadata, pre.unwrap_or("default")),
        },
        "gemma4" => spaced(metadata),
        "llama" => sentence_piece(metadata),
        "bert" => encoders::word_piece(metadata),
        "t5" => unigram::of_gguf(metadata),
        other => Err(TextError::Unsupported { what: MODEL, name: other.to_owned() }),
    }?;
    inner.ends.extend(huggingface::ids(metadata, huggingface::ENDS, inner.vocab.len())?);
    Ok(inner)
}

fn byte_level(metadata: &Metadata, pre: &str) -> Result<Inner, TextError> {
    let mut vocab = vocab(metadata, Spelling::ByteLevel)?;
    let spec = pretokenize::spec(pre)?;
    let special = Special::read(metadata, &vocab, None, None, None)?;
    let ends = eog::find(&mut vocab, special.ends());
    vocab.check_byte_level()?;
    let options = BpeOptions {
        ignore_merges: metadata.bool_opt(IGNORE_MERGES)?.unwrap_or(spec.ignore_merges),
        byte_fallback: false,
        unknown: None,
        fuse_unknown: false,
    };
    let bpe = RankedBpe::new(&vocab, merges(metadata)?.into_iter(), options)?;
    let (add_bos, add_eos) = special.flags(metadata, [spec.add_bos, false])?;
    let closing = special.eos.filter(|_| add_eos);
    Ok(Inner {
        special: SpecialTokens::new(&vocab, strip(metadata, &vocab)?)?,
        merger: Merger::Pieces {
            pre: PreTokenizer::from_spec(&spec)?,
            bpe,
            nfc: metadata.bool_opt(NFC)?.unwrap_or(spec.nfc),
        },
        bos: special.bos,
        eos: special.eos,
        add_bos,
        closing,
        between: encoders::between(metadata, vocab.len(), closing)?,
        space_prefix: SpacePrefix::Never,
        ends,
        vocab,
    })
}

/// Gemma 4 and its kind: text with `▁` for spaces like SentencePiece's, and ranked merges. The vocabulary has all bytes.
fn spaced(metadata: &Metadata) -> Result<Inner, TextError> {
    let mut vocab = vocab(metadata, Spelling::SentencePiece)?;
    let special = Special::read(metadata, &vocab, None, None, None)?;
    let ends = eog::find(&mut vocab, special.ends());
    let options = BpeOptions {
        ignore_merges: false,
        byte_fallback: true,
        unknown: special.unknown,
        fuse_unknown: true,
    };
    let bpe = RankedBpe::new(&vocab, merges(metadata)?.into_iter(), options)?;
    let (add_bos, add_eos) = special.flags(metadata, [true, false])?;
    Ok(Inner {
        special: SpecialTokens::new(&vocab, strip(metadata, &vocab)?)?,
        merger: Merger::Ranked(bpe),
        bos: special.bos,
        eos: special.eos,
        // The first files of Gemma 4 say no, and the model is lost without.
        add_bos: add_bos || special.bos.is_some(),
        closing: special.eos.filter(|_| add_eos),
        between: None,
        space_prefix: space_prefix(metadata, false)?,
        ends,
        vocab,
    })
}

fn space_prefix(metadata: &Metadata, default: bool) -> Result<SpacePrefix, TextError> {
    Ok(match metadata.str_opt(SPACE_PREFIX)? {
        None => SpacePrefix::always(metadata.bool_opt(ADD_SPACE)?.unwrap_or(default)),
        Some("first") => SpacePrefix::First,
        Some("missing") => SpacePrefix::Missing,
        Some(other) => return Err(TextError::Unsupported { what: SPACE_PREFIX, name: other.to_owned() }),
    })
}

/// The merges as pairs of tokens' texts, the most urgent first.
pub(crate) fn merges(metadata: &Metadata) -> Result<Vec<(&str, &str)>, TextError> {
    let merges = metadata.strings(MERGES)?;
    let mut pairs = Vec::with_capacity(merges.len());
    for (index, merge) in merges.iter().enumerate() {
        // The first character may be a space itself in a hand-made file; a token has at least one.
        let first = merge.chars().next().map_or(0, char::len_utf8);
        let cut = merge.get(first..).and_then(|rest| rest.find(' ')).map(|at| at + first);
        let pair = cut.and_then(|at| Some((merge.get(..at)?, merge.get(at + 1..)?)));
        pairs.push(pair.ok_or_else(|| TextError::InvalidMerge { index, merge: merge.to_owned() })?);
    }
    Ok(pairs)
}

fn sentence_piece(metadata: &Metadata) -> Result<Inner, TextError> {
    let mut vocab = vocab(metadata, Spelling::SentencePiece)?;
    let scores = metadata.f32s(SCORES)?.into_owned();
    if scores.len() != vocab.len() {
        return Err(TextError::LengthMismatch { key: SCORES, expected: vocab.len(), actual: scores.len() });
    }
    let special = Special::read(metadata, &vocab, Some(1), Some(2), Some(0))?;
    let ends = eog::find(&mut vocab, special.ends());
    let merger = ScoredBpe::new(&vocab, scores, special.unknown)?;
    let (add_bos, add_eos) = special.flags(metadata, [true, false])?;
    Ok(Inner {
        special: SpecialTokens::new(&vocab, strip(metadata, &vocab)?)?,
        merger: Merger::Scored(merger),
        bos: special.bos,
        eos: special.eos,
        add_bos,
        closing: special.eos.filter(|_| add_eos),
        between: None,
        space_prefix: space_prefix(metadata, true)?,
        ends,
        vocab,
    })
}

pub(crate) fn vocab(metadata: &Metadata, spelling: Spelling) -> Result<Vocab, TextError> {
    let tokens = metadata.strings(TOKENS)?;
    if tokens.is_empty() {
        return Err(TextError::EmptyVocabulary);
    }
    let types = metadata.i32s_opt(TYPES)?;
    if let Some(types) = types.as_ref().filter(|types| types.len() != tokens.len()) {
        return Err(TextError::LengthMismatch { key: TYPES, expected: tokens.len(), actual: types.len() });
    }
    let mut vocab = Vocab::with_capacity(spelling, tokens.len(), tokens.len() * 8);
    for (index, token) in tokens.iter().enumerate() {
        let kind = types.as_ref().and_then(|types| types.get(index).copied()).unwrap_or(1);
        let Some(kind) = TokenKind::from_id(kind) else {
            return Err(TextError::InvalidToken {
                id: index as u32,
                token: token.to_owned(),
                reason: "an unknown token type",
            });
        };
        vocab.push(token, kind)?;
    }
    Ok(vocab)
}

/// The special ids of a file.
pub(crate) struct Special {
    pub(crate) bos: Option<u32>,
    pub(crate) eos: Option<u32>,
    eot: Option<u32>,
    eom: Option<u32>,
    pub(crate) unknown: Option<u32>,
}

impl Special {
    /// The defaults hold where the key is missing and the id exists.
    pub(crate) fn read(
        metadata: &Metadata,
        vocab: &Vocab,
        bos: Option<u32>,
        eos: Option<u32>,
        unknown: Option<u32>,
    ) -> Result<Self, TextError> {
        let id = |key: &'static str, default: Option<u32>| {
            let Some(id) = metadata.u64_opt(key)? else {
                return Ok(default.filter(|&id| (id as usize) < vocab.len()));
            };
            // All ones is how a file says "none".
            if id == u64::from(u32::MAX) {
                return Ok(None);
            }
            if id >= vocab.len() as u64 {
                return Err(TextError::SpecialOutOfRange { key, id, vocab: vocab.len() });
            }
            Ok(Some(id as u32))
        };
        Ok(Self {
            bos: id(BOS, bos)?,
            eos: id(EOS, eos)?,
            eot: id(EOT, None)?,
            eom: id(EOM, None)?,
            unknown: id(UNKNOWN, unknown)?,
        })
    }

    pub(crate) fn ends(&self) -> impl Iterator<Item = u32> {
        [self.eos, self.eot, self.eom].into_iter().flatten()
    }

    /// Whether BOS and EOS are added. A file that asks for one must have it.
    pub(crate) fn flags(&self, metadata: &Metadata, defaults: [bool; 2]) -> Result<(bool, bool), TextError> {
        let flag = |flag: &'static str, key: &'static str, default: bool, id: Option<u32>| match (
            metadata.bool_opt(flag)?,
            id,
        ) {
            (Some(true), None) => Err(TextError::MissingSpecial { flag, key }),
            (wanted, id) => Ok(wanted.unwrap_or(default) && id.is_some()),
        };
        let [bos, eos] = defaults;
        Ok((flag(ADD_BOS, BOS, bos, self.bos)?, flag(ADD_EOS, EOS, eos, self.eos)?))
    }
}

/// The format has no place for `lstrip` and `rstrip`. Phi-3 was trained with the second on every special token but three.
pub(crate) fn strip(metadata: &Metadata, vocab: &Vocab) -> Result<HashMap<u32, Strip>, TextError> {
    let mut told: HashMap<u32, Strip> = HashMap::new();
    for id in huggingface::ids(metadata, LEFT_STRIP, vocab.len())? {
        told.entry(id).or_default().left = true;
    }
    for id in huggingface::ids(metadata, RIGHT_STRIP, vocab.len())? {
        told.entry(id).or_default().right = true;
    }
    if !told.is_empty() {
        return Ok(told);
    }
    let name = metadata.str_opt("general.name")?.unwrap_or("").to_lowercase();
    if !name.contains("phi-3") && !name.contains("phi3") {
        return Ok(HashMap::new());
    }
    let special = vocab.iter().filter(|(_, text, kind)| {
        matches!(kind, TokenKind::Control | TokenKind::UserDefined | TokenKind::Unknown)
            && !["<unk>", "<s>", "<|endoftext|>"].contains(text)
    });
    Ok(special.map(|(id, _, _)| (id, Strip { left: false, right: true })).collect())
}
