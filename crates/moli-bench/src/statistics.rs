//! From samples to a few numbers: medians, quartiles, outliers, quantiles, histograms, and how far a ratio of medians is known.

use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

use crate::report::{Bin, Case, Conditions, Quantiles, Row, Summary};

/// The rule by which [`outliers`] are found, in words, for reports.
pub const OUTLIER_RULE: &str = "from 5 repetitions on, one whose time is more than 3 interquartile ranges beyond the \
     quartiles and more than 5% from the median is left out, the furthest first, at most a fifth of them";

/// Repetitions from which on one can be told to be an outlier.
const ENOUGH: usize = 5;
/// Interquartile ranges beyond the quartiles: of normally distributed times, 2 in a million.
const RANGES: f64 = 3.0;
/// Times that agree to a hair have a tiny range, and a blink beyond it is no outlier.
const LEAST: f64 = 0.05;
/// Bins of a histogram at most.
const BINS: usize = 40;

/// A row from the seconds of its repetitions, which are more than 0 each, of one loading. Without any, its rates are 0, which
/// [`crate::read`] refuses.
pub fn row(case: Case, tokens_per_repetition: usize, seconds: Vec<f64>, conditions: Conditions) -> Row {
    let outliers = outliers(&seconds);
    let rate = summary(tokens_per_repetition, &seconds, &outliers);
    Row {
        case,
        tokens_per_repetition,
        seconds,
        loads: 1,
        outliers,
        rate,
        latency: None,
        bound: None,
        conditions,
    }
}

/// Tokens per second of the repetitions that are not left out.
pub fn summary(tokens_per_repetition: usize, seconds: &[f64], outliers: &[usize]) -> Summary {
    let rates = sorted(kept(seconds, outliers).map(|seconds| tokens_per_repetition as f64 / seconds));
    let median = quantile_of_sorted(&rates, 0.5);
    let range = quantile_of_sorted(&rates, 0.75) - quantile_of_sorted(&rates, 0.25);
    Summary {
        median,
        min: rates.first().copied().unwrap_or_default(),
        max: rates.last().copied().unwrap_or_default(),
        spread: if median > 0.0 { range / 2.0 / median } else { 0.0 },
    }
}

/// The samples that are not left out, in their order.
pub fn kept<'a>(samples: &'a [f64], outliers: &'a [usize]) -> impl Iterator<Item = f64> + 'a {
    let kept = samples.iter().enumerate().filter(|(index, _)| !outliers.contains(index));
    kept.map(|(_, sample)| *sample)
}

/// Which samples [`OUTLIER_RULE`] leaves out, ascending.
pub fn outliers(seconds: &[f64]) -> Vec<usize> {
    if seconds.len() < ENOUGH {
        return Vec::new();
    }
    let [low, median, high] = quartiles(seconds);
    let reach = RANGES * (high - low);
    let beyond = |seconds: f64| (low - reach - seconds).max(seconds - high - reach);
    let far = |seconds: f64| beyond(seconds) > 0.0 && (seconds - median).abs() > LEAST * median;
    let mut found: Vec<usize> =
        (0..).zip(seconds).filter(|(_, s)| far(**s)).map(|(index, _)| index).collect();
    let distance = |index: &usize| seconds.get(*index).map_or(0.0, |seconds| beyond(*seconds));
    found.sort_by(|a, b| distance(b).total_cmp(&distance(a)));
    found.truncate(seconds.len() / 5);
    found.sort_unstable();
    found
}

/// The middle of the samples; of an even number, the mean of the two in the middle; 0 of none.
pub fn median(samples: &[f64]) -> f64 {
    quantile(samples, 0.5)
}

/// Below it is a `share` of the samples; between two of them in proportion; 0 of none.
pub fn quantile(samples: &[f64], share: f64) -> f64 {
    quantile_of_sorted(&sorted(samples.iter().copied()), share)
}

/// A quarter of the samples are below, half, three quarters.
pub fn quartiles(samples: &[f64]) -> [f64; 3] {
    let sorted = sorted(samples.iter().copied());
    [0.25, 0.5, 0.75].map(|share| quantile_of_sorted(&sorted, share))
}

/// The middle and the upper end of the samples; all 0 of none.
pub fn quantiles(samples: &[f64]) -> Quantiles {
    let sorted = sorted(samples.iter().copied());
    let [p50, p95, p99] = [0.5, 0.95, 0.99].map(|share| quantile_of_sorted(&sorted, share));
    Quantiles { p50, p95, p99, count: samples.len() }
}

