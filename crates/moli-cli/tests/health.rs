//! `moli health` from the command line.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;

use support::{Ran, World};

/// What the command makes of a server that answers its one request like this.
fn asked(answer: &'static str) -> (Ran, String) {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let server = std::thread::spawn(move || {
        let (mut socket, _) = listener.accept().unwrap();
        let head = BufReader::new(socket.try_clone().unwrap()).lines().map(Result::unwrap);
        let head: Vec<String> = head.take_while(|line| !line.is_empty()).collect();
        socket.write_all(answer.as_bytes()).unwrap();
        head.join("\n")
    });
    (World::new().run(&["health", &address]), server.join().unwrap())
}

#[test]
fn a_server_that_is_ready_is_no_failure() {
    let (ran, head) = asked("HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n{\"status\":\"ready\"}");
    assert_eq!(ran.ok(), "");
    assert!(head.starts_with("GET /ready HTTP/1.1\nHost: 127.0.0.1:"), "{head}");
}

#[test]
fn one_that_is_not_is_one() {
    let loading = "HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\n\r\n{\"status\":\"loading\"}";
    for (answer, says) in
        [(loading, "503 Service Unavailable"), ("nonsense", "nonsense"), ("", "takes no work")]
    {
        asked(answer).0.fails(1, &[says]);
    }
}

#[test]
fn none_at_all_is_one() {
    let address = TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().to_string();
    World::new().run(&["health", &address]).fails(1, &["cannot ask the server at", &address]);
    World::new().run(&["health", "nowhere"]).fails(2, &[]);
}
