//! What no request may be: one that a web page talked a browser into, or one that a proxy might read in another way.

use std::net::IpAddr;
use std::sync::Arc;

use axum::Extension;
use axum::extract::{Request, State};
use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderValue, StatusCode, Version, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use tower_http::cors::{AllowHeaders, AllowMethods, Any, CorsLayer};

use crate::ServerOptions;
use crate::app::App;
use crate::error::{ApiError, ServerError};
use crate::respond;

/// How a request came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Door {
    Tcp,
    /// No browser comes this way.
    Unix,
}

/// Refuses what no request may be.
pub(crate) async fn keep(
    State(app): State<Arc<App>>,
    Extension(door): Extension<Door>,
    request: Request,
    next: Next,
) -> Response {
    match check(&app, door, &request) {
        Ok(()) => next.run(request).await,
        Err(error) => {
            let mut response = error.into_response();
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            response
        }
    }
}

fn check(app: &App, door: Door, request: &Request) -> Result<(), ApiError> {
    framing(request.headers())?;
    let host = host(request)?;
    if door == Door::Tcp && app.keys.current().is_empty() {
        let known = host.as_ref().is_none_or(|host| is_own(host.host(), &app.options));
        // A target with a host of its own makes the header one that nobody reads; it must not be a foreign one either.
        let header = request.headers().get(header::HOST).map(authority).transpose()?;
        if !known || !header.is_none_or(|header| is_own(header.host(), &app.options)) {
            let name = host.as_ref().map_or("", |host| host.host());
            let message =
                format!("{name:?} is not known as a name of this server; --allow-host {name} makes it one");
            return Err(ApiError::new(StatusCode::FORBIDDEN, "host_not_allowed", message));
        }
    }
    match request.headers().get(header::ORIGIN) {
        Some(origin) if !may_call(origin, host.as_ref(), &app.options) => {
            let shown: String = String::from_utf8_lossy(origin.as_bytes()).chars().take(120).collect();
            let message =
                format!("pages of {shown:?} may not call this server; --cors-origin {shown} allows it");
            Err(ApiError::new(StatusCode::FORBIDDEN, "origin_not_allowed", message))
        }
        _ => Ok(()),
    }
}

/// A body's length is said in one way. What contradicts itself was refused before; a coding that is not known here would be
/// read as something else by whoever knows it.
fn framing(headers: &HeaderMap) -> Result<(), ApiError> {
    let mut codings = headers.get_all(header::TRANSFER_ENCODING).iter();
    let chunked = codings.next().is_none_or(|coding| coding.as_bytes().eq_ignore_ascii_case(b"chunked"));
    if chunked && codings.next().is_none() {
        return Ok(());
    }
    Err(bad("bad_transfer_encoding", "transfer-encoding can be chunked, once, and nothing else"))
}

/// Whom a request is for; `None`: it does not say, as requests of HTTP/1.0 need not.
fn host(request: &Request) -> Result<Option<Authority>, ApiError> {
    let mut hosts = request.headers().get_all(header::HOST).iter();
    let host = hosts.next().map(authority).transpose()?;
    if hosts.next().is_some() {
        return Err(bad("bad_host", "there is more than one host"));
    }
    if host.is_none() && request.version() >= Version::HTTP_11 {
        return Err(bad("bad_host", "there is no host"));
    }
    match request.uri().authority() {
        Some(target) if target.as_str().contains('@') => Err(bad("bad_host", "the target has a user in it")),
        Some(target) => Ok(Some(target.clone())),
        None => Ok(host),
    }
}

fn authority(value: &HeaderValue) -> Result<Authority, ApiError> {
    let host = Authority::try_from(value.as_bytes()).ok().filter(|host| !host.as_str().contains('@'));
    host.ok_or_else(|| bad("bad_host", "the host is none"))
}

fn bad(code: &'static str, message: &str) -> ApiError {
    ApiError::new(StatusCode::BAD_REQUEST, code, message)
}

