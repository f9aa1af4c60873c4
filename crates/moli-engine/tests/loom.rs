//! The inbox and the cancel token under every interleaving that a few threads have.
//!
//! The two files are compiled here a second time, with loom's primitives in place of the standard ones. Loom runs a model again
//! and again, each time in another order of what its threads do; a wait that nobody ends is a failure.

// Clippy takes helpers of tests for code outside tests.
#![allow(clippy::unwrap_used)]

#[path = "../src/cancel.rs"]
#[allow(dead_code, unreachable_pub, reason = "a part of the crate, without those who use all of it")]
mod cancel;
#[path = "../src/inbox.rs"]
#[allow(dead_code, reason = "a part of the crate, without those who use all of it")]
mod inbox;
/// What the crate's own `sync` has.
mod sync {
    pub(crate) use std::sync::PoisonError;

    pub(crate) use loom::sync::atomic::{AtomicBool, Ordering};
    pub(crate) use loom::sync::{Arc, Condvar, Mutex, MutexGuard};
}

use std::collections::VecDeque;

use loom::sync::Arc;
use loom::thread;

use cancel::CancelToken;
use inbox::{Inbox, Refused};

/// All orders in which a thread is interrupted at most `preemptions` times.
fn check(preemptions: usize, model: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.check(model);
}

/// Takes until the inbox is closed and empty.
fn take_all(inbox: &Inbox<u32>) -> Vec<u32> {
    let mut taken = Vec::new();
    while let Some(messages) = inbox.take(true) {
        messages.iter().for_each(|_| inbox.left());
        taken.extend(messages);
    }
    taken
}

fn sorted(mut messages: Vec<u32>) -> Vec<u32> {
    messages.sort_unstable();
    messages
}

#[test]
fn no_request_is_lost_or_comes_twice() {
    check(3, || {
        let inbox = Arc::new(Inbox::new(9, 0));
        let submitters: Vec<_> = [vec![1, 2], vec![3]]
            .into_iter()
            .map(|requests| {
                let inbox = Arc::clone(&inbox);
                thread::spawn(move || {
                    // The closer may have come first.
                    match inbox.submit(requests.clone().into_iter()) {
                        Ok(()) => requests,
                        Err(refused) => {
                            assert_eq!(refused, Refused::Closed);
                            Vec::new()
                        }
                    }
                })
            })
            .collect();
        let closer = thread::spawn({
            let inbox = Arc::clone(&inbox);
            move || inbox.close()
        });
        let taken = take_all(&inbox);
        closer.join().unwrap();
        let sent = submitters.into_iter().flat_map(|submitter| submitter.join().unwrap()).collect();
        // Who was told that it was taken finds it taken; requests that belong together stay together.
        assert!(!taken.contains(&1) || taken.windows(2).any(|pair| pair == [1, 2]), "{taken:?}");
        assert_eq!(sorted(taken), sorted(sent));
        assert_eq!(inbox.waiting(), 0);
        assert_eq!(inbox.submit([4].into_iter()), Err(Refused::Closed));
        assert_eq!(inbox.send(4), Err(Refused::Closed));
    });
}

#[test]
fn a_full_inbox_refuses_what_is_too_much_and_nothing_else() {
    check(3, || {
        let inbox = Arc::new(Inbox::new(2, 0));
        let submit = |requests: Vec<u32>| {
            let inbox = Arc::clone(&inbox);
            thread::spawn(move || inbox.submit(requests.into_iter()))
        };
        // Nobody takes: two of three find room, or the pair and nothing else.
        let (pair, one) = (submit(vec![1, 2]), submit(vec![3]));
        let (pair, one) = (pair.join().unwrap(), one.join().unwrap());
        match (pair, one) {
            (Ok(()), one) => assert_eq!(one, Err(Refused::Full { waiting: 2 })),
            (pair, one) => assert_eq!((pair, one), (Err(Refused::Full { waiting: 1 }), Ok(()))),
        }
        // What is no request passes, and takes nobody's place.
        inbox.send(9).unwrap();
        let before = inbox.waiting();
        let last = thread::spawn({
            let inbox = Arc::clone(&inbox);
            move || inbox.submit([4].into_iter())
        });
        inbox.left();
        let full = before == 2;
        match last.join().unwrap() {
            Ok(()) => assert_eq!(inbox.waiting(), before),
            Err(refused) => {
                assert!(full, "there was room for it");
                assert_eq!((refused, inbox.waiting()), (Refused::Full { waiting: 2 }, 1));
            }
        }
    });
}

