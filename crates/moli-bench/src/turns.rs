//! Two programs in turns: each round runs `moli bench` of the one and of the other, and which is first alternates.
//!
//! What a machine does from minute to minute hits both runs of a round alike, and what a start of a program happens to get, of
//! memory and processors, is drawn anew in each round. So the rounds' ratios say what two programs differ by, and how far that is
//! known, where two runs far apart can't: [`crate::compare`] compares reports of one such measurement round by round.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::{self, JoinHandle};
use std::time::{Duration, SystemTime};

use moli_engine::CancelToken;

use crate::compare::{self, CompareError};
use crate::names::printable;
use crate::read::{self, ReadError};
use crate::report::{Model, Report, Row, Turns};
use crate::run::join;
use crate::statistics;

/// Rounds that are needed: of fewer, whatever they are, none is unlikely enough to show anything.
pub const LEAST_ROUNDS: usize = statistics::LEAST_PAIRS;
/// Most rounds.
pub const MOST_ROUNDS: usize = 100;
/// Between two looks at whether a program has ended.
const LOOK: Duration = Duration::from_millis(20);
/// Bytes that are kept of what a program says on standard error.
const MOST_WORDS: u64 = 1 << 16;

/// What is run.
#[derive(Debug, Clone)]
pub struct Options {
    /// The programs: what is compared with, and what is compared.
    pub programs: [PathBuf; 2],
    /// What both are called with, behind `bench`. They have to write a report as JSON to standard output.
    pub arguments: Vec<OsString>,
    /// Runs of each, [`LEAST_ROUNDS`] to [`MOST_ROUNDS`].
    pub rounds: usize,
}

/// A run begins.
#[derive(Debug, Clone, Copy)]
pub struct Event<'a> {
    /// The program.
    pub program: &'a Path,
    /// From 1.
    pub round: usize,
    /// Runs that are over, of both programs.
    pub done: usize,
    /// All runs.
    pub total: usize,
}

