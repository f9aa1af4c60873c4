//! Requests that a proxy and a server might read in two ways, so that one hides in another. Each is refused, or read in the one way
//! that RFC 9112 allows; never are there two answers to what is one request.
#![allow(clippy::unwrap_used, clippy::panic, clippy::result_large_err, reason = "a test fails by panicking")]

mod common;

use std::sync::OnceLock;
use std::time::Duration;

use common::Running;

/// What a hidden request would ask for, and nobody else asks for.
const HIDDEN: &str = "GET /hidden HTTP/1.1\r\nhost: localhost\r\n\r\n";

fn send(bytes: &str) -> String {
    static SERVER: OnceLock<Running> = OnceLock::new();
    let server = SERVER.get_or_init(Running::start);
    server.raw(bytes.as_bytes(), Duration::from_millis(400))
}

/// The statuses of what came back, and whether the connection was closed by the word.
fn statuses(text: &str) -> Vec<u16> {
    text.match_indices("HTTP/1.1 ").map(|(at, _)| text[at + 9..at + 12].parse().unwrap()).collect()
}

fn post(lines: &str, body: &str) -> String {
    format!("POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\n{lines}\r\n{body}")
}

/// One answer with this status, and the connection is closed: what comes behind is not looked at.
#[track_caller]
fn closes(status: u16, request: &str) {
    let text = send(&format!("{request}{HIDDEN}"));
    assert_eq!(statuses(&text), [status], "{request:?}: {text}");
    assert!(!text.contains("/hidden"), "{text}");
}

#[test]
fn two_requests_in_a_row_have_two_answers() {
    // What the others are measured by: the hidden request is answered where it is not hidden.
    let text = send(&format!("{}{HIDDEN}", post("content-length: 2\r\n", "{}")));
    assert_eq!(statuses(&text), [400, 404], "{text}");
    let text = send(&format!("{}{HIDDEN}", post("transfer-encoding: chunked\r\n", "2\r\n{}\r\n0\r\n\r\n")));
    assert_eq!(statuses(&text), [400, 404], "{text}");
}

#[test]
fn a_length_and_chunks() {
    let lines = ["content-length: 4\r\n", "transfer-encoding: chunked\r\n"];
    for (first, second) in [(lines[0], lines[1]), (lines[1], lines[0])] {
        // Chunks count, and nothing behind them.
        closes(400, &post(&format!("{first}{second}"), "2\r\n{}\r\n0\r\n\r\n"));
        closes(400, &post(&format!("{first}{second}"), "0\r\n\r\n"));
    }
    closes(400, &post("content-length: 4\r\ntransfer-encoding: identity\r\n", "{}  "));
}

#[test]
fn lengths_that_contradict_each_other_or_are_none() {
    for lines in [
        "content-length: 2\r\ncontent-length: 50\r\n",
        "content-length: 2, 50\r\n",
        "content-length: 2, 2\r\n",
        "content-length: +2\r\n",
        "content-length: -2\r\n",
        "content-length: 2 0\r\n",
        "content-length: 0x2\r\n",
        "content-length: 2.0\r\n",
        "content-length: 2;\r\n",
        "content-length: \r\n",
        "content-length: \u{0662}\r\n",
        "content-length: 99999999999999999999\r\n",
        "content-length : 2\r\n",
        " content-length: 2\r\n",
    ] {
        closes(400, &post(lines, "{}"));
    }
    // The same length twice is that length, and space around it is none of it.
    for lines in [
        "content-length: 2\r\ncontent-length: 2\r\n",
        "content-length:  2 \r\n",
        "content-length:\t2\r\n",
        "content-length: 002\r\n",
    ] {
        assert_eq!(statuses(&send(&format!("{}{HIDDEN}", post(lines, "{}")))), [400, 404], "{lines}");
    }
}

#[test]
fn codings_that_are_odd() {
    for coding in [
        "xchunked",
        "chunkedx",
        "chunked, identity",
        "identity",
        "gzip",
        "gzip, chunked",
        "chunked, chunked",
        ", chunked",
        "chunked,",
        "chunked;q=1",
        "\"chunked\"",
        "chun\u{212a}ed",
        "\u{b}chunked",
        "",
    ] {
        closes(400, &post(&format!("transfer-encoding: {coding}\r\n"), "2\r\n{}\r\n0\r\n\r\n"));
    }
    for lines in [
        "transfer-encoding: chunked\r\ntransfer-encoding: identity\r\n",
        "transfer-encoding: identity\r\ntransfer-encoding: chunked\r\n",
        "transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n",
        "transfer-encoding : chunked\r\n",
        "transfer-encoding\t: chunked\r\n",
        "x: y\r\n transfer-encoding: chunked\r\n",
        "transfer-encoding:\r\n chunked\r\n",
        "transfer\u{e9}encoding: chunked\r\n",
    ] {
        closes(400, &post(lines, "2\r\n{}\r\n0\r\n\r\n"));
    }
    // Case does not matter, nor does space around it.
    for coding in ["Chunked", "CHUNKED", "  chunked  ", "\tchunked"] {
        let text = send(&format!(
            "{}{HIDDEN}",
            post(&format!("transfer-encoding: {coding}\r\n"), "2\r\n{}\r\n0\r\n\r\n")
        ));
        assert_eq!(statuses(&text), [400, 404], "{coding:?}: {text}");
    }
    // HTTP/1.0 has no chunks.
    let old = send(&format!(
        "POST /v1/chat/completions HTTP/1.0\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n{HIDDEN}"
    ));
    assert!(old.starts_with("HTTP/1.") && old[9..].starts_with("400") && !old.contains("/hidden"), "{old}");
}

