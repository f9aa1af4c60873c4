//! Who comes in, by which door, and for how long.
//!
//! - [`keys`]: the keys that requests need, and what each of them allows;
//! - [`visit`]: what is known of a request while it is answered;
//! - [`gate`]: requests that a browser was talked into, and those that can be read in two ways;
//! - [`access`]: keys asked for, and the access log;
//! - [`connection`]: a connection from its first byte to its last, [`pace`]: clients that do not read;
//! - [`tls`], [`unix`], [`health`]: other doors than plain TCP.

pub(crate) mod access;
pub(crate) mod connection;
pub(crate) mod gate;
pub(crate) mod health;
pub(crate) mod keys;
mod pace;
pub(crate) mod tls;
pub(crate) mod unix;
pub(crate) mod visit;
