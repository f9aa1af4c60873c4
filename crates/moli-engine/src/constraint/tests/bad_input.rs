//! Grammars that are wrong, hostile or more than can be enforced: each an error that says so, in bounded time.

use std::fmt::Write;
use std::time::{Duration, Instant};

use super::*;
use crate::constraint::MAX_GRAMMAR_BYTES;

/// For what no deadline of the compiler ends.
const SOON: Duration = Duration::from_secs(1);

fn error(grammar: &Grammar) -> EngineError {
    let compiler = Compiler::new(&tokenizer::realistic(1500)).unwrap();
    let started = Instant::now();
    let result = compiler.compile(grammar);
    assert!(started.elapsed() < SOON, "{:?}", started.elapsed());
    result.err().unwrap_or_else(|| panic!("{grammar:?} was compiled"))
}

fn schema(text: impl Into<String>) -> Grammar {
    Grammar::JsonSchema(text.into())
}

/// An [`EngineError::InvalidGrammar`] of a kind, whose reason has these words.
fn invalid(grammar: &Grammar, words: &str) {
    match error(grammar) {
        EngineError::InvalidGrammar { kind, reason } => {
            assert_eq!(kind, grammar.kind());
            assert!(reason.contains(words), "{reason}");
        }
        other => panic!("{other:?}"),
    }
}

/// An [`EngineError::UnsupportedKeyword`] at a place.
fn unsupported(text: &str, keyword: &str, pointer: &str) {
    match error(&schema(text)) {
        EngineError::UnsupportedKeyword { keyword: found, pointer: at, .. } => {
            assert_eq!((&*found, &*at), (keyword, pointer));
        }
        other => panic!("{text}: {other:?}"),
    }
}

/// An [`EngineError::GrammarSyntax`] at a place of a GBNF grammar.
fn misspelt(text: &str, place: (usize, usize), words: &str) {
    match error(&Grammar::Gbnf(text.to_owned())) {
        EngineError::GrammarSyntax { kind: "GBNF grammar", line, column, reason } => {
            assert_eq!((line, column), place, "{text:?}: {reason}");
            assert!(reason.contains(words), "{text:?}: {reason}");
        }
        other => panic!("{text:?}: {other:?}"),
    }
}

fn too_large(grammar: &Grammar, thing: &str) {
    match error(grammar) {
        EngineError::GrammarTooLarge { kind, what, value, limit } => {
            assert_eq!((kind, what), (grammar.kind(), thing));
            assert!(value > limit);
        }
        other => panic!("{other:?}"),
    }
}

fn parentheses(count: usize, inner: &str) -> String {
    format!("{}{inner}{}", "(".repeat(count), ")".repeat(count))
}

#[test]
fn sixty_thousand_parentheses() {
    invalid(&Grammar::Regex(parentheses(60_000, "a")), "invalid regex");
    too_large(&Grammar::Lark(format!("start: {}", parentheses(60_000, "\"a\""))), "lines and brackets");
    misspelt(&format!("root ::= {}", parentheses(60_000, "\"a\"")), (1, 74), "deeper than 64");
    // As many as are allowed in all, but not within each other.
    invalid(&Grammar::Lark(format!("start: {}", parentheses(9_000, "\"a\""))), "too deeply nested");
}

#[test]
fn more_than_a_mebibyte() {
    let text = " ".repeat(MAX_GRAMMAR_BYTES + 1);
    for grammar in
        [schema(text.clone()), Grammar::Regex(text.clone()), Grammar::Lark(text.clone()), Grammar::Gbnf(text)]
    {
        too_large(&grammar, "bytes");
    }
}

