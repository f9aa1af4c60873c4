//! Several models, and the server's end.
#![allow(clippy::unwrap_used, clippy::panic, clippy::result_large_err, reason = "a test fails by panicking")]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use common::{Running, tiny};
use moli_server::{ModelSpec, Server, ServerError, ServerOptions};
use serde_json::json;

/// A model that is loaded on demand, and how often it was.
fn on_demand(name: &str) -> (ModelSpec, Arc<AtomicUsize>) {
    let (own, count) = (tiny(), Arc::new(AtomicUsize::new(0)));
    let loads = Arc::clone(&count);
    let load = move |memory| {
        loads.fetch_add(1, Relaxed);
        (own.load)(memory)
    };
    (ModelSpec::new(name, Arc::new(load)), count)
}

fn say(server: &Running, model: &str) -> u16 {
    let request = json!({"model": model, "prompt": "x", "max_tokens": 2});
    server.post("/v1/completions", &request).status
}

/// What a tiny model takes.
fn size() -> u64 {
    (tiny().load)(None).unwrap().plan().unwrap().total_bytes
}

#[test]
fn models_are_loaded_when_they_are_asked_for() {
    let ((a, loads), (b, others)) = (on_demand("a"), on_demand("b"));
    let server = Running::with(ServerOptions { models: vec![a, b], ..ServerOptions::default() });
    assert_eq!((loads.load(Relaxed), others.load(Relaxed)), (0, 0));
    let threads: Vec<_> = thread::scope(|scope| {
        let server = &server;
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(move || say(server, "a"))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(threads, [200; 8]);
    assert_eq!((loads.load(Relaxed), others.load(Relaxed)), (1, 0));
    let listed = server.get("/v1/models").json();
    assert_eq!((&listed["data"][0]["loaded"], &listed["data"][1]["loaded"]), (&json!(true), &json!(false)));
}

#[test]
fn an_idle_model_goes_and_comes_back() {
    let (a, loads) = on_demand("a");
    let unload_after = Some(Duration::from_millis(100));
    let server = Running::with(ServerOptions { models: vec![a], unload_after, ..ServerOptions::default() });
    assert_eq!(say(&server, "a"), 200);
    let start = Instant::now();
    while server.get("/v1/models").json()["data"][0]["loaded"] == true {
        assert!(start.elapsed() < Duration::from_secs(5), "it stayed");
        thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(say(&server, "a"), 200);
    assert_eq!(loads.load(Relaxed), 2);
}

#[test]
fn two_models_take_turns_where_one_fits() {
    let ((a, loads), (b, others)) = (on_demand("a"), on_demand("b"));
    let memory = Some(size() * 3 / 2);
    let server = Running::with(ServerOptions { models: vec![a, b], memory, ..ServerOptions::default() });
    for _ in 0..2 {
        assert_eq!((say(&server, "a"), say(&server, "b")), (200, 200));
    }
    assert!(loads.load(Relaxed) >= 2 && others.load(Relaxed) >= 2);
    let both = ServerOptions {
        memory: Some(size() * 3),
        models: vec![on_demand("a").0, on_demand("b").0],
        ..ServerOptions::default()
    };
    let server = Running::with(both);
    assert_eq!((say(&server, "a"), say(&server, "b")), (200, 200));
    let listed = server.get("/v1/models").json();
    assert_eq!((&listed["data"][0]["loaded"], &listed["data"][1]["loaded"]), (&json!(true), &json!(true)));
}

#[test]
fn a_model_that_does_not_fit_is_refused_with_the_figures() {
    let (a, _) = on_demand("a");
    let server =
        Running::with(ServerOptions { models: vec![a], memory: Some(1 << 20), ..ServerOptions::default() });
    let reply = server.post("/v1/completions", &json!({"model": "a", "prompt": "x"}));
    assert_eq!((reply.status, &reply.json()["error"]["code"]), (503, &json!("out_of_memory")));
    assert!(reply.text.contains("MB"), "{}", reply.text);
}

#[test]
fn two_models_of_one_name_are_refused() {
    let options = ServerOptions {
        models: vec![tiny(), tiny()],
        address: ([127, 0, 0, 1], 0).into(),
        ..ServerOptions::default()
    };
    assert!(matches!(Server::bind(options), Err(ServerError::DuplicateModel { name }) if name == "tiny"));
}

#[test]
fn what_is_under_way_is_finished_when_the_server_stops() {
    let server = Running::start();
    let (address, handle) = (server.address, server.handle.clone());
    let answers: Vec<_> = thread::scope(|scope| {
        let server = &server;
        let threads: Vec<_> = (0..8)
            .map(|seed| {
                let request = json!({"model": "tiny", "prompt": "x", "max_tokens": 300, "ignore_eos": true, "stream": true, "seed": seed});
                scope.spawn(move || server.post("/v1/completions", &request))
            })
            .collect();
        // All are taken.
        while !server.get("/metrics").text.contains("moli_requests_total{model=\"tiny\"} 8") {
            thread::sleep(Duration::from_millis(1));
        }
        handle.stop();
        let start = Instant::now();
        while server.get("/ready").status == 200 {
            assert!(start.elapsed() < Duration::from_secs(1), "still ready");
        }
        assert_eq!(server.get("/health").status, 200);
        let refused = server.post("/v1/completions", &json!({"model": "tiny", "prompt": "x"}));
        assert_eq!((refused.status, refused.header("retry-after")), (503, Some("1")));
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    for answer in answers {
        assert_eq!(answer.status, 200);
        assert!(answer.text.ends_with("data: [DONE]\n\n"));
        assert_eq!(
            answer
                .events()
                .iter()
                .rev()
                .find_map(|event| event["choices"][0]["finish_reason"].as_str().map(str::to_owned))
                .as_deref(),
            Some("length")
        );
    }
    server.stop().unwrap();
    assert!(std::net::TcpStream::connect(address).is_err());
}

#[test]
fn what_is_under_way_is_cancelled_when_the_grace_is_over() {
    let options =
        ServerOptions { grace: Duration::from_millis(50), models: vec![tiny()], ..ServerOptions::default() };
    let server = Running::with(options);
    let request = json!({"model": "tiny", "prompt": "x", "max_tokens": 500, "ignore_eos": true, "stream": true, "n": 8});
    let answer = thread::scope(|scope| {
        let thread = scope.spawn(|| server.post("/v1/completions", &request));
        while !server.get("/metrics").text.contains("moli_requests_total{model=\"tiny\"} 8") {
            thread::sleep(Duration::from_millis(1));
        }
        server.handle.stop();
        thread.join().unwrap()
    });
    let last = answer.events().into_iter().next_back().unwrap();
    assert_eq!(last["choices"][0]["stop_reason"], "cancelled", "{last}");
    server.stop().unwrap();
}
