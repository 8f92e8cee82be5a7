//! Where this broker's configuration comes from, and what the other modules take from it.
//!
//! Under a supervisor: the descriptor named by `BROKKR_CONFIG_FD`, complete. Alone: defaults, the file of `--config` or
//! `BROKKR_CONFIG_FILE`, then `BROKKR__SECTION__KEY`.

use std::ffi::OsStr;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use brokkr_tenant::{
    BrokerConfig, Diagnostics, InstanceConfig, Layer, Mode, Resolved, TenantName, resolve,
};

use crate::db;
use crate::db::start::{self, KeyFile, Plan};
use crate::pak::{Format, PakHash};
use crate::sys;
use crate::webhook::crypto::Key;
use crate::webhook::key::KeySource;

/// One run of one tenant's broker: everything it was told.
#[derive(Clone, Debug)]
pub struct Instance {
    /// The tenant's name: the supervisor's word, or the file's stem, or else the schema.
    pub tenant: String,
    /// The effective configuration.
    pub config: BrokerConfig,
    /// Where `admin.pak` goes.
    pub state_dir: PathBuf,
    /// Most database connections until told otherwise.
    pub connections: u32,
    /// From the signal to drain until it is killed.
    pub grace: Duration,
    /// Whether a supervisor started it.
    pub supervised: bool,
    /// Whether it may leave a core: `[debug] core` of its supervisor. Alone, its environment decides.
    pub core: bool,
    /// The file it was read from, if there is one; never under a supervisor.
    pub file: Option<PathBuf>,
    /// What is set without effect, for the log.
    pub warnings: Vec<String>,
}

/// What a plain unit or a container usually gives a process at the least is 10 s, Kubernetes 30 s.
const GRACE_ALONE: Duration = Duration::from_secs(20);

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The descriptor named by `BROKKR_CONFIG_FD` cannot be used.
    #[error("BROKKR_CONFIG_FD: {0}")]
    Descriptor(String),
    /// Everything wrong with file and environment.
    #[error("{0}")]
    Invalid(brokkr_tenant::Diagnostics),
}

impl Instance {
    /// Reads it. Call before anything else opens a file: an inherited descriptor is taken over by its number.
    ///
    /// # Errors
    ///
    /// [`ConfigError`]; it holds no secret.
    pub fn load(file: Option<&Path>) -> Result<Self, ConfigError> {
        match std::env::var("BROKKR_CONFIG_FD") {
            Ok(number) => Self::from_descriptor(&number),
            Err(_) => Self::alone(file),
        }
    }

    fn from_descriptor(number: &str) -> Result<Self, ConfigError> {
        let bad = |error: &dyn std::fmt::Display| ConfigError::Descriptor(error.to_string());
        let fd = number
            .parse()
            .map_err(|error: std::num::ParseIntError| bad(&error))?;
        // Closed at the end of this function: nothing that runs later can read the secrets from it.
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
            file: None,
            warnings: Vec::new(),
        })
    }

    fn alone(file: Option<&Path>) -> Result<Self, ConfigError> {
        let named = std::env::var_os("BROKKR_CONFIG_FILE").and_then(|name| named_file(&name));
        let file = file.map(Path::to_owned).or(named);
        let resolved = read(file.as_deref()).map_err(ConfigError::Invalid)?;
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
            warnings: resolved
                .warnings
                .iter()
                .map(brokkr_tenant::Diagnostic::headline)
                .collect(),
            file,
            config,
        })
    }

    /// As `pg_stat_activity` shows this broker's connections.
    pub fn application_name(&self) -> String {
        brokkr_pg::application_name(&self.tenant)
    }

    /// What a start needs of it.
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
            key_file: KeyFile::in_folder(&self.state_dir),
            webhook_key: self.webhook_key(),
            patience: start::PATIENCE,
        }
    }

    /// Where the webhook key comes from.
    pub fn webhook_key(&self) -> KeySource {
        let configured = self.config.broker.webhook_encryption_key.as_ref();
        // Its form was checked when the configuration was read.
        let configured = configured.and_then(|key| Key::parse(key.expose()));
        KeySource::new(configured, &self.state_dir)
    }

    /// How PAKs are minted.
    pub fn pak_format(&self) -> Format {
        pak_format(&self.config)
    }

    /// What the pool is built from.
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

/// Reads the path in a variable. A line end after it is none of it: variables are often made from files.
fn named_file(variable: &OsStr) -> Option<PathBuf> {
    let bytes = variable.as_bytes();
    let end = bytes
        .iter()
        .rposition(|byte| !matches!(byte, b'\r' | b'\n'))?;
    Some(OsStr::from_bytes(&bytes[..=end]).into())
}

/// What a broker alone makes of its file and the environment, now.
///
/// # Errors
/// Everything wrong with them.
pub fn read(file: Option<&Path>) -> Result<Resolved, Diagnostics> {
    let mut layers = Vec::new();
    layers.extend(file.map(Layer::from_file));
    layers.push(Layer::from_env(std::env::vars_os()));
    resolve(&layers, Mode::Alone)
}

/// How PAKs are minted with this configuration.
pub fn pak_format(config: &BrokerConfig) -> Format {
    Format {
        prefix: config.pak.prefix.clone(),
        short_token_prefix: config.pak.short_token_prefix.clone(),
        short_token_length: config.pak.short_token_length,
        long_token_length: config.pak.long_token_length,
    }
}

/// The whole file from offset 0, wherever the inherited descriptor's offset is.
fn read_from_start(mut file: &std::fs::File) -> std::io::Result<Vec<u8>> {
    use std::io::{Seek, SeekFrom};
    file.seek(SeekFrom::Start(0))?;
    let mut json = Vec::new();
    file.read_to_end(&mut json)?;
    Ok(json)
}
