//! Which program measures.

use std::env::{self, consts};
use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Read};

use sha2::{Digest as _, Sha256};

use crate::report::Build;

/// The program that runs.
#[must_use]
pub fn build() -> Build {
    Build {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        target: format!("{}-{}", consts::ARCH, consts::OS),
        sha256: program().and_then(digest).ok(),
    }
}

/// The program's file. Linux has it even where it was replaced or deleted since.
fn program() -> io::Result<File> {
    File::open("/proc/self/exe").or_else(|_| File::open(env::current_exe()?))
}

/// The SHA-256 of what is read, as people write it.
fn digest(mut file: impl Read) -> io::Result<String> {
    let mut hash = Sha256::new();
    let mut part = vec![0; 64 << 10];
    loop {
        match file.read(&mut part)? {
            0 => break,
            length => hash.update(part.get(..length).unwrap_or_default()),
        }
    }
    Ok(hash.finalize().iter().fold(String::new(), |mut text, byte| {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_has_its_digest() {
        let known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(digest(&b"abc"[..]).unwrap(), known);
        // More than one part.
        let long = vec![b'a'; 1_000_000];
        let known = "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0";
        assert_eq!(digest(&long[..]).unwrap(), known);
    }

    #[test]
    fn this_program_says_what_it_is() {
        let build = build();
        assert_eq!(build.sha256.unwrap().len(), 64);
        assert!(build.target.contains('-') && !build.version.is_empty());
    }
}
