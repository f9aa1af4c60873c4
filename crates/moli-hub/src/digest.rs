//! SHA-256 as it is written in catalogues and manifests.

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::HubError;
use crate::progress::{Phase, Progress};

/// A sha256: 64 lower-case hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Sha256Hex(String);

impl Sha256Hex {
    /// The digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Accepts 64 hexadecimal digits in either case.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        (text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit()))
            .then(|| Self(text.to_ascii_lowercase()))
    }
}

impl TryFrom<String> for Sha256Hex {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        Self::parse(&text).ok_or_else(|| format!("'{text}' is not a sha256 (64 hexadecimal digits)"))
    }
}

impl From<Sha256Hex> for String {
    fn from(digest: Sha256Hex) -> Self {
        digest.0
    }
}

impl fmt::Display for Sha256Hex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

pub(crate) fn sha256_hex(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// Reads the whole file, which a person knows as `name`; its size and digest.
pub(crate) fn sha256_file(
    path: &Path,
    name: &str,
    progress: &mut dyn Progress,
) -> Result<(u64, Sha256Hex), HubError> {
    let error = |e| HubError::io("read", path, e);
    let mut file = File::open(path).map_err(error)?;
    let total = file.metadata().map_err(error)?.len();
    let mut hasher = Sha256::new();
    let mut buffer = vec![0u8; 1 << 18];
    let mut done = 0u64;
    loop {
        let n = match file.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => n,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(error(e)),
        };
        hasher.update(buffer.get(..n).unwrap_or_default());
        done += n as u64;
        progress.update(Phase::Verifying, name, done, Some(total));
    }
    Ok((done, Sha256Hex(hex(&hasher.finalize()))))
}
