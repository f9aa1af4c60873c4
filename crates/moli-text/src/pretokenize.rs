//! Cutting text into the pieces that byte-level BPE merges within.
//!
//! A pre-tokenizer is a list of stages; each cuts every piece further, and what a stage's expression doesn't match
//! stays a piece. The expressions are data of the models: they were learnt with them, and the names are those that
//! `tokenizer.ggml.pre` uses.
//!
//! They run on a linear-time automaton. Their one look-ahead, `\s+(?!\S)`, is done by hand: a backtracking engine
//! gives up on a megabyte of spaces, and a tokenizer must not.

use crate::TextError;
use regex_automata::{Anchored, Input, meta};
use std::ops::Range;

/// The alternative that takes a run of white space but leaves its last character to the word that follows.
const BEFORE_WORD: &str = r"\s+(?!\S)";

const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN35: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const GPT4O: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const KIMI: &str = r"[\p{Han}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const DEEPSEEK_LETTERS: &str = concat!(
    r"\s?[",
    r"A-Za-z\x{B5}\x{C0}-\x{D6}\x{D8}-\x{F6}\x{F8}-\x{1BA}\x{1BC}-\x{1BF}\x{1C4}-\x{293}",
    r"\x{295}-\x{2AF}\x{370}-\x{373}\x{376}\x{377}\x{37B}-\x{37D}\x{37F}\x{386}\x{388}-\x{38A}",
    r"\x{38C}\x{38E}-\x{3A1}\x{3A3}-\x{3F5}\x{3F7}-\x{481}\x{48A}-\x{52F}\x{531}-\x{556}",
    r"\x{10A0}-\x{10C5}\x{13A0}-\x{13F5}\x{13F8}-\x{13FD}\x{1C90}-\x{1CBA}\x{1CBD}-\x{1CBF}",
    r"\x{1D00}-\x{1D2B}\x{1D6B}-\x{1D77}\x{1D79}-\x{1D9A}\x{1E00}-\x{1F15}\x{1F18}-\x{1F1D}",
    r"\x{1F20}-\x{1F45}\x{1F48}-\x{1F4D}\x{1F50}-\x{1F57}\x{1F59}\x{1F5B}\x{1F5D}",
    r"\x{1F5F}-\x{1F7D}\x{1F80}-\x{1FB4}\x{1FB6}-\x{1FBC}\x{1FBE}\x{1FC2}-\x{1FC4}",
    r"\x{1FC6}-\x{1FCC}\x{1FD0}-\x{1FD3}\x{1FD6}-\x{1FDB}\x{1FE0}-\x{1FEC}\x{1FF2}-\x{1FF4}",
    r"\x{1FF6}-\x{1FFC}\x{2102}\x{2107}\x{210A}-\x{2113}\x{2115}\x{2119}-\x{211D}\x{2124}",
    r"\x{2126}\x{2128}\x{212A}-\x{212D}\x{212F}-\x{2134}\x{2139}\x{213C}-\x{213F}",
    r"\x{2145}-\x{2149}\x{214E}\x{2183}\x{2184}\x{2C00}-\x{2C7B}\x{2C7E}-\x{2CE4}",
    r"\x{2CEB}-\x{2CEE}\x{2CF2}\x{2CF3}\x{A640}-\x{A66D}\x{A680}-\x{A69B}\x{A722}-\x{A76F}",
    r"\x{A771}-\x{A787}\x{A78B}-\x{A78E}\x{AB70}-\x{ABBF}\x{FB00}-\x{FB06}\x{FB13}-\x{FB17}",
    r"\x{FF21}-\x{FF3A}\x{FF41}-\x{FF5A}\x{10400}-\x{1044F}\x{104B0}-\x{104D3}",
    r"\x{104D8}-\x{104FB}\x{10C80}-\x{10CB2}\x{10CC0}-\x{10CF2}\x{118A0}-\x{118DF}",
    r"\x{1E900}-\x{1E943}",
    "]+"
);
const DEEPSEEK_CJK: &str = r"[\x{4E00}-\x{9FA5}\x{0800}-\x{4E00}\x{AC00}-\x{D7FF}]+";
const DEEPSEEK3_CJK: &str = r"[\x{4E00}-\x{9FA5}\x{3040}-\x{309F}\x{30A0}-\x{30FF}]+";
const DEEPSEEK3: &str = r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"##;
const BLOOM: &str = r" ?[^(\s|.,!?…。，、।۔،)]+";
const BAILING: &str =
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+";
const SEED_CODER: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+";
const EXAONE_MOE: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+";
const NO_CONTRACTIONS: &str =
    r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// What `tokenizer.ggml.pre` stands for.
