//! What guessing tokens gives and costs: each prompt answered with and without, in turns, and the time of a step by its rows.
//!
//! ```sh
//! cargo bench -p moli-engine --bench speculation                      # the default model
//! cargo bench -p moli-engine --bench speculation -- MODEL [DRAFT]     # another, with a draft model
//! cargo bench -p moli-engine --bench speculation -- --steps MODEL...  # steps of 1 to 16 rows
//! ```
//!
//! `MOLI_THREADS` sets the threads, `MOLI_ROUNDS` the rounds (7); `MOLI_ONLY=TEXT` measures only prompts with this in their
//! name. An answer that guessing changes is an error. With the default model the bench fails where a repetition is not at least 1.7
//! times as fast with guesses, or any other answer slower than 0.97 times.

#![allow(clippy::expect_used, reason = "a bench has nobody to return an error to")]

use std::path::{Path, PathBuf};
use std::time::Instant;

use moli_engine::{CancelToken, Engine, EngineOptions, GenerateParams, Message, SamplerParams, Summary};
use moli_format::{Gguf, ReadMode};
use moli_model::{BackendKind, Batch, KvType, LoadOptions, PAGE_TOKENS, pages_of};

/// Rows of a step, and the tokens before them.
const ROWS: [usize; 10] = [1, 2, 3, 4, 5, 6, 8, 10, 12, 16];
const BEFORE: usize = 256;
/// Most tokens of an answer.
const ANSWER: usize = 96;

/// Texts that a model copies once it has seen them twice; each is cut where the third copy has begun.
const REPEATED: [(&str, &str); 4] = [
    (
        "a paragraph",
        "The old lighthouse stood at the end of the pier, and every evening the keeper climbed its ninety-three steps to \
         light the lamp. Fishermen said that on clear nights its beam could be seen from the islands, thirty miles away. \
         When the storm of October broke the great lens, the village collected money for a new one, and the children \
         carried sand and stones up the hill to mend the wall.\n",
    ),
    (
        "code",
        "fn read_header(input: &[u8]) -> Result<Header, Error> {\n    let magic = input.get(..4).ok_or(Error::Short)?;\n    \
         if magic != b\"MOLI\" {\n        return Err(Error::Magic);\n    }\n    let version = input[4];\n    let length = \
         u32::from_le_bytes([input[5], input[6], input[7], input[8]]);\n    if length as usize > input.len() {\n        \
         return Err(Error::Length { length });\n    }\n    Ok(Header { version, length })\n}\n\n",
    ),
    (
        "a table",
        "name,city,age,team\nAlice,Berlin,34,red\nBruno,Lisbon,28,blue\nChen,Shanghai,41,green\nDara,Dublin,39,red\n\
         Emil,Prague,22,blue\nFatima,Rabat,31,green\nGoran,Zagreb,45,red\nHana,Osaka,27,blue\nIvan,Sofia,36,green\n",
    ),
    (
        "JSON",
        "{\"id\": 17, \"title\": \"Walnut table\", \"price\": {\"amount\": 429.5, \"currency\": \"EUR\"}, \"tags\": \
         [\"wood\", \"dining\", \"handmade\"], \"stock\": {\"Hamburg\": 3, \"Vienna\": 0, \"Lyon\": 11}, \"size\": \
         {\"width\": 180, \"depth\": 90, \"height\": 75}}\n",
    ),
];

const ORDINARY: [&str; 20] = [
    "Why is the sky blue?",
    "How does a bicycle stay upright?",
    "Explain what a compiler does to a beginner.",
    "What are the causes of the First World War?",
    "Write a short story about a dog who finds a map.",
    "Write a story about two sisters who open a bakery in a small town.",
    "Tell me about a rainy day in a big city.",
    "Write a poem about the sea.",
    "List ten European capitals with their countries.",
    "Give me a list of fifteen things to pack for a week of hiking.",
    "List the planets of the solar system and say one thing about each.",
    "Give me a recipe for tomato soup, step by step.",
    "请介绍一下北京的历史。",
    "给我讲一个关于月亮的故事。",
    "学习外语有什么好方法？",
    "Write a Python function that checks whether a number is prime.",
    "Write a SQL query that finds the three customers with the highest total of orders.",
    "Write an HTML page with a form for a name and an e-mail address.",
    "Translate into French: The train leaves at nine, and we must not be late.",
    "Summarise in two sentences: Bees live in colonies. They visit flowers for nectar and carry pollen from one to the \
     next. Without them many plants would bear no fruit. Pesticides, mites and the loss of meadows make their lives hard.",
];

