//! What is done with a text before it is cut into pieces.

use super::charsmap::Charsmap;
use crate::TextError;
use crate::json::{bad, flag, kind, sequence, unsupported};
use regex_automata::meta::Regex;
use regex_automata::util::syntax;
use serde_json::Value;
use unicode_normalization::UnicodeNormalization;
use unicode_normalization::char::is_combining_mark;
use unicode_segmentation::UnicodeSegmentation;

const WHAT: &str = "tokenizer.json normalizer";
/// Times that a text may grow. Unicode's own forms make up to eleven bytes of one.
const GROWTH: usize = 64;
/// Bytes from which the `tokenizers` crate doesn't look a whole grapheme up.
const LONG_GRAPHEME: usize = 6;

/// One step, as the `tokenizers` crate does it.
pub(crate) enum Step {
    Charsmap(Charsmap),
    Replace {
        pattern: Pattern,
        content: String,
    },
    Strip {
        left: bool,
        right: bool,
    },
    Nfc,
    Nfd,
    Nfkc,
    Nfkd,
    Lowercase,
    StripAccents,
    /// Control characters go, and unusual white space is a space.
    Nmt,
    /// Before a text that isn't empty.
    Prepend(String),
}

/// What is replaced.
pub(crate) enum Pattern {
    Text(String),
    Regex(Box<Regex>),
}

impl Step {
    /// The steps of a `normalizer`.
    pub(crate) fn read(value: &Value) -> Result<Vec<Self>, TextError> {
        let mut steps = Vec::new();
        for part in sequence(value, "normalizers") {
            steps.push(match kind(part) {
                "" => continue,
                "Precompiled" => match part.get("precompiled_charsmap").and_then(Value::as_str) {
                    None | Some("") => continue,
                    Some(text) => Self::Charsmap(Charsmap::from_base64(text)?),
                },
                "Replace" => Self::replace(part)?,
                "Strip" => Self::Strip {
                    left: flag(part, "strip_left", true),
                    right: flag(part, "strip_right", true),
                },
                "NFC" => Self::Nfc,
                "NFD" => Self::Nfd,
                "NFKC" => Self::Nfkc,
                "NFKD" => Self::Nfkd,
                "Lowercase" => Self::Lowercase,
                "StripAccents" => Self::StripAccents,
                "Nmt" => Self::Nmt,
                "Prepend" => Self::Prepend(text(part, "prepend")?.to_owned()),
                other => return Err(unsupported(WHAT, other)),
            });
        }
        Ok(steps)
    }

    fn replace(part: &Value) -> Result<Self, TextError> {
        let content = text(part, "content")?.to_owned();
        let pattern = part.get("pattern").ok_or_else(|| bad("Replace without a pattern"))?;
        if let Some(text) = pattern.get("String").and_then(Value::as_str) {
            if text.is_empty() {
                return Err(unsupported(WHAT, "Replace of nothing"));
            }
            return Ok(Self::Replace { pattern: Pattern::Text(text.to_owned()), content });
        }
        let expression = text(pattern, "Regex")?;
        // Where an expression matches nothing, engines differ in how they go on.
        let parsed = syntax::parse(expression);
        if !parsed.is_ok_and(|parsed| parsed.properties().minimum_len().is_some_and(|least| least > 0)) {
            return Err(unsupported(WHAT, &format!("Replace of {expression}")));
        }
        let regex = Regex::new(expression)
            .map_err(|error| TextError::PreTokenizer { message: format!("{expression}: {error}") })?;
        Ok(Self::Replace { pattern: Pattern::Regex(Box::new(regex)), content })
    }

    /// The text after these steps, and whether it still begins where it began, as the `tokenizers` crate counts. One that grows
    /// beyond all bounds is an error.
    pub(crate) fn apply(steps: &[Self], text: &str) -> Result<(String, bool), TextError> {
        let limit = text.len().saturating_mul(GROWTH).saturating_add(4096);
        let (mut text, mut begins) = (text.to_owned(), true);
        for step in steps {
            begins &= !step.takes_the_beginning(&text);
            let made = step.once(&text, limit).filter(|text| text.len() <= limit);
            text = made.ok_or(TextError::GrowsTooMuch { limit })?;
        }
        Ok((text, begins))
    }

    fn takes_the_beginning(&self, text: &str) -> bool {
        let Some(first) = text.chars().next() else { return false };
        match self {
            Self::Strip { left, .. } => *left && first.is_whitespace(),
            Self::StripAccents => is_combining_mark(first),
            Self::Nmt => nmt(first).is_none(),
            // What is put there is counted to the last character that it stands for.
            Self::Replace { pattern, content } => {
                let end = match pattern {
                    Pattern::Text(from) if text.starts_with(from.as_str()) => from.len(),
                    Pattern::Text(_) => 0,
                    Pattern::Regex(regex) => {
                        regex.find(text).filter(|found| found.start() == 0).map_or(0, |found| found.end())
                    }
                };
                end > 0 && content.is_empty() || end > first.len_utf8()
            }
            _ => false,
        }
    }

