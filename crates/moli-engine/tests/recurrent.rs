//! Models whose layers carry a state, with tiny ones on the CPU: an answer is the same bits alone and in company, from the first
//! token on and from a state that was kept, in one process and in the next.

// Clippy takes helpers of tests for code outside tests.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::path::{Path, PathBuf};

use moli_engine::{
    CancelToken, Engine, EngineError, EngineOptions, GenerateParams, MemoryPlan, PlanOptions, SamplerParams,
    Scheduling, Session, SnapshotError,
};
use moli_format::{Gguf, ReadMode, TensorType};
use moli_testkit::TinyModel;
use tempfile::TempDir;

const PAGE: usize = 32;

fn model(architecture: &'static str) -> TinyModel {
    TinyModel {
        layers: 4,
        hidden: 64,
        heads: 2,
        kv_heads: 1,
        head_dim: 32,
        ffn: 64,
        taps: 4,
        state: [2, 4, 16, 32],
        context: 512,
        ..TinyModel::new(architecture)
    }
}

/// A folder with a model of each architecture.
fn places() -> impl Iterator<Item = (&'static str, TempDir, PathBuf)> {
    TinyModel::RECURRENT.into_iter().map(|architecture| {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.gguf");
        model(architecture).write(&path).unwrap();
        (architecture, folder, path)
    })
}

fn engine(path: &Path, change: impl FnOnce(&mut EngineOptions)) -> Engine {
    let mut options =
        EngineOptions { threads: Some(1), context: Some(512), sessions: 2, ..EngineOptions::default() };
    change(&mut options);
    Engine::load(path, &options).unwrap()
}

fn greedy(max_tokens: usize) -> GenerateParams {
    GenerateParams {
        max_tokens: Some(max_tokens),
        sampling: SamplerParams::greedy(),
        ignore_eos: true,
        logprobs: Some(1),
        ..GenerateParams::default()
    }
}

fn text(seed: u32, tokens: usize) -> Vec<u32> {
    (0..tokens as u32).map(|i| (i * 89 + seed * 31 + i * i * 7) % 256).collect()
}

/// Tokens and the bits of their log-probabilities.
type Tokens = Vec<(u32, u32)>;

/// An answer, and how many tokens of its prompt were cached.
fn answer(session: &mut Session, prompt: &[u32], params: &GenerateParams) -> (Tokens, usize) {
    let mut generation = session.generate(prompt, params, &CancelToken::new()).unwrap();
    let tokens = generation.by_ref().filter_map(|chunk| chunk.unwrap().token);
    let tokens = tokens.map(|token| (token.id, token.logprob.unwrap().to_bits())).collect();
    (tokens, generation.summary().usage.cached_tokens)
}

#[test]
fn company_chunks_threads_and_preemption_change_nothing() {
    for (architecture, _folder, path) in places() {
        let prompts: Vec<Vec<u32>> =
            [3, 150, 64, 33, 97, 1, 200].iter().zip(0..).map(|(&length, seed)| text(seed, length)).collect();
        let expected: Vec<Tokens> = {
            let alone = engine(&path, |options| options.prefix_cache_bytes = Some(0));
            prompts.iter().map(|prompt| answer(&mut alone.session(), prompt, &greedy(40)).0).collect()
        };
        for (threads, chunk, sessions) in [(1, 512, 7), (2, 7, 7), (1, 50, 3), (2, 100, 1)] {
            let engine = engine(&path, |options| {
                options.threads = Some(threads);
                options.prefill_chunk = chunk;
                // Few pages, so that some have to make way.
                options.context = Some(if sessions == 1 { 256 } else { 320 });
                options.sessions = sessions;
                options.prefix_cache_bytes = Some(0);
            });
            let answers: Vec<_> = prompts
                .iter()
                .map(|prompt| engine.submit(prompt, &greedy(40), &CancelToken::new()).unwrap())
                .collect();
            for (answer, expected) in answers.into_iter().zip(&expected) {
                let tokens = answer.filter_map(|chunk| chunk.unwrap().token);
                let found: Tokens =
                    tokens.map(|token| (token.id, token.logprob.unwrap().to_bits())).collect();
                assert_eq!(
                    &found, expected,
                    "{architecture}, {threads} threads, chunks of {chunk}, {sessions}"
                );
            }
        }
    }
}

