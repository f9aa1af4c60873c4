//! Who comes in, and by which door.
#![allow(clippy::unwrap_used, clippy::panic, clippy::result_large_err, reason = "a test fails by panicking")]

mod common;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::time::{Duration, Instant};

use common::{Running, eventually, read, read_all, tiny, tiny_with};
use moli_engine::EngineOptions;
use moli_server::{ApiKeys, KeyError, Server, ServerError, ServerOptions, TlsFiles};
use serde_json::{Value, json};

fn options() -> ServerOptions {
    ServerOptions { models: vec![tiny()], ..ServerOptions::default() }
}

fn ask(model: &str) -> Value {
    json!({"model": model, "max_tokens": 2, "messages": [{"role": "user", "content": "hm"}]})
}

fn keys(folder: &Path, text: &str) -> ApiKeys {
    let path = folder.join("keys.toml");
    std::fs::write(&path, text).unwrap();
    ApiKeys::read(Some(&path), None).unwrap()
}

fn chat(server: &Running, headers: &[(&str, &str)], model: &str) -> common::Reply {
    server.post_with("/v1/chat/completions", headers, ask(model).to_string().as_bytes())
}

#[test]
fn a_key_is_asked_for_in_the_words_of_each_api() {
    let keys = ApiKeys::read(None, Some("first,second")).unwrap();
    let server = Running::with(ServerOptions { keys, ..options() });
    for (name, value) in
        [("authorization", "Bearer first"), ("authorization", "bearer second"), ("x-api-key", "second")]
    {
        assert_eq!(chat(&server, &[(name, value)], "tiny").status, 200, "{name}: {value}");
    }
    let wrong = [
        ("authorization", "Bearer firs"),
        ("authorization", "first"),
        ("x-api-key", ""),
        ("authorization", "Basic Zmlyc3Q="),
    ];
    for (name, value) in wrong {
        let refused = chat(&server, &[(name, value)], "tiny");
        assert_eq!(
            (refused.status, refused.header("www-authenticate")),
            (401, Some("Bearer")),
            "{name}: {value}"
        );
        assert_eq!(refused.json()["error"]["type"], "authentication_error");
    }
    let anthropic = server.post("/v1/messages", &json!({})).json();
    assert_eq!(
        (&anthropic["type"], &anthropic["error"]["type"]),
        (&json!("error"), &json!("authentication_error"))
    );
    assert!(server.post("/api/chat", &json!({})).json()["error"].is_string());
    // Nobody learns without a key which paths there are.
    assert_eq!(server.get("/nowhere").status, 401);
    assert_eq!(server.get("/metrics").status, 401);
    for open in ["/health", "/ready"] {
        assert_eq!(server.get(open).status, 200);
    }
    assert_eq!(server.post("/health", &json!({})).status, 401);
}

#[test]
fn a_key_is_for_its_models_and_its_minute() {
    let folder = tempfile::tempdir().unwrap();
    let keys = keys(
        folder.path(),
        "[[key]]\nname = \"one\"\nkey = \"1\"\nmodels = [\"tiny\"]\n[[key]]\nname = \"slow\"\nkey = \"2\"\nrequests_per_minute = 2\n",
    );
    let small = EngineOptions { context: Some(64), threads: Some(1), ..EngineOptions::default() };
    let models = vec![tiny(), tiny_with("other", small)];
    let server = Running::with(ServerOptions { keys, models, ..ServerOptions::default() });
    let one = [("x-api-key", "1")];
    assert_eq!(chat(&server, &one, "tiny").status, 200);
    let refused = chat(&server, &one, "other");
    assert_eq!((refused.status, &refused.json()["error"]["code"]), (403, &json!("model_not_allowed")));
    assert_eq!(chat(&server, &one, "other:latest").status, 403);
    let unknown = chat(&server, &one, "none");
    assert_eq!(unknown.status, 404);
    assert!(unknown.text.contains("tiny") && !unknown.text.contains("other"), "{}", unknown.text);
    let list = server.get_with("/v1/models", &one).json();
    let names: Vec<&Value> = list["data"].as_array().unwrap().iter().map(|model| &model["id"]).collect();
    assert_eq!(names, ["tiny"]);
    assert_eq!(server.get_with("/v1/models/other", &one).status, 403);
    let slow = [("x-api-key", "2")];
    assert_eq!((chat(&server, &slow, "other").status, chat(&server, &slow, "tiny").status), (200, 200));
    let refused = chat(&server, &slow, "tiny");
    assert_eq!((refused.status, refused.json()["error"]["type"].as_str()), (429, Some("rate_limit_error")));
    let seconds: u64 = refused.header("retry-after").unwrap().parse().unwrap();
    assert!((25..=30).contains(&seconds), "{seconds}");
    assert_eq!(chat(&server, &one, "tiny").status, 200);
}

