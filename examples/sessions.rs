//! Several answers at once: `cargo run --release --example sessions -p moli -- MODEL`.
//!
//! The questions share their beginning, which is computed once; the last is urgent.

use std::error::Error;
use std::thread;

use moli::{CancelToken, Engine, EngineOptions, GenerateParams, Message};

fn main() -> Result<(), Box<dyn Error>> {
    let model = std::env::args().nth(1).unwrap_or_else(|| "smollm2-135m-instruct".to_owned());
    let path = moli::hub::resolve(&model, &mut moli::hub::Quiet)?;
    let engine = Engine::load(&path, &EngineOptions { sessions: 4, ..EngineOptions::default() })?;

    let system = Message::new("system", "You are a helpful assistant at the counter of a town hall.");
    let questions =
        ["Where do I register a bicycle?", "What is a residence permit?", "My passport was stolen!"];
    let answers = questions.iter().enumerate().map(|(index, question)| {
        let prompt = engine.encode_chat(&[system.clone(), Message::new("user", *question)])?;
        let priority = i32::from(index == questions.len() - 1);
        let params = GenerateParams { max_tokens: Some(60), priority, ..GenerateParams::default() };
        engine.submit(&prompt, &params, &CancelToken::new())
    });
    let answers: Vec<_> = answers.collect::<Result<_, _>>()?;
    thread::scope(|scope| {
        for (question, mut answer) in questions.iter().zip(answers) {
            scope.spawn(move || {
                let text: Result<String, _> = answer.by_ref().map(|chunk| Ok(chunk?.text)).collect();
                let summary = answer.summary();
                let (cached, ttft) = (summary.usage.cached_tokens, summary.timings.ttft);
                match text {
                    Ok::<_, moli::EngineError>(text) => {
                        println!("{question} [{cached} cached, {ttft:.0?}]\n{text}\n")
                    }
                    Err(error) => eprintln!("{question}: {error}"),
                }
            });
        }
    });
    println!("{:.1} rows a step", engine.counters().step_rows.mean());
    Ok(())
}
