//! The catalogue's `all-minilm-l6-v2` makes the embeddings that sentence-transformers makes of it, of 100 texts.
//!
//! They are in `tests/fixtures/minilm.json`, made by `minilm.py` beside it. The model is pulled once into the cache;
//! `MOLI_TEST_MODELS=off` leaves these tests out.

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use half::f16;
use libtest_mimic::{Arguments, Failed, Trial};
use moli_convert::{Options, Output, to_folder, to_gguf};
use moli_engine::{CancelToken, EmbedOptions, Engine, EngineError, EngineOptions, Scheduling};
use moli_format::{Gguf, ReadMode};
use serde_json::Value;

const MODEL: &str = "all-minilm-l6-v2";
const EXPECTED: &str = include_str!("../../../tests/fixtures/minilm.json");
/// Tokens where the model's own settings cut.
const CONTEXT: usize = 256;

fn main() -> ExitCode {
    let trial = |name: &str, test: fn() -> Result<(), Failed>| {
        Trial::test(format!("{MODEL}::{name}"), test).with_ignored_flag(moli_testkit::real_models_are_off())
    };
    let trials = vec![
        trial("embeddings_are_those_of_sentence_transformers", same_vectors),
        trial("the_same_bits_together_and_on_any_threads", same_bits),
        trial("the_same_bits_as_a_gguf_and_as_a_folder_again", converted),
    ];
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

struct Case {
    text: String,
    tokens: usize,
    embedding: Vec<f32>,
}

fn cases() -> Result<Vec<Case>, Failed> {
    let all: Vec<Value> = serde_json::from_str(EXPECTED)?;
    let half = |hex: &[u8]| {
        let byte = |at: usize| u8::from_str_radix(std::str::from_utf8(&hex[at..at + 2]).unwrap_or(""), 16);
        Ok(f16::from_le_bytes([byte(0)?, byte(2)?]).to_f32())
    };
    let case = |case: &Value| {
        let text = |key: &str| case[key].as_str().ok_or("no text");
        Ok(Case {
            text: text("text")?.to_owned(),
            tokens: case["tokens"].as_u64().ok_or("no number of tokens")? as usize,
            embedding: text("embedding")?
                .as_bytes()
                .chunks_exact(4)
                .map(half)
                .collect::<Result<_, Failed>>()?,
        })
    };
    all.iter().map(case).collect()
}

fn engine(threads: usize) -> Result<Engine, Failed> {
    engine_of(&moli_testkit::real_model(MODEL)?, threads)
}

fn engine_of(path: &Path, threads: usize) -> Result<Engine, Failed> {
    let scheduling = Scheduling { max_batch: 16, ..Scheduling::default() };
    let options = EngineOptions { threads: Some(threads), scheduling, ..EngineOptions::default() };
    Ok(Engine::load(path, &options)?)
}

fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(&x, &y)| f64::from(x) * f64::from(y)).sum::<f64>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

fn same_vectors() -> Result<(), Failed> {
    let engine = engine(2)?;
    let cases = cases()?;
    let (mut worst, mut long) = (1.0_f64, 0);
    for case in &cases {
        let ids = engine.encode_for_embedding(&case.text)?;
        if ids.len() != case.tokens {
            return Err(format!("{:?}: {} tokens, not {}", case.text, ids.len(), case.tokens).into());
        }
        let options = EmbedOptions::default();
        if ids.len() > CONTEXT {
            long += 1;
            match engine.embed(&ids, &options, &CancelToken::new()) {
                Err(EngineError::PromptTooLong { context: CONTEXT, .. }) => {}
                other => return Err(format!("{} tokens without truncation: {other:?}", ids.len()).into()),
            }
        }
        let options = EmbedOptions { truncate: true, ..options };
        let found = engine.embed(&ids, &options, &CancelToken::new())?;
        let near = cosine(&found.values, &case.embedding);
        worst = worst.min(near);
        if found.values.len() != 384 || near < 1.0 - 1e-4 {
            return Err(format!("{:?}: cosine {near}", case.text).into());
        }
    }
    println!("least cosine of {} texts, {long} of them cut: 1 - {:.1e}", cases.len(), 1.0 - worst);
    if cases.len() != 100 || long < 10 {
        return Err(format!("{} texts, {long} long ones", cases.len()).into());
    }
    Ok(())
}

fn same_bits() -> Result<(), Failed> {
    let cases = cases()?;
    let mut all: Vec<Vec<Vec<u32>>> = Vec::new();
    for (threads, together) in [(1, 1), (2, 16), (3, 5)] {
        let engine = engine(threads)?;
        let options = EmbedOptions { truncate: true, ..EmbedOptions::default() };
        let mut made = Vec::new();
        for cases in cases.chunks(together) {
            let submit = |case: &Case| {
                let ids = engine.encode_for_embedding(&case.text)?;
                engine.submit_embedding(&ids, &options, &CancelToken::new())
            };
            let pending = cases.iter().map(submit).collect::<Result<Vec<_>, _>>()?;
            for pending in pending {
                made.push(pending.wait()?.values.iter().map(|x| x.to_bits()).collect());
            }
        }
        all.push(made);
    }
    if all.iter().any(|made| *made != all[0]) {
        return Err("the embeddings differ".into());
    }
    Ok(())
}

/// `moli convert` to GGUF and back: ids, context, pooling and vectors stay what they are.
fn converted() -> Result<(), Failed> {
    let place = tempfile::tempdir()?;
    let source = moli_testkit::real_model(MODEL)?;
    let [file, folder] = ["minilm.gguf", "minilm"].map(|name| place.path().join(name));
    for (from, to) in [(&source, &file), (&file, &folder)] {
        let output = Output::new(to, &[from], false)?;
        let convert = if to.extension().is_some() { to_gguf } else { to_folder };
        let gguf = Gguf::open(from, ReadMode::Map)?;
        let report = convert(&gguf, &output, &Options::default(), Arc::new(|_| true))?;
        if !report.notes.is_empty() {
            return Err(report.notes.join("; ").into());
        }
    }
    let engines = [&source, &file, &folder].map(|path| engine_of(path, 2));
    let [source, file, folder] = engines;
    let (source, others) = (source?, [("the GGUF", file?), ("the folder", folder?)]);
    let options = EmbedOptions { truncate: true, ..EmbedOptions::default() };
    for case in cases()? {
        let embed = |engine: &Engine| -> Result<(Vec<u32>, Vec<u32>), Failed> {
            let ids = engine.encode_for_embedding(&case.text)?;
            let values = engine.embed(&ids, &options, &CancelToken::new())?.values;
            Ok((ids, values.iter().map(|x| x.to_bits()).collect()))
        };
        let expected = embed(&source)?;
        for (name, engine) in &others {
            if embed(engine)? != expected
                || (engine.context(), engine.pooling()) != (CONTEXT, source.pooling())
            {
                return Err(format!("{name}: {:?}", case.text).into());
            }
        }
    }
    Ok(())
}
