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
use crate::models::{Lease, Models};
use crate::{ServerOptions, openai, respond};

/// Requests that are read at the same time.
const PREPARING: usize = 4;
/// Requests that may wait for that.
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
    preparing: Arc<Semaphore>,
    waiting: AtomicUsize,
    answers: AtomicU64,
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
            preparing: Arc::new(Semaphore::new(PREPARING)),
            waiting: AtomicUsize::new(0),
            answers: AtomicU64::new(0),
        })
    }

    /// The model that a request names, loaded; no more when the server is about to stop.
    pub(crate) async fn lease(&self, name: &str) -> Result<Lease, ApiError> {
        let slot = self.models.find(name)?;
        if self.is_draining() {
            return Err(ApiError::overloaded("stopping", "the server is about to stop"));
        }
        Ok(self.models.lease(slot).await?)
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

    /// The right to have a request read. Whom the engine's queue would refuse is refused before that costs anything.
    pub(crate) async fn preparing(&self, lease: &Lease) -> Result<OwnedSemaphorePermit, ApiError> {
        let _waiting = Waiting::new(&self.waiting);
        if self.waiting.load(Ordering::Relaxed) > WAITING || !lease.engine.has_room() {
            return Err(ApiError::overloaded("queue_full", "too many requests wait already"));
        }
        let permit = Arc::clone(&self.preparing).acquire_owned().await;
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
        .merge(openai::routes())
        .fallback(nowhere)
        .method_not_allowed_fallback(other_method)
        .with_state(Arc::clone(app));
    Ok(routes
        .layer(CatchPanicLayer::custom(|_| axum::response::IntoResponse::into_response(panicked())))
        .layer(middleware::from_fn_with_state(Arc::clone(app), access::ask))
        .layer(gate::cors(&app.options.cors_origins)?)
        .layer(middleware::from_fn_with_state(Arc::clone(app), gate::keep))
        .layer(middleware::from_fn(respond::finish))
        .layer(middleware::from_fn(access::log)))
}

/// The same for the door of whoever looks after the server.
pub(crate) fn health_router(app: Arc<App>) -> Router {
    health_routes().fallback(nowhere).with_state(app).layer(middleware::from_fn(respond::finish))
}

fn health_routes() -> Router<Arc<App>> {
    Router::new()
        .route("/health", get(|| async { Json(json!({"status": "ok"})) }))
        .route("/ready", get(ready))
}

fn panicked() -> ApiError {
    ApiError::internal("this request met a mistake in the server; others go on")
}

/// Whether work would be taken.
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
