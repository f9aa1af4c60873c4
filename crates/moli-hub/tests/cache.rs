//! The catalogue, the names, and a cache that two processes, a kill and a full disk cannot spoil.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use common::*;
use moli_hub::{Cache, Catalogue, Entry, HubError, Quiet};

#[test]
fn every_file_of_the_models_folder_is_compiled_in() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models");
    let catalogue = Catalogue::load(Path::new("/nowhere"));
    assert!(catalogue.problems().is_empty(), "{:?}", catalogue.problems());
    let mut names: Vec<String> = fs::read_dir(folder)
        .unwrap()
        .map(|item| item.unwrap().path())
        .filter(|path| path.extension().is_some_and(|e| e == "toml"))
        .map(|path| path.file_stem().unwrap().to_str().unwrap().to_owned())
        .collect();
    names.sort();
    assert_eq!(catalogue.entries().iter().map(|e| e.name.clone()).collect::<Vec<_>>(), names);
    assert_eq!(catalogue.find("smollm2-135m-instruct").unwrap().size(), Some(98_362_432));
}

#[test]
fn a_broken_catalogue_file_names_its_line_and_hides_nothing_else() {
    let place = Place::new();
    let models = place.config.models_dir();
    fs::write(models.join("broken.toml"), "name = \"broken\"\ndescription = \"d\"\nlicense = 1\n").unwrap();
    place.model("sha256 = \"12\"", HF);
    let hub = place.hub();
    assert_eq!(hub.catalogue().problems().len(), 2);
    assert!(hub.catalogue().find("gemma-3-270m").is_some());
    let error = hub.resolve("broken", &mut Quiet).unwrap_err();
    assert!(
        matches!(&error, HubError::Catalogue { path, line: Some(3), message }
        if path.ends_with("broken.toml") && message.contains("license")),
        "{error}"
    );
    let error = hub.resolve("m", &mut Quiet).unwrap_err();
    assert!(
        matches!(&error, HubError::Catalogue { line: Some(6), message, .. } if message.contains("sha256")),
        "{error}"
    );
    let error = hub.resolve("smollm2", &mut Quiet).unwrap_err();
    assert!(matches!(error, HubError::UnknownModel { problems, .. } if problems.len() == 2));
}

#[test]
fn a_catalogue_file_is_checked() {
    let parse = |text: &str| Entry::parse(Path::new("m.toml"), text).unwrap_err().to_string();
    let head = "name = \"m\"\ndescription = \"d\"\nlicence = { name = \"MIT\" }\n";
    let file = "[[files]]\nname = \"m.gguf\"\n";
    assert!(Entry::parse(Path::new("m.toml"), &format!("{head}{file}{HF}")).is_ok());
    assert!(parse(&format!("{head}files = []\n{HF}")).contains("[[files]]"));
    assert!(parse(&format!("{head}{file}sources = 1")).contains("sources"));
    assert!(parse(&format!("{head}{file}{file}{HF}")).contains("two files"));
    assert!(parse(&format!("{head}[[files]]\nname = \"../m.gguf\"\n{HF}")).contains("'../m.gguf' cannot be"));
    assert!(
        parse(&format!("{head}[[files]]\nname = \"manifest.toml\"\n{HF}")).contains("belongs to the cache")
    );
    assert!(parse(&format!("{head}{file}[[sources]]\nkind = \"ftp\"\n")).contains("ftp"));
    assert!(
        parse(&format!("{head}{file}[[sources]]\nkind = \"hf\"\nrepo = \"o/r\"\nfile = \"x\"\n"))
            .contains("file")
    );
    assert!(
        parse(&format!("{head}{file}[[sources]]\nkind = \"url\"\nurls = []\n")).contains("gives 0 files")
    );
    assert!(parse(&format!("{head}{file}{HF}").replace("\"m\"", "\"n\"")).contains("must be called n.toml"));
    assert!(parse("name = ").starts_with("m.toml:1: "));
}

#[test]
fn a_users_file_overrides_a_name() {
    let place = Place::new();
    let text = "name = \"qwen3-4b\"\ndescription = \"mine\"\nlicence = { name = \"MIT\" }\n[[files]]\nname = \"m.gguf\"\n";
    fs::write(place.config.models_dir().join("qwen3-4b.toml"), format!("{text}{HF}")).unwrap();
    let hub = place.hub();
    assert_eq!(hub.catalogue().find("qwen3-4b").unwrap().description, "mine");
    assert_eq!(hub.catalogue().entries().iter().filter(|e| e.name == "qwen3-4b").count(), 1);
}