/// Why there is nothing to compare.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TurnsError {
    /// A number of rounds beyond what makes sense.
    #[error("the number of rounds is {value}, and must be between {LEAST_ROUNDS} and {MOST_ROUNDS}")]
    Rounds {
        /// What was asked for.
        value: usize,
    },
    /// A program that isn't there, or that the system does not run.
    #[error("cannot run {}: {source}", program.display())]
    Start {
        /// Which.
        program: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// A program failed, or something ended it.
    #[error("{} failed in round {round} of {rounds}: {status}{}", program.display(), last_words(.words))]
    Failed {
        /// Which.
        program: PathBuf,
        /// In this round, from 1.
        round: usize,
        /// Of so many.
        rounds: usize,
        /// How it ended.
        status: ExitStatus,
        /// What it said on standard error.
        words: String,
    },
    /// A program's output is no report that can be read.
    #[error("{}: {source}", program.display())]
    Report {
        /// Which.
        program: PathBuf,
        /// What is wrong.
        source: ReadError,
    },
    /// The two do not measure the same.
    #[error(transparent)]
    Unlike(#[from] CompareError),
    /// A program measured something else than in the first round.
    #[error("{} measured something else in round {round} than before: {what}", program.display())]
    Changed {
        /// Which.
        program: PathBuf,
        /// In this round, from 1.
        round: usize,
        /// What differs.
        what: String,
    },
    /// It was cancelled before there was enough to compare.
    #[error("interrupted in round {round} of {rounds}: {LEAST_ROUNDS} whole rounds are needed")]
    Interrupted {
        /// In this round, from 1.
        round: usize,
        /// Of so many.
        rounds: usize,
    },
}

/// The last line in which a program says something.
fn last_words(words: &str) -> String {
    let line = words.lines().rev().find(|line| line.starts_with("error: "));
    let line = line.or_else(|| words.lines().rev().find(|line| !line.trim().is_empty()));
    line.map_or_else(String::new, |line| format!(": {}", printable(line.trim_start_matches("error: "))))
}

/// Runs both in turns: a report of each program, of all its runs joined. Where `cancel` is cancelled it ends within a run; the
/// reports have the whole rounds until then, if there are [`LEAST_ROUNDS`].
///
/// # Errors
/// [`TurnsError`]: as soon as one of the two can't be run, fails, writes no report, or measures something that the other doesn't.
pub fn run(
    options: &Options,
    cancel: &CancelToken,
    on: &mut dyn FnMut(Event<'_>),
) -> Result<[Report; 2], TurnsError> {
    let Options { programs, arguments, rounds } = options;
    if !(LEAST_ROUNDS..=MOST_ROUNDS).contains(rounds) {
        return Err(TurnsError::Rounds { value: *rounds });
    }
    let mut reports: [Vec<Report>; 2] = [Vec::new(), Vec::new()];
    'rounds: for round in 1..=*rounds {
        let order = if round % 2 == 1 { [0, 1] } else { [1, 0] };
        for (turn, which) in order.into_iter().enumerate() {
            let (Some(program), Some(reports)) = (programs.get(which), reports.get_mut(which)) else {
                continue;
            };
            on(Event { program, round, done: (round - 1) * 2 + turn, total: rounds * 2 });
            match once(program, arguments, [round, *rounds], cancel)? {
                Some(report) => reports.push(report),
                None => break 'rounds,
            }
        }
        if let (1, [first, second]) = (round, &reports)
            && let (Some(a), Some(b)) = (first.first(), second.first())
        {
            // Not after an hour.
            compare::compare(a, b, &compare::Options::default())?;
        }
    }
    let [a, b] = &mut reports;
    let whole = a.len().min(b.len());
    if whole < LEAST_ROUNDS {
        return Err(TurnsError::Interrupted { round: whole + 1, rounds: *rounds });
    }
    a.truncate(whole);
    b.truncate(whole);
    let now = humantime::format_rfc3339_nanos(SystemTime::now());
    let turns = Turns { id: format!("{now}, process {}", std::process::id()), rounds: whole };
    let [a, b] = reports;
    let [first, second] = programs;
    let interrupted = (whole < *rounds).then(|| format!("interrupted in round {} of {rounds}", whole + 1));
    let joined = |program: &Path, reports: Vec<Report>| {
        let mut report = together(reports, &turns).map_err(|(round, what)| TurnsError::Changed {
            program: program.to_owned(),
            round,
            what,
        })?;
        report.notes.extend(interrupted.clone());
        Ok::<_, TurnsError>(report)
    };
    Ok([joined(first, a)?, joined(second, b)?])
}

/// Runs a program once; `None` when that was cancelled.
fn once(
    program: &Path,
    arguments: &[OsString],
    [round, rounds]: [usize; 2],
    cancel: &CancelToken,
) -> Result<Option<Report>, TurnsError> {
    let cannot = |source| TurnsError::Start { program: program.to_owned(), source };
    if cancel.is_cancelled() {
        return Ok(None);
    }
    let mut command = Command::new(program);
    command.arg("bench").args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut running = Running(command.spawn().map_err(cannot)?);
    let report = drain(running.0.stdout.take(), read::MOST_BYTES + 1).map_err(cannot)?;
    let words = drain(running.0.stderr.take(), MOST_WORDS).map_err(cannot)?;
    let status = loop {
        if cancel.is_cancelled() {
            return Ok(None);
        }
        match running.0.try_wait().map_err(cannot)? {
            Some(status) => break status,
            None => thread::sleep(LOOK),
        }
    };
    let [report, words] = [report, words].map(|thread| thread.join().unwrap_or_default());
    // Ctrl-C reaches both, and it may have ended first.
    if cancel.is_cancelled() {
        return Ok(None);
    }
    if !status.success() {
        let words = String::from_utf8_lossy(&words).into_owned();
        return Err(TurnsError::Failed { program: program.to_owned(), round, rounds, status, words });
    }
    let report =
        read::parse(&report).map_err(|source| TurnsError::Report { program: program.to_owned(), source })?;
    Ok(Some(report))
}

/// A program that does not outlive what waits for it.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It has ended already, mostly.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Reads a pipe to its end, whatever stands in it, and keeps so many bytes.
fn drain(pipe: Option<impl Read + Send + 'static>, most: u64) -> io::Result<JoinHandle<Vec<u8>>> {
    thread::Builder::new().name("drain".to_owned()).spawn(move || {
        let mut kept = Vec::new();
        if let Some(mut pipe) = pipe {
            // What can't be read is missing in the report, which then says so.
            let _ = pipe.by_ref().take(most).read_to_end(&mut kept);
            let _ = io::copy(&mut pipe, &mut io::sink());
        }
        kept
    })
}

/// The runs of one program as one report; the round, from 1, that measured something else, and what.
fn together(reports: Vec<Report>, turns: &Turns) -> Result<Report, (usize, String)> {
    let mut reports = reports.into_iter();
    let Some(mut all) = reports.next() else { return Err((1, "nothing".to_owned())) };
    let mut rows: Vec<Vec<Row>> = all.rows.drain(..).map(|row| vec![row]).collect();
    for (round, report) in (2..).zip(reports) {
        if report.rows.len() != rows.len() {
            return Err((round, format!("{} rows, {} before", report.rows.len(), rows.len())));
        }
        if report.build != all.build {
            return Err((round, "the program itself is another".to_owned()));
        }
        for (runs, row) in rows.iter_mut().zip(report.rows) {
            let alike = runs.first().is_some_and(|first| {
                let model = |models: &BTreeMap<String, Model>| {
                    models.get(&first.case.model).map(|model| model.fingerprint.clone())
                };
                first.case == row.case
                    && first.tokens_per_repetition == row.tokens_per_repetition
                    && first.seconds.len() == row.seconds.len()
                    && model(&all.models) == model(&report.models)
            });
            if !alike {
                return Err((round, row.case.to_string()));
            }
            runs.push(row);
        }
        for note in report.notes {
            if !all.notes.contains(&note) {
                all.notes.push(note);
            }
        }
    }
    all.rows = rows.into_iter().filter_map(row).collect();
    // They are of the first run.
    all.limits.clear();
    all.turns = Some(turns.clone());
    Ok(all)
}

/// The runs of one row as one. Latencies of several runs can't be joined from their quantiles, so it has none.
fn row(runs: Vec<Row>) -> Option<Row> {
    let first = runs.first()?;
    let (case, each) = (first.case.clone(), first.tokens_per_repetition);
    let seconds: Vec<f64> = runs.iter().flat_map(|run| run.seconds.iter().copied()).collect();
    let conditions: Vec<_> = runs.iter().map(|run| run.conditions.clone()).collect();
    let conditions = join(&conditions, each * seconds.len());
    let loads = runs.iter().map(|run| run.loads).sum();
    Some(Row { loads, ..statistics::row(case, each, seconds, conditions) })
}

#[cfg(all(test, unix))]
mod tests;