#[test]
fn chunks_that_are_odd() {
    for chunks in [
        "-2\r\n{}\r\n0\r\n\r\n",
        "+2\r\n{}\r\n0\r\n\r\n",
        "0x2\r\n{}\r\n0\r\n\r\n",
        "2g\r\n{}\r\n0\r\n\r\n",
        "\r\n{}\r\n0\r\n\r\n",
        "10000000000000002\r\n{}\r\n0\r\n\r\n",
        "2\r\n{}xx0\r\n\r\n",
        "2\r\n{}0\r\n\r\n",
        "2\n{}\n0\n\n",
        "2\r{}\r\n0\r\n\r\n",
        "2;a\nb\r\n{}\r\n0\r\n\r\n",
        "1\r\n{}\r\n0\r\n\r\n",
        " 2\r\n{}\r\n0\r\n\r\n",
        "2\r\n{}\r\n0\r\nx\r\n\r\n",
    ] {
        closes(400, &post("transfer-encoding: chunked\r\n", chunks));
    }
    // A chunk of 2^64 - 1 bytes is one, whose end is waited for until the time for a body is over.
    let text = send(&format!(
        "{}{HIDDEN}",
        post("transfer-encoding: chunked\r\n", "ffffffffffffffff\r\n{}\r\n0\r\n\r\n")
    ));
    assert_eq!(text, "");
    // What a chunk has besides its size is passed over, and so are fields behind the last.
    for chunks in ["2;a=b\r\n{}\r\n0\r\n\r\n", "002\r\n{}\r\n000\r\n\r\n", "2\r\n{}\r\n0\r\nx: y\r\n\r\n"] {
        let text = send(&format!("{}{HIDDEN}", post("transfer-encoding: chunked\r\n", chunks)));
        assert_eq!(statuses(&text), [400, 404], "{chunks:?}: {text}");
    }
}

#[test]
fn a_request_behind_a_body_that_nobody_reads() {
    // A body belongs to its request, whatever the method and the path.
    let length = HIDDEN.len();
    for (method, path, status) in [
        ("GET", "/health", 200),
        ("HEAD", "/health", 200),
        ("DELETE", "/health", 405),
        ("GET", "/nowhere", 404),
    ] {
        let text = send(&format!(
            "{method} {path} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {length}\r\n\r\n{HIDDEN}"
        ));
        assert_eq!(statuses(&text), [status], "{method} {path}: {text}");
        assert!(!text.contains("/hidden"), "{text}");
    }
    // A body that is not read to its end has the connection closed, not the rest taken for a request.
    let text = send(&format!("{}{HIDDEN}", post("content-length: 99999999\r\n", "{}")));
    assert_eq!(statuses(&text), [413], "{text}");
}

#[test]
fn heads_that_are_no_heads() {
    for request in [
        "GET /health HTTP/1.1\r\nhost: localhost\r\nx: a\0b\r\n\r\n",
        "GET /health HTTP/1.1\r\nhost: localhost\r\nx\0: y\r\n\r\n",
        "GET /health HTTP/1.1\r\nhost: localhost\r\nx: a\rb\r\n\r\n",
        "GET /health HTTP/1.1\r\nhost: localhost\r\nx: a\r\n b\r\n\r\n",
        "GET /health HTTP/1.1\r\nhost: localhost\r\nx: a\r\n\tb\r\n\r\n",
        "GET /health HTTP/1.1\r\nhost: localhost\r\nno colon\r\n\r\n",
        "GET /health HTTP/1.1\r\nhost: localhost\r\n: y\r\n\r\n",
        "GET /health HTTP/1.1\r\nhost: localhost\r\nx y: z\r\n\r\n",
        "GET /health HTTP/1.1\r\n host: localhost\r\n\r\n",
        "GET  /health HTTP/1.1\r\nhost: localhost\r\n\r\n",
        "GET /health  HTTP/1.1\r\nhost: localhost\r\n\r\n",
        "GET /health HTTP/1.1 \r\nhost: localhost\r\n\r\n",
        "GET /he\0alth HTTP/1.1\r\nhost: localhost\r\n\r\n",
        "GET /health\r\nhost: localhost\r\n\r\n",
        "GET\t/health\tHTTP/1.1\r\nhost: localhost\r\n\r\n",
    ] {
        closes(400, request);
    }
    // A line may end in a line feed alone, and then all of them do, to every reader of the RFC.
    let text = send("GET /health HTTP/1.1\nhost: localhost\nconnection: close\n\n");
    assert_eq!(statuses(&text), [200], "{text}");
}