/// Whether a name is one of this server's own. A name that anybody can have, pointed at this machine, would make its pages
/// pages of this server; an address or `localhost` can't be had.
fn is_own(name: &str, options: &ServerOptions) -> bool {
    let name = name.strip_suffix('.').unwrap_or(name);
    let mut allowed = options.allow_hosts.iter();
    if name.eq_ignore_ascii_case("localhost")
        || allowed.any(|own| own == "*" || own.eq_ignore_ascii_case(name))
    {
        return true;
    }
    let bound = options.address.ip();
    let address = name.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    address.is_ok_and(|address| address.is_loopback() || address == bound || !bound.is_loopback())
}

/// Whether a page of this origin may call.
fn may_call(origin: &HeaderValue, host: Option<&Authority>, options: &ServerOptions) -> bool {
    let Ok(origin) = origin.to_str() else { return false };
    let mut allowed = options.cors_origins.iter();
    let own = origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://"));
    allowed.any(|known| known == "*" || known.eq_ignore_ascii_case(origin))
        || host.zip(own).is_some_and(|(host, own)| own.eq_ignore_ascii_case(host.as_str()))
}

/// Tells browsers what pages of other origins may do.
///
/// # Errors
/// [`ServerError::Origin`] for what is no origin.
pub(crate) fn cors(origins: &[String]) -> Result<CorsLayer, ServerError> {
    let cors = CorsLayer::new()
        .allow_methods(AllowMethods::mirror_request())
        .allow_headers(AllowHeaders::mirror_request())
        .expose_headers([header::RETRY_AFTER, respond::IGNORED]);
    if origins.iter().any(|origin| origin == "*") {
        return Ok(cors.allow_origin(Any).allow_private_network(true));
    }
    let origins = origins.iter().map(|origin| {
        let rest = origin.split_once("://").map(|(_, rest)| rest);
        let value = HeaderValue::from_str(origin).ok();
        value
            .filter(|_| rest.is_some_and(|rest| !rest.is_empty() && !rest.contains('/')))
            .ok_or_else(|| ServerError::Origin { origin: origin.clone() })
    });
    let origins: Vec<HeaderValue> = origins.collect::<Result<_, _>>()?;
    let any = !origins.is_empty();
    Ok(cors.allow_origin(origins).allow_private_network(any))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(address: &str, hosts: &[&str]) -> ServerOptions {
        let allow_hosts = hosts.iter().map(|&host| host.to_owned()).collect();
        ServerOptions { address: address.parse().unwrap(), allow_hosts, ..ServerOptions::default() }
    }

    #[test]
    fn names_that_are_this_servers_own() {
        let own = |name: &str, options: &ServerOptions| is_own(name, options);
        let here = options("127.0.0.1:1", &["box.lan"]);
        for name in
            ["localhost", "LOCALHOST", "localhost.", "127.0.0.1", "127.9.9.9", "[::1]", "box.lan", "BOX.lan"]
        {
            assert!(own(name, &here), "{name}");
        }
        for name in [
            "",
            "evil.example",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "192.168.1.2",
            "0.0.0.0",
            "[::2]",
        ] {
            assert!(!own(name, &here), "{name}");
        }
        let there = options("0.0.0.0:1", &[]);
        assert!(own("192.168.1.2", &there) && !own("evil.example", &there));
        assert!(own("evil.example", &options("0.0.0.0:1", &["*"])));
    }

    #[test]
    fn what_is_no_origin() {
        for origin in ["", "example.com", "https://", "https://a/b", "https://a/", "a\nb://c"] {
            assert!(matches!(cors(&[origin.to_owned()]), Err(ServerError::Origin { .. })), "{origin:?}");
        }
        assert!(
            cors(&["https://a.example:444".to_owned(), "tauri://localhost".to_owned(), "*".to_owned()])
                .is_ok()
        );
    }
}
