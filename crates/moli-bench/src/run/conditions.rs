//! The conditions of a row, whose repetitions lie apart.

use crate::report::Conditions;
use crate::statistics::median;

/// Joins those of all repetitions; `tokens` were computed in all of them.
pub(crate) fn join(parts: &[Conditions], tokens: usize) -> Conditions {
    let wall_seconds = parts.iter().map(|part| part.wall_seconds).sum();
    let joules = sum(parts, |part| part.joules);
    let frequency = |index: usize| parts.iter().filter_map(move |part| part.frequency?.get(index).copied());
    let middle = median(&frequency(1).collect::<Vec<_>>());
    let (low, high) = (frequency(0).reduce(f64::min), frequency(2).reduce(f64::max));
    Conditions {
        cpu_seconds: sum(parts, |part| part.cpu_seconds),
        wall_seconds,
        peak_resident_bytes: parts.iter().filter_map(|part| part.peak_resident_bytes).max(),
        resident_bytes: middle_bytes(parts),
        major_faults: total(parts, |part| part.major_faults),
        minor_faults: total(parts, |part| part.minor_faults),
        others: mean(parts, |part| part.others),
        stolen: mean(parts, |part| part.stolen),
        frequency: low.zip(high).map(|(low, high)| [low, middle, high]),
        temperature: parts.iter().filter_map(|part| part.temperature).reduce(f64::max),
        throttled: total(parts, |part| part.throttled),
        joules,
        joules_per_token: joules.filter(|_| tokens > 0).map(|joules| joules / tokens as f64),
    }
}

/// The median of what is resident.
fn middle_bytes(parts: &[Conditions]) -> Option<u64> {
    let bytes: Vec<f64> =
        parts.iter().filter_map(|part| part.resident_bytes).map(|bytes| bytes as f64).collect();
    (!bytes.is_empty()).then(|| median(&bytes) as u64)
}

/// The sum, where each says something.
fn sum(parts: &[Conditions], of: impl Fn(&Conditions) -> Option<f64>) -> Option<f64> {
    if parts.is_empty() { None } else { parts.iter().map(of).sum() }
}

fn total(parts: &[Conditions], of: impl Fn(&Conditions) -> Option<u64>) -> Option<u64> {
    if parts.is_empty() { None } else { parts.iter().map(of).sum() }
}

/// The mean by time of those that say something.
fn mean(parts: &[Conditions], of: impl Fn(&Conditions) -> Option<f64>) -> Option<f64> {
    let known = || parts.iter().filter_map(|part| Some((of(part)?, part.wall_seconds)));
    let seconds: f64 = known().map(|(_, seconds)| seconds).sum();
    (seconds > 0.0).then(|| known().map(|(share, seconds)| share * seconds).sum::<f64>() / seconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_means_and_extremes() {
        let first = Conditions {
            cpu_seconds: Some(2.0),
            wall_seconds: 1.0,
            peak_resident_bytes: Some(10),
            resident_bytes: Some(9),
            minor_faults: Some(3),
            others: Some(0.5),
            frequency: Some([1.0, 2.0, 3.0]),
            temperature: Some(50.0),
            joules: Some(4.0),
            ..Conditions::default()
        };
        let second = Conditions {
            cpu_seconds: Some(6.0),
            wall_seconds: 3.0,
            peak_resident_bytes: Some(12),
            resident_bytes: Some(8),
            minor_faults: None,
            others: Some(0.1),
            frequency: Some([0.5, 2.5, 2.6]),
            joules: Some(6.0),
            ..Conditions::default()
        };
        let joined = join(&[first, second], 5);
        assert_eq!((joined.cpu_seconds, joined.wall_seconds), (Some(8.0), 4.0));
        assert_eq!((joined.peak_resident_bytes, joined.resident_bytes), (Some(12), Some(8)));
        assert_eq!((joined.minor_faults, joined.temperature), (None, Some(50.0)));
        assert!((joined.others.unwrap() - 0.2).abs() < 1e-12);
        assert_eq!((joined.stolen, joined.frequency), (None, Some([0.5, 2.25, 3.0])));
        assert_eq!((joined.joules, joined.joules_per_token), (Some(10.0), Some(2.0)));
        assert_eq!(join(&[], 0), Conditions::default());
    }
}
