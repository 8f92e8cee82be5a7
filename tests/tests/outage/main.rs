//! The server is away, hangs, is full, takes no writes, or the network to it fails: brokers stay, answer 503 in time, and
//! serve again at once when it is back.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "tests"
)]

mod away;
mod full;
mod lost_schema;
mod network;
mod read_only;
mod scene;
mod stampede;
mod statements;
