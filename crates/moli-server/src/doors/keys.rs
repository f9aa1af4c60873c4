//! API keys: where they come from, whose a request's is, and what it allows.

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Instant;

use axum::http::{HeaderMap, header};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use subtle::{ConditionallySelectable, ConstantTimeEq};

/// Most bytes of a file of keys.
const MAX_FILE: u64 = 1 << 20;
/// Most bytes of a key, which travels in a header.
const MAX_KEY: usize = 1024;

/// Why keys can't be used. None of these says a key.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeyError {
    /// The file can't be read.
    #[error("cannot read the keys in {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file is larger than any list of keys.
    #[error("{} has more than {limit} bytes: that is no list of keys", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Bytes that it may have.
        limit: u64,
    },
    /// It is not TOML, or has fields that keys have not.
    #[error("{}, line {line}: {reason}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong with it.
        reason: String,
    },
    /// There is no key where one is asked for.
    #[error("there is no key in {place}")]
    Empty {
        /// The file or the list.
        place: String,
    },
    /// A key that can't be one.
    #[error("the key {name:?}: {reason}")]
    Invalid {
        /// Its name.
        name: String,
        /// Why not.
        reason: String,
    },
}

/// The keys that a server asks for; none by default, and then it asks for none.
#[derive(Debug, Clone, Default)]
pub struct ApiKeys {
    keys: Vec<Arc<Key>>,
    /// How many of them were given in a list; the others come from the file.
    listed: usize,
    file: Option<PathBuf>,
}

/// A key, known by its digest alone.
pub(crate) struct Key {
    pub(crate) name: String,
    digest: [u8; 32],
    /// The models that it is for; `None`: all.
    models: Option<Vec<String>>,
    bucket: Option<Bucket>,
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Key").field("name", &self.name).finish_non_exhaustive()
    }
}

/// A file of keys.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct KeyFile {
    #[serde(default, rename = "key")]
    keys: Vec<KeyEntry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct KeyEntry {
    name: String,
    key: Option<String>,
    /// The same as 64 hexadecimal digits of its digest: the file need not be a secret then.
    sha256: Option<String>,
    models: Option<Vec<String>>,
    requests_per_minute: Option<u32>,
}

impl ApiKeys {
    /// The keys of a TOML file and those of a list, which is separated by commas. Those of a list are called `key-1`, `key-2`
    /// and so on, and are for all models.
    ///
    /// ```toml
    /// [[key]]
    /// name = "clinic"              # for the log
    /// key = "…"                    # or sha256 = "…", its digest
    /// models = ["qwen3-0.6b"]      # all, if it is left out
    /// requests_per_minute = 60     # any number, if it is left out
    /// ```
    ///
    /// # Errors
    /// [`KeyError`]; also where a file or a list is given and has no key.
    pub fn read(file: Option<&Path>, list: Option<&str>) -> Result<Self, KeyError> {
        let mut keys = list.map(listed).transpose()?.unwrap_or_default();
        let listed = keys.len();
        if let Some(path) = file {
            keys.extend(from_file(path)?);
        }
        Self::new(keys, listed, file.map(Path::to_owned))
    }

    fn new(keys: Vec<Arc<Key>>, listed: usize, file: Option<PathBuf>) -> Result<Self, KeyError> {
        for (place, key) in keys.iter().enumerate() {
            let earlier = keys.get(..place).unwrap_or_default();
            let invalid = |reason: String| KeyError::Invalid { name: key.name.clone(), reason };
            if earlier.iter().any(|other| other.name == key.name) {
                return Err(invalid("another one has this name".to_owned()));
            }
            if let Some(other) = earlier.iter().find(|other| other.digest == key.digest) {
                return Err(invalid(format!("it is the same as {:?}", other.name)));
            }
        }
        Ok(Self { keys, listed, file })
    }

    /// Whether none is asked for.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// Whether they can be read again.
    pub(crate) fn has_file(&self) -> bool {
        self.file.is_some()
    }