#[test]
fn waking_is_never_missed() {
    check(4, || {
        let inbox = Arc::new(Inbox::<u32>::new(1, 0));
        let waker = thread::spawn({
            let inbox = Arc::clone(&inbox);
            move || inbox.wake()
        });
        // Loom fails where this sleeps for ever.
        assert_eq!(inbox.take(true), Some(VecDeque::new()));
        waker.join().unwrap();
        // It was woken once: now there is nothing to return for but a message.
        let sender = thread::spawn({
            let inbox = Arc::clone(&inbox);
            move || inbox.send(1).unwrap()
        });
        assert_eq!(inbox.take(true), Some(VecDeque::from([1])));
        sender.join().unwrap();
    });
}

#[test]
fn a_message_wakes_whoever_waits() {
    check(4, || {
        let inbox = Arc::new(Inbox::new(1, 0));
        let senders = [
            thread::spawn({
                let inbox = Arc::clone(&inbox);
                move || inbox.send(1).unwrap()
            }),
            thread::spawn({
                let inbox = Arc::clone(&inbox);
                move || inbox.submit([2].into_iter()).unwrap()
            }),
        ];
        let mut taken = Vec::new();
        while taken.len() < 2 {
            taken.extend(inbox.take(true).unwrap());
        }
        senders.into_iter().for_each(|sender| sender.join().unwrap());
        assert_eq!(sorted(taken), [1, 2]);
    });
}

#[test]
fn closing_answers_everybody() {
    check(3, || {
        let inbox = Arc::new(Inbox::<u32>::new(1, 0));
        // A taker that waits, and a caller that comes late.
        let taker = thread::spawn({
            let inbox = Arc::clone(&inbox);
            move || take_all(&inbox)
        });
        let caller = thread::spawn({
            let inbox = Arc::clone(&inbox);
            move || inbox.submit([1].into_iter()).is_ok()
        });
        inbox.close();
        let (taken, was_sent) = (taker.join().unwrap(), caller.join().unwrap());
        assert_eq!(taken, if was_sent { vec![1] } else { vec![] });
        assert_eq!(inbox.take(true), None);
    });
}

#[test]
fn cancelling_reaches_the_child_and_stays() {
    check(4, || {
        let caller = CancelToken::new();
        let (answer, other) = (caller.child(), caller.child());
        let inbox = Arc::new(Inbox::<u32>::new(1, 0));
        let canceller = thread::spawn({
            let (answer, inbox) = (answer.clone(), Arc::clone(&inbox));
            move || {
                answer.cancel();
                inbox.wake();
            }
        });
        let everybody = thread::spawn({
            let caller = caller.clone();
            move || caller.cancel()
        });
        // The computing thread: once it has seen the flag it never sees it unset again, and the waker tells it to look.
        let before = answer.is_cancelled();
        assert!(!before || answer.is_cancelled());
        assert_eq!(inbox.take(true), Some(VecDeque::new()));
        assert!(answer.is_cancelled(), "what woke it came after the flag");
        canceller.join().unwrap();
        everybody.join().unwrap();
        assert!(caller.is_cancelled() && other.is_cancelled());
    });
}

#[test]
fn a_child_that_is_cancelled_leaves_its_parent_alone() {
    check(4, || {
        let caller = CancelToken::new();
        let (answer, other) = (caller.child(), caller.child());
        let canceller = thread::spawn(move || answer.cancel());
        assert!(!caller.is_cancelled() && !other.is_cancelled());
        canceller.join().unwrap();
        assert!(!caller.is_cancelled() && !other.is_cancelled());
    });
}
