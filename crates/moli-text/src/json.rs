//! A tokenizer from `tokenizer.json`, the format of the `tokenizers` crate.
//!
//! The file describes a pipeline of arbitrary parts. The parts that decoders' tokenizers are made of are read into
//! the same forms that a GGUF's are, so the same guarantees hold; any other part is an error that names it.

use crate::bpe::{BpeOptions, RankedBpe};
use crate::pretokenize::{Behavior, GPT2, PreTokenizer, Stage};
use crate::special::{SpecialTokens, Strip};
use crate::tokenizer::{Inner, Merger, SpacePrefix};
use crate::vocab::{Spelling, TokenKind, Vocab, parse_byte_token};
use crate::{TextError, encoders, eog, unigram};
use serde_json::Value;
use std::borrow::Cow;
use std::collections::HashMap;
use unicode_normalization::{UnicodeNormalization, is_nfc};

/// What a `tokenizer.json` says in its own terms, for whoever writes it in others.
#[derive(Default)]
pub(crate) struct Parts<'a> {
    /// Pairs of texts, the most urgent first.
    pub(crate) merges: Vec<(&'a str, &'a str)>,
    /// The cuts of the pre-tokenizer as expressions whose matches are pieces; `None`: one of them is more than that.
    pub(crate) cuts: Option<Vec<String>>,
    pub(crate) nfc: bool,
    pub(crate) ignore_merges: bool,
    pub(crate) byte_fallback: bool,
    pub(crate) unknown: Option<u32>,
    pub(crate) strip: HashMap<u32, Strip>,
}

/// Reads a `tokenizer.json` and, if there is one, its `tokenizer_config.json`.
pub(crate) fn load(tokenizer: &[u8], config: Option<&[u8]>) -> Result<Inner, TextError> {
    read(&parse(tokenizer)?, &config.map_or(Ok(Value::Null), parse)?).map(|(inner, _)| inner)
}

/// Parses one of the two files.
pub(crate) fn parse(file: &[u8]) -> Result<Value, TextError> {
    serde_json::from_slice(file).map_err(|error| bad(error.to_string()))
}

/// The tokenizer of the two files; `config` is null where there is none.
pub(crate) fn read<'a>(root: &'a Value, config: &Value) -> Result<(Inner, Parts<'a>), TextError> {
    let model = root.get("model").ok_or_else(|| bad("no model"))?;
    // Older files leave the type out; they are BPE where they have merges, and Unigram where their tokens are a list.
    let kind = model.get("type").and_then(Value::as_str).unwrap_or(match model.get("merges") {
        Some(_) => "BPE",
        None if model.get("vocab").is_some_and(Value::is_array) => "Unigram",
        None => "",
    });
    match kind {
        "BPE" => {}
        "WordPiece" => {
            let (inner, strip) = encoders::word_piece_of_json(root, model, config)?;
            return Ok((inner, Parts { strip, ..Parts::default() }));
        }
        "Unigram" => {
            let (inner, strip) = unigram::of_json(root, model, config)?;
            return Ok((inner, Parts { strip, ..Parts::default() }));
        }
        _ => return Err(unsupported("tokenizer.json model", kind)),
    }
    for part in ["continuing_subword_prefix", "end_of_word_suffix"] {
        if model.get(part).and_then(Value::as_str).is_some_and(|text| !text.is_empty()) {
            return Err(unsupported("tokenizer.json model part", part));
        }
    }
    let byte_fallback = flag(model, "byte_fallback", false);
    let normalizer = Normal::read(root.get("normalizer").unwrap_or(&Value::Null))?;
    let pre = Pre::read(root.get("pre_tokenizer").unwrap_or(&Value::Null))?;
    let spelling = if pre.byte_level { Spelling::ByteLevel } else { Spelling::SentencePiece };
    if pre.byte_level && (normalizer.escape || normalizer.prepend) {
        return Err(unsupported("tokenizer.json normalizer", "Replace before ByteLevel"));
    }
    let escape = normalizer.escape || pre.escape;
    let sentence_piece = escape && pre.stages.is_empty();
    if !(pre.byte_level || sentence_piece) {
        return Err(unsupported("tokenizer.json pre_tokenizer", "neither ByteLevel nor SentencePiece"));
    }
    if !pre.byte_level && normalizer.nfc {
        return Err(unsupported("tokenizer.json normalizer", "NFC with SentencePiece"));
    }

    let (mut vocab, strip) = vocab(root, model, spelling)?;
    let unknown = model.get("unk_token").and_then(Value::as_str).and_then(|token| vocab.id(token));
    let bos = special(config, "bos_token", &vocab, &["<s>", "<bos>", "<|begin_of_text|>"])?;
    let eos = special(config, "eos_token", &vocab, &["</s>", "<eos>", "<|endoftext|>"])?;
    let ends = eog::find(&mut vocab, eos);
    let merges = merges(model)?;
    let options = BpeOptions {
        ignore_merges: flag(model, "ignore_merges", false),
        byte_fallback,
        unknown: unknown.filter(|_| !pre.byte_level),
        fuse_unknown: flag(model, "fuse_unk", false),
    };
    let parts = Parts {
        cuts: pre.cuts,
        nfc: normalizer.nfc,
        ignore_merges: options.ignore_merges,
        byte_fallback,
        unknown,
        strip: strip.clone(),
        merges,
    };
    let bpe = RankedBpe::new(&vocab, parts.merges.iter().copied(), options)?;
    let Around { begins, between, finishes } = Around::read(root, &vocab);
    let add_bos = config.get("add_bos_token").and_then(Value::as_bool).unwrap_or(begins.is_some());
    let closing = match config.get("add_eos_token").and_then(Value::as_bool) {
        Some(wanted) => finishes.or(eos).filter(|_| wanted),
        None => finishes,
    };
    let bos = bos.or(begins);
    let merger = if pre.byte_level {
        Merger::Pieces { pre: PreTokenizer::new(pre.stages), bpe, nfc: normalizer.nfc }
    } else {
        Merger::Ranked(bpe)
    };
    let inner = Inner {
        special: SpecialTokens::new(&vocab, strip)?,
        merger,
        add_bos: add_bos && bos.is_some(),
        closing,
        between,
        bos,
        eos,
        space_prefix: if normalizer.prepend { SpacePrefix::Always } else { pre.prepend },
        ends,
        vocab,
    };
    Ok((inner, parts))
}

