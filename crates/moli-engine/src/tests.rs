//! Sessions and answers on a toy model.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use moli_model::PAGE_TOKENS;
use proptest::prelude::*;

mod chat;
mod company;
mod divergence;
mod embed;
mod polling;

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
    let stops = GenerateParams { stop: vec!["x".to_owned(); 500_000], ..greedy(1) };
    assert!(matches!(error(&[1], &stops), EngineError::InvalidParameter { name: "stop", .. }));
    for choices in [0, 1_000_000, usize::MAX] {
        let many = GenerateParams { choices, ..greedy(1) };
        assert!(matches!(error(&[1], &many), EngineError::InvalidParameter { name: "choices", .. }));
    }
    let endless = GenerateParams { grammar: Some(Grammar::Json), ..greedy(1) };
    assert!(matches!(error(&[1], &endless), EngineError::InvalidParameter { name: "ignore_eos", .. }));
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
    moli_testkit::TinyModel::new("llama").write(&path).unwrap();
    let trained = Engine::load(&path, &EngineOptions::default()).unwrap().config().context_train;
    for context in [0, trained + 1] {
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
