//! Text on both sides of a model: tokenizers, chat templates and the stream of characters that tokens become.
//!
//! - [`Tokenizer`]: built from a GGUF's metadata or from a `tokenizer.json`; text to ids and back.
//! - [`TextStream`]: ids to text one at a time, whole characters only.
//! - [`ChatTemplate`]: messages to a prompt with the model's own Jinja template, within bounds of time and memory;
//!   [`Tokenizer::encode_prompt`] makes control tokens only of what the template itself wrote.
//!
//! - [`Tool`], [`ToolFormat`], [`ReasoningTags`]: tools in the prompt, their calls in the answer, and grammars that make
//!   the calls well-formed; [`AnswerParser`] splits an answer into what is said, thought and called, as it streams.
//! - [`gguf_tokenizer`], [`huggingface_tokenizer`]: a tokenizer written in the other form, for who converts models.
//!
//! Everything that comes from a file or a client is checked: what can't be done right is a [`TextError`].

mod bpe;
mod catalogue;
mod concat;
mod dumps;
mod encoders;
mod eog;
mod error;
mod export;
mod fill;
mod footprint;
mod gguf;
mod guard;
mod huggingface;
mod json;
mod merge;
mod message;
mod nesting;
mod pretokenize;
mod python;
mod reasoning;
mod special;
mod spm;
mod stream;
mod template;
mod tokenizer;
mod tools;
mod unigram;
mod variables;
mod vocab;
mod wordpiece;

pub use catalogue::TemplateOrigin;
pub use error::TextError;
pub use export::{GgufTokenizer, HuggingFaceTokenizer, gguf_tokenizer, huggingface_tokenizer};
pub use footprint::tokenizer_bytes;
pub use message::{Message, ToolCall};
pub use reasoning::ReasoningTags;
pub use stream::TextStream;
pub use template::{ChatTemplate, RenderOptions, RenderedPrompt};
pub use tokenizer::{EncodeOptions, Tokenizer};
pub use tools::{
    AnswerEvent, AnswerParser, CallOptions, JSON_WHITESPACE, ParserOptions, Tool, ToolChoice, ToolFormat,
};
