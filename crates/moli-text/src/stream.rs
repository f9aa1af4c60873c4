//! Ids to text, one at a time, without ever showing half a character.

use crate::Tokenizer;

/// Turns a stream of ids into text. Each [`push`](Self::push) gives every character that is complete by then and keeps
/// the beginning of one that isn't. All that it gives, joined, is the lossy UTF-8 reading of the tokens' joined bytes.
///
/// It continues a prompt: a leading `▁` of the first token is a space, where [`Tokenizer::decode`] of a whole text
/// leaves the artificial one out. Control tokens give no text, unless asked for with
/// [`keep_special`](Self::keep_special) or [`show`](Self::show). An id outside the vocabulary gives U+FFFD.
#[derive(Clone)]
pub struct TextStream {
    tokenizer: Tokenizer,
    keep_special: bool,
    /// Control tokens that show their text all the same.
    shown: Vec<u32>,
    pending: Vec<u8>,
}

impl TextStream {
    pub(crate) fn new(tokenizer: Tokenizer) -> Self {
        Self { tokenizer, keep_special: false, shown: Vec::new(), pending: Vec::new() }
    }

    /// Whether control tokens show their text.
    #[must_use]
    pub fn keep_special(mut self, keep: bool) -> Self {
        self.keep_special = keep;
        self
    }

    /// The control tokens of these texts show them, such as the marks by which an
    /// [`AnswerParser`](crate::AnswerParser) finds calls and reasoning.
    #[must_use]
    pub fn show<'t>(mut self, texts: impl IntoIterator<Item = &'t str>) -> Self {
        self.shown.extend(texts.into_iter().filter_map(|text| self.tokenizer.token_id(text)));
        self
    }

    /// The characters that this token completes, possibly none.
    pub fn push(&mut self, id: u32) -> String {
        let shown = self.keep_special || !self.tokenizer.is_control(id) || self.shown.contains(&id);
        if shown && !self.tokenizer.vocab().push_bytes(id, &mut self.pending) {
            self.pending.extend_from_slice("\u{FFFD}".as_bytes());
        }
        let mut out = String::new();
        let taken = drain_utf8(&self.pending, &mut out);
        self.pending.drain(..taken);
        out
    }

    /// What is left: U+FFFD for a character that never got its last byte, otherwise nothing. The stream starts anew.
    pub fn finish(&mut self) -> String {
        let rest = std::mem::take(&mut self.pending);
        String::from_utf8_lossy(&rest).into_owned()
    }
}

/// Appends the longest text that no later byte can change, and says how many bytes that took.
fn drain_utf8(bytes: &[u8], out: &mut String) -> usize {
    let mut taken = 0;
    loop {
        let rest = bytes.get(taken..).unwrap_or_default();
        match std::str::from_utf8(rest) {
            Ok(text) => {
                out.push_str(text);
                return bytes.len();
            }
            Err(error) => {
                let valid = error.valid_up_to();
                out.push_str(std::str::from_utf8(rest.get(..valid).unwrap_or_default()).unwrap_or_default());
                taken += valid;
                match error.error_len() {
                    // An invalid sequence is one U+FFFD, as in `String::from_utf8_lossy`.
                    Some(len) => {
                        out.push(char::REPLACEMENT_CHARACTER);
                        taken += len;
                    }
                    // The beginning of a character: wait for the rest.
                    None => return taken,
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Bytes in any pieces: what comes out is the lossy reading of the whole, and each piece gives the longest
        /// text that every continuation keeps.
        #[test]
        fn pieces_read_as_the_whole(pieces in prop::collection::vec(prop::collection::vec(
            prop_oneof![any::<u8>(), Just(0xF0), Just(0x9F), Just(0x98), Just(0x80), Just(0xE4), Just(b'a')], 0..6), 0..20))
        {
            let (mut pending, mut out, mut all) = (Vec::new(), String::new(), Vec::new());
            for piece in &pieces {
                pending.extend_from_slice(piece);
                all.extend_from_slice(piece);
                let taken = drain_utf8(&pending, &mut out);
                pending.drain(..taken);
                // What two different continuations agree on is what must be out by now.
                let with = |tail: &[u8]| String::from_utf8_lossy(&[&all[..], tail].concat()).into_owned();
                let mut agreed = with(b"");
                for tail in [&b"a"[..], &[0x80], &[0x80, 0x80], &[0x80, 0x80, 0x80], &[0xBF], &[0x90, 0x80, 0x80],
                             &[0x9F, 0xBF], &[0x8F, 0xBF, 0xBF], &[0xA0, 0x80]] {
                    let other = with(tail);
                    let same = agreed.chars().zip(other.chars()).take_while(|(a, b)| a == b).map(|(a, _)| a.len_utf8());
                    let len: usize = same.sum();
                    agreed.truncate(len);
                }
                prop_assert_eq!(&out, &agreed);
            }
            out.push_str(&String::from_utf8_lossy(&pending));
            prop_assert_eq!(out, String::from_utf8_lossy(&all).into_owned());
        }
    }
}
