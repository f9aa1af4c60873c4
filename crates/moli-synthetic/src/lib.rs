//! Models in the shapes and quantisation mixtures of published ones, with random weights: what a benchmark reads, without a
//! download.

use std::path::Path;

use moli_format::{Gguf, ReadMode};

/// What is wrong.
#[derive(Debug)]
pub struct SyntheticError(String);

impl std::fmt::Display for SyntheticError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for SyntheticError {}

/// A model.
#[derive(Debug, Clone)]
pub struct Synthetic {
    name: String,
    inner: moli_testkit::Synthetic,
}

impl Synthetic {
    /// `SHAPE:MIXTURE`.
    ///
    /// # Errors
    /// An unknown name.
    pub fn parse(text: &str) -> Result<Self, SyntheticError> {
        let (shape, mixture) = text.split_once(':').unwrap_or((text, "q4_k_m"));
        let inner = moli_testkit::Synthetic::named(shape, mixture).map_err(SyntheticError)?;
        Ok(Self { name: text.to_owned(), inner })
    }

    /// Name.
    pub fn name(&self) -> String {
        self.name.clone()
    }

    /// Bytes.
    pub fn size_bytes(&self) -> u64 {
        0
    }

    /// In memory.
    ///
    /// # Errors
    /// None.
    pub fn in_memory(&self) -> Result<Gguf, SyntheticError> {
        let file = std::env::temp_dir().join(format!("stub-{}.gguf", self.name.replace(':', "-")));
        self.write(&file)?;
        Gguf::open(&file, ReadMode::Map).map_err(|error| SyntheticError(error.to_string()))
    }

    /// To a file.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn write(&self, path: &Path) -> Result<(), SyntheticError> {
        self.inner.write(path).map_err(|error| SyntheticError(error.to_string()))
    }
}
