//! What was seen of a run so far.

use std::path::{Path, PathBuf};
use std::time::Instant;

use moli_engine::Resident;

use super::sensors::{Found, Sensors};
use super::times::{Busy, TICKS, Usage};
use super::{Computes, Reading};
use crate::report::Conditions;

/// Shares of the processors' time from which on a reader is told.
const TELL_OTHERS: f64 = 0.05;
const TELL_STOLEN: f64 = 0.02;

/// Samples of the sensors, and how everything was at the beginning.
pub(super) struct Trace {
    root: PathBuf,
    cpus: Vec<u32>,
    sensors: Sensors,
    start: Instant,
    usage: Option<Usage>,
    busy: Option<Busy>,
    /// Lowest, median and highest of the processors' frequencies at each sample, Hz.
    frequencies: Vec<[f64; 3]>,
    temperature: Option<f64>,
    joules: f64,
    throttled: u64,
    /// Bytes of this process in memory at each sample, and whether the system's own mark of the most began anew here.
    resident: Vec<u64>,
    marked: bool,
    /// Of what a [`Reading`] tells.
    since: Since,
    notes: Vec<String>,
}

/// What was seen since the last reading.
struct Since {
    start: Instant,
    first_frequency: usize,
    temperature: Option<f64>,
    joules: f64,
}

impl Trace {
    /// Begins, with the first sample.
    pub(super) fn start(root: &Path, cpus: Vec<u32>, computes: &Computes, now: Instant) -> Self {
        let sensors = Sensors::find(root, &cpus, computes);
        let mut trace = Self {
            sensors,
            start: now,
            usage: Usage::read(root),
            busy: Busy::read(root, &cpus),
            frequencies: Vec::new(),
            temperature: None,
            joules: 0.0,
            throttled: 0,
            resident: Vec::new(),
            marked: Resident::reset_peak(root),
            since: Since { start: now, first_frequency: 0, temperature: None, joules: 0.0 },
            notes: Vec::new(),
            root: root.to_owned(),
            cpus,
        };
        trace.sample(now);
        // What was used until now is not of the run.
        trace.joules = 0.0;
        trace
    }

    /// Reads all sensors. One that fails is not read again.
    pub(super) fn sample(&mut self, now: Instant) {
        let seconds = now.saturating_duration_since(self.start).as_secs_f64();
        let notes = &mut self.notes;
        let frequencies = ask(&mut self.sensors.frequency, |s| s.read(), "frequency", seconds, notes);
        if let Some(hertz) = frequencies
            && let (Some(low), Some(middle), Some(high)) = (hertz.first(), median(&hertz), hertz.last())
        {
            self.frequencies.push([*low, middle, *high]);
        }
        if let Some(degrees) = ask(&mut self.sensors.temperature, |s| s.read(), "temperature", seconds, notes)
        {
            let highest = |so_far: Option<f64>| Some(so_far.map_or(degrees, |most| most.max(degrees)));
            self.temperature = highest(self.temperature);
            self.since.temperature = highest(self.since.temperature);
        }
        if let Some(joules) = ask(&mut self.sensors.energy, |s| s.read(now), "energy", seconds, notes) {
            self.joules += joules;
        }
        if let Some(times) = ask(&mut self.sensors.throttling, |s| s.read(), "throttling", seconds, notes) {
            self.throttled = self.throttled.saturating_add(times);
        }
        self.resident.extend(Resident::read(&self.root).map(|resident| resident.bytes));
    }

    /// What the sensors said since the last call, or since the beginning.
    pub(super) fn moment(&mut self, now: Instant) -> Reading {
        self.sample(now);
        let since = &self.since;
        let seconds = now.saturating_duration_since(since.start).as_secs_f64();
        let medians = self.frequencies.get(since.first_frequency..).unwrap_or_default();
        let frequency = sorted(medians.iter().map(|[_, median, _]| *median));
        let reading = Reading {
            frequency: median(&frequency).filter(|_| self.sensors.frequency.is_ok()),
            temperature: since.temperature.filter(|_| self.sensors.temperature.is_ok()),
            watts: (self.sensors.energy.is_ok() && seconds > 0.0)
                .then(|| (self.joules - since.joules) / seconds),
        };
        self.since = Since {
            start: now,
            first_frequency: self.frequencies.len(),
            temperature: None,
            joules: self.joules,
        };
        reading
    }

