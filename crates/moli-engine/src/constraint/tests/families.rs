//! Every finished answer is what it must be: 300 grammars and more, each with several random models.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use super::oracle::{self, Cfg, SchemaOracle};
use super::random::Random;
use super::*;

/// What is wrong with an answer, if anything.
type Check = Box<dyn Fn(&str) -> Result<(), String>>;

fn schema(text: String) -> (Grammar, Check) {
    let oracle = SchemaOracle::new(&text);
    (Grammar::JsonSchema(text), Box::new(move |answer| oracle.check(answer)))
}

fn regex(text: &str) -> (Grammar, Check) {
    let oracle = regex::Regex::new(&format!(r"\A(?:{text})\z")).unwrap();
    let check = move |answer: &str| oracle.is_match(answer).then_some(()).ok_or("no match".to_owned());
    (Grammar::Regex(text.to_owned()), Box::new(check))
}

fn grammar(rules: Vec<Cfg>) -> (Grammar, Check) {
    let text = oracle::to_gbnf(&rules);
    let check = move |answer: &str| {
        oracle::recognises(&rules, answer).then_some(()).ok_or("not in the language".to_owned())
    };
    (Grammar::Gbnf(text), Box::new(check))
}

/// The matcher gives up on a grammar with too many readings of one text, which random ones may have.
fn is_too_ambiguous(error: &EngineError) -> bool {
    match error {
        EngineError::ConstraintFailed { reason } | EngineError::InvalidGrammar { reason, .. } => {
            reason.contains("Too many items")
        }
        _ => false,
    }
}

/// Compiles each, has it answered with several seeds, and checks what is finished.
fn answers(grammars: Vec<(Grammar, Check)>, most: usize) {
    let tokenizer = tokenizer::realistic(4000);
    let compiler = Compiler::new(&tokenizer).unwrap();
    let (mut all, mut finished, mut barren, mut ambiguous, mut tokens, mut unmasked) = (0, 0, 0, 0, 0, 0);
    let (mut slowest, mut compiling) = (Duration::ZERO, Duration::ZERO);
    let distinct = grammars.iter().map(|(grammar, _)| grammar).collect::<HashSet<_>>().len();
    for (grammar, check) in &grammars {
        let started = Instant::now();
        let compiled = match compiler.compile(grammar) {
            Ok(compiled) => compiled,
            Err(error) if is_too_ambiguous(&error) => {
                ambiguous += 1;
                continue;
            }
            Err(error) => panic!("{grammar:?}: {error}"),
        };
        slowest = slowest.max(started.elapsed());
        compiling += started.elapsed();
        let (mut ended, mut given_up) = (0, false);
        for seed in 0..4 {
            let answer = match model::answer(&tokenizer, &mut compiled.clone(), seed, most) {
                Ok(answer) => answer,
                Err(error) if is_too_ambiguous(&error) => {
                    given_up = true;
                    continue;
                }
                Err(error) => panic!("{grammar:?}, seed {seed}: {error}"),
            };
            all += 1;
            tokens += answer.tokens;
            unmasked += answer.unmasked;
            if answer.finished {
                ended += 1;
                if let Err(error) = check(&answer.text) {
                    panic!("{grammar:?}, seed {seed}: {error}\n{:?}", answer.text);
                }
            }
        }
        finished += ended;
        ambiguous += usize::from(given_up);
        if ended == 0 && !given_up {
            println!("no answer came to its end: {grammar:?}");
            barren += 1;
        }
    }
    println!(
        "{} grammars, {distinct} of them distinct, {ambiguous} too ambiguous; {finished} of {all} answers finished, \
         none to {barren} grammars, {tokens} tokens, {unmasked} of them without a mask too; compiling took {:?} on average, {slowest:?} at most",
        grammars.len(),
        compiling / grammars.len() as u32
    );
    assert!(distinct * 5 >= grammars.len() * 4, "only {distinct} grammars are distinct");
    assert!(finished * 10 >= all * 9, "only {finished} of {all} answers came to their end");
    assert!(barren * 50 <= grammars.len(), "no answer to {barren} grammars came to its end");
    assert!(ambiguous * 10 <= grammars.len(), "{ambiguous} grammars are too ambiguous");
    assert!(unmasked > 0, "no token was chosen without a mask");
    assert!(slowest < Duration::from_secs(1), "compiling took {slowest:?}");
}

#[test]
fn random_schemas() {
    let mut random = Random::new(1);
    let grammars = (0..240)
        .map(|index| {
            let value = random.schema(index % 12, 2);
            schema(value.to_string())
        })
        .collect();
    answers(grammars, 600);
}

#[test]
fn recursive_schemas() {
    let mut random = Random::new(2);
    answers((0..20).map(|_| schema(random.recursive().to_string())).collect(), 600);
}

