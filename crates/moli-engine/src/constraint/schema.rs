//! What a JSON schema may ask for.

use std::collections::HashSet;

use serde_json::{Map, Number, Value, json};

use super::at_most;
use crate::EngineError;

const KIND: &str = "JSON schema";

/// Keywords of any draft that restrict values and that nothing here enforces.
const UNSUPPORTED: &[&str] = &[
    "$dynamicRef",
    "$recursiveRef",
    "contains",
    "dependencies",
    "dependentRequired",
    "dependentSchemas",
    "else",
    "if",
    "maxContains",
    "minContains",
    "not",
    "propertyNames",
    "then",
    "unevaluatedItems",
    "unevaluatedProperties",
    "uniqueItems",
];

/// Keywords whose value is a schema, an array of schemas, or an object of schemas.
const ONE_SCHEMA: &[&str] = &["additionalItems", "additionalProperties", "items"];
const SCHEMAS: &[&str] = &["allOf", "anyOf", "items", "oneOf", "prefixItems"];
const NAMED_SCHEMAS: &[&str] = &["$defs", "definitions", "patternProperties", "properties"];

/// The compiler recurses from reference to reference, through all levels between: the sum of the levels that references
/// are nested in.
const MAX_REFERENCE_LEVELS: usize = 10_000;

/// The compiler compares the properties of an object with each other.
const MAX_PROPERTIES: usize = 2_000;

/// A number is divided digit by digit, by an automaton with a state for each remainder.
const MAX_DIVISOR: u64 = 10_000;

/// Whole numbers beyond this are not what they are written as in the arithmetic of the compiler.
const MAX_INTEGER: u64 = 1 << 53;

/// Parses and checks a schema; what comes out is ready for the compiler.
pub(super) fn prepare(text: &str) -> Result<Value, EngineError> {
    // Its nesting is bounded by the parser of JSON: 128.
    let mut schema: Value = serde_json::from_str(text).map_err(|error| EngineError::GrammarSyntax {
        kind: KIND,
        line: error.line(),
        column: error.column(),
        reason: error.to_string(),
    })?;
    if schema == Value::Bool(true) {
        schema = Value::Object(Map::new());
    }
    let mut walk = Walk::default();
    walk.check(&schema)?;
    walk.check_targets()?;
    tighten(&mut schema);
    if let Some(object) = schema.as_object_mut() {
        object.insert("x-guidance".to_owned(), json!({ "whitespace_pattern": moli_text::JSON_WHITESPACE }));
    }
    Ok(schema)
}

#[derive(Default)]
struct Walk {
    /// Where the schema is in the document.
    pointer: String,
    depth: usize,
    reference_levels: usize,
    /// Where schemas are.
    schemas: HashSet<String>,
    /// References: where each is, and the pointer that it has.
    references: Vec<(String, String)>,
}

impl Walk {
    fn check(&mut self, schema: &Value) -> Result<(), EngineError> {
        self.schemas.insert(self.pointer.clone());
        let Some(object) = schema.as_object() else { return Ok(()) };
        self.depth += 1;
        for (keyword, value) in object {
            self.check_keyword(keyword, value)?;
            let length = self.pointer.len();
            for (name, child) in children(keyword, value) {
                self.pointer.push('/');
                self.pointer.push_str(keyword);
                if let Some(name) = name {
                    self.pointer.push('/');
                    self.pointer.push_str(&name.replace('~', "~0").replace('/', "~1"));
                }
                self.check(child)?;
                self.pointer.truncate(length);
            }
        }
        self.depth -= 1;
        Ok(())
    }

    fn check_keyword(&mut self, keyword: &str, value: &Value) -> Result<(), EngineError> {
        match keyword {
            "x-guidance" => self.refuse(keyword, "options of the compiler are not a schema's to set"),
            "$id" | "id" if self.depth > 1 && value.is_string() => {
                self.refuse(keyword, "only the whole schema may have a name")
            }
            "$ref" => {
                let target = value.as_str().unwrap_or_default();
                let inside = target == "#" || target.starts_with("#/");
                if !inside || target.contains(['~', '%']) {
                    return self.refuse(keyword, &format!("{target:?} is no plain pointer into this schema"));
                }
                self.references.push((self.pointer.clone(), target.trim_start_matches('#').to_owned()));
                self.reference_levels += self.depth;
                at_most(KIND, "levels above references", self.reference_levels, MAX_REFERENCE_LEVELS)
            }
            "const" | "enum" | "minimum" | "maximum" | "exclusiveMinimum" | "exclusiveMaximum" => {
                match inexact(value) {
                    Some(number) => self.refuse(keyword, &format!("{number} is beyond 2^53")),
                    None => Ok(()),
                }
            }
            "multipleOf" if value.as_f64().is_some_and(|divisor| digits(divisor) > MAX_DIVISOR) => {
                self.refuse(keyword, &format!("the digits of {value} are more than {MAX_DIVISOR}"))
            }
            "properties" => {
                let properties = value.as_object().map_or(0, Map::len);
                at_most(KIND, "properties in one object", properties, MAX_PROPERTIES)
            }
            _ if UNSUPPORTED.contains(&keyword) => self.refuse(keyword, "it is not implemented"),
            _ => Ok(()),
        }
    }

