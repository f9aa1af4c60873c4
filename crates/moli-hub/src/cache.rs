//! The cache: `models/NAME/` holds a model's files and, written last, its manifest.
//!
//! `partial/NAME/` holds what is still arriving, on the same file system, so that a finished file is moved by a
//! rename; `locks/NAME` is locked by the process that pulls (the system unlocks it when the process ends, whatever
//! its end). A model without a manifest, or whose files have another size than the manifest says, is not there.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::HubError;
use crate::digest::{Sha256Hex, sha256_file};
use crate::names::{check_file_name, check_name};
use crate::progress::Progress;

pub(crate) const MANIFEST: &str = "manifest.toml";

/// What the cache knows about one model.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Manifest {
    /// The model's name in the cache.
    pub name: String,
    /// What was typed to get it (the name itself, a repository or an address).
    pub model: String,
    /// The source that answered.
    pub source: String,
    /// When it was pulled, in UTC: `2026-01-31T23:59:59Z`.
    pub date: String,
    /// The licence's name, where the catalogue knows it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub licence: Option<String>,
    /// The files; the first is the one to open.
    pub files: Vec<ManifestFile>,
}

/// One verified file.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ManifestFile {
    /// The name in the model's folder.
    pub name: String,
    /// Bytes.
    pub size: u64,
    /// The digest of its content when it was stored.
    pub sha256: Sha256Hex,
    /// Whether the catalogue or the hub promised that digest; a plain address promises none.
    pub promised: bool,
}

/// A model that is there, whole.
#[derive(Debug, Clone)]
pub struct Cached {
    /// Its manifest.
    pub manifest: Manifest,
    /// The file to open.
    pub path: PathBuf,
}

impl Cached {
    /// The model's name in the cache.
    pub fn name(&self) -> &str {
        &self.manifest.name
    }

    /// Bytes of all its files.
    pub fn size(&self) -> u64 {
        self.manifest.files.iter().map(|f| f.size).fold(0, u64::saturating_add)
    }
}

/// The folder with the pulled models.
#[derive(Debug, Clone)]
pub struct Cache {
    root: PathBuf,
}

impl Cache {
    /// A cache in this folder, which need not exist yet.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// The cache's folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Every whole model, sorted by name. Costs a `stat` for each file; [`Cache::verify`] reads them.
    ///
    /// # Errors
    /// [`HubError::Io`] when the folder exists and cannot be read.
    pub fn list(&self) -> Result<Vec<Cached>, HubError> {
        let folder = self.root.join("models");
        let listing = match fs::read_dir(&folder) {
            Ok(listing) => listing,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(HubError::io("read", folder, e)),
        };
        let mut models: Vec<Cached> = listing
            .filter_map(|item| item.ok()?.file_name().into_string().ok())
            .filter_map(|name| self.get(&name))
            .collect();
        models.sort_by(|a, b| a.manifest.name.cmp(&b.manifest.name));
        Ok(models)
    }

    /// The model of this name, when it is there, whole.
    pub fn get(&self, name: &str) -> Option<Cached> {
        check_name(name).ok()?;
        let folder = self.model_folder(name);
        let text = fs::read_to_string(folder.join(MANIFEST)).ok()?;
        let manifest: Manifest = toml::from_str(&text).ok()?;
        let whole = manifest.name == name
            && manifest.files.iter().all(|f| {
                check_file_name(&f.name).is_ok()
                    && fs::metadata(folder.join(&f.name)).is_ok_and(|m| m.is_file() && m.len() == f.size)
            });
        let path = folder.join(&manifest.files.first()?.name);
        whole.then_some(Cached { manifest, path })
    }

    /// The file to open.
    ///
    /// # Errors
    /// [`HubError::NotCached`].
    pub fn path(&self, name: &str) -> Result<PathBuf, HubError> {
        check_name(name)?;
        self.get(name).map(|c| c.path).ok_or_else(|| HubError::NotCached { name: name.to_owned() })
    }

