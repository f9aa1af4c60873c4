//! The stages of the chain, each a small function of logits or of a list of candidates.
//!
//! A list is never reordered in a way that depends on anything but its own values: where a stage sorts, the order is by
//! falling logit and then rising id, which is total. Probabilities are computed in f64 by this crate's own exponential,
//! so that the same logits give the same choice everywhere.

use std::cmp::Ordering;

use crate::math::{exp, ln};

/// A token that may be chosen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Candidate {
    pub(crate) id: u32,
    /// Finite.
    pub(crate) logit: f32,
    /// The probability, not divided by the sum, of the stage that computed it last.
    weight: f64,
}

impl Candidate {
    fn new(id: usize, logit: f32) -> Self {
        Self { id: id as u32, logit, weight: 0.0 }
    }
}

/// The likelier first; the lower id first among equals.
fn by_logit(a: &Candidate, b: &Candidate) -> Ordering {
    // Minus zero is as much as zero.
    (b.logit + 0.0).total_cmp(&(a.logit + 0.0)).then(a.id.cmp(&b.id))
}

/// Adds each bias to its token's logit.
pub(crate) fn logit_bias(logits: &mut [f32], bias: &[(u32, f32)]) {
    for &(id, bias) in bias {
        if let Some(logit) = logits.get_mut(id as usize) {
            *logit += bias;
        }
    }
}

/// Repetition (arXiv:1909.05858), frequency and presence penalties on the tokens that occur `count` times. Each logit
/// is changed once, so their order is of no account.
pub(crate) fn penalties(
    logits: &mut [f32],
    counts: impl Iterator<Item = (u32, u32)>,
    repeat: f32,
    frequency: f32,
    presence: f32,
) {
    for (id, count) in counts {
        if let Some(logit) = logits.get_mut(id as usize) {
            *logit = if *logit > 0.0 { *logit / repeat } else { *logit * repeat };
            *logit -= count as f32 * frequency + presence;
        }
    }
}

/// The token with the greatest logit, the lowest id of equals; `None` if all are minus infinity.
pub(crate) fn greedy(logits: &[f32]) -> Option<u32> {
    let (mut best, mut best_id) = (f32::NEG_INFINITY, None);
    for (chunk, first) in logits.chunks(CHUNK).zip((0..).step_by(CHUNK)) {
        if !any_above(chunk, best) {
            continue;
        }
        for (id, &logit) in (first..).zip(chunk) {
            if logit > best {
                (best, best_id) = (logit, Some(id));
            }
        }
    }
    best_id
}

/// The `k` likeliest tokens, sorted; with 0 (or at least as many as there are) all, in order of id. Tokens at minus
/// infinity are left out.
///
/// The list never holds more than a few times `k`: whenever it is full the `k` best stay, and what is not better than
/// the last of them is not taken any more.
pub(crate) fn top_k(logits: &[f32], k: usize, out: &mut Vec<Candidate>) {
    out.clear();
    if k == 0 || k >= logits.len() {
        let all = logits.iter().enumerate().filter(|(_, logit)| **logit > f32::NEG_INFINITY);
        out.extend(all.map(|(id, &logit)| Candidate::new(id, logit)));
        return;
    }
    let capacity = k.saturating_mul(2).max(256);
    let mut threshold = f32::NEG_INFINITY;
    for (chunk, first) in logits.chunks(CHUNK).zip((0..).step_by(CHUNK)) {
        if !any_above(chunk, threshold) {
            continue;
        }
        for (id, &logit) in (first..).zip(chunk) {
            // An equal of a higher id is worse than all that were kept.
            if logit > threshold {
                out.push(Candidate::new(id, logit));
                if out.len() >= capacity {
                    keep_best(out, k);
                    threshold = out.iter().fold(f32::INFINITY, |least, c| least.min(c.logit));
                }
            }
        }
    }
    keep_best(out, k);
    out.sort_unstable_by(by_logit);
}

/// The `k` likeliest tokens, sorted, however many there are.
pub(crate) fn likeliest(logits: &[f32], k: usize, out: &mut Vec<Candidate>) {
    top_k(logits, k, out);
    if k >= logits.len() {
        out.sort_unstable_by(by_logit);
    }
}

/// Logits that are looked at together.
const CHUNK: usize = 64;

/// Whether there is anything to take in a chunk, which most have not: without a branch for each logit.
fn any_above(chunk: &[f32], least: f32) -> bool {
    chunk.iter().map(|&logit| u32::from(logit > least)).sum::<u32>() > 0
}

fn keep_best(candidates: &mut Vec<Candidate>, k: usize) {
    if k < candidates.len() {
        candidates.select_nth_unstable_by(k, by_logit);
        candidates.truncate(k);
    }
}

