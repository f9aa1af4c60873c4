//! The files that a report goes to: made before anything is measured, so that an hour's work has a place to go, and renamed
//! when they are whole.

use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use moli_bench::format::{self, Format};
use moli_bench::{Report, plot};
use tempfile::NamedTempFile;

use crate::output::{escape, note};

/// What llama-bench takes for `-o`.
const LLAMA_BENCH_OUTPUTS: [&str; 5] = ["csv", "json", "jsonl", "md", "sql"];

/// Where a report goes.
#[derive(Debug)]
pub(super) struct Outputs {
    report: Option<(Target, Format)>,
    plots: Vec<Target>,
}

/// A file that is written.
#[derive(Debug)]
enum Target {
    /// Beside what it will replace.
    Beside { path: PathBuf, partial: NamedTempFile },
    /// A device or a pipe, which nothing can be renamed to.
    Stream { path: PathBuf, file: File },
}

impl Outputs {
    /// Opens them all.
    pub(super) fn open(report: Option<&Path>, format: Option<Format>, plots: &[PathBuf]) -> Result<Self> {
        let report = report.map(|path| {
            if LLAMA_BENCH_OUTPUTS.iter().any(|name| path == Path::new(name)) {
                bail!("-o names a file, and {} is a format: it is asked for with --format", path.display());
            }
            Ok((Target::open(path)?, format.unwrap_or_else(|| by_name(path))))
        });
        let plots = plots.iter().map(|path| {
            plot::check(path)?;
            Target::open(path)
        });
        Ok(Self { report: report.transpose()?, plots: plots.collect::<Result<_>>()? })
    }

    /// Writes them all, and says which rows a form has no place for.
    pub(super) fn write(self, report: &Report) -> Result<()> {
        if let Some((target, format)) = self.report {
            target.write(|_, file| {
                let mut out = BufWriter::new(file);
                format::write(report, format, &mut out)?;
                Ok(out.flush()?)
            })?;
            format::left_out(report, format).iter().for_each(|text| note!("{}", escape(text)));
        }
        for target in self.plots {
            target.write(|path, _| Ok(plot::write(report, path)?))?;
        }
        Ok(())
    }
}

/// Has a file written beside the one that it then replaces.
pub(super) fn beside(path: &Path, write: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    Target::open(path)?.write(|partial, _| write(partial))
}

impl Target {
    fn open(path: &Path) -> Result<Self> {
        let open = || {
            match path.metadata() {
                Ok(known) if known.is_dir() => bail!("it is a folder"),
                Ok(known) if !known.is_file() => {
                    let file = OpenOptions::new().write(true).open(path)?;
                    return Ok(Self::Stream { path: path.to_owned(), file });
                }
                // A file that may not be written is not replaced either.
                Ok(_) => drop(OpenOptions::new().append(true).open(path)?),
                Err(_) => {}
            }
            let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
            let suffix = extension(path).map(|extension| format!(".{extension}")).unwrap_or_default();
            let mut builder = tempfile::Builder::new();
            builder.prefix(".moli-bench-").suffix(&suffix);
            let partial = with_usual_rights(&mut builder).tempfile_in(folder.unwrap_or(Path::new(".")))?;
            Ok(Self::Beside { path: path.to_owned(), partial })
        };
        open().with_context(|| format!("cannot write {}", path.display()))
    }

    fn write(self, write: impl FnOnce(&Path, &File) -> Result<()>) -> Result<()> {
        match self {
            Self::Stream { path, file } => {
                write(&path, &file).with_context(|| format!("cannot write {}", path.display()))
            }
            Self::Beside { path, partial } => write(partial.path(), partial.as_file())
                .and_then(|()| Ok(partial.persist(&path).map(drop)?))
                .with_context(|| format!("cannot write {}", path.display())),
        }
    }
}

/// Temporary files are their owner's alone; this one stays.
#[cfg(unix)]
fn with_usual_rights<'a, 'b, 'c>(
    builder: &'c mut tempfile::Builder<'a, 'b>,
) -> &'c mut tempfile::Builder<'a, 'b> {
    use std::os::unix::fs::PermissionsExt as _;
    builder.permissions(std::fs::Permissions::from_mode(0o666))
}

#[cfg(not(unix))]
fn with_usual_rights<'a, 'b, 'c>(
    builder: &'c mut tempfile::Builder<'a, 'b>,
) -> &'c mut tempfile::Builder<'a, 'b> {
    builder
}

fn extension(path: &Path) -> Option<&str> {
    path.extension().and_then(OsStr::to_str)
}

/// The format that a file's name asks for.
fn by_name(path: &Path) -> Format {
    match extension(path) {
        Some("json") => Format::Json,
        Some("jsonl") => Format::Jsonl,
        Some("csv") => Format::Csv,
        Some("md") => Format::Md,
        _ => Format::Table,
    }
}