    /// `None`: more than `limit` bytes.
    fn once(&self, text: &str, limit: usize) -> Option<String> {
        Some(match self {
            Self::Charsmap(map) => return graphemes(map, text, limit),
            Self::Replace { pattern, content } => {
                let mut out = String::with_capacity(text.len());
                let mut done = 0;
                let mut put = |start: usize, end: usize| {
                    out.push_str(text.get(done..start).unwrap_or(""));
                    out.push_str(content);
                    done = end;
                    out.len() <= limit
                };
                let whole = match pattern {
                    Pattern::Text(from) => {
                        text.match_indices(from.as_str()).all(|(start, _)| put(start, start + from.len()))
                    }
                    Pattern::Regex(regex) => {
                        regex.find_iter(text).all(|found| put(found.start(), found.end()))
                    }
                };
                if !whole {
                    return None;
                }
                out.push_str(text.get(done..).unwrap_or(""));
                out
            }
            Self::Strip { left, right } => {
                let text = if *left { text.trim_start() } else { text };
                if *right { text.trim_end() } else { text }.to_owned()
            }
            Self::Nfc => text.nfc().collect(),
            Self::Nfd => text.nfd().collect(),
            Self::Nfkc => text.nfkc().collect(),
            Self::Nfkd => text.nfkd().collect(),
            Self::Lowercase => text.chars().flat_map(char::to_lowercase).collect(),
            Self::StripAccents => text.chars().filter(|&c| !is_combining_mark(c)).collect(),
            Self::Nmt => text.chars().filter_map(nmt).collect(),
            Self::Prepend(_) if text.is_empty() => String::new(),
            Self::Prepend(first) => format!("{first}{text}"),
        })
    }
}

/// Bytes of the tables that a `normalizer` has.
pub(crate) fn charsmap_bytes(normalizer: &Value) -> u64 {
    let parts = sequence(normalizer, "normalizers").into_iter();
    let texts = parts.filter_map(|part| part.get("precompiled_charsmap")?.as_str());
    texts.map(|text| text.len() as u64 / 4 * 3).sum()
}

fn text<'a>(part: &'a Value, key: &str) -> Result<&'a str, TextError> {
    part.get(key).and_then(Value::as_str).ok_or_else(|| bad(format!("{} without {key}", kind(part))))
}

/// The table as the `tokenizers` crate reads it, and so the models that transformers trains: what a grapheme begins with stands for
/// all of a short one, else its characters are looked up one by one.
fn graphemes(map: &Charsmap, text: &str, limit: usize) -> Option<String> {
    let mut out = String::with_capacity(text.len());
    for grapheme in text.graphemes(true) {
        match map.shortest(grapheme).filter(|_| grapheme.len() < LONG_GRAPHEME) {
            Some((_, replacement)) => out.push_str(replacement),
            None => {
                for (at, c) in grapheme.char_indices() {
                    let part = grapheme.get(at..at + c.len_utf8()).unwrap_or("");
                    out.push_str(map.shortest(part).map_or(part, |(_, replacement)| replacement));
                }
            }
        }
        if out.len() > limit {
            return None;
        }
    }
    Some(out)
}

/// The characters that SentencePiece's rules for translation leave out, and those that are a space to them.
fn nmt(c: char) -> Option<char> {
    match u32::from(c) {
        0x01..=0x08 | 0x0B | 0x0E..=0x1F | 0x7F | 0x8F | 0x9F => None,
        0x09 | 0x0A | 0x0C | 0x0D | 0x1680 | 0x200B..=0x200F | 0x2028 | 0x2029 | 0x2581 | 0xFEFF | 0xFFFD => {
            Some(' ')
        }
        _ => Some(c),
    }
}

/// SentencePiece's own reading: the longest stretch again and again; with `trim`, of each run of spaces one, and none at the ends.
/// Spaces are `▁` afterwards, and one of them comes first, or last, where the model wants one.
pub(crate) fn sentence_piece(
    map: Option<&Charsmap>,
    text: &str,
    trim: bool,
    prefix: bool,
    suffix: bool,
) -> String {
    let space = crate::vocab::SPACE;
    if text.is_empty() {
        return String::new();
    }
    let mut out = String::with_capacity(text.len() + text.len() / 2 + 3);
    let mut rest = text;
    let mut after_space = trim;
    if prefix && !suffix {
        out.push(space);
    }
    while let Some(c) = rest.chars().next() {
        let found = map.and_then(|map| map.longest(rest));
        let (length, part) = found.unwrap_or_else(|| (c.len_utf8(), rest.get(..c.len_utf8()).unwrap_or("")));
        let part = if after_space { part.trim_start_matches(' ') } else { part };
        if !part.is_empty() {
            out.extend(part.chars().map(|c| if c == ' ' { space } else { c }));
            after_space = trim && part.ends_with(' ');
        }
        rest = rest.get(length..).unwrap_or("");
    }
    if trim {
        out.truncate(out.trim_end_matches(space).len());
    }
    if prefix && suffix {
        out.push(space);
    }
    out
}
