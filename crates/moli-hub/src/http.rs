//! HTTP: redirects under our own rules, ranges, time limits for silence (none for length).

use std::io::{ErrorKind, Read};
use std::time::Duration;

use ureq::http::{HeaderMap, Response};
use ureq::{Agent, Body as UreqBody};

use crate::HubError;
use crate::fetch::{Body, Opened};

const MAX_REDIRECTS: usize = 10;
/// An answer that is read whole (a listing) has at most this many bytes.
const MAX_ANSWER: u64 = 16 << 20;
const PIECE: usize = 1 << 18;

/// A client. Its clones share their connections.
#[derive(Clone, Debug)]
pub(crate) struct Client(Agent);

/// What to ask.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Method {
    Get,
    Head,
}

impl Client {
    pub(crate) fn new() -> Self {
        let config = Agent::config_builder()
            .user_agent(concat!("moli/", env!("CARGO_PKG_VERSION")))
            .timeout_connect(Some(Duration::from_secs(15)))
            .timeout_recv_response(Some(Duration::from_secs(60)))
            .timeout_per_read(Some(Duration::from_secs(60)))
            .max_redirects(0)
            .max_redirects_will_error(false)
            .http_status_as_error(false)
            .build();
        Self(config.into())
    }

    /// Opens an address at an offset. The token goes to the address's own host alone.
    pub(crate) fn open(&self, url: &str, token: Option<&str>, offset: u64) -> Result<Opened, HubError> {
        let response = self.follow(Method::Get, url, token, offset)?;
        let headers = response.headers();
        let (start, total) = if response.status().as_u16() == 206 {
            content_range(headers).ok_or_else(|| {
                HubError::network(url, "a part of the file without its place (no Content-Range)")
            })?
        } else {
            (0, header(headers, "content-length").and_then(|n| n.parse().ok()))
        };
        let mut reader = response.into_body().into_reader();
        let url = url.to_owned();
        let body: Body = Box::new(move || {
            let mut piece = vec![0u8; PIECE];
            loop {
                match reader.read(&mut piece) {
                    Ok(0) => return Ok(None),
                    Ok(n) => {
                        piece.truncate(n);
                        return Ok(Some(piece));
                    }
                    Err(e) if e.kind() == ErrorKind::Interrupted => {}
                    Err(e) => return Err(HubError::network(&url, e.to_string())),
                }
            }
        });
        Ok(Opened { start, total, body })
    }

    /// Reads a short answer whole.
    pub(crate) fn get(&self, url: &str) -> Result<Vec<u8>, HubError> {
        let mut bytes = Vec::new();
        let response = self.follow(Method::Get, url, None, 0)?;
        let failed = |e: std::io::Error| HubError::network(url, e.to_string());
        response.into_body().into_reader().take(MAX_ANSWER + 1).read_to_end(&mut bytes).map_err(failed)?;
        if bytes.len() as u64 > MAX_ANSWER {
            return Err(HubError::network(url, "the answer is too long"));
        }
        Ok(bytes)
    }

    /// The headers of an address, and whether they are the file's own. A redirect that carries the file's metadata,
    /// or leads to another host, is the hub's own answer and is not followed.
    pub(crate) fn head(&self, url: &str, token: Option<&str>) -> Result<(bool, HeaderMap), HubError> {
        let response = self.follow(Method::Head, url, token, 0)?;
        Ok((response.status().is_success(), response.headers().clone()))
    }

    fn follow(
        &self,
        method: Method,
        first: &str,
        token: Option<&str>,
        offset: u64,
    ) -> Result<Response<UreqBody>, HubError> {
        let mut url = first.to_owned();
        for _ in 0..=MAX_REDIRECTS {
            let mut request = match method {
                Method::Get => self.0.get(&url),
                Method::Head => self.0.head(&url),
            }
            .header("accept-encoding", "identity");
            if let Some(token) = token
                && authority(&url) == authority(first)
            {
                request = request.header("authorization", format!("Bearer {token}"));
            }
            if offset > 0 {
                request = request.header("range", format!("bytes={offset}-"));
            }
            let response = request.call().map_err(|e| HubError::network(&url, e.to_string()))?;
            let status = response.status();
            if status.is_success() {
                return Ok(response);
            }
            let Some(location) =
                status.is_redirection().then(|| header(response.headers(), "location")).flatten()
            else {
                return Err(HubError::Network {
                    message: format!("HTTP {status}{}", hint(status.as_u16())),
                    url,
                    status: Some(status.as_u16()),
                });
            };
            let next = join(&url, &location)?;
            let linked = response.headers().contains_key("x-linked-etag");
            if method == Method::Head && (linked || authority(&next) != authority(&url)) {
                return Ok(response);
            }
            url = next;
        }
        Err(HubError::network(first, "too many redirects"))
    }
}

