//! Reading what the system says of itself in small files, of which none is trusted to be small or to be text.

use std::fs::{self, File};
use std::io::Read as _;
use std::path::Path;
use std::str::FromStr;

/// The most that is read of a file: the longest, `/proc/cpuinfo`, has 2 kB for each processor.
const MOST_BYTES: u64 = 4 << 20;
/// The most characters of a name that is shown to people.
const MOST_NAME: usize = 120;

/// A file's text; what is not UTF-8 is replaced. `None`: it can't be read.
pub(crate) fn text(path: &Path) -> Option<String> {
    let mut bytes = Vec::new();
    File::open(path).ok()?.take(MOST_BYTES).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8(bytes).unwrap_or_else(|bad| String::from_utf8_lossy(bad.as_bytes()).into_owned()))
}

/// A file that holds one number.
pub(crate) fn number<T: FromStr>(path: &Path) -> Option<T> {
    text(path)?.trim().parse().ok()
}

/// A file that holds a name: its first line. `None` where that is empty.
pub(crate) fn name(path: &Path) -> Option<String> {
    clean(&text(path)?)
}

/// The first line of a text, or what is before a NUL as a device tree ends its strings with, without control characters and
/// not endless.
pub(crate) fn clean(text: &str) -> Option<String> {
    let line = text.trim_start().split(['\n', '\0']).next()?.trim();
    let line: String = line.chars().filter(|c| !c.is_control()).take(MOST_NAME).collect();
    (!line.is_empty()).then_some(line)
}

/// The names in a folder, sorted.
pub(crate) fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().filter_map(Result::ok);
    let mut names: Vec<_> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort_unstable();
    names
}

/// The names in a folder that begin so, in the order of the number behind that; those without a number are left out.
pub(crate) fn numbered(folder: &Path, beginning: &str) -> Vec<(u32, String)> {
    let mut names: Vec<_> = names(folder)
        .into_iter()
        .filter_map(|name| Some((name.strip_prefix(beginning)?.parse().ok()?, name)))
        .collect();
    names.sort_unstable();
    names
}

/// The values of a field in `/proc/cpuinfo`, one for each processor that has it.
pub(crate) fn values<'a>(cpuinfo: &'a str, field: &'a str) -> impl Iterator<Item = &'a str> {
    cpuinfo.lines().filter_map(move |line| {
        let (name, value) = line.split_once(':')?;
        (name.trim_end() == field).then_some(value.trim())
    })
}