/// So many times more rounds for what was too slow at first.
const MORE: usize = 5;

/// A prompt, how it is answered, and what was measured.
struct Case {
    name: String,
    ids: Vec<u32>,
    /// The least ratio.
    target: f64,
    params: GenerateParams,
    /// Tokens per second without and with guesses, and their ratio, for each round.
    plain: Vec<f64>,
    guessing: Vec<f64>,
    ratios: Vec<f64>,
    summary: Option<Summary>,
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let threads = setting("MOLI_THREADS").unwrap_or_else(moli_kernels::default_threads);
    let rounds = setting("MOLI_ROUNDS").unwrap_or(7);
    let default = || moli_testkit::real_model("smollm2-135m-instruct").expect("the default model");
    match arguments.split_first() {
        Some((first, models)) if first == "--steps" => {
            models.iter().for_each(|model| steps(model.as_ref(), threads, rounds));
        }
        // What guesses gain depends on the model: here it is only shown.
        Some((model, rest)) => {
            prompts(model.as_ref(), rest.first().map(PathBuf::from), threads, rounds);
        }
        None => {
            if !prompts(&default(), None, threads, rounds) {
                std::process::exit(1);
            }
        }
    }
}

fn setting(name: &str) -> Option<usize> {
    std::env::var(name).ok().and_then(|value| value.parse().ok())
}

