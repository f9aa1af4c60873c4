//! A tokenizer in the other form: the keys of GGUF for a `tokenizer.json`, and a `tokenizer.json` for the keys.

mod encoders;
mod gguf;
mod huggingface;

use crate::vocab::{SPACE, TokenKind, Vocab};

pub use gguf::{GgufTokenizer, gguf_tokenizer};
pub use huggingface::{HuggingFaceTokenizer, huggingface_tokenizer};

const PADDING: &str = "tokenizer.ggml.padding_token_id";
const MASK: &str = "tokenizer.ggml.mask_token_id";

/// Whether a SentencePiece token can come about by merging. Tokens that the user defined are found before anything merges, but
/// for those with `▁`, which a text has as a space.
fn merges_from_text(vocab: &Vocab, id: u32) -> bool {
    match vocab.kind(id) {
        Some(TokenKind::Normal) => true,
        Some(TokenKind::UserDefined) => vocab.get(id).is_some_and(|text| text.contains(SPACE)),
        _ => false,
    }
}