#[test]
fn unknown_names_get_near_ones_and_paths_get_a_plain_word() {
    let place = Place::new();
    let hub = place.hub();
    let near = |model: &str| match hub.resolve(model, &mut Quiet).unwrap_err() {
        HubError::UnknownModel { suggestions, .. } => suggestions,
        other => panic!("{other}"),
    };
    assert_eq!(near("smolm2-135m-instruct"), ["smollm2-135m-instruct"]);
    assert_eq!(near("smollm2"), ["smollm2-135m-instruct"]);
    assert_eq!(near("Qwen3-4B")[0], "qwen3-4b");
    assert!(near("a-name-like-no-other").is_empty());
    for path in ["model.gguf", "./model", "/nowhere/model.gguf", "folder/model.gguf", "../m", "~/m"] {
        assert!(matches!(hub.resolve(path, &mut Quiet), Err(HubError::NoSuchFile { .. })), "{path}");
    }
    let folder = place.folder.path().display().to_string();
    assert!(matches!(hub.resolve(&folder, &mut Quiet), Err(HubError::NotAFile { .. })));
    // Unless it says that it is a model.
    let config = place.folder.path().join("config.json");
    fs::write(&config, "{}").unwrap();
    assert_eq!(hub.resolve(&folder, &mut Quiet).unwrap(), place.folder.path());
    fs::remove_file(config).unwrap();
    for reference in
        ["ftp://h/m.gguf", "https://h/page.html", "https://h", "hf:o", "hf:o/../x", "modelscope:o/r@"]
    {
        assert!(
            matches!(hub.resolve(reference, &mut Quiet), Err(HubError::InvalidReference { .. })),
            "{reference}"
        );
    }
    assert!(matches!(hub.resolve("", &mut Quiet), Err(HubError::UnknownModel { .. })));
    let file = place.folder.path().join("any");
    fs::write(&file, "").unwrap();
    assert_eq!(hub.resolve(&file.display().to_string(), &mut Quiet).unwrap(), file);
}

/// A model `m` from an address of this server.
fn from(place: &Place, server: &Server, bytes: &[u8]) {
    place.model(
        &format!("size = {}\nsha256 = \"{}\"", bytes.len(), sha256(bytes)),
        &format!("[[sources]]\nkind = \"url\"\nurls = [\"{}/m.gguf\"]", server.url),
    );
}

#[test]
fn removal_frees_the_bytes_and_keeps_to_its_folder() {
    let bytes = gguf(10_000);
    let server = Server::new({
        let bytes = bytes.clone();
        move |r| Reply::file(r, &bytes)
    });
    let place = Place::new();
    from(&place, &server, &bytes);
    let hub = place.hub();
    hub.resolve("m", &mut Quiet).unwrap();
    for name in ["", ".", "..", "../m", "a/b", "a\\b", "m/", "/etc", ".hidden", "m\0"] {
        assert!(matches!(hub.cache().remove(name), Err(HubError::InvalidName { .. })), "{name:?}");
    }
    assert!(hub.cache().remove("m").unwrap() > 10_000);
    assert!(hub.cache().list().unwrap().is_empty());
    assert!(matches!(hub.cache().remove("m"), Err(HubError::NotCached { .. })));
    assert!(matches!(hub.cache().path("m"), Err(HubError::NotCached { .. })));
}

#[test]
fn a_file_that_is_not_whole_is_not_listed() {
    let bytes = gguf(10_000);
    let server = Server::new({
        let bytes = bytes.clone();
        move |r| Reply::file(r, &bytes)
    });
    let place = Place::new();
    from(&place, &server, &bytes);
    let hub = place.hub();
    let path = hub.resolve("m", &mut Quiet).unwrap();
    let mut spoiled = bytes.clone();
    spoiled[9_999] ^= 1;
    fs::write(&path, &spoiled).unwrap();
    assert!(matches!(hub.cache().verify("m", &mut Quiet), Err(HubError::WrongDigest { .. })));
    fs::write(&path, &bytes[..9_999]).unwrap();
    assert!(hub.cache().list().unwrap().is_empty());
    assert_eq!(fs::read(hub.resolve("m", &mut Quiet).unwrap()).unwrap(), bytes, "and it is fetched again");
    fs::write(path.with_file_name("manifest.toml"), "name = ").unwrap();
    assert!(hub.cache().list().unwrap().is_empty());
    let hostile = "name = \"m\"\nmodel = \"m\"\nsource = \"x\"\ndate = \"x\"\n[[files]]\nname = \"../../x\"\nsize = 0\n";
    let digest = sha256(b"");
    fs::write(
        path.with_file_name("manifest.toml"),
        format!("{hostile}sha256 = \"{digest}\"\npromised = true\n"),
    )
    .unwrap();
    fs::write(place.config.cache_dir.join("x"), "").unwrap();
    assert!(hub.cache().get("m").is_none(), "a manifest names files of its own folder only");
}

#[test]
fn a_new_promise_of_the_catalogue_replaces_the_file() {
    let place = Place::new();
    for bytes in [gguf(1_000), gguf(2_000)] {
        let server = Server::new({
            let bytes = bytes.clone();
            move |r| Reply::file(r, &bytes)
        });
        from(&place, &server, &bytes);
        assert_eq!(fs::read(place.hub().resolve("m", &mut Quiet).unwrap()).unwrap(), bytes);
    }
}