fn median(samples: &[f64]) -> f64 {
    let mut samples = samples.to_vec();
    samples.sort_by(f64::total_cmp);
    samples.get(samples.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Steps of so many rows at the end of one sequence, all logits wanted.
fn steps(path: &Path, threads: usize, rounds: usize) {
    let gguf = Gguf::open(path, ReadMode::Map).expect("a GGUF file");
    let context = (BEFORE + ROWS[ROWS.len() - 1]).next_multiple_of(PAGE_TOKENS);
    let load = LoadOptions { threads, isa: None, context, max_rows: BEFORE, kv_type: KvType::F16 };
    let mut runtime = moli_model::load(&gguf, BackendKind::Cpu, &load).expect("a model");
    let table: Vec<u32> = (0..pages_of(context) as u32).collect();
    let mut forward = |start: usize, rows: usize| {
        let tokens: Vec<u32> = (start..start + rows).map(|place| (place * 7 % 1000) as u32).collect();
        let positions: Vec<u32> = (start as u32..(start + rows) as u32).collect();
        let outputs: Vec<u32> = (0..rows.min(ROWS[ROWS.len() - 1]) as u32).collect();
        let (sequences, tables) = (vec![0; rows], [table.as_slice()]);
        let batch = Batch {
            tokens: &tokens,
            positions: &positions,
            sequences: &sequences,
            types: &[],
            tables: &tables,
            adapters: &[],
            recurrent: &[],
            outputs: &outputs,
            states: &[],
        };
        let started = Instant::now();
        runtime.forward(&batch).expect("logits");
        started.elapsed().as_secs_f64()
    };
    forward(0, BEFORE);
    let mut times = ROWS.map(|_| Vec::new());
    for _ in 0..rounds * 10 {
        for (times, rows) in times.iter_mut().zip(ROWS) {
            times.push(forward(BEFORE, rows));
        }
    }
    println!("{}, {threads} threads", path.display());
    let single = median(&times[0]);
    for (times, rows) in times.iter().zip(ROWS) {
        let time = median(times);
        println!("{rows:3} rows: {:7.2} ms, {:.2} steps", time * 1e3, time / single);
    }
}

/// Answers all prompts with and without guesses, in turns; whether each is as fast as it should be.
fn prompts(path: &Path, draft: Option<PathBuf>, threads: usize, rounds: usize) -> bool {
    let options =
        EngineOptions { threads: Some(threads), context: Some(2048), draft, ..EngineOptions::default() };
    let engine = Engine::load(path, &options).expect("a model");
    let mut cases = cases(&engine);
    if let Ok(only) = std::env::var("MOLI_ONLY") {
        cases.retain(|case| case.name.contains(&only));
    }
    for round in 0..rounds {
        for case in &mut cases {
            case.measure(&engine, round % 2 == 1);
        }
    }
    // Of an answer of some twenty tokens a few rounds tell less than what is asked: who seems too slow is measured on.
    for case in cases.iter_mut().filter(|case| median(&case.ratios) < case.target) {
        for round in 0..MORE * rounds {
            case.measure(&engine, round % 2 == 1);
        }
    }
    println!("{}, {}, medians of {rounds} rounds\n", path.display(), engine.description());
    println!(
        "| prompt | tokens | without | with | ratio | | guesses | right |\n|---|---|---|---|---|---|---|---|"
    );
    for case in &cases {
        let usage = case.summary.as_ref().map(|summary| summary.usage).unwrap_or_default();
        let (low, high) = case.ratios.iter().fold((f64::MAX, 0.0_f64), |(l, h), &r| (l.min(r), h.max(r)));
        println!(
            "| {} | {} | {:.0} | {:.0} | {:.3} | {low:.2} to {high:.2} | {} | {} |",
            case.name,
            usage.completion_tokens,
            median(&case.plain),
            median(&case.guessing),
            median(&case.ratios),
            usage.drafted_tokens,
            usage.accepted_tokens
        );
    }
    let mut fast = true;
    for case in cases.iter().filter(|case| median(&case.ratios) < case.target) {
        println!("MISSED: {} at {} times, target {}", case.name, median(&case.ratios), case.target);
        fast = false;
    }
    fast
}

fn cases(engine: &Engine) -> Vec<Case> {
    let greedy = SamplerParams::greedy();
    let seeded = SamplerParams { seed: Some(7), temperature: 0.8, ..SamplerParams::default() };
    let case = |name: String, ids: Vec<u32>, sampling: &SamplerParams, target: f64| Case {
        name,
        ids,
        target,
        params: GenerateParams {
            max_tokens: Some(ANSWER),
            sampling: sampling.clone(),
            ..GenerateParams::default()
        },
        plain: Vec::new(),
        guessing: Vec::new(),
        ratios: Vec::new(),
        summary: None,
    };
    let mut cases = Vec::new();
    for (name, text) in REPEATED {
        let begun = text.get(..text.len() / 8).unwrap_or_default();
        let ids = engine.encode(&format!("{text}{text}{}", begun.trim_end())).expect("ids");
        cases.push(case(format!("again: {name}"), ids, &greedy, 1.7));
    }
    for (kind, sampling) in [("greedy", &greedy), ("seeded", &seeded)] {
        for prompt in ORDINARY {
            let ids = engine.encode_chat(&[Message::new("user", prompt)]).expect("a chat template");
            let name: String = prompt.chars().take(32).collect();
            cases.push(case(format!("{kind}: {name}"), ids, sampling, 0.97));
        }
    }
    cases
}

impl Case {
    fn measure(&mut self, engine: &Engine, reverse: bool) {
        let run = |speculation| {
            let params = GenerateParams { speculation, ..self.params.clone() };
            let mut answer = engine.submit(&self.ids, &params, &CancelToken::new()).expect("an answer");
            let ids: Vec<u32> = answer
                .by_ref()
                .filter_map(|chunk| chunk.expect("a token").token)
                .map(|token| token.id)
                .collect();
            (ids, answer.summary())
        };
        let first = run(reverse);
        let second = run(!reverse);
        let (plain, guessing) = if reverse { (second, first) } else { (first, second) };
        assert_eq!(plain.0, guessing.0, "{}: guessing changed the answer", self.name);
        let speeds = [&plain, &guessing].map(|(_, summary)| summary.timings.decode_per_second);
        self.plain.push(speeds[0]);
        self.guessing.push(speeds[1]);
        self.ratios.push(speeds[1] / speeds[0]);
        self.summary = Some(guessing.1);
    }
}
