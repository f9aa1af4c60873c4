//! llama.cpp's own benchmark, or that of a fork of it: a process for each measurement.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::Error;
use super::workload::{Contender, Workload};

/// A `llama-bench` on one model. Batches are the work of `llama-batched-bench`, which is built beside it.
pub(crate) struct LlamaBench {
    name: String,
    program: PathBuf,
    model: PathBuf,
    threads: usize,
    /// Whether it has `-d`; where it hasn't, `-gp` asks for the same.
    depth_flag: bool,
}

impl LlamaBench {
    /// `program` is a path, or `NAME=PATH` where several are told apart.
    pub(crate) fn new(program: &str, model: &Path, threads: usize) -> Result<Self, Error> {
        let (name, program) = program.split_once('=').unwrap_or(("llama-bench", program));
        let (help, _) = run(Command::new(program).arg("--help"))?;
        Ok(Self {
            name: name.to_owned(),
            // A bare name is found where the shell finds it.
            program: std::fs::canonicalize(program).unwrap_or_else(|_| program.into()),
            model: std::path::absolute(model)?,
            threads,
            depth_flag: help.contains("--n-depth"),
        })
    }

    fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        // Some leave a log where they are run.
        command.current_dir(std::env::temp_dir());
        command.arg("-m").arg(&self.model).arg("-t").arg(self.threads.to_string());
        command
    }

    /// Its report is JSON, with the nanoseconds of each repetition.
    fn bench(&self, arguments: &str) -> Result<f64, Error> {
        let mut command = self.command(&self.program);
        command.args(["-r", "1", "-o", "json"]).args(arguments.split(' '));
        let report: serde_json::Value = serde_json::from_str(&run(&mut command)?.0)?;
        let nanoseconds = report.pointer("/0/samples_ns/0").and_then(serde_json::Value::as_f64);
        Ok(nanoseconds.ok_or("llama-bench reported no time")? / 1e9)
    }

    /// Its report is a table, on one of the two streams: `| PP | TG | B | N_KV | T_PP s | S_PP t/s | T_TG s | …`.
    fn batched_bench(&self, sequences: usize, steps: usize) -> Result<f64, Error> {
        let program = self.program.with_file_name("llama-batched-bench");
        let mut command = self.command(&program);
        // Each sequence begins with a prompt, which has one token at least.
        command.args(["-npp", "1", "-b", "2048", "-ub", "512"]);
        for (flag, number) in [("-npl", sequences), ("-ntg", steps), ("-c", sequences * (steps + 1))] {
            command.arg(flag).arg(number.to_string());
        }
        let (out, err) = run(&mut command)?;
        let row = out.lines().chain(err.lines()).rfind(|line| line.starts_with('|'));
        let seconds = row.and_then(|row| row.split('|').nth(7)?.trim().parse().ok());
        Ok(seconds.ok_or("llama-batched-bench reported no time")?)
    }
}

impl Contender for LlamaBench {
    fn name(&self) -> &str {
        &self.name
    }

    fn seconds(&mut self, workload: Workload) -> Result<f64, Error> {
        let [prompt, steps, depth] = match workload {
            Workload::Prefill { tokens } => [tokens, 0, 0],
            Workload::Decode { steps, depth } => [0, steps, depth],
            Workload::Batch { sequences } => {
                let (_, steps) = workload.context();
                return self.batched_bench(sequences, steps);
            }
        };
        let arguments = match depth {
            0 => format!("-p {prompt} -n {steps}"),
            _ if self.depth_flag => format!("-p 0 -n {steps} -d {depth}"),
            _ => format!("-p 0 -n 0 -gp {depth},{steps}"),
        };
        self.bench(&arguments)
    }
}

/// What the program wrote, by stream.
fn run(command: &mut Command) -> Result<(String, String), Error> {
    let program = command.get_program().to_owned();
    let output = command.output().map_err(|error| format!("{}: {error}", program.display()))?;
    let [out, err] = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    if output.status.success() {
        return Ok((out, err));
    }
    let reason = err.lines().last().unwrap_or("it says nothing");
    Err(format!("{} ended with {}: {reason}", program.display(), output.status).into())
}
