//! Cutting text into the pieces that byte-level BPE merges within.
//!
//! A pre-tokenizer is a list of stages; each cuts every piece further, and what a stage's expression doesn't match
//! stays a piece. [`families`] has the expressions.
//!
//! They run on a linear-time automaton: a backtracking engine gives up on a megabyte of spaces, and a tokenizer must not.
//! Their look-aheads are done by hand: `(?!\S)` at the end of an alternative, and digits in groups of three.

mod families;

use crate::TextError;
pub(crate) use families::{GPT2, PreSpec, spec};
use families::{NAMES, THOUSANDS, THOUSANDS_OF_WORDS};
use regex_automata::util::syntax;
use regex_automata::{Anchored, Input, meta};
use std::ops::Range;

/// The end of an alternative that no word may follow.
const NO_WORD: &str = r"(?!\S)";

/// What happens to the matches of a stage; HF's names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Behavior {
    Isolated,
    Removed,
    MergedWithPrevious,
    MergedWithNext,
    /// Matches that touch are one piece.
    Contiguous,
}

enum Cut {
    /// A match of a pattern in `followed` ends with a white space that isn't a part of it.
    Regex {
        regex: Box<meta::Regex>,
        followed: Vec<bool>,
    },
    Literal(String),
    /// Groups of three digits from the right, in each run of digits. Where `until_next`, what follows a group up to the
    /// next one belongs to it; otherwise the first pattern of `digits` is a run within a word, which isn't cut.
    Thousands {
        digits: Box<meta::Regex>,
        until_next: bool,
    },
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
    /// An expression whose only look-ahead, if any, is [`NO_WORD`] at the end of alternatives, or one of the two for
    /// thousands.
    pub(crate) fn regex(pattern: &str, behavior: Behavior, invert: bool) -> Result<Self, TextError> {
        if pattern == THOUSANDS {
            let digits = compile(pattern, &[r"\d+".to_owned()])?;
            return Ok(Self { cut: Cut::Thousands { digits, until_next: true }, behavior, invert });
        }
        if pattern == THOUSANDS_OF_WORDS {
            // Oniguruma counts fractions and the like among the characters of words.
            let digits = compile(pattern, &[r"\d+[[\w\p{N}]--\d]".to_owned(), r"\d+".to_owned()])?;
            return Ok(Self { cut: Cut::Thousands { digits, until_next: false }, behavior, invert });
        }
        let (mut parts, mut followed) = (Vec::new(), Vec::new());
        for part in alternatives(pattern) {
            let part = greedy(part);
            let Some(part) = part.strip_suffix(NO_WORD) else {
                parts.push(part);
                followed.push(false);
                continue;
            };
            // No word follows where the text ends, or a white space does.
            parts.extend([format!(r"(?:{part})\z"), format!(r"(?:{part})\s")]);
            followed.extend([false, true]);
        }
        if parts.iter().any(|part| part.contains("(?!") || part.contains("(?=") || part.contains("(?<")) {
            return Err(TextError::Unsupported {
                what: "pre-tokenizer expression",
                name: pattern.to_owned(),
            });
        }
        Ok(Self { cut: Cut::Regex { regex: compile(pattern, &parts)?, followed }, behavior, invert })
    }

    pub(crate) fn literal(text: &str, behavior: Behavior, invert: bool) -> Self {
        Self { cut: Cut::Literal(text.to_owned()), behavior, invert }
    }

    /// The next match in `piece` at or after `from`, of an expression or a text.
    fn find(&self, piece: &str, from: usize) -> Option<Range<usize>> {
        match &self.cut {
            Cut::Regex { regex, followed } => {
                let mut from = from;
                loop {
                    let found = regex.search(&Input::new(piece).range(from..).anchored(Anchored::No))?;
                    let (start, mut end) = (found.start(), found.end());
                    if followed.get(found.pattern().as_usize()) == Some(&true) {
                        end -= piece.get(start..end)?.chars().next_back()?.len_utf8();
                    }
                    if start < end {
                        return Some(start..end);
                    }
                    // An expression that matches nothing cuts nothing.
                    from = end + piece.get(end..)?.chars().next()?.len_utf8();
                }
            }
            Cut::Literal(text) => {
                let at = from + piece.get(from..)?.find(text.as_str()).filter(|_| !text.is_empty())?;
                Some(at..at + text.len())
            }
            Cut::Thousands { .. } => None,
        }
    }

