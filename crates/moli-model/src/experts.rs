//! Which experts a token goes through, and with which weights.

use crate::{Experts, Gating};

/// The choice for the rows of one batch. Nothing is allocated once it has seen its largest batch.
#[derive(Debug, Default)]
pub(crate) struct Routes {
    /// `(expert, row, weight)`, by rising expert, then row.
    chosen: Vec<(usize, u32, f32)>,
    scores: Vec<f32>,
    order: Vec<usize>,
    groups: Vec<(usize, f32)>,
    rows: Vec<u32>,
    weights: Vec<f32>,
}

impl Routes {
    /// Chooses for each row of `logits`, `[rows, experts.count]`. `bias`, `[experts.count]`, is added to the scores for the choice
    /// and not to the weights (arXiv:2408.15664).
    pub(crate) fn choose(&mut self, experts: &Experts, logits: &[f32], bias: Option<&[f32]>) {
        self.chosen.clear();
        for (row, logits) in logits.chunks_exact(experts.count).enumerate() {
            self.row(experts, row as u32, logits, bias);
        }
        self.chosen.sort_unstable_by_key(|&(expert, row, _)| (expert, row));
    }

    /// Each expert that was chosen, by rising number, with its rows and their weights. So a row's experts are added up in one
    /// order, whatever else is in the batch.
    pub(crate) fn each<E>(
        &mut self,
        mut f: impl FnMut(usize, &[u32], &[f32]) -> Result<(), E>,
    ) -> Result<(), E> {
        for same in self.chosen.chunk_by(|a, b| a.0 == b.0) {
            self.rows.clear();
            self.weights.clear();
            self.rows.extend(same.iter().map(|&(_, row, _)| row));
            self.weights.extend(same.iter().map(|&(.., weight)| weight));
            f(same[0].0, &self.rows, &self.weights)?;
        }
        Ok(())
    }

    fn row(&mut self, experts: &Experts, row: u32, logits: &[f32], bias: Option<&[f32]>) {
        let Self { chosen, scores, order, groups, .. } = self;
        scores.clear();
        if experts.gating == Gating::SparseMixer {
            scores.extend(logits);
            let mix = (0..experts.used).map(|_| mixed(scores, logits, experts.tolerance));
            chosen.extend(mix.map(|(expert, weight)| (expert, row, weight * experts.scale)));
            return;
        }
        match experts.gating {
            Gating::Softmax => {
                let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                scores.extend(logits.iter().map(|&logit| (logit - max).exp()));
                let total: f32 = scores.iter().sum();
                scores.iter_mut().for_each(|score| *score /= total);
            }
            // Is done by now.
            Gating::SparseMixer => {}
            Gating::Sigmoid => scores.extend(logits.iter().map(|&logit| 1.0 / (1.0 + (-logit).exp()))),
        }
        let choice = |expert: usize| scores[expert] + bias.map_or(0.0, |bias| bias[expert]);
        order.clear();
        order.extend(0..experts.count);
        // The greatest first; of equals the one with the smaller number.
        let greatest = |a: &usize, b: &usize| choice(*b).total_cmp(&choice(*a)).then(a.cmp(b));
        if let Some((all, used)) = experts.groups {
            let size = experts.count / all;
            // A group counts as its best expert, or, where there is a bias, as its two best.
            let best = if bias.is_some() { 2 } else { 1 };
            groups.clear();
            for group in 0..all {
                let members = &mut order[group * size..(group + 1) * size];
                members.sort_unstable_by(greatest);
                groups.push((group, members.iter().take(best).map(|&expert| choice(expert)).sum()));
            }
            groups.sort_unstable_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
            groups.truncate(used);
            order.retain(|&expert| groups.iter().any(|&(group, _)| group == expert / size));
        }
        order.sort_unstable_by(greatest);
        order.truncate(experts.used);
        let total: f32 = order.iter().map(|&expert| scores[expert]).sum();
        let factor = if experts.normalised { experts.scale / total } else { experts.scale };
        chosen.extend(order.iter().map(|&expert| (expert, row, scores[expert] * factor)));
    }
}

