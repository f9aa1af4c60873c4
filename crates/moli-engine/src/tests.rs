//! Sessions and answers on a toy model.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use moli_model::PAGE_TOKENS;
use proptest::prelude::*;

mod chat;

use crate::testing::{AB, BOS, EOS, Probe, Toy, VOCAB, scripted, tokenizer, toy};
use crate::*;

/// All of an answer.
struct Answer {
    text: String,
    ids: Vec<u32>,
    chunks: Vec<Chunk>,
    summary: Summary,
}

fn answer(session: &mut Session, prompt: &[u32], params: &GenerateParams) -> Answer {
    let mut generation = session.generate(prompt, params, &CancelToken::new()).unwrap();
    let chunks: Vec<Chunk> = generation.by_ref().map(Result::unwrap).collect();
    assert!(generation.next().is_none());
    let summary = generation.summary();
    Answer {
        text: chunks.iter().map(|chunk| chunk.text.as_str()).collect(),
        ids: chunks.iter().filter_map(|chunk| chunk.token.as_ref().map(|token| token.id)).collect(),
        chunks,
        summary,
    }
}

fn greedy(max_tokens: usize) -> GenerateParams {
    GenerateParams {
        max_tokens: Some(max_tokens),
        sampling: SamplerParams::greedy(),
        ignore_eos: true,
        ..GenerateParams::default()
    }
}

fn seeded(max_tokens: usize, seed: u64) -> GenerateParams {
    let sampling = SamplerParams { seed: Some(seed), temperature: 2.0, ..SamplerParams::default() };
    GenerateParams { sampling, ..greedy(max_tokens) }
}

/// An engine that answers the prompt `<s>x` with these bytes and then EOS.
fn saying(text: &str) -> Engine {
    let script: Vec<u32> =
        [BOS, u32::from(b'x')].into_iter().chain(text.bytes().map(u32::from)).chain([EOS]).collect();
    scripted(256, 64, &script).0
}

fn told(text: &str, stop: &[&str]) -> Answer {
    let engine = saying(text);
    let params = GenerateParams {
        sampling: SamplerParams::greedy(),
        stop: stop.iter().map(|&text| text.to_owned()).collect(),
        ..GenerateParams::default()
    };
    answer(&mut engine.session(), &engine.encode("x").unwrap(), &params)
}

#[test]
fn handles_can_be_shared_between_threads() {
    fn shared<T: Send + Sync>() {}
    fn sent<T: Send>() {}
    shared::<Engine>();
    shared::<CancelToken>();
    sent::<Session>();
}

#[test]
fn the_end_token_stops_and_is_not_shown() {
    let answer = told("Hello", &[]);
    assert_eq!((answer.text.as_str(), answer.summary.finish_reason), ("Hello", FinishReason::Stop));
    assert_eq!(answer.ids.last(), Some(&EOS));
    assert_eq!(answer.chunks.last().unwrap().text, "");
    let usage = Usage { prompt_tokens: 2, completion_tokens: 6, ..Usage::default() };
    assert_eq!(answer.summary.usage, usage);
    assert_eq!(answer.summary.stop, None);
}

#[test]
fn stop_strings_over_token_boundaries_are_never_shown() {
    let stopped = told("one\nUser: two", &["\nUser:", "nowhere"]);
    assert_eq!((stopped.text.as_str(), stopped.summary.finish_reason), ("one", FinishReason::Stop));
    assert_eq!(stopped.summary.stop.as_deref(), Some("\nUser:"));
    assert_eq!(stopped.summary.usage.completion_tokens, "one\nUser:".len());
    // Held back, then released: at the end of the answer too.
    assert_eq!(told("a\nUs b\nUser", &["\nUser:"]).text, "a\nUs b\nUser");
    assert_eq!(told("说中文", &["文"]).text, "说中");
}

#[test]
fn characters_come_whole() {
    let said = told("né🙂中", &[]);
    assert_eq!(said.text, "né🙂中");
    let texts: Vec<&str> = said.chunks.iter().map(|chunk| chunk.text.as_str()).collect();
    assert_eq!(texts, ["n", "", "é", "", "", "", "🙂", "", "", "中", ""]);
    assert_eq!(said.chunks[1].token.as_ref().unwrap().text, "\u{FFFD}");
    // Half a character at the limit is not shown.
    let engine = saying("né");
    let cut = answer(&mut engine.session(), &engine.encode("x").unwrap(), &greedy(2));
    assert_eq!((cut.text.as_str(), cut.summary.finish_reason), ("n", FinishReason::Length));
}

