//! What an answer says does not depend on how it was computed.

use std::path::Path;
use std::process::Command;

use moli_engine::{
    Answer, CancelToken, Chunk, Engine, EngineOptions, GenerateParams, SamplerParams, Scheduling, Session,
};

use crate::{Outcome, load_path};

const TOKENS: usize = 24;

/// 50 prompts of several kinds and lengths.
fn prompts() -> Vec<String> {
    let topics = [
        "the sea",
        "a hospital",
        "taxes",
        "a robot arm",
        "学校",
        "прогноз",
        "bread",
        "rust",
        "长城",
        "the moon",
    ];
    topics
        .iter()
        .flat_map(|topic| {
            [
                format!("Once upon a time there was {topic} and"),
                format!("Q: What is the most important thing about {topic}?\nA:"),
                format!("def describe():\n    \"\"\"{topic}\"\"\"\n    return ["),
                format!("{topic}: 1, 2, 3, 1, 2, 3, 1, 2, 3, 1,"),
                format!("{} In short, {topic}", format!("This is a longer text about {topic}. ").repeat(12)),
            ]
        })
        .collect()
}

/// How the answers are asked for.
#[derive(Clone, Copy)]
struct How {
    together: usize,
    speculation: bool,
    /// Later prompts have a higher priority.
    preempting: bool,
}

impl How {
    fn together(together: usize) -> Self {
        Self { together, speculation: false, preempting: false }
    }

    fn guessing(self) -> Self {
        Self { speculation: true, ..self }
    }
}

/// Greedy for even prompts, seeded for odd ones.
fn params(index: usize, how: How) -> GenerateParams {
    let seeded = SamplerParams { seed: Some(index as u64), ..SamplerParams::default() };
    let sampling = if index.is_multiple_of(2) { SamplerParams::greedy() } else { seeded };
    GenerateParams {
        max_tokens: Some(TOKENS),
        sampling,
        ignore_eos: true,
        speculation: how.speculation,
        priority: if how.preempting { index as i32 } else { 0 },
        ..GenerateParams::default()
    }
}

fn submit(engine: &Engine, index: usize, prompt: &str, how: How) -> Result<Answer, String> {
    let ids = engine.encode(prompt).map_err(|error| error.to_string())?;
    engine.submit(&ids, &params(index, how), &CancelToken::new()).map_err(|error| error.to_string())
}

fn text(began: Option<Chunk>, answer: Answer) -> Result<(String, Vec<u32>), String> {
    let mut ids = Vec::new();
    let mut text = String::new();
    for chunk in began.map(Ok).into_iter().chain(answer) {
        let chunk = chunk.map_err(|error| error.to_string())?;
        ids.extend(chunk.token.map(|token| token.id));
        text.push_str(&chunk.text);
    }
    Ok((text, ids))
}

fn answers(engine: &Engine, how: How) -> Result<Vec<(String, Vec<u32>)>, String> {
    let prompts = prompts();
    let mut all = Vec::new();
    for group in prompts.iter().enumerate().collect::<Vec<_>>().chunks(how.together) {
        let mut submitted = Vec::new();
        for &(index, prompt) in group {
            let mut answer = submit(engine, index, prompt, how)?;
            // Who comes later finds it at work, and not waiting beside them.
            let began = if how.preempting { answer.next().transpose() } else { Ok(None) };
            submitted.push((began.map_err(|error| error.to_string())?, answer));
        }
        for (began, answer) in submitted {
            all.push(text(began, answer)?);
        }
    }
    Ok(all)
}

/// Byte for byte the same alone, in a batch of 8, on a cache hit, after preemption, with any chunk, with guesses.
pub(crate) fn answers_do_not_depend_on_the_company(path: &Path, base: &EngineOptions) -> Outcome {
    let no_cache = Scheduling { prefix_cache_limit: Some(0), ..Scheduling::default() };
    let load = |change: &dyn Fn(&mut EngineOptions)| {
        let mut options = EngineOptions { context: Some(256), sessions: 8, ..base.clone() };
        change(&mut options);
        load_path(path, &options)
    };
    let alone = answers(&load(&|options| options.scheduling = no_cache.clone())?, How::together(1))?;
    let check = |what: &str, found: Vec<(String, Vec<u32>)>| match alone
        .iter()
        .zip(&found)
        .position(|(alone, found)| alone != found)
    {
        None if found.len() == alone.len() => Ok(()),
        at => Err(format!("{what}: prompt {at:?} is answered otherwise")),
    };
    let engine = load(&|_| {})?;
    check("in a batch of 8", answers(&engine, How::together(8))?)?;
    let before = engine.counters().cached_tokens;
    check("on a cache hit", answers(&engine, How::together(1))?)?;
    if engine.counters().cached_tokens == before {
        return Err("nothing was cached".to_owned());
    }
    check("with guesses, on a cache hit", answers(&engine, How::together(1).guessing())?)?;
    let engine = load(&|_| {})?;
    check("with guesses, in a batch of 4", answers(&engine, How::together(4).guessing())?)?;
    if engine.counters().accepted == 0 {
        return Err("no guess was right".to_owned());
    }
    for chunk in [1, 7, 64] {
        let engine = load(&|options| {
            options.prefill_chunk = chunk;
            options.scheduling = no_cache.clone();
        })?;
        check(&format!("in chunks of {chunk}"), answers(&engine, How::together(8).guessing())?)?;
    }
    // Pages for one context, and eight answers that want them, the last first.
    let engine = load(&|options| {
        options.sessions = 1;
        options.prefix_cache_bytes = Some(0);
    })?;
    let preempting = How { preempting: true, ..How::together(8).guessing() };
    check("where pages run out", answers(&engine, preempting)?)?;
    if engine.counters().preempted == 0 {
        return Err("nobody was preempted".to_owned());
    }
    Ok(())
}

