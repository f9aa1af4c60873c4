//! The measuring itself.
//!
//! A case is a model, a test, and how it is computed; a run has the product of lists of them. Each is run once unmeasured,
//! then all take turns, round after round, every other round backwards: a machine's speed changes from minute to minute,
//! and what changes hits them all alike. Its own limits are measured between the rounds. Half of the rounds are run after
//! loading anew: where memory happens to lie can make one loading several per cent faster than the next.
//!
//! - [`Options`] say what is measured, [`run`] measures;
//! - [`Direct`] runs prompts and tokens on a runtime, and is what benches measure with too.

mod clients;
mod conditions;
mod cost;
mod direct;
mod error;
mod model;
mod options;
mod sustained;

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::time::{Duration, SystemTime};

use moli_engine::{BackendKind, CancelToken, Limit, memory_limit};
use moli_kernels::Isa;

pub(crate) use conditions::join;
pub use direct::{CHUNK, Direct, token};
pub use error::RunError;
pub use options::{Options, Source};

use crate::limits::{AnyMeter, Meter, Sample};
use crate::report::{Case, Conditions, Gpu, Latency, Limits, Machine, Report, Row, SCHEMA};
use crate::watch::{Computes, Watch};
use crate::{machine, statistics};
use model::Loaded;
use options::tokens;

/// What happens in a run.
#[derive(Debug, Clone)]
pub enum Event<'a> {
    /// A model is opened or made, and loaded.
    Loading {
        /// As it was named.
        model: &'a str,
    },
    /// A case is run.
    Measuring {
        /// The case.
        case: &'a Case,
        /// From 1; 0: unmeasured.
        round: usize,
        /// Runs that are over, the unmeasured ones included.
        done: usize,
        /// All runs.
        total: usize,
    },
    /// A sustained run goes on.
    Sustained {
        /// The case.
        case: &'a Case,
        /// Since its beginning.
        elapsed: Duration,
        /// Until when.
        time: Duration,
    },
}

/// What a repetition gave.
#[derive(Debug, Clone)]
struct Outcome {
    /// Of its timed part.
    seconds: f64,
    /// Of each answer, from the request to the first token.
    ttft: Vec<f64>,
    /// Between two tokens.
    gaps: Vec<f64>,
}

impl Outcome {
    fn of(seconds: f64) -> Self {
        Self { seconds, ttft: Vec::new(), gaps: Vec::new() }
    }
}

/// A case while it is measured.
struct Measured {
    /// Which model it is of.
    model: usize,
    case: Case,
    seconds: Vec<f64>,
    ttft: Vec<f64>,
    gaps: Vec<f64>,
    conditions: Vec<Conditions>,
    /// Loadings of the model that something was measured after.
    loads: usize,
}

impl Measured {
    /// Runs the case once more, measured or not; `false` when it was cancelled.
    fn repeat(
        &mut self,
        loaded: &mut Loaded,
        cases: &[Case],
        computes: &Computes,
        cancel: &CancelToken,
        keep: bool,
    ) -> Result<bool, RunError> {
        if cancel.is_cancelled() {
            return Ok(false);
        }
        let watch = Watch::start(computes);
        let outcome = loaded.repetition(&self.case, cases, cancel)?;
        let (conditions, _) = watch.finish(tokens(&self.case.work));
        let Some(outcome) = outcome else { return Ok(false) };
        if keep {
            self.take(outcome);
            self.conditions.push(conditions);
        }
        Ok(true)
    }

    fn take(&mut self, outcome: Outcome) {
        self.seconds.push(outcome.seconds);
        self.ttft.extend(outcome.ttft);
        self.gaps.extend(outcome.gaps);
    }

    /// The row; `None` where nothing was measured.
    fn row(self) -> Option<Row> {
        let each = tokens(&self.case.work);
        let conditions = conditions::join(&self.conditions, each * self.seconds.len());
        let latency = (!self.ttft.is_empty()).then(|| Latency {
            ttft: statistics::quantiles(&self.ttft),
            inter_token: statistics::quantiles(&self.gaps),
            histogram: statistics::histogram(&self.gaps),
        });
        (!self.seconds.is_empty()).then(|| Row {
            latency,
            loads: self.loads,
            ..statistics::row(self.case, each, self.seconds, conditions)
        })
    }
}