#[test]
fn encode_puts_bos_first_and_reads_control_tokens() {
    let engine = saying("");
    assert_eq!(engine.encode("abc</s>").unwrap(), [BOS, AB, u32::from(b'c'), EOS]);
    assert_eq!(engine.encode_chat(&[Message::new("user", "ab</s>")]).unwrap()[..2], [BOS, AB]);
    assert!(!engine.encode_chat(&[Message::new("user", "ab</s>")]).unwrap().contains(&EOS));
}

#[test]
fn without_a_template_messages_are_an_error() {
    let runtime = Toy::new(VOCAB, 64, 64, &[], &Default::default());
    let engine = Engine::from_parts(Box::new(runtime), tokenizer(), None, &Scheduling::default()).unwrap();
    assert!(matches!(engine.encode_chat(&[]), Err(EngineError::NoChatTemplate)));
}

#[test]
fn a_tokenizer_larger_than_the_model_is_refused() {
    let runtime = Toy::new(VOCAB - 1, 64, 64, &[], &Default::default());
    let error = Engine::from_parts(Box::new(runtime), tokenizer(), None, &Scheduling::default()).unwrap_err();
    assert!(matches!(error, EngineError::VocabularyMismatch { tokenizer: 259, model: 258 }));
}

#[test]
fn rows_without_a_token_are_never_chosen() {
    let script = vec![VOCAB as u32 + 3; 64];
    let runtime = Toy::new(VOCAB + 10, 64, 64, &script, &Default::default());
    let engine = Engine::from_parts(Box::new(runtime), tokenizer(), None, &Scheduling::default()).unwrap();
    let answer = answer(&mut engine.session(), &[1, 2], &greedy(20));
    assert!(answer.ids.iter().all(|id| (*id as usize) < VOCAB));
}

#[test]
fn prompts_are_checked_before_anything_is_computed() {
    let (engine, probe) = toy(64, 16);
    let mut session = engine.session();
    let mut error = |prompt: &[u32], params: &GenerateParams| {
        session.generate(prompt, params, &CancelToken::new()).map(|_| ()).unwrap_err()
    };
    assert!(matches!(error(&[], &greedy(1)), EngineError::EmptyPrompt));
    let long = vec![1; 65];
    assert!(matches!(
        error(&long, &greedy(1)),
        EngineError::PromptTooLong { prompt_tokens: 65, context: 64 }
    ));
    assert!(matches!(
        error(&[1, 259], &greedy(1)),
        EngineError::TokenOutOfVocabulary { id: 259, vocab: 259 }
    ));
    assert!(matches!(error(&[u32::MAX], &greedy(1)), EngineError::TokenOutOfVocabulary { id: u32::MAX, .. }));
    let stop = GenerateParams { stop: vec![String::new()], ..greedy(1) };
    assert!(matches!(error(&[1], &stop), EngineError::InvalidParameter { name: "stop", .. }));
    let logprobs = GenerateParams { logprobs: Some(260), ..greedy(1) };
    assert!(matches!(error(&[1], &logprobs), EngineError::InvalidParameter { name: "logprobs", .. }));
    let mut bias = greedy(1);
    bias.sampling.logit_bias = vec![(259, 1.0)];
    assert!(matches!(error(&[1], &bias), EngineError::TokenOutOfVocabulary { id: 259, .. }));
    let mut nan = greedy(1);
    nan.sampling.temperature = f32::NAN;
    assert!(matches!(error(&[1], &nan), EngineError::InvalidParameter { name: "temperature", .. }));
    assert_eq!(probe.rows.load(Relaxed), 0);
}

#[test]
fn no_tokens_asked_for_computes_the_prompt_only() {
    let (engine, probe) = toy(64, 16);
    let mut session = engine.session();
    let answer = answer(&mut session, &[1; 40], &greedy(0));
    assert!(answer.chunks.is_empty());
    assert_eq!(answer.summary.finish_reason, FinishReason::Length);
    assert_eq!(answer.summary.usage, Usage { prompt_tokens: 40, ..Usage::default() });
    assert_eq!((probe.rows.load(Relaxed), probe.batches.load(Relaxed)), (40, 3));
    assert_eq!(session.tokens(), [1; 40]);
}

#[test]
fn an_answer_ends_where_the_context_does() {
    let (engine, _) = toy(64, 64);
    let full = answer(&mut engine.session(), &[1; 50], &GenerateParams { max_tokens: None, ..greedy(0) });
    assert_eq!((full.ids.len(), full.summary.finish_reason), (14, FinishReason::Context));
    // A prompt that fills the context leaves no room, and is no error.
    let none = answer(&mut engine.session(), &[1; 64], &greedy(5));
    assert_eq!((none.ids.len(), none.summary.finish_reason), (0, FinishReason::Context));
    // Both limits at once: what was asked for was given.
    let exact = answer(&mut engine.session(), &[1; 50], &greedy(14));
    assert_eq!((exact.ids.len(), exact.summary.finish_reason), (14, FinishReason::Length));
}