    /// The file read anew, and the list as it was. Everybody's minute begins anew too.
    fn reread(&self) -> Result<Self, KeyError> {
        let mut keys = self.keys.get(..self.listed).unwrap_or_default().to_vec();
        if let Some(path) = &self.file {
            keys.extend(from_file(path)?);
        }
        Self::new(keys, self.listed, self.file.clone())
    }

    /// A model that a key is for and that is none of these, with the key's name.
    fn check_models(&self, served: &[String]) -> Result<(), KeyError> {
        for key in &self.keys {
            let unknown = key.models.iter().flatten().find(|model| !served.contains(model));
            if let Some(model) = unknown {
                let reason = format!("it is for the model {model:?}, which is not served");
                return Err(KeyError::Invalid { name: key.name.clone(), reason });
            }
        }
        Ok(())
    }

    /// Whose key it is. All are compared, in a time that tells nothing of any.
    fn find(&self, given: &[u8]) -> Option<&Arc<Key>> {
        let digest: [u8; 32] = Sha256::digest(given).into();
        let mut found = u64::MAX;
        for (place, key) in (0u64..).zip(&self.keys) {
            found.conditional_assign(&place, key.digest.ct_eq(&digest));
        }
        self.keys.get(usize::try_from(found).ok()?)
    }

    /// The key of a request: as a bearer of OpenAI's clients, or as Anthropic's send it.
    pub(crate) fn of(&self, headers: &HeaderMap) -> Option<&Arc<Key>> {
        let bearer = headers.get(header::AUTHORIZATION).and_then(|value| bearer(value.as_bytes()));
        let own = headers.get("x-api-key").map(|value| value.as_bytes());
        let mut found = None;
        for given in [bearer, own].into_iter().flatten() {
            found = found.or(self.find(given));
        }
        found
    }
}

/// What is behind `Bearer`.
fn bearer(value: &[u8]) -> Option<&[u8]> {
    let (scheme, rest) = value.split_at_checked(7)?;
    scheme.eq_ignore_ascii_case(b"bearer ").then(|| rest.trim_ascii())
}

/// The keys of a list.
fn listed(list: &str) -> Result<Vec<Arc<Key>>, KeyError> {
    let keys = list.split(',').map(str::trim).filter(|key| !key.is_empty());
    let keys = keys.enumerate().map(|(place, key)| {
        let name = format!("key-{}", place + 1);
        let digest = digest(&name, key)?;
        Ok(Arc::new(Key { name, digest, models: None, bucket: None }))
    });
    let keys: Vec<Arc<Key>> = keys.collect::<Result<_, KeyError>>()?;
    if keys.is_empty() { Err(KeyError::Empty { place: "the list of keys".to_owned() }) } else { Ok(keys) }
}

/// The keys of a file.
fn from_file(path: &Path) -> Result<Vec<Arc<Key>>, KeyError> {
    let failed = |source| KeyError::Read { path: path.to_owned(), source };
    let file = File::open(path).map_err(failed)?;
    let mut text = String::new();
    file.take(MAX_FILE + 1).read_to_string(&mut text).map_err(failed)?;
    if text.len() as u64 > MAX_FILE {
        return Err(KeyError::TooLarge { path: path.to_owned(), limit: MAX_FILE });
    }
    // The parser's own report shows the line, with the key on it.
    let file: KeyFile = toml::from_str(&text).map_err(|error| {
        let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
        let line = before.matches('\n').count() + 1;
        KeyError::Syntax { path: path.to_owned(), line, reason: error.message().to_owned() }
    })?;
    if file.keys.is_empty() {
        return Err(KeyError::Empty { place: path.display().to_string() });
    }
    let bare = file.keys.iter().any(|entry| entry.key.is_some());
    if bare && others_may_read(path) {
        tracing::warn!(path = %path.display(), "others may read this file of keys");
    }
    file.keys.into_iter().map(|entry| entry.into_key().map(Arc::new)).collect()
}

#[cfg(unix)]
fn others_may_read(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    path.metadata().is_ok_and(|metadata| metadata.permissions().mode() & 0o044 != 0)
}

#[cfg(not(unix))]
fn others_may_read(_: &Path) -> bool {
    false
}