#[test]
fn random_regular_expressions() {
    let mut random = Random::new(3);
    let grammars = (0..40)
        .map(|_| {
            let rules = random.grammar(1);
            regex(&oracle::to_regex(&rules[0]))
        })
        .collect();
    answers(grammars, 300);
}

#[test]
fn written_regular_expressions() {
    let texts = [
        "",
        "a",
        "[a-z]+",
        "(a+)+",
        "(a|aa)*b",
        "\\d{4}-\\d{2}-\\d{2}",
        "[^\\x00-\\x1f]{1,20}",
        "(?i)hello|WORLD",
        "\\w+@\\w+\\.com",
        "(yes|no|maybe)(, (yes|no|maybe)){0,3}",
        "[一-龥]{2,8}",
        "你好[,，]?世界",
        "\\p{Lu}\\p{Ll}*",
        "/[^/]*/",
        "\\\\[a-z]\\{\\}",
        "\"([^\"\\\\]|\\\\.)*\"",
        "#[0-9A-F]{6}",
        "[+-]?\\d+(\\.\\d+)?([eE][+-]?\\d+)?",
        "(?x) a b  c /  [d e]",
        "(?s).{3}",
        "\\s\\S",
        "^abc$",
        "^(a|b)$",
        "a??b*?c",
        "😀{2,3}",
        "[\\s\\S]{5}",
        "((a{2}){2}){2}",
        "(|a|ab)(c|bcd)",
        "\\x{4e2d}|\\u4e2d\\t",
        "[[:alpha:]&&[^aeiou]]{3}",
        "[a-z--[aeiou]]{3}",
        "\\n+end",
    ];
    answers(texts.iter().map(|text| regex(text)).collect(), 300);
}

#[test]
fn random_context_free_grammars() {
    let mut random = Random::new(4);
    let grammars = (0..60).map(|index| grammar(random.grammar(1 + index % 4))).collect();
    answers(grammars, 200);
}

/// Nothing of a grammar gets lost on the way through lexemes: every text of it can be written, in any tokens, and ended.
#[test]
fn every_text_of_a_grammar_can_be_written() {
    let tokenizer = tokenizer::realistic(4000);
    let compiler = Compiler::new(&tokenizer).unwrap();
    let mut written = 0;
    for seed in 0..150 {
        let mut random = Random::new(1000 + seed);
        let rules = random.grammar(1 + seed as usize % 4);
        let text = oracle::to_gbnf(&rules);
        let compiled = match compiler.compile(&Grammar::Gbnf(text.clone())) {
            Ok(compiled) => compiled,
            Err(error) if is_too_ambiguous(&error) => continue,
            Err(error) => panic!("{text}: {error}"),
        };
        for _ in 0..20 {
            let Some(word) = random.word(&rules, &rules[0], &mut 60) else { continue };
            assert!(oracle::recognises(&rules, &word));
            let ids = cut(&tokenizer, &word, &mut random);
            match accepts(&tokenizer, compiled.clone(), &ids) {
                Ok(accepted) => assert!(accepted, "{word:?} is in the language of\n{text}"),
                Err(error) if is_too_ambiguous(&error) => continue,
                Err(error) => panic!("{word:?}: {error} for\n{text}"),
            }
            written += 1;
        }
    }
    println!("{written} texts");
    assert!(written > 1500, "{written}");
}

fn json(answer: &str) -> Result<(), String> {
    match oracle::parse(answer)? {
        serde_json::Value::Object(_) => Ok(()),
        other => Err(format!("{other} is no object")),
    }
}

#[test]
fn json_mode_gives_objects() {
    answers(vec![(Grammar::Json, Box::new(json))], 300);
}

