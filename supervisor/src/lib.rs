//! The parent of every Brokkr broker on a host: one isolated process per tenant on shared PostgreSQL servers.
//!
//! A library only for the program of the same name and for the fuzz targets.

mod atomic_file;
mod budget;
mod cli;
mod commands;
mod config;
mod control;
mod embedded;
mod fleet;
#[doc(hidden)]
pub mod fuzzing;
mod handover;
mod instance;
mod lifecycle;
mod logs;
mod memfd;
mod servers;
#[cfg(test)]
mod simulation;
mod status;
mod sys;
mod systemd;
mod watch;

use clap::Parser;
use cli::{Cli, Command};
use handover::inherited::InheritedFds;
use std::process::ExitCode;

/// Runs the command that this process's arguments name.
pub fn main() -> ExitCode {
    // Must come first, because later another file could have an inherited descriptor's number.
    let inherited = InheritedFds::take();
    let cli = Cli::parse();
    match &cli.command {
        Command::Run(options) if options.check_state => commands::run::check_state(cli.config()),
        Command::Run(_) => commands::run::run(cli.config(), inherited),
        Command::Sweep => commands::sweep::sweep(cli.config()),
        Command::Check(options) => commands::check::check(cli.config(), options),
        command => commands::client(command, cli.config()),
    }
}