/// Unicode's composed form.
pub(crate) fn nfc(text: &str) -> Cow<'_, str> {
    if is_nfc(text) { Cow::Borrowed(text) } else { Cow::Owned(text.nfc().collect()) }
}

pub(crate) fn vocab(
    root: &Value,
    model: &Value,
    spelling: Spelling,
) -> Result<(Vocab, HashMap<u32, Strip>), TextError> {
    let tokens = model.get("vocab").and_then(Value::as_object).ok_or_else(|| bad("no vocabulary"))?;
    let tokens = tokens.iter().map(|(text, id)| (text.as_str(), id.as_u64()));
    collect_vocab(root, tokens, spelling, spelling == Spelling::SentencePiece)
}

/// The tokens of a model with their ids, and those that are added to them. `bytes`: `<0x0A>` is the byte, not its text.
pub(crate) fn collect_vocab<'a>(
    root: &'a Value,
    tokens: impl ExactSizeIterator<Item = (&'a str, Option<u64>)>,
    spelling: Spelling,
    bytes: bool,
) -> Result<(Vocab, HashMap<u32, Strip>), TextError> {
    let empty = Vec::new();
    let added = root.get("added_tokens").and_then(Value::as_array).unwrap_or(&empty);
    // Ids can have gaps, but a file can't make them larger than itself.
    let most = tokens.len().saturating_mul(2).saturating_add(added.len()).saturating_add(65_536);
    let id_of = |id: Option<u64>| {
        let id = id.filter(|&id| (id as usize) < most);
        id.map(|id| id as usize).ok_or_else(|| bad("a token id is missing or out of range"))
    };
    let mut by_id: Vec<Option<(&str, TokenKind)>> = Vec::new();
    let mut put = |id: usize, text, kind| {
        if by_id.len() <= id {
            by_id.resize(id + 1, None);
        }
        if let Some(slot) = by_id.get_mut(id) {
            match slot {
                Some((other, _)) if *other != text => {
                    return Err(bad(format!("id {id} is both {other:?} and {text:?}")));
                }
                _ => *slot = Some((text, kind)),
            }
        }
        Ok(())
    };
    for (text, id) in tokens {
        let byte = bytes && parse_byte_token(text).is_some();
        put(id_of(id)?, text, if byte { TokenKind::Byte } else { TokenKind::Normal })?;
    }
    let mut strip = HashMap::new();
    for token in added {
        let text = token
            .get("content")
            .and_then(Value::as_str)
            .ok_or_else(|| bad("an added token has no content"))?;
        let id = id_of(token.get("id").and_then(Value::as_u64))?;
        let kind = if flag(token, "special", false) { TokenKind::Control } else { TokenKind::UserDefined };
        put(id, text, kind)?;
        let sides = Strip { left: flag(token, "lstrip", false), right: flag(token, "rstrip", false) };
        if sides.left || sides.right {
            strip.insert(id as u32, sides);
        }
        if flag(token, "single_word", false) {
            return Err(unsupported("tokenizer.json added token", "single_word"));
        }
    }
    if by_id.is_empty() {
        return Err(TextError::EmptyVocabulary);
    }
    let mut vocab = Vocab::with_capacity(spelling, by_id.len(), by_id.len() * 8);
    for slot in by_id {
        let (text, kind) = slot.unwrap_or(("", TokenKind::Unused));
        vocab.push(text, kind)?;
    }
    if spelling == Spelling::ByteLevel {
        vocab.check_byte_level()?;
    }
    Ok((vocab, strip))
}

