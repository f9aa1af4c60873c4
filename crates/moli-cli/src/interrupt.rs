//! Ctrl-C: the first one cancels the answer that is being written, any other one leaves.

use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result};
use moli_engine::CancelToken;

/// The conventional exit code of a process that Ctrl-C ended: 128 + SIGINT.
pub(crate) const EXIT_CODE: u8 = 130;

/// What the next Ctrl-C cancels, while there is something to cancel.
static CURRENT: Mutex<Option<CancelToken>> = Mutex::new(None);

/// Takes over Ctrl-C for the whole process.
pub(crate) fn install() -> Result<()> {
    ctrlc::set_handler(|| {
        let current = CURRENT.lock().unwrap_or_else(PoisonError::into_inner);
        match current.as_ref() {
            Some(token) if !token.is_cancelled() => token.cancel(),
            _ => std::process::exit(i32::from(EXIT_CODE)),
        }
    })
    .context("cannot take over Ctrl-C")
}

/// Runs `work`, which watches the token that it is given: a Ctrl-C meanwhile cancels it.
pub(crate) fn cancellable<T>(work: impl FnOnce(&CancelToken) -> T) -> T {
    let _guard = Guard;
    let token = CancelToken::default();
    set(Some(token.clone()));
    work(&token)
}

struct Guard;

impl Drop for Guard {
    fn drop(&mut self) {
        set(None);
    }
}

fn set(token: Option<CancelToken>) {
    *CURRENT.lock().unwrap_or_else(PoisonError::into_inner) = token;
}
