//! What guesses are worth, and answers with a draft model beside those without.

use std::sync::atomic::Ordering::Relaxed;

use moli_model::PAGE_TOKENS;
use moli_testkit::TinyModel;
use proptest::prelude::*;

use super::*;
use crate::testing::{Probe, Toy, VOCAB, tokenizer, tokenizer_with};
use crate::{
    Answer, CancelToken, Engine, EngineError, EngineOptions, GenerateParams, SamplerParams, Scheduling,
};

fn step(tokens: f64, time: f64, room: usize) -> Step {
    Step { tokens, time, room }
}

fn count(step: &Step, chance: f64, cost: f64) -> usize {
    step.paying(std::iter::repeat(chance), cost, MARGIN).0
}

#[test]
fn guesses_are_made_where_they_are_worth_their_cost() {
    let alone = step(1.0, 1.0, 15);
    assert_eq!(count(&alone, 0.1, 0.13), 0);
    let counts = [0.3, 0.6, 0.9, 1.0].map(|chance| count(&alone, chance, 0.13));
    assert!(counts.is_sorted() && counts[0] >= 1 && counts[3] == 15, "{counts:?}");
    // A row that costs a step of its own is never worth it, nor is a draft model as slow as the model.
    assert_eq!(count(&alone, 1.0, 1.0), 0);
    assert_eq!(count(&step(1.0, 1.0, 0), 1.0, 0.1), 0);
    // Between many, a row costs less beside what the step takes anyway, and gives less beside what it gives anyway.
    assert_eq!(count(&step(8.0, 1.9, 8), 0.5, 0.13), 0);
    assert!(count(&step(8.0, 1.9, 8), 0.95, 0.13) > 0);
}

#[test]
fn what_is_added_to_a_step_counts_for_the_next() {
    let mut step = step(2.0, 1.1, 14);
    step.add(3, 2.5, 0.1);
    assert_eq!((step.tokens, step.room), (4.5, 11));
    assert!((step.time - 1.4).abs() < 1e-9);
}

#[test]
fn a_draft_model_that_does_not_pay_is_tried_ever_more_rarely() {
    let mut draft = Guesser::new().draft;
    let waits = |draft: &mut DraftChance| {
        let waited = (0..).find(|_| draft.count(0, 9) == 1).unwrap();
        draft.learn(1, 0);
        waited
    };
    assert_eq!([waits(&mut draft), waits(&mut draft), waits(&mut draft)], [32, 64, 128]);
    // One that was right is tried at once, and one that pays is asked for all that pays.
    draft.learn(1, 1);
    assert_eq!(waits(&mut draft), 0);
    assert_eq!(draft.count(5, 9), 5);
    assert_eq!(waits(&mut draft), 32);
}

#[test]
fn after_a_failure_it_is_wary() {
    let mut guesser = Guesser::new();
    assert_eq!(guesser.margin(), MARGIN);
    guesser.learn(3, 0);
    assert_eq!(guesser.margin(), WARY_MARGIN);
    guesser.learn(3, 1);
    assert_eq!(guesser.margin(), MARGIN);
}

/// A draft model of a toy with this context.
fn draft(context: usize, max_rows: usize, probe: &Probe) -> DraftModel {
    let toy = Toy::new(VOCAB, context, max_rows, &[], probe);
    DraftModel::new(Box::new(toy), &tokenizer(), &tokenizer()).unwrap()
}

fn guesses(draft: &mut DraftModel, texts: &[(u64, &[u32], usize)]) -> Vec<Vec<u32>> {
    let want = |&(id, tokens, count)| Wanted { id: Id::new(0, id), tokens, count, guesses: Vec::new() };
    let mut wanted: Vec<Wanted<'_>> = texts.iter().map(want).collect();
    draft.guess(&mut wanted).unwrap();
    wanted.into_iter().map(|wanted| wanted.guesses).collect()
}