/// Merges are pairs, or in older files both texts with a space between them.
fn merges(model: &Value) -> Result<Vec<(&str, &str)>, TextError> {
    let merges = model.get("merges").and_then(Value::as_array).ok_or_else(|| bad("no merges"))?;
    merges
        .iter()
        .enumerate()
        .map(|(index, merge)| {
            let pair = match merge {
                Value::String(text) => text.split_once(' '),
                Value::Array(pair) => match pair.as_slice() {
                    [Value::String(left), Value::String(right)] => Some((left.as_str(), right.as_str())),
                    _ => None,
                },
                _ => None,
            };
            pair.ok_or_else(|| TextError::InvalidMerge { index, merge: merge.to_string() })
        })
        .collect()
}

/// What the normalizer does.
#[derive(Default)]
struct Normal {
    nfc: bool,
    /// Spaces become `▁`.
    escape: bool,
    /// A `▁` comes first.
    prepend: bool,
}

impl Normal {
    fn read(value: &Value) -> Result<Self, TextError> {
        let mut normal = Self::default();
        for part in sequence(value, "normalizers") {
            match kind(part) {
                "" => {}
                "NFC" => normal.nfc = true,
                "Prepend" if part.get("prepend").and_then(Value::as_str) == Some("▁") => {
                    normal.prepend = true
                }
                "Replace"
                    if part.pointer("/pattern/String").and_then(Value::as_str) == Some(" ")
                        && part.get("content").and_then(Value::as_str) == Some("▁") =>
                {
                    normal.escape = true;
                }
                other => return Err(unsupported("tokenizer.json normalizer", other)),
            }
        }
        Ok(normal)
    }
}

/// What the pre-tokenizer does.
struct Pre {
    stages: Vec<Stage>,
    cuts: Option<Vec<String>>,
    byte_level: bool,
    escape: bool,
    prepend: SpacePrefix,
}

impl Pre {
    fn read(value: &Value) -> Result<Self, TextError> {
        const WHAT: &str = "tokenizer.json pre_tokenizer";
        let mut pre = Self {
            stages: Vec::new(),
            cuts: Some(Vec::new()),
            byte_level: false,
            escape: false,
            prepend: SpacePrefix::Never,
        };
        for part in sequence(value, "pretokenizers") {
            match kind(part) {
                "" => {}
                "Split" => {
                    let behavior = behavior(part)?;
                    let invert = flag(part, "invert", false);
                    if let Some(pattern) = part.pointer("/pattern/Regex").and_then(Value::as_str) {
                        pre.cut(pattern, behavior, invert)?;
                    } else if let Some(text) = part.pointer("/pattern/String").and_then(Value::as_str) {
                        // Gemma's file splits at spaces that its normalizer has replaced by then.
                        if text != " " {
                            pre.stages.push(Stage::literal(text, behavior, invert));
                            pre.cuts = None;
                        }
                    } else {
                        return Err(unsupported(WHAT, "Split without a pattern"));
                    }
                }
                "Digits" => {
                    let pattern = if flag(part, "individual_digits", false) { r"\p{N}" } else { r"\p{N}+" };
                    pre.cut(pattern, Behavior::Isolated, false)?;
                }
                "Punctuation" => {
                    let pattern = r"[\p{P}!-/:-@\[-`{-~]";
                    pre.cut(pattern, behavior(part)?, false)?;
                }
                "ByteLevel" => {
                    if flag(part, "add_prefix_space", true) {
                        return Err(unsupported(WHAT, "ByteLevel with add_prefix_space"));
                    }
                    if flag(part, "use_regex", true) {
                        pre.cut(GPT2, Behavior::Isolated, false)?;
                    }
                    pre.byte_level = true;
                }
                "Metaspace" => {
                    if part.get("replacement").and_then(Value::as_str).is_some_and(|text| text != "▁") {
                        return Err(unsupported(WHAT, "Metaspace with another character"));
                    }
                    if flag(part, "split", true) {
                        return Err(unsupported(WHAT, "Metaspace with split"));
                    }
                    pre.escape = true;
                    pre.prepend = match part.get("prepend_scheme").and_then(Value::as_str) {
                        Some("first") => SpacePrefix::First,
                        Some("never") => SpacePrefix::Never,
                        None if !flag(part, "add_prefix_space", true) => SpacePrefix::Never,
                        _ => SpacePrefix::Missing,
                    };
                }
                other => return Err(unsupported(WHAT, other)),
            }
        }
        Ok(pre)
    }

