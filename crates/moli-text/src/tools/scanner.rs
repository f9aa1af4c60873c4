//! Where a JSON value ends, told while its characters come.
//!
//! The scanner follows the structure only, in constant memory; whether numbers, words and escapes are right, the reader
//! of the whole text says.

use super::MAX_DEPTH;

/// What the next character may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// The beginning of a value.
    Value,
    /// The same, or the end of an empty list.
    FirstItem,
    /// A key.
    Key,
    /// The same, or the end of an empty object.
    FirstKey,
    Colon,
    /// A comma or the end of a list or object.
    Next,
    String {
        key: bool,
        escaped: bool,
    },
    /// Inside a number or a word.
    Scalar,
}

/// What a character did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// It belongs to the value, which goes on.
    More,
    /// It is the value's last.
    Done,
    /// It can't be part of the value.
    Invalid,
}

/// Follows one list or object.
#[derive(Clone, Debug)]
pub(super) struct Scanner {
    state: State,
    /// A bit for each open level, the lowest for the innermost: 1 for an object.
    objects: u64,
    depth: usize,
}

impl Scanner {
    pub(super) fn new() -> Self {
        Self { state: State::Value, objects: 0, depth: 0 }
    }

    /// Takes the next character. After anything else than [`Step::More`] the scanner is used up.
    pub(super) fn push(&mut self, c: char) -> Step {
        if let State::String { key, escaped } = &mut self.state {
            match c {
                '\0'..='\x1f' => return Step::Invalid,
                _ if *escaped => *escaped = false,
                '\\' => *escaped = true,
                '"' => self.state = if *key { State::Colon } else { State::Next },
                _ => {}
            }
            return Step::More;
        }
        if self.state == State::Scalar {
            if matches!(c, '0'..='9' | 'a'..='z' | 'E' | '+' | '-' | '.') {
                return Step::More;
            }
            self.state = State::Next;
        }
        if matches!(c, ' ' | '\t' | '\r' | '\n') {
            return if self.depth == 0 { Step::Invalid } else { Step::More };
        }
        let object = self.objects & 1 == 1;
        match (self.state, c) {
            (State::Value | State::FirstItem, '{') => return self.open(true),
            (State::Value | State::FirstItem, '[') => return self.open(false),
            // Lists and objects only are values here.
            (_, _) if self.depth == 0 => return Step::Invalid,
            (State::Value | State::FirstItem, '"') => {
                self.state = State::String { key: false, escaped: false };
            }
            (State::Value | State::FirstItem, '0'..='9' | '-' | 't' | 'f' | 'n') => {
                self.state = State::Scalar;
            }
            (State::Key | State::FirstKey, '"') => self.state = State::String { key: true, escaped: false },
            (State::Colon, ':') => self.state = State::Value,
            (State::Next, ',') => self.state = if object { State::Key } else { State::Value },
            (State::Next | State::FirstKey, '}') if object => return self.close(),
            (State::Next | State::FirstItem, ']') if !object => return self.close(),
            _ => return Step::Invalid,
        }
        Step::More
    }

    fn open(&mut self, object: bool) -> Step {
        if self.depth >= MAX_DEPTH {
            return Step::Invalid;
        }
        self.depth += 1;
        self.objects = self.objects << 1 | u64::from(object);
        self.state = if object { State::FirstKey } else { State::FirstItem };
        Step::More
    }

    fn close(&mut self) -> Step {
        self.depth -= 1;
        self.objects >>= 1;
        self.state = State::Next;
        if self.depth == 0 { Step::Done } else { Step::More }
    }
}

// A bit for each level.
const _: () = assert!(MAX_DEPTH <= 64);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::Value;

    /// The bytes up to the end of the value, `None` where it has none.
    fn end(text: &str) -> Option<usize> {
        let mut scanner = Scanner::new();
        for (at, c) in text.char_indices() {
            match scanner.push(c) {
                Step::More => {}
                Step::Done => return Some(at + c.len_utf8()),
                Step::Invalid => return None,
            }
        }
        None
    }

    #[test]
    fn ends() {
        for whole in [
            r#"{}"#,
            r#"[ ]"#,
            r#"{"a}":"b\"}"}"#,
            r#"[1,{"b":[true,null,-1.5e+3]},"]"]"#,
            "{\n \"a\" : \"\\\\\" }",
        ] {
            assert_eq!(end(&format!("{whole}}}]x")), Some(whole.len()), "{whole}");
        }
        for broken in
            ["1", "\"a\"", "{,}", "[1 2]", "{\"a\"}", "[}", "{\"a\":1]", "[\"a\nb\"]", "{a:1}", "[", ""]
        {
            assert_eq!(end(broken), None, "{broken}");
        }
    }

    #[test]
    fn depth_is_bounded() {
        let nested = |depth| "[".repeat(depth) + &"]".repeat(depth);
        assert_eq!(end(&nested(MAX_DEPTH)), Some(2 * MAX_DEPTH));
        assert_eq!(end(&nested(MAX_DEPTH + 1)), None);
    }

    fn json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            any::<String>().prop_map(Value::from)
        ];
        leaf.prop_recursive(4, 32, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::vec((any::<String>(), inner), 0..4)
                    .prop_map(|items| Value::Object(items.into_iter().collect()))
            ]
        })
    }

    proptest! {
        #[test]
        fn finds_the_end_of_any_value(value in json(), pretty: bool, tail in "[\\]},:\"a ]{0,5}") {
            let value = Value::from(vec![value]);
            let text = if pretty { serde_json::to_string_pretty(&value) } else { serde_json::to_string(&value) }.unwrap();
            prop_assert_eq!(end(&format!("{text}{tail}")), Some(text.len()));
        }

        /// Whatever it takes for the end, what JSON's own reader accepts ends there.
        #[test]
        fn agrees_with_the_reader(text in "[\\[\\]{},:\"a1\\\\ ]{0,12}") {
            let mut reader = serde_json::Deserializer::from_str(&text).into_iter::<Value>();
            if let Some(Ok(value)) = reader.next() && (value.is_array() || value.is_object()) && !text.starts_with(' ') {
                prop_assert_eq!(end(&text), Some(reader.byte_offset()));
            }
        }
    }
}
