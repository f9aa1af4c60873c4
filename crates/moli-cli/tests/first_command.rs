//! README's first command, word for word: it answers with Paris, and the answer streams.

use std::io::Read;
use std::process::{Command, ExitCode, Stdio};

use libtest_mimic::{Arguments, Failed, Trial};

const README: &str = include_str!("../../../README.md");

fn main() -> ExitCode {
    let trial = Trial::test("readme_s_first_command_answers_with_paris_and_streams", first_command);
    let trial = trial.with_ignored_flag(moli_testkit::real_models_are_off());
    libtest_mimic::run(&Arguments::from_args(), vec![trial]).exit_code()
}

fn first_command() -> Result<(), Failed> {
    let arguments = arguments()?;
    // Pulled here, so that the command's time is the answer's.
    moli_testkit::real_model("smollm2-135m-instruct")?;
    let mut child = Command::new(env!("CARGO_BIN_EXE_moli"))
        .args(&arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    let mut stdout = child.stdout.take().ok_or("no standard output")?;
    let (mut answer, mut pieces, mut buffer) = (Vec::new(), 0, [0; 1024]);
    loop {
        match stdout.read(&mut buffer)? {
            0 => break,
            read => answer.extend_from_slice(&buffer[..read]),
        }
        pieces += 1;
    }
    let answer = String::from_utf8(answer)?;
    if !child.wait()?.success() || !answer.contains("Paris") {
        return Err(format!("moli {} answered {answer:?}", arguments.join(" ")).into());
    }
    if pieces < 3 {
        return Err(format!("{} bytes came in {pieces} pieces: not streamed", answer.len()).into());
    }
    Ok(())
}

/// What README passes to `moli` in its first command.
fn arguments() -> Result<Vec<String>, Failed> {
    let line = README.lines().find_map(|line| line.strip_prefix("cargo run --release -- "));
    let (options, prompt) = line
        .and_then(|line| line.strip_suffix('"'))
        .and_then(|line| line.split_once(" \""))
        .ok_or("README has no command of the form `cargo run --release -- … \"…\"`")?;
    Ok(options.split(' ').chain([prompt]).map(str::to_owned).collect())
}
