//! A connection, from its first byte to its last.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;

use super::pace::Paced;
use crate::ServerOptions;

/// Fewest bytes that the parser's buffer can have.
const LEAST_BUFFER: usize = 8 << 10;
/// When a connection can't be taken, for want of open files say, others may end meanwhile.
const AGAIN: Duration = Duration::from_millis(20);

/// What a connection may cost.
#[derive(Debug, Clone)]
pub(crate) struct Limits {
    places: Arc<Semaphore>,
    most: usize,
    refused: Arc<AtomicU64>,
    max_head: usize,
    head_timeout: Duration,
    write_timeout: Duration,
}

impl Limits {
    pub(crate) fn new(options: &ServerOptions) -> Self {
        let most = options.max_connections.clamp(1, Semaphore::MAX_PERMITS);
        Self {
            places: Arc::new(Semaphore::new(most)),
            most,
            refused: Arc::default(),
            max_head: options.max_head,
            head_timeout: options.head_timeout,
            write_timeout: options.write_timeout,
        }
    }

    /// A place for a connection, or word that there is none left.
    pub(crate) fn place(&self) -> Option<OwnedSemaphorePermit> {
        let place = Arc::clone(&self.places).try_acquire_owned().ok();
        if place.is_none() {
            self.refused.fetch_add(1, Ordering::Relaxed);
            tracing::debug!(most = self.most, "a connection too many");
        }
        place
    }

    /// Connections that are open.
    pub(crate) fn open(&self) -> usize {
        self.most - self.places.available_permits()
    }

    /// Connections that were closed at once, because so many were open.
    pub(crate) fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }
}

/// Takes connections, for ever.
pub(crate) async fn accept<S>(
    next: impl AsyncFn() -> io::Result<S>,
    tls: Option<TlsAcceptor>,
    router: Router,
    limits: &Limits,
    connections: &GracefulShutdown,
) -> Infallible
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    loop {
        let Ok(stream) = next().await else {
            sleep(AGAIN).await;
            continue;
        };
        let Some(place) = limits.place() else { continue };
        let (tls, router, limits) = (tls.clone(), router.clone(), limits.clone());
        let watcher = connections.watcher();
        tokio::spawn(async move {
            serve(stream, tls, router, limits, watcher).await;
            drop(place);
        });
    }
}

/// Serves a connection until it ends, or until all are told to.
async fn serve<S>(stream: S, tls: Option<TlsAcceptor>, router: Router, limits: Limits, watcher: Watcher)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let stream = Paced::new(stream, limits.write_timeout);
    let Some(tls) = tls else { return talk(stream, router, &limits, watcher).await };
    match timeout(limits.head_timeout, tls.accept(stream)).await {
        Ok(Ok(stream)) => talk(stream, router, &limits, watcher).await,
        Ok(Err(error)) => tracing::debug!("no TLS: {error}"),
        Err(_) => tracing::debug!("no TLS in time"),
    }
}

async fn talk<S>(stream: S, router: Router, limits: &Limits, watcher: Watcher)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.head_timeout)
        .max_header_size(limits.max_head)
        .max_buf_size(limits.max_head.max(LEAST_BUFFER))
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    // How a client goes is its own affair.
    if let Err(error) = watcher.watch(connection).await {
        tracing::debug!("a connection broke: {error}");
    }
}
