//! Stub.
use std::time::Instant;

use crate::report::Conditions;

/// Watches.
#[derive(Debug)]
pub struct Watch(Instant);

/// Now.
#[derive(Debug, Clone, Copy, Default)]
pub struct Reading {
    /// Hz.
    pub frequency: Option<f64>,
    /// °C.
    pub temperature: Option<f64>,
    /// W.
    pub watts: Option<f64>,
}

impl Watch {
    /// From now on.
    pub fn start() -> Self {
        Self(Instant::now())
    }

    /// Until now.
    pub fn finish(self, _tokens: usize) -> (Conditions, Vec<String>) {
        (Conditions { wall_seconds: self.0.elapsed().as_secs_f64(), ..Conditions::default() }, Vec::new())
    }

    /// Now.
    pub fn moment(&mut self) -> Reading {
        Reading::default()
    }
}