#[test]
fn several_choices_go_on_from_one_prompt() {
    for (architecture, _folder, path) in places() {
        let engine = engine(&path, |_| {});
        let prompt = text(1, 100);
        let (expected, _) = answer(&mut engine.session(), &prompt, &greedy(20));
        let params = GenerateParams { choices: 3, ..greedy(20) };
        let answers = self::engine(&path, |_| {}).submit(&prompt, &params, &CancelToken::new()).unwrap();
        let mut choices = vec![Tokens::new(); 3];
        for chunk in answers {
            let chunk = chunk.unwrap();
            let token = chunk.token.map(|token| (token.id, token.logprob.unwrap().to_bits()));
            choices[chunk.choice].extend(token);
        }
        assert_eq!(choices, vec![expected; 3], "{architecture}");
    }
}

#[test]
fn a_prompt_goes_on_where_a_state_is_known() {
    for (architecture, _folder, path) in places() {
        let engine = engine(&path, |_| {});
        let fresh = |prompt: &[u32]| {
            let other = self::engine(&path, |options| options.prefix_cache_bytes = Some(0));
            answer(&mut other.session(), prompt, &greedy(12)).0
        };
        let mut session = engine.session();
        let prompt = text(1, 150);
        let (first, cached) = answer(&mut session, &prompt, &greedy(50));
        assert_eq!(cached, 0);
        // The same prompt: to the last end of a page before its end.
        assert_eq!(answer(&mut engine.session(), &prompt, &greedy(50)), (first, 4 * PAGE), "{architecture}");
        // One that goes on from the answer: to its end.
        let on = [session.tokens(), &text(2, 9)].concat();
        assert_eq!(answer(&mut engine.session(), &on, &greedy(12)), (fresh(&on), 199), "{architecture}");
        // One that leaves the answer in the page after the latest end of one that it had passed.
        let mut off = session.tokens()[..195].to_vec();
        off[194] ^= 1;
        assert_eq!(answer(&mut engine.session(), &off, &greedy(12)), (fresh(&off), 192), "{architecture}");
        // One that leaves it before: to where the prompt's state was kept.
        off[180] ^= 1;
        assert_eq!(
            answer(&mut engine.session(), &off, &greedy(12)),
            (fresh(&off), 4 * PAGE),
            "{architecture}"
        );
        // And one that leaves the prompt.
        off[5] ^= 1;
        assert_eq!(answer(&mut engine.session(), &off, &greedy(12)), (fresh(&off), 0), "{architecture}");
    }
}

#[test]
fn a_restored_session_goes_on_from_its_state() {
    for (architecture, folder, path) in places() {
        let load = || engine(&path, |_| {});
        let file = folder.path().join("saved");
        let first = load();
        let mut session = first.session();
        answer(&mut session, &text(1, 130), &greedy(45));
        let saved = session.save(&file).unwrap();
        assert_eq!((saved.tokens, saved.cached_tokens), (174, 5 * PAGE));
        let prompt = [session.tokens(), &text(2, 9)].concat();
        let (expected, _) = answer(&mut session, &prompt, &greedy(40));

        let second = load();
        let mut restored = second.restore(&file).unwrap();
        assert_eq!(restored.tokens(), &prompt[..174]);
        assert_eq!(answer(&mut restored, &prompt, &greedy(40)), (expected.clone(), 160), "{architecture}");
        // It can be saved again where nothing was computed: the same file.
        let again = folder.path().join("again");
        let third = load();
        third.restore(&file).unwrap().save(&again).unwrap();
        assert_eq!(std::fs::read(&again).unwrap(), std::fs::read(&file).unwrap());
        // And twice into one engine.
        third.restore(&file).unwrap();
        assert_eq!(answer(&mut third.session(), &prompt, &greedy(40)), (expected.clone(), 160));
        // Where the beginning was computed anew and other states are kept, the saved one is of use too.
        let fourth = load();
        answer(&mut fourth.session(), &prompt[..170], &greedy(1));
        let mut restored = fourth.restore(&file).unwrap();
        assert_eq!(answer(&mut restored, &prompt, &greedy(40)).0, expected);
        // Without a state at the end of a page there is nothing to save but tokens.
        let mut short = first.session();
        answer(&mut short, &text(7, 20), &greedy(3));
        assert_eq!(short.save(&file).unwrap().cached_tokens, 0);
        assert_eq!(load().restore(&file).unwrap().tokens(), short.tokens());
    }
}

