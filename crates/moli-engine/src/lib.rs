//! A loaded model that answers: [`Engine`] is the model, [`Session`] one timeline of tokens, [`Generation`] one answer
//! as an iterator.
//!
//! ```no_run
//! use moli_engine::{CancelToken, Engine, EngineOptions, GenerateParams};
//!
//! let engine = Engine::load("model.gguf".as_ref(), &EngineOptions::default())?;
//! let prompt = engine.encode("The capital of France is")?;
//! let mut session = engine.session();
//! let params = GenerateParams { max_tokens: Some(32), ..GenerateParams::default() };
//! for chunk in session.generate(&prompt, &params, &CancelToken::new())? {
//!     print!("{}", chunk?.text);
//! }
//! # Ok::<(), moli_engine::EngineError>(())
//! ```
//!
//! Nothing is dropped or shortened in silence: a prompt that does not fit is an error with both lengths, an answer that
//! reaches the end of the context says so in its [`FinishReason`]. With a seed, an answer is the same tokens whatever
//! was in the session before, however the prompt was cut into chunks, and on every platform on which the model gives
//! the same logits.

mod adapters;
mod answer;
mod cancel;
mod cgroup;
mod chat;
mod choice;
mod constraint;
mod counters;
mod divergence;
mod embed;
mod engine;
mod error;
mod events;
mod fingerprint;
mod inbox;
mod logprob;
mod math;
mod model;
mod observe;
mod options;
mod params;
mod perplexity;
mod plan;
mod prefix;
mod quantized;
mod rank;
mod sampler;
mod scheduler;
mod session;
mod snapshot;
mod speculation;
mod stop;
mod sync;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
pub mod units;
mod watchdog;
mod worker;

pub use adapters::{AdapterFile, AdapterScale};
pub use answer::{Answer, Chunk, FinishReason, Summary, Timings, TokenOutput, Usage};
pub use cancel::CancelToken;
pub use cgroup::ControlGroup;
pub use chat::{Chat, ChatChunk, ChatParams};
pub use constraint::{Grammar, MAX_GRAMMAR_BYTES};
pub use counters::{Counters, Histogram};
pub use divergence::{Divergence, Prediction, divergence};
pub use embed::{EmbedOptions, Embedding, PendingEmbedding, Pooling};
pub use engine::Engine;
pub use error::EngineError;
pub use fingerprint::weights_fingerprint;
pub use moli_convert::Mixture;
pub use moli_format::ReadMode;
pub use moli_kernels::Isa;
pub use moli_model::{BackendKind, Config, Device, DeviceMemory, KvType, Resolved};
pub use moli_text::{
    AnswerEvent, ChatTemplate, Message, RenderedPrompt, Tokenizer, Tool, ToolCall, ToolChoice,
};
pub use observe::observe;
pub use options::{DEFAULT_CONTEXT, DEFAULT_PREFILL_CHUNK, EngineOptions, MAX_BATCH, Scheduling};
pub use params::{DryParams, GenerateParams, MAX_CHOICES, SamplerParams};
pub use perplexity::{Perplexity, perplexity};
pub use plan::{
    BudgetError, Change, LEAST_CONTEXT, Limit, LimitSource, MemoryBudget, MemoryPlan, PlanOptions, PlanRow,
    Resident, Settings, Shortage, SystemMemory, memory_limit, resident_bytes,
};
pub use rank::{PendingRank, Rank};
pub use session::{Generation, Session};
pub use snapshot::{Saved, SnapshotError};
pub use stop::{MAX_STOP_BYTES, MAX_STOP_LENGTH, MAX_STOP_STRINGS};
pub use watchdog::Stall;
