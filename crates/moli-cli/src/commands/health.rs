//! `moli health`.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::Args;

use crate::cli::Exit;

/// Ask a server that runs whether it takes work: for supervisors in places where there is no other client
#[derive(Debug, Args)]
pub(crate) struct Health {
    /// Where it listens without TLS; its --health-port does
    #[arg(value_name = "ADDRESS", default_value = "127.0.0.1:8080")]
    address: SocketAddr,
}

/// How long each step may take.
const TIMEOUT: Duration = Duration::from_secs(3);
/// Most bytes of an answer that are read; more come from something else.
const MOST: u64 = 4096;

impl Health {
    pub(crate) fn run(self) -> Result<Exit> {
        let address = self.address;
        let answer = ask(address).with_context(|| format!("cannot ask the server at {address}"))?;
        let answer = String::from_utf8_lossy(&answer);
        let status = answer.lines().next().unwrap_or_default();
        if status.split(' ').nth(1) != Some("200") {
            bail!("the server at {address} takes no work: {status:?}");
        }
        Ok(Exit::Done)
    }
}

fn ask(address: SocketAddr) -> std::io::Result<Vec<u8>> {
    let mut socket = TcpStream::connect_timeout(&address, TIMEOUT)?;
    socket.set_read_timeout(Some(TIMEOUT))?;
    socket.set_write_timeout(Some(TIMEOUT))?;
    write!(socket, "GET /ready HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    socket.take(MOST).read_to_end(&mut answer)?;
    Ok(answer)
}
