//! Requests that are wrong on purpose. Each is refused in under a second, and leaves no memory behind.
#![allow(clippy::unwrap_used, clippy::panic, clippy::result_large_err, reason = "a test fails by panicking")]

mod common;

use std::fmt::Write as _;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use common::{Reply, Running};
use serde_json::{Value, json};

const CHAT: &str = "/v1/chat/completions";
/// How often each is sent.
const TIMES: usize = 8;
/// Resident bytes that all of them may leave. Each thread's part of the allocator keeps what a body of 8 MiB took, once.
const LEFT: u64 = 24 << 20;

fn server() -> &'static Running {
    static SERVER: OnceLock<Running> = OnceLock::new();
    SERVER.get_or_init(Running::start)
}

/// One test at a time: the memory is everybody's.
fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    server();
    turn
}

/// A request with these fields changed, as text.
fn with(extra: &str) -> String {
    format!(
        r#"{{"model": "tiny", "max_tokens": 4, "messages": [{{"role": "user", "content": "hm"}}], {extra}}}"#
    )
}

/// Bytes of this process that are in memory; `None`: the system does not say.
fn resident() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(line.trim().trim_end_matches(" kB").parse::<u64>().ok()? << 10)
}

/// Has a request sent several times: it is always refused with the same status, at once, and leaves nothing behind.
#[track_caller]
fn refused(what: &str, status: u16, send: impl Fn() -> Reply) -> Reply {
    let server = server();
    let before = resident();
    let mut last = None;
    for _ in 0..TIMES {
        let start = Instant::now();
        let reply = send();
        let took = start.elapsed();
        assert_eq!(reply.status, status, "{what}: {}", reply.text);
        assert!(took < Duration::from_secs(1), "{what} took {took:?}");
        last = Some(reply);
    }
    if let (Some(before), Some(after)) = (before, resident()) {
        let left = after.saturating_sub(before);
        assert!(left < LEFT, "{what} left {left} bytes");
    }
    assert_eq!(server.get("/health").status, 200);
    last.unwrap()
}

#[track_caller]
fn bad(what: &str, body: &[u8]) -> Value {
    refused(what, 400, || server().post_bytes(CHAT, body)).json()
}

#[test]
fn nesting_of_a_hundred_thousand() {
    let _turn = turn();
    for (open, close) in [("[", "]"), ("{\"a\":", "}")] {
        let deep = open.repeat(100_000) + "1" + &close.repeat(100_000);
        bad("alone", deep.as_bytes());
        bad("in an unknown field", with(&format!("\"x\": {deep}")).as_bytes());
        bad("in the metadata", with(&format!("\"metadata\": {{\"a\": {deep}}}")).as_bytes());
        bad("in a schema", with(&format!(
            r#""response_format": {{"type": "json_schema", "json_schema": {{"schema": {{"a": {deep}}}}}}}"#
        )).as_bytes());
    }
    bad("without an end", "[".repeat(4 << 20).as_bytes());
}

#[test]
fn numbers_that_are_none() {
    let _turn = turn();
    for number in ["NaN", "Infinity", "-Infinity", "1e999", "-1e999", "0x10", "01", "1.", "+1", "1e", "--1"] {
        bad(number, with(&format!("\"temperature\": {number}")).as_bytes());
    }
    bad("1e39 as a float of 32 bits", with("\"temperature\": 1e39").as_bytes());
    bad("a bias of 1e39", with("\"logit_bias\": {\"5\": 1e39}").as_bytes());
}

#[test]
fn numbers_that_are_too_large() {
    let _turn = turn();
    for (field, number) in [
        ("max_tokens", "18446744073709551616"),
        ("max_tokens", "-1"),
        ("max_tokens", "1e3"),
        ("seed", "9223372036854775808"),
        ("seed", "1e99"),
        ("n", "1000000"),
        ("n", "0"),
        ("n", "18446744073709551615"),
        ("top_k", "-1"),
        ("priority", "99999999999"),
        ("deadline_ms", "-1"),
        ("repeat_last_n", "-2"),
        ("repeat_last_n", "1e400"),
    ] {
        let error =
            bad(field, with(&format!("\"{field}\": {number}")).replace("\"max_tokens\": 4, ", "").as_bytes());
        assert_eq!(error["error"]["param"], field, "{number}: {error}");
    }
    let error = bad("top_logprobs", with("\"logprobs\": true, \"top_logprobs\": 1000000").as_bytes());
    assert_eq!(error["error"]["param"], "top_logprobs");
}

#[test]
fn numbers_that_are_large_and_meant() {
    let _turn = turn();
    // As many tokens as there is room for, and any number is a seed.
    let body = with("\"seed\": -9223372036854775808, \"deadline_ms\": 50");
    let body = body.replace("\"max_tokens\": 4", "\"max_tokens\": 18446744073709551615");
    assert_eq!(server().post_bytes(CHAT, body.as_bytes()).status, 200);
}

