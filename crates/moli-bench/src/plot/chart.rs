//! What a chart shows, before anything is drawn.

/// A chart with one pair of axes.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Chart {
    pub(super) title: String,
    /// What a reader has to know to read it, in one line.
    pub(super) subtitle: String,
    pub(super) x: Axis,
    pub(super) y: Axis,
    pub(super) series: Vec<Series>,
    /// Lines that the series are measured against.
    pub(super) references: Vec<Series>,
}

/// An axis with its unit.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Axis {
    pub(super) label: &'static str,
    pub(super) from: f64,
    pub(super) to: f64,
    pub(super) logarithmic: bool,
    /// Where it is labelled, in place of round numbers.
    pub(super) ticks: Option<Vec<f64>>,
}

/// Points that belong together.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Series {
    pub(super) name: String,
    /// Of which line and colour; charts beside each other agree by it.
    pub(super) points: Vec<(f64, f64)>,
    /// From where to where each point was measured.
    pub(super) ranges: Vec<[f64; 2]>,
    /// Whether the points are joined.
    pub(super) joined: bool,
    /// Whether each point is marked.
    pub(super) marked: bool,
}

impl Axis {
    /// From 0 to a little above the largest value.
    pub(super) fn from_zero(label: &'static str, values: impl Iterator<Item = f64>) -> Self {
        let most = values.fold(0.0, f64::max);
        Self {
            label,
            from: 0.0,
            to: if most > 0.0 { most * 1.08 } else { 1.0 },
            logarithmic: false,
            ticks: None,
        }
    }

    /// A little beyond the smallest and the largest value.
    pub(super) fn around(label: &'static str, values: impl Iterator<Item = f64> + Clone) -> Self {
        let [least, most] =
            [values.clone().fold(f64::INFINITY, f64::min), values.fold(f64::NEG_INFINITY, f64::max)];
        let margin = ((most - least) * 0.08).max(most.abs() * 0.01).max(1e-9);
        Self { label, from: least - margin, to: most + margin, logarithmic: false, ticks: None }
    }

    /// Logarithmic, a little beyond the smallest and the largest value, which are above 0.
    pub(super) fn logarithmic(
        label: &'static str,
        values: impl Iterator<Item = f64> + Clone,
        margin: f64,
    ) -> Self {
        let [least, most] = [values.clone().fold(f64::INFINITY, f64::min), values.fold(0.0, f64::max)];
        Self { label, from: least / margin, to: most * margin, logarithmic: true, ticks: None }
    }

    /// Labelled at these values only, which it goes a little beyond.
    pub(super) fn at(label: &'static str, mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        values.dedup();
        Self { ticks: Some(values.clone()), ..Self::around(label, values.into_iter()) }
    }

    /// Where on the axis a value is, 0 to 1.
    pub(super) fn place(&self, value: f64) -> f64 {
        let scale = |value: f64| if self.logarithmic { value.max(f64::MIN_POSITIVE).ln() } else { value };
        let [from, to, value] = [self.from, self.to, value].map(scale);
        ((value - from) / (to - from)).clamp(0.0, 1.0)
    }

    /// The values that it is labelled at, `most` at most.
    pub(super) fn labelled(&self, most: usize) -> Vec<f64> {
        if let Some(ticks) = &self.ticks {
            return ticks.clone();
        }
        let most = most.max(2);
        if !self.logarithmic {
            let rough = (self.to - self.from) / most as f64;
            let power = 10f64.powf(rough.log10().floor());
            let step =
                [1.0, 2.0, 5.0, 10.0].map(|factor| factor * power).into_iter().find(|step| *step >= rough);
            let step = step.unwrap_or(rough);
            let first = (self.from / step).ceil() as i64;
            let last = (self.to / step).floor() as i64;
            return (first..=last).take(2 * most).map(|index| index as f64 * step).collect();
        }
        let decades = self.from.log10().floor() as i32..=self.to.log10().ceil() as i32;
        let every = |factors: &[f64]| -> Vec<f64> {
            let all = decades
                .clone()
                .flat_map(|decade| factors.iter().map(move |factor| factor * 10f64.powi(decade)));
            all.filter(|value| (self.from..=self.to).contains(value)).collect()
        };
        let kinds: [&[f64]; 4] =
            [&[1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0], &[1.0, 2.0, 5.0], &[1.0, 3.0], &[1.0]];
        let mut kinds = kinds.into_iter().map(every);
        let fits = kinds.find(|values| (2..=most).contains(&values.len()));
        // Within a small part of a decade, the ends.
        fits.unwrap_or_else(|| vec![self.from, self.to])
    }
}

/// A number as short as it can be told, at the scale of an axis.
pub(super) fn number(value: f64) -> String {
    let digits = match value.abs() {
        0.0 => 0,
        size if size >= 100.0 => 0,
        size => (2.0 - size.log10().floor()).clamp(0.0, 6.0) as usize,
    };
    let text = format!("{value:.digits$}");
    match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_are_labelled_at_round_numbers_within_them() {
        let axes = [
            Axis::from_zero("", [87.0].into_iter()),
            Axis::around("", [20.0, 20.5].into_iter()),
            Axis::around("", [5.0].into_iter()),
            Axis::logarithmic("", [0.02, 700.0].into_iter(), 1.2),
            Axis::logarithmic("", [0.02, 0.021].into_iter(), 1.1),
            Axis::from_zero("", std::iter::empty()),
        ];
        for axis in axes {
            let labelled = axis.labelled(8);
            assert!((2..=16).contains(&labelled.len()), "{axis:?}: {labelled:?}");
            assert!(
                labelled.iter().all(|value| (axis.from..=axis.to).contains(value)),
                "{axis:?}: {labelled:?}"
            );
        }
    }

    #[test]
    fn numbers_are_short() {
        let texts = [0.0, 0.02, 0.5, 1.0, 2.5, 12.0, 4096.0, 0.001].map(number);
        assert_eq!(texts, ["0", "0.02", "0.5", "1", "2.5", "12", "4096", "0.001"]);
    }

    #[test]
    fn places_are_between_the_ends() {
        let axis = Axis::logarithmic("", [1.0, 100.0].into_iter(), 1.0);
        assert_eq!(
            [1.0, 10.0, 100.0, 0.0, 1e9].map(|value| (axis.place(value) * 100.0).round()),
            [0.0, 50.0, 100.0, 0.0, 100.0]
        );
    }
}
