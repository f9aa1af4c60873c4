//! Answers that are polled give what they give to whoever waits, and no wake-up is lost.

use std::future::poll_fn;
use std::pin::pin;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};

use super::*;

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// An async runtime for one future. A wake-up that is lost is a test that never ends.
fn block_on<T>(future: impl Future<Output = T>) -> T {
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let (mut future, mut context) = (pin!(future), Context::from_waker(&waker));
    loop {
        match future.as_mut().poll(&mut context) {
            Poll::Ready(value) => return value,
            Poll::Pending => thread::park(),
        }
    }
}

#[test]
fn a_polled_answer_is_the_waited_one() {
    let (engine, _) = toy(256, 16);
    for round in 0..50 {
        let params = GenerateParams { choices: 3, ..seeded(40, round) };
        let waited: Vec<Chunk> =
            engine.submit(&[1, 2], &params, &CancelToken::new()).unwrap().map(Result::unwrap).collect();
        let mut answer = engine.submit(&[1, 2], &params, &CancelToken::new()).unwrap();
        let mut polled = Vec::new();
        while let Some(chunk) = block_on(poll_fn(|context| answer.poll_next(context))) {
            polled.push(chunk.unwrap());
        }
        assert_eq!(polled, waited);
        assert_eq!(answer.summary().finish_reason, FinishReason::Length);
    }
}

#[test]
fn a_panic_below_wakes_whoever_polls() {
    for _ in 0..20 {
        let (engine, probe) = toy(64, 16);
        let mut answer = engine.submit(&[1], &greedy(1000), &CancelToken::new()).unwrap();
        probe.panic.store(true, Relaxed);
        let mut next = || block_on(poll_fn(|context| answer.poll_next(context)));
        let last = std::iter::from_fn(&mut next).last();
        assert!(matches!(last, Some(Err(EngineError::Poisoned)) | Some(Ok(_))), "{last:?}");
        assert!(next().is_none());
    }
}
