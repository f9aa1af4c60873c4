//! Grammars of calls: each compiles, accepts what the parser takes for a call of an offered tool, and nothing else.

#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use common::Fixture;
use llguidance::api::TopLevelGrammar;
use llguidance::toktrie::{ApproximateTokEnv, TokRxInfo, TokTrie};
use llguidance::{Matcher, ParserFactory};
use moli_text::{
    AnswerEvent, AnswerParser, CallOptions, EncodeOptions, ParserOptions, ReasoningTags, TextError,
    Tokenizer, Tool, ToolChoice, ToolFormat,
};
use serde_json::json;
use std::sync::Arc;

const FORMATS: [ToolFormat; 6] = [
    ToolFormat::Hermes,
    ToolFormat::Llama3,
    ToolFormat::Mistral,
    ToolFormat::MistralNamed,
    ToolFormat::ToolCode,
    ToolFormat::Json,
];

/// With the marks as control tokens, or as text.
fn tokenizer(control: bool) -> Tokenizer {
    let mut fixture = Fixture::byte_level().token("}}", 1).token("\"}", 1);
    if control {
        for text in [
            "<tool_call>",
            "</tool_call>",
            "<|python_tag|>",
            "[TOOL_CALLS]",
            "[ARGS]",
            "[CALL_ID]",
            "[THINK]",
            "[/THINK]",
        ] {
            fixture = fixture.token(text, 3);
        }
    }
    fixture.load().unwrap()
}

fn tools(strict: bool) -> Vec<Tool> {
    let weather = json!({
        "type": "object",
        "properties": {"city": {"$ref": "#/$defs/city"}, "unit": {"enum": ["C", "F"]}},
        "required": ["city"],
        "additionalProperties": false,
        "$defs": {"city": {"type": "string"}},
    });
    vec![
        Tool { name: "get_weather".to_owned(), parameters: weather, strict, ..Tool::default() },
        Tool { name: "now".to_owned(), ..Tool::default() },
    ]
}

/// What a grammar makes of answers, token by token.
struct Judge {
    factory: ParserFactory,
    tokenizer: Tokenizer,
}

impl Judge {
    fn new(tokenizer: &Tokenizer) -> Self {
        let words: Vec<Vec<u8>> = (0..tokenizer.vocab_size() as u32)
            .map(|id| match id {
                0..=255 => vec![id as u8],
                _ => {
                    let text = tokenizer.decode(&[id], true).unwrap();
                    let mark: &[u8] = if tokenizer.is_control(id) { b"\xFF" } else { b"" };
                    [mark, text.as_bytes()].concat()
                }
            })
            .collect();
        let info = TokRxInfo::new(words.len() as u32, tokenizer.eos().unwrap());
        let environment = Arc::new(ApproximateTokEnv::new(TokTrie::from(&info, &words)));
        let mut factory = ParserFactory::new_simple(&(environment as _)).unwrap();
        factory.quiet();
        Self { factory, tokenizer: tokenizer.clone() }
    }

    fn matcher(&self, grammar: &str) -> Matcher {
        let matcher =
            Matcher::new(self.factory.create_parser(TopLevelGrammar::from_lark(grammar.to_owned())));
        assert_eq!(matcher.get_error(), None, "{grammar}");
        matcher
    }

    /// Whether a whole answer follows the grammar.
    fn accepts(&self, grammar: &str, answer: &str) -> bool {
        let options = EncodeOptions { parse_special: true, ..EncodeOptions::default() };
        let ids = self.tokenizer.encode(answer, options).unwrap();
        let mut matcher = self.matcher(grammar);
        let taken = matcher.try_consume_tokens(&ids).unwrap();
        taken == ids.len() && matcher.is_accepting().unwrap()
    }
}

/// An answer with calls, each of a name and arguments.
fn write(format: ToolFormat, calls: &[(&str, &str)]) -> String {
    let key = if format == ToolFormat::Llama3 { "parameters" } else { "arguments" };
    let json = |(name, arguments): &(&str, &str)| format!("{{\"name\": \"{name}\", \"{key}\": {arguments}}}");
    let all = |separator: &str| calls.iter().map(json).collect::<Vec<_>>().join(separator);
    match format {
        ToolFormat::Hermes => {
            let calls = calls.iter().map(|call| format!("<tool_call>\n{}\n</tool_call>", json(call)));
            calls.collect::<Vec<_>>().join("\n")
        }
        ToolFormat::ToolCode => {
            let calls = calls.iter().map(|call| format!("```tool_code\n{}\n```", json(call)));
            calls.collect::<Vec<_>>().join("\n")
        }
        ToolFormat::Llama3 => all("; "),
        ToolFormat::Mistral => format!("[TOOL_CALLS][{}]", all(", ")),
        ToolFormat::MistralNamed => {
            calls.iter().map(|(name, arguments)| format!("[TOOL_CALLS]{name}[ARGS]{arguments}")).collect()
        }
        ToolFormat::Json if calls.len() == 1 => all(""),
        _ => format!("[{}]", all(", ")),
    }
}

