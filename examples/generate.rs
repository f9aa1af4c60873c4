//! Streams an answer from a catalogue model or a file: `cargo run --release --example generate -p moli -- MODEL PROMPT`.

use std::error::Error;
use std::io::Write;

use moli::{CancelToken, Engine, EngineOptions, GenerateParams, Message};

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let model = arguments.next().unwrap_or_else(|| "smollm2-135m-instruct".to_owned());
    let question = arguments.next().unwrap_or_else(|| "What is a rainbow?".to_owned());

    let path = moli::hub::resolve(&model, &mut moli::hub::Quiet)?;
    let engine = Engine::load(&path, &EngineOptions::default())?;
    let prompt = engine.encode_chat(&[Message::new("user", &question)])?;

    let mut session = engine.session();
    let parameters = GenerateParams { max_tokens: Some(200), ..GenerateParams::default() };
    let mut generation = session.generate(&prompt, &parameters, &CancelToken::new())?;
    for chunk in &mut generation {
        print!("{}", chunk?.text);
        std::io::stdout().flush()?;
    }
    let summary = generation.summary();
    eprintln!(
        "\n{} tokens, {:.0} per second",
        summary.usage.completion_tokens, summary.timings.decode_per_second
    );
    Ok(())
}
