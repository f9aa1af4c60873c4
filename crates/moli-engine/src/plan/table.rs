//! The plan for a person: the table, what was lowered, and why a model does not fit.

use std::fmt;

use moli_model::{KvType, pages_of};

use super::{Limit, MemoryPlan};
use crate::units::megabytes;

/// A part of the plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlanRow {
    /// What takes the memory.
    pub name: &'static str,
    /// How much.
    pub bytes: u64,
    /// What it is for.
    pub note: String,
}

/// What memory is divided by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// Tokens that a session can hold.
    pub context: usize,
    /// Sessions whose context can be full at the same time.
    pub sessions: usize,
    /// How keys and values are stored.
    pub kv_type: KvType,
    /// Pages beyond those of the sessions, for the beginnings of earlier prompts.
    pub prefix_pages: u64,
}

impl Settings {
    /// Pages that the sessions need when all are full.
    pub(super) fn session_pages(&self) -> u64 {
        (pages_of(self.context) as u64).saturating_mul(self.sessions as u64)
    }

    /// All pages.
    pub(super) fn pages(&self) -> u64 {
        self.session_pages().saturating_add(self.prefix_pages)
    }
}

/// Something that was lowered so that the model fits.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Change {
    /// Fewer pages for the beginnings of earlier prompts.
    PrefixCache {
        /// Bytes that were wished for.
        from: u64,
        /// Bytes that there are.
        to: u64,
    },
    /// Keys and values of lower precision.
    KvType {
        /// What was wished for.
        from: KvType,
        /// What they are stored in.
        to: KvType,
        /// Bytes that it saves.
        saved: u64,
    },
    /// A shorter context.
    Context {
        /// Tokens that were wished for.
        from: usize,
        /// Tokens that there are.
        to: usize,
        /// Bytes that it saves.
        saved: u64,
    },
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PrefixCache { from, to: 0 } => write!(f, "no prefix cache: saves {}", megabytes(*from)),
            Self::PrefixCache { from, to } => {
                let saved = megabytes(from.saturating_sub(*to));
                write!(
                    f,
                    "a prefix cache of {} instead of {}: saves {saved}",
                    megabytes(*to),
                    megabytes(*from)
                )
            }
            Self::KvType { from, to, saved } => {
                let (from, to) = (from.name(), to.name());
                write!(f, "keys and values in {to} instead of {from}: saves {}", megabytes(*saved))
            }
            Self::Context { from, to, saved } => {
                write!(f, "a context of {to} tokens instead of {from}: saves {}", megabytes(*saved))
            }
        }
    }
}

/// Why a model does not fit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shortage {
    /// Bytes that the model takes when everything is lowered that may be.
    pub needed: u64,
    /// Bytes of its weights alone.
    pub weights: u64,
    /// What there is.
    pub limit: Limit,
    /// Bytes of the least with which it runs: the shortest context for one session.
    pub least: u64,
    /// What would fit, where anything would.
    pub fits: Option<Settings>,
}

impl fmt::Display for Shortage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { needed, weights, limit, least, fits } = self;
        write!(
            f,
            "the model needs {}, {} of them for its weights, ",
            megabytes(*needed),
            megabytes(*weights)
        )?;
        write!(f, "which is more than {limit}; ")?;
        match fits {
            Some(Settings { context, sessions, kv_type, .. }) => {
                let plural = if *sessions == 1 { "" } else { "s" };
                let kv = kv_type.name();
                write!(
                    f,
                    "{sessions} session{plural} of {context} tokens with keys and values in {kv} would fit"
                )
            }
            None => write!(f, "the least that it runs in is {}", megabytes(*least)),
        }
    }
}

impl fmt::Display for MemoryPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for PlanRow { name, bytes: n, note } in &self.rows {
            writeln!(f, "{name:16} {:>11}  {note}", megabytes(*n))?;
        }
        let limit = match &self.limit {
            Some(limit) => format!("of {limit}"),
            None => "no limit is known".to_owned(),
        };
        write!(f, "{:16} {:>11}  {limit}", "total", megabytes(self.total_bytes))?;
        self.changes.iter().try_for_each(|change| write!(f, "\nto fit: {change}"))
    }
}
