//! The commands, one file each. `run` is the daemon, `check` needs no daemon, and the others use the control API.

pub(crate) mod check;
mod client;
mod drop_data;
mod interrupt;
mod locate_supervisor;
mod logs;
mod orders;
mod reload;
pub(crate) mod run;
mod status;
pub(crate) mod sweep;
mod tenant;
#[cfg(test)]
mod tests;

use crate::cli::Command;
use crate::fleet::handle::Order;
use client::ControlClient;
use locate_supervisor::SupervisorPaths;
use std::fmt;
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

/// Exit status: a problem was found; standard error describes it.
pub(crate) const EXIT_PROBLEM: u8 = 1;
/// Exit status: the control socket does not answer.
pub(crate) const EXIT_NOT_RUNNING: u8 = 69;
/// Exit status: the supervisor's own file is wrong.
pub(crate) const EXIT_CONFIGURATION: u8 = 78;

/// Writes `problem` to standard error and returns the exit status. `problem` may have several lines.
pub(crate) fn complain(problem: &str, code: u8) -> ExitCode {
    // Ignores a closed standard error, because the exit status reports the problem too.
    let _ = writeln!(io::stderr(), "{}", problem.trim_end());
    ExitCode::from(code)
}

/// Runs a command that uses the control API, which is every command except `run` and `check`.
pub(crate) fn client(command: &Command, config: &Path) -> ExitCode {
    match carry_out(command, config) {
        Ok(()) => ExitCode::SUCCESS,
        // The reader of a pipe such as `status | head` has stopped reading.
        Err(Failure::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => {
            ExitCode::SUCCESS
        }
        Err(Failure::Told) => ExitCode::from(EXIT_PROBLEM),
        Err(failure) => complain(&failure.to_string(), failure.code()),
    }
}

fn carry_out(command: &Command, config: &Path) -> Result<(), Failure> {
    let SupervisorPaths {
        config,
        whole,
        problems,
    } = locate_supervisor::find(config).map_err(Failure::Configuration)?;
    let client = ControlClient::new(&config.runtime_dir)?;
    if let Some(problems) = problems {
        let tenant_files = matches!(command, Command::Tenant { .. });
        // Errors in the file do not stop commands to a running supervisor, but they may be the reason why none runs.
        // Tenant file commands need the whole file, because a tenant's file depends on it.
        if !client.is_there() || (tenant_files && !whole) {
            return Err(Failure::Configuration(problems));
        }
        complain(&problems, EXIT_CONFIGURATION);
    }
    match command {
        Command::Status(options) => status::status(&client, options),
        Command::Logs(options) => logs::logs(&client, options),
        Command::Start(which) => orders::order(&client, which, Order::Start, false),
        Command::Stop(which) => orders::order(&client, which, Order::Stop, false),
        Command::Restart(restart) => {
            orders::order(&client, &restart.which, Order::Restart, restart.keep_going)
        }
        Command::Reload(options) => reload::reload(&client, options.confirm_removals),
        Command::Tenant { command } => tenant::tenant(&client, &config, command),
        Command::Pak { tenant } => say(&client.get(&format!("/v1/pak/{tenant}"))?),
        Command::Run(_) | Command::Check(_) | Command::Sweep => Err(Failure::Problem(
            "this command does not ask the supervisor".to_owned(),
        )),
    }
}

/// The reason why a command failed.
#[derive(Debug)]
enum Failure {
    /// The supervisor does not answer.
    NotRunning(String),
    /// The supervisor's own file is wrong.
    Configuration(String),
    /// The problem that the supervisor or the command reports.
    Problem(String),
    /// A signal came before the answer to an order.
    Interrupted,
    /// The problem is already printed, line by line.
    Told,
    /// An error of standard output.
    Output(io::Error),
}

impl Failure {
    fn code(&self) -> u8 {
        match self {
            Failure::NotRunning(_) => EXIT_NOT_RUNNING,
            Failure::Configuration(_) => EXIT_CONFIGURATION,
            Failure::Interrupted => interrupt::EXIT_INTERRUPTED,
            Failure::Problem(_) | Failure::Told | Failure::Output(_) => EXIT_PROBLEM,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::NotRunning(text) | Failure::Configuration(text) | Failure::Problem(text) => {
                f.write_str(text)
            }
            Failure::Interrupted => f.write_str(
                "interrupted: the supervisor goes on with what it was asked to do; `brokkr-supervisor status` shows how far it is",
            ),
            Failure::Told => Ok(()),
            Failure::Output(error) => write!(f, "cannot write to standard output: {error}"),
        }
    }
}

/// Writes to standard output and flushes.
fn say(bytes: &[u8]) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    stdout
        .write_all(bytes)
        .and_then(|()| stdout.flush())
        .map_err(Failure::Output)
}

/// Makes foreign text safe for a terminal: on one line, without control sequences.
fn harmless(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for character in text.chars() {
        if character.is_control() {
            shown.extend(character.escape_default());
        } else {
            shown.push(character);
        }
    }
    shown
}
