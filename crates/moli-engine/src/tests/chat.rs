//! Chats and grammars on a toy model.

use moli_text::ChatTemplate;

use super::*;

const TEMPLATE: &str = "{% if tools %}{% for tool in tools %}{{ tool | tojson }}{% endfor %}<tool_call>{% endif %}\
                        {{ messages[0].content }}{% if think %}<think>{% else %}</think>{% endif %}";

/// An engine with that template, certain of a text after the prompt's `prompt` tokens.
fn chatty(prompt: usize, text: &str) -> Engine {
    let script: Vec<u32> =
        vec![0; prompt].into_iter().chain(text.bytes().map(u32::from)).chain([EOS]).collect();
    let script = if text.is_empty() { Vec::new() } else { script };
    let toy = Toy::new(VOCAB, 1024, 64, &script, &Probe::default());
    let template = ChatTemplate::new(TEMPLATE).unwrap();
    Engine::from_parts(Box::new(toy), tokenizer(), Some(template), &Scheduling::default()).unwrap()
}

fn weather(strict: bool) -> Tool {
    let parameters = serde_json::json!({
        "type": "object",
        "properties": {"city": {"enum": ["Paris", "北京"]}, "days": {"type": "integer", "minimum": 1, "maximum": 7}},
        "required": ["city", "days"],
        "additionalProperties": false
    });
    Tool { name: "weather".into(), description: "The weather".into(), parameters, strict }
}

fn params(tools: Vec<Tool>, choice: ToolChoice, generate: GenerateParams) -> ChatParams {
    ChatParams { tools, tool_choice: choice, generate, ..ChatParams::default() }
}

/// Content, reasoning, and the calls with their arguments.
fn read(chat: &mut Chat) -> (String, String, Vec<(String, String)>) {
    let (mut content, mut reasoning, mut calls) = (String::new(), String::new(), Vec::new());
    for event in chat.flat_map(|chunk| chunk.unwrap().events) {
        match event {
            AnswerEvent::Content(text) => content.push_str(&text),
            AnswerEvent::Reasoning(text) => reasoning.push_str(&text),
            AnswerEvent::ToolCallStart { name, .. } => calls.push((name, String::new())),
            AnswerEvent::ToolCallArguments { json_fragment, .. } => {
                calls.last_mut().unwrap().1.push_str(&json_fragment);
            }
            AnswerEvent::ToolCallEnd { .. } => {}
        }
    }
    (content, reasoning, calls)
}

fn chat(engine: &Engine, params: &ChatParams) -> Result<Chat, EngineError> {
    engine.chat(&[Message::new("user", "hm")], params, &CancelToken::new())
}

/// Tokens of the prompt.
fn prompt_tokens(tools: &[Tool]) -> usize {
    let params = params(tools.to_vec(), ToolChoice::Auto, greedy(0));
    let mut chat = chat(&chatty(0, ""), &params).unwrap();
    assert_eq!(read(&mut chat), Default::default());
    chat.summary().usage.prompt_tokens
}

#[test]
fn what_is_said_thought_and_called_comes_apart() {
    let tools = [weather(false)];
    let text = "<think>it rains?</think>I look.\n<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": \"北京\"}}\n</tool_call>";
    let engine = chatty(prompt_tokens(&tools), text);
    let generate = GenerateParams { sampling: SamplerParams::greedy(), ..GenerateParams::default() };
    let params = params(tools.to_vec(), ToolChoice::Auto, generate);
    let mut chat = chat(&engine, &params).unwrap();
    let (content, reasoning, calls) = read(&mut chat);
    assert_eq!((content.trim(), reasoning.as_str()), ("I look.", "it rains?"));
    assert_eq!(calls, [("weather".to_owned(), "{\"city\": \"北京\"}".to_owned())]);
    assert_eq!(chat.summary().finish_reason, FinishReason::Stop);
}