#[test]
fn keys_are_read_again_and_stay_where_the_file_is_wrong() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("keys.toml");
    let keys = keys(folder.path(), "[[key]]\nname = \"a\"\nkey = \"old\"\n");
    let server = Running::with(ServerOptions { keys, ..options() });
    let status = |key: &str| server.get_with("/v1/models", &[("x-api-key", key)]).status;
    assert_eq!((status("old"), status("new")), (200, 401));
    std::fs::write(&path, "[[key]]\nname = \"a\"\nkey = \"new\"\nmodels = [\"gone\"]\n").unwrap();
    assert!(matches!(server.handle.reload_keys(), Err(KeyError::Invalid { .. })));
    assert_eq!((status("old"), status("new")), (200, 401));
    std::fs::write(&path, "[[key]]\nname = \"a\"\nkey = \"new\"\n").unwrap();
    let hangup = std::process::Command::new("kill").args(["-HUP", &std::process::id().to_string()]).status();
    assert!(hangup.unwrap().success());
    eventually("the new key", || status("new") == 200);
    assert_eq!(status("old"), 401);
}

#[test]
fn a_key_for_a_model_that_is_not_served_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let keys = keys(folder.path(), "[[key]]\nname = \"a\"\nkey = \"1\"\nmodels = [\"tini\"]\n");
    let error =
        Server::bind(ServerOptions { keys, address: ([127, 0, 0, 1], 0).into(), ..options() }).err().unwrap();
    assert!(error.to_string().contains("tini"), "{error}");
}

#[test]
fn a_public_address_needs_keys() {
    let bind =
        |options: ServerOptions| Server::bind(ServerOptions { address: ([0, 0, 0, 0], 0).into(), ..options });
    assert!(matches!(bind(options()), Err(ServerError::PublicWithoutKeys { .. })));
    assert!(bind(ServerOptions { allow_no_key: true, ..options() }).is_ok());
    assert!(bind(ServerOptions { keys: ApiKeys::read(None, Some("1")).unwrap(), ..options() }).is_ok());
}

/// Asks for the models with these lines in the head.
fn models(server: &Running, lines: &str) -> String {
    server.raw(
        format!("GET /v1/models HTTP/1.1\r\n{lines}connection: close\r\n\r\n").as_bytes(),
        Duration::from_secs(5),
    )
}