/// Nucleus sampling (arXiv:1904.09751): the fewest likeliest tokens whose probabilities sum to `p` or more, at least one.
pub(crate) fn top_p(candidates: &mut Vec<Candidate>, p: f32) {
    if p >= 1.0 {
        return;
    }
    let (_, total) = weigh(candidates, 1.0);
    let wanted = f64::from(p) * total;
    take(candidates, by_logit, |sum| sum >= wanted);
}

/// Tokens with at least `p` of the likeliest one's probability.
pub(crate) fn min_p(candidates: &mut Vec<Candidate>, p: f32) {
    if p <= 0.0 {
        return;
    }
    let max = max_logit(candidates);
    let least = ln(f64::from(p));
    candidates.retain(|c| f64::from(c.logit) - max >= least);
}

/// Locally typical sampling (arXiv:2202.00666): tokens in order of how far their information, `-ln p`, is from the
/// entropy, until their probabilities sum to more than `p`, at least one.
pub(crate) fn typical(candidates: &mut Vec<Candidate>, p: f32) {
    if p >= 1.0 {
        return;
    }
    let (max, total) = weigh(candidates, 1.0);
    let log_total = ln(total);
    let information = |c: &Candidate| log_total - (f64::from(c.logit) - max);
    let entropy: f64 = candidates.iter().map(|c| c.weight / total * information(c)).sum();
    let distance = |c: &Candidate| (information(c) - entropy).abs();
    let wanted = f64::from(p) * total;
    take(
        candidates,
        |a, b| distance(a).total_cmp(&distance(b)).then_with(|| by_logit(a, b)),
        |sum| sum > wanted,
    );
}

/// Divides the logits by the temperature, which is above 0, and takes the token at which the running sum of the
/// probabilities exceeds `chance`, a number from 0 to below 1. `None` if there are no candidates.
pub(crate) fn choose(candidates: &mut [Candidate], temperature: f32, chance: f64) -> Option<u32> {
    let (_, total) = weigh(candidates, f64::from(temperature));
    let wanted = chance * total;
    let mut sum = 0.0;
    let mut last = None;
    for candidate in candidates.iter().filter(|c| c.weight > 0.0) {
        sum += candidate.weight;
        last = Some(candidate.id);
        if sum > wanted {
            break;
        }
    }
    last
}

/// Sets each weight to `e^((logit - max) / temperature)`; gives the greatest logit and the sum of the weights.
fn weigh(candidates: &mut [Candidate], temperature: f64) -> (f64, f64) {
    let max = max_logit(candidates);
    let mut total = 0.0;
    for candidate in candidates {
        candidate.weight = exp((f64::from(candidate.logit) - max) / temperature);
        total += candidate.weight;
    }
    (max, total)
}

fn max_logit(candidates: &[Candidate]) -> f64 {
    f64::from(candidates.iter().fold(f32::NEG_INFINITY, |max, c| max.max(c.logit)))
}

