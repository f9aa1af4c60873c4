//! What a constraint says and keeps while an answer is made.

use super::*;
use crate::SamplerParams;

struct Fixture {
    tokenizer: Tokenizer,
    compiler: Compiler,
}

impl Fixture {
    fn new() -> Self {
        let tokenizer = tokenizer::realistic(4000);
        let compiler = Compiler::new(&tokenizer).unwrap();
        Self { tokenizer, compiler }
    }

    fn constraint(&self, grammar: Grammar) -> Constraint {
        self.compiler.compile(&grammar).unwrap()
    }

    fn ids(&self, text: &str) -> Vec<u32> {
        let words = tokenizer::words(&self.tokenizer);
        text.bytes().map(|byte| words[&vec![byte]]).collect()
    }

    fn accept(&self, constraint: &mut Constraint, text: &str) {
        self.ids(text).into_iter().for_each(|id| constraint.accept(id).unwrap());
    }

    /// The tokens that may come next.
    fn next(&self, constraint: &mut Constraint) -> Vec<u32> {
        let mut logits = vec![1.5; self.tokenizer.vocab_size()];
        constraint.mask(&mut logits).unwrap();
        assert!(logits.iter().all(|logit| *logit == 1.5 || *logit == f32::NEG_INFINITY));
        (0..).zip(logits).filter(|(_, logit)| *logit == 1.5).map(|(id, _)| id).collect()
    }

    fn ends(&self) -> Vec<u32> {
        self.tokenizer.end_of_generation_ids().collect()
    }

    fn can_end(&self, constraint: &mut Constraint) -> bool {
        let next = self.next(constraint);
        let ends = self.ends();
        let count = ends.iter().filter(|id| next.contains(id)).count();
        assert!(count == 0 || count == ends.len(), "all tokens that end an answer, or none");
        count > 0
    }
}

fn regex(text: &str) -> Grammar {
    Grammar::Regex(text.to_owned())
}

#[test]
fn an_answer_ends_where_the_grammar_ends_and_nowhere_else() {
    let fixture = Fixture::new();
    assert_eq!(fixture.ends().len(), 4);
    let mut constraint = fixture.constraint(regex("ab(cd)?"));
    for (text, can_end) in [("a", false), ("b", true), ("c", false)] {
        fixture.accept(&mut constraint, text);
        assert_eq!(fixture.can_end(&mut constraint), can_end, "{text}");
        assert!(!constraint.is_complete());
    }
    fixture.accept(&mut constraint, "d");
    assert!(constraint.is_complete());
    // Complete, and asked on all the same: only its end.
    assert_eq!(fixture.next(&mut constraint), fixture.ends());
    assert_eq!(constraint.allowed(&fixture.ids("a")).unwrap(), 0);
    assert!(constraint.accept(fixture.ids("a")[0]).is_err());
    constraint.accept(fixture.ends()[1]).unwrap();
    assert!(constraint.is_complete());
}

#[test]
fn any_token_that_ends_an_answer_completes_it() {
    let fixture = Fixture::new();
    for end in fixture.ends() {
        let mut constraint = fixture.constraint(regex("a*"));
        assert!(!constraint.is_complete());
        assert!(fixture.can_end(&mut constraint), "an empty answer");
        fixture.accept(&mut constraint, "aa");
        constraint.accept(end).unwrap();
        assert!(constraint.is_complete());
    }
    let mut constraint = fixture.constraint(regex("a+"));
    for end in fixture.ends() {
        let error = constraint.accept(end).unwrap_err();
        assert!(matches!(error, EngineError::TokenNotAllowed { id } if id == end), "{error:?}");
    }
    fixture.accept(&mut constraint, "a");
}