    fn cut(&self, text: &str, piece: Range<usize>, out: &mut Vec<Range<usize>>) {
        let base = piece.start;
        let Some(piece) = text.get(piece) else { return };
        let first = out.len();
        let mut after_match = false;
        let extend = |out: &mut Vec<Range<usize>>, range: Range<usize>| {
            if let Some(last) = out.last_mut() {
                last.end = range.end;
            }
        };
        let mut put = |range: Range<usize>, is_match: bool| {
            if range.is_empty() {
                return;
            }
            let is_match = is_match != self.invert;
            let touches = std::mem::replace(&mut after_match, is_match);
            let range = base + range.start..base + range.end;
            match (self.behavior, is_match) {
                (Behavior::Removed, true) => {}
                (Behavior::MergedWithPrevious, true) if !touches && out.len() > first => extend(out, range),
                (Behavior::MergedWithNext, false) | (Behavior::Contiguous, true) if touches => {
                    extend(out, range);
                }
                _ => out.push(range),
            }
        };
        let mut done = 0;
        let mut cut = |found: Range<usize>| {
            put(done..found.start, false);
            done = found.end;
            put(found, true);
            done
        };
        if let Cut::Thousands { digits, until_next } = &self.cut {
            thousands(digits, piece, *until_next).into_iter().for_each(|group| _ = cut(group));
        } else {
            let mut from = 0;
            while let Some(found) = self.find(piece, from) {
                from = cut(found);
            }
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

/// The name and the rest of the pre-tokenizer that cuts as these expressions do, one of the same wishes if there is one.
pub(crate) fn named(cuts: &[String], ignore_merges: bool, nfc: bool) -> Option<(&'static str, PreSpec)> {
    let specs = NAMES.iter().filter_map(|name| Some((*name, spec(name).ok()?)));
    let same = specs.filter(|(_, spec)| {
        spec.stages.len() == cuts.len() && spec.stages.iter().zip(cuts).all(|(a, b)| same_cuts(a, b))
    });
    same.min_by_key(|(_, spec)| (spec.ignore_merges != ignore_merges, spec.nfc != nfc))
}

/// Whether two expressions are the same but for their spelling.
fn same_cuts(a: &str, b: &str) -> bool {
    let parsed = |pattern: &str| {
        let parts = alternatives(pattern).into_iter().map(|part| {
            let part = greedy(part);
            let (part, followed) = match part.strip_suffix(NO_WORD) {
                Some(part) => (part, true),
                None => (part.as_str(), false),
            };
            syntax::parse(part).ok().map(|part| (part, followed))
        });
        parts.collect::<Option<Vec<_>>>()
    };
    a == b || parsed(a).is_some_and(|a| Some(a) == parsed(b))
}

/// One automaton of several patterns, of which the first has the right of way; `pattern` is what an error names.
fn compile(pattern: &str, parts: &[String]) -> Result<Box<meta::Regex>, TextError> {
    let config = meta::Config::new().nfa_size_limit(Some(20 << 20)).hybrid_cache_capacity(4 << 20);
    meta::Builder::new()
        .configure(config)
        .build_many(parts)
        .map(Box::new)
        .map_err(|error| TextError::PreTokenizer { message: format!("{pattern}: {error}") })
}

/// The groups of at most three digits of every run, cut from the right.
fn thousands(digits: &meta::Regex, piece: &str, until_next: bool) -> Vec<Range<usize>> {
    let mut groups: Vec<Range<usize>> = Vec::new();
    for run in digits.find_iter(piece).filter(|run| until_next || run.pattern().as_usize() > 0) {
        let text = piece.get(run.range()).unwrap_or("");
        let lead = text.chars().count() % 3;
        let starts = text.char_indices().enumerate();
        let starts = starts.filter(|(index, _)| *index == 0 || index % 3 == lead).map(|(_, (at, _))| at);
        for start in starts.map(|at| run.start() + at) {
            if let Some(before) = groups.last_mut().filter(|before| until_next || before.end > start) {
                before.end = start;
            }
            groups.push(start..run.end());
        }
    }
    if let Some(last) = groups.last_mut().filter(|_| until_next) {
        last.end = piece.len();
    }
    groups
}

/// The characters of an expression that mean something: neither escaped nor inside a class.
fn operators(pattern: &str) -> impl Iterator<Item = (usize, char)> {
    let (mut class, mut escaped) = (0usize, false);
    pattern.char_indices().filter(move |&(_, c)| {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '[' => class += 1,
            ']' if class > 0 => class -= 1,
            _ => return class == 0,
        }
        false
    })
}

/// The top-level alternatives of an expression.
fn alternatives(pattern: &str) -> Vec<&str> {
    let (mut parts, mut start, mut depth) = (Vec::new(), 0, 0usize);
    for (at, c) in operators(pattern) {
        match c {
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

/// Possessive repetitions as greedy ones: they exist for a backtracking engine's speed, and match the same here.
fn greedy(pattern: &str) -> String {
    let mut out = String::with_capacity(pattern.len());
    let (mut done, mut last) = (0, None);
    for (at, c) in operators(pattern) {
        if c == '+' && last.is_some_and(|(before, c)| before + 1 == at && matches!(c, '+' | '?' | '*')) {
            out.push_str(&pattern[done..at]);
            done = at + 1;
            last = None;
        } else {
            last = Some((at, c));
        }
    }
    out.push_str(&pattern[done..]);
    out
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
        let names = "default minicpm5 llama3 llama-v3 llama-bpe falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano deepseek-llm \
            deepseek-coder deepseek-v3 spark2_5 youtu falcon mpt starcoder gpt-2 phi-2 jina-es jina-de gigachat jina-v2-es jina-v2-de \
            a.x-4.0 mellum modern-bert jais-2 jina-v1-en jina-v2-code roberta-bpe refact command-r qwen2 deepseek-r1-qwen kormo f2llmv2 \
            openpangu qwen35 stablelm2 olmo dbrx smaug-bpe poro-chat glm4 chatglm-bpe viking jais tekken smollm codeshell bloom \
            gpt3-finnish exaone exaone4 exaone-moe chameleon minerva-7b megrez gpt-4o llama4 kanana2 talkie granite-embed-multi-97m \
            tiny_aya cohere2moe cohere2_moe superbpe trillion granite-docling bailingmoe bailingmoe2 llada-moe seed-coder hunyuan \
            hunyuan-dense hy_v4 joyai-llm kimi-k2 ufakzeka grok-2 afmoe laguna minimax-m2 solar-open mellum2";
        for name in names.split_whitespace() {
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
        assert_eq!(cut("jais-2", &format!("{}x", " ".repeat(8))), ["    ", "  ", " ", " x"]);
    }

    #[test]
    fn digits_by_family() {
        assert_eq!(cut("smollm", "12 345"), ["1", "2", " ", "3", "4", "5"]);
        assert_eq!(cut("llama-bpe", "12 34567"), ["12", " ", "345", "67"]);
        assert_eq!(cut("qwen2", "12 3"), ["1", "2", " ", "3"]);
        assert_eq!(cut("superbpe", "1234567 12"), ["1", "234", "567", " ", "12"]);
        // A letter behind the digits, and no cut.
        assert_eq!(cut("tiny_aya", "12345 1234a"), ["12", "345", " ", "123", "4", "a"]);
        assert_eq!(cut("afmoe", "1234567"), ["1", "234", "567"]);
    }

    #[test]
    fn possessive_repetitions_outside_of_classes() {
        assert_eq!(greedy(r"[^\r]?+\p{L}++|[*+?+]*+ \++"), r"[^\r]?\p{L}+|[*+?+]* \++");
        // The class of DeepSeek's expression contains `*+`.
        assert_eq!(cut("deepseek-v3", "+naïve"), ["+na", "ïve"]);
    }

    #[test]
    fn contractions_and_case() {
        assert_eq!(cut("llama-bpe", "I'LL don't"), ["I", "'LL", " don", "'t"]);
        assert_eq!(cut("gpt-2", "I'LL don't"), ["I", "'", "LL", " don", "'t"]);
        assert_eq!(cut("gpt-4o", "MixedCase don't"), ["Mixed", "Case", " don't"]);
    }

    #[test]
    fn a_megabyte_of_one_kind_is_cut_in_linear_time() {
        for (c, name) in [
            (" ", "qwen2"),
            ("\n", "qwen2"),
            ("😀", "gpt-4o"),
            ("a", "deepseek-v3"),
            ("\t", "gpt-2"),
            ("1", "afmoe"),
            (" ", "jais-2"),
        ] {
            let text = c.repeat(1 << 20) + "x";
            assert_eq!(cut(name, &text).iter().map(|piece| piece.len()).sum::<usize>(), text.len());
        }
    }
}
