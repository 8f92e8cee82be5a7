//! A supervisor with its tenants: files in, processes out.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test that cannot go on says why and ends"
)]

mod adoption;
mod crash_loops;
mod database_attacks;
mod embedded;
mod faults;
mod files;
mod hangs;
mod isolation;
mod logs;
mod probes;
mod provision;
mod python_client;
mod refusals;
mod replacement;
mod restart_all;
mod secrets;
mod servers;
mod stop;
mod succession;
mod tls;
mod two_tenants;
mod user_ids;
