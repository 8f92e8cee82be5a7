//! The command line.

use crate::logs::Level;
use brokkr_tenant::TenantName;
use clap::{Args, Parser, Subcommand, ValueEnum};
use std::path::{Path, PathBuf};

/// The default path of the supervisor's own file.
pub(crate) const CONFIG: &str = "/etc/brokkr/supervisor.toml";

/// Runs one isolated Brokkr broker per tenant, against shared PostgreSQL servers.
#[derive(Debug, Parser)]
#[command(
    name = "brokkr-supervisor",
    version,
    after_help = "Exit status: 0 done, 1 problem found, 2 usage, 69 supervisor not running, 78 configuration."
)]
pub(crate) struct Cli {
    // Has no default, because clap would let the default after a subcommand override a value before it.
    /// The supervisor's own file [default: /etc/brokkr/supervisor.toml]
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,

    /// The command.
    #[command(subcommand)]
    pub(crate) command: Command,
}

impl Cli {
    /// Returns the path of the supervisor's own file.
    pub(crate) fn config(&self) -> &Path {
        self.config.as_deref().unwrap_or(Path::new(CONFIG))
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run every tenant, in the foreground
    Run(Run),
    /// End the brokers that a supervisor has left and no other is going to take over (the unit's ExecStopPost=)
    Sweep,
    /// Judge every file, schema, address and budget; change nothing
    Check(Check),
    /// Show tenants and servers
    Status(Status),
    /// Show the last log lines
    Logs(Logs),
    /// Start tenants; those in backoff are tried at once
    Start(Which),
    /// Drain tenants and keep them stopped
    Stop(Which),
    /// Replace instances without losing a request
    Restart(Restart),
    /// Read every tenant file again, wait until all has settled, and print what changed
    Reload(Reload),
    /// Add, remove and list tenants' files
    Tenant {
        /// The command.
        #[command(subcommand)]
        command: Tenant,
    },
    /// Print the admin PAK of a tenant's first start
    Pak {
        /// The tenant
        #[arg(value_name = "TENANT", value_parser = tenant_name)]
        tenant: TenantName,
    },
}

/// `run`
#[derive(Debug, Args)]
pub(crate) struct Run {
    /// Only say whether the state on standard input, which another supervisor would hand over, is understood
    #[arg(long, hide = true)]
    pub(crate) check_state: bool,
}

/// `check`
#[derive(Debug, Args)]
pub(crate) struct Check {
    /// Judge files, schemas and addresses without asking any server
    #[arg(long)]
    pub(crate) offline: bool,
}

/// `status`
#[derive(Debug, Args)]
pub(crate) struct Status {
    /// Only this tenant, in detail
    #[arg(value_name = "TENANT", value_parser = tenant_name)]
    pub(crate) tenant: Option<TenantName>,
    /// For people or for programs
    #[arg(long, value_enum, default_value_t = StatusFormat::Table)]
    pub(crate) format: StatusFormat,
    /// Show it again whenever it changes
    #[arg(long)]
    pub(crate) watch: bool,
}

/// The format of `status`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum StatusFormat {
    /// Aligned columns.
    Table,
    /// One JSON object.
    Json,
}

/// `logs`
#[derive(Debug, Args)]
pub(crate) struct Logs {
    /// Go on with lines as they come
    #[arg(short, long)]
    pub(crate) follow: bool,
    /// Only lines of this tenant; may be given more than once
    #[arg(short, long = "tenant", value_name = "TENANT", value_parser = tenant_name)]
    pub(crate) tenants: Vec<TenantName>,
    /// No lines of this tenant; may be given more than once
    #[arg(long, value_name = "TENANT", value_parser = tenant_name)]
    pub(crate) not: Vec<TenantName>,
    /// Number of last lines: half of them the newest, the others shared among tenants
    #[arg(short = 'n', long, value_name = "LINES", default_value_t = 100)]
    pub(crate) lines: usize,
    /// Only lines as grave as this, or graver
    #[arg(long, value_enum, ignore_case = true)]
    pub(crate) level: Option<Level>,
    /// For people or for programs
    #[arg(long, value_enum, default_value_t = LogFormat::Text)]
    pub(crate) format: LogFormat,
}

/// The format of `logs`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    /// For people.
    Text,
    /// One JSON object per line.
    Json,
}

