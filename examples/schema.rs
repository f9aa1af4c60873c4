//! An answer that is JSON of a given schema: `cargo run --release --example schema -p moli -- MODEL`.
//!
//! The grammar is compiled before anything is computed; whatever the model would rather say, the answer parses.

use std::error::Error;

use moli::{CancelToken, Engine, EngineOptions, GenerateParams, Grammar, Message};

const SCHEMA: &str = r#"{
    "type": "object",
    "properties": {
        "department": {"enum": ["registry", "taxes", "police"]},
        "urgent": {"type": "boolean"},
        "summary": {"type": "string", "maxLength": 80}
    },
    "required": ["department", "urgent", "summary"],
    "additionalProperties": false
}"#;

fn main() -> Result<(), Box<dyn Error>> {
    let model = std::env::args().nth(1).unwrap_or_else(|| "smollm2-135m-instruct".to_owned());
    let path = moli::hub::resolve(&model, &mut moli::hub::Quiet)?;
    let engine = Engine::load(&path, &EngineOptions::default())?;

    let letter = "My passport was stolen at the station this morning, and I fly tomorrow.";
    let ask = format!("Which department is this letter for? Answer in JSON.\n\n{letter}");
    let prompt = engine.encode_chat(&[Message::new("user", ask)])?;
    let params = GenerateParams {
        grammar: Some(Grammar::JsonSchema(SCHEMA.to_owned())),
        max_tokens: Some(200),
        ..GenerateParams::default()
    };
    let answer = engine.submit(&prompt, &params, &CancelToken::new())?;
    let text: String = answer.map(|chunk| Ok(chunk?.text)).collect::<Result<_, moli::EngineError>>()?;
    println!("{text}");
    Ok(())
}
