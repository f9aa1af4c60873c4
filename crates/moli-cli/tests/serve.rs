//! `moli serve` from the command line.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod support;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::Child;

use serde_json::Value;
use support::World;

/// A server that runs, and what it has said so far.
struct Served {
    child: Child,
    log: BufReader<std::process::ChildStderr>,
    address: String,
}

impl Served {
    fn start(world: &World, more: &[&str]) -> Self {
        let model = world.chat_model();
        let arguments = [&["serve", &model, "--port", "0"][..], more].concat();
        let mut child = world.command(&arguments).spawn().unwrap();
        let mut log = BufReader::new(child.stderr.take().unwrap());
        let mut line = String::new();
        while !line.contains("://") {
            line.clear();
            assert!(log.read_line(&mut line).unwrap() > 0, "it ended");
        }
        let address = line.trim().rsplit_once("://").unwrap().1.to_owned();
        Self { child, log, address }
    }

    /// The status and the rest of what comes back.
    fn ask(&self, head: &str, body: &str) -> String {
        let mut socket = TcpStream::connect(&self.address).unwrap();
        let length = body.len();
        write!(socket, "{head} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}").unwrap();
        let mut text = String::new();
        socket.read_to_string(&mut text).unwrap();
        text
    }

    /// Ends it by Ctrl-C and gives the rest of what it said.
    #[cfg(unix)]
    fn end(mut self) -> String {
        let killed = std::process::Command::new("kill").args(["-INT", &self.child.id().to_string()]).status();
        assert!(killed.unwrap().success());
        let mut rest = String::new();
        self.log.read_to_string(&mut rest).unwrap();
        assert!(self.child.wait().unwrap().success());
        rest
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn what_makes_no_server() {
    let world = World::new();
    let model = world.chat_model();
    for arguments in [
        &["serve", &model, "--unix-mode", "999"][..],
        &["serve", &model, "--tls-cert", "a.pem"],
        &["serve", &model, "--write-timeout", "0"],
        &["serve", &model, "--log-format", "xml"],
    ] {
        world.run(arguments).fails(2, &[]);
    }
    world
        .run(&["serve", &model, "--host", "0.0.0.0", "--port", "0"])
        .fails(1, &["0.0.0.0", "hint: --api-key-file"]);
    world.run(&["serve", &model, "--api-key-file", "no.toml"]).fails(1, &["no.toml"]);
    world.run(&["serve", &model, "--port", "0", "--cors-origin", "here"]).fails(1, &["\"here\""]);
    let absent = ["serve", "smollm2-135m-instruct", "--offline"];
    let ran = world.command(&absent).env_remove("MOLI_OFFLINE").output().unwrap();
    support::Ran::new(ran).fails(1, &["offline"]);
}

#[cfg(unix)]
#[test]
fn a_request_is_a_line_of_the_log() {
    let world = World::new();
    let served = Served::start(&world, &["--log-format", "json", "--health-port", "0"]);
    assert!(served.ask("GET /health", "").starts_with("HTTP/1.1 200"));
    let asked =
        r#"{"model": "chat", "max_tokens": 2, "messages": [{"role": "user", "content": "confidential"}]}"#;
    let answer = served.ask("POST /v1/chat/completions", asked);
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let log = served.end();
    let lines: Vec<Value> = log.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let line =
        lines.iter().find(|line| line["path"] == "/v1/chat/completions").unwrap_or_else(|| panic!("{log}"));
    assert_eq!(
        (&line["status"], &line["model"], &line["bytes_in"]),
        (&200.into(), &"chat".into(), &asked.len().into())
    );
    assert!(!log.contains("confidential"), "{log}");
}

#[cfg(unix)]
#[test]
fn without_a_log_it_says_where_it_is_and_no_more() {
    let world = World::new();
    let served = Served::start(&world, &["--log-format", "off"]);
    assert!(served.ask("GET /v1/models", "").starts_with("HTTP/1.1 200"));
    assert_eq!(served.end(), "");
}

#[cfg(unix)]
#[test]
fn told_to_stop_while_its_models_are_loaded_it_stops() {
    let world = World::new();
    for _ in 0..10 {
        let served = Served::start(&world, &["--log-format", "off"]);
        assert!(served.ask("GET /health", "").starts_with("HTTP/1.1 200"));
        assert_eq!(served.end(), "");
    }
}