#[test]
fn written_schemas() {
    let texts = [
        // What tools and libraries make of their types.
        r#"{"$schema":"http://json-schema.org/draft-07/schema#","title":"Person","type":"object","properties":{"name":{"type":"string","description":"full name"},"age":{"type":"integer","minimum":0,"maximum":150},"email":{"anyOf":[{"type":"string","format":"email"},{"type":"null"}],"default":null}},"required":["name","age"]}"#,
        r##"{"$defs":{"Cat":{"properties":{"kind":{"const":"cat","type":"string"},"lives":{"type":"integer"}},"required":["kind","lives"],"type":"object"},"Dog":{"properties":{"kind":{"const":"dog","type":"string"},"bark":{"type":"boolean"}},"required":["kind","bark"],"type":"object"}},"discriminator":{"propertyName":"kind"},"anyOf":[{"$ref":"#/$defs/Cat"},{"$ref":"#/$defs/Dog"}]}"##,
        r#"{"type":"object","properties":{"location":{"type":"string"},"unit":{"type":"string","enum":["celsius","fahrenheit"]}},"required":["location"],"additionalProperties":false}"#,
        r#"{"type":"object","properties":{"姓名":{"type":"string","minLength":1,"maxLength":4},"等级":{"enum":["甲","乙","丙"]},"分数":{"type":"number","minimum":0,"maximum":100}},"required":["姓名","等级","分数"],"additionalProperties":false}"#,
        r#"{"type":"object","patternProperties":{"^x-[a-z]{1,5}$":{"type":"integer"}},"additionalProperties":false}"#,
        r#"{"type":"object","properties":{"a":{"type":"integer"}},"patternProperties":{"^S_":{"type":"string"}},"additionalProperties":{"type":"boolean"}}"#,
        r#"{"type":"object","properties":{"a":{},"b":{},"c":{}},"minProperties":1,"maxProperties":1,"additionalProperties":false}"#,
        r#"{"type":"object","required":["x","y"],"properties":{"x":{"type":"null"}},"additionalProperties":{"type":"integer"}}"#,
        r#"{"type":["string","integer","null"],"maxLength":3,"minimum":10,"maximum":99}"#,
        r#"{"type":"array","items":{"type":"array","items":{"type":"array","items":{"type":"integer","minimum":0,"maximum":9},"maxItems":2},"maxItems":2},"maxItems":2}"#,
        r#"{"$schema":"http://json-schema.org/draft-07/schema#","type":"array","items":[{"type":"string"},{"type":"integer"}],"additionalItems":false,"minItems":2}"#,
        r#"{"type":"string","format":"date"}"#,
        r#"{"type":"string","format":"uuid"}"#,
        r#"{"type":"string","format":"ipv4"}"#,
        r#"{"type":"string","format":"date-time"}"#,
        r#"{"type":["string","null"],"format":"time"}"#,
        r#"{"type":"string","format":"hostname"}"#,
        r#"{"type":"string","format":"uri"}"#,
        r#"{"type":"string","format":"email","pattern":"^[ab.]+@"}"#,
        r#"{"type":"string","format":"date","pattern":"-02-29$"}"#,
        r#"{"type":"string","format":"date-time","pattern":"02-29T23:59:[56]"}"#,
        r#"{"type":"string","format":"time","pattern":"^23:59:[56]"}"#,
        r#"{"type":"string","pattern":"^(\\([0-9]{3}\\))?[0-9]{3}-[0-9]{4}$"}"#,
        r#"{"type":"string","pattern":"^[\u4e00-\u9fa5]{2,4}$"}"#,
        r#"{"type":"string","pattern":"^[a-c]+$","minLength":3,"maxLength":5}"#,
        r#"{"type":"integer","exclusiveMinimum":0,"exclusiveMaximum":10,"multipleOf":3}"#,
        r#"{"type":"number","minimum":-0.5,"exclusiveMaximum":0.5}"#,
        r#"{"type":"number","minimum":0,"maximum":100,"multipleOf":0.25}"#,
        r#"{"type":"integer","minimum":-5,"maximum":-5}"#,
        r#"{"const":"\u0000\n\"\\/é中😀"}"#,
        r#"{"const":{"深":[[],{},null,[1.5,-2,"x"]]}}"#,
        r#"{"enum":[null]}"#,
        r#"{"allOf":[{"type":"object","properties":{"a":{"type":"integer","minimum":0}},"required":["a"]},{"type":"object","properties":{"a":{"type":"integer","maximum":9}}}]}"#,
        r#"{"oneOf":[{"type":"string"},{"type":"integer"},{"type":"array","items":{"type":"boolean"}}]}"#,
        r##"{"type":"object","properties":{"tree":{"$ref":"#/definitions/node"}},"required":["tree"],"additionalProperties":false,"definitions":{"node":{"type":"object","properties":{"v":{"type":"integer"},"l":{"$ref":"#/definitions/node"},"r":{"$ref":"#/definitions/node"}},"required":["v"],"additionalProperties":false}}}"##,
        r#"true"#,
        r#"{}"#,
        r#"{"type":"object","properties":{"not":{"type":"boolean"},"if":{"const":1},"$ref":{"type":"null"},"$id":{"type":"string"}},"required":["not","if","$ref","$id"],"additionalProperties":false}"#,
        r#"{"type":"object","properties":{"a":{"type":"string"}},"additionalProperties":false,"unknownKeyword":{"not":{}},"x-note":"ignored","deprecated":true}"#,
    ];
    answers(texts.iter().map(|text| schema((*text).to_owned())).collect(), 600);
}