#[test]
fn control_tokens_match_no_text() {
    let fixture = Fixture::new();
    let control: Vec<u32> =
        tokenizer::CONTROL.iter().map(|token| fixture.tokenizer.token_id(token).unwrap()).collect();
    for grammar in [
        regex("(?s).{1,50}"),
        regex("<\\|im_start\\|>|</s>"),
        Grammar::Lark("start: \"<|im_start|>\" | \"<unk>\"".to_owned()),
        Grammar::JsonSchema(r#"{"enum":["<|im_start|>","</s>"]}"#.to_owned()),
    ] {
        let mut constraint = fixture.constraint(grammar);
        let next = fixture.next(&mut constraint);
        assert!(control.iter().all(|id| !next.contains(id)));
        for &id in &control {
            assert_eq!(constraint.allowed(&[id]).unwrap(), 0);
            assert!(constraint.accept(id).is_err());
        }
    }
    let mut constraint = fixture.constraint(regex("<\\|im_start\\|>"));
    fixture.accept(&mut constraint, "<|im_start|>");
    assert!(constraint.is_complete());
}

#[test]
fn parts_of_characters_are_allowed_one_by_one() {
    let fixture = Fixture::new();
    let mut constraint = fixture.constraint(regex("[一二]{2}"));
    let next = fixture.next(&mut constraint);
    let bytes: Vec<Vec<u8>> =
        next.iter().map(|id| fixture.tokenizer.token_bytes(*id).unwrap().into_owned()).collect();
    assert!(
        bytes.contains(&vec![0xE4])
            && bytes.contains(&vec![0xE4, 0xB8])
            && bytes.contains(&"一".as_bytes().to_vec())
    );
    assert!(
        bytes.iter().all(|bytes| "一".as_bytes().starts_with(bytes) || "二".as_bytes().starts_with(bytes))
    );
    fixture.accept(&mut constraint, "一");
    constraint.accept(tokenizer::words(&fixture.tokenizer)[&vec![0xE4, 0xBA]]).unwrap();
    let next = fixture.next(&mut constraint);
    assert_eq!(next, [tokenizer::words(&fixture.tokenizer)[&vec![0x8C]]]);
}

#[test]
fn asking_ahead_changes_nothing() {
    let fixture = Fixture::new();
    let mut constraint =
        fixture.constraint(Grammar::JsonSchema(r#"{"type":"array","items":{"type":"boolean"}}"#.to_owned()));
    let end = fixture.ends()[0];
    let drafts = [("[true,false]", 12), ("[true,1]", 6), ("x", 0), ("", 0), ("[]]", 2)];
    for (text, count) in drafts {
        let mut ids = fixture.ids(text);
        assert_eq!(constraint.allowed(&ids).unwrap(), count, "{text}");
        ids.extend([end, end]);
        let with_end = if count == text.len() && count > 0 { count + 1 } else { count };
        assert_eq!(constraint.allowed(&ids).unwrap(), with_end, "{text} and its end");
    }
    assert_eq!(constraint.allowed(&[u32::MAX]).unwrap(), 0);
    assert_eq!(constraint.allowed(&[fixture.ids("[")[0], u32::MAX]).unwrap(), 1);
    fixture.accept(&mut constraint, "[true");
    assert_eq!(constraint.allowed(&fixture.ids(",true]")).unwrap(), 6);
    fixture.accept(&mut constraint, "]");
    assert!(fixture.can_end(&mut constraint));
}

#[test]
fn a_token_that_is_refused_leaves_the_state_as_it_was() {
    let fixture = Fixture::new();
    let mut constraint = fixture.constraint(regex("abc"));
    fixture.accept(&mut constraint, "a");
    let wrong = fixture.ids("c")[0];
    for _ in 0..3 {
        let error = constraint.accept(wrong).unwrap_err();
        assert!(matches!(error, EngineError::TokenNotAllowed { id } if id == wrong), "{error:?}");
    }
    assert!(matches!(constraint.accept(u32::MAX), Err(EngineError::TokenNotAllowed { id: u32::MAX })));
    fixture.accept(&mut constraint, "bc");
    assert!(constraint.is_complete());
}

#[test]
fn clones_go_their_own_ways() {
    let fixture = Fixture::new();
    let mut first = fixture.constraint(regex("a(b|c)d"));
    fixture.accept(&mut first, "a");
    let mut second = first.clone();
    fixture.accept(&mut first, "bd");
    assert!(first.is_complete() && !second.is_complete());
    fixture.accept(&mut second, "c");
    assert!(!second.is_complete());
    // The one that is kept is at the start still.
    let mut third = fixture.constraint(regex("a(b|c)d"));
    assert_eq!(third.allowed(&fixture.ids("acd")).unwrap(), 3);
}

#[test]
fn compiled_grammars_are_kept_and_the_oldest_go() {
    let fixture = Fixture::new();
    for index in 0..100 {
        fixture.constraint(regex(&format!("a{{{index}}}")));
        fixture.constraint(regex("kept"));
    }
    assert_eq!(fixture.compiler.cached(), 64);
    let before = fixture.compiler.cached();
    fixture.constraint(regex("kept"));
    assert_eq!(fixture.compiler.cached(), before);
    assert!(fixture.compiler.compile(&regex("(")).is_err());
    assert_eq!(fixture.compiler.cached(), before);
}

#[test]
fn rows_beyond_the_tokenizer_are_never_allowed() {
    let fixture = Fixture::new();
    let mut constraint = fixture.constraint(regex("(?s).*"));
    let vocab = fixture.tokenizer.vocab_size();
    let mut logits = vec![0.0; vocab + 300];
    constraint.mask(&mut logits).unwrap();
    assert!(logits[vocab..].iter().all(|logit| *logit == f32::NEG_INFINITY));
    assert!(logits[..vocab].contains(&0.0));
    // Too few to have any that is allowed.
    let mut logits = vec![0.0; 10];
    let error = fixture.constraint(regex("z")).mask(&mut logits).unwrap_err();
    assert!(matches!(error, EngineError::ConstraintFailed { .. }), "{error:?}");
}

#[test]
fn looks_between_masks_change_nothing() {
    let tokenizer = tokenizer::realistic(50_000);
    let compiler = Compiler::new(&tokenizer).unwrap();
    for (grammar, worth_it) in [
        (regex("[a-z ]{2000,}"), true),
        (regex("([a-z]{2,9} )+[0-9]{3}"), true),
        // Tokens of strings are a slice of their own.
        (
            Grammar::JsonSchema(
                r#"{"type": "array", "items": {"type": "string"}, "minItems": 200}"#.to_owned(),
            ),
            false,
        ),
    ] {
        let constraint = compiler.compile(&grammar).unwrap();
        for params in
            [SamplerParams::greedy(), SamplerParams { seed: Some(1), top_k: 4, ..SamplerParams::default() }]
        {
            let unmasked = model::looked(&tokenizer, &constraint, &params, 150);
            assert_eq!(unmasked > 30, worth_it, "{grammar:?}: {unmasked}");
        }
    }
}

#[test]
fn whitespace_between_the_parts_of_json_comes_to_an_end() {
    let fixture = Fixture::new();
    let mut constraint = fixture.constraint(Grammar::Json);
    fixture.accept(&mut constraint, "{\n");
    for spaces in 0..=40 {
        assert_eq!(constraint.allowed(&fixture.ids(" ")).unwrap(), usize::from(spaces < 40), "{spaces}");
        if spaces < 40 {
            fixture.accept(&mut constraint, " ");
        }
    }
    assert_eq!(constraint.allowed(&fixture.ids("\n")).unwrap(), 0);
    fixture.accept(&mut constraint, "\"a\": 1,\r\n\t\"b\": [1, 2]\n}");
    assert!(constraint.is_complete());
}

#[test]
fn many_threads_compile_at_once() {
    let fixture = Fixture::new();
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let compiler = &fixture.compiler;
            scope.spawn(move || {
                for index in 0..20 {
                    compiler.compile(&regex(&format!("[a-z]{{{thread}}}{}", index % 5))).unwrap();
                }
            });
        }
    });
}

#[test]
fn a_tokenizer_of_whole_words_may_have_no_way_on() {
    // "zzz" can't be begun where no token is a single letter: an error, not an answer without its constraint.
    let tokenizer = tokenizer::words_only(&["ab", "c", "</s>"]);
    let compiler = Compiler::new(&tokenizer).unwrap();
    let error = compiler.compile(&regex("zzz")).err().unwrap();
    assert!(matches!(error, EngineError::InvalidGrammar { .. }), "{error:?}");
    let mut constraint = compiler.compile(&regex("cz|abd")).unwrap();
    constraint.accept(1).unwrap();
    let error = constraint.mask(&mut [0.0; 3]).unwrap_err();
    assert!(matches!(error, EngineError::ConstraintFailed { .. }), "{error:?}");
    // It stays an error.
    assert!(
        constraint.mask(&mut [0.0; 3]).is_err() && constraint.accept(0).is_err() && !constraint.is_complete()
    );
}
