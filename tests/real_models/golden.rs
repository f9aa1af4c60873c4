//! Token ids, rendered chats and greedy continuations against llama.cpp's.

use moli_engine::Engine;
use moli_text::{EncodeOptions, Message, RenderOptions};
use serde::Deserialize;

use crate::Outcome;

/// Recorded answers of one model.
#[derive(Deserialize)]
pub(crate) struct Golden {
    pub(crate) tokenize: Vec<Tokenized>,
    pub(crate) greedy: Vec<Continuation>,
    pub(crate) chat: Vec<Continuation>,
}

#[derive(Deserialize)]
pub(crate) struct Tokenized {
    pub(crate) text: String,
    pub(crate) ids: Vec<u32>,
    pub(crate) ids_special: Vec<u32>,
}

#[derive(Deserialize)]
pub(crate) struct Continuation {
    pub(crate) prompt: String,
    pub(crate) text: String,
    #[serde(default)]
    pub(crate) messages: Vec<Message>,
    pub(crate) steps: Vec<Step>,
}

#[derive(Deserialize)]
pub(crate) struct Step {
    pub(crate) id: u32,
    pub(crate) logprob: f32,
}

impl Golden {
    pub(crate) fn parse(json: &str) -> Result<Self, String> {
        serde_json::from_str(json).map_err(|error| format!("recorded answers: {error}"))
    }
}

/// Ids of all strings, without and with the tokens that the model adds by itself.
pub(crate) fn token_ids(engine: &Engine, golden: &str) -> Outcome {
    let golden = Golden::parse(golden)?;
    let mut wrong = Vec::new();
    for case in &golden.tokenize {
        for (add_special, expected) in [(false, &case.ids), (true, &case.ids_special)] {
            let options = EncodeOptions { add_special, parse_special: add_special };
            let ids = engine.tokenizer().encode(&case.text, options).map_err(|error| error.to_string())?;
            if ids != *expected {
                wrong.push(format!(
                    "{:?} (special: {add_special})\n  got      {ids:?}\n  expected {expected:?}",
                    case.text
                ));
            }
        }
    }
    if golden.tokenize.len() != 36 {
        return Err(format!("36 strings expected, {} recorded", golden.tokenize.len()));
    }
    if wrong.is_empty() { Ok(()) } else { Err(wrong.join("\n")) }
}

