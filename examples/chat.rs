//! A conversation on standard input and output: `cargo run --release --example chat -p moli -- MODEL`.
//!
//! Every turn renders the whole conversation; the session recognises what it has already computed.

use std::error::Error;
use std::io::Write;

use moli::{CancelToken, Engine, EngineOptions, GenerateParams, Message};

fn main() -> Result<(), Box<dyn Error>> {
    let model = std::env::args().nth(1).unwrap_or_else(|| "smollm2-135m-instruct".to_owned());
    let path = moli::hub::resolve(&model, &mut moli::hub::Quiet)?;
    let engine = Engine::load(&path, &EngineOptions::default())?;

    let mut session = engine.session();
    let mut messages = Vec::new();
    for line in std::io::stdin().lines() {
        messages.push(Message::new("user", line?));
        let prompt = engine.encode_chat(&messages)?;
        let mut answer = String::new();
        let mut generation = session.generate(&prompt, &GenerateParams::default(), &CancelToken::new())?;
        for chunk in &mut generation {
            let text = chunk?.text;
            print!("{text}");
            std::io::stdout().flush()?;
            answer.push_str(&text);
        }
        println!("\n[{} tokens of the prompt were there already]", generation.summary().usage.cached_tokens);
        messages.push(Message::new("assistant", answer));
    }
    Ok(())
}
