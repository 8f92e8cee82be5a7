//! The host runs out of a resource: this is reported, no running tenant is harmed, and everything recovers without a
//! command.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "tests"
)]

mod descriptors;
mod disk;
mod files;
mod pids;
mod world;