/// Rendered chats, character for character.
pub(crate) fn chat_prompts(engine: &Engine, golden: &str) -> Outcome {
    let template =
        engine.chat_template().map_err(|error| error.to_string())?.ok_or("the model has a chat template")?;
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

/// Teacher-forced along the recorded continuations of all models: the reference's token is the most probable one in at
/// least 97% of the steps, and in each model its log-probability differs by at most 0.05 on average.
pub(crate) fn greedy_steps(models: &[(Engine, &str)]) -> Outcome {
    let (mut steps, mut agreed) = (0, 0);
    for (engine, golden) in models {
        let compared = compare_steps(engine, golden)?;
        let mean = compared.difference / compared.steps as f64;
        println!("  {} of {} top tokens agree, mean |Δ log p| {mean:.4}", compared.agreed, compared.steps);
        if mean > 0.05 {
            return Err(format!("mean |Δ log p| is {mean:.4} over {} steps", compared.steps));
        }
        (steps, agreed) = (steps + compared.steps, agreed + compared.agreed);
    }
    if (agreed as f64) < 0.97 * steps as f64 {
        return Err(format!("the top token agrees in {agreed} of {steps} steps"));
    }
    Ok(())
}

/// What became of the recorded steps of one model.
struct Compared {
    steps: usize,
    /// Steps in which the reference's token is the most probable one.
    agreed: usize,
    /// Sum of the absolute differences of the log-probability of the reference's token.
    difference: f64,
}

fn compare_steps(engine: &Engine, golden: &str) -> Result<Compared, String> {
    let golden = Golden::parse(golden)?;
    let mut compared = Compared { steps: 0, agreed: 0, difference: 0.0 };
    for continuation in golden.greedy.iter().chain(&golden.chat) {
        let prompt = engine.encode(&continuation.prompt).map_err(|error| error.to_string())?;
        let forced = with_omitted_tokens(engine, &prompt, continuation)?;
        let ids: Vec<u32> = prompt.iter().copied().chain(forced.iter().map(|token| token.id)).collect();
        // The logits after each token but the last predict the recorded steps.
        let positions: Vec<usize> = (prompt.len() - 1..ids.len() - 1).collect();
        let rows = engine.session().score(&ids, &positions).map_err(|error| error.to_string())?;
        for (row, token) in rows.iter().zip(&forced) {
            let Some(reference) = token.logprob else { continue };
            compared.steps += 1;
            compared.agreed += usize::from(most_probable(row, |_| true) == Some(token.id));
            compared.difference += (log_probability(row, token.id) - f64::from(reference)).abs();
        }
    }
    let recorded: usize = golden.greedy.iter().chain(&golden.chat).map(|case| case.steps.len()).sum();
    if compared.steps != recorded || recorded < 8 * 16 {
        return Err(format!("{} steps compared, {recorded} recorded", compared.steps));
    }
    Ok(compared)
}

/// A token of a continuation; one that the recording omitted has no log-probability.
struct Forced {
    id: u32,
    logprob: Option<f32>,
}

/// The recorded steps with the omitted ones put back.
///
/// The recording has no step for a token that ends inside a character: the server that made it reports a character's
/// probabilities once it is whole. Without those tokens the next one follows from another context. The recorded text has
/// their bytes; which tokens they were is our most probable one among those that spell them.
fn with_omitted_tokens(engine: &Engine, prompt: &[u32], case: &Continuation) -> Result<Vec<Forced>, String> {
    let tokenizer = engine.tokenizer();
    let bytes = |id: u32| tokenizer.token_bytes(id).unwrap_or_default();
    let mut rest = case.text.as_bytes();
    let mut forced: Vec<Forced> = Vec::new();
    for step in &case.steps {
        if tokenizer.is_end_of_generation(step.id) {
            forced.push(Forced { id: step.id, logprob: Some(step.logprob) });
            continue;
        }
        let spelled = bytes(step.id);
        let gap = (0..=3).find(|&gap| rest.get(gap..).is_some_and(|rest| rest.starts_with(&spelled)));
        let gap = gap.ok_or_else(|| format!("step {} is not in the text {:?}", step.id, case.text))?;
        let (mut omitted, after) = rest.split_at(gap);
        while !omitted.is_empty() {
            let ids: Vec<u32> = prompt.iter().copied().chain(forced.iter().map(|token| token.id)).collect();
            let rows = engine.session().score(&ids, &[ids.len() - 1]).map_err(|error| error.to_string())?;
            let spells = |id: u32| !bytes(id).is_empty() && omitted.starts_with(&bytes(id));
            let id = rows.first().and_then(|row| most_probable(row, spells));
            let id = id.ok_or_else(|| format!("no token spells {omitted:?}"))?;
            omitted = &omitted[bytes(id).len()..];
            forced.push(Forced { id, logprob: None });
        }
        rest = &after[spelled.len()..];
        forced.push(Forced { id: step.id, logprob: Some(step.logprob) });
    }
    Ok(forced)
}

/// The token with the greatest logit among those that are allowed.
fn most_probable(logits: &[f32], allowed: impl Fn(u32) -> bool) -> Option<u32> {
    let candidates = (0..).zip(logits).filter(|&(id, _)| allowed(id));
    candidates.max_by(|a, b| a.1.total_cmp(b.1)).map(|(id, _)| id)
}

/// Natural logarithm of the softmax of a row of logits at one token.
pub(crate) fn log_probability(logits: &[f32], id: u32) -> f64 {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&logit| f64::from(logit - max).exp()).sum();
    logits.get(id as usize).map_or(f64::NAN, |&logit| f64::from(logit - max) - sum.ln())
}
