//! Whole answers, from the request to the last token, of so many clients at once.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use moli_engine::{CancelToken, Engine, EngineError, GenerateParams, SamplerParams};
use moli_server::{Handle, ModelSpec, Server, ServerOptions};
use serde_json::{Value, json};

use super::direct::token;
use super::{Outcome, RunError};

/// The model's name at the server.
const NAME: &str = "model";
/// The widest choice among tokens, so that hardly anything repeats itself and is guessed.
const TEMPERATURE: f32 = 1.0;

/// A prompt of so many tokens for each client, none of which begins like another.
pub(super) fn prompts(clients: usize, tokens: usize, vocab: usize) -> Vec<Vec<u32>> {
    (0..clients).map(|client| (0..tokens).map(|position| token(client, position, vocab)).collect()).collect()
}

/// When the tokens of an answer came, since it was asked for.
#[derive(Debug)]
struct Answer {
    times: Vec<f64>,
}

/// Asks the engine for all answers at once; `None` when that was cancelled.
pub(super) fn through_engine(
    engine: &Engine,
    prompts: &[Vec<u32>],
    tokens: usize,
    cancel: &CancelToken,
) -> Result<Option<Outcome>, EngineError> {
    let ask = |seed: usize, prompt: &[u32]| {
        let params = GenerateParams {
            max_tokens: Some(tokens),
            sampling: SamplerParams {
                temperature: TEMPERATURE,
                seed: Some(seed as u64),
                ..SamplerParams::default()
            },
            ignore_eos: true,
            ..GenerateParams::default()
        };
        let start = Instant::now();
        let mut times = Vec::with_capacity(tokens);
        for chunk in engine.submit(prompt, &params, cancel)? {
            if chunk?.token.is_some() {
                times.push(start.elapsed().as_secs_f64());
            }
        }
        Ok(Answer { times })
    };
    together(prompts, ask).map(|outcome| (!cancel.is_cancelled()).then_some(outcome))
}

/// A thread for each prompt; the time until the last one is through.
fn together<E: Send>(
    prompts: &[Vec<u32>],
    ask: impl Fn(usize, &[u32]) -> Result<Answer, E> + Sync,
) -> Result<Outcome, E> {
    let start = Instant::now();
    let (sender, answers) = mpsc::channel();
    thread::scope(|scope| {
        for (index, prompt) in prompts.iter().enumerate() {
            let (ask, sender) = (&ask, sender.clone());
            scope.spawn(move || {
                let _ = sender.send(ask(index, prompt));
            });
        }
    });
    drop(sender);
    let mut outcome = Outcome::of(start.elapsed().as_secs_f64());
    for answer in answers {
        let times = answer?.times;
        outcome.ttft.extend(times.first());
        outcome.gaps.extend(times.windows(2).filter_map(|pair| Some(pair.last()? - pair.first()?)));
    }
    Ok(outcome)
}

/// A server for one engine, on a port of the loopback, until it is dropped.
pub(super) struct Served {
    address: SocketAddr,
    handle: Handle,
    thread: Option<JoinHandle<()>>,
    agent: ureq::Agent,
}

impl Served {
    pub(super) fn start(engine: &Engine) -> Result<Self, RunError> {
        let engine = engine.clone();
        let load = move |_| Ok(engine.clone());
        let models = vec![ModelSpec { keep: true, ..ModelSpec::new(NAME, std::sync::Arc::new(load)) }];
        let options = ServerOptions {
            address: ([127, 0, 0, 1], 0).into(),
            models,
            unload_after: None,
            grace: Duration::ZERO,
            ..ServerOptions::default()
        };
        let server = Server::bind(options)?;
        let (address, handle) = (server.address(), server.handle());
        // What goes wrong with it shows in the answers.
        let thread = thread::Builder::new()
            .name("moli-bench-server".to_owned())
            .spawn(move || drop(server.run()))
            .map_err(|error| RunError::Answer { reason: error.to_string() })?;
        // Whatever the environment says of proxies, this stays on the machine.
        let agent = ureq::Agent::new_with_config(ureq::Agent::config_builder().proxy(None).build());
        Ok(Self { address, handle, thread: Some(thread), agent })
    }

    /// Asks for all answers at once, streamed; `None` when that was cancelled.
    pub(super) fn answers(
        &self,
        prompts: &[Vec<u32>],
        tokens: usize,
        cancel: &CancelToken,
    ) -> Result<Option<Outcome>, RunError> {
        let outcome = together(prompts, |seed, prompt| self.ask(seed, prompt, tokens, cancel));
        // Ctrl-C has stopped the server too, and whatever it had not answered is no error.
        if cancel.is_cancelled() { Ok(None) } else { outcome.map(Some) }
    }

    fn ask(
        &self,
        seed: usize,
        prompt: &[u32],
        tokens: usize,
        cancel: &CancelToken,
    ) -> Result<Answer, RunError> {
        let failed = |reason: String| RunError::Answer { reason };
        let body = json!({
            "model": NAME, "prompt": prompt, "max_tokens": tokens, "seed": seed, "temperature": TEMPERATURE,
            "ignore_eos": true, "stream": true, "stream_options": { "include_usage": true },
        })
        .to_string();
        let start = Instant::now();
        let url = format!("http://{}/v1/completions", self.address);
        let request = self.agent.post(&url).content_type("application/json");
        let response = request.send(&body).map_err(|error| failed(error.to_string()))?;
        let mut times = Vec::with_capacity(tokens);
        let mut completed = None;
        for line in BufReader::new(response.into_body().into_reader()).lines() {
            let line = line.map_err(|error| failed(error.to_string()))?;
            let now = start.elapsed().as_secs_f64();
            if cancel.is_cancelled() {
                break;
            }
            let Some(data) = line.strip_prefix("data: ").filter(|data| *data != "[DONE]") else { continue };
            let event: Value = serde_json::from_str(data).map_err(|error| failed(error.to_string()))?;
            let text = event.pointer("/choices/0/text").and_then(Value::as_str);
            // A part of a character brings no text.
            if text.is_some_and(|text| !text.is_empty()) {
                times.push(now);
            }
            completed = event.pointer("/usage/completion_tokens").and_then(Value::as_u64).or(completed);
        }
        if !cancel.is_cancelled() && completed != Some(tokens as u64) {
            let reason = format!("{tokens} tokens were asked for, and {completed:?} came");
            return Err(failed(reason));
        }
        Ok(Answer { times })
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.handle.stop();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
