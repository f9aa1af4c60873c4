//! Comparing two models on a text.

use crate::testing::{VOCAB, scripted, tokenizer_with, toy};
use crate::*;

fn text() -> Vec<u32> {
    (0..150).map(|i| i * 7 % 250).collect()
}

#[test]
fn divergence_by_the_definition() {
    let (a, _) = toy(128, 48);
    // Where the script holds the text, its model is certain of it, and the other knows nothing of it.
    let script: Vec<u32> = (0..128).map(|i| i * 7 % 250).collect();
    let (b, _) = scripted(128, 32, &script);
    let (ids, context) = (text(), 64);
    let mut seen = Vec::new();
    let found = divergence(&a, &b, &ids, context, |done, all| {
        seen.push((done, all));
        true
    })
    .unwrap();
    assert_eq!(seen, [(0, 2), (1, 2), (2, 2)]);
    assert_eq!(found.predictions.len(), 2 * 31);

    let mut expected = Vec::new();
    for piece in ids.chunks_exact(context) {
        let mut read = piece.to_vec();
        read[0] = crate::testing::BOS;
        let places: Vec<usize> = (32..63).collect();
        let [rows_a, rows_b] = [&a, &b].map(|engine| engine.session().score(&read, &places).unwrap());
        for ((place, p), q) in places.iter().zip(rows_a).zip(rows_b) {
            let [p, q] = [p, q].map(|row| {
                let sum: f64 = row.iter().map(|x| f64::from(*x).exp()).sum();
                row.iter().map(|x| f64::from(*x) - sum.ln()).collect::<Vec<_>>()
            });
            let divergence: f64 = p.iter().zip(&q).map(|(p, q)| p.exp() * (p - q)).sum();
            let next = piece[place + 1] as usize;
            let most = |row: &[f64]| (0..VOCAB).max_by(|&i, &j| row[i].total_cmp(&row[j])).unwrap();
            expected.push((divergence, [-p[next], -q[next]], most(&p) == most(&q)));
        }
    }
    let mut differ = 0;
    for (got, want) in found.predictions.iter().zip(&expected) {
        assert!((got.divergence / want.0 - 1.0).abs() < 1e-6, "{got:?} {want:?}");
        assert!(got.loss.iter().zip(want.1).all(|(got, want)| (got - want).abs() < 1e-6), "{got:?} {want:?}");
        assert_eq!(got.same_top, want.2);
        differ += usize::from(!got.same_top);
    }
    assert!(differ > 10, "{differ}");

    // It agrees with perplexity.
    for (of, engine) in [&a, &b].into_iter().enumerate() {
        let mean = found.predictions.iter().map(|p| p.loss[of]).sum::<f64>() / found.predictions.len() as f64;
        let measured = perplexity(engine, &ids, context).unwrap().perplexity;
        assert!((mean.exp() / measured - 1.0).abs() < 1e-9, "{mean} {measured}");
    }
}

#[test]
fn a_model_does_not_differ_from_itself() {
    let [a, b] = [toy(128, 48).0, toy(128, 7).0];
    let found = divergence(&a, &b, &text(), 64, |_, _| true).unwrap();
    assert!(found.predictions.iter().all(|p| p.divergence == 0.0 && p.same_top && p.loss[0] == p.loss[1]));
}

#[test]
fn what_was_compared_before_it_was_stopped_is_kept() {
    let [a, b] = [toy(128, 48).0, toy(128, 48).0];
    let found = divergence(&a, &b, &text(), 64, |done, _| done < 1).unwrap();
    assert_eq!(found.predictions.len(), 31);
}

#[test]
fn unlike_vocabularies_and_short_texts_are_refused() {
    let (a, _) = toy(128, 48);
    let other = crate::testing::Toy::new(VOCAB, 128, 48, &[], &Default::default());
    let tokenizer = tokenizer_with(&["<s>", "<end>", "ab"]);
    let b = Engine::from_parts(Box::new(other), tokenizer, None, &Scheduling::default()).unwrap();
    let error = divergence(&a, &b, &text(), 64, |_, _| true).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the models have different vocabularies: token 257 is \"</s>\" in the first and \"<end>\" in the second"
    );
    let error = divergence(&a, &a, &text()[..127], 64, |_, _| true).unwrap_err();
    assert!(matches!(error, EngineError::TextTooShort { tokens: 127, needed: 128 }));
}
