//! Where a model is written to.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use moli_format::{FormatError, GgufWriter};

use crate::ConvertError;

/// A path that may be written: not there yet, unless it may be replaced, and none of the inputs.
#[derive(Debug, Clone)]
pub struct Output {
    path: PathBuf,
}

impl Output {
    /// Checks a path before any work is done for it.
    ///
    /// # Errors
    /// [`ConvertError::OutputIsInput`], whatever name it goes by, and [`ConvertError::OutputExists`] unless `replace`.
    pub fn new(path: &Path, inputs: &[&Path], replace: bool) -> Result<Self, ConvertError> {
        let path = path.to_path_buf();
        // An output that does not exist has no canonical form, and is no input.
        if let Ok(real) = fs::canonicalize(&path)
            && inputs.iter().any(|input| fs::canonicalize(input).is_ok_and(|input| input == real))
        {
            return Err(ConvertError::OutputIsInput { path });
        }
        if replace && path.is_dir() && !is_model(&path) {
            return Err(ConvertError::NotAModelFolder { path });
        }
        // A link that leads nowhere would be replaced as well.
        if !replace && fs::symlink_metadata(&path).is_ok() {
            return Err(ConvertError::OutputExists { path });
        }
        Ok(Self { path })
    }

    /// The path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes the model beside the path and renames it when it is whole.
    ///
    /// # Errors
    /// As for [`GgufWriter::write_file`], with what the system says as [`ConvertError::Write`]; or what a tensor's maker says.
    /// Then there is nothing new under the path or beside it.
    pub fn write(&self, model: &GgufWriter) -> Result<(), ConvertError> {
        model.write_file(&self.path).map_err(|error| match error.into() {
            ConvertError::Format(FormatError::Write { source }) => {
                ConvertError::Write { path: self.path.clone(), source }
            }
            error => error,
        })
    }
}

/// Whether a folder is a model and nothing more: files, and what sentence-transformers has of each of its steps.
fn is_model(folder: &Path) -> bool {
    let of_a_step = |name: &OsStr| name == "1_Pooling" || name == "2_Normalize";
    let belongs = |entry: &fs::DirEntry| {
        is_file(entry) || of_a_step(&entry.file_name()) && holds(&entry.path(), is_file)
    };
    holds(folder, belongs) && folder.join("config.json").is_file()
}

fn is_file(entry: &fs::DirEntry) -> bool {
    entry.file_type().is_ok_and(|kind| !kind.is_dir())
}

/// Whether all that is in a folder is of a kind.
fn holds(folder: &Path, kind: impl Fn(&fs::DirEntry) -> bool) -> bool {
    fs::read_dir(folder).is_ok_and(|mut all| all.all(|entry| entry.is_ok_and(|entry| kind(&entry))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_input_is_never_an_output() {
        let folder = tempfile::tempdir().unwrap();
        let (model, other) = (folder.path().join("model.gguf"), folder.path().join("other.gguf"));
        fs::write(&model, "x").unwrap();
        let roundabout = folder.path().join(".").join("model.gguf");
        for replace in [false, true] {
            let refused = Output::new(&roundabout, &[&other, &model], replace);
            assert!(matches!(refused, Err(ConvertError::OutputIsInput { .. })), "{refused:?}");
        }
        assert_eq!(Output::new(&other, &[&model], false).unwrap().path(), other);
    }

    #[test]
    fn what_is_there_stays_unless_it_may_be_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.gguf");
        fs::write(&path, "x").unwrap();
        assert!(matches!(Output::new(&path, &[], false), Err(ConvertError::OutputExists { .. })));
        assert!(Output::new(&path, &[], true).is_ok());
    }
}