#[test]
fn a_shared_beginning_is_computed_once_and_changes_nothing() {
    let (engine, probe) = toy(256, 32);
    let mut session = engine.session();
    let prompt: Vec<u32> = (0..70).collect();
    let first = answer(&mut session, &prompt, &seeded(10, 3));
    assert_eq!(first.summary.usage.cached_tokens, 0);

    // The same prompt again: all but its last token is there.
    let before = probe.rows.load(Relaxed);
    let again = answer(&mut session, &prompt, &seeded(10, 3));
    assert_eq!(again.summary.usage.cached_tokens, 69);
    assert_eq!(again.ids, first.ids);
    assert_eq!(probe.rows.load(Relaxed) - before, 1 + 9);

    // The conversation goes on: the answer but its last token is there too.
    let next: Vec<u32> = prompt.iter().chain(&first.ids).copied().chain([5, 6]).collect();
    let continued = answer(&mut session, &next, &seeded(10, 4));
    assert_eq!(continued.summary.usage.cached_tokens, 79);
    assert_eq!(continued.ids, answer(&mut engine.session(), &next, &seeded(10, 4)).ids);

    // Another prompt that parts in the middle of a page.
    let mut other = prompt.clone();
    other[45] = 9;
    let parted = answer(&mut session, &other, &seeded(10, 3));
    assert_eq!(parted.summary.usage.cached_tokens, 45);
    assert_eq!(parted.ids, answer(&mut engine.session(), &other, &seeded(10, 3)).ids);

    // Another session shares it; a reset one keeps nothing of its own.
    session.reset();
    assert!(session.tokens().is_empty());
    assert_eq!(answer(&mut engine.session(), &prompt, &seeded(10, 3)).summary.usage.cached_tokens, 69);
}

#[test]
fn the_chunks_of_a_prompt_do_not_show() {
    let prompt: Vec<u32> = (0..100).collect();
    let ids = |max_rows| answer(&mut toy(256, max_rows).0.session(), &prompt, &seeded(12, 1)).ids;
    let whole = ids(512);
    for max_rows in [1, 7, 32] {
        assert_eq!(ids(max_rows), whole);
    }
}

#[test]
fn seeds_replay_and_a_drawn_seed_is_told() {
    let (engine, _) = toy(128, 32);
    let run = |seed| {
        let mut params = seeded(16, 0);
        params.sampling.seed = seed;
        let answer = answer(&mut engine.session(), &[1, 2, 3], &params);
        (answer.ids, answer.summary.seed)
    };
    assert_eq!(run(Some(5)), run(Some(5)));
    assert_ne!(run(Some(5)).0, run(Some(6)).0);
    let (ids, seed) = run(None);
    assert_eq!(run(Some(seed)), (ids, seed));
}

#[test]
fn cancelling_ends_within_one_token() {
    let (engine, probe) = toy(256, 16);
    let cancel = CancelToken::new();
    let mut session = engine.session();
    probe.cancel_at_batch(3, &cancel.clone());
    let mut generation = session.generate(&[1, 2, 3], &greedy(100), &cancel).unwrap();
    let tokens = generation.by_ref().filter(|chunk| chunk.as_ref().unwrap().token.is_some()).count();
    let summary = generation.summary();
    assert_eq!((summary.finish_reason, summary.usage.completion_tokens), (FinishReason::Cancelled, 3));
    assert_eq!((tokens, probe.batches.load(Relaxed)), (3, 3));
    // The session goes on with what it has.
    let again = answer(&mut session, &[1, 2, 3], &greedy(4));
    assert_eq!((again.ids.len(), again.summary.usage.cached_tokens), (4, 2));
}

#[test]
fn cancelling_ends_a_prompt_within_one_chunk() {
    let (engine, probe) = toy(256, 16);
    let cancel = CancelToken::new();
    let mut session = engine.session();
    cancel.cancel();
    let mut generation = session.generate(&[1; 200], &greedy(5), &cancel).unwrap();
    assert!(generation.next().is_none());
    assert_eq!(generation.summary().finish_reason, FinishReason::Cancelled);
    assert_eq!(probe.rows.load(Relaxed), 0);
    // In the middle of its prompt.
    let cancel = CancelToken::new();
    probe.cancel_at_batch(2, &cancel);
    let mut generation = session.generate(&[1; 200], &greedy(5), &cancel).unwrap();
    assert!(generation.next().is_none());
    assert_eq!(generation.summary().finish_reason, FinishReason::Cancelled);
    assert_eq!(probe.rows.load(Relaxed), 2 * 16);
}

