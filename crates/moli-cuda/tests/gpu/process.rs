//! Tests of this program in processes of their own: what the mock driver does is told to it by variables.

use std::path::Path;
use std::process::{Command, Output};

/// Set in such a process.
const CHILD: &str = "MOLI_TEST_CHILD";

/// True where this process was started by [`run`].
pub(crate) fn is_child() -> bool {
    std::env::var_os(CHILD).is_some()
}

/// Runs tests of this program with these variables, where `libcuda` is looked for in `folder`.
pub(crate) fn run(tests: &[&str], variables: &[(&str, &str)], folder: &Path) -> Output {
    Command::new(std::env::current_exe().unwrap())
        .args(tests)
        .args(["--exact", "--nocapture", "--test-threads=1"])
        .env(CHILD, "")
        .env("LD_LIBRARY_PATH", folder)
        .envs(variables.iter().copied())
        .output()
        .unwrap()
}

/// Says something to the process that started this one.
pub(crate) fn tell(text: &str) {
    println!("\ntold: {text}");
}

/// What a test says in a process of its own, on lines of which none may be missing.
pub(crate) fn told(test: &str, variables: &[(&str, &str)], folder: &Path) -> Vec<String> {
    let output = run(&[test], variables, folder);
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{variables:?}: {out}\n{err}");
    let told: Vec<String> =
        out.lines().filter_map(|line| line.strip_prefix("told: ")).map(str::to_owned).collect();
    assert!(!told.is_empty(), "{variables:?}: nothing was told: {out}\n{err}");
    told
}