#[test]
fn text_that_is_no_utf8() {
    let _turn = turn();
    for bytes in [&b"\xff"[..], b"\xc0\x80", b"\xed\xa0\x80", b"\xf5\x80\x80\x80"] {
        let (before, after) = (with("\"user\": \""), "\"}");
        let before = before.strip_suffix('}').unwrap();
        bad("bytes", &[before.as_bytes(), bytes, after.as_bytes()].concat());
    }
    bad("half of a pair", with(r#""user": "\ud800""#).as_bytes());
    bad("UTF-16", &with("\"user\": \"x\"").encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<u8>>());
}

#[test]
fn bodies_that_are_none() {
    let _turn = turn();
    for body in ["", " ", "null", "[]", "1", "\"x\"", "{", "{}", "{\"model\"", "{} {}", "\u{feff}{}", "x"] {
        bad(body, body.as_bytes());
    }
    bad("two of them", (with("\"n\": 1") + "{}").as_bytes());
    bad("NUL at the end", (with("\"n\": 1") + "\0").as_bytes());
}

#[test]
fn types_that_are_wrong() {
    let _turn = turn();
    for (field, value) in [
        ("model", "1"),
        ("messages", "\"hm\""),
        ("messages", "{}"),
        ("messages", "[1]"),
        ("messages", "[{}]"),
        ("messages", "[{\"role\": \"king\", \"content\": \"hm\"}]"),
        ("messages", "[{\"role\": \"user\", \"content\": 1}]"),
        ("messages", "[{\"role\": \"user\", \"content\": [{\"type\": \"image_url\"}]}]"),
        ("temperature", "\"hot\""),
        ("temperature", "[]"),
        ("n", "1.5"),
        ("n", "true"),
        ("stream", "1"),
        ("stop", "1"),
        ("stop", "[1]"),
        ("logit_bias", "[]"),
        ("logit_bias", "{\"5\": \"x\"}"),
        ("tools", "{}"),
        ("tools", "[1]"),
        ("response_format", "\"json\""),
        ("response_format", "{\"type\": \"xml\"}"),
        ("metadata", "[]"),
    ] {
        let error =
            bad(field, format!("{{\"model\": \"tiny\", \"messages\": [], \"{field}\": {value}}}").as_bytes());
        // Two fields of a name are an error too, which names the field as well.
        assert!(error["error"]["message"].as_str().unwrap().contains(field), "{field}: {error}");
    }
}

#[test]
fn tokens_that_the_vocabulary_has_not() {
    let _turn = turn();
    for id in ["259", "4294967295", "4294967296", "-1", "x", "", " 5", "5.0", "１"] {
        bad(id, with(&format!("\"logit_bias\": {{\"{id}\": 1}}")).as_bytes());
    }
}

#[test]
fn lists_without_an_end() {
    let _turn = turn();
    let stops = vec!["\"a\""; 500_000].join(",");
    let error = bad("500,000 stop strings", with(&format!("\"stop\": [{stops}]")).as_bytes());
    assert_eq!(error["error"]["param"], "stop");
    let mut biases = String::new();
    (0..100_000).for_each(|id| write!(biases, ",\"{id}\": 1").unwrap());
    let error = bad("a bias for 100,000", with(&format!("\"logit_bias\": {{{}}}", &biases[1..])).as_bytes());
    assert_eq!(error["error"]["param"], "logit_bias");
    let messages = vec!["{\"role\": \"user\", \"content\": \"hm\"}"; 10_000].join(",");
    bad("10,000 messages", format!("{{\"model\": \"tiny\", \"messages\": [{messages}]}}").as_bytes());
    let mut fields = String::new();
    (0..100_000).for_each(|id| write!(fields, ",\"f{id}\": 1").unwrap());
    bad("100,000 unknown fields", with(&fields[1..]).as_bytes());
}

#[test]
fn a_prompt_over_the_context() {
    let _turn = turn();
    let error = bad(
        "letters",
        json!({"model": "tiny", "messages": [{"role": "user", "content": "a".repeat(131_072)}]})
            .to_string()
            .as_bytes(),
    );
    assert_eq!(error["error"]["code"], "context_length_exceeded");
    let error = bad(
        "words",
        json!({"model": "tiny", "messages": [{"role": "user", "content": "some words ".repeat(500)}]})
            .to_string()
            .as_bytes(),
    );
    assert_eq!(error["error"]["code"], "context_length_exceeded");
}

#[test]
fn fields_that_are_unknown_or_there_twice() {
    let _turn = turn();
    let error = bad("unknown", with("\"temprature\": 1").as_bytes());
    assert_eq!(
        (&error["error"]["code"], &error["error"]["param"]),
        (&json!("unknown_field"), &json!("temprature"))
    );
    let error = bad("within another", with("\"stream\": true, \"stream_options\": {\"x\": 1}").as_bytes());
    assert_eq!(error["error"]["param"], "stream_options.x");
    for twice in ["\"model\": \"other\"", "\"max_tokens\": 5", "\"messages\": []"] {
        bad(twice, with(twice).as_bytes());
    }
}

#[test]
fn models_that_are_not_there() {
    let _turn = turn();
    for name in ["", "../../etc/passwd", "tiny\0", "a".repeat(100_000).as_str()] {
        let body = json!({"model": name, "messages": [{"role": "user", "content": "hm"}]});
        refused("a model", 404, || server().post(CHAT, &body));
    }
}

/// A request as bytes, and the status of its answer.
#[track_caller]
fn raw(what: &str, status: u16, bytes: &[u8]) -> String {
    let reply = refused(what, status, || {
        let text = server().raw(bytes, Duration::from_secs(3));
        assert_eq!(text.matches("HTTP/1.1 ").count(), 1, "{what}: {text}");
        let status = text.get(9..12).and_then(|status| status.parse().ok()).unwrap_or(0);
        Reply { status, headers: Vec::new(), text }
    });
    reply.text
}

#[test]
fn bodies_that_are_too_large() {
    let _turn = turn();
    let head = |length: &str| {
        format!("POST {CHAT} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {length}\r\n\r\n{{")
    };
    raw("2 GB", 413, head("2147483648").as_bytes());
    raw("almost 2^64", 413, head("18446744073709551000").as_bytes());
    raw("2^64", 400, head("18446744073709551616").as_bytes());
    let chunk = format!("100000\r\n{}\r\n", " ".repeat(1 << 20)).repeat(9);
    let chunked = format!(
        "POST {CHAT} HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n{chunk}0\r\n\r\n"
    );
    raw("9 MiB in chunks", 413, chunked.as_bytes());
}

#[test]
fn bodies_in_a_coding() {
    let _turn = turn();
    // What a gzip bomb begins with; it is not unpacked, so what it would become does not matter.
    let bomb = [&b"\x1f\x8b\x08\0\0\0\0\0\0\x03"[..], &[0; 1000]].concat();
    for coding in ["gzip", "deflate", "br", "zstd", "gzip, gzip", "identity, gzip"] {
        refused(coding, 415, || server().post_with(CHAT, &[("content-encoding", coding)], &bomb));
    }
    bad("unsaid", &bomb);
}

#[test]
fn heads_that_are_too_large() {
    let _turn = turn();
    let head = |lines: &str| {
        format!("GET /v1/models HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n{lines}\r\n")
    };
    raw("a line of 1 MB", 431, head(&format!("x: {}\r\n", "y".repeat(1 << 20))).as_bytes());
    raw("60,000 lines", 431, head(&"x: y\r\n".repeat(60_000)).as_bytes());
    raw("200 lines", 431, head(&"x: y\r\n".repeat(200)).as_bytes());
    let long = format!("GET /{} HTTP/1.1\r\nhost: localhost\r\n\r\n", "x".repeat(1 << 20));
    raw("a path of 1 MB", 431, long.as_bytes());
}

#[test]
fn paths_that_lead_elsewhere() {
    let _turn = turn();
    for path in [
        "/../v1/models",
        "/v1/../v1/models",
        "/v1/%2e%2e/v1/models",
        "/%2e%2e/%2e%2e/etc/passwd",
        "//v1/models",
        "/v1//models",
        "/v1/models%00",
        "/v1/models/..%2f..%2fetc%2fpasswd",
        "/v1/models/%00",
        "/v1/models/%ff",
        "/V1/MODELS",
        "/v1/models/",
        "/v1\\models",
    ] {
        let request = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
        let text = server().raw(request.as_bytes(), Duration::from_secs(3));
        let status = text.get(9..12).unwrap_or_default();
        assert!(matches!(status, "400" | "404"), "{path}: {text}");
        assert!(!text.contains("root:"), "{text}");
    }
}

#[test]
fn methods_that_are_not_taken() {
    let _turn = turn();
    for (method, status) in [("PUT", 405), ("TRACE", 405), ("DELETE", 405), ("BREW", 405), ("GET", 405)] {
        raw(
            method,
            status,
            format!("{method} {CHAT} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").as_bytes(),
        );
    }
    let connect = server().raw(
        b"CONNECT localhost:80 HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n",
        Duration::from_secs(3),
    );
    assert!(connect.starts_with("HTTP/1.1 4"), "{connect}");
    raw("no method", 400, b" / HTTP/1.1\r\nhost: localhost\r\n\r\n");
    // Whoever speaks it is not spoken to.
    assert_eq!(server().raw(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", Duration::from_secs(3)), "");
    raw("another version", 400, b"GET /health HTTP/1.7\r\nhost: localhost\r\n\r\n");
    raw("TLS", 400, b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03\r\n\r\n");
    raw("a foreign host", 403, b"GET /v1/models HTTP/1.1\r\nhost: evil.example\r\n\r\n");
}
