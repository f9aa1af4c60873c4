use super::*;
use crate::report::Conditions;
use crate::samples;
use crate::statistics;

/// Runs of one build on one machine that is shared, by `examples/record.rs`, in the order in which they were measured.
const RECORDED: &str = include_str!("../../tests/samples.txt");

struct Run {
    slowed: bool,
    report: Report,
}

/// The recorded runs, of the first so many repetitions each: a report with two rows.
fn runs(repetitions: usize) -> Vec<Run> {
    let lines: Vec<Vec<&str>> = RECORDED
        .lines()
        .filter(|line| !line.starts_with('#'))
        .map(|line| line.split_whitespace().collect())
        .collect();
    let run = |lines: &[Vec<&str>]| {
        let mut report = samples::report();
        let row = |line: &Vec<&str>| {
            let seconds: Vec<f64> =
                line[4..].iter().take(repetitions).map(|text| text.parse().unwrap()).collect();
            let tokens: usize = line[3][2..].parse().unwrap();
            let work = match &line[3][..2] {
                "pp" => Test::Prefill { tokens, depth: 0 },
                "tg" => Test::Decode { tokens, depth: 128, batch: 1 },
                other => panic!("a test {other}"),
            };
            let mut case = report.rows[0].case.clone();
            case.work = work;
            let conditions = Conditions { others: Some(line[2].parse().unwrap()), ..Conditions::default() };
            statistics::row(case, tokens, seconds, conditions)
        };
        report.rows = lines.iter().map(row).collect();
        Run { slowed: lines[0][1] != "0", report }
    };
    lines.chunks(2).map(run).collect()
}

/// How many of the pairs get the verdict, by test.
fn count<'a>(pairs: impl Iterator<Item = (&'a Run, &'a Run)>, verdict: Verdict) -> [usize; 2] {
    let mut count = [0; 2];
    for (a, b) in pairs {
        let comparison = compare(&a.report, &b.report, &Options::default()).unwrap();
        for (count, row) in count.iter_mut().zip(&comparison.rows) {
            if row.verdict == verdict {
                *count += 1;
            } else {
                eprintln!("{row:?}");
            }
        }
    }
    count
}

/// Runs of which one was measured right after the other, as one does who wants to know; and runs minutes apart.
#[test]
fn two_runs_of_one_build_show_no_difference() {
    for repetitions in [5, 10] {
        let runs = runs(repetitions);
        let same: Vec<&Run> = runs.iter().filter(|run| !run.slowed).collect();
        assert!(same.len() >= 40, "{} runs", same.len());
        let neighbours = same.chunks_exact(2).take(20).map(|two| (two[0], two[1]));
        let apart = same.iter().take(20).zip(same.iter().skip(20)).map(|(a, b)| (*a, *b));
        for (kind, count) in [
            ("neighbours", count(neighbours, Verdict::NoDifferenceShown)),
            ("apart", count(apart, Verdict::NoDifferenceShown)),
        ] {
            assert!(
                count.iter().all(|count| *count >= 18),
                "{kind}, {repetitions} repetitions: {count:?} of 20"
            );
        }
    }
}

#[test]
fn a_build_slowed_by_a_tenth_is_slower() {
    for repetitions in [5, 10] {
        let runs = runs(repetitions);
        let pairs =
            runs.windows(2).filter(|two| !two[0].slowed && two[1].slowed).map(|two| (&two[0], &two[1]));
        let pairs: Vec<_> = pairs.take(20).collect();
        assert_eq!(pairs.len(), 20);
        let slower = count(pairs.iter().copied(), Verdict::Slower);
        assert!(slower.iter().all(|count| *count >= 18), "{repetitions} repetitions: {slower:?} of 20");
        // And the other way round.
        let faster = count(pairs.iter().map(|(a, b)| (*b, *a)), Verdict::Faster);
        assert!(faster.iter().all(|count| *count >= 18), "{repetitions} repetitions: {faster:?} of 20");
    }
}

fn error(change: impl FnOnce(&mut Report)) -> String {
    let mut b = samples::report();
    change(&mut b);
    compare(&samples::report(), &b, &Options::default()).unwrap_err().to_string()
}

fn each(report: &mut Report, change: impl Fn(&mut Row)) {
    report.rows.iter_mut().for_each(change);
}

