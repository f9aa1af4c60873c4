//! OpenAI's API.
//!
//! - [`message`]: the messages of a conversation;
//! - [`chat`]: `/v1/chat/completions`, what is asked;
//! - [`completions`] for `/v1/completions`;
//! - [`embeddings`]: `/v1/embeddings` and `/v1/rerank`;
//! - [`responses`] for `/v1/responses`;
//! - [`params`]: how an answer is made;
//! - [`answer`]: the same, what is answered.

pub(crate) mod answer;
pub(crate) mod chat;
pub(crate) mod completions;
pub(crate) mod embeddings;
mod message;
pub(crate) mod params;
pub(crate) mod responses;

pub(crate) use chat::{Effort, logprobs};
pub(crate) use message::{ChatMessage, OfferedTool, messages, tools};

use std::sync::Arc;
use std::time::UNIX_EPOCH;

use axum::Router;
use axum::extract::{Path, State};
use axum::routing::{get, post};
use axum::{Json, response::IntoResponse};
use serde::Serialize;
use utoipa::ToSchema;

use crate::app::App;
use crate::error::ApiError;
use crate::models::{Slot, adapted_name};

/// The paths of this API.
pub(crate) fn routes() -> Router<Arc<App>> {
    Router::new()
        .route("/v1/models", get(models))
        .route("/v1/models/{*model}", get(model))
        .route("/v1/chat/completions", post(chat::complete))
        .route("/v1/responses", post(responses::respond))
        .route("/v1/embeddings", post(embeddings::embed))
        .route("/v1/rerank", post(embeddings::rerank))
        .route("/v1/completions", post(completions::complete))
}

/// The models that are served.
#[derive(Debug, Serialize, ToSchema)]
struct ModelList {
    object: &'static str,
    data: Vec<Model>,
}

/// A model that is served.
#[derive(Debug, Serialize, ToSchema)]
struct Model {
    id: String,
    object: &'static str,
    /// When its file was written, seconds since 1970; 0 where there is no file.
    created: u64,
    owned_by: &'static str,
    /// Tokens that a conversation can hold; null while it is not loaded.
    context: Option<usize>,
    /// Whether it is in memory.
    loaded: bool,
    /// Of a model with an adapter: the name that it has without.
    #[serde(skip_serializing_if = "Option::is_none")]
    parent: Option<String>,
}

impl Model {
    fn of(slot: &Slot, name: String) -> Self {
        let engine = slot.engine();
        let modified = slot.spec.path.as_ref().and_then(|path| path.metadata().ok()?.modified().ok());
        let since = modified.and_then(|modified| modified.duration_since(UNIX_EPOCH).ok());
        Self {
            parent: (name != slot.spec.name).then(|| slot.spec.name.clone()),
            id: name,
            object: "model",
            created: since.map_or(0, |since| since.as_secs()),
            owned_by: "moli",
            context: engine.as_ref().map(moli_engine::Engine::context),
            loaded: engine.is_some(),
        }
    }
}

#[utoipa::path(
    get,
    path = "/v1/models",
    tag = "openai",
    responses((status = 200, description = "What is served", body = ModelList), (status = "4XX", response = crate::openapi::Refused))
)]
async fn models(State(app): State<Arc<App>>) -> Json<ModelList> {
    let named = |slot: &Arc<Slot>| {
        let slot = Arc::clone(slot);
        slot.names().into_iter().map(move |name| Model::of(&slot, name))
    };
    let data = app.models.slots().flat_map(named).collect();
    Json(ModelList { object: "list", data })
}

#[utoipa::path(
    get,
    path = "/v1/models/{model}",
    tag = "openai",
    params(("model" = String, Path, description = "Its name")),
    responses((status = 200, description = "One of them", body = Model), (status = "4XX", response = crate::openapi::Refused))
)]
async fn model(State(app): State<Arc<App>>, Path(name): Path<String>) -> Result<impl IntoResponse, ApiError> {
    let (slot, adapter) = app.models.find_adapted(&name)?;
    let name = adapted_name(&slot.spec.name, adapter.map(String::as_str));
    Ok(Json(Model::of(slot, name)))
}
