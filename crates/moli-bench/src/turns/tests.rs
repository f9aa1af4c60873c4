#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;

use serde_json::Value;
use tempfile::TempDir;

use super::*;
use crate::compare::{Options as Compared, Verdict, compare};
use crate::samples;

/// Programs that are scripts, and write down whose turn it was.
struct Programs(TempDir);

impl Programs {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    /// One that does as the script says; `$round` is which of its runs it is, from 1.
    fn script(&self, name: &str, script: &str) -> PathBuf {
        let path = self.0.path().join(name);
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o755).open(&path).unwrap();
        let text = format!(
            "#!/bin/sh\ncd {}\necho {name} \"$@\" >>log\nround=$(grep -c '^{name} ' log)\n{script}\n",
            self.0.path().display()
        );
        file.write_all(text.as_bytes()).unwrap();
        path
    }

    /// One that writes this report each time.
    fn reporting(&self, name: &str, change: impl FnOnce(&mut Report)) -> PathBuf {
        self.script(name, &self.report(name, change))
    }

    /// What a script needs to write a report.
    fn report(&self, name: &str, change: impl FnOnce(&mut Report)) -> String {
        let mut report = samples::report();
        report.build.sha256 = None;
        change(&mut report);
        fs::write(self.0.path().join(format!("{name}.json")), serde_json::to_vec(&report).unwrap()).unwrap();
        format!("cat {name}.json")
    }

    fn log(&self) -> String {
        fs::read_to_string(self.0.path().join("log")).unwrap()
    }
}

fn in_turns(a: PathBuf, b: PathBuf, rounds: usize) -> Result<[Report; 2], TurnsError> {
    let options = Options { programs: [a, b], arguments: vec!["x".into()], rounds };
    // A script that was just written can be open in a child that another test's thread has just started.
    loop {
        match run(&options, &CancelToken::default(), &mut |_| {}) {
            Err(TurnsError::Start { source, .. }) if source.kind() == io::ErrorKind::ExecutableFileBusy => {}
            other => return other,
        }
    }
}

#[track_caller]
fn error(a: PathBuf, b: PathBuf) -> String {
    in_turns(a, b, 6).unwrap_err().to_string()
}

fn slower(report: &mut Report) {
    report.rows.iter_mut().for_each(|row| row.seconds.iter_mut().for_each(|seconds| *seconds *= 1.02));
}

#[test]
fn both_take_turns_and_their_runs_are_joined() {
    let programs = Programs::new();
    let (a, b) = (programs.reporting("a", |_| {}), programs.reporting("b", slower));
    let [a, b] = in_turns(a, b, 7).unwrap();
    let order: String = programs.log().lines().map(|line| line.chars().next().unwrap()).collect();
    assert_eq!(order, "abbaabbaabbaab");
    assert!(programs.log().lines().all(|line| line.ends_with(" bench x")));
    assert_eq!(a.turns.as_ref().unwrap().rounds, 7);
    assert_eq!(a.turns, b.turns);
    let once = samples::report();
    for (row, one) in a.rows.iter().zip(&once.rows) {
        assert_eq!((row.seconds.len(), row.loads), (7 * one.seconds.len(), 7));
        assert_eq!(row.seconds[..one.seconds.len()], one.seconds);
        assert_eq!(row.latency, None);
    }
    assert_eq!(a.notes, once.notes);
    // What it gives is a report as any other, and is compared as what it is: 2% that every round shows.
    let [a, b] = [a, b].map(|report| read::parse(&serde_json::to_vec(&report).unwrap()).unwrap());
    let compared = compare(&a, &b, &Compared::default()).unwrap();
    assert!(compared.rows.iter().all(|row| row.verdict == Verdict::Slower), "{compared:?}");
    assert!(compared.rows.iter().all(|row| (row.ratio * 1.02 - 1.0).abs() < 1e-9), "{compared:?}");
    assert_eq!(compared.rounds, Some(7));
    // With another measurement's there are no rounds in common.
    let mut other = b.clone();
    other.turns.as_mut().unwrap().id.push('x');
    let compared = compare(&a, &other, &Compared::default()).unwrap();
    assert!(compared.rows.iter().all(|row| row.verdict == Verdict::NoDifferenceShown), "{compared:?}");
    assert_eq!(compared.rounds, None);
}

#[test]
fn a_program_that_is_not_there_or_can_not_be_run_is_named() {
    let programs = Programs::new();
    let a = programs.reporting("a", |_| {});
    let missing = error(a.clone(), "/nonexistent/moli".into());
    assert!(missing.starts_with("cannot run /nonexistent/moli: "), "{missing}");
    let text = programs.0.path().join("text");
    fs::write(&text, "no program").unwrap();
    assert!(error(a, text).contains("text: Permission denied"));
}

#[test]
fn a_program_that_fails_half_way_is_named_with_its_round_and_words() {
    let programs = Programs::new();
    let a = programs.reporting("a", |_| {});
    let report = programs.report("b", |_| {});
    let fails =
        format!("[ $round = 3 ] && {{ echo loading >&2; echo 'error: no memory' >&2; exit 1; }}\n{report}");
    let told = error(a.clone(), programs.script("b", &fails));
    assert!(told.ends_with("b failed in round 3 of 6: exit status: 1: no memory"), "{told}");
    let report = programs.report("c", |_| {});
    let told = error(a, programs.script("c", &format!("[ $round = 2 ] && kill -9 $$\n{report}")));
    assert!(told.contains("c failed in round 2 of 6: signal: 9"), "{told}");
}

