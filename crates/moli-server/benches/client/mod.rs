//! The simplest client that can tell when a token came: it reads lines from a socket and looks at the clock.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use serde_json::json;

/// What became of a request.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) status: u16,
    /// From the connection to the head of the response.
    pub(crate) answered: Duration,
    /// When each event with text came, since the connection.
    pub(crate) events: Vec<Duration>,
    /// Tokens of the answer, where it has come to its end.
    pub(crate) tokens: Option<usize>,
}

/// Asks for a streamed answer.
pub(crate) fn ask(address: SocketAddr, prompt: &str, tokens: usize, seed: u64) -> std::io::Result<Outcome> {
    let body = json!({
        "model": "smollm2", "messages": [{"role": "user", "content": prompt}], "max_tokens": tokens, "seed": seed,
        "ignore_eos": true, "stream": true, "stream_options": {"include_usage": true},
    })
    .to_string();
    let start = Instant::now();
    let mut socket = TcpStream::connect(address)?;
    socket.set_read_timeout(Some(Duration::from_secs(60)))?;
    let length = body.len();
    let head = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n"
    );
    socket.write_all((head + &body).as_bytes())?;
    let mut lines = BufReader::new(socket).lines();
    let line = lines.next().transpose()?.unwrap_or_default();
    let status = line.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0);
    let mut outcome = Outcome { status, answered: start.elapsed(), events: Vec::new(), tokens: None };
    for line in lines {
        let line = line?;
        if line.contains("\"delta\":{\"content\":") {
            outcome.events.push(start.elapsed());
        } else if let Some((_, count)) = line.split_once("\"completion_tokens\":") {
            let digits = count.find(|c: char| !c.is_ascii_digit()).unwrap_or(count.len());
            outcome.tokens = count[..digits].parse().ok();
        }
    }
    Ok(outcome)
}

impl Outcome {
    /// Seconds between events with text, of which most tokens are one.
    pub(crate) fn gaps(&self) -> impl Iterator<Item = f64> + '_ {
        self.events.windows(2).map(|pair| (pair[1] - pair[0]).as_secs_f64())
    }
}

/// The value below which so much of all lies.
pub(crate) fn quantile(values: &mut [f64], part: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    let last = values.len().saturating_sub(1);
    values.get((last as f64 * part).round() as usize).copied().unwrap_or(f64::NAN)
}
