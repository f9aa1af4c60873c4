//! Models in several files: `name-00001-of-0000N.gguf`.

use std::path::{Path, PathBuf};

use crate::gguf::sort_tensors;
use crate::{Bytes, FormatError, Gguf, Metadata, ReadMode};

const NO: &str = "split.no";
const COUNT: &str = "split.count";
const TENSORS: &str = "split.tensors.count";

/// Opens one file, or all the parts that its name tells of.
pub(crate) fn open(path: &Path, mode: ReadMode) -> Result<Gguf, FormatError> {
    match Parts::of(path) {
        Some(parts) => open_parts(path, &parts, mode),
        None => {
            let gguf = open_one(path, mode)?;
            refuse_part(&gguf.metadata)?;
            Ok(gguf)
        }
    }
}

/// An error for metadata that says that its file is not the whole model.
pub(crate) fn refuse_part(metadata: &Metadata) -> Result<(), FormatError> {
    match metadata.u64_opt(COUNT)? {
        Some(count) if count > 1 => Err(FormatError::SplitName { count }),
        _ => Ok(()),
    }
}

fn open_one(path: &Path, mode: ReadMode) -> Result<Gguf, FormatError> {
    let mut gguf = Gguf::parse(&Bytes::open(path, mode)?)?;
    gguf.paths.push(path.to_path_buf());
    Ok(gguf)
}

fn open_parts(asked: &Path, parts: &Parts<'_>, mode: ReadMode) -> Result<Gguf, FormatError> {
    // Whatever is wrong with the file that was asked for comes before what is wrong with the others.
    drop(Bytes::open(asked, ReadMode::Map)?);
    let mut whole: Option<Gguf> = None;
    for part in 1..=parts.count {
        let path = parts.path(part);
        let opened = open_one(&path, mode).and_then(|gguf| {
            expect(&gguf.metadata, COUNT, parts.count.into())?;
            expect(&gguf.metadata, NO, (part - 1).into())?;
            Ok(gguf)
        });
        let mut gguf = opened.map_err(|error| match error {
            FormatError::NotFound { path } => FormatError::MissingPart { path, part, count: parts.count },
            error => FormatError::Part { path: path.clone(), source: Box::new(error) },
        })?;
        match &mut whole {
            None => whole = Some(gguf),
            Some(whole) => {
                whole.tensors.append(&mut gguf.tensors);
                whole.paths.append(&mut gguf.paths);
                whole.file_bytes += gguf.file_bytes;
            }
        }
    }
    // `Parts::of` gives at least two parts, so there is a first one.
    let mut whole = whole.ok_or(FormatError::SplitName { count: 0 })?;
    expect(&whole.metadata, TENSORS, whole.tensors.len() as u64)?;
    whole.sorted = sort_tensors(&whole.tensors)?;
    Ok(whole)
}

fn expect(metadata: &Metadata, key: &'static str, expected: u64) -> Result<(), FormatError> {
    let actual = metadata.u64(key)?;
    if actual != expected {
        return Err(FormatError::SplitMismatch { key, expected, actual });
    }
    Ok(())
}

/// What the name of a part says.
struct Parts<'a> {
    path: &'a Path,
    prefix: &'a str,
    count: u32,
}

impl<'a> Parts<'a> {
    /// `None` unless the name ends in `-NNNNN-of-NNNNN.gguf` with two parts or more.
    fn of(path: &'a Path) -> Option<Self> {
        fn number(digits: &str) -> Option<u32> {
            (digits.len() == 5 && digits.bytes().all(|byte| byte.is_ascii_digit()))
                .then(|| digits.parse().ok())?
        }
        let name = path.file_name()?.to_str()?.strip_suffix(".gguf")?;
        let (rest, count) = name.rsplit_once("-of-")?;
        let (prefix, part) = rest.rsplit_once('-')?;
        let (part, count) = (number(part)?, number(count)?);
        (count > 1 && (1..=count).contains(&part)).then_some(Self { path, prefix, count })
    }

    /// Path of a part, counted from 1.
    fn path(&self, part: u32) -> PathBuf {
        self.path.with_file_name(format!("{}-{part:05}-of-{:05}.gguf", self.prefix, self.count))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_exact_pattern_is_a_part() {
        let parts = Parts::of(Path::new("/m/a-of-b-00002-of-00003.gguf")).unwrap();
        assert_eq!((parts.prefix, parts.count), ("a-of-b", 3));
        assert_eq!(parts.path(1), Path::new("/m/a-of-b-00001-of-00003.gguf"));
        for name in [
            "a.gguf",
            "a-00001-of-00001.gguf",
            "a-00000-of-00003.gguf",
            "a-00004-of-00003.gguf",
            "a-0001-of-00003.gguf",
            "a-+0001-of-00003.gguf",
            "a-00001-of-00003.bin",
            "00001-of-00003.gguf",
            "",
        ] {
            assert!(Parts::of(Path::new(name)).is_none(), "{name}");
        }
    }
}
