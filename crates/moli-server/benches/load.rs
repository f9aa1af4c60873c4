//! What the server costs, and how it stands overload: `cargo bench -p moli-server --bench load [-- MODEL.gguf]`.
//!
//! 1. Eight clients against one, in turns: tokens per second in all, the time between tokens, and the processor time of the
//!    server's own threads for a token.
//! 2. Requests that come when they come (a Poisson process), at the rate that the server can just take and at four times
//!    that, `MOLI_SECONDS` (60; 0: left out) each: the time to the first token of those that were taken, the time to the refusal of
//!    the others, and the memory.
//!
//! `MOLI_ROUNDS` (5) sets the rounds of the first. It fails where a target is missed.

#![allow(clippy::expect_used, reason = "a bench has nobody to return an error to")]

mod client;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use client::{Outcome, ask, quantile};
use moli_engine::{Engine, EngineOptions, Scheduling, resident_bytes};
use moli_server::{ModelSpec, Server, ServerOptions};

const CLIENTS: usize = 8;
const QUEUE: usize = CLIENTS;
const TOKENS: usize = 128;

fn main() {
    let number = |name| std::env::var(name).ok().and_then(|value| value.parse().ok());
    let model = std::env::args().skip(1).find(|argument| !argument.starts_with("--"));
    let model = match model {
        Some(path) => PathBuf::from(path),
        None => moli_testkit::real_model("smollm2-135m-instruct").expect("the catalogue's model"),
    };
    let address = serve(&model);
    println!("{}\n", model.display());
    let met = together(address, number("MOLI_ROUNDS").unwrap_or(5));
    let seconds = number("MOLI_SECONDS").unwrap_or(60);
    let met = (seconds == 0 || overload(address, seconds)) && met;
    if !met {
        std::process::exit(1);
    }
}

/// A server as `moli serve` starts it.
fn serve(model: &Path) -> SocketAddr {
    let path = model.to_owned();
    let load = move |memory_budget| {
        let scheduling = Scheduling { max_batch: CLIENTS, max_queue: QUEUE, ..Scheduling::default() };
        let options = EngineOptions { memory_budget, sessions: 2, scheduling, ..EngineOptions::default() };
        Engine::load(&path, &options)
    };
    let models = vec![ModelSpec { keep: true, ..ModelSpec::new("smollm2", Arc::new(load)) }];
    let address = ([127, 0, 0, 1], 0).into();
    let server =
        Server::bind(ServerOptions { address, models, ..ServerOptions::default() }).expect("a server");
    let address = server.address();
    thread::spawn(|| server.run().expect("a server"));
    // The first touches the weights.
    while ask(address, "Once upon a time", 16, 1).map_or(0, |outcome| outcome.status) != 200 {
        thread::sleep(Duration::from_millis(20));
    }
    address
}

/// A prompt of about so many words that no other number has.
fn prompt(number: usize, words: usize) -> String {
    (0..words).map(|word| format!("{} ", (word + 1) * (number + 3) * 7919 % 10007)).collect()
}

/// So many clients at the same time, one answer each; tokens per second in all, and the outcomes.
fn clients(address: SocketAddr, count: usize, number: usize) -> (f64, Vec<Outcome>) {
    let start = Instant::now();
    let threads: Vec<_> = (0..count)
        .map(|index| {
            let number = number * CLIENTS + index;
            thread::spawn(move || {
                ask(address, &format!("Tell me a story about the number {number}."), TOKENS, number as u64)
                    .expect("an answer")
            })
        })
        .collect();
    let outcomes: Vec<Outcome> =
        threads.into_iter().map(|thread| thread.join().expect("an answer")).collect();
    let tokens = outcomes.iter().map(|outcome| outcome.tokens.expect("a whole answer")).sum::<usize>();
    (tokens as f64 / start.elapsed().as_secs_f64(), outcomes)
}

fn together(address: SocketAddr, rounds: usize) -> bool {
    let (mut ratios, mut one_gaps, mut eight_gaps) = (Vec::new(), Vec::new(), Vec::new());
    let (mut seconds, mut tokens) = (0.0, 0);
    for round in 0..rounds {
        let before = server_seconds();
        let (alone, outcomes) = clients(address, 1, 2 * round + 1);
        one_gaps.extend(outcomes.iter().flat_map(Outcome::gaps));
        let (all, together) = clients(address, CLIENTS, 2 * round + 2);
        eight_gaps.extend(together.iter().flat_map(Outcome::gaps));
        seconds += server_seconds() - before;
        tokens += outcomes.iter().chain(&together).map(|outcome| outcome.tokens.unwrap_or(0)).sum::<usize>();
        println!("round {round}: one {alone:.0} tokens/s, eight {all:.0}: {:.2} x", all / alone);
        ratios.push(all / alone);
    }
    let ratio = quantile(&mut ratios, 0.5);
    let ms = |gaps: &mut [f64], part| quantile(gaps, part) * 1e3;
    let (one, eight) = (ms(&mut one_gaps, 0.99), ms(&mut eight_gaps, 0.99));
    println!(
        "between tokens, ms: one p50 {:.1}, p99 {one:.1}; eight p50 {:.1}, p99 {eight:.1}",
        ms(&mut one_gaps, 0.5),
        ms(&mut eight_gaps, 0.5)
    );
    let cost = seconds / tokens as f64 * 1e6;
    let met = target(&format!("eight clients {ratio:.2} x one (at least 3.3)"), ratio >= 3.3);
    let met =
        target(&format!("p99 between tokens {:.2} x one's (at most 3)", eight / one), eight <= 3.0 * one)
            && met;
    target(&format!("the server's own threads: {cost:.1} us a token (at most 50)"), cost <= 50.0) && met
}

