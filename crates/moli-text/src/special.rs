//! Finding control and user-defined tokens in raw text, before anything is merged.

use crate::TextError;
use crate::vocab::{TokenKind, Vocab};
use aho_corasick::{AhoCorasick, AhoCorasickBuilder, Input, MatchKind};
use std::collections::HashMap;
use std::ops::Range;

/// White space that a token takes along, as `lstrip` and `rstrip` in a `tokenizer.json` ask.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Strip {
    pub(crate) left: bool,
    pub(crate) right: bool,
}

/// A stretch of the input.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Fragment {
    Text(Range<usize>),
    Token(u32),
}

/// Finds the leftmost and then longest of a set of tokens.
struct Finder {
    automaton: AhoCorasick,
    ids: Vec<u32>,
}

impl Finder {
    fn new(tokens: &[(u32, &str)]) -> Result<Option<Self>, TextError> {
        if tokens.is_empty() {
            return Ok(None);
        }
        let automaton = AhoCorasickBuilder::new()
            .match_kind(MatchKind::LeftmostLongest)
            .build(tokens.iter().map(|(_, text)| text))
            .map_err(|error| TextError::PreTokenizer { message: error.to_string() })?;
        Ok(Some(Self { automaton, ids: tokens.iter().map(|&(id, _)| id).collect() }))
    }

    fn find(&self, text: &str, range: Range<usize>) -> Option<(u32, Range<usize>)> {
        let found = self.automaton.find(Input::new(text).range(range))?;
        Some((*self.ids.get(found.pattern().as_usize())?, found.range()))
    }
}

pub(crate) struct SpecialTokens {
    /// Control, unknown and user-defined tokens.
    all: Option<Finder>,
    /// User-defined tokens alone: ordinary text may contain them.
    user: Option<Finder>,
    longest_user: usize,
    /// Control and unknown tokens, every occurrence.
    control: Option<AhoCorasick>,
    control_texts: Vec<String>,
    longest_control: usize,
    /// Control tokens of one character.
    single: Vec<u32>,
    strip: HashMap<u32, Strip>,
}

impl SpecialTokens {
    pub(crate) fn new(vocab: &Vocab, strip: HashMap<u32, Strip>) -> Result<Self, TextError> {
        let (mut all, mut user) = (Vec::new(), Vec::new());
        let (mut control_texts, mut single) = (Vec::new(), Vec::new());
        for (id, text, kind) in vocab.iter().filter(|(_, text, _)| !text.is_empty()) {
            match kind {
                TokenKind::UserDefined => {
                    all.push((id, text));
                    user.push((id, text));
                }
                TokenKind::Control | TokenKind::Unknown => {
                    all.push((id, text));
                    control_texts.push(text.to_owned());
                    if text.chars().nth(1).is_none() {
                        single.push(id);
                    }
                }
                _ => {}
            }
        }
        let longest_user = user.iter().map(|(_, text)| text.len()).max().unwrap_or(0);
        let longest_control = control_texts.iter().map(String::len).max().unwrap_or(0);
        let control = if control_texts.is_empty() {
            None
        } else {
            Some(
                AhoCorasick::new(&control_texts)
                    .map_err(|error| TextError::PreTokenizer { message: error.to_string() })?,
            )
        };
        Ok(Self {
            all: Finder::new(&all)?,
            user: Finder::new(&user)?,
            longest_user,
            control,
            control_texts,
            longest_control,
            single,
            strip,
        })
    }

    pub(crate) fn control_texts(&self) -> impl Iterator<Item = &str> {
        self.control_texts.iter().map(String::as_str)
    }

