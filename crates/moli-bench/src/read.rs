//! Reading a report that somebody gives: nothing in it is believed before it is checked.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;

use serde_json::Value;

use crate::report::{Report, Row, SCHEMA};
use crate::turns::{LEAST_ROUNDS, MOST_ROUNDS};

/// Most bytes of a report's file; a run of hundreds of rows has a hundredth of it.
pub const MOST_BYTES: u64 = 64 << 20;

/// Why a report can't be used.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The file can't be read.
    #[error("cannot read it: {0}")]
    Io(#[from] io::Error),
    /// It is larger than a report can be.
    #[error("{bytes} bytes are more than a report can have, {most}")]
    TooLarge {
        /// Its size, or one byte more than `most` where it has none.
        bytes: u64,
        /// [`MOST_BYTES`].
        most: u64,
    },
    /// It is not JSON, or a field is missing, unknown or of another type.
    #[error("not a report of `moli bench`: {0}")]
    Malformed(#[from] serde_json::Error),
    /// It has no version, so it is something else.
    #[error("not a report of `moli bench`: it has no field \"schema\"")]
    NoSchema,
    /// Another version of the form.
    #[error("schema: {found:?} in the file, {expected:?} is read")]
    OtherSchema {
        /// What it says.
        found: String,
        /// [`SCHEMA`].
        expected: &'static str,
    },
    /// A row's model is not in the report.
    #[error("row {row}: its model {model:?} is not among the report's models")]
    UnknownModel {
        /// From 0.
        row: usize,
        /// The name that it has.
        model: String,
    },
    /// A row without measurements.
    #[error("row {row}: no repetitions")]
    NoRepetitions {
        /// From 0.
        row: usize,
    },
    /// Turns that nobody can have taken.
    #[error("turns.rounds is {rounds}, and must be between {LEAST_ROUNDS} and {MOST_ROUNDS}")]
    Rounds {
        /// What it is.
        rounds: usize,
    },
    /// A row that can't be divided among the rounds.
    #[error("row {row}: {repetitions} repetitions are not equally many in each of {rounds} rounds")]
    Uneven {
        /// From 0.
        row: usize,
        /// Of the row.
        repetitions: usize,
        /// Of the report.
        rounds: usize,
    },
    /// A number that can't be.
    #[error("row {row}: {field} is {value}, {expected} is needed")]
    Value {
        /// From 0.
        row: usize,
        /// Its name.
        field: &'static str,
        /// What it is.
        value: f64,
        /// What it could be.
        expected: &'static str,
    },
}

/// Reads a report's file.
///
/// # Errors
/// [`ReadError`], which does not name the file.
pub fn read(path: &Path) -> Result<Report, ReadError> {
    let file = File::open(path)?;
    let mut bytes = Vec::new();
    // A pipe has no size to ask for.
    file.take(MOST_BYTES + 1).read_to_end(&mut bytes)?;
    parse(&bytes)
}

/// Reads a report.
///
/// # Errors
/// [`ReadError`]; of a wrong version, that one, whatever else is wrong.
pub fn parse(bytes: &[u8]) -> Result<Report, ReadError> {
    if bytes.len() as u64 > MOST_BYTES {
        return Err(ReadError::TooLarge { bytes: bytes.len() as u64, most: MOST_BYTES });
    }
    let json: Value = serde_json::from_slice(bytes)?;
    match json.get("schema").and_then(Value::as_str) {
        None => return Err(ReadError::NoSchema),
        Some(SCHEMA) => {}
        Some(found) => {
            return Err(ReadError::OtherSchema {
                found: found.chars().take(100).collect(),
                expected: SCHEMA,
            });
        }
    }
    // From the bytes once more: the error says in which line it is.
    let report: Report = serde_json::from_slice(bytes)?;
    check(&report)?;
    Ok(report)
}

/// Checks what has to hold in every report, for those who compute with its rows.
///
/// # Errors
/// [`ReadError`] on the first row that makes no sense.
pub fn check(report: &Report) -> Result<(), ReadError> {
    if let Some(turns) = &report.turns
        && !(LEAST_ROUNDS..=MOST_ROUNDS).contains(&turns.rounds)
    {
        return Err(ReadError::Rounds { rounds: turns.rounds });
    }
    for (index, row) in report.rows.iter().enumerate() {
        let rounds = report.turns.as_ref().map_or(1, |turns| turns.rounds);
        if !row.seconds.len().is_multiple_of(rounds) {
            return Err(ReadError::Uneven { row: index, repetitions: row.seconds.len(), rounds });
        }
        if !report.models.contains_key(&row.case.model) {
            return Err(ReadError::UnknownModel { row: index, model: row.case.model.clone() });
        }
        check_row(index, row)?;
    }
    Ok(())
}

fn check_row(index: usize, row: &Row) -> Result<(), ReadError> {
    let wrong = |field, value, expected| Err(ReadError::Value { row: index, field, value, expected });
    if row.seconds.is_empty() {
        return Err(ReadError::NoRepetitions { row: index });
    }
    if row.loads == 0 {
        return wrong("loads", 0.0, "1 or more");
    }
    if row.tokens_per_repetition == 0 {
        return wrong("tokens_per_repetition", 0.0, "1 or more");
    }
    if let Some(seconds) = row.seconds.iter().find(|seconds| !(seconds.is_finite() && **seconds > 0.0)) {
        return wrong("seconds", *seconds, "a finite number above 0");
    }
    if let Some(outlier) = row.outliers.iter().find(|outlier| **outlier >= row.seconds.len()) {
        return wrong("outliers", *outlier as f64, "the index of a repetition");
    }
    // Each once, ascending: then some are left if there are fewer of them than repetitions.
    let ascending = row.outliers.windows(2).all(|two| matches!(two, [a, b] if a < b));
    if !ascending || row.outliers.len() == row.seconds.len() {
        return wrong("outliers", row.outliers.len() as f64, "fewer than there are repetitions, ascending");
    }
    let rate = &row.rate;
    for (field, value) in [("rate.median", rate.median), ("rate.min", rate.min), ("rate.max", rate.max)] {
        if !(value.is_finite() && value > 0.0) {
            return wrong(field, value, "a finite number above 0");
        }
    }
    let shares = [("conditions.others", row.conditions.others), ("conditions.stolen", row.conditions.stolen)];
    for (field, share) in shares {
        if let Some(share) = share.filter(|share| !(0.0..=1.0).contains(share)) {
            return wrong(field, share, "a share of 0 to 1");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::samples;

    fn error(change: impl FnOnce(&mut Value)) -> String {
        let mut json = serde_json::to_value(samples::report()).unwrap();
        change(&mut json);
        parse(json.to_string().as_bytes()).unwrap_err().to_string()
    }

    #[test]
    fn a_report_is_read_as_it_was_written() {
        let report = samples::report();
        assert_eq!(parse(&serde_json::to_vec(&report).unwrap()).unwrap(), report);
    }

    #[test]
    fn another_version_is_named_with_both_and_before_all_else() {
        let text = error(|json| {
            json["schema"] = json!("moli-bench/7");
            json["extra"] = json!(1);
        });
        assert!(text.contains("\"moli-bench/7\"") && text.contains(SCHEMA), "{text}");
        let without = error(|json| {
            json.as_object_mut().unwrap().remove("schema");
        });
        assert!(without.contains("\"schema\""), "{without}");
    }

    #[test]
    fn what_is_no_json_is_refused() {
        for text in ["", "{", "[1, 2", "NaN", "\u{0}", &"[".repeat(100_000)] {
            assert!(matches!(parse(text.as_bytes()), Err(ReadError::Malformed(_))), "{text:.20}");
        }
    }

    #[test]
    fn unknown_fields_are_named_wherever_they_are() {
        assert!(error(|json| json["colour"] = json!(1)).contains("colour"));
        assert!(error(|json| json["machine"]["colour"] = json!(1)).contains("colour"));
        let row = error(|json| json["rows"][1]["colour"] = json!(1));
        assert!(row.contains("colour"), "{row}");
        // A field of another test.
        let other = error(|json| json["rows"][0]["clients"] = json!(1));
        assert!(other.contains("clients"), "{other}");
    }

    #[test]
    fn measurements_that_cannot_be_are_named() {
        let seconds = |value: Value| error(|json| json["rows"][0]["seconds"] = value);
        assert_eq!(seconds(json!([])), "row 0: no repetitions");
        assert_eq!(seconds(json!([1.0, -2.0])), "row 0: seconds is -2, a finite number above 0 is needed");
        assert!(seconds(json!([0.0])).contains("seconds is 0"));
        assert!(seconds(json!([null])).contains("null"));
        let text = serde_json::to_string(&samples::report()).unwrap().replacen(
            "\"seconds\":[",
            "\"seconds\":[1e999,",
            1,
        );
        assert!(matches!(parse(text.as_bytes()), Err(ReadError::Malformed(_))));
        assert!(error(|json| json["rows"][0]["outliers"] = json!([99])).contains("outliers is 99"));
        assert!(error(|json| json["rows"][0]["outliers"] = json!([1, 1])).contains("ascending"));
        assert!(
            error(|json| json["rows"][0]["tokens_per_repetition"] = json!(0))
                .contains("tokens_per_repetition")
        );
        assert!(error(|json| json["rows"][0]["model"] = json!("other")).contains("\"other\""));
        assert!(error(|json| json["rows"][0]["conditions"]["others"] = json!(1.5)).contains("others is 1.5"));
        let mut report = samples::report();
        report.rows[0].seconds[0] = f64::NAN;
        assert!(check(&report).unwrap_err().to_string().contains("seconds is NaN"));
    }

    #[test]
    fn a_file_has_to_be_there_and_of_a_size() {
        assert!(matches!(read(Path::new("/nonexistent/a.json")), Err(ReadError::Io(_))));
        let large = vec![b' '; MOST_BYTES as usize + 1];
        assert!(matches!(parse(&large), Err(ReadError::TooLarge { .. })));
    }
}