/// Processor time of the server's own threads, in seconds.
fn server_seconds() -> f64 {
    let ticks = |task: std::io::Result<std::fs::DirEntry>| -> Option<u64> {
        let stat = std::fs::read_to_string(task.ok()?.path().join("stat")).ok()?;
        let (name, rest) = stat.split_once('(')?.1.rsplit_once(')')?;
        let fields: Vec<&str> = rest.split_whitespace().collect();
        let sum = fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?;
        name.starts_with("moli-server").then_some(sum)
    };
    // Linux counts in hundredths.
    std::fs::read_dir("/proc/self/task").into_iter().flatten().filter_map(ticks).sum::<u64>() as f64 / 100.0
}

/// What came of requests at a rate.
struct Load {
    ttft: Vec<f64>,
    refused: Vec<f64>,
    other: usize,
}

fn overload(address: SocketAddr, seconds: usize) -> bool {
    let capacity = capacity(address, Duration::from_secs((seconds as u64 / 4).clamp(4, 15)));
    println!("\ncapacity: {capacity:.1} requests/s");
    let mut p99 = [0.0; 2];
    let mut met = true;
    for (place, times) in [1.0, 4.0].into_iter().enumerate() {
        let before = resident_bytes().map_or(0, |resident| resident.bytes);
        let mut load = poisson(address, capacity * times, Duration::from_secs(seconds as u64));
        let grown = resident_bytes().map_or(0, |resident| resident.bytes).saturating_sub(before) as f64 / 1e6;
        p99[place] = quantile(&mut load.ttft, 0.99);
        let refused = quantile(&mut load.refused, 0.99) * 1e3;
        println!(
            "{times} x: {} taken, first token p50 {:.0} ms, p99 {:.0} ms; {} refused, p99 {refused:.1} ms; {} others; {grown:+.1} MB",
            load.ttft.len(),
            quantile(&mut load.ttft, 0.5) * 1e3,
            p99[place] * 1e3,
            load.refused.len(),
            load.other,
        );
        met &= target(&format!("{} requests neither answered nor refused", load.other), load.other == 0);
        if times > 1.0 {
            met &= target(&format!("refused within {refused:.1} ms (p99; at most 50)"), refused <= 50.0);
            met &= target(&format!("memory grew by {grown:.1} MB (at most 8)"), grown <= 8.0);
        }
    }
    let ratio = p99[1] / p99[0];
    target(&format!("first token at 4 x is {ratio:.2} of that at 1 x (p99; at most 1.5)"), ratio <= 1.5)
        && met
}

/// Requests per second where every place is taken and the next one waits for it: no more can be answered.
fn capacity(address: SocketAddr, time: Duration) -> f64 {
    let start = Instant::now();
    let client = |index: usize| {
        move || {
            let (mut asked, mut done) = (1_000_000 * (index + 1), 0);
            while start.elapsed() < time {
                asked += 1;
                match request(address, asked) {
                    Ok(outcome) if outcome.tokens.is_some() => done += 1,
                    // The place of an answer is free a moment after its end.
                    _ => thread::sleep(Duration::from_millis(5)),
                }
            }
            done
        }
    };
    let threads: Vec<_> = (0..CLIENTS + QUEUE).map(|index| thread::spawn(client(index))).collect();
    let done: usize = threads.into_iter().map(|thread| thread.join().expect("a client")).sum();
    done as f64 / start.elapsed().as_secs_f64()
}

/// A request as they come under load: 100 words in, 32 tokens out.
fn request(address: SocketAddr, number: usize) -> std::io::Result<Outcome> {
    ask(address, &prompt(number, 25), 32, number as u64)
}

/// Requests at a rate, whatever becomes of them.
fn poisson(address: SocketAddr, rate: f64, time: Duration) -> Load {
    let start = Instant::now();
    let (mut due, mut threads, mut state) = (0.0, Vec::new(), 0x9e37_79b9_u64);
    while due < time.as_secs_f64() {
        // Exponential gaps from a xorshift: the same arrivals each time.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let uniform = (state >> 11) as f64 / (1_u64 << 53) as f64;
        due += -(1.0 - uniform).ln() / rate;
        if let Some(early) = Duration::from_secs_f64(due).checked_sub(start.elapsed()) {
            thread::sleep(early);
        }
        let number = state as usize % 1_000_000_007;
        threads.push(thread::spawn(move || request(address, number)));
    }
    let mut load = Load { ttft: Vec::new(), refused: Vec::new(), other: 0 };
    for thread in threads {
        match thread.join().expect("a client") {
            Ok(outcome) if outcome.status == 200 && outcome.tokens.is_some() => {
                load.ttft.extend(outcome.events.first().map(Duration::as_secs_f64));
            }
            Ok(outcome) if outcome.status == 503 => load.refused.push(outcome.answered.as_secs_f64()),
            _ => load.other += 1,
        }
    }
    load
}

fn target(what: &str, met: bool) -> bool {
    println!("{} {what}", if met { "met:   " } else { "MISSED:" });
    met
}