#[test]
fn a_draft_model_computes_only_what_is_new() {
    let probe = Probe::default();
    let mut model = draft(256, 64, &probe);
    let mut text: Vec<u32> = (0..40).collect();
    let first = guesses(&mut model, &[(1, &text, 3)]);
    // Three guesses: the text, and two tokens more.
    assert_eq!((first[0].len(), probe.rows.swap(0, Relaxed), probe.batches.swap(0, Relaxed)), (3, 42, 3));
    // The first two were right, another came instead of the third.
    text.extend([first[0][0], first[0][1], first[0][2] ^ 1]);
    let second = guesses(&mut model, &[(1, &text, 1)]);
    assert_eq!(probe.rows.swap(0, Relaxed), 1);
    // Another text, the same guesses as alone, in the same passes.
    let other: Vec<u32> = (50..60).collect();
    probe.batches.store(0, Relaxed);
    let both = guesses(&mut model, &[(1, &text, 1), (2, &other, 2)]);
    assert_eq!(probe.batches.load(Relaxed), 2);
    assert_eq!(both[0], second[0]);
    assert_eq!(both[1], guesses(&mut draft(256, 64, &probe), &[(2, &other, 2)])[0]);
}

#[test]
fn a_long_text_is_read_over_several_steps() {
    let probe = Probe::default();
    let mut model = draft(1024, DraftModel::ROWS, &probe);
    let text = vec![7; 300];
    let counts: Vec<usize> = (0..4).map(|_| guesses(&mut model, &[(1, &text, 2)])[0].len()).collect();
    assert_eq!(counts, [0, 0, 2, 2]);
    assert_eq!(probe.largest.load(Relaxed), DraftModel::ROWS);
}

#[test]
fn pages_of_who_was_not_asked_for_longest_go_first() {
    let mut model = draft(4 * PAGE_TOKENS, 128, &Probe::default());
    let text = vec![3; 2 * PAGE_TOKENS];
    for id in [1, 2] {
        assert_eq!(guesses(&mut model, &[(id, &text, 1)])[0].len(), 1);
    }
    assert_eq!(model.pages(), (4, 0));
    // Both are there still; the first is asked for, so that a third takes the second's.
    assert_eq!(guesses(&mut model, &[(1, &text, 1)])[0].len(), 1);
    assert_eq!(guesses(&mut model, &[(3, &text[..PAGE_TOKENS], 1)])[0].len(), 1);
    assert_eq!(model.pages(), (4, 1));
    // Three together are too many: the last gets nothing.
    let lengths: Vec<usize> =
        guesses(&mut model, &[(4, &text, 1), (5, &text, 1), (6, &text, 1)]).iter().map(Vec::len).collect();
    assert_eq!(lengths, [1, 1, 0]);
    // A text at the end of the context has no room for guesses.
    let long = vec![3; 4 * PAGE_TOKENS - 2];
    assert_eq!(guesses(&mut model, &[(7, &long, 9)])[0].len(), 2);
    model.retain(|_| false);
    assert_eq!(model.pages(), (4, 4));
}

#[test]
fn another_vocabulary_is_refused_by_its_first_difference() {
    let refused = |others: &[&str]| {
        let toy = Toy::new(VOCAB + 1, 64, 64, &[], &Probe::default());
        match DraftModel::new(Box::new(toy), &tokenizer_with(others), &tokenizer()) {
            Err(EngineError::DraftVocabulary { id, model, draft }) => (id, model, draft),
            other => panic!("{:?}", other.map(|_| ())),
        }
    };
    let some = |text: &str| Some(text.to_owned());
    assert_eq!(refused(&["<s>", "<end>", "ab"]), (257, some("</s>"), some("<end>")));
    assert_eq!(refused(&["<s>", "</s>", "ab", "more"]), (259, None, some("more")));
    let toy = || Box::new(Toy::new(VOCAB, 64, 64, &[], &Probe::default()));
    let fewer = DraftModel::new(toy(), &tokenizer(), &tokenizer_with(&["<s>", "</s>", "ab", "more"]));
    let message = fewer.map(|_| ()).unwrap_err().to_string();
    assert!(message.contains("token 259 is missing there and \"more\" in the model"), "{message}");
    // Rows of padding are no difference; tokens without rows are.
    let padded = Toy::new(VOCAB + 7, 64, 64, &[], &Probe::default());
    DraftModel::new(Box::new(padded), &tokenizer(), &tokenizer()).unwrap();
    let small = Toy::new(VOCAB - 1, 64, 64, &[], &Probe::default());
    let error = DraftModel::new(Box::new(small), &tokenizer(), &tokenizer()).map(|_| ()).unwrap_err();
    assert!(matches!(error, EngineError::VocabularyMismatch { tokenizer: 259, model: 258 }));
}

