//! Moli over HTTP: the APIs of OpenAI, Ollama and Anthropic, for an application on the device, a private server or a gateway.
//!
//! [`Server::bind`] opens the sockets, [`Server::run`] serves until it is told to stop. What is computed when is the engine's
//! business; here is only what the network brings: reading requests strictly, writing answers as they come, and standing up
//! to whatever is thrown at it.
//!
//! ```no_run
//! use std::sync::Arc;
//! use moli_engine::{Engine, EngineOptions};
//! use moli_server::{ModelSpec, Server, ServerOptions};
//!
//! let load = |_| Engine::load("model.gguf".as_ref(), &EngineOptions::default());
//! let models = vec![ModelSpec::new("clinic", Arc::new(load))];
//! let server = Server::bind(ServerOptions { models, ..ServerOptions::default() })?;
//! println!("{}", server.address());
//! server.run()?;
//! # Ok::<(), moli_server::ServerError>(())
//! ```

mod answering;
mod anthropic;
mod app;
mod body;
mod bounded;
mod collected;
mod doors;
mod embedding;
mod error;
mod facts;
mod metrics;
mod models;
mod native;
mod ollama;
mod openai;
mod openapi;
mod options;
mod page;
mod respond;
mod server;
mod stream;
mod thinking;

pub use doors::keys::{ApiKeys, KeyError};
pub use doors::tls::TlsFiles;
pub use error::ServerError;
pub use models::{Loader, ModelSpec};
pub use options::ServerOptions;
pub use server::{Handle, Server};
