//! `tokenizer.json`, `tokenizer_config.json` and `generation_config.json` for the keys of GGUF.

use moli_format::Metadata;
use serde_json::{Map, Value, json};

use super::{MASK, PADDING, encoders, merges_from_text};
use crate::gguf::{self, MODEL, PRE, SCORES, UNKNOWN};
use crate::pretokenize::{self, GPT2};
use crate::tokenizer::{Inner, Merger, SpacePrefix};
use crate::unigram::Unigram;
use crate::vocab::{SPACE, TokenKind, Vocab};
use crate::{TextError, huggingface};

const TEMPLATE: &str = "tokenizer.chat_template";
pub(super) const FORM: &str = "tokenizer.json";
const KINDS: &str = "tokenizer.ggml.token_type_count";

/// The files of a tokenizer, as texts.
#[derive(Debug, Clone)]
pub struct HuggingFaceTokenizer {
    /// `tokenizer.json`.
    pub tokenizer: String,
    /// `tokenizer_config.json`, with the chat template.
    pub config: String,
    /// `generation_config.json`: the tokens that begin and end texts.
    pub generation: String,
}

/// The tokenizer of a model. Of metadata that was a folder it is the folder's own.
///
/// # Errors
/// Every way in which the metadata can be incomplete, contradictory or unknown; see [`TextError`].
pub fn huggingface_tokenizer(metadata: &Metadata) -> Result<HuggingFaceTokenizer, TextError> {
    let mut inner = gguf::load(metadata)?;
    let template = metadata.str_opt(TEMPLATE)?;
    let padding = metadata.u32_opt(PADDING)?.filter(|&id| (id as usize) < inner.vocab.len());
    let generation = generation(&inner, padding).to_string();
    if let Some(tokenizer) = huggingface::json(metadata)? {
        let mut config: Map<String, Value> = match metadata.str_opt(huggingface::CONFIG)? {
            Some(text) => {
                serde_json::from_str(text).map_err(|error| TextError::Json { message: error.to_string() })?
            }
            None => Map::new(),
        };
        config.extend(template.map(|template| ("chat_template".to_owned(), template.into())));
        let config = Value::Object(config).to_string();
        return Ok(HuggingFaceTokenizer { tokenizer: tokenizer.to_owned(), config, generation });
    }
    let named = metadata.u32_opt(UNKNOWN)?.and_then(|id| inner.vocab.get(id));
    let typed = || inner.vocab.iter().find(|(.., kind)| *kind == TokenKind::Unknown).map(|(_, text, _)| text);
    let unknown = named.or_else(typed).map(str::to_owned);
    let pipeline = match &inner.merger {
        Merger::Pieces { nfc, bpe, .. } => {
            byte_level(metadata.str_opt(PRE)?.unwrap_or("default"), *nfc, bpe.ignores_merges())?
        }
        Merger::Scored(_) | Merger::Ranked(_) => spaced(inner.space_prefix, unknown.as_deref()),
        Merger::Words(words) => encoders::word_piece(words, &inner.vocab),
        Merger::Likely(unigram) => encoders::unigram(unigram, metadata)?,
    };
    let merges = match (&inner.merger, metadata.str(MODEL)?) {
        (Merger::Words(_) | Merger::Likely(_), _) => Vec::new(),
        (_, "llama") => scored(&inner.vocab, &metadata.f32s(SCORES)?),
        _ => gguf::merges(metadata)?.into_iter().map(|(left, right)| json!([left, right])).collect(),
    };
    let tokenizer = file(metadata, &mut inner, pipeline, merges)?.to_string();
    let mask = metadata.u32_opt(MASK)?.filter(|&id| (id as usize) < inner.vocab.len());
    let config = config(&inner, template, unknown.as_deref(), padding, mask).to_string();
    Ok(HuggingFaceTokenizer { tokenizer, config, generation })
}

/// The parts of a file before and behind the model, and the model without its vocabulary.
pub(super) struct Pipeline {
    pub(super) normalizer: Value,
    pub(super) pre_tokenizer: Value,
    pub(super) decoder: Value,
    pub(super) model: Value,
}

