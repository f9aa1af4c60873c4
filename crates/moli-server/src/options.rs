//! What a server is told when it starts.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use crate::{ApiKeys, ModelSpec, TlsFiles};

/// How a server listens and what it serves.
#[derive(Debug, Clone)]
pub struct ServerOptions {
    /// Where it listens. Port 0: any that is free. `127.0.0.1:8080`.
    pub address: SocketAddr,
    /// With what it speaks TLS there; `None`: it does not.
    pub tls: Option<TlsFiles>,
    /// A socket in the file system at which it listens too; `None`: there is none.
    pub unix: Option<PathBuf>,
    /// The rights of that socket's file.
    pub unix_mode: u32,
    /// A second address with `/health` and `/ready` alone, which a thread of its own serves: it answers even when everything
    /// else is busy.
    pub health: Option<SocketAddr>,
    /// The keys that requests need.
    pub keys: ApiKeys,
    /// Other machines may ask without a key, where there are none. Without it, an address that they reach is refused.
    pub allow_no_key: bool,
    /// `/metrics` needs no key.
    pub open_metrics: bool,
    /// Further names of this server, which a request's `Host` may be where there are no keys. `*`: any. Without them it is
    /// `localhost` or an address: one of this machine's own if it listens there, any if others reach it.
    pub allow_hosts: Vec<String>,
    /// Whose pages may call: `https://example.com`, or `*`: all. Its own may in any case.
    pub cors_origins: Vec<String>,
    /// What it serves. The first is the one of requests that name none, where their API allows that.
    pub models: Vec<ModelSpec>,
    /// Bytes of memory that all loaded models may take together; `None`: there is no limit, or none is known.
    pub memory: Option<u64>,
    /// A model that nobody has used for so long is unloaded; `None`: never.
    pub unload_after: Option<Duration>,
    /// Fields of a request that are unknown or not supported are named in the header `moli-ignored`, instead of being an
    /// error.
    pub lenient: bool,
    /// Most connections at a time; the next is closed at once. The health address has as many for itself.
    pub max_connections: usize,
    /// Most bytes of a request's head.
    pub max_head: usize,
    /// How long a request's head may take to arrive, a connection may be without requests, and TLS may take to begin.
    pub head_timeout: Duration,
    /// How long a client may read nothing of what it asked for.
    pub write_timeout: Duration,
    /// Most bytes of a request's body.
    pub max_body: usize,
    /// How long a request's body may take to arrive.
    pub body_timeout: Duration,
    /// How long answers that are under way may take to finish when the server is told to stop.
    pub grace: Duration,
    /// What is asked comes into the log: for finding mistakes, with everybody's knowledge.
    pub log_prompts: bool,
}

impl Default for ServerOptions {
    fn default() -> Self {
        Self {
            address: SocketAddr::from((Ipv4Addr::LOCALHOST, 8080)),
            tls: None,
            unix: None,
            unix_mode: 0o600,
            health: None,
            keys: ApiKeys::default(),
            allow_no_key: false,
            open_metrics: false,
            allow_hosts: Vec::new(),
            cors_origins: Vec::new(),
            models: Vec::new(),
            memory: None,
            unload_after: Some(Duration::from_secs(300)),
            lenient: false,
            max_connections: 1024,
            max_head: 64 << 10,
            head_timeout: Duration::from_secs(30),
            write_timeout: Duration::from_secs(60),
            max_body: 8 << 20,
            body_timeout: Duration::from_secs(30),
            grace: Duration::from_secs(30),
            log_prompts: false,
        }
    }
}