/// An engine on a toy whose steps take long, so that guesses pay, and a draft model of another toy, where there is one.
struct Pair {
    engine: Engine,
    draft: Probe,
}

/// Toys without a script agree about everything.
fn pair(context: usize, max_rows: usize, script: &[u32], draft: Option<(usize, &[u32])>) -> Pair {
    let (probe, draft_probe) = (Probe::default(), Probe::default());
    probe.slow.store(1, Relaxed);
    let toy = Toy::new(VOCAB, context, max_rows, script, &probe);
    let draft = draft.map(|(context, script)| {
        let toy = Toy::new(VOCAB, context, max_rows, script, &draft_probe);
        (Box::new(toy) as Box<dyn moli_model::Runtime>, tokenizer())
    });
    let scheduling = Scheduling::default();
    let engine = Engine::from_parts_and_draft(Box::new(toy), tokenizer(), None, draft, &scheduling).unwrap();
    Pair { engine, draft: draft_probe }
}

fn params(max_tokens: usize, seed: Option<u64>) -> GenerateParams {
    let sampling = match seed {
        Some(_) => SamplerParams { seed, ..SamplerParams::default() },
        None => SamplerParams::greedy(),
    };
    GenerateParams { max_tokens: Some(max_tokens), sampling, ignore_eos: true, ..GenerateParams::default() }
}

fn ids(answer: &mut Answer) -> Vec<u32> {
    answer.map(|chunk| chunk.unwrap().token.unwrap().id).collect()
}

/// The tokens of an answer, and how many were guessed and how many of these were right.
fn told(engine: &Engine, prompt: &[u32], params: &GenerateParams) -> (Vec<u32>, usize, usize) {
    let mut answer = engine.submit(prompt, params, &CancelToken::new()).unwrap();
    let ids = ids(&mut answer);
    let usage = answer.summary().usage;
    (ids, usage.drafted_tokens, usage.accepted_tokens)
}

/// Different at every place.
fn mixed(seed: u32, length: usize) -> Vec<u32> {
    (0..length as u32).map(|i| (i * i * 31 + i * 7 + seed * 101) % 256).collect()
}

#[test]
fn a_draft_model_that_agrees_is_always_right() {
    let prompt = mixed(1, 30);
    let plain = pair(512, 64, &[], None);
    let drafted = pair(512, 64, &[], Some((512, &[])));
    let expected = told(&plain.engine, &prompt, &params(200, None));
    let (ids, guessed, right) = told(&drafted.engine, &prompt, &params(200, None));
    assert_eq!(ids, expected.0);
    // But for the last guesses, which come after the end.
    assert!(guessed > 100 && right + 16 >= guessed, "{guessed} {right}");
    let counters = drafted.engine.counters();
    assert_eq!((counters.draft_pages, counters.draft_pages_free, counters.draft_errors), (16, 16, 0));
    // Without speculation it is not asked.
    let before = drafted.draft.batches.load(Relaxed);
    let off = GenerateParams { speculation: false, ..params(50, None) };
    assert_eq!(told(&drafted.engine, &prompt, &off), (expected.0[..50].to_vec(), 0, 0));
    assert_eq!(drafted.draft.batches.load(Relaxed), before);
}