pub(crate) struct PreSpec {
    pub(crate) stages: &'static [&'static str],
    /// A piece that is a token as a whole is that token, whatever the merges make of it.
    pub(crate) ignore_merges: bool,
    /// Whether text is brought to Unicode's composed form first. The format has no key for it; the families' own
    /// tokenizers do it.
    pub(crate) nfc: bool,
    /// Whether the family adds BOS when `add_bos_token` says nothing.
    pub(crate) add_bos: bool,
}

/// Looks a name up; an unknown one is an error, since other cuts are other tokens.
pub(crate) fn spec(name: &str) -> Result<PreSpec, TextError> {
    let plain = |stages| PreSpec { stages, ignore_merges: false, nfc: false, add_bos: false };
    Ok(match name {
        "default" => plain(&[r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"]),
        "gpt-2" | "phi-2" | "mpt" | "olmo" | "jais" | "trillion" | "granite-docling" | "exaone4"
        | "gigachat" | "jina-es" | "jina-de" | "jina-v1-en" | "jina-v2-es" | "jina-v2-de"
        | "jina-v2-code" | "roberta-bpe" | "a.x-4.0" | "mellum" | "modern-bert" => plain(&[GPT2]),
        "smollm" | "starcoder" | "refact" | "command-r" | "codeshell" | "exaone" | "minerva-7b"
        | "mellum2" => plain(&[r"\p{N}", GPT2]),
        "llama-bpe" | "llama3" | "llama-v3" | "falcon3" | "falcon-h1" | "pixtral" | "midm-2.0" | "lfm2"
        | "jina-v5-nano" => PreSpec { stages: &[LLAMA3], ignore_merges: true, nfc: false, add_bos: true },
        "dbrx" | "smaug-bpe" | "glm4" | "chatglm-bpe" => plain(&[LLAMA3]),
        "qwen2" | "deepseek-r1-qwen" => PreSpec { nfc: true, ..plain(&[QWEN2]) },
        "stablelm2" | "hunyuan" | "megrez" | "kormo" | "f2llmv2" | "solar-open" | "grok-2" => plain(&[QWEN2]),
        "qwen35" => PreSpec { nfc: true, ..plain(&[QWEN35]) },
        "gpt-4o" | "llama4" | "kanana2" | "talkie" | "minimax-m2" => plain(&[GPT4O]),
        "tekken" => PreSpec { stages: &[TEKKEN], ignore_merges: true, nfc: false, add_bos: true },
        "kimi-k2" => plain(&[KIMI]),
        "deepseek-llm" => plain(&[
            r"[\r\n]",
            DEEPSEEK_LETTERS,
            r"\s?[!-/:-~\x{FF01}-\x{FF0F}\x{FF1A}-\x{FF5E}\x{2018}-\x{201F}\x{3000}-\x{3002}]+",
            r"\s+$",
            DEEPSEEK_CJK,
            r"\p{N}+",
        ]),
        "deepseek-coder" => plain(&[r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", DEEPSEEK_CJK, r"\p{N}"]),
        "deepseek-v3" | "hunyuan-dense" | "joyai-llm" | "hy_v4" => {
            plain(&[r"\p{N}{1,3}", DEEPSEEK3_CJK, DEEPSEEK3])
        }
        "falcon" => plain(&[r"[\p{P}\$\+<=>\^~\|`]+", GPT2, "[0-9][0-9][0-9]"]),
        "poro-chat" | "bloom" | "gpt3-finnish" => plain(&[BLOOM]),
        "viking" => plain(&[BLOOM, r"\p{N}"]),
        "bailingmoe" | "bailingmoe2" | "llada-moe" => plain(&[BAILING]),
        "seed-coder" => plain(&[SEED_CODER]),
        "exaone-moe" => plain(&[EXAONE_MOE]),
        "ufakzeka" => plain(&[NO_CONTRACTIONS]),
        "laguna" => plain(&[r"[^\n]+|[\n]+", QWEN2]),
        "minicpm5" => {
            PreSpec { stages: &[r"\p{N}{1,3}", MINICPM5], ignore_merges: true, nfc: false, add_bos: false }
        }
        "superbpe" => plain(&[r"\p{N}+", THOUSANDS]),
        _ => return Err(TextError::UnknownPreTokenizer { name: name.to_owned() }),
    })
}

const MINICPM5: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}+| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// Digits in groups of three from the right, as thousands are written; done by hand for its look-ahead.
const THOUSANDS: &str = r"(?=(\d{3})+(?!\d))";

/// What happens to the matches of a stage; HF's names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Behavior {
    Isolated,
    Removed,
    MergedWithPrevious,
}

enum Cut {
    Regex { regex: Box<meta::Regex>, before_word: Option<usize> },
    Literal(String),
    Thousands,
}

pub(crate) struct Stage {
    cut: Cut,
    behavior: Behavior,
    /// The expression describes what lies between the cuts' matches.
    invert: bool,
}

/// Compiled stages.
pub(crate) struct PreTokenizer {
    stages: Vec<Stage>,
}

impl Stage {
    /// An expression whose only look-ahead, if any, is [`BEFORE_WORD`] as an alternative of its own.
    pub(crate) fn regex(pattern: &str, behavior: Behavior, invert: bool) -> Result<Self, TextError> {
        if pattern == THOUSANDS {
            return Ok(Self { cut: Cut::Thousands, behavior, invert });
        }
        let mut before_word = None;
        let mut parts = Vec::new();
        for part in alternatives(pattern) {
            if part == BEFORE_WORD {
                before_word = Some(parts.len());
                parts.push(r"\s+".to_owned());
            } else {
                // Possessive forms exist for a backtracking engine's speed; greedy ones match the same here.
                parts.push(part.replace("++", "+").replace("?+", "?").replace("*+", "*"));
            }
        }
        if parts.iter().any(|part| part.contains("(?!") || part.contains("(?=") || part.contains("(?<")) {
            return Err(TextError::Unsupported {
                what: "pre-tokenizer expression",
                name: pattern.to_owned(),
            });
        }
        let regex = meta::Builder::new()
            .configure(meta::Config::new().nfa_size_limit(Some(20 << 20)).hybrid_cache_capacity(4 << 20))
            .build_many(&parts)
            .map_err(|error| TextError::PreTokenizer { message: format!("{pattern}: {error}") })?;
        Ok(Self { cut: Cut::Regex { regex: Box::new(regex), before_word }, behavior, invert })
    }

    pub(crate) fn literal(text: &str, behavior: Behavior, invert: bool) -> Self {
        Self { cut: Cut::Literal(text.to_owned()), behavior, invert }
    }

    /// The next match in `piece` at or after `from`.
    fn find(&self, piece: &str, from: usize) -> Option<Range<usize>> {
        match &self.cut {
            Cut::Regex { regex, before_word } => {
                let mut from = from;
                loop {
                    let found = regex.search(&Input::new(piece).range(from..).anchored(Anchored::No))?;
                    let (start, mut end) = (found.start(), found.end());
                    if start == end {
                        // An expression that matches nothing cuts nothing.
                        from = end + piece.get(end..)?.chars().next()?.len_utf8();
                        continue;
                    }
                    if *before_word == Some(found.pattern().as_usize()) && end < piece.len() {
                        // A word follows: its space belongs to it, unless the space is all there is.
                        let last = piece.get(start..end)?.chars().next_back()?.len_utf8();
                        if end - last > start {
                            end -= last;
                        }
                    }
                    return Some(start..end);
                }
            }
            Cut::Literal(text) => {
                let at = from + piece.get(from..)?.find(text.as_str()).filter(|_| !text.is_empty())?;
                Some(at..at + text.len())
            }
            Cut::Thousands => {
                let bytes = piece.as_bytes();
                let start = from + bytes.get(from..)?.iter().position(u8::is_ascii_digit)?;
                let rest = bytes.get(start..)?;
                let digits = rest.iter().position(|b| !b.is_ascii_digit()).unwrap_or(rest.len());
                let group = if digits <= 3 { digits } else { (digits - 1) % 3 + 1 };
                Some(start..start + group)
            }
        }
    }

    fn cut(&self, text: &str, piece: Range<usize>, out: &mut Vec<Range<usize>>) {
        let base = piece.start;
        let Some(piece) = text.get(piece) else { return };
        let first = out.len();
        let mut put = |range: Range<usize>, is_match: bool| {
            if range.is_empty() {
                return;
            }
            let is_match = is_match != self.invert;
            let range = base + range.start..base + range.end;
            match (self.behavior, is_match) {
                (Behavior::Removed, true) => {}
                (Behavior::MergedWithPrevious, true) if out.len() > first => {
                    if let Some(last) = out.last_mut().filter(|last| last.end == range.start) {
                        last.end = range.end;
                    }
                }
                _ => out.push(range),
            }
        };
        let mut done = 0;
        while let Some(found) = self.find(piece, done) {
            put(done..found.start, false);
            done = found.end;
            put(found, true);
        }
        put(done..piece.len(), false);
    }
}

impl PreTokenizer {
    pub(crate) fn new(stages: Vec<Stage>) -> Self {
        Self { stages }
    }

    /// The stages of a [`PreSpec`].
    pub(crate) fn from_spec(spec: &PreSpec) -> Result<Self, TextError> {
        let stages = spec.stages.iter().map(|pattern| Stage::regex(pattern, Behavior::Isolated, false));
        Ok(Self { stages: stages.collect::<Result<_, _>>()? })
    }

    /// GPT-2's expression, which `ByteLevel` in a `tokenizer.json` means by `use_regex`.
    pub(crate) fn gpt2_stage() -> Result<Stage, TextError> {
        Stage::regex(GPT2, Behavior::Isolated, false)
    }

    /// The pieces of `text[range]`, in order.
    pub(crate) fn pieces(&self, text: &str, range: Range<usize>) -> Vec<Range<usize>> {
        let mut pieces = vec![range];
        for stage in &self.stages {
            let mut next = Vec::with_capacity(pieces.len() * 2);
            for piece in pieces {
                stage.cut(text, piece, &mut next);
            }
            pieces = next;
        }
        pieces.retain(|piece| !piece.is_empty());
        pieces
    }
}

/// The top-level alternatives of an expression.
fn alternatives(pattern: &str) -> Vec<&str> {
    let (mut parts, mut start, mut depth, mut class, mut escaped) = (Vec::new(), 0, 0usize, 0usize, false);
    for (at, c) in pattern.char_indices() {
        if escaped {
            escaped = false;
            continue;
        }
        match c {
            '\\' => escaped = true,
            '[' => class += 1,
            ']' if class > 0 => class -= 1,
            _ if class > 0 => {}
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            '|' if depth == 0 => {
                parts.push(&pattern[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&pattern[start..]);
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut<'a>(name: &str, text: &'a str) -> Vec<&'a str> {
        let pre = PreTokenizer::from_spec(&spec(name).unwrap()).unwrap();
        pre.pieces(text, 0..text.len()).into_iter().map(|piece| &text[piece]).collect()
    }

    #[test]
    fn every_name_compiles() {
        for name in [
            "default",
            "gpt-2",
            "smollm",
            "llama-bpe",
            "dbrx",
            "qwen2",
            "qwen35",
            "gpt-4o",
            "tekken",
            "kimi-k2",
            "deepseek-llm",
            "deepseek-coder",
            "deepseek-v3",
            "falcon",
            "bloom",
            "viking",
            "bailingmoe",
            "seed-coder",
            "exaone-moe",
            "ufakzeka",
            "laguna",
            "minicpm5",
            "superbpe",
        ] {
            let text = "Hi,  it's 1234567 人 \n\n x\t\ty ";
            assert_eq!(cut(name, text).concat(), text, "{name}");
        }
    }

    #[test]
    fn an_unknown_pre_tokenizer_is_an_error() {
        assert!(
            matches!(spec("nonesuch"), Err(TextError::UnknownPreTokenizer { name }) if name == "nonesuch")
        );
    }

    #[test]
    fn white_space_leaves_one_to_the_word() {
        assert_eq!(cut("gpt-2", "a   b \n c  "), ["a", "  ", " b", " \n", " c", "  "]);
        assert_eq!(
            cut("qwen2", "a   b \n\n  c\t\td  "),
            ["a", "  ", " b", " \n\n", " ", " c", "\t", "\td", "  "]
        );
        assert_eq!(cut("gpt-2", "\tx"), ["\t", "x"]);
    }

    #[test]
    fn digits_by_family() {
        assert_eq!(cut("smollm", "12 345"), ["1", "2", " ", "3", "4", "5"]);
        assert_eq!(cut("llama-bpe", "12 34567"), ["12", " ", "345", "67"]);
        assert_eq!(cut("qwen2", "12 3"), ["1", "2", " ", "3"]);
        assert_eq!(cut("superbpe", "1234567 12"), ["1", "234", "567", " ", "12"]);
    }

    #[test]
    fn contractions_and_case() {
        assert_eq!(cut("llama-bpe", "I'LL don't"), ["I", "'LL", " don", "'t"]);
        assert_eq!(cut("gpt-2", "I'LL don't"), ["I", "'", "LL", " don", "'t"]);
        assert_eq!(cut("gpt-4o", "MixedCase don't"), ["Mixed", "Case", " don't"]);
    }

    #[test]
    fn a_megabyte_of_one_kind_is_cut_in_linear_time() {
        for (c, name) in
            [(" ", "qwen2"), ("\n", "qwen2"), ("😀", "gpt-4o"), ("a", "deepseek-v3"), ("\t", "gpt-2")]
        {
            let text = c.repeat(1 << 20) + "x";
            assert_eq!(cut(name, &text).iter().map(|piece| piece.len()).sum::<usize>(), text.len());
        }
    }
}
