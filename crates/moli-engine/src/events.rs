//! The way from the computing thread to whoever listens to an answer, by waiting on it or by polling it.

use std::sync::mpsc::{self, Receiver, TryRecvError};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};

use crate::answer::Event;

/// Whom to wake, if anybody polls.
#[derive(Debug, Default)]
struct Listener(Mutex<Option<Waker>>);

impl Listener {
    fn register(&self, waker: &Waker) {
        let mut listener = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match listener.as_mut() {
            Some(registered) => registered.clone_from(waker),
            None => *listener = Some(waker.clone()),
        }
    }

    fn wake(&self) {
        let waker = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

/// The computing thread's end. Events end when all clones are dropped.
#[derive(Debug, Clone)]
pub(crate) struct EventSender {
    /// `None` only while it is dropped.
    sender: Option<mpsc::Sender<Event>>,
    listener: Arc<Listener>,
}

impl EventSender {
    pub(crate) fn send(&self, event: Event) {
        if let Some(sender) = &self.sender {
            // Whoever does not listen any more has cancelled.
            let _ = sender.send(event);
        }
        self.listener.wake();
    }
}

impl Drop for EventSender {
    fn drop(&mut self) {
        // In this order: whoever is woken sees that it is gone.
        self.sender = None;
        self.listener.wake();
    }
}

/// The caller's end.
#[derive(Debug)]
pub(crate) struct Events {
    receiver: Receiver<Event>,
    listener: Arc<Listener>,
}

impl Events {
    /// The next event, waited for; `None`: there is nobody left to send one.
    pub(crate) fn next(&self) -> Option<Event> {
        self.receiver.recv().ok()
    }

    /// The next event if there is one; the task is woken when there may be.
    pub(crate) fn poll(&self, context: &Context<'_>) -> Poll<Option<Event>> {
        let try_next = || match self.receiver.try_recv() {
            Ok(event) => Poll::Ready(Some(event)),
            Err(TryRecvError::Disconnected) => Poll::Ready(None),
            Err(TryRecvError::Empty) => Poll::Pending,
        };
        // Looked at again once the listener is known: an event in between would wake nobody.
        match try_next() {
            Poll::Pending => {
                self.listener.register(context.waker());
                try_next()
            }
            ready => ready,
        }
    }
}

/// Both ends.
pub(crate) fn channel() -> (EventSender, Events) {
    let (sender, receiver) = mpsc::channel();
    let listener = Arc::new(Listener::default());
    (EventSender { sender: Some(sender), listener: Arc::clone(&listener) }, Events { receiver, listener })
}
