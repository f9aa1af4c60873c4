//! What callers send to the thread that computes.
//!
//! Requests that wait are counted, and refused at once where there are too many: nobody's queue grows without bound. Those that
//! the batch has places for wait for nobody, and take no room: a burst that comes between two steps finds its free places as well as
//! the queue's. Other messages pass. Whoever closes the inbox gets what is still in it; nothing is lost in between.

use std::collections::VecDeque;

use crate::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// Why a request was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refused {
    /// So many wait already.
    Full { waiting: usize },
    /// Nobody takes messages any more.
    Closed,
}

#[derive(Debug)]
pub(crate) struct Inbox<T> {
    state: Mutex<State<T>>,
    changed: Condvar,
    limit: usize,
}

#[derive(Debug)]
struct State<T> {
    messages: VecDeque<T>,
    /// Requests that were sent and neither [`taken on`](Inbox::taken_on) nor [`left`](Inbox::left).
    waiting: usize,
    /// Free places of the batch.
    places: usize,
    woken: bool,
    closed: bool,
}

impl<T> Inbox<T> {
    /// An inbox in which at most `limit` requests wait, beside those that find one of so many places free.
    pub(crate) fn new(limit: usize, places: usize) -> Self {
        let state = State { messages: VecDeque::new(), waiting: 0, places, woken: false, closed: false };
        Self { state: Mutex::new(state), changed: Condvar::new(), limit }
    }

    /// Sends requests that belong together: all of them or none.
    pub(crate) fn submit(&self, requests: impl ExactSizeIterator<Item = T>) -> Result<(), Refused> {
        let mut state = self.lock();
        if state.closed {
            return Err(Refused::Closed);
        }
        if requests.len() > self.room(&state) {
            return Err(Refused::Full { waiting: state.waiting });
        }
        state.waiting += requests.len();
        state.messages.extend(requests);
        self.changed.notify_one();
        Ok(())
    }

    /// Sends something that is no request.
    pub(crate) fn send(&self, message: T) -> Result<(), Refused> {
        let mut state = self.lock();
        if state.closed {
            return Err(Refused::Closed);
        }
        state.messages.push_back(message);
        self.changed.notify_one();
        Ok(())
    }

    /// Takes note that a request waits no longer: it has a place.
    pub(crate) fn taken_on(&self) {
        let mut state = self.lock();
        state.waiting = state.waiting.saturating_sub(1);
        state.places = state.places.saturating_sub(1);
    }

    /// Takes note that a request waits no longer: it has ended.
    pub(crate) fn left(&self) {
        let mut state = self.lock();
        state.waiting = state.waiting.saturating_sub(1);
    }

    /// Takes note of how many places of the batch are free.
    pub(crate) fn set_places(&self, places: usize) {
        self.lock().places = places;
    }

    /// Whether a request would be taken.
    pub(crate) fn has_room(&self) -> bool {
        self.room(&self.lock()) > 0
    }

    fn room(&self, state: &State<T>) -> usize {
        self.limit.saturating_add(state.places).saturating_sub(state.waiting)
    }

    /// Requests that wait.
    pub(crate) fn waiting(&self) -> usize {
        self.lock().waiting
    }

    /// Has [`take`](Self::take) return though there may be no message.
    pub(crate) fn wake(&self) {
        self.lock().woken = true;
        self.changed.notify_one();
    }

    /// All messages; where there are none and `wait`, the next ones. `None`: it is closed, and nothing is left.
    pub(crate) fn take(&self, wait: bool) -> Option<VecDeque<T>> {
        let mut state = self.lock();
        while wait && state.messages.is_empty() && !state.woken && !state.closed {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.woken = false;
        if state.closed && state.messages.is_empty() {
            return None;
        }
        Some(std::mem::take(&mut state.messages))
    }

    /// Refuses messages from now on; what is here can still be taken.
    pub(crate) fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_all();
    }

    /// The state is a few numbers and a list: it is whole whatever panicked.
    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
