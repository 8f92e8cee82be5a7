//! The operator's files: `supervisor.toml` here, `tenants.d` in [`scan`].

mod provision;
mod scan;
mod summary;
mod tenant;
mod uid_range;

pub use provision::Provision;
pub(crate) use provision::{TenantRole, credentials_file, provides_for_none};
pub(crate) use scan::{Desired, FileProblem, Referred, ScanMode, Scanned, Scanner, Stamp};
pub(crate) use summary::{ConfigSummary, SecretConfig};
pub(crate) use tenant::TenantConfig;
pub(crate) use uid_range::UidRange;

use brokkr_tenant::{
    Diagnostic, Diagnostics, FromValue, Key, Keys, Kind, Layer, Listen, Origin, Source, Value,
    settings,
};
use nix::unistd::geteuid;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

const HOUR_MS: u64 = 3_600_000;

const UIDS_NEED_ROOT: &str = "only root can give each tenant a user id of its own";
const UIDS_WITHOUT_ROOT: &str =
    "run the supervisor as root (under systemd: with the drop-in root.conf), or remove `uids`";

/// The keys of `supervisor.toml`; `[defaults]` accepts the keys of a tenant file.
static KEYS: Keys = Keys::new(&[
    Key::new("tenants_dir", Kind::Path, Some("/etc/brokkr/tenants.d")),
    Key::new("state_dir", Kind::Path, Some("/var/lib/brokkr")),
    Key::new("runtime_dir", Kind::Path, Some("/run/brokkr")),
    Key::new("broker", Kind::Path, None),
    Key::int("budget.headroom", 0, 100_000, "3"),
    Key::int("start.parallelism", 1, 1000, "4"),
    Key::duration("start.timeout", 100, HOUR_MS, "60s"),
    Key::duration("health.interval", 50, HOUR_MS, "2s"),
    Key::duration("health.timeout", 10, HOUR_MS, "1s"),
    Key::int("health.failures", 1, 1000, "3"),
    Key::duration("stop.grace", 0, HOUR_MS, "20s"),
    Key::new(
        "log.format",
        Kind::Choice(&["auto", "text", "json", "journald"]),
        Some("auto"),
    ),
    Key::new("metrics.listen", Kind::Listen, None),
    Key::new("postgres.embedded", Kind::Bool, Some("false")),
    Key::new("postgres.bin_dir", Kind::Path, None),
    Key::new("postgres.data_dir", Kind::Path, None),
    Key::int("postgres.max_connections", 10, 262_143, "200"),
    Key::new("provision.admin_url", Kind::Url, None),
    Key::new("provision.admin_url_file", Kind::Path, None),
    Key::new("provision.exclusive", Kind::Bool, Some("false")),
    Key::int("provision.limits.locks", 1, 1_000_000, "500"),
    Key::duration("provision.limits.transaction", 1000, 24 * HOUR_MS, "60s"),
    Key::duration("provision.limits.statement", 1000, 24 * HOUR_MS, "30s"),
    Key::new("debug.core", Kind::Bool, Some("false")),
    Key::new("isolation.required", Kind::Bool, Some("false")),
    Key::new("isolation.uids", Kind::Text, None),
])
.with_nested("defaults", &settings::KEYS);

/// The supervisor's own configuration. Paths are absolute.
#[derive(Debug, Clone)]
pub struct SupervisorConfig {
    /// The folder of tenant files.
    pub tenants_dir: PathBuf,
    /// The folder for state that survives a reboot: admin PAKs, the admitted list, the embedded server's data.
    pub state_dir: PathBuf,
    /// The folder for sockets and locks, which a reboot clears.
    pub runtime_dir: PathBuf,
    /// The broker's program.
    pub broker: PathBuf,
    /// `[budget]`.
    pub budget: Budget,
    /// `[start]`.
    pub start: Start,
    /// `[health]`.
    pub health: Health,
    /// `[stop]`.
    pub stop: Stop,
    /// `[log] format`: `auto`, `text`, `json` or `journald`.
    pub log_format: String,
    /// `[metrics] listen`.
    pub metrics_listen: Option<Listen>,
    /// `[debug] core`: true when a hung broker leaves a core.
    pub debug_core: bool,
    /// `[isolation] required`: true when no tenant may run without every layer of its sandbox.
    pub isolation_required: bool,
    /// `[provision]`, if it has an `admin_url`.
    pub provision: Option<Arc<Provision>>,
    /// `[isolation] uids`: the user ids from which each tenant gets its own. Only root can use them.
    pub(crate) uids: Option<UidRange>,
    /// The error in `[isolation] uids` that only `run` cares about: this process is not root.
    pub(crate) uids_need_root: Option<Diagnostic>,
    /// `[postgres]`.
    pub postgres: Postgres,
    /// `[defaults]`: the layer under every tenant file.
    pub defaults: Layer,
    /// Warnings about settings without effect.
    pub warnings: Vec<Diagnostic>,
}

impl SupervisorConfig {
    /// Returns the user ids that tenants get from this process: none when it is not root.
    pub(crate) fn own_uids(&self) -> Option<UidRange> {
        self.uids.filter(|_| self.uids_need_root.is_none())
    }
}

