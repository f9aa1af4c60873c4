//! What SentencePiece replaces in a text before it is cut: a table from short stretches of text to others, as its models have it.
//!
//! The table is a double array over the bytes of the stretches (a unit of 32 bits has a label, an offset and whether a value
//! lies there), behind its length in bytes; then the texts that stand for them, each with a zero byte behind it.

use crate::TextError;
use crate::json::bad;
use base64::Engine as _;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use moli_format::Bytes;

/// Files have it with padding or without.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_allow_trailing_bits(true)
        .with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Bytes of the longest stretch that is looked for. Published tables have up to some twenty.
const LONGEST_KEY: usize = 256;
/// Bytes of the longest text that stands for a stretch. Unicode's own longest is 33.
const LONGEST_VALUE: usize = 1024;

pub(crate) struct Charsmap {
    blob: Bytes,
    /// Units from byte 4 on.
    units: usize,
}

impl Charsmap {
    pub(crate) fn new(blob: Bytes) -> Result<Self, TextError> {
        let invalid = |message: String| TextError::Charsmap { message };
        let length = blob.first_chunk::<4>().map(|&bytes| u32::from_le_bytes(bytes) as usize);
        let length =
            length.ok_or_else(|| invalid(format!("{} bytes are not even its length", blob.len())))?;
        let values = blob
            .get(4..)
            .and_then(|rest| rest.get(length..))
            .ok_or_else(|| invalid(format!("a table of {length} bytes in {}", blob.len())))?;
        if length == 0 || length % 4 != 0 {
            return Err(invalid(format!("a table of {length} bytes is not one of units of four")));
        }
        let text = std::str::from_utf8(values).map_err(|error| invalid(error.to_string()))?;
        if let Some(long) = text.split('\0').map(str::len).find(|&length| length > LONGEST_VALUE) {
            return Err(invalid(format!("a replacement of {long} bytes, the most is {LONGEST_VALUE}")));
        }
        Ok(Self { units: length / 4, blob })
    }

    /// The table that a `tokenizer.json` has as text in base 64.
    pub(crate) fn from_base64(text: &str) -> Result<Self, TextError> {
        let bytes = BASE64.decode(text).map_err(|_| bad("precompiled_charsmap is not base 64"))?;
        Self::new(Bytes::from_vec(bytes))
    }

    /// The table in base 64.
    pub(crate) fn to_base64(&self) -> String {
        BASE64.encode(&*self.blob)
    }

    /// The table as a GGUF has it.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.blob
    }

    /// The shortest stretch at the beginning of `text` that is replaced: its bytes, and by what.
    pub(crate) fn shortest(&self, text: &str) -> Option<(usize, &str)> {
        let mut found = None;
        self.walk(text.as_bytes(), |length, value| {
            found = Some((length, value));
            false
        });
        found.and_then(|(length, value)| Some((length, self.value(value)?)))
    }

    /// The longest one.
    pub(crate) fn longest(&self, text: &str) -> Option<(usize, &str)> {
        let mut found = None;
        self.walk(text.as_bytes(), |length, value| {
            found = Some((length, value));
            true
        });
        found.and_then(|(length, value)| Some((length, self.value(value)?)))
    }

    /// Calls `found` for each stretch, the shortest first, while it wants more.
    fn walk(&self, text: &[u8], mut found: impl FnMut(usize, usize) -> bool) {
        let Some(mut at) = self.unit(0).map(offset) else { return };
        for (before, &byte) in text.iter().take(LONGEST_KEY).enumerate() {
            at ^= usize::from(byte);
            let Some(unit) = self.unit(at).filter(|unit| unit & (1 << 31 | 0xFF) == u32::from(byte)) else {
                return;
            };
            at ^= offset(unit);
            if unit & (1 << 8) != 0 {
                let Some(leaf) = self.unit(at) else { return };
                if !found(before + 1, (leaf & !(1 << 31)) as usize) {
                    return;
                }
            }
        }
    }

    fn unit(&self, index: usize) -> Option<u32> {
        let start = index.checked_mul(4)?.checked_add(4).filter(|_| index < self.units)?;
        self.blob.get(start..)?.first_chunk().map(|&bytes| u32::from_le_bytes(bytes))
    }

    /// The text that begins at this byte of the texts; `None` where that is not the beginning of a character.
    fn value(&self, start: usize) -> Option<&str> {
        let text = self.blob.get(4 + self.units * 4..)?.get(start..)?;
        let end = text.iter().position(|&byte| byte == 0).unwrap_or(text.len());
        std::str::from_utf8(text.get(..end)?).ok()
    }
}

/// How far the children of a unit are.
fn offset(unit: u32) -> usize {
    ((unit >> 10) as usize) << ((unit & (1 << 9)) >> 6)
}
