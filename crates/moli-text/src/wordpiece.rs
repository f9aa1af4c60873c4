//! WordPiece, the tokenizer of BERT (arXiv:1810.04805): text is cleaned and cut into words, and of each the longest beginning
//! that is a token is taken again and again.

use crate::vocab::Vocab;
use unicode_categories::UnicodeCategories;
use unicode_normalization::UnicodeNormalization;

/// What stands before a token that continues a word.
pub(crate) const CONTINUES: &str = "##";
/// Characters of the longest word that is cut; a longer one is unknown.
pub(crate) const LONGEST_WORD: usize = 100;

/// What is done with a text before it is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cleaning {
    /// Control characters go, and every white space is a space.
    pub(crate) clean: bool,
    /// Each character of Chinese is a word.
    pub(crate) chinese: bool,
    pub(crate) strip_accents: bool,
    pub(crate) lowercase: bool,
}

pub(crate) struct WordPiece {
    pub(crate) cleaning: Cleaning,
    /// What stands for a word that can't be cut.
    pub(crate) unknown: u32,
    pub(crate) longest_word: usize,
}

impl WordPiece {
    pub(crate) fn encode(&self, vocab: &Vocab, text: &str, ids: &mut Vec<u32>) {
        let mut piece = String::new();
        for word in self.cleaning.apply(text).split_whitespace() {
            // Punctuation is a word by itself.
            let mut rest = word;
            while let Some(first) = rest.chars().next() {
                let end = match is_punctuation(first) {
                    true => first.len_utf8(),
                    false => rest.find(is_punctuation).unwrap_or(rest.len()),
                };
                let (word, others) = rest.split_at(end);
                self.word(vocab, word, &mut piece, ids);
                rest = others;
            }
        }
    }

    fn word(&self, vocab: &Vocab, word: &str, piece: &mut String, ids: &mut Vec<u32>) {
        let first = ids.len();
        let mut rest = word;
        if word.chars().nth(self.longest_word).is_some() {
            ids.push(self.unknown);
            return;
        }
        while !rest.is_empty() {
            piece.clear();
            if rest.len() < word.len() {
                piece.push_str(CONTINUES);
            }
            let before = piece.len();
            piece.push_str(rest);
            let id = loop {
                if piece.len() == before {
                    // No beginning is a token: then the whole word is unknown.
                    ids.truncate(first);
                    ids.push(self.unknown);
                    return;
                }
                match vocab.id(piece) {
                    Some(id) => break id,
                    None => piece.pop(),
                };
            };
            ids.push(id);
            rest = rest.get(piece.len() - before..).unwrap_or_default();
        }
    }
}

impl Cleaning {
    /// The text as it is cut; in the order of the library that BERT's tokenizers are published for.
    fn apply(self, text: &str) -> String {
        let mut cleaned = String::with_capacity(text.len() + text.len() / 2);
        for c in text.chars() {
            // Other control characters are left out even where they are spaces: words on both sides become one.
            let left_out = !matches!(c, '\t' | '\n' | '\r') && c.is_other();
            if self.clean && (c == char::REPLACEMENT_CHARACTER || left_out) {
                continue;
            }
            if self.clean && c.is_whitespace() {
                cleaned.push(' ');
            } else if self.chinese && is_chinese(c) {
                cleaned.extend([' ', c, ' ']);
            } else {
                cleaned.push(c);
            }
        }
        if self.strip_accents {
            cleaned = cleaned.nfd().filter(|c| !c.is_mark_nonspacing()).collect();
        }
        if self.lowercase {
            cleaned = cleaned.chars().flat_map(char::to_lowercase).collect();
        }
        cleaned
    }
}

fn is_punctuation(c: char) -> bool {
    c.is_ascii_punctuation() || c.is_punctuation()
}

/// The blocks of ideographs that BERT calls Chinese, with the gaps that it has between them.
fn is_chinese(c: char) -> bool {
    matches!(u32::from(c),
        0x4E00..=0x9FFF | 0x3400..=0x4DBF | 0x20000..=0x2A6DF | 0x2A700..=0x2B73F | 0x2B740..=0x2B81F
        | 0x2B920..=0x2CEAF | 0xF900..=0xFAFF | 0x2F800..=0x2FA1F)
}
