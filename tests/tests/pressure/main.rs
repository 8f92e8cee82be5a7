//! The host runs out of something: it is said, nobody who runs is harmed, and all is well again by itself.
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
