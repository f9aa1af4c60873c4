//! `/v1/embeddings` and `/v1/rerank`: texts as vectors, and how well documents answer a query.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use moli_engine::{EmbedOptions, Pooling};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::completions::Prompts;
use crate::app::App;
use crate::body::Strict;
use crate::error::ApiError;

/// Texts that are to become vectors.
#[derive(Debug, Deserialize, ToSchema)]
pub(crate) struct EmbeddingRequest {
    /// One of `/v1/models`.
    model: String,
    input: Prompts,
    encoding_format: Option<Encoding>,
    /// Only so many of the first numbers, for models that were trained for that.
    #[schema(minimum = 1)]
    dimensions: Option<usize>,
    /// How the tokens' states become one vector, where the model does not say.
    pooling: Option<PoolingKind>,
    /// Vectors of length 1; true.
    normalize: Option<bool>,
    /// Cuts texts that are longer than the context, instead of refusing them; false.
    truncate: Option<bool>,
    /// Whoever asks; it changes nothing.
    #[serde(rename = "user")]
    _user: Option<String>,
}

#[derive(Debug, Clone, Copy, Default, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
enum Encoding {
    #[default]
    Float,
    /// The numbers' bytes, as 32-bit floats, little end first.
    Base64,
}

#[derive(Debug, Clone, Copy, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
enum PoolingKind {
    Mean,
    Cls,
    Last,
}

/// The vectors.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Embeddings {
    object: &'static str,
    data: Vec<EmbeddingItem>,
    model: String,
    usage: EmbeddingUsage,
    /// Whether a text was cut, which is done only where it was asked for.
    truncated: bool,
}

#[derive(Debug, Serialize, ToSchema)]
struct EmbeddingItem {
    object: &'static str,
    index: usize,
    embedding: Vector,
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(untagged)]
enum Vector {
    Numbers(Vec<f32>),
    Base64(String),
}

#[derive(Debug, Serialize, ToSchema)]
struct EmbeddingUsage {
    prompt_tokens: usize,
    total_tokens: usize,
}

/// Makes vectors of texts.
#[utoipa::path(
    post,
    path = "/v1/embeddings",
    tag = "openai",
    request_body = EmbeddingRequest,
    responses((status = 200, description = "The vectors", body = Embeddings), (status = "4XX", response = crate::openapi::Refused))
)]
pub(crate) async fn embed(
    State(app): State<Arc<App>>,
    Strict(request): Strict<EmbeddingRequest>,
) -> Result<Json<Embeddings>, ApiError> {
    let lease = app.lease(&request.model).await?;
    let options = EmbedOptions {
        pooling: request.pooling.map(|pooling| match pooling {
            PoolingKind::Mean => Pooling::Mean,
            PoolingKind::Cls => Pooling::Cls,
            PoolingKind::Last => Pooling::Last,
        }),
        normalize: request.normalize.unwrap_or(true),
        dimensions: request.dimensions,
        truncate: request.truncate.unwrap_or(false),
    };
    let inputs = request.input.into_list();
    let embedded = app.embed(&lease, inputs, options).await?;
    let tokens = embedded.vectors.iter().map(|vector| vector.tokens).sum();
    let encode = |values: Vec<f32>| match request.encoding_format.unwrap_or_default() {
        Encoding::Float => Vector::Numbers(values),
        Encoding::Base64 => {
            let bytes: Vec<u8> = values.into_iter().flat_map(f32::to_le_bytes).collect();
            Vector::Base64(STANDARD.encode(bytes))
        }
    };
    let items = embedded.vectors.into_iter().enumerate().map(|(index, vector)| EmbeddingItem {
        object: "embedding",
        index,
        embedding: encode(vector.values),
    });
    Ok(Json(Embeddings {
        object: "list",
        data: items.collect(),
        model: request.model,
        usage: EmbeddingUsage { prompt_tokens: tokens, total_tokens: tokens },
        truncated: embedded.truncated,
    }))
}

/// Documents that are to be put in order.
#[derive(Debug, Deserialize, ToSchema)]
pub(crate) struct RerankRequest {
    /// One of `/v1/models`.
    model: String,
    query: String,
    #[schema(min_items = 1, max_items = 2048)]
    documents: Vec<Document>,
    /// Only so many of the best.
    #[schema(minimum = 1)]
    top_n: Option<usize>,
    /// The documents come back with their scores; false.
    return_documents: Option<bool>,
}

/// A text, alone or as the field of an object.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(untagged, expecting = "must be a string or {\"text\": …}")]
enum Document {
    Text(String),
    Object(DocumentText),
}

#[derive(Debug, Clone, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct DocumentText {
    text: String,
}

/// The documents in their order, the best first.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Reranked {
    id: String,
    model: String,
    results: Vec<RankedDocument>,
    usage: EmbeddingUsage,
}

#[derive(Debug, Serialize, ToSchema)]
struct RankedDocument {
    /// Its place in the request.
    index: usize,
    /// 0 to 1.
    relevance_score: f32,
    #[serde(skip_serializing_if = "Option::is_none")]
    document: Option<DocumentText>,
}

/// Puts documents in order.
#[utoipa::path(
    post,
    path = "/v1/rerank",
    tag = "openai",
    request_body = RerankRequest,
    responses((status = 200, description = "The documents, the best first", body = Reranked), (status = "4XX", response = crate::openapi::Refused))
)]
pub(crate) async fn rerank(
    State(app): State<Arc<App>>,
    Strict(request): Strict<RerankRequest>,
) -> Result<Json<Reranked>, ApiError> {
    let lease = app.lease(&request.model).await?;
    let texts = request.documents.into_iter().map(|document| match document {
        Document::Text(text) => text,
        Document::Object(object) => object.text,
    });
    let texts: Vec<String> = texts.collect();
    if request.top_n == Some(0) {
        return Err(ApiError::invalid("top_n", "top_n is 0, and must be at least 1"));
    }
    let give_back = request.return_documents.unwrap_or(false);
    let ranks = app.rank(&lease, request.query, texts.clone()).await?;
    let tokens = ranks.iter().map(|rank| rank.tokens).sum();
    let results = ranks.iter().zip(texts).enumerate().map(|(index, (rank, text))| RankedDocument {
        index,
        relevance_score: rank.score,
        document: give_back.then_some(DocumentText { text }),
    });
    let mut results: Vec<RankedDocument> = results.collect();
    // Stable: equals stay in the request's order.
    results.sort_by(|a, b| b.relevance_score.total_cmp(&a.relevance_score));
    results.truncate(request.top_n.unwrap_or(usize::MAX));
    Ok(Json(Reranked {
        id: format!("rerank-{:016x}", app.number()),
        model: request.model,
        results,
        usage: EmbeddingUsage { prompt_tokens: tokens, total_tokens: tokens },
    }))
}
