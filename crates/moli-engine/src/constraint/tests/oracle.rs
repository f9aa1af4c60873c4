//! What an answer must be, found out without the matcher.

use serde_json::Value;

/// JSON and what a schema says of it, by another crate.
pub(super) struct SchemaOracle(jsonschema::Validator);

impl SchemaOracle {
    pub(super) fn new(schema: &str) -> Self {
        let schema: Value = serde_json::from_str(schema).unwrap();
        Self(jsonschema::options().should_validate_formats(true).build(&schema).unwrap())
    }

    pub(super) fn check(&self, text: &str) -> Result<(), String> {
        let value = parse(text)?;
        self.0.validate(&value).map_err(|error| format!("{error} at {}", error.instance_path()))
    }
}

/// JSON sets no bound on exponents, but the parser here does: they are cut to two digits. Where a schema has a bound,
/// answers have no exponents.
pub(super) fn parse(text: &str) -> Result<Value, String> {
    let mut tame = String::with_capacity(text.len());
    let (mut in_string, mut escaped, mut exponent) = (false, false, None);
    for c in text.chars() {
        if in_string {
            in_string = escaped || c != '"';
            escaped = !escaped && c == '\\';
        } else {
            in_string = c == '"';
            exponent = match (exponent, c) {
                (_, 'e' | 'E') if tame.ends_with(|c: char| c.is_ascii_digit()) => Some(0),
                (Some(0), '+' | '-') => Some(0),
                (Some(digits), '0'..='9') => Some(digits + 1),
                _ => None,
            };
            if exponent.is_some_and(|digits| digits > 2) {
                continue;
            }
        }
        tame.push(c);
    }
    serde_json::from_str(&tame).map_err(|error| format!("{error}: {tame}"))
}

/// A context-free grammar of the tests' own, with a recogniser that is slow and plain.
#[derive(Clone, Debug)]
pub(super) enum Cfg {
    Text(String),
    /// Ranges of a class, and whether it is negated.
    Class(Vec<(char, char)>, bool),
    Rule(usize),
    All(Vec<Cfg>),
    Any(Vec<Cfg>),
    Times(Box<Cfg>, u32, Option<u32>),
}

/// Whether rule 0 matches all of a text.
pub(super) fn recognises(rules: &[Cfg], text: &str) -> bool {
    let text: Vec<char> = text.chars().collect();
    // Ends of each rule from each start, grown until nothing is new.
    let mut table = vec![vec![Vec::new(); text.len() + 1]; rules.len()];
    loop {
        let mut changed = false;
        for (index, rule) in rules.iter().enumerate() {
            for start in 0..=text.len() {
                for end in ends(rule, start, &text, &table) {
                    if !table[index][start].contains(&end) {
                        table[index][start].push(end);
                        changed = true;
                    }
                }
            }
        }
        if !changed {
            return table[0][0].contains(&text.len());
        }
    }
}

fn ends(cfg: &Cfg, start: usize, text: &[char], table: &[Vec<Vec<usize>>]) -> Vec<usize> {
    let next = |from: &[usize], cfg: &Cfg| {
        let mut to: Vec<usize> = from.iter().flat_map(|start| ends(cfg, *start, text, table)).collect();
        to.sort_unstable();
        to.dedup();
        to
    };
    match cfg {
        Cfg::Text(word) => {
            let word: Vec<char> = word.chars().collect();
            if text[start..].starts_with(&word) { vec![start + word.len()] } else { Vec::new() }
        }
        Cfg::Class(ranges, negated) => match text.get(start) {
            Some(c) if ranges.iter().any(|(first, last)| (first..=last).contains(&c)) != *negated => {
                vec![start + 1]
            }
            _ => Vec::new(),
        },
        Cfg::Rule(rule) => table[*rule][start].clone(),
        Cfg::All(items) => items.iter().fold(vec![start], |from, item| next(&from, item)),
        Cfg::Any(options) => options.iter().flat_map(|option| ends(option, start, text, table)).collect(),
        Cfg::Times(item, least, most) => {
            let mut from = vec![start];
            let mut all = if *least == 0 { from.clone() } else { Vec::new() };
            for times in 1..=most.unwrap_or(*least + text.len() as u32 + 1) {
                from = next(&from, item);
                if times >= *least {
                    all.extend(&from);
                }
            }
            all
        }
    }
}

