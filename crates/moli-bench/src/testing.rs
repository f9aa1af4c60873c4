//! A machine as files, for tests.

use std::fs;
use std::path::Path;

/// Files of `/proc` and `/sys` under a folder of their own.
pub(crate) struct Tree(tempfile::TempDir);

impl Tree {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub(crate) fn root(&self) -> &Path {
        self.0.path()
    }

    /// Writes a file, with the folders that it is in.
    pub(crate) fn set(&self, path: &str, content: impl AsRef<[u8]>) {
        let path = self.root().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    /// [`set`](Self::set), in a chain.
    pub(crate) fn with(self, path: &str, content: impl AsRef<[u8]>) -> Self {
        self.set(path, content);
        self
    }

    /// A file of a processor.
    pub(crate) fn cpu(self, cpu: u32, file: &str, content: &str) -> Self {
        self.with(&format!("sys/devices/system/cpu/cpu{cpu}/{file}"), content)
    }

    /// What this process may run on.
    pub(crate) fn allowed(self, cpus: &str) -> Self {
        self.with("proc/thread-self/status", format!("Name:\tmoli\nCpus_allowed_list:\t{cpus}\n"))
    }

    pub(crate) fn remove(&self, path: &str) {
        fs::remove_file(self.root().join(path)).unwrap();
    }
}