/// `[budget]`.
#[derive(Debug, Clone, Copy)]
pub struct Budget {
    /// The connections per server that are left for people and other programs.
    pub headroom: u32,
}

/// `[start]`.
#[derive(Debug, Clone, Copy)]
pub struct Start {
    /// The number of brokers that may start at once on one server.
    pub parallelism: usize,
    /// The time within which a broker must be ready.
    pub timeout: Duration,
}

/// `[health]`.
#[derive(Debug, Clone, Copy)]
pub struct Health {
    /// The time between two probes of one broker.
    pub interval: Duration,
    /// The longest wait for one answer.
    pub timeout: Duration,
    /// The number of missed answers in a row after which a broker is hung.
    pub failures: u32,
}

impl Health {
    /// Returns the longest time until a hung broker is detected.
    pub fn hung_after(&self) -> Duration {
        self.interval * self.failures + self.timeout
    }
}

/// `[stop]`.
#[derive(Debug, Clone, Copy)]
pub struct Stop {
    /// The time from SIGTERM to SIGKILL.
    pub grace: Duration,
}

/// `[postgres]`.
#[derive(Debug, Clone)]
pub struct Postgres {
    /// True when a private server runs as a child.
    pub embedded: bool,
    /// The folder of the server's programs, if set.
    pub bin_dir: Option<PathBuf>,
    /// The server's data folder.
    pub data_dir: PathBuf,
    /// The server's `max_connections`.
    pub max_connections: u32,
}

/// Reads the supervisor's file.
pub fn load(path: &Path) -> Result<SupervisorConfig, Diagnostics> {
    of(Source::read(path)?)
}

/// Returns the default `state_dir`.
pub(crate) fn default_state_dir() -> PathBuf {
    "/var/lib/brokkr".into()
}

/// Reads the text of a supervisor's file.
pub(crate) fn of(source: Source) -> Result<SupervisorConfig, Diagnostics> {
    let file = Layer::from_source(source, &KEYS);
    if file.problems().has_errors() {
        return Err(file.problems().clone());
    }
    let read = Read {
        file: &file,
        defaults: Layer::defaults(&KEYS),
    };
    let state_dir = read.path("state_dir").unwrap_or_default();
    let mut warnings: Vec<Diagnostic> = file.problems().iter().cloned().collect();
    let uids = match read.optional::<String>("isolation.uids") {
        Some(text) => Some(read.uids(&text, &mut warnings)?),
        None => None,
    };
    let defaults = file.under("defaults");
    let provision = Provision::read(&read, &defaults, uids.is_some())?.map(Arc::new);
    let config = SupervisorConfig {
        tenants_dir: read.path("tenants_dir").unwrap_or_default(),
        runtime_dir: read.path("runtime_dir").unwrap_or_default(),
        broker: read.path("broker").unwrap_or_else(broker_beside_us),
        budget: Budget {
            headroom: read.required("budget.headroom"),
        },
        start: Start {
            parallelism: read.required("start.parallelism"),
            timeout: read.required("start.timeout"),
        },
        health: Health {
            interval: read.required("health.interval"),
            timeout: read.required("health.timeout"),
            failures: read.required("health.failures"),
        },
        stop: Stop {
            grace: read.required("stop.grace"),
        },
        log_format: read.required("log.format"),
        metrics_listen: read.optional("metrics.listen"),
        debug_core: read.required("debug.core"),
        isolation_required: read.required("isolation.required"),
        uids,
        uids_need_root: uids
            .filter(|_| !geteuid().is_root())
            .map(|_| read.at("isolation.uids", UIDS_NEED_ROOT, UIDS_WITHOUT_ROOT)),
        postgres: Postgres {
            embedded: read.required("postgres.embedded"),
            bin_dir: read.path("postgres.bin_dir"),
            data_dir: read
                .path("postgres.data_dir")
                .unwrap_or_else(|| state_dir.join("postgres")),
            max_connections: read.required("postgres.max_connections"),
        },
        provision,
        state_dir,
        defaults,
        warnings,
    };
    Ok(config)
}

/// The file's values over the defaults. Every key with a default has a value of its kind, which a test checks.
struct Read<'l> {
    file: &'l Layer,
    defaults: Layer,
}

