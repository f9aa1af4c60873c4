//! A memory budget as a person writes it.

use std::fmt;
use std::str::FromStr;

use crate::units;

/// How much memory a model may take: `900M`, `2GiB`, `1500000000` or `80%`.
///
/// K, M, G and T are powers of 1000, Ki, Mi, Gi and Ti of 1024; a B may follow, and fractions are fine. A share is of the
/// memory that the process may use: that of its cgroup, or of the machine where that is less.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum MemoryBudget {
    /// So many bytes.
    Bytes(u64),
    /// So much of what there is: above 0, at most 1.
    Share(f64),
}

/// Why a text is no memory budget.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BudgetError {
    /// Not a number with a unit.
    #[error("`{text}` is not a size such as 900M, 2GiB or 80%")]
    NotASize {
        /// What was given.
        text: String,
    },
    /// Less than a byte.
    #[error("a budget of `{text}` leaves nothing to work in")]
    Nothing {
        /// What was given.
        text: String,
    },
    /// More than can be counted, or more than all of the memory.
    #[error("`{text}` is more than {most}")]
    TooMuch {
        /// What was given.
        text: String,
        /// The most that there can be.
        most: &'static str,
    },
}

/// Units in small letters, without the B that may follow, and how many bytes each is.
const UNITS: [(&str, u64); 9] = [
    ("", 1),
    ("k", 1000),
    ("m", 1_000_000),
    ("g", 1_000_000_000),
    ("t", 1_000_000_000_000),
    ("ki", 1 << 10),
    ("mi", 1 << 20),
    ("gi", 1 << 30),
    ("ti", 1 << 40),
];

impl FromStr for MemoryBudget {
    type Err = BudgetError;

    fn from_str(text: &str) -> Result<Self, BudgetError> {
        let given = || text.to_owned();
        let trimmed = text.trim();
        let digits = trimmed.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(trimmed.len());
        let (number, unit) = trimmed.split_at(digits);
        let unit = unit.trim_start().to_ascii_lowercase();
        // Only digits and points are left, so there is no sign, no exponent and no `inf`.
        let Ok(value) = number.parse::<f64>() else { return Err(BudgetError::NotASize { text: given() }) };
        if unit == "%" {
            return match value / 100.0 {
                0.0 => Err(BudgetError::Nothing { text: given() }),
                share if share <= 1.0 => Ok(Self::Share(share)),
                _ => Err(BudgetError::TooMuch { text: given(), most: "100%" }),
            };
        }
        let unit = unit.strip_suffix('b').unwrap_or(&unit);
        let Some((_, factor)) = UNITS.iter().find(|(name, _)| *name == unit) else {
            return Err(BudgetError::NotASize { text: given() });
        };
        // Whole numbers exactly; a double has 53 bits.
        let whole = number.parse::<u64>().ok().map(|value| value.checked_mul(*factor));
        let bytes = whole.unwrap_or_else(|| {
            let bytes = value * *factor as f64;
            (bytes < u64::MAX as f64).then_some(bytes as u64)
        });
        match bytes {
            None => Err(BudgetError::TooMuch { text: given(), most: "can be counted" }),
            Some(0) => Err(BudgetError::Nothing { text: given() }),
            Some(bytes) => Ok(Self::Bytes(bytes)),
        }
    }
}

impl fmt::Display for MemoryBudget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bytes(n) => f.write_str(&units::bytes(*n)),
            Self::Share(share) => write!(f, "{}%", share * 100.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_shares() {
        for (text, bytes) in [
            ("1", 1),
            ("900M", 900_000_000),
            ("900 MB", 900_000_000),
            ("900mb", 900_000_000),
            ("2GiB", 2 << 30),
            ("2gi", 2 << 30),
            ("1.5k", 1500),
            (".5Ki", 512),
            ("3TiB", 3 << 40),
            ("18446744073709551615", u64::MAX),
            ("9007199254740993", 9_007_199_254_740_993),
        ] {
            assert_eq!(text.parse(), Ok(MemoryBudget::Bytes(bytes)), "{text}");
        }
        assert_eq!("80%".parse(), Ok(MemoryBudget::Share(0.8)));
        assert_eq!(" 12.5 % ".parse(), Ok(MemoryBudget::Share(0.125)));
        assert_eq!(MemoryBudget::Share(0.8).to_string(), "80%");
    }

    #[test]
    fn what_is_no_size() {
        for text in [
            "", "abc", "-5", "+5", "1e400", "1e3", "inf", "nan", "0x10", "1.2.3", "5X", "5 M B", "M", "%",
            "5%%",
        ] {
            assert_eq!(text.parse::<MemoryBudget>(), Err(BudgetError::NotASize { text: text.to_owned() }));
        }
        for text in ["0", "0.0G", "0%", "0.4"] {
            assert_eq!(text.parse::<MemoryBudget>(), Err(BudgetError::Nothing { text: text.to_owned() }));
        }
        let long = "9".repeat(400);
        for text in ["18446744073709551616", "18446744073709552k", "99999999999999T", "101%", long.as_str()] {
            let error = text.parse::<MemoryBudget>().unwrap_err();
            assert!(matches!(error, BudgetError::TooMuch { .. }), "{text}: {error}");
        }
    }
}
