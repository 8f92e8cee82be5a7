//! Reloading of the configuration while the broker runs.
//!
//! A reload applies the values that can change at run time (`runtime_config`), and reports other changed keys as
//! needing a restart. A configuration with any error changes nothing. Under a supervisor a reload does nothing, because
//! the supervisor replaces the instance when the tenant's file changes.
//!
//! Three callers reload: the admin (`POST /admin/config/reload`), SIGHUP, and the watch of the files ([`watch`]).

pub mod hangup;
pub mod watch;

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use brokkr_tenant::{BrokerConfig, Diagnostic, Diagnostics, Mode};

use crate::config;
use crate::jobs::schedule::{Job, Schedule};
use crate::log;
use crate::runtime_config::{ConfigChange, RuntimeConfig, Values};
use crate::tls::Tls;

/// Reloads the configuration. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Reloader(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    supervised: bool,
    file: Option<PathBuf>,
    /// The configuration at the start.
    config: Arc<BrokerConfig>,
    runtime_config: RuntimeConfig,
    tls: Option<Tls>,
    /// The jobs whose intervals a reload may change.
    jobs: Schedule,
    /// The lock held from reading until applying, otherwise an older reading could win.
    turn: Mutex<()>,
}

/// A configuration that has been read but not applied. Dropping it changes nothing.
#[derive(Debug)]
pub struct Pending<'a> {
    _turn: MutexGuard<'a, ()>,
    reloader: &'a Inner,
    values: Option<Values>,
    /// The values that will change.
    pub changes: Vec<ConfigChange>,
    /// The keys that differ but need a restart of the broker.
    pub needs_restart: Vec<&'static str>,
}

impl Reloader {
    /// Returns a reloader for this instance.
    pub fn new(
        instance: &config::Instance,
        config: Arc<BrokerConfig>,
        runtime_config: RuntimeConfig,
        tls: Option<Tls>,
        jobs: Schedule,
    ) -> Self {
        Self(Arc::new(Inner {
            supervised: instance.supervised,
            file: instance.file.clone(),
            config,
            runtime_config,
            tls,
            jobs,
            turn: Mutex::new(()),
        }))
    }

    /// Returns the files whose content the values come from: the configuration file, if there is one, and those of TLS.
    fn files(&self) -> Vec<PathBuf> {
        let tls = self.0.runtime_config.get().tls.clone();
        let tls = tls.map(|tls| [tls.cert_file, tls.key_file]);
        let file = self.0.file.iter().cloned();
        file.chain(tls.into_iter().flatten()).collect()
    }

    /// Returns true when a supervisor handles changes instead.
    pub fn is_supervised(&self) -> bool {
        self.0.supervised
    }

    /// Reads file and environment, and compares them with the current values. Blocks.
    pub fn read(&self) -> Result<Pending<'_>, Diagnostics> {
        // The lock guards no data, so a panic leaves nothing half-done.
        let turn = self.0.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let mut pending = Pending {
            _turn: turn,
            reloader: &self.0,
            values: None,
            changes: Vec::new(),
            needs_restart: Vec::new(),
        };
        if !self.0.supervised {
            let config = config::read(self.0.file.as_deref(), Mode::Alone)?.config;
            let mut values = Values::of(&config);
            let current = self.0.runtime_config.get();
            let toggles_tls = values.tls.is_some() != current.tls.is_some();
            if toggles_tls {
                // Open connections and clients expect what the listener speaks now.
                values.tls.clone_from(&current.tls);
            }
            pending.changes = current.changes(&values);
            pending.needs_restart = self
                .0
                .config
                .differing(&config)
                .into_iter()
                .filter(|key| !values.has(key) || (toggles_tls && key.starts_with("http.tls_")))
                .collect();
            pending.values = Some(values);
        }
        Ok(pending)
    }
}

impl Pending<'_> {
    /// Applies the changes. Returns false when the log's level should change but cannot, because `RUST_LOG` decides.
    pub fn apply(self) -> bool {
        let Some(values) = self.values else {
            return true;
        };
        for ConfigChange {
            key,
            old_value,
            new_value,
        } in &self.changes
        {
            tracing::info!(key, old_value, new_value, "configuration changed");
        }
        if let (Some(tls), Some(new)) = (&self.reloader.tls, &values.tls)
            && let Err(error) = tls.replace(&new.pair)
        {
            // Reading the files has checked the pair.
            tracing::error!(%error, "the TLS certificate is not replaced");
        }
        let level = values.log_level;
        let level_before = self.reloader.runtime_config.set(values).log_level;
        // The changes may concern these jobs' intervals and retention times.
        self.reloader.jobs.wake(Job::Diagnostics);
        self.reloader.jobs.wake(Job::Webhooks);
        level == level_before || log::set_level(level)
    }
}

/// Formats a problem of a configuration in one line: place, problem, and correction.
pub fn told(problem: &Diagnostic) -> String {
    match &problem.hint {
        Some(hint) => format!("{} ({hint})", problem.headline()),
        None => problem.headline(),
    }
}
