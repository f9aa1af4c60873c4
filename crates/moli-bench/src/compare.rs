//! Whether two programs or machines differ: per row the ratio of their speeds, how far it is known, and a verdict.
//!
//! Two reports of one measurement in turns ([`crate::turns`]) are compared round by round, and the rounds' ratios themselves say how far
//! they are known ([`paired`]).
//!
//! Of any other two, the repetitions of one run tell how much a run varies within, and little about how the next run would come out: memory lies
//! elsewhere, the processor is warmer, a neighbour has woken up. Their bootstrap alone finds a difference between two runs of one
//! build every other time. So the interval of their ratio has three parts:
//!
//! 1. the bootstrap over the repetitions, widened for their small number;
//! 2. what runs of one build differ by, [`Options::run_to_run`](field@Options::run_to_run). It depends on how often the model was loaded: one process
//!    generates 15% slower than the next throughout, with nothing to be seen that would explain it, while the fastest repetitions of two
//!    loadings agree to 2%;
//! 3. the share of the processors that others had during a row: at its end the interval reaches as far as the speed could have
//!    been without them.
//!
//! The first two add up as variances do; the third is a bound and is added. The tests hold recorded runs against it
//! (`tests/samples.txt`, by `examples/record.rs`).

use std::collections::HashMap;
use std::fmt;

use serde::Serialize;

use crate::read::{ReadError, check};
use crate::report::{Build, Machine, Report, Row, Test};
use crate::statistics::{kept, log_ratio, median, paired, quantile};

/// What runs of one build differ by where nobody says, as a standard deviation, if the model was loaded once: what
/// `tests/samples.txt` shows of a virtual machine that is shared.
pub const RUN_TO_RUN_ONE_LOAD: f64 = 0.05;
/// If it was loaded more often, in each of the runs.
pub const RUN_TO_RUN: f64 = 0.02;

/// The confidence of the intervals.
pub const CONFIDENCE: f64 = 0.95;
/// Standard deviations to either side that [`CONFIDENCE`] is.
const DEVIATIONS: f64 = 1.96;
/// What is compared is the time that this share of the repetitions stays below: whatever disturbs a run makes it slower, never
/// faster, so that the fastest say more about the build than the middle does.
pub const FASTEST: f64 = 0.1;
/// Samples drawn by the bootstrap, and the seed: the same reports give the same numbers.
const DRAWS: usize = 4000;
const SEED: u64 = 8;

/// How to compare.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Options {
    /// Compare the rows that both have and tell of the others, instead of refusing.
    pub common: bool,
    /// What runs of one build differ by on such a machine, as a standard deviation; 0.02 is 2%. `None`: [`RUN_TO_RUN`] or
    /// [`RUN_TO_RUN_ONE_LOAD`].
    pub run_to_run: Option<f64>,
}

impl Options {
    fn run_to_run(&self, row: &Row) -> f64 {
        self.run_to_run.unwrap_or(if row.loads > 1 { RUN_TO_RUN } else { RUN_TO_RUN_ONE_LOAD })
    }
}

/// One of the two reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Side {
    /// The first, what is compared with.
    A,
    /// The second, what is compared.
    B,
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// Why two reports can't be compared.
#[derive(Debug, thiserror::Error)]
pub enum CompareError {
    /// One makes no sense.
    #[error("{side}: {source}")]
    Report {
        /// Which.
        side: Side,
        /// What is wrong.
        source: ReadError,
    },
    /// One has no rows.
    #[error("{0}: there are no rows")]
    Empty(Side),
    /// One has a case more than once.
    #[error("{side}: two rows of {row}")]
    Twice {
        /// Which.
        side: Side,
        /// The case.
        row: String,
    },
    /// Some rows have none to be compared with.
    #[error("unlike things: {}", join(.0))]
    Unlike(Vec<Unmatched>),
    /// They have no row in common.
    #[error("no row is in both: {}", join(.0))]
    NothingInCommon(Vec<Unmatched>),
    /// [`Options::run_to_run`](field@Options::run_to_run) is not a share.
    #[error("run-to-run: {0} is not between 0 and 1")]
    RunToRun(f64),
}

/// A row without a counterpart.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Unmatched {
    /// The case.
    pub row: String,
    /// Where it is.
    pub only_in: Side,
    /// The fields in which the nearest row of the other side differs, if there is one left over there.
    pub differences: Vec<Difference>,
}

