//! The last hand on every response: errors in the form of the API that was spoken, and the headers that all have.

use std::sync::{Arc, Mutex, PoisonError};

use axum::Json;
use axum::extract::{Request, State};
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use crate::answering::unix_time;
use crate::app::App;
use crate::error::ApiError;

/// The fields of a request that nobody read, where that is no error.
pub(crate) const IGNORED: HeaderName = HeaderName::from_static("moli-ignored");

/// Where the extractor of a body leaves word of such fields.
#[derive(Debug, Clone, Default)]
pub(crate) struct Ignored(Arc<Mutex<Vec<String>>>);

impl Ignored {
    pub(crate) fn add(&self, fields: Vec<String>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend(fields);
    }

    fn header(&self) -> Option<HeaderValue> {
        let fields = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if fields.is_empty() {
            return None;
        }
        // A client's own names: what can't stand in a header is escaped, and there is an end to it.
        let shown: String = fields.join(", ").escape_default().take(1024).collect();
        HeaderValue::from_str(&shown).ok()
    }
}

/// Whose words a path is spoken in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Dialect {
    OpenAi,
    Ollama,
    Anthropic,
}

impl Dialect {
    fn of(path: &str) -> Self {
        if path.starts_with("/api/") {
            Self::Ollama
        } else if path.starts_with("/v1/messages") {
            Self::Anthropic
        } else {
            Self::OpenAi
        }
    }

    fn body(self, error: &ApiError) -> Value {
        match self {
            Self::OpenAi => openai(error),
            Self::Ollama => json!({"error": error.message}),
            Self::Anthropic => anthropic(error),
        }
    }
}

/// An error as OpenAI's clients read it.
pub(crate) fn openai(error: &ApiError) -> Value {
    let kind = match error.status.as_u16() {
        401 => "authentication_error",
        403 => "permission_error",
        404 => "not_found_error",
        429 => "rate_limit_error",
        400..500 => "invalid_request_error",
        _ => "server_error",
    };
    json!({"error": {"message": error.message, "type": kind, "param": error.param, "code": error.code}})
}

/// An error as Anthropic's clients read it.
pub(crate) fn anthropic(error: &ApiError) -> Value {
    let kind = match error.status.as_u16() {
        401 => "authentication_error",
        403 => "permission_error",
        404 => "not_found_error",
        413 => "request_too_large",
        429 => "rate_limit_error",
        503 => "overloaded_error",
        400..500 => "invalid_request_error",
        _ => "api_error",
    };
    json!({"type": "error", "error": {"type": kind, "message": error.message}})
}

/// What Anthropic's clients name a request by, to whoever looks into it.
const REQUEST_ID: HeaderName = HeaderName::from_static("request-id");

/// Writes an error that a handler left beside an empty response, and the headers.
pub(crate) async fn finish(State(app): State<Arc<App>>, mut request: Request, next: Next) -> Response {
    let dialect = Dialect::of(request.uri().path());
    let ignored = Ignored::default();
    request.extensions_mut().insert(ignored.clone());
    let mut response = next.run(request).await;
    let request_id =
        (dialect == Dialect::Anthropic).then(|| format!("req_{:08x}{:016x}", unix_time(), app.number()));
    let error = response.extensions_mut().remove::<ApiError>();
    app.metrics.responded(response.status().as_u16(), error.as_ref());
    if let Some(error) = error {
        // What others have added stays, for browsers say; only the empty body's length goes.
        let mut headers = std::mem::take(response.headers_mut());
        headers.remove(header::CONTENT_LENGTH);
        let mut body = dialect.body(&error);
        if let Some(id) = &request_id {
            body["request_id"] = Value::from(id.as_str());
        }
        response = (error.status, Json(body)).into_response();
        response.headers_mut().extend(headers);
        if error.status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if let Some(seconds) = error.retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
    }
    let headers = response.headers_mut();
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    if let Some(id) = request_id.and_then(|id| HeaderValue::try_from(id).ok()) {
        headers.insert(REQUEST_ID, id);
    }
    if let Some(fields) = ignored.header() {
        headers.insert(IGNORED, fields);
    }
    response
}