#[test]
fn cancelling_releases_held_text() {
    let script: Vec<u32> = [BOS].into_iter().chain("xab<en".bytes().map(u32::from)).collect();
    let (engine, probe) = scripted(256, 64, &script);
    let cancel = CancelToken::new();
    let mut session = engine.session();
    let params = GenerateParams { stop: vec!["<end>".into()], ..greedy(50) };
    probe.cancel_at_batch(5, &cancel);
    let mut generation = session.generate(&engine.encode("x").unwrap(), &params, &cancel).unwrap();
    let chunks: Vec<Chunk> = generation.by_ref().map(Result::unwrap).collect();
    let (last, before) = chunks.split_last().unwrap();
    assert_eq!(before.iter().map(|chunk| chunk.text.as_str()).collect::<String>(), "ab");
    assert_eq!(*last, Chunk { choice: 0, text: "<en".into(), token: None });
}

#[test]
fn damaged_logits_are_an_error_and_the_session_survives() {
    let (engine, probe) = toy(64, 16);
    let mut session = engine.session();
    for params in [greedy(5), seeded(5, 1)] {
        probe.damage.store(true, Relaxed);
        let mut generation = session.generate(&[1, 2], &params, &CancelToken::new()).unwrap();
        let error = generation.next().unwrap().unwrap_err();
        assert!(matches!(error, EngineError::NotFinite { token: 3, value } if value.is_nan()));
        assert!(generation.next().is_none());
    }
    assert_eq!(answer(&mut session, &[1, 2], &greedy(5)).ids.len(), 5);
}

#[test]
fn a_panic_below_poisons_the_engine_and_nothing_else() {
    let (engine, probe) = toy(64, 16);
    let other = engine.clone();
    probe.panic.store(true, Relaxed);
    let mut session = other.session();
    let mut generation = session.generate(&[1], &greedy(1), &CancelToken::new()).unwrap();
    assert!(matches!(generation.next(), Some(Err(EngineError::Poisoned))));
    assert!(generation.next().is_none());
    let refused = engine.session().generate(&[1], &greedy(1), &CancelToken::new()).map(|_| ());
    assert!(matches!(refused, Err(EngineError::Poisoned)));
}

/// An engine with other rules.
fn ruled(context: usize, max_rows: usize, scheduling: Scheduling) -> (Engine, Probe) {
    let probe = Probe::default();
    let toy = Toy::new(VOCAB, context, max_rows, &[], &probe);
    (Engine::from_parts(Box::new(toy), tokenizer(), None, &scheduling).unwrap(), probe)
}

#[test]
fn pages_go_to_the_prefix_cache_or_back() {
    let page = (PAGE_TOKENS * 4) as u64;
    for (bytes, kept) in [(None, 4), (Some(2 * page + 1), 2), (Some(0), 0)] {
        let rules = Scheduling { prefix_cache_limit: bytes, ..Scheduling::default() };
        let (engine, _) = ruled(256, 64, rules);
        answer(&mut engine.session(), &[1; 100], &greedy(10));
        while engine.counters().running > 0 {
            std::thread::yield_now();
        }
        let counters = engine.counters();
        assert_eq!((counters.pages_cached, counters.pages_free), (kept, 8 - kept));
    }
}

#[test]
fn where_pages_run_out_answers_take_turns() {
    let (engine, _) = toy(128, 64);
    let prompts: Vec<Vec<u32>> = (0..6).map(|i| (i..i + 10).collect()).collect();
    let alone: Vec<Vec<u32>> = prompts
        .iter()
        .map(|prompt| answer(&mut toy(128, 64).0.session(), prompt, &seeded(60, 5)).ids)
        .collect();
    let answers: Vec<crate::Answer> = prompts
        .iter()
        .map(|prompt| engine.submit(prompt, &seeded(60, 5), &CancelToken::new()).unwrap())
        .collect();
    let ids = |answer: crate::Answer| answer.map(|chunk| chunk.unwrap().token.unwrap().id).collect();
    let together: Vec<Vec<u32>> = answers.into_iter().map(ids).collect();
    assert_eq!(together, alone);
    assert!(engine.counters().preempted > 0);
}

