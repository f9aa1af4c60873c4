//! What a step costs by its rows, learnt from the steps themselves.

use std::time::Duration;

/// Rows of the steps that are learnt from: those of more have prompts in them.
const MOST_ROWS: usize = 16;
/// What a further row costs before any was measured, in steps of one row.
const EXTRA_ROW: f64 = 0.13;
/// Weights of a new measurement. The machine's speed changes from second to second, what a row costs beside it does not.
const SPEED_WEIGHT: f64 = 0.2;
const EXTRA_ROW_WEIGHT: f64 = 0.05;
/// How much of what was measured is forgotten in a step of one row, so that one bad minute is tried again some day.
const FORGET: f64 = 0.002;
/// The same for a model that was not asked, of its time.
const FADE: f64 = 0.0005;

/// Seconds of a step of `rows` rows: `single * (1 + extra_row * (rows - 1))`, which fits steps of up to 16 rows within 10%.
#[derive(Debug)]
pub(super) struct StepTimes {
    single: Option<f64>,
    extra_row: f64,
}

impl StepTimes {
    pub(super) fn new() -> Self {
        Self { single: None, extra_row: EXTRA_ROW }
    }

    /// A step was computed.
    pub(super) fn learn(&mut self, rows: usize, took: Duration) {
        if !(1..=MOST_ROWS).contains(&rows) {
            return;
        }
        let took = took.as_secs_f64();
        let extra = (rows - 1) as f64;
        let share = 1.0 + self.extra_row * extra;
        let single = *self.single.get_or_insert(took / share);
        // Somebody else had the processor in between: that says little.
        let took = took.clamp(single * share / 2.0, single * share * 2.0);
        if rows == 1 {
            self.extra_row += FORGET * (EXTRA_ROW - self.extra_row);
        } else if single > 0.0 {
            let seen = ((took / single - 1.0) / extra).clamp(0.0, 1.5);
            self.extra_row += EXTRA_ROW_WEIGHT * (seen - self.extra_row);
        }
        self.single = Some(single + SPEED_WEIGHT * (took / share - single));
    }

    /// No step was computed where one might have been: it is taken for a little faster, until it is tried again.
    pub(super) fn fade(&mut self) {
        self.single = self.single.map(|single| single * (1.0 - FADE));
    }

    /// Seconds of a step of one row; 0 before there was one.
    pub(super) fn single(&self) -> f64 {
        self.single.unwrap_or(0.0)
    }

    /// What a further row costs, in steps of one row.
    pub(super) fn extra_row(&self) -> f64 {
        self.extra_row
    }

    /// What `rows` rows cost, in steps of one row.
    pub(super) fn rows(&self, rows: usize) -> f64 {
        1.0 + self.extra_row * rows.saturating_sub(1) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn learn(times: &mut StepTimes, rows: usize, millis: f64) {
        times.learn(rows, Duration::from_secs_f64(millis / 1e3));
    }

    #[test]
    fn it_learns_what_a_row_costs() {
        for true_cost in [0.02, 0.3, 1.0] {
            let mut times = StepTimes::new();
            for step in 0..400 {
                let rows = 1 + step % 4 * 5;
                learn(&mut times, rows, 5.0 * (1.0 + true_cost * (rows - 1) as f64));
            }
            assert!((times.extra_row() - true_cost).abs() < 0.02 + 0.1 * true_cost, "{true_cost}: {times:?}");
            assert!((times.single() / 0.005 - 1.0).abs() < 0.2, "{true_cost}: {times:?}");
        }
    }

    #[test]
    fn a_slow_machine_is_not_taken_for_a_dear_row() {
        let mut times = StepTimes::new();
        for slow in [1.0, 3.0] {
            for _ in 0..50 {
                learn(&mut times, 16, 10.0 * slow);
            }
        }
        assert!(times.extra_row() < 2.0 * EXTRA_ROW, "{times:?}");
        // One step of a second says little.
        let before = times.extra_row();
        learn(&mut times, 16, 1000.0);
        assert!(times.extra_row() < before + 0.02, "{times:?}");
    }

    #[test]
    fn what_is_not_used_is_tried_again_some_day() {
        let mut times = StepTimes::new();
        learn(&mut times, 1, 10.0);
        (0..1000).for_each(|_| times.fade());
        assert!((0.005..0.009).contains(&times.single()), "{times:?}");
    }

    #[test]
    fn prompts_are_no_measure() {
        let mut times = StepTimes::new();
        learn(&mut times, 512, 300.0);
        learn(&mut times, 0, 300.0);
        assert_eq!((times.single(), times.rows(11)), (0.0, 1.0 + 10.0 * EXTRA_ROW));
    }
}
