//! What masks and compiling cost.

use std::time::{Duration, Instant};

use super::*;

/// A tenth of a token's time on the smallest model of the catalogue.
const TARGET: Duration = Duration::from_micros(460);

fn grammars() -> Vec<(&'static str, Grammar)> {
    let schema = r##"{"type":"object","properties":{
        "name":{"type":"string"},"年龄":{"type":"integer","minimum":0,"maximum":150},
        "email":{"type":"string","format":"email"},"tags":{"type":"array","items":{"enum":["red","绿","blue"]},"maxItems":8},
        "address":{"$ref":"#/$defs/address"},"note":{"type":"string","maxLength":200}},
        "required":["name","年龄","email","tags","address","note"],"additionalProperties":false,
        "$defs":{"address":{"type":"object","properties":{"street":{"type":"string","minLength":1},"zip":{"type":"string","pattern":"^[0-9]{5}$"}},
        "required":["street","zip"],"additionalProperties":false}}}"##;
    let gbnf = "root ::= value\nvalue ::= list | text | [0-9]+\nlist ::= \"(\" (value (\" \" value)*)? \")\"\ntext ::= \"'\" [^'\\n]* \"'\"";
    vec![
        ("JSON mode", Grammar::Json),
        ("schema", Grammar::JsonSchema(schema.to_owned())),
        ("regex", Grammar::Regex("(\\w+ )*\\w+\\. \\w+@\\w+\\.(com|org)".to_owned())),
        ("any text", Grammar::Regex("(?s).*".to_owned())),
        ("GBNF", Grammar::Gbnf(gbnf.to_owned())),
    ]
}

/// An expression that counts what almost every token of this vocabulary is made of: all of them are looked at, each time.
fn counted_class() -> Grammar {
    Grammar::Regex("[a-z ]{100,400}".to_owned())
}

#[test]
fn a_mask_costs_a_tenth_of_a_token_at_most() {
    for size in [50_000, 150_000] {
        let tokenizer = tokenizer::realistic(size);
        let started = Instant::now();
        let compiler = Compiler::new(&tokenizer).unwrap();
        println!("{size} tokens: compiler made in {:?}", started.elapsed());
        for (name, grammar) in grammars() {
            let median = measure(&tokenizer, &compiler, name, &grammar);
            assert!(median < TARGET, "{name} with {size} tokens: {median:?}");
        }
        measure(&tokenizer, &compiler, "counted class", &counted_class());
    }
}

/// The median of what mask and acceptance of a token take.
fn measure(tokenizer: &Tokenizer, compiler: &Compiler, name: &str, grammar: &Grammar) -> Duration {
    let started = Instant::now();
    compiler.compile(grammar).unwrap();
    let compiled = started.elapsed();
    let started = Instant::now();
    compiler.compile(grammar).unwrap();
    let again = started.elapsed();
    let mut times = Vec::new();
    for seed in 0..10 {
        let mut constraint = compiler.compile(grammar).unwrap();
        model::timed(tokenizer, &mut constraint, seed, 80, &mut times);
    }
    let mean = times.iter().sum::<Duration>() / times.len() as u32;
    times.sort_unstable();
    let (median, late, most) =
        (times[times.len() / 2], times[times.len() * 99 / 100], times[times.len() - 1]);
    println!(
        "  {name}: compiled in {compiled:?}, from the cache in {again:?}; {} masks: {mean:?} on average, \
         median {median:?}, 99 of 100 within {late:?}, {most:?} at most",
        times.len(),
    );
    median
}
