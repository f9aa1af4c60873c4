//! Answers with calls and reasoning, in the formats of the families, whole, broken and hostile, cut anywhere.

#![allow(missing_docs, clippy::unwrap_used)]

use moli_text::{AnswerEvent, AnswerParser, ParserOptions, ReasoningTags, ToolFormat};
use proptest::prelude::*;
use serde_json::Value;
use std::time::{Duration, Instant};

/// An answer put together.
#[derive(Debug, Default, PartialEq)]
struct Answer {
    content: String,
    reasoning: String,
    /// Name and arguments.
    calls: Vec<(String, String)>,
    ids: Vec<String>,
}

impl Answer {
    fn add(&mut self, events: Vec<AnswerEvent>) {
        for event in events {
            match event {
                AnswerEvent::Content(text) => self.content.push_str(&text),
                AnswerEvent::Reasoning(text) => self.reasoning.push_str(&text),
                AnswerEvent::ToolCallStart { index, id, name } => {
                    assert_eq!(index, self.calls.len());
                    self.calls.push((name, String::new()));
                    self.ids.push(id);
                }
                AnswerEvent::ToolCallArguments { index, json_fragment } => {
                    self.calls[index].1.push_str(&json_fragment);
                }
                AnswerEvent::ToolCallEnd { index } => {
                    let arguments: Value = serde_json::from_str(&self.calls[index].1).unwrap();
                    assert!(arguments.is_object());
                    assert_eq!(index + 1, self.calls.len());
                }
            }
        }
    }
}

fn options(format: Option<ToolFormat>) -> ParserOptions {
    let names = ["get_weather", "add"].map(str::to_owned).to_vec();
    ParserOptions {
        format,
        names,
        reasoning: ReasoningTags::new("<think>", "</think>"),
        ..Default::default()
    }
}

fn parse<'t>(options: ParserOptions, pieces: impl IntoIterator<Item = &'t str>) -> Answer {
    let (mut parser, mut answer) = (AnswerParser::new(options), Answer::default());
    for piece in pieces {
        answer.add(parser.push(piece));
    }
    answer.add(parser.finish());
    answer
}

/// What an answer says and which calls it has.
fn check(format: ToolFormat, text: &str, content: &str, calls: &[(&str, &str)]) {
    let answer = parse(options(Some(format)), [text]);
    assert_eq!(answer.content, content, "{text}");
    let found: Vec<(&str, &str)> = answer.calls.iter().map(|(name, json)| (&**name, &**json)).collect();
    assert_eq!(found, calls, "{text}");
}

