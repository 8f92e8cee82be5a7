//! The sources of this broker's configuration, and the parts that other modules take from it.
//!
//! Under a supervisor, the broker reads the complete configuration from the descriptor named by `BROKKR_CONFIG_FD`.
//! Alone, it merges defaults, the file of `--config` or `BROKKR_CONFIG_FILE`, and `BROKKR__SECTION__KEY`.

use std::ffi::OsStr;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use brokkr_tenant::instance_protocol::CONFIG_FD;
use brokkr_tenant::{
    BrokerConfig, Diagnostics, InstanceConfig, Layer, Mode, Resolved, TenantName, resolve,
};

use crate::db;
use crate::db::start::{self, AdminPakFile, Plan};
use crate::pak::{PakFormat, PakHash};
use crate::sys;
use crate::webhook::crypto::Key;
use crate::webhook::key::KeySource;

/// One run of one tenant's broker, with everything that the broker was told.
#[derive(Clone, Debug)]
pub struct Instance {
    /// The tenant's name, as the supervisor gives it. Alone: the file's stem, or else the schema.
    pub tenant: String,
    /// The effective configuration.
    pub config: BrokerConfig,
    /// The directory that holds `admin.pak`.
    pub state_dir: PathBuf,
    /// The largest number of database connections, until the supervisor tells another.
    pub connections: u32,
    /// The time from the signal to drain until the process is killed.
    pub grace: Duration,
    /// True when a supervisor started this broker.
    pub supervised: bool,
    /// True when the process may leave a core: `[debug] core` of the supervisor. Alone, the environment decides.
    pub core: bool,
    /// True when the broker must not run without every layer of its sandbox: `[isolation] required` of the supervisor.
    pub isolation_required: bool,
    /// The configuration file, if there is one; never set under a supervisor.
    pub file: Option<PathBuf>,
    /// Warnings for the log about keys without effect.
    pub warnings: Vec<String>,
}

/// The grace of a broker without a supervisor: plain units and containers usually allow at least 10 s, Kubernetes 30 s.
const GRACE_ALONE: Duration = Duration::from_secs(20);

/// Reason why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The descriptor named by `BROKKR_CONFIG_FD` cannot be used.
    #[error("{CONFIG_FD}: {0}")]
    Descriptor(String),
    /// Everything wrong with the file and the environment.
    #[error("{0}")]
    Invalid(brokkr_tenant::Diagnostics),
}

impl Instance {
    /// Reads the configuration. Without a supervisor, `mode` says whether the broker serves. Call this before any other code opens a file, because an inherited descriptor is taken
    /// over by its number.
    ///
    /// # Errors
    ///
    /// [`ConfigError`]; it holds no secret.
    pub fn load(file: Option<&Path>, mode: Mode) -> Result<Self, ConfigError> {
        match std::env::var(CONFIG_FD) {
            Ok(number) => Self::from_descriptor(&number),
            Err(_) => Self::alone(file, mode),
        }
    }

    fn from_descriptor(number: &str) -> Result<Self, ConfigError> {
        let bad = |error: &dyn std::fmt::Display| ConfigError::Descriptor(error.to_string());
        let fd = number
            .parse()
            .map_err(|error: std::num::ParseIntError| bad(&error))?;
        // The file is closed at the end of this function, so that later code cannot read the secrets from it.
        let file = sys::inherited_file(fd).map_err(|error| bad(&error))?;
        let json = read_from_start(&file).map_err(|error| bad(&error))?;
        let instance = InstanceConfig::from_json(&json).map_err(|error| bad(&error))?;
        Ok(Instance {
            tenant: instance.tenant.as_str().to_owned(),
            config: instance.config,
            state_dir: instance.state_dir,
            connections: instance.connections,
            grace: instance.grace,
            supervised: true,
            core: instance.core,
            isolation_required: instance.isolation_required,
            file: None,
            warnings: Vec::new(),
        })
    }

