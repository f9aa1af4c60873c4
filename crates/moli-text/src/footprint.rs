//! What a tokenizer will take of memory, computed from the metadata before it is built.

use crate::TextError;
use crate::gguf::{MERGES, MODEL, TOKENS, TYPES};
use crate::huggingface::{Sizes, Texts};
use crate::vocab::TokenKind;
use moli_format::Metadata;

/// The pre-tokenizer's automaton with the caches that it fills, and the chat template: less than half of this in the
/// models of the catalogue.
const REST: u64 = 1 << 20;
/// Special tokens up to which the automata that find them are tables with a row for each byte of a token.
const FEW: u64 = 100;
/// Bytes of automata for each byte of a special token, which is in two of them: as tables of rows for up to 64 different
/// characters, and as lists.
const TABLE: u64 = 2 * 4 * 64;
const LIST: u64 = 12;
/// The text of a control token that is kept by itself, beside its bytes.
const TEXT: u64 = 24;

/// Bytes on the heap of a tokenizer and a chat template that are built of this metadata.
///
/// The vocabulary's own parts are exact, their allocations rounded up as they are when they grow; what finds special
/// tokens is an estimate from above. Building takes some more for a moment: a list of the merges, 32 bytes each.
///
/// # Errors
/// Where the lists of tokens are missing or of other types.
pub fn tokenizer_bytes(metadata: &Metadata) -> Result<u64, TextError> {
    if let Some(sizes) = Sizes::of(metadata)? {
        let merger = table(sizes.merges, 16) + sizes.scores * 8 + sizes.charsmap;
        return Ok(bytes(&sizes.tokens, &sizes.added, merger));
    }
    let tokens = metadata.strings(TOKENS)?;
    let types = metadata.i32s_opt(TYPES)?.unwrap_or_default();
    let (mut all, mut special) = (Texts::default(), Texts::default());
    for (index, token) in tokens.iter().enumerate() {
        all.count(token);
        let kind = types.get(index).copied().and_then(TokenKind::from_id);
        if matches!(kind, Some(TokenKind::Control | TokenKind::Unknown | TokenKind::UserDefined)) {
            special.count(token);
        }
    }
    let merger = match metadata.str(MODEL)? {
        // A rank for each pair of ids that merges into a third.
        "gpt2" | "gemma4" => table(metadata.strings(MERGES)?.len() as u64, 16),
        // A score for each token, of the width of what is summed.
        "t5" => all.number * 8,
        _ => all.number * 4,
    };
    Ok(bytes(&all, &special, merger))
}

/// What these texts take, those with a meaning of their own among them, and so many bytes for what merges.
fn bytes(all: &Texts, special: &Texts, merger: u64) -> u64 {
    // As `Vocab::with_capacity` begins, and doubled until the texts fit.
    let mut room = (all.number * 8).max(8);
    while room < all.bytes {
        room = room.saturating_mul(2);
    }
    let ends = size_of::<usize>() as u64;
    let vocab = room + all.number * (ends + 1) + table(all.number, 4);
    let automata = special.bytes * if special.number <= FEW { TABLE } else { LIST } + special.number * TEXT;
    vocab + merger + automata + REST
}

/// Bytes of a hash table for so many entries: a power of two of buckets, an eighth of them free, and a byte beside each.
fn table(entries: u64, entry: u64) -> u64 {
    let buckets = (entries.saturating_mul(8) / 7 + 1).next_power_of_two().max(4);
    buckets.saturating_mul(entry + 1) + 16
}
