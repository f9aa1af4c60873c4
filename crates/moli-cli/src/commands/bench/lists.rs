//! Numbers as llama-bench's options list them.

use std::str::FromStr;

/// Most numbers of a range.
const MOST: usize = 4096;

/// Numbers and ranges with commas between: `8`, `1,4,8`, `1-8`, `1-8+2`, `1-8*2`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Numbers(pub(super) Vec<usize>);

/// How a range goes on.
#[derive(Clone, Copy)]
enum Step {
    Add(usize),
    Multiply(usize),
}

impl FromStr for Numbers {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let ranges: Result<Vec<_>, _> = text.split(',').map(Self::range).collect();
        Ok(Self(ranges?.concat()))
    }
}

impl Numbers {
    /// What stands between two commas.
    fn range(text: &str) -> Result<Vec<usize>, String> {
        let number = |text: &str| {
            text.parse::<usize>()
                .map_err(|_| format!("{text:?} is neither a number nor a range such as 1-8, 1-8+2 or 1-8*2"))
        };
        let Some((first, rest)) = text.split_once('-').filter(|(first, _)| !first.is_empty()) else {
            return Ok(vec![number(text)?]);
        };
        let (last, step) = if let Some((last, step)) = rest.split_once('+') {
            (last, Step::Add(number(step)?))
        } else if let Some((last, step)) = rest.split_once('*') {
            (last, Step::Multiply(number(step)?))
        } else {
            (rest, Step::Add(1))
        };
        let (first, last) = (number(first)?, number(last)?);
        if first > last {
            return Err(format!("the range {text} ends before it begins"));
        }
        let mut numbers = Vec::new();
        let mut next = Some(first);
        while let Some(number) = next.filter(|&number| number <= last) {
            if numbers.len() == MOST {
                return Err(format!("the range {text} has more than {MOST} numbers"));
            }
            numbers.push(number);
            next = match step {
                Step::Add(step) => number.checked_add(step),
                Step::Multiply(factor) => number.checked_mul(factor),
            };
            if next == Some(number) {
                return Err(format!("the range {text} never ends"));
            }
        }
        Ok(numbers)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_ranges() {
        let read = |text: &str| text.parse::<Numbers>().map(|numbers| numbers.0);
        assert_eq!(read("0"), Ok(vec![0]));
        assert_eq!(read("2-4"), Ok(vec![2, 3, 4]));
        assert_eq!(read("0,4096,1-2"), Ok(vec![0, 4096, 1, 2]));
        assert_eq!(read("1-8+3"), Ok(vec![1, 4, 7]));
        assert_eq!(read("1-20*4"), Ok(vec![1, 4, 16]));
        assert_eq!(read(&format!("{}-{}*2", usize::MAX, usize::MAX)), Ok(vec![usize::MAX]));
        assert_eq!(read("4-2").unwrap_err(), "the range 4-2 ends before it begins");
        assert_eq!(read("1-2*1").unwrap_err(), "the range 1-2*1 never ends");
        assert_eq!(read("0-2*3").unwrap_err(), "the range 0-2*3 never ends");
        assert_eq!(read("1-2+0").unwrap_err(), "the range 1-2+0 never ends");
        assert_eq!(read("0-9999").unwrap_err(), "the range 0-9999 has more than 4096 numbers");
        for wrong in ["", "1,", ",1", "x", "-1", "1-", "1-x", "1-8+", "1.5", "99999999999999999999"] {
            assert!(read(wrong).unwrap_err().contains("is neither a number nor a range"), "{wrong}");
        }
    }
}
