//! What a JSON schema may ask for.

use serde_json::{Map, Value, json};

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

/// The compiler recurses from reference to reference.
const MAX_REFERENCES: usize = 2_000;

/// Whole numbers beyond this are not what they are written as in the arithmetic of the compiler.
const MAX_INTEGER: f64 = 9_007_199_254_740_992.0;

/// Between the parts of JSON: nothing, one space, or a line break and an indentation. Without a bound, a model that
/// begins with whitespace may never come to an end of it.
const WHITESPACE: &str = r" |\r?\n[ \t]{0,40}";

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
    let mut references = 0;
    check(&schema, &mut String::new(), &mut references)?;
    if let Some(object) = schema.as_object_mut() {
        object.insert("x-guidance".to_owned(), json!({ "whitespace_pattern": WHITESPACE }));
    }
    Ok(schema)
}

/// `pointer`: where the schema is in the document; it comes back as it was.
fn check(schema: &Value, pointer: &mut String, references: &mut usize) -> Result<(), EngineError> {
    let Some(object) = schema.as_object() else { return Ok(()) };
    for (keyword, value) in object {
        let refuse = |reason: &str| {
            let (keyword, reason) = (keyword.clone(), reason.to_owned());
            Err(EngineError::UnsupportedKeyword { keyword, pointer: pointer.clone(), reason })
        };
        match keyword.as_str() {
            "x-guidance" => return refuse("options of the compiler are not a schema's to set"),
            "$id" | "id" if !pointer.is_empty() && value.is_string() => {
                return refuse("only the whole schema may have a name");
            }
            "$ref" => {
                let target = value.as_str().unwrap_or_default();
                let inside = target == "#" || target.starts_with("#/");
                if !inside || target.contains(['~', '%']) {
                    return refuse(&format!("{target:?} is no plain pointer into this schema"));
                }
                *references += 1;
                at_most(KIND, "references", *references, MAX_REFERENCES)?;
            }
            "const" | "enum" => exact(keyword, value, pointer)?,
            "minimum" | "maximum" | "exclusiveMinimum" | "exclusiveMaximum" | "multipleOf" => {
                exact(keyword, value, pointer)?;
            }
            keyword if UNSUPPORTED.contains(&keyword) => return refuse("it is not implemented"),
            _ => {}
        }
        let length = pointer.len();
        for (name, child) in children(keyword, value) {
            pointer.push('/');
            pointer.push_str(keyword);
            if let Some(name) = name {
                pointer.push('/');
                pointer.push_str(&name.replace('~', "~0").replace('/', "~1"));
            }
            check(child, pointer, references)?;
            pointer.truncate(length);
        }
    }
    Ok(())
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

/// Numbers must be those that they are written as.
fn exact(keyword: &str, value: &Value, pointer: &str) -> Result<(), EngineError> {
    match value {
        Value::Number(number) => {
            let wide = !number.is_f64() && number.as_f64().is_none_or(|number| number.abs() > MAX_INTEGER);
            if !wide {
                return Ok(());
            }
            Err(EngineError::UnsupportedKeyword {
                keyword: keyword.to_owned(),
                pointer: pointer.to_owned(),
                reason: format!("{number} is beyond 2^53"),
            })
        }
        Value::Array(items) => items.iter().try_for_each(|item| exact(keyword, item, pointer)),
        Value::Object(map) => map.values().try_for_each(|item| exact(keyword, item, pointer)),
        _ => Ok(()),
    }
}