#[test]
fn written_lark_grammars() {
    let checked = |text: &str, check: fn(&str) -> Result<(), String>| -> (Grammar, Check) {
        (Grammar::Lark(text.to_owned()), Box::new(check))
    };
    let same = |text: &str, regex: &str| (Grammar::Lark(text.to_owned()), self::regex(regex).1);
    answers(
        vec![
            same("start: \"yes\" | \"no\"", "yes|no"),
            same(
                "%llguidance {}\nstart: WORD (\", \" WORD)*\nWORD: /[a-z]{1,5}/",
                "[a-z]{1,5}(, [a-z]{1,5})*",
            ),
            same(
                "start: greeting name \"!\"?\ngreeting: \"你好\" | \"hello\"i\nname: /[ 一-龥]{1,3}/",
                "(你好|(?i:hello))[ 一-龥]{1,3}!?",
            ),
            same("start: A{2,3} (B | C)~2\nA: \"a\"\nB: /b+/ \"!\"\nC: \"c\"..\"e\"", "a{2,3}(b+!|[c-e]){2}"),
            same(
                "start: (LINE \"\\n\"){1,3} // comment\n# another\nLINE: /[^\\n]{0,8}/",
                "([^\n]{0,8}\n){1,3}",
            ),
            checked(
                "start: %json {\"type\":\"object\",\"properties\":{\"a\":{\"type\":\"integer\"}},\"required\":[\"a\"]}",
                json,
            ),
            checked("start: pair\npair: \"(\" pair? \")\" pair?", |answer| {
                let depths = answer.chars().scan(0, |depth, c| {
                    *depth += if c == '(' { 1 } else { -1 };
                    Some(*depth)
                });
                let depths: Vec<i32> = depths.collect();
                let right = depths.iter().all(|depth| *depth >= 0) && depths.last() == Some(&0);
                right.then_some(()).ok_or("not balanced".to_owned())
            }),
            checked("start: \"a\" start \"b\" | \"ab\"", |answer| {
                let half = answer.len() / 2;
                let right = answer == format!("{}{}", "a".repeat(half), "b".repeat(half));
                right.then_some(()).ok_or("not as many b as a".to_owned())
            }),
        ],
        300,
    );
}

#[test]
fn written_gbnf_grammars() {
    let same = |text: &str, regex: &str| (Grammar::Gbnf(text.to_owned()), self::regex(regex).1);
    let json_text = r##"# JSON
root   ::= object
value  ::= object | array | string | number | ("true" | "false" | "null") ws

object ::=
  "{" ws (
            string ":" ws value
    ("," ws string ":" ws value)*
  )? "}" ws

array  ::=
  "[" ws (
            value
    ("," ws value)*
  )? "]" ws

string ::=
  "\"" (
    [^"\\\x7F\x00-\x1F] |
    "\\" (["\\bfnrt] | "u" "0" "0" [0-9a-fA-F]{2}) # escapes
  )* "\"" ws

number ::= ("-"? ([0-9] | [1-9] [0-9]{0,15})) ("." [0-9]+)? ([eE] [-+]? [0-9] [1-9]{0,15})? ws
ws ::= | " " | "\n" [ \t]{0,20}
"##;
    let arithmetic = "root  ::= (expr \"=\" ws num \"\\n\")+\nexpr  ::= term ([-+*/] term)*\nterm  ::= ident | num | \"(\" ws expr \")\" ws\nident ::= [a-z] [a-z0-9_]* ws\nnum   ::= [0-9]+ ws\nws    ::= [ \\t\\n]*\n";
    let brackets = |answer: &str| {
        let right = answer.matches('(').count() == answer.matches(')').count()
            && answer.trim_end_matches(' ').ends_with('\n');
        right.then_some(()).ok_or("no equations".to_owned())
    };
    answers(
        vec![
            (Grammar::Gbnf(json_text.to_owned()), Box::new(json)),
            (Grammar::Gbnf(arithmetic.to_owned()), Box::new(brackets)),
            same("root ::= \"yes\" | \"no\"", "yes|no"),
            same(
                "root ::= item+\nitem ::= \"- \" [^\\r\\n\\x0b\\x0c\\x85\\u2028\\u2029]+ \"\\n\"",
                "(- [^\r\n\x0b\x0c\u{85}\u{2028}\u{2029}]+\n)+",
            ),
            same(
                "root ::= [一-龥]{2,4} (\"，\" [一-龥]{2,4})?\n  | \"無\"",
                "[一-龥]{2,4}(，[一-龥]{2,4})?|無",
            ),
            same(
                "root ::= (a\n  | b # comment\n) c?\na ::= \"\\U0001F600\"\r\nb ::= \"\\u4e2d\\x21\"\r\nc ::= . .",
                "(😀|中!)(?s:..)?",
            ),
            same("root ::= \"a\" \"b\"{3} \"c\"{0,2} \"d\"{1,} \"e\"{0}", "ab{3}c{0,2}d+"),
            same("root ::= [\\[\\]^-] [a\\-z]+ [^-]", "[\\[\\]^\\-][a\\-z]+[^\\-]"),
        ],
        300,
    );
}
