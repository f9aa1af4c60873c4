//! The functions and filters that chat templates expect from their Python home.

use crate::dumps::{self, Dumps};
use minijinja::value::{Kwargs, ObjectRepr, Rest, Value, ValueKind, ValueOrKwargs};
use minijinja::{Environment, Error, ErrorKind, State, filters, tests as predicates};
use serde::Serialize;
use std::io::{self, Write};

/// The longest JSON text that `tojson` makes, in bytes.
const MAX_JSON: usize = 8 << 20;

/// The source of an error that `raise_exception` made: the template's own words.
#[derive(Debug)]
pub(crate) struct Raised(pub(crate) String);

impl std::fmt::Display for Raised {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Raised {}

pub(crate) fn raise_exception(state: &State, message: &Value) -> Result<Value, Error> {
    let message = bounded_string(state, message)?;
    Err(Error::new(ErrorKind::InvalidOperation, message.clone()).with_source(Raised(message)))
}

/// `join`, paid for item by item: a list that repeats one long text costs nothing until it is joined.
pub(crate) fn join(
    state: &mut State,
    value: &Value,
    separator: Option<&str>,
    attribute: Option<&str>,
    args: Kwargs,
) -> Result<Value, Error> {
    let separator =
        separator.map_or_else(|| args.get::<Option<&str>>("d"), |text| Ok(Some(text)))?.unwrap_or("");
    let attribute = attribute.map_or_else(|| args.get::<Option<&str>>("attribute"), |text| Ok(Some(text)))?;
    args.assert_all_used()?;
    join_items(state, value, separator, attribute)
}

fn join_items(
    state: &State,
    value: &Value,
    separator: &str,
    attribute: Option<&str>,
) -> Result<Value, Error> {
    let mut out = String::new();
    for (i, item) in value.try_iter()?.enumerate() {
        let item = match attribute {
            Some(path) => path.split('.').try_fold(item, |item, name| item.get_attr(name))?,
            None => item,
        };
        let text = match item.as_str() {
            Some(text) => std::borrow::Cow::Borrowed(text),
            None => std::borrow::Cow::Owned(bounded_string(state, &item)?),
        };
        let glue = if i == 0 { "" } else { separator };
        state.consume_fuel(1 + (text.len() + glue.len()) as u64 / 64)?;
        out.push_str(glue);
        out.push_str(&text);
    }
    Ok(Value::from(out))
}

/// `string`, within the budget: a list of a few words can repeat a long text without end.
pub(crate) fn string(state: &mut State, value: &Value) -> Result<Value, Error> {
    if value.as_str().is_some() {
        return Ok(value.clone());
    }
    let text = bounded_string(state, value)?;
    state.consume_fuel(text.len() as u64 / 4)?;
    Ok(Value::from(text))
}

/// A list or map as text, within the budget; other values as they are.
pub(crate) fn text(state: &mut State, value: &Value) -> Result<Value, Error> {
    if value.as_object().is_some() && !value.is_safe() { string(state, value) } else { Ok(value.clone()) }
}

/// Puts a bound before the engine's filters and tests that take any value as text.
pub(crate) fn bound_filters(environment: &mut Environment<'_>) {
    for (name, original) in [
        ("upper", Value::from_function(filters::upper)),
        ("lower", Value::from_function(filters::lower)),
        ("title", Value::from_function(filters::title)),
        ("capitalize", Value::from_function(filters::capitalize)),
        ("replace", Value::from_function(filters::replace)),
        ("trim", Value::from_function(filters::trim)),
        ("split", Value::from_function(filters::split)),
        ("lines", Value::from_function(filters::lines)),
        ("indent", Value::from_function(filters::indent)),
        ("escape", Value::from_function(filters::escape)),
        ("e", Value::from_function(filters::escape)),
        ("safe", Value::from_function(filters::safe)),
        ("pprint", Value::from_function(filters::pprint)),
        ("format", Value::from_function(filters::format)),
    ] {
        environment.add_filter(name, move |state: &mut State, args: Rest<ValueOrKwargs>| {
            let args = texts(state, &args.into_values(), 0, usize::MAX)?;
            if name == "indent" {
                // It makes the spaces before anything is charged.
                let named = args.last().filter(|value| value.is_kwargs()).map(|all| all.get_attr("width"));
                let width = [args.get(1).cloned(), named.transpose()?].into_iter().flatten();
                let width = width.filter_map(|value| u64::try_from(value).ok()).max().unwrap_or(4);
                let lines = args.first().and_then(Value::as_str).map_or(0, |text| text.lines().count() + 1);
                state.consume_fuel(width.saturating_mul(lines as u64) / 64)?;
            }
            original.call(state, &args)
        });
    }
    // These take names behind the list.
    for (name, original, names) in [
        ("select", Value::from_function(filters::select), 1),
        ("reject", Value::from_function(filters::reject), 1),
        ("selectattr", Value::from_function(filters::selectattr), 2),
        ("rejectattr", Value::from_function(filters::rejectattr), 2),
        ("map", Value::from_function(filters::map), 1),
    ] {
        environment.add_filter(name, move |state: &mut State, args: Rest<ValueOrKwargs>| {
            let args = texts(state, &args.into_values(), 1, names)?;
            original.call(state, &args)
        });
    }
    for (name, original) in [
        ("startingwith", Value::from_function(predicates::is_startingwith)),
        ("endingwith", Value::from_function(predicates::is_endingwith)),
    ] {
        environment.add_test(name, move |state: &mut State, args: Rest<ValueOrKwargs>| {
            let args = texts(state, &args.into_values(), 0, usize::MAX)?;
            original.call(state, &args)
        });
    }
}

/// Tests that ask for a value's kind, as Python answers them: `none` is nothing to iterate over, and texts and maps have a
/// length and items, which is what makes a sequence.
pub(crate) fn kind_tests(environment: &mut Environment<'_>) {
    environment.add_test("iterable", |value: &Value| !value.is_none() && predicates::is_iterable(value));
    environment.add_test("sequence", |value: &Value| {
        value.as_str().is_some() || value.kind() == ValueKind::Map || predicates::is_sequence(value)
    });
}

/// Arguments with the lists and maps among `count` of them from `skip` on as text.
fn texts(state: &mut State, args: &[Value], skip: usize, count: usize) -> Result<Vec<Value>, Error> {
    let mut out = Vec::with_capacity(args.len());
    for (i, value) in args.iter().enumerate() {
        let named = i >= skip && i - skip < count;
        if value.is_kwargs() {
            // An option of these that is a text may be given by its name.
            for key in value.try_iter()? {
                let item = value.get_item(&key)?;
                if item.as_object().is_some() && key.as_str() != Some("default") {
                    let message = format!("{key}: a list or map is not supported here");
                    return Err(Error::new(ErrorKind::InvalidOperation, message));
                }
            }
        }
        out.push(if named && !value.is_kwargs() { text(state, value)? } else { value.clone() });
    }
    Ok(out)
}

/// Levels of lists and maps that can be written as text.
const MAX_NESTING: usize = 64;

/// Walks a value, paying for each item, down to the greatest depth: writing one recurses.
fn walk(state: &State, value: &Value, depth: usize) -> Result<(), Error> {
    let Some(object) = value.as_object() else { return Ok(()) };
    state.consume_fuel(1)?;
    if depth == 0 {
        return Err(Error::new(ErrorKind::InvalidOperation, "a list or map nests too deep to be text"));
    }
    match object.repr() {
        ObjectRepr::Map => {
            for (key, item) in object.try_iter_pairs().into_iter().flatten() {
                walk(state, &key, depth - 1)?;
                walk(state, &item, depth - 1)?;
            }
        }
        ObjectRepr::Seq | ObjectRepr::Iterable if object.enumerator_len().is_some() => {
            for item in object.try_iter().into_iter().flatten() {
                walk(state, &item, depth - 1)?;
            }
        }
        _ => {}
    }
    Ok(())
}

/// A value as text, no longer than the fuel that is left pays for.
fn bounded_string(state: &State, value: &Value) -> Result<String, Error> {
    walk(state, value, MAX_NESTING)?;
    struct Limited(String, usize);
    impl std::fmt::Write for Limited {
        fn write_str(&mut self, text: &str) -> std::fmt::Result {
            self.1 = self.1.checked_sub(text.len()).ok_or(std::fmt::Error)?;
            self.0.push_str(text);
            Ok(())
        }
    }
    let left = state.fuel_levels().map_or(MAX_JSON as u64, |(_, left)| left.saturating_mul(64));
    let mut out = Limited(String::new(), usize::try_from(left).unwrap_or(MAX_JSON).min(MAX_JSON));
    dumps::repr(value, &mut out).map_err(|_| Error::from(ErrorKind::OutOfFuel))?;
    Ok(out.0)
}

/// Python's methods of strings, lists and maps.
///
/// `str.format` makes its padding before anything is charged for it, so its widths are looked at first.
pub(crate) fn method(state: &mut State, value: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    if let (Some(separator), "join", [items]) = (value.as_str(), name, args) {
        return join_items(state, items, separator, None);
    }
    if let (Some(format), "format") = (value.as_str(), name) {
        state.consume_fuel(format_cost(format)? / 64)?;
        if args.iter().any(|value| value.as_object().is_some()) {
            return Err(Error::new(ErrorKind::InvalidOperation, "format: lists and maps are not supported"));
        }
    }
    minijinja_contrib::pycompat::unknown_method_callback(state, value, name, args)
}

/// The most bytes of padding and digits that a format string can ask for. Widths from arguments are refused.
fn format_cost(format: &str) -> Result<u64, Error> {
    let (mut cost, mut number, mut field) = (0u64, 0u64, false);
    let mut chars = format.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '{' if !field && chars.peek() == Some(&'{') => _ = chars.next(),
            '{' if field => {
                return Err(Error::new(
                    ErrorKind::InvalidOperation,
                    "format: nested fields are not supported",
                ));
            }
            '{' => (field, number) = (true, 0),
            '}' => (field, number) = (false, 0),
            _ => {}
        }
        match c.to_digit(10).filter(|_| field) {
            // Every prefix of a number counts too, which only makes the bound larger.
            Some(digit) => {
                number = number.saturating_mul(10).saturating_add(u64::from(digit));
                cost = cost.saturating_add(number);
            }
            None => number = 0,
        }
    }
    Ok(cost)
}

