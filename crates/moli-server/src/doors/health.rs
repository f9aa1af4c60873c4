//! A door of its own for whoever looks after the server: it answers even while everything else is busy.

use std::net::TcpListener;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use hyper_util::server::graceful::GracefulShutdown;
use tokio::sync::oneshot;

use super::connection::{self, Limits};
use crate::app::{self, App};
use crate::error::ServerError;

/// A thread that serves `/health` and `/ready`, until this is dropped.
#[derive(Debug)]
pub(crate) struct HealthDoor {
    /// Dropped first, which tells the thread.
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl HealthDoor {
    /// # Errors
    /// [`ServerError::System`].
    pub(crate) fn open(listener: TcpListener, app: Arc<App>) -> Result<Self, ServerError> {
        listener.set_nonblocking(true)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let listener = {
            let _inside = runtime.enter();
            tokio::net::TcpListener::from_std(listener)?
        };
        // Its connections are counted by themselves.
        let limits = Limits::new(&app.options);
        let router = app::health_router(app);
        let (stop, stopped) = oneshot::channel();
        let serve = move || {
            runtime.block_on(async {
                let next = async || Ok(listener.accept().await?.0);
                let connections = GracefulShutdown::new();
                tokio::select! {
                    _ = stopped => {}
                    never = connection::accept(next, None, router, &limits, &connections) => match never {},
                }
            });
        };
        let thread = thread::Builder::new().name("moli-health".to_owned()).spawn(serve)?;
        Ok(Self { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for HealthDoor {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