    /// The conditions of the whole run, in which so many tokens were computed, and what a reader has to be told of them.
    pub(super) fn finish(mut self, tokens: usize, now: Instant) -> (Conditions, Vec<String>) {
        self.sample(now);
        let seconds = now.saturating_duration_since(self.start).as_secs_f64();
        let usage = Usage::read(&self.root);
        let used = |field: fn(&Usage) -> u64| field(&usage?).checked_sub(field(&self.usage?));
        let ticks = used(|usage| usage.ticks);
        let busy = self.busy.zip(Busy::read(&self.root, &self.cpus)).zip(ticks);
        let shares = busy.and_then(|((before, after), ticks)| after.shares(before, ticks, seconds));
        // Where the mark could not be set back, it may be from before.
        let resident = Resident::read(&self.root);
        let mark = resident.filter(|_| self.marked).map(|resident| resident.peak);
        self.resident.sort_unstable();
        let joules = self.sensors.energy.is_ok().then_some(self.joules);
        let conditions = Conditions {
            cpu_seconds: ticks.map(|ticks| ticks as f64 / TICKS),
            wall_seconds: seconds,
            peak_resident_bytes: resident.and(mark.max(self.resident.last().copied())),
            resident_bytes: resident.and(self.resident.get(self.resident.len() / 2).copied()),
            major_faults: used(|usage| usage.major_faults),
            minor_faults: used(|usage| usage.minor_faults),
            others: shares.map(|[others, _]| others),
            stolen: shares.map(|[_, stolen]| stolen),
            frequency: self.sensors.frequency.is_ok().then(|| self.frequency()).flatten(),
            temperature: self.temperature.filter(|_| self.sensors.temperature.is_ok()),
            throttled: self.sensors.throttling.is_ok().then_some(self.throttled),
            joules,
            joules_per_token: joules.filter(|_| tokens > 0).map(|joules| joules / tokens as f64),
        };
        let mut notes = self.notes;
        notes.extend(remarks(&conditions));
        (conditions, notes)
    }

    /// Whether it has been so hot.
    #[cfg(test)]
    pub(super) fn has_seen(&self, degrees: f64) -> bool {
        self.temperature.is_some_and(|highest| highest >= degrees)
    }

    /// The lowest and the highest that were seen, and the median of the medians.
    fn frequency(&self) -> Option<[f64; 3]> {
        let column = |of: fn(&[f64; 3]) -> f64| sorted(self.frequencies.iter().map(of));
        let low = *column(|[low, _, _]| *low).first()?;
        let high = *column(|[_, _, high]| *high).last()?;
        Some([low, median(&column(|[_, middle, _]| *middle))?, high])
    }
}

/// What a sensor says; one that fails is lost from then on, which is noted.
fn ask<S, T>(
    sensor: &mut Found<S>,
    read: impl FnOnce(&mut S) -> Found<T>,
    what: &str,
    seconds: f64,
    notes: &mut Vec<String>,
) -> Option<T> {
    match read(sensor.as_mut().ok()?) {
        Ok(value) => Some(value),
        Err(reason) => {
            notes.push(format!("the {what} could not be read any more after {seconds:.1} s: {reason}"));
            *sensor = Err(reason);
            None
        }
    }
}

/// What a reader has to know before trusting the numbers, which are in the conditions: the same words each time.
fn remarks(conditions: &Conditions) -> Vec<String> {
    let at_least = |share: Option<f64>, least| share.is_some_and(|share| share >= least);
    let remarks = [
        (
            at_least(conditions.others, TELL_OTHERS),
            "other processes used the processors meanwhile (`others`)",
        ),
        (
            at_least(conditions.stolen, TELL_STOLEN),
            "the hypervisor gave time to other machines meanwhile (`stolen`)",
        ),
        (
            conditions.throttled.is_some_and(|times| times > 0),
            "the processors were slowed down meanwhile, by their temperature or a quota (`throttled`)",
        ),
    ];
    remarks.into_iter().filter(|(holds, _)| *holds).map(|(_, remark)| remark.to_owned()).collect()
}

fn sorted(values: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut values: Vec<_> = values.collect();
    values.sort_by(f64::total_cmp);
    values
}

/// The middle one of ascending values; of two in the middle, the upper one.
fn median(sorted: &[f64]) -> Option<f64> {
    sorted.get(sorted.len() / 2).copied()
}