#[test]
fn what_is_no_report_or_of_another_version_is_named_with_its_program() {
    let programs = Programs::new();
    let a = programs.reporting("a", |_| {});
    let told = error(a.clone(), programs.script("b", "echo hello"));
    assert!(told.contains("b: not a report of `moli bench`"), "{told}");
    let told = error(a.clone(), programs.reporting("c", |report| report.schema = "moli-bench/7".into()));
    assert!(told.contains("c: schema: \"moli-bench/7\" in the file"), "{told}");
    // More than a report can be: it is not kept, and the program does not wait for a reader.
    let told = error(a, programs.script("d", &format!("head -c {} /dev/zero", read::MOST_BYTES + 1000)));
    assert!(told.contains("d: ") && told.contains("are more than a report can have"), "{told}");
}

#[test]
fn programs_that_measure_something_else_are_told_after_the_first_round() {
    let programs = Programs::new();
    let a = programs.reporting("a", |_| {});
    let other = programs.reporting("b", |report| {
        report.rows.iter_mut().for_each(|row| row.case.kv_type = "f32".into());
    });
    let told = error(a.clone(), other);
    assert!(told.contains("kv_type: f16 in A, f32 in B"), "{told}");
    assert_eq!(programs.log().lines().count(), 2);
    let (first, second) =
        (programs.report("one", |_| {}), programs.report("two", |report| report.rows[3].case.context = 1));
    let changes = programs.script("c", &format!("if [ $round = 4 ]; then {second}; else {first}; fi"));
    let told = error(a.clone(), changes);
    assert!(told.contains("c measured something else in round 4 than before: qwen2.5-1.5b pp512"), "{told}");
    let (first, second) = (
        programs.report("three", |_| {}),
        programs.report("four", |report| report.build.sha256 = Some("00".into())),
    );
    let changes = programs.script("d", &format!("if [ $round = 2 ]; then {second}; else {first}; fi"));
    assert!(error(a, changes).ends_with("in round 2 than before: the program itself is another"));
}

#[test]
fn rounds_are_bounded() {
    let told = |rounds| in_turns("a".into(), "b".into(), rounds).unwrap_err().to_string();
    assert_eq!(told(5), "the number of rounds is 5, and must be between 6 and 100");
    assert_eq!(told(101), "the number of rounds is 101, and must be between 6 and 100");
    let refused = |change: fn(&mut Value)| {
        let mut report = serde_json::to_value(samples::report()).unwrap();
        report["turns"] = serde_json::json!({"id": "x", "rounds": 7});
        change(&mut report);
        read::parse(report.to_string().as_bytes()).map(|_| ()).map_err(|error| error.to_string())
    };
    assert_eq!(refused(|_| {}), Ok(()));
    let told = refused(|report| report["turns"]["rounds"] = 0.into()).unwrap_err();
    assert_eq!(told, "turns.rounds is 0, and must be between 6 and 100");
    let told = refused(|report| report["turns"]["rounds"] = 6.into()).unwrap_err();
    assert_eq!(told, "row 0: 7 repetitions are not equally many in each of 6 rounds");
}

#[test]
fn what_is_cancelled_has_the_whole_rounds_or_says_how_many_are_needed() {
    let programs = Programs::new();
    let (a, b) = (programs.reporting("a", |_| {}), programs.reporting("b", |_| {}));
    let cancelled = |a: &Path, b: &Path, at: usize| {
        let cancel = CancelToken::default();
        let options = Options { programs: [a.into(), b.into()], arguments: Vec::new(), rounds: 9 };
        run(&options, &cancel, &mut |event| {
            if event.done == at {
                cancel.cancel();
            }
        })
    };
    let [a_report, b_report] = cancelled(&a, &b, 15).unwrap();
    assert_eq!([&a_report, &b_report].map(|report| report.turns.as_ref().unwrap().rounds), [7, 7]);
    assert!(a_report.rows.iter().all(|row| row.seconds.len() == 7 * 7));
    assert!(a_report.notes.contains(&"interrupted in round 8 of 9".to_owned()), "{:?}", a_report.notes);
    let told = cancelled(&a, &b, 11).unwrap_err().to_string();
    assert_eq!(told, "interrupted in round 6 of 9: 6 whole rounds are needed");
    // A program that goes on for long is ended.
    let endless = programs.script("c", "exec sleep 600");
    let cancel = CancelToken::default();
    let later = cancel.clone();
    let thread = thread::spawn(move || {
        thread::sleep(LOOK * 5);
        later.cancel();
    });
    let options = Options { programs: [endless.clone(), endless], arguments: Vec::new(), rounds: 6 };
    assert!(matches!(run(&options, &cancel, &mut |_| {}), Err(TurnsError::Interrupted { round: 1, .. })));
    thread.join().unwrap();
}
