//! What many answers at once cost each other: `cargo bench -p moli-engine --bench sessions [-- MODEL.gguf]`.
//!
//! Several tables, each of interleaved rounds with medians: eight answers together against one; the pauses of a running answer
//! while a long prompt arrives, against the step that the prompt's chunk takes; the time to the first token of a prompt whose
//! beginning another had; what a grammar's mask costs, and its compiling. `MOLI_THREADS` sets the threads, `MOLI_ROUNDS` the rounds (5).

#![allow(clippy::expect_used, reason = "a bench has nobody to return an error to")]

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use moli_engine::{Answer, CancelToken, Engine, EngineOptions, GenerateParams, Grammar, SamplerParams};

const ANSWERS: usize = 8;
const TOKENS: usize = 96;
const LONG: usize = 4000;
const SHARED: usize = 1000;

fn main() {
    let number = |name| std::env::var(name).ok().and_then(|value| value.parse().ok());
    let rounds: usize = number("MOLI_ROUNDS").unwrap_or(5);
    let model = std::env::args().skip(1).find(|argument| !argument.starts_with("--"));
    let model = match model {
        Some(path) => PathBuf::from(path),
        None => moli_testkit::real_model("smollm2-135m-instruct").expect("the catalogue's model"),
    };
    let load = |context, sessions| {
        let options = EngineOptions {
            threads: number("MOLI_THREADS"),
            context: Some(context),
            sessions,
            ..EngineOptions::default()
        };
        Engine::load(&model, &options).expect("a model")
    };
    println!("{}, {}\n", model.display(), load(64, 1).description());
    together(&load(1024, ANSWERS), rounds);
    long_prompt(&load(LONG + 512, 2), rounds);
    shared_beginning(&load(2048, 2), rounds);
    grammars(&load(1024, 2), rounds);
    if MISSED.load(Ordering::Relaxed) {
        std::process::exit(1);
    }
}

/// Whether a target was missed: the bench fails then.
static MISSED: AtomicBool = AtomicBool::new(false);

fn target(what: &str, met: bool) {
    if !met {
        println!("MISSED: {what}");
        MISSED.store(true, Ordering::Relaxed);
    }
}

/// Text that no other number has.
fn prompt(engine: &Engine, number: usize, tokens: usize) -> Vec<u32> {
    let text: String =
        (0..tokens).map(|word| format!("{} ", (word + 1) * (number + 3) * 7919 % 10007)).collect();
    let mut ids = engine.encode(&text).expect("ids");
    ids.truncate(tokens);
    ids
}

/// Nothing of one round is cached in the next.
fn fresh(round: usize) -> usize {
    1000 * (round + 1)
}

fn submit(engine: &Engine, prompt: &[u32], tokens: usize) -> Answer {
    let params = GenerateParams {
        max_tokens: Some(tokens),
        sampling: SamplerParams::greedy(),
        ignore_eos: true,
        speculation: false,
        ..GenerateParams::default()
    };
    engine.submit(prompt, &params, &CancelToken::new()).expect("an answer")
}

