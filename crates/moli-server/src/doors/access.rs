//! Who may come in, and what the log says of them.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Instant;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use hyper::body::{Body as HttpBody, Frame, SizeHint};

use super::visit::{self, Admitted, Visit};
use crate::app::App;
use crate::error::ApiError;
use crate::page;

/// What anybody may see besides the page: whether the server lives.
const OPEN: [&str; 2] = ["/health", "/ready"];

/// Asks for a key, where there are any.
pub(crate) async fn ask(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let visit = visit::current();
    match admit(&app, &request) {
        Ok(who) => {
            if let (Some(visit), Some(who)) = (visit, who) {
                visit.admit(who);
            }
            next.run(request).await
        }
        Err(error) => error.into_response(),
    }
}

/// Whoever asks; `None`: that does not matter here.
fn admit(app: &App, request: &Request) -> Result<Option<Admitted>, ApiError> {
    let keys = app.keys.current();
    if keys.is_empty() {
        return Ok(Some(Admitted::Anyone));
    }
    let reads = request.method() == Method::GET || request.method() == Method::HEAD;
    match request.uri().path() {
        path if reads && (OPEN.contains(&path) || page::has(path)) => return Ok(None),
        "/metrics" if reads && app.options.open_metrics => return Ok(Some(Admitted::Anyone)),
        _ => {}
    }
    let Some(key) = keys.of(request.headers()) else {
        let message = "a key is needed: authorization: Bearer KEY, or x-api-key: KEY";
        return Err(ApiError::new(StatusCode::UNAUTHORIZED, "invalid_api_key", message));
    };
    key.take().map_err(|seconds| {
        let most = key.per_minute().unwrap_or_default();
        let message = format!("{:?} may send {most} requests a minute", key.name);
        let error = ApiError::new(StatusCode::TOO_MANY_REQUESTS, "rate_limit_exceeded", message);
        ApiError { retry_after: Some(seconds), ..error }
    })?;
    Ok(Some(Admitted::Key(Arc::clone(key))))
}

/// Follows a request to the end of its response, and has the log say what it was. Of what was asked it says nothing.
pub(crate) async fn log(request: Request, next: Next) -> Response {
    let visit = Arc::new(Visit::default());
    let mut line = Line {
        // A client's own words: what could be taken for something else is escaped, and there is an end to them.
        method: request.method().as_str().chars().take(20).collect(),
        path: request.uri().path().escape_default().take(200).collect(),
        status: None,
        start: Instant::now(),
        bytes_out: 0,
        whole: false,
        visit: Arc::clone(&visit),
    };
    let counted = Arc::clone(&visit);
    let request = request.map(|body| Body::new(Incoming { body, visit: counted }));
    let response = visit.during(next.run(request)).await;
    line.status = Some(response.status());
    response.map(|body| Body::new(Outgoing { body, line }))
}

/// A line of the access log, written when it is dropped: a client can leave at any moment.
struct Line {
    method: String,
    path: String,
    /// `None`: the client left before there was an answer.
    status: Option<StatusCode>,
    start: Instant,
    bytes_out: u64,
    /// All of the answer was handed to the connection.
    whole: bool,
    visit: Arc<Visit>,
}

impl Drop for Line {
    fn drop(&mut self) {
        let told = self.visit.told().clone();
        tracing::info!(
            target: "moli_server::access",
            method = self.method,
            path = self.path,
            status = self.status.map(|status| status.as_u16()),
            ms = self.start.elapsed().as_millis(),
            bytes_in = self.visit.bytes_in(),
            bytes_out = self.bytes_out,
            whole = self.whole,
            key = self.visit.key(),
            model = told.model,
            prompt_tokens = told.prompt_tokens,
            completion_tokens = told.completion_tokens,
        );
    }
}

/// A request's body, counted.
struct Incoming {
    body: Body,
    visit: Arc<Visit>,
}

impl HttpBody for Incoming {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(context);
        if let Poll::Ready(Some(Ok(frame))) = &polled {
            self.visit.bytes_in.fetch_add(bytes_of(frame), Ordering::Relaxed);
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A response's body, counted, and at its end the line of the log.
struct Outgoing {
    body: Body,
    line: Line,
}

impl HttpBody for Outgoing {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(context);
        match &polled {
            Poll::Ready(Some(Ok(frame))) => self.line.bytes_out += bytes_of(frame),
            Poll::Ready(None) => self.line.whole = true,
            _ => {}
        }
        self.line.whole |= self.body.is_end_stream();
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

fn bytes_of(frame: &Frame<Bytes>) -> u64 {
    frame.data_ref().map_or(0, |data| data.len() as u64)
}