#[test]
fn a_call_that_is_asked_for_follows_its_schema() {
    let engine = chatty(0, "");
    for (seed, choice) in
        (0..20).flat_map(|seed| [(seed, ToolChoice::Required), (seed, ToolChoice::Named("weather".into()))])
    {
        let sampling = SamplerParams { seed: Some(seed), temperature: 1.0, ..SamplerParams::default() };
        let generate = GenerateParams { sampling, max_tokens: Some(400), ..GenerateParams::default() };
        let mut params = params(vec![weather(true)], choice, generate);
        params.single_tool_call = true;
        let mut chat = chat(&engine, &params).unwrap();
        let (_, _, calls) = read(&mut chat);
        if chat.summary().finish_reason != FinishReason::Stop {
            // White space without end; the arguments are not reached.
            continue;
        }
        let [(name, arguments)] = calls.as_slice() else { panic!("{calls:?}") };
        assert_eq!(name, "weather");
        let arguments: serde_json::Value = serde_json::from_str(arguments).unwrap();
        assert!(["Paris", "北京"].contains(&arguments["city"].as_str().unwrap()));
        assert!((1..=7).contains(&arguments["days"].as_i64().unwrap()));
    }
}

#[test]
fn reasoning_ends_within_its_budget() {
    let thoughts = "x".repeat(300);
    let mut params = params(Vec::new(), ToolChoice::Auto, greedy(120));
    params.variables.insert("think".into(), true.into());
    params.reasoning_budget = Some(10);
    let engine = chatty(prompt_tokens(&[]) - 1, &thoughts);
    let (content, reasoning, _) = read(&mut chat(&engine, &params).unwrap());
    assert_eq!(reasoning.len(), 10);
    assert_eq!(content, "x".repeat(120 - 10 - "</think>".len()));
    params.reasoning_budget = None;
    let (content, reasoning, _) = read(&mut chat(&engine, &params).unwrap());
    assert_eq!((content.as_str(), reasoning.len()), ("", 120));
}

#[test]
fn tools_and_grammars_that_cannot_be_are_errors() {
    let engine = chatty(0, "");
    let error = |tools, choice, grammar| {
        let params = params(tools, choice, GenerateParams { grammar, ignore_eos: false, ..greedy(1) });
        chat(&engine, &params).map(|_| ()).unwrap_err()
    };
    let mut wrong = weather(false);
    wrong.parameters = serde_json::json!(["no object"]);
    assert!(matches!(error(vec![wrong], ToolChoice::Auto, None), EngineError::Text(_)));
    assert!(matches!(error(vec![], ToolChoice::Required, None), EngineError::Text(_)));
    assert!(matches!(
        error(vec![weather(true)], ToolChoice::Named("other".into()), None),
        EngineError::Text(_)
    ));
    let both = error(vec![weather(true)], ToolChoice::Required, Some(Grammar::Json));
    assert!(matches!(both, EngineError::InvalidParameter { name: "grammar", .. }), "{both}");
    let bad = error(vec![], ToolChoice::Auto, Some(Grammar::Regex("(".into())));
    assert!(matches!(bad, EngineError::InvalidGrammar { .. } | EngineError::GrammarSyntax { .. }), "{bad}");
}

#[test]
fn a_grammar_holds_alone_in_company_with_guesses_and_for_each_choice() {
    let engine = chatty(0, "");
    let grammar = Grammar::Regex("(ab|a[0-9]{2}){3,5}é?".into());
    let pattern = regex::Regex::new("^(ab|a[0-9]{2}){3,5}é?$").unwrap();
    let answers: Vec<crate::Answer> = (0..8)
        .map(|seed| {
            let params = GenerateParams { grammar: Some(grammar.clone()), choices: 2, ..seeded(60, seed) };
            let params = GenerateParams { ignore_eos: false, ..params };
            engine.submit(&[1, 2, 3], &params, &CancelToken::new()).unwrap()
        })
        .collect();
    for (seed, mut answer) in (0..).zip(answers) {
        let mut texts = [String::new(), String::new()];
        for chunk in answer.by_ref().map(Result::unwrap) {
            texts[chunk.choice].push_str(&chunk.text);
        }
        for (index, text) in texts.iter().enumerate() {
            assert!(pattern.is_match(text), "{text:?}");
            assert_eq!(answer.summaries()[index].finish_reason, FinishReason::Stop);
        }
        let alone = GenerateParams { grammar: Some(grammar.clone()), speculation: false, ..seeded(60, seed) };
        let alone = GenerateParams { ignore_eos: false, ..alone };
        assert_eq!(super::answer(&mut engine.session(), &[1, 2, 3], &alone).text, texts[0]);
    }
}
