//! What whoever looks after a server sees: its log, and that it lives.
#![allow(clippy::unwrap_used, clippy::panic, clippy::result_large_err, reason = "a test fails by panicking")]

mod common;

use std::fmt::Debug;
use std::io::Write;
use std::net::TcpStream;
use std::sync::{Condvar, Mutex, MutexGuard, Once, PoisonError};
use std::time::{Duration, Instant};

use common::{Running, eventually, read, tiny};
use moli_server::{ApiKeys, ServerOptions};
use serde_json::{Value, json};
use tracing::field::{Field, Visit};

/// The log of all servers here, which can be made to wait: it is written by the threads that serve connections.
struct Log;

/// The events, and whether the next ones wait.
static EVENTS: Mutex<(Vec<Value>, bool)> = Mutex::new((Vec::new(), false));
static FREE: Condvar = Condvar::new();
static HELD: Mutex<usize> = Mutex::new(0);
/// One test at a time.
static TURN: Mutex<()> = Mutex::new(());

fn events() -> MutexGuard<'static, (Vec<Value>, bool)> {
    EVENTS.lock().unwrap_or_else(PoisonError::into_inner)
}

fn turn() -> MutexGuard<'static, ()> {
    static START: Once = Once::new();
    START.call_once(|| tracing::subscriber::set_global_default(Log).unwrap());
    let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    events().0.clear();
    turn
}

struct Fields(Value);

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.0[field.name()] = format!("{value:?}").into();
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.0[field.name()] = value.into();
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.0[field.name()] = value.into();
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.0[field.name()] = value.into();
    }
}

impl tracing::Subscriber for Log {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        metadata.target().starts_with("moli_server")
    }

    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }

    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}

    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}

    fn event(&self, event: &tracing::Event<'_>) {
        let mut fields = Fields(json!({"target": event.metadata().target()}));
        event.record(&mut fields);
        let mut events = events();
        events.0.push(fields.0);
        if events.1 {
            *HELD.lock().unwrap() += 1;
            let _free = FREE.wait_while(events, |events| events.1);
        }
    }

    fn enter(&self, _: &tracing::span::Id) {}

    fn exit(&self, _: &tracing::span::Id) {}
}

/// The line of the log about a path.
fn line(path: &str) -> Value {
    let mut found = None;
    eventually("a line", || {
        found = events().0.iter().find(|event| event["path"] == path).cloned();
        found.is_some()
    });
    found.unwrap()
}

#[test]
fn a_line_says_everything_but_what_was_asked() {
    let _turn = turn();
    let keys = ApiKeys::read(None, Some("secret")).unwrap();
    let server = Running::with(ServerOptions { models: vec![tiny()], keys, ..ServerOptions::default() });
    let body = json!({
        "model": "tiny", "max_tokens": 5, "ignore_eos": true, "messages": [{"role": "user", "content": "confidential"}],
    });
    let body = body.to_string();
    let answer = server.post_with("/v1/chat/completions", &[("x-api-key", "secret")], body.as_bytes());
    let usage = &answer.json()["usage"];
    let said = line("/v1/chat/completions");
    let expected = json!({
        "target": "moli_server::access", "method": "POST", "path": "/v1/chat/completions", "status": 200,
        "bytes_in": body.len(), "bytes_out": answer.text.len(), "whole": true, "key": "key-1", "model": "tiny",
        "prompt_tokens": usage["prompt_tokens"], "completion_tokens": 5,
    });
    for (field, value) in expected.as_object().unwrap() {
        assert_eq!(&said[field], value, "{field}: {said}");
    }
    // A stream counts as well, also one that is left.
    let streamed = server.post_with(
        "/v1/chat/completions?x",
        &[("x-api-key", "secret")],
        body.replace("\"max", "\"stream\":true,\"max").as_bytes(),
    );
    assert_eq!(streamed.status, 200);
    server.get("/refused?secret=1");
    assert_eq!(line("/refused")["status"], 401);
    let all = Value::from(events().0.clone()).to_string();
    assert!(!all.contains("confidential") && !all.contains("secret"), "{all}");
    let streams = events().0.iter().filter(|event| event["completion_tokens"] == 5).count();
    assert_eq!(streams, 2);
}

#[test]
fn prompts_are_in_the_log_where_that_was_asked_for() {
    let _turn = turn();
    let models = vec![tiny()];
    let server = Running::with(ServerOptions { models, log_prompts: true, ..ServerOptions::default() });
    let body = json!({"model": "tiny", "max_tokens": 1, "messages": [{"role": "user", "content": "con\nfidential"}]});
    assert_eq!(server.post("/v1/chat/completions", &body).status, 200);
    let events = events();
    let prompt = events.0.iter().find(|event| event["target"] == "moli_server::prompts").unwrap();
    assert!(prompt["body"].as_str().unwrap().contains("fidential"), "{prompt}");
}

#[test]
fn health_answers_while_the_thread_that_serves_is_busy() {
    let _turn = turn();
    let options = ServerOptions {
        models: vec![tiny()],
        health: Some(([127, 0, 0, 1], 0).into()),
        ..ServerOptions::default()
    };
    let server = Running::with(options);
    let agent: ureq::Agent =
        ureq::Agent::config_builder().http_status_as_error(false).proxy(None).build().into();
    let health = server.health.unwrap();
    let get = |path: &str| read(agent.get(format!("http://{health}{path}")).call());
    assert_eq!((get("/health").status, get("/ready").status, get("/v1/models").status), (200, 200, 404));
    let before = *HELD.lock().unwrap();
    events().1 = true;
    let ask = || {
        let mut socket = TcpStream::connect(server.address).unwrap();
        socket.write_all(b"GET /v1/models HTTP/1.1\r\nhost: localhost\r\n\r\n").unwrap();
        socket
    };
    // Until the log holds the thread that serves, with a request.
    let _held = ask();
    eventually("a thread that is held", || *HELD.lock().unwrap() > before);
    let mut stuck = TcpStream::connect(server.address).unwrap();
    stuck.write_all(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n").unwrap();
    stuck.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    let answered = std::io::Read::read(&mut stuck, &mut [0; 10]).is_ok();
    let start = Instant::now();
    let status = get("/health").status;
    let took = start.elapsed();
    events().1 = false;
    FREE.notify_all();
    assert!(!answered, "the main door was to be stuck");
    assert!(status == 200 && took < Duration::from_millis(500), "{status} after {took:?}");
}
