//! A session in a file: `cargo run --release --example saving -p moli -- MODEL`. Run it twice.
//!
//! The second run finds the document's keys and values in the file and reads only the question.

use std::error::Error;
use std::path::Path;

use moli::{CancelToken, Engine, EngineOptions, GenerateParams};

const DOCUMENT: &str =
    "The town hall is open from nine to four. On Wednesdays it closes at noon. Passports take two weeks. ";

fn main() -> Result<(), Box<dyn Error>> {
    let model = std::env::args().nth(1).unwrap_or_else(|| "smollm2-135m-instruct".to_owned());
    let path = moli::hub::resolve(&model, &mut moli::hub::Quiet)?;
    let engine = Engine::load(&path, &EngineOptions::default())?;

    let file = Path::new("town-hall.session");
    let mut session = if file.exists() { engine.restore(file)? } else { engine.session() };
    let prompt =
        engine.encode(&format!("{}\nQ: When does it close on Wednesdays?\nA:", DOCUMENT.repeat(20)))?;
    let params = GenerateParams { max_tokens: Some(30), ..GenerateParams::default() };
    let mut generation = session.generate(&prompt, &params, &CancelToken::new())?;
    for chunk in &mut generation {
        print!("{}", chunk?.text);
    }
    let summary = generation.summary();
    let (usage, ttft) = (summary.usage, summary.timings.ttft);
    println!(
        "\n[{} of {} tokens were there, first token after {ttft:.0?}]",
        usage.cached_tokens, usage.prompt_tokens
    );
    let saved = session.save(file)?;
    println!("[{saved:?} in {}]", file.display());
    Ok(())
}
