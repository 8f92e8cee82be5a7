//! One tenant's broker: the HTTP service its agents and generators talk to, on one schema of one PostgreSQL server.
//!
//! ```text
//! listener -> serve (connections, draining) -> router -> handler -> store -> Db (one closure, one connection) -> answer
//! ```
//!
//! - One thread turns the event loop. Database work runs on blocking threads and only there ([`db`]).
//! - A start brings the schema up to date before the first request is taken ([`db::start`]).
//! - What templates and their schemas can do is bounded ([`template`]).
//! - A write leaves its audit entries and events in its own transaction ([`emit`]).
//! - Between supervisor and broker there is only what `docs/src/instance-protocol.md` says: descriptors, datagrams, a
//!   private socket. Without a supervisor everything works the same, on a socket of the broker's own.

pub mod api;
pub mod app;
pub mod auth;
pub mod cli;
pub mod config;
pub mod db;
pub mod emit;
pub mod enrol;
pub mod error;
pub mod health;
pub mod hot;
pub mod jobs;
pub mod live;
pub mod log;
pub mod metrics;
pub mod pak;
pub mod reload;
pub mod serve;
pub mod store;
mod sys;
pub mod template;
pub mod webhook;
