//! Moli's own paths: `/tokenize`, `/detokenize`, `/apply-template`.

use std::sync::Arc;

use axum::extract::State;
use axum::routing::post;
use axum::{Json, Router};
use moli_engine::{EngineError, Tool};
use moli_text::{EncodeOptions, RenderOptions};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use crate::app::App;
use crate::body::Strict;
use crate::error::ApiError;
use crate::openai::{ChatMessage, OfferedTool, messages, tools};

/// These paths.
pub(crate) fn routes() -> Router<Arc<App>> {
    Router::new()
        .route("/tokenize", post(tokenize))
        .route("/detokenize", post(detokenize))
        .route("/apply-template", post(apply_template))
}

/// A text that is to be cut into tokens.
#[derive(Debug, Deserialize, ToSchema)]
struct TokenizeRequest {
    /// One of `/v1/models`.
    model: String,
    content: String,
    /// Puts the tokens before and after it that the model wants; false.
    #[serde(default)]
    add_special: bool,
    /// Recognises control tokens that are spelt out; false: they are text.
    #[serde(default)]
    parse_special: bool,
    /// Gives the text of each token too; false.
    #[serde(default)]
    with_pieces: bool,
}

#[derive(Debug, Serialize, ToSchema)]
struct Tokens {
    tokens: Vec<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pieces: Option<Vec<String>>,
}

#[utoipa::path(
    post,
    path = "/tokenize",
    tag = "moli",
    request_body = TokenizeRequest,
    responses((status = 200, description = "The tokens", body = Tokens), (status = "4XX", response = crate::openapi::Refused))
)]
async fn tokenize(
    State(app): State<Arc<App>>,
    Strict(request): Strict<TokenizeRequest>,
) -> Result<Json<Tokens>, ApiError> {
    let lease = app.lease(&request.model).await?;
    let tokens = app
        .prepare(&lease, move |engine| {
            let options =
                EncodeOptions { add_special: request.add_special, parse_special: request.parse_special };
            let tokens = engine.tokenizer().encode(&request.content, options)?;
            let piece = |&id: &u32| engine.tokenizer().token_text(id).unwrap_or_default();
            let pieces = request.with_pieces.then(|| tokens.iter().map(piece).collect());
            Ok(Tokens { tokens, pieces })
        })
        .await?;
    Ok(Json(tokens))
}

/// Tokens that are to become text.
#[derive(Debug, Deserialize, ToSchema)]
struct DetokenizeRequest {
    /// One of `/v1/models`.
    model: String,
    tokens: Vec<u32>,
    /// Spells out control tokens; false: they are left out.
    #[serde(default)]
    keep_special: bool,
}

#[derive(Debug, Serialize, ToSchema)]
struct Text {
    content: String,
}

#[utoipa::path(
    post,
    path = "/detokenize",
    tag = "moli",
    request_body = DetokenizeRequest,
    responses((status = 200, description = "The text", body = Text), (status = "4XX", response = crate::openapi::Refused))
)]
async fn detokenize(
    State(app): State<Arc<App>>,
    Strict(request): Strict<DetokenizeRequest>,
) -> Result<Json<Text>, ApiError> {
    let lease = app.lease(&request.model).await?;
    let decode = move |engine: &moli_engine::Engine| {
        let content = engine.tokenizer().decode(&request.tokens, request.keep_special)?;
        Ok(Text { content })
    };
    Ok(Json(app.prepare(&lease, decode).await?))
}

/// A conversation that is to become a prompt.
#[derive(Debug, Deserialize, ToSchema)]
struct TemplateRequest {
    /// One of `/v1/models`.
    model: String,
    messages: Vec<ChatMessage>,
    tools: Option<Vec<OfferedTool>>,
    /// Ends the prompt with the beginning of an answer; true.
    add_generation_prompt: Option<bool>,
    /// Further variables of the model's chat template.
    chat_template_kwargs: Option<Map<String, Value>>,
}

/// A prompt, and how many tokens it has.
#[derive(Debug, Serialize, ToSchema)]
struct Rendered {
    prompt: String,
    tokens: usize,
}

#[utoipa::path(
    post,
    path = "/apply-template",
    tag = "moli",
    request_body = TemplateRequest,
    responses((status = 200, description = "The prompt", body = Rendered), (status = "4XX", response = crate::openapi::Refused))
)]
async fn apply_template(
    State(app): State<Arc<App>>,
    Strict(request): Strict<TemplateRequest>,
) -> Result<Json<Rendered>, ApiError> {
    let lease = app.lease(&request.model).await?;
    let messages = messages(request.messages)?;
    let options = RenderOptions {
        add_generation_prompt: request.add_generation_prompt.unwrap_or(true),
        tools: tools(request.tools.unwrap_or_default()),
        extra: request.chat_template_kwargs.unwrap_or_default(),
        ..RenderOptions::default()
    };
    let render = move |engine: &moli_engine::Engine| {
        Tool::validate(&options.tools)?;
        let template = engine.chat_template()?.ok_or(EngineError::NoChatTemplate)?;
        let prompt = template.render(engine.tokenizer(), &messages, &options)?;
        let tokens = engine.tokenizer().encode_prompt(&prompt)?.len();
        Ok(Rendered { prompt: prompt.text().to_owned(), tokens })
    };
    Ok(Json(app.prepare(&lease, render).await?))
}
