//! Ollama's API.
//!
//! - [`ask`]: `/api/chat` and `/api/generate`, what is asked;
//! - [`embed`] for `/api/embed`;
//! - [`options`]: how an answer is made;
//! - [`message`]: the messages of a conversation;
//! - [`answer`]: what is answered;
//! - [`models`]: `/api/tags`, `/api/show`, `/api/ps`.

mod answer;
pub(crate) mod ask;
pub(crate) mod embed;
mod message;
pub(crate) mod models;
mod options;

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::http::StatusCode;
use axum::routing::{any, get, post};
use axum::{Json, Router};
use serde::Serialize;
use utoipa::{ToResponse, ToSchema};

use crate::app::App;
use crate::error::ApiError;

/// The paths of this API.
pub(crate) fn routes() -> Router<Arc<App>> {
    let elsewhere = |path, instead: &'static str| (path, any(move || async move { not_here(path, instead) }));
    let mut routes = Router::new()
        .route("/api/chat", post(ask::chat))
        .route("/api/generate", post(ask::generate))
        .route("/api/embed", post(embed::embed))
        .route("/api/tags", get(models::tags))
        .route("/api/show", post(models::show))
        .route("/api/ps", get(models::ps))
        .route("/api/version", get(version));
    for (path, method) in [
        elsewhere("/api/pull", "`moli pull NAME` fetches a model, and `moli serve` serves it"),
        elsewhere("/api/delete", "`moli rm NAME` deletes a model"),
        elsewhere("/api/copy", "`moli serve --model NAME=MODEL` serves a model under another name"),
        elsewhere("/api/create", "`moli serve --model NAME=MODEL` serves a model under a name of its own"),
        elsewhere("/api/push", "Moli uploads no models"),
        elsewhere("/api/blobs/{digest}", "`moli serve` serves files where they are"),
    ] {
        routes = routes.route(path, method);
    }
    routes
}

/// What a client is told that wants to manage models.
fn not_here(path: &str, instead: &str) -> ApiError {
    let message = format!("{path} is not served: {instead}");
    ApiError::new(StatusCode::NOT_IMPLEMENTED, "not_implemented", message)
}

/// A request that is not answered, and why.
#[derive(Debug, Serialize, ToSchema, ToResponse)]
#[schema(as = ollama::Refused)]
#[response(description = "The request is not answered, and why")]
pub(crate) struct OllamaRefused {
    error: String,
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = ollama::Version)]
struct Version {
    /// Moli's own.
    version: &'static str,
}

#[utoipa::path(
    get,
    path = "/api/version",
    tag = "ollama",
    responses((status = 200, description = "The server's version", body = Version))
)]
async fn version() -> Json<Version> {
    Json(Version { version: env!("CARGO_PKG_VERSION") })
}

/// Beyond it, times have no form.
const LATEST: Duration = Duration::from_secs(253_402_300_799);

/// A time as this API writes it: `2026-01-31T12:00:00.000000000Z`.
fn timestamp(time: SystemTime) -> String {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default().min(LATEST);
    humantime::format_rfc3339_nanos(UNIX_EPOCH + since).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_nanoseconds_whatever_they_are() {
        assert_eq!(timestamp(UNIX_EPOCH + Duration::from_nanos(1)), "1970-01-01T00:00:00.000000001Z");
        assert_eq!(timestamp(UNIX_EPOCH - Duration::from_secs(1)), "1970-01-01T00:00:00.000000000Z");
        assert_eq!(timestamp(UNIX_EPOCH + 2 * LATEST), "9999-12-31T23:59:59.000000000Z");
    }
}