/// A field with two values.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// Its name.
    pub field: &'static str,
    /// In the first report.
    pub a: String,
    /// In the second.
    pub b: String,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} in A, {} in B", self.field, self.a, self.b)
    }
}

impl fmt::Display for Unmatched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { row, only_in, differences } = self;
        match differences.as_slice() {
            [] => write!(f, "{row}: only in {only_in}"),
            some => write!(f, "{row}: {}", join(some)),
        }
    }
}

fn join(parts: &[impl fmt::Display]) -> String {
    parts.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

/// Two reports beside each other.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Comparison {
    /// Of rows that both have, in the order of the first.
    pub rows: Vec<Ratio>,
    /// Rows that one side has.
    pub unmatched: Vec<Unmatched>,
    /// In what the builds and machines differ, which is what one compares.
    pub differences: Vec<Difference>,
    /// What has to be known before trusting the verdicts.
    pub notes: Vec<String>,
    /// [`CONFIDENCE`].
    pub confidence: f64,
    /// Rounds in which the two took turns; `None`: they did not.
    pub rounds: Option<usize>,
}

/// How two rows compare.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Ratio {
    /// The case.
    pub row: String,
    /// Tokens per second at [`FASTEST`], in the first and in the second; in turns the median of the runs.
    pub rates: [f64; 2],
    /// The second's to the first's: above 1 is faster.
    pub ratio: f64,
    /// It lies between these.
    pub interval: [f64; 2],
    /// Whether 1 is among them.
    pub verdict: Verdict,
}

/// What an interval says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Verdict {
    /// It lies above 1.
    #[serde(rename = "faster")]
    Faster,
    /// It lies below 1.
    #[serde(rename = "slower")]
    Slower,
    /// 1 is within.
    #[serde(rename = "no difference shown")]
    NoDifferenceShown,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Faster => "faster",
            Self::Slower => "slower",
            Self::NoDifferenceShown => "no difference shown",
        })
    }
}

impl Ratio {
    /// Whether it is slower, and by more than `share` (0.05 is 5%). The interval need only be below 1: that all of it is below
    /// 1 - `share` would let a build through that is slower by twice as much.
    pub fn slower_by_more_than(&self, share: f64) -> bool {
        self.verdict == Verdict::Slower && self.ratio < 1.0 - share
    }
}

/// Compares the second report with the first.
///
/// # Errors
/// [`CompareError`]: a report that makes no sense, and rows without a counterpart.
pub fn compare(a: &Report, b: &Report, options: &Options) -> Result<Comparison, CompareError> {
    if let Some(share) = options.run_to_run.filter(|share| !(0.0..1.0).contains(share)) {
        return Err(CompareError::RunToRun(share));
    }
    let in_b = keys(b, Side::B)?;
    let in_a = keys(a, Side::A)?;
    let index: HashMap<&Key, &Row> = in_b.iter().map(|(key, row)| (key, *row)).collect();
    let pairs: Vec<(&Row, &Row)> =
        in_a.iter().filter_map(|(key, row)| Some((*row, *index.get(key)?))).collect();
    let unmatched = unmatched(&in_a, &in_b);
    if pairs.is_empty() {
        return Err(CompareError::NothingInCommon(unmatched));
    }
    if !options.common && !unmatched.is_empty() {
        return Err(CompareError::Unlike(unmatched));
    }
    let rounds = a.turns.as_ref().filter(|turns| b.turns.as_ref() == Some(turns)).map(|turns| turns.rounds);
    let ratio = |a: &Row, b: &Row| match rounds {
        Some(rounds) => ratio_in_turns(a, b, rounds),
        None => ratio(a, b, options),
    };
    let rows: Vec<Ratio> = pairs.iter().map(|(a, b)| ratio(a, b)).collect();
    Ok(Comparison {
        unmatched,
        differences: differences(&setting(&a.build, &a.machine), &setting(&b.build, &b.machine)),
        notes: notes(a, b, &pairs, options, rounds),
        rows,
        confidence: CONFIDENCE,
        rounds,
    })
}

