//! Tests that need the machine to themselves: they boot it, fill it, load it or measure it.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test that cannot go on says why and ends"
)]

mod boot;
mod chaos;
mod demo;
mod endurance;
mod limits;
mod pressure;
mod systemd;
