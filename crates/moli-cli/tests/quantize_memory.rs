//! Quantising takes the memory of some rows, not of the model: measured on the smallest real one.

use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use libtest_mimic::{Arguments, Failed, Trial};

/// Resident bytes at most. The model has 98 MB, and in single precision 540.
const MOST: u64 = 100_000_000;

fn main() -> ExitCode {
    let trial = Trial::test("quantising_takes_the_memory_of_some_rows", memory);
    let off = moli_testkit::real_models_are_off() || !cfg!(target_os = "linux");
    let trial = trial.with_ignored_flag(off);
    libtest_mimic::run(&Arguments::from_args(), vec![trial]).exit_code()
}

fn memory() -> Result<(), Failed> {
    let model = moli_testkit::real_model("smollm2-135m-instruct")?;
    let folder = tempfile::tempdir()?;
    let (single, small) = (folder.path().join("f32.gguf"), folder.path().join("q4_k_m.gguf"));
    for (input, output, mixture) in [(&model, &single, "f32"), (&single, &small, "q4_k_m")] {
        let peak = quantise(input, output, mixture)?;
        if peak > MOST {
            return Err(
                format!("to {mixture}: {peak} bytes were resident, at most {MOST} are allowed").into()
            );
        }
    }
    if single.metadata()?.len() < 5 * MOST || small.metadata()?.len() < MOST {
        return Err("the model is smaller than was thought".into());
    }
    Ok(())
}

/// The most bytes that were resident while a model was quantised.
fn quantise(input: &Path, output: &Path, mixture: &str) -> Result<u64, Failed> {
    let mut child = Command::new(env!("CARGO_BIN_EXE_moli"))
        .arg("quantize")
        .args([input, output])
        .args(["--type", mixture])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    let status = format!("/proc/{}/status", child.id());
    let mut peak = 0;
    // The system keeps the peak itself, so that the last look is as good as all.
    while child.try_wait()?.is_none() {
        let text = std::fs::read_to_string(&status).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kibibytes = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
        peak = kibibytes.map_or(peak, |kibibytes| kibibytes * 1024);
        std::thread::sleep(Duration::from_millis(2));
    }
    if !child.wait()?.success() || peak == 0 {
        return Err(format!("quantising to {mixture} failed").into());
    }
    Ok(peak)
}