#[test]
fn unlike_things_are_refused_with_the_field_and_both_values() {
    let kv = error(|b| each(b, |row| row.case.kv_type = "q8_0".to_owned()));
    assert!(kv.contains("kv_type: f16 in A, q8_0 in B"), "{kv}");
    let context = error(|b| each(b, |row| row.case.context = 4096));
    assert!(context.contains("context: 8192 in A, 4096 in B"), "{context}");
    let model = error(|b| b.models.values_mut().for_each(|model| model.fingerprint = "ef".repeat(32)));
    assert!(model.contains("model fingerprint: cdcd") && model.contains("in A, efef"), "{model}");
    let threads = error(|b| each(b, |row| row.case.threads += 10));
    assert!(threads.contains("threads: 1 in A, 11 in B"), "{threads}");
    let unit = error(|b| b.rows[0].tokens_per_repetition = 511);
    assert!(unit.contains("tokens_per_repetition: 512 in A, 511 in B"), "{unit}");
    let test = error(|b| b.rows[0].case.work = Test::Prefill { tokens: 256, depth: 0 });
    assert!(test.contains("tokens: 512 in A, 256 in B"), "{test}");
    let kind = error(|b| b.rows[0].case.work = Test::Decode { tokens: 512, depth: 0, batch: 1 });
    assert!(kind.contains("test: prefill in A, decode in B"), "{kind}");
}

#[test]
fn rows_of_one_side_are_named_unless_the_common_ones_are_asked_for() {
    let mut b = samples::report();
    let row = b.rows.remove(0).case.to_string();
    let refused = compare(&samples::report(), &b, &Options::default()).unwrap_err();
    assert_eq!(refused.to_string(), format!("unlike things: {row}: only in A"));
    let common = Options { common: true, ..Options::default() };
    let comparison = compare(&samples::report(), &b, &common).unwrap();
    assert_eq!((comparison.rows.len(), comparison.unmatched.len()), (b.rows.len(), 1));
    each(&mut b, |row| row.case.context = 1);
    assert!(matches!(compare(&samples::report(), &b, &common), Err(CompareError::NothingInCommon(_))));
}

#[test]
fn reports_that_make_no_sense_are_refused_with_their_side() {
    assert_eq!(error(|b| b.rows.clear()), "B: there are no rows");
    assert_eq!(error(|b| b.rows[3].seconds.clear()), "B: row 3: no repetitions");
    assert!(error(|b| b.rows[0].seconds[0] = f64::INFINITY).contains("B: row 0: seconds is inf"));
    assert!(error(|b| b.rows.push(b.rows[0].clone())).contains("B: two rows of qwen2.5-1.5b pp512"));
    let options = Options { run_to_run: f64::NAN, ..Options::default() };
    let report = samples::report();
    assert!(matches!(compare(&report, &report, &options), Err(CompareError::RunToRun(_))));
}

#[test]
fn a_models_name_and_the_machine_may_differ() {
    let mut b = samples::report();
    b.models = b.models.into_values().map(|model| ("renamed".to_owned(), model)).collect();
    b.rows.iter_mut().for_each(|row| row.case.model = "renamed".to_owned());
    b.machine.isa = "scalar".to_owned();
    let comparison = compare(&samples::report(), &b, &Options::default()).unwrap();
    assert!(comparison.rows.iter().all(|row| row.ratio == 1.0 && row.verdict == Verdict::NoDifferenceShown));
    let expected = Difference { field: "isa", a: "avx2".to_owned(), b: "scalar".to_owned() };
    assert_eq!(comparison.differences, [expected]);
}

#[test]
fn what_others_had_of_the_processors_is_not_held_against_a_build() {
    let (a, mut b) = (samples::report(), samples::report());
    each(&mut b, |row| row.seconds.iter_mut().for_each(|seconds| *seconds *= 1.3));
    let verdicts = |a: &Report, b: &Report| -> Vec<Verdict> {
        let comparison = compare(a, b, &Options::default()).unwrap();
        comparison.rows.iter().map(|row| row.verdict).collect()
    };
    assert!(verdicts(&a, &b).iter().all(|verdict| *verdict == Verdict::Slower));
    assert!(verdicts(&b, &a).iter().all(|verdict| *verdict == Verdict::Faster));
    each(&mut b, |row| row.conditions.others = Some(0.3));
    assert!(verdicts(&a, &b).iter().all(|verdict| *verdict == Verdict::NoDifferenceShown));
    assert!(verdicts(&b, &a).iter().all(|verdict| *verdict == Verdict::NoDifferenceShown));
    let comparison = compare(&a, &b, &Options::default()).unwrap();
    assert!(
        comparison.notes.iter().any(|note| note.starts_with("B: others had up to 30%")),
        "{:?}",
        comparison.notes
    );
}

#[test]
fn a_build_that_is_slower_than_allowed_is_told() {
    let (a, mut b) = (samples::report(), samples::report());
    each(&mut b, |row| row.seconds.iter_mut().for_each(|seconds| *seconds /= 0.9));
    let comparison = compare(&a, &b, &Options::default()).unwrap();
    assert!(
        comparison.rows.iter().all(|row| row.slower_by_more_than(0.05) && !row.slower_by_more_than(0.15))
    );
}
