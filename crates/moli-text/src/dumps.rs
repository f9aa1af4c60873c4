//! JSON as Python's `json.dumps` writes it, and lists and maps as Python's `str` does.

use minijinja::value::{Value, ValueKind};
use serde::Serialize;
use serde_json::ser::{Formatter, Serializer};
use std::fmt;
use std::io::{self, Write};

/// The options of `json.dumps`.
pub(crate) struct Dumps {
    /// Spaces for each level; on one line without.
    pub(crate) indent: Option<usize>,
    /// Between items; the usual one if `None`.
    pub(crate) item: Option<String>,
    /// Between a key and its value.
    pub(crate) key: String,
    /// Other characters than ASCII's are escaped.
    pub(crate) ascii: bool,
    pub(crate) level: usize,
    /// The list or map that was opened last has an item.
    pub(crate) filled: bool,
}

impl Default for Dumps {
    fn default() -> Self {
        Self { indent: None, item: None, key: ": ".to_owned(), ascii: false, level: 0, filled: false }
    }
}

/// The most spaces of one level.
const MAX_INDENT: usize = 16;

impl Dumps {
    pub(crate) fn write(self, value: &impl Serialize, out: &mut impl Write) -> Result<(), serde_json::Error> {
        value.serialize(&mut Serializer::with_formatter(out, self))
    }

    fn line<W: ?Sized + Write>(&self, writer: &mut W) -> io::Result<()> {
        let Some(indent) = self.indent else { return Ok(()) };
        writer.write_all(b"\n")?;
        (0..self.level).try_for_each(|_| writer.write_all(" ".repeat(indent.min(MAX_INDENT)).as_bytes()))
    }

    fn open<W: ?Sized + Write>(&mut self, writer: &mut W, bracket: &[u8]) -> io::Result<()> {
        self.level += 1;
        self.filled = false;
        writer.write_all(bracket)
    }

    fn next<W: ?Sized + Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if !first {
            let usual = if self.indent.is_some() { "," } else { ", " };
            writer.write_all(self.item.as_deref().unwrap_or(usual).as_bytes())?;
        }
        self.line(writer)
    }

    fn close<W: ?Sized + Write>(&mut self, writer: &mut W, bracket: &[u8]) -> io::Result<()> {
        self.level = self.level.saturating_sub(1);
        if self.filled {
            self.line(writer)?;
        }
        self.filled = true;
        writer.write_all(bracket)
    }
}

impl Formatter for Dumps {
    fn begin_array<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.open(writer, b"[")
    }

    fn end_array<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.close(writer, b"]")
    }

    fn begin_array_value<W: ?Sized + Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        self.next(writer, first)
    }

    fn end_array_value<W: ?Sized + Write>(&mut self, _: &mut W) -> io::Result<()> {
        self.filled = true;
        Ok(())
    }

    fn begin_object<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.open(writer, b"{")
    }

    fn end_object<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.close(writer, b"}")
    }

    fn begin_object_key<W: ?Sized + Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        self.next(writer, first)
    }

    fn begin_object_value<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(self.key.as_bytes())
    }

    fn end_object_value<W: ?Sized + Write>(&mut self, _: &mut W) -> io::Result<()> {
        self.filled = true;
        Ok(())
    }

    fn write_f64<W: ?Sized + Write>(&mut self, writer: &mut W, value: f64) -> io::Result<()> {
        writer.write_all(float(value).as_bytes())
    }

    fn write_string_fragment<W: ?Sized + Write>(&mut self, writer: &mut W, text: &str) -> io::Result<()> {
        if !self.ascii || text.is_ascii() {
            return writer.write_all(text.as_bytes());
        }
        for c in text.chars() {
            // The guard's mark is one of these: as an escape it could not be taken out again.
            if c.is_ascii() || c >= '\u{F0000}' {
                writer.write_all(c.encode_utf8(&mut [0; 4]).as_bytes())?;
                continue;
            }
            for unit in c.encode_utf16(&mut [0; 2]) {
                write!(writer, "\\u{unit:04x}")?;
            }
        }
        Ok(())
    }
}

