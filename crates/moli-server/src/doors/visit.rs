//! What is known of a request while it is answered: whose it is, and what the access log will say.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use super::keys::Key;

tokio::task_local! {
    /// The request that this task answers.
    static VISIT: Arc<Visit>;
}

/// A request, from its head to the last byte of its response.
#[derive(Debug, Default)]
pub(crate) struct Visit {
    admitted: OnceLock<Admitted>,
    pub(crate) bytes_in: AtomicU64,
    told: Mutex<Told>,
}

/// Whoever may come in.
#[derive(Debug)]
pub(crate) enum Admitted {
    /// Anybody: there are no keys.
    Anyone,
    /// The holder of a key.
    Key(Arc<Key>),
}

/// What the access log will say of a request besides.
#[derive(Debug, Default, Clone)]
pub(crate) struct Told {
    pub(crate) model: Option<String>,
    pub(crate) prompt_tokens: usize,
    pub(crate) completion_tokens: usize,
}

impl Visit {
    /// Answers a request: whoever asks for the [`current`] one meanwhile gets this one.
    pub(crate) async fn during<F: Future>(self: Arc<Self>, work: F) -> F::Output {
        VISIT.scope(self, work).await
    }

    pub(crate) fn admit(&self, who: Admitted) {
        // The first holds: there is one door.
        let _ = self.admitted.set(who);
    }

    /// The name of its key.
    pub(crate) fn key(&self) -> Option<&str> {
        match self.admitted.get() {
            Some(Admitted::Key(key)) => Some(&key.name),
            _ => None,
        }
    }

    fn may_use(&self, model: &str) -> bool {
        match self.admitted.get() {
            Some(Admitted::Anyone) => true,
            Some(Admitted::Key(key)) => key.may_use(model),
            None => false,
        }
    }

    pub(crate) fn told(&self) -> MutexGuard<'_, Told> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn bytes_in(&self) -> u64 {
        self.bytes_in.load(Ordering::Relaxed)
    }
}

/// The request that is answered here.
pub(crate) fn current() -> Option<Arc<Visit>> {
    VISIT.try_with(Arc::clone).ok()
}

/// Whether this request may use a model. Where no request is answered, or it was not let in, it may not.
pub(crate) fn may_use(model: &str) -> bool {
    VISIT.try_with(|visit| visit.may_use(model)).unwrap_or(false)
}

/// Notes for the log which model a request is for.
pub(crate) fn note_model(name: &str) {
    if let Some(visit) = current() {
        visit.told().model = Some(name.to_owned());
    }
}