#[test]
fn a_damaged_state_is_refused() {
    for (architecture, folder, path) in places() {
        let file = folder.path().join("saved");
        let engine = engine(&path, |_| {});
        let mut session = engine.session();
        answer(&mut session, &text(1, 2 * PAGE + 3), &greedy(1));
        session.save(&file).unwrap();
        let good = std::fs::read(&file).unwrap();
        let refusal = |bytes: &[u8]| {
            std::fs::write(&file, bytes).unwrap();
            match engine.restore(&file).unwrap_err() {
                EngineError::Snapshot { error, .. } => error,
                other => panic!("{other}"),
            }
        };
        let checksum = good.len() - 32;
        let state = engine.config().state_bytes() as usize;
        for at in [checksum - 1, checksum - state, checksum - state / 2] {
            let mut bad = good.clone();
            bad[at] ^= 4;
            assert!(matches!(refusal(&bad), SnapshotError::Checksum { .. }), "{architecture}: byte {at}");
        }
        // The bytes of a state are 8 behind the other numbers.
        for value in [0, 1, u64::MAX, 1 << 40] {
            let mut bad = good.clone();
            bad[84..92].copy_from_slice(&u64::to_le_bytes(value));
            assert!(matches!(refusal(&bad), SnapshotError::Length { .. }), "{architecture}: {value}");
        }
        // A file that leaves it out consistently is of another layout.
        let mut bad = good.clone();
        bad[84..92].fill(0);
        bad.drain(checksum - state..checksum);
        assert!(matches!(refusal(&bad), SnapshotError::OtherLayout { .. }), "{architecture}");
    }
}

#[test]
fn one_that_fails_spoils_no_state_of_others() {
    for architecture in TinyModel::RECURRENT {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.gguf");
        let model = TinyModel { embedding: TensorType::F32, ..model(architecture) };
        let mut file = model.file().unwrap();
        let head = file.tensor_data("token_embd.weight").unwrap().to_vec();
        let mut table = head.clone();
        // The vector of one token is no number.
        let row = model.hidden * size_of::<f32>();
        table[250 * row..251 * row].fill(0xff);
        let dims = [model.hidden as u64, model.vocab() as u64];
        file.tensor("token_embd.weight", TensorType::F32, &dims, table);
        file.tensor("output.weight", TensorType::F32, &dims, head);
        file.write(&path).unwrap();
        let prompt: Vec<u32> = text(3, 90).into_iter().map(|token| token % 250).collect();
        // What it would answer, but for tokens that spoil it.
        let params = GenerateParams {
            sampling: SamplerParams { logit_bias: vec![(250, -100.0)], ..SamplerParams::greedy() },
            ..greedy(60)
        };
        let expected = answer(&mut engine(&path, |_| {}).session(), &prompt, &params).0;
        let together = engine(&path, |options| options.sessions = 4);
        let good = together.submit(&prompt, &params, &CancelToken::new()).unwrap();
        let mut found = Tokens::new();
        for (index, chunk) in good.enumerate() {
            let token = chunk.unwrap().token;
            found.extend(token.map(|token| (token.id, token.logprob.unwrap().to_bits())));
            if index % 9 == 0 {
                let bad = [&[1, 2, 250], &prompt[..index]].concat();
                let error =
                    together.submit(&bad, &params, &CancelToken::new()).unwrap().find_map(Result::err);
                let error = error.unwrap();
                assert!(matches!(error, EngineError::NotFinite { .. }), "{architecture}: {error}");
            }
        }
        assert_eq!(found, expected, "{architecture}");
    }
}

