//! The crate's operations on the mock driver (`mock/`), beside plain arithmetic on the host.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

mod attention;
mod elementwise;
mod errors;
mod heads;
mod orders;
mod pages;
mod process;
mod products;
mod shapes;
mod unpacking;
