//! Clients that leave, clients that stall, and mistakes that concern one request only.
#![allow(clippy::unwrap_used, clippy::panic, clippy::result_large_err, reason = "a test fails by panicking")]

mod common;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use common::probe::{Probe, probed};
use common::{Running, eventually, read_all};
use moli_engine::Scheduling;
use moli_server::ServerOptions;
use serde_json::json;

fn serve(scheduling: Scheduling, options: ServerOptions) -> (Running, Arc<Probe>) {
    let (model, probe) = probed("tiny", true, scheduling);
    (Running::with(ServerOptions { models: vec![model], ..options }), probe)
}

/// A request for a long answer, as bytes.
fn request(seed: u64, stream: bool) -> Vec<u8> {
    let body = json!({
        "model": "tiny", "messages": [{"role": "user", "content": format!("hm {seed}")}],
        "max_tokens": 1500, "seed": seed, "stream": stream, "ignore_eos": true, "temperature": 1,
    });
    raw(&body.to_string())
}

fn raw(body: &str) -> Vec<u8> {
    let length = body.len();
    format!("POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: {length}\r\n\r\n{body}")
        .into_bytes()
}

fn send(server: &Running, bytes: &[u8]) -> TcpStream {
    let mut socket = TcpStream::connect(server.address).unwrap();
    socket.write_all(bytes).unwrap();
    socket
}

#[test]
fn whoever_leaves_stops_the_answer_within_a_step() {
    let (server, probe) = serve(Scheduling::default(), ServerOptions::default());
    probe.slow.store(20_000, Ordering::Relaxed);
    for (seed, stream) in [(1, true), (2, false)] {
        let mut socket = send(&server, &request(seed, stream));
        if stream {
            assert!(socket.read(&mut [0; 16]).unwrap() > 0);
        }
        let before = probe.counters();
        eventually("several steps", || probe.counters().completion_tokens > before.completion_tokens + 3);
        drop(socket);
        let left = probe.counters().steps;
        eventually("the end", || probe.counters().cancelled == before.cancelled + 1);
        // The step that is under way, and the one that begins while the news travels.
        let more = probe.counters().steps - left;
        assert!(more <= 2, "{more} steps more, streamed: {stream}");
        assert_eq!((probe.counters().running, probe.pages_in_use()), (0, 0));
    }
}

#[test]
fn whoever_leaves_the_queue_is_not_waited_for() {
    let scheduling = Scheduling { max_batch: 1, ..Scheduling::default() };
    let (server, probe) = serve(scheduling, ServerOptions::default());
    probe.slow.store(5_000, Ordering::Relaxed);
    let first = send(&server, &request(1, true));
    eventually("the first", || probe.counters().running == 1);
    for stream in [true, false] {
        let second = send(&server, &request(2, stream));
        eventually("the second waits", || probe.counters().waiting == 1);
        drop(second);
        eventually("it waits no more", || probe.counters().waiting == 0);
        assert_eq!(probe.counters().running, 1);
    }
    drop(first);
    eventually("the first has left too", || probe.counters().running == 0);
    assert_eq!(probe.counters().cancelled, 3);
}

#[test]
fn whoever_leaves_while_a_model_is_loaded_has_nothing_computed_and_it_is_loaded_once() {
    let (model, probe) = probed("tiny", false, Scheduling::default());
    let server = Running::with(ServerOptions { models: vec![model], ..ServerOptions::default() });
    probe.slow_loading.store(400, Ordering::Relaxed);
    for _ in 0..4 {
        let socket = send(&server, &request(1, true));
        thread::sleep(Duration::from_millis(30));
        drop(socket);
    }
    let answer = server.post(
        "/v1/chat/completions",
        &json!({"model": "tiny", "max_tokens": 2, "messages": [{"role": "user", "content": "hm"}]}),
    );
    assert_eq!(answer.status, 200, "{}", answer.text);
    assert_eq!((probe.loaded.load(Ordering::Relaxed), probe.counters().submitted), (1, 1));
}

