//! The published Rust client against this broker: its document, and a walk through every operation it has.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test that cannot go on says why and ends"
)]

mod document;
mod published;
mod walk;
