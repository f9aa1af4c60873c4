//! Sets of characters.

/// The last code point.
const LAST: u32 = char::MAX as u32;

/// A set of code points: a bit for each of ASCII, ranges above. Surrogates may be in it and mean nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct CharSet {
    ascii: u128,
    /// First and last of each range; ascending, with gaps between.
    high: Vec<(u32, u32)>,
}

impl CharSet {
    pub(super) fn one(c: char) -> Self {
        Self::ranges(&[(c, c)])
    }

    pub(super) fn all() -> Self {
        Self::ranges(&[('\0', char::MAX)])
    }

    /// First and last of each range.
    pub(super) fn ranges(ranges: &[(char, char)]) -> Self {
        let mut set = Self::default();
        for &(first, last) in ranges {
            let (first, last) = (u32::from(first), u32::from(last));
            for code in first..=last.min(127) {
                set.ascii |= 1 << code;
            }
            if last > 127 {
                set.high.push((first.max(128), last));
            }
        }
        set.tidy();
        set
    }

    pub(super) fn not(&self) -> Self {
        let mut high = Vec::new();
        let mut next = 128;
        for &(first, last) in &self.high {
            if first > next {
                high.push((next, first - 1));
            }
            next = last + 1;
        }
        if next <= LAST {
            high.push((next, LAST));
        }
        Self { ascii: !self.ascii, high }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.ascii == 0 && self.high.is_empty()
    }

    /// Adds another set; whether that changed anything.
    pub(super) fn add(&mut self, other: &Self) -> bool {
        let before = self.ascii;
        self.ascii |= other.ascii;
        let mut changed = self.ascii != before;
        if other.high.iter().any(|range| !self.covers(*range)) {
            self.high.extend_from_slice(&other.high);
            self.tidy();
            changed = true;
        }
        changed
    }

    pub(super) fn intersects(&self, other: &Self) -> bool {
        if self.ascii & other.ascii != 0 {
            return true;
        }
        let (mut left, mut right) = (self.high.iter().peekable(), other.high.iter().peekable());
        while let (Some(a), Some(b)) = (left.peek(), right.peek()) {
            if a.0 <= b.1 && b.0 <= a.1 {
                return true;
            }
            if a.1 < b.1 {
                left.next()
            } else {
                right.next()
            };
        }
        false
    }

    /// As the class of a regular expression: ASCII letters only, so that nothing needs escaping.
    pub(super) fn to_class(&self) -> String {
        let mut class = String::from("[");
        let mut code = 0;
        while code < 128 {
            if self.ascii >> code & 1 == 0 {
                code += 1;
                continue;
            }
            let run = (!(self.ascii >> code)).trailing_zeros().min(128 - code);
            push_range(&mut class, code, code + run - 1);
            code += run;
        }
        self.high.iter().for_each(|&(first, last)| push_range(&mut class, first, last));
        class.push(']');
        class
    }

    fn covers(&self, (first, last): (u32, u32)) -> bool {
        let at = self.high.partition_point(|range| range.1 < first);
        self.high.get(at).is_some_and(|range| range.0 <= first && last <= range.1)
    }

    fn tidy(&mut self) {
        self.high.sort_unstable();
        let mut tidy: Vec<(u32, u32)> = Vec::with_capacity(self.high.len());
        for &(first, last) in &self.high {
            match tidy.last_mut() {
                Some(range) if first <= range.1 + 1 => range.1 = range.1.max(last),
                _ => tidy.push((first, last)),
            }
        }
        self.high = tidy;
    }
}

fn push_range(class: &mut String, first: u32, last: u32) {
    class.push_str(&format!("\\x{{{first:X}}}-\\x{{{last:X}}}"));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_are_what_they_contain() {
        let has = |set: &CharSet, c: char| set.intersects(&CharSet::one(c));
        let set = CharSet::ranges(&[('a', 'f'), ('é', 'é'), ('一', '三'), ('丁', '七')]);
        for (c, inside) in [('a', true), ('g', false), ('é', true), ('ê', false), ('丁', true), ('且', false)]
        {
            assert_eq!(has(&set, c), inside, "{c}");
            assert_eq!(has(&set.not(), c), !inside, "{c}");
        }
        assert_eq!(set.not().not(), set);
        assert_eq!(CharSet::all().not(), CharSet::default());
        assert!(CharSet::default().is_empty() && !CharSet::all().is_empty());
        let mut sum = CharSet::one('a');
        assert!(
            sum.add(&CharSet::one('中')) && !sum.add(&CharSet::one('中')) && !sum.add(&CharSet::one('a'))
        );
        assert!(has(&sum, '中') && has(&sum, 'a') && !has(&sum, 'b'));
    }

    #[test]
    fn classes_match_their_sets() {
        let sets = [
            CharSet::all(),
            CharSet::one(']'),
            CharSet::ranges(&[('\0', '\x1F'), ('\\', '^'), ('~', '\u{80}'), ('\u{FFFF}', '\u{10000}')]),
        ];
        for set in sets {
            let regex = regex::Regex::new(&format!("^{}$", set.to_class())).unwrap();
            for c in (0..0x800).chain(0xFF00..0x10100).chain([0x10_FFFF]).filter_map(char::from_u32) {
                assert_eq!(regex.is_match(&c.to_string()), set.intersects(&CharSet::one(c)), "{c:?} {regex}");
            }
        }
    }
}