impl KeyEntry {
    fn into_key(self) -> Result<Key, KeyError> {
        let invalid = |reason: &str| KeyError::Invalid { name: self.name.clone(), reason: reason.to_owned() };
        if self.name.is_empty() || self.name.len() > 100 || self.name.contains(char::is_control) {
            return Err(invalid("a name has 1 to 100 bytes, and no control characters"));
        }
        let digest = match (&self.key, &self.sha256) {
            (Some(key), None) => digest(&self.name, key)?,
            (None, Some(hex)) => from_hex(hex).ok_or_else(|| invalid("sha256 has 64 hexadecimal digits"))?,
            _ => return Err(invalid("either key or sha256 is needed")),
        };
        if self.requests_per_minute == Some(0) {
            return Err(invalid("requests_per_minute is 0, and must be at least 1"));
        }
        let bucket = self.requests_per_minute.map(Bucket::new);
        Ok(Key { name: self.name, digest, models: self.models, bucket })
    }
}

/// Of a key that can travel in a header.
fn digest(name: &str, key: &str) -> Result<[u8; 32], KeyError> {
    if key.is_empty() || key.len() > MAX_KEY || !key.bytes().all(|byte| byte.is_ascii_graphic()) {
        let reason = format!("a key has 1 to {MAX_KEY} characters of ASCII, and no spaces");
        return Err(KeyError::Invalid { name: name.to_owned(), reason });
    }
    Ok(Sha256::digest(key.as_bytes()).into())
}

fn from_hex(text: &str) -> Option<[u8; 32]> {
    let mut digest = [0; 32];
    let pairs = text.as_bytes().chunks(2);
    if text.len() != 64 {
        return None;
    }
    for (byte, pair) in digest.iter_mut().zip(pairs) {
        let digit = |at: usize| char::from(*pair.get(at)?).to_digit(16);
        *byte = u8::try_from(digit(0)? * 16 + digit(1)?).ok()?;
    }
    Some(digest)
}

impl Key {
    pub(crate) fn may_use(&self, model: &str) -> bool {
        self.models.as_ref().is_none_or(|models| models.iter().any(|own| own == model))
    }

    /// Takes one of its requests, or says after how many seconds there is one again.
    pub(crate) fn take(&self) -> Result<(), u64> {
        self.bucket.as_ref().map_or(Ok(()), |bucket| bucket.take(Instant::now()))
    }

    /// Requests of a minute, where there is a limit.
    pub(crate) fn per_minute(&self) -> Option<u32> {
        self.bucket.as_ref().map(|bucket| bucket.per_minute)
    }
}

/// Requests that a minute allows: all of them at once, and then as they come back one by one.
struct Bucket {
    per_minute: u32,
    /// Those that are left, and when that was.
    left: Mutex<(f64, Instant)>,
}

impl Bucket {
    fn new(per_minute: u32) -> Self {
        Self { per_minute, left: Mutex::new((f64::from(per_minute), Instant::now())) }
    }

    fn take(&self, now: Instant) -> Result<(), u64> {
        let (most, a_second) = (f64::from(self.per_minute), f64::from(self.per_minute) / 60.0);
        let mut left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
        let since = now.saturating_duration_since(left.1).as_secs_f64();
        *left = ((left.0 + since * a_second).min(most), now);
        if left.0 < 1.0 {
            // At most 60.
            return Err(((1.0 - left.0) / a_second).ceil() as u64);
        }
        left.0 -= 1.0;
        Ok(())
    }
}

/// The keys that hold at the moment: a file can be read again.
#[derive(Debug)]
pub(crate) struct Keyring {
    keys: RwLock<Arc<ApiKeys>>,
    /// Models that a key can be for.
    served: Vec<String>,
}

impl Keyring {
    /// # Errors
    /// [`KeyError::Invalid`] for a key of a model that is not served.
    pub(crate) fn new(keys: ApiKeys, served: Vec<String>) -> Result<Self, KeyError> {
        keys.check_models(&served)?;
        Ok(Self { keys: RwLock::new(Arc::new(keys)), served })
    }