    /// Reads every file of the model again and compares the digests.
    ///
    /// # Errors
    /// [`HubError::NotCached`], [`HubError::WrongDigest`] or [`HubError::Io`].
    pub fn verify(&self, name: &str, progress: &mut dyn Progress) -> Result<Cached, HubError> {
        check_name(name)?;
        let cached = self.get(name).ok_or_else(|| HubError::NotCached { name: name.to_owned() })?;
        for file in &cached.manifest.files {
            let (_, actual) = sha256_file(&self.model_folder(name).join(&file.name), &file.name, progress)?;
            if actual != file.sha256 {
                return Err(HubError::WrongDigest {
                    file: file.name.clone(),
                    expected: file.sha256.to_string(),
                    actual: actual.to_string(),
                });
            }
        }
        Ok(cached)
    }

    /// Removes the model and whatever of it was still arriving; the bytes that were freed.
    ///
    /// # Errors
    /// [`HubError::InvalidName`], [`HubError::NotCached`], [`HubError::Busy`] while it is being pulled,
    /// [`HubError::Io`].
    pub fn remove(&self, name: &str) -> Result<u64, HubError> {
        check_name(name)?;
        let folders = [self.model_folder(name), self.partial_folder(name)];
        if !folders.iter().any(|f| f.exists()) {
            return Err(HubError::NotCached { name: name.to_owned() });
        }
        let lock = self.lock_file(name)?;
        match fs4::FileExt::try_lock(&lock) {
            Ok(()) => {}
            Err(fs4::TryLockError::WouldBlock) => return Err(HubError::Busy { name: name.to_owned() }),
            Err(fs4::TryLockError::Error(e)) => return Err(HubError::io("lock", self.lock_path(name), e)),
        }
        // The manifest goes first: from here on the model is not listed, whatever happens.
        let mut freed = remove_if_there(&folders[0].join(MANIFEST))?;
        for folder in &folders {
            freed += folder_size(folder);
            match fs::remove_dir_all(folder) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                    return Err(HubError::io("remove", folder, e));
                }
                _ => {}
            }
        }
        Ok(freed)
    }

    pub(crate) fn model_folder(&self, name: &str) -> PathBuf {
        self.root.join("models").join(name)
    }

    pub(crate) fn partial_folder(&self, name: &str) -> PathBuf {
        self.root.join("partial").join(name)
    }

    fn lock_path(&self, name: &str) -> PathBuf {
        self.root.join("locks").join(name)
    }

    fn lock_file(&self, name: &str) -> Result<File, HubError> {
        let path = self.lock_path(name);
        create_folder(&self.root.join("locks"))?;
        OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(|e| HubError::io("write", path, e))
    }

    /// Locks the name for this pull; when another holds it, says so and waits. Unlocked when the file is dropped.
    /// Lock files stay: removing one would let two processes lock two files of the same name.
    pub(crate) fn lock(&self, name: &str, progress: &mut dyn Progress) -> Result<File, HubError> {
        let file = self.lock_file(name)?;
        let error = |e| HubError::io("lock", self.lock_path(name), e);
        match fs4::FileExt::try_lock(&file) {
            Ok(()) => {}
            Err(fs4::TryLockError::WouldBlock) => {
                progress.message(&format!("waiting for another process that pulls {name}"));
                fs4::FileExt::lock(&file).map_err(error)?;
            }
            Err(fs4::TryLockError::Error(e)) => return Err(error(e)),
        }
        Ok(file)
    }

    /// Moves verified files (`partial`, name) in and writes the manifest last.
    pub(crate) fn store(&self, files: &[(PathBuf, String)], manifest: &Manifest) -> Result<Cached, HubError> {
        let folder = self.model_folder(&manifest.name);
        create_folder(&folder)?;
        remove_if_there(&folder.join(MANIFEST))?;
        for (from, name) in files {
            if let Some((inner, _)) = name.split_once('/') {
                create_folder(&folder.join(inner))?;
            }
            fs::rename(from, folder.join(name)).map_err(|e| HubError::io("rename", from, e))?;
        }
        let text = toml::to_string(manifest).map_err(|e| HubError::Catalogue {
            path: folder.join(MANIFEST),
            line: None,
            message: e.to_string(),
        })?;
        let temporary = folder.join("manifest.tmp");
        write_whole(&temporary, text.as_bytes())?;
        sync_folder(&folder);
        fs::rename(&temporary, folder.join(MANIFEST)).map_err(|e| HubError::io("rename", &temporary, e))?;
        sync_folder(&folder);
        // The names of the new folders have to outlive a power cut as well.
        sync_folder(&self.root.join("models"));
        let _ = fs::remove_dir_all(self.partial_folder(&manifest.name));
        self.get(&manifest.name).ok_or_else(|| HubError::NotCached { name: manifest.name.clone() })
    }
}