/// Measures what the options ask for. Where `cancel` is cancelled it ends within a repetition, and the report has what was
/// measured until then.
///
/// # Errors
/// What is wrong with the options or a model, before anything is allocated for it; what a model reports.
pub fn run(
    options: &Options,
    cancel: &CancelToken,
    on: &mut dyn FnMut(Event<'_>),
) -> Result<Report, RunError> {
    options.validate()?;
    let (gpu, computes) = computing(options.backend)?;
    let mut run = Run {
        options,
        cancel,
        names: names(&options.models),
        report: Report {
            schema: SCHEMA.to_owned(),
            date: humantime::format_rfc3339_seconds(SystemTime::now()).to_string(),
            build: machine::build(),
            machine: Machine { gpu, ..machine::describe(Isa::detect(), &computes) },
            models: BTreeMap::new(),
            limits: Vec::new(),
            rows: Vec::new(),
            sustained: Vec::new(),
            turns: None,
            outlier_rule: statistics::OUTLIER_RULE.to_owned(),
            notes: Vec::new(),
        },
        samples: BTreeMap::new(),
        computes,
    };
    let groups = run.groups()?;
    let mut meters = run.meters()?;
    for group in groups {
        if !cancel.is_cancelled() {
            run.group(&group, &mut meters, on)?;
        }
    }
    Ok(run.finish())
}

struct Run<'a> {
    options: &'a Options,
    cancel: &'a CancelToken,
    /// Of the models, as rows call them.
    names: Vec<String>,
    report: Report,
    samples: BTreeMap<usize, Vec<Sample>>,
    computes: Computes,
}