/// Writes as far as a limit.
pub(crate) struct Bounded {
    pub(crate) bytes: Vec<u8>,
    pub(crate) limit: usize,
}

impl Write for Bounded {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        if self.bytes.len().saturating_add(data.len()) > self.limit {
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, "the output is too long"));
        }
        self.bytes.extend_from_slice(data);
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// JSON as Python writes it on one line.
pub(crate) fn json(value: &impl Serialize) -> Result<String, serde_json::Error> {
    let mut out = Vec::new();
    Dumps::default().write(value, &mut out)?;
    Ok(String::from_utf8_lossy(&out).into_owned())
}

/// `tojson` as chat templates know it: `json.dumps` without escapes for HTML, and of ASCII only where asked for.
pub(crate) fn tojson(state: &mut State, value: &Value, args: Kwargs) -> Result<Value, Error> {
    let refused =
        |what: &str| Error::new(ErrorKind::InvalidOperation, format!("tojson: {what} is not supported"));
    let mut dumps = Dumps { indent: args.get("indent")?, ..Dumps::default() };
    dumps.ascii = args.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false);
    if args.get::<Option<bool>>("sort_keys")?.unwrap_or(false) {
        return Err(refused("sort_keys"));
    }
    if let Some(separators) = args.get::<Option<Vec<String>>>("separators")? {
        let [item, key] = separators.try_into().map_err(|_| refused("other than two separators"))?;
        (dumps.item, dumps.key) = (Some(item), key);
    }
    args.assert_all_used()?;
    let mut out = Bounded { bytes: Vec::new(), limit: MAX_JSON };
    let done = dumps.write(value, &mut out);
    done.map_err(|error| {
        let kind = if error.is_io() { ErrorKind::OutOfFuel } else { ErrorKind::BadSerialization };
        Error::new(kind, "tojson failed").with_source(error)
    })?;
    // Serialising costs about as much as sixteen times copying.
    state.consume_fuel(out.bytes.len() as u64 / 4)?;
    Ok(Value::from(String::from_utf8_lossy(&out.bytes).into_owned()))
}

