//! The options of `moli serve` about who may come in, and by which door.

use std::env;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use clap::Args;
use moli_server::{ApiKeys, ServerOptions, TlsFiles};

/// Keys, separated by commas: an argument would be seen by every user of the machine.
const KEYS: &str = "MOLI_API_KEY";

#[derive(Debug, Args)]
#[command(next_help_heading = "Doors")]
pub(crate) struct DoorArgs {
    /// Ask for one of the keys in this TOML file: [[key]] with name, key or sha256, and if wanted models and
    /// requests_per_minute; SIGHUP has it read again. MOLI_API_KEY has keys too, separated by commas
    #[arg(long, value_name = "FILE")]
    api_key_file: Option<PathBuf>,
    /// Listen where other machines can ask, without any key
    #[arg(long)]
    allow_no_key: bool,
    /// Let /metrics be read without a key
    #[arg(long)]
    open_metrics: bool,
    /// A further name that clients may call this server by, where there are no keys; *: any (repeatable)
    #[arg(long = "allow-host", value_name = "NAME")]
    allow_hosts: Vec<String>,
    /// Whose pages may call, such as https://example.com; *: anybody's (repeatable)
    #[arg(long = "cors-origin", value_name = "URL")]
    cors_origins: Vec<String>,
    /// Speak TLS with this certificate and those behind it, in PEM
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// The private key of the certificate, in PEM
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// Listen at a socket in the file system too
    #[arg(long, value_name = "PATH")]
    unix: Option<PathBuf>,
    /// The rights of that socket, in octal
    #[arg(long, value_name = "MODE", default_value = "600", value_parser = mode)]
    unix_mode: u32,
    /// Answer /health and /ready at a port of their own too, whatever else is busy
    #[arg(long, value_name = "PORT")]
    health_port: Option<u16>,
    /// Connections at a time; the next is closed at once
    #[arg(long, value_name = "N", default_value = "1024")]
    max_connections: usize,
    /// Seconds that a client may read nothing of its answer
    #[arg(long, value_name = "SECONDS", default_value = "60", value_parser = clap::value_parser!(u64).range(1..))]
    write_timeout: u64,
    /// Seconds that the body of a request may take to arrive
    #[arg(long, value_name = "SECONDS", default_value = "30", value_parser = clap::value_parser!(u64).range(1..))]
    body_timeout: u64,
}

/// Parses rights of a file.
fn mode(text: &str) -> Result<u32, String> {
    let mode = u32::from_str_radix(text, 8).ok().filter(|mode| *mode <= 0o777);
    mode.ok_or_else(|| "three octal digits are needed, such as 660".to_owned())
}

impl DoorArgs {
    /// The same for a server at this address.
    pub(crate) fn options(self, host: IpAddr) -> Result<ServerOptions> {
        let listed = env::var_os(KEYS).map(|keys| keys.to_string_lossy().into_owned());
        Ok(ServerOptions {
            keys: ApiKeys::read(self.api_key_file.as_deref(), listed.as_deref())?,
            allow_no_key: self.allow_no_key,
            open_metrics: self.open_metrics,
            allow_hosts: self.allow_hosts,
            cors_origins: self.cors_origins,
            tls: self.tls_cert.zip(self.tls_key).map(|(cert, key)| TlsFiles { cert, key }),
            unix: self.unix,
            unix_mode: self.unix_mode,
            health: self.health_port.map(|port| SocketAddr::new(host, port)),
            max_connections: self.max_connections,
            write_timeout: Duration::from_secs(self.write_timeout),
            body_timeout: Duration::from_secs(self.body_timeout),
            ..ServerOptions::default()
        })
    }
}