#[test]
fn a_full_queue_refuses_at_once() {
    let rules = Scheduling { max_batch: 1, max_queue: 2, ..Scheduling::default() };
    let (engine, probe) = ruled(128, 64, rules);
    let hold = probe.hold();
    let submit = |choices| {
        let params = GenerateParams { choices, ..greedy(3) };
        engine.submit(&[1, 2], &params, &CancelToken::new())
    };
    let first = submit(1).unwrap();
    while engine.counters().waiting > 0 {
        std::thread::yield_now();
    }
    let second = submit(1).unwrap();
    let error = submit(2).unwrap_err();
    assert!(matches!(error, EngineError::QueueFull { waiting: 1, limit: 2 }), "{error}");
    let third = submit(1).unwrap();
    assert!(matches!(submit(1), Err(EngineError::QueueFull { waiting: 2, limit: 2 })));
    drop(second);
    drop(hold);
    assert_eq!((first.count(), third.count()), (3, 3));
    let counters = engine.counters();
    assert_eq!((counters.rejected_queue_full, counters.submitted, counters.waiting), (2, 3, 0));
    assert_eq!((counters.completed, counters.cancelled), (2, 1));
}

#[test]
fn choices_share_the_prompt_and_replay_one_by_one() {
    for prompt in [64, 70] {
        let (engine, probe) = toy(1024, 64);
        let prompt: Vec<u32> = (0..prompt).collect();
        let params = GenerateParams { choices: 4, ..seeded(20, 7) };
        let mut answer = engine.submit(&prompt, &params, &CancelToken::new()).unwrap();
        let mut ids = vec![Vec::new(); 4];
        for chunk in answer.by_ref().map(Result::unwrap) {
            ids[chunk.choice].push(chunk.token.unwrap().id);
        }
        // The prompt once, its last token again for each other choice, and the answers but for their last tokens.
        assert_eq!(probe.rows.load(Relaxed), prompt.len() + 3 + 4 * 19);
        for (index, summary) in answer.summaries().iter().enumerate() {
            assert_eq!(summary.seed, 7 + index as u64);
            let cached = if index == 0 { 0 } else { prompt.len() - 1 };
            assert_eq!((summary.usage.cached_tokens, summary.usage.completion_tokens), (cached, 20));
            let (other, _) = toy(1024, 64);
            let alone = super::tests::answer(&mut other.session(), &prompt, &seeded(20, summary.seed));
            assert_eq!(alone.ids, ids[index]);
        }
        assert_ne!(ids[0], ids[1]);
    }
}

#[test]
fn a_deadline_ends_an_answer_where_it_is() {
    let (engine, probe) = toy(256, 64);
    let params = GenerateParams { deadline: Some(Duration::from_millis(20)), ..greedy(200) };
    probe.slow.store(2, Relaxed);
    let answer = answer(&mut engine.session(), &[1, 2, 3], &params);
    assert_eq!(answer.summary.finish_reason, FinishReason::Deadline);
    assert!((1..150).contains(&answer.ids.len()), "{}", answer.ids.len());
    assert_eq!(engine.counters().expired, 1);
    let over = GenerateParams { deadline: Some(Duration::ZERO), ..greedy(200) };
    let error = engine.submit(&[1], &over, &CancelToken::new()).unwrap_err();
    assert!(matches!(error, EngineError::InvalidParameter { name: "deadline", .. }));
    assert_eq!(engine.counters().rejected_invalid, 1);
}

#[test]
fn the_higher_priority_goes_first() {
    let rules = Scheduling { max_batch: 1, ..Scheduling::default() };
    let (engine, probe) = ruled(256, 64, rules);
    let hold = probe.hold();
    let submit = |priority| {
        let params = GenerateParams { priority, ..greedy(5) };
        engine.submit(&[1, 2, 3], &params, &CancelToken::new()).unwrap()
    };
    let mut answers = vec![submit(0)];
    while engine.counters().waiting > 0 {
        std::thread::yield_now();
    }
    answers.extend([-1, 5, 0].map(submit));
    drop(hold);
    let ttfts: Vec<Duration> = answers
        .into_iter()
        .map(|mut answer| {
            let _ = answer.by_ref().count();
            answer.summary().timings.ttft
        })
        .collect();
    // The first was alone when it began; it made way for the third.
    assert!(ttfts[2] < ttfts[3] && ttfts[3] < ttfts[1], "{ttfts:?}");
    assert_eq!(engine.counters().preempted, 1);
}

#[test]
fn a_long_prompt_delays_nobody_by_more_than_a_chunk() {
    let rules = Scheduling { shared_chunk: 16, ..Scheduling::default() };
    let (engine, probe) = ruled(1024, 256, rules);
    probe.slow.store(1, Relaxed);
    let mut running = engine.submit(&[1, 2, 3], &greedy(100), &CancelToken::new()).unwrap();
    running.next().unwrap().unwrap();
    let long = engine.submit(&[2; 600], &greedy(1), &CancelToken::new()).unwrap();
    assert_eq!((running.count(), long.count()), (99, 1));
    assert!(probe.largest.load(Relaxed) <= 16 + 1, "{}", probe.largest.load(Relaxed));
    assert_eq!(answer(&mut engine.session(), &[3; 600], &greedy(1)).ids.len(), 1);
    assert_eq!(probe.largest.load(Relaxed), 256, "alone, a prompt has the whole batch");
}

