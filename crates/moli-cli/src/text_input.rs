//! Text from a file or from standard input: bounded, and UTF-8 or an error.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use anyhow::{Context, Result, bail};

/// More text than any context holds; an endless stream must not fill the memory.
const MAX_BYTES: u64 = 64 << 20;

/// Reads a text file.
pub(crate) fn from_file(path: &Path) -> Result<String> {
    let shown = path.display();
    if path.is_dir() {
        bail!("{shown} is a folder, not a text file");
    }
    let file = File::open(path).with_context(|| format!("cannot read {shown}"))?;
    read(file).with_context(|| format!("cannot read {shown}"))
}

/// Reads standard input to its end.
pub(crate) fn from_stdin() -> Result<String> {
    read(io::stdin().lock()).context("cannot read standard input")
}

/// Without the newline that `echo` and editors put at the end of a text.
pub(crate) fn without_final_newline(mut text: String) -> String {
    if text.ends_with('\n') {
        text.pop();
        if text.ends_with('\r') {
            text.pop();
        }
    }
    text
}

fn read(source: impl Read) -> Result<String> {
    let mut bytes = Vec::new();
    source.take(MAX_BYTES + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_BYTES {
        bail!("the text is longer than {} MiB", MAX_BYTES >> 20);
    }
    String::from_utf8(bytes).map_err(|error| {
        anyhow::anyhow!("the text is not UTF-8: byte {} is wrong", error.utf8_error().valid_up_to())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_final_newline_goes() {
        let cut = |text: &str| without_final_newline(text.to_owned());
        assert_eq!([cut("a\n"), cut("a\r\n"), cut("a\n\n"), cut("a"), cut("\n")], ["a", "a", "a\n", "a", ""]);
    }

    #[test]
    fn bytes_that_are_not_utf8_are_named() {
        let error = read(&b"ab\xff"[..]).unwrap_err();
        assert_eq!(error.to_string(), "the text is not UTF-8: byte 2 is wrong");
    }

    #[test]
    fn an_endless_stream_is_refused() {
        assert_eq!(read(io::repeat(b'a')).unwrap_err().to_string(), "the text is longer than 64 MiB");
    }
}