/// Which folder of sessions to go on with, for the process that does it; and in which type of keys and values.
pub(crate) const RESTORE: &str = "MOLI_TEST_RESTORE";

fn options(base: &EngineOptions) -> EngineOptions {
    EngineOptions { context: Some(256), sessions: 8, ..base.clone() }
}

/// Ids of the answer that goes on after `prompt` and the first `TOKENS / 2` of its answer.
fn go_on(session: &mut Session, index: usize, prompt: &[u32]) -> Result<(Vec<u32>, usize), String> {
    let generation =
        session.generate(prompt, &params(index, How::together(1).guessing()), &CancelToken::new());
    let mut generation = generation.map_err(|error| error.to_string())?;
    let mut ids = Vec::new();
    for chunk in &mut generation {
        ids.extend(chunk.map_err(|error| error.to_string())?.token.map(|token| token.id));
    }
    Ok((ids, generation.summary().usage.cached_tokens))
}

/// Restores every session of a folder, goes on with it, and prints the ids and how many tokens were there.
pub(crate) fn restore(path: &Path, base: &EngineOptions, folder: &Path) -> Outcome {
    let engine = load_path(path, &options(base))?;
    for index in 0..prompts().len() {
        let file = folder.join(index.to_string());
        let mut session = engine.restore(&file).map_err(|error| error.to_string())?;
        let prompt = session.tokens().to_vec();
        let (ids, cached) = go_on(&mut session, index, &prompt)?;
        println!("{cached} {ids:?}");
    }
    Ok(())
}

/// The same answers from sessions that another process restores.
pub(crate) fn another_process_goes_on(path: &Path, base: &EngineOptions) -> Outcome {
    let engine = load_path(path, &options(base))?;
    let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
    let mut expected = Vec::new();
    for (index, prompt) in prompts().iter().enumerate() {
        let mut session = engine.session();
        let ids = engine.encode(prompt).map_err(|error| error.to_string())?;
        let half = GenerateParams { max_tokens: Some(TOKENS / 2), ..params(index, How::together(1)) };
        let mut generation =
            session.generate(&ids, &half, &CancelToken::new()).map_err(|error| error.to_string())?;
        generation.try_for_each(|chunk| chunk.map(drop)).map_err(|error| error.to_string())?;
        session.save(&folder.path().join(index.to_string())).map_err(|error| error.to_string())?;
        let prompt = session.tokens().to_vec();
        expected.push(go_on(&mut session, index, &prompt)?.0);
    }
    let exe = std::env::current_exe().map_err(|error| error.to_string())?;
    let kv_type = base.kv_type.unwrap_or_default();
    let child = Command::new(exe).env(RESTORE, format!("{kv_type}:{}", folder.path().display())).output();
    let child = child.map_err(|error| error.to_string())?;
    let output = String::from_utf8_lossy(&child.stdout);
    if !child.status.success() {
        return Err(format!("{output}{}", String::from_utf8_lossy(&child.stderr)));
    }
    let found: Vec<(&str, &str)> = output.lines().filter_map(|line| line.split_once(' ')).collect();
    if found.len() != expected.len() {
        return Err(format!("{} answers instead of {}", found.len(), expected.len()));
    }
    for (index, ((_, ids), expected)) in found.iter().zip(&expected).enumerate() {
        if *ids != format!("{expected:?}") {
            return Err(format!("prompt {index} goes on otherwise: {ids} instead of {expected:?}"));
        }
    }
    if !found.iter().any(|(cached, _)| *cached != "0") {
        return Err("nothing was restored".to_owned());
    }
    Ok(())
}