/// A schema that no other number has, with many properties.
fn schema(number: usize) -> Grammar {
    let property = |i| format!(r#""property {number} {i}": {{"type": "string", "maxLength": {}}}"#, 5 + i);
    let properties: Vec<String> = (0..40).map(property).collect();
    Grammar::JsonSchema(format!(r#"{{"type": "object", "properties": {{{}}}}}"#, properties.join(", ")))
}

fn grammars(engine: &Engine, rounds: usize) {
    let prompt = prompt(engine, 7, 16);
    let params = |tokens, grammar| GenerateParams {
        max_tokens: Some(tokens),
        sampling: SamplerParams { seed: Some(1), ..SamplerParams::default() },
        speculation: false,
        grammar,
        ..GenerateParams::default()
    };
    let submit =
        |params: &GenerateParams| engine.submit(&prompt, params, &CancelToken::new()).expect("an answer");
    // Free text that may be anything of a certain length.
    let any = Grammar::Regex("(?s:.){600,}".to_owned());
    let json =
        Grammar::JsonSchema(r#"{"type": "array", "items": {"type": "string"}, "minItems": 200}"#.to_owned());
    // A class and a count: the tokens of the class are no slice of their own, so that a mask has to walk through them.
    let counted = Grammar::Regex("[a-z ]{700,}".to_owned());
    let few = SamplerParams::default().top_k;
    let kinds = [
        ("any text", few, any),
        ("JSON strings", few, json),
        ("small letters, counted", few, counted.clone()),
        // Where any token may be chosen, all of the mask is computed.
        ("the same, both without top-k", 0, counted),
    ];
    let speed = |grammar: Option<&Grammar>, top_k: usize| {
        let mut params = GenerateParams { ignore_eos: grammar.is_none(), ..params(TOKENS, grammar.cloned()) };
        params.sampling.top_k = top_k;
        let mut answer = submit(&params);
        let _ = answer.by_ref().count();
        answer.summary().timings.decode_per_second
    };
    let mut masked = kinds.each_ref().map(|_| Vec::new());
    // A machine's speed changes by more than a twentieth within half a second, so each run is compared with one without a grammar next
    // to it, and there are more rounds.
    for round in 0..3 * rounds {
        for ((_, top_k, grammar), ratios) in kinds.iter().zip(&mut masked) {
            let (free, with) = if round % 2 == 0 {
                let free = speed(None, *top_k);
                (free, speed(Some(grammar), *top_k))
            } else {
                let with = speed(Some(grammar), *top_k);
                (speed(None, *top_k), with)
            };
            ratios.push(free / with);
        }
    }
    let (mut quiet, mut busy) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        let longest = |compiling: bool| {
            let mut answer = submit(&GenerateParams { ignore_eos: true, ..params(200, None) });
            let done = AtomicBool::new(!compiling);
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    let mut number = 1000 * round;
                    while !done.load(Ordering::Relaxed) {
                        number += 1;
                        let _ = submit(&params(0, Some(schema(number)))).count();
                    }
                });
                let (mut latest, mut pause) = (None, Duration::ZERO);
                while answer.next().is_some() {
                    let now = Instant::now();
                    pause = pause.max(now - latest.replace(now).unwrap_or(now));
                }
                done.store(true, Ordering::Relaxed);
                pause.as_secs_f64() * 1e3
            })
        };
        quiet.push(longest(false));
        busy.push(longest(true));
    }
    println!("\n| a token's time with a grammar, to its time without | |\n|---|---|");
    for ((name, ..), ratios) in kinds.iter().zip(&masked) {
        println!("| {name} | {} |", spread(ratios));
    }
    target("a mask costs a tenth at most", masked.iter().all(|ratios| median(ratios.clone()) <= 1.1));
    println!("\n| longest pause of an answer, ms | |\n|---|---|");
    println!(
        "| alone | {} |\n| while schemas are compiled without end | {} |",
        spread(&quiet),
        spread(&busy)
    );
}

fn median(mut samples: Vec<f64>) -> f64 {
    samples.sort_by(f64::total_cmp);
    samples.get(samples.len() / 2).copied().unwrap_or(f64::NAN)
}

fn spread(samples: &[f64]) -> String {
    let low = samples.iter().copied().fold(f64::INFINITY, f64::min);
    let high = samples.iter().copied().fold(0.0, f64::max);
    format!("{:.2} ({low:.2} to {high:.2})", median(samples.to_vec()))
}

