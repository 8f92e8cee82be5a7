//! One tenant's broker: the HTTP service for the tenant's agents and generators, on one schema of one PostgreSQL
//! server.
//!
//! ```text
//! listener -> http (connections, draining) -> router -> handler -> store -> Db (one closure, one connection) -> answer
//! ```
//!
//! - One thread turns the event loop. Database work runs only on blocking threads ([`db`]).
//! - A start brings the schema up to date before the broker takes the first request ([`db::start`]).
//! - Templates and their schemas have bounded memory and time ([`template`]).
//! - A write stores its audit entries and events in its own transaction ([`domain::outbox`]).
//! - Supervisor and broker share only the protocol of `docs/src/instance-protocol.md`: descriptors, datagrams, a
//!   private socket. Without a supervisor everything works the same, on a socket of the broker's own.

pub mod api;
pub mod app;
pub mod auth;
pub mod cli;
pub mod config;
pub mod db;
pub mod domain;
pub mod error;
#[doc(hidden)]
pub mod fuzzing;
pub mod health;
pub mod http;
pub mod jobs;
pub mod log;
pub mod metrics;
pub mod pak;
pub mod reload;
pub mod runtime_config;
mod sandbox;
pub mod store;
mod sys;
pub mod template;
pub mod tls;
pub mod webhook;
pub mod websocket;
