//! `/api/embed`: texts as vectors.

use std::sync::Arc;
use std::time::Instant;

use axum::Json;
use axum::extract::State;
use moli_engine::EmbedOptions;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::answer::nanos;
use super::ask::lease;
use super::options::{KeepAlive, Options};
use crate::answering::Prompt;
use crate::app::App;
use crate::body::Strict;
use crate::error::ApiError;

/// Texts that are to become vectors.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(as = ollama::EmbedRequest)]
pub(crate) struct EmbedRequest {
    /// One of `/api/tags`.
    model: String,
    input: Inputs,
    /// Cuts texts that are longer than the context, instead of refusing them; false: nothing is cut that nobody asked to be.
    truncate: Option<bool>,
    /// Only so many of the first numbers, for models that were trained for that.
    #[schema(minimum = 1)]
    dimensions: Option<usize>,
    /// `num_ctx`, at most what is served; the others are for answers.
    options: Option<Options>,
    keep_alive: Option<KeepAlive>,
}

/// A text or several.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(as = ollama::Inputs)]
#[serde(untagged, expecting = "must be a string or a list of strings")]
enum Inputs {
    One(String),
    Several(Vec<String>),
}

/// The vectors, of length 1 each.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = ollama::Embeddings)]
pub(crate) struct Embeddings {
    model: String,
    embeddings: Vec<Vec<f32>>,
    /// Nanoseconds.
    total_duration: u64,
    /// Nanoseconds until the model was there.
    load_duration: u64,
    prompt_eval_count: usize,
    /// Whether a text was cut.
    truncated: bool,
}

/// Makes vectors of texts.
#[utoipa::path(
    post,
    path = "/api/embed",
    tag = "ollama",
    request_body = EmbedRequest,
    responses((status = 200, description = "The vectors", body = Embeddings), (status = "4XX", response = super::OllamaRefused))
)]
pub(crate) async fn embed(
    State(app): State<Arc<App>>,
    Strict(request): Strict<EmbedRequest>,
) -> Result<Json<Embeddings>, ApiError> {
    let start = Instant::now();
    let keep_alive = request.keep_alive.as_ref().map(KeepAlive::duration).transpose()?;
    let lease = lease(&app, &request.model, keep_alive).await?;
    if let Some(options) = &request.options {
        options.check_context(&lease)?;
    }
    let loaded = start.elapsed();
    let texts = match request.input {
        Inputs::One(text) => vec![text],
        Inputs::Several(texts) => texts,
    };
    let options = EmbedOptions {
        dimensions: request.dimensions,
        truncate: request.truncate.unwrap_or(false),
        ..EmbedOptions::default()
    };
    let inputs = texts.into_iter().map(Prompt::Text).collect();
    let embedded = app.embed(&lease, inputs, options).await?;
    Ok(Json(Embeddings {
        model: request.model,
        prompt_eval_count: embedded.vectors.iter().map(|vector| vector.tokens).sum(),
        embeddings: embedded.vectors.into_iter().map(|vector| vector.values).collect(),
        total_duration: nanos(start.elapsed()),
        load_duration: nanos(loaded),
        truncated: embedded.truncated,
    }))
}