#[test]
fn a_full_context_shifts_where_that_is_asked_for() {
    let (engine, _) = toy(64, 64);
    let params = GenerateParams { context_shift: Some(4), ..seeded(100, 3) };
    let prompt: Vec<u32> = (0..50).collect();
    let shifted = answer(&mut engine.session(), &prompt, &params);
    assert_eq!((shifted.ids.len(), shifted.summary.finish_reason), (100, FinishReason::Length));
    // By hand: the first 4 stay, of the others the later half.
    let mut ids = prompt.clone();
    let mut sampled = shifted.ids.iter();
    let mut dropped = 0;
    loop {
        ids.extend(sampled.by_ref().take(64 - ids.len()));
        if ids.len() < 64 {
            break;
        }
        ids.drain(4..34);
        dropped += 30;
    }
    assert_eq!(shifted.summary.usage.dropped_tokens, dropped);
    // What follows a shift is what the shortened text gives.
    let engine = toy(64, 64).0;
    let greedy_shift = GenerateParams { context_shift: Some(4), ..greedy(30) };
    let long = answer(&mut engine.session(), &prompt, &greedy_shift);
    let mut short: Vec<u32> = prompt.iter().copied().chain(long.ids[..14].iter().copied()).collect();
    short.drain(4..34);
    let rest = answer(&mut engine.session(), &short, &greedy(16));
    assert_eq!(rest.ids, long.ids[14..]);
    let error = engine
        .submit(&[1], &GenerateParams { context_shift: Some(63), ..greedy(1) }, &CancelToken::new())
        .unwrap_err();
    assert!(matches!(error, EngineError::InvalidParameter { name: "context_shift", .. }));
}

#[test]
fn guesses_change_nothing_but_the_number_of_steps() {
    // The toy says a text of six tokens again and again.
    let script: Vec<u32> = (0..200).map(|i| [10, 20, 30, 40, 50, 60][i % 6]).collect();
    for params in [greedy(150), seeded(150, 4)] {
        let run = |speculation| {
            let (engine, probe) = scripted(256, 64, &script);
            // So that a step costs about the same with one row and with sixteen.
            probe.slow.store(2, Relaxed);
            let params = GenerateParams { speculation, ..params.clone() };
            let answer = answer(&mut engine.session(), &script[..20], &params);
            (answer.ids, answer.summary.usage, probe.batches.load(Relaxed))
        };
        let (plain, usage, steps) = run(false);
        assert_eq!((usage.drafted_tokens, steps), (0, 150));
        let (ids, usage, steps) = run(true);
        assert_eq!(ids, plain);
        assert!(steps < 30, "{steps}");
        assert_eq!(usage.accepted_tokens + steps, 150);
    }
}

#[test]
fn wrong_guesses_of_one_do_not_shift_the_logits_of_the_next() {
    // A text whose repetitions go on otherwise each time.
    let prompt: Vec<u32> = (0..60).map(|i| if i % 4 == 3 { 100 + i } else { i % 4 }).collect();
    let prompts: Vec<Vec<u32>> = (0..4).map(|i| [vec![i], prompt.clone()].concat()).collect();
    let script = |speculation| {
        let (engine, _) = toy(1024, 64);
        let params = GenerateParams { speculation, ..seeded(60, 1) };
        // Whatever is sampled, the end looks like the prompt: the guesses are wrong.
        let params = GenerateParams {
            sampling: SamplerParams { logit_bias: (0..3).map(|id| (id, 8.0)).collect(), ..params.sampling },
            ..params
        };
        let submit = |prompt: &Vec<u32>| engine.submit(prompt, &params, &CancelToken::new()).unwrap();
        let answers: Vec<crate::Answer> = prompts.iter().map(submit).collect();
        let ids = |answer: crate::Answer| answer.map(|chunk| chunk.unwrap().token.unwrap().id).collect();
        let all: Vec<Vec<u32>> = answers.into_iter().map(ids).collect();
        (all, engine.counters())
    };
    let (plain, _) = script(false);
    let (guessed, counters) = script(true);
    assert_eq!(guessed, plain);
    assert!(counters.drafted > counters.accepted + 8, "{counters:?}");
}

