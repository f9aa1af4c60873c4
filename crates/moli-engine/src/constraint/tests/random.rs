//! Random schemas and grammars, by families.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Map, Value, json};

use super::oracle::Cfg;

pub(super) struct Random(ChaCha8Rng);

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        Self(ChaCha8Rng::seed_from_u64(seed))
    }

    pub(super) fn below(&mut self, limit: usize) -> usize {
        self.0.random_range(0..limit)
    }

    fn pick<T: Copy>(&mut self, items: &[T]) -> T {
        items[self.below(items.len())]
    }

    fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    fn key(&mut self) -> &'static str {
        self.pick(&[
            "name", "age", "名字", "年龄", "a", "b-c", "id", "tags", "城市", "x y", "été", "q\"uote", "ключ",
            "😀",
        ])
    }

    /// A schema of the family `family` (0 to 11), with members of any family inside.
    pub(super) fn schema(&mut self, family: usize, depth: usize) -> Value {
        let inner = |random: &mut Self| {
            let family = if depth == 0 { random.below(5) } else { random.below(12) };
            random.schema(family, depth.saturating_sub(1))
        };
        match family {
            0 => self.string(),
            1 => self.integer(),
            2 => self.number(),
            3 => self.choice_of_values(),
            4 => json!({ "type": self.pick(&["boolean", "null"]) }),
            5 => {
                let mut schema = json!({ "type": "array", "items": inner(self) });
                let least = self.below(3);
                if self.chance(60) {
                    schema["minItems"] = json!(least);
                }
                if self.chance(60) {
                    schema["maxItems"] = json!(least + self.below(4));
                }
                schema
            }
            6 => {
                let items: Vec<Value> = (0..1 + self.below(3)).map(|_| inner(self)).collect();
                let rest = if self.chance(50) { json!(false) } else { inner(self) };
                json!({ "type": "array", "minItems": items.len(), "maxItems": items.len() + 2, "prefixItems": items, "items": rest })
            }
            7 | 8 => {
                let mut properties = Map::new();
                for _ in 0..1 + self.below(4) {
                    properties.insert(self.key().to_owned(), inner(self));
                }
                let required: Vec<String> = properties.keys().filter(|_| self.chance(60)).cloned().collect();
                let mut schema = json!({ "type": "object", "properties": properties, "required": required });
                match self.below(4) {
                    0 => {}
                    1 => schema["additionalProperties"] = inner(self),
                    _ => schema["additionalProperties"] = json!(false),
                }
                schema
            }
            9 => json!({ "anyOf": [inner(self), inner(self), { "type": "null" }] }),
            10 => {
                // Told apart by a constant, as tagged unions are.
                let options: Vec<Value> = ["circle", "方", "line"]
                    .iter()
                    .map(|tag| {
                        json!({
                            "type": "object",
                            "properties": { "kind": { "const": tag }, "value": inner(self) },
                            "required": ["kind", "value"],
                            "additionalProperties": false
                        })
                    })
                    .collect();
                json!({ "oneOf": options })
            }
            _ => {
                let [first, second] = [inner(self), inner(self)];
                json!({ "allOf": [
                    { "type": "object", "properties": { "left": first }, "required": ["left"] },
                    { "type": "object", "properties": { "right": second }, "required": ["right"] }
                ] })
            }
        }
    }

    fn string(&mut self) -> Value {
        match self.below(4) {
            0 => json!({ "type": "string" }),
            1 => {
                let least = self.below(5);
                json!({ "type": "string", "minLength": least, "maxLength": least + self.below(10) })
            }
            2 => {
                let pattern = self.pick(&[
                    "^[a-z]{2,5}$",
                    "^\\d{3}-\\d{4}$",
                    "^(foo|bar)+$",
                    "^[A-Z][a-z]*$",
                    "^\\w+$",
                    "^[一-龥]{1,4}$",
                    "^[^,]{1,6}$",
                    "^#[0-9a-f]{6}$",
                    "^a.*z$",
                    "[@z]",
                    "^x",
                    "y$",
                    "^\\S+@\\S+$",
                    "^\"q\"$",
                    "^\\\\[nt]$",
                ]);
                json!({ "type": "string", "pattern": pattern })
            }
            _ => {
                let format = self.pick(&[
                    "date",
                    "ipv4",
                    "ipv6",
                    "uuid",
                    "email",
                    "duration",
                    "date-time",
                    "time",
                    "hostname",
                ]);
                json!({ "type": "string", "format": format })
            }
        }
    }

    fn integer(&mut self) -> Value {
        let low = self.below(2000) as i64 - 1000;
        let high = low + 20 + self.below(5000) as i64;
        match self.below(5) {
            0 => json!({ "type": "integer" }),
            1 => json!({ "type": "integer", "minimum": low, "maximum": high }),
            2 => json!({ "type": "integer", "exclusiveMinimum": low, "exclusiveMaximum": high }),
            3 => {
                json!({ "type": "integer", "minimum": 0, "maximum": 9999, "multipleOf": 1 + self.below(12) })
            }
            _ => json!({ "type": "integer", "minimum": low, "maximum": low }),
        }
    }

    fn number(&mut self) -> Value {
        let low = (self.below(2000) as f64 - 1000.0) / 8.0;
        let high = low + 1.0 + self.below(100) as f64 / 4.0;
        match self.below(4) {
            0 => json!({ "type": "number" }),
            1 => json!({ "type": "number", "minimum": low, "maximum": high }),
            2 => json!({ "type": "number", "exclusiveMinimum": low, "exclusiveMaximum": high }),
            _ => json!({ "type": ["number", "null"], "minimum": low }),
        }
    }

    fn choice_of_values(&mut self) -> Value {
        match self.below(4) {
            0 => json!({ "enum": ["red", "绿", "b\"lue\\", "tab\t", "😀", ""] }),
            1 => json!({ "enum": [1, "1", null, true, 2.5, [1, 2], { "a": 1 }] }),
            2 => json!({ "const": { "键": [1, { "b": null }], "n": -17 } }),
            _ => json!({ "const": format!("值{}", self.below(1000)) }),
        }
    }

    /// A schema that refers to itself or to others, each with an end.
    pub(super) fn recursive(&mut self) -> Value {
        let leaf = self.schema(self.0.clone().random_range(0..5), 0);
        let key = self.key();
        match self.below(5) {
            0 => json!({
                "type": "object",
                "properties": { "value": leaf, "children": { "type": "array", "items": { "$ref": "#" }, "maxItems": 2 } },
                "required": ["value", "children"],
                "additionalProperties": false
            }),
            1 => json!({
                "$ref": "#/$defs/list",
                "$defs": { "list": { "anyOf": [{ "type": "null" }, {
                    "type": "object",
                    "properties": { key: leaf, "next": { "$ref": "#/$defs/list" } },
                    "required": [key, "next"],
                    "additionalProperties": false
                }] } }
            }),
            2 => json!({
                "$defs": {
                    "even": { "type": "array", "prefixItems": [leaf, { "$ref": "#/$defs/odd" }], "items": false, "minItems": 2 },
                    "odd": { "anyOf": [{ "type": "boolean" }, { "$ref": "#/$defs/even" }] }
                },
                "$ref": "#/$defs/odd"
            }),
            3 => json!({
                "type": "object",
                "properties": { key: leaf },
                "additionalProperties": { "$ref": "#" }
            }),
            _ => json!({
                "definitions": { "expression": { "anyOf": [
                    leaf,
                    { "type": "object", "properties": {
                        "op": { "enum": ["+", "-", "×"] },
                        "args": { "type": "array", "items": { "$ref": "#/definitions/expression" }, "minItems": 1, "maxItems": 2 }
                    }, "required": ["op", "args"], "additionalProperties": false }
                ] } },
                "$ref": "#/definitions/expression"
            }),
        }
    }

    /// A grammar of `rules` rules; with one there is no recursion.
    pub(super) fn grammar(&mut self, rules: usize) -> Vec<Cfg> {
        (0..rules)
            .map(|rule| {
                let mut options = vec![self.cfg(2, rules)];
                // Every rule has a case that ends.
                options.push(if rules == 1 { self.cfg(2, 1) } else { self.leaf(1) });
                let ends = (rule + 1..rules).map(Cfg::Rule).next().filter(|_| self.chance(50));
                options.extend(ends.map(|end| Cfg::All(vec![self.leaf(1), end])));
                Cfg::Any(options)
            })
            .collect()
    }

    fn cfg(&mut self, depth: usize, rules: usize) -> Cfg {
        if depth == 0 {
            return self.leaf(rules);
        }
        match self.below(6) {
            0 | 1 => Cfg::All((0..2 + self.below(2)).map(|_| self.cfg(depth - 1, rules)).collect()),
            2 => Cfg::Any((0..2 + self.below(2)).map(|_| self.cfg(depth - 1, rules)).collect()),
            3 | 4 => {
                let least = self.below(3) as u32;
                let most = [None, Some(least + 1), Some(least.max(1))][self.below(3)];
                Cfg::Times(Box::new(self.cfg(depth - 1, rules)), least, most)
            }
            _ => self.leaf(rules),
        }
    }

    fn leaf(&mut self, rules: usize) -> Cfg {
        match self.below(if rules > 1 { 7 } else { 5 }) {
            0 | 1 => Cfg::Text(
                self.pick(&["a", "b", "ab", "aab", "(", ")", "中", "中文", "\n", "a\"b", "é", " "])
                    .to_owned(),
            ),
            2 => Cfg::Class(vec![('a', self.pick(&['a', 'b', 'c', 'z']))], false),
            3 => Cfg::Class(vec![('0', '9'), ('一', '丿'), ('-', '-')], false),
            4 => Cfg::Class(vec![('a', 'a'), ('"', '"'), ('\0', ' ')], true),
            _ => Cfg::Rule(self.below(rules)),
        }
    }

    /// A text of a rule; `None` where it got too long.
    pub(super) fn word(&mut self, rules: &[Cfg], cfg: &Cfg, fuel: &mut usize) -> Option<String> {
        *fuel = fuel.checked_sub(1)?;
        Some(match cfg {
            Cfg::Text(text) => text.clone(),
            Cfg::Class(ranges, false) => {
                let (first, last) = self.pick(ranges);
                char::from_u32(self.0.random_range(u32::from(first)..=u32::from(last)))?.to_string()
            }
            Cfg::Class(..) => self.pick(&["b", "~", "中", "é", "😀", "(", "0"]).to_owned(),
            Cfg::Rule(rule) => self.word(rules, &rules[*rule], fuel)?,
            Cfg::All(items) => {
                items.iter().map(|item| self.word(rules, item, fuel)).collect::<Option<String>>()?
            }
            Cfg::Any(options) => {
                let option = &options[self.below(options.len())];
                self.word(rules, option, fuel)?
            }
            Cfg::Times(item, least, most) => {
                let times =
                    (*least as usize + self.below(3)).min(most.map_or(usize::MAX, |most| most as usize));
                (0..times).map(|_| self.word(rules, item, fuel)).collect::<Option<String>>()?
            }
        })
    }
}