#[test]
fn five_hundred_that_leave_at_any_moment_leave_nothing_behind() {
    let scheduling = Scheduling { max_queue: 16, ..Scheduling::default() };
    let (server, probe) = serve(scheduling, ServerOptions::default());
    probe.slow.store(500, Ordering::Relaxed);
    thread::scope(|scope| {
        for worker in 0..10u64 {
            let server = &server;
            scope.spawn(move || {
                let mut random = worker + 1;
                for turn in 0..50 {
                    random = random
                        .wrapping_mul(6_364_136_223_846_793_005)
                        .wrapping_add(1_442_695_040_888_963_407);
                    let bytes = request(worker * 50 + turn, random >> 40 & 1 == 1);
                    // Some leave before they have asked for all.
                    let part = if random >> 50 & 7 == 0 { bytes.len() / 2 } else { bytes.len() };
                    let mut socket = send(server, &bytes[..part]);
                    thread::sleep(Duration::from_micros(random >> 33 & 0x7fff));
                    if random >> 60 & 1 == 1 {
                        socket.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
                        let _ = socket.read(&mut [0; 100]);
                    }
                }
            });
        }
    });
    eventually("all are gone", || {
        let counters = probe.counters();
        counters.running + counters.waiting == 0
    });
    eventually("no page is held", || probe.pages_in_use() == 0);
    let counters = probe.counters();
    assert!(counters.cancelled > 100, "{counters:?}");
    assert_eq!(counters.submitted, counters.completed + counters.cancelled);
    assert_eq!(server.get("/health").status, 200);
}

#[test]
fn a_client_that_reads_nothing_is_cut_and_its_answer_ends() {
    let options = ServerOptions { write_timeout: Duration::from_millis(300), ..ServerOptions::default() };
    let (server, probe) = serve(Scheduling::default(), options);
    // A third of the answer fills what systems keep for a connection; the rest takes longer than the time to write it.
    probe.slow.store(1_000, Ordering::Relaxed);
    let body = json!({
        "model": "tiny", "messages": [{"role": "user", "content": "hm"}], "max_tokens": 1900, "ignore_eos": true,
        "stream": true, "n": 4, "logprobs": true, "top_logprobs": 20, "temperature": 1,
    });
    let mut socket = send(&server, &raw(&body.to_string()));
    eventually("it is cut", || probe.counters().cancelled > 0);
    eventually("its places are free", || probe.counters().running == 0 && probe.pages_in_use() == 0);
    assert_eq!(server.get("/health").status, 200);
    socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let text = read_all(&mut socket);
    assert!(text.starts_with("HTTP/1.1 200") && !text.contains("[DONE]"));
}

#[test]
fn a_head_or_a_body_that_drips_is_cut() {
    let most = Duration::from_millis(300);
    let options = ServerOptions { head_timeout: most, body_timeout: most, ..ServerOptions::default() };
    let (server, _) = serve(Scheduling::default(), options);
    let drip = |begin: &[u8], drops: &[u8]| {
        let start = Instant::now();
        let mut socket = send(&server, begin);
        for drop in drops {
            if socket.write_all(&[*drop]).is_err() {
                break;
            }
            thread::sleep(Duration::from_millis(40));
        }
        socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let text = read_all(&mut socket);
        assert!(start.elapsed() < Duration::from_secs(4), "{text}");
        text
    };
    assert_eq!(drip(b"GET /health HTTP/1.1\r\nhost: localhost\r\nx: ", &[b'y'; 50]), "");
    assert_eq!(drip(b"", &[]), "");
    // A connection that has had its answer is not kept for ever.
    assert!(drip(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n", &[]).starts_with("HTTP/1.1 200"));
    let text = drip(
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 50\r\n\r\n",
        &[b' '; 49],
    );
    assert!(text.starts_with("HTTP/1.1 408") && text.contains("body_timeout"), "{text}");
}

#[test]
fn a_panic_while_loading_is_told_to_one_and_the_next_is_served() {
    let (model, probe) = probed("tiny", false, Scheduling::default());
    let server = Running::with(ServerOptions { models: vec![model], ..ServerOptions::default() });
    probe.panic_loading.store(true, Ordering::Relaxed);
    let ask = json!({"model": "tiny", "max_tokens": 2, "messages": [{"role": "user", "content": "hm"}]});
    let first = server.post("/v1/chat/completions", &ask);
    assert_eq!(first.status, 500, "{}", first.text);
    assert_eq!(first.json()["error"]["type"], "server_error");
    assert_eq!(server.post("/v1/chat/completions", &ask).status, 200);
}

#[test]
fn a_panic_in_a_step_is_told_and_the_model_is_loaded_anew() {
    let (server, probe) = serve(Scheduling::default(), ServerOptions::default());
    let ask = json!({"model": "tiny", "max_tokens": 2, "messages": [{"role": "user", "content": "hm"}]});
    assert_eq!(server.post("/v1/chat/completions", &ask).status, 200);
    probe.panic.store(true, Ordering::Relaxed);
    let broken = server.post("/v1/chat/completions", &ask);
    assert_eq!((broken.status, broken.header("retry-after")), (500, Some("1")), "{}", broken.text);
    assert_eq!(server.post("/v1/chat/completions", &ask).status, 200);
    assert_eq!(probe.loaded.load(Ordering::Relaxed), 2);
}