#[test]
fn a_draft_model_that_never_agrees_is_soon_left_alone() {
    let (said, other) = (mixed(1, 400), mixed(2, 400));
    let plain = pair(512, 64, &said, None);
    let drafted = pair(512, 64, &said, Some((512, &other)));
    for seed in [None, Some(3)] {
        let expected = told(&plain.engine, &said[..20], &params(200, seed));
        let (ids, guessed, right) = told(&drafted.engine, &said[..20], &params(200, seed));
        assert_eq!(ids, expected.0);
        assert!(guessed < 60 && right * 4 < guessed.max(1), "{guessed} {right}");
    }
}

#[test]
fn an_answer_does_not_depend_on_the_draft_model_or_on_others() {
    let said = mixed(5, 500);
    // Wrong at every seventh place.
    let nearly: Vec<u32> =
        said.iter().enumerate().map(|(i, id)| if i % 7 == 0 { id ^ 1 } else { *id }).collect();
    for script in [&[][..], &said] {
        let plain = pair(2048, 64, script, None);
        let drafted = pair(2048, 64, script, Some((1024, &nearly)));
        let requests: Vec<(Vec<u32>, GenerateParams)> = (0..8)
            .map(|i| {
                (mixed(i, 5 + 23 * i as usize), params(60 + i as usize, (i % 2 == 1).then_some(u64::from(i))))
            })
            .collect();
        let alone: Vec<Vec<u32>> =
            requests.iter().map(|(prompt, params)| told(&plain.engine, prompt, params).0).collect();
        let mut answers: Vec<Answer> = requests
            .iter()
            .map(|(prompt, params)| drafted.engine.submit(prompt, params, &CancelToken::new()).unwrap())
            .collect();
        let together: Vec<Vec<u32>> = answers.iter_mut().map(ids).collect();
        assert_eq!(together, alone);
        let counters = drafted.engine.counters();
        assert!(counters.drafted > 0);
        assert_eq!(counters.draft_pages_free, counters.draft_pages);
    }
}

#[test]
fn preemption_and_a_shifted_context_change_nothing() {
    let requests: Vec<(Vec<u32>, GenerateParams)> =
        (0..6).map(|i| (mixed(i, 10), params(60, (i % 2 == 0).then_some(5)))).collect();
    let plain = pair(128, 64, &[], None);
    let alone: Vec<Vec<u32>> =
        requests.iter().map(|(prompt, params)| told(&plain.engine, prompt, params).0).collect();
    let drafted = pair(128, 64, &[], Some((96, &[])));
    let mut answers: Vec<Answer> = requests
        .iter()
        .map(|(prompt, params)| drafted.engine.submit(prompt, params, &CancelToken::new()).unwrap())
        .collect();
    let together: Vec<Vec<u32>> = answers.iter_mut().map(ids).collect();
    assert_eq!(together, alone);
    let counters = drafted.engine.counters();
    assert!(counters.preempted > 0 && counters.accepted > 0, "{counters:?}");
    assert_eq!(counters.draft_pages_free, counters.draft_pages);

    let prompt = mixed(3, 50);
    let (plain, drafted) = (pair(64, 64, &[], None), pair(64, 64, &[], Some((64, &[]))));
    for seed in [None, Some(8)] {
        let shifting = GenerateParams { context_shift: Some(4), ..params(300, seed) };
        let (ids, guessed, right) = told(&drafted.engine, &prompt, &shifting);
        assert_eq!(ids, told(&plain.engine, &prompt, &shifting).0);
        // The toy's probabilities are nearly even: a guess of the likeliest token is right where that is what is chosen.
        assert!(guessed > 0 && (right > 100 || seed.is_some()), "{guessed} {right}");
    }
    let counters = drafted.engine.counters();
    assert_eq!(counters.draft_pages_free, counters.draft_pages);
}

