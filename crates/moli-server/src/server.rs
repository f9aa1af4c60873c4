//! Sockets: taking connections, and letting go of them.

use std::convert::Infallible;
use std::future::pending;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use axum::{Extension, Router};
use hyper_util::server::graceful::GracefulShutdown;
use tokio::sync::Notify;
use tokio::time::{interval, sleep, timeout};
use tokio_rustls::TlsAcceptor;

use crate::app::{self, App};
use crate::doors::connection::{self, Limits};
use crate::doors::gate::Door;
use crate::doors::health::HealthDoor;
use crate::doors::keys::Keyring;
use crate::doors::unix::UnixDoor;
use crate::error::ServerError;
use crate::{KeyError, ServerOptions, TlsFiles};

/// Threads that serve connections: little is done on them, and the cores are for the models.
const WORKERS: usize = 1;
/// How often what is under way is looked at while the server stops.
const POLL: Duration = Duration::from_millis(20);
/// How often, at least, it is looked whether a model is to be unloaded.
const MOST_POLL: Duration = Duration::from_secs(1);
/// How long connections may take to end after their answers have.
const CLOSING: Duration = Duration::from_secs(2);

/// A server that listens.
pub struct Server {
    app: Arc<App>,
    router: Router,
    listener: TcpListener,
    address: SocketAddr,
    tls: Option<TlsAcceptor>,
    unix: Option<UnixDoor>,
    health: Option<(TcpListener, SocketAddr)>,
    stop: Arc<Notify>,
}

/// Tells a server to stop, from any thread.
#[derive(Debug, Clone)]
pub struct Handle {
    stop: Arc<Notify>,
    keys: Arc<Keyring>,
}

impl Handle {
    /// Has it take no new work, finish what is under way within its grace, and end. Called again, it does not wait.
    pub fn stop(&self) {
        self.stop.notify_one();
    }

    /// Reads the file of keys again, as SIGHUP does on Unix. Where that fails, the keys stay as they are.
    ///
    /// # Errors
    /// What is wrong with the file.
    pub fn reload_keys(&self) -> Result<(), KeyError> {
        self.keys.reload()
    }
}