impl Run<'_> {
    /// The models that are measured in turns, by their places in the list. All of them are checked now, before anything is
    /// allocated: nobody should wait an hour for being told that the last model's context is too long.
    fn groups(&mut self) -> Result<Vec<Vec<usize>>, RunError> {
        let sources = &self.options.models;
        // All meters share what they read.
        let backend = self.options.backend;
        let meters =
            if self.options.limits && backend == BackendKind::Cpu { Meter::planned_bytes() } else { 0 };
        let mut needed = meters;
        for (source, name) in sources.iter().zip(&self.names) {
            if let Source::Memory(model) = source {
                fits(source, BackendKind::Cpu, model.size_bytes())?;
            }
            let (model, cases) = (Loaded::outline(source, backend)?, self.options.cases(name));
            model.check(&cases)?;
            let bytes = model.bytes(&cases)?;
            fits(source, backend, bytes.saturating_add(meters))?;
            needed = needed.saturating_add(bytes);
        }
        let places = 0..sources.len();
        let Some(limit) = limit(backend).filter(|limit| needed > limit.bytes && sources.len() > 1) else {
            return Ok(vec![places.collect()]);
        };
        let needed = moli_engine::units::megabytes(needed);
        self.note(format!(
            "the models were measured one after another, not in turns: together they take {needed}, more than {limit}"
        ));
        Ok(places.map(|place| vec![place]).collect())
    }

    /// What measures the machine's limits, by threads.
    fn meters(&mut self) -> Result<BTreeMap<usize, AnyMeter>, RunError> {
        #[cfg(feature = "cuda")]
        if let (BackendKind::Cuda(index), true) = (self.options.backend, self.options.limits) {
            let threads = self.options.threads.first().copied().unwrap_or(1);
            let peak = moli_model::Peak::new(index)
                .map_err(|error| RunError::Limits { threads, reason: error.to_string() })?;
            return Ok(BTreeMap::from([(threads, AnyMeter::Gpu(Box::new(peak)))]));
        }
        let mut meters: BTreeMap<usize, Meter> = BTreeMap::new();
        for &threads in self.options.threads.iter().filter(|_| self.options.limits) {
            let meter = match meters.values().next() {
                Some(other) => other.with_threads(threads),
                None => Meter::new(threads),
            };
            let meter = meter.map_err(|error| RunError::Limits { threads, reason: error.to_string() })?;
            meters.insert(threads, meter);
        }
        meters.values().next().and_then(Meter::note).into_iter().for_each(|note| self.note(note));
        Ok(meters.into_iter().map(|(threads, meter)| (threads, AnyMeter::Cpu(Box::new(meter)))).collect())
    }

    /// Measures models that take turns.
    fn group(
        &mut self,
        places: &[usize],
        meters: &mut BTreeMap<usize, AnyMeter>,
        on: &mut dyn FnMut(Event<'_>),
    ) -> Result<(), RunError> {
        let (mut models, mut measured) = (Vec::new(), Vec::new());
        for &place in places {
            let (Some(source), Some(name)) = (self.options.models.get(place), self.names.get(place)) else {
                continue;
            };
            on(Event::Loading { model: name });
            let (mut loaded, cases) = (Loaded::open(source, self.options.backend)?, self.options.cases(name));
            loaded.load(&cases)?;
            self.report.models.insert(name.clone(), loaded.describe());
            measured.extend(cases.iter().map(|case| Measured {
                model: models.len(),
                case: case.clone(),
                seconds: Vec::new(),
                ttft: Vec::new(),
                gaps: Vec::new(),
                conditions: Vec::new(),
                loads: 0,
            }));
            models.push((loaded, cases));
        }
        match self.options.sustain {
            Some(time) => self.sustain(time, &mut models, &mut measured, meters, on)?,
            None => self.rounds(&mut models, &mut measured, meters, on)?,
        }
        for measured in measured {
            let model = models.get(measured.model);
            let Some(mut row) = measured.row() else { continue };
            let seconds = row.tokens_per_repetition as f64 / row.rate.median;
            row.bound = model.zip(self.limits(row.case.threads)).and_then(|((model, _), limits)| {
                let kv_type = row.case.kv_type.parse().unwrap_or_default();
                model.cost.bound(&row.case.work, kv_type, seconds, &limits)
            });
            self.report.rows.push(row);
        }
        Ok(())
    }

    /// All cases in turns.
    fn rounds(
        &mut self,
        models: &mut [(Loaded, Vec<Case>)],
        measured: &mut [Measured],
        meters: &mut BTreeMap<usize, AnyMeter>,
        on: &mut dyn FnMut(Event<'_>),
    ) -> Result<(), RunError> {
        let (rounds, count) = (self.options.repetitions, measured.len());
        // What is to be told is told of the whole time: each row has the conditions of its own.
        let watch = Watch::start(&self.computes);
        let mut computed = 0;
        let mut done = 0;
        let halves = halves(rounds);
        let total = count * (rounds + halves.len());
        for (part, range) in halves.iter().enumerate() {
            if part > 0 {
                for (loaded, cases) in models.iter_mut() {
                    loaded.unload();
                    loaded.load(cases)?;
                }
            }
            // Once unmeasured after each loading.
            for round in [0].into_iter().chain(range.clone()) {
                if round > 0 {
                    self.measure_limits(meters)?;
                }
                for index in order(round, count) {
                    let Some(slot) = measured.get_mut(index) else { continue };
                    let Some((loaded, cases)) = models.get_mut(slot.model) else { continue };
                    on(Event::Measuring { case: &slot.case, round, done, total });
                    if !slot.repeat(loaded, cases, &self.computes, self.cancel, round > 0)? {
                        self.note(match (*range.start()).max(round) {
                            1 if round == 0 => "interrupted before anything was measured".to_owned(),
                            round => format!("interrupted in round {round} of {rounds}"),
                        });
                        watch.finish(computed).1.into_iter().for_each(|note| self.note(note));
                        return Ok(());
                    }
                    if round > 0 {
                        slot.loads = part + 1;
                    }
                    done += 1;
                    computed += tokens(&slot.case.work);
                }
            }
        }
        if count > 1 {
            self.note(format!("{count} cases took turns for {rounds} rounds, every other round backwards"));
        }
        watch.finish(computed).1.into_iter().for_each(|note| self.note(note));
        Ok(())
    }

    /// One case for a time.
    fn sustain(
        &mut self,
        time: Duration,
        models: &mut [(Loaded, Vec<Case>)],
        measured: &mut [Measured],
        meters: &mut BTreeMap<usize, AnyMeter>,
        on: &mut dyn FnMut(Event<'_>),
    ) -> Result<(), RunError> {
        let (Some((loaded, cases)), Some(slot)) = (models.first_mut(), measured.first_mut()) else {
            return Ok(());
        };
        let cancel = self.cancel;
        loaded.repetition(&slot.case, cases, cancel)?;
        self.measure_limits(meters)?;
        let sustained = sustained::run(&slot.case, time, &self.computes, on, || {
            if cancel.is_cancelled() { Ok(None) } else { loaded.repetition(&slot.case, cases, cancel) }
        })?;
        self.measure_limits(meters)?;
        self.report.sustained = sustained.moments;
        sustained.outcomes.into_iter().for_each(|outcome| slot.take(outcome));
        slot.conditions.push(sustained.conditions);
        slot.loads = 1;
        sustained.notes.into_iter().for_each(|note| self.note(note));
        if cancel.is_cancelled() {
            self.note("interrupted before the time was over".to_owned());
        }
        Ok(())
    }

    fn measure_limits(&mut self, meters: &mut BTreeMap<usize, AnyMeter>) -> Result<(), RunError> {
        for (&threads, meter) in meters {
            if self.cancel.is_cancelled() {
                break;
            }
            let sample = meter.measure().map_err(|reason| RunError::Limits { threads, reason })?;
            self.samples.entry(threads).or_default().push(sample);
        }
        Ok(())
    }

    fn limits(&self, threads: usize) -> Option<Limits> {
        self.samples.get(&threads).map(|samples| Limits::of(threads, samples))
    }

    /// Says something once.
    fn note(&mut self, note: String) {
        if !self.report.notes.contains(&note) {
            self.report.notes.push(note);
        }
    }

    fn finish(mut self) -> Report {
        self.report.limits =
            self.samples.iter().map(|(&threads, samples)| Limits::of(threads, samples)).collect();
        self.report
    }
}

/// The rounds that are run after each loading, from 1.
fn halves(rounds: usize) -> Vec<RangeInclusive<usize>> {
    let half = rounds.div_ceil(2);
    [1..=half, half + 1..=rounds].into_iter().filter(|range| !range.is_empty()).collect()
}

/// The order of a round: every other one is backwards, so that whatever drifts hits the first and the last alike.
fn order(round: usize, count: usize) -> impl Iterator<Item = usize> {
    let backwards = round.is_multiple_of(2) && round > 0;
    (0..count).map(move |index| if backwards { count - 1 - index } else { index })
}

/// What this process may use of memory, its own or the GPU's.
fn limit(backend: BackendKind) -> Option<Limit> {
    memory_limit(backend, None).ok().flatten()
}

/// The GPU that computes, if one does.
#[cfg(feature = "cuda")]
fn computing(backend: BackendKind) -> Result<(Option<Gpu>, Computes), RunError> {
    let BackendKind::Cuda(index) = backend else { return Ok((None, Computes::Processor)) };
    let device = format!("cuda:{index}");
    let info = moli_model::usable(index)
        .map_err(|error| RunError::Model { model: device.clone(), source: error.into() })?;
    let gpu = Gpu {
        name: info.name,
        device,
        capability: format!("{}.{}", info.capability.0, info.capability.1),
        multiprocessors: info.multiprocessors,
        memory_bytes: info.total_bytes,
    };
    Ok((Some(gpu), Computes::Gpu { pci_bus_id: info.pci_bus_id }))
}

/// A build without GPUs has none that computes.
#[cfg(not(feature = "cuda"))]
fn computing(_: BackendKind) -> Result<(Option<Gpu>, Computes), RunError> {
    Ok((None, Computes::Processor))
}

/// Whether there is memory for a model with all its cases.
fn fits(source: &Source, backend: BackendKind, needed: u64) -> Result<(), RunError> {
    match limit(backend).filter(|limit| needed > limit.bytes) {
        Some(limit) => Err(RunError::Memory { model: source.name(), needed, limit: Box::new(limit) }),
        None => Ok(()),
    }
}

/// Short names of models: the file's, or as they were named where two files have one name.
fn names(sources: &[Source]) -> Vec<String> {
    let short = |source: &Source| match source {
        Source::File { path, .. } | Source::Adapted { path, .. } => {
            path.file_stem().map(|stem| format!("{}{}", stem.to_string_lossy(), source.with_adapters()))
        }
        Source::Quantised { .. } | Source::Memory(_) => None,
    };
    let shorts: Vec<String> =
        sources.iter().map(|source| short(source).unwrap_or_else(|| source.name())).collect();
    let unique = |name: &String| shorts.iter().filter(|other| *other == name).count() == 1;
    let chosen = |(source, name): (&Source, &String)| if unique(name) { name.clone() } else { source.name() };
    sources.iter().zip(&shorts).map(chosen).collect()
}

#[cfg(test)]
mod tests;