    fn alone(file: Option<&Path>, mode: Mode) -> Result<Self, ConfigError> {
        let named = std::env::var_os("BROKKR_CONFIG_FILE").and_then(|name| named_file(&name));
        let file = file.map(Path::to_owned).or(named);
        let resolved = read(file.as_deref(), mode).map_err(ConfigError::Invalid)?;
        let config = resolved.config;
        let stem = file
            .as_deref()
            .and_then(Path::file_stem)
            .and_then(|stem| stem.to_str());
        let tenant = stem
            .filter(|stem| TenantName::parse(stem).is_ok())
            .unwrap_or(config.database.schema.as_str());
        Ok(Instance {
            tenant: tenant.to_owned(),
            state_dir: config.state_dir(std::env::var_os("STATE_DIRECTORY").as_deref()),
            connections: config.database.pool_size.get(),
            grace: GRACE_ALONE,
            supervised: false,
            core: true,
            isolation_required: false,
            warnings: resolved
                .warnings
                .iter()
                .map(brokkr_tenant::Diagnostic::headline)
                .collect(),
            file,
            config,
        })
    }

    /// Returns the name of this broker's connections in `pg_stat_activity`.
    pub fn application_name(&self) -> String {
        brokkr_pg::application_name(&self.tenant)
    }

    /// Returns everything that a start needs.
    pub fn plan(&self) -> Plan {
        let pak_hash = self
            .config
            .broker
            .pak_hash
            .as_ref()
            .and_then(|hash| PakHash::parse(hash.expose()));
        Plan {
            url: self.config.database.url.clone(),
            schema: self.config.database.schema.clone(),
            application_name: self.application_name(),
            pak_format: self.pak_format(),
            pak_hash,
            key_file: AdminPakFile::in_folder(&self.state_dir),
            webhook_key: self.webhook_key(),
            patience: start::PATIENCE,
        }
    }

    /// Returns the source of the webhook key.
    pub fn webhook_key(&self) -> KeySource {
        let configured = self.config.broker.webhook_encryption_key.as_ref();
        // Reading the configuration has checked the key's form.
        let configured = configured.and_then(|key| Key::parse(key.expose()));
        KeySource::new(configured, &self.state_dir)
    }

    /// Returns the format of new PAKs.
    pub fn pak_format(&self) -> PakFormat {
        pak_format(&self.config)
    }

    /// Returns the options of the connection pool.
    pub fn db_options(&self) -> db::Options {
        let database = &self.config.database;
        db::Options {
            url: database.url.clone(),
            schema: database.schema.clone(),
            application_name: self.application_name(),
            pool_size: database.pool_size.get(),
            connections: self.connections,
            acquire_timeout: database.acquire_timeout,
            max_working: database.max_working,
            statement_timeout: database.statement_timeout,
            idle_in_transaction_timeout: database.idle_in_transaction_timeout,
            deadline: self.config.http.request_timeout,
        }
    }
}

/// Reads the path in a variable, without a line end after it, because variables are often made from files.
fn named_file(variable: &OsStr) -> Option<PathBuf> {
    let bytes = variable.as_bytes();
    let end = bytes
        .iter()
        .rposition(|byte| !matches!(byte, b'\r' | b'\n'))?;
    Some(OsStr::from_bytes(&bytes[..=end]).into())
}

/// Reads the configuration of a broker alone: its file and the environment, as they are now.
pub fn read(file: Option<&Path>, mode: Mode) -> Result<Resolved, Diagnostics> {
    let mut layers = Vec::new();
    layers.extend(file.map(Layer::from_file));
    layers.push(Layer::from_env(std::env::vars_os()));
    resolve(&layers, mode)
}

/// Returns the format of new PAKs with this configuration.
pub fn pak_format(config: &BrokerConfig) -> PakFormat {
    PakFormat {
        prefix: config.pak.prefix.clone(),
        short_token_prefix: config.pak.short_token_prefix.clone(),
        short_token_length: config.pak.short_token_length,
        long_token_length: config.pak.long_token_length,
    }
}

/// Reads the whole file from offset 0, because the inherited descriptor may have another offset.
fn read_from_start(mut file: &std::fs::File) -> std::io::Result<Vec<u8>> {
    use std::io::{Seek, SeekFrom};
    file.seek(SeekFrom::Start(0))?;
    let mut json = Vec::new();
    file.read_to_end(&mut json)?;
    Ok(json)
}