/// A number as Python writes it: `1e+16` and `1e-05`.
fn float(value: f64) -> String {
    let text = format!("{value:?}");
    let Some((digits, exponent)) = text.split_once('e') else { return text };
    let (sign, exponent) = exponent.strip_prefix('-').map_or(('+', exponent), |exponent| ('-', exponent));
    format!("{digits}e{sign}{exponent:0>2}")
}

/// A list or map as Python's `str` writes it; other values as the engine does.
pub(crate) fn repr(value: &Value, out: &mut impl fmt::Write) -> fmt::Result {
    let (open, close) = match value.kind() {
        ValueKind::Seq | ValueKind::Iterable => ("[", "]"),
        ValueKind::Map => ("{", "}"),
        ValueKind::Number if !value.is_integer() => {
            return match f64::try_from(value.clone()) {
                Ok(number) => out.write_str(&float(number)),
                Err(_) => write!(out, "{value}"),
            };
        }
        _ => return write!(out, "{value}"),
    };
    out.write_str(open)?;
    for (index, item) in value.try_iter().into_iter().flatten().enumerate() {
        if index > 0 {
            out.write_str(", ")?;
        }
        quoted(&item, out)?;
        if value.kind() == ValueKind::Map {
            out.write_str(": ")?;
            quoted(&value.get_item(&item).unwrap_or_default(), out)?;
        }
    }
    out.write_str(close)
}

/// The same inside a list or map, where texts have quotes.
fn quoted(value: &Value, out: &mut impl fmt::Write) -> fmt::Result {
    let Some(text) = value.as_str() else { return repr(value, out) };
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.write_char(quote)?;
    for c in text.chars() {
        match c {
            '\\' => out.write_str("\\\\"),
            '\n' => out.write_str("\\n"),
            '\r' => out.write_str("\\r"),
            '\t' => out.write_str("\\t"),
            c if c == quote => write!(out, "\\{c}"),
            c if c.is_control() => write!(out, "\\x{:02x}", u32::from(c)),
            c => out.write_char(c),
        }?;
    }
    out.write_char(quote)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dumped(dumps: Dumps, value: serde_json::Value) -> String {
        let mut out = Vec::new();
        dumps.write(&value, &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn as_json_dumps_writes_it() {
        let value = serde_json::json!({"a": [1.5, 1e16, 0.00001, []], "é": {}, "b": {"c": "😀\u{7f}\u{1f}"}});
        assert_eq!(
            dumped(Dumps::default(), value.clone()),
            "{\"a\": [1.5, 1e+16, 1e-05, []], \"é\": {}, \"b\": {\"c\": \"😀\u{7f}\\u001f\"}}"
        );
        let dumps =
            Dumps { item: Some(",".to_owned()), key: ":".to_owned(), ascii: true, ..Dumps::default() };
        assert_eq!(
            dumped(dumps, value.clone()),
            "{\"a\":[1.5,1e+16,1e-05,[]],\"\\u00e9\":{},\"b\":{\"c\":\"\\ud83d\\ude00\u{7f}\\u001f\"}}"
        );
        assert_eq!(
            dumped(Dumps { indent: Some(1), ..Dumps::default() }, value),
            "{\n \"a\": [\n  1.5,\n  1e+16,\n  1e-05,\n  []\n ],\n \"é\": {},\n \"b\": {\n  \"c\": \"😀\u{7f}\\u001f\"\n }\n}"
        );
    }

    #[test]
    fn as_str_writes_it() {
        let items = ["it's", "\"'\n"].map(Value::from);
        let items =
            [Value::from(1), Value::from(2.0), Value::from(()), Value::from(true)].into_iter().chain(items);
        let empty = Value::from_pairs(Vec::<(&str, Value)>::new());
        let value = Value::from_pairs([("a", Value::from(items.collect::<Vec<_>>())), ("b", empty)]);
        let mut out = String::new();
        repr(&value, &mut out).unwrap();
        assert_eq!(out, r#"{'a': [1, 2.0, None, True, "it's", '"\'\n'], 'b': {}}"#);
    }
}
