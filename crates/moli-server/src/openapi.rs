//! `/openapi.json`: what can be asked and what is answered.

use axum::Json;
use serde::Serialize;
use utoipa::{OpenApi, ToResponse, ToSchema};

use crate::{app, metrics, native, openai};

/// A request that is not answered: each API has its own form, and this is OpenAI's, which Moli's own paths speak too.
#[derive(ToSchema, ToResponse, Serialize)]
#[response(description = "The request is not answered, and why")]
pub(crate) struct Refused {
    error: Reason,
}

#[derive(ToSchema, Serialize)]
struct Reason {
    message: String,
    r#type: String,
    /// The field that it is about.
    param: Option<String>,
    code: String,
}

#[derive(OpenApi)]
#[openapi(
    info(title = "Moli", description = "Quantised language models on the device in front of you."),
    paths(
        app::health,
        app::ready,
        metrics::export,
        native::tokenize,
        native::detokenize,
        native::apply_template,
        openai::models,
        openai::model,
        openai::chat::complete,
        openai::completions::complete,
        openai::responses::respond,
        openai::embeddings::embed,
        openai::embeddings::rerank,
    ),
    components(responses(Refused))
)]
struct Document;

/// The description of the API.
pub(crate) async fn document() -> Json<utoipa::openapi::OpenApi> {
    Json(Document::openapi())
}
