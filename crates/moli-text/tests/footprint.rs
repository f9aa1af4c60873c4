//! What `tokenizer_bytes` says beforehand is what is then on the heap, or a little more.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(unsafe_code, reason = "a global allocator that counts is an unsafe trait")]

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::collections::HashSet;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use common::Fixture;
use moli_format::Value;
use moli_text::{ChatTemplate, EncodeOptions, Tokenizer, tokenizer_bytes};

struct Counting;

static LIVE: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call is handed to the system's allocator unchanged; only a number is kept.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LIVE.fetch_add(layout.size(), Relaxed);
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Relaxed);
        // SAFETY: the caller keeps the contract of `dealloc`.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// A message format such as real files have, tools and all: some kilobytes.
fn template() -> String {
    let one = "{% for message in messages %}{% if message['role'] == 'user' %}{{ '<|im_start|>' + message['role'] }}\
               {% elif message['role'] == 'tool' %}{{ message['content'] | trim }}{% endif %}{% endfor %}\n";
    one.repeat(24)
}

/// Adds tokens until there are `count`, each a merge of two others.
fn grow(fixture: &mut Fixture, count: usize) {
    let letters: Vec<String> = ('a'..='z').map(String::from).collect();
    let taken: HashSet<String> = fixture.tokens.iter().map(|(text, _)| text.clone()).collect();
    let mut longer = letters.clone();
    let mut next = 0;
    while fixture.tokens.len() < count {
        let prefix = longer[next].clone();
        next += 1;
        for last in &letters {
            let token = format!("{prefix}{last}");
            longer.push(token.clone());
            if fixture.tokens.len() < count && !taken.contains(&token) {
                fixture.merges.push(format!("{prefix} {last}"));
                fixture.tokens.push((token, 1));
            }
        }
    }
}

/// Tokens that are found in raw text, as long as the usual ones.
fn specials(fixture: &mut Fixture, count: usize) {
    fixture.tokens.extend((0..count).map(|n| (format!("<|reserved_special_token_{n}|>"), 3)));
}

/// What is said, and what is there once the tokenizer has been used.
fn said_and_used(mut fixture: Fixture) -> (u64, u64) {
    if fixture.model != "gpt2" {
        let scores: Vec<f32> = (0..fixture.tokens.len()).map(|i| -(i as f32)).collect();
        fixture.merges.clear();
        fixture.extra = vec![("tokenizer.ggml.scores", Value::from(scores))];
    }
    fixture.extra.push(("tokenizer.chat_template", Value::from(template())));
    let gguf = fixture.gguf();
    let said = tokenizer_bytes(gguf.metadata()).unwrap();
    let before = LIVE.load(Relaxed);
    let tokenizer = Tokenizer::from_gguf(gguf.metadata()).unwrap();
    let template = ChatTemplate::from_gguf(gguf.metadata()).unwrap();
    let text = "The quick brown fox, 1234 don't 你好 世界!\n\n  ".repeat(100);
    drop(tokenizer.encode(&text, EncodeOptions::default()).unwrap());
    let used = LIVE.load(Relaxed) - before;
    drop((tokenizer, template));
    (said, used as u64)
}

/// One test, so that no other allocates at the same time.
#[test]
fn a_tokenizer_takes_what_was_said_beforehand() {
    for (count, control) in
        [(300, 2), (49_152, 17), (128_256, 256), (151_936, 99), (151_936, 101), (262_144, 6249)]
    {
        let unigram = Fixture { model: "t5", ..Fixture::sentence_piece() };
        for mut fixture in [Fixture::byte_level(), Fixture::sentence_piece(), unigram] {
            let what = format!("{}, {count} tokens, {control} of them special", fixture.model);
            specials(&mut fixture, control);
            grow(&mut fixture, count);
            let (said, used) = said_and_used(fixture);
            println!("{what}: said {said}, used {used}");
            assert!(used <= said, "{what}: {used} bytes where {said} were said");
            // A megabyte is for what does not depend on the vocabulary, and half of one for the automata of few tokens.
            assert!(said <= used + used / 10 + (3 << 19), "{what}: {said} bytes were said for {used}");
        }
    }
}
