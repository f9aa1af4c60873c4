//! The tokenizer of a Hugging Face folder, whose `tokenizer.json` is a metadata value.

use std::fmt;
use std::path::Path;

use moli_format::Metadata;
use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use crate::gguf::{BOS, EOS, TOKENS};
use crate::json::parse;
use crate::tokenizer::Inner;
use crate::{TextError, unigram};
use serde_json::Value;

/// The whole of `tokenizer.json`.
const JSON: &str = "tokenizer.huggingface.json";
/// What `tokenizer_config.json` says, but for template and tokens.
pub(crate) const CONFIG: &str = "tokenizer.huggingface.config";
/// Where the files are.
const FOLDER: &str = "tokenizer.huggingface.folder";
/// All tokens that end an answer.
pub(crate) const ENDS: &str = "moli.eos_token_ids";

/// The tokenizer of metadata that was a folder; `None` if it was not.
pub(crate) fn load(metadata: &Metadata) -> Result<Option<Inner>, TextError> {
    let Some((root, config)) = files(metadata)? else { return Ok(None) };
    let (mut inner, _) = crate::json::read(&root, &config)?;
    complete(metadata, &mut inner)?;
    Ok(Some(inner))
}

/// `tokenizer.json` and `tokenizer_config.json` of metadata that was a folder; the second is null where there is none.
pub(crate) fn files(metadata: &Metadata) -> Result<Option<(Value, Value)>, TextError> {
    let Some(json) = json(metadata)? else { return Ok(None) };
    let config = metadata.str_opt(CONFIG)?.map_or(Ok(Value::Null), |text| parse(text.as_bytes()))?;
    Ok(Some((parse(json.as_bytes())?, config)))
}

/// Adds what other files of the folder say.
pub(crate) fn complete(metadata: &Metadata, inner: &mut Inner) -> Result<(), TextError> {
    let vocab = inner.vocab.len();
    let id = |key: &'static str| match metadata.u32_opt(key)? {
        Some(id) if id as usize >= vocab => Err(TextError::SpecialOutOfRange { key, id: id.into(), vocab }),
        id => Ok(id),
    };
    // What the tokenizer's own files name comes first.
    inner.bos = inner.bos.or(id(BOS)?);
    inner.eos = inner.eos.or(id(EOS)?);
    inner.ends.extend(ids(metadata, ENDS, vocab)?);
    Ok(())
}

/// A list of ids, each of which the vocabulary has.
pub(crate) fn ids(metadata: &Metadata, key: &'static str, vocab: usize) -> Result<Vec<u32>, TextError> {
    let ids = metadata.u32s_opt(key)?.unwrap_or_default().into_owned();
    match ids.iter().find(|&&id| id as usize >= vocab) {
        Some(&id) => Err(TextError::SpecialOutOfRange { key, id: id.into(), vocab }),
        None => Ok(ids),
    }
}

/// The text of `tokenizer.json` where the metadata was a folder and has no vocabulary of its own.
pub(crate) fn json(metadata: &Metadata) -> Result<Option<&str>, TextError> {
    if metadata.get(TOKENS).is_some() {
        return Ok(None);
    }
    match (metadata.str_opt(JSON)?, metadata.str_opt(FOLDER)?) {
        (Some(json), _) => Ok(Some(json)),
        (None, Some(folder)) => {
            Err(TextError::NoTokenizer { path: Path::new(folder).join("tokenizer.json") })
        }
        (None, None) => Ok(None),
    }
}

/// How large a tokenizer is, counted without building it.
#[derive(Default)]
pub(crate) struct Sizes {
    /// Tokens, and the bytes of their texts.
    pub(crate) tokens: Texts,
    /// Tokens with a meaning of their own among them, and the bytes of their texts.
    pub(crate) added: Texts,
    /// Pairs that merge.
    pub(crate) merges: u64,
    /// Tokens with a score.
    pub(crate) scores: u64,
    /// Bytes of the table of what is replaced before a text is cut.
    pub(crate) charsmap: u64,
}

impl Sizes {
    /// The sizes where the metadata was a folder; `None` if it was not.
    pub(crate) fn of(metadata: &Metadata) -> Result<Option<Self>, TextError> {
        let Some(json) = json(metadata)? else { return Ok(None) };
        let root: Root =
            serde_json::from_str(json).map_err(|error| TextError::Json { message: error.to_string() })?;
        let mut sizes = Self {
            merges: root.model.merges.0,
            scores: if root.model.vocab.listed { root.model.vocab.number } else { 0 },
            charsmap: unigram::charsmap_bytes(&root.normalizer),
            tokens: root.model.vocab,
            ..Self::default()
        };
        for token in root.added_tokens {
            sizes.added.count(&token.content);
            sizes.tokens.count(&token.content);
        }
        Ok(Some(sizes))
    }
}

#[derive(Deserialize)]
struct Root {
    #[serde(default)]
    added_tokens: Vec<Added>,
    #[serde(default)]
    normalizer: Value,
    model: Model,
}

#[derive(Deserialize)]
struct Added {
    content: String,
}

#[derive(Deserialize)]
struct Model {
    #[serde(default)]
    vocab: Texts,
    #[serde(default)]
    merges: Items,
}

/// Texts, counted.
#[derive(Default)]
pub(crate) struct Texts {
    pub(crate) number: u64,
    pub(crate) bytes: u64,
    /// They came as a list, not as the keys of an object.
    listed: bool,
}

impl Texts {
    /// One more.
    pub(crate) fn count(&mut self, text: &str) {
        self.number += 1;
        self.bytes += text.len() as u64;
    }
}

/// An object with texts for keys, or a list of pairs of text and score.
impl<'de> Deserialize<'de> for Texts {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Counter;
        impl<'de> Visitor<'de> for Counter {
            type Value = Texts;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a vocabulary")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Texts, A::Error> {
                let mut texts = Texts::default();
                while let Some((text, IgnoredAny)) = map.next_entry::<String, _>()? {
                    texts.count(&text);
                }
                Ok(texts)
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Texts, A::Error> {
                let mut texts = Texts { listed: true, ..Texts::default() };
                while let Some((text, IgnoredAny)) = list.next_element::<(String, _)>()? {
                    texts.count(&text);
                }
                Ok(texts)
            }
        }
        deserializer.deserialize_any(Counter)
    }
}

/// The elements of a list, counted.
#[derive(Default)]
struct Items(u64);

impl<'de> Deserialize<'de> for Items {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Counter;
        impl<'de> Visitor<'de> for Counter {
            type Value = Items;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Items, A::Error> {
                let mut items = 0;
                while list.next_element::<IgnoredAny>()?.is_some() {
                    items += 1;
                }
                Ok(Items(items))
            }
        }
        deserializer.deserialize_seq(Counter)
    }
}
