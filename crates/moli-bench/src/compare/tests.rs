use super::*;
use crate::report::{Case, Conditions, Turns};
use crate::samples;
use crate::statistics;

/// Runs of one build on one machine that is shared, by `examples/record.rs`, in the order in which they were measured.
const RECORDED: &str = include_str!("../../tests/samples.txt");

/// The recorded runs with so many threads, slowed or not, each of so many processes: reports with a row of prefill and one of decode.
fn runs(threads: usize, slowed: bool, loads: usize) -> Vec<Report> {
    let lines: Vec<Vec<&str>> = RECORDED
        .lines()
        .filter(|line| !line.starts_with('#'))
        .map(|line| line.split_whitespace().collect())
        .filter(|line: &Vec<&str>| line[0].parse() == Ok(threads) && (line[1] != "0") == slowed)
        .collect();
    let example = samples::report();
    let row = |lines: Vec<&Vec<&str>>| {
        let seconds = lines.iter().flat_map(|line| &line[4..]).map(|text| text.parse().unwrap()).collect();
        let others = lines.iter().map(|line| line[2].parse::<f64>().unwrap()).fold(0.0, f64::max);
        let test = lines[0][3];
        let tokens: usize = test[2..].parse().unwrap();
        let work = match &test[..2] {
            "pp" => Test::Prefill { tokens, depth: 0 },
            _ => Test::Decode { tokens, depth: 128, batch: 1 },
        };
        let case = Case { work, threads, ..example.rows[0].case.clone() };
        let conditions = Conditions { others: Some(others), ..Conditions::default() };
        Row { loads, ..statistics::row(case, tokens, seconds, conditions) }
    };
    let run = |lines: &[Vec<&str>]| {
        let [prefill, decode] = [0, 1].map(|first| row(lines.iter().skip(first).step_by(2).collect()));
        Report { rows: vec![prefill, decode], ..example.clone() }
    };
    lines.chunks_exact(2 * loads).map(run).collect()
}

/// How many of 20 of the pairs, from all over them, get the verdict: of prefill and of decode.
fn count(pairs: &[(&Report, &Report)], verdict: Verdict) -> [usize; 2] {
    let mut count = [0; 2];
    assert!(pairs.len() >= 20);
    for (a, b) in (0..20).map(|index| pairs[index * pairs.len() / 20]) {
        let comparison = compare(a, b, &Options::default()).unwrap();
        for (count, row) in count.iter_mut().zip(&comparison.rows) {
            *count += usize::from(row.verdict == verdict);
        }
    }
    count
}

/// On both processors, some processes of that machine are slower by half throughout: one loading can't tell, and is not asked to.
#[test]
fn two_runs_of_one_build_show_no_difference() {
    for (threads, loads, asked) in [(1, 1, true), (1, 2, true), (2, 1, false), (2, 2, true)] {
        let runs = runs(threads, false, loads);
        let pairs: Vec<_> =
            (1..).zip(&runs).flat_map(|(next, a)| runs[next..].iter().map(move |b| (a, b))).collect();
        let same = count(&pairs, Verdict::NoDifferenceShown);
        eprintln!("threads {threads}, {loads} loads: no difference shown in {same:?} of 20");
        let enough = same.iter().all(|same| *same >= 18);
        assert!(enough || !asked, "threads {threads}, {loads} loads: {same:?} of 20");
    }
}

/// Decode on both processors of that machine is too unsteady to show a tenth: that is said, and not asked for.
#[test]
fn a_build_slowed_by_a_tenth_is_slower() {
    for (threads, asked) in [(1, 2), (2, 1)] {
        let [same, slowed] = [false, true].map(|slowed| runs(threads, slowed, 2));
        let pairs: Vec<_> = same.iter().flat_map(|a| slowed.iter().map(move |b| (a, b))).collect();
        let slower = count(&pairs, Verdict::Slower);
        eprintln!("threads {threads}: slower in {slower:?} of 20");
        assert!(slower.iter().take(asked).all(|slower| *slower >= 18), "threads {threads}: {slower:?} of 20");
        // And the other way round.
        let turned: Vec<_> = pairs.iter().map(|(a, b)| (*b, *a)).collect();
        let faster = count(&turned, Verdict::Faster);
        assert!(faster.iter().take(asked).all(|faster| *faster >= 18), "threads {threads}: {faster:?} of 20");
    }
}

/// Measurements in turns of two programs on one machine that is shared, by `moli bench compare --run --reports`.
const IN_TURNS: &str = include_str!("../../tests/turns.txt");

/// A recorded measurement in turns: whether B was slowed, the test, and the two reports, of one row each.
fn in_turns() -> Vec<(bool, String, [Report; 2])> {
    let example = samples::report();
    let measurement = |line: &str| {
        let [kind, number, test, rounds, a, b] = line.split(" | ").collect::<Vec<_>>().try_into().unwrap();
        let turns = Turns { id: format!("{kind} {number}"), rounds: rounds.parse().unwrap() };
        let work = match test {
            "pp64" => Test::Prefill { tokens: 64, depth: 0 },
            "tg16" => Test::Decode { tokens: 16, depth: 0, batch: 1 },
            other => panic!("{other}"),
        };
        let report = |milliseconds: &str| {
            let seconds = milliseconds.split(' ').map(|text| text.parse::<f64>().unwrap() / 1e3).collect();
            let case = Case { work: work.clone(), threads: 2, ..example.rows[0].case.clone() };
            let row = statistics::row(case, 16, seconds, Conditions::default());
            Report { rows: vec![row], turns: Some(turns.clone()), ..example.clone() }
        };
        (kind == "slowed", test.to_owned(), [report(a), report(b)])
    };
    IN_TURNS.lines().filter(|line| !line.starts_with('#')).map(measurement).collect()
}

/// What the verdicts of the recorded measurements are, of 20 of each test.
#[track_caller]
fn in_turns_say(slowed: bool, verdict: Verdict) {
    for test in ["pp64", "tg16"] {
        let recorded = in_turns();
        let ratios: Vec<Ratio> = recorded
            .iter()
            .filter(|(is_slowed, of, _)| *is_slowed == slowed && of == test)
            .map(|(_, _, [a, b])| compare(a, b, &Options::default()).unwrap().rows.remove(0))
            .collect();
        assert_eq!(ratios.len(), 20);
        let right = ratios.iter().filter(|ratio| ratio.verdict == verdict).count();
        let mut middle: Vec<f64> = ratios.iter().map(|ratio| ratio.ratio).collect();
        middle.sort_by(f64::total_cmp);
        eprintln!("{test}: {verdict} in {right} of 20, ratios {:.3} to {:.3}", middle[0], middle[19]);
        assert!(right >= 18, "{test}: {verdict} in {right} of 20");
    }
}

#[test]
fn in_turns_one_build_shows_no_difference() {
    in_turns_say(false, Verdict::NoDifferenceShown);
}

#[test]
fn in_turns_a_build_slowed_by_a_tenth_is_slower() {
    in_turns_say(true, Verdict::Slower);
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
    let options = Options { run_to_run: Some(f64::NAN), ..Options::default() };
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
    let quiet = Options { run_to_run: Some(0.01), ..Options::default() };
    let comparison = compare(&a, &b, &quiet).unwrap();
    assert!(
        comparison.rows.iter().all(|row| row.slower_by_more_than(0.05) && !row.slower_by_more_than(0.15))
    );
}
