//! Embeddings on a toy model, whose hidden states are a hash of all tokens so far.

use super::*;

fn options(pooling: Pooling) -> EmbedOptions {
    EmbedOptions { pooling: Some(pooling), normalize: false, ..EmbedOptions::default() }
}

fn embed(engine: &Engine, ids: &[u32], pooling: Pooling) -> Embedding {
    engine.embed(ids, &options(pooling), &CancelToken::new()).unwrap()
}

const ALL: [Pooling; 3] = [Pooling::Mean, Pooling::Cls, Pooling::Last];

/// The toy's hidden states, by hand: `[tokens, 2]`.
fn states(ids: &[u32]) -> Vec<[f32; 2]> {
    let mut hash = 0xCBF2_9CE4_8422_2325_u64;
    let next = |&id: &u32| {
        hash = (hash ^ u64::from(id)).wrapping_mul(0x0000_0100_0000_01B3);
        [(hash >> 40) as f32, (hash & 0xFF_FFFF) as f32]
    };
    ids.iter().map(next).collect()
}

#[test]
fn pooling_by_the_definition_and_in_any_chunks() {
    let ids: Vec<u32> = (0..200).map(|i| i * 7 % 256).collect();
    let states = states(&ids);
    let mean = [0, 1].map(|i| {
        let sum: f64 = states.iter().map(|state| f64::from(state[i])).sum();
        (sum / states.len() as f64) as f32
    });
    for max_rows in [1, 7, 64, 512] {
        let (engine, probe) = toy(256, max_rows);
        assert_eq!(embed(&engine, &ids, Pooling::Mean).values, mean);
        assert_eq!(probe.rows.load(Relaxed), 200);
        assert_eq!(embed(&engine, &ids, Pooling::Last).values, states[199]);
        assert_eq!(embed(&engine, &ids, Pooling::Cls).values, states[0]);
    }
}

#[test]
fn a_cache_hit_changes_nothing() {
    let ids: Vec<u32> = (0..100).collect();
    let (engine, probe) = toy(256, 32);
    let rows = |pooling| {
        let before = probe.rows.load(Relaxed);
        let embedding = embed(&engine, &ids, pooling);
        assert_eq!(embedding.tokens, 100);
        (embedding.values, embedding.cached_tokens, probe.rows.load(Relaxed) - before)
    };
    let (last, cached, computed) = rows(Pooling::Last);
    assert_eq!((cached, computed), (0, 100));
    // The last needs the others' keys and values only; the mean needs all hidden states, which no cache has.
    assert_eq!(rows(Pooling::Last), (last.clone(), 99, 1));
    let (mean, cached, computed) = rows(Pooling::Mean);
    assert_eq!((cached, computed), (0, 100));
    assert_eq!(mean, embed(&toy(256, 32).0, &ids, Pooling::Mean).values);
    // An answer uses what an embedding left, and the other way round.
    let answered = answer(&mut engine.session(), &ids, &seeded(10, 3));
    assert_eq!(answered.summary.usage.cached_tokens, 99);
    assert_eq!(answered.ids, answer(&mut toy(256, 32).0.session(), &ids, &seeded(10, 3)).ids);
    let longer = [&ids[..], &answered.ids[..]].concat();
    let embedding = embed(&engine, &longer, Pooling::Last);
    assert_eq!((embedding.cached_tokens, embedding.values), (109, states(&longer)[109].to_vec()));
}

#[test]
fn beside_answers_both_are_as_alone() {
    let texts: Vec<Vec<u32>> = (0..12).map(|i| (i..i + 20 + i * 5).collect()).collect();
    let alone = answer(&mut toy(1024, 16).0.session(), &[1, 2, 3], &seeded(60, 5)).ids;
    for (pages, pooling) in [(1024, Pooling::Mean), (1024, Pooling::Last), (160, Pooling::Mean)] {
        // On few pages some are preempted.
        let (engine, probe) = toy(pages, 64);
        let running = engine.submit(&[1, 2, 3], &seeded(60, 5), &CancelToken::new()).unwrap();
        let submit =
            |ids: &Vec<u32>| engine.submit_embedding(ids, &options(pooling), &CancelToken::new()).unwrap();
        let hold = probe.hold();
        let pending: Vec<PendingEmbedding> = texts.iter().map(submit).collect();
        drop(hold);
        for (ids, pending) in texts.iter().zip(pending) {
            let expected = embed(&toy(256, 512).0, ids, pooling).values;
            assert_eq!(pending.wait().unwrap().values, expected, "{pooling:?}");
        }
        let ids: Vec<u32> = running.map(|chunk| chunk.unwrap().token.unwrap().id).collect();
        assert_eq!(ids, alone);
        let counters = engine.counters();
        assert_eq!((counters.submitted, counters.completed, counters.waiting), (13, 13, 0));
        // Many texts in one batch.
        assert!(counters.steps < 60 + 12 * 3, "{}", counters.steps);
    }
}

#[test]
fn length_and_dimensions() {
    let (engine, _) = toy(64, 16);
    let of = |normalize, dimensions| {
        let options = EmbedOptions { normalize, dimensions, ..options(Pooling::Last) };
        engine.embed(&[5, 6, 7], &options, &CancelToken::new()).map(|embedding| embedding.values)
    };
    let raw = of(false, None).unwrap();
    assert_eq!(of(false, Some(1)).unwrap(), raw[..1]);
    let length = (f64::from(raw[0]).powi(2) + f64::from(raw[1]).powi(2)).sqrt();
    assert_eq!(of(true, None).unwrap(), [0, 1].map(|i| (f64::from(raw[i]) / length) as f32));
    // Its length is taken anew.
    assert_eq!(of(true, Some(1)).unwrap(), [1.0]);
    for wrong in [0, 3, usize::MAX] {
        let error = of(true, Some(wrong)).unwrap_err();
        assert!(matches!(error, EngineError::InvalidParameter { name: "dimensions", .. }), "{error}");
    }
}

