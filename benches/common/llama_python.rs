//! llama.cpp in a process that stays: `scripts/peer-llama-cpp.py`.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use super::Error;
use super::workload::{Contender, Workload};

/// A running script with a model loaded.
pub(crate) struct LlamaPython {
    process: Child,
    /// `None` once it has been told to end.
    questions: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

impl LlamaPython {
    /// `venv` is what `scripts/peers-venv.sh` has made.
    pub(crate) fn start(venv: &Path, model: &Path, threads: usize) -> Result<Self, Error> {
        let python = venv.join("bin").join("python");
        let mut process = Command::new(&python)
            .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/peer-llama-cpp.py"))
            .arg(model)
            .arg(threads.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|error| format!("{}: {error}; scripts/peers-venv.sh makes it", python.display()))?;
        let questions = process.stdin.take();
        let answers = BufReader::new(process.stdout.take().ok_or("no pipe from the script")?);
        let mut peer = Self { process, questions, answers };
        match peer.answer()?.as_str() {
            "ready" => Ok(peer),
            other => Err(format!("the script of llama.cpp says {other:?} instead of being ready").into()),
        }
    }

    fn answer(&mut self) -> Result<String, Error> {
        let mut line = String::new();
        match self.answers.read_line(&mut line)? {
            0 => Err("the script of llama.cpp has ended".into()),
            _ => Ok(line.trim_end().to_owned()),
        }
    }
}

impl Contender for LlamaPython {
    fn name(&self) -> &str {
        "llama.cpp"
    }

    fn seconds(&mut self, workload: Workload) -> Result<f64, Error> {
        let question = match workload {
            Workload::Prefill { tokens } => format!("prefill {tokens}"),
            Workload::Decode { steps, depth } => format!("decode {steps} {depth}"),
            Workload::Batch { sequences } => format!("batch {sequences} {}", workload.context().1),
        };
        writeln!(self.questions.as_mut().ok_or("no pipe to the script")?, "{question}")?;
        let answer = self.answer()?;
        match answer.strip_prefix("seconds ") {
            Some(seconds) => Ok(seconds.parse()?),
            None => Err(answer.into()),
        }
    }
}

impl Drop for LlamaPython {
    /// The end of its input ends the script.
    fn drop(&mut self) {
        self.questions = None;
        let _ = self.process.wait();
    }
}