#[test]
fn a_full_context_is_shortened_and_read_again() {
    for (architecture, _folder, path) in places() {
        let engine = engine(&path, |options| options.context = Some(96));
        let params = GenerateParams { context_shift: Some(8), ..greedy(200) };
        let mut session = engine.session();
        let mut generation = session.generate(&text(1, 40), &params, &CancelToken::new()).unwrap();
        let ids: Vec<u32> =
            generation.by_ref().filter_map(|chunk| chunk.unwrap().token).map(|t| t.id).collect();
        let usage = generation.summary().usage;
        assert_eq!(ids.len(), 200);
        assert!(usage.dropped_tokens > 0);
        assert_eq!(usage.drafted_tokens, 0, "{architecture}: nothing is guessed");
    }
}

#[test]
fn no_draft_model_beside_a_state_and_no_state_in_one() {
    let folder = tempfile::tempdir().unwrap();
    let plain = folder.path().join("plain.gguf");
    model("llama").write(&plain).unwrap();
    for (architecture, _folder, path) in places() {
        for (model, draft) in [(&path, &plain), (&plain, &path), (&path, &path)] {
            let options = EngineOptions { draft: Some(draft.clone()), ..EngineOptions::default() };
            let error = Engine::load(model, &options).err().unwrap();
            assert!(
                matches!(&error, EngineError::NoSpeculation { architecture: named } if named == architecture),
                "{error}"
            );
        }
    }
}

#[test]
fn the_plan_counts_states() {
    for (architecture, _folder, path) in places() {
        let gguf = Gguf::open(&path, ReadMode::Map).unwrap();
        let plan = |sessions, max_batch, context| {
            let options =
                PlanOptions { sessions, max_batch, context: Some(context), ..PlanOptions::default() };
            MemoryPlan::unlimited(&gguf, &options).unwrap()
        };
        let engine = engine(&path, |_| {});
        let state = engine.config().state_bytes();
        for (sessions, max_batch, context) in [(1, 1, 512), (1, 32, 512), (4, 32, 32), (2, 8, 512)] {
            let plan = plan(sessions, max_batch, context);
            let row = plan.rows.iter().find(|row| row.name == "recurrent states").unwrap();
            assert_eq!(row.bytes, plan.states as u64 * state, "{architecture}");
            let keys = plan.rows.iter().find(|row| row.name == "keys and values").unwrap().bytes;
            let least = 3 * sessions + 1;
            assert!(plan.states >= least && plan.states <= least.max(3 * max_batch), "{plan}");
            assert!(plan.states == least || row.bytes <= keys, "{plan}");
        }
        // One that is at its answer at a time, where there is memory for no more.
        let small = Engine::load(
            &path,
            &EngineOptions { threads: Some(1), context: Some(32), ..EngineOptions::default() },
        );
        assert_eq!(small.unwrap().plan().unwrap().states, plan(1, 32, 32).states);
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("plain.gguf");
    model("llama").write(&path).unwrap();
    let gguf = Gguf::open(&path, ReadMode::Map).unwrap();
    let plan = MemoryPlan::unlimited(&gguf, &PlanOptions::default()).unwrap();
    assert_eq!(plan.states, 0);
    assert!(plan.rows.iter().all(|row| row.name != "recurrent states"));
}

/// What runs together is bounded by the states, not by the batch alone.
#[test]
fn more_answers_than_states_wait() {
    for (architecture, _folder, path) in places() {
        let engine = engine(&path, |options| {
            options.context = Some(64);
            options.sessions = 1;
            options.scheduling = Scheduling { max_batch: 32, ..Scheduling::default() };
        });
        let prompts: Vec<Vec<u32>> = (0..12).map(|seed| text(seed, 10 + seed as usize)).collect();
        let answers: Vec<_> = prompts
            .iter()
            .map(|prompt| engine.submit(prompt, &greedy(20), &CancelToken::new()).unwrap())
            .collect();
        for (answer, prompt) in answers.into_iter().zip(&prompts) {
            let ids: Vec<u32> =
                answer.filter_map(|chunk| chunk.unwrap().token).map(|token| token.id).collect();
            let alone = self::answer(&mut engine.session(), prompt, &greedy(20)).0;
            assert_eq!(ids, alone.iter().map(|token| token.0).collect::<Vec<_>>(), "{architecture}");
        }
    }
}
