//! Answers that share a toy model: pages, turns, queues, guesses.

use super::*;

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
        // Whoever has an answer finds it counted as over, every time.
        for _ in 0..100 {
            answer(&mut engine.session(), &[1; 100], &greedy(10));
            let counters = engine.counters();
            assert_eq!((counters.running, counters.pages_cached, counters.pages_free), (0, kept, 8 - kept));
        }
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
fn a_burst_finds_the_places_of_the_batch_and_the_queue() {
    let rules = Scheduling { max_batch: 4, max_queue: 2, ..Scheduling::default() };
    let (engine, probe) = ruled(1024, 64, rules);
    let burst = |count: usize| -> Vec<_> {
        (0..count).map(|_| engine.submit(&[1, 2], &greedy(3), &CancelToken::new())).collect()
    };
    for _ in 0..2 {
        let hold = probe.hold();
        let taken: Vec<_> = burst(8).into_iter().filter_map(Result::ok).collect();
        // Of eight that come at once four have a place and two wait, whether a step begins meanwhile or not.
        assert_eq!(taken.len(), 6);
        drop(hold);
        assert!(taken.into_iter().all(|answer| answer.count() == 3));
    }
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
            let alone = super::answer(&mut other.session(), &prompt, &seeded(20, summary.seed));
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
        let (engine, probe) = toy(1024, 64);
        // A row more costs nothing beside this, so that guessing pays.
        probe.slow.store(1, Relaxed);
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
    assert!(counters.drafted > counters.accepted, "{counters:?}");
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