#[test]
fn two_pulls_of_one_name_download_once() {
    let bytes = gguf(100_000);
    let server = Server::new({
        let bytes = bytes.clone();
        move |r| Reply { pause: Some(Duration::from_millis(400)), ..Reply::file(r, &bytes) }
    });
    let place = Place::new();
    from(&place, &server, &bytes);
    let start = Arc::new(Barrier::new(2));
    let pulls: Vec<_> = (0..2)
        .map(|_| {
            let (hub, start) = (place.hub(), start.clone());
            std::thread::spawn(move || {
                let mut words = Words::default();
                start.wait();
                let path = hub.resolve("m", &mut words).unwrap();
                (path, words.0.iter().any(|w| w.contains("waiting for another process")))
            })
        })
        .collect();
    let results: Vec<_> = pulls.into_iter().map(|p| p.join().unwrap()).collect();
    assert_eq!(results[0].0, results[1].0);
    assert_eq!(results.iter().filter(|r| r.1).count(), 1, "one of them waited, and said so");
    assert_eq!(server.gets("m.gguf").len(), 1);
    assert_eq!(fs::read(&results[0].0).unwrap(), bytes);
}

/// Not a test of its own: the process that the next test kills.
#[test]
fn child_that_pulls() {
    let Some(folder) = std::env::var_os("MOLI_HUB_TEST_CHILD") else { return };
    let mut place = Place::new();
    place.config.cache_dir = PathBuf::from(&folder).join("cache");
    place.config.config_dir = PathBuf::from(&folder).join("config");
    let _ = place.hub().resolve("m", &mut Quiet);
}

#[test]
fn a_killed_pull_leaves_no_lock_and_nothing_that_is_listed() {
    let bytes = gguf(400_000);
    let slow = Arc::new(AtomicBool::new(true));
    let server = Server::new({
        let (bytes, slow) = (bytes.clone(), slow.clone());
        move |r| {
            let pause = slow.load(Ordering::SeqCst).then_some(Duration::from_secs(30));
            Reply { pause, ..Reply::file(r, &bytes) }
        }
    });
    let place = Place::new();
    from(&place, &server, &bytes);
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child_that_pulls"])
        .env("MOLI_HUB_TEST_CHILD", place.folder.path())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let part = place.config.cache_dir.join(format!("partial/m/{}.part", sha256(&bytes)));
    let start = Instant::now();
    while fs::metadata(&part).map(|m| m.len()).unwrap_or(0) < 200_000 {
        assert!(start.elapsed() < Duration::from_secs(20), "the child did not start its transfer");
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(matches!(place.hub().cache().remove("m"), Err(HubError::Busy { .. })));
    child.kill().unwrap();
    child.wait().unwrap();
    let hub = place.hub();
    assert!(hub.cache().list().unwrap().is_empty());
    slow.store(false, Ordering::SeqCst);
    assert_eq!(fs::read(hub.resolve("m", &mut Quiet).unwrap()).unwrap(), bytes);
    assert!(
        server.gets("m.gguf")[1].range.is_some_and(|start| start >= 200_000),
        "and it goes on where it was"
    );
}

/// A file system of one megabyte, unmounted at the end.
#[cfg(target_os = "linux")]
struct Tiny(tempfile::TempDir);

#[cfg(target_os = "linux")]
impl Tiny {
    fn mount() -> Option<Self> {
        let folder = tempfile::TempDir::new().unwrap();
        let mount =
            Command::new("mount").args(["-t", "tmpfs", "-o", "size=1m", "tmpfs"]).arg(folder.path()).output();
        mount.is_ok_and(|o| o.status.success()).then_some(Self(folder))
    }
}

#[cfg(target_os = "linux")]
impl Drop for Tiny {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0.path()).status();
    }
}

#[test]
#[cfg(target_os = "linux")]
fn a_full_disk_is_said_and_leaves_nothing() {
    let Some(tiny) = Tiny::mount() else {
        eprintln!("left out: a file system cannot be mounted here (needs root)");
        return;
    };
    let bytes = gguf(4_000_000);
    let server = Server::new({
        let bytes = bytes.clone();
        move |r| Reply::file(r, &bytes)
    });
    let mut place = Place::new();
    place.config.cache_dir = tiny.0.path().join("cache");
    from(&place, &server, &bytes);
    let error = place.hub().resolve("m", &mut Quiet).unwrap_err();
    assert!(matches!(error, HubError::DiskFull { needed: Some(4_000_000), .. }), "{error}");
    assert!(server.gets("m.gguf").is_empty(), "known before the transfer");
    // Without a promised size the disk itself says it.
    let hub = place.hub();
    let error = hub.resolve(&format!("{}/m.gguf", server.url), &mut Quiet).unwrap_err();
    assert!(matches!(error, HubError::DiskFull { .. }), "{error}");
    assert!(hub.cache().list().unwrap().is_empty());
    assert_eq!(
        fs::read_dir(place.config.cache_dir.join("partial")).unwrap().count(),
        0,
        "the room is given back"
    );
}

#[test]
fn an_empty_cache_is_an_empty_list() {
    assert!(Cache::new("/nowhere/at/all").list().unwrap().is_empty());
}
