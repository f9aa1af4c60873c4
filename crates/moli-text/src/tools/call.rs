//! What a finished piece of JSON says: calls of tools, or something else.

use super::is_name;
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value};
use std::borrow::Cow;

/// A call as a model wrote it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Call {
    pub(super) id: Option<String>,
    pub(super) name: String,
    /// A JSON object, as it was written.
    pub(super) arguments: String,
}

/// The most bytes of an id.
const MAX_ID: usize = 128;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written<'a> {
    name: String,
    #[serde(borrow, alias = "parameters")]
    arguments: Option<&'a RawValue>,
    id: Option<Value>,
    #[serde(rename = "type", borrow)]
    kind: Option<Cow<'a, str>>,
}

impl Written<'_> {
    fn call(self, bare: bool) -> Option<Call> {
        if !is_name(&self.name) || self.kind.is_some_and(|kind| kind != "function") {
            return None;
        }
        let arguments = match self.arguments {
            Some(arguments) => self::arguments(arguments.get())?,
            // Without a mark around it, an object that has a name is anything.
            None if bare => return None,
            None => "{}".to_owned(),
        };
        let id = match self.id {
            None => None,
            Some(Value::String(id)) if is_id(&id) => Some(id),
            Some(Value::Number(id)) => Some(id.to_string()),
            Some(_) => return None,
        };
        Some(Call { id, name: self.name, arguments })
    }
}

/// Whether a text can be a call's id.
pub(super) fn is_id(id: &str) -> bool {
    (1..=MAX_ID).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_graphic())
}

/// Arguments as JSON, if they are an object. Some models write the object as a string.
pub(super) fn arguments(json: &str) -> Option<String> {
    let object = |json: &str| serde_json::from_str::<Map<String, Value>>(json).is_ok();
    let text = match serde_json::from_str::<String>(json) {
        Ok(text) => text.trim().to_owned(),
        Err(_) => json.to_owned(),
    };
    object(&text).then_some(text)
}

/// The calls of an object, or of a list of at least one; `None` where any of it is something else. `bare` calls have no
/// mark around them and so must have arguments.
pub(super) fn calls(json: &str, bare: bool) -> Option<Vec<Call>> {
    let written: Vec<Written<'_>> = if json.starts_with('[') {
        serde_json::from_str(json).ok()?
    } else {
        vec![serde_json::from_str(json).ok()?]
    };
    let calls: Option<Vec<Call>> = written.into_iter().map(|written| written.call(bare)).collect();
    calls.filter(|calls| !calls.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_a_call() {
        let one = |json: &str| {
            let mut calls = calls(json, false)?;
            assert_eq!(calls.len(), 1);
            calls.pop().map(|call| (call.name, call.arguments, call.id))
        };
        let is = |name: &str, arguments: &str, id: Option<&str>| {
            Some((name.to_owned(), arguments.to_owned(), id.map(str::to_owned)))
        };
        for (json, expected) in [
            (r#"{"name":"f","arguments":{"a": [1, 2.0]}}"#, is("f", r#"{"a": [1, 2.0]}"#, None)),
            (r#"{"parameters":{}, "name":"f", "type":"function", "id":"x1"}"#, is("f", "{}", Some("x1"))),
            (r#"[{"name":"f","arguments":"{\"a\":1}","id":7}]"#, is("f", r#"{"a":1}"#, Some("7"))),
            (r#"{"name":"f"}"#, is("f", "{}", None)),
            (r#"{"name":"f","arguments":[1]}"#, None),
            (r#"{"name":"f","arguments":{},"parameters":{}}"#, None),
            (r#"{"name":"f","arguments":{},"other":1}"#, None),
            (r#"{"name":"f g","arguments":{}}"#, None),
            (r#"{"name":7,"arguments":{}}"#, None),
            (r#"{"name":"f","arguments":{},"id":"a b"}"#, None),
            (r#"{"name":"f","arguments":{"a":01}}"#, None),
            ("[]", None),
            ("{}", None),
        ] {
            assert_eq!(one(json), expected, "{json}");
        }
        assert_eq!(calls(r#"{"name":"f"}"#, true), None);
    }
}
