//! The API of a broker, as its clients see it: every resource, its permissions, its refusals and its cost.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test that cannot go on says why and ends"
)]

mod admin;
mod agents;
mod auth;
mod bounds;
mod bulk_rows;
mod diagnostics;
mod fleet;
mod generators;
mod health;
mod hostile_templates;
mod indexes;
mod injection;
mod instantiation;
mod migrations;
mod objects;
mod permissions;
mod races;
mod scale;
mod schemathesis;
mod stacks;
mod statements;
mod target_state;
mod telemetry;
mod templates;
mod webhooks;
mod websocket_indexes;
mod work_orders;
