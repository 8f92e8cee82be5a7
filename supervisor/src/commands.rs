//! One file a command. `run` is the daemon and `check` works for itself; all others are clients of the control API.

pub(crate) mod check;
mod client;
mod found;
mod interrupt;
mod logs;
mod orders;
mod pak;
mod reload;
pub(crate) mod run;
mod status;
pub(crate) mod sweep;
mod tenant;
#[cfg(test)]
mod tests;

use crate::cli::Command;
use crate::fleet::handle::Order;
use client::Client;
use found::Found;
use std::fmt;
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

/// Exit status: something is not as it should be; standard error says what.
pub(crate) const EXIT_PROBLEM: u8 = 1;
/// Exit status: nobody answers on the control socket.
pub(crate) const EXIT_NOT_RUNNING: u8 = 69;
/// Exit status: the supervisor's own file is wrong.
pub(crate) const EXIT_CONFIGURATION: u8 = 78;

/// Says what is wrong on standard error. `problem` may be several lines.
pub(crate) fn complain(problem: &str, code: u8) -> ExitCode {
    // Nobody reads our complaints any more: the status says it too.
    let _ = writeln!(io::stderr(), "{}", problem.trim_end());
    ExitCode::from(code)
}

/// Carries out a command that is a client of the control API. `run` and `check` are none.
pub(crate) fn client(command: &Command, config: &Path) -> ExitCode {
    match carry_out(command, config) {
        Ok(()) => ExitCode::SUCCESS,
        // `status | head` has what it wanted.
        Err(Failure::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => {
            ExitCode::SUCCESS
        }
        Err(Failure::Told) => ExitCode::from(EXIT_PROBLEM),
        Err(failure) => complain(&failure.to_string(), failure.code()),
    }
}

fn carry_out(command: &Command, config: &Path) -> Result<(), Failure> {
    let Found {
        config,
        whole,
        problems,
    } = found::find(config).map_err(Failure::Configuration)?;
    let client = Client::new(&config.runtime_dir)?;
    if let Some(problems) = problems {
        let tenant_files = matches!(command, Command::Tenant { .. });
        // A mistake in the file does not keep a supervisor that runs from being asked; where there is none, it is what
        // is wrong. What goes into a tenant's file hangs on all of it.
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
        Command::Pak { tenant } => pak::pak(&client, tenant),
        Command::Run(_) | Command::Check(_) | Command::Sweep => Err(Failure::Problem(
            "this command does not ask the supervisor".to_owned(),
        )),
    }
}

/// Why a command did not do what it should.
#[derive(Debug)]
enum Failure {
    /// Nobody answers.
    NotRunning(String),
    /// The supervisor's own file is wrong.
    Configuration(String),
    /// What the supervisor said, or what was found.
    Problem(String),
    /// A signal came before the answer to an order.
    Interrupted,
    /// All has been said already, line by line.
    Told,
    /// Our own standard output.
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

/// Writes to standard output, at once.
fn say(bytes: &[u8]) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    stdout
        .write_all(bytes)
        .and_then(|()| stdout.flush())
        .map_err(Failure::Output)
}

/// Text from elsewhere as it may go to a terminal: on its line, and without sequences that drive one.
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
