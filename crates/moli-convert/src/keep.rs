//! Exceptions to a mixture.

use std::str::FromStr;

use moli_format::TensorType;
use moli_kernels::QUANTIZABLE;
use regex::Regex;

use crate::ConvertError;

/// A format for the tensors whose names a pattern matches, written `PATTERN=TYPE`: `ffn_down=q8_0`.
#[derive(Debug, Clone)]
pub struct Keep {
    pattern: Regex,
    pub(crate) ttype: TensorType,
}

impl Keep {
    /// Whether a tensor of this name is meant.
    pub fn matches(&self, name: &str) -> bool {
        self.pattern.is_match(name)
    }

    /// The pattern, a regular expression that is searched for in names.
    pub fn pattern(&self) -> &str {
        self.pattern.as_str()
    }
}

impl FromStr for Keep {
    type Err = ConvertError;

    fn from_str(asked: &str) -> Result<Self, ConvertError> {
        let bad = |reason: String| ConvertError::BadKeep { asked: asked.to_owned(), reason };
        // A pattern may hold an equals sign, a type does not.
        let (pattern, name) = asked.rsplit_once('=').ok_or_else(|| bad("there is no =".to_owned()))?;
        if pattern.is_empty() {
            return Err(bad("the pattern is empty".to_owned()));
        }
        let ttype = QUANTIZABLE.into_iter().find(|ttype| ttype.name().eq_ignore_ascii_case(name));
        let ttype = ttype.ok_or_else(|| {
            let known = QUANTIZABLE.map(TensorType::name).join(", ");
            bad(format!("there is no type {name:?}, but {known}"))
        })?;
        let pattern = Regex::new(pattern).map_err(|error| {
            // The rest of it draws the pattern over several lines.
            bad(error.to_string().lines().last().unwrap_or_default().to_owned())
        })?;
        Ok(Self { pattern, ttype })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_is_searched_for_in_names() {
        let keep: Keep = r"blk\.[01]\.ffn_=q8_0".parse().unwrap();
        assert_eq!(keep.ttype, TensorType::Q8_0);
        assert!(keep.matches("blk.1.ffn_down.weight") && !keep.matches("blk.2.ffn_down.weight"));
        assert_eq!("a=b=F16".parse::<Keep>().unwrap().pattern(), "a=b");
    }

    #[test]
    fn what_is_no_exception_is_refused_with_the_reason() {
        for (asked, reason) in [
            ("ffn_down", "there is no ="),
            ("=q8_0", "the pattern is empty"),
            ("ffn_down=q9_0", "there is no type \"q9_0\", but F32, F16"),
            ("ffn_(down=q8_0", "unclosed group"),
            ("ffn_down=", "there is no type \"\""),
        ] {
            let error = asked.parse::<Keep>().unwrap_err().to_string();
            assert!(error.contains(asked) && error.contains(reason), "{error}");
        }
    }
}
