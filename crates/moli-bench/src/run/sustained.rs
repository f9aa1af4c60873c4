//! One case for minutes: speed against time and temperature.

use std::time::{Duration, Instant};

use super::options::tokens;
use super::{Event, Outcome, RunError};
use crate::report::{Case, Conditions, Moment};
use crate::statistics::median;
use crate::watch::{Computes, Watch};

/// The least time of a moment: short repetitions are taken together.
const MOMENT: Duration = Duration::from_secs(1);

/// What a sustained run gave.
pub(super) struct Sustained {
    pub(super) moments: Vec<Moment>,
    pub(super) outcomes: Vec<Outcome>,
    pub(super) conditions: Conditions,
    pub(super) notes: Vec<String>,
}

/// Repeats until the time is over, or `repetition` gives nothing more.
pub(super) fn run(
    case: &Case,
    time: Duration,
    computes: &Computes,
    on: &mut dyn FnMut(Event<'_>),
    mut repetition: impl FnMut() -> Result<Option<Outcome>, RunError>,
) -> Result<Sustained, RunError> {
    let each = tokens(&case.work);
    let mut watch = Watch::start(computes);
    let start = Instant::now();
    let (mut moments, mut outcomes): (Vec<Moment>, Vec<Outcome>) = (Vec::new(), Vec::new());
    let (mut since, mut spent, mut done) = (Instant::now(), 0.0, 0);
    while start.elapsed() < time {
        on(Event::Sustained { case, elapsed: start.elapsed(), time });
        let Some(outcome) = repetition()? else { break };
        spent += outcome.seconds;
        done += each;
        outcomes.push(outcome);
        if since.elapsed() >= MOMENT || start.elapsed() >= time {
            let now = watch.moment();
            moments.push(Moment {
                seconds: start.elapsed().as_secs_f64(),
                // Of the time that was measured: what stands before a test is read between two repetitions.
                rate: done as f64 / spent,
                frequency: now.frequency,
                temperature: now.temperature,
                watts: now.watts,
            });
            (since, spent, done) = (Instant::now(), 0.0, 0);
        }
    }
    let (conditions, mut notes) = watch.finish(outcomes.len() * each);
    notes.extend(trend(&moments));
    Ok(Sustained { moments, outcomes, conditions, notes })
}

/// How fast the last tenth was beside the first.
fn trend(moments: &[Moment]) -> Option<String> {
    let tenth = moments.len().div_ceil(10);
    let rate = |moments: &[Moment]| {
        let rates: Vec<f64> = moments.iter().map(|moment| moment.rate).collect();
        (!rates.is_empty()).then(|| median(&rates))
    };
    let (first, last) = (rate(moments.get(..tenth)?)?, rate(moments.get(moments.len() - tenth..)?)?);
    let change = (last / first - 1.0) * 100.0;
    Some(format!(
        "sustained: the last tenth ran at {last:.4} tokens/s, the first at {first:.4}: {change:+.1}%"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_tenth_is_compared_with_the_first() {
        let moment = |second: usize| Moment {
            seconds: second as f64,
            rate: if second < 30 { 20.0 } else { 15.0 },
            frequency: None,
            temperature: None,
            watts: None,
        };
        let moments: Vec<Moment> = (0..40).map(moment).collect();
        let told = trend(&moments).unwrap();
        assert!(told.contains("15.0000 tokens/s, the first at 20.0000: -25.0%"), "{told}");
        assert_eq!(trend(&[]), None);
    }
}
