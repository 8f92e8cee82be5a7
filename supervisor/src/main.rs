//! The parent of every Brokkr broker on a host: one isolated process per tenant on shared PostgreSQL servers.

mod budget;
mod cli;
mod commands;
mod config;
mod control;
mod embedded;
mod fleet;
mod instance;
mod lifecycle;
mod logs;
mod parties;
mod servers;
#[cfg(test)]
mod simulation;
mod status;
mod sys;
mod systemd;
mod watch;

use clap::Parser;
use cli::{Cli, Command};
use std::process::ExitCode;

fn main() -> ExitCode {
    let cli = Cli::parse();
    match &cli.command {
        Command::Run => commands::run::run(cli.config()),
        Command::Check(options) => commands::check::check(cli.config(), options),
        command => commands::client(command, cli.config()),
    }
}