#[test]
fn a_schema_nested_a_hundred_thousand_deep() {
    let deep = format!("{}true{}", "{\"items\":".repeat(100_000), "}".repeat(100_000));
    match error(&schema(deep)) {
        EngineError::GrammarSyntax { kind: "JSON schema", line: 1, reason, .. } => {
            assert!(reason.contains("recursion limit"), "{reason}");
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn grammars_without_a_case_that_ends() {
    let words = "without a case that ends";
    invalid(&schema(r##"{"$ref":"#"}"##), words);
    invalid(
        &schema(r##"{"$ref":"#/$defs/a","$defs":{"a":{"$ref":"#/$defs/b"},"b":{"$ref":"#/$defs/a"}}}"##),
        words,
    );
    invalid(&schema(r##"{"type":"object","properties":{"a":{"$ref":"#"}},"required":["a"]}"##), words);
    invalid(&schema(r##"{"allOf":[{"$ref":"#"}]}"##), words);
    invalid(&Grammar::Lark("start: start \"a\"".to_owned()), words);
    invalid(&Grammar::Lark("start: \"a\" other\nother: \"b\" start | other start".to_owned()), words);
    invalid(&Grammar::Gbnf("root ::= root".to_owned()), words);
    invalid(&Grammar::Gbnf("root ::= \"a\" root\n".to_owned()), words);
}

#[test]
fn left_recursion_with_an_end_is_a_grammar() {
    let compiler = Compiler::new(&tokenizer::realistic(1500)).unwrap();
    for grammar in [
        Grammar::Lark("start: start \"a\" | \"b\"".to_owned()),
        Grammar::Gbnf("root ::= root \"a\" | \"b\"".to_owned()),
    ] {
        compiler.compile(&grammar).unwrap();
    }
}

#[test]
fn expressions_that_make_others_backtrack() {
    let tokenizer = tokenizer::realistic(1500);
    let compiler = Compiler::new(&tokenizer).unwrap();
    let started = Instant::now();
    for text in
        ["(a+)+", "((a+)+)+b", "(a|aa)*c", "(a*)*(a*)*(a*)*d", "((a{1000}){1000}){1000}", "(a|b)*a(a|b){20}"]
    {
        let mut constraint = compiler.compile(&Grammar::Regex(text.to_owned())).unwrap();
        model::answer(&tokenizer, &mut constraint, 1, 200).unwrap();
    }
    assert!(started.elapsed() < SOON, "{:?}", started.elapsed());
}

#[test]
fn repetitions_that_are_never() {
    invalid(&Grammar::Regex("a{5,0}".to_owned()), "invalid regex");
    invalid(&Grammar::Lark("start: \"a\"{5,0}".to_owned()), "End number in range cannot be 0");
    invalid(&Grammar::Lark("start: \"a\"{5,3}".to_owned()), "range end must be >= start");
    misspelt("root ::= \"a\"{5,0}", (1, 13), "at least 5 and at most 0");
    misspelt("root ::= \"a\"{2001}", (1, 14), "more than 2000");
    misspelt("root ::= \"a\"{99999999999}", (1, 14), "more than 2000");
}

#[test]
fn expressions_that_are_invalid_or_not_regular() {
    invalid(&Grammar::Regex("a(".to_owned()), "unclosed group");
    for text in
        ["a(", "[b-a]", "a**b)", "(?P<n>a)(?P<n>b)", "(?=a)b", "(a)\\1", "\\p{Nothing}", "(?-u:\\xff)"]
    {
        invalid(&Grammar::Regex(text.to_owned()), "invalid regex");
    }
    for text in ["a\\bb", "(?m)a$", "a^b", "$a"] {
        invalid(&Grammar::Regex(text.to_owned()), "lookarounds not supported");
    }
    invalid(&Grammar::Regex("ab\\".to_owned()), "a backslash with nothing to escape");
    invalid(&Grammar::Regex("[^\\s\\S]".to_owned()), "no text matches it");
}

#[test]
fn references_that_lead_nowhere() {
    unsupported(r##"{"$ref":"#/$defs/nope"}"##, "$ref", "");
    unsupported(r##"{"properties":{"a/b":{"$ref":"#/properties/c"}}}"##, "$ref", "/properties/a~1b");
    unsupported(r#"{"items":{"$ref":"https://example.com/schema.json"}}"#, "$ref", "/items");
    unsupported(r#"{"$ref":"file:///etc/passwd"}"#, "$ref", "");
    unsupported(r##"{"$ref":"#anchor","$defs":{"a":{"$anchor":"anchor"}}}"##, "$ref", "");
    // No schema, whatever it looks like.
    unsupported(r##"{"$ref":"#/enum/0","enum":[{"type":"null"}]}"##, "$ref", "");
    unsupported(r#"{"$ref":5}"#, "$ref", "");
}

#[test]
fn schemas_that_nothing_satisfies() {
    for text in [
        r#"{"type":"integer","minimum":5,"maximum":4}"#,
        r#"{"type":"number","exclusiveMinimum":1,"exclusiveMaximum":1}"#,
        r#"{"type":"string","minLength":5,"maxLength":4}"#,
        r#"{"type":"array","minItems":5,"maxItems":4}"#,
        r#"{"type":"object","minProperties":2,"maxProperties":1}"#,
        r#"{"enum":[]}"#,
        r#"{"type":"string","const":5}"#,
        r#"{"allOf":[{"type":"string"},{"type":"null"}]}"#,
        r#"{"type":"object","required":["a"],"additionalProperties":false}"#,
        "false",
    ] {
        invalid(&schema(text), "nsatisfiable");
    }
}

#[test]
fn keywords_that_are_not_enforced() {
    for (keyword, value) in [
        ("not", "{}"),
        ("if", "true"),
        ("then", "true"),
        ("else", "true"),
        ("contains", "{}"),
        ("minContains", "1"),
        ("uniqueItems", "true"),
        ("propertyNames", "{}"),
        ("dependencies", "{}"),
        ("dependentRequired", "{}"),
        ("dependentSchemas", "{}"),
        ("unevaluatedItems", "false"),
        ("unevaluatedProperties", "false"),
        ("$dynamicRef", "\"#\""),
        ("x-guidance", r#"{"lenient":true}"#),
    ] {
        unsupported(&format!(r#"{{"{keyword}":{value}}}"#), keyword, "");
        let inside =
            format!(r#"{{"anyOf":[{{"type":"null"}},{{"properties":{{"名":{{"{keyword}":{value}}}}}}}]}}"#);
        unsupported(&inside, keyword, "/anyOf/1/properties/名");
    }
    unsupported(r#"{"properties":{"a":{"$id":"other"}}}"#, "$id", "/properties/a");
    unsupported(r#"{"enum":[1,[9007199254740993]]}"#, "enum", "");
    unsupported(r#"{"type":"integer","maximum":18446744073709551615}"#, "maximum", "");
    unsupported(r#"{"type":"integer","multipleOf":10007}"#, "multipleOf", "");
    unsupported(r#"{"type":"number","multipleOf":100.07}"#, "multipleOf", "");
    invalid(&schema(r#"{"type":"number","multipleOf":1e-300}"#), "multipleOf");
    invalid(&schema(r#"{"type":"string","format":"color"}"#), "Unknown format: color");
    invalid(&schema(r#"{"oneOf":[{"type":"integer","minimum":1},{"type":"integer","maximum":5}]}"#), "oneOf");
    invalid(&schema(r#"{"type":"string","pattern":"^(?!x)"}"#), "regex parse error");
    invalid(&schema(r#"{"patternProperties":{"a":{},"b":{}}}"#), "not disjoint");
    invalid(
        &schema(r#"{"type":"object","properties":{"a":{},"b":{}},"minProperties":2}"#),
        "min/maxProperties",
    );
}

#[test]
fn text_that_is_no_schema() {
    for (text, line, column) in [("{\"a\":", 1, 5), ("{\n  \"a\": nul }", 2, 11), ("", 1, 0), ("{} {}", 1, 4)]
    {
        match error(&schema(text)) {
            EngineError::GrammarSyntax { kind: "JSON schema", line: l, column: c, .. } => {
                assert_eq!((l, c), (line, column), "{text:?}");
            }
            other => panic!("{text:?}: {other:?}"),
        }
    }
    invalid(&schema("5"), "must be an object or boolean");
    invalid(&schema(r#"{"properties":[]}"#), "properties must be an object");
    invalid(&schema(r#"{"type":"strin"}"#), "Invalid type");
    invalid(&schema(r#"{"minLength":-1}"#), "minLength");
}

#[test]
fn lark_that_asks_for_more_than_text() {
    let refused = |text: &str, words: &str| invalid(&Grammar::Lark(text.to_owned()), words);
    for (attribute, words) in [
        ("stop=\"y\"", "stop="),
        ("max_tokens=5", "max_tokens="),
        ("temperature=0.5", "temperature="),
        ("unheard=1", "Unknown attribute"),
    ] {
        refused(&format!("start: a \"x\"\na[{attribute}]: /[a-b]*/"), words);
    }
    refused("start: <[5]>", "tokens can't be named");
    refused("start: <[^5]> \"a\"", "tokens can't be named");
    refused("start: <[*]>*", "tokens can't be named");
    refused("start: <|im_end|>", "special token");
    refused(
        "start: %json {\"x-guidance\":{\"lenient\":true},\"type\":\"string\",\"format\":\"color\"}",
        "Unknown format",
    );
    refused("start: %json {\"not\":{}}", "Unimplemented keys");
    refused("%llguidance {\"allow_invalid_utf8\":true}\nstart: /a/", "options of %llguidance");
    refused("start: b", "unknown name");
    refused("a: \"b\"", "no start rule");
    refused("}{", "expecting rule");
    refused("", "no start rule");
    refused("start: A\nA: B\nB: A", "circular reference");
}

#[test]
fn misspelt_gbnf() {
    misspelt("root := \"a\"", (1, 6), "\"::=\" is expected");
    misspelt("root ::= \"a\"\n= b", (2, 1), "a rule's name");
    misspelt("root ::= \"a", (1, 10), "not closed");
    misspelt("root ::= [a", (1, 10), "not closed");
    misspelt("root ::= (\"a\"\n\"b\"", (2, 4), "line 1, column 10 is not closed");
    misspelt("root ::= \"a\" )", (1, 14), "the end of the line");
    misspelt("root ::= [b-a]", (1, 14), "is empty");
    misspelt("root ::= []", (1, 10), "no characters");
    misspelt("root ::= \"\\q\"", (1, 11), "no such escape");
    misspelt("root ::= \"\\xZZ\"", (1, 11), "2 hexadecimal digits");
    misspelt("root ::= \"\\uD800\"", (1, 11), "4 hexadecimal digits");
    misspelt("root ::= \"中\" other", (1, 14), "\"other\" is not defined");
    misspelt("root ::= \"a\"\nroot ::= \"b\"", (2, 1), "defined twice");
    misspelt("root ::= \"a\"{x}", (1, 14), "a number is expected");
    misspelt("root ::= \"a\"{1", (1, 15), "\"}\" is expected");
    misspelt("root ::= <think>", (1, 10), "tokens can't be named");
    misspelt(&format!("root ::= \"a\"{}", "*".repeat(1000)), (1, 77), "repetitions of repetitions");
    invalid(&Grammar::Gbnf("a ::= \"b\"".to_owned()), "no rule \"root\"");
    invalid(&Grammar::Gbnf("# nothing".to_owned()), "no rule \"root\"");
}

/// A start that leads to `count` further rules, one after the other.
fn chain(first: &str, count: usize, rule: impl Fn(usize, usize) -> String) -> String {
    let mut text = first.to_owned();
    (0..count).for_each(|index| writeln!(text, "{}", rule(index, index + 1)).unwrap());
    text
}

/// The compilers recurse along these; each is about as long as is allowed.
#[test]
fn long_chains_of_rules_do_not_overflow_the_stack() {
    let compiler = Compiler::new(&tokenizer::realistic(1500)).unwrap();
    let nested = |name: &str, inner: usize| format!("{}{name}{inner}{}", "(".repeat(27), ")".repeat(27));
    let schema_chain = |open: &str, close: &str, levels: usize, count: usize| {
        let (open, close) = (open.repeat(levels), close.repeat(levels));
        let links =
            chain("", count, |from, to| format!(r##""d{from}":{open}{{"$ref":"#/$defs/d{to}"}}{close},"##));
        schema(format!(r##"{{"$ref":"#/$defs/d0","$defs":{{{links}"d{count}":{{"type":"null"}}}}}}"##))
    };
    let grammars = [
        Grammar::Lark(
            chain("start: a0\n", 9_900, |a, b| format!("a{a}: \"x\" a{b} | \"y\"")) + "a9900: \"z\"",
        ),
        Grammar::Lark(
            chain("start: A0\n", 9_900, |a, b| format!("A{a}: \"x\" A{b} | \"y\"")) + "A9900: \"z\"",
        ),
        Grammar::Lark(
            chain("start: a0\n", 340, |a, b| format!("a{a}: \"x\" {} | \"y\"", nested("a", b)))
                + "a340: \"z\"",
        ),
        Grammar::Lark(
            chain("start: A0\n", 340, |a, b| format!("A{a}: \"x\" {} | \"y\"", nested("A", b)))
                + "A340: \"z\"",
        ),
        Grammar::Gbnf(
            chain("root ::= a0\n", 3_300, |a, b| format!("a{a} ::= \"x\" a{b} | \"y\"")) + "a3300 ::= \"z\"",
        ),
        Grammar::Gbnf(
            chain("root ::= a0\n", 2_400, |a, b| format!("a{a} ::= \"x\" a{b} | \"y\""))
                + "a2400 ::= \"z\" a0 | \"w\"",
        ),
        schema_chain("", "", 0, 4_900),
        schema_chain("{\"allOf\":[", "]}", 50, 190),
        schema_chain("{\"type\":\"object\",\"properties\":{\"a\":", "}}", 50, 190),
    ];
    for grammar in grammars {
        match compiler.compile(&grammar) {
            Ok(_) | Err(EngineError::GrammarTooComplex { .. } | EngineError::InvalidGrammar { .. }) => {}
            Err(other) => panic!("{other}: {}", &grammar.text()[..200]),
        }
    }
    too_large(&Grammar::Lark("\n".repeat(10_001)), "lines and brackets");
    too_large(&schema_chain("{\"items\":", "}", 100, 200), "levels above references");
    too_large(
        &Grammar::Gbnf(
            chain("root ::= a0\n", 4_000, |a, b| format!("a{a} ::= \"x\" a{b} | \"y\"")) + "a4000 ::= \"z\"",
        ),
        "parts",
    );
}

/// Each rule is twice the next, so that an answer has 2^100 letters. Of GBNF nothing writes it out.
#[test]
fn rules_that_double() {
    let bomb = chain("root ::= a0\n", 100, |a, b| format!("a{a} ::= a{b} a{b}")) + "a100 ::= \"z\"";
    let tokenizer = tokenizer::realistic(1500);
    let compiler = Compiler::new(&tokenizer).unwrap();
    let started = Instant::now();
    let mut constraint = compiler.compile(&Grammar::Gbnf(bomb)).unwrap();
    let answer = model::answer(&tokenizer, &mut constraint, 1, 100).unwrap();
    assert!(!answer.finished && answer.text.len() >= 100 && answer.text.bytes().all(|byte| byte == b'z'));
    assert!(started.elapsed() < SOON, "{:?}", started.elapsed());
    // llguidance writes its terminals out, up to a limit of its own or of time.
    let bomb = chain("start: A0\n", 100, |a, b| format!("A{a}: A{b} A{b}")) + "A100: \"z\"";
    match compiler.compile(&Grammar::Lark(bomb)).err().unwrap() {
        EngineError::InvalidGrammar { .. } | EngineError::GrammarTooComplex { .. } => {}
        other => panic!("{other:?}"),
    }
}

#[test]
fn grammars_that_grow_when_they_are_written_out() {
    let properties = chain("", 3_000, |index, _| format!(r#""p{index}":{{"type":"string"}},"#));
    too_large(&schema(format!(r#"{{"properties":{{{properties}"q":{{}}}}}}"#)), "properties in one object");
    let values: String = (0..5_000).map(|index| format!("\"value{index}\",")).collect();
    let list = format!("[{values}0]");
    invalid(&schema(format!(r#"{{"allOf":[{{"enum":{list}}},{{"enum":{list}}}]}}"#)), "too large");
}

#[test]
fn sizes_that_are_only_numbers_cost_nothing() {
    let tokenizer = tokenizer::realistic(1500);
    let compiler = Compiler::new(&tokenizer).unwrap();
    let started = Instant::now();
    for text in [
        r#"{"type":"string","minLength":1000000}"#,
        r#"{"type":"string","maxLength":1000000}"#,
        r#"{"type":"array","minItems":1000000000}"#,
        r#"{"type":"array","maxItems":1000000000}"#,
    ] {
        let mut constraint = compiler.compile(&schema(text)).unwrap();
        model::answer(&tokenizer, &mut constraint, 1, 100).unwrap();
    }
    assert!(started.elapsed() < SOON, "{:?}", started.elapsed());
}

/// Their automata would be compared state by state, each with each.
#[test]
fn large_expressions_that_begin_alike() {
    let word: String = (0..90).map(|index| format!("(\"a\" | [a-b] \"{index}\")* ")).collect();
    let rules = chain("", 25, |rule, _| format!("w{rule} ::= {word}\"{rule}\""));
    let options: String = (0..25).map(|rule| format!(" | w{rule} root")).collect();
    let compiler = Compiler::new(&tokenizer::realistic(1500)).unwrap();
    let started = Instant::now();
    let result = compiler.compile(&Grammar::Gbnf(format!("root ::= \"z\"{options}\n{rules}")));
    assert!(started.elapsed() < 2 * SOON, "{:?}", started.elapsed());
    match result.err().unwrap() {
        EngineError::GrammarTooLarge { what: "lexemes", .. } | EngineError::GrammarTooComplex { .. } => {}
        other => panic!("{other:?}"),
    }
}
