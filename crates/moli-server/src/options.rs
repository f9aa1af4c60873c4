//! What a server is told when it starts.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use crate::ModelSpec;

/// How a server listens and what it serves.
#[derive(Debug, Clone)]
pub struct ServerOptions {
    /// Where it listens. Port 0: any that is free. `127.0.0.1:8080`.
    pub address: SocketAddr,
    /// What it serves. The first is the one of requests that name none, where their API allows that.
    pub models: Vec<ModelSpec>,
    /// Bytes of memory that all loaded models may take together; `None`: there is no limit, or none is known.
    pub memory: Option<u64>,
    /// A model that nobody has used for so long is unloaded; `None`: never.
    pub unload_after: Option<Duration>,
    /// Fields of a request that are unknown or not supported are named in the header `moli-ignored`, instead of being an
    /// error.
    pub lenient: bool,
    /// Most bytes of a request's body.
    pub max_body: usize,
    /// How long a request's body may take to arrive.
    pub body_timeout: Duration,
    /// How long answers that are under way may take to finish when the server is told to stop.
    pub grace: Duration,
}

impl Default for ServerOptions {
    fn default() -> Self {
        Self {
            address: SocketAddr::from((Ipv4Addr::LOCALHOST, 8080)),
            models: Vec::new(),
            memory: None,
            unload_after: Some(Duration::from_secs(300)),
            lenient: false,
            max_body: 8 << 20,
            body_timeout: Duration::from_secs(30),
            grace: Duration::from_secs(30),
        }
    }
}