/// The greatest of what is left, which then is not, and its share of those near it.
fn mixed(left: &mut [f32], logits: &[f32], tolerance: f32) -> (usize, f32) {
    let greater =
        |best: usize, (expert, score): (usize, &f32)| if *score > left[best] { expert } else { best };
    let expert = left.iter().enumerate().fold(0, greater);
    let greatest = left[expert];
    let near = left.iter().zip(logits).filter(|&(_, logit)| {
        // Of numbers that are none, as those of an expert that was chosen already, nothing is too far.
        let far = (greatest - logit) / logit.abs().max(greatest) > tolerance;
        !far
    });
    let total: f32 = near.map(|(score, _)| (score - greatest).exp()).sum();
    left[expert] = f32::NEG_INFINITY;
    (expert, 1.0 / total)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn experts(gating: Gating, normalised: bool, groups: Option<(usize, usize)>) -> Experts {
        Experts {
            count: 6,
            used: 2,
            ffn: 1,
            shared_ffn: 0,
            gating,
            normalised,
            scale: 2.0,
            beside: false,
            tolerance: 0.02,
            groups,
        }
    }

    fn choose(experts: &Experts, logits: &[f32], bias: Option<&[f32]>) -> Vec<(usize, u32, f32)> {
        let mut routes = Routes::default();
        routes.choose(experts, logits, bias);
        let mut all = Vec::new();
        let each = |expert, rows: &[u32], weights: &[f32]| {
            all.extend(rows.iter().zip(weights).map(|(&row, &weight)| (expert, row, weight)));
            Ok::<_, ()>(())
        };
        routes.each(each).unwrap();
        all
    }

    #[test]
    fn the_greatest_are_chosen_and_weighted() {
        let logits = [0.0, 3.0, 1.0, 2.0, -1.0, 0.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0];
        let got = choose(&experts(Gating::Softmax, true, None), &logits, None);
        let e = 1.0f32.exp();
        // Of six equals the first two.
        let want = [(0, 1, 1.0), (1, 0, 2.0 * e / (1.0 + e)), (1, 1, 1.0), (3, 0, 2.0 / (1.0 + e))];
        for (got, want) in got.iter().zip(want) {
            assert!(got.0 == want.0 && got.1 == want.1 && (got.2 - want.2).abs() < 1e-6, "{got:?} {want:?}");
        }
        assert_eq!(got.len(), want.len());
    }

    #[test]
    fn a_bias_decides_the_choice_and_not_the_weight() {
        let logits = [0.0; 6];
        let bias = [0.0, 0.0, 0.1, 0.0, 0.0, 0.2];
        let got = choose(&experts(Gating::Sigmoid, false, None), &logits, Some(&bias));
        assert_eq!(got, [(2, 0, 1.0), (5, 0, 1.0)]);
    }

    #[test]
    fn each_is_weighted_among_those_near_it() {
        let experts = Experts { scale: 1.0, ..experts(Gating::SparseMixer, false, None) };
        // The first has one near it, which is the second choice with none near.
        let got = choose(&experts, &[1.0, 2.0, 0.0, 1.98, 1.5, -2.0], None);
        let near = 1.0 / (1.0 + (-0.02f32).exp());
        assert_eq!((got[0].0, got[1].0, got[1].2), (1, 3, 1.0));
        assert!((got[0].2 - near).abs() < 1e-6, "{got:?}");
        // Of six equals the first two, each of as many as are left.
        let got = choose(&experts, &[1.0; 6], None);
        assert_eq!((got[0].0, got[1].0), (0, 1));
        assert!((got[0].2 - 1.0 / 6.0).abs() < 1e-6 && (got[1].2 - 1.0 / 5.0).abs() < 1e-6, "{got:?}");
    }

    #[test]
    fn experts_come_from_the_best_groups() {
        let logits = [3.0, 0.0, 2.0, 2.5, 0.0, 0.0];
        let alone = choose(&experts(Gating::Sigmoid, false, Some((3, 1))), &logits, None);
        assert_eq!(alone.iter().map(|chosen| chosen.0).collect::<Vec<_>>(), [0, 1]);
        // With a bias, even of zeros, the two best of a group count.
        let both = choose(&experts(Gating::Sigmoid, false, Some((3, 1))), &logits, Some(&[0.0; 6]));
        assert_eq!(both.iter().map(|chosen| chosen.0).collect::<Vec<_>>(), [2, 3]);
    }
}