#[test]
fn a_step_that_stalls_is_reported() {
    let stalls = Arc::new(std::sync::Mutex::new(Vec::new()));
    let report = Arc::clone(&stalls);
    let rules = Scheduling {
        stall_after: Duration::from_millis(20),
        on_stall: Some(Arc::new(move |stall| report.lock().unwrap().push(stall))),
        ..Scheduling::default()
    };
    let (engine, probe) = ruled(256, 64, rules);
    let hold = probe.hold();
    let answer = engine.submit(&[1], &greedy(3), &CancelToken::new()).unwrap();
    while engine.counters().stalls == 0 {
        std::thread::yield_now();
    }
    drop(hold);
    assert_eq!(answer.count(), 3);
    let stalls = stalls.lock().unwrap();
    assert_eq!((stalls.len(), engine.counters().stalls), (1, 1));
    assert!(stalls[0].running_for >= Duration::from_millis(20));
}

#[test]
fn an_engine_ends_with_its_last_handle() {
    let (engine, probe) = toy(256, 64);
    let answer = engine.submit(&[1], &greedy(50), &CancelToken::new()).unwrap();
    drop(engine);
    assert_eq!(answer.count(), 50);
    // The toy, and the probe's part in it, are gone.
    assert_eq!(Arc::strong_count(&probe.rows), 1);
}

#[test]
fn interleaved_sessions_answer_as_each_alone() {
    let (engine, _) = toy(512, 32);
    let prompts: [Vec<u32>; 2] = [(0..50).collect(), (20..90).collect()];
    let alone = prompts.each_ref().map(|prompt| answer(&mut engine.session(), prompt, &seeded(40, 9)).ids);
    let (mut first, mut second) = (engine.session(), engine.session());
    let (params, cancel) = (seeded(40, 9), CancelToken::new());
    let one = first.generate(&prompts[0], &params, &cancel).unwrap();
    let two = second.generate(&prompts[1], &params, &cancel).unwrap();
    let id = |chunk: Result<Chunk, EngineError>| chunk.unwrap().token.unwrap().id;
    let both: Vec<(u32, u32)> = one.zip(two).map(|(a, b)| (id(a), id(b))).collect();
    assert_eq!(both.iter().map(|ids| ids.0).collect::<Vec<_>>(), alone[0]);
    assert_eq!(both.iter().map(|ids| ids.1).collect::<Vec<_>>(), alone[1]);
}

#[test]
fn sessions_on_threads_answer_as_each_alone() {
    let (engine, _) = toy(1024, 16);
    let alone: Vec<Vec<u32>> =
        (0..4).map(|i| answer(&mut engine.session(), &[i; 60], &seeded(30, 2)).ids).collect();
    let together: Vec<Vec<u32>> = std::thread::scope(|scope| {
        let handles: Vec<_> = (0..4)
            .map(|i| {
                let engine = &engine;
                scope.spawn(move || answer(&mut engine.session(), &[i; 60], &seeded(30, 2)).ids)
            })
            .collect();
        handles.into_iter().map(|handle| handle.join().unwrap()).collect()
    });
    assert_eq!(together, alone);
}

#[test]
fn log_probabilities_are_the_models_own() {
    let (engine, _) = toy(64, 16);
    let mut session = engine.session();
    let mut params = GenerateParams { logprobs: Some(VOCAB), ..greedy(3) };
    // The sampler's own taste does not show in them.
    params.sampling.repeat_penalty = 1.5;
    params.sampling.logit_bias = vec![(7, 100.0)];
    let answered = answer(&mut session, &[1, 2, 3], &params);
    let logits = session.score(&[1, 2, 3], &[2]).unwrap().remove(0);
    let max = logits.iter().fold(f32::MIN, |max, x| max.max(*x));
    let sum: f64 = logits.iter().map(|x| f64::from(x - max).exp()).sum();
    let token = answered.chunks[0].token.as_ref().unwrap();
    assert_eq!(token.id, 7);
    assert!((f64::from(token.logprob.unwrap()) - (f64::from(logits[7] - max) - sum.ln())).abs() < 1e-5);
    assert_eq!(token.top.len(), VOCAB);
    assert!(token.top.windows(2).all(|pair| pair[0].1 >= pair[1].1));
    let total: f64 = token.top.iter().map(|(_, logprob)| f64::from(*logprob).exp()).sum();
    assert!((total - 1.0).abs() < 1e-4, "{total}");
    let three = GenerateParams { logprobs: Some(3), ..params };
    let fewer = answer(&mut session, &[1, 2, 3], &three);
    assert_eq!(fewer.chunks[0].token.as_ref().unwrap().top[..], token.top[..3]);
}

