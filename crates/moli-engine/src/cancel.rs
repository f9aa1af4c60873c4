//! Stopping an answer from another thread.

use crate::sync::{Arc, AtomicBool, Ordering};

/// Ends a generation within one step: one token, or one chunk of a prompt. Clones share one flag.
#[derive(Debug, Clone, Default)]
pub struct CancelToken {
    cancelled: Arc<AtomicBool>,
    parent: Option<Arc<AtomicBool>>,
}

impl CancelToken {
    /// A token that nobody has cancelled yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Asks the generation to end. It can't be taken back: the next generation needs a new token.
    pub fn cancel(&self) {
        // The flag guards no other memory.
        self.cancelled.store(true, Ordering::Relaxed);
    }

    /// Whether [`cancel`](Self::cancel) has been called on this token or a clone of it.
    pub fn is_cancelled(&self) -> bool {
        let is_set = |flag: &Arc<AtomicBool>| flag.load(Ordering::Relaxed);
        is_set(&self.cancelled) || self.parent.as_ref().is_some_and(is_set)
    }

    /// A token that is cancelled with this one or by itself.
    pub(crate) fn child(&self) -> Self {
        Self { cancelled: Arc::default(), parent: Some(Arc::clone(&self.cancelled)) }
    }
}