/// The calls that the parser finds.
fn parsed(format: ToolFormat, answer: &str) -> Vec<String> {
    let names = tools(false).into_iter().map(|tool| tool.name).collect();
    let mut parser =
        AnswerParser::new(ParserOptions { format: Some(format), names, ..ParserOptions::default() });
    let mut events = parser.push(answer);
    events.extend(parser.finish());
    let name = |event| if let AnswerEvent::ToolCallStart { name, .. } = event { Some(name) } else { None };
    events.into_iter().filter_map(name).collect()
}

const PARIS: (&str, &str) = ("get_weather", r#"{"city": "北京 {\"", "unit": "C"}"#);
const NOW: (&str, &str) = ("now", "{}");

#[test]
fn required_calls() {
    for (format, control) in FORMATS.into_iter().flat_map(|format| [(format, false), (format, true)]) {
        let tokenizer = tokenizer(control);
        let judge = Judge::new(&tokenizer);
        for (parallel, strict) in [(false, true), (true, false)] {
            let options = CallOptions { choice: ToolChoice::Required, parallel, ..CallOptions::default() };
            let grammar = format.call_grammar(&tools(strict), &options, &tokenizer).unwrap().unwrap();
            let accepts = |answer: &str| {
                let accepted = judge.accepts(&grammar, answer);
                // What the grammar lets through, the parser reads.
                assert!(!accepted || !parsed(format, answer).is_empty(), "{answer}");
                accepted
            };
            let two = write(format, &[PARIS, NOW]);
            assert!(accepts(&write(format, &[PARIS])), "{grammar}");
            assert!(accepts(&write(format, &[NOW])), "{grammar}");
            assert_eq!(accepts(&two), parallel, "{two}\n{grammar}");
            assert_eq!(parsed(format, &two), ["get_weather", "now"]);
            for bad in [
                "",
                "Hello",
                &write(format, &[("rm", "{}")]),
                &write(format, &[("get_weather", "{}")]),
                &write(format, &[("get_weather", r#"{"city": 7}"#)]),
                &write(format, &[("get_weather", r#"{"city": "a", "other": 1}"#)]),
                &write(format, &[("now", "[]")]),
                &(write(format, &[NOW]) + "Hello"),
            ] {
                assert!(!accepts(bad), "{bad}\n{grammar}");
            }
        }
    }
}

#[test]
fn a_named_tool() {
    let tokenizer = tokenizer(true);
    let judge = Judge::new(&tokenizer);
    for format in FORMATS {
        let choice = ToolChoice::Named("now".to_owned());
        let options = CallOptions { choice, parallel: true, ..CallOptions::default() };
        let grammar = format.call_grammar(&tools(true), &options, &tokenizer).unwrap().unwrap();
        assert!(judge.accepts(&grammar, &write(format, &[NOW])));
        for calls in [&[PARIS][..], &[NOW, NOW], &[]] {
            assert!(!judge.accepts(&grammar, &write(format, calls)), "{grammar}");
        }
    }
}

#[test]
fn strict_tools_that_the_model_may_call() {
    for (format, control) in FORMATS.into_iter().flat_map(|format| [(format, false), (format, true)]) {
        let tokenizer = tokenizer(control);
        let judge = Judge::new(&tokenizer);
        for parallel in [false, true] {
            let options = CallOptions { parallel, ..CallOptions::default() };
            let grammar = format.call_grammar(&tools(true), &options, &tokenizer).unwrap().unwrap();
            let only_alone = matches!(format, ToolFormat::Llama3 | ToolFormat::Json);
            let call = write(format, &[PARIS]);
            for (answer, accepted) in [
                ("", true),
                ("Hello, <tool is not a call.\n\nBye", true),
                (&*call, true),
                // Alone in its answer or no call at all.
                (&*format!("Let me look. {call}"), true),
                (&*write(format, &[PARIS, NOW]), parallel),
                (&*write(format, &[("get_weather", "{}")]), false),
                (&*format!("Well. {}", write(format, &[("get_weather", "{}")])), only_alone),
                (&call[..call.len() - 2], false),
            ] {
                assert_eq!(judge.accepts(&grammar, answer), accepted, "{answer}\n{grammar}");
            }
        }
        // Not strict: as the model likes.
        let free = CallOptions { parallel: true, ..CallOptions::default() };
        assert_eq!(format.call_grammar(&tools(false), &free, &tokenizer).unwrap(), None);
        // One call at most is a matter of a grammar, unless there is nothing to call.
        assert!(format.call_grammar(&tools(false), &CallOptions::default(), &tokenizer).unwrap().is_some());
        assert_eq!(format.call_grammar(&[], &CallOptions::default(), &tokenizer).unwrap(), None);
        let none = CallOptions { choice: ToolChoice::None, ..CallOptions::default() };
        assert_eq!(format.call_grammar(&tools(true), &none, &tokenizer).unwrap(), None);
    }
}

#[test]
fn reasoning_comes_first() {
    let kinds = [("<think>", "</think>"), ("[THINK]", "[/THINK]"), ("[THINK]", "<end>"), ("<b>", "[/THINK]")];
    for (control, (open, close)) in
        [false, true].into_iter().flat_map(|control| kinds.map(|tags| (control, tags)))
    {
        let tokenizer = tokenizer(control);
        let judge = Judge::new(&tokenizer);
        let reasoning = ReasoningTags::new(open, close);
        for (format, strict) in FORMATS.into_iter().flat_map(|format| [(format, false), (format, true)]) {
            let choice = if strict { ToolChoice::Auto } else { ToolChoice::Required };
            let options = CallOptions { choice, reasoning: reasoning.clone(), ..CallOptions::default() };
            let opened = CallOptions { in_reasoning: true, ..options.clone() };
            let tools = tools(strict);
            let grammar = format.call_grammar(&tools, &options, &tokenizer).unwrap().unwrap();
            let inside = format.call_grammar(&tools, &opened, &tokenizer).unwrap().unwrap();
            let call = write(format, &[PARIS]);
            // Thinking of how a call is written is not calling.
            let mark = if control { "" } else { "<tool_call> or [TOOL_CALLS]" };
            let thought = format!("\nPerhaps {{\"name\": or ```json {mark}.\n{close}\n\n");
            for (grammar, answer, accepted) in [
                (&grammar, format!("{open}{thought}{call}"), true),
                (&grammar, call.clone(), true),
                (&grammar, format!("{open}{thought}{}", write(format, &[("get_weather", "7")])), false),
                (&grammar, format!("{open}never closed"), false),
                (&inside, format!("{thought}{call}"), true),
                (&inside, call.clone(), false),
            ] {
                assert_eq!(judge.accepts(grammar, &answer), accepted, "{format:?} {answer}\n{grammar}");
            }
        }
    }
}

#[test]
fn schemas_that_a_compiler_does_not_know() {
    let tokenizer = tokenizer(false);
    let judge = Judge::new(&tokenizer);
    let grammar = |strict| {
        let parameters =
            json!({"type": "object", "dependentRequired": {"a": ["b"]}, "x-guidance": {"lenient": true}});
        let tool = Tool { name: "f".to_owned(), parameters, strict, ..Tool::default() };
        let options = CallOptions { choice: ToolChoice::Required, ..CallOptions::default() };
        ToolFormat::Hermes.call_grammar(&[tool], &options, &tokenizer).unwrap().unwrap()
    };
    assert!(judge.accepts(&grammar(false), &write(ToolFormat::Hermes, &[("f", "{}")])));
    // Strict: nothing is left out, whatever the client's schema says of it.
    let error = judge.factory.create_parser(TopLevelGrammar::from_lark(grammar(true)));
    assert!(error.err().unwrap().to_string().contains("dependentRequired"));
}

#[test]
fn choices_that_cannot_be_met() {
    let tokenizer = tokenizer(false);
    let grammar = |choice, tools: &[Tool]| {
        let options = CallOptions { choice, ..CallOptions::default() };
        ToolFormat::Hermes.call_grammar(tools, &options, &tokenizer).unwrap_err()
    };
    assert!(matches!(grammar(ToolChoice::Required, &[]), TextError::NoTools));
    let error = grammar(ToolChoice::Named("rm".to_owned()), &tools(true));
    assert!(matches!(error, TextError::UnknownTool { name, tools: 2 } if name == "rm"));
    let twice = [tools(true), tools(true)].concat();
    assert!(
        matches!(grammar(ToolChoice::Required, &twice), TextError::InvalidTool { name, .. } if name == "get_weather")
    );
}

/// The text that a stream shows is what the parser reads, control tokens included.
#[test]
fn streams_show_the_marks() {
    let tokenizer = tokenizer(true);
    let options = EncodeOptions { parse_special: true, ..EncodeOptions::default() };
    let ids = tokenizer.encode("[TOOL_CALLS]now[ARGS]{}<|im_end|>", options).unwrap();
    let text =
        |mut stream: moli_text::TextStream| -> String { ids.iter().map(|&id| stream.push(id)).collect() };
    assert_eq!(text(tokenizer.stream()), "now{}");
    let shown = text(tokenizer.stream().show(ToolFormat::MistralNamed.markers().iter().copied()));
    assert_eq!(shown, "[TOOL_CALLS]now[ARGS]{}");
    assert_eq!(parsed(ToolFormat::MistralNamed, &shown), ["now"]);
}
