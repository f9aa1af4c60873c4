//! A tokenizer in the other form: the keys of GGUF for a `tokenizer.json`, and a `tokenizer.json` for the keys.

mod gguf;
mod huggingface;

pub use gguf::{GgufTokenizer, gguf_tokenizer};
pub use huggingface::{HuggingFaceTokenizer, huggingface_tokenizer};