/// The tenants that `start`, `stop` and `restart` apply to.
#[derive(Debug, Args)]
#[group(id = "which", required = true, multiple = false)]
pub(crate) struct Which {
    /// These tenants
    #[arg(value_name = "TENANT", value_parser = tenant_name)]
    pub(crate) tenants: Vec<TenantName>,
    /// Every tenant
    #[arg(long)]
    pub(crate) all: bool,
}

/// `restart`
#[derive(Debug, Args)]
pub(crate) struct Restart {
    #[command(flatten)]
    pub(crate) which: Which,
    /// Go on after a tenant that could not be restarted
    #[arg(long)]
    pub(crate) keep_going: bool,
}

/// `reload`
#[derive(Debug, Args)]
pub(crate) struct Reload {
    /// Carry out removals that were held because they were so many
    #[arg(long)]
    pub(crate) confirm_removals: bool,
}

/// `tenant`
#[derive(Debug, Subcommand)]
pub(crate) enum Tenant {
    /// Write a tenant's file and start it
    Add(Add),
    /// Remove a tenant's file; its broker drains and goes, its data stays unless --drop-data is given
    Remove(Remove),
    /// Give a tenant's own role a new password, on the server and in its broker
    RotateCredentials {
        /// The tenant
        #[arg(value_name = "TENANT", value_parser = tenant_name)]
        tenant: TenantName,
    },
    /// Print the names of all tenants that have a file
    List,
}

/// `tenant add`
#[derive(Debug, Args)]
pub(crate) struct Add {
    /// The tenant
    #[arg(value_name = "TENANT", value_parser = tenant_name)]
    pub(crate) tenant: TenantName,
    /// URL of its database, without a password: every user of the host can read arguments [default: as in the
    /// supervisor's file]
    #[arg(long, value_name = "URL", conflicts_with = "url_file")]
    pub(crate) url: Option<String>,
    /// File that holds the URL of its database
    #[arg(long, value_name = "FILE")]
    pub(crate) url_file: Option<PathBuf>,
    /// Its schema [default: tenant_NAME, hyphens as underscores]
    #[arg(long)]
    pub(crate) schema: Option<String>,
    /// Where it listens, IP:PORT or unix:PATH
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) listen: String,
    /// Most connections it may hold
    #[arg(long, value_name = "CONNECTIONS")]
    pub(crate) pool_size: Option<u32>,
}

/// `tenant remove`
#[derive(Debug, Args)]
pub(crate) struct Remove {
    /// The tenant
    #[arg(value_name = "TENANT", value_parser = tenant_name)]
    pub(crate) tenant: TenantName,
    /// Drop its schema, its own role and its state folder too, after a question
    #[arg(long)]
    pub(crate) drop_data: bool,
    /// The tenant's name once more, instead of the question
    #[arg(long, value_name = "TENANT", value_parser = tenant_name, requires = "drop_data")]
    pub(crate) yes_drop: Option<TenantName>,
    /// File for a dump of the schema before it is dropped, in the custom format of pg_dump
    #[arg(long, value_name = "FILE", requires = "drop_data")]
    pub(crate) dump: Option<PathBuf>,
}

fn tenant_name(text: &str) -> Result<TenantName, String> {
    TenantName::parse(text).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use clap::CommandFactory;
    use clap::error::ErrorKind;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(line.split(' '))
    }

    #[test]
    fn the_commands_hang_together() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_configuration_may_be_named_before_or_after_the_command() {
        assert_eq!(parse("x status").unwrap().config(), Path::new(CONFIG));
        assert_eq!(
            parse("x --config a status").unwrap().config(),
            Path::new("a")
        );
        assert_eq!(
            parse("x status acme --config a").unwrap().config(),
            Path::new("a")
        );
        assert_eq!(
            parse("x tenant --config a list").unwrap().config(),
            Path::new("a")
        );
    }

    #[test]
    fn start_takes_tenants_or_all_but_one_of_these() {
        assert!(parse("x start acme globex").is_ok());
        assert!(parse("x start --all").is_ok());
        assert_eq!(
            parse("x start").unwrap_err().kind(),
            ErrorKind::MissingRequiredArgument
        );
        assert_eq!(
            parse("x stop acme --all").unwrap_err().kind(),
            ErrorKind::ArgumentConflict
        );
        assert_eq!(
            parse("x stop A").unwrap_err().kind(),
            ErrorKind::ValueValidation
        );
    }

    #[test]
    fn usage_errors_exit_with_two() {
        assert_eq!(parse("x swoop").unwrap_err().exit_code(), 2);
        assert_eq!(parse("x status --format xml").unwrap_err().exit_code(), 2);
    }
}
