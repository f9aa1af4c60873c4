//! Sockets: taking connections, and letting go of them.

use std::convert::Infallible;
use std::future::pending;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::time::{interval, sleep, timeout};

use crate::ServerOptions;
use crate::app::{self, App};
use crate::error::ServerError;

/// Threads that serve connections: little is done on them, and the cores are for the models.
const WORKERS: usize = 2;
/// A request's head has to arrive within this time, and a connection without requests ends after it.
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);
/// Most bytes of a request's head.
const MAX_HEAD: usize = 64 << 10;
/// How often what is under way is looked at while the server stops.
const POLL: Duration = Duration::from_millis(20);
/// How often, at least, it is looked whether a model is to be unloaded.
const MOST_POLL: Duration = Duration::from_secs(1);
/// How long connections may take to end after their answers have.
const CLOSING: Duration = Duration::from_secs(2);

/// A server that listens.
#[derive(Debug)]
pub struct Server {
    app: Arc<App>,
    listener: TcpListener,
    address: SocketAddr,
    stop: Arc<Notify>,
}

/// Tells a server to stop, from any thread.
#[derive(Debug, Clone)]
pub struct Handle {
    stop: Arc<Notify>,
}

impl Handle {
    /// Has it take no new work, finish what is under way within its grace, and end. Called again, it does not wait.
    pub fn stop(&self) {
        self.stop.notify_one();
    }
}

impl Server {
    /// Opens the sockets; clients can connect from now on, and wait until it runs.
    ///
    /// # Errors
    /// [`ServerError::Bind`], [`ServerError::DuplicateModel`].
    pub fn bind(options: ServerOptions) -> Result<Self, ServerError> {
        let address = options.address;
        let bind = |source| ServerError::Bind { address, source };
        let listener = TcpListener::bind(address).map_err(bind)?;
        let address = listener.local_addr().map_err(bind)?;
        Ok(Self { app: Arc::new(App::new(options)?), listener, address, stop: Arc::default() })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What stops it.
    pub fn handle(&self) -> Handle {
        Handle { stop: Arc::clone(&self.stop) }
    }

    /// Serves until it is told to stop, by its [`handle`](Self::handle) or, on Unix, by SIGTERM or SIGINT.
    ///
    /// # Errors
    /// [`ServerError::Model`] for a model that has to be there and can't be loaded, [`ServerError::System`].
    pub fn run(self) -> Result<(), ServerError> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(WORKERS)
            .thread_name("moli-server")
            .enable_all()
            .build()?;
        let outcome = runtime.block_on(self.serve());
        // Whoever reads a request at this moment need not be waited for.
        runtime.shutdown_background();
        outcome
    }

    async fn serve(self) -> Result<(), ServerError> {
        self.listener.set_nonblocking(true)?;
        let listener = tokio::net::TcpListener::from_std(self.listener)?;
        let connections = GracefulShutdown::new();
        let outcome = tokio::select! {
            outcome = live(&self.app, &self.stop) => outcome,
            never = accept(&listener, app::router(Arc::clone(&self.app)), &connections) => match never {},
        };
        drop(listener);
        // What was answered is still on its way.
        let _ = timeout(CLOSING, connections.shutdown()).await;
        outcome
    }
}

/// Takes connections, for ever.
async fn accept(
    listener: &tokio::net::TcpListener,
    router: Router,
    connections: &GracefulShutdown,
) -> Infallible {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => connect(stream, router.clone(), connections),
            // Too many open files, say: others may close theirs meanwhile.
            Err(_) => sleep(POLL).await,
        }
    }
}

/// Serves a connection.
fn connect(stream: TcpStream, router: Router, connections: &GracefulShutdown) {
    // A token is a small packet, and nobody should wait for the next.
    let _ = stream.set_nodelay(true);
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(MAX_HEAD)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    let connection = connections.watch(connection);
    tokio::spawn(async move {
        // How a client goes is its own affair.
        let _ = connection.await;
    });
}

/// From the start until nobody is served any more.
async fn live(app: &App, stop: &Notify) -> Result<(), ServerError> {
    tokio::select! {
        loaded = load_kept(app) => loaded?,
        () = told(stop) => return Ok(()),
    }
    tokio::select! {
        () = told(stop) => {}
        () = unload_idle(app) => {}
    }
    app.drain();
    tokio::select! {
        () = unused(app, app.options.grace) => {}
        () = told(stop) => {}
    }
    app.stop.cancel();
    unused(app, CLOSING).await;
    Ok(())
}

/// Loads the models that stay, beside the first connections: `/health` answers meanwhile.
async fn load_kept(app: &App) -> Result<(), ServerError> {
    for slot in app.models.slots().iter().filter(|slot| slot.spec.keep) {
        let loaded = app.models.lease(slot).await;
        loaded.map_err(|source| ServerError::Model { name: slot.spec.name.clone(), source })?;
    }
    Ok(())
}

/// Unloads what nobody uses, for ever.
async fn unload_idle(app: &App) {
    let after = app.options.unload_after;
    // Clients may say another time than that.
    let mut often = interval(after.map_or(MOST_POLL, |after| (after / 4).clamp(POLL, MOST_POLL)));
    loop {
        often.tick().await;
        while app.models.unload_expired(after).await {}
    }
}

/// Waits until no request is at a model, at most so long.
async fn unused(app: &App, most: Duration) {
    let _ = timeout(most, async {
        while app.models.users() > 0 {
            sleep(POLL).await;
        }
    })
    .await;
}

/// Waits to be told to stop.
async fn told(stop: &Notify) {
    tokio::select! {
        () = stop.notified() => {}
        () = signalled() => {}
    }
}

/// Waits for a signal to stop.
#[cfg(unix)]
async fn signalled() {
    use tokio::signal::unix::{SignalKind, signal};
    match (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) {
        (Ok(mut terminate), Ok(mut interrupt)) => {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        }
        // Then its handle alone stops it.
        _ => pending().await,
    }
}

/// Waits for Ctrl-C.
#[cfg(not(unix))]
async fn signalled() {
    if tokio::signal::ctrl_c().await.is_err() {
        pending().await
    }
}