    /// Every control token that is spelt out in `text`, overlapping ones too.
    pub(crate) fn control_occurrences<'a>(
        &'a self,
        text: &'a str,
    ) -> impl Iterator<Item = Range<usize>> + 'a {
        self.control
            .iter()
            .flat_map(move |control| control.find_overlapping_iter(text).map(|found| found.range()))
    }

    /// Whether `text` begins with the end of a control token.
    pub(crate) fn completes_control(&self, text: &str) -> bool {
        self.control_texts().any(|token| {
            token
                .char_indices()
                .skip(1)
                .any(|(at, _)| token.get(at..).is_some_and(|end| text.starts_with(end)))
        })
    }

    /// Whether `text` ends with the beginning of a control token.
    pub(crate) fn begins_control(&self, text: &str) -> bool {
        self.control_texts().any(|token| {
            token
                .char_indices()
                .skip(1)
                .any(|(at, _)| token.get(..at).is_some_and(|start| text.ends_with(start)))
        })
    }

    /// Whether `text` is a part of a control token.
    pub(crate) fn is_inside_control(&self, text: &str) -> bool {
        text.len() < self.longest_control && self.control_texts().any(|token| token.contains(text))
    }

    /// Cuts `text` at its special tokens. No control token reaches across a barrier: a byte position, sorted, that
    /// the text of one may not contain.
    pub(crate) fn split(&self, text: &str, control: bool, barriers: &[usize]) -> Vec<Fragment> {
        let finder = if control { &self.all } else { &self.user };
        let mut fragments = Vec::new();
        let Some(finder) = finder else {
            if !text.is_empty() {
                fragments.push(Fragment::Text(0..text.len()));
            }
            return fragments;
        };
        // `start` is where the current stretch of text begins, `from` where to search.
        let all_barriers = barriers;
        let (mut start, mut from, mut barriers) = (0, 0, barriers);
        while let Some((mut id, mut range)) = finder.find(text, from..text.len()) {
            let walled = |at: &usize| all_barriers.binary_search(at).is_ok();
            if self.single.contains(&id) && walled(&range.start) && walled(&range.end) {
                from = range.end;
                continue;
            }
            let passed = barriers.partition_point(|&barrier| barrier <= range.start);
            barriers = barriers.get(passed..).unwrap_or_default();
            if let Some(&barrier) = barriers.first().filter(|&&barrier| barrier < range.end) {
                // The longest match reaches across: what is left is a shorter one before the barrier, or a
                // user-defined token, which may lie across it.
                let inside = finder.find(text, range.start..barrier);
                let reach = barrier.saturating_add(self.longest_user).min(text.len());
                let across = self.user.as_ref().and_then(|user| user.find(text, range.start..reach));
                let best = [inside, across]
                    .into_iter()
                    .flatten()
                    .filter(|(_, range)| range.start < barrier)
                    .min_by_key(|(_, range)| (range.start, usize::MAX - range.end));
                let Some(better) = best else {
                    from = barrier;
                    continue;
                };
                (id, range) = better;
            }
            let strip = self.strip.get(&id).copied().unwrap_or_default();
            let mut before = text.get(start..range.start).unwrap_or("");
            if strip.left {
                before = before.trim_end();
            }
            if !before.is_empty() {
                fragments.push(Fragment::Text(start..start + before.len()));
            }
            fragments.push(Fragment::Token(id));
            start = range.end;
            if strip.right {
                let after = text.get(start..).unwrap_or("");
                start += after.len() - after.trim_start().len();
            }
            from = start;
        }
        if start < text.len() {
            fragments.push(Fragment::Text(start..text.len()));
        }
        fragments
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vocab::Spelling;

    fn tokens() -> SpecialTokens {
        let mut vocab = Vocab::with_capacity(Spelling::SentencePiece, 0, 0);
        for (text, kind) in [
            ("<s>", TokenKind::Control),
            ("<s>>", TokenKind::Control),
            ("<think>", TokenKind::UserDefined),
            ("k><s", TokenKind::UserDefined),
        ] {
            vocab.push(text, kind).unwrap();
        }
        SpecialTokens::new(&vocab, HashMap::new()).unwrap()
    }

    #[test]
    fn longest_first_and_control_only_on_request() {
        let tokens = tokens();
        assert_eq!(
            tokens.split("a<s>>b", true, &[]),
            [Fragment::Text(0..1), Fragment::Token(1), Fragment::Text(5..6)]
        );
        assert_eq!(tokens.split("a<s><think>", false, &[]), [Fragment::Text(0..4), Fragment::Token(2)]);
    }

    #[test]
    fn nothing_has_no_fragments() {
        let none = SpecialTokens::new(&Vocab::with_capacity(Spelling::SentencePiece, 0, 0), HashMap::new());
        assert_eq!(none.unwrap().split("", true, &[]), []);
        assert_eq!(tokens().split("", true, &[]), []);
    }

    #[test]
    fn a_barrier_stops_control_tokens_only() {
        let tokens = tokens();
        // Inside `<s>>` after `<s>`: the shorter one is whole.
        assert_eq!(tokens.split("<s>>", true, &[3]), [Fragment::Token(0), Fragment::Text(3..4)]);
        assert_eq!(tokens.split("<s><s>", true, &[1]), [Fragment::Text(0..3), Fragment::Token(0)]);
        // At its edges it changes nothing.
        assert_eq!(
            tokens.split("a<s>b", true, &[1, 4]),
            [Fragment::Text(0..1), Fragment::Token(0), Fragment::Text(4..5)]
        );
        assert_eq!(tokens.split("<think>", true, &[1]), [Fragment::Token(2)]);
        assert_eq!(
            tokens.split("<s>k><s>", true, &[6]),
            [Fragment::Token(0), Fragment::Token(3), Fragment::Text(7..8)]
        );
    }
}