#[test]
fn what_is_wrong_is_said_before_anything_is_computed() {
    let (engine, probe) = toy(64, 16);
    let error =
        |ids: &[u32], options: &EmbedOptions| engine.embed(ids, options, &CancelToken::new()).unwrap_err();
    assert!(matches!(error(&[1], &EmbedOptions::default()), EngineError::NoPooling));
    for pooling in ALL {
        assert!(matches!(error(&[], &options(pooling)), EngineError::EmptyPrompt));
        assert!(matches!(
            error(&[1; 65], &options(pooling)),
            EngineError::PromptTooLong { prompt_tokens: 65, context: 64 }
        ));
        let unknown = error(&[1, 259], &options(pooling));
        assert!(matches!(unknown, EngineError::TokenOutOfVocabulary { id: 259, vocab: 259 }));
    }
    assert_eq!((probe.rows.load(Relaxed), engine.counters().rejected_invalid), (0, 10));
    let error = engine.rank("a", "b", &CancelToken::new()).unwrap_err();
    assert!(matches!(error, EngineError::NotAReranker { .. }), "{error}");
}

#[test]
fn a_text_is_cut_where_that_is_asked_for() {
    let (engine, _) = toy(64, 16);
    let ids: Vec<u32> = (0..100).collect();
    let cut = EmbedOptions { truncate: true, ..options(Pooling::Mean) };
    let embedding = engine.embed(&ids, &cut, &CancelToken::new()).unwrap();
    assert_eq!((embedding.tokens, &embedding), (64, &embed(&engine, &ids[..64], Pooling::Mean)));
    let short = engine.embed(&ids[..64], &cut, &CancelToken::new()).unwrap();
    assert_eq!(short, embedding);
}

#[test]
fn special_tokens_are_added_as_the_tokenizer_says() {
    let (engine, _) = toy(64, 16);
    assert_eq!(engine.tokenizer().closing(), None);
    assert_eq!(engine.encode_for_embedding("ab").unwrap(), [BOS, AB]);
    assert!(matches!(engine.encode_for_embedding("").unwrap_err(), EngineError::EmptyText));
}

#[test]
fn who_cancels_or_drops_gets_nothing_more_computed() {
    let (engine, probe) = toy(256, 16);
    let cancel = CancelToken::new();
    probe.cancel_at_batch(2, &cancel);
    let error = engine.embed(&[1; 200], &options(Pooling::Mean), &cancel).unwrap_err();
    assert!(matches!(error, EngineError::Cancelled), "{error}");
    assert_eq!(probe.rows.load(Relaxed), 2 * 16);

    let hold = probe.hold();
    let dropped = engine.submit_embedding(&[1; 200], &options(Pooling::Mean), &CancelToken::new()).unwrap();
    while engine.counters().waiting > 0 {
        std::thread::yield_now();
    }
    drop(dropped);
    drop(hold);
    assert_eq!(embed(&engine, &[3], Pooling::Last).values, states(&[3])[0]);
    let counters = engine.counters();
    assert_eq!((counters.cancelled, counters.completed), (2, 1));
    // One chunk before it was dropped, and perhaps the other's token.
    assert!(probe.rows.load(Relaxed) <= 3 * 16 + 1);
}

#[test]
fn a_full_queue_refuses_embeddings_too() {
    let probe = Probe::default();
    let runtime = Toy::new(VOCAB, 128, 64, &[], &probe);
    let rules = Scheduling { max_batch: 1, max_queue: 1, ..Scheduling::default() };
    let engine = Engine::from_parts(Box::new(runtime), tokenizer(), None, &rules).unwrap();
    let hold = probe.hold();
    let submit = || engine.submit_embedding(&[1, 2], &options(Pooling::Last), &CancelToken::new());
    let first = submit().unwrap();
    while engine.counters().waiting > 0 {
        std::thread::yield_now();
    }
    let second = submit().unwrap();
    let error = submit().unwrap_err();
    assert!(matches!(error, EngineError::QueueFull { waiting: 1, limit: 1 }), "{error}");
    drop(hold);
    assert_eq!(first.wait().unwrap().values, second.wait().unwrap().values);
    assert_eq!(engine.counters().rejected_queue_full, 1);
}

#[test]
fn damaged_states_are_one_requests_error() {
    let (engine, probe) = toy(64, 16);
    probe.damage_states.store(true, Relaxed);
    let error = engine.embed(&[1, 2], &options(Pooling::Mean), &CancelToken::new()).unwrap_err();
    assert!(
        matches!(error, EngineError::Model(moli_model::ModelError::StateNotFinite { element: 1, .. })),
        "{error}"
    );
    assert_eq!(engine.counters().failed, 1);
    assert_eq!(embed(&engine, &[1], Pooling::Last).values, states(&[1])[0]);
}

#[test]
fn a_panic_below_is_told() {
    let (engine, probe) = toy(64, 16);
    probe.panic.store(true, Relaxed);
    let error = engine.embed(&[1, 2], &options(Pooling::Mean), &CancelToken::new()).unwrap_err();
    assert!(matches!(error, EngineError::Poisoned), "{error}");
}
