//! The rules of the API's resources that REST, WebSockets, jobs and commands share: no HTTP, no SQL.
//!
//! A rule checks, calls the statements of `store` and records audit entries and events ([`outbox`]). Each refusal is a
//! value; `error` gives it a status and a code.

pub mod agent_events;
pub mod deployment_health;
pub mod outbox;
pub mod provisioning;
pub mod report;
pub mod text;
pub mod webhook_deliveries;