impl Server {
    /// Opens the sockets; clients can connect from now on, and wait until it runs.
    ///
    /// # Errors
    /// [`ServerError::Bind`], [`ServerError::Unix`], [`ServerError::PublicWithoutKeys`], [`ServerError::Keys`],
    /// [`ServerError::Tls`], [`ServerError::Origin`], [`ServerError::DuplicateModel`].
    pub fn bind(options: ServerOptions) -> Result<Self, ServerError> {
        let address = options.address;
        if !address.ip().to_canonical().is_loopback() && options.keys.is_empty() && !options.allow_no_key {
            return Err(ServerError::PublicWithoutKeys { address });
        }
        let tls = options.tls.as_ref().map(TlsFiles::acceptor).transpose()?;
        let (listener, address) = listen(address)?;
        let health = options.health.map(listen).transpose()?;
        let unix = options.unix.as_deref().map(|path| UnixDoor::bind(path, options.unix_mode)).transpose()?;
        let app = Arc::new(App::new(options)?);
        let router = app::router(&app)?;
        Ok(Self { app, router, listener, address, tls, unix, health, stop: Arc::default() })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where it says that it lives, if that has an address of its own.
    pub fn health_address(&self) -> Option<SocketAddr> {
        self.health.as_ref().map(|(_, address)| *address)
    }

    /// What stops it.
    pub fn handle(&self) -> Handle {
        Handle { stop: Arc::clone(&self.stop), keys: Arc::clone(&self.app.keys) }
    }

    /// Serves until it is told to stop, by its [`handle`](Self::handle) or, on Unix, by SIGTERM or SIGINT.
    ///
    /// # Errors
    /// [`ServerError::Model`] for a model that has to be there and can't be loaded, [`ServerError::System`].
    pub fn run(mut self) -> Result<(), ServerError> {
        let health =
            self.health.take().map(|(listener, _)| HealthDoor::open(listener, Arc::clone(&self.app)));
        let _health = health.transpose()?;
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
        let Self { app, router, listener, tls, unix, stop, .. } = self;
        // Before anybody is served: who is told to stop then stops.
        let told = Told::new(&stop);
        listener.set_nonblocking(true)?;
        let listener = tokio::net::TcpListener::from_std(listener)?;
        let connections = GracefulShutdown::new();
        let tcp = async || {
            let (stream, _) = listener.accept().await?;
            // A token is a small packet, and nobody should wait for the next.
            let _ = stream.set_nodelay(true);
            Ok(stream)
        };
        let through = |door| router.clone().layer(Extension(door));
        let tcp = connection::accept(tcp, tls, through(Door::Tcp), &app.limits, &connections);
        let outcome = tokio::select! {
            outcome = live(&app, told) => outcome,
            never = tcp => match never {},
            failed = accept_unix(unix.as_ref(), through(Door::Unix), &app.limits, &connections) => failed,
            never = reload_keys(&app.keys) => match never {},
        };
        drop((listener, unix));
        // What was answered is still on its way.
        let _ = timeout(CLOSING, connections.shutdown()).await;
        outcome
    }
}

/// Opens a socket.
fn listen(address: SocketAddr) -> Result<(TcpListener, SocketAddr), ServerError> {
    let failed = |source| ServerError::Bind { address, source };
    let listener = TcpListener::bind(address).map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    Ok((listener, address))
}

/// Takes connections of the socket in the file system, for ever.
#[cfg(unix)]
async fn accept_unix(
    door: Option<&UnixDoor>,
    router: Router,
    limits: &Limits,
    connections: &GracefulShutdown,
) -> Result<(), ServerError> {
    let Some(door) = door else { return pending().await };
    let listener = door.listener()?;
    let next = async || Ok(listener.accept().await?.0);
    match connection::accept(next, None, router, limits, connections).await {}
}

#[cfg(not(unix))]
async fn accept_unix(
    _: Option<&UnixDoor>,
    _: Router,
    _: &Limits,
    _: &GracefulShutdown,
) -> Result<(), ServerError> {
    pending().await
}

/// Reads the file of keys again whenever SIGHUP asks for it, for ever.
#[cfg(unix)]
async fn reload_keys(keys: &Keyring) -> Infallible {
    use tokio::signal::unix::{SignalKind, signal};
    // Without a file it ends the process, as it does others.
    let hangup = keys.current().has_file().then(|| signal(SignalKind::hangup()));
    let Some(Ok(mut hangup)) = hangup else { return pending().await };
    while hangup.recv().await.is_some() {
        match keys.reload() {
            Ok(()) => tracing::info!("the keys were read again"),
            Err(error) => tracing::error!("the keys stay as they are: {error}"),
        }
    }
    pending().await
}

#[cfg(not(unix))]
async fn reload_keys(_: &Keyring) -> Infallible {
    pending().await
}

/// From the start until nobody is served any more.
async fn live(app: &App, mut told: Told<'_>) -> Result<(), ServerError> {
    tokio::select! {
        loaded = load_kept(app) => loaded?,
        () = told.again() => return Ok(()),
    }
    tokio::select! {
        () = told.again() => {}
        () = unload_idle(app) => {}
    }
    app.drain();
    tokio::select! {
        () = unused(app, app.options.grace) => {}
        () = told.again() => {}
    }
    app.stop.cancel();
    unused(app, CLOSING).await;
    Ok(())
}

/// Loads the models that stay, beside the first connections: `/health` answers meanwhile.
async fn load_kept(app: &App) -> Result<(), ServerError> {
    for slot in app.models.all().iter().filter(|slot| slot.spec.keep) {
        let loaded = app.models.lease(slot).await;
        loaded.map_err(|source| ServerError::Model {
            name: slot.spec.name.clone(),
            source: Box::new(source),
        })?;
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

/// What tells it to stop. A signal counts from the moment this is made on, between two waits too.
struct Told<'a> {
    stop: &'a Notify,
    /// SIGTERM and SIGINT; without them its handle alone stops it.
    #[cfg(unix)]
    signals: Option<[tokio::signal::unix::Signal; 2]>,
}

impl<'a> Told<'a> {
    fn new(stop: &'a Notify) -> Self {
        Self {
            stop,
            #[cfg(unix)]
            signals: {
                use tokio::signal::unix::{SignalKind, signal};
                match (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) {
                    (Ok(terminate), Ok(interrupt)) => Some([terminate, interrupt]),
                    _ => None,
                }
            },
        }
    }

    /// Waits to be told once more.
    async fn again(&mut self) {
        let stop = self.stop.notified();
        tokio::select! {
            () = stop => {}
            () = self.signalled() => {}
        }
    }

    #[cfg(unix)]
    async fn signalled(&mut self) {
        let Some([terminate, interrupt]) = &mut self.signals else { return pending().await };
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    }

    #[cfg(not(unix))]
    async fn signalled(&mut self) {
        if tokio::signal::ctrl_c().await.is_err() {
            pending().await
        }
    }
}
