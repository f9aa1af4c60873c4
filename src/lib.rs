//! Moli (模力) runs quantised vertical language models on the device in front of you.
//!
//! This crate re-exports what an application needs: [`hub::resolve`] turns a catalogue name into a verified file,
//! [`Engine`] loads it, [`Session`] answers.
//!
//! ```no_run
//! use moli::{CancelToken, Engine, EngineOptions, GenerateParams, Message};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let engine = Engine::load("model.gguf".as_ref(), &EngineOptions::default())?;
//! let prompt = engine.encode_chat(&[Message::new("user", "Why is the sky blue?")])?;
//! let mut session = engine.session();
//! for chunk in session.generate(&prompt, &GenerateParams::default(), &CancelToken::new())? {
//!     print!("{}", chunk?.text);
//! }
//! # Ok(())
//! # }
//! ```

pub use moli_engine::*;
pub use moli_format as format;
pub use moli_hub as hub;
pub use moli_text::Message;
