//! Answers as they come: server-sent events, or one JSON object a line.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderValue, header};
use axum::response::Response;
use bytes::Bytes;
use futures_core::Stream;
use moli_engine::ChatChunk;
use serde::Serialize;
use tokio::time::{Interval, MissedTickBehavior, interval};

use crate::answering::Answering;
use crate::error::ApiError;

/// Where nothing is said for so long, a comment tells whoever is between that the connection lives.
const KEEP_ALIVE: Duration = Duration::from_secs(10);
/// Most bytes that are handed over at once.
const MOST: usize = 64 << 10;

/// How an API writes an answer as it comes.
pub(crate) trait Writer: Send + Unpin + 'static {
    /// Whether it is written as server-sent events; else as lines.
    const EVENTS: bool = true;

    /// What comes first.
    fn begin(&mut self, answering: &Answering, out: &mut Frames);
    /// What a step adds.
    fn chunk(&mut self, answering: &Answering, chunk: ChatChunk, out: &mut Frames);
    /// What comes last.
    fn end(&mut self, answering: &Answering, out: &mut Frames);
    /// What comes last where the answer can't go on.
    fn fail(&mut self, error: &ApiError, out: &mut Frames);
}

/// Bytes of a stream.
#[derive(Debug, Default)]
pub(crate) struct Frames(Vec<u8>);

impl Frames {
    /// An event without a name.
    pub(crate) fn data(&mut self, value: &impl Serialize) {
        self.0.extend_from_slice(b"data: ");
        self.json(value);
        self.0.extend_from_slice(b"\n\n");
    }

    /// An event with a name.
    pub(crate) fn event(&mut self, name: &str, value: &impl Serialize) {
        self.0.extend_from_slice(b"event: ");
        self.0.extend_from_slice(name.as_bytes());
        self.0.push(b'\n');
        self.data(value);
    }

    /// The event that OpenAI's clients take for the end.
    pub(crate) fn done(&mut self) {
        self.0.extend_from_slice(b"data: [DONE]\n\n");
    }

    /// A line.
    pub(crate) fn line(&mut self, value: &impl Serialize) {
        self.json(value);
        self.0.push(b'\n');
    }

    /// Forgets what was written.
    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }

    fn json(&mut self, value: &impl Serialize) {
        // What is written here has string keys and goes to memory: neither can fail.
        let _ = serde_json::to_writer(&mut self.0, value);
    }
}

/// The response that an answer becomes.
pub(crate) fn response<W: Writer>(answering: Answering, mut writer: W) -> Response {
    let mut out = Frames::default();
    writer.begin(&answering, &mut out);
    let mut keep_alive = interval(KEEP_ALIVE);
    keep_alive.set_missed_tick_behavior(MissedTickBehavior::Delay);
    keep_alive.reset();
    let body = Streaming { answering, writer, out, keep_alive, silent: false, over: false };
    let mut response = Response::new(Body::from_stream(body));
    let kind = if W::EVENTS { "text/event-stream" } else { "application/x-ndjson" };
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    // Without it, nginx keeps what comes until it has a page of it.
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}

struct Streaming<W> {
    answering: Answering,
    writer: W,
    out: Frames,
    keep_alive: Interval,
    /// Nothing was sent since the last tick.
    silent: bool,
    over: bool,
}

impl<W: Writer> Stream for Streaming<W> {
    type Item = Result<Bytes, Infallible>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        // What is there goes out together.
        while !this.over && this.out.0.len() < MOST {
            match Pin::new(&mut this.answering).poll_next(context) {
                Poll::Pending => break,
                Poll::Ready(Some(Ok(chunk))) => this.writer.chunk(&this.answering, chunk, &mut this.out),
                Poll::Ready(Some(Err(error))) => {
                    this.writer.fail(&error, &mut this.out);
                    this.over = true;
                }
                Poll::Ready(None) => {
                    this.writer.end(&this.answering, &mut this.out);
                    this.over = true;
                }
            }
        }
        if W::EVENTS && this.out.0.is_empty() && !this.over && this.keep_alive.poll_tick(context).is_ready() {
            if std::mem::replace(&mut this.silent, true) {
                this.out.0.extend_from_slice(b": keep-alive\n\n");
            }
            // To be woken at the next one.
            let _ = this.keep_alive.poll_tick(context);
        }
        if !this.out.0.is_empty() {
            this.silent = false;
            return Poll::Ready(Some(Ok(std::mem::take(&mut this.out.0).into())));
        }
        if this.over { Poll::Ready(None) } else { Poll::Pending }
    }
}
