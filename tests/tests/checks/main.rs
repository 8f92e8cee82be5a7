//! Checks of the source, the units, the OpenAPI document and the test harness itself.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test that cannot go on says why and ends"
)]

mod harness_selftest;
mod import_loops;
mod names;
mod openapi;
mod structure;
mod units;