/// Keeps the first candidates in an order, up to the one at which `done(sum of weights)`. Only as many are sorted as
/// turn out to be needed: a distribution with a sharp head costs a few dozen of a quarter of a million.
fn take(
    candidates: &mut Vec<Candidate>,
    order: impl Fn(&Candidate, &Candidate) -> Ordering,
    done: impl Fn(f64) -> bool,
) {
    let mut sum = 0.0;
    let mut sorted = 0;
    let mut step = 64;
    while sorted < candidates.len() {
        let Some(rest) = candidates.get_mut(sorted..) else { return };
        let count = step.min(rest.len());
        if count < rest.len() {
            rest.select_nth_unstable_by(count, &order);
        }
        let Some(head) = rest.get_mut(..count) else { return };
        head.sort_unstable_by(&order);
        for (index, candidate) in head.iter().enumerate() {
            sum += candidate.weight;
            if done(sum) {
                candidates.truncate(sorted + index + 1);
                return;
            }
        }
        sorted += count;
        step *= 4;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn list(logits: &[f32]) -> Vec<Candidate> {
        logits.iter().enumerate().map(|(id, &logit)| Candidate::new(id, logit)).collect()
    }

    fn ids(candidates: &[Candidate]) -> Vec<u32> {
        candidates.iter().map(|c| c.id).collect()
    }

    /// Logits of probabilities 0.5, 0.25, 0.125, 0.125 in the order of the ids 2, 0, 1, 3.
    fn halves() -> [f32; 4] {
        [0.25_f32.ln(), 0.125_f32.ln(), 0.5_f32.ln(), 0.125_f32.ln()]
    }

    #[test]
    fn bias_and_penalties_by_hand() {
        let mut logits = [1.0, -1.0, 2.0];
        logit_bias(&mut logits, &[(0, 0.5), (2, f32::NEG_INFINITY), (2, 3.0)]);
        assert_eq!(logits, [1.5, -1.0, f32::NEG_INFINITY]);
        let mut logits = [4.0, -4.0, 0.0, 1.0];
        penalties(&mut logits, [(0, 1), (1, 3), (2, 1)].into_iter(), 2.0, 0.5, 0.25);
        assert_eq!(logits, [4.0 / 2.0 - 0.75, -8.0 - 1.75, -0.75, 1.0]);
    }

    #[test]
    fn greedy_takes_the_lowest_id_of_equals() {
        assert_eq!(greedy(&[1.0, 3.0, 3.0, 2.0]), Some(1));
        assert_eq!(greedy(&[f32::NEG_INFINITY, -1e30]), Some(1));
        assert_eq!(greedy(&[f32::NEG_INFINITY]), None);
        assert_eq!(greedy(&[]), None);
    }

    #[test]
    fn top_k_by_hand() {
        let mut out = Vec::new();
        top_k(&[1.0, 3.0, 2.0, 3.0], 2, &mut out);
        assert_eq!(ids(&out), [1, 3]);
        top_k(&[1.0, 3.0, f32::NEG_INFINITY, 3.0], 0, &mut out);
        assert_eq!(ids(&out), [0, 1, 3]);
        top_k(&[1.0, 3.0], 9, &mut out);
        assert_eq!(ids(&out), [0, 1]);
        top_k(&[], 3, &mut out);
        assert!(out.is_empty());
    }

    #[test]
    fn top_p_by_hand() {
        for (p, expected) in
            [(0.0, &[2][..]), (0.4, &[2]), (0.6, &[2, 0]), (0.8, &[2, 0, 1]), (0.95, &[2, 0, 1, 3])]
        {
            let mut candidates = list(&halves());
            top_p(&mut candidates, p);
            assert_eq!(ids(&candidates), expected, "{p}");
        }
        let mut candidates = list(&halves());
        top_p(&mut candidates, 1.0);
        assert_eq!(ids(&candidates), [0, 1, 2, 3]);
    }

    #[test]
    fn min_p_by_hand() {
        for (p, expected) in
            [(0.0, &[0, 1, 2, 3][..]), (0.2, &[0, 1, 2, 3]), (0.4, &[0, 2]), (0.9, &[2]), (1.0, &[2])]
        {
            let mut candidates = list(&halves());
            min_p(&mut candidates, p);
            assert_eq!(ids(&candidates), expected, "{p}");
        }
    }

    /// Entropy 1.75 bits; information 2, 3, 1, 3 bits: distances 0.25, 1.25, 0.75, 1.25.
    #[test]
    fn typical_by_hand() {
        for (p, expected) in
            [(0.0, &[0][..]), (0.2, &[0]), (0.6, &[0, 2]), (0.8, &[0, 2, 1]), (1.0, &[0, 1, 2, 3])]
        {
            let mut candidates = list(&halves());
            typical(&mut candidates, p);
            assert_eq!(ids(&candidates), expected, "{p}");
        }
    }

    #[test]
    fn choice_by_hand() {
        let at = |temperature, chance| choose(&mut list(&halves()), temperature, chance);
        let chances = [0.0, 0.24, 0.26, 0.37, 0.38, 0.87, 0.88, 0.999_999];
        assert_eq!(chances.map(|c| at(1.0, c).unwrap()), [0, 0, 1, 1, 2, 2, 3, 3]);
        // Squares of the probabilities at half the temperature: 4, 1, 16, 1 of 22.
        let chances = [0.18, 0.19, 0.22, 0.23, 0.95, 0.96];
        assert_eq!(chances.map(|c| at(0.5, c).unwrap()), [0, 1, 1, 2, 2, 3]);
        // The coldest that a float can say is greedy.
        assert_eq!([0.0, 0.5, 0.999].map(|c| at(f32::from_bits(1), c)), [Some(2); 3]);
        assert_eq!(choose(&mut [], 1.0, 0.5), None);
    }

    fn logits() -> impl Strategy<Value = Vec<f32>> {
        // Few different values: ties are where orders go wrong.
        prop::collection::vec(
            prop_oneof![(-8..8_i8).prop_map(f32::from), -8.0..8.0_f32, Just(f32::NEG_INFINITY)],
            1..700,
        )
    }

    /// Sorted probabilities, computed without any of the code above.
    fn naive(logits: &[f32]) -> Vec<(u32, f64)> {
        let mut all: Vec<(u32, f32)> =
            (0..).zip(logits.iter().copied()).filter(|(_, l)| l.is_finite()).collect();
        all.sort_by(|a, b| b.1.partial_cmp(&a.1).unwrap().then(a.0.cmp(&b.0)));
        let total: f64 = all.iter().map(|(_, l)| f64::from(*l).exp()).sum();
        all.iter().map(|(id, l)| (*id, f64::from(*l).exp() / total)).collect()
    }

    proptest! {
        #[test]
        fn top_k_is_the_head_of_a_full_sort(logits in logits(), k in 1_usize..600) {
            let mut out = Vec::new();
            top_k(&logits, k, &mut out);
            if k >= logits.len() {
                out.sort_by(by_logit);
            }
            let expected: Vec<u32> = naive(&logits).iter().take(k).map(|c| c.0).collect();
            prop_assert_eq!(ids(&out), expected);
        }

        #[test]
        fn top_p_is_the_shortest_head_that_reaches_p(logits in logits(), p in 0.0_f32..0.999) {
            let mut out = Vec::new();
            top_k(&logits, 0, &mut out);
            top_p(&mut out, p);
            let mut sum = 0.0;
            let mut expected = Vec::new();
            for (id, probability) in naive(&logits) {
                expected.push(id);
                sum += probability;
                if (sum - f64::from(p)).abs() < 1e-9 { return Ok(()); } // too close for two ways of adding
                if sum >= f64::from(p) { break; }
            }
            prop_assert_eq!(ids(&out), expected);
        }

        #[test]
        fn min_p_is_a_filter(logits in logits(), p in 0.001_f32..1.0) {
            let mut out = Vec::new();
            top_k(&logits, 0, &mut out);
            min_p(&mut out, p);
            let all = naive(&logits);
            let Some(&(_, best)) = all.first() else { return Ok(()) };
            if all.iter().any(|(_, q)| (q / best - f64::from(p)).abs() < 1e-9) { return Ok(()); }
            let mut expected: Vec<u32> = all.iter().filter(|(_, q)| q / best >= f64::from(p)).map(|c| c.0).collect();
            expected.sort_unstable();
            prop_assert_eq!(ids(&out), expected);
        }

        #[test]
        fn typical_is_the_head_by_distance(logits in prop::collection::vec(-8.0..8.0_f32, 1..700), p in 0.0_f32..0.999) {
            let mut out = list(&logits);
            typical(&mut out, p);
            let mut all = naive(&logits);
            let entropy: f64 = all.iter().map(|(_, q)| -q * q.ln()).sum();
            all.sort_by(|a, b| (-a.1.ln() - entropy).abs().total_cmp(&(-b.1.ln() - entropy).abs()));
            let close = all.windows(2).any(|w| ((-w[0].1.ln() - entropy).abs() - (-w[1].1.ln() - entropy).abs()).abs() < 1e-9);
            let mut sum = 0.0;
            let mut expected = Vec::new();
            for (id, q) in all {
                expected.push(id);
                sum += q;
                if (sum - f64::from(p)).abs() < 1e-9 { return Ok(()); }
                if sum > f64::from(p) { break; }
            }
            if !close {
                prop_assert_eq!(ids(&out), expected);
            }
        }

        #[test]
        fn the_choice_is_where_the_sum_passes_the_chance(logits in logits(), temperature in 0.1_f32..3.0, chance in 0.0..1.0_f64) {
            let mut out = Vec::new();
            top_k(&logits, 0, &mut out);
            let got = choose(&mut out, temperature, chance);
            let scaled: Vec<f64> = logits.iter().map(|l| (f64::from(*l) / f64::from(temperature)).exp()).collect();
            let total: f64 = scaled.iter().sum();
            let mut sum = 0.0;
            let mut expected = None;
            for (id, weight) in (0..).zip(&scaled) {
                sum += weight / total;
                if (sum - chance).abs() < 1e-9 { return Ok(()); }
                if sum > chance { expected = Some(id); break; }
            }
            prop_assert!(got == expected || expected.is_none());
        }
    }

    /// The distribution of a seeded run is the one asked for: 40,000 draws of four tokens, each within 5 sigma.
    #[test]
    fn many_draws_follow_the_distribution() {
        let mut counts = [0_u32; 4];
        for i in 0..40_000_u32 {
            let chance = f64::from(i.wrapping_mul(2_654_435_769)) / 4_294_967_296.0;
            counts[choose(&mut list(&halves()), 1.0, chance).unwrap() as usize] += 1;
        }
        for (count, p) in counts.iter().zip([0.25, 0.125, 0.5, 0.125]) {
            let sigma = f64::sqrt(40_000.0 * p * (1.0 - p));
            assert!((f64::from(*count) - 40_000.0 * p).abs() < 5.0 * sigma, "{counts:?}");
        }
    }
}