/// A grammar in llama.cpp's notation: rule 0 is `root`, the others `r1`, `r2`, …
pub(super) fn to_gbnf(rules: &[Cfg]) -> String {
    let name = |rule: usize| if rule == 0 { "root".to_owned() } else { format!("r{rule}") };
    let rules =
        rules.iter().enumerate().map(|(rule, body)| format!("{} ::= {}\n", name(rule), gbnf(body, &name)));
    rules.collect()
}

fn gbnf(cfg: &Cfg, name: &dyn Fn(usize) -> String) -> String {
    let joined = |items: &[Cfg], between: &str| {
        items.iter().map(|item| gbnf(item, name)).collect::<Vec<_>>().join(between)
    };
    match cfg {
        Cfg::Text(text) => format!("\"{}\"", text.chars().map(gbnf_char).collect::<String>()),
        Cfg::Class(ranges, negated) => {
            let ranges = ranges.iter().map(|(first, last)| match first == last {
                true => gbnf_char(*first),
                false => format!("{}-{}", gbnf_char(*first), gbnf_char(*last)),
            });
            format!("[{}{}]", if *negated { "^" } else { "" }, ranges.collect::<String>())
        }
        Cfg::Rule(rule) => name(*rule),
        Cfg::All(items) if items.is_empty() => "\"\"".to_owned(),
        Cfg::All(items) => format!("({})", joined(items, " ")),
        Cfg::Any(options) => format!("({})", joined(options, " | ")),
        Cfg::Times(item, least, most) => {
            let item = gbnf(item, name);
            match (least, most) {
                (0, None) => format!("({item})*"),
                (1, None) => format!("({item})+"),
                (0, Some(1)) => format!("({item})?"),
                (least, None) => format!("({item}){{{least},}}"),
                (least, Some(most)) if least == most => format!("({item}){{{least}}}"),
                (least, Some(most)) => format!("({item}){{{least},{most}}}"),
            }
        }
    }
}

fn gbnf_char(c: char) -> String {
    match c {
        '\n' => "\\n".to_owned(),
        '"' | '\\' | ']' | '[' => format!("\\{c}"),
        '-' | '^' => format!("\\x{:02X}", c as u32),
        c if (c as u32) > 0xFFFF => format!("\\U{:08X}", c as u32),
        c if c > '\u{7E}' && (c as u32).is_multiple_of(2) => format!("\\u{:04X}", c as u32),
        c => c.to_string(),
    }
}

/// The same as a regular expression, for a rule that refers to none.
pub(super) fn to_regex(cfg: &Cfg) -> String {
    let joined = |items: &[Cfg], between: &str| items.iter().map(to_regex).collect::<Vec<_>>().join(between);
    match cfg {
        Cfg::Text(text) => text.chars().map(|c| format!("\\x{{{:X}}}", c as u32)).collect(),
        Cfg::Class(ranges, negated) => {
            let ranges: String = ranges
                .iter()
                .map(|(first, last)| format!("\\x{{{:X}}}-\\x{{{:X}}}", *first as u32, *last as u32))
                .collect();
            format!("[{}{ranges}]", if *negated { "^" } else { "" })
        }
        Cfg::Rule(_) => panic!("a regular expression has no rules"),
        Cfg::All(items) => format!("(?:{})", joined(items, "")),
        Cfg::Any(options) => format!("(?:{})", joined(options, "|")),
        Cfg::Times(item, least, most) => {
            let most = most.map(|most| most.to_string()).unwrap_or_default();
            format!("(?:{}){{{least},{most}}}", to_regex(item))
        }
    }
}
