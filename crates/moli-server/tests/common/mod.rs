//! A server on a tiny model, and a client for it.
#![allow(dead_code, reason = "each test uses a part")]

pub(crate) mod probe;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use moli_engine::{Engine, EngineOptions, Scheduling};
use moli_server::{Handle, ModelSpec, Server, ServerError, ServerOptions};
use moli_testkit::{CHAT_TEMPLATE, TinyFile, TinyModel, thinking_template};
use serde_json::Value;

/// A server that runs until it is dropped.
pub(crate) struct Running {
    pub(crate) address: SocketAddr,
    pub(crate) handle: Handle,
    pub(crate) health: Option<SocketAddr>,
    thread: Option<JoinHandle<Result<(), ServerError>>>,
}

/// What came back.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) text: String,
}

impl Reply {
    /// The body as JSON.
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {}", self.text))
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(own, _)| own == name).map(|(_, value)| value.as_str())
    }

    /// The objects of its events or lines; `[DONE]` is left out.
    pub(crate) fn events(&self) -> Vec<Value> {
        let lines = self.text.lines().map(|line| line.strip_prefix("data: ").unwrap_or(line));
        lines.filter_map(|line| serde_json::from_str(line).ok()).collect()
    }
}

/// A model called `tiny` with a ChatML template; what it says is noise, the same for the same seed.
pub(crate) fn tiny() -> ModelSpec {
    tiny_with(
        "tiny",
        EngineOptions { context: Some(512), sessions: 4, threads: Some(1), ..EngineOptions::default() },
    )
}

/// The same under another name and with other options.
pub(crate) fn tiny_with(name: &str, options: EngineOptions) -> ModelSpec {
    templated(name, CHAT_TEMPLATE, options)
}

/// A model called `embedder` that makes vectors.
pub(crate) fn embedder() -> ModelSpec {
    embedder_with(EngineOptions { context: Some(512), threads: Some(1), ..EngineOptions::default() })
}

/// The same with other options.
pub(crate) fn embedder_with(options: EngineOptions) -> ModelSpec {
    let mut file = TinyModel::new("qwen3").file().unwrap();
    file.meta("qwen3.pooling_type", 3_u32);
    of_file("embedder", &file, options)
}

/// One that can be told not to think, and thinks otherwise until its budget is over: called `thinker`.
pub(crate) fn thinker() -> ModelSpec {
    let options = EngineOptions { context: Some(512), threads: Some(1), ..EngineOptions::default() };
    templated("thinker", &thinking_template(), options)
}

fn templated(name: &str, template: &str, options: EngineOptions) -> ModelSpec {
    let mut file = TinyModel::new("llama").file().unwrap();
    file.meta("tokenizer.chat_template", template);
    of_file(name, &file, options)
}

fn of_file(name: &str, file: &TinyFile, options: EngineOptions) -> ModelSpec {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tiny.gguf");
    file.write(&path).unwrap();
    let load = move |memory_budget| {
        // The folder lives as long as the loader.
        let path = folder.path().join("tiny.gguf");
        Engine::load(&path, &EngineOptions { memory_budget, ..options.clone() })
    };
    ModelSpec { keep: true, path: Some(path), ..ModelSpec::new(name, Arc::new(load)) }
}

/// Options with a queue of one answer at a time.
pub(crate) fn narrow(max_queue: usize) -> EngineOptions {
    let scheduling = Scheduling { max_batch: 1, max_queue, ..Scheduling::default() };
    EngineOptions { context: Some(512), threads: Some(1), scheduling, ..EngineOptions::default() }
}

impl Running {
    /// Serves [`tiny`].
    pub(crate) fn start() -> Self {
        Self::with(ServerOptions { models: vec![tiny()], ..ServerOptions::default() })
    }

    /// Serves at a free port.
    pub(crate) fn begin(options: ServerOptions) -> Self {
        let server = Server::bind(ServerOptions { address: ([127, 0, 0, 1], 0).into(), ..options }).unwrap();
        let (address, handle, health) = (server.address(), server.handle(), server.health_address());
        Self { address, handle, health, thread: Some(std::thread::spawn(|| server.run())) }
    }

    /// Serves at a free port, and is ready.
    pub(crate) fn with(options: ServerOptions) -> Self {
        let running = Self::begin(options);
        let start = Instant::now();
        while running.get("/ready").status != 200 {
            assert!(start.elapsed() < Duration::from_secs(20), "not ready");
            std::thread::sleep(Duration::from_millis(5));
        }
        running
    }

    pub(crate) fn get(&self, path: &str) -> Reply {
        let agent = agent();
        read(agent.get(format!("http://{}{path}", self.address)).call())
    }

    pub(crate) fn get_with(&self, path: &str, headers: &[(&str, &str)]) -> Reply {
        let mut request = agent().get(format!("http://{}{path}", self.address));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        read(request.call())
    }

    pub(crate) fn post(&self, path: &str, body: &Value) -> Reply {
        self.post_bytes(path, body.to_string().as_bytes())
    }

    pub(crate) fn post_bytes(&self, path: &str, body: &[u8]) -> Reply {
        self.post_with(path, &[("content-type", "application/json")], body)
    }

    pub(crate) fn post_with(&self, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Reply {
        let mut request = agent().post(format!("http://{}{path}", self.address));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        read(request.send(body))
    }

    /// Sends bytes as they are and reads until the server closes or `most` is over.
    pub(crate) fn raw(&self, bytes: &[u8], most: Duration) -> String {
        let mut socket = TcpStream::connect(self.address).unwrap();
        socket.set_read_timeout(Some(most)).unwrap();
        // The server may have seen enough before the end.
        let _ = socket.write_all(bytes);
        read_all(&mut socket)
    }

    /// Tells it to stop and waits for its end.
    pub(crate) fn stop(mut self) -> Result<(), ServerError> {
        self.handle.stop();
        self.thread.take().unwrap().join().unwrap()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(thread) = self.thread.take() {
            // Twice: the second time it does not wait for what is under way.
            self.handle.stop();
            std::thread::sleep(Duration::from_millis(20));
            self.handle.stop();
            let _ = thread.join();
        }
    }
}

/// Reads until the other side closes or nothing comes any more.
pub(crate) fn read_all(socket: &mut impl Read) -> String {
    let mut text = Vec::new();
    let mut buffer = [0; 4096];
    while let Ok(count) = socket.read(&mut buffer) {
        if count == 0 {
            break;
        }
        text.extend_from_slice(&buffer[..count]);
    }
    String::from_utf8_lossy(&text).into_owned()
}

/// Waits until something is so.
#[track_caller]
pub(crate) fn eventually(what: &str, mut is: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is() {
        assert!(start.elapsed() < Duration::from_secs(20), "not in time: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn agent() -> ureq::Agent {
    ureq::Agent::config_builder().http_status_as_error(false).proxy(None).build().into()
}

pub(crate) fn read(response: Result<ureq::http::Response<ureq::Body>, ureq::Error>) -> Reply {
    let mut response = response.unwrap();
    let headers = response.headers().iter();
    let headers =
        headers.map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned())).collect();
    Reply { status: response.status().as_u16(), headers, text: response.body_mut().read_to_string().unwrap() }
}
