//! A broker as a program: commands, configuration, connections, WebSockets, webhooks, and a server that fails.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test that cannot go on says why and ends"
)]

mod agent_life;
mod cli;
mod connections;
mod faults_of_upstream;
mod http;
mod metrics;
mod outage;
mod reload;
mod tls;
mod webhook_delivery;
mod websocket_agent;
mod websocket_consumers;
mod websocket_pushes;
