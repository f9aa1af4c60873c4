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
    /// When each token came, since the connection; of a whole answer that has come to its end.
    pub(crate) tokens: Vec<Duration>,
    pub(crate) complete: bool,
}

/// Asks for a streamed answer.
pub(crate) fn ask(address: SocketAddr, prompt: &str, tokens: usize, seed: u64) -> std::io::Result<Outcome> {
    let body = json!({
        "model": "smollm2", "prompt": prompt, "max_tokens": tokens, "ignore_eos": true, "stream": true, "seed": seed,
        // Each token is an event, whatever its text.
        "logprobs": 0,
    })
    .to_string();
    let start = Instant::now();
    let mut socket = TcpStream::connect(address)?;
    socket.set_read_timeout(Some(Duration::from_secs(60)))?;
    let length = body.len();
    let head = format!(
        "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n"
    );
    socket.write_all((head + &body).as_bytes())?;
    let mut lines = BufReader::new(socket).lines();
    let line = lines.next().transpose()?.unwrap_or_default();
    let status = line.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0);
    let mut outcome = Outcome { status, answered: start.elapsed(), tokens: Vec::new(), complete: false };
    for line in lines {
        let line = line?;
        if line == "data: [DONE]" {
            outcome.complete = true;
        } else if line.starts_with("data: {") && !line.contains("\"finish_reason\":\"") {
            outcome.tokens.push(start.elapsed());
        }
    }
    Ok(outcome)
}

impl Outcome {
    /// Seconds between tokens.
    pub(crate) fn gaps(&self) -> impl Iterator<Item = f64> + '_ {
        self.tokens.windows(2).map(|pair| (pair[1] - pair[0]).as_secs_f64())
    }
}

/// The value below which so much of all lies.
pub(crate) fn quantile(values: &mut [f64], part: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    let last = values.len().saturating_sub(1);
    values.get((last as f64 * part).round() as usize).copied().unwrap_or(f64::NAN)
}
