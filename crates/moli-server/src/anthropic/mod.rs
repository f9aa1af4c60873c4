//! Anthropic's API.
//!
//! - [`messages`]: `/v1/messages` and `/v1/messages/count_tokens`, what is asked;
//! - [`content`]: the blocks of messages, and the conversation that they are;
//! - [`answer`]: what is answered.

mod answer;
mod content;
pub(crate) mod messages;

use std::sync::Arc;

use axum::Router;
use axum::routing::post;
use serde::Serialize;
use utoipa::{ToResponse, ToSchema};

use crate::app::App;

/// The paths of this API.
pub(crate) fn routes() -> Router<Arc<App>> {
    Router::new()
        .route("/v1/messages", post(messages::create))
        .route("/v1/messages/count_tokens", post(messages::count))
}

/// A request that is not answered, and why.
#[derive(Debug, Serialize, ToSchema, ToResponse)]
#[schema(as = anthropic::Refused)]
#[response(description = "The request is not answered, and why")]
pub(crate) struct AnthropicRefused {
    /// `error`.
    r#type: String,
    #[schema(inline)]
    error: Reason,
    /// That of the header `request-id`.
    request_id: String,
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = anthropic::Reason)]
struct Reason {
    /// `invalid_request_error`, say.
    r#type: String,
    message: String,
}
