//! Bytes from any source into a verified file: writing, resuming, checking.

use std::fs::{self, OpenOptions};
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use crate::HubError;
use crate::cache::ManifestFile;
use crate::digest::{Sha256Hex, sha256_file, sha256_hex};
use crate::names::check_file_name;
use crate::progress::{Phase, Progress};

/// Attempts for one file at one source. Only a transfer that has moved forward is tried again.
const ATTEMPTS: usize = 4;

/// The next piece of a file; `None` at its end.
pub(crate) type Body = Box<dyn FnMut() -> Result<Option<Vec<u8>>, HubError>>;

/// A file that a source is ready to send.
pub(crate) struct Remote {
    /// Its name in the cache.
    pub(crate) name: String,
    /// Promised bytes.
    pub(crate) size: Option<u64>,
    /// Promised digest.
    pub(crate) sha256: Option<Sha256Hex>,
    /// What a person is told.
    pub(crate) phase: Phase,
    /// Opens the file at about this offset (in bytes).
    pub(crate) open: Box<dyn FnMut(u64) -> Result<Opened, HubError>>,
}

/// A file that is being sent.
pub(crate) struct Opened {
    /// Where the body starts: the wanted offset, or 0 when the source cannot start in the middle.
    pub(crate) start: u64,
    /// The whole file's bytes, when the source says so.
    pub(crate) total: Option<u64>,
    /// The pieces.
    pub(crate) body: Body,
}

/// Fetches all files of a model into the folder; none is moved into the cache before every one is verified.
pub(crate) fn all(
    files: Vec<Remote>,
    folder: &Path,
    progress: &mut dyn Progress,
) -> Result<Vec<(PathBuf, ManifestFile)>, HubError> {
    let mut needed = 0u64;
    for file in &files {
        check_file_name(&file.name)?;
        let there = fs::metadata(part_path(folder, file)).map(|m| m.len()).unwrap_or(0);
        needed = needed.saturating_add(file.size.unwrap_or(0).saturating_sub(there));
    }
    check_room(folder, needed)?;
    files
        .into_iter()
        .map(|mut file| {
            let path = part_path(folder, &file);
            let (size, sha256) = one(&mut file, &path, progress)?;
            Ok((path, ManifestFile { promised: file.sha256.is_some(), name: file.name, size, sha256 }))
        })
        .collect()
}

/// Refuses to start what cannot end. A file system that does not say its room is left to the write itself.
fn check_room(folder: &Path, needed: u64) -> Result<(), HubError> {
    match fs4::available_space(folder) {
        Ok(room) if room < needed => {
            Err(HubError::DiskFull { path: folder.to_owned(), needed: Some(needed) })
        }
        _ => Ok(()),
    }
}

/// A part is named by the promised content: what another source or another day left is continued only when it is the
/// same file. Without a promise it has the file's name and is never continued.
fn part_path(folder: &Path, file: &Remote) -> PathBuf {
    let stem = match &file.sha256 {
        Some(digest) => digest.as_str(),
        None => &sha256_hex(file.name.as_bytes()),
    };
    folder.join(format!("{stem}.part"))
}

fn one(file: &mut Remote, path: &Path, progress: &mut dyn Progress) -> Result<(u64, Sha256Hex), HubError> {
    let mut resumed = false;
    let mut attempt = 0;
    loop {
        attempt += 1;
        let mut have = fs::metadata(path).map(|m| m.len()).unwrap_or(0);
        if file.sha256.is_none() || file.size.is_some_and(|size| have > size) {
            remove(path)?;
            have = 0;
        }
        resumed |= have > 0;
        if have == 0 || file.size != Some(have) {
            match transfer(file, path, have, progress) {
                Ok(()) => {}
                Err(HubError::Network { status: Some(416), .. }) if have > 0 && attempt < ATTEMPTS => {
                    remove(path)?;
                    continue;
                }
                Err(error @ HubError::Network { .. }) => {
                    let now = fs::metadata(path).map(|m| m.len()).unwrap_or(0);
                    if attempt < ATTEMPTS && file.sha256.is_some() && now > have {
                        progress.message(&format!("{}: {error}; continuing", file.name));
                        continue;
                    }
                    if now == 0 || file.sha256.is_none() {
                        remove(path)?;
                    }
                    return Err(error);
                }
                Err(error) => {
                    remove(path)?;
                    return Err(error);
                }
            }
        }
        let (size, actual) = sha256_file(path, &file.name, progress)?;
        let error = match (&file.sha256, file.size) {
            (Some(expected), _) if *expected != actual => HubError::WrongDigest {
                file: file.name.clone(),
                expected: expected.to_string(),
                actual: actual.to_string(),
            },
            (_, Some(expected)) if expected != size => {
                HubError::WrongSize { file: file.name.clone(), expected, actual: size }
            }
            _ => return Ok((size, actual)),
        };
        remove(path)?;
        if !resumed || attempt >= ATTEMPTS {
            return Err(error);
        }
        // The two halves may come from different files: once more, from the start.
        progress.message(&format!("{}: the continued file is wrong; starting again", file.name));
        resumed = false;
        attempt = ATTEMPTS - 1;
    }
}