#[test]
fn a_draft_model_that_fails_is_not_asked_again() {
    let prompt = mixed(1, 30);
    let expected = told(&pair(512, 64, &[], None).engine, &prompt, &params(80, None)).0;
    let fail: [fn(&Probe); 2] =
        [|probe| probe.damage.store(true, Relaxed), |probe| probe.panic.store(true, Relaxed)];
    for fail in fail {
        let Pair { engine, draft } = pair(512, 64, &[], Some((512, &[])));
        let mut answer = engine.submit(&prompt, &params(80, None), &CancelToken::new()).unwrap();
        let mut said = vec![answer.next().unwrap().unwrap().token.unwrap().id];
        fail(&draft);
        said.extend(ids(&mut answer));
        assert_eq!(said, expected);
        let batches = draft.batches.load(Relaxed);
        assert_eq!(told(&engine, &prompt, &params(80, None)), (expected.clone(), 0, 0));
        assert_eq!(draft.batches.load(Relaxed), batches);
        let counters = engine.counters();
        assert_eq!((counters.draft_errors, counters.draft_pages, counters.failed), (1, 0, 0));
    }
}

#[test]
fn model_files_with_a_draft_model_answer_as_without() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, seed| {
        let path = folder.path().join(name);
        TinyModel { seed, ..TinyModel::new("qwen2") }.write(&path).unwrap();
        path
    };
    let (model, same, other) = (write("model.gguf", 1), write("same.gguf", 1), write("other.gguf", 2));
    let load = |draft| {
        let options =
            EngineOptions { threads: Some(1), context: Some(512), draft, ..EngineOptions::default() };
        Engine::load(&model, &options).unwrap()
    };
    let (plain, same, other) = (load(None), load(Some(same)), load(Some(other)));
    for (seed, prompt) in [(None, mixed(1, 40)), (Some(7), mixed(2, 200))] {
        let expected = told(&plain, &prompt, &params(100, seed)).0;
        for engine in [&same, &other] {
            assert_eq!(told(engine, &prompt, &params(100, seed)).0, expected);
            let counters = engine.counters();
            assert!(counters.drafted > 0);
            assert_eq!((counters.draft_pages, counters.draft_pages_free), (16, 16));
        }
    }
    let missing = EngineOptions { draft: Some("missing.gguf".into()), ..EngineOptions::default() };
    let error = Engine::load(&model, &missing).unwrap_err();
    assert!(matches!(&error, EngineError::Draft { path, .. } if path.ends_with("missing.gguf")), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    /// Whatever comes and goes, answers are those without a draft model, and all of its pages come back.
    #[test]
    fn no_page_of_a_draft_model_is_lost(
        requests in prop::collection::vec((1_usize..90, 0_usize..40, 0_usize..40), 1..12),
        max_rows in 1_usize..40,
        draft_context in 32_usize..160,
    ) {
        let drafted = pair(256, max_rows, &[], Some((draft_context, &[])));
        let plain = pair(256, 40, &[], None);
        let mut answers: Vec<Answer> = requests
            .iter()
            .map(|&(length, tokens, _)| {
                let prompt = mixed(length as u32, length);
                drafted.engine.submit(&prompt, &params(tokens, None), &CancelToken::new()).unwrap()
            })
            .collect();
        for (answer, &(length, tokens, taken)) in answers.iter_mut().zip(&requests) {
            let taken: Vec<u32> = answer.take(taken).map(|chunk| chunk.unwrap().token.unwrap().id).collect();
            let expected = told(&plain.engine, &mixed(length as u32, length), &params(tokens, None)).0;
            prop_assert_eq!(&taken[..], &expected[..taken.len()]);
        }
        drop(answers);
        let counters = drafted.engine.counters();
        prop_assert_eq!(counters.draft_errors, 0);
        prop_assert_eq!(counters.draft_pages_free, counters.draft_pages);
    }
}
