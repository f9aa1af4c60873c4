//! The vocabulary: token texts in one buffer, their types, and the way from text to id.

use crate::TextError;
use crate::wordpiece::CONTINUES;
use hashbrown::HashTable;

/// What a token is for; the numbers are those of `tokenizer.ggml.token_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum TokenKind {
    Normal = 1,
    Unknown = 2,
    Control = 3,
    UserDefined = 4,
    Unused = 5,
    Byte = 6,
}

impl TokenKind {
    pub(crate) fn from_id(id: i32) -> Option<Self> {
        Some(match id {
            // 0 is "undefined" in the format; files that have it mean an ordinary token.
            0 | 1 => Self::Normal,
            2 => Self::Unknown,
            3 => Self::Control,
            4 => Self::UserDefined,
            5 => Self::Unused,
            6 => Self::Byte,
            _ => return None,
        })
    }
}

/// How the text of a normal token stands for bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Spelling {
    /// Each character stands for one byte, by GPT-2's table.
    ByteLevel,
    /// UTF-8, with `▁` for a space and `<0xHH>` tokens for single bytes.
    SentencePiece,
    /// UTF-8, with `##` before what continues a word; before all else is a space.
    WordPiece,
}

/// The character that SentencePiece writes for a space.
pub(crate) const SPACE: char = '\u{2581}';

/// Every token: text, kind and the table from text to id.
pub(crate) struct Vocab {
    text: String,
    /// Where each token's text ends in `text`.
    ends: Vec<usize>,
    kinds: Vec<TokenKind>,
    table: HashTable<u32>,
    hasher: ahash::RandomState,
    spelling: Spelling,
}

impl Vocab {
    /// `count` and `bytes` are hints for the allocation.
    pub(crate) fn with_capacity(spelling: Spelling, count: usize, bytes: usize) -> Self {
        Self {
            text: String::with_capacity(bytes),
            ends: Vec::with_capacity(count),
            kinds: Vec::with_capacity(count),
            table: HashTable::with_capacity(count),
            hasher: ahash::RandomState::new(),
            spelling,
        }
    }

    /// Appends the next token. An empty text is a hole in the vocabulary: it has an id but nothing encodes to it.
    pub(crate) fn push(&mut self, token: &str, kind: TokenKind) -> Result<u32, TextError> {
        let id = self.ends.len() as u32;
        let byte = parse_byte_token(token);
        if kind == TokenKind::Byte && byte.is_none() {
            return Err(TextError::InvalidByteToken { id, token: token.to_owned() });
        }
        if !token.is_empty() {
            let hash = self.hasher.hash_one(token);
            if let Some(&first) = self.table.find(hash, |&other| self.get(other) == Some(token)) {
                return Err(TextError::DuplicateToken { token: token.to_owned(), first, second: id });
            }
            let (text, ends, hasher) = (&self.text, &self.ends, &self.hasher);
            self.table
                .insert_unique(hash, id, |&other| hasher.hash_one(slice(text, ends, other).unwrap_or("")));
        }
        self.text.push_str(token);
        self.ends.push(self.text.len());
        self.kinds.push(kind);
        Ok(id)
    }

    pub(crate) fn len(&self) -> usize {
        self.ends.len()
    }

    pub(crate) fn spelling(&self) -> Spelling {
        self.spelling
    }

    /// The token's text as the file spells it.
    pub(crate) fn get(&self, id: u32) -> Option<&str> {
        slice(&self.text, &self.ends, id)
    }

    pub(crate) fn kind(&self, id: u32) -> Option<TokenKind> {
        self.kinds.get(id as usize).copied()
    }

    pub(crate) fn set_kind(&mut self, id: u32, kind: TokenKind) {
        if let Some(slot) = self.kinds.get_mut(id as usize) {
            *slot = kind;
        }
    }