    /// References must point at what has been checked.
    fn check_targets(&mut self) -> Result<(), EngineError> {
        let found = |target: &str| self.schemas.contains(target) || target == "/";
        match self.references.iter().find(|(_, target)| !found(target)) {
            Some((pointer, target)) => Err(EngineError::UnsupportedKeyword {
                keyword: "$ref".to_owned(),
                pointer: pointer.clone(),
                reason: format!("no schema is at {target:?}"),
            }),
            None => Ok(()),
        }
    }

    fn refuse(&self, keyword: &str, reason: &str) -> Result<(), EngineError> {
        Err(EngineError::UnsupportedKeyword {
            keyword: keyword.to_owned(),
            pointer: self.pointer.clone(),
            reason: reason.to_owned(),
        })
    }
}

/// What formats demand beyond the compiler's idea of them: lengths of names, days of February, no leap seconds but at
/// the end of a day.
fn beyond_format(format: &str) -> Option<Value> {
    const DAY: &str = concat!(
        "^(?:[0-9]{4}-(?:0[13-9]|1[0-2])|[0-9]{4}-02-(?:[01][0-9]|2[0-8])",
        "|(?:(?:[02468][048]|[13579][26])00|[0-9]{2}(?:0[48]|[2468][048]|[13579][26]))-02-29)"
    );
    let pattern = match format {
        "date" => DAY,
        "date-time" => {
            return Some(json!({ "allOf": [{ "pattern": DAY }, { "pattern": ":[0-9]{2}:[0-5]" }] }));
        }
        "time" => "^[0-9]{2}:[0-9]{2}:[0-5]",
        "email" => {
            let pattern = "^[^@]{1,64}@[^.]{1,63}(\\.[^.]{1,63})*$";
            return Some(json!({ "maxLength": 254, "pattern": pattern }));
        }
        // A double hyphen may begin an encoded name, which would have to be a valid one.
        "hostname" => return Some(json!({ "maxLength": 253, "pattern": "^(-?[^-])*$" })),
        _ => return None,
    };
    Some(json!({ "pattern": pattern }))
}

/// Adds to each schema with a format what the compiler leaves out.
fn tighten(schema: &mut Value) {
    let Some(object) = schema.as_object_mut() else { return };
    for (keyword, value) in object.iter_mut() {
        match value {
            Value::Object(map) if NAMED_SCHEMAS.contains(&keyword.as_str()) => {
                map.values_mut().for_each(tighten)
            }
            Value::Object(_) if ONE_SCHEMA.contains(&keyword.as_str()) => tighten(value),
            Value::Array(items) if SCHEMAS.contains(&keyword.as_str()) => items.iter_mut().for_each(tighten),
            _ => {}
        }
    }
    let Some(more) = object.get("format").and_then(Value::as_str).and_then(beyond_format) else { return };
    if let Value::Array(all) = object.entry("allOf").or_insert_with(|| Value::Array(Vec::new())) {
        all.push(more);
    }
}

/// The schemas that a keyword's value holds, each with its place in that value.
fn children<'a>(keyword: &str, value: &'a Value) -> Vec<(Option<String>, &'a Value)> {
    match value {
        Value::Object(map) if NAMED_SCHEMAS.contains(&keyword) => {
            map.iter().map(|(name, child)| (Some(name.clone()), child)).collect()
        }
        Value::Object(_) if ONE_SCHEMA.contains(&keyword) => vec![(None, value)],
        Value::Array(items) if SCHEMAS.contains(&keyword) => {
            items.iter().enumerate().map(|(index, child)| (Some(index.to_string()), child)).collect()
        }
        _ => Vec::new(),
    }
}

/// The digits of a number, without its decimal point.
fn digits(number: f64) -> u64 {
    number.abs().to_string().replace('.', "").parse().unwrap_or(u64::MAX)
}

/// A number that is not the one that it is written as.
fn inexact(value: &Value) -> Option<&Number> {
    match value {
        Value::Number(number) => {
            let magnitude = number.as_u64().or_else(|| number.as_i64().map(i64::unsigned_abs));
            magnitude.filter(|magnitude| *magnitude > MAX_INTEGER).map(|_| number)
        }
        Value::Array(items) => items.iter().find_map(inexact),
        Value::Object(map) => map.values().find_map(inexact),
        _ => None,
    }
}