fn hint(status: u16) -> &'static str {
    if matches!(status, 401 | 403) { " (private or gated? a token may be needed)" } else { "" }
}

/// A header as text.
pub(crate) fn header(headers: &HeaderMap, name: &str) -> Option<String> {
    headers.get(name)?.to_str().ok().map(str::to_owned)
}

/// `Content-Range: bytes START-END/TOTAL` (RFC 9110, 14.4).
fn content_range(headers: &HeaderMap) -> Option<(u64, Option<u64>)> {
    let text = header(headers, "content-range")?;
    let (range, total) = text.strip_prefix("bytes ")?.split_once('/')?;
    Some((range.split_once('-')?.0.trim().parse().ok()?, total.trim().parse().ok()))
}

/// `scheme://host:port` of an absolute address.
fn authority(url: &str) -> &str {
    let start = url.find("://").map_or(0, |i| i + 3);
    let end = url.get(start..).and_then(|rest| rest.find(['/', '?', '#'])).map_or(url.len(), |i| start + i);
    url.get(..end).unwrap_or(url)
}

/// Where a redirect leads. Another scheme than `http` and `https`, and the step from `https` down to `http`, are
/// refused: the second would let anybody on the way choose the file.
fn join(base: &str, location: &str) -> Result<String, HubError> {
    let refused = |scheme: &str| HubError::network(base, format!("a redirect to {scheme}: is refused"));
    let base_scheme = base.split("://").next().unwrap_or_default();
    let target = match location.find(':') {
        Some(colon) if is_scheme(location.get(..colon).unwrap_or_default()) => location.to_owned(),
        _ if location.starts_with("//") => format!("{base_scheme}:{location}"),
        _ if location.starts_with('/') => format!("{}{location}", authority(base)),
        _ => {
            let path = base.split(['?', '#']).next().unwrap_or(base);
            let host = authority(base);
            let folder = match path.rfind('/') {
                Some(slash) if slash > host.len() => path.get(..=slash).unwrap_or(path).to_owned(),
                _ => format!("{host}/"),
            };
            format!("{folder}{location}")
        }
    };
    let scheme = target.split(':').next().unwrap_or_default().to_ascii_lowercase();
    match scheme.as_str() {
        "https" => Ok(target),
        "http" if base_scheme == "http" => Ok(target),
        other => Err(refused(other)),
    }
}

fn is_scheme(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.'))
}

/// Joins an endpoint and path segments, each percent-encoded (RFC 3986, 2.3).
pub(crate) fn address(endpoint: &str, segments: &[&str]) -> Result<String, HubError> {
    let error = |reason: &str| HubError::InvalidReference {
        reference: endpoint.to_owned(),
        reason: reason.to_owned(),
    };
    if !endpoint.starts_with("http://") && !endpoint.starts_with("https://") {
        return Err(error("an endpoint must start with http:// or https://"));
    }
    let mut url = endpoint.trim_end_matches('/').to_owned();
    for segment in segments {
        url.push('/');
        url += &encode(segment);
    }
    Ok(url)
}

/// Percent-encodes all but unreserved characters.
pub(crate) fn encode(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            encoded.push(char::from(byte));
        } else {
            encoded += &format!("%{byte:02X}");
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects_stay_with_http_and_never_lose_encryption() {
        assert_eq!(join("http://h/a/b?q", "c").unwrap(), "http://h/a/c");
        assert_eq!(join("http://h", "c").unwrap(), "http://h/c");
        assert_eq!(join("http://h:1/a/b", "/c").unwrap(), "http://h:1/c");
        assert_eq!(join("https://h/a", "//i/c").unwrap(), "https://i/c");
        assert_eq!(join("http://h/a", "https://i/c").unwrap(), "https://i/c");
        for (base, location) in [
            ("http://h/a", "file:///etc/passwd"),
            ("http://h/a", "ftp://h/a"),
            ("https://h/a", "http://h/a"),
            ("http://h/a", "javascript:1"),
        ] {
            assert!(
                matches!(join(base, location), Err(HubError::Network { message, .. }) if message.contains("refused"))
            );
        }
    }

    #[test]
    fn segments_are_encoded() {
        assert_eq!(address("http://h/", &["a b", "é#"]).unwrap(), "http://h/a%20b/%C3%A9%23");
        assert!(address("file:///x", &["a"]).is_err());
    }
}