impl Read<'_> {
    fn value(&self, key: &str) -> Option<&Value> {
        self.file.get(key).or_else(|| self.defaults.get(key))
    }

    fn optional<T: FromValue>(&self, key: &str) -> Option<T> {
        T::from_value(self.value(key)?)
    }

    fn required<T: FromValue + Default>(&self, key: &str) -> T {
        self.optional(key).unwrap_or_default()
    }

    fn at(&self, key: &str, message: &str, hint: &str) -> Diagnostic {
        let unknown = Origin::Default("supervisor.toml");
        let origin = self.file.origin(key).unwrap_or(&unknown);
        Diagnostic::at(origin, message, (!hint.is_empty()).then(|| hint.to_owned()))
    }

    /// Parses `[isolation] uids`, and warns of accounts in the range.
    fn uids(&self, text: &str, warnings: &mut Vec<Diagnostic>) -> Result<UidRange, Diagnostics> {
        const KEY: &str = "isolation.uids";
        let range = UidRange::parse(text).map_err(|invalid| {
            let hint = invalid.hint.unwrap_or_default();
            self.at(KEY, &invalid.message, &hint)
        })?;
        for (file, what) in [("/etc/passwd", "users"), ("/etc/group", "groups")] {
            let accounts = std::fs::read_to_string(file).unwrap_or_default();
            if let Some(taken) = range.taken_by(&accounts) {
                let message =
                    format!("`{KEY}` overlaps the {what} {taken}: a broker would have their files");
                let hint = format!("choose a range in which {file} has no entry");
                warnings.push(self.at(KEY, &message, &hint).warning());
            }
        }
        Ok(range)
    }

    fn path(&self, key: &str) -> Option<PathBuf> {
        self.optional(key).map(|path: PathBuf| tidy(&path))
    }
}

/// Removes `..` from the path, for messages and because a socket's address is short. Links that no `..` follows are
/// kept, because they may later point elsewhere.
fn tidy(path: &Path) -> PathBuf {
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let parts: Vec<_> = path.components().collect();
    let Some(last) = parts.iter().rposition(|part| *part == Component::ParentDir) else {
        return path;
    };
    let (up, rest) = parts.split_at(last + 1);
    match up.iter().collect::<PathBuf>().canonicalize() {
        Ok(real) => real.join(rest.iter().collect::<PathBuf>()),
        Err(_) => path,
    }
}

/// Returns the broker's program beside this one, because both are installed together.
fn broker_beside_us() -> PathBuf {
    let ours = std::env::current_exe().unwrap_or_else(|_| "/usr/bin/brokkr-supervisor".into());
    ours.with_file_name("brokkr-broker")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn an_empty_file_is_all_defaults_and_every_default_is_of_its_kind() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("supervisor.toml");
        std::fs::write(&path, "").unwrap();
        let config = load(&path).unwrap();
        assert_eq!(config.tenants_dir, Path::new("/etc/brokkr/tenants.d"));
        assert_eq!(config.start.parallelism, 4);
        assert_eq!(config.start.timeout, Duration::from_secs(60));
        assert_eq!(config.health.interval, Duration::from_secs(2));
        assert_eq!(config.health.timeout, Duration::from_secs(1));
        assert_eq!(config.health.failures, 3);
        assert_eq!(config.stop.grace, Duration::from_secs(20));
        assert_eq!(config.budget.headroom, 3);
        assert_eq!(
            config.postgres.data_dir,
            Path::new("/var/lib/brokkr/postgres")
        );
        assert_eq!(config.postgres.max_connections, 200);
        assert!(!config.postgres.embedded && config.metrics_listen.is_none());
        assert!(config.broker.ends_with("brokkr-broker"));
    }

    #[test]
    fn paths_are_taken_from_the_file_and_mistakes_are_named_with_their_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("supervisor.toml");
        std::fs::write(
            &path,
            "state_dir = \"state\"\n[defaults.database]\npool_size = 7\n",
        )
        .unwrap();
        let config = load(&path).unwrap();
        assert_eq!(config.state_dir, folder.path().join("state"));
        assert!(config.defaults.get("database.pool_size").is_some());
        std::fs::write(
            &path,
            "state_dri = \"state\"\n[start]\nparallelism = \"four\"\n",
        )
        .unwrap();
        let problems = load(&path).unwrap_err().to_string();
        assert!(problems.contains("supervisor.toml:1:1: "), "{problems}");
        assert!(problems.contains("state_dir"), "{problems}");
        assert!(problems.contains("supervisor.toml:3:1: "), "{problems}");
    }

    #[test]
    fn user_ids_are_roots_to_give_and_a_bad_range_is_an_error_at_its_line() {
        let of = |text: &str| of(Source::new("/x/supervisor.toml", text));
        let config = of("[isolation]\nuids = \"61000-61183\"\n").unwrap();
        assert_eq!(config.uids.unwrap().count(), 184);
        assert_eq!(config.own_uids().is_some(), geteuid().is_root());
        for (text, says) in [
            ("[isolation]\nuids = \"0-9\"\n", "contains 0"),
            ("[isolation]\nuids = \"many\"\n", "61000-61999"),
        ] {
            let problems = of(text).unwrap_err().to_string();
            let place = problems.contains("/x/supervisor.toml:2:1: ");
            assert!(place && problems.contains(says), "{problems}");
        }
        let roots = of("[isolation]\nuids = \"1-70000\"\n");
        // 65535 is no id.
        assert!(roots.is_err());
        let nobodys = of("[isolation]\nuids = \"65534-65534\"\n").unwrap();
        let warnings: Vec<String> = nobodys.warnings.iter().map(Diagnostic::headline).collect();
        assert!(
            warnings.iter().any(|w| w.contains("nobody (65534)")),
            "{warnings:?}"
        );
    }
}