#[test]
fn a_name_that_anybody_can_have_is_not_this_server() {
    let server = Running::with(ServerOptions { allow_hosts: vec!["box.lan".to_owned()], ..options() });
    for host in
        ["localhost", "localhost:1", "127.0.0.1", "127.5.5.5:80", "[::1]:80", "box.lan", "Box.LAN:8080"]
    {
        assert!(models(&server, &format!("host: {host}\r\n")).starts_with("HTTP/1.1 200"), "{host}");
    }
    for host in ["evil.example", "localhost.evil.example:80", "192.168.0.1", "[::2]", ""] {
        let refused = models(&server, &format!("host: {host}\r\n"));
        assert!(
            refused.starts_with("HTTP/1.1 403") || host.is_empty() && refused.starts_with("HTTP/1.1 400"),
            "{host}: {refused}"
        );
    }
    assert!(models(&server, "host: evil.example\r\n").contains("--allow-host evil.example"));
    for bad in [
        "",
        "host: localhost\r\nhost: localhost\r\n",
        "host: a b\r\n",
        "host: a@localhost\r\n",
        "host: \u{e9}\r\n",
    ] {
        assert!(models(&server, bad).starts_with("HTTP/1.1 400"), "{bad}");
    }
    // A target with a host in it is for that one.
    let absolute = |target: &str, host: &str| {
        let bytes =
            format!("GET http://{target}/v1/models HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
        server.raw(bytes.as_bytes(), Duration::from_secs(5))[9..12].to_owned()
    };
    assert_eq!(absolute("localhost", "localhost"), "200");
    assert_eq!(
        (absolute("evil.example", "localhost"), absolute("localhost", "evil.example")),
        ("403".into(), "403".into())
    );
    assert_eq!(absolute("a@localhost", "localhost"), "400");
    // As old clients ask, who know no hosts; no browser is one.
    let old = server.raw(b"GET /v1/models HTTP/1.0\r\n\r\n", Duration::from_secs(5));
    assert!(old.starts_with("HTTP/1.0 200") || old.starts_with("HTTP/1.1 200"), "{old}");
}

#[test]
fn pages_of_others_may_not_call() {
    let server =
        Running::with(ServerOptions { cors_origins: vec!["https://app.example".to_owned()], ..options() });
    let call = |origin: &str| {
        server.post_with("/v1/chat/completions", &[("origin", origin)], ask("tiny").to_string().as_bytes())
    };
    let own = format!("http://{}", server.address);
    let known = call("https://app.example");
    assert_eq!(
        (known.status, known.header("access-control-allow-origin")),
        (200, Some("https://app.example"))
    );
    let same = call(&own);
    assert_eq!((same.status, same.header("access-control-allow-origin")), (200, None));
    for origin in [
        "https://evil.example",
        "null",
        "http://app.example",
        "http://localhost:1",
        "https://app.example.evil",
        "file://",
    ] {
        let refused = call(origin);
        assert_eq!((refused.status, refused.header("access-control-allow-origin")), (403, None), "{origin}");
    }
    // An error can be read by whoever may call.
    let wrong = server.post_with("/v1/chat/completions", &[("origin", "https://app.example")], b"{}");
    assert_eq!(
        (wrong.status, wrong.header("access-control-allow-origin")),
        (400, Some("https://app.example"))
    );
    let preflight = |origin: &str| {
        let lines = format!(
            "host: localhost\r\norigin: {origin}\r\naccess-control-request-method: POST\r\naccess-control-request-headers: authorization\r\n"
        );
        server.raw(
            format!("OPTIONS /v1/chat/completions HTTP/1.1\r\n{lines}connection: close\r\n\r\n").as_bytes(),
            Duration::from_secs(5),
        )
    };
    let allowed = preflight("https://app.example");
    assert!(allowed.starts_with("HTTP/1.1 200"), "{allowed}");
    assert!(allowed.contains("access-control-allow-headers: authorization\r\n"), "{allowed}");
    assert!(preflight("https://evil.example").starts_with("HTTP/1.1 403"));
    let open = Running::with(ServerOptions { cors_origins: vec!["*".to_owned()], ..options() });
    let reply = open.get_with("/v1/models", &[("origin", "https://evil.example")]);
    assert_eq!((reply.status, reply.header("access-control-allow-origin")), (200, Some("*")));
}

fn certificate(folder: &Path) -> (TlsFiles, String) {
    let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    let files = TlsFiles { cert: folder.join("cert.pem"), key: folder.join("key.pem") };
    std::fs::write(&files.cert, made.cert.pem()).unwrap();
    std::fs::write(&files.key, made.signing_key.serialize_pem()).unwrap();
    (files, made.cert.pem())
}

#[test]
fn tls_is_spoken_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let (files, pem) = certificate(folder.path());
    let most = Duration::from_millis(500);
    let server = Running::begin(ServerOptions { tls: Some(files), head_timeout: most, ..options() });
    let known = ureq::tls::Certificate::from_pem(pem.as_bytes()).unwrap();
    let tls =
        ureq::tls::TlsConfig::builder().root_certs(ureq::tls::RootCerts::new_with_certs(&[known])).build();
    let agent = |tls| -> ureq::Agent {
        ureq::Agent::config_builder().http_status_as_error(false).proxy(None).tls_config(tls).build().into()
    };
    let url = format!("https://{}", server.address);
    let reply = read(agent(tls.clone()).get(format!("{url}/health")).call());
    assert_eq!(reply.status, 200);
    let answer = read(agent(tls).post(format!("{url}/v1/chat/completions")).send(ask("tiny").to_string()));
    assert_eq!(answer.status, 200, "{}", answer.text);
    assert!(agent(ureq::tls::TlsConfig::default()).get(format!("{url}/health")).call().is_err());
    let plain = server.raw(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n", Duration::from_secs(5));
    assert!(!plain.contains("HTTP/1.1"), "{plain}");
    let start = Instant::now();
    assert_eq!(server.raw(&[22, 3, 1], Duration::from_secs(5)), "");
    assert!(start.elapsed() < Duration::from_secs(3));
}

#[test]
fn certificates_that_cannot_be() {
    let folder = tempfile::tempdir().unwrap();
    let (files, _) = certificate(folder.path());
    let other = tempfile::tempdir().unwrap();
    let (others, _) = certificate(other.path());
    let empty = folder.path().join("empty.pem");
    std::fs::write(&empty, "").unwrap();
    let broken = folder.path().join("broken.pem");
    std::fs::write(&broken, "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n").unwrap();
    let nowhere = folder.path().join("nowhere.pem");
    let wrong = [
        (&empty, &files.key, "no certificate"),
        (&files.key, &files.key, "no certificate"),
        (&nowhere, &files.key, "nowhere.pem"),
        (&broken, &files.key, "not a key for the certificate"),
        (&files.cert, &files.cert, "no private key"),
        (&files.cert, &nowhere, "nowhere.pem"),
        (&files.cert, &others.key, "not a key for the certificate"),
    ];
    for (cert, key, says) in wrong {
        let tls = Some(TlsFiles { cert: cert.clone(), key: key.clone() });
        let error = Server::bind(ServerOptions { tls, address: ([127, 0, 0, 1], 0).into(), ..options() })
            .err()
            .unwrap();
        assert!(matches!(error, ServerError::Tls { .. }) && error.to_string().contains(says), "{error}");
    }
}

#[cfg(unix)]
#[test]
fn a_socket_in_the_file_system_is_a_door_of_its_own() {
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::net::{UnixListener, UnixStream};

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("moli.sock");
    // Somebody was here and has gone.
    drop(UnixListener::bind(&path).unwrap());
    let server = Running::with(ServerOptions { unix: Some(path.clone()), ..options() });
    let rights = std::fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(rights & 0o777, 0o600);
    let mut socket = UnixStream::connect(&path).unwrap();
    // No browser comes this way: any name will do.
    socket.write_all(b"GET /v1/models HTTP/1.1\r\nhost: moli.example\r\nconnection: close\r\n\r\n").unwrap();
    assert!(read_all(&mut socket).starts_with("HTTP/1.1 200"));
    let bind = |path: &Path| {
        let (unix, address) = (Some(path.to_owned()), ([127, 0, 0, 1], 0).into());
        Server::bind(ServerOptions { unix, address, ..options() }).err().unwrap().to_string()
    };
    assert!(bind(&path).contains("another server listens there"));
    let file = folder.path().join("file");
    std::fs::write(&file, "").unwrap();
    assert!(bind(&file).contains("no socket") && file.exists());
    assert!(bind(&folder.path().join("no/folder")).contains("no/folder"));
    server.stop().unwrap();
    assert!(!path.exists());
}

#[test]
fn a_connection_too_many_is_closed_at_once() {
    let server = Running::with(ServerOptions { max_connections: 4, ..options() });
    // Those that asked whether it is ready are gone in a moment.
    std::thread::sleep(Duration::from_millis(100));
    let begin = || {
        let mut socket = TcpStream::connect(server.address).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let _ = socket.write_all(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n");
        let answered = socket.read(&mut [0; 500]).unwrap_or(0) > 0;
        (socket, answered)
    };
    let open: Vec<_> = (0..4).map(|_| begin()).collect();
    assert!(open.iter().all(|(_, answered)| *answered));
    let start = Instant::now();
    assert!(!begin().1 && start.elapsed() < Duration::from_secs(1));
    drop(open);
    eventually("a place", || begin().1);
}

#[test]
fn a_thousand_that_say_nothing_keep_nobody_waiting() {
    let server = Running::with(options());
    let sockets: Vec<TcpStream> = (0..1000)
        .map(|place| {
            let mut socket = TcpStream::connect(server.address).unwrap();
            socket.write_all(&b"GET /health HTTP/1.1\r\nhost: localhost\r\nx: "[..place % 42]).unwrap();
            socket
        })
        .collect();
    let mut times: Vec<Duration> = (0..11)
        .map(|_| {
            let start = Instant::now();
            assert_eq!(server.get("/health").status, 200);
            start.elapsed()
        })
        .collect();
    times.sort();
    assert!(times[5] < Duration::from_millis(100), "{times:?}");
    drop(sockets);
}