#[test]
fn hermes() {
    let paris = ("get_weather", r#"{"city": "Paris"}"#);
    let call = "<tool_call>\n{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Paris\"}}\n</tool_call>";
    let check = |text: &str, content: &str, calls: &[(&str, &str)]| {
        check(ToolFormat::Hermes, text, content, calls);
    };
    check(call, "", &[paris]);
    check(&format!("Let me look.\n\n{call}"), "Let me look.", &[paris]);
    check(&format!("{call}\n{call}\n"), "", &[paris, paris]);
    check(&format!("{call}\nDone."), "Done.", &[paris]);
    check(&format!("a {call} b {call} c"), "a b c", &[paris, paris]);
    // Two in one element, a list, arguments as a string, no closing tag.
    let inner = "{\"name\": \"add\", \"arguments\": {}}";
    check(&format!("<tool_call>{inner}\n{inner}</tool_call>"), "", &[("add", "{}"), ("add", "{}")]);
    check(&format!("<tool_call>[{inner},{inner}]</tool_call>"), "", &[("add", "{}"), ("add", "{}")]);
    check(r#"<tool_call>{"name":"add","arguments":"{\"a\": 1}"}"#, "", &[("add", "{\"a\": 1}")]);
    check(&format!("<tool_call>{inner}</tool_c"), "", &[("add", "{}")]);
    check(&format!("<tool_call>{inner}\n<tool_call>{inner}"), "", &[("add", "{}"), ("add", "{}")]);
    // A tool that isn't offered: the client will say so.
    check(r#"<tool_call>{"name":"rm"}</tool_call>"#, "", &[("rm", "{}")]);
    // Strings that look like marks and braces; other scripts; escapes.
    for arguments in [
        r#"{"text": "} </tool_call> <tool_call> {[\"\\"}"#,
        r#"{"城市": "北京 🌧️", "é": "\u00e9\n"}"#,
        r#"{ "a" : [ 1 , { "b" : [ ] } ] , "c" : -1.5e3 }"#,
    ] {
        let text = format!("<tool_call>{{\"name\":\"add\",\"arguments\":{arguments}}}</tool_call>");
        check(&text, "", &[("add", arguments)]);
    }
}

#[test]
fn llama() {
    let check = |text: &str, content: &str, calls: &[(&str, &str)]| {
        check(ToolFormat::Llama3, text, content, calls);
    };
    let call = r#"{"name": "get_weather", "parameters": {"city": "San Francisco"}}"#;
    let weather = ("get_weather", r#"{"city": "San Francisco"}"#);
    check(call, "", &[weather]);
    check(&format!("<|python_tag|>{call}<|eom_id|>"), "", &[weather]);
    check(&format!("\n{call}; {call}\n{call}<|eot_id|>"), "", &[weather, weather, weather]);
    check("<|python_tag|>{\"name\":\"rm\",\"type\":\"function\",\"parameters\":{}}", "", &[("rm", "{}")]);
    // Something else than a call, as it was written.
    for text in [
        "<|python_tag|>brave_search.call(query=\"x\")",
        r#"{"name": "Bob", "parameters": {}}"#,
        r#"{"name": "add"}"#,
        r#"{"city": "Paris", "name": "add"}"#,
        "{ int x = 1; }",
        "[1, 2, 3]",
        "Use {\"name\": \"add\", \"parameters\": {}} to add.",
        " indented",
    ] {
        check(text, text, &[]);
    }
}

#[test]
fn mistral() {
    let check = |text: &str, content: &str, calls: &[(&str, &str)]| {
        check(ToolFormat::Mistral, text, content, calls);
        check(ToolFormat::MistralNamed, text, content, calls);
    };
    let (one, two) = (("add", r#"{"a":1}"#), ("get_weather", r#"{"city": "北京]"}"#));
    check(
        r#"[TOOL_CALLS][{"name":"add","arguments":{"a":1}}, {"name":"get_weather","arguments":{"city": "北京]"}}]"#,
        "",
        &[one, two],
    );
    check(r#"[TOOL_CALLS] {"name":"add","arguments":{"a":1}}"#, "", &[one]);
    check(
        r#"So: [TOOL_CALLS]add[ARGS]{"a":1}[TOOL_CALLS]get_weather[ARGS] {"city": "北京]"}"#,
        "So:",
        &[one, two],
    );
    check(r#"[TOOL_CALLS]add[CALL_ID]aB3dE6gH9[ARGS]{"a":1}"#, "", &[one]);
    check(r#"[TOOL_CALLS]add{"a":1}"#, "", &[one]);
    for text in [
        "[TOOL_CALLS]",
        "[TOOL_CALLS]add",
        "[TOOL_CALLS]add[ARG",
        "[TOOL_CALLS]add[ARGS][1]",
        "[TOOL_CALLS]add[CALL_ID][ARGS]{}",
        "[TOOL_CALLS]a b[ARGS]{}",
        "[TOOL_CALLS]é[ARGS]{}",
        "[TOOL_CALLS][{\"name\":\"add\",\"arguments\":{}}",
        "[TOOL_CALLS][{\"name\":\"add\",\"arguments\":{}}, 7]",
        "[TOOL_CALLS][]",
        "[INST] [TOOL",
    ] {
        check(text, text, &[]);
    }
    let answer = parse(
        options(Some(ToolFormat::Mistral)),
        [r#"[TOOL_CALLS]add[CALL_ID]aB3dE6gH9[ARGS]{}[TOOL_CALLS][{"name":"add","arguments":{},"id":"x"}]"#],
    );
    assert_eq!(answer.ids, ["aB3dE6gH9", "x"]);
}

#[test]
fn fences_and_plain_json() {
    for format in [ToolFormat::ToolCode, ToolFormat::Json] {
        let check = |text: &str, content: &str, calls: &[(&str, &str)]| check(format, text, content, calls);
        let call = r#"{"name": "add", "arguments": {"a": 1}}"#;
        let add = ("add", r#"{"a": 1}"#);
        check(call, "", &[add]);
        check(&format!("[{call}, {call}]"), "", &[add, add]);
        check(&format!("```tool_code\n{call}\n```"), "", &[add]);
        check(&format!("I add:\n```json\n{call}\n```\n"), "I add:", &[add]);
        check(&format!("```json\n{call}\n```\n```json\n{call}\n```\nDone"), "Done", &[add, add]);
        for text in [
            "```tool_code\nprint(add(a=1))\n```",
            "```json\n{\"a\": 1}\n```",
            "```jsonc\n{}\n```",
            "```",
            r#"{"name": "add", "arguments": {"a": 1}, "more": 1}"#,
        ] {
            check(text, text, &[]);
        }
    }
}

#[test]
fn without_tools_nothing_is_a_call() {
    let text =
        "<tool_call>{\"name\":\"add\"}</tool_call> [TOOL_CALLS] {\"name\":\"add\",\"arguments\":{}}\n ";
    let answer = parse(options(None), [text]);
    assert_eq!((answer.content.as_str(), answer.calls.len()), (text, 0));
}

#[test]
fn reasoning() {
    let parse_with = |in_reasoning, text: &str| {
        let options = ParserOptions { in_reasoning, ..options(Some(ToolFormat::Hermes)) };
        let answer = parse(options, [text]);
        (answer.reasoning, answer.content, answer.calls.len())
    };
    let is = |reasoning: &str, content: &str, calls| (reasoning.to_owned(), content.to_owned(), calls);
    let call = "<tool_call>\n{\"name\": \"add\"}\n</tool_call>";
    assert_eq!(parse_with(false, "<think>\nHm.\n\nSo.\n</think>\n\nYes. "), is("Hm.\n\nSo.", "Yes. ", 0));
    assert_eq!(parse_with(true, "Hm.\n</think>\n\nYes."), is("Hm.", "Yes.", 0));
    assert_eq!(parse_with(true, "<think>\nHm.</think>Yes."), is("Hm.", "Yes.", 0));
    assert_eq!(parse_with(false, &format!("<think>\n\n</think>\n\n{call}")), is("", "", 1));
    // A call that is only thought of.
    assert_eq!(parse_with(true, &format!("{call}</think>{call}")), is(call, "", 1));
    // Again behind a call, but not amid text.
    assert_eq!(parse_with(false, &format!("{call}\n<think>Hm</think>Yes")), is("Hm", "Yes", 1));
    assert_eq!(
        parse_with(false, "The tag <think> opens, </think> closes."),
        is("", "The tag <think> opens, </think> closes.", 0)
    );
    // Cut off.
    assert_eq!(parse_with(false, "<think>Hm </th"), is("Hm </th", "", 0));
    assert_eq!(parse_with(false, "<thi"), is("", "<thi", 0));
    assert_eq!(parse_with(true, ""), is("", "", 0));
}

#[test]
fn the_parser_knows_whether_it_is_inside_the_reasoning() {
    let mut parser = AnswerParser::new(options(None));
    let inside: Vec<bool> = ["", " <thi", "nk>", "a", "</think", ">", "b"]
        .map(|piece| {
            parser.push(piece);
            parser.in_reasoning()
        })
        .to_vec();
    assert_eq!(inside, [false, false, true, true, true, false, false]);
    assert!(AnswerParser::new(ParserOptions { in_reasoning: true, ..options(None) }).in_reasoning());
    let none = ParserOptions { in_reasoning: true, ..ParserOptions::default() };
    assert!(!AnswerParser::new(none).in_reasoning());
}

#[test]
fn content_is_not_held_back() {
    let mut parser = AnswerParser::new(options(Some(ToolFormat::Hermes)));
    assert_eq!(parser.push("Hello"), [AnswerEvent::Content("Hello".to_owned())]);
    assert_eq!(parser.push(" <to"), []);
    assert_eq!(parser.push("p>"), [AnswerEvent::Content(" <top>".to_owned())]);
    // JSON that can't become a call neither.
    let mut parser = AnswerParser::new(options(Some(ToolFormat::Json)));
    assert_eq!(parser.push("{\"na"), []);
    assert_eq!(parser.push("t\": "), [AnswerEvent::Content("{\"nat\":".to_owned())]);
}

#[test]
fn made_ids_are_distinct_and_as_mistral_wants_them() {
    let call = "<tool_call>{\"name\":\"add\"}</tool_call>";
    let ids = |id_seed| {
        parse(ParserOptions { id_seed, ..options(Some(ToolFormat::Hermes)) }, [call, call, call]).ids
    };
    let mut all = [ids(1), ids(2)].concat();
    assert!(all.iter().all(|id| id.len() == 9 && id.bytes().all(|byte| byte.is_ascii_alphanumeric())));
    assert_eq!(all, [ids(1), ids(2)].concat());
    all.sort();
    all.dedup();
    assert_eq!(all.len(), 6);
}

#[test]
fn an_answer_cut_off_anywhere_has_no_half_call() {
    let answers = [
        (
            ToolFormat::Hermes,
            "Hm <tool_call>\n{\"name\": \"add\", \"arguments\": {\"a\": \"}\"}}\n</tool_call>",
        ),
        (ToolFormat::Llama3, "<|python_tag|>{\"name\": \"add\", \"parameters\": {\"a\": \"}\"}}<|eom_id|>"),
        (ToolFormat::MistralNamed, "[TOOL_CALLS]add[CALL_ID]abc[ARGS]{\"a\": \"}\"}"),
        (ToolFormat::ToolCode, "```tool_code\n[{\"name\": \"add\", \"arguments\": {\"a\": \"}\"}}]\n```"),
    ];
    for (format, text) in answers {
        for cut in 0..text.len() {
            let answer = parse(options(Some(format)), [&text[..cut]]);
            match answer.calls.as_slice() {
                // Nothing is lost.
                [] => assert_eq!(answer.content, text[..cut]),
                [(name, arguments)] => assert_eq!((&**name, &**arguments), ("add", "{\"a\": \"}\"}")),
                more => panic!("{more:?}"),
            }
        }
        assert_eq!(parse(options(Some(format)), [text]).calls.len(), 1);
    }
}

#[test]
fn a_hundred_thousand_levels_are_content() {
    for (format, before) in [
        (ToolFormat::Hermes, "<tool_call>{\"name\":\"add\",\"arguments\":{\"a\":"),
        (ToolFormat::Llama3, "{\"name\":\"add\",\"parameters\":"),
        (ToolFormat::MistralNamed, "[TOOL_CALLS]add[ARGS]{\"a\":"),
        (ToolFormat::Json, ""),
    ] {
        for (open, close) in [("[", "]"), ("{\"a\":", "}")] {
            let text = format!("{before}{}1{}}}}}", open.repeat(100_000), close.repeat(100_000));
            check(format, &text, &text, &[]);
        }
    }
}

#[test]
fn a_call_of_more_than_a_megabyte_is_content() {
    let call = |bytes| {
        let text = "x".repeat(bytes);
        format!("<tool_call>{{\"name\":\"add\",\"arguments\":{{\"a\":\"{text}\"}}}}</tool_call>")
    };
    let answer = parse(options(Some(ToolFormat::Hermes)), [&*call(1_000_000)]);
    assert_eq!((answer.calls.len(), answer.content.len()), (1, 0));
    let text = call(AnswerParser::MAX_CALL);
    check(ToolFormat::Hermes, &text, &text, &[]);
    // Too many calls.
    let one = "<tool_call>{\"name\":\"add\"}</tool_call>";
    let answer = parse(options(Some(ToolFormat::Hermes)), [&*one.repeat(AnswerParser::MAX_CALLS + 2)]);
    assert_eq!(answer.calls.len(), AnswerParser::MAX_CALLS);
    assert!(answer.content.contains(one));
}

/// Eight times the text takes about eight times as long: a quadratic parser would take 64 times.
#[test]
fn time_is_linear() {
    for piece in [
        "word ",
        "<tool_call",
        "<tool_call>{\"name\":\"",
        "<tool_call>{",
        "{\"name\":\"add\",\"arguments\":{\"a\":[",
        "[[[[",
        "<tool_call>{\"name\":\"add\"}</tool_call>",
        "```json ",
        " \n\n ",
        "<think></think>",
        "<think",
    ] {
        let time = |bytes: usize| {
            let text = piece.repeat(bytes / piece.len());
            let start = Instant::now();
            parse(
                options(Some(if piece.contains("tool") { ToolFormat::Hermes } else { ToolFormat::Json })),
                [&*text],
            );
            start.elapsed()
        };
        let small = (0..3).map(|_| time(1 << 18)).min().unwrap();
        let large = (0..3).map(|_| time(1 << 21)).min().unwrap();
        assert!(large < small * 24 + Duration::from_millis(50), "{piece:?}: {small:?}, {large:?}");
    }
}

fn fragments() -> impl Strategy<Value = String> {
    let fragment = prop_oneof![
        prop::sample::select(vec![
            "<tool_call>",
            "</tool_call>",
            "<think>",
            "</think>",
            "<|python_tag|>",
            "<|eom_id|>",
            "[TOOL_CALLS]",
            "[ARGS]",
            "[CALL_ID]",
            "```json",
            "```tool_code",
            "```",
            "{\"name\": \"add\", \"arguments\": {\"a\": \"é}\"}}",
            "{\"name\": \"add\", \"parameters\": {}}",
            "{\"name\": \"add\", \"argu",
            "[",
            "]",
            "{",
            "}",
            "\"",
            ",",
            ";",
            "add",
            "{}",
            "<",
            "`",
            "<th",
            "\n",
            " ",
            "北京",
        ])
        .prop_map(str::to_owned),
        "[ -~]{0,3}",
    ];
    prop::collection::vec(fragment, 0..16).prop_map(|fragments| fragments.concat())
}

fn formats() -> impl Strategy<Value = Option<ToolFormat>> {
    use ToolFormat::*;
    prop::sample::select(vec![
        None,
        Some(Hermes),
        Some(Llama3),
        Some(Mistral),
        Some(MistralNamed),
        Some(ToolCode),
        Some(Json),
    ])
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn cuts_change_nothing(text in fragments(), format in formats(), in_reasoning: bool, cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..8)) {
        let options = ParserOptions { in_reasoning, ..options(format) };
        let whole = parse(options.clone(), [&*text]);
        let ends: Vec<usize> = text.char_indices().map(|(at, _)| at).chain([text.len()]).collect();
        let pieces: Vec<&str> = ends.windows(2).map(|pair| &text[pair[0]..pair[1]]).collect();
        prop_assert_eq!(&parse(options.clone(), pieces), &whole);
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| *cut.get(&ends)).chain([0, text.len()]).collect();
        cuts.sort_unstable();
        let pieces: Vec<&str> = cuts.windows(2).map(|pair| &text[pair[0]..pair[1]]).collect();
        prop_assert_eq!(&parse(options, pieces), &whole);
    }

    /// Without a call or a tag, the content is the text. The mark of a message's end is none of it.
    #[test]
    fn nothing_is_lost(text in fragments(), format in formats()) {
        let answer = parse(ParserOptions { reasoning: None, ..options(format) }, [&*text]);
        if answer.calls.is_empty() {
            if format == Some(ToolFormat::Llama3) {
                let rest = |text: &str| text.replace("<|eom_id|>", "").split_whitespace().collect::<String>();
                prop_assert_eq!(rest(&answer.content), rest(&text));
            } else {
                prop_assert_eq!(answer.content, text);
            }
        }
    }
}