/// `datetime.now().strftime(format)`, for UTC: the runtime doesn't know the zone of who asks.
/// `seconds` counts from 1970-01-01 00:00.
pub(crate) fn strftime(seconds: i64, format: &str) -> Result<String, Error> {
    const MONTHS: [&str; 12] = [
        "January",
        "February",
        "March",
        "April",
        "May",
        "June",
        "July",
        "August",
        "September",
        "October",
        "November",
        "December",
    ];
    const DAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];
    if format.len() > 256 {
        return Err(Error::new(ErrorKind::InvalidOperation, "strftime_now: the format is too long"));
    }
    let (days, time) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    let (hour, minute, second) = (time / 3600, time / 60 % 60, time % 60);
    let (year, month, day) = civil(days);
    let of_year = days - days_before(year, 1, 1) + 1;
    let month_name = MONTHS.get(month as usize - 1).copied().unwrap_or("");
    let day_name = DAYS.get((days + 4).rem_euclid(7) as usize).copied().unwrap_or("");
    let hour12 = (hour + 11) % 12 + 1;
    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let mut code = chars.next();
        let padded = code != Some('-');
        if !padded {
            code = chars.next();
        }
        let number = |value: i64, width: usize| {
            if padded { format!("{value:0width$}") } else { value.to_string() }
        };
        out.push_str(&match code {
            Some('Y') => number(year, 4),
            Some('y') => number(year.rem_euclid(100), 2),
            Some('m') => number(month, 2),
            Some('d') => number(day, 2),
            Some('e') => format!("{day:2}"),
            Some('H') => number(hour, 2),
            Some('I') => number(hour12, 2),
            Some('M') => number(minute, 2),
            Some('S') => number(second, 2),
            Some('j') => number(of_year, 3),
            Some('p') => if hour < 12 { "AM" } else { "PM" }.to_owned(),
            Some('B') => month_name.to_owned(),
            Some('b' | 'h') => month_name.chars().take(3).collect(),
            Some('A') => day_name.to_owned(),
            Some('a') => day_name.chars().take(3).collect(),
            Some('F') => format!("{year:04}-{month:02}-{day:02}"),
            Some('T') => format!("{hour:02}:{minute:02}:{second:02}"),
            Some('Z') => "UTC".to_owned(),
            Some('z') => "+0000".to_owned(),
            Some('%') => "%".to_owned(),
            other => {
                let code = other.map(String::from).unwrap_or_default();
                let message = format!("strftime_now: %{code} is not supported");
                return Err(Error::new(ErrorKind::InvalidOperation, message));
            }
        });
    }
    Ok(out)
}