/// What two rows have to have in common, by the field's name. A model is what it is, whatever its name.
type Key = Vec<(&'static str, String)>;

fn key(report: &Report, row: &Row) -> Key {
    let case = &row.case;
    let model = report.models.get(&case.model);
    let mut key = vec![
        ("model fingerprint", model.map_or_else(String::new, |model| model.fingerprint.clone())),
        ("threads", case.threads.to_string()),
        ("kv_type", case.kv_type.clone()),
        ("context", case.context.to_string()),
        ("tokens_per_repetition", row.tokens_per_repetition.to_string()),
    ];
    let mut number = |field, value: usize| key.push((field, value.to_string()));
    let test = match case.work {
        Test::Prefill { tokens, depth } => {
            number("tokens", tokens);
            number("depth", depth);
            "prefill"
        }
        Test::Decode { tokens, depth, batch } => {
            number("tokens", tokens);
            number("depth", depth);
            number("batch", batch);
            "decode"
        }
        Test::EndToEnd { through, prompt, tokens, clients } => {
            number("prompt", prompt);
            number("tokens", tokens);
            number("clients", clients);
            key.push(("through", through.to_string()));
            "end_to_end"
        }
    };
    key.push(("test", test.to_owned()));
    key
}

fn keys(report: &Report, side: Side) -> Result<Vec<(Key, &Row)>, CompareError> {
    check(report).map_err(|source| CompareError::Report { side, source })?;
    if report.rows.is_empty() {
        return Err(CompareError::Empty(side));
    }
    let keys: Vec<(Key, &Row)> = report.rows.iter().map(|row| (key(report, row), row)).collect();
    let mut seen = HashMap::new();
    for (key, row) in &keys {
        if seen.insert(key, ()).is_some() {
            return Err(CompareError::Twice { side, row: row.case.to_string() });
        }
    }
    Ok(keys)
}

/// The rows that one side has, each of the first beside the nearest of the second that is left over, if that is of the same test.
fn unmatched(a: &[(Key, &Row)], b: &[(Key, &Row)]) -> Vec<Unmatched> {
    let rest = |these: &[(Key, &Row)], those: &[(Key, &Row)]| -> Vec<(Key, String)> {
        let those: HashMap<&Key, ()> = those.iter().map(|(key, _)| (key, ())).collect();
        let rest = these.iter().filter(|(key, _)| !those.contains_key(key));
        rest.map(|(key, row)| (key.clone(), row.case.to_string())).collect()
    };
    let mut rest_of_b = rest(b, a);
    let mut unmatched = Vec::new();
    for (key, row) in rest(a, b) {
        // A handful of fields is not the nearest of anything.
        let near = rest_of_b.iter().enumerate().map(|(index, (other, _))| (index, differences(&key, other)));
        let nearest = near.filter(|(_, all)| all.len() <= 3).min_by_key(|(_, all)| all.len());
        let differences = nearest.map(|(index, differences)| {
            rest_of_b.remove(index);
            differences
        });
        unmatched.push(Unmatched { row, only_in: Side::A, differences: differences.unwrap_or_default() });
    }
    let rest_of_b = rest_of_b.into_iter();
    unmatched.extend(rest_of_b.map(|(_, row)| Unmatched { row, only_in: Side::B, differences: Vec::new() }));
    unmatched
}

/// The fields that have other values; one that a side lacks is `none` there.
fn differences(a: &Key, b: &Key) -> Vec<Difference> {
    let value = |key: &Key, field| {
        key.iter()
            .find(|(name, _)| *name == field)
            .map_or_else(|| "none".to_owned(), |(_, value)| value.clone())
    };
    let mut fields: Vec<&'static str> = a.iter().chain(b).map(|(field, _)| *field).collect();
    let mut seen = Vec::new();
    fields.retain(|field| {
        !seen.contains(field) && {
            seen.push(*field);
            true
        }
    });
    let both = fields.into_iter().map(|field| Difference { field, a: value(a, field), b: value(b, field) });
    both.filter(|difference| difference.a != difference.b).collect()
}

/// What may differ and is told.
fn setting(build: &Build, machine: &Machine) -> Key {
    let text = |value: &Option<String>| value.clone().unwrap_or_else(|| "not known".to_owned());
    vec![
        ("version", build.version.clone()),
        ("target", build.target.clone()),
        ("program's sha256", text(&build.sha256)),
        ("processor", text(&machine.cpu)),
        ("board", text(&machine.board)),
        ("isa", machine.isa.clone()),
        ("usable processors", machine.usable_cpus.to_string()),
        ("governor", text(&machine.governor)),
        ("kernel", text(&machine.kernel)),
        ("GPU", text(&machine.gpu.as_ref().map(|gpu| gpu.name.clone()))),
    ]
}

/// Of two rows of reports that took turns.
fn ratio_in_turns(a: &Row, b: &Row, rounds: usize) -> Ratio {
    let runs = [a, b].map(|row| -> Vec<f64> {
        let each = row.seconds.len() / rounds.max(1);
        row.seconds.chunks_exact(each.max(1)).map(|run| quantile(run, FASTEST)).collect()
    });
    let [in_a, in_b] = &runs;
    let differences: Vec<f64> = in_a.iter().zip(in_b).map(|(a, b)| (a / b).ln()).collect();
    let rates = [in_a, in_b].map(|runs| a.tokens_per_repetition as f64 / median(runs));
    conclude(a, rates, paired(&differences))
}

/// Of two rows of any other reports.
fn ratio(a: &Row, b: &Row, options: &Options) -> Ratio {
    let [in_a, in_b] = [a, b].map(|row| kept(&row.seconds, &row.outliers).collect::<Vec<_>>());
    // Seconds of A to seconds of B, which is speed of B to speed of A, since the work is equal.
    let [low, middle, high] = log_ratio(&in_a, &in_b, FASTEST, DRAWS, SEED);
    let between = DEVIATIONS * options.run_to_run(a).hypot(options.run_to_run(b));
    let below = (middle - low).hypot(between) + reach(a);
    let above = (high - middle).hypot(between) + reach(b);
    let rates = [&in_a, &in_b].map(|seconds| a.tokens_per_repetition as f64 / quantile(seconds, FASTEST));
    conclude(a, rates, [middle - below, middle, middle + above])
}

/// What an interval around the logarithm of a ratio says.
fn conclude(row: &Row, rates: [f64; 2], [low, middle, high]: [f64; 3]) -> Ratio {
    let interval = [low, high].map(f64::exp);
    let verdict = match interval {
        [low, _] if low > 1.0 => Verdict::Faster,
        [_, high] if high < 1.0 => Verdict::Slower,
        _ => Verdict::NoDifferenceShown,
    };
    Ratio { row: row.case.to_string(), rates, ratio: middle.exp(), interval, verdict }
}

/// How much faster a row could have been, as a logarithm, had others not had their share of the processors.
fn reach(row: &Row) -> f64 {
    -(1.0 - contended(row)).ln()
}

/// The share of the processors that others had, in this system and beside it.
fn contended(row: &Row) -> f64 {
    let share = row.conditions.others.unwrap_or_default() + row.conditions.stolen.unwrap_or_default();
    share.clamp(0.0, 0.99)
}

fn notes(
    a: &Report,
    b: &Report,
    pairs: &[(&Row, &Row)],
    options: &Options,
    rounds: Option<usize>,
) -> Vec<String> {
    /// Shares of others that are told of.
    const BUSY: f64 = 0.03;
    let least = |(a, b): &(&Row, &Row)| DEVIATIONS * options.run_to_run(a).hypot(options.run_to_run(b));
    let mut shares: Vec<f64> = pairs.iter().map(least).collect();
    shares.sort_by(f64::total_cmp);
    shares.dedup();
    let mut notes: Vec<String> = shares
        .iter()
        .filter(|_| rounds.is_none())
        .map(|share| {
            format!("as runs of one build differ, less than {:.1}% is never shown", share.exp_m1() * 100.0)
        })
        .collect();
    if rounds.is_none()
        && options.run_to_run.is_none()
        && pairs.iter().any(|(a, b)| a.loads.min(b.loads) == 1)
    {
        notes.push("rows of one loading of the model are known less well than those of two".to_owned());
    }
    let rows_of_a: Vec<&Row> = pairs.iter().map(|(a, _)| *a).collect();
    let rows_of_b: Vec<&Row> = pairs.iter().map(|(_, b)| *b).collect();
    for (side, rows) in [(Side::A, rows_of_a), (Side::B, rows_of_b)] {
        let busy: Vec<f64> = rows.iter().map(|row| contended(row)).filter(|share| *share > BUSY).collect();
        if let Some(most) = busy.iter().copied().reduce(f64::max) {
            notes.push(format!(
                "{side}: others had up to {:.0}% of the processors during {} of {} rows{}",
                most * 100.0,
                busy.len(),
                rows.len(),
                if rounds.is_some() { "" } else { ", whose intervals are wider by it" }
            ));
        }
        let few = rows.iter().filter(|row| row.seconds.len() < 5).count();
        if few > 0 && rounds.is_none() {
            notes.push(format!("{side}: {few} of {} rows have fewer than 5 repetitions", rows.len()));
        }
    }
    for (side, report) in [(Side::A, a), (Side::B, b)] {
        notes.extend(report.notes.iter().map(|note| format!("{side}: {note}")));
    }
    notes
}

#[cfg(test)]
mod tests;