/// How many samples fall between bounds whose ratio is the same throughout, since latencies have a long tail: about the square
/// root of the number of samples, 40 at most. Samples are seconds, more than 0.
pub fn histogram(samples: &[f64]) -> Vec<Bin> {
    let sorted = sorted(samples.iter().map(|seconds| seconds.max(1e-9)));
    let (Some(&least), Some(&most)) = (sorted.first(), sorted.last()) else { return Vec::new() };
    let bins = ((sorted.len() as f64).sqrt().ceil() as usize).clamp(1, BINS);
    // The largest sample is below the last bound.
    let ratio = (most / least).max(1.001) * (1.0 + 1e-9);
    let bound = |index: usize| least * ratio.powf(index as f64 / bins as f64);
    let below = |bound: f64| sorted.partition_point(|sample| *sample < bound);
    let bins = (0..bins).map(|index| {
        let [from, to] = [bound(index), bound(index + 1)];
        Bin { from, to, count: below(to) - below(from) }
    });
    bins.collect()
}

/// A 95% interval for ln(quantile of `a` / quantile of `b`), the quantile below which a `share` of the samples is: its lower end,
/// the estimate, its upper end. Both sides are drawn anew `draws` times, by `seed`; a bootstrap of few samples comes out too
/// narrow, so it is widened as the t-distribution is, compared with the normal one. Samples are more than 0; of none all is 0.
pub fn log_ratio(a: &[f64], b: &[f64], share: f64, draws: usize, seed: u64) -> [f64; 3] {
    const TAIL: f64 = 0.025;
    if a.is_empty() || b.is_empty() || draws == 0 {
        return [0.0; 3];
    }
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut draw = |samples: &[f64]| {
        let drawn = samples.iter().map(|_| samples.get(random.random_range(0..samples.len())).copied());
        quantile_of_sorted(&sorted(drawn.flatten()), share).ln()
    };
    let drawn = sorted((0..draws).map(|_| draw(a) - draw(b)));
    let estimate = quantile(a, share).ln() - quantile(b, share).ln();
    let factor = small_sample_factor(a.len().min(b.len()));
    let end = |tail: f64| estimate + factor * (quantile_of_sorted(&drawn, tail) - estimate);
    [end(TAIL).min(estimate), estimate, end(1.0 - TAIL).max(estimate)]
}

/// Pairs without which [`paired`] knows nothing: that five all point one way is not unlikely enough for 95%.
pub const LEAST_PAIRS: usize = 6;

/// An interval of at least 95% for the median of differences between the two of each pair: its lower end, the median, its upper end.
/// The ends are differences themselves, as few from the lowest and the highest as the sign test allows: of 12, the third. That holds
/// whatever the noise is, as long as it does not depend on the pair before, and a few wild pairs on either side do not matter. Without
/// [`LEAST_PAIRS`] it has no ends.
pub fn paired(differences: &[f64]) -> [f64; 3] {
    const TAIL: f64 = 0.025;
    let sorted = sorted(differences.iter().copied());
    let middle = quantile_of_sorted(&sorted, 0.5);
    // How likely it is that so many of them are below the true median: binomial, and summed.
    let count = sorted.len() as f64;
    let (mut likely, mut sum, mut out) = (0.5f64.powf(count), 0.0, 0usize);
    while sum + likely <= TAIL {
        sum += likely;
        likely *= (count - out as f64) / (out as f64 + 1.0);
        out += 1;
    }
    let from_each_end = out.checked_sub(1).zip(sorted.len().checked_sub(out));
    match from_each_end.and_then(|(low, high)| Some((sorted.get(low)?, sorted.get(high)?))) {
        Some((low, high)) => [*low, middle, *high],
        None => [f64::NEG_INFINITY, middle, f64::INFINITY],
    }
}

/// How much wider a 95% interval is when the variance is itself known from `samples` only: t over normal, and √(n / (n − 1))
/// since drawing anew takes the variance with n.
fn small_sample_factor(samples: usize) -> f64 {
    /// 97.5% points of Student's t with 1, 2, … degrees of freedom.
    const T: [f64; 10] = [12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228];
    const NORMAL: f64 = 1.96;
    let freedom = samples.saturating_sub(1).max(1);
    // Beyond the table, the first term of its expansion is right to 0.5%.
    let t = T.get(freedom - 1).copied().unwrap_or(NORMAL * (1.0 + 1.21 / freedom as f64));
    t / NORMAL * ((freedom + 1) as f64 / freedom as f64).sqrt()
}

fn sorted(samples: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut samples: Vec<f64> = samples.collect();
    samples.sort_by(f64::total_cmp);
    samples
}