fn byte_level(pre: &str, nfc: bool, ignore_merges: bool) -> Result<Pipeline, TextError> {
    let bytes = |use_regex: bool| json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex });
    let mut stages = pretokenize::spec(pre)?.stages.to_vec();
    // The expression that ByteLevel has built in.
    let built_in = stages.pop_if(|last| *last == GPT2).is_some();
    let split = |pattern: &str| json!({ "type": "Split", "pattern": { "Regex": pattern }, "behavior": "Isolated", "invert": false });
    let mut parts: Vec<Value> = stages.into_iter().map(split).collect();
    parts.push(bytes(built_in));
    Ok(Pipeline {
        normalizer: if nfc { json!({ "type": "NFC" }) } else { Value::Null },
        pre_tokenizer: json!({ "type": "Sequence", "pretokenizers": parts }),
        decoder: bytes(true),
        model: json!({ "unk_token": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": ignore_merges }),
    })
}

/// SentencePiece: `▁` for spaces, and unknown characters as bytes.
fn spaced(prefix: SpacePrefix, unknown: Option<&str>) -> Pipeline {
    let space = SPACE.to_string();
    let replace =
        |from: &str, to: &str| json!({ "type": "Replace", "pattern": { "String": from }, "content": to });
    let metaspace = |scheme: &str| json!({ "type": "Metaspace", "replacement": space, "prepend_scheme": scheme, "split": false });
    let (normalizer, pre_tokenizer) = match prefix {
        SpacePrefix::Never => (replace(" ", &space), Value::Null),
        SpacePrefix::Always => {
            let prepend = json!({ "type": "Prepend", "prepend": space });
            (json!({ "type": "Sequence", "normalizers": [prepend, replace(" ", &space)] }), Value::Null)
        }
        SpacePrefix::First => (Value::Null, metaspace("first")),
        SpacePrefix::Missing => (Value::Null, metaspace("always")),
    };
    let mut decoders =
        vec![replace(&space, " "), json!({ "type": "ByteFallback" }), json!({ "type": "Fuse" })];
    if prefix != SpacePrefix::Never {
        decoders.push(json!({ "type": "Strip", "content": " ", "start": 1, "stop": 0 }));
    }
    Pipeline {
        normalizer,
        pre_tokenizer,
        decoder: json!({ "type": "Sequence", "decoders": decoders }),
        model: json!({ "unk_token": unknown, "fuse_unk": true, "byte_fallback": true, "ignore_merges": false }),
    }
}

/// Every way to cut each token into two others, the best token first.
fn scored(vocab: &Vocab, scores: &[f32]) -> Vec<Value> {
    let part = |text: &str| vocab.id(text).filter(|&id| merges_from_text(vocab, id));
    let mut merges = Vec::new();
    for ((id, text, _), &score) in vocab.iter().zip(scores) {
        if !merges_from_text(vocab, id) {
            continue;
        }
        let cuts = text.char_indices().skip(1).map(|(at, _)| text.split_at(at));
        let mut cuts: Vec<_> =
            cuts.filter_map(|(left, right)| Some((part(left)?, part(right)?, left, right))).collect();
        cuts.sort_unstable();
        merges.extend(cuts.into_iter().map(|(_, _, left, right)| (score, left, right)));
    }
    // Stable: the order of ids where scores are equal.
    merges.sort_by(|one, other| other.0.total_cmp(&one.0));
    merges.into_iter().map(|(_, left, right)| json!([left, right])).collect()
}

fn file(
    metadata: &Metadata,
    inner: &mut Inner,
    pipeline: Pipeline,
    merges: Vec<Value>,
) -> Result<Value, TextError> {
    let vocab = &inner.vocab;
    let strip = gguf::strip(metadata, vocab)?;
    // An encoder with one kind of tokens has none for those of a second text.
    let second = u32::from(metadata.u32_opt(KINDS)? != Some(1));
    let (mut texts, mut added) = (Map::new(), Vec::new());
    for (id, text, kind) in vocab.iter() {
        // What a converter fills holes with.
        if text.is_empty() || kind == TokenKind::Unused && text.starts_with("[PAD") {
            continue;
        }
        texts.insert(text.to_owned(), id.into());
        if matches!(kind, TokenKind::Control | TokenKind::Unknown | TokenKind::UserDefined) {
            let sides = strip.get(&id).copied().unwrap_or_default();
            added.push(json!({
                "id": id, "content": text, "single_word": false, "lstrip": sides.left, "rstrip": sides.right,
                "normalized": false, "special": kind != TokenKind::UserDefined,
            }));
        }
    }
    let mut model = match &inner.merger {
        Merger::Words(_) => json!({ "vocab": texts }),
        Merger::Likely(unigram) => json!({ "vocab": pieces(vocab, unigram) }),
        _ => json!({
            "type": "BPE", "dropout": null, "continuing_subword_prefix": null, "end_of_word_suffix": null,
            "vocab": texts, "merges": merges,
        }),
    };
    if let (Value::Object(model), Value::Object(options)) = (&mut model, pipeline.model) {
        model.extend(options);
    }
    Ok(json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added,
        "normalizer": pipeline.normalizer, "pre_tokenizer": pipeline.pre_tokenizer,
        "post_processor": post_processor(inner, second), "decoder": pipeline.decoder, "model": model,
    }))
}