    pub(crate) fn current(&self) -> Arc<ApiKeys> {
        Arc::clone(&self.keys.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Reads the file again; where that fails, the keys stay as they are.
    pub(crate) fn reload(&self) -> Result<(), KeyError> {
        let keys = self.current().reread()?;
        keys.check_models(&self.served)?;
        *self.keys.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(keys);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn file(text: &str) -> Result<ApiKeys, KeyError> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        ApiKeys::read(Some(file.path()), None)
    }

    #[test]
    fn keys_are_found_by_what_they_are() {
        let digest: String = Sha256::digest(b"second").iter().map(|byte| format!("{byte:02x}")).collect();
        let text = format!(
            "[[key]]\nname = \"a\"\nkey = \"first\"\nmodels = [\"m\"]\n[[key]]\nname = \"b\"\nsha256 = \"{digest}\"\n"
        );
        let keys = file(&text).unwrap();
        let name = |given: &str| keys.find(given.as_bytes()).map(|key| key.name.as_str());
        assert_eq!(
            (name("first"), name("second"), name("third"), name("")),
            (Some("a"), Some("b"), None, None)
        );
        assert!(keys.find(b"first").unwrap().may_use("m") && !keys.find(b"first").unwrap().may_use("n"));
        assert!(keys.find(b"second").unwrap().may_use("n"));
        assert!(!format!("{keys:?}").contains("first"));
    }

    #[test]
    fn files_that_cannot_be() {
        let wrong = [
            ("", "no key"),
            ("[[key]]\nname = \"a\"\n", "either"),
            ("[[key]]\nname = \"a\"\nkey = \"\"\n", "ASCII"),
            ("[[key]]\nname = \"a\"\nkey = \"two words\"\n", "ASCII"),
            ("[[key]]\nname = \"a\"\nsha256 = \"12\"\n", "64"),
            ("[[key]]\nname = \"a\"\nkey = \"secret\"\nsha256 = \"12\"\n", "either"),
            ("[[key]]\nname = \"a\"\nkey = \"secret\"\nrequests_per_minute = 0\n", "at least 1"),
            ("[[key]]\nname = \"a\"\nkey = \"secret\"\nmodel = [\"m\"]\n", "line 4"),
            ("[[key]]\nname = \"a\"\nkey = secret\n", "line 3"),
            (
                "[[key]]\nname = \"a\"\nkey = \"secret\"\n[[key]]\nname = \"a\"\nkey = \"other\"\n",
                "this name",
            ),
            (
                "[[key]]\nname = \"a\"\nkey = \"secret\"\n[[key]]\nname = \"b\"\nkey = \"secret\"\n",
                "the same",
            ),
        ];
        for (text, says) in wrong {
            let error = file(text).unwrap_err().to_string();
            assert!(error.contains(says), "{text}: {error}");
            assert!(!error.contains("secret"), "{error}");
        }
        assert!(matches!(file(&"#".repeat(2 << 20)), Err(KeyError::TooLarge { limit: MAX_FILE, .. })));
        assert!(matches!(ApiKeys::read(None, Some(" , ")), Err(KeyError::Empty { .. })));
        assert!(matches!(ApiKeys::read(Some("/nowhere".as_ref()), None), Err(KeyError::Read { .. })));
    }

    #[test]
    fn a_minute_can_be_used_at_once_and_comes_back_bit_by_bit() {
        let bucket = Bucket::new(6);
        let start = Instant::now();
        assert!((0..6).all(|_| bucket.take(start).is_ok()));
        assert_eq!(bucket.take(start), Err(10));
        assert_eq!(bucket.take(start + Duration::from_secs(4)), Err(6));
        assert_eq!(bucket.take(start + Duration::from_secs(11)), Ok(()));
        assert_eq!(bucket.take(start + Duration::from_secs(11)), Err(9));
        let later = start + Duration::from_secs(1000);
        assert_eq!((0..10).filter(|_| bucket.take(later).is_ok()).count(), 6);
    }

    #[test]
    fn a_bearer_is_known_by_any_case() {
        assert_eq!(bearer(b"Bearer  x "), Some(&b"x"[..]));
        assert_eq!(bearer(b"bearer x"), Some(&b"x"[..]));
        assert_eq!(bearer(b"Basic eDp5"), None);
        assert_eq!(bearer(b"Bearer"), None);
    }
}
