//! WordPiece and Unigram, which read a text otherwise before they cut it, in either form.

use moli_format::Metadata;
use serde_json::{Value, json};

use super::gguf::{FORM, GgufTokenizer, LEAST};
use super::huggingface::{FORM as JSON, Pipeline};
use crate::TextError;
use crate::encoders::{
    ADD_SEPARATOR, BETWEEN, CHINESE, CLEAN, CLS, LONGEST, LOWERCASE, SEPARATOR, STRIP_ACCENTS, marked,
    unmarked,
};
use crate::gguf::{ADD_BOS, ADD_EOS, ADD_SPACE, BOS, MODEL, PRE, SCORES, UNKNOWN};
use crate::json::{kind, parse, sequence};
use crate::tokenizer::{Inner, SpacePrefix};
use crate::unigram::{
    CHARSMAP, Charsmap, NORMALIZER, PRE_TOKENIZER, Preparation, TRIM, Unigram, with_charsmap,
};
use crate::vocab::{SPACE, TokenKind, Vocab};
use crate::wordpiece::{CONTINUES, Cleaning, LONGEST_WORD, WordPiece};

impl GgufTokenizer {
    /// WordPiece: what is done with a text, and that each token is told from the others by its mark.
    pub(super) fn word_piece(&mut self, inner: &Inner, words: &WordPiece) -> Result<(), TextError> {
        let lost = |(_, text, kind): &(u32, &str, TokenKind)| {
            *kind == TokenKind::Normal && !text.is_empty() && unmarked(&marked(text, *kind), *kind) != *text
        };
        if let Some((id, text, _)) = inner.vocab.iter().find(lost) {
            let what = format!("token {id}, {text:?}, which reads otherwise without its mark");
            return Err(TextError::Inexpressible { form: FORM, what });
        }
        let Cleaning { clean, chinese, strip_accents, lowercase } = words.cleaning;
        self.put(MODEL, "bert");
        self.put(PRE, "default");
        self.put(LOWERCASE, lowercase);
        self.put(STRIP_ACCENTS, strip_accents);
        if !(clean && chinese) {
            self.put(CLEAN, clean);
            self.put(CHINESE, chinese);
            self.note("a text is not cleaned, or Chinese not cut, as other programs always do");
        }
        if words.longest_word != LONGEST_WORD {
            self.put(LONGEST, u32::try_from(words.longest_word).unwrap_or(u32::MAX));
            self.note("the longest word that is cut: other programs cut all");
        }
        self.put(UNKNOWN, words.unknown);
        Ok(())
    }

    /// The tokens before and behind a text of WordPiece.
    pub(super) fn around_words(&mut self, inner: &Inner) {
        if let Some(id) = inner.bos {
            self.put(BOS, id);
            self.put(CLS, id);
        }
        if let Some(id) = inner.closing {
            self.put(SEPARATOR, id);
        }
        self.put(ADD_BOS, inner.add_bos);
        self.put(ADD_EOS, false);
        self.put(ADD_SEPARATOR, inner.closing.is_some());
    }

    /// Unigram: what SentencePiece would do with a text, and the parts that do it here.
    pub(super) fn unigram(
        &mut self,
        root: &Value,
        inner: &Inner,
        unigram: &Unigram,
        rows: Option<usize>,
    ) -> Result<(), TextError> {
        let part = |name: &str| root.get(name).cloned().unwrap_or_default();
        let (normalizer, pre_tokenizer) = (part("normalizer"), part("pre_tokenizer"));
        let of_kind = |part: &&Value| kind(part) == "Precompiled";
        let tables: Vec<&Value> = sequence(&normalizer, "normalizers").into_iter().filter(of_kind).collect();
        let table = match tables.as_slice() {
            [] => None,
            [one] => one.get("precompiled_charsmap").and_then(Value::as_str).filter(|text| !text.is_empty()),
            _ => {
                let what = "a normalizer with several tables of replacements".to_owned();
                return Err(TextError::Inexpressible { form: FORM, what });
            }
        };
        if let Some(table) = table {
            self.put(CHARSMAP, Charsmap::from_base64(table)?.bytes());
        }
        let mut scores: Vec<f32> = unigram.scores().iter().map(|&score| score as f32).collect();
        // Tokens that were added are found before, and rows without a token never.
        scores.resize(rows.unwrap_or(inner.vocab.len()), LEAST);
        // Whether of a run of spaces one is left.
        let pre = sequence(&pre_tokenizer, "pretokenizers");
        let words = pre.iter().any(|part| kind(part) == "WhitespaceSplit");
        let folded = sequence(&normalizer, "normalizers").iter().any(|part| {
            kind(part) == "Replace" && part.pointer("/pattern/Regex").and_then(Value::as_str) == Some(" {2,}")
        });
        self.put(MODEL, "t5");
        self.put(PRE, "default");
        self.put(SCORES, scores);
        self.put(ADD_SPACE, inner.space_prefix != SpacePrefix::Never);
        self.put(TRIM, words || folded);
        self.put(NORMALIZER, with_charsmap(normalizer, None).to_string());
        self.put(PRE_TOKENIZER, pre_tokenizer.to_string());
        self.note("what is done with a text before it is cut: other programs do what SentencePiece does");
        Ok(())
    }

