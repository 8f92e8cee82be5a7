//! The commands of `brokkr-broker`.
//!
//! They print results on standard output and errors as `Error: …` on standard error. Exit codes: 0 done, 1 failed, 2
//! usage, 69 no server, 78 configuration.

mod create;
mod exit;
mod healthcheck;
mod output;
mod rotate;

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

use brokkr_tenant::{LogFormat, Mode};
use clap::{Parser, Subcommand};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::config::Instance;
use crate::db::start::migrate;
use crate::http::{InheritedSockets, ServeError, serve};
use crate::log;
use crate::pak::{Pak, PakFormat};
use crate::sandbox;
use exit::failed;
use output::{Stream, say};

/// One tenant's Brokkr broker.
#[derive(Parser)]
#[command(name = "brokkr-broker", version, about, disable_help_subcommand = true)]
struct Cli {
    /// Configuration file; else BROKKR_CONFIG_FILE, else environment and defaults
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve the tenant until told to stop
    Serve,
    /// Bring the schema up to date and exit
    Migrate,
    /// Print a new PAK and its hash; touches neither database nor disk
    GeneratePak,
    /// Print the OpenAPI document of the API; needs no configuration
    Openapi,
    /// Create an agent or a generator, and print its PAK
    Create {
        #[command(subcommand)]
        what: create::CreateTarget,
    },
    /// Replace a PAK, and print the new one
    Rotate {
        #[command(subcommand)]
        what: rotate::RotateTarget,
    },
    /// Ask the running broker whether it is ready: exit 0 or 1
    Healthcheck,
}

/// Runs the command that this process's arguments name.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let done = match cli.command {
        Command::GeneratePak => generate_pak(&cli),
        Command::Openapi => print_openapi(),
        _ => Instance::load(cli.config.as_deref(), mode(&cli.command))
            .map_err(ServeError::from)
            .and_then(|instance| run(&cli, instance)),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(exit) => {
            // The reason is empty when the log holds it already.
            if !exit.reason.is_empty() {
                say(Stream::Err, &format!("Error: {}\n", exit.reason)).ok();
            }
            ExitCode::from(exit.code)
        }
    }
}

/// Returns what a command needs of the configuration.
fn mode(command: &Command) -> Mode {
    match command {
        Command::Serve => Mode::Alone,
        _ => Mode::Command,
    }
}

fn run(cli: &Cli, instance: Instance) -> Result<(), ServeError> {
    match &cli.command {
        Command::Serve => run_serve(instance),
        Command::Migrate => run_migrate(&instance),
        Command::Create { what } => create::run(&instance, what),
        Command::Rotate { what } => rotate::run(&instance, what),
        Command::Healthcheck => {
            healthcheck::run(&instance.config.http).map_err(|reason| ServeError { code: 1, reason })
        }
        // Handled in `main`, because these commands need no configuration.
        Command::GeneratePak => generate_pak(cli),
        Command::Openapi => print_openapi(),
    }
}

fn run_serve(instance: Instance) -> Result<(), ServeError> {
    if instance.supervised {
        guard_memory(&instance).map_err(|error| ServeError::failed("core", error))?;
    }
    let inherited =
        InheritedSockets::from_env().map_err(|error| ServeError::failed("LISTEN_FDS", error))?;
    let entered = match instance.supervised {
        true => sandbox::enter(&instance, instance.isolation_required),
        false => Ok(()),
    };
    // The supervisor's pipe needs JSON, even if the file asks for text.
    let format = match instance.config.log.format {
        LogFormat::Text if !instance.supervised => log::LogFormat::Text,
        _ => log::LogFormat::Json,
    };
    let level = instance.config.log.level.as_str();
    let tenant = (!instance.supervised).then_some(instance.tenant.as_str());
    let guard =
        log::init(level, format, tenant).map_err(|error| ServeError::failed("log", error))?;
    log_isolation(&instance.tenant);
    for warning in &instance.warnings {
        tracing::warn!(tenant = instance.tenant, "{warning}");
    }
    let (tenant, supervised) = (instance.tenant.clone(), instance.supervised);
    let mut result = match entered {
        Ok(()) => serve(instance, inherited, guard.dropped()),
        Err(reason) => Err(ServeError { code: 78, reason }),
    };
    if let Err(exit) = &mut result {
        if supervised {
            // Write to the log stream; `Error: …` is for a person at a terminal.
            tracing::error!(
                tenant,
                code = exit.code,
                "{}",
                std::mem::take(&mut exit.reason)
            );
        } else {
            exit.reason = format!("{tenant}: {}", exit.reason);
        }
    }
    drop(guard);
    result
}

/// Logs the layers of the sandbox in one line, and a warning for each that is missing.
fn log_isolation(tenant: &str) {
    let Some(state) = sandbox::state() else {
        return;
    };
    let (on, missing): (Vec<_>, Vec<_>) = state.layers.iter().partition(|layer| layer.on);
    let on: Vec<String> = on
        .iter()
        .map(|layer| format!("{}: {}", layer.name, layer.detail))
        .collect();
    tracing::info!(tenant, "isolation: {}", on.join("; "));
    for layer in missing {
        tracing::warn!(tenant, "no isolation by {}: {}", layer.name, layer.detail);
    }
}

/// Protects the tenant's secrets in memory: no other process may read it and no core is written, unless the operator
/// asked for cores. Cores go to the tenant's own state directory.
fn guard_memory(instance: &Instance) -> io::Result<()> {
    nix::sys::prctl::set_dumpable(instance.core)?;
    let (_, most) = getrlimit(Resource::RLIMIT_CORE)?;
    let size = if instance.core { most } else { 0 };
    setrlimit(Resource::RLIMIT_CORE, size, most)?;
    if instance.core {
        std::env::set_current_dir(&instance.state_dir)?;
    }
    Ok(())
}

fn run_migrate(instance: &Instance) -> Result<(), ServeError> {
    let outcome = migrate(&instance.plan(), &|_| {}).map_err(|error| failed(instance, error))?;
    say(
        Stream::Out,
        &format!(
            "{}: schema {} is at version {}, {} applied now\n",
            instance.tenant, instance.config.database.schema, outcome.version, outcome.applied
        ),
    )
}

fn generate_pak(cli: &Cli) -> Result<(), ServeError> {
    // Use the configured format if there is a configuration. A bad or absent one is no error, because this command
    // needs none.
    let format = match Instance::load(cli.config.as_deref(), Mode::Command) {
        Ok(instance) => instance.pak_format(),
        Err(error) if cli.config.is_some() => return Err(error.into()),
        Err(_) => PakFormat::default(),
    };
    let pak = Pak::mint(&format).map_err(|error| ServeError {
        code: 1,
        reason: error.to_string(),
    })?;
    say(
        Stream::Out,
        &format!(
            "PAK: {}\nHash: {}\n\nKeep the PAK; it is not stored. To make it the administrator's, set\n\n    [broker]\n    \
         pak_hash = \"{}\"\n\nbefore the first start, or before `brokkr-broker rotate admin`.\n",
            pak.expose(),
            pak.hash().as_str(),
            pak.hash().as_str()
        ),
    )
}

fn print_openapi() -> Result<(), ServeError> {
    let json = crate::api::openapi::json().map_err(|error| ServeError {
        code: 1,
        reason: error.to_string(),
    })?;
    say(Stream::Out, &format!("{json}\n"))
}
