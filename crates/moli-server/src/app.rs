//! What all requests share, and where each path leads.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use axum::extract::State;
use axum::http::{Method, StatusCode, Uri};
use axum::routing::get;
use axum::{Json, Router, middleware};
use moli_engine::CancelToken;
use serde_json::{Value, json};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tower_http::catch_panic::CatchPanicLayer;

use crate::doors::connection::Limits;
use crate::doors::keys::Keyring;
use crate::doors::{access, gate};
use crate::error::{ApiError, ServerError};
use crate::metrics::{self, Metrics};
use crate::models::{Lease, Models};
use crate::{ServerOptions, anthropic, native, ollama, openai, openapi, page, respond};

/// Requests that are read at the same time.
const PREPARING: usize = 4;
/// Requests for vectors and scores that are computed at the same time.
const COMPUTING: usize = 8;
/// Requests that may wait for either.
const WAITING: usize = 256;

/// What all requests share.
#[derive(Debug)]
pub(crate) struct App {
    pub(crate) models: Arc<Models>,
    pub(crate) options: ServerOptions,
    pub(crate) keys: Arc<Keyring>,
    /// The connections of the main doors.
    pub(crate) limits: Limits,
    /// Cancels everything, when there is no time left.
    pub(crate) stop: CancelToken,
    draining: AtomicBool,
    /// To reading requests.
    pub(crate) preparing: Gate,
    /// To waiting for what is no stream.
    pub(crate) computing: Gate,
    answers: AtomicU64,
    pub(crate) metrics: Metrics,
}

impl App {
    pub(crate) fn new(mut options: ServerOptions) -> Result<Self, ServerError> {
        let served = options.models.iter().map(|model| model.name.clone()).collect();
        Ok(Self {
            models: Arc::new(Models::new(std::mem::take(&mut options.models), options.memory)?),
            keys: Arc::new(Keyring::new(options.keys.clone(), served)?),
            limits: Limits::new(&options),
            options,
            stop: CancelToken::new(),
            draining: AtomicBool::new(false),
            preparing: Gate::new(PREPARING),
            computing: Gate::new(COMPUTING),
            answers: AtomicU64::new(0),
            metrics: Metrics::default(),
        })
    }

    /// The model that a request names, loaded; no more when the server is about to stop.
    pub(crate) async fn lease(&self, name: &str) -> Result<Lease, ApiError> {
        let (slot, adapter) = self.models.find_adapted(name)?;
        if self.is_draining() {
            return Err(ApiError::overloaded("stopping", "the server is about to stop"));
        }
        Ok(self.models.lease(slot).await?.adapted(adapter))
    }

    /// A number for an answer.
    pub(crate) fn number(&self) -> u64 {
        self.answers.fetch_add(1, Ordering::Relaxed)
    }

    /// Takes no new work from now on.
    pub(crate) fn drain(&self) {
        self.draining.store(true, Ordering::SeqCst);
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::SeqCst)
    }
}

/// Lets a few through at a time; a bounded number may wait.
#[derive(Debug)]
pub(crate) struct Gate {
    places: Arc<Semaphore>,
    waiting: AtomicUsize,
}

impl Gate {
    fn new(places: usize) -> Self {
        Self { places: Arc::new(Semaphore::new(places)), waiting: AtomicUsize::new(0) }
    }

    /// A place, for as long as the permit lives.
    pub(crate) async fn enter(&self) -> Result<OwnedSemaphorePermit, ApiError> {
        let _waiting = Waiting::new(&self.waiting);
        if self.waiting.load(Ordering::Relaxed) > WAITING {
            return Err(ApiError::overloaded("queue_full", "too many requests wait already"));
        }
        let permit = Arc::clone(&self.places).acquire_owned().await;
        permit.map_err(|_| ApiError::overloaded("stopping", "the server is about to stop"))
    }
}

/// Somebody who waits, for as long as this lives.
struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Where each path leads, behind all that a request has to pass: from the last to the first.
///
/// # Errors
/// [`ServerError::Origin`].
pub(crate) fn router(app: &Arc<App>) -> Result<Router, ServerError> {
    let routes = health_routes()
        .route("/metrics", get(metrics::export))
        .route("/openapi.json", get(openapi::document))
        .merge(page::routes())
        .merge(openai::routes())
        .merge(ollama::routes())
        .merge(anthropic::routes())
        .merge(native::routes())
        .fallback(nowhere)
        .method_not_allowed_fallback(other_method)
        .with_state(Arc::clone(app));
    Ok(routes
        .layer(CatchPanicLayer::custom(|_| axum::response::IntoResponse::into_response(panicked())))
        .layer(middleware::from_fn_with_state(Arc::clone(app), access::ask))
        .layer(gate::cors(&app.options.cors_origins)?)
        .layer(middleware::from_fn_with_state(Arc::clone(app), gate::keep))
        .layer(middleware::from_fn_with_state(Arc::clone(app), respond::finish))
        .layer(middleware::from_fn(access::log)))
}

/// The same for the door of whoever looks after the server.
pub(crate) fn health_router(app: Arc<App>) -> Router {
    let routes = health_routes().fallback(nowhere).with_state(Arc::clone(&app));
    routes.layer(middleware::from_fn_with_state(app, respond::finish))
}

fn health_routes() -> Router<Arc<App>> {
    Router::new().route("/health", get(health)).route("/ready", get(ready))
}

fn panicked() -> ApiError {
    ApiError::internal("this request met a mistake in the server; others go on")
}

/// Whether the server is alive.
#[utoipa::path(get, path = "/health", tag = "moli", responses((status = 200, description = "It is", body = Value)))]
async fn health() -> Json<Value> {
    Json(json!({"status": "ok"}))
}

/// Whether work would be taken.
#[utoipa::path(
    get,
    path = "/ready",
    tag = "moli",
    responses(
        (status = 200, description = "It would", body = Value),
        (status = 503, description = "Models are being loaded, or the server stops", body = Value)
    )
)]
async fn ready(State(app): State<Arc<App>>) -> (StatusCode, Json<Value>) {
    let loaded = app.models.all().iter().filter(|slot| slot.spec.keep).all(|slot| slot.engine().is_some());
    let (status, word) = match (app.is_draining(), loaded) {
        (true, _) => (StatusCode::SERVICE_UNAVAILABLE, "stopping"),
        (false, false) => (StatusCode::SERVICE_UNAVAILABLE, "loading"),
        (false, true) => (StatusCode::OK, "ready"),
    };
    (status, Json(json!({"status": word})))
}

async fn nowhere(uri: Uri) -> ApiError {
    let path: String = uri.path().chars().take(120).collect();
    ApiError::not_found(format!("there is nothing at {path}"))
}

async fn other_method(method: Method, uri: Uri) -> ApiError {
    let path: String = uri.path().chars().take(120).collect();
    let message = format!("{path} does not take {method}");
    ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", message)
}