/// Tokens per second of `count` answers together, their prompts not counted.
fn speed(engine: &Engine, count: usize, round: usize) -> f64 {
    let prompts: Vec<Vec<u32>> = (0..count).map(|i| prompt(engine, fresh(round) + i, 16)).collect();
    let mut answers: Vec<Answer> = prompts.iter().map(|prompt| submit(engine, prompt, TOKENS + 1)).collect();
    for answer in &mut answers {
        answer.next().expect("a token").expect("no error");
    }
    let started = Instant::now();
    let tokens: usize = answers.into_iter().map(Iterator::count).sum();
    tokens as f64 / started.elapsed().as_secs_f64()
}

fn together(engine: &Engine, rounds: usize) {
    speed(engine, ANSWERS, rounds);
    let samples: Vec<(f64, f64)> =
        (0..rounds).map(|round| (speed(engine, 1, round), speed(engine, ANSWERS, round + 100))).collect();
    let ratios: Vec<f64> = samples.iter().map(|(one, all)| all / one).collect();
    target("eight answers get 3.5 times the tokens of one", median(ratios.clone()) >= 3.5);
    println!("| answers | tokens/s | ratio |\n|---|---|---|");
    println!("| 1 | {:.1} | |", median(samples.iter().map(|sample| sample.0).collect()));
    println!(
        "| {ANSWERS} | {:.1} | {} |\n",
        median(samples.iter().map(|sample| sample.1).collect()),
        spread(&ratios)
    );
}

fn long_prompt(engine: &Engine, rounds: usize) {
    println!("| | pause between two tokens, ms |\n|---|---|");
    let (mut quiet, mut busy, mut tokens) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..rounds {
        let mut running = submit(engine, &prompt(engine, fresh(round), 16), 400);
        let mut latest = None;
        let mut pause = |running: &mut Answer| -> Option<Duration> {
            running.next()?.expect("no error");
            let now = Instant::now();
            Some(now - latest.replace(now).unwrap_or(now))
        };
        let longest =
            |pauses: Vec<Duration>| pauses.into_iter().max().unwrap_or_default().as_secs_f64() * 1e3;
        pause(&mut running);
        quiet.push(longest((0..40).map_while(|_| pause(&mut running)).collect()));
        let long = submit(engine, &prompt(engine, fresh(round) + 1, LONG), 1);
        let (mut pauses, mut begun) = (Vec::new(), false);
        loop {
            pauses.push(pause(&mut running).expect("it outlasts the prompt"));
            match engine.counters().running > 1 {
                true => begun = true,
                false if begun => break,
                false => {}
            }
        }
        busy.push(longest(pauses.clone()));
        tokens.push(pauses.len() as f64 / LONG.div_ceil(128) as f64);
        drop(long);
    }
    println!("| longest while alone | {} |", spread(&quiet));
    println!("| longest while a prompt of {LONG} tokens is read | {} |", spread(&busy));
    target("a token with every chunk", median(tokens.clone()) >= 1.0);
    println!("\nIts tokens for each chunk of 128 of the prompt's: {}\n", spread(&tokens));
}

fn shared_beginning(engine: &Engine, rounds: usize) {
    let mut ratios = Vec::new();
    let (mut first, mut second) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        let beginning = prompt(engine, fresh(round), SHARED);
        let ttft = |end: u32| {
            let ids: Vec<u32> =
                beginning.iter().copied().chain((0..20).map(|i| 100 + end * 50 + i)).collect();
            let mut answer = submit(engine, &ids, 2);
            let _ = answer.by_ref().count();
            answer.summary().timings.ttft.as_secs_f64() * 1e3
        };
        let (cold, warm) = (ttft(1), ttft(2));
        ratios.push(cold / warm);
        first.push(cold);
        second.push(warm);
    }
    println!("| prompt of {SHARED} shared tokens and 20 of its own | first token after, ms |\n|---|---|");
    target("a shared beginning makes the first token come 10 times sooner", median(ratios.clone()) >= 10.0);
    println!("| the first | {:.1} |\n| the second | {:.1} |", median(first), median(second));
    println!("| ratio | {} |", spread(&ratios));
}