/// One attempt to bring the file to its end, from `have` bytes on.
fn transfer(file: &mut Remote, path: &Path, have: u64, progress: &mut dyn Progress) -> Result<(), HubError> {
    let Opened { start, total, mut body } = (file.open)(have)?;
    if start != 0 && start != have {
        return Err(HubError::network(&file.name, format!("asked for byte {have}, got byte {start}")));
    }
    let error = |e| with_need(HubError::io("write", path, e), file.size, path);
    let mut out = OpenOptions::new().create(true).truncate(false).write(true).open(path).map_err(error)?;
    out.set_len(start).map_err(error)?;
    out.seek(SeekFrom::End(0)).map_err(error)?;
    let total = file.size.or(total);
    let magic = start == 0 && file.name.to_ascii_lowercase().ends_with(".gguf");
    let end =
        copy(&mut body, &mut out, path, start, magic.then_some(file.name.as_str()), file.size, &mut |n| {
            progress.update(file.phase, &file.name, n, total);
        })
        .map_err(|e| with_need(e, file.size, path))?;
    out.sync_all().map_err(error)?;
    match total {
        Some(total) if end < total => {
            Err(HubError::network(&file.name, format!("ended after {end} of {total} bytes")))
        }
        _ if magic && end < 4 => Err(HubError::NotGguf { file: file.name.clone(), start: String::new() }),
        _ => Ok(()),
    }
}

/// Writes the pieces; the position at the end. With `gguf`, the first bytes must be a GGUF file's.
fn copy(
    body: &mut Body,
    out: &mut dyn Write,
    path: &Path,
    start: u64,
    gguf: Option<&str>,
    limit: Option<u64>,
    progress: &mut dyn FnMut(u64),
) -> Result<u64, HubError> {
    let mut position = start;
    let mut head: Option<Vec<u8>> = gguf.map(|_| Vec::new());
    while let Some(piece) = body()? {
        if let (Some(bytes), Some(name)) = (&mut head, gguf) {
            bytes.extend(piece.iter().take(64));
            if bytes.len() >= 4 {
                if !bytes.starts_with(b"GGUF") {
                    bytes.truncate(40);
                    let start = String::from_utf8_lossy(bytes).into_owned();
                    return Err(HubError::NotGguf { file: name.to_owned(), start });
                }
                head = None;
            }
        }
        position = position.saturating_add(piece.len() as u64);
        if let Some(limit) = limit
            && position > limit
        {
            let file = gguf.map_or_else(|| path.display().to_string(), str::to_owned);
            return Err(HubError::WrongSize { file, expected: limit, actual: position });
        }
        out.write_all(&piece).map_err(|e| HubError::io("write", path, e))?;
        progress(position);
    }
    Ok(position)
}

fn with_need(error: HubError, size: Option<u64>, part: &Path) -> HubError {
    match error {
        HubError::DiskFull { path, needed: None } => {
            let there = fs::metadata(part).map(|m| m.len()).unwrap_or(0);
            HubError::DiskFull { path, needed: size.map(|s| s.saturating_sub(there)) }
        }
        other => other,
    }
}

fn remove(path: &Path) -> Result<(), HubError> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(HubError::io("remove", path, e)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(pieces: &[&[u8]]) -> Body {
        let mut pieces: Vec<Vec<u8>> = pieces.iter().rev().map(|p| p.to_vec()).collect();
        Box::new(move || Ok(pieces.pop()))
    }

    fn copied(pieces: &[&[u8]], limit: Option<u64>) -> Result<(u64, Vec<u8>), HubError> {
        let mut out = Vec::new();
        let end = copy(&mut body(pieces), &mut out, Path::new("x"), 0, Some("x.gguf"), limit, &mut |_| {})?;
        Ok((end, out))
    }

    #[test]
    fn a_page_in_place_of_a_file_is_refused_before_it_is_written() {
        assert_eq!(copied(&[b"GG", b"UF", b"rest"], None).unwrap(), (8, b"GGUFrest".to_vec()));
        let error = copied(&[b"<!", b"doctype html>"], None).unwrap_err();
        assert!(matches!(error, HubError::NotGguf { start, .. } if start.starts_with("<!doctype")));
    }

    #[test]
    fn a_file_never_grows_past_its_promised_size() {
        let error = copied(&[b"GGUF", b"0123456789"], Some(10)).unwrap_err();
        assert!(matches!(error, HubError::WrongSize { expected: 10, actual: 14, .. }));
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_full_device_is_a_full_disk() {
        let path = Path::new("/dev/full");
        let mut out = OpenOptions::new().write(true).open(path).unwrap();
        let error = copy(&mut body(&[b"GGUF"]), &mut out, path, 0, None, None, &mut |_| {}).unwrap_err();
        assert!(matches!(error, HubError::DiskFull { .. }), "{error}");
    }
}