#[test]
fn scores_are_the_same_however_they_are_asked_for() {
    let ids: Vec<u32> = (0..200).collect();
    let all: Vec<usize> = (0..200).collect();
    let rows = toy(256, 512).0.session().score(&ids, &all).unwrap();
    assert_eq!(rows.len(), 200);
    let (engine, _) = toy(256, 7);
    let mut session = engine.session();
    assert_eq!(session.score(&ids, &all).unwrap(), rows);
    // Again, with what is there, and fewer places.
    assert_eq!(session.score(&ids, &[40, 100, 150]).unwrap(), [40, 100, 150].map(|i: usize| rows[i].clone()));
    assert_eq!(session.tokens().len(), 151);
    assert!(session.score(&ids, &[]).unwrap().is_empty());
    for wrong in [&[3, 3][..], &[4, 2], &[200]] {
        let error = session.score(&ids, wrong).unwrap_err();
        assert!(matches!(error, EngineError::InvalidParameter { name: "positions", .. }));
    }
}

#[test]
fn perplexity_by_the_definition() {
    let (engine, _) = toy(128, 48);
    let ids: Vec<u32> = (0..150).map(|i| i * 7 % 250).collect();
    let context = 64;
    let (mut loss, mut count) = (0.0, 0);
    for piece in ids.chunks_exact(context) {
        let mut piece = piece.to_vec();
        piece[0] = BOS;
        let rows = engine.session().score(&piece, &(0..context).collect::<Vec<_>>()).unwrap();
        for place in context / 2..context - 1 {
            let sum: f64 = rows[place].iter().map(|x| f64::from(*x).exp()).sum();
            loss -= f64::from(rows[place][piece[place + 1] as usize]) - sum.ln();
            count += 1;
        }
    }
    let measured = perplexity(&engine, &ids, context).unwrap();
    assert_eq!(measured.tokens, count);
    assert_eq!(count, 2 * 31);
    let expected = (loss / f64::from(count as u32)).exp();
    assert!((measured.perplexity / expected - 1.0).abs() < 1e-5, "{} {expected}", measured.perplexity);

    assert!(matches!(
        perplexity(&engine, &ids[..127], context),
        Err(EngineError::TextTooShort { tokens: 127, needed: 128 })
    ));
    for context in [0, 2, 129] {
        let error = perplexity(&engine, &ids, context).unwrap_err();
        assert!(matches!(error, EngineError::InvalidParameter { name: "context", .. }));
    }
}

#[test]
fn options_out_of_range_are_errors() {
    type Change = fn(&mut EngineOptions);
    let wrong: [(&str, Change); 4] = [
        ("threads", |o| o.threads = Some(0)),
        ("threads", |o| o.threads = Some(1 << 20)),
        ("prefill_chunk", |o| o.prefill_chunk = 0),
        ("sessions", |o| o.sessions = 0),
    ];
    for (expected, change) in wrong {
        let mut options = EngineOptions::default();
        change(&mut options);
        let error = Engine::load("nowhere.gguf".as_ref(), &options).unwrap_err();
        assert!(matches!(error, EngineError::InvalidParameter { name, .. } if name == expected));
    }
    let error = Engine::load("nowhere.gguf".as_ref(), &EngineOptions::default()).unwrap_err();
    assert!(matches!(error, EngineError::Format(moli_format::FormatError::NotFound { .. })));
}

#[test]
fn a_context_beyond_the_models_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    moli_format::GgufWriter::new()
        .meta("general.architecture", "llama")
        .meta("llama.context_length", 2048_u32)
        .write_file(&path)
        .unwrap();
    for context in [0, 2049] {
        let options = EngineOptions { context: Some(context), ..EngineOptions::default() };
        let error = Engine::load(&path, &options).unwrap_err();
        assert!(matches!(error, EngineError::InvalidParameter { name: "context", .. }), "{error}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    /// Whatever a session went through, an answer is that of a fresh session.
    #[test]
    fn history_never_changes_an_answer(
        prompts in prop::collection::vec((prop::collection::vec(0_u32..2, 1..80), 0_usize..20, 1_usize..25), 1..8),
        max_rows in 1_usize..40,
    ) {
        let (engine, _) = toy(128, max_rows);
        let mut session = engine.session();
        for (prompt, tokens, taken) in prompts {
            let mut params = seeded(tokens, 11);
            params.sampling.dry.multiplier = 0.5;
            params.sampling.frequency_penalty = 0.1;
            let ids = |session: &mut Session| -> Vec<u32> {
                let cancel = CancelToken::new();
                let generation = session.generate(&prompt, &params, &cancel).unwrap();
                generation.take(taken).filter_map(|chunk| chunk.unwrap().token).map(|token| token.id).collect()
            };
            let here = ids(&mut session);
            let fresh = ids(&mut toy(128, 64).0.session());
            prop_assert_eq!(here, fresh);
        }
    }
}
