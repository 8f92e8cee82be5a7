//! The parent of every Brokkr broker on a host: one isolated process per tenant on shared PostgreSQL servers.

mod budget;
mod commands;
mod config;
mod control;
mod embedded;
mod fleet;
mod instance;
mod lifecycle;
mod logs;
mod servers;
mod status;
mod sys;
mod systemd;
mod watch;

fn main() {}
