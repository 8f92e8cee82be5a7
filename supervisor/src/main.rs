//! The parent of every Brokkr broker on a host: one isolated process per tenant on shared PostgreSQL servers.

mod budget;
mod commands;
mod control;
mod fleet;
mod logs;
mod servers;
mod status;
mod systemd;

fn main() {}