/// Between the two samples that are next to `share` of the way, in proportion; 0 of none.
fn quantile_of_sorted(sorted: &[f64], share: f64) -> f64 {
    let Some(last) = sorted.len().checked_sub(1) else { return 0.0 };
    let place = share * last as f64;
    let at = |index: f64| sorted.get(index as usize).copied().unwrap_or_default();
    let [below, above] = [at(place.floor()), at(place.ceil())];
    below + (above - below) * place.fract()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_and_quartiles_of_few() {
        assert_eq!(median(&[]), 0.0);
        assert_eq!(median(&[3.0]), 3.0);
        assert_eq!(median(&[4.0, 1.0, 3.0, 2.0]), 2.5);
        assert_eq!(quartiles(&[5.0, 1.0, 4.0, 2.0, 3.0]), [2.0, 3.0, 4.0]);
        let quantiles = quantiles(&(0..=100).map(f64::from).collect::<Vec<_>>());
        assert_eq!((quantiles.p50, quantiles.p95, quantiles.p99, quantiles.count), (50.0, 95.0, 99.0, 101));
    }

    #[test]
    fn one_of_five_can_be_left_out_and_no_more() {
        assert_eq!(outliers(&[1.0, 1.01, 1.02, 1.03, 2.0]), [4]);
        assert_eq!(outliers(&[0.2, 1.01, 1.02, 1.03, 1.0]), [0]);
        // Too few to tell.
        assert!(outliers(&[1.0, 1.0, 1.0, 9.0]).is_empty());
        // Of times that agree to a hair, 1% is no outlier.
        assert!(outliers(&[1.0, 1.0, 1.0, 1.0, 1.01]).is_empty());
        // The furthest two of three, of fourteen.
        let mut seconds = [1.0; 14];
        (seconds[3], seconds[6], seconds[9]) = (3.0, 2.0, 4.0);
        assert_eq!(outliers(&seconds), [3, 9]);
        // Times with a wide range have none.
        assert!(outliers(&[1.0, 2.0, 3.0, 4.0, 5.0]).is_empty());
    }

    #[test]
    fn a_summary_leaves_the_outliers_out() {
        let summary = summary(100, &[1.0, 2.0, 4.0, 50.0], &[3]);
        assert_eq!((summary.median, summary.min, summary.max), (50.0, 25.0, 100.0));
        assert_eq!(summary.spread, (75.0 - 37.5) / 2.0 / 50.0);
    }

    #[test]
    fn every_sample_is_in_one_bin() {
        for samples in
            [vec![0.01], vec![0.01; 50], (1..=1000).map(|i| f64::from(i) / 1e3).collect(), vec![0.0, 1.0]]
        {
            let bins = histogram(&samples);
            assert_eq!(bins.iter().map(|bin| bin.count).sum::<usize>(), samples.len());
            assert!(bins.len() <= BINS && bins.windows(2).all(|two| two[0].to == two[1].from));
        }
        assert_eq!(histogram(&[]), []);
    }

    #[test]
    fn an_interval_holds_its_estimate_and_narrows_with_samples() {
        let spread =
            |n: usize| -> Vec<f64> { (0..n).map(|i| 1.0 + (i * 7 % n) as f64 / n as f64 * 0.1).collect() };
        let width = |n: usize| {
            let [low, middle, high] = log_ratio(&spread(n), &spread(n), 0.5, 2000, 1);
            assert!(low <= middle && middle <= high);
            high - low
        };
        assert!(width(5) > width(10) && width(10) > width(40));
        let [low, middle, high] = log_ratio(&[2.0; 8], &[1.0; 8], 0.5, 100, 1);
        assert_eq!([low, middle, high], [2f64.ln(); 3]);
        assert_eq!(
            log_ratio(&[2.0, 3.0], &[1.0, 1.5], 0.5, 100, 7),
            log_ratio(&[2.0, 3.0], &[1.0, 1.5], 0.5, 100, 7)
        );
    }

    #[test]
    fn pairs_have_the_interval_of_the_sign_test() {
        // As tables of the binomial distribution have it: the ends are the n-th from below and from above.
        for (pairs, nth) in [(6, 1), (8, 1), (9, 2), (10, 2), (12, 3), (15, 4), (20, 6), (100, 40)] {
            let differences: Vec<f64> = (1..=pairs).rev().map(f64::from).collect();
            let [low, middle, high] = paired(&differences);
            let expected = [f64::from(nth), f64::from(pairs + 1) / 2.0, f64::from(pairs + 1 - nth)];
            assert_eq!([low, middle, high], expected, "{pairs}");
        }
        let few = paired(&[1.0; LEAST_PAIRS - 1]);
        assert_eq!(few, [f64::NEG_INFINITY, 1.0, f64::INFINITY]);
        assert_eq!(paired(&[1.0; LEAST_PAIRS]), [1.0; 3]);
        assert_eq!(paired(&[]), [f64::NEG_INFINITY, 0.0, f64::INFINITY]);
    }

    #[test]
    fn wild_pairs_do_not_matter() {
        let mut differences: Vec<f64> = (0..12).map(|i| 0.1 + f64::from(i % 5) / 1e3).collect();
        (differences[4], differences[7], differences[8]) = (-9.0, -1.0, 3.0);
        let [low, middle, high] = paired(&differences);
        assert!(low >= 0.1 && high <= 0.104 && (low..high).contains(&middle), "{low} {middle} {high}");
    }

    #[test]
    fn few_samples_widen_the_most() {
        let factors: Vec<f64> = (2..60).map(small_sample_factor).collect();
        assert!(factors.windows(2).all(|two| two[0] > two[1]), "{factors:?}");
        assert!(factors[0] > 6.0 && factors[57] < 1.05);
    }
}
