//! A CUDA driver for machines without a GPU: see `crates/moli-cuda/mock`.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// The folder with the mock driver, `libcuda.so.1`, which is built where it isn't there yet; it needs `g++`. A program that is
/// started with it in `LD_LIBRARY_PATH` finds a GPU that computes on the processor.
///
/// # Errors
/// One line that says why it can't be built.
pub fn mock_cuda_folder() -> Result<PathBuf, String> {
    static FOLDER: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    FOLDER
        .get_or_init(|| {
            let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
            let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
            let folder = target.join("mock-cuda");
            let script = root.join("crates/moli-cuda/mock/build.sh");
            let built = Command::new("bash").arg(&script).arg(&folder).output();
            let built = built.map_err(|error| format!("bash can't be run: {error}"))?;
            if built.status.success() {
                return Ok(folder);
            }
            let said = String::from_utf8_lossy(&built.stderr);
            Err(format!("the mock CUDA driver can't be built (it needs g++): {}", said.trim()))
        })
        .clone()
}

/// Has this process find the mock driver, if there is no other: what looks for `libcuda.so.1` from now on gets it. With
/// `MOLI_TEST_GPU=1` it is left out, and tests run on the machine's own GPU.
///
/// # Errors
/// One line that says why it can't be had.
pub fn mock_cuda() -> Result<(), String> {
    if std::env::var_os("MOLI_TEST_GPU").is_some_and(|value| value == "1") {
        return Ok(());
    }
    let path = mock_cuda_folder()?.join("libcuda.so.1");
    // SAFETY: the library has no initialisers but those of its own state.
    #[allow(unsafe_code)]
    let library = unsafe { libloading::Library::new(&path) };
    // Loaded, it is found by its name; it stays as long as the process.
    std::mem::forget(library.map_err(|error| format!("{}: {error}", path.display()))?);
    Ok(())
}