/// The pieces of Unigram with their scores, each at the place that is its id.
fn pieces(vocab: &Vocab, unigram: &Unigram) -> Vec<Value> {
    let mut pieces: Vec<(&str, TokenKind, f64)> =
        vocab.iter().zip(unigram.scores()).map(|((_, text, kind), &score)| (text, kind, score)).collect();
    let is_filler =
        |(text, kind, _): &(&str, TokenKind, f64)| *kind == TokenKind::Unused && text.starts_with("[PAD");
    while pieces.pop_if(|piece| is_filler(piece)).is_some() {}
    pieces.into_iter().map(|(text, _, score)| json!([text, score])).collect()
}

/// The tokens that come before and behind a text, and between two of which the second is of kind `second`.
fn post_processor(inner: &Inner, second: u32) -> Value {
    let bos = inner.bos.filter(|_| inner.add_bos);
    if bos.is_none() && inner.closing.is_none() {
        return Value::Null;
    }
    let mut tokens = Map::new();
    let mut special = |id: Option<u32>, kind: u32| {
        let text = inner.vocab.get(id?)?;
        tokens.insert(text.to_owned(), json!({ "id": text, "ids": [id], "tokens": [text] }));
        Some(json!({ "SpecialToken": { "id": text, "type_id": kind } }))
    };
    let text = |name: &str, kind: u32| Some(json!({ "Sequence": { "id": name, "type_id": kind } }));
    let single = [special(bos, 0), text("A", 0), special(inner.closing, 0)];
    let mut pair: Vec<Option<Value>> = match &inner.between {
        Some(between) => {
            let [begins, first, _] = &single;
            let between = between.iter().map(|&id| special(Some(id), 0));
            [begins.clone(), first.clone()].into_iter().chain(between).collect()
        }
        None => single.iter().cloned().chain([special(bos, second)]).collect(),
    };
    pair.extend([text("B", second), special(inner.closing, second)]);
    let [single, pair] = [single.to_vec(), pair].map(|parts| parts.into_iter().flatten().collect::<Vec<_>>());
    json!({ "type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": tokens })
}

fn config(
    inner: &Inner,
    template: Option<&str>,
    unknown: Option<&str>,
    padding: Option<u32>,
    mask: Option<u32>,
) -> Value {
    let mut config = Map::new();
    config.insert("tokenizer_class".to_owned(), "PreTrainedTokenizerFast".into());
    config.insert("clean_up_tokenization_spaces".to_owned(), false.into());
    config.insert("add_bos_token".to_owned(), inner.add_bos.into());
    config.insert("add_eos_token".to_owned(), inner.closing.is_some().into());
    let text = |id: Option<u32>| inner.vocab.get(id?);
    let joins = inner.between.is_some();
    for (key, text) in [
        ("bos_token", text(inner.bos)),
        ("eos_token", text(inner.eos)),
        ("pad_token", text(padding)),
        ("mask_token", text(mask)),
        ("cls_token", text(inner.bos.filter(|_| joins))),
        ("sep_token", text(inner.closing.filter(|_| joins))),
        ("unk_token", unknown),
        ("chat_template", template),
    ] {
        config.extend(text.map(|text| (key.to_owned(), text.into())));
    }
    Value::Object(config)
}

fn generation(inner: &Inner, padding: Option<u32>) -> Value {
    let mut ends: Vec<u32> = inner.eos.into_iter().collect();
    ends.extend(inner.ends.iter().filter(|&&id| Some(id) != inner.eos));
    let mut config = Map::new();
    for (key, id) in [("bos_token_id", inner.bos), ("pad_token_id", padding)] {
        config.extend(id.map(|id| (key.to_owned(), id.into())));
    }
    if !ends.is_empty() {
        config.insert("eos_token_id".to_owned(), ends.into());
    }
    Value::Object(config)
}