    /// What an encoder wants between two texts, as far as it is known.
    pub(super) fn between(&mut self, inner: &Inner, metadata: &Metadata) -> Result<(), TextError> {
        let Some(between) = &inner.between else { return Ok(()) };
        let architecture = metadata.str_opt("general.architecture")?.unwrap_or_default();
        if metadata.bool_opt(&format!("{architecture}.attention.causal"))? != Some(false) {
            return Ok(());
        }
        let told = self.entries.iter().any(|(key, _)| key == SEPARATOR);
        let usual = match (between.as_slice(), inner.closing) {
            ([one], Some(closing)) if told => *one == closing,
            ([one], None) if !told => {
                self.put(SEPARATOR, *one);
                true
            }
            ([first, second], Some(closing)) if !told && *first == closing => {
                self.put(SEPARATOR, *second);
                true
            }
            _ => false,
        };
        if !usual {
            self.put(BETWEEN, between.as_slice());
            self.note("what comes between two texts: other programs put EOS and the separator there");
        }
        Ok(())
    }
}

/// A `tokenizer.json` of WordPiece, but for its vocabulary.
pub(super) fn word_piece(words: &WordPiece, vocab: &Vocab) -> Pipeline {
    let Cleaning { clean, chinese, strip_accents, lowercase } = words.cleaning;
    Pipeline {
        normalizer: json!({
            "type": "BertNormalizer", "clean_text": clean, "handle_chinese_chars": chinese,
            "strip_accents": strip_accents, "lowercase": lowercase,
        }),
        pre_tokenizer: json!({ "type": "BertPreTokenizer" }),
        decoder: json!({ "type": "WordPiece", "prefix": CONTINUES, "cleanup": true }),
        model: json!({
            "type": "WordPiece", "unk_token": vocab.get(words.unknown), "continuing_subword_prefix": CONTINUES,
            "max_input_chars_per_word": words.longest_word,
        }),
    }
}

/// A `tokenizer.json` of Unigram, but for its vocabulary: with the parts that the metadata has, or with what comes to the same as
/// SentencePiece.
pub(super) fn unigram(unigram: &Unigram, metadata: &Metadata) -> Result<Pipeline, TextError> {
    let space = SPACE.to_string();
    let metaspace = |scheme: &str| json!({ "type": "Metaspace", "replacement": space, "prepend_scheme": scheme, "split": unigram.spaces_begin() });
    let (normalizer, pre_tokenizer) = match unigram.preparation() {
        Preparation::Pipeline { .. } => {
            let part = |key: &str| parse(metadata.str_opt(key)?.unwrap_or("null").as_bytes());
            let table = metadata.bytes_opt(CHARSMAP)?.filter(|blob| !blob.is_empty());
            let table = table.map(|blob| Ok::<_, TextError>(Charsmap::new(blob)?.to_base64())).transpose()?;
            (with_charsmap(part(NORMALIZER)?, table.as_deref()), part(PRE_TOKENIZER)?)
        }
        Preparation::SentencePiece { suffix: true, .. } => {
            let what = "a space behind a text instead of before it".to_owned();
            return Err(TextError::Inexpressible { form: JSON, what });
        }
        Preparation::SentencePiece { map, trim, prefix, .. } => {
            let mut steps = Vec::new();
            if let Some(map) = map {
                steps.push(json!({ "type": "Precompiled", "precompiled_charsmap": map.to_base64() }));
            }
            if *trim {
                steps.push(json!({ "type": "Strip", "strip_left": true, "strip_right": true }));
                steps.push(json!({ "type": "Replace", "pattern": { "Regex": " {2,}" }, "content": " " }));
            }
            if *prefix && !trim {
                // Before a space as well.
                steps.push(json!({ "type": "Prepend", "prepend": space }));
            }
            let scheme = if *prefix && *trim { "always" } else { "never" };
            (json!({ "type": "Sequence", "normalizers": steps }), metaspace(scheme))
        }
    };
    Ok(Pipeline {
        normalizer,
        pre_tokenizer,
        decoder: metaspace("always"),
        model: json!({ "type": "Unigram", "unk_id": unigram.unknown(), "byte_fallback": unigram.has_bytes() }),
    })
}
