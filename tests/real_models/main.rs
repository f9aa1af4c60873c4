//! Tests on the real models of the catalogue, against llama.cpp's recorded answers in `tests/golden/`.
//!
//! Each model is pulled once into the cache. `MOLI_TEST_MODELS=off` leaves these tests out; the runner then lists them as
//! ignored, by name.

#[path = "../../benches/common/mod.rs"]
mod common;
mod convert;
mod engine;
mod golden;
mod invariance;
mod parity;
mod perplexity;
mod speed;

use std::path::Path;
use std::process::ExitCode;

use libtest_mimic::{Arguments, Trial};
use moli_engine::{Engine, EngineOptions, KvType};

/// What a test returns: the reason of its failure in one line.
type Outcome = Result<(), String>;

/// The models, with the files that hold their recorded answers.
const MODELS: [(&str, &str); 2] = [
    ("smollm2-135m-instruct", include_str!("../golden/smollm2.json")),
    ("gemma-3-270m", include_str!("../golden/gemma3-270m.json")),
];

fn main() -> ExitCode {
    if let Ok(task) = std::env::var(engine::RESTORE) {
        return match restore(&task) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("{error}");
                ExitCode::FAILURE
            }
        };
    }
    let arguments = Arguments::from_args();
    let left_out = moli_testkit::real_models_are_off();
    let mut trials = Vec::new();
    for (model, golden) in MODELS {
        let mut add = |name: &str, test: fn(&Engine, &str) -> Outcome| {
            let run = move || Ok(test(&load(model, &EngineOptions::default())?, golden)?);
            trials.push(Trial::test(format!("{model}::{name}"), run).with_ignored_flag(left_out));
        };
        add("token_ids_equal_the_reference", golden::token_ids);
        add("perplexity_is_within_1_percent", perplexity::within_1_percent);
        add("bits_do_not_depend_on_threads_or_chunks", |_, golden| {
            invariance::threads_and_chunks(model_of(golden), golden)
        });
        add("bits_do_not_depend_on_the_instruction_set", |_, golden| {
            invariance::instruction_sets(model_of(golden), golden)
        });
        add("candle_agrees", |engine, golden| parity::candle_agrees(engine, model_of(golden), golden));
    }
    let chats = || {
        let (model, golden) = MODELS[0];
        Ok(golden::chat_prompts(&load(model, &EngineOptions::default())?, golden)?)
    };
    let greedy = || {
        let load = |(model, golden)| Ok((load(model, &EngineOptions::default())?, golden));
        let models = MODELS.into_iter().map(load).collect::<Result<Vec<_>, String>>()?;
        Ok(golden::greedy_steps(&models)?)
    };
    let company = || {
        let path = moli_testkit::real_model(MODELS[0].0)?;
        for kv_type in [KvType::F16, KvType::Q8_0] {
            let base = EngineOptions { kv_type: Some(kv_type), ..EngineOptions::default() };
            engine::answers_do_not_depend_on_the_company(&path, &base)
                .and_then(|()| engine::another_process_goes_on(&path, &base))
                .map_err(|error| format!("{kv_type}: {error}"))?;
        }
        Ok(())
    };
    let convert = || {
        let (model, golden) = MODELS[0];
        Ok(convert::a_folder_and_back(&moli_testkit::real_model(model)?, golden)?)
    };
    let speed = || Ok(speed::faster_than_candle(&moli_testkit::real_model(MODELS[0].0)?)?);
    trials.extend([
        Trial::test("smollm2-135m-instruct::faster_than_candle", speed).with_ignored_flag(left_out),
        Trial::test("smollm2-135m-instruct::chat_prompts_equal_the_reference", chats)
            .with_ignored_flag(left_out),
        Trial::test("smollm2-135m-instruct::a_folder_and_back_keeps_its_bits", convert)
            .with_ignored_flag(left_out),
        Trial::test("smollm2-135m-instruct::answers_do_not_depend_on_the_company", company)
            .with_ignored_flag(left_out),
        Trial::test("greedy_steps_of_all_models_follow_the_reference", greedy).with_ignored_flag(left_out),
    ]);
    // One after the other: a test of speed must not share the processor with its neighbours.
    let arguments = Arguments { test_threads: Some(1), ..arguments };
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// What this program does for one of its tests in a process of its own.
fn restore(task: &str) -> Outcome {
    let (kv_type, folder) = task.split_once(':').ok_or("no folder")?;
    let kv_type = kv_type.parse::<KvType>().map_err(|error| error.to_string())?;
    let base = EngineOptions { kv_type: Some(kv_type), ..EngineOptions::default() };
    engine::restore(&moli_testkit::real_model(MODELS[0].0)?, &base, Path::new(folder))
}

/// The catalogue name that belongs to a file of recorded answers.
fn model_of(golden: &str) -> &'static str {
    MODELS.iter().find(|(_, text)| *text == golden).map_or("", |(name, _)| name)
}

/// Loads a catalogue model, pulling it when it isn't there.
fn load(model: &str, options: &EngineOptions) -> Result<Engine, String> {
    let path = moli_testkit::real_model(model)?;
    load_path(&path, options)
}

fn load_path(path: &Path, options: &EngineOptions) -> Result<Engine, String> {
    Engine::load(path, options).map_err(|error| format!("loading {}: {error}", path.display()))
}