/// `create_dir_all` with the path in the error.
pub(crate) fn create_folder(path: &Path) -> Result<(), HubError> {
    fs::create_dir_all(path).map_err(|e| HubError::io("create", path, e))
}

/// Bytes of the files below a folder; nothing is followed.
pub(crate) fn folder_size(folder: &Path) -> u64 {
    let Ok(listing) = fs::read_dir(folder) else { return 0 };
    listing
        .filter_map(Result::ok)
        .map(|item| match item.metadata() {
            Ok(m) if m.is_dir() => folder_size(&item.path()),
            Ok(m) => m.len(),
            Err(_) => 0,
        })
        .fold(0, u64::saturating_add)
}

fn remove_if_there(path: &Path) -> Result<u64, HubError> {
    let size = fs::metadata(path).map(|m| m.len()).unwrap_or(0);
    match fs::remove_file(path) {
        Ok(()) => Ok(size),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(0),
        Err(e) => Err(HubError::io("remove", path, e)),
    }
}

fn write_whole(path: &Path, bytes: &[u8]) -> Result<(), HubError> {
    let write = || {
        let mut file = File::create(path)?;
        file.write_all(bytes)?;
        file.sync_all()
    };
    write().map_err(|e| HubError::io("write", path, e))
}

/// Makes renames durable where a folder can be synced (Windows has no such thing).
fn sync_folder(folder: &Path) {
    if cfg!(unix) {
        let _ = File::open(folder).and_then(|f| f.sync_all());
    }
}

/// The current UTC time as RFC 3339, from days since 1970 by the proleptic Gregorian calendar.
pub(crate) fn now() -> String {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map(|d| d.as_secs()).unwrap_or(0);
    format_time(seconds)
}

fn format_time(seconds: u64) -> String {
    let (mut days, second) = (seconds / 86_400, seconds % 86_400);
    let leap = |y: u64| y.is_multiple_of(4) && (!y.is_multiple_of(100) || y.is_multiple_of(400));
    let mut year = 1970;
    while days >= 365 + u64::from(leap(year)) {
        days -= 365 + u64::from(leap(year));
        year += 1;
    }
    let mut month = 1;
    for length in [31, 28 + u64::from(leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31] {
        if days < length {
            break;
        }
        days -= length;
        month += 1;
    }
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year}-{month:02}-{:02}T{hour:02}:{minute:02}:{second:02}Z", days + 1)
}

#[cfg(test)]
mod tests {
    use super::format_time;

    #[test]
    fn time_is_written_as_rfc_3339() {
        assert_eq!(format_time(0), "1970-01-01T00:00:00Z");
        assert_eq!(format_time(951_782_400), "2000-02-29T00:00:00Z");
        assert_eq!(format_time(1_769_903_999), "2026-01-31T23:59:59Z");
        assert_eq!(format_time(4_107_542_400), "2100-03-01T00:00:00Z");
    }
}
