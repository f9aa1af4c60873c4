//! What can go wrong: for whoever starts a server, and for whoever asks it.

use std::borrow::Cow;
use std::net::SocketAddr;
use std::path::PathBuf;

use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use moli_engine::EngineError;
use moli_text::TextError;

use crate::KeyError;

/// Why a server can't start or go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServerError {
    /// The address can't be listened at.
    #[error("cannot listen at {address}: {source}")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
    /// Other machines reach the address, and there are no keys.
    #[error("{address} can be reached from other machines, and there are no API keys")]
    PublicWithoutKeys {
        /// The address.
        address: SocketAddr,
    },
    /// The socket in the file system can't be listened at.
    #[error("cannot listen at {}: {source}", path.display())]
    Unix {
        /// Where it should be.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The certificate or its key can't be used.
    #[error("{}: {reason}", path.display())]
    Tls {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The API keys can't be used.
    #[error(transparent)]
    Keys(#[from] KeyError),
    /// What is to be an origin of pages is none.
    #[error("{origin:?} is no origin of pages: https://example.com is one, without a path, and * is all")]
    Origin {
        /// What was given.
        origin: String,
    },
    /// Two models of the same name.
    #[error("two models are called {name:?}")]
    DuplicateModel {
        /// The name.
        name: String,
    },
    /// A model that has to be there from the start can't be loaded.
    #[error("model {name:?}: {source}")]
    Model {
        /// Its name.
        name: String,
        /// Why not.
        source: Box<EngineError>,
    },
    /// The system has no threads or sockets for the server.
    #[error("the server can't be started: {0}")]
    System(#[from] std::io::Error),
}

/// Why a request is not answered. Each API writes it in its own form: see [`respond`](crate::respond).
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ApiError {
    pub(crate) status: StatusCode,
    /// What a program tells it from others by.
    pub(crate) code: &'static str,
    /// What a person reads.
    pub(crate) message: String,
    /// The field of the request that it is about.
    pub(crate) param: Option<String>,
    /// Seconds after which the same request may be answered.
    pub(crate) retry_after: Option<u64>,
}

impl ApiError {
    pub(crate) fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, code, message: message.into(), param: None, retry_after: None }
    }

    /// A field with a value that it can't have.
    pub(crate) fn invalid(param: impl Into<String>, message: impl Into<String>) -> Self {
        let error = Self::new(StatusCode::BAD_REQUEST, "invalid_value", message);
        Self { param: Some(param.into()), ..error }
    }

    /// A field, or a value of one, that is understood and not supported.
    pub(crate) fn unsupported(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self { code: "unsupported", ..Self::invalid(param, message) }
    }

    pub(crate) fn not_found(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not_found", message)
    }

    /// It can't be taken now; a second later perhaps.
    pub(crate) fn overloaded(code: &'static str, message: impl Into<String>) -> Self {
        let error = Self::new(StatusCode::SERVICE_UNAVAILABLE, code, message);
        Self { retry_after: Some(1), ..error }
    }

    pub(crate) fn internal(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal_error", message)
    }

    /// The same about a field of another name, where an API has another one for what the engine calls so.
    pub(crate) fn renamed(mut self, names: &[(&str, &str)]) -> Self {
        let found = names.iter().find(|(engine, _)| self.param.as_deref() == Some(engine));
        if let Some((engine, api)) = found {
            self.message = self.message.replacen(engine, api, 1);
            self.param = Some((*api).to_owned());
        }
        self
    }

    /// The same about the field that a grammar came from, if it is about a grammar.
    pub(crate) fn in_grammar(mut self, field: &str) -> Self {
        if self.code == "invalid_grammar" {
            self.param = Some(field.to_owned());
        }
        self.renamed(&[("grammar", field)])
    }
}

impl From<EngineError> for ApiError {
    fn from(error: EngineError) -> Self {
        let message = error.to_string();
        let bad = |code, param: Option<Cow<'_, str>>| Self {
            param: param.map(Cow::into_owned),
            ..Self::new(StatusCode::BAD_REQUEST, code, message.clone())
        };
        match &error {
            EngineError::PromptTooLong { .. } => bad("context_length_exceeded", None),
            EngineError::EmptyPrompt => bad("empty_prompt", None),
            EngineError::InvalidParameter { name, .. } => bad("invalid_value", Some((*name).into())),
            EngineError::UnknownAdapter { .. } => bad("unknown_adapter", Some("lora".into())),
            EngineError::TokenOutOfVocabulary { .. } => bad("invalid_token", None),
            EngineError::NothingToSample => bad("nothing_to_sample", None),
            EngineError::NoChatTemplate | EngineError::BrokenChatTemplate { .. } => {
                bad("no_chat_template", None)
            }
            EngineError::NoPooling => bad("no_pooling", Some("pooling".into())),
            EngineError::Encoder => bad("not_a_generator", Some("model".into())),
            EngineError::IsAReranker => bad("not_an_embedder", Some("model".into())),
            EngineError::EmptyText => bad("empty_input", Some("input".into())),
            EngineError::NotAReranker { .. } => bad("not_a_reranker", Some("model".into())),
            EngineError::UnknownToolFormat => bad("unsupported", Some("tools".into())),
            EngineError::InvalidGrammar { .. }
            | EngineError::GrammarSyntax { .. }
            | EngineError::UnsupportedKeyword { .. }
            | EngineError::GrammarTooLarge { .. }
            | EngineError::GrammarTooComplex { .. } => bad("invalid_grammar", None),
            EngineError::Text(TextError::InvalidTool { .. } | TextError::TooManyTools { .. }) => {
                bad("invalid_value", Some("tools".into()))
            }
            EngineError::Text(TextError::UnknownTool { .. } | TextError::NoTools) => {
                bad("invalid_value", Some("tool_choice".into()))
            }
            EngineError::Text(_) => bad("invalid_messages", None),
            EngineError::QueueFull { .. } => Self::overloaded("queue_full", message),
            EngineError::DoesNotFit(_) => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "out_of_memory", message)
            }
            EngineError::Poisoned => Self { retry_after: Some(1), ..Self::internal(message) },
            _ => Self::internal(message),
        }
    }
}

impl IntoResponse for ApiError {
    /// The error travels beside an empty response until [`respond`](crate::respond) knows how it is to be written.
    fn into_response(self) -> Response {
        let mut response = self.status.into_response();
        response.extensions_mut().insert(self);
        response
    }
}