/// Days from 1970-01-01 to a date of the Gregorian calendar.
fn days_before(year: i64, month: i64, day: i64) -> i64 {
    // Years begin in March, so that the leap day is the last.
    let year = if month <= 2 { year - 1 } else { year };
    let month = (month + 9) % 12;
    365 * year + year.div_euclid(4) - year.div_euclid(100)
        + year.div_euclid(400)
        + (153 * month + 2) / 5
        + day
        - 1
        - 719_468
}

/// The date (year, month, day) of a count of days since 1970-01-01.
fn civil(days: i64) -> (i64, i64, i64) {
    let mut year = 1970 + days.div_euclid(366);
    while days_before(year + 1, 1, 1) <= days {
        year += 1;
    }
    let mut month = 1;
    while month < 12 && days_before(year, month + 1, 1) <= days {
        month += 1;
    }
    (year, month, days - days_before(year, month, 1) + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates() {
        assert_eq!(strftime(0, "%Y-%m-%d %H:%M:%S %a %j").unwrap(), "1970-01-01 00:00:00 Thu 001");
        assert_eq!(strftime(951_782_400, "%d %b %Y").unwrap(), "29 Feb 2000");
        assert_eq!(
            strftime(1_735_689_599, "%A, %-d %B %Y %I:%M %p").unwrap(),
            "Tuesday, 31 December 2024 11:59 PM"
        );
        assert!(strftime(0, "%Q").is_err());
    }
}
