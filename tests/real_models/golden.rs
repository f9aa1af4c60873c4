//! Token ids, rendered chats and greedy continuations against llama.cpp's.

use moli_engine::Engine;
use moli_text::{EncodeOptions, Message, RenderOptions};
use serde::Deserialize;

use crate::Outcome;

/// Recorded answers of one model.
#[derive(Deserialize)]
pub struct Golden {
    pub tokenize: Vec<Tokenized>,
    pub greedy: Vec<Continuation>,
    pub chat: Vec<Continuation>,
}

#[derive(Deserialize)]
pub struct Tokenized {
    pub text: String,
    pub ids: Vec<u32>,
    pub ids_special: Vec<u32>,
}

#[derive(Deserialize)]
pub struct Continuation {
    pub prompt: String,
    #[serde(default)]
    pub messages: Vec<Message>,
    pub steps: Vec<Step>,
}

#[derive(Deserialize)]
pub struct Step {
    pub id: u32,
    pub logprob: f32,
}

impl Golden {
    pub fn parse(json: &str) -> Result<Self, String> {
        serde_json::from_str(json).map_err(|error| format!("recorded answers: {error}"))
    }
}

/// Ids of all strings, without and with the tokens that the model adds by itself.
pub fn token_ids(engine: &Engine, golden: &str) -> Outcome {
    let golden = Golden::parse(golden)?;
    let mut wrong = Vec::new();
    for case in &golden.tokenize {
        for (add_special, expected) in [(false, &case.ids), (true, &case.ids_special)] {
            let options = EncodeOptions { add_special, parse_special: add_special };
            let ids = engine.tokenizer().encode(&case.text, options).map_err(|error| error.to_string())?;
            if ids != *expected {
                wrong.push(format!("{:?} (special: {add_special})\n  got      {ids:?}\n  expected {expected:?}", case.text));
            }
        }
    }
    if golden.tokenize.len() != 36 {
        return Err(format!("36 strings expected, {} recorded", golden.tokenize.len()));
    }
    if wrong.is_empty() { Ok(()) } else { Err(wrong.join("\n")) }
}

/// Rendered chats, character for character.
pub fn chat_prompts(engine: &Engine, golden: &str) -> Outcome {
    let template = engine.chat_template().ok_or("the model has a chat template")?;
    let chats = Golden::parse(golden)?.chat;
    if chats.len() != 3 {
        return Err(format!("3 chats expected, {} recorded", chats.len()));
    }
    for chat in chats {
        let options = RenderOptions { add_generation_prompt: true, ..RenderOptions::default() };
        let prompt = template
            .render(engine.tokenizer(), &chat.messages, &options)
            .map_err(|error| error.to_string())?;
        if prompt.text() != chat.prompt {
            return Err(format!("got      {:?}\nexpected {:?}", prompt.text(), chat.prompt));
        }
    }
    Ok(())
}

/// Teacher-forced along the recorded continuations: the reference's token is the most probable one in at least 97% of the
/// steps, and its log-probability differs by at most 0.05 on average.
pub fn greedy_steps(engine: &Engine, golden: &str) -> Outcome {
    let golden = Golden::parse(golden)?;
    let (mut steps, mut agreed, mut difference) = (0usize, 0usize, 0f64);
    for continuation in golden.greedy.iter().chain(&golden.chat) {
        let prompt = engine.encode(&continuation.prompt).map_err(|error| error.to_string())?;
        let forced = continuation.steps.iter().map(|step| step.id);
        let ids: Vec<u32> = prompt.iter().copied().chain(forced).collect();
        // The logits after each token but the last predict the recorded steps.
        let positions: Vec<usize> = (prompt.len() - 1..ids.len() - 1).collect();
        let rows = engine.session().score(&ids, &positions).map_err(|error| error.to_string())?;
        for (row, step) in rows.iter().zip(&continuation.steps) {
            let top = row.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).map(|(id, _)| id as u32);
            steps += 1;
            agreed += usize::from(top == Some(step.id));
            difference += (log_probability(row, step.id) - f64::from(step.logprob)).abs();
        }
    }
    if steps < 8 * 16 {
        return Err(format!("only {steps} steps recorded"));
    }
    let (agreement, difference) = (agreed as f64 / steps as f64, difference / steps as f64);
    println!("  {steps} steps: top token agrees in {:.1}%, mean |Δ log p| {difference:.4}", 100.0 * agreement);
    if agreement < 0.97 || difference > 0.05 {
        return Err(format!("top token agrees in {agreed} of {steps} steps, mean |Δ log p| is {difference:.4}"));
    }
    Ok(())
}

/// Natural logarithm of the softmax of a row of logits at one token.
pub fn log_probability(logits: &[f32], id: u32) -> f64 {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&logit| f64::from(logit - max).exp()).sum();
    logits.get(id as usize).map_or(f64::NAN, |&logit| f64::from(logit - max) - sum.ln())
}