    pub(crate) fn id(&self, token: &str) -> Option<u32> {
        if token.is_empty() {
            return None;
        }
        let hash = self.hasher.hash_one(token);
        self.table.find(hash, |&id| self.get(id) == Some(token)).copied()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (u32, &str, TokenKind)> {
        self.kinds.iter().enumerate().map(|(i, &kind)| (i as u32, self.get(i as u32).unwrap_or(""), kind))
    }

    /// Appends the bytes that the token stands for. `false` where the id isn't in the vocabulary.
    pub(crate) fn push_bytes(&self, id: u32, out: &mut Vec<u8>) -> bool {
        let (Some(text), Some(kind)) = (self.get(id), self.kind(id)) else { return false };
        match (kind, self.spelling) {
            (TokenKind::Byte, _) => out.extend(parse_byte_token(text)),
            (TokenKind::Normal | TokenKind::Unused | TokenKind::UserDefined, Spelling::SentencePiece) => {
                let mut rest = text;
                while let Some(at) = rest.find(SPACE) {
                    out.extend_from_slice(&rest.as_bytes()[..at]);
                    out.push(b' ');
                    rest = &rest[at + SPACE.len_utf8()..];
                }
                out.extend_from_slice(rest.as_bytes());
            }
            (TokenKind::Normal | TokenKind::Unused, Spelling::WordPiece) => {
                match text.strip_prefix(CONTINUES) {
                    Some(rest) => out.extend_from_slice(rest.as_bytes()),
                    None => {
                        out.push(b' ');
                        out.extend_from_slice(text.as_bytes());
                    }
                }
            }
            (TokenKind::Normal, Spelling::ByteLevel) => {
                // `check_byte_level` has seen that every character has a byte.
                out.extend(text.chars().filter_map(byte_of_char));
            }
            _ => out.extend_from_slice(text.as_bytes()),
        }
        true
    }

    /// Every normal token of a byte-level vocabulary must be made of GPT-2's 256 characters.
    pub(crate) fn check_byte_level(&self) -> Result<(), TextError> {
        for (id, token, kind) in self.iter() {
            if kind == TokenKind::Normal && token.chars().any(|c| byte_of_char(c).is_none()) {
                return Err(TextError::InvalidToken {
                    id,
                    token: token.to_owned(),
                    reason: "a character that stands for no byte",
                });
            }
        }
        Ok(())
    }
}

fn slice<'a>(text: &'a str, ends: &[usize], id: u32) -> Option<&'a str> {
    let id = id as usize;
    let end = *ends.get(id)?;
    let start = if id == 0 { 0 } else { *ends.get(id - 1)? };
    text.get(start..end)
}

/// `<0x00>` … `<0xFF>`.
pub(crate) fn parse_byte_token(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    if digits.len() != 2 || !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    u8::from_str_radix(digits, 16).ok()
}

/// GPT-2's table: printable Latin-1 stands for itself, the other 68 bytes are U+0100 … U+0143 in order.
pub(crate) fn char_of_byte(byte: u8) -> char {
    let shifted = match byte {
        0x00..=0x20 => u32::from(byte),
        0x7F..=0xA0 => u32::from(byte) - 0x7F + 0x21,
        0xAD => 0x43,
        _ => return char::from(byte),
    };
    char::from_u32(0x100 + shifted).unwrap_or(char::REPLACEMENT_CHARACTER)
}

/// The inverse of [`char_of_byte`].
pub(crate) fn byte_of_char(c: char) -> Option<u8> {
    let code = u32::from(c);
    match code {
        0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF => Some(code as u8),
        0x100..=0x120 => Some((code - 0x100) as u8),
        0x121..=0x142 => Some((code - 0x121 + 0x7F) as u8),
        0x143 => Some(0xAD),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_byte_table_is_a_bijection() {
        let chars: std::collections::HashSet<char> = (0..=255).map(char_of_byte).collect();
        assert_eq!(chars.len(), 256);
        for byte in 0..=255 {
            assert_eq!(byte_of_char(char_of_byte(byte)), Some(byte));
        }
        assert_eq!(char_of_byte(b' '), 'Ġ');
        assert_eq!(char_of_byte(b'\n'), 'Ċ');
        assert_eq!(byte_of_char(' '), None);
        assert_eq!(byte_of_char('\u{144}'), None);
    }

    #[test]
    fn byte_tokens_have_two_hex_digits() {
        assert_eq!(parse_byte_token("<0x0A>"), Some(10));
        assert_eq!(parse_byte_token("<0xff>"), Some(255));
        for bad in ["<0x-1>", "<0x+1>", "<0xZZ>", "<0x1>", "<0x100>", "0x0A", "<0x>", ""] {
            assert_eq!(parse_byte_token(bad), None, "{bad}");
        }
    }

    #[test]
    fn duplicates_are_an_error_and_holes_are_not() {
        let mut vocab = Vocab::with_capacity(Spelling::SentencePiece, 4, 4);
        vocab.push("a", TokenKind::Normal).unwrap();
        vocab.push("", TokenKind::Unused).unwrap();
        vocab.push("", TokenKind::Unused).unwrap();
        let error = vocab.push("a", TokenKind::Control).unwrap_err();
        assert!(matches!(error, TextError::DuplicateToken { first: 0, second: 3, .. }));
        assert_eq!(vocab.id(""), None);
        assert_eq!(vocab.id("a"), Some(0));
    }
}