    /// One more expression.
    fn cut(&mut self, pattern: &str, behavior: Behavior, invert: bool) -> Result<(), TextError> {
        self.stages.push(Stage::regex(pattern, behavior, invert)?);
        let piece = match (behavior, invert) {
            (Behavior::Isolated, false) => Some(pattern.to_owned()),
            // What is not matched is removed; with white space as the last alternative nothing is left over.
            (Behavior::Removed, true) if pattern.ends_with(r"|\s+") => Some(pattern.to_owned()),
            (Behavior::Contiguous, false) => Some(format!("(?:{pattern})+")),
            _ => None,
        };
        self.cuts = self.cuts.take().zip(piece).map(|(mut cuts, piece)| {
            cuts.push(piece);
            cuts
        });
        Ok(())
    }
}

fn behavior(part: &Value) -> Result<Behavior, TextError> {
    match part.get("behavior").and_then(Value::as_str).unwrap_or("") {
        "Isolated" => Ok(Behavior::Isolated),
        "Removed" => Ok(Behavior::Removed),
        "MergedWithPrevious" => Ok(Behavior::MergedWithPrevious),
        "MergedWithNext" => Ok(Behavior::MergedWithNext),
        "Contiguous" => Ok(Behavior::Contiguous),
        other => Err(unsupported("tokenizer.json Split behavior", other)),
    }
}

/// BOS and EOS from the configuration, or else the usual texts. A text that isn't a token is an error.
pub(crate) fn special(
    config: &Value,
    key: &'static str,
    vocab: &Vocab,
    usual: &[&str],
) -> Result<Option<u32>, TextError> {
    let named = config.get(key).and_then(|value| value.as_str().or_else(|| value.get("content")?.as_str()));
    match named {
        Some(text) => {
            vocab.id(text).map(Some).ok_or_else(|| bad(format!("{key} {text:?} is not in the vocabulary")))
        }
        None if config.is_null() => Ok(usual.iter().find_map(|text| vocab.id(text))),
        None => Ok(None),
    }
}

/// What a post-processor puts around texts.
#[derive(Default)]
pub(crate) struct Around {
    /// Before a text.
    pub(crate) begins: Option<u32>,
    /// Between two of them.
    pub(crate) between: Option<Vec<u32>>,
    /// Behind the last.
    pub(crate) finishes: Option<u32>,
}

impl Around {
    pub(crate) fn read(root: &Value, vocab: &Vocab) -> Self {
        let Some(post) = root.get("post_processor") else { return Self::default() };
        for part in sequence(post, "processors") {
            let own = |key: &str| vocab.id(part.get(key)?.get(0)?.as_str()?);
            let separators = match kind(part) {
                "BertProcessing" => 1,
                "RobertaProcessing" => 2,
                _ => 0,
            };
            if separators > 0 {
                let sep = own("sep");
                let between = sep.map(|sep| vec![sep; separators]);
                return Self { begins: own("cls"), between, finishes: sep };
            }
            if let Some(single) = part.get("single").and_then(Value::as_array) {
                let id = |value: Option<&Value>| vocab.id(value?.pointer("/SpecialToken/id")?.as_str()?);
                let is_text = |value: &Value| value.get("Sequence").is_some();
                let pair = part.get("pair").and_then(Value::as_array);
                let between = pair.and_then(|pair| {
                    let mut inner = pair.iter().skip_while(|value| !is_text(value)).skip(1);
                    let between: Option<Vec<u32>> = inner
                        .by_ref()
                        .take_while(|value| !is_text(value))
                        .map(|value| id(Some(value)))
                        .collect();
                    between.filter(|between| !between.is_empty())
                });
                return Self { begins: id(single.first()), between, finishes: id(single.last()) };
            }
        }
        Self::default()
    }
}

/// The parts of a `Sequence`, or the one part that it is.
pub(crate) fn sequence<'a>(value: &'a Value, parts: &str) -> Vec<&'a Value> {
    match value.get(parts).and_then(Value::as_array) {
        Some(list) if kind(value) == "Sequence" => list.iter().collect(),
        _ => vec![value],
    }
}

pub(crate) fn kind(value: &Value) -> &str {
    value.get("type").and_then(Value::as_str).unwrap_or("")
}

pub(crate) fn flag(value: &Value, key: &str, default: bool) -> bool {
    value.get(key).and_then(Value::as_bool).unwrap_or(default)
}

pub(crate) fn bad(message: impl Into<String>) -> TextError {
    TextError::Json { message: message.into() }
}

pub(crate) fn unsupported(what: &'static str, name: &str) -> TextError {
    TextError::Unsupported { what, name: name.to_owned() }
}
